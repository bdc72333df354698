"""Encodes any number of images or texts, in padded batches of a few static sizes, split over the devices."""

import itertools
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from clip_jax.distributed.sharding import batch_shards, place_whole_batch
from clip_jax.losses import normalize
from clip_jax.models import ModelConfig
from clip_jax.models.variables import Variables, model_graph

TEXT_LENGTHS = (8, 12, 16, 20, 24, 32, 48, 64)  # positions, below the context length, at which text is encoded


class Encoder:
    """Compiles once for each static size; a smaller batch is padded to the next size and its padding dropped.

    The sizes are batch_size and its halves. Text of a causal tower that is read at its end token is cut after the
    longest row's: what follows the end token cannot matter (`short_text=False` encodes the full context length). Texts
    are sorted by length before they are split into batches, and returned in their order.

    Set `variables` before encoding. batch_size is rounded up to a multiple of the devices that share a batch. Features
    are of unit length, or with normalized=False as the towers give them. precision: of matrix products; None is JAX's
    default, below float32 on TPU and recent GPUs. on_batch: called at the start of each batch, to report progress.

    With several processes each gives all rows and gets all features; their devices share the work.
    """

    def __init__(
        self,
        model: ModelConfig,
        mesh: Mesh,
        batch_size: int,
        *,
        normalized: bool = True,
        short_text: bool = True,
        precision: str | None = None,
    ):
        graph = model_graph(model)
        self.variables: Variables = {}
        self.on_batch: Callable[[], None] = lambda: None
        self._mesh = mesh
        self._end_mask = model.text.end_mask
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        shards = batch_shards(mesh)
        rows = -(-batch_size // shards)  # per device
        self._batch_sizes = [rows * shards]
        while rows := rows // 2:
            self._batch_sizes.append(rows * shards)
        self._batch_size = self._batch_sizes[0]
        self._precision = precision
        self._short_text = short_text and model.text.ignores_padding
        finish = normalize if normalized else (lambda features: features)
        everywhere = NamedSharding(mesh, P())  # a process could not read the rows of another
        self._image = jax.jit(lambda v, x: finish(nnx.merge(graph, v).encode_image(x)), out_shardings=everywhere)

        def pool_and_project(v: Variables, x: Array) -> Float[Array, "B D+E"]:
            clip = nnx.merge(graph, v)
            pooled = clip.pool_image(x)
            return jnp.concatenate([pooled, finish(clip.project_image(pooled))], axis=-1)

        self._pooled = jax.jit(pool_and_project, out_shardings=everywhere)
        self._embed_dim = model.embed_dim
        self._text = jax.jit(lambda v, x: finish(nnx.merge(graph, v).encode_text(x)), out_shardings=everywhere)

    def images(self, images: Iterable[np.ndarray]) -> Float[np.ndarray, "N E"]:
        """Features of single images [H, W, 3], uint8 or normalised floating-point pixels."""
        return self._encode(self._image, self._batches(images))

    def pooled_images(self, images: Iterable[np.ndarray]) -> tuple[Float[np.ndarray, "N D"], Float[np.ndarray, "N E"]]:
        """Features before the projection, not normalised, and from the same pass those that `images` gives."""
        both = self._encode(self._pooled, self._batches(images))  # [N, D + E]
        return both[:, : -self._embed_dim], both[:, -self._embed_dim :]

    def _batches(self, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        stream = iter(images)
        return map(np.stack, iter(lambda: list(itertools.islice(stream, self._batch_size)), []))

    def texts(self, text: Int[np.ndarray, "N L"]) -> Float[np.ndarray, "N E"]:
        """Features of token ids."""
        lengths = np.full(len(text), text.shape[1])
        if self._short_text:
            lengths = np.argmax(self._end_mask(text), axis=1) + 1  # [N]
        order = np.argsort(lengths, kind="stable")
        batches = (order[start : start + self._batch_size] for start in range(0, len(text), self._batch_size))
        rows = (text[batch, : self._static_length(lengths[batch[-1]], text)] for batch in batches)
        in_order = self._encode(self._text, rows)
        features = np.empty_like(in_order)
        features[order] = in_order
        return features

    def _static_length(self, length: int, text: np.ndarray) -> int:
        full = text.shape[1]
        return next((size for size in TEXT_LENGTHS if length <= size < full), full) if self._short_text else full

    def _encode(self, encode: Callable[[Variables, Array], Array], batches: Iterable[np.ndarray]) -> np.ndarray:
        features: list[np.ndarray] = []
        waiting: tuple[Array, int] | None = None  # computed while the next batch is prepared
        for rows in batches:
            self.on_batch()
            started = self._encode_batch(encode, rows), len(rows)
            if waiting:
                features.append(np.asarray(waiting[0])[: waiting[1]])
            waiting = started
        if not waiting:
            raise ValueError("there is nothing to encode")
        return np.concatenate([*features, np.asarray(waiting[0])[: waiting[1]]])

    def _encode_batch(self, encode: Callable[[Variables, Array], Array], rows: np.ndarray) -> Array:
        size = min(size for size in self._batch_sizes if size >= len(rows))
        padded = np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)])
        with jax.set_mesh(self._mesh), jax.default_matmul_precision(self._precision):
            return encode(self.variables, place_whole_batch({"rows": padded}, self._mesh)["rows"])
