import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from jax import lax

from clip_jax.distributed.sharding import ShardingConfig, make_mesh, place_batch
from clip_jax.models import ModelConfig, ResNetConfig, TextConfig
from clip_jax.models.batch_norm import BatchNorm
from clip_jax.models.modified_resnet import ModifiedResNet, average_pool
from clip_jax.models.variables import join_variables, split_variables

VISION = ResNetConfig(image_size=64, stages=(2, 1, 3, 1), stem_width=6, num_heads=12)
TINY = ModelConfig(
    embed_dim=13,
    vision=VISION,
    text=TextConfig(width=12, depth=1, num_heads=3, mlp_dim=19, context_length=7, vocab_size=31, eot_token=30),
)
B = 8


def with_vision(**changes):
    return dataclasses.replace(TINY, vision=dataclasses.replace(VISION, **changes))


def float64(config):
    return dataclasses.replace(config, compute_dtype="float64", param_dtype="float64")


def make_tower(config, seed=0):
    """The tower's graph, parameters and statistics, all off their trivial start."""
    graph, state = nnx.split(nnx.eval_shape(lambda: ModifiedResNet(config, nnx.Rngs(0))))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "count":
            return np.zeros(leaf.shape, leaf.dtype)
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        return (rng.normal(size=leaf.shape) * 0.15).astype(leaf.dtype)

    return graph, *split_variables(jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(state)))


def some_images(dtype=np.float64):
    return np.random.default_rng(1).normal(size=(B, 64, 64, 3)).astype(dtype)


def apply(graph, params, batch_stats, images, train):
    """Features and the updated statistics."""
    tower = nnx.merge(graph, join_variables(params, batch_stats))
    features = tower(jnp.asarray(images), train)
    return features, nnx.to_pure_dict(nnx.state(tower, nnx.BatchStat))


def plain_resnet(params, stats, images, train):
    """The tower written out, block after block and head after head; returns features and updated statistics."""
    params, stats, moved = flatten_dict(params, sep="/"), flatten_dict(stats, sep="/"), {}

    def conv_norm(x, path, layer=None, stride=1):
        def pick(tree, name):
            return tree[f"{path}/{name}"] if layer is None else tree[f"{path}/{name}"][layer]

        kernel = pick(params, "conv/kernel")
        pad = kernel.shape[0] // 2
        x = lax.conv_general_dilated(
            x, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        old = pick(stats, "norm/mean"), pick(stats, "norm/var")
        mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else old
        n = x[..., 0].size
        new = {"mean": 0.9 * old[0] + 0.1 * mean, "var": 0.9 * old[1] + 0.1 * var * n / (n - 1), "count": 1}
        for name, value in new.items():
            moved.setdefault(f"{path}/norm/{name}", {})[layer] = value
        return (x - mean) / jnp.sqrt(var + 1e-5) * pick(params, "norm/scale") + pick(params, "norm/bias")

    def pool(x, size):
        return lax.reduce_window(x, 0.0, lax.add, (1, size, size, 1), (1, size, size, 1), "VALID") / size**2

    def bottleneck(x, path, layer, stride):
        y = jnp.maximum(conv_norm(x, f"{path}/conv_1", layer), 0)
        y = jnp.maximum(conv_norm(y, f"{path}/conv_2", layer), 0)
        y = conv_norm(pool(y, stride), f"{path}/conv_3", layer)
        if layer is None:
            x = conv_norm(pool(x, stride), f"{path}/shortcut")
        return jnp.maximum(x + y, 0)

    x = images
    for i in (1, 2, 3):
        x = jnp.maximum(conv_norm(x, f"stem_{i}", stride=2 if i == 1 else 1), 0)
    x = pool(x, 2)
    for stage, depth in enumerate(VISION.stages, 1):
        x = bottleneck(x, f"stage_{stage}/first", None, 1 if stage == 1 else 2)
        for layer in range(depth - 1):
            x = bottleneck(x, f"stage_{stage}/blocks", layer, 1)
    x = x.reshape(len(x), -1, x.shape[-1])
    x = jnp.concatenate([x.mean(1, keepdims=True), x], 1) + params["attention_pool/positional_embedding"]
    out = params["attention_pool/out/bias"]
    for head in range(VISION.num_heads):
        q, k, v = (
            x @ params[f"attention_pool/{name}/kernel"][:, head] + params[f"attention_pool/{name}/bias"][head]
            for name in ("query", "key", "value")
        )
        scores = jnp.exp(q[:, :1] @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]))  # [B, 1, L]
        out = out + ((scores / scores.sum(-1, keepdims=True)) @ v)[:, 0] @ params["attention_pool/out/kernel"][head]
    return out, {
        path: jnp.asarray(layers[None]) if None in layers else jnp.stack([layers[i] for i in sorted(layers)])
        for path, layers in moved.items()
    }


def assert_close(tree, expected, atol):
    """Each array's largest error against its largest value, or against 1."""
    tree, expected = flatten_dict(tree, sep="/"), flatten_dict(expected, sep="/")
    assert tree.keys() == expected.keys()
    for name, leaf in expected.items():
        largest = max(np.abs(leaf).max(), 1)
        np.testing.assert_allclose(tree[name], leaf, rtol=0, atol=atol * largest, err_msg=name)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("train", [True, pytest.param(False, marks=pytest.mark.nightly)])
def test_the_tower_equals_one_written_out(train):
    graph, params, stats = make_tower(float64(TINY))
    images = some_images()
    weights = np.random.default_rng(2).normal(size=(B, 13))

    def scanned(params):
        features, moved = apply(graph, params, stats, images, train)
        return jnp.sum(weights * features), (features, moved)

    def looped(params):
        features, moved = plain_resnet(params, stats, images, train)
        return jnp.sum(weights * features), (features, moved)

    (_, (features, moved)), grads = jax.jit(jax.value_and_grad(scanned, has_aux=True))(params)
    (_, (expected, expected_moved)), expected_grads = jax.jit(jax.value_and_grad(looped, has_aux=True))(params)
    # Measured: 7e-15 for features, 1e-12 for gradients of up to 50.
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-12)
    assert_close(grads, expected_grads, atol=1e-10)
    if train:
        assert_close(moved, nest(expected_moved), atol=1e-12)
    else:
        assert_close(moved, stats, atol=0)


def nest(flat):
    tree = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


@pytest.mark.nightly
def test_remat_changes_memory_but_no_gradient_and_no_statistic():
    def run(remat):
        graph, params, stats = make_tower(dataclasses.replace(TINY, remat=remat))

        def loss(params):
            features, moved = apply(graph, params, stats, some_images(np.float32), True)
            return jnp.sum(jnp.sin(features)), moved

        kept = jax.eval_shape(lambda p: jax.vjp(loss, p, has_aux=True)[1], params)  # the residuals
        (_, moved), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return grads, moved, sum(leaf.size for leaf in jax.tree.leaves(kept))

    expected_grads, expected_moved, most = run("none")
    num_kept = {}
    for remat in ("dots", "full"):
        grads, moved, num_kept[remat] = run(remat)
        assert_close(grads, expected_grads, atol=1e-3)
        assert_close(moved, expected_moved, atol=1e-5)
    assert num_kept["full"] < 0.75 * num_kept["dots"] < 0.45 * most  # the stem keeps everything at any rate


@pytest.mark.nightly
@pytest.mark.usefixtures("x64")
def test_global_statistics_do_not_depend_on_the_devices():
    graph, params, stats = make_tower(float64(with_vision(batch_norm="global")))
    mesh = make_mesh(ShardingConfig(data=2, fsdp=2, tensor=2))

    def loss(params, images):
        features, moved = apply(graph, params, stats, images, True)
        return jnp.sum(jnp.sin(features)), moved

    gradient = jax.value_and_grad(loss, has_aux=True)
    (expected, expected_moved), expected_grads = jax.jit(gradient)(params, some_images())
    with jax.set_mesh(mesh):
        images = place_batch({"image": some_images()}, mesh)["image"]
        (value, moved), grads = jax.jit(gradient)(params, images)
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-12)
    assert_close(grads, expected_grads, atol=1e-10)
    assert_close(moved, expected_moved, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_per_device_statistics_are_those_of_each_device_alone():
    graph, params, stats = make_tower(float64(TINY))
    mesh = make_mesh(ShardingConfig(data=2, fsdp=2, tensor=2))  # four devices' parts of two images
    images = some_images()
    parts = [jax.jit(apply, static_argnums=(0, 4))(graph, params, stats, images[i : i + 2], True) for i in (0, 2, 4, 6)]
    with jax.set_mesh(mesh):
        placed = place_batch({"image": images}, mesh)["image"]
        features, moved = jax.jit(apply, static_argnums=(0, 4))(graph, params, stats, placed, True)
    np.testing.assert_allclose(features, np.concatenate([f for f, _ in parts]), rtol=0, atol=1e-12)
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 4, *[m for _, m in parts])
    assert_close(moved, mean, atol=1e-12)
    first, second = (flatten_dict(moved)["stem_1", "norm", "mean"] for _, moved in parts[:2])
    assert np.abs(first - second).max() > 1e-4  # so that the equality says something


@pytest.mark.usefixtures("x64")
def test_batch_norm_normalises_and_counts():
    config = float64(TINY)
    norm = BatchNorm(5, config, "global")
    x = np.random.default_rng(3).normal(size=(3, 4, 7, 5)) * 2 + 11
    y = np.asarray(norm(jnp.asarray(x), train=True))
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(y.var((0, 1, 2)), x.var((0, 1, 2)) / (x.var((0, 1, 2)) + 1e-5), rtol=1e-12)
    np.testing.assert_allclose(norm.mean[...], 0.1 * x.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * x.var((0, 1, 2), ddof=1), rtol=1e-12)
    assert int(norm.count[...]) == 1
    mean, var = np.asarray(norm.mean[...]), np.asarray(norm.var[...])
    np.testing.assert_allclose(norm(jnp.asarray(x), train=False), (x - mean) / np.sqrt(var + 1e-5), rtol=1e-12)
    assert int(norm.count[...]) == 1


def test_a_single_value_has_no_variance():
    with pytest.raises(ValueError, match="a batch norm sees a single value of each channel"):
        BatchNorm(5, TINY, "global")(jnp.ones((1, 1, 1, 5)), train=True)


def test_statistics_are_float32_at_least():
    half = dataclasses.replace(TINY, param_dtype="bfloat16")
    norm = BatchNorm(5, half, "global")
    assert (norm.mean.dtype, norm.var.dtype, norm.scale.dtype) == (jnp.float32, jnp.float32, jnp.bfloat16)


def test_batch_norm_of_bfloat16_keeps_its_statistics_in_float32():
    norm = BatchNorm(5, dataclasses.replace(TINY, compute_dtype="bfloat16"), "global")
    x = jnp.asarray(np.random.default_rng(3).normal(size=(6, 4, 7, 5)) + 300, jnp.bfloat16)
    y = norm(x, train=True)
    assert (y.dtype, norm.mean.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(norm.mean[...], 0.1 * np.asarray(x, np.float64).mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(y, np.float32).mean((0, 1, 2)), 0, atol=0.01)


def test_a_fresh_tower_starts_as_the_paper_says():
    variables = flatten_dict(nnx.to_pure_dict(nnx.state(ModifiedResNet(TINY, nnx.Rngs(3)))), sep="/")
    for name, leaf in variables.items():
        array = np.asarray(leaf)
        if name.endswith("conv_3/norm/scale"):
            np.testing.assert_array_equal(array, 0, err_msg=name)
        elif name.endswith(("scale", "var")):
            np.testing.assert_array_equal(array, 1, err_msg=name)
        elif name.endswith(("bias", "mean", "count")):
            np.testing.assert_array_equal(array, 0, err_msg=name)
        else:
            is_conv = name.endswith("conv/kernel")
            std = (3 * np.prod(array.shape[-4:-1]) if is_conv else 32 * 6) ** -0.5  # else of the attention pooling
            assert np.std(array) / std == pytest.approx(1, abs=4 * (2 * array.size) ** -0.5), name


def test_blocks_start_as_their_shortcut():
    graph, state = nnx.split(ModifiedResNet(TINY, nnx.Rngs(4)))
    stage = nnx.merge(graph, state).stage_3
    x = jnp.asarray(np.random.default_rng(5).normal(size=(2, 8, 8, 48)), jnp.float32)
    shortcut = nnx.relu(stage.first.shortcut(average_pool(x, 2), train=False))
    np.testing.assert_array_equal(stage(x, train=False), shortcut)


def test_images_of_another_size_are_refused():
    graph, params, stats = make_tower(TINY)
    with pytest.raises(ValueError, match="images are 32x64 pixels, the model's image_size is 64: resize them"):
        apply(graph, params, stats, jnp.zeros((1, 32, 64, 3)), False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 70}, "vision.image_size=70 is not a multiple of 32, the stride of a ResNet: use 64 or 96"),
        ({"image_size": 31}, "vision.image_size=31 is not a multiple of 32, the stride of a ResNet: use 32 or 64"),
        ({"stages": (1, 2, 3)}, r"vision.stages=\(1, 2, 3\) must be the number of blocks, at least 1, of four stages"),
        ({"stages": (1, 0, 3, 1)}, r"vision.stages\[1\]=0 must be at least 1"),
        (
            {"stem_width": 7},
            "vision.stem_width=7 must be even, and 32 times it divisible by vision.num_heads=12: "
            "use stem_width=6 or 12$",
        ),
        (
            {"num_heads": 5},
            "vision.stem_width=6 must be even, and 32 times it divisible by vision.num_heads=5: "
            "use stem_width=10, or num_heads=4 or 6$",
        ),
    ],
)
def test_impossible_towers_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        with_vision(**changes)
