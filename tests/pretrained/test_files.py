"""Files that are not there, damaged, split, or not to be opened at all; and writing that leaves nothing half done."""

import json
import os
import pickle
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import clip_jax.pretrained.write
from clip_jax.pretrained import load_pretrained, save_pretrained


@pytest.fixture
def exported(models, make_pretrained, tmp_path):
    """A folder of transformers' CLIPModel."""
    save_pretrained(make_pretrained(models["vit"]), tmp_path / "exported", "huggingface")
    return tmp_path / "exported"


def refusal(path, **kwargs):
    with pytest.raises(ValueError) as error:  # noqa: PT011, each caller compares the message
        load_pretrained(path, **kwargs)
    return str(error.value)


@pytest.mark.parametrize("share", [0, 1e-4, 0.01, 0.5, 0.999])
def test_truncated_files(exported, share):
    file = exported / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    message = refusal(exported)
    start = f"{file} cannot be read as safetensors; it is truncated, damaged or another format ("
    assert message.startswith(start)
    assert "): download it again, what is in the Hub's cache by" in message


@pytest.mark.parametrize("content", [b"\x80\x04N.", b"x" * 1000, b"\xff" * 100, b"PK\x03\x04" + b"\0" * 100])
def test_files_that_are_something_else(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert "cannot be read as safetensors" in refusal(tmp_path / "model.safetensors")


def test_numbers_that_numpy_does_not_have(exported):
    """float8: as many bytes as the uint8 that stand here, under another name."""
    file = exported / "model.safetensors"
    state_dict = load_file(file)
    key = "visual_projection.weight"
    save_file({**state_dict, key: state_dict[key].astype(np.uint8)}, file)
    data = file.read_bytes()
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    renamed = header.replace(b'"U8"', b'"F8_E4M3"')
    file.write_bytes(len(renamed).to_bytes(8, "little") + renamed + data[8 + len(header) :])
    assert refusal(exported).startswith(f"{file}: {key} cannot be read as F8_E4M3 (")


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e39])
def test_numbers_that_are_none_in_float32(exported, value):
    file = exported / "model.safetensors"
    state_dict = load_file(file)
    key = "visual_projection.weight"
    array = state_dict[key].astype(np.float64)
    array[1, 2] = value
    save_file({**state_dict, key: array}, file)
    with np.errstate(over="ignore"):
        assert f"{key} has NaN, infinity or numbers beyond float32" in refusal(exported)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl"])
def test_pickles_are_never_opened(tmp_path, suffix):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    file = tmp_path / f"model{suffix}"
    file.write_bytes(pickle.dumps(Bomb()))
    for path in (file, tmp_path):
        message = refusal(path)
        assert message.startswith(f"{file} is a pickle, which can run any code when it is opened")
        assert f"torch.load('{file}', map_location='cpu', weights_only=True)" in message
        assert f"'{tmp_path / 'model.safetensors'}'" in message
    assert not (tmp_path / "exploded").exists()


def test_safetensors_are_taken_before_a_pickle_beside_them(exported):
    (exported / "pytorch_model.bin").write_bytes(pickle.dumps(1))
    load_pretrained(exported)


def test_folders_without_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert refusal(tmp_path) == (
        f"{tmp_path} holds no weights: expected open_clip_model.safetensors, model.safetensors, or the path of a "
        ".safetensors file"
    )


@pytest.mark.parametrize(
    "path", ["no_such_model", "RN51", "./runs/tiny", "~/nothing", "a/b/c", "here/model.safetensors", "here/model.pt"]
)
def test_nothing_of_that_name(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # not asked
    assert refusal(path) == (
        f"there is no file or folder {path}, and it is no name that `clip-jax models` lists"
        + (". Did you mean RN50?" if path == "RN51" else ", or a Hub repository as owner/name")
    )


def split(folder, index):
    """Two files of half the keys each, and their index."""
    state_dict = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    keys = sorted(state_dict)
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    weight_map = {key: names[i % 2] for i, key in enumerate(keys)}
    for name in names:
        save_file({key: state_dict[key] for key in keys if weight_map[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map} | index))
    return names


def test_split_weights(exported, models, make_pretrained):
    split(exported, {"metadata": {"total_size": 1}})
    jax.tree.map(
        np.testing.assert_array_equal,
        load_pretrained(exported).variables,
        make_pretrained(models["vit"]).variables,
    )


def test_split_weights_that_are_incomplete(exported):
    first, second = split(exported, {})
    (exported / second).rename(exported / "kept")
    assert refusal(exported) == f"there is no weights file {exported / second}"
    (exported / second).write_bytes((exported / first).read_bytes())
    assert f"is in {exported / second} and in another file beside it: remove one of them" in refusal(exported)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"logit_scale": "../secret.safetensors"}, "names files outside of its folder"),
        ({"logit_scale": "/etc/passwd"}, "names files outside of its folder"),
        ({"logit_scale": "pytorch_model-00001-of-00002.bin"}, "is a pickle"),
        ({}, "has no weight_map of keys to files"),
        (["model.safetensors"], "has no weight_map of keys to files"),
        (None, "has no weight_map of keys to files"),
    ],
)
def test_indices_of_something_else(exported, weight_map, message):
    split(exported, {"weight_map": weight_map})
    assert message in refusal(exported)


def test_the_config_beside_the_weights_is_their_own(models, make_pretrained, tmp_path):
    """Repositories hold both formats side by side; each file is read with its own config, by its path too."""
    pretrained = make_pretrained(models["vit"])
    folder = tmp_path / "both"
    for format in ("open_clip", "huggingface"):
        save_pretrained(pretrained, tmp_path / format, format)
        folder.mkdir(exist_ok=True)
        for file in (tmp_path / format).iterdir():
            file.rename(folder / file.name)
    for path in (folder, folder / "model.safetensors", folder / "open_clip_model.safetensors"):
        loaded = load_pretrained(path)
        assert loaded.config == pretrained.config
        assert loaded.folder == folder
    (folder / "open_clip_model.safetensors").rename(folder / "epoch_32.safetensors")
    assert load_pretrained(folder / "epoch_32.safetensors").config == pretrained.config


def fake_hub(monkeypatch, snapshot_download):
    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_the_hub_while_offline(monkeypatch):
    asked = []

    def offline(repo, **kwargs):
        asked.append(repo)
        raise ConnectionError("Name or service\n   not known.")

    fake_hub(monkeypatch, offline)
    expected = (
        "cannot get {0} from the Hugging Face Hub, and it is not in the local cache: Name or service not known. "
        "Without a network, run `hf download {0}` where there is one and give the folder's path"
    )
    assert refusal("ViT-B/32") == expected.format("timm/vit_base_patch32_clip_224.openai")
    assert refusal("someone/model") == (
        f"there is no file or folder someone/model, and it is no name that `clip-jax models` lists. "
        f"As a Hub repository: {expected.format('someone/model')}"
    )
    assert asked == ["timm/vit_base_patch32_clip_224.openai", "someone/model"]


def test_the_hub_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert refusal("RN50") == (
        "getting timm/resnet50_clip.openai from the Hub needs huggingface_hub: pip install 'jax-clip[hub]'"
    )


def test_what_is_fetched_from_the_hub(exported, models, monkeypatch):
    """open_clip's files where there are any, else transformers'; never a pickle."""
    asked = []

    def snapshot_download(repo, allow_patterns):
        asked.append(allow_patterns)
        return str(exported)

    fake_hub(monkeypatch, snapshot_download)
    assert load_pretrained("someone/model").config == models["vit"]
    assert [patterns[0] for patterns in asked] == ["open_clip_config.json", "config.json"]
    assert not any(pattern.endswith((".bin", ".pt", "*")) for patterns in asked for pattern in patterns)


def test_another_model_under_a_published_name(exported, monkeypatch):
    fake_hub(monkeypatch, lambda repo, allow_patterns: str(exported))
    message = refusal("ViT-B/32")
    assert message.startswith("the weights found for ViT-B/32 belong to another model: embed_dim is 7, not 512; ")
    assert "vision.width is 15, not 768" in message


def test_a_local_folder_goes_before_the_name(exported, models, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ViT-B").mkdir()
    exported.rename(tmp_path / "ViT-B" / "32")
    assert load_pretrained("ViT-B/32").config == models["vit"]


@pytest.mark.parametrize("format", ["open_clip", "huggingface"])
def test_what_exists_is_not_overwritten(models, make_pretrained, tmp_path, format):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    for name in ("file", "folder"):
        with pytest.raises(ValueError, match=f"{name} exists already: remove it or choose another folder"):
            save_pretrained(make_pretrained(models["vit"]), tmp_path / name, format)
    assert (tmp_path / "file").read_text() == "precious"
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_failed_export_leaves_nothing(models, make_pretrained, tmp_path, monkeypatch):
    def full(arrays, file, metadata):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(clip_jax.pretrained.write, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(make_pretrained(models["vit"]), tmp_path / "deep" / "out", "open_clip")
    assert list((tmp_path / "deep").iterdir()) == []


class Vocabulary:
    def files(self):
        return {"merges.txt": b"#version\n", "vocab.json": b"{}"}


@pytest.mark.parametrize(
    ("format", "names"),
    [
        ("open_clip", {"open_clip_model.safetensors", "open_clip_config.json"}),
        ("huggingface", {"model.safetensors", "config.json", "preprocessor_config.json"}),
    ],
)
def test_what_is_written(models, make_pretrained, tmp_path, format, names):
    out = tmp_path / "deep" / "out"
    save_pretrained(make_pretrained(models["vit"]), str(out), format, Vocabulary())
    assert {file.name for file in out.iterdir()} == names | {"merges.txt", "vocab.json"}
    assert [file.name for file in out.parent.iterdir()] == ["out"]
    assert (out / "vocab.json").read_bytes() == b"{}"
    assert out.stat().st_mode & 0o777 == 0o755
    with safe_open(next(out.glob("*.safetensors")), framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}  # without it older releases of transformers refuse the file
