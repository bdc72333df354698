"""One update: encode both sides, compare all pairs, differentiate, apply AdamW, clamp the temperature."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from clip_jax.losses import normalize, sharded_contrastive_loss
from clip_jax.losses.contrastive import Metrics
from clip_jax.models import CLIP
from clip_jax.train_state import Params, TrainState, Variables, join_variables

Batch = dict[str, Any]  # image: [N, H, W, 3], text: int32 [N, L] or PackedText
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def loss_fn(
    params: Params, batch_stats: Variables, graph: nnx.GraphDef[CLIP], batch: Batch, mesh: Mesh
) -> tuple[jax.Array, tuple[Metrics, Variables]]:
    """The contrastive loss of a global batch {image [N, H, W, 3], text int32 [N, L] or packed}, its metrics, and the
    running statistics as the batch has moved them."""
    model = nnx.merge(graph, join_variables(params, batch_stats))
    features = model(batch["image"], batch["text"], train=True)
    loss, metrics = sharded_contrastive_loss(
        normalize(features.image_features), normalize(features.text_features), features.logit_scale, mesh
    )
    return loss, (metrics, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))


def make_train_step(
    graph: nnx.GraphDef[CLIP],
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    max_logit_scale: float,
    shardings: Any,
) -> TrainStep:
    """The jitted step (state, batch) -> (state, metrics); the state's buffers are donated and stay in their place,
    which `shardings`, a TrainState of NamedShardings, says.

    Metrics are scalars on the device: loss, chance_loss (ln N, what guessing gives), accuracy in the batch both ways,
    logit_scale (after exp), grad_norm, param_norm, learning_rate. Call it under `jax.set_mesh(mesh)`.
    """

    mesh = shardings.step.mesh

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (metrics, batch_stats)), grads = gradient(state.params, state.batch_stats, graph, batch, mesh)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params["logit_scale"] = jnp.clip(params["logit_scale"], 0, jnp.log(max_logit_scale))
        metrics |= {
            "loss": loss,
            "chance_loss": jnp.log(len(batch["image"])),
            "logit_scale": jnp.exp(state.params["logit_scale"]),
            "grad_norm": optax.tree.norm(grads),
            "param_norm": optax.tree.norm(state.params),
            "learning_rate": schedule(state.step),
        }
        return TrainState(state.step + 1, params, batch_stats, opt_state, state.rng), metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None))
