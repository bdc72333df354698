"""Weights of other implementations give their features and logits: see tests/goldens."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clip_jax.losses import normalize
from clip_jax.models.variables import model_graph
from clip_jax.pretrained import load_pretrained

GOLDENS = ["openclip_vit", "openclip_vit_gelu", "openclip_vit_gap", "openclip_resnet", "hf_clip", "hf_siglip"]
GOLDENS += ["hf5_clip_processor", "hf5_siglip_processor", "hf_siglip2", "hf_metaclip2", "openclip_metaclip2"]
GOLDENS += ["openclip_clipa", "openclip_siglip_timm", "openclip_siglip2_timm", "openclip_pe", "openclip_coca"]


@pytest.fixture
def folder(goldens, golden, tmp_path):
    """A golden's folder; of one whose image tower timm knows by another name, with timm's arguments in the config."""
    if golden != "openclip_pe":
        return goldens / golden
    folder = shutil.copytree(goldens / golden, tmp_path / golden)
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    arguments = json.loads((folder / "golden.json").read_text())["timm_kwargs"]
    config["model_cfg"]["vision_cfg"]["timm_model_kwargs"] = arguments
    file.write_text(json.dumps(config))
    return folder


def run(folder, dtype):
    """Our outputs by the names that the references give theirs; those of transformers are normalised."""
    pretrained = load_pretrained(folder, param_dtype=dtype)
    graph = model_graph(dataclasses.replace(pretrained.config, compute_dtype=dtype))
    inputs = np.load(folder / "expected.npz")
    images = inputs["images_nchw"].transpose(0, 2, 3, 1).astype(dtype)

    @jax.jit
    def encode(variables, images, text):
        model = nnx.merge(graph, variables)
        image_features, text_features = model.encode_image(images), model.encode_text(text)
        zi, zt = normalize(image_features), normalize(text_features)
        logits = jnp.exp(variables["logit_scale"]) * jnp.matmul(zi, zt.T, precision="highest")
        return {
            "image_features": image_features,
            "text_features": text_features,
            "image_embeds_normalized": zi,
            "text_embeds_normalized": zt,
            "logits_per_image": logits + variables.get("logit_bias", 0),
        }

    return encode(pretrained.variables, images, inputs["tokens"].astype(np.int32))


def assert_close(outputs, expected, atol):
    compared = set(expected) & set(outputs)
    assert len(compared) in (3, 5)
    for name in compared:
        assert outputs[name].shape == expected[name].shape
        np.testing.assert_allclose(outputs[name], expected[name], rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("golden", GOLDENS)
def test_float32(folder):
    # Measured: 4.1e-6 at most, of logits up to 5.1; the references themselves are as far from float64.
    outputs = run(folder, "float32")
    assert all(output.dtype == jnp.float32 for output in outputs.values())
    assert_close(outputs, np.load(folder / "expected.npz"), atol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("golden", GOLDENS)
def test_float64(folder, golden):
    # Measured: 1.1e-14 at most, of logits up to 4.6.
    exact = folder / "expected64.npz"
    outputs = run(folder, "float64")
    assert all(output.dtype == jnp.float64 for output in outputs.values())
    expected = dict(np.load(exact if exact.is_file() else folder / "expected.npz"))
    expected |= {name.removesuffix("_f64"): array for name, array in expected.items() if name.endswith("_f64")}
    # timm keeps its sines in float32; with its table in place of ours the difference is 8e-16.
    assert_close(outputs, expected, atol=1e-8 if golden == "openclip_pe" else 1e-13)
