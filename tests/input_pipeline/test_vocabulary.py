import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece

from input_pipeline.scenes import SceneSource
from input_pipeline.sources import BrokenRecordError
from input_pipeline.tokenizers import SentencePieceTokenizer
from input_pipeline.vocabulary import sample_captions, train_on_sample, train_sentencepiece

CAPTIONS = [
    f"A {size} {colour} {shape} {place}."
    for size in ("small", "big", "huge")
    for colour in ("red", "Blue", "green", "crimson", "yellow")
    for shape in ("circle", "square", "star", "triangle", "hexagon", "ring", "cross")
    for place in ("on the left", "above a disc", "in deep darkness", "between several identical windows, photographed")
]


@pytest.fixture(scope="module")
def sp_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("sp") / "captions.model"
    train_sentencepiece(CAPTIONS, 521, path)
    return path


def test_training_is_a_function_of_the_captions(sp_model, tmp_path):
    script = (
        "import json, sys; from input_pipeline.vocabulary import train_sentencepiece; "
        "train_sentencepiece(json.load(sys.stdin), 521, sys.argv[1])"
    )
    again = tmp_path / "again.model"
    subprocess.run(
        [sys.executable, "-c", script, str(again)],
        input=json.dumps(CAPTIONS),
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert again.read_bytes() == sp_model.read_bytes()


def test_vocabulary_shrinks_to_what_the_captions_hold(tmp_path):
    train_sentencepiece(["a red circle", "a blue square on green"], 8009, tmp_path / "model")
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "model"))
    assert 260 < model.vocab_size() < 400
    assert model.decode(SentencePieceTokenizer(tmp_path / "model", 7).token_ids("A Blue Circle")) == "a blue circle"


def test_small_vocabulary_spends_nothing_on_bytes(tmp_path):
    train_sentencepiece(CAPTIONS, 97, tmp_path / "model")
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "model"))
    assert model.vocab_size() == 97
    assert not any(model.is_byte(i) for i in range(97))


def test_training_reads_no_more_than_max_captions(tmp_path):
    captions = iter(CAPTIONS)
    train_sentencepiece(captions, 521, tmp_path / "limited", max_captions=53)
    assert next(captions) == CAPTIONS[53]
    train_sentencepiece(CAPTIONS[:53], 521, tmp_path / "first")
    assert (tmp_path / "limited").read_bytes() == (tmp_path / "first").read_bytes()


def test_training_rejects_what_cannot_work(tmp_path):
    model = tmp_path / "model"
    for captions in ([], ["", " \n"]):
        with pytest.raises(ValueError, match="there are no captions, or all are empty"):
            train_sentencepiece(captions, 521, model)
    with pytest.raises(ValueError, match=r"vocab_size 13 is too small .* need (\d+)$") as error:
        train_sentencepiece(CAPTIONS, 13, model)
    needed = int(str(error.value).split()[-1])
    with pytest.raises(ValueError, match=f"vocab_size {needed - 1} is too small"):
        train_sentencepiece(CAPTIONS, needed - 1, model)
    assert list(tmp_path.iterdir()) == []
    train_sentencepiece(CAPTIONS, needed, model)
    assert SentencePieceTokenizer(model, 7).vocab_size == needed


def test_failed_write_leaves_the_old_model_and_no_rubbish(tmp_path, monkeypatch):
    model = tmp_path / "new" / "model"
    train_sentencepiece(CAPTIONS, 521, model)
    before = model.read_bytes()

    def disk_full(path, data):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(OSError, match="No space left on device"):
        train_sentencepiece(CAPTIONS[:31], 521, model)
    assert sorted(path.name for path in model.parent.iterdir()) == ["model", "model.json"]
    assert model.read_bytes() == before


class Numbered:
    """Record i has the captions "i a" and "i b"; some are broken."""

    broken: tuple = ()

    def __init__(self, length, broken=()):
        self._length, self._broken = length, broken

    def __len__(self):
        return self._length

    def captions(self, index):
        if index in self._broken:
            raise BrokenRecordError(str(index), "broken")
        return f"{index} a", f"{index} b"


def sampled(*args, **options):
    texts = list(sample_captions(*args, **options))
    assert texts[::2] == [f"{text.split()[0]} a" for text in texts[1::2]]
    return [int(text.split()[0]) for text in texts[1::2]]


def test_a_sample_has_different_records_in_order_and_depends_on_the_seed():
    assert sampled(Numbered(101), 5) == [0, 25, 50, 75, 100]
    assert sampled(Numbered(3), 5, seed=2) == [0, 1, 2]
    assert sampled(Numbered(1), 5, seed=2) == [0]
    one, same, other = (sampled(Numbered(100_003), 997, seed=seed) for seed in (1, 1, 2))
    assert one == same != other
    assert one == sorted(set(one))
    assert len(one) == 997
    assert 0.4 < sum(one) / 997 / 100_003 < 0.6
    assert sampled(Numbered(5, broken=(1, 3)), 9) == [0, 2, 4]


def test_the_record_names_what_the_vocabulary_was_made_from(tmp_path):
    source = SceneSource(3, 200, 32)
    record = train_on_sample(source, 300, tmp_path / "new.model", 50, seed=7)
    assert json.loads((tmp_path / "new.model.json").read_text()) == record
    data = (tmp_path / "new.model").read_bytes()
    assert record == {
        "model_sha256": hashlib.sha256(data).hexdigest(),
        "model_type": "bpe",
        "normalisation": "nmt_nfkc_cf",
        "byte_fallback": False,
        "special_tokens": {"pad": 0, "unk": 1, "bos": 2, "eos": 3},
        "vocab_size": SentencePieceTokenizer(tmp_path / "new.model", 9).vocab_size,
        "largest_vocab_size": 300,
        "num_captions": len(list(sample_captions(source, 50, 7))),
        "sample": {"source": source.fingerprint(), "num_records": 50, "seed": 7},
        "sentencepiece": sentencepiece.__version__,
    }
    proto = sentencepiece.SentencePieceProcessor(model_proto=data)
    assert proto.decode(proto.encode("RED \u2460 \ufb01ne")) == proto.decode(proto.encode("red 1 fine"))
    train_on_sample(source, 300, tmp_path / "again.model", 50, seed=7)
    assert (tmp_path / "again.model").read_bytes() == data
    train_on_sample(source, 300, tmp_path / "other.model", 50, seed=8)
    assert (tmp_path / "other.model").read_bytes() != data
