"""Any number of images or texts to unit features, in padded batches of one size, split over the devices."""

from collections.abc import Iterable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from clip_jax.losses import normalize
from clip_jax.models import CLIP
from clip_jax.sharding import batch_shards, place_batch
from clip_jax.train_state import Params


class Encoder:
    """Compiles once for each side; the last batch is padded and its padding dropped.

    Set `params` before encoding. batch_size is rounded up to a multiple of the devices that share a batch.
    """

    def __init__(self, graph: nnx.GraphDef[CLIP], mesh: Mesh, batch_size: int):
        self.params: Params = {}
        shards = batch_shards(mesh)
        self._batch_size = -(-batch_size // shards) * shards
        self._mesh = mesh
        self._image = jax.jit(lambda params, x: normalize(nnx.merge(graph, params).encode_image(x)))
        self._text = jax.jit(lambda params, x: normalize(nnx.merge(graph, params).encode_text(x)))

    def images(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """uint8 images [H, W, 3], one by one, to float32 [N, E] of unit length."""
        return self._encode(self._image, images)

    def texts(self, text: Iterable[np.ndarray]) -> np.ndarray:
        """Rows of token ids, int32 [L], to float32 [N, E] of unit length."""
        return self._encode(self._text, text)

    def _encode(self, encode: jax.stages.Wrapped, rows: Iterable[np.ndarray]) -> np.ndarray:
        features: list[np.ndarray] = []
        pending: list[np.ndarray] = []
        for row in rows:
            pending.append(row)
            if len(pending) == self._batch_size:
                features.append(self._encode_batch(encode, pending))
                pending = []
        if pending:
            features.append(self._encode_batch(encode, pending))
        if not features:
            raise ValueError("there is nothing to encode")
        return np.concatenate(features)

    def _encode_batch(self, encode: jax.stages.Wrapped, rows: list[np.ndarray]) -> np.ndarray:
        padding = [rows[-1]] * (self._batch_size - len(rows))
        batch = place_batch({"rows": np.stack(rows + padding)}, self._mesh)
        with jax.set_mesh(self._mesh):
            return np.asarray(encode(self.params, batch["rows"]))[: len(rows)]
