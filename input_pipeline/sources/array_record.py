"""ArrayRecord files of tf.train.Example, read and written."""

import copy
import fnmatch
import functools
import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any

from input_pipeline.sources import base, opener
from input_pipeline.sources.base import BrokenRecordError, FilesSource, Record
from input_pipeline.storage import atomic_path


class ArrayRecordSource(FilesSource):
    """ArrayRecord files of serialized tf.train.Example, the form that most of them have; no TensorFlow is needed.

    Features, as `write_array_record` makes them: `image` (encoded bytes), `captions` or `caption` (UTF-8), `id`
    (UTF-8, optional: the index by default), `label` (integer, optional). Broken records show when they are read.

    Args:
      path: a file, a folder of *.array_record files, a glob, or a pattern such as train-{0..7}.array_record. Of files
        named K-of-N all that the path could mean have to be there. The reader opens local files alone: those of a URL
        are copied into `opener.cache_folder` first, once.
      captions_field: the feature with the captions; empty takes those above.
      require_captions: False takes records without captions.

    Raises:
      ValueError: nothing at path, no record in it, a missing file of N, or one that is no ArrayRecord file or cut off.
    """

    def __init__(self, path: str, captions_field: str = "", require_captions: bool = True):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        expected = "an ArrayRecord file, a folder of them, a glob or a {0..7}.array_record pattern"
        suffix = r"\.array_?record(-\d+-of-\d+)?"
        files = base.find_files(path, suffix, expected)
        _require_all_of_n(path, files)
        super().__init__(files, captions_field)
        copies = [opener.local_copy(file) for file in files]
        for file in copies:  # one by one, since the library's message does not name the file
            try:
                ArrayRecordDataSource(file)
            except (RuntimeError, ValueError) as error:
                raise ValueError(f"{file} is cut off or not an ArrayRecord file: {error}") from error
        data = ArrayRecordDataSource(copies)
        self._captions_keys = (captions_field,) if captions_field else ("captions", "caption")
        self.unread = base.count_beside(path, suffix)
        if self.unread and opener.is_file(opener.join(os.path.dirname(files[0]), "manifest.json")):
            self.unread = Counter()  # what `prepare` wrote
        self._require_captions = require_captions
        self._length = len(data)
        base.require_records(self._length, path, [], "tf.train.Example records")
        self._reader = base.PerProcess(functools.partial(copy.copy, data))  # a copy of it has no open file

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        from tensorflow_datasets.proto import tf_example_pb2

        base.check_index(index, len(self))
        record_id = str(index)
        try:
            feature = tf_example_pb2.Example.FromString(self._reader.get()[index]).features.feature
            found = ", ".join(sorted(feature))
            if ids := feature["id"].bytes_list.value:
                record_id = ids[0].decode()
            images, labels = feature["image"].bytes_list.value, feature["label"].int64_list.value
            if len(images) != 1:
                raise ValueError(f"expected one image, not {len(images)}; the features are {found}")
            texts = [text for key in self._captions_keys for text in feature[key].bytes_list.value]
            captions = base.clean_captions(texts)
            record: Record = {"id": record_id, "image": images[0], "captions": captions}
            if labels:
                return record | {"label": labels[0]}
            if self._require_captions:
                base.require_captions(captions)
        except Exception as error:  # the reader raises RuntimeError, the parser DecodeError
            raise BrokenRecordError(record_id, str(error)) from error
        return record

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "array_record", **self._files, "length": len(self)}


def _require_all_of_n(path: str, files: Sequence[str]) -> None:
    """ValueError where of files K-of-N one is missing that a folder should have, or that a glob would have found."""
    path = os.path.expanduser(path).rstrip("/")
    in_folder = files[0].startswith(f"{path}/")
    if not in_folder and not glob.has_magic(path):
        return
    pattern = f"{glob.escape(path)}/*" if in_folder else path
    matches = (re.fullmatch(r"(.*-)(\d+)(-of-(\d+)[^/]*)", file) for file in files)
    there = set(files)
    for start, digits, rest, count in sorted({(m[1], len(m[2]), m[3], m[4]) for m in matches if m}):
        for name in (f"{start}{k:0{digits}d}{rest}" for k in range(int(count))):
            if name not in there and fnmatch.fnmatchcase(name, pattern):
                raise ValueError(
                    f"{name} is missing, one of {int(count)} files: finish making them, or name those to read by a "
                    "narrower pattern"
                )


def write_array_record(path: str, records: Iterable[Record]) -> int:
    """Writes records whose images are encoded bytes in the form that ArrayRecordSource reads; returns their number.

    The file appears whole or not at all.
    """
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    count = 0
    with (
        atomic_path(path) as partial,
        closing(ArrayRecordWriter(str(partial), "group_size:1")) as writer,  # the fastest to read by index
    ):
        for record in records:
            if not isinstance(record["image"], bytes):
                raise ValueError(f"record {record['id']}: the image must be encoded bytes, not {type(record['image'])}")
            example = tf_example_pb2.Example()
            feature = example.features.feature
            feature["id"].bytes_list.value.append(record["id"].encode())
            feature["image"].bytes_list.value.append(record["image"])
            feature["captions"].bytes_list.value.extend(caption.encode() for caption in record["captions"])
            if "label" in record:
                feature["label"].int64_list.value.append(record["label"])
            writer.write(example.SerializeToString(deterministic=True))  # or the map's order could differ by process
            count += 1
    return count
