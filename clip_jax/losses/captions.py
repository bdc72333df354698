"""Prediction of a caption, as a bag of words or token after token: cross-entropy over the vocabulary.

Both kinds are one thing: some tokens of a caption are asked for, each with a weight, and a distribution over the
vocabulary answers. Rows do not meet, so the partitioner splits them over the devices by itself. All is computed in at
least float32.

Reference: Radford et al. 2021, sec. 2.3 and fig. 2; the bag as in Joulin et al. 2016, https://arxiv.org/abs/1511.02251:
softmax cross-entropy with the words' shares, which did better there than a yes or no for each word.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from clip_jax.losses.contrastive import Metrics, at_least_float32

CaptionKind = Literal["bag_of_words", "language_model"]


class CaptionScores(NamedTuple):
    """What a model makes of N captions, [N] each.

    log_likelihood: the weighted sum of log-probabilities: of a bag their mean, of a sequence its log-probability.
    weight: the sum of the weights: of a bag 1, of a sequence its tokens, the end token included; 0 of no words.
    correct: how much of the weight is foretold: of a bag of k words the share of them that are among the k likeliest,
      ties counted against the model; of a sequence the tokens that are the likeliest at their place.
    """

    log_likelihood: jax.Array
    weight: jax.Array
    correct: jax.Array


def caption_targets(kind: CaptionKind, text: jax.Array, eot_token: int) -> tuple[jax.Array, jax.Array]:
    """What is asked for: tokens int32 [N, M] and their weights, floating-point [N, M], 0 where nothing is.

    text: int32 [N, L], rows of a start token, words, an end token and padding, as `Tokenizer` gives.
    Of a bag each word counts once, however often it stands in the caption, with 1 / (different words), M = L; start,
    end and padding are no words. Of a sequence all after the start count, with 1, up to the end token; M = L - 1.
    """
    position, end = jnp.arange(text.shape[1]), jnp.argmax(text == eot_token, axis=1)[:, None]  # [L], [N, 1]
    if kind == "language_model":
        return text[:, 1:], (position[1:] <= end).astype(float)
    is_word = (position > 0) & (position < end)  # [N, L]
    stood_before = jnp.tril(text[:, :, None] == text[:, None, :], k=-1) & is_word[:, None, :]  # [N, L, L]
    counts = (is_word & ~stood_before.any(axis=2)).astype(float)
    return text, counts / jnp.maximum(counts.sum(axis=1, keepdims=True), 1)


def caption_scores(kind: CaptionKind, logits: jax.Array, text: jax.Array, eot_token: int) -> CaptionScores:
    """What logits, [N, V] for a bag and [N, L - 1, V] for a sequence, make of the captions, int32 [N, L]."""
    targets, weights = caption_targets(kind, text, eot_token)
    (logits,) = at_least_float32(logits)
    log_p = jax.nn.log_softmax(logits)
    if kind == "bag_of_words":
        own = jnp.take_along_axis(log_p, targets, axis=1)  # [N, M]
        rank = jnp.sum(log_p[:, None, :] >= own[:, :, None], axis=2)  # [N, M], from 1
        is_foretold = rank <= jnp.sum(weights > 0, axis=1, keepdims=True)
    else:
        own = jnp.take_along_axis(log_p, targets[:, :, None], axis=2)[:, :, 0]
        is_foretold = targets == jnp.argmax(logits, axis=2)
    weights = weights.astype(own.dtype)
    return CaptionScores(*(jnp.sum(weights * x, axis=1) for x in (own, jnp.ones_like(own), is_foretold)))


def caption_loss(scores: CaptionScores) -> tuple[jax.Array, Metrics]:
    """The mean cross-entropy: of bags over captions, of sequences over all tokens; and token_accuracy."""
    total = jnp.maximum(jnp.sum(scores.weight), 1)
    return -jnp.sum(scores.log_likelihood) / total, {"token_accuracy": jnp.sum(scores.correct) / total}


def caption_chance(kind: CaptionKind, text: jax.Array, eot_token: int, vocab_size: int) -> jax.Array:
    """The least loss of one answer to everything, blind to image and place: the entropy of what is asked for."""
    targets, weights = caption_targets(kind, text, eot_token)
    shares = jnp.zeros(vocab_size).at[targets].add(weights) / jnp.maximum(jnp.sum(weights), 1)
    return -jnp.sum(jax.scipy.special.xlogy(shares, shares))
