"""Scores prompts for images with a model that predicts captions, for its zero-shot classification.

Reference: Radford et al. 2021, fig. 2, which gives accuracies but not the rule; ours is described in `CaptionScorer`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from clip_jax.distributed.sharding import constrain_batch
from clip_jax.inference.encoder import Encoder
from clip_jax.losses import caption_scores, caption_targets
from clip_jax.losses.captions import CaptionKind
from clip_jax.models import ModelConfig
from clip_jax.models.variables import Variables, model_graph


class CaptionScorer(Encoder):
    """Encodes images once and scores any prompts with their features, which are not normalised.

    A class name's score is the mean over its prompts of:
    - for a bag of words, the mean log-probability of the prompt's different words, without those that are in the
      prompts of all names by that template, "a photo of": they do not separate classes, and their weight would grow as
      a name gets shorter. A prompt without other words keeps all. With a sum a name would always lose to a part of it.
    - for a language model, the log-probability of the prompt given the image, with the end token: a sum, not divided by
      the length. Prompts are different outcomes, so their probabilities can be compared, and with the end token a name
      does not lose to its beginning. Divided, a rare word of many pieces would win, since all pieces after the first
      are easy to predict.
    """

    def __init__(self, model: ModelConfig, mesh: Mesh, batch_size: int):
        super().__init__(model, mesh, batch_size, normalized=False)
        assert model.head != "embedding"
        self._kind: CaptionKind = model.head
        self._text_config, graph = model.text, model_graph(model)
        everywhere = NamedSharding(mesh, P())

        def score_words(
            variables: Variables, shares: Float[Array, "M V"], features: Float[Array, "B E"]
        ) -> Float[Array, "B M"]:
            logits = nnx.merge(graph, variables).caption_logits(features, None)  # [B, V]
            return jnp.matmul(jax.nn.log_softmax(logits), shares.T, precision="highest")

        def score_texts(
            variables: Variables, prompts: Int[Array, "M T L"], features: Float[Array, "B E"]
        ) -> Float[Array, "B M"]:
            language_model = nnx.merge(graph, variables)

            def score(prompt: Int[Array, "L"]) -> Float[Array, "B"]:
                text = constrain_batch(jnp.broadcast_to(prompt, (len(features), len(prompt))))
                logits = language_model.caption_logits(features, text)  # [B, L - 1, V]
                return caption_scores("language_model", logits, text, model.text.eot_token).log_likelihood

            # One prompt after another: only the logits of a batch of captions are in memory, not of all pairs.
            M, T, L = prompts.shape
            return jax.lax.map(score, prompts.reshape(-1, L)).reshape(M, T, -1).mean(axis=1).T

        self._score = jax.jit(score_words if self._kind == "bag_of_words" else score_texts, out_shardings=everywhere)

    def score(self, features: Float[np.ndarray, "N E"], prompts: Int[np.ndarray, "M T L"]) -> Float[np.ndarray, "N M"]:
        """Scores of M names with T prompts each, for image features as `images` gives them."""
        if self._kind == "bag_of_words":
            queries = word_shares(prompts, self._text_config.eot_token, self._text_config.vocab_size)
        else:
            lengths = np.argmax(prompts == self._text_config.eot_token, axis=-1) + 1
            queries = prompts[:, :, : lengths.max()]  # what follows the end token is not read
        starts = range(0, len(features), self._batch_size)
        batches = (features[start : start + self._batch_size] for start in starts)
        return self._encode(lambda variables, rows: self._score(variables, queries, rows), batches)


def word_shares(prompts: Int[np.ndarray, "M T L"], eot_token: int, vocab_size: int) -> Float[np.ndarray, "M V"]:
    """The weight of each word in the score of each name; rows sum to 1."""
    targets = jax.jit(partial(caption_targets, "bag_of_words", eot_token=eot_token))
    shares = np.zeros((len(prompts), vocab_size), np.float32)
    for by_template in prompts.swapaxes(0, 1):  # one by one: M names times V words are many numbers
        tokens, weights = map(np.asarray, targets(by_template))
        bags = np.zeros(shares.shape, bool)
        bags[np.arange(len(bags))[:, None].repeat(tokens.shape[1], 1)[weights > 0], tokens[weights > 0]] = True
        distinct = bags & ~bags.all(axis=0)
        bags = np.where(distinct.any(axis=1, keepdims=True), distinct, bags)
        shares += bags / np.maximum(bags.sum(axis=1, keepdims=True), 1)
    return shares / prompts.shape[1]
