"""Prediction of a caption, as a bag of words or token by token: cross-entropy over the vocabulary.

In both kinds some tokens of a caption are targets, each with a weight, and the model gives a distribution over the
vocabulary. Rows do not depend on each other, so the partitioner splits them over the devices by itself. All is computed
in at least float32.

Reference: Radford et al. 2021, sec. 2.3 and fig. 2; the bag as in Joulin et al. 2016, https://arxiv.org/abs/1511.02251:
softmax cross-entropy with the words' shares, which did better there than a yes or no for each word.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from clip_jax.losses.contrastive import Metrics, at_least_float32

GROUPS = 8  # in which the positions of captions are scored
CaptionKind = Literal["bag_of_words", "language_model"]


class CaptionScores(NamedTuple):
    """How well a model predicts each of N captions.

    log_likelihood: the weighted sum of log-probabilities: of a bag their mean, of a sequence its log-probability.
    weight: the sum of the weights: of a bag 1, of a sequence its tokens, the end token included; 0 of no words.
    correct: the weight of what is predicted: of a bag of k words the share of them that are among the k most probable
      (top-k words predicted), ties counted against the model; of a sequence the tokens that are the most probable at
      their position (next-token accuracy times weight).
    """

    log_likelihood: Float[Array, "N"]
    weight: Float[Array, "N"]
    correct: Float[Array, "N"]


def caption_targets(
    kind: CaptionKind, text: Int[Array, "N L"], eot_token: int
) -> tuple[Int[Array, "N M"], Float[Array, "N M"]]:
    """The target tokens and their weights, 0 where a token is no target.

    text: rows of a start token, words, an end token and padding, as `Tokenizer` gives.
    Of a bag each word counts once, however often it occurs in the caption, with 1 / (different words), M = L; start,
    end and padding are no words. Of a sequence all after the start count, with 1, up to the end token; M = L - 1.
    """
    position, end = jnp.arange(text.shape[1]), jnp.argmax(text == eot_token, axis=1)[:, None]  # [L], [N, 1]
    if kind == "language_model":
        return text[:, 1:], (position[1:] <= end).astype(float)
    is_word = (position > 0) & (position < end)  # [N, L]
    is_repeated = (jnp.tril(text[:, :, None] == text[:, None, :], k=-1) & is_word[:, None, :]).any(axis=2)  # [N, L]
    counts = (is_word & ~is_repeated).astype(float)
    return text, counts / jnp.maximum(counts.sum(axis=1, keepdims=True), 1)


def caption_scores(
    kind: CaptionKind, logits: Float[Array, "N *M V"], text: Int[Array, "N L"], eot_token: int
) -> CaptionScores:
    """The scores of captions by logits, [N, V] for a bag and [N, L - 1, V] for a sequence."""
    targets, weights = caption_targets(kind, text, eot_token)
    (logits,) = at_least_float32(logits)
    log_p = jax.nn.log_softmax(logits)
    if kind == "bag_of_words":
        target_log_p = jnp.take_along_axis(log_p, targets, axis=1)  # [N, M]
        rank = jnp.sum(log_p[:, None, :] >= target_log_p[:, :, None], axis=2)  # [N, M], from 1
        is_predicted = rank <= jnp.sum(weights > 0, axis=1, keepdims=True)
    else:
        target_log_p = jnp.take_along_axis(log_p, targets[:, :, None], axis=2)[:, :, 0]
        is_predicted = targets == jnp.argmax(logits, axis=2)
    weights = weights.astype(log_p.dtype)
    sums = (jnp.sum(weights * x, axis=1) for x in (target_log_p, jnp.ones_like(target_log_p), is_predicted))
    return CaptionScores(*sums)


def token_scores(
    hidden: Float[Array, "N L D"], embedding: Float[Array, "V D"], text: Int[Array, "N L"], eot_token: int
) -> CaptionScores:
    """The scores of captions whose token [:, i] hidden[:, i] predicts, up to the end token; logits are products with
    the embedding.

    In GROUPS of positions, and again for the gradient: of the logits [N, L, V] one group's are in memory at once.
    """
    is_counted = jnp.arange(text.shape[1]) <= jnp.argmax(text == eot_token, axis=1)[:, None]  # [N, L]

    def grouped(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % GROUPS), *[(0, 0)] * (x.ndim - 2)))
        return x.reshape(len(x), GROUPS, -1, *x.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def group(inputs: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        h, target, counted = inputs
        wide = jnp.promote_types(h.dtype, jnp.float32)
        logits = jnp.einsum("nld,vd->nlv", h, embedding.astype(h.dtype), preferred_element_type=wide)
        log_p = jnp.take_along_axis(logits, target[:, :, None], axis=2)[:, :, 0] - jax.nn.logsumexp(logits, axis=2)
        weight = counted.astype(log_p.dtype)
        scores = weight * log_p, weight, weight * (target == jnp.argmax(logits, axis=2))
        return tuple(score.sum(axis=1) for score in scores)  # type: ignore[return-value]

    parts = jax.lax.map(group, tuple(map(grouped, (hidden, text, is_counted))))
    return CaptionScores(*(part.sum(axis=0) for part in parts))


def caption_loss(scores: CaptionScores) -> tuple[Float[Array, ""], Metrics]:
    """The mean cross-entropy: of bags over captions, of sequences over all tokens; and token_accuracy."""
    total = jnp.maximum(jnp.sum(scores.weight), 1)
    return -jnp.sum(scores.log_likelihood) / total, {"token_accuracy": jnp.sum(scores.correct) / total}


def caption_chance(
    kind: CaptionKind, text: Int[Array, "N L"], eot_token: int, vocab_size: int, from_first: bool = False
) -> Float[Array, ""]:
    """The least loss of one answer for every image and position: the entropy of the targets.

    from_first: each row's first token is a target, too, as in `token_scores`.
    """
    text = jnp.pad(text, ((0, 0), (int(from_first), 0)))
    targets, weights = caption_targets(kind, text, eot_token)
    shares = jnp.zeros(vocab_size).at[targets].add(weights) / jnp.maximum(jnp.sum(weights), 1)
    return -jnp.sum(jax.scipy.special.xlogy(shares, shares))
