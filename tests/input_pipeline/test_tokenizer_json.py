"""tokenizer.json with the rules beside it: ids of the packages that the weights were trained with."""

import dataclasses
import json
import pickle
import shutil

import numpy as np
import pytest
from miniature import miniature, picture

import clip_jax
from clip_jax.pretrained import find_vocabulary, load_pretrained, save_pretrained
from clip_jax.runs import loop
from input_pipeline.tokenizers import JsonTokenizer, make_tokenizer

FAMILIES = [
    "hf5_clip_processor",
    "hf5_siglip_processor",
    "hf_siglip2",
    "hf_metaclip2",
    "openclip_siglip_timm",
    "openclip_siglip2_timm",
    "openclip_metaclip2",
    "openclip_clipa",
]
GEMMA, BERT = "hf_siglip2", "openclip_clipa"
ODD = [
    "",
    " ",
    "\ud800 lone",
    "a" * 5000,
    "\x00\x1f",
    "é" * 300,
    "</s> <eos> [SEP]",
    "🐱\u200d🐱",
    "\uff21\uff22\u3000",
    "a b " * 300,
    "&amp;amp;lt;",
]


@pytest.fixture
def folder(goldens, tmp_path):
    """A copy of the tokenizer of a family, whose files a test may change."""

    def copy(golden):
        place = tmp_path / golden
        place.mkdir()
        for file in (goldens / golden).iterdir():
            if file.suffix != ".safetensors":
                shutil.copy(file, place)
        return place

    return copy


def change(file, **values):
    content = json.loads(file.read_text())
    file.write_text(json.dumps({key: x for key, x in (content | values).items() if x is not None}))


def rows_of(goldens, golden):
    texts = json.loads((goldens / golden / "texts.json").read_text())
    return [row["text"] for row in texts], np.array([row["ids"] for row in texts])


@pytest.mark.parametrize("golden", FAMILIES)
def test_ids_are_those_of_the_package(goldens, golden):
    _, _, tokenize = clip_jax.load(goldens / golden)
    texts, ids = rows_of(goldens, golden)
    np.testing.assert_array_equal(tokenize(texts), ids)


@pytest.mark.parametrize("golden", FAMILIES)
def test_texts_give_their_features(goldens, golden):
    model, _, tokenize = clip_jax.load(goldens / golden)
    texts, _ = rows_of(goldens, golden)
    expected = np.load(goldens / golden / "expected.npz")["text_features"]
    np.testing.assert_allclose(model.encode_text(tokenize(texts)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("golden", FAMILIES)
def test_a_stored_vocabulary_is_the_same_in_one_file(goldens, golden, tmp_path):
    texts, ids = rows_of(goldens, golden)
    file, kind = find_vocabulary(goldens / golden)
    tokenizer = make_tokenizer(kind, file, ids.shape[1])
    (tmp_path / "stored").write_bytes(tokenizer.stored())
    again = make_tokenizer(kind, tmp_path / "stored", ids.shape[1])
    assert again.fingerprint() == tokenizer.fingerprint()
    assert again.files() == tokenizer.files()
    np.testing.assert_array_equal(again(texts), ids)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(again))(texts), ids)  # grain's workers get it so


@pytest.mark.parametrize("golden", FAMILIES)
def test_no_text_is_too_odd(goldens, golden):
    _, _, tokenize = clip_jax.load(goldens / golden)
    rows = tokenize(ODD)
    assert ((rows >= 0) & (rows < tokenize.vocab_size)).all()
    assert tokenize.num_truncated == sum(tokenize.encode(text)[1] for text in ODD) > 0
    with pytest.raises(ValueError, match="too long for context_length"):
        tokenize("a b " * 500, truncate=False)


@pytest.mark.parametrize("golden", [name for name in FAMILIES if name != "hf5_siglip_processor"])
def test_a_model_leaves_with_its_tokenizer_as_it_came(goldens, golden, tmp_path):
    _, _, tokenize = clip_jax.load(goldens / golden)
    format = "open_clip" if golden.startswith("openclip") else "huggingface"
    save_pretrained(load_pretrained(goldens / golden), tmp_path / "out", format, tokenize)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (goldens / golden / name).read_bytes()
    texts, ids = rows_of(goldens, golden)
    np.testing.assert_array_equal(clip_jax.load(tmp_path / "out")[2](texts), ids)


@pytest.mark.parametrize("golden", ["openclip_siglip2_timm", "openclip_metaclip2", "hf_metaclip2"])
def test_rules_go_with_a_model_into_the_other_form(goldens, golden, tmp_path, capsys):
    _, _, tokenize = clip_jax.load(goldens / golden)
    other = "huggingface" if golden.startswith("openclip") else "open_clip"
    pretrained = dataclasses.replace(load_pretrained(goldens / golden), origin=None)
    save_pretrained(pretrained, tmp_path / "out", other, tokenize)
    assert "will not do; clip_jax reads it in tokenizer_config.json" in capsys.readouterr().err
    texts, ids = rows_of(goldens, golden)
    np.testing.assert_array_equal(clip_jax.load(tmp_path / "out")[2](texts), ids)


def test_rules_are_part_of_the_fingerprint(folder):
    place = folder(GEMMA)
    before = JsonTokenizer(place, 16)
    change(place / "tokenizer_config.json", do_lower_case=False)
    after = JsonTokenizer(place / "tokenizer.json", 16)
    assert before.fingerprint() != after.fingerprint()
    assert before("Two DOGS").tolist() == before("two dogs").tolist() != after("Two DOGS").tolist()


def test_older_folders_name_special_tokens_in_a_map(folder):
    place = folder(GEMMA)
    expected = JsonTokenizer(place, 16)("a cat")
    change(place / "tokenizer_config.json", pad_token=None)
    (place / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "<pad>", "lstrip": False}}))
    np.testing.assert_array_equal(JsonTokenizer(place, 16)("a cat"), expected)


def test_start_and_end_follow_the_settings_that_gemmas_class_follows(folder):
    place = folder(GEMMA)
    change(place / "tokenizer_config.json", add_bos_token=True, add_eos_token=True)
    row = JsonTokenizer(place, 8)("a cat")[0].tolist()
    assert row[0] == 2
    assert row[1:] == JsonTokenizer(folder(BERT).parent / GEMMA, 8)("a cat")[0].tolist()[1:]


@pytest.mark.parametrize(
    ("golden", "file", "content", "message"),
    [
        (GEMMA, "tokenizer.json", b"", "tokenizer.json is damaged, or no JSON"),
        (GEMMA, "tokenizer.json", b"[]", "tokenizer.json holds no JSON object"),
        (
            GEMMA,
            "tokenizer.json",
            b'{"version": "1.0", "model": {"type": "Neural"}}',
            "is not a tokenizer.json that can",
        ),
        (GEMMA, "tokenizer_config.json", b"{", "tokenizer_config.json is damaged, or no JSON"),
        (GEMMA, "tokenizer_config.json", b"{}", "has pad_token=None, which is no token of tokenizer.json"),
        (GEMMA, "tokenizer_config.json", {"pad_token": "<none>"}, "has pad_token='<none>', which is no token of"),
        (
            GEMMA,
            "tokenizer_config.json",
            {"padding_side": "left"},
            "has padding_side='left'; clip_jax has 'right' alone",
        ),
        (GEMMA, "tokenizer_config.json", {"truncation_side": "left"}, "has truncation_side='left'"),
        (GEMMA, "tokenizer_config.json", {"split_special_tokens": True}, "has split_special_tokens=True"),
        (GEMMA, "tokenizer_config.json", {"add_eos_token": False}, "puts no token behind a text"),
        (GEMMA, "tokenizer_config.json", {"clip_jax_rules": {"clean": "x"}}, "has clip_jax_rules={'clean': 'x'}"),
        (
            BERT,
            "open_clip_config.json",
            {"tokenizer_kwargs": {"clean": "scrub"}},
            "has clean='scrub' for its tokenizer",
        ),
        (BERT, "open_clip_config.json", {"tokenizer_kwargs": {"twice": 1}}, "has twice=1 for its tokenizer"),
        (BERT, "open_clip_config.json", {"tokenizer_mode": "clips"}, "has tokenizer_mode='clips' for its tokenizer"),
    ],
)
def test_what_cannot_be_followed_is_named(folder, golden, file, content, message):
    place = folder(golden)
    if isinstance(content, bytes):
        (place / file).write_bytes(content)
    elif file == "open_clip_config.json":
        config = json.loads((place / file).read_text())
        config["model_cfg"]["text_cfg"] |= content
        (place / file).write_text(json.dumps(config))
    else:
        change(place / file, **content)
    with pytest.raises(ValueError, match=message):
        JsonTokenizer(place, 16)


def test_a_vocabulary_with_more_ids_than_the_embedding_is_refused(goldens, tmp_path):
    place = shutil.copytree(goldens / GEMMA, tmp_path / "model")
    content = json.loads((place / "tokenizer.json").read_text())
    content["added_tokens"].append(content["added_tokens"][-1] | {"id": 781, "content": "<more>"})
    (place / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"is not this model's vocabulary: it has 782 tokens with 1 .* the model 781"):
        clip_jax.load(place)


@pytest.mark.parametrize("golden", [GEMMA, *(pytest.param(x, marks=pytest.mark.nightly) for x in (FAMILIES[1], BERT))])
def test_a_run_is_trained_with_it_and_loaded_again(goldens, golden, tmp_path):
    file, kind = find_vocabulary(goldens / golden)
    data = tmp_path / "data"
    data.mkdir()
    for number in range(24):
        (data / f"{number}.jpg").write_bytes(picture(number))
        (data / f"{number}.txt").write_text(f"a photo of cat number {number}")
    changes = {"data__source": "folder", "data__path": str(data), "data__num_examples": 0, "data__scene_kinds": ()}
    changes |= {"data__tokenizer": kind, "data__tokenizer_file": str(file), "data__num_validation": 4}
    changes |= {"text__vocab_size": 800, "text__causal": False, "text__pooling": "last", "train__total_steps": 3}
    changes |= {"evaluation__zero_shot": (), "data__min_side": 0}
    assert loop.train(miniature(**changes), tmp_path / "run") == 0
    model, _, tokenize = clip_jax.load(tmp_path / "run")
    assert tokenize.fingerprint() == make_tokenizer(kind, file, 8).fingerprint()
    assert model.encode_text(tokenize(["a cat"])).shape == (1, 16)


def test_a_vocabulary_larger_than_the_runs_is_refused_before_work_starts(goldens, tmp_path):
    changes = {"data__tokenizer": "tokenizer_json", "data__tokenizer_file": str(goldens / GEMMA)}
    with pytest.raises(ValueError, match=r"text\.vocab_size=300 is smaller than the tokenizer's vocabulary, 781"):
        loop.train(miniature(**changes), tmp_path / "run")
    with pytest.raises(ValueError, match=r"a tokenizer_json tokenizer needs its file, tokenizer\.json"):
        loop.train(miniature(data__tokenizer="tokenizer_json"), tmp_path / "other")
