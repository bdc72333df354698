"""Features on the disk: what their keys distinguish, and damaged files."""

import copy
import dataclasses

import numpy as np
import pytest
from rigged import EMBED_DIM, NAMES, rigged_model, save_picture

from clip_jax.evaluation.suite.feature_store import FeatureStore
from input_pipeline.scenes import SceneSource
from input_pipeline.sources import BrokenRecordError, FolderSource, TableSource

pytestmark = pytest.mark.usefixtures("compile_once")


def store_in(folder, say=print, **changes) -> FeatureStore:
    model, preprocess, tokenizer = rigged_model()
    model = copy.copy(model)
    model.config = dataclasses.replace(model.config, **changes)
    return FeatureStore(folder, model, preprocess, tokenizer, say)


def test_pictures_of_the_same_names_and_sizes_are_distinguished(tmp_path):
    sources = []
    for c, folder in enumerate(("clean", "blurred")):
        save_picture(tmp_path / folder / "ant" / "0.bmp", [c])  # every bitmap of 8x8 pixels has the same size
        sources.append(FolderSource(str(tmp_path / folder), class_folders=True))
    assert sources[0].fingerprint() == sources[1].fingerprint()
    store = store_in(tmp_path / "features")
    assert [int(store.images(source, "photos").embeddings.argmax()) for source in sources] == [0, 1]
    # Not of this process alone.
    again = store_in(tmp_path / "features")
    assert again.source_id(FolderSource(str(tmp_path / "clean"), class_folders=True)) == store.source_id(sources[0])
    assert len(list((tmp_path / "features").iterdir())) == 2


def test_the_id_reads_a_few_pictures_and_ignores_broken_ones():
    class Counted(SceneSource):
        def __getitem__(self, index):
            read.append(index)
            if index == 0:
                raise BrokenRecordError("0", "it is broken")
            return super().__getitem__(index)

    read: list[int] = []
    store, source = store_in("nowhere"), Counted(num_examples=640, image_size=32, seed=0)
    first = store.source_id(source)
    assert read == list(range(0, 640, 10))
    assert store.source_id(source) is first
    assert len(read) == 64


def test_a_repaired_picture_of_a_table_is_encoded(tmp_path):
    save_picture(tmp_path / "a.png", [1])
    (tmp_path / "b.png").write_bytes(b"no picture")
    (tmp_path / "table.csv").write_text("image,label\na.png,ant\nb.png,bee\n")
    counts = []
    for _ in range(2):
        found = store_in(tmp_path / "features").images(TableSource(str(tmp_path / "table.csv")), "photos")
        counts.append((len(found.embeddings), len(found.skipped)))
        save_picture(tmp_path / "b.png", [2])
    assert counts == [(1, 1), (2, 0)]


def test_another_compute_dtype_encodes_anew(tmp_path):
    save_picture(tmp_path / "photos" / "a.png", [1])
    source = FolderSource(str(tmp_path / "photos"))
    for compute_dtype in ("float32", "bfloat16", "float32"):
        store = store_in(tmp_path / "features", compute_dtype=compute_dtype)
        store.images(source, "photos")
        store.classes(NAMES, ("{}",), "photos")
    kinds = sorted(file.name.partition("-")[0] for file in (tmp_path / "features").iterdir())
    assert kinds == ["classes", "classes", "images", "images"]


@pytest.mark.parametrize("place", [8, 10])  # of the flags, whose lowest bit is "encrypted", and of the compression
def test_a_flipped_bit_in_a_headline_of_the_archive_is_reported(place, tmp_path):
    lines: list[str] = []
    store = store_in(tmp_path, say=lines.append)

    def read() -> np.ndarray:
        return store.cached("images", {"of": 1}, "photos", lambda: {"embeddings": np.arange(6.0)})["embeddings"]

    read()
    (file,) = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    data[data.index(b"PK\x01\x02") + place] ^= 1
    file.write_bytes(data)
    np.testing.assert_array_equal(read(), np.arange(6.0))
    assert len(lines) == 1
    assert lines[0].startswith(f"the cache {file.name} of photos is damaged (")
    read()
    assert len(lines) == 1  # it was made again


def test_features_of_texts_that_are_not_finite_are_refused(tmp_path, monkeypatch):
    store = store_in(tmp_path)
    rows = np.ones((3, EMBED_DIM), np.float32)
    rows[1, 5] = np.nan
    monkeypatch.setattr(store._model.encoder, "texts", lambda tokens: rows)
    with pytest.raises(ValueError, match="features of 1 of 3 texts are not finite: its weights are damaged, or"):
        store.texts(np.zeros((3, 1), np.int32))
