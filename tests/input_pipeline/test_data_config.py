"""Which records a config trains and validates on: kinds guessed from files, splits of one's own."""

import io

import numpy as np
import pytest
from PIL import Image

from configs.clip_vit_b32 import get_config
from input_pipeline.data_config import DataConfig, MixturePart, resolve_source
from input_pipeline.open_data import make_examples, make_sources, open_all, open_other
from input_pipeline.sources import write_array_record
from input_pipeline.tokenizers import Tokenizer


def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (19, 23, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path):
    """A folder of seven pictures with captions, and one of three."""
    for name, count in (("train", 7), ("test", 3)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number}.png").write_bytes(picture(number))
            (tmp_path / name / f"{number}.txt").write_text(f"{name} {number}")
    return tmp_path


def config(**changes) -> DataConfig:
    sections = get_config().to_dict()["data"]
    return DataConfig(**sections | {"num_validation": 2, **changes})


def captions(source) -> list[str]:
    return [source.captions(i)[0] for i in range(len(source))]


def test_the_kind_is_guessed_from_the_files(photos):
    train, validation = make_sources(config(path=str(photos / "train")), 8)
    assert (captions(train), captions(validation)) == ([f"train {i}" for i in range(5)], ["train 5", "train 6"])
    records = [{"id": str(i), "image": picture(i), "captions": (f"record {i}",)} for i in range(5)]
    write_array_record(photos / "a.array_record", records)
    train, _ = make_sources(config(path=str(photos / "a.array_record")), 8)
    assert captions(train) == ["record 0", "record 1", "record 2"]
    with pytest.raises(
        ValueError, match=r"data.path is empty: data.source='auto' needs one, as --config.data.path=DIR"
    ):
        make_sources(config(), 8)
    with pytest.raises(ValueError, match="no data at "):
        resolve_source("auto", str(photos / "nothing"))


def test_other_data_of_another_kind_is_read_without_options_that_it_does_not_have(photos):
    (photos / "t.csv").write_text("image,words\n" + "".join(f"train/{i}.png,word {i}\n" for i in range(5)))
    options = {"captions_field": "words", "separator": ",", "link_root": str(photos)}
    table = config(path=str(photos / "t.csv"), validation_path=str(photos / "test"), num_validation=0, **options)
    train, validation = make_sources(table, 8)
    assert (len(train), captions(validation)) == (5, [f"test {i}" for i in range(3)])
    kind, whole = open_other(table, str(photos / "t.csv"), 8, "data")
    assert (kind, captions(whole)) == ("table", [f"word {i}" for i in range(5)])


def test_files_that_a_system_hides_do_not_decide_the_kind(photos):
    (photos / "train" / "._a.tar").touch()
    assert resolve_source("auto", str(photos / "train")) == "folder"
    (photos / "t.csv").write_text("image,caption\ntrain/0.png,a\n")
    (photos / "._x.png").touch()
    assert resolve_source("auto", str(photos)) == "table"


def test_another_kind_than_the_files_have_is_refused_and_theirs_named(photos):
    message = "The files look like 'folder', and data.source is 'webdataset': set it to 'folder'"
    with pytest.raises(ValueError, match=message):
        make_sources(config(source="webdataset", path=str(photos / "train")), 8)


def test_validation_on_data_of_its_own(photos):
    path, validation_path = str(photos / "train"), str(photos / "test")
    train, validation = make_sources(config(path=path, validation_path=validation_path, num_validation=0), 8)
    assert captions(train) == [f"train {i}" for i in range(7)]
    assert captions(validation) == ["test 0", "test 1", "test 2"]
    mixture = (MixturePart(kind="folder", name="a", path=path),)
    whole = config(source="mixture", mixture=mixture, validation_path=validation_path, num_validation=0)
    train, validation = make_sources(whole, 8)
    assert (len(train), captions(validation)) == (7, ["test 0", "test 1", "test 2"])
    with pytest.raises(
        ValueError, match=r"data.validation_path='x' with data.num_validation=2: validate on one of the"
    ):
        config(validation_path="x")
    with pytest.raises(ValueError, match=r"data.num_validation=0 must leave something .* data.validation_path"):
        make_sources(config(path=path, num_validation=0), 8)


def test_all_records_are_opened_where_none_are_held_out(photos):
    assert captions(open_all(config(path=str(photos / "test")), 8)) == ["test 0", "test 1", "test 2"]


class Words:
    """A tokenizer that is never asked."""

    def fingerprint(self):
        return {}


@pytest.mark.parametrize("decode", ["fast", "exact"])
def test_training_turns_pictures_where_asked(tmp_path, decode):
    upright = Image.new("RGB", (24, 24), (10, 10, 250))
    upright.paste((250, 10, 10), (0, 0, 24, 6))
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(2):
        upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / f"{number}.jpg", exif=exif, quality=98)
        (tmp_path / f"{number}.txt").write_text("a flag")
    crops, fingerprints = {}, {}
    for orient in (True, False):
        made = config(path=str(tmp_path), num_validation=1, orient=orient, decode=decode)
        source, _ = make_sources(made, 24)
        tokenizer: Tokenizer = Words()  # type: ignore[assignment]
        examples = make_examples(made, source, tokenizer, 24)
        crops[orient] = examples.crop(source[0], np.zeros(3)).astype(int)
        fingerprints[orient] = examples.fingerprint()
    assert (crops[True][:4, :, 0] > 200).all()
    assert (crops[True][8:, :, 2] > 200).all()
    assert not (crops[False][:4, :, 0] > 200).all()
    assert fingerprints[True] == fingerprints[False] | {"orient": True}
