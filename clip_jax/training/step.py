"""One update: encode both sides, compare all pairs, differentiate, apply AdamW, clamp the temperature."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from clip_jax.losses import CaptionScores, LossConfig, caption_chance, caption_scores, make_loss
from clip_jax.losses.config import Features
from clip_jax.losses.contrastive import Metrics
from clip_jax.models.variables import Params, Variables, join_variables
from clip_jax.training.accumulation import loss_and_gradient
from clip_jax.training.state import TrainState, moved_average

Batch = dict[str, Any]  # image: [N, H, W, 3], text: int32 [N, L] or PackedText
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def encode(
    graph: nnx.GraphDef[Any], frozen: Params, params: Params, batch_stats: Variables, rows: Batch
) -> tuple[Features | CaptionScores, Variables]:
    """Features of the rows {image [N, H, W, 3], text int32 [N, L] or packed, key [N]}, or what a model that predicts
    captions makes of theirs, and the running statistics as they moved them. A frozen tower encodes as in evaluation: by
    its running statistics, with all patches."""
    model = nnx.merge(graph, join_variables(params, frozen, batch_stats))
    image_features = model.encode_image(rows["image"], train="visual" not in frozen, keys=rows["key"])
    head, text = model.config.head, rows["text"]
    features: Features | CaptionScores
    if head == "embedding":
        features = image_features, model.encode_text(text)
    else:
        logits = model.caption_logits(image_features, text)
        features = caption_scores(head, logits, text, model.config.text.eot_token)
    return features, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def make_train_step(
    graph: nnx.GraphDef[Any],
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    max_logit_scale: float,
    shardings: Any,
    *,
    loss: LossConfig = LossConfig(),
    num_microbatches: int = 1,
    ema_decay: float = 0.0,
) -> TrainStep:
    """The jitted step (state, batch) -> (state, metrics) for a batch {image [N, H, W, 3], text int32 [N, L]}; the
    state's buffers are donated and stay in their place, which `shardings`, a TrainState of NamedShardings, says.

    Metrics are scalars on the device: loss, chance_loss (what guessing gives), accuracy in the batch both ways,
    logit_scale (after exp), logit_bias (of a sigmoid loss), grad_norm, param_norm (both of what learns), learning_rate;
    of captions predicted, token_accuracy stands for the accuracies and the two of the logits are missing.
    Call it under `jax.set_mesh(mesh)`. num_microbatches: the parts in which the towers see the batch, one by one.
    """
    loss_fn = make_loss(loss, shardings.step.mesh)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        # A key for each image makes what is random the same however the batch is cut, and in both passes.
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        rows = {**batch, "key": jax.random.split(key, len(batch["image"]))}
        (value, (metrics, batch_stats)), grads = loss_and_gradient(
            partial(encode, graph, state.frozen), loss_fn, state.params, state.batch_stats, rows, num_microbatches
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if loss.caption_kind:
            text = nnx.merge(graph, join_variables(state.params, state.frozen, state.batch_stats)).config.text
            chance = caption_chance(loss.caption_kind, batch["text"], text.eot_token, text.vocab_size)
            metrics |= {"chance_loss": chance}
        else:
            params["logit_scale"] = jnp.clip(params["logit_scale"], 0, jnp.log(max_logit_scale))
            metrics |= {"logit_scale": jnp.exp(state.params["logit_scale"])}
        metrics |= {
            "loss": value,
            **({"logit_bias": state.params["logit_bias"]} if "logit_bias" in state.params else {}),
            "grad_norm": optax.tree.norm(grads),
            "param_norm": optax.tree.norm(state.params),
            "learning_rate": schedule(state.step),
        }
        moved = TrainState(
            step=state.step + 1,
            params=params,
            frozen=state.frozen,
            batch_stats=batch_stats,
            ema=moved_average(state.ema, join_variables(params, batch_stats), ema_decay, state.step),
            opt_state=opt_state,
            rng=state.rng,
        )
        return moved, metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None))
