"""Positions for another resolution or context length, as open_clip makes them."""

import dataclasses

import numpy as np
import pytest

from clip_jax.models.transformer import rotary_angles
from clip_jax.pretrained import load_pretrained, resize_positions


@pytest.mark.parametrize("image_size", [48, 16])
def test_image_positions_are_open_clips(goldens, image_size):
    # Measured: 1.2e-7 from open_clip's float32 and 2.4e-7 from its float64, of values up to 0.43.
    pretrained = load_pretrained(goldens / "openclip_vit", image_size=image_size)
    table = pretrained.variables["visual"]["positional_embedding"]
    expected = np.load(goldens / "openclip_vit" / "resized.npz")
    assert table.dtype == np.float32
    np.testing.assert_allclose(table, expected[f"visual_{image_size}"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(table, expected[f"visual_{image_size}_f64"], rtol=0, atol=1e-6)
    assert pretrained.config.vision.image_size == image_size


@pytest.mark.parametrize("context_length", [11, 23])
def test_text_positions_are_open_clips(goldens, context_length):
    # Measured: 2.5e-8 at most, of values up to 0.03.
    pretrained = load_pretrained(goldens / "openclip_vit", context_length=context_length)
    table = pretrained.variables["text"]["positional_embedding"]
    expected = np.load(goldens / "openclip_vit" / "resized.npz")
    np.testing.assert_allclose(table, expected[f"text_{context_length}"], rtol=0, atol=1e-7)
    np.testing.assert_allclose(table, expected[f"text_{context_length}_f64"], rtol=0, atol=1e-7)
    assert pretrained.config.text.context_length == context_length


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["visual_48", "visual_16", "text_11", "text_23"])
def test_in_float64(goldens, name):
    # Measured: 2.5e-16 at most.
    tower, size = name.split("_")
    argument = {"visual": "image_size", "text": "context_length"}[tower]
    pretrained = load_pretrained(goldens / "openclip_vit", param_dtype="float64", **{argument: int(size)})
    table = pretrained.variables[tower]["positional_embedding"]
    expected = np.load(goldens / "openclip_vit" / "resized.npz")[f"{name}_f64"]
    assert table.dtype == np.float64
    np.testing.assert_allclose(table, expected, rtol=0, atol=2e-15)


@pytest.mark.parametrize(
    ("model", "image_size", "path", "num_prefix", "old", "new"),
    [
        ("vit", 35, ["visual"], 1, 3, 7),
        ("mean", 10, ["visual"], 1, 3, 2),
        ("siglip", 25, ["visual"], 0, 3, 5),
        ("clipa", 35, ["visual"], 1, 3, 7),
        ("perception", 25, ["visual"], 1, 3, 5),
        ("resnet", 96, ["visual", "attention_pool"], 1, 2, 3),
    ],
)
def test_every_tower(models, make_pretrained, model, image_size, path, num_prefix, old, new):
    """Prefix rows stay; a linear ramp stays one away from the edges, in the axis in which it was."""
    pretrained = make_pretrained(models[model])
    module = pretrained.variables
    for name in path:
        module = module[name]
    table = module["positional_embedding"]
    before = table.copy()
    rows, columns = np.mgrid[:old, :old]
    table[num_prefix:, 0], table[num_prefix:, 1], table[num_prefix:, 2] = rows.ravel(), columns.ravel(), 0.75
    edited = table.copy()
    variables, config = resize_positions(pretrained.variables, pretrained.config, image_size)
    for name in path:
        variables = variables[name]
    resized = variables["positional_embedding"]
    np.testing.assert_array_equal(table, edited)  # what was handed in is left alone
    assert resized.shape == (num_prefix + new * new, table.shape[1])
    np.testing.assert_array_equal(resized[:num_prefix], before[:num_prefix])
    grid = resized[num_prefix:].reshape(new, new, -1)
    np.testing.assert_allclose(grid[..., 2], 0.75, rtol=0, atol=1e-6)
    np.testing.assert_allclose(grid[..., 0], np.broadcast_to(grid[:, :1, 0], (new, new)), rtol=0, atol=1e-6)
    np.testing.assert_allclose(grid[..., 1], grid[..., 0].T, rtol=0, atol=1e-6)
    assert np.all(np.diff(grid[:, 0, 0]) > 0)
    assert config == dataclasses.replace(
        pretrained.config, vision=dataclasses.replace(pretrained.config.vision, image_size=image_size)
    )


@pytest.mark.parametrize("sizes", [{}, {"image_size": 15, "context_length": 13}])
def test_the_same_size_gives_the_same_arrays(models, make_pretrained, sizes):
    pretrained = make_pretrained(models["vit"])
    variables, config = resize_positions(pretrained.variables, pretrained.config, **sizes)
    assert config == pretrained.config
    for tower in ("visual", "text"):
        assert variables[tower]["positional_embedding"] is pretrained.variables[tower]["positional_embedding"]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"image_size": 17}, r"vision\.image_size=17 is not divisible by vision\.patch_size=5"),
        ({"context_length": 2}, r"text\.context_length=2 leaves no room"),
    ],
)
def test_sizes_that_cannot_be(models, make_pretrained, sizes, message):
    pretrained = make_pretrained(models["vit"])
    with pytest.raises(ValueError, match=message):
        resize_positions(pretrained.variables, pretrained.config, **sizes)


def test_rotary_positions_stay_in_the_range_of_training(models, make_pretrained):
    """As timm's ref_feat_shape: the corner of a larger grid is turned as that of the smaller one."""
    config = dataclasses.replace(
        models["perception"], vision=dataclasses.replace(models["perception"].vision, rotary_grid=0)
    )
    _, larger = resize_positions(make_pretrained(config).variables, config, image_size=25)
    assert larger.vision.rotary_grid == config.vision.grid_size == 3
    angles = rotary_angles(larger.vision.grid_size, 8, larger.vision.rotary_grid)
    np.testing.assert_allclose(angles[-1], rotary_angles(3, 8)[-1], rtol=1e-12)


def test_the_position_of_a_class_token_of_text_stays_behind_the_others(goldens):
    pretrained = load_pretrained(goldens / "openclip_coca")
    longer = load_pretrained(goldens / "openclip_coca", context_length=20)
    before, after = (model.variables["text"]["positional_embedding"] for model in (pretrained, longer))
    assert (len(before), len(after)) == (13, 21)
    np.testing.assert_array_equal(before[-1], after[-1])
