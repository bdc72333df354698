import json
import re
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from clip_jax.cli import prepare as prepare_module
from input_pipeline.scenes import SceneSource
from input_pipeline.sources import ArrayRecordSource

VALUES = {
    "source": "scenes",
    "path": None,
    "split": "",
    "captions_field": "",
    "num_scenes": 23,
    "seed": 3,
    "name": "drawn",
    "image_size": 32,
    "shard_size": 10,
    "num_workers": 0,
    "max_broken_share": 0.0,
    "max_caption_length": 0,
    "runner": "local",
}


def run(output: Path | None, **changes) -> int:
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**{**VALUES, "output": output and str(output), **changes}):
        return prepare_module.main()


def test_prepare_by_its_flags(tmp_path, capsys):
    output = tmp_path / "out"
    assert run(output, max_caption_length=12) == 0
    printed = capsys.readouterr()
    source = SceneSource(3, 23, 32)
    kept = [i for i in range(23) if min(map(len, source.captions(i))) <= 12]
    assert 0 < len(kept) < 23
    num_captions = sum(len(text) <= 12 for i in kept for text in source.captions(i))
    megabytes = sum(file.stat().st_size for file in output.glob("*.array_record")) / 1e6
    header, _, row, _, filtered, end = printed.out.splitlines()
    assert re.split(r"  +", header) == [
        *("records", "captions", "MB", "broken", "filtered", "exact duplicates", "near duplicates", "shards")
    ]
    assert row.split()[:5] == [str(len(kept)), str(num_captions), f"{megabytes:.1f}", "0", str(23 - len(kept))]
    assert filtered == f"filtered: {23 - len(kept)} times a caption above 12 characters"
    assert end == f"3 shards made, in {output}"
    assert "23/23" in printed.err
    made = ArrayRecordSource(str(output))
    assert [made[i]["id"] for i in range(len(made))] == [f"scenes/train/3/{i}" for i in kept]
    assert Image.open(output / "statistics.png").size[0] > 1000
    assert {file.name for file in output.iterdir()} == {
        *(f"drawn-{k:05d}-of-00003.{suffix}" for k in range(3) for suffix in ("array_record", "json")),
        *("settings.json", "manifest.json", "broken.jsonl", "duplicates.jsonl", "statistics.json", "statistics.png"),
    }
    assert json.loads((output / "settings.json").read_text())["settings"]["filters"]["max_caption_length"] == 12

    assert run(output, max_caption_length=12) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"nothing to do: {output} is complete"
    with pytest.raises(ValueError, match=r"settings\.filters\.max_caption_length was 12, is 11"):
        run(output, max_caption_length=11)


def test_captions_may_have_another_field(tmp_path):
    Image.new("RGB", (11, 13)).save(tmp_path / "a.png")
    (tmp_path / "a.csv").write_text("image,caption,alt\na.png,usual,other\n")
    changes = {"source": "table", "path": str(tmp_path / "a.csv"), "captions_field": "alt"}
    assert run(tmp_path / "out", **changes) == 0
    assert ArrayRecordSource(str(tmp_path / "out"))[0]["captions"] == ("other",)


def test_what_is_not_read_stands_in_the_manifest_and_below_the_table(tmp_path, capsys):
    for name in ("a.png", "b.pdf", "c.PDF"):
        Image.new("RGB", (11, 13)).save(tmp_path / name, "PNG")
    (tmp_path / "a.txt").write_text("a cat")
    assert run(tmp_path / "out", source="folder", path=str(tmp_path)) == 0
    assert "not read: 2 .pdf" in capsys.readouterr().out.splitlines()
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["unread"] == {".pdf": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "folder"}, "--path is missing: for instance --path=photos"),
        ({"name": "a/b"}, "--name='a/b' must be the beginning of a file's name"),
        ({"image_size": 5}, "image_size=5 must be at least 8 pixels"),
        ({"caption_must_match": "("}, r"--caption_must_match='\(' is no regular expression"),
    ],
)
def test_mistakes_are_reported_before_anything_is_written(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_the_output_has_to_be_said():
    with pytest.raises(ValueError, match="--output is missing: for instance --output=data_256"):
        run(None)
