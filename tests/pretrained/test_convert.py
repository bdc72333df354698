"""State dicts to variables and back, bit by bit."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from clip_jax.models import PUBLISHED
from clip_jax.models.variables import init_variables
from clip_jax.pretrained import load_pretrained, save_pretrained
from clip_jax.pretrained.convert import to_state_dict, to_variables
from clip_jax.pretrained.layouts import make_layout
from configs.model_sizes import FAMILIES

LAYOUTS = [
    ("vit", "open_clip"),
    ("vit", "hf_clip"),
    ("vit_with_bias", "open_clip"),
    ("mean", "open_clip"),
    ("resnet", "open_clip"),
    ("siglip", "hf_siglip"),
    ("siglip", "open_clip_custom"),
    ("clipa", "open_clip"),
    ("perception", "open_clip_custom"),
]
GOLDENS = {
    "openclip_vit": "open_clip",
    "openclip_vit_gelu": "open_clip",
    "openclip_vit_gap": "open_clip",
    "openclip_resnet": "open_clip",
    "hf_clip": "huggingface",
    "hf_siglip": "huggingface",
    "hf5_clip_processor": "huggingface",
    "hf5_siglip_processor": "huggingface",
    "hf_siglip2": "huggingface",
    "hf_metaclip2": "huggingface",
    "openclip_metaclip2": "open_clip",
    "openclip_clipa": "open_clip",
    "openclip_siglip_timm": "open_clip",
    "openclip_siglip2_timm": "open_clip",
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
    theirs = load_file(next((goldens / golden).glob("*.safetensors")))
    assert_bit_equal(load_file(tmp_path / "out" / WEIGHTS[GOLDENS[golden]]), theirs)
    for file in (tmp_path / "out").glob("*.json") if pretrained.origin is not None else ():
        assert file.read_bytes() == (goldens / golden / file.name).read_bytes()
    save_pretrained(dataclasses.replace(pretrained, origin=None), tmp_path / "own", GOLDENS[golden])  # in our words
    assert_bit_equal(load_file(tmp_path / "own" / WEIGHTS[GOLDENS[golden]]), theirs)
    for folder in ("out", "own"):
        again = load_pretrained(tmp_path / folder)
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
    assert_bit_equal(load_file(tmp_path / "back" / WEIGHTS[own]), load_file(goldens / golden / "model.safetensors"))


@pytest.mark.parametrize(
    ("model", "format", "message"),
    [
        (
            "resnet",
            "huggingface",
            "transformers has no model for the paper's ResNets: write them in the open_clip format",
        ),
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
    assert (
        len(state_dict)
        == {
            "vit": {"open_clip": 8 + 5 * 12 + 6, "hf_clip": 8 + 5 * 16 + 6}.get(layout),
            "vit_with_bias": 8 + 5 * 12 + 7,
            "mean": 8 + 5 * 12 + 6,
            # 6 a convolution with its norm; stages of 2, 1, 3 and 1 blocks of 3, and 4 shortcuts; pool; text.
            "resnet": 6 * (3 + 7 * 3 + 4) + 9 + 3 * 12 + 6,
            "siglip": {"hf_siglip": 5 + 2 * 16 + 11 + 3 * 16 + 4 + 4}.get(layout, 5 + 2 * 12 + 13 + 3 * 12 + 4 + 4),
            "clipa": 6 + 5 * 12 + 6,
            "perception": 8 + 5 * 12 + 15 + 5,
        }[model]
    )
    assert_same_variables(to_variables(state_dict, layout, config), variables)


def test_every_row_of_a_stack_is_its_own_block(models, make_pretrained):
    """The number in a key is the row, and stages of a ResNet count on from their first block."""
    pretrained = make_pretrained(models["resnet"])
    state_dict = to_state_dict(pretrained.variables, "open_clip", pretrained.config)
    stage = pretrained.variables["visual"]["stage_3"]
    np.testing.assert_array_equal(
        state_dict["visual.layer3.0.bn2.running_var"], stage["first"]["conv_2"]["norm"]["var"]
    )
    for block in (1, 2):
        expected = stage["blocks"]["conv_2"]["norm"]["var"][block - 1]
        np.testing.assert_array_equal(state_dict[f"visual.layer3.{block}.bn2.running_var"], expected)
    bias = pretrained.variables["text"]["transformer"]["blocks"]["mlp"]["fc_in"]["bias"]
    for block in (0, 1, 2):
        np.testing.assert_array_equal(state_dict[f"transformer.resblocks.{block}.mlp.c_fc.bias"], bias[block])


def dummies(shapes):
    """Arrays of any size in no memory."""
    return {name: np.broadcast_to(np.zeros((), dtype), shape) for name, (shape, dtype) in shapes.items()}


@pytest.mark.parametrize("name", list(FAMILIES["openai"]))
def test_released_state_dicts_have_these_keys_and_shapes(goldens, name):
    """No key more and no less, both ways, without any numbers."""
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
            theirs = entry.to_theirs(*dummies(dict(enumerate(places))).values())
            assert not out.keys() & set(keys)
            out |= {key: array.shape for key, array in zip(keys, theirs)}
            turned = entry.to_ours(*dummies({key: (released[key], np.float32) for key in keys}).values())
            assert [array.shape for array in turned] == [shape for shape, _ in places]
            assert number is None or ours[paths[0]][0][0] == len(entry.layers) > index
    assert out == released


def vit(models, make_pretrained):
    config = models["vit"]
    return config, to_state_dict(make_pretrained(config).variables, "open_clip", config)


def test_all_that_is_wrong_is_listed_together(models, make_pretrained):
    config, state_dict = vit(models, make_pretrained)
    del state_dict["ln_final.bias"], state_dict["visual.transformer.resblocks.1.ln_2.weight"]
    state_dict["visual.extra"] = state_dict["module.logit_scale"] = np.zeros(3, np.float32)
    state_dict["text_projection"] = np.zeros((22, 8), np.float32)
    state_dict["visual.conv1.weight"] = np.zeros((15, 3, 5, 4), np.float32)
    state_dict["token_embedding.weight"] = np.zeros((31, 22), np.int8)
    with pytest.raises(ValueError) as error:  # noqa: PT011, compared as a whole
        to_variables(state_dict, "open_clip", config)
    assert str(error.value) == (
        "the state dict does not fit the model: missing ['visual.transformer.resblocks.1.ln_2.weight', "
        "'ln_final.bias'], left over ['module.logit_scale', 'visual.extra'], misshapen ["
        "'visual.conv1.weight [15, 3, 5, 4] does not convert to [75, 15]', "
        "'token_embedding.weight is int8, not floating-point numbers', "
        "'text_projection [22, 8] does not convert to [22, 7]']"
    )


def test_the_same_list_comes_from_a_folder(models, make_pretrained, tmp_path):
    """Of keys that tell the sizes, too: token_embedding.weight, the first block, text_projection."""
    save_pretrained(make_pretrained(models["vit"]), tmp_path / "model", "open_clip")
    file = tmp_path / "model" / WEIGHTS["open_clip"]
    state_dict = load_file(file)
    for key in ("text_projection", "visual.positional_embedding", "transformer.resblocks.0.mlp.c_fc.weight"):
        state_dict[f"{key}_"] = state_dict.pop(key)
    save_file(state_dict, file)
    with pytest.raises(ValueError, match="does not fit") as error:
        load_pretrained(tmp_path / "model")
    assert str(error.value) == (
        f"{file}: the state dict does not fit the model: missing ['visual.positional_embedding', "
        "'transformer.resblocks.0.mlp.c_fc.weight', 'text_projection'], left over ['text_projection_', "
        "'transformer.resblocks.0.mlp.c_fc.weight_', 'visual.positional_embedding_'], misshapen []"
    )


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_weights_become_float32_exactly(models, make_pretrained, tmp_path, dtype):
    config, state_dict = vit(models, make_pretrained)
    narrow = {key: array.astype(dtype) for key, array in state_dict.items()}
    save_pretrained(make_pretrained(config), tmp_path / "model", "open_clip")
    save_file(narrow, tmp_path / "model" / WEIGHTS["open_clip"])
    variables = load_pretrained(tmp_path / "model").variables
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    wide = {key: array.astype(np.float32) for key, array in narrow.items()}
    assert_same_variables(variables, to_variables(wide, "open_clip", config))


def test_bfloat16_stays_where_it_is_asked_for(models, make_pretrained, tmp_path):
    config, state_dict = vit(models, make_pretrained)
    narrow = {key: array.astype(ml_dtypes.bfloat16) for key, array in state_dict.items()}
    save_pretrained(make_pretrained(config), tmp_path / "model", "open_clip")
    save_file(narrow, tmp_path / "model" / WEIGHTS["open_clip"])
    save_pretrained(load_pretrained(tmp_path / "model", param_dtype="bfloat16"), tmp_path / "out", "huggingface")
    again = load_pretrained(tmp_path / "out", param_dtype="bfloat16")
    assert_bit_equal(to_state_dict(again.variables, "open_clip", again.config), narrow)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


BUFFERS = {  # of OpenAI's files, and of older ones of transformers
    "open_clip": {"input_resolution": np.array(15), "context_length": np.array(13), "vocab_size": np.array(31)},
    "huggingface": {
        "text_model.embeddings.position_ids": np.arange(13)[None],
        "vision_model.embeddings.position_ids": np.arange(10)[None],
    },
}


@pytest.mark.parametrize("format", list(BUFFERS))
def test_buffers_are_checked_and_dropped(models, make_pretrained, tmp_path, format):
    pretrained = make_pretrained(models["vit"])
    save_pretrained(pretrained, tmp_path / "model", format)
    file = tmp_path / "model" / WEIGHTS[format]
    state_dict = load_file(file)
    save_file(state_dict | BUFFERS[format], file)
    assert_same_variables(load_pretrained(tmp_path / "model").variables, pretrained.variables)
    for key, array in BUFFERS[format].items():
        for wrong in (np.asarray(array + 1), array.ravel()[:0]):
            save_file(state_dict | {key: wrong}, file)
            with pytest.raises(ValueError, match=rf": {key} is .* which does not fit the config$"):
                load_pretrained(tmp_path / "model")


def test_positions_of_siglip_have_no_class_token(models, make_pretrained, tmp_path):
    save_pretrained(make_pretrained(models["siglip"]), tmp_path / "model", "huggingface")
    file = tmp_path / "model" / "model.safetensors"
    state_dict = load_file(file)
    save_file(state_dict | {"vision_model.embeddings.position_ids": np.arange(9)[None]}, file)
    load_pretrained(tmp_path / "model")
