"""How well prompts fit images by a model that predicts captions: the scores of its zero-shot classification.

Reference: Radford et al. 2021, fig. 2, which tells the accuracies and not the rule; ours is told at `CaptionScorer`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.distributed.sharding import constrain_batch
from clip_jax.inference.encoder import Encoder
from clip_jax.losses import caption_scores, caption_targets
from clip_jax.losses.captions import CaptionKind
from clip_jax.models import ModelConfig
from clip_jax.models.variables import Variables, model_graph


class CaptionScorer(Encoder):
    """Encodes images once, then asks their features, as the tower gives them, for any prompts.

    A name's score is the mean over its prompts of:
    - of a bag of words, the mean log-probability of the prompt's different words, without those that stand in the
      prompts of all names by that template, "a photo of": they say nothing of the class and would weigh the more, the
      shorter its name. A prompt of nothing else keeps its words. By a sum a name would always lose to a part of it.
    - of a language model, the log-probability of the prompt after the image, its end token included: a sum, not divided
      by the length. Prompts are different outcomes, so their probabilities can be compared, and the end token keeps a
      name from losing to its beginning. Divided, a rare word of many pieces would win, since all but its first piece
      are easy to foretell.
    """

    def __init__(self, model: ModelConfig, mesh: Mesh, batch_size: int):
        super().__init__(model, mesh, batch_size, normalized=False)
        assert model.head != "embedding"
        self._kind: CaptionKind = model.head
        self._text_config, graph = model.text, model_graph(model)
        everywhere = NamedSharding(mesh, P())

        def score_words(variables: Variables, shares: jax.Array, features: jax.Array) -> jax.Array:
            logits = nnx.merge(graph, variables).caption_logits(features, None)  # [B, V]
            return jnp.matmul(jax.nn.log_softmax(logits), shares.T, precision="highest")

        def score_texts(variables: Variables, prompts: jax.Array, features: jax.Array) -> jax.Array:
            language_model = nnx.merge(graph, variables)

            def score(prompt: jax.Array) -> jax.Array:
                text = constrain_batch(jnp.broadcast_to(prompt, (len(features), len(prompt))))
                logits = language_model.caption_logits(features, text)  # [B, L - 1, V]
                return caption_scores("language_model", logits, text, model.text.eot_token).log_likelihood

            # One prompt after the other: the logits of a batch of captions are held, not of all pairs.
            M, T, L = prompts.shape
            return jax.lax.map(score, prompts.reshape(-1, L)).reshape(M, T, -1).mean(axis=1).T

        self._score = jax.jit(score_words if self._kind == "bag_of_words" else score_texts, out_shardings=everywhere)

    def score(self, features: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        """Image features [N, E], as `images` gives them, and T prompts of M names, int32 [M, T, L], to [N, M]."""
        if self._kind == "bag_of_words":
            asked = word_shares(prompts, self._text_config.eot_token, self._text_config.vocab_size)
        else:
            lengths = np.argmax(prompts == self._text_config.eot_token, axis=-1) + 1
            asked = prompts[:, :, : lengths.max()]  # what stands behind the end is not read
        starts = range(0, len(features), self._batch_size)
        batches = (features[start : start + self._batch_size] for start in starts)
        return self._encode(lambda variables, rows: self._score(variables, asked, rows), batches)


def word_shares(prompts: np.ndarray, eot_token: int, vocab_size: int) -> np.ndarray:
    """What each word weighs in the score of each of M names, float32 [M, V], rows of sum 1; of prompts [M, T, L]."""
    targets = jax.jit(partial(caption_targets, "bag_of_words", eot_token=eot_token))
    shares = np.zeros((len(prompts), vocab_size), np.float32)
    for by_template in prompts.swapaxes(0, 1):  # one by one: M names of all words are many numbers
        tokens, weights = map(np.asarray, targets(by_template))
        bags = np.zeros(shares.shape, bool)
        bags[np.arange(len(bags))[:, None].repeat(tokens.shape[1], 1)[weights > 0], tokens[weights > 0]] = True
        told_apart = bags & ~bags.all(axis=0)
        bags = np.where(told_apart.any(axis=1, keepdims=True), told_apart, bags)
        shares += bags / np.maximum(bags.sum(axis=1, keepdims=True), 1)
    return shares / prompts.shape[1]


def make_encoder(model: ModelConfig, mesh: Mesh, batch_size: int) -> Encoder:
    """What an evaluation of this model encodes with."""
    return (Encoder if model.head == "embedding" else CaptionScorer)(model, mesh, batch_size)
