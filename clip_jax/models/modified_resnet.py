"""The image tower as the paper's modified ResNet; its feature is already in the joint space."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from clip_jax.distributed.sharding import constrain_batch, platform
from clip_jax.models.batch_norm import BatchNorm
from clip_jax.models.config import ModelConfig
from clip_jax.models.towers import ResNetConfig
from clip_jax.models.transformer import attention, attention_weights, keep, rematerialize
from clip_jax.models.vision_transformer import Keys

EXPANSION = 4  # of a bottleneck's channels by its last convolution


def average_pool(x: Float[Array, "B H W C"], size: int) -> Float[Array, "B H//{size} W//{size} C"]:
    """Means over squares of size × size.

    It comes before every stride ("antialiased rect-2 blur pooling").
    """
    B, H, W, C = x.shape
    return x.reshape(B, H // size, size, W // size, size, C).mean((2, 4)) if size > 1 else x


class ConvNorm(nnx.Module):
    """A convolution without bias and its batch norm."""

    def __init__(self, width_in: int, width_out: int, size: int, model: ModelConfig, rngs: nnx.Rngs, stride: int = 1):
        assert isinstance(model.vision, ResNetConfig)
        self.conv = nnx.Conv(
            width_in,
            width_out,
            (size, size),
            strides=stride,
            padding=size // 2,
            use_bias=False,
            # The standard deviation of PyTorch's default, at which the released code leaves its convolutions.
            kernel_init=nnx.initializers.normal((3 * width_in * size**2) ** -0.5),
            rngs=rngs,
            **model.dtypes,
        )
        self.norm = BatchNorm(width_out, model, model.vision.batch_norm)

    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B h w c"]:
        return self.norm(keep(self._convolve(x), "convolution"), train)

    def _convolve(self, x: Array) -> Array:
        if self.conv.kernel_size != (1, 1):
            return self.conv(x)
        return jnp.matmul(x, self.conv.kernel[0, 0].astype(x.dtype))


class Bottleneck(nnx.Module):
    """1×1, 3×3, 1×1 convolutions and a shortcut; the last gain starts at zero, so the block starts as its shortcut."""

    def __init__(self, width_in: int, width: int, stride: int, model: ModelConfig, rngs: nnx.Rngs):
        width_out = EXPANSION * width
        self.stride = stride
        self.conv_1 = ConvNorm(width_in, width, 1, model, rngs)
        self.conv_2 = ConvNorm(width, width, 3, model, rngs)
        self.conv_3 = ConvNorm(width, width_out, 1, model, rngs)
        self.conv_3.norm.scale[...] = jnp.zeros_like(self.conv_3.norm.scale[...])
        has_shortcut = stride > 1 or width_in != width_out
        self.shortcut = ConvNorm(width_in, width_out, 1, model, rngs) if has_shortcut else None

    def __call__(
        self, x: Float[Array, "B H W C"], train: bool
    ) -> Float[Array, "B H//{self.stride} W//{self.stride} c"]:
        y = nnx.relu(self.conv_1(x, train))
        y = nnx.relu(self.conv_2(y, train))
        y = self.conv_3(average_pool(y, self.stride), train)
        if self.shortcut is not None:
            x = self.shortcut(average_pool(x, self.stride), train)
        return nnx.relu(x + y)


class Stage(nnx.Module):
    """A first block, which widens and strides, and further blocks of one shape, stacked and scanned."""

    def __init__(self, depth: int, width_in: int, width: int, stride: int, model: ModelConfig, rngs: nnx.Rngs):
        self.remat = model.remat
        self.first = Bottleneck(width_in, width, stride, model, rngs)

        def make(rngs: nnx.Rngs) -> Bottleneck:
            return Bottleneck(EXPANSION * width, width, 1, model, rngs)

        self.blocks = nnx.vmap(make)(rngs.split(depth - 1)) if depth > 1 else None

    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B h w c"]:
        """Divides the sides by the stride, c = 4 * width; updates the running statistics in training."""

        def apply(x: Array, state: PyTree) -> tuple[Array, PyTree]:
            block = nnx.merge(graph, state)
            y = block(x, train)
            return y, nnx.state(block, nnx.BatchStat)

        body = rematerialize(apply, self.remat)
        graph, state = nnx.split(self.first)
        x, statistics = body(x, state)
        nnx.update(self.first, statistics)
        if self.blocks is not None:
            graph, state = nnx.split(self.blocks)
            # XLA on CPU makes naive loops of the kernels' gradients in a scan, 4 times as slow; but without the scan it
            # would undo rematerialisation.
            x, statistics = jax.lax.scan(body, x, state, unroll=platform() == "cpu" and self.remat == "none")
            nnx.update(self.blocks, statistics)
        return x


class AttentionPool(nnx.Module):
    """One layer of multi-head attention whose query is the mean of all positions, projected into the joint space.

    Reference: Radford et al. 2021, sec. 2.4 ("a single layer of transformer-style multi-head QKV attention where the
    query is conditioned on the global average-pooled representation of the image").
    """

    def __init__(self, config: ResNetConfig, model: ModelConfig, rngs: nnx.Rngs):
        width, heads = config.width, (config.num_heads, config.width // config.num_heads)
        normal = nnx.initializers.normal(width**-0.5)
        num_positions = config.grid_size**2 + 1  # the mean comes first
        self.positional_embedding = nnx.Param(
            normal(rngs.params(), (num_positions, width), model.dtypes["param_dtype"])
        )
        self.query, self.key, self.value = (
            nnx.LinearGeneral(width, heads, kernel_init=normal, rngs=rngs, **model.dtypes) for _ in range(3)
        )
        self.out = nnx.LinearGeneral(
            heads, model.embed_dim, axis=(-2, -1), kernel_init=normal, rngs=rngs, **model.dtypes
        )

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B E"]:
        x = self._embed(x)
        return self.out(attention(self.query(x[:, :1]), self.key(x), self.value(x), causal=False))[:, 0]

    def weights(self, x: Float[Array, "B H W D"]) -> Float[Array, "B heads H*W"]:
        """The attention weight of each position; the rest, up to 1, is that of their mean."""
        x = self._embed(x)
        return attention_weights(self.query(x[:, :1]), self.key(x))[:, :, 0, 1:]

    def _embed(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H*W+1 D"]:
        x = x.reshape(len(x), -1, x.shape[-1])
        return jnp.concatenate([x.mean(1, keepdims=True), x], axis=1) + self.positional_embedding[...].astype(x.dtype)


class ModifiedResNet(nnx.Module):
    """Images to features in the joint space.

    Reference: Radford et al. 2021, sec. 2.4: the stem and shortcuts of ResNet-D (He et al. 2019), antialiased pooling
    (Zhang 2019) and attention pooling.
    """

    def __init__(self, model: ModelConfig, rngs: nnx.Rngs):
        config = model.vision
        assert isinstance(config, ResNetConfig)
        self.image_size = config.image_size
        width = config.stem_width
        self.stem_1 = ConvNorm(3, width // 2, 3, model, rngs, stride=2)
        self.stem_2 = ConvNorm(width // 2, width // 2, 3, model, rngs)
        self.stem_3 = ConvNorm(width // 2, width, 3, model, rngs)
        one, two, three, four = config.stages
        self.stage_1 = Stage(one, width, width, 1, model, rngs)
        self.stage_2 = Stage(two, 4 * width, 2 * width, 2, model, rngs)
        self.stage_3 = Stage(three, 8 * width, 4 * width, 2, model, rngs)
        self.stage_4 = Stage(four, 16 * width, 8 * width, 2, model, rngs)
        self.attention_pool = AttentionPool(config, model, rngs)

    def __call__(self, images: Float[Array, "B H W 3"], train: bool, keys: Keys | None = None) -> Float[Array, "B E"]:
        """Normalised images to features; updates the running statistics in training.

        H and W must be the config's image_size: the position embeddings are learned for that grid. Nothing is random
        here, so keys are not read.
        """
        return self.attention_pool(self._grid(images, train))

    def pooling_weights(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B heads P"]:
        """The weight of each position of the last grid in the attention pooling."""
        return self.attention_pool.weights(self._grid(images, train=False))

    def _grid(self, images: Float[Array, "B H W 3"], train: bool) -> Float[Array, "B h w D"]:
        _, H, W, _ = images.shape
        if not H == W == self.image_size:
            raise ValueError(f"images are {H}x{W} pixels, the model's image_size is {self.image_size}: resize them")
        x = images
        for conv in (self.stem_1, self.stem_2, self.stem_3):
            x = nnx.relu(conv(x, train))
        x = constrain_batch(average_pool(x, 2))
        for stage in (self.stage_1, self.stage_2, self.stage_3, self.stage_4):
            x = constrain_batch(stage(x, train))
        return x
