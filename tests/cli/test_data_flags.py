from pathlib import Path

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from clip_jax.cli import data_flags


def opened(needs_captions: bool, **values: str) -> int:
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**values):
        return len(data_flags.open_source("folder", "photos", needs_captions))


def pictures(folder: Path) -> Path:
    for i in range(2):
        Image.fromarray(np.full((9, 9, 3), i, np.uint8)).save(folder / f"{i}.png")
    return folder


def test_a_table_of_pictures_alone_opens_where_no_captions_are_needed(tmp_path):
    (pictures(tmp_path) / "t.csv").write_text("image\n0.png\n1.png\n")
    assert opened(False, source="table", path=str(tmp_path / "t.csv")) == 2
    with pytest.raises(ValueError, match=r"needs image and one of captions, caption, label; its columns are image \("):
        opened(True, source="table", path=str(tmp_path / "t.csv"))


def test_columns_separator_and_allowed_root_are_flags(tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "photos").mkdir()
    pictures(tmp_path / "photos")
    (tmp_path / "lists" / "t.csv").write_text("where#about\n../photos/0.png#a\n../photos/1.png#b\n")
    values = {"source": "table", "path": str(tmp_path / "lists" / "t.csv"), "image_field": "where"}
    values |= {"captions_field": "about", "separator": "#"}
    assert opened(True, link_root=str(tmp_path / "photos"), **values) == 2
    with pytest.raises(ValueError, match=r"leads out of the folder of the table: --link_root=DIR, or link_root of"):
        opened(True, **values)
