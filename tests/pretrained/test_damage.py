"""Weights and JSON as people have them: wrapped, padded, without a processor, damaged, hostile."""

import gzip
import json
import random
import resource
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import clip_jax
from clip_jax.inference.load import open_model, with_end_token
from clip_jax.pretrained import load_pretrained, save_pretrained
from clip_jax.pretrained.files import read_json
from clip_jax.pretrained.hugging_face import hf_json
from input_pipeline.tokenizers import Tokenizer, make_tokenizer


def copied(folder, to):
    to.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, to / name)
    return to


def edited(file, section="text_config", **changes):
    config = json.loads(file.read_text())
    (config[section] if section else config).update(changes)
    file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
)
def test_keys_of_wrapped_models_load_as_without(goldens, tmp_path, prefix):
    folder = copied(goldens / "hf_clip", tmp_path / "model")
    state_dict = load_file(folder / "model.safetensors")
    save_file({prefix + key: array for key, array in state_dict.items()}, folder / "model.safetensors")
    expected, read = (load_pretrained(f) for f in (goldens / "hf_clip", folder))
    jax.tree.map(np.testing.assert_array_equal, read.variables, expected.variables)
    # A part that was compiled by itself.
    parts = {key.replace("vision_model.", "vision_model._orig_mod."): array for key, array in state_dict.items()}
    save_file(parts, folder / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(folder).variables, expected.variables)
    save_file({**state_dict, f"{prefix}logit_scale": state_dict["logit_scale"]}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors has both .*logit_scale: remove one of them"):
        load_pretrained(folder)


GOLDENS = Path(__file__).parents[1] / "goldens"
PADDED = 128


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    """The golden with more rows than tokens, and the end token of older configs."""
    folder = copied(GOLDENS / "hf_clip", tmp_path_factory.mktemp("padded") / "model")
    edited(folder / "config.json", eos_token_id=2, vocab_size=PADDED)
    state_dict, key = load_file(folder / "model.safetensors"), "text_model.embeddings.token_embedding.weight"
    state_dict[key] = np.pad(state_dict[key], ((0, PADDED - len(state_dict[key])), (0, 0)))
    save_file(state_dict, folder / "model.safetensors")
    return folder


def test_an_end_token_of_2_reads_the_highest_id_of_each_row(goldens, padded):
    text = np.load(goldens / "hf_clip" / "expected.npz")["tokens"]
    expected, model = (clip_jax.load(folder)[0] for folder in (goldens / "hf_clip", padded))
    np.testing.assert_array_equal(model.encode_text(text), expected.encode_text(text))
    with pytest.raises(ValueError, match=r"a row of text has no end token \(98\): use the model's own tokenize"):
        model.encode_text(np.concatenate([text[:1], np.minimum(text[1:2], 5)]))


def test_open_clips_argmax_reads_the_highest_id_of_each_row(goldens, tmp_path):
    folder = copied(goldens / "openclip_vit", tmp_path / "model")
    edited(folder / "config.json", "text_cfg", vocab_size=PADDED)
    state_dict = load_file(folder / "model.safetensors")
    rows = state_dict["token_embedding.weight"]
    state_dict["token_embedding.weight"] = np.pad(rows, ((0, PADDED - len(rows)), (0, 0)))
    save_file(state_dict, folder / "model.safetensors")
    expected, padded = (load_pretrained(f).config.text for f in (goldens / "openclip_vit", folder))
    text = np.load(goldens / "openclip_vit" / "expected.npz")["tokens"]
    np.testing.assert_array_equal(padded.end_mask(text).argmax(axis=1), expected.end_mask(text).argmax(axis=1))
    np.testing.assert_array_equal(padded.end_mask(text).argmax(axis=1), (text == rows.shape[0] - 1).argmax(axis=1))


def test_a_padded_vocabulary_is_written_as_one_and_fits_its_tokenizer(padded):
    class Ends(Tokenizer):
        token_ids = files = None

    config = load_pretrained(padded).config
    assert hf_json(config)["text_config"]["eos_token_id"] == 2  # transformers reads the highest id, too
    ends = {"context_length": 16, "sot_token": 97, "vocabulary": b""}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ends, "__abstractmethods__", frozenset())
        assert with_end_token(config, Ends(vocab_size=99, eot_token=98, **ends)).text.eot_token == 98
        assert with_end_token(config, Ends(vocab_size=99, eot_token=3, **ends)) == config


IMAGES = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.9, 0.8, 0.7], "size": {"shortest_edge": 32}}


def test_the_processor_of_transformers_5_is_read_and_no_default_is_silent(goldens, tmp_path, capsys):
    folder = copied(goldens / "hf_clip", tmp_path / "model")
    old, new = folder / "preprocessor_config.json", folder / "processor_config.json"

    def read():
        config = load_pretrained(folder).config
        return config.image_mean, config.image_std, capsys.readouterr().err

    released = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    assumed = "the default of this kind of model is taken: mean (0.48145466, 0.4578275, 0.40821073) and std (0.268"
    *values, said = read()
    assert tuple(values) == released
    assert assumed in said
    new.write_text(json.dumps({"image_processor": IMAGES}))
    assert read() == ((0.1, 0.2, 0.3), (0.9, 0.8, 0.7), "")
    old.write_text(json.dumps(IMAGES))
    assert read()[2] == ""
    old.write_text(json.dumps(IMAGES | {"image_std": [1, 1, 1]}))
    with pytest.raises(
        ValueError, match=r"processor_config.json and .* differ in image_std: remove the one that is wr"
    ):
        read()
    new.write_text(json.dumps({"processor_class": "CLIPProcessor"}))  # of transformers 4
    assert read() == ((0.1, 0.2, 0.3), (1, 1, 1), "")
    old.write_text(json.dumps({"image_mean": IMAGES["image_mean"]}))
    assert "preprocessor_config.json does not say how pixels were normalised" in (said := read()[2])
    assert said.endswith("is taken: std (0.26862954, 0.26130258, 0.27577711)\n")
    new.write_text(json.dumps({"image_processor": [1]}))
    with pytest.raises(ValueError, match=r"processor_config.json has image_processor=\[1\], not a JSON object"):
        read()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[" * 100_000, "its brackets are nested too deeply"),
        ('{"a":' * 100_000, "its brackets are nested too deeply"),
        ('{"a": NaN}', "NaN is no finite number"),
        ('{"a": -Infinity}', "-Infinity is no finite number"),
        ('{"a": 1e999}', "1e999 is no finite number"),
        (f'{{"a": {"9" * 5000}}}', "Exceeds the limit"),
        (" " * (16 * 2**20 + 1), "it is larger than 16 MiB"),
    ],
)
def test_json_without_end(tmp_path, content, reason):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=f"config.json cannot be read as JSON: {reason}"):
        read_json(tmp_path / "config.json")


def test_json_with_a_byte_order_mark(tmp_path):
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"a": 1.5}')
    assert read_json(tmp_path / "config.json") == {"a": 1.5}


def test_a_gzip_bomb_beside_weights_stays_small(goldens, tmp_path):
    folder = copied(goldens / "hf_clip", tmp_path / "model")
    bomb = gzip.compress(b"#version: 0.2\n" + bytes(2**20))
    (folder / "bpe_simple_vocab_16e6.txt.gz").write_bytes(bomb * 300)  # members one after the other are one file
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"vocabulary, or is damaged: it holds more than 64 MiB"):
        open_model(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    (folder / "merges.txt").write_bytes(b"")
    with (folder / "merges.txt").open("r+b") as file:
        file.truncate(2**40)  # bytes, none of which is written
    with pytest.raises(ValueError, match=r"merges.txt is larger than 64 MiB: it is no CLIP vocabulary"):
        make_tokenizer("clip_bpe", folder / "merges.txt", 77)


def test_sizes_that_no_memory_holds(goldens, tmp_path):
    """Of a damaged header: arrays without numbers may have any size in their other dimension."""
    folder = copied(goldens / "hf_clip", tmp_path / "model")
    state_dict = load_file(folder / "model.safetensors")
    state_dict["text_model.embeddings.position_embedding.weight"] = np.empty((2**40, 0), np.float32)
    save_file(state_dict, folder / "model.safetensors")
    edited(folder / "config.json", max_position_embeddings=2**40)
    with pytest.raises(ValueError, match=r"text.context_length=1099511627776 must be at most 1048576"):
        load_pretrained(folder)


SCALARS = [None, True, 0, -1, 2**31, 10**20, 1e-320, 1e308, "x", "", [], {}, [1], {"a": 1}]


def damaged_json(rng, content):
    """One value replaced, one key left out, or the text cut or with a byte changed."""
    config = json.loads(content)
    kind = rng.choice(["value", "key", "cut", "byte"])
    if kind in ("value", "key"):
        section = rng.choice([config, *(value for value in config.values() if isinstance(value, dict))])
        key = rng.choice(sorted(section))
        section[key] = rng.choice(SCALARS)
        if kind == "key":
            del section[key]
        return json.dumps(config).encode()
    return damaged_bytes(rng, content.encode(), kind)


def damaged_bytes(rng, data, kind):
    if kind == "cut":
        return data[: rng.randrange(len(data))]
    data = bytearray(data)
    place = rng.randrange(min(len(data), rng.choice([16, 2000, len(data)])))
    data[place] ^= 1 << rng.randrange(8)
    return bytes(data)


@pytest.mark.parametrize("number", [24, pytest.param(500, marks=pytest.mark.nightly)])
def test_damaged_files_load_or_are_refused_in_one_message(models, make_pretrained, tmp_path, number):
    """Any exception but ValueError fails the test. What loads is finite."""
    pretrained = make_pretrained(models["vit"])
    for format in ("open_clip", "huggingface"):
        save_pretrained(pretrained, tmp_path / format, format)
    rng, refused = random.Random(0), 0
    for _ in range(number):
        folder = tmp_path / "damaged"
        shutil.copytree(tmp_path / rng.choice(["open_clip", "huggingface"]), folder)
        file = rng.choice(sorted(folder.iterdir()))
        if file.suffix == ".json":
            file.write_bytes(damaged_json(rng, file.read_text()))
        else:
            file.write_bytes(damaged_bytes(rng, file.read_bytes(), rng.choice(["cut", "byte"])))
        try:
            variables = load_pretrained(folder).variables
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
        except ValueError:
            refused += 1
        shutil.rmtree(folder)
    assert number / 4 < refused < number
