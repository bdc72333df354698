"""Prediction of captions, as bags and as sequences, against loops over captions and words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.losses import LossConfig, caption_chance, caption_loss, caption_scores, caption_targets
from clip_jax.losses.contrastive import at_least_float32

KINDS = ("bag_of_words", "language_model")
N, L, V = 13, 7, 11
SOT, EOT = 9, 10
# A word twice, a word alone, a caption that fills its row, one without words; 0 is padding, and a word's id may be 9.
CAPTIONS = ([3, 5, 3], [4], [1, 2, 3, 4, 5], [], [7, 7, 7, 7], [6, 9])


def some_text():
    rng = np.random.default_rng(0)
    words = [*CAPTIONS, *(rng.integers(1, 9, size=rng.integers(1, 6)).tolist() for _ in range(N - len(CAPTIONS)))]
    text = np.zeros((N, L), np.int32)
    for row, caption in zip(text, words):
        row[: len(caption) + 2] = [SOT, *caption, EOT]
    return jnp.asarray(text), words


def some_logits(kind, dtype=np.float64):
    shape = (N, V) if kind == "bag_of_words" else (N, L - 1, V)
    return (3 * np.random.default_rng(1).normal(size=shape)).astype(dtype)


def reference(kind, logits, words):
    """Loss, accuracy, and the gradient of the loss: probabilities minus targets."""
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    total, correct, weight, grad = 0.0, 0.0, 0.0, np.zeros_like(logits)
    for n, caption in enumerate(words):
        if kind == "bag_of_words":
            bag = set(caption)
            for word in bag:
                total -= np.log(p[n, word]) / len(bag)
                grad[n] += p[n] / len(bag)
                grad[n, word] -= 1 / len(bag)
            weight += len(bag) > 0
            top = set(np.argsort(-logits[n])[: len(bag)])
            correct += len(bag & top) / len(bag) if bag else 0
        else:
            for position, token in enumerate([*caption, EOT]):
                total -= np.log(p[n, position, token])
                grad[n, position] += p[n, position]
                grad[n, position, token] -= 1
                weight += 1
                correct += np.argmax(logits[n, position]) == token
    return total / weight, correct / weight, grad / weight


def loss_of(kind, logits, text):
    return caption_loss(caption_scores(kind, logits, text, EOT))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", KINDS)
def test_loss_accuracy_and_gradient_are_those_of_loops(kind):
    (text, words), logits = some_text(), some_logits(kind)
    (loss, metrics), grad = jax.value_and_grad(lambda x: loss_of(kind, x, text), has_aux=True)(jnp.asarray(logits))
    expected, accuracy, expected_grad = reference(kind, logits, words)
    np.testing.assert_allclose(loss, expected, rtol=1e-14)
    np.testing.assert_allclose(metrics["token_accuracy"], accuracy, rtol=1e-14)
    assert 0 < accuracy < 1
    np.testing.assert_allclose(grad, expected_grad, rtol=0, atol=1e-16)  # of numbers up to 0.1; measured 3e-17


@pytest.mark.parametrize("kind", KINDS)
def test_each_captions_score_is_its_own(kind):
    """Of a bag the mean log-probability of its words, of a sequence the log-probability of all of it, in float32."""
    (text, words), logits = some_text(), some_logits(kind, np.float32)
    scores = caption_scores(kind, jnp.asarray(logits), text, EOT)
    log_p = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=-1, keepdims=True))
    for n, caption in enumerate(words):
        if kind == "bag_of_words":
            expected = np.mean([log_p[n, word] for word in set(caption)]) if caption else 0
        else:
            expected = sum(log_p[n, position, token] for position, token in enumerate([*caption, EOT]))
        np.testing.assert_allclose(scores.log_likelihood[n], expected, rtol=1e-6)
    weights = [bool(caption) if kind == "bag_of_words" else len(caption) + 1 for caption in words]
    np.testing.assert_allclose(scores.weight, weights, rtol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_the_end_token_does_not_matter(kind):
    (text, _), logits = some_text(), some_logits(kind, np.float32)
    other, moved = np.array(text), logits.copy()
    after = np.arange(L) > np.argmax(text == EOT, axis=1)[:, None]
    other[after] = np.random.default_rng(2).integers(1, V, size=after.sum())  # further end tokens among them
    if kind == "language_model":
        moved[after[:, 1:]] += 5
    before, after = (loss_of(kind, jnp.asarray(x), t) for x, t in ((logits, text), (moved, jnp.asarray(other))))
    assert before == after
    assert caption_chance(kind, text, EOT, V) == caption_chance(kind, jnp.asarray(other), EOT, V)


def test_a_bag_has_no_order_and_no_repetition_and_a_sequence_has_both():
    logits = {kind: jnp.asarray(some_logits(kind, np.float32)[:3]) for kind in KINDS}
    captions = ([2, 5, 6], [6, 2, 5], [5, 2, 6, 6, 2])
    text = np.zeros((3, L), np.int32)
    for row, caption in zip(text, captions):
        row[: len(caption) + 2] = [SOT, *caption, EOT]
    text = jnp.asarray(text)
    same = {kind: jnp.tile(x[:1], (3, *[1] * (x.ndim - 1))) for kind, x in logits.items()}
    bag, sequence = (caption_scores(kind, same[kind], text, EOT).log_likelihood for kind in KINDS)
    np.testing.assert_allclose(bag, np.repeat(bag[:1], 3), rtol=2e-7)
    assert len(np.unique(np.round(sequence, 3))) == 3


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", KINDS)
def test_chance_is_the_least_loss_of_a_single_answer(kind):
    text, _ = some_text()
    targets, weights = caption_targets(kind, text, EOT)
    shares = np.zeros(V)
    np.add.at(shares, np.asarray(targets), np.asarray(weights))
    shape = some_logits(kind).shape
    chance = caption_chance(kind, text, EOT, V)

    def loss(shares):
        with np.errstate(divide="ignore"):  # of words that never occur
            return loss_of(kind, jnp.broadcast_to(np.maximum(np.log(shares), -60), shape), text)[0]

    np.testing.assert_allclose(chance, loss(shares), rtol=1e-12)
    others = shares * np.random.default_rng(3).uniform(0.9, 1.1, size=(20, V))
    assert min(map(loss, others)) > chance


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_bfloat16_are_widened(kind):
    """Loss of rounded logits in float32, not a loss that is itself rounded to three digits."""
    text, _ = some_text()
    narrow = jnp.asarray(some_logits(kind), jnp.bfloat16)
    (wide,) = at_least_float32(narrow)
    assert loss_of(kind, narrow, text)[0].dtype == jnp.float32
    assert loss_of(kind, narrow, text) == loss_of(kind, wide, text)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_words_gives_numbers(kind):
    empty = jnp.zeros((3, L), jnp.int32).at[:, :2].set(jnp.array([SOT, EOT]))
    loss, metrics = loss_of(kind, jnp.asarray(some_logits(kind, np.float32)[:3]), empty)
    if kind == "bag_of_words":  # no targets
        assert loss == metrics["token_accuracy"] == 0
    else:  # but the end token
        log_p = jax.nn.log_softmax(some_logits(kind, np.float32)[:3, 0])
        np.testing.assert_allclose(loss, -log_p[:, EOT].mean(), rtol=1e-6)
    assert caption_chance(kind, empty, EOT, V) == 0


def test_a_block_size_is_refused_for_captions():
    with pytest.raises(ValueError, match=r"loss.block_size=7 is of losses over all pairs; loss.kind='bag_of_words'"):
        LossConfig(kind="bag_of_words", block_size=7)
    assert [LossConfig(kind=kind).caption_kind for kind in ("contrastive", "sigmoid", *KINDS)] == [None, None, *KINDS]
