"""State dicts to variables and back, bit by bit."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from clip_jax.models import PUBLISHED
from clip_jax.pretrained import load_pretrained, save_pretrained
from clip_jax.pretrained.convert import to_state_dict, to_variables
from clip_jax.pretrained.layouts import make_layout
from clip_jax.train_state import init_variables

LAYOUTS = [
    ("vit", "open_clip"),
    ("vit", "hf_clip"),
    ("vit_with_bias", "open_clip"),
    ("mean", "open_clip"),
    ("resnet", "open_clip"),
    ("siglip", "hf_siglip"),
]
GOLDENS = {
    "openclip_vit": "open_clip",
    "openclip_vit_gelu": "open_clip",
    "openclip_vit_gap": "open_clip",
    "openclip_resnet": "open_clip",
    "hf_clip": "huggingface",
    "hf_siglip": "huggingface",
}
WEIGHTS = {"open_clip": "open_clip_model.safetensors", "huggingface": "model.safetensors"}


def assert_bit_equal(arrays, expected):
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape), name
        assert arrays[name].tobytes() == array.tobytes(), name


def assert_same_variables(variables, expected):
    assert_bit_equal(flatten_dict(variables, sep="/"), flatten_dict(expected, sep="/"))


@pytest.mark.parametrize("golden", GOLDENS)
def test_goldens_leave_as_they_came(goldens, golden, tmp_path):
    pretrained = load_pretrained(goldens / golden)
    save_pretrained(pretrained, tmp_path / "out", GOLDENS[golden])
    theirs = load_file(goldens / golden / "model.safetensors")
    assert_bit_equal(load_file(tmp_path / "out" / WEIGHTS[GOLDENS[golden]]), theirs)
    again = load_pretrained(tmp_path / "out")
    assert again.config == pretrained.config
    assert again.transform == pretrained.transform
    assert_same_variables(again.variables, pretrained.variables)


@pytest.mark.parametrize("golden", ["openclip_vit", "openclip_vit_gelu", "hf_clip"])
def test_a_vit_comes_back_through_the_other_format(goldens, golden, tmp_path):
    own = GOLDENS[golden]
    pretrained = load_pretrained(goldens / golden)
    save_pretrained(pretrained, tmp_path / "other", next(name for name in WEIGHTS if name != own))
    other = load_pretrained(tmp_path / "other")
    assert other.config == pretrained.config
    save_pretrained(other, tmp_path / "back", own)
    assert_bit_equal(
        load_file(tmp_path / "back" / WEIGHTS[own]), load_file(goldens / golden / "model.safetensors")
    )


@pytest.mark.parametrize(
    ("model", "format", "message"),
    [
        ("resnet", "huggingface", "transformers has no model for the paper's ResNets: write them in the open_clip format"),
        ("siglip", "open_clip", "open_clip's CLIP has no attention pooling"),
        ("mean", "huggingface", "nothing in between: write this model in the open_clip format"),
        ("vit_with_bias", "huggingface", "nothing in between: write this model in the open_clip format"),
        ("vit", "pytorch", "format='pytorch' is not one of open_clip, huggingface"),
    ],
)
def test_formats_without_such_a_model(models, make_pretrained, tmp_path, model, format, message):
    with pytest.raises(ValueError, match=message):
        save_pretrained(make_pretrained(models[model]), tmp_path / "out", format)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("model", "layout"), LAYOUTS)
def test_every_variable_comes_back(models, make_pretrained, model, layout):
    config = models[model]
    variables = make_pretrained(config).variables
    state_dict = to_state_dict(variables, layout, config)
    # 12 keys a block of open_clip and 16 of transformers, which keeps query, key and value apart.
    assert len(state_dict) == {
        "vit": {"open_clip": 8 + 5 * 12 + 6, "hf_clip": 8 + 5 * 16 + 6}.get(layout),
        "vit_with_bias": 8 + 5 * 12 + 7,
        "mean": 8 + 5 * 12 + 6,
        # 6 a convolution with its norm; stages of 2, 1, 3 and 1 blocks of 3, and 4 shortcuts; pool; text.
        "resnet": 6 * (3 + 7 * 3 + 4) + 9 + 3 * 12 + 6,
        "siglip": 5 + 2 * 16 + 11 + 3 * 16 + 4 + 4,
    }[model]
    assert_same_variables(to_variables(state_dict, layout, config), variables)


def test_every_row_of_a_stack_is_its_own_block(models, make_pretrained):
    """The number in a key is the row, and stages of a ResNet count on from their first block."""
    pretrained = make_pretrained(models["resnet"])
    state_dict = to_state_dict(pretrained.variables, "open_clip", pretrained.config)
    stage = pretrained.variables["visual"]["stage_3"]
    np.testing.assert_array_equal(state_dict["visual.layer3.0.bn2.running_var"], stage["first"]["conv_2"]["norm"]["var"])
    for block in (1, 2):
        expected = stage["blocks"]["conv_2"]["norm"]["var"][block - 1]
        np.testing.assert_array_equal(state_dict[f"visual.layer3.{block}.bn2.running_var"], expected)
    bias = pretrained.variables["text"]["transformer"]["blocks"]["mlp"]["fc_in"]["bias"]
    for block in (0, 1, 2):
        np.testing.assert_array_equal(state_dict[f"transformer.resblocks.{block}.mlp.c_fc.bias"], bias[block])


def dummies(shapes):
    """Arrays of any size in no memory."""
    return {name: np.broadcast_to(np.zeros((), dtype), shape) for name, (shape, dtype) in shapes.items()}


@pytest.mark.parametrize("name", ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"])
def test_released_resnets_have_these_keys_and_shapes(goldens, name):
    assert_released(goldens, name)


@pytest.mark.parametrize("name", ["ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"])
def test_released_transformers_have_these_keys_and_shapes(goldens, name):
    assert_released(goldens, name)


def assert_released(goldens, name):
    released = json.loads((goldens / "released_state_dict_shapes.json").read_text())[name]["shapes"]
    released = {key: tuple(shape) for key, shape in released.items()}
    config = PUBLISHED[name]
    ours = jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))
    ours = {path: (leaf.shape, leaf.dtype) for path, leaf in flatten_dict(ours).items()}
    out = {}
    for entry in make_layout("open_clip", config):
        paths = [tuple(path.split("/")) for path in entry.paths]
        for index, number in enumerate([None] if entry.layers is None else entry.layers):
            keys = [key if number is None else key.format(number) for key in entry.keys]
            places = [ours[path] if number is None else (ours[path][0][1:], ours[path][1]) for path in paths]
            theirs = entry.turn_back(*dummies(dict(enumerate(places))).values())
            assert not out.keys() & set(keys)
            out |= {key: array.shape for key, array in zip(keys, theirs)}
            turned = entry.turn(*dummies({key: (released[key], np.float32) for key in keys}).values())
            assert [array.shape for array in turned] == [shape for shape, _ in places]
            assert number is None or ours[paths[0]][0][0] == len(entry.layers) > index
    assert out == released
