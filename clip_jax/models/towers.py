"""The architectures of the towers, as frozen dataclasses; one that cannot be built is a ValueError."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from input_pipeline.ranges import COUNT_OR_0, NOT_NEGATIVE, SIZE, Range, check_ranges


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A stack of pre-norm residual blocks. Widths in channels, depth in blocks."""

    section: ClassVar[str] = ""  # of the config, as messages name it

    width: Annotated[int, SIZE]
    depth: Annotated[int, SIZE]
    num_heads: Annotated[int, SIZE]
    mlp_dim: Annotated[int, SIZE]

    def __post_init__(self) -> None:
        check_ranges(self, self.section)
        if self.width % self.num_heads:
            raise ValueError(
                f"{self.section}width={self.width} is not divisible by {self.section}num_heads={self.num_heads}: use "
                f"width={_nearest(self.width, lambda w: w % self.num_heads == 0)}, or "
                f"num_heads={_nearest(self.num_heads, lambda h: self.width % h == 0)}"
            )


@dataclass(frozen=True, kw_only=True)
class VisionConfig(TransformerConfig):
    """Vision transformer over square patches.

    Attributes:
      image_size, patch_size: in pixels.
      pooling: "class_token": the feature is the class token, the paper's. "mean": the mean over the patches after the
        last layer norm (open_clip's pool_type "avg"). "mean_then_norm": CLIPA's tower, the layer norm of that mean
        without a norm before the last one, and no layer norm before the blocks either. "attention": SigLIP's tower, in
        which a learned query attends to the patches; it has no class token, no layer norm before the blocks and no
        projection, and its patch embedding has a bias. Only there may image_size leave a remainder when it is divided
        by patch_size: the last pixels are not seen, as in SigLIP's SO400M/14 at 384 pixels. "perception": the
        Perception Encoder's tower: rotary positions of the patches beside the learned ones, and a learned query that
        attends to all positions, with a biased projection behind it. "coca": CoCa's tower: the paper's, but for a
        learned query of the joint space's width that attends to all positions, and a layer norm behind it.
      pool_heads, pool_mlp_dim: heads and hidden channels of the learned query's attention head; 0: as in the blocks.
      has_class_token: False for the largest Perception Encoder; the other towers' follow from pooling.
      rotary_grid: patches along a side that rotary positions were trained with, to which another number is scaled; 0:
        that of image_size.
      position_init_scale: multiplies the initial standard deviation of the position embeddings, width^-0.5; 1 is the
        paper's. Small models on small images learn shapes sooner with more.
      patch_dropout: the share of patches, in [0, 1), that are dropped in training: a random choice for each image and
        step, always of the same number, never the class token. 0 is the paper's.

    Reference: Radford et al. 2021, table 20; attention pooling: Zhai et al. 2022, https://arxiv.org/abs/2106.04560;
    patch dropout: Li et al. 2022, https://arxiv.org/abs/2212.00794 (FLIP); CLIPA: Li et al. 2023,
    https://arxiv.org/abs/2305.07017; Perception Encoder: Bolya et al. 2025, https://arxiv.org/abs/2504.13181.
    """

    section: ClassVar[str] = "vision."

    image_size: Annotated[int, SIZE]
    patch_size: Annotated[int, SIZE]
    pooling: Literal["class_token", "mean", "mean_then_norm", "attention", "perception", "coca"] = "class_token"
    pool_heads: Annotated[int, COUNT_OR_0] = 0
    pool_mlp_dim: Annotated[int, COUNT_OR_0] = 0
    has_class_token: bool = True
    rotary_grid: Annotated[int, COUNT_OR_0] = 0
    position_init_scale: Annotated[float, NOT_NEGATIVE] = 1.0
    patch_dropout: Annotated[float, Range(0, below=1)] = 0.0

    @property
    def grid_size(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    @property
    def num_prefix(self) -> int:
        """Positions before those of the patches: the class token's, where there is one."""
        return int(self.has_class_token and self.pooling != "attention")

    @property
    def is_pooled_by_query(self) -> bool:
        """Whether a learned query attends to the positions."""
        return self.pooling in ("attention", "perception", "coca")

    @property
    def num_pool_heads(self) -> int:
        """Heads of the learned query."""
        return self.pool_heads or self.num_heads

    @property
    def num_kept_patches(self) -> int:
        """Patches of an image that a training step sees."""
        return round(self.grid_size**2 * (1 - self.patch_dropout))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.has_class_token and self.pooling not in ("attention", "perception"):
            raise ValueError(
                f"vision.has_class_token=False needs vision.pooling='perception' or 'attention', not {self.pooling!r}"
            )
        if (self.pool_heads or self.pool_mlp_dim) and not self.is_pooled_by_query:
            raise ValueError(
                f"vision.pool_heads={self.pool_heads} and pool_mlp_dim={self.pool_mlp_dim} are for a learned query: "
                f"leave them 0 with vision.pooling={self.pooling!r}"
            )
        if self.pool_heads and self.pooling != "coca" and self.width % self.pool_heads:
            raise ValueError(f"vision.pool_heads={self.pool_heads} does not divide vision.width={self.width}")
        if self.pooling == "perception" and (self.width // self.num_heads) % 4:
            raise ValueError(
                f"vision.width={self.width} over vision.num_heads={self.num_heads} must be a multiple of 4: rotary "
                "positions turn pairs of channels along either axis"
            )
        remainder = self.image_size % self.patch_size if self.pooling != "attention" else 0
        if self.image_size < self.patch_size or remainder:
            below = max(self.image_size // self.patch_size, 1) * self.patch_size
            raise ValueError(
                f"vision.image_size={self.image_size} is not divisible by vision.patch_size={self.patch_size}: "
                f"use an image_size such as {below} or {below + self.patch_size}, or another patch_size"
            )
        if self.patch_dropout and self.pooling == "perception":
            raise ValueError("vision.patch_dropout is not for vision.pooling='perception': set it to 0")
        if self.num_kept_patches < 1:
            raise ValueError(
                f"vision.patch_dropout={self.patch_dropout} must leave at least one of the {self.grid_size**2} patches "
                "of an image"
            )


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """The paper's modified ResNet: three-convolution stem, antialiased strides, attention pooling.

    Attributes:
      image_size: in pixels; a multiple of 32, the stride of the whole network.
      stages: bottleneck blocks of each of the four stages.
      stem_width: channels after the stem; the last stage has 32 times as many, which table 19 calls the vision width.
      num_heads: of the attention pooling.
      batch_norm: the images over which statistics are taken in training: "per_device", those of one device, as in the
        paper, or "global", the whole batch, so that results do not depend on the number of devices.

    Reference: Radford et al. 2021, sec. 2.4 and table 19.
    """

    image_size: Annotated[int, SIZE]
    stages: tuple[Annotated[int, SIZE], ...]
    stem_width: Annotated[int, Range(2, 2**15)]
    num_heads: Annotated[int, SIZE]
    batch_norm: Literal["per_device", "global"] = "per_device"

    def __post_init__(self) -> None:
        check_ranges(self, "vision.")
        if self.image_size % 32:
            below = max(self.image_size // 32, 1) * 32
            raise ValueError(
                f"vision.image_size={self.image_size} is not a multiple of 32, the stride of a ResNet: use "
                f"{below} or {below + 32}"
            )
        if len(self.stages) != 4:
            raise ValueError(f"vision.stages={self.stages} must be the number of blocks, at least 1, of four stages")

        def fits(stem_width: int) -> bool:
            return stem_width % 2 == 32 * stem_width % self.num_heads == 0

        def divides(num_heads: int) -> bool:
            return self.width % num_heads == 0

        if self.stem_width % 2 or self.width % self.num_heads:
            raise ValueError(
                f"vision.stem_width={self.stem_width} must be even, and 32 times it divisible by "
                f"vision.num_heads={self.num_heads}: use stem_width={_nearest(self.stem_width, fits)}"
                + ("" if self.stem_width % 2 else f", or num_heads={_nearest(self.num_heads, divides)}")
            )

    @property
    def width(self) -> int:
        """Channels of the last stage."""
        return 32 * self.stem_width

    @property
    def grid_size(self) -> int:
        """Positions along a side that the attention pooling sees."""
        return self.image_size // 32


@dataclass(frozen=True, kw_only=True)
class TextConfig(TransformerConfig):
    """Text transformer.

    Attributes:
      context_length: positions, with the start and end token.
      eot_token: id of the end token; in the released vocabulary the last.
      causal: each position sees only itself and those before it, as in the paper; SigLIP's see all.
      pooling: the feature is taken at the first `eot_token` of each row, "eot", at the "last" position (SigLIP), or at
        a learned one that is put behind them, "class_token" (CoCa), which sees what is no padding, id 0. An
        `eot_token` that is the last of the vocabulary stands for each row's highest id, as in the released code: the
        same where rows have that token, and right where the embedding was padded to more rows than there are tokens.
      projection_bias: whether the projection into the joint space has a bias; only SigLIP's has.
    """

    section: ClassVar[str] = "text."

    context_length: Annotated[int, SIZE]
    vocab_size: Annotated[int, Range(1, 2**27)]
    eot_token: int
    causal: bool = True
    pooling: Literal["eot", "last", "class_token"] = "eot"
    projection_bias: bool = False

    @property
    def reads_highest(self) -> bool:
        """Whether the feature is taken at each row's highest id, whatever it is."""
        return self.pooling == "eot" and self.eot_token == self.vocab_size - 1

    def end_mask(self, text: Any) -> Any:
        """Of token ids [..., L] an array whose argmax is the position that "eot" reads."""
        return text if self.reads_highest else text == self.eot_token

    @property
    def ignores_padding(self) -> bool:
        """Whether nothing after a row's end token can matter: the row may be cut there, or packed."""
        return self.causal and self.pooling == "eot"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context_length < 3:
            raise ValueError(f"text.context_length={self.context_length} leaves no room for a word: use at least 3")
        if not 0 <= self.eot_token < self.vocab_size:
            raise ValueError(
                f"text.vocab_size={self.vocab_size} is smaller than the tokenizer's vocabulary "
                f"(its end token is {self.eot_token}): raise text.vocab_size"
            )


def _nearest(value: int, fits: Callable[[int], bool]) -> str:
    """The closest fitting values below and above, at least 1: "3 or 5", or the only one."""
    below = next((n for n in range(value - 1, 0, -1) if fits(n)), None)
    above = next((n for n in range(value + 1, 2 * value + 4096) if fits(n)), None)
    return " or ".join(str(n) for n in (below, above) if n is not None)
