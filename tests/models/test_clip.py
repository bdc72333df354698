import dataclasses
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec as P

from clip_jax.distributed.sharding import param_specs
from clip_jax.models import ModelConfig, TextConfig, VisionConfig, normalize_images
from clip_jax.models.transformer import Transformer
from clip_jax.models.variables import init_variables, model_graph
from clip_jax.pretrained.hugging_face import hf_layout
from clip_jax.pretrained.open_clip import open_clip_json
from clip_jax.pretrained.transform import ImageTransform

END = 30  # of 31 tokens
TINY = ModelConfig(
    embed_dim=7,
    vision=VisionConfig(width=15, depth=2, num_heads=3, mlp_dim=19, image_size=10, patch_size=5),
    text=TextConfig(width=22, depth=3, num_heads=2, mlp_dim=29, context_length=13, vocab_size=31, eot_token=END),
)


def flat(tree):
    return flatten_dict(tree, sep="/")


def replace(config, **changes):
    return dataclasses.replace(config, **changes)


def assert_trees_close(tree, expected, rtol, atol):
    tree, expected = flat(tree), flat(expected)
    assert tree.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(tree[name], expected[name], rtol, atol, err_msg=name)


def random_params(shapes, seed=0):
    """Values off their trivial start, gains around 1; drawn by NumPy because JAX compiles for seconds to draw them."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        return (rng.normal(size=leaf.shape) * 0.2 + (path[-1].key == "scale")).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def params():
    return random_params(jax.eval_shape(lambda: init_variables(TINY, jax.random.key(0))))


@pytest.fixture(scope="module")
def fresh_params():
    return flat(jax.jit(init_variables, static_argnums=0)(WIDE, jax.random.key(5)))


@pytest.fixture(scope="module")
def encode_text(params):
    graph = model_graph(TINY)
    return jax.jit(lambda text: nnx.merge(graph, params).encode_text(text))


@pytest.fixture(scope="module")
def encode_image(params):
    graph = model_graph(TINY)
    return jax.jit(lambda images: nnx.merge(graph, params).encode_image(images))


def some_text(N=5):
    """Rows of words, the end token in position 1, 3, 5, ..., zeros after it."""
    text = np.zeros((N, 13), np.int32)
    rng = np.random.default_rng(0)
    for row, end in enumerate(range(1, 2 * N, 2)):
        text[row, :end] = rng.integers(1, END, size=end)
        text[row, end] = END
    return text


def some_images(N=5):
    return np.random.default_rng(1).integers(256, size=(N, 10, 10, 3), dtype=np.uint8)


def tower_size(D, depth, M):
    norms, qkv, out, mlp = 4 * D, 3 * D * (D + 1), D * (D + 1), M * (D + 1) + D * (M + 1)
    return depth * (norms + qkv + out + mlp)


def test_parameter_count():
    vision = 3 * 5 * 5 * 15 + 15 + (4 + 1) * 15 + 2 * 15 + tower_size(15, 2, 19) + 2 * 15
    text = 31 * 22 + 13 * 22 + tower_size(22, 3, 29) + 2 * 22
    projections = 15 * 7 + 22 * 7
    params = jax.eval_shape(lambda: init_variables(TINY, jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == vision + text + projections + 1


WIDE = ModelConfig(
    embed_dim=83,
    vision=VisionConfig(width=111, depth=3, num_heads=3, mlp_dim=157, image_size=35, patch_size=5),
    text=TextConfig(width=94, depth=5, num_heads=2, mlp_dim=131, context_length=23, vocab_size=211, eot_token=210),
)
INITIAL_STDS = {
    "visual/patch_embedding/kernel": (3 * 75) ** -0.5,
    "visual/class_embedding": 111**-0.5,
    "visual/positional_embedding": 111**-0.5,
    "visual/transformer/blocks/attn/qkv/kernel": 111**-0.5,
    "visual/transformer/blocks/attn/out/kernel": 111**-0.5 * 6**-0.5,
    "visual/transformer/blocks/mlp/fc_in/kernel": 222**-0.5,
    "visual/transformer/blocks/mlp/fc_out/kernel": 111**-0.5 * 6**-0.5,
    "visual_projection/kernel": 111**-0.5,
    "text/token_embedding/embedding": 0.02,
    "text/positional_embedding": 0.01,
    "text/transformer/blocks/attn/qkv/kernel": 94**-0.5,
    "text/transformer/blocks/attn/out/kernel": 94**-0.5 * 10**-0.5,
    "text/transformer/blocks/mlp/fc_in/kernel": 188**-0.5,
    "text/transformer/blocks/mlp/fc_out/kernel": 94**-0.5 * 10**-0.5,
    "text_projection/kernel": 94**-0.5,
}


def test_initial_values(fresh_params):
    drawn = set()
    for name, array in fresh_params.items():
        array = np.asarray(array)
        if name == "logit_scale":
            assert np.exp(array) == pytest.approx(1 / 0.07, rel=1e-6)
        elif name.endswith("/scale"):
            np.testing.assert_array_equal(array, 1, err_msg=name)
        elif name.endswith("/bias"):
            np.testing.assert_array_equal(array, 0, err_msg=name)
        else:
            std = INITIAL_STDS[name]
            drawn.add(name)
            # A normal sample's standard deviation has the relative error 1 / sqrt(2 n); its mean std / sqrt(n).
            assert np.std(array) / std == pytest.approx(1, abs=4 * (2 * array.size) ** -0.5), name
            assert abs(np.mean(array)) < 4 * std * array.size**-0.5, name
    assert drawn == set(INITIAL_STDS)


def test_stacked_layers_start_different(fresh_params):
    kernels = {name: np.asarray(array) for name, array in fresh_params.items() if "blocks" in name and "kernel" in name}
    assert len(kernels) == 8
    for name, stacked in kernels.items():
        for layer, other in pairwise(stacked):
            assert abs(np.corrcoef(layer.ravel(), other.ravel())[0, 1]) < 0.05, name


def plain_transformer(params, x, depth, causal):
    """The blocks written out, one after the other and one head after the other."""

    def layer_norm(x, scale, bias):
        centred = x - x.mean(-1, keepdims=True)
        return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias

    for layer in range(depth):
        p = {name: array[layer] for name, array in flat(params).items()}
        y = layer_norm(x, p["ln_1/scale"], p["ln_1/bias"])
        for head in range(p["attn/qkv/bias"].shape[1]):
            q, k, v = (y @ p["attn/qkv/kernel"][:, i, head] + p["attn/qkv/bias"][i, head] for i in range(3))
            scores = jnp.exp(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]))  # [B, L, L]
            if causal:
                scores = scores * np.tri(x.shape[1])
            x = x + scores / scores.sum(-1, keepdims=True) @ v @ p["attn/out/kernel"][head]
        x = x + p["attn/out/bias"]
        y = layer_norm(x, p["ln_2/scale"], p["ln_2/bias"]) @ p["mlp/fc_in/kernel"] + p["mlp/fc_in/bias"]
        y = y / (1 + jnp.exp(-1.702 * y))
        x = x + y @ p["mlp/fc_out/kernel"] + p["mlp/fc_out/bias"]
    return x


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("causal", [False, True])
def test_the_scanned_stack_equals_a_plain_loop(causal):
    tower = TINY.text if causal else TINY.vision
    config = replace(TINY, compute_dtype="float64", param_dtype="float64")
    graph, shapes = nnx.split(nnx.eval_shape(lambda: Transformer(tower, config, causal, nnx.Rngs(0))))
    params = random_params(nnx.to_pure_dict(shapes))
    x, weights = np.random.default_rng(2).normal(size=(2, 3, 11, tower.width))

    def scanned(params, x):
        y = nnx.merge(graph, params)(x)
        return jnp.sum(weights * y), y

    def looped(params, x):
        y = plain_transformer(params["blocks"], x, tower.depth, causal)
        return jnp.sum(weights * y), y

    results = [jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(params, x) for f in (scanned, looped)]
    ((_, y), (d_params, d_x)), ((_, expected), (d_expected, d_x_expected)) = results
    # Measured: 8e-15 at most for the output, 5e-14 for gradients of up to 40.
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(d_x, d_x_expected, rtol=0, atol=1e-12)
    assert_trees_close(d_params, d_expected, rtol=0, atol=1e-12)


@pytest.mark.nightly
def test_remat_changes_memory_and_nothing_else():
    B, L, D, M, depth = 7, 11, TINY.text.width, TINY.text.mlp_dim, TINY.text.depth
    x = jnp.asarray(np.random.default_rng(3).normal(size=(B, L, D)), jnp.float32)

    def run(remat):
        config = replace(TINY, remat=remat)
        graph, shapes = nnx.split(nnx.eval_shape(lambda: Transformer(TINY.text, config, True, nnx.Rngs(0))))
        params = random_params(nnx.to_pure_dict(shapes))

        def loss(params):
            return jnp.sum(jnp.sin(nnx.merge(graph, params)(x)))

        kept = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params)  # the residuals; those of rows, not parameters
        num_kept = sum(leaf.size for leaf in jax.tree.leaves(kept) if B in leaf.shape)
        return *jax.jit(jax.value_and_grad(loss))(params), num_kept

    loss, grads, num_kept = run("none")
    kept = {}
    for remat in ("dots", "named", "attention", "full"):
        same_loss, same_grads, kept[remat] = run(remat)
        np.testing.assert_allclose(same_loss, loss, rtol=1e-6)
        assert_trees_close(same_grads, grads, rtol=1e-5, atol=1e-5)
    # What is kept of a token and block: its input; the attention's output and the MLP's hidden layer; and with "dots"
    # queries, keys and values as well. The last block's output is the loss's own.
    assert kept["full"] == depth * B * L * D + B * L * D
    assert kept["attention"] == kept["full"] + depth * B * L * D
    assert kept["named"] == kept["attention"] + depth * B * L * M
    assert kept["dots"] == kept["named"] + depth * B * L * 3 * D
    assert kept["dots"] < 0.6 * num_kept


def test_the_text_feature_sees_what_is_before_the_end_token_only(encode_text):
    text = some_text()
    features = np.asarray(encode_text(text))
    after = text.copy()
    for row, end in enumerate(range(1, 10, 2)):
        after[row, end + 1 :] = np.random.default_rng(row).integers(1, END + 1, size=12 - end)
    after[0, 7] = END  # a second end token is not the end
    np.testing.assert_array_equal(encode_text(after), features)
    for position in range(9):
        before = text.copy()
        before[:, position] = np.where(text[:, position] == END, END, 17)
        changed = np.abs(encode_text(before) - features).max(axis=1) > 1e-4
        rows = before[:, position] != text[:, position]
        np.testing.assert_array_equal(changed, rows & (position < np.arange(1, 10, 2)))


def test_shorter_rows_need_no_padding_to_the_context_length(encode_text):
    text = some_text()
    np.testing.assert_allclose(encode_text(text[:, :10]), encode_text(text), rtol=1e-5, atol=1e-5)


def test_uint8_images_are_normalised_on_the_device(encode_image):
    images = some_images()
    pixels = (images / 255.0 - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    # One rounding of values of up to 2.7 in float32, and 2 ** -8 relative in bfloat16.
    np.testing.assert_allclose(normalize_images(jnp.asarray(images), TINY), pixels, rtol=0, atol=5e-7)
    half = normalize_images(jnp.asarray(images), replace(TINY, compute_dtype="bfloat16"))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), pixels, rtol=2**-8, atol=1e-6)
    np.testing.assert_allclose(encode_image(images), encode_image(pixels.astype(np.float32)), rtol=1e-5, atol=1e-5)


def test_bfloat16_computes_close_to_float32_and_stores_float32(params):
    half_config = replace(TINY, compute_dtype="bfloat16")
    shapes = jax.eval_shape(lambda: init_variables(half_config, jax.random.key(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}

    def forward(config):
        graph = model_graph(config)

        def encode(params, images, text):
            model = nnx.merge(graph, params)
            return model.encode_image(images), model.encode_text(text)

        return jax.jit(encode)(params, some_images(), some_text())

    for exact, rounded in zip(forward(TINY), forward(half_config)):
        assert (exact.dtype, rounded.dtype) == (jnp.float32, jnp.bfloat16)
        error = np.linalg.norm(rounded.astype(np.float32) - exact) / np.linalg.norm(exact)
        assert 1e-5 < error < 0.02  # measured 0.013 and 0.007


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        (
            "vision",
            {"num_heads": 4},
            "vision.width=15 is not divisible by vision.num_heads=4: use width=12 or 16, or num_heads=3 or 5",
        ),
        ("vision", {"depth": 0}, "vision.depth=0 must be at least 1"),
        (
            "vision",
            {"image_size": 13},
            "vision.image_size=13 is not divisible by vision.patch_size=5: "
            "use an image_size such as 10 or 15, or another patch_size",
        ),
        (
            "vision",
            {"image_size": 3},
            "vision.image_size=3 is not divisible by vision.patch_size=5: "
            "use an image_size such as 5 or 10, or another patch_size",
        ),
        ("text", {"context_length": 2}, "text.context_length=2 leaves no room for a word: use at least 3"),
        (
            "text",
            {"vocab_size": 30},
            "text.vocab_size=30 is smaller than the tokenizer's vocabulary (its end token is 30): "
            "raise text.vocab_size",
        ),
    ],
)
def test_impossible_towers_are_refused(section, changes, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        replace(getattr(TINY, section), **changes)
    assert str(error.value) == message


def test_remaining_pixels_are_not_seen_with_attention_pooling():
    vision = replace(TINY.vision, image_size=13, pooling="attention")
    config = replace(TINY, embed_dim=15, vision=vision)
    params = random_params(jax.eval_shape(lambda: init_variables(config, jax.random.key(0))))
    images = jnp.asarray(np.random.default_rng(0).integers(256, size=(2, 13, 13, 3), dtype=np.uint8))
    even = replace(config, vision=replace(vision, image_size=10))
    features = nnx.merge(model_graph(config), params).encode_image(images)
    np.testing.assert_array_equal(nnx.merge(model_graph(even), params).encode_image(images[:, :10, :10]), features)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"param_dtype": "float16"}, "model.param_dtype='float16' must be one of 'float32', 'bfloat16', 'float64'"),
        ({"activation": "relu"}, "model.activation='relu' must be one of 'quick_gelu', 'gelu', 'gelu_tanh'"),
        ({"image_std": (1.0, 0.0, 1.0)}, r"model.image_std\[1\]=0.0 must be above 0"),
        ({"image_mean": (1.0, 0.0)}, "model.image_mean=.* must be three numbers each"),
        ({"vision": replace(TINY.vision, pooling="attention")}, "model.embed_dim=7 must be vision.width=15: a tower"),
    ],
)
def test_models_that_contradict_themselves_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


@pytest.mark.parametrize(("changes", "name"), [({"embed_dim": 0}, "embed_dim=0"), ({"logit_scale_init": 0.0}, "0.0")])
def test_impossible_models_are_refused(changes, name):
    with pytest.raises(ValueError, match=f"{name} must be"):
        replace(TINY, **changes)


def test_a_non_linear_projection_is_two_layers_around_the_activation():
    config = replace(TINY, projection="mlp", activation="gelu_tanh")
    params = random_params(jax.eval_shape(lambda: init_variables(config, jax.random.key(0))))
    layers = params["visual_projection"]
    assert {name: leaf.shape for name, leaf in flat(layers).items()} == {
        "fc_in/kernel": (15, 15),
        "fc_in/bias": (15,),
        "fc_out/kernel": (15, 7),
    }
    pooled = np.random.default_rng(1).normal(size=(3, 15)).astype(np.float32)
    hidden = pooled @ layers["fc_in"]["kernel"] + layers["fc_in"]["bias"]
    hidden = 0.5 * hidden * (1 + np.tanh((2 / np.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)))
    found = nnx.merge(model_graph(config), params).project_image(jnp.asarray(pooled))
    np.testing.assert_allclose(found, hidden @ layers["fc_out"]["kernel"], rtol=1e-5, atol=1e-6)  # float32 rounding
    assert param_specs(params)["text_projection"]["fc_in"]["kernel"] == P("fsdp", "tensor")
    with pytest.raises(ValueError, match=r"model.projection='mlp' needs an image tower that a projection follows"):
        replace(config, vision=replace(TINY.vision, pooling="attention"), embed_dim=15)
    for write in (hf_layout, lambda model: open_clip_json(model, ImageTransform())):
        with pytest.raises(ValueError, match="neither open_clip nor transformers has a CLIP with such projections"):
            write(config)
