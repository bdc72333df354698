"""One update: encode both sides, compare all pairs, differentiate, apply AdamW, clamp the temperature.

A batch whose activations do not fit is encoded in microbatches, with the whole batch as negatives. A sum of the
microbatches' own losses would be another loss: each pair would have the negatives of its microbatch only. Instead the
features of all microbatches are computed first, with nothing kept for a backward pass; the loss and its gradient with
respect to the features are taken once, over the whole batch; and each microbatch is encoded again, to carry its
features' gradient on to the parameters. The gradient of every parameter is the whole batch's, for one more forward
pass, with the activations of one microbatch in memory.

Reference: Radford et al. 2021, fig. 3; microbatches: Gao et al. 2021, https://arxiv.org/abs/2101.06983 ("GradCache");
Pham et al. 2021, https://arxiv.org/abs/2111.10050 (BASIC), sec. 4.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from clip_jax.distributed.sharding import constrain_batch
from clip_jax.losses import CaptionScores, LossConfig, caption_chance, caption_scores, make_loss, token_scores
from clip_jax.losses.config import FeaturePair
from clip_jax.losses.contrastive import Metrics
from clip_jax.models.variables import Params, Variables, join_variables
from clip_jax.training.state import TrainState, moved_average

Tree = Any
Batch = dict[str, Any]  # image: [N, H, W, 3], text: int32 [N, L] or PackedText
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Encode = Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]
Loss = Callable[[Tree, Tree], tuple[jax.Array, Tree]]


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
    state's buffers are donated and keep their shardings.

    Metrics are scalars on the device: loss, chance_loss (what guessing gives), accuracy in the batch in both
    directions, logit_scale (after exp), logit_bias (of a sigmoid loss), grad_norm, param_norm (both of what learns),
    learning_rate; of captions predicted, token_accuracy instead of the accuracies, and no logit_scale or logit_bias.

    Args:
      graph: of the model, see `model_graph`.
      shardings: a TrainState of NamedShardings.
      num_microbatches: parts in which the towers encode the batch, one after the other.
      ema_decay: of the moving average, in [0, 1).

    Call it under `jax.set_mesh(mesh)`.
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
        text = nnx.merge(graph, join_variables(state.params, state.frozen, state.batch_stats)).config.text
        if loss.caption_kind:
            chance = caption_chance(loss.caption_kind, batch["text"], text.eot_token, text.vocab_size)
            metrics |= {"chance_loss": chance}
        else:
            params["logit_scale"] = jnp.clip(params["logit_scale"], 0, jnp.log(max_logit_scale))
            metrics |= {"logit_scale": jnp.exp(state.params["logit_scale"])}
            if loss.caption_weight:
                chance = caption_chance("language_model", batch["text"], text.eot_token, text.vocab_size, True)
                metrics["chance_loss"] += loss.caption_weight * chance
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


def loss_and_gradient(
    encode: Encode, loss: Loss, params: Tree, batch_stats: Tree, rows: Tree, num_microbatches: int
) -> tuple[tuple[jax.Array, tuple[Tree, Tree]], Tree]:
    """((loss, (metrics, batch_stats)), gradient) of `loss` over all rows, as `jax.value_and_grad` would give them.

    Batch norms normalise each microbatch by its own statistics, in both passes alike: the gradient is that of a model
    that does so. The first pass moves the running statistics, once a microbatch, in order; the second leaves them.

    Args:
      encode: (params, batch_stats, rows) -> (features, batch_stats as the rows moved them); both passes call it with
        the same rows, so what is random in it must come from them.
      loss: (params, features of all rows, in their order) -> (loss, metrics). It may read parameters, too: the
        temperature.
      params: the gradient is summed in at least float32 and has their dtypes.
      rows: arrays [N, ...], split over the devices; num_microbatches divides each device's part of N.
      num_microbatches: 1 is plain differentiation.
    """
    if num_microbatches == 1:

        def whole(params: Tree) -> tuple[jax.Array, tuple[Tree, Tree]]:
            features, moved = encode(params, batch_stats, rows)
            value, metrics = loss(params, features)
            return value, (metrics, moved)

        return jax.value_and_grad(whole, has_aux=True)(params)

    def first_pass(batch_stats: Tree, rows: Tree) -> tuple[Tree, Tree]:
        features, moved = encode(params, batch_stats, rows)
        return moved, features

    def second_pass(total: Tree, inputs: tuple[Tree, Tree]) -> tuple[Tree, None]:
        rows, feature_grads = inputs
        _, pull_back = jax.vjp(lambda params: encode(params, batch_stats, rows)[0], params)
        return jax.tree.map(jnp.add, total, _widen(pull_back(feature_grads)[0])), None

    microbatches = split_rows(rows, num_microbatches)
    moved, features = jax.lax.scan(first_pass, batch_stats, microbatches)
    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (value, metrics), (loss_grads, feature_grads) = gradient(params, join_rows(features))
    # The loss's own gradient, the temperature's, enters once: it is what the sum starts from.
    split_grads = split_rows(feature_grads, num_microbatches)
    total, _ = jax.lax.scan(second_pass, _widen(loss_grads), (microbatches, split_grads))
    return (value, (metrics, moved)), jax.tree.map(lambda sum, leaf: sum.astype(leaf.dtype), total, params)


def encode(
    graph: nnx.GraphDef[Any], frozen: Params, params: Params, batch_stats: Variables, rows: Batch
) -> tuple[FeaturePair | CaptionScores | tuple[FeaturePair, CaptionScores], Variables]:
    """What the loss reads of the rows, and the running statistics as the rows moved them.

    A frozen tower encodes as in evaluation: by its running statistics, with all patches.

    Args:
      graph: of the model; frozen, params and batch_stats together are its variables.
      rows: {image [N, H, W, 3], text int32 [N, L] or packed, key [N]}.

    Returns:
      Features [N, E] of images and of texts, of a model with a decoder a pair of these and its `CaptionScores`, of one
      that only predicts captions the scores alone; and batch_stats.
    """
    model = nnx.merge(graph, join_variables(params, frozen, batch_stats))
    head, text, options = model.config.head, rows["text"], {"train": "visual" not in frozen, "keys": rows["key"]}
    features: FeaturePair | CaptionScores | tuple[FeaturePair, CaptionScores]
    if model.config.decoder_depth:
        image_features, hidden = model.encode_image_and_decode(rows["image"], text, **options)
        scores = token_scores(hidden, model.text.token_embedding.embedding[...], text, model.config.text.eot_token)
        features = (image_features, model.encode_text(text)), scores
    elif head == "embedding":
        features = model.encode_image(rows["image"], **options), model.encode_text(text)
    else:
        image_features = model.encode_image(rows["image"], **options)
        logits = model.caption_logits(image_features, text)
        features = caption_scores(head, logits, text, model.config.text.eot_token)
    return features, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def split_rows(rows: Tree, num_microbatches: int) -> Tree:
    """[N, ...] to [M, N / M, ...]: microbatch m has the rows m, m + M, m + 2 M, ...

    So each device holds its share of every microbatch, and no row moves to another device.
    """

    def split(x: jax.Array) -> jax.Array:
        return constrain_batch(x.reshape(-1, num_microbatches, *x.shape[1:]).swapaxes(0, 1), axis=1)

    return jax.tree.map(split, rows)


def join_rows(microbatches: Tree) -> Tree:
    """The inverse of `split_rows`."""
    return jax.tree.map(lambda x: constrain_batch(x.swapaxes(0, 1).reshape(-1, *x.shape[2:])), microbatches)


def _widen(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)
