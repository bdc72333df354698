"""Rematerialisation: what a block keeps for the backward pass and what it computes again, by `model.remat`."""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

POLICIES = jax.checkpoint_policies
NAMED = ("attention_output", "mlp_hidden", "convolution")  # what "named" keeps
SAVEABLE: dict[str, Callable[..., Any]] = {
    "full": POLICIES.nothing_saveable,
    "attention": POLICIES.save_only_these_names("attention_output"),
    "named": POLICIES.save_only_these_names(*NAMED),
    "dots": POLICIES.save_from_both_policies(
        POLICIES.dots_with_no_batch_dims_saveable, POLICIES.save_only_these_names("convolution")
    ),
}


def keep(x: Array, name: str) -> Array:
    """x, marked as one of NAMED."""
    assert name in NAMED
    return checkpoint_name(x, name)


def rematerialize(body: Callable[..., Any], remat: str) -> Callable[..., Any]:
    """A scanned block that keeps only what the policy says; "none" keeps everything."""
    if remat == "none":
        return body
    # A scan's body needs no barrier against common subexpressions, which would cost speed.
    return jax.checkpoint(body, prevent_cse=False, policy=SAVEABLE[remat])
