"""The API of openai/CLIP: `model, preprocess, tokenize = clip_jax.load("ViT-B/32")`."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from clip_jax.distributed.sharding import ShardingConfig, make_mesh
from clip_jax.inference.encoder import Encoder
from clip_jax.inference.load import open_model
from clip_jax.losses import normalize
from clip_jax.models import ModelConfig, ResNetConfig
from clip_jax.models.variables import Variables, model_graph
from clip_jax.pretrained import NAMED, ImageTransform
from clip_jax.training.state import variable_shardings
from input_pipeline.storage import checksum
from input_pipeline.tokenizers import Tokenizer
from input_pipeline.transforms import check_size, decode_image, to_eight_bit

Picture = UInt8[np.ndarray, "H W 3"]
Pixels = UInt8[np.ndarray, "S S 3"] | Float[np.ndarray, "S S 3"]  # in 0..255, or already normalised
Images = UInt8[Array | np.ndarray, "N S S 3"] | Float[Array | np.ndarray, "N S S 3"] | Sequence[Pixels]


class Logits(NamedTuple):
    """Cosine similarities times the logit scale, plus the bias of a sigmoid loss, of N images and M texts."""

    logits_per_image: Float[Array, "N M"]
    logits_per_text: Float[Array, "M N"]


class Model:
    """Encoders with their weights on the devices of a mesh; every method is jitted and takes any number of rows.

    Rows are padded to a few static batch sizes, so that few programs are compiled, and text is encoded at its longest
    row's length.

    Attributes:
      config: architecture, activation, pixel mean and standard deviation.
      mesh: see `place`.
    """

    def __init__(self, config: ModelConfig, variables: Variables, mesh: Mesh, batch_size: int):
        self.config = config
        self._batch_size = batch_size
        self._put(variables, mesh)

    def _put(self, variables: Variables, mesh: Mesh) -> None:
        # float32 is exact in the reference; JAX's default precision is lower on some devices.
        self._precision = "highest" if self.config.compute_dtype == "float32" else None
        encoder = Encoder(self.config, mesh, self._batch_size, normalized=False, precision=self._precision)
        encoder.variables = jax.device_put(variables, variable_shardings(variables, mesh))
        self.mesh, self._encoder = mesh, encoder  # last: a mesh that does not fit leaves the model unchanged

    def place(self, mesh: Mesh) -> "Model":
        """Splits batches, and with fsdp or tensor axes weights, over a mesh; returns the model.

        `model.place(clip_jax.make_mesh())` takes all devices.
        """
        self._put(self.variables, mesh)
        return self

    @property
    def variables(self) -> Variables:
        """Parameters and running statistics, a nested dict of arrays."""
        return self._encoder.variables

    @property
    def image_size(self) -> int:
        """Pixels along a side."""
        return self.config.vision.image_size

    @property
    def embed_dim(self) -> int:
        """Channels of the features."""
        return self.config.embed_dim

    @property
    def logit_scale(self) -> float:
        """Factor of the cosine similarities, at most 100 in the paper; its logarithm is the parameter."""
        return float(np.exp(self.variables["logit_scale"]))

    @property
    def logit_bias(self) -> float | None:
        """Of a model trained with the sigmoid loss; its probabilities are sigmoids, independent for each label."""
        return float(self.variables["logit_bias"]) if "logit_bias" in self.variables else None

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any weight and with the feature_config."""

        def chunks() -> Iterator[bytes | memoryview]:
            yield repr(sorted(self.config.feature_config.items())).encode()
            for path, leaf in sorted(flatten_dict(self.variables, sep="/").items()):
                yield path.encode()
                yield np.ascontiguousarray(leaf).data

        return checksum(chunks())[:16]

    @property
    def encoder(self) -> Encoder:
        """Encodes streams of any length; its features are not normalised."""
        return self._encoder

    def encode_image(self, images: Images) -> Float[Array, "N E"]:
        """Features in the compute dtype, not normalised, as the reference's.

        images: uint8 as `preprocess` gives, or floating-point pixels already normalised; S is the image_size.
        """
        self._check(images)
        return jnp.asarray(self._encoder.images(np.asarray(image) for image in images))

    def attention_map(self, images: Images) -> Float[Array, "N G G"]:
        """The attention weight of each position of the images; see `ImageEncoder.attention_map`."""
        self._check(images)
        graph, rows = model_graph(self.config), np.stack([np.asarray(image) for image in images])
        with jax.default_matmul_precision(self._precision):
            return jax.jit(lambda v, x: nnx.merge(graph, v).attention_map(x))(self.variables, rows)

    def _check(self, images: Images) -> None:
        shapes = {np.shape(image) for image in images}
        if shapes != {(self.image_size, self.image_size, 3)}:
            found = list(np.shape(images)) if len(shapes) < 2 else f"several: {sorted(shapes)}"
            raise ValueError(
                f"images have the shape {found}; expected [N, {self.image_size}, {self.image_size}, 3], as "
                "np.stack([preprocess(image), ...]) gives"
            )
        dtypes = {np.asarray(image[0, 0, 0]).dtype for image in images}
        if len(dtypes) > 1 or not (dtypes == {np.dtype(np.uint8)} or jnp.issubdtype(min(dtypes), jnp.floating)):
            names = ", ".join(sorted(map(str, dtypes)))
            raise ValueError(f"images are {names}; expected uint8, or floating-point pixels already normalised")

    def encode_text(self, text: Int[Array | np.ndarray, "N L"]) -> Float[Array, "N E"]:
        """Features in the compute dtype, not normalised, of token ids as `tokenize` gives."""
        text = np.asarray(text)
        config = self.config.text
        if text.ndim != 2 or not len(text) or not np.issubdtype(text.dtype, np.integer):
            raise ValueError(f"text is {text.dtype} {list(text.shape)}; expected int32 [N, L] as tokenize(texts) gives")
        if text.shape[1] > config.context_length or text.max() >= config.vocab_size or text.min() < 0:
            raise ValueError(
                f"text has {text.shape[1]} positions and ids from {text.min()} to {text.max()}; the model has "
                f"{config.context_length} positions and ids below {config.vocab_size}: use its own tokenize"
            )
        if config.pooling != "eot" and text.shape[1] != config.context_length:
            raise ValueError(
                f"text has {text.shape[1]} positions; this model reads the last of {config.context_length}: use its "
                "own tokenize"
            )
        # Of a padded vocabulary the end token is not known, but it is the same in all rows.
        end = text.max() if config.reads_highest else config.eot_token
        if config.pooling == "eot" and not (text == end).any(axis=1).all():
            raise ValueError(f"a row of text has no end token ({end}): use the model's own tokenize")
        return jnp.asarray(self._encoder.texts(text.astype(np.int32)))

    def __call__(self, images: Images, text: Int[Array | np.ndarray, "M L"]) -> Logits:
        """logits_per_image and logits_per_text, as the reference's."""
        zi, zt = normalize(self.encode_image(images)), normalize(self.encode_text(text))
        logits = self.logit_scale * jnp.matmul(zi, zt.T, precision="highest") + (self.logit_bias or 0.0)
        return Logits(logits, logits.T)

    def __repr__(self) -> str:
        kind = "ResNet" if isinstance(self.config.vision, ResNetConfig) else "ViT"
        count = sum(leaf.size for leaf in jax.tree.leaves(self.variables))
        return f"Model({kind}, {self.image_size} pixels, {self.embed_dim} features, {count:,} numbers)"


@dataclass(frozen=True)
class Preprocess:
    """A picture to pixels in 0..255, S = image_size. The model normalises them by mean and standard deviation."""

    image_size: int
    transform: ImageTransform

    def __call__(self, image: Image.Image | Picture | str | os.PathLike[str]) -> UInt8[np.ndarray, "S S 3"]:
        """image: a PIL image, an array, or the path of a picture. Raises ValueError for others, and broken ones."""
        if isinstance(image, str | os.PathLike):
            path = os.fspath(image)
            try:
                image = decode_image(Path(path).read_bytes())
            except (OSError, ValueError) as error:
                raise ValueError(f"{path} cannot be read as a picture: {error}") from None
        elif isinstance(image, Image.Image):
            image = to_eight_bit(check_size(image))
        elif not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,)):
            raise ValueError(f"expected a PIL image, uint8 [H, W, 3] or a path, not {type(image).__name__}")
        if isinstance(image, np.ndarray):
            image = check_size(Image.fromarray(image) if image.size else Image.new("RGB", (0, 0)))
        return self.transform(image, self.image_size)


def available_models() -> list[str]:
    """The names that `load` knows, of the table that `clip-jax models` prints: the paper's nine first."""
    return [row.name for row in NAMED]


def load(
    name_or_path: str | os.PathLike[str],
    *,
    activation: str | None = None,
    image_size: int | None = None,
    context_length: int | None = None,
    compute_dtype: str = "float32",
    batch_size: int = 256,
    mesh: Mesh | None = None,
) -> "tuple[Model, Preprocess, Tokenizer | MissingTokenizer]":
    """A model with its weights, its image transform and its tokenizer.

    Args:
      name_or_path: a name of `available_models()` or a Hub repository "owner/name" (downloaded, or from the Hub's
        cache), a folder or safetensors file in the layout of OpenAI, open_clip or transformers, or a run's workdir.
      activation, image_size, context_length: see `clip_jax.pretrained.load_pretrained`.
      compute_dtype: "float32", "bfloat16" (half the memory traffic, features to 3 digits) or "float64" (under x64).
      batch_size: rows encoded at once; more are encoded in several batches.
      mesh: devices to use; by default the first one. See `Model.place`.

    Returns:
      model, preprocess (picture -> uint8 [S, S, 3]) and tokenize (str or several -> int32 [N, L]; what is too long is
      cut and counted in tokenize.num_truncated, or an error with truncate=False).

    Raises:
      ValueError: see `load_pretrained`; a mesh or batch_size that does not fit.
      CheckpointError: a run's checkpoints cannot be read.
    """
    mesh = mesh or make_mesh(ShardingConfig(), jax.local_devices()[:1])
    pretrained, tokenizer = open_model(
        name_or_path,
        activation=activation,
        image_size=image_size,
        context_length=context_length,
        param_dtype="float64" if compute_dtype == "float64" else "float32",
    )
    config = dataclasses.replace(pretrained.config, compute_dtype=compute_dtype, remat="none")  # type: ignore[arg-type]
    model = Model(config, pretrained.variables, mesh, batch_size)
    return model, Preprocess(config.vision.image_size, pretrained.transform), tokenizer or MissingTokenizer()


class MissingTokenizer:
    """Takes the place of a tokenizer whose vocabulary was not found: a call raises ValueError."""

    num_truncated = 0

    def fingerprint(self) -> dict[str, str | int]:
        """Of no vocabulary."""
        return {"kind": "missing"}

    def __call__(self, texts: str | Sequence[str], *, truncate: bool = True) -> np.ndarray:
        raise ValueError(
            "no vocabulary was found beside the weights (tokenizer.model, spiece.model, merges.txt or "
            "bpe_simple_vocab_16e6.txt.gz): put one there, or make a tokenizer with input_pipeline.tokenizers"
        )
