"""Every published model against the paper's tables and against counts derived by hand; nothing is allocated."""

import dataclasses
import functools
import importlib
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import configs
from clip_jax.config.experiment import OptimizerConfig, make_config
from clip_jax.models import PUBLISHED, ModelConfig, ResNetConfig, TextConfig, TransformerConfig
from clip_jax.models.variables import Variables, init_variables, model_graph, split_variables
from clip_jax.planning.flops import count_flops
from configs.model_sizes import FAMILIES


class Row(NamedTuple):
    """Radford et al. 2021, tables 19 and 20; parameters and forward GFLOPs of an image and a text of 77 tokens are
    those of open_clip's model profile."""

    config_file: str
    learning_rate: float
    embed_dim: int
    image_size: int
    layers: int | tuple[int, ...]
    width: int
    heads: int
    patch_size: int | None
    text_width: int
    text_heads: int
    num_params: int
    gflops: float


PAPER = {
    "RN50": Row("clip_rn50", 5e-4, 1024, 224, (3, 4, 6, 3), 2048, 32, None, 512, 8, 102_007_137, 18.18),
    "RN101": Row("clip_rn101", 5e-4, 512, 224, (3, 4, 23, 3), 2048, 32, None, 512, 8, 119_688_033, 25.5),
    "RN50x4": Row("clip_rn50x4", 5e-4, 640, 288, (4, 6, 10, 6), 2560, 40, None, 640, 10, 178_300_601, 51.82),
    "RN50x16": Row("clip_rn50x16", 4e-4, 768, 384, (6, 8, 18, 8), 3072, 48, None, 768, 12, 290_979_217, 162.69),
    "RN50x64": Row("clip_rn50x64", 3.6e-4, 1024, 448, (3, 15, 36, 10), 4096, 64, None, 1024, 16, 623_258_305, 552.65),
    "ViT-B/32": Row("clip_vit_b32", 5e-4, 512, 224, 12, 768, 12, 32, 512, 8, 151_277_313, 14.78),
    "ViT-B/16": Row("clip_vit_b16", 5e-4, 512, 224, 12, 768, 12, 16, 512, 8, 149_620_737, 41.09),
    "ViT-L/14": Row("clip_vit_l14", 4e-4, 768, 224, 24, 1024, 16, 14, 768, 12, 427_616_513, 175.33),
    "ViT-L/14@336px": Row("clip_vit_l14_336", 2e-5, 768, 336, 24, 1024, 16, 14, 768, 12, 427_944_193, 395.22),
}
NUM_PARAMS = {name: row.num_params for name, row in PAPER.items()} | {
    "ViT-H/14": 986_109_441,
    "ViT-g/14": 1_366_678_273,
    "ViT-bigG/14": 2_539_567_105,
    "SigLIP-B/16": 203_155_970,
    "SigLIP-SO400M/14": 877_360_306,
    "SigLIP-SO400M/14@384px": 877_960_498,
}


@functools.cache
def abstract_variables(name: str) -> Variables:
    return jax.eval_shape(lambda: init_variables(PUBLISHED[name], jax.random.key(0)))


def encode(name: str):
    """The forward pass of one image, and of one text of full length, with its abstract arguments."""
    config, graph = PUBLISHED[name], model_graph(PUBLISHED[name])
    images = jax.ShapeDtypeStruct((1, config.vision.image_size, config.vision.image_size, 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, config.text.context_length), jnp.int32)

    def forward(variables, images, tokens):
        model = nnx.merge(graph, variables)
        return model.encode_image(images), model.encode_text(tokens)

    return forward, (abstract_variables(name), images, tokens)


def test_no_model_escapes_the_tables():
    assert set(PUBLISHED) == set(NUM_PARAMS)
    assert set(FAMILIES["openai"]) == set(PAPER)


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_models_have_its_hyperparameters(name):
    row, config = PAPER[name], PUBLISHED[name]
    vision, text = config.vision, config.text
    assert (config.embed_dim, vision.image_size) == (row.embed_dim, row.image_size)
    assert (vision.width, vision.num_heads) == (row.width, row.heads)
    if isinstance(vision, ResNetConfig):
        assert (vision.stages, vision.batch_norm, row.patch_size) == (row.layers, "per_device", None)
    else:
        assert (vision.depth, vision.patch_size) == (row.layers, row.patch_size)
        assert (vision.pooling, vision.mlp_dim) == ("class_token", 4 * row.width)
    assert text == TextConfig(
        width=row.text_width,
        depth=12,
        num_heads=row.text_heads,
        mlp_dim=4 * row.text_width,
        context_length=77,
        vocab_size=49_408,
        eot_token=49_407,
    )
    assert (config.activation, config.layer_norm_eps, config.logit_bias_init) == ("quick_gelu", 1e-5, None)
    assert config.logit_scale_init == pytest.approx(1 / 0.07)


@pytest.mark.parametrize(
    ("name", "heads", "text_heads", "activation"),
    [
        ("ViT-H/14", 16, 16, "gelu"),
        ("ViT-g/14", 16, 16, "gelu"),
        ("ViT-bigG/14", 16, 20, "gelu"),
        ("SigLIP-B/16", 12, 12, "gelu_tanh"),
        ("SigLIP-SO400M/14", 16, 16, "gelu_tanh"),
        ("SigLIP-SO400M/14@384px", 16, 16, "gelu_tanh"),
    ],
)
def test_what_the_number_of_parameters_does_not_show(name, heads, text_heads, activation):
    config = PUBLISHED[name]
    assert (config.vision.num_heads, config.text.num_heads, config.activation) == (heads, text_heads, activation)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_number_of_parameters_is_the_published_one(name):
    params, _ = split_variables(abstract_variables(name))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == NUM_PARAMS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_number_of_parameters_is_the_one_derived_by_hand(name):
    tower = siglip_params if name.startswith("SigLIP") else resnet_params if name.startswith("RN") else vit_params
    scale_and_bias = 2 if name.startswith("SigLIP") else 1
    assert tower(PUBLISHED[name]) + text_params(PUBLISHED[name]) + scale_and_bias == NUM_PARAMS[name]


def mlp_params(config: TransformerConfig) -> int:
    w, m = config.width, config.mlp_dim
    return (w * m + m) + (m * w + w)


def blocks_params(config: TransformerConfig) -> int:
    w = config.width
    two_norms = 2 * 2 * w
    attention = 4 * (w * w + w)  # query, key, value, out
    return config.depth * (two_norms + attention + mlp_params(config))


def vit_params(config: ModelConfig) -> int:
    vision, w = config.vision, config.vision.width
    num_positions = (vision.image_size // vision.patch_size) ** 2 + 1
    embeddings = 3 * vision.patch_size**2 * w + w + num_positions * w  # patches, class token, positions
    norms_around_the_blocks = 2 * 2 * w
    return embeddings + norms_around_the_blocks + blocks_params(vision) + w * config.embed_dim


def siglip_params(config: ModelConfig) -> int:
    vision, w = config.vision, config.vision.width
    num_positions = (vision.image_size // vision.patch_size) ** 2
    embeddings = 3 * vision.patch_size**2 * w + w + num_positions * w  # patches and their bias, positions
    head = w + 4 * (w * w + w) + 2 * w + mlp_params(vision)  # query, attention, norm, MLP
    return embeddings + blocks_params(vision) + 2 * w + head


def text_params(config: ModelConfig) -> int:
    text, w = config.text, config.text.width
    embeddings = (text.vocab_size + text.context_length) * w
    projection = w * config.embed_dim + (config.embed_dim if text.projection_bias else 0)
    return embeddings + blocks_params(text) + 2 * w + projection


def resnet_params(config: ModelConfig) -> int:
    vision, s = config.vision, config.vision.stem_width
    w, E = 32 * s, config.embed_dim

    def conv_norm(c_in: int, c_out: int, size: int) -> int:
        return size**2 * c_in * c_out + 2 * c_out

    def stage(depth: int, c_in: int, c: int) -> int:
        def bottleneck(c_in: int) -> int:
            return conv_norm(c_in, c, 1) + conv_norm(c, c, 3) + conv_norm(c, 4 * c, 1)

        shortcut = conv_norm(c_in, 4 * c, 1)
        return bottleneck(c_in) + shortcut + (depth - 1) * bottleneck(4 * c)

    stem = conv_norm(3, s // 2, 3) + conv_norm(s // 2, s // 2, 3) + conv_norm(s // 2, s, 3)
    one, two, three, four = vision.stages
    stages = stage(one, s, s) + stage(two, 4 * s, 2 * s) + stage(three, 8 * s, 4 * s) + stage(four, 16 * s, 8 * s)
    positions = ((vision.image_size // 32) ** 2 + 1) * w
    return stem + stages + positions + 3 * (w * w + w) + (w * E + E)


def discarded_queries_flops(config: ModelConfig) -> int:
    """What open_clip's attention pooling spends on queries that nobody reads, and its profile counts.

    It lets every position of the grid ask, through the query and the output projection, and then keeps the answer to
    the mean alone; here only the mean asks. A ViT has nothing of the kind.
    """
    if not isinstance(config.vision, ResNetConfig):
        return 0
    w, num_positions = config.vision.width, (config.vision.image_size // 32) ** 2
    query, answer, out = w * w, 2 * (num_positions + 1) * w, w * config.embed_dim
    return 2 * num_positions * (query + answer + out)


@pytest.mark.parametrize("name", PAPER)
def test_the_forward_flops_are_the_tables_to_its_last_digit(name):
    """Measured, with the discarded queries: RN50 +0.017 %, RN101 +0.008 %, RN50x4 +0.007 %, RN50x16 +0.0002 %, RN50x64
    +0.0007 %, ViT-B/32 -0.019 %, ViT-B/16 -0.009 %, ViT-L/14 -0.003 %, ViT-L/14@336px -0.0001 %: all of it the table's
    two decimals. Without them RN50 to RN50x64 spend 3.5, 2.1, 2.7, 2.2 and 1.6 % less than the table says.
    """
    forward, args = encode(name)
    gflops = (count_flops(forward, *args) + discarded_queries_flops(PUBLISHED[name])) / 1e9
    assert gflops == pytest.approx(PAPER[name].gflops, rel=0.01)
    assert gflops == pytest.approx(PAPER[name].gflops, abs=0.005)


def test_xla_counts_the_same_once_nothing_is_scanned(monkeypatch):
    forward, args = encode("ViT-B/32")
    flops = count_flops(forward, *args)

    def lowered_flops() -> float:
        # A function of its own for each call: JAX would find the first one's trace again.
        return jax.jit(lambda *args: forward(*args)).lower(*args).cost_analysis()["flops"]

    assert lowered_flops() < 0.1 * flops
    monkeypatch.setattr(jax.lax, "scan", functools.partial(jax.lax.scan, unroll=True))
    # XLA adds softmax, norms, activations and residual sums: 0.34 % here.
    assert 1.003 < lowered_flops() / flops < 1.004


def test_every_paper_model_has_its_config_file():
    files = {file.stem for file in Path(configs.__path__[0]).glob("clip_*.py")}
    assert files == {row.config_file for row in PAPER.values()}


@pytest.mark.parametrize("name", PAPER)
def test_a_config_file_is_its_model_trained_as_in_the_paper(name):
    row = PAPER[name]
    config = make_config(importlib.import_module(f"configs.{row.config_file}").get_config().to_dict())
    assert config.model == dataclasses.replace(PUBLISHED[name], compute_dtype="bfloat16", remat="full")
    b2, eps = (0.999, 1e-8) if isinstance(config.model.vision, ResNetConfig) else (0.98, 1e-6)
    assert config.optimizer == OptimizerConfig(
        learning_rate=row.learning_rate,
        weight_decay=0.2,
        b1=0.9,
        b2=b2,
        eps=eps,
        warmup_steps=2000,
        max_logit_scale=100.0,
    )
    fine_tuned = name == "ViT-L/14@336px"
    epochs = 1 if fine_tuned else 32
    assert config.train.global_batch_size == 32_768
    assert config.train.total_steps == epochs * 400_000_000 // 32_768
    assert config.train.init_from == ("ViT-L/14" if fine_tuned else "")
    assert (config.data.tokenizer, config.data.min_crop_scale) == ("clip_bpe", 1.0)
