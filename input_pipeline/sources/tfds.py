"""TFDS datasets that were prepared as ArrayRecord files."""

import copy
import functools
import os
import re
from collections.abc import Mapping
from typing import Any

from input_pipeline.sources import base, opener
from input_pipeline.sources.base import FilesSource, Record
from input_pipeline.sources.remote import is_remote
from input_pipeline.storage import digest

FILE_NAMES = ("file_name", "filename", "image/filename", "image/file_name", "image_name")


class NotPreparedError(ValueError):
    """The data set is not there, or not whole, or in another form; the message says the command that prepares it."""


class TfdsSource(FilesSource):
    """A split of a TFDS dataset prepared with file_format=array_record; needs no TensorFlow.

    The dataset must have a feature `image` and one of `captions`, `caption`, `text` (a text, a list of them or, as in
    COCO, of {"text"}), `label` and `labels`. With `labels`, several an image, a record has "labels" and "difficult",
    tuples of int; the latter are those that `labels_no_difficult`, as VOC has it, lacks. Images stay encoded. The id of
    a record is NAME/VERSION/SPLIT/index, its path one of the features `FILE_NAMES`; broken records show when they are
    read.

    Args:
      name: such as "cifar10", "cifar10:3.0.2" or "coco_captions/2014".
      split: such as "train" or "train[:90%]".
      data_dir: the folder that holds the folder NAME. The reader opens local files alone: of a URL the folder of the
        version is copied into `opener.cache_folder` first, once.
      captions_field: the feature with the captions; empty takes the first of those above.
      require_captions: False takes records without captions and labels, too.

    Raises:
      NotPreparedError: not prepared, damaged, missing files or another file format.
      ValueError: unknown split, no image or neither captions nor labels.
    """

    def __init__(self, name: str, split: str, data_dir: str, captions_field: str = "", require_captions: bool = True):
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.read_only_builder import builder_from_files

        if is_remote(data_dir):
            data_dir = _copy_version(data_dir, name, split)
        prepare = (
            f"prepare it with: python -c \"import tensorflow_datasets as tfds; tfds.builder('{name}', "
            f"data_dir='{data_dir}', file_format='array_record').download_and_prepare()\""
        )
        try:
            builder = builder_from_files(name, data_dir=data_dir)  # files only: runs no dataset code, asks no network
        except tfds.core.DatasetNotFoundError:
            raise NotPreparedError(f"no prepared dataset {name!r} in {data_dir!r}; {prepare}") from None
        except Exception as error:  # of damaged metadata: the parsers have several, without a common class
            raise NotPreparedError(f"{name!r} in {data_dir!r} cannot be read ({error}); {prepare}") from error
        info = builder.info
        if info.file_format is None or info.file_format.value != "array_record":
            raise NotPreparedError(f"{name!r} in {data_dir!r} is not in the array_record format; {prepare}")
        try:
            files = [file.filename for file in info.splits[split].file_instructions]
        except (KeyError, ValueError):
            raise ValueError(f"{name!r} has no split {split!r}; it has {', '.join(info.splits)}") from None
        if missing := [file for file in files if not os.path.isfile(file)]:
            raise NotPreparedError(
                f"{name!r} in {data_dir!r} lacks {len(missing)} file(s), the first {missing[0]}; {prepare}"
            )
        captions_keys = (captions_field,) if captions_field else ("captions", "caption", "text")
        self._captions_key = next((key for key in captions_keys if key in info.features), None)
        labels = next((key for key in ("label", "labels") if key in info.features), None)
        self._require_captions = require_captions
        if "image" not in info.features or (require_captions and self._captions_key is None and labels is None):
            found = ", ".join(info.features)
            wanted = ", ".join((*captions_keys, "label", "labels"))
            raise ValueError(f"{name!r} needs image and one of {wanted}; it has {found}")
        label: Any = info.features[labels] if labels else None
        names = getattr(label.feature if labels == "labels" else label, "names", None)
        self.multi_label = labels == "labels"
        self._file_name = next((key for key in FILE_NAMES if key in info.features), "")
        if self._file_name and not isinstance(info.features[self._file_name], tfds.features.Text):
            self._file_name = ""
        self.class_names = tuple(names) if names else None
        super().__init__(sorted(set(files)), captions_field)
        self._name = f"{info.full_name}/{split}"
        data = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        self._length = len(data)
        base.require_records(self._length, f"{self._name} of {data_dir}", [], "records")
        self._reader = base.PerProcess(functools.partial(_reopen_tfds, data))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        base.check_index(index, len(self))
        record_id = f"{self._name}/{index}"
        with base.as_broken(record_id, Exception):  # RuntimeError of the reader, KeyError, DecodeError, ... of parsers
            example = self._reader.get()[index]
            record: Record = {"id": record_id, "image": example["image"], "captions": ()}
            if self._file_name:
                record["path"] = example[self._file_name].decode(errors="replace")
            if self._captions_key:
                captions = example[self._captions_key]
                captions = captions["text"] if isinstance(captions, Mapping) else captions
                record["captions"] = base.clean_captions(captions)
                if self._require_captions:
                    base.require_captions(record["captions"])
            if "label" in example:
                record["label"] = int(example["label"])
                self._check_label(record["label"])
            elif self.multi_label:
                every = {int(label) for label in example["labels"]}
                sure = {int(label) for label in example.get("labels_no_difficult", example["labels"])}
                for label in sorted(every):
                    self._check_label(label)
                record |= {"labels": tuple(sorted(sure)), "difficult": tuple(sorted(every - sure))}
        return record

    def _check_label(self, label: int) -> None:
        if self.class_names and not 0 <= label < len(self.class_names):
            raise ValueError(f"label {label} is outside [0, {len(self.class_names)})")

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "tfds", "name": self._name, **self._files, "length": len(self)}


def _copy_version(data_dir: str, name: str, split: str) -> str:
    """Copies what a split needs of a remote data set's newest or named version; returns the copy's data_dir."""
    parts, version = name.partition(":")[0].split("/"), name.partition(":")[2]
    folder = functools.reduce(opener.join, parts, data_dir)
    if not version:
        found = [x for x in opener.list_names(folder) if re.fullmatch(r"\d+\.\d+\.\d+", x)]
        if not found:
            raise NotPreparedError(f"no prepared dataset {name!r} in {data_dir!r}: no folder of a version in {folder}")
        version = max(found, key=lambda x: tuple(map(int, x.split("."))))
    folder = opener.join(folder, version)
    shard = re.compile(r"-([\w]+)\.(?:array_record|tfrecord|riegeli)\S*-of-\d+$")
    wanted = set(re.findall(r"\w+", split))  # "train[:90%]+test" names train and test
    names = [x for x in opener.list_names(folder) if (m := shard.search(x)) is None or m[1] in wanted]
    states = [[file, *opener.file_state(opener.join(folder, file))] for file in names]
    root = opener.cache_folder() / "tfds" / digest(folder.encode(), repr(states).encode())
    target = root.joinpath(*parts, version)
    target.mkdir(parents=True, exist_ok=True)
    for file in names:
        if not (target / file).exists():  # a copy is whole, or has no name
            opener.copy_file(opener.join(folder, file), target / file)
    return str(root)


def _reopen_tfds(data: Any) -> Any:
    reopened = copy.copy(data)
    reopened.data_source = copy.copy(data.data_source)
    return reopened
