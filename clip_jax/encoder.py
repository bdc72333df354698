"""Any number of images or texts to features, in padded batches of a few static sizes, split over the devices."""

from collections.abc import Iterable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from clip_jax.losses import normalize
from clip_jax.models import ModelConfig
from clip_jax.sharding import batch_shards, place_batch
from clip_jax.train_state import Variables, model_graph

TEXT_LENGTHS = (8, 12, 16, 20, 24, 32, 48, 64)  # positions, below the context length, at which text is encoded


class Encoder:
    """Compiles once for each static size; what is smaller is padded to the next one and its padding dropped.

    Sizes of a batch are the largest, batch_size, and its halves. Text of a causal tower that is read at its end token
    is cut behind the longest row's: what stands after the end cannot matter (`short_text=False` encodes the full
    context length). Texts are sorted by length before they are cut into batches, and come back in their order.

    Set `variables` before encoding. batch_size is rounded up to a multiple of the devices that share a batch. Features
    are of unit length, or with normalized=False as the towers give them.
    """

    def __init__(
        self, model: ModelConfig, mesh: Mesh, batch_size: int, *, normalized: bool = True, short_text: bool = True
    ):
        graph = model_graph(model)
        self.variables: Variables = {}
        self._mesh = mesh
        self._eot_token = model.text.eot_token
        shards = batch_shards(mesh)
        self._batch_size = -(-batch_size // shards) * shards
        self._batch_sizes = [size for i in range(16) if (size := self._batch_size >> i) and size % shards == 0]
        self._short_text = short_text and model.text.causal and model.text.pooling == "eot"
        finish = normalize if normalized else (lambda features: features)
        self._image = jax.jit(lambda v, x: finish(nnx.merge(graph, v).encode_image(x)))
        self._text = jax.jit(lambda v, x: finish(nnx.merge(graph, v).encode_text(x)))

    def images(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """Images [H, W, 3], one by one, uint8 or normalised pixels, to features [N, E]."""
        features: list[np.ndarray] = []
        pending: list[np.ndarray] = []
        for image in images:
            pending.append(image)
            if len(pending) == self._batch_size:
                features.append(self._encode_batch(self._image, np.stack(pending)))
                pending = []
        if pending:
            features.append(self._encode_batch(self._image, np.stack(pending)))
        return _concatenate(features)

    def texts(self, text: np.ndarray) -> np.ndarray:
        """Token ids, int32 [N, L], to features [N, E]."""
        features: list[np.ndarray] = []
        lengths = np.full(len(text), text.shape[1])
        if self._short_text:
            lengths = np.argmax(text == self._eot_token, axis=1) + 1  # [N]
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(text), self._batch_size):
            rows = order[start : start + self._batch_size]
            features.append(self._encode_batch(self._text, text[rows, : self._static_length(lengths[rows[-1]], text)]))
        unsorted = _concatenate(features)
        unsorted[order] = unsorted.copy()
        return unsorted

    def _static_length(self, length: int, text: np.ndarray) -> int:
        full = text.shape[1]
        return next((size for size in TEXT_LENGTHS if length <= size < full), full) if self._short_text else full

    def _encode_batch(self, encode: jax.stages.Wrapped, rows: np.ndarray) -> np.ndarray:
        size = min(size for size in self._batch_sizes if size >= len(rows))
        padded = np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)])
        with jax.set_mesh(self._mesh):
            return np.asarray(encode(self.variables, place_batch({"rows": padded}, self._mesh)["rows"]))[: len(rows)]


def _concatenate(features: list[np.ndarray]) -> np.ndarray:
    if not features:
        raise ValueError("there is nothing to encode")
    return np.concatenate(features)
