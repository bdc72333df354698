"""The real transformers and open_clip load what we export and give our logits.

They live in an environment of their own: that of the interpreter in CLIP_JAX_PEERS_PYTHON, or one made here with pip,
which downloads PyTorch.
"""

import dataclasses
import json
import os
import subprocess
import sys
import venv

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clip_jax.losses import normalize
from clip_jax.models import normalize_images
from clip_jax.models.variables import model_graph
from clip_jax.pretrained import ImageTransform, save_pretrained
from input_pipeline.transforms import resize_and_center_crop, resize_squashed

pytestmark = pytest.mark.nightly

REQUIREMENTS = ["torch", "transformers", "safetensors", "ftfy", "regex", "pillow", "tqdm", "huggingface_hub"]
WITHOUT_DEPENDENCIES = ["open_clip_torch", "torchvision", "timm"]

# Reads jobs [{peer, folder, inputs, outputs}] and writes logits_per_image and the pixels of a picture for each.
SCRIPT = """
import json, sys
import numpy as np
import torch
if torch.version.cuda is None:  # torchvision has no build without CUDA, and its import asks for two operators
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from PIL import Image
from safetensors.torch import load_file

@torch.no_grad()
def run(peer, folder, inputs, outputs):
    arrays = np.load(inputs)
    images, tokens = torch.tensor(arrays["images_nchw"]), torch.tensor(arrays["tokens"])
    out = {}
    if peer == "open_clip":
        import open_clip
        model = open_clip.create_model(f"local-dir:{folder}").eval()
        model.load_state_dict(load_file(f"{folder}/open_clip_model.safetensors"), strict=True)
        image, text, scale = model(images, tokens)[:3]
        logits = scale * image @ text.T + (model.logit_bias if model.logit_bias is not None else 0)
        transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")[2]
        out["pixels"] = transform(Image.fromarray(arrays["picture"])).numpy()
    else:
        import transformers
        model, info = getattr(transformers, peer).from_pretrained(folder, output_loading_info=True)
        assert not any(info.values()), info
        model.load_state_dict(load_file(f"{folder}/model.safetensors"), strict=True)
        logits = model.eval()(input_ids=tokens, pixel_values=images).logits_per_image
        name = json.load(open(f"{folder}/preprocessor_config.json"))["image_processor_type"]
        # From version 5 on the one without a suffix resizes tensors, which rounds otherwise than Pillow.
        processor = getattr(transformers, name + "Pil", None) or getattr(transformers, name)
        picture = Image.fromarray(arrays["picture"])
        pixels = processor.from_pretrained(folder)(picture, return_tensors="np")["pixel_values"]
        out["pixels"] = np.asarray(pixels[0])
    np.savez(outputs, logits_per_image=logits.numpy(), **out)

for job in json.load(open(sys.argv[1])):
    run(**job)
"""


@pytest.fixture(scope="module")
def peers_python(tmp_path_factory):
    """An interpreter that has the peers."""
    given = os.environ.get("CLIP_JAX_PEERS_PYTHON")
    if given is not None:
        return given
    folder = tmp_path_factory.mktemp("peers")
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    for arguments in (REQUIREMENTS, ["--no-deps", *WITHOUT_DEPENDENCIES]):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *arguments], check=True)
    return python


EARLY_END = {"text": {"eot_token": 5}, "activation": "gelu", "layer_norm_eps": 1e-4}
SQUASH = ImageTransform(resize_mode="squash")
JOBS = {  # name -> (model, changes, peer, image transform)
    "CLIPModel": ("vit", {}, "CLIPModel", ImageTransform()),
    "CLIPModel, early end token": ("vit", EARLY_END, "CLIPModel", SQUASH),
    "SiglipModel": ("siglip", {}, "SiglipModel", SQUASH),
    "open_clip ViT": ("vit", {}, "open_clip", ImageTransform()),
    "open_clip ViT, early end token": ("vit", EARLY_END, "open_clip", SQUASH),
    "open_clip ViT, mean pooling": ("mean", {}, "open_clip", ImageTransform()),
    "open_clip ViT, logit bias": ("vit_with_bias", {}, "open_clip", ImageTransform()),
    "open_clip ResNet": ("resnet", {}, "open_clip", ImageTransform()),
}


def changed(config, changes):
    text = dataclasses.replace(config.text, **changes.get("text", {}))
    return dataclasses.replace(config, **{**changes, "text": text})


def some_inputs(config):
    """Pixels, token rows with their end at several places and higher ids before and behind it, and a picture."""
    rng = np.random.default_rng(1)
    N, size, text = 5, config.vision.image_size, config.text
    tokens = rng.integers(6, 30, size=(N, text.context_length))
    tokens[np.arange(N), [1, 3, 5, 7, 12]] = text.eot_token
    picture = np.kron(rng.integers(256, size=(14, 9, 3)), np.ones((11, 7, 1))).astype(np.uint8)  # 154 x 63 pixels
    return {
        "images_nchw": rng.normal(size=(N, 3, size, size)).astype(np.float32),
        "tokens": tokens,
        "picture": picture,
    }


def our_outputs(pretrained, inputs):
    """Of the model itself, not of what was exported and read back."""
    config, graph = pretrained.config, model_graph(pretrained.config)
    images = inputs["images_nchw"].transpose(0, 2, 3, 1)
    variables = pretrained.variables
    zi = normalize(jax.jit(lambda v, x: nnx.merge(graph, v).encode_image(x))(variables, images))
    zt = normalize(
        jax.jit(lambda v, x: nnx.merge(graph, v).encode_text(x))(variables, inputs["tokens"].astype(np.int32))
    )
    cosines = jnp.matmul(zi, zt.T, precision="highest")
    resize = resize_squashed if pretrained.transform == SQUASH else resize_and_center_crop
    square = resize(inputs["picture"], config.vision.image_size)
    return {
        "logits_per_image": np.asarray(jnp.exp(variables["logit_scale"]) * cosines + variables.get("logit_bias", 0)),
        "pixels": np.asarray(normalize_images(jnp.asarray(square), config)).transpose(2, 0, 1),
    }


@pytest.fixture(scope="module")
def results(models, make_pretrained, peers_python, tmp_path_factory):
    """For each job what the peer computes and what we do; all peers run in one process."""
    folder = tmp_path_factory.mktemp("exports")
    jobs, ours = [], {}
    for number, (name, (model, changes, peer, transform)) in enumerate(JOBS.items()):
        exported = folder / f"model_{number}"
        pretrained = make_pretrained(changed(models[model], changes), seed=number, transform=transform)
        save_pretrained(pretrained, exported, "open_clip" if peer == "open_clip" else "huggingface")
        inputs = some_inputs(pretrained.config)
        job = {"inputs": folder / f"inputs_{number}.npz", "outputs": folder / f"outputs_{number}.npz"}
        np.savez(job["inputs"], **inputs)
        jobs.append({"peer": peer, "folder": str(exported)} | {key: str(file) for key, file in job.items()})
        ours[name] = our_outputs(pretrained, inputs)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    (folder / "run.py").write_text(SCRIPT)
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [peers_python, folder / "run.py", folder / "jobs.json"]
    peers = subprocess.run(command, env=offline, capture_output=True, text=True, cwd=folder)
    assert peers.returncode == 0, peers.stderr
    return {name: (dict(np.load(job["outputs"])), ours[name]) for name, job in zip(JOBS, jobs)}


@pytest.mark.parametrize("name", JOBS)
def test_logits(results, name):
    """The state dict loads strictly and the config says the same: no key is missing or unexpected."""
    theirs, ours = results[name]
    assert theirs["logits_per_image"].shape == (5, 5)
    assert np.ptp(theirs["logits_per_image"]) > 0.1
    # Measured: 1.2e-6 at most, of logits up to 2.1.
    np.testing.assert_allclose(ours["logits_per_image"], theirs["logits_per_image"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", JOBS)
def test_pixels(results, name):
    theirs, ours = results[name]
    assert theirs["pixels"].shape == ours["pixels"].shape
    # Measured: 4.8e-7 at most, of values up to 2.1, which is a rounding of the normalisation.
    np.testing.assert_allclose(ours["pixels"], theirs["pixels"], rtol=0, atol=1e-6)
