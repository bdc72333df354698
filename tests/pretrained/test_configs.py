"""Configs of open_clip and transformers to ours and back, and what is refused because it would compute otherwise."""

import copy
import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from clip_jax.models import PUBLISHED, ResNetConfig
from clip_jax.pretrained import ImageTransform, load_pretrained, save_pretrained
from clip_jax.pretrained.hugging_face import config_from_hf, hf_json, hf_layout
from clip_jax.pretrained.open_clip import config_from_open_clip, open_clip_json
from clip_jax.pretrained.transform import hf_preprocessor_json

SQUASH = ImageTransform(resize_mode="squash")
SHORTEST = ImageTransform(resize_mode="shortest")
BILINEAR = ImageTransform(resize_mode="squash", interpolation="bilinear")


def replace(config, **changes):
    """Of a field, or with a double underscore of a section's."""
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        if section:
            name, value = section, dataclasses.replace(getattr(config, section), **{field: value})
        config = dataclasses.replace(config, **{name: value})
    return config


def read_back(config):
    """As configs of trained models are compared: initial values are no part of the files."""
    return dataclasses.replace(config, logit_scale_init=1 / 0.07)


def through_json(value):
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_models_come_back(name):
    config = PUBLISHED[name]
    formats = set()
    for transform in (SHORTEST, SQUASH):
        formats.add("open_clip")
        assert config_from_open_clip(through_json(open_clip_json(config, transform))) == (read_back(config), transform)
        if name.startswith("RN"):
            with pytest.raises(ValueError, match="no model for the paper's ResNets"):
                hf_json(config)
        else:
            formats.add("huggingface")
            theirs = through_json(hf_json(config)), through_json(hf_preprocessor_json(config, transform))
            assert config_from_hf(*theirs) == (read_back(config), transform)
    assert formats


@pytest.mark.parametrize("model", ["vit_with_bias", "mean", "resnet"])
def test_small_models_through_open_clip(models, model):
    config = replace(models[model], text__eot_token=5, text__causal=False, image_mean=(0.1, 0.2, 0.3))
    assert config_from_open_clip(through_json(open_clip_json(config, SQUASH))) == (config, SQUASH)


@pytest.mark.parametrize("model", ["vit", "siglip"])
def test_small_models_through_transformers(models, model):
    config = replace(models[model], layer_norm_eps=1e-4, activation="gelu", image_std=(0.1, 0.2, 0.3))
    theirs = through_json(hf_json(config)), through_json(hf_preprocessor_json(config, SQUASH))
    assert config_from_hf(*theirs) == (config, SQUASH)


@pytest.mark.parametrize("width", [111, 1407])
def test_mlp_ratios_survive_truncation(models, width):
    for mlp_dim in [*range(1, 400, 7), 4304, 6144, 8192]:
        config = replace(models["vit"], vision__width=width, vision__mlp_dim=mlp_dim)
        assert config_from_open_clip(through_json(open_clip_json(config, SHORTEST)))[0] == config


def test_known_values_of_a_released_config():
    """open_clip's ViT-g-14.json."""
    json = {
        "embed_dim": 1024,
        "vision_cfg": {"image_size": 224, "layers": 40, "width": 1408, "head_width": 88, "mlp_ratio": 4.3637,
                       "patch_size": 14},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24},
    }  # fmt: skip
    assert config_from_open_clip(json) == (PUBLISHED["ViT-g/14"], SHORTEST)


@pytest.mark.parametrize("golden", ["openclip_vit", "openclip_vit_gelu", "openclip_vit_gap", "openclip_resnet"])
def test_goldens_of_open_clip(goldens, golden):
    json = through_json(load_json(goldens / golden / "config.json"))
    config, transform = config_from_open_clip(json)
    assert transform == SHORTEST
    assert config.activation == ("gelu" if "gelu" in golden else "quick_gelu")
    heads = {"openclip_vit": 2, "openclip_vit_gelu": 4, "openclip_vit_gap": 2, "openclip_resnet": 4}
    assert config.vision.num_heads == heads[golden]
    again = open_clip_json(config, transform)["model_cfg"]
    for section in ("vision_cfg", "text_cfg"):
        assert {key: again[section][key] for key in json[section]} == json[section]
    assert (again["embed_dim"], again["quick_gelu"]) == (json["embed_dim"], json["quick_gelu"])


@pytest.mark.parametrize("golden", ["hf_clip", "hf_siglip"])
def test_goldens_of_transformers(goldens, golden):
    theirs = load_json(goldens / golden / "config.json")
    config, transform = config_from_hf(theirs, {})
    assert transform == (SHORTEST if golden == "hf_clip" else SQUASH)
    assert config.image_mean == ((0.48145466, 0.4578275, 0.40821073) if golden == "hf_clip" else (0.5, 0.5, 0.5))
    again = hf_json(config)
    assert again["model_type"] == theirs["model_type"]
    assert hf_layout(config) == golden
    computed = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"}
    computed |= {"layer_norm_eps", "image_size", "patch_size", "vocab_size", "max_position_embeddings"}
    for section in ("vision_config", "text_config"):
        for key in computed & theirs[section].keys():
            assert again[section][key] == theirs[section][key], key


def load_json(file):
    return json.loads(file.read_text())


def write_model(folder, pretrained, format, edit=None):
    """A folder of that model whose config is edited afterwards; returns the config's path."""
    save_pretrained(pretrained, folder, format)
    file = folder / ("open_clip_config.json" if format == "open_clip" else "config.json")
    config = load_json(file)
    if edit is not None:
        edit(config)
    file.write_text(json.dumps(config))
    return file


def put(section, key, value):
    def edit(config):
        for name in section:
            config = config[name]
        config[key] = value

    return edit


VISION, TEXT = ("model_cfg", "vision_cfg"), ("model_cfg", "text_cfg")


@pytest.mark.parametrize(
    ("model", "format", "edit", "difference"),
    [
        ("vit", "open_clip", put(("model_cfg",), "embed_dim", 8), "embed_dim is 8 in {} and 7"),
        ("vit", "open_clip", put(VISION, "image_size", 20), "vision.image_size is 20 in {} and 15"),
        ("vit", "open_clip", put(VISION, "patch_size", 3), "vision.patch_size is 3 in {} and 5"),
        ("vit", "open_clip", put(VISION, "layers", 3), "vision.depth is 3 in {} and 2"),
        ("vit", "open_clip", put(VISION, "mlp_ratio", 4.0), "vision.mlp_dim is 60 in {} and 19"),
        ("vit", "open_clip", put(VISION, "width", 30), "vision.width is 30 in {} and 15"),
        ("vit", "open_clip", put(TEXT, "width", 24), "text.width is 24 in {} and 22"),
        ("vit", "open_clip", put(TEXT, "layers", 4), "text.depth is 4 in {} and 3"),
        ("vit", "open_clip", put(TEXT, "context_length", 77), "text.context_length is 77 in {} and 13"),
        ("vit", "open_clip", put(TEXT, "vocab_size", 49408), "text.vocab_size is 49408 in {} and 31"),
        ("vit", "open_clip", put(TEXT, "mlp_ratio", 4.0), "text.mlp_dim is 88 in {} and 29"),
        ("resnet", "open_clip", put(VISION, "layers", [2, 1, 3, 2]),
         "vision.stages is (2, 1, 3, 2) in {} and (2, 1, 3, 1)"),
        ("resnet", "open_clip", put(VISION, "image_size", 96), "vision.image_size is 96 in {} and 64"),
        ("resnet", "open_clip", put(VISION, "width", 4), "vision.stem_width is 4 in {} and 2"),
        ("vit", "huggingface", put((), "projection_dim", 8), "embed_dim is 8 in {} and 7"),
        ("vit", "huggingface", put(("vision_config",), "hidden_size", 30), "vision.width is 30 in {} and 15"),
        ("siglip", "huggingface", put(("text_config",), "max_position_embeddings", 64),
         "text.context_length is 64 in {} and 13"),
        ("siglip", "huggingface", put(("vision_config",), "num_hidden_layers", 1), "vision.depth is 1 in {} and 2"),
    ],
)  # fmt: skip
def test_a_config_of_other_sizes_is_refused(models, make_pretrained, tmp_path, model, format, edit, difference):
    file = write_model(tmp_path / "model", make_pretrained(models[model]), format, edit)
    with pytest.raises(ValueError, match="config and weights do not belong together: ") as error:
        load_pretrained(tmp_path / "model")
    assert difference.format(file) + " in the weights" in str(error.value)


def test_a_config_of_the_other_family_is_refused(models, make_pretrained, tmp_path):
    clip = write_model(tmp_path / "clip", make_pretrained(models["vit"]), "huggingface")
    siglip = write_model(tmp_path / "siglip", make_pretrained(models["siglip"]), "huggingface")
    contents = clip.read_text(), siglip.read_text()
    siglip.write_text(contents[0])
    clip.write_text(contents[1])
    for file, kind, layout in ((siglip, "clip", "hf_siglip"), (clip, "siglip", "hf_clip")):
        with pytest.raises(ValueError, match=f"config.json has model_type='{kind}', but the weights are {layout}'s"):
            load_pretrained(file.parent)
    clip.write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"model_type='bert'; clip_jax reads 'clip', 'siglip', 'metaclip_2'"):
        load_pretrained(clip.parent)


@pytest.mark.parametrize("format", ["open_clip", "huggingface"])
def test_another_activation_than_the_configs_is_refused(models, make_pretrained, tmp_path, format):
    file = write_model(tmp_path / "model", make_pretrained(models["vit"]), format)
    assert load_pretrained(tmp_path / "model", activation="quick_gelu").config.activation == "quick_gelu"
    with pytest.raises(ValueError, match="was asked for") as error:
        load_pretrained(tmp_path / "model", activation="gelu")
    assert str(error.value).endswith(f": activation='gelu' was asked for, but {file} has 'quick_gelu'")


def test_weights_without_a_config_need_an_activation(goldens, tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes((goldens / "openclip_vit" / "model.safetensors").read_bytes())
    for activation in (None, "relu"):
        with pytest.raises(ValueError, match="there is no config beside the weights") as error:
            load_pretrained(file, activation=activation)
        assert str(error.value) == (
            f"{file}: there is no config beside the weights, and shapes do not tell the activation, which is "
            f"{activation!r}: say activation='quick_gelu' for OpenAI's own weights or 'gelu' for most of open_clip's"
        )
    expected = load_pretrained(goldens / "openclip_vit").config
    inferred = load_pretrained(file, activation="gelu").config
    # Heads of 64 channels are all that can be guessed; the golden's are narrower.
    assert inferred == replace(expected, activation="gelu", vision__num_heads=1, text__num_heads=1)


def test_a_resnet_without_a_config(goldens, tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes((goldens / "openclip_resnet" / "model.safetensors").read_bytes())
    expected = load_pretrained(goldens / "openclip_resnet").config
    assert isinstance(expected.vision, ResNetConfig)
    assert load_pretrained(file, activation="quick_gelu").config == replace(expected, text__num_heads=1)


@pytest.mark.parametrize("name", ["ViT-B/32", "ViT-L/14@336px", "ViT-H/14", "ViT-g/14", "ViT-bigG/14"])
def test_published_architectures_are_told_by_their_shapes(name):
    """Heads of the larger ones are not of 64 channels; those of a fine-tuned resolution are the same."""
    from clip_jax.pretrained.sizes import config_from_sizes

    config = PUBLISHED[name]
    for image_size in (config.vision.image_size, 378 if config.vision.patch_size == 14 else 384):
        tower = dataclasses.asdict(dataclasses.replace(config.vision, image_size=image_size))
        sizes = {"embed_dim": config.embed_dim}
        sizes |= {f"vision.{key}": tower[key] for key in ("width", "depth", "mlp_dim", "patch_size", "image_size")}
        text = dataclasses.asdict(config.text)
        sizes |= {f"text.{key}": text[key] for key in ("width", "depth", "mlp_dim", "context_length", "vocab_size")}
        expected = replace(config, vision__image_size=image_size)
        assert config_from_sizes(sizes, "open_clip", config.activation) == expected


def test_shapes_that_fit_no_model(goldens, tmp_path):
    state_dict = load_file(goldens / "openclip_vit" / "model.safetensors")
    file = tmp_path / "weights.safetensors"

    def refused(changes, message):
        save_file({key: array for key, array in (state_dict | changes).items() if array is not None}, file)
        with pytest.raises(ValueError, match=message):
            load_pretrained(file, activation="gelu")

    refused({"visual.positional_embedding": np.zeros((16, 64), np.float32)}, "its 15 image positions are no square")
    refused(
        {"text_projection": None, "visual.conv1.weight": np.zeros(3, np.float32)},
        "the keys that tell embed_dim, vision.patch_size, vision.image_size are missing or misshapen",
    )
    refused({"token_embedding.weight": None}, "the state dict has none of the known layouts")
    siglip = load_file(goldens / "hf_siglip" / "model.safetensors")
    save_file(siglip, file)
    with pytest.raises(
        ValueError, match="no config beside the weights, and shapes do not tell all of a model like SigLIP"
    ):
        load_pretrained(file, activation="gelu_tanh")


OPEN_CLIP = {"embed_dim": 7, "vision_cfg": {"layers": 2}, "text_cfg": {}}


def test_unsupported_parts_of_open_clip_are_listed():
    json = copy.deepcopy(OPEN_CLIP) | {"nonscalar_logit_scale": True, "quick_gelu": False, "init_logit_scale": 1.0}
    json["vision_cfg"] |= {"no_ln_pre": True, "pool_type": "last", "ls_init_value": None, "patch_dropout": 0.0}
    json["text_cfg"] |= {"hf_pooler_type": "x", "pool_type": "mean", "pad_id": 0, "act_kwargs": {"approximate": "no"}}
    with pytest.raises(ValueError, match="parts") as error:
        config_from_open_clip(json)
    assert str(error.value) == (
        "this model has parts that clip_jax does not have: nonscalar_logit_scale=True, text_cfg.hf_pooler_type='x', "
        "vision_cfg.pool_type='last', text_cfg.pool_type='mean', vision_cfg.no_ln_pre=True, final_ln_after_pool=None, "
        "pool_type='last' together, text_cfg.act_kwargs={'approximate': 'no'}"
    )


def test_towers_of_different_eps_are_refused_and_of_different_activations_read():
    json = copy.deepcopy(OPEN_CLIP)
    json["text_cfg"]["norm_kwargs"] = {"eps": 1e-6}
    with pytest.raises(ValueError, match=r"the two towers differ in layer_norm eps, \[1e-06, 1e-05\]"):
        config_from_open_clip(json)
    json["vision_cfg"]["norm_kwargs"] = {"eps": 1e-6}
    assert config_from_open_clip(json)[0].layer_norm_eps == 1e-6
    hf = {"model_type": "clip", "vision_config": {"hidden_act": "gelu"}}
    config = config_from_hf(hf, {})[0]
    assert [config.activation_of(tower) for tower in (config.vision, config.text)] == ["gelu", "quick_gelu"]
    hf = {"model_type": "siglip", "text_config": {"layer_norm_eps": 1e-5}}
    with pytest.raises(ValueError, match=r"the two towers differ in layer_norm_eps, \[1e-06, 1e-05\]"):
        config_from_hf(hf, {})
    hf = {"model_type": "clip", "vision_config": {"hidden_act": "relu"}, "text_config": {"hidden_act": "relu"}}
    with pytest.raises(ValueError, match="hidden_act='relu'; clip_jax has quick_gelu, gelu, gelu_pytorch_tanh"):
        config_from_hf(hf, {})


def test_what_transformers_leaves_out_is_at_its_defaults():
    assert config_from_hf({"model_type": "clip"}, {}) == (PUBLISHED["ViT-B/32"], SHORTEST)
    siglip = {"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}}
    assert config_from_hf(siglip, {}) == (read_back(PUBLISHED["SigLIP-B/16"]), SQUASH)
    nulls = {"model_type": "clip", "text_config_dict": None, "vision_config_dict": {"patch_size": 16}}
    assert config_from_hf(nulls, {}) == (PUBLISHED["ViT-B/16"], SHORTEST)


def test_the_end_token_of_older_configs():
    """They say 2, and then the highest id is meant."""
    old = {"model_type": "clip", "text_config": {"eos_token_id": 2, "vocab_size": 101}}
    assert config_from_hf(old, {})[0].text.eot_token == 100
    new = {"model_type": "clip", "text_config": {"eos_token_id": 3, "vocab_size": 101}}
    assert config_from_hf(new, {})[0].text.eot_token == 3


def test_an_end_token_that_clip_model_would_take_for_another(models):
    """The model is written as MetaCLIP 2's, which reads the first id 2."""
    model = replace(models["vit"], text__eot_token=2)
    json = hf_json(model)
    assert json["model_type"] == "metaclip_2"
    assert config_from_hf(json, {})[0].text == model.text
    json = hf_json(replace(models["vit"], text=dataclasses.replace(models["vit"].text, vocab_size=3, eot_token=2)))
    assert json["text_config"]["eos_token_id"] == 2


def test_the_end_token_of_open_clip():
    json = copy.deepcopy(OPEN_CLIP)
    assert config_from_open_clip(json)[0].text.eot_token == 49407
    json["text_cfg"]["pool_type"] = "eos"
    assert config_from_open_clip(json)[0].text.eot_token == 2
    json["text_cfg"]["eos_id"] = 5
    assert config_from_open_clip(json)[0].text.eot_token == 5


def test_preprocess_cfg_of_open_clip():
    images = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bicubic", "resize_mode": "squash"}
    config, transform = config_from_open_clip({"model_cfg": OPEN_CLIP, "preprocess_cfg": images})
    assert (config.image_mean, config.image_std, transform) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), SQUASH)
    for name, value in (("resize_mode", "longest"), ("interpolation", "nearest"), ("mode", "L"), ("size", 5), ("a", 1)):
        with pytest.raises(ValueError, match=f"^preprocess_cfg has {name}={value!r}; clip_jax resizes by"):
            config_from_open_clip({"model_cfg": OPEN_CLIP, "preprocess_cfg": images | {name: value}})
    images |= {"interpolation": "bilinear", "fill_color": 0, "mode": "RGB", "size": [224, 224]}
    assert config_from_open_clip({"model_cfg": OPEN_CLIP, "preprocess_cfg": images})[1] == BILINEAR


CLIP, SIGLIP = {"model_type": "clip"}, {"model_type": "siglip"}
SQUARE = {"height": 224, "width": 224}


@pytest.mark.parametrize(
    ("json", "images", "transform"),
    [
        (CLIP, {"size": 224, "crop_size": 224, "do_center_crop": True, "resample": 3}, SHORTEST),
        (CLIP, {"size": {"shortest_edge": 224}, "crop_size": SQUARE}, SHORTEST),
        (CLIP, {"size": SQUARE, "do_center_crop": False}, SQUASH),
        (CLIP, {"size": SQUARE, "crop_size": SQUARE}, SQUASH),
        (CLIP, {"size": {"shortest_edge": 256}, "crop_size": 224}, ImageTransform(resize_size=256)),
        (CLIP, {"size": 256, "crop_size": SQUARE, "do_center_crop": True}, ImageTransform(resize_size=256)),
        (
            CLIP,
            {"size": {"height": 240, "width": 240}, "crop_size": SQUARE},
            ImageTransform(resize_mode="squash", resize_size=240),
        ),
        (SIGLIP, {"size": SQUARE, "resample": 2, "do_convert_rgb": None, "processor_class": "a"}, BILINEAR),
        (SIGLIP, {"size": SQUARE, "rescale_factor": 0.00392156862745098}, SQUASH),
        (SIGLIP, {"size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": SQUARE}, SHORTEST),
    ],
)
def test_preprocessor_configs(json, images, transform):
    images = images | {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    config, read = config_from_hf(json, images)
    assert (config.image_mean, config.image_std, read) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), transform)


@pytest.mark.parametrize(
    ("json", "images", "listed"),
    [
        (CLIP, {"resample": 0, "do_normalize": None}, "has do_normalize=None, resample=0;"),
        (CLIP, {"size": 192, "crop_size": 224}, "has size=192;"),
        (CLIP, {"size": 336, "crop_size": 336}, "has crop_size=336;"),
        (CLIP, {"do_resize": False, "do_rescale": False}, "has do_resize=False, do_rescale=False;"),
        (CLIP, {"rescale_factor": 1 / 127.5, "do_pad": True}, r"has do_pad=True, rescale_factor=0.00784\d*;"),
        (CLIP, {"a_new_step": True}, "has a_new_step=True;"),
        (CLIP, {"size": {"longest_edge": 224}}, r"has size=\{'longest_edge': 224\};"),
        (CLIP, {"crop_size": {"height": 224, "width": 200}}, r"has crop_size=\{'height': 224, 'width': 200\};"),
        (CLIP, {"size": {"shortest_edge": 224}, "do_center_crop": False}, r"has size=\{'shortest_edge': 224\};"),
        (SIGLIP, {"size": {"height": 384, "width": 384}}, r"has size=\{'height': 384, 'width': 384\};"),
    ],
)
def test_preprocessor_configs_that_do_otherwise(json, images, listed):
    with pytest.raises(ValueError, match=f"preprocessor_config.json {listed} clip_jax resizes by one of"):
        config_from_hf(json, images)


def test_squashed_pictures_are_read_from_both_formats(models, make_pretrained, tmp_path):
    pretrained = make_pretrained(models["vit"], transform=SQUASH)
    for format in ("open_clip", "huggingface"):
        save_pretrained(pretrained, tmp_path / format, format)
        assert load_pretrained(tmp_path / format).transform == SQUASH


@pytest.mark.parametrize("format", ["open_clip", "huggingface"])
@pytest.mark.parametrize(
    "content",
    ['{"model_type": "clip", "vision_config": 3}', "{}", '{"model_cfg": {"embed_dim": 7}}', "[]", "{", "\xff"],
)
def test_configs_that_are_none(models, make_pretrained, tmp_path, format, content):
    file = write_model(tmp_path / "model", make_pretrained(models["vit"]), format)
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config\.json"):
        load_pretrained(tmp_path / "model")
