"""Records by index from WebDataset tars, ArrayRecord, TFDS and tables, all behind one interface: `Source`.

The formats share a file because each is short and only side by side do they show what the interface asks for. A source
is cheap to send to a worker process: it holds an index, and every process opens the files when it first reads.
"""

import copy
import functools
import hashlib
import itertools
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from glob import glob
from typing import IO, Any, Protocol

import numpy as np

Record = dict[str, Any]
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
MAX_CAPTION_BYTES = 2**20  # of one .txt or .json; more is no caption
_NO_CAPTION = "no caption, or only empty ones"
_MAX_OPEN_FILES = 256  # a process; shards beyond that are opened for each read


class BrokenRecordError(ValueError):
    """A record that cannot be used; the pipeline counts and skips it."""

    def __init__(self, record_id: str, reason: str):
        super().__init__(record_id, reason)  # both, or the error would not survive the way from a worker process
        self.record_id = record_id
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.record_id}: {self.reason}"


class Source(Protocol):
    """Random access to records; picklable, safe to read from several threads and after a fork.

    A record is {"id": str, "image": encoded bytes or uint8 [H, W, 3], "captions": tuple of str} and, in a labelled
    source, "label": int. Captions are stripped and none is empty; only labelled records may have none.

    Attributes:
      broken: (id, reason) of what was found unusable while indexing; len() does not count it.
      class_names: the names of the labels 0, 1, ..., or None.
    """

    broken: list[tuple[str, str]]
    class_names: tuple[str, ...] | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """Raises BrokenRecordError for a record that cannot be used, IndexError outside [0, len)."""
        ...

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions alone, without reading the image where the format allows it. Raises like indexing."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the data (str, int, float or list values), the same wherever the files lie."""
        ...


class WebDatasetSource:
    """Tars of KEY.jpg (jpeg, png, webp) with KEY.txt (one caption) and/or KEY.json (`captions` or `caption`).

    As in WebDataset the key is the name up to the first dot after the last slash; captions in the JSON win over the
    text. Tar headers and captions are read once, when the source is made; the index has 48 bytes and the key a record.
    Links, absolute names and names with ".." are refused. A shard that is cut off keeps its complete records and gives
    one entry in `broken`. The id of a record is SHARD/KEY.

    Args:
      path: a tar, a folder of tars, a glob, or a pattern such as train-{00000..00011}.tar.

    Raises:
      ValueError: nothing at path, or no usable record in it.
    """

    class_names: tuple[str, ...] | None = None

    def __init__(self, path: str):
        self._paths = _find_files(path, r"\.tar", "a tar, a folder of tars, a glob or a {00000..00011}.tar pattern")
        self._names = _relative_names(self._paths)
        self._files = _OpenFiles()
        self.broken: list[tuple[str, str]] = []
        self._keys: list[str] = []
        rows = list(itertools.chain.from_iterable(map(self._index_shard, range(len(self._paths)))))
        _require_records(len(rows), path, self.broken, "KEY.jpg with KEY.txt or KEY.json")
        # Columns: shard, image offset, image size, captions offset, captions size, whether the captions are JSON.
        self._index = np.array(rows, np.int64)  # [n, 6]

    def _index_shard(self, shard: int) -> Iterator[tuple[int, ...]]:
        groups, refused, end = _scan_tar(self._paths[shard])
        self.broken += [(f"{self._names[shard]}/{member}", reason) for member, reason in refused]
        if end:
            self.broken.append((self._names[shard], end))
            # The last record may have lost members behind the cut: keep it only if it has as many as the first one.
            if groups and len(groups[last := next(reversed(groups))]) < len(next(iter(groups.values()))):
                del groups[last]
        with open(self._paths[shard], "rb") as file:
            for key, members in groups.items():
                try:
                    row = _index_record(members, file)
                except ValueError as error:
                    self.broken.append((self._record_id(shard, key), str(error)))
                else:
                    self._keys.append(key)
                    yield shard, *row

    def _record_id(self, shard: int, key: str) -> str:
        return f"{self._names[shard].removesuffix('.tar')}/{key}"

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Record:
        captions = self.captions(index)
        shard, offset, size = self._index[index, :3].tolist()
        record_id = self._record_id(shard, self._keys[index])
        return {"id": record_id, "image": self._read(record_id, shard, offset, size), "captions": captions}

    def captions(self, index: int) -> tuple[str, ...]:
        _check_index(index, len(self))
        shard, _, _, offset, size, is_json = self._index[index].tolist()
        record_id = self._record_id(shard, self._keys[index])
        try:
            return _require_captions(_parse_captions(self._read(record_id, shard, offset, size), bool(is_json)))
        except BrokenRecordError:
            raise
        except ValueError as error:  # indexed as good, so the file has changed since
            raise BrokenRecordError(record_id, str(error)) from error

    def _read(self, record_id: str, shard: int, offset: int, size: int) -> bytes:
        try:
            data = self._files.read(self._paths[shard], offset, size)
        except OSError as error:
            raise BrokenRecordError(record_id, str(error)) from error
        if len(data) != size:
            raise BrokenRecordError(record_id, f"{self._names[shard]} is shorter than when it was indexed")
        return data

    def fingerprint(self) -> dict[str, Any]:
        digest = _digest(self._index.tobytes(), "\n".join(self._keys).encode())
        return {"kind": "webdataset", **_describe_files(self._paths), "length": len(self), "digest": digest}


class ArrayRecordSource:
    """ArrayRecord files of serialized tf.train.Example, the form that most of them have; no TensorFlow is needed.

    Features, as `write_array_record` makes them: `image` (encoded bytes), `captions` or `caption` (UTF-8), `id`
    (UTF-8, optional: the index by default), `label` (integer, optional). Broken records show when they are read.

    Args:
      path: a file, a folder of *.array_record files, a glob, or a pattern such as train-{0..7}.array_record.

    Raises:
      ValueError: nothing at path, no record in it, or a file that is no ArrayRecord file or is cut off.
    """

    class_names: tuple[str, ...] | None = None

    def __init__(self, path: str):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        expected = "an ArrayRecord file, a folder of them, a glob or a {0..7}.array_record pattern"
        self._paths = _find_files(path, r"\.array_?record(-\d+-of-\d+)?", expected)
        for file in self._paths:  # one by one, since the library's message does not name the file
            try:
                ArrayRecordDataSource(file)
            except (RuntimeError, ValueError) as error:
                raise ValueError(f"{file} is cut off or not an ArrayRecord file: {error}") from error
        data = ArrayRecordDataSource(self._paths)
        self.broken: list[tuple[str, str]] = []
        self._length = len(data)
        _require_records(self._length, path, [], "tf.train.Example records")
        self._reader = _PerProcess(functools.partial(copy.copy, data))  # a copy of it has no open file

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        from tensorflow_datasets.proto import tf_example_pb2

        _check_index(index, len(self))
        record_id = str(index)
        try:
            feature = tf_example_pb2.Example.FromString(self._reader.get()[index]).features.feature
            found = ", ".join(sorted(feature))
            if ids := feature["id"].bytes_list.value:
                record_id = ids[0].decode()
            images, labels = feature["image"].bytes_list.value, feature["label"].int64_list.value
            if len(images) != 1:
                raise ValueError(f"expected one image, not {len(images)}; the features are {found}")
            captions = _clean_captions([*feature["captions"].bytes_list.value, *feature["caption"].bytes_list.value])
            record: Record = {"id": record_id, "image": images[0], "captions": captions}
            if labels:
                return record | {"label": labels[0]}
            _require_captions(captions)
        except Exception as error:  # the reader raises RuntimeError, the parser DecodeError
            raise BrokenRecordError(record_id, str(error)) from error
        return record

    def captions(self, index: int) -> tuple[str, ...]:
        return self[index]["captions"]

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "array_record", **_describe_files(self._paths), "length": len(self)}


def write_array_record(path: str, records: Iterable[Record]) -> int:
    """Writes records whose images are encoded bytes in the form that ArrayRecordSource reads; returns their number.

    The file gets its name only when it is complete.
    """
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    unfinished = f"{path}.unfinished"
    writer = ArrayRecordWriter(unfinished, "group_size:1")  # the fastest to read by index
    count = 0
    try:
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
            writer.write(example.SerializeToString())
            count += 1
    except BaseException:
        writer.close()
        os.remove(unfinished)
        raise
    writer.close()
    os.replace(unfinished, path)
    return count


class TfdsSource:
    """A split of a TFDS dataset prepared with file_format=array_record; needs no TensorFlow.

    The dataset must have a feature `image` and one of `captions`, `caption`, `text` (a text, a list of them or, as in
    COCO, of {"text"}) and `label`. Images stay encoded. The id of a record is NAME/VERSION/SPLIT/index; broken records
    show when they are read.

    Args:
      name: such as "cifar10", "cifar10:3.0.2" or "coco_captions/2014".
      split: such as "train" or "train[:90%]".
      data_dir: the folder that holds the folder NAME.

    Raises:
      ValueError: not prepared or in another file format (with the command to prepare it), unknown split, no image or
        neither captions nor labels, missing files.
    """

    def __init__(self, name: str, split: str, data_dir: str):
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.read_only_builder import builder_from_files

        _refuse_url(data_dir)
        prepare = (
            f"prepare it with: python -c \"import tensorflow_datasets as tfds; tfds.builder('{name}', "
            f"data_dir='{data_dir}', file_format='array_record').download_and_prepare()\""
        )
        try:
            builder = builder_from_files(name, data_dir=data_dir)  # files only: runs no dataset code, asks no network
        except tfds.core.DatasetNotFoundError:
            raise ValueError(f"no prepared dataset {name!r} in {data_dir!r}; {prepare}") from None
        info = builder.info
        if info.file_format is None or info.file_format.value != "array_record":
            raise ValueError(f"{name!r} in {data_dir!r} is not in the array_record format; {prepare}")
        try:
            files = [file.filename for file in info.splits[split].file_instructions]
        except (KeyError, ValueError):
            raise ValueError(f"{name!r} has no split {split!r}; it has {', '.join(info.splits)}") from None
        if missing := [file for file in files if not os.path.isfile(file)]:
            raise ValueError(
                f"{name!r} in {data_dir!r} lacks {len(missing)} file(s), the first {missing[0]}; {prepare}"
            )
        self._captions_key = next((key for key in ("captions", "caption", "text") if key in info.features), None)
        if "image" not in info.features or (self._captions_key is None and "label" not in info.features):
            found = ", ".join(info.features)
            raise ValueError(f"{name!r} needs image and one of captions, caption, text, label; it has {found}")
        names = getattr(info.features["label"], "names", None) if "label" in info.features else None
        self.class_names: tuple[str, ...] | None = tuple(names) if names else None
        self.broken: list[tuple[str, str]] = []
        self._paths = sorted(set(files))
        self._name = f"{info.full_name}/{split}"
        data = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        self._length = len(data)
        _require_records(self._length, f"{self._name} of {data_dir}", [], "records")
        self._reader = _PerProcess(functools.partial(_reopen_tfds, data))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        _check_index(index, len(self))
        record_id = f"{self._name}/{index}"
        try:
            example = self._reader.get()[index]
            record: Record = {"id": record_id, "image": example["image"], "captions": ()}
            if self._captions_key:
                captions = example[self._captions_key]
                captions = captions["text"] if isinstance(captions, Mapping) else captions
                record["captions"] = _require_captions(_clean_captions(captions))
            if "label" in example:
                record["label"] = int(example["label"])
                if self.class_names and not 0 <= record["label"] < len(self.class_names):
                    raise ValueError(f"label {record['label']} is outside [0, {len(self.class_names)})")
        except Exception as error:  # the reader raises RuntimeError, the parsers KeyError, DecodeError, ...
            raise BrokenRecordError(record_id, str(error)) from error
        return record

    def captions(self, index: int) -> tuple[str, ...]:
        return self[index]["captions"]

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "tfds", "name": self._name, **_describe_files(self._paths), "length": len(self)}


class TableSource:
    """A CSV or Parquet file with the column `image` and one of `captions`, `caption` and `label`; `id` is optional.

    `image` is a path relative to the table's folder or, in Parquet, encoded bytes; `captions` is a list of strings,
    in CSV written as JSON; `label` is an integer, or a name: the sorted names become the class names. All but image
    bytes is held in memory. Image bytes are read by row group, so keep the groups small (about 100 rows).

    Raises:
      ValueError: no such file, not CSV or Parquet, missing columns (naming those there are), or no usable row.
    """

    def __init__(self, path: str):
        import pyarrow as pa
        import pyarrow.parquet as pq

        found = _find_files(path, r"\.(csv|parquet)", "a .csv or .parquet file")
        if len(found) > 1:
            raise ValueError(f"{path} matches {len(found)} tables, the first two {found[:2]}; give one")
        self._path = found[0]
        self.broken: list[tuple[str, str]] = []
        try:
            columns, self._image_bytes = _read_table(self._path, self.broken)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{self._path} is not a readable CSV or Parquet file: {error}") from error
        self._captions_key = next((key for key in ("captions", "caption") if key in columns), None)
        self.class_names = _name_labels(columns)
        rows = []
        for row in range(len(columns["row"])):
            values = {name: column[row] for name, column in columns.items()}
            record_id = str(row)
            try:
                given = values.get("id")
                record_id = (str(given) if isinstance(given, int) else _decode(given)) or record_id
                rows.append({"id": record_id, **self._clean_row(values)})
            except ValueError as error:
                self.broken.append((record_id, str(error)))
        _require_records(len(rows), path, self.broken, "rows")
        self._digest = _digest(json.dumps(rows).encode())
        self._rows = pa.Table.from_pylist(rows)  # compact, and quick to pickle
        # Never pickled: the statistics in the footer may hold whole images.
        self._metadata = _PerProcess(functools.partial(pq.read_metadata, self._path))
        self._cached_group: tuple[int, Any] = (-1, None)

    def _clean_row(self, values: Mapping[str, Any]) -> dict[str, Any]:
        cleaned: dict[str, Any] = {"row": values["row"], "captions": ()}
        if not self._image_bytes:
            cleaned["image"] = _decode(values["image"])
            if not cleaned["image"] or not os.path.isfile(self._image_path(cleaned["image"])):
                raise ValueError(f"image {cleaned['image']!r} is not a file in the folder of the table")
        if self._captions_key:
            captions = values[self._captions_key] or b""
            if self._captions_key == "captions" and isinstance(captions, bytes):
                captions = _parse_json(captions)
            cleaned["captions"] = _require_captions(_clean_captions(captions))
        if "label" in values:
            if values["label"] is None or values["label"] < 0:
                raise ValueError(f"label is {'missing' if values['label'] is None else values['label']}")
            cleaned["label"] = values["label"]
        return cleaned

    def _image_path(self, name: str) -> str:
        return os.path.join(os.path.dirname(self._path), name)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        captions = self.captions(index)
        row = {name: self._rows[name][index].as_py() for name in self._rows.column_names}
        try:
            image = self._read_image_bytes(row["row"]) if self._image_bytes else self._read_file(row["image"])
        except OSError as error:
            raise BrokenRecordError(row["id"], str(error)) from error
        if not image:
            raise BrokenRecordError(row["id"], "empty image")
        record: Record = {"id": row["id"], "image": image, "captions": captions}
        return record | {"label": row["label"]} if "label" in row else record

    def _read_file(self, name: str) -> bytes:
        with open(self._image_path(name), "rb") as file:
            return file.read()

    def _read_image_bytes(self, row: int) -> bytes:
        import pyarrow.parquet as pq

        metadata = self._metadata.get()
        group = 0
        while row >= metadata.row_group(group).num_rows:
            row -= metadata.row_group(group).num_rows
            group += 1
        cached, images = self._cached_group  # for reading in order; one tuple, so that threads need no lock
        if cached != group:
            with pq.ParquetFile(self._path, metadata=metadata) as file:
                images = file.read_row_group(group, columns=["image"])["image"]
            self._cached_group = (group, images)
        return images[row].as_py()

    def captions(self, index: int) -> tuple[str, ...]:
        _check_index(index, len(self))
        return tuple(self._rows["captions"][index].as_py())

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "table", **_describe_files([self._path]), "length": len(self), "digest": self._digest}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cached_group": (-1, None)}


class SubsetSource:
    """The records [start, stop) of another source, as to hold out a validation part.

    `broken` is the whole source's: what is broken has no place in the order.
    """

    def __init__(self, source: Source, start: int, stop: int):
        if not 0 <= start < stop <= len(source):
            raise ValueError(f"the range [{start}, {stop}) is empty or not within the source's {len(source)} records")
        self._source: Source = source
        self._start, self._stop = start, stop
        if isinstance(source, SubsetSource):  # of the whole, so that equal ranges have equal fingerprints
            self._source = source._source
            self._start, self._stop = source._start + start, source._start + stop
        self.broken = source.broken
        self.class_names = getattr(source, "class_names", None)

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, index: int) -> Record:
        _check_index(index, len(self))
        return self._source[self._start + index]

    def captions(self, index: int) -> tuple[str, ...]:
        _check_index(index, len(self))
        return self._source.captions(self._start + index)

    def fingerprint(self) -> dict[str, Any]:
        return {**self._source.fingerprint(), "length": len(self), "start": self._start, "stop": self._stop}


def make_source(kind: str, path: str, split: str = "", name: str = "") -> Source:
    """The source of a config's data section.

    Args:
      kind: webdataset, array_record, table or tfds.
      path: see the class; for tfds its data_dir or, without a name, the dataset's folder DATA_DIR/NAME[/VERSION].
      split, name: of a tfds dataset; unused elsewhere.

    Raises:
      ValueError: an unknown kind, no split for tfds, and what the classes raise: a path that is missing, empty, remote
        or of another form.
    """
    if kind == "tfds":
        if not split or not path:
            raise ValueError(f"tfds needs a path and a split such as train; got path {path!r} and split {split!r}")
        if not name:
            path, name = os.path.split(path.rstrip("/"))
            if os.path.isfile(os.path.join(path, name, "dataset_info.json")):  # the folder of one version
                path, name = os.path.dirname(path), f"{os.path.basename(path)}:{name}"
        return TfdsSource(name, split, path or ".")
    makers: dict[str, Callable[[str], Source]] = {
        "webdataset": WebDatasetSource,
        "array_record": ArrayRecordSource,
        "table": TableSource,
    }
    if kind not in makers:
        raise ValueError(f"unknown kind of data {kind!r}; known: {', '.join(makers)}, tfds")
    return makers[kind](path)


class _OpenFiles:
    """Files opened when first read; positional reads, so threads and forked processes do not disturb each other."""

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}

    def read(self, path: str, offset: int, size: int) -> bytes:
        if path not in self._descriptors and len(self._descriptors) >= _MAX_OPEN_FILES:
            with open(path, "rb") as file:
                return os.pread(file.fileno(), size, offset)
        if path not in self._descriptors:
            opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if self._descriptors.setdefault(path, opened) != opened:  # another thread was faster
                os.close(opened)
        return os.pread(self._descriptors[path], size, offset)

    def __reduce__(self) -> tuple:
        return _OpenFiles, ()

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)


class _PerProcess:
    """A reader that each process makes for itself, as ArrayRecord's threads and files do not survive a fork."""

    def __init__(self, make: Callable[[], Any]):
        self._make = make
        self._made: dict[int, Any] = {}

    def get(self) -> Any:
        process = os.getpid()
        return self._made[process] if process in self._made else self._made.setdefault(process, self._make())

    def __reduce__(self) -> tuple:
        return _PerProcess, (self._make,)


def _reopen_tfds(data: Any) -> Any:
    reopened = copy.copy(data)
    reopened.data_source = copy.copy(data.data_source)
    return reopened


def _scan_tar(path: str) -> tuple[dict[str, dict[str, tuple[int, int]]], list[tuple[str, str]], str | None]:
    """Returns key -> suffix -> (offset, size) of the complete members, (name, reason) of refused ones, and where and
    how the tar ends if it does not end as it should."""
    groups: dict[str, dict[str, tuple[int, int]]] = {}
    refused: list[tuple[str, str]] = []
    size = os.path.getsize(path)
    end = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.offset_data + member.size > size:
                    return groups, refused, f"tar cut off at byte {size}, within {member.name}"
                end = tar.offset
                name = member.name.removeprefix("./")
                if member.isdir():
                    continue
                if reason := _refusal(member):
                    refused.append((name.encode(errors="replace").decode(), reason))
                    continue
                folder, slash, base = name.rpartition("/")
                stem, _, suffix = base.partition(".")
                suffix = suffix.lower()
                if suffix not in (*IMAGE_SUFFIXES, "txt", "json"):
                    continue
                group = groups.setdefault(folder + slash + stem, {})
                if suffix in group:
                    refused.append((name, "occurs twice in the tar"))
                group.setdefault(suffix, (member.offset_data, member.size))
    except (tarfile.TarError, ValueError, OverflowError) as error:  # the last two from damaged extended headers
        if not groups:
            return groups, refused, f"not an uncompressed tar, or cut off at byte {size}: {error}"
        return groups, refused, f"tar cut off at byte {size}: {error}"
    with open(path, "rb") as file:  # tarfile takes a bad header for the end
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            return groups, refused, f"tar cut off or damaged at byte {end} of {size}"
    return groups, refused, None


def _refusal(member: tarfile.TarInfo) -> str | None:
    if not member.isreg() or member.issparse():
        return "a link, a sparse or a special file, not a plain one"
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "the name leads out of the tar"
    try:
        member.name.encode()
    except UnicodeEncodeError:
        return "the name is not UTF-8"
    return None


def _index_record(members: Mapping[str, tuple[int, int]], file: IO[bytes]) -> tuple[int, ...]:
    """Returns image offset and size, captions offset and size, and 1 if those are JSON; ValueError if unusable."""
    image = next((members[suffix] for suffix in IMAGE_SUFFIXES if suffix in members), None)
    if image is None:
        raise ValueError("caption without image")
    if image[1] == 0:
        raise ValueError("empty image")
    sources = [suffix for suffix in ("json", "txt") if suffix in members]
    if not sources:
        raise ValueError("image without caption: no .txt and no .json")
    for suffix in sources:
        offset, size = members[suffix]
        if size > MAX_CAPTION_BYTES:
            raise ValueError(f".{suffix} of {size} bytes, at most {MAX_CAPTION_BYTES}")
        file.seek(offset)
        if _parse_captions(file.read(size), suffix == "json"):
            return *image, offset, size, int(suffix == "json")
    raise ValueError(_NO_CAPTION)


def _parse_captions(data: bytes, is_json: bool) -> tuple[str, ...]:
    """The captions in a .txt or .json file; empty if there are none, ValueError if they cannot be read."""
    if not is_json:
        return _clean_captions(data)
    content = _parse_json(data)
    if not isinstance(content, dict):
        raise ValueError(f"the JSON is a {type(content).__name__}, not an object with captions or caption")
    return _clean_captions(content.get("captions") or content.get("caption") or ())


def _parse_json(data: bytes) -> Any:
    try:
        return json.loads(_decode(data))
    except json.JSONDecodeError as error:
        raise ValueError(f"captions are not valid JSON: {error}") from None
    except RecursionError:
        raise ValueError("captions are not valid JSON: nested too deep") from None


def _clean_captions(captions: Any) -> tuple[str, ...]:
    """str, bytes or a sequence of them -> stripped, without empty ones; ValueError if it is something else."""
    if isinstance(captions, str | bytes):
        captions = [captions]
    if not isinstance(captions, Sequence | np.ndarray):
        raise ValueError(f"captions are a {type(captions).__name__}, not strings")
    return tuple(text for caption in captions if (text := _decode(caption).strip()))


def _require_captions(captions: tuple[str, ...]) -> tuple[str, ...]:
    if not captions:
        raise ValueError(_NO_CAPTION)
    return captions


def _decode(text: Any) -> str:
    if text is None:
        return ""
    if not isinstance(text, str | bytes):
        raise ValueError(f"expected text, found {type(text).__name__}")
    try:
        return text.encode().decode() if isinstance(text, str) else text.decode()  # a str may hold lone surrogates
    except UnicodeError:
        raise ValueError("text is not valid UTF-8") from None


def _read_table(path: str, broken: list[tuple[str, str]]) -> tuple[dict[str, list], bool]:
    """Returns the known columns, text as bytes, with the row numbers as `row`; and whether images are bytes.

    Image bytes are not read. Rows of another length go to `broken`.
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    known = ("id", "image", "captions", "caption", "label")
    if path.endswith(".csv"):

        def skip(row: Any) -> str:
            broken.append((f"line {row.number}", f"{row.actual_columns} columns, not {row.expected_columns}"))
            return "skip"

        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(use_threads=False),  # or rows would have no number
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
            convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(known, pa.binary())),
        )
        names, image_bytes = table.column_names, False
    else:
        schema = pq.read_schema(path)
        names = schema.names
        image_bytes = "image" in names and str(schema.field("image").type) in ("binary", "large_binary")
        table = pq.read_table(path, columns=[x for x in known if x in names and not (x == "image" and image_bytes)])
    if "image" not in names or not {"captions", "caption", "label"} & set(names):
        raise ValueError(f"{path} needs image and one of captions, caption, label; its columns are {', '.join(names)}")
    columns = {name: _text_as_bytes(table[name]).to_pylist() for name in known if name in table.column_names}
    return columns | {"row": list(range(len(table)))}, image_bytes


def _text_as_bytes(column: Any) -> Any:
    """A column of text, or of lists of text, as bytes: Arrow gives up a whole column for one invalid string."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_integer(column.type) or pa.types.is_binary(column.type):
        return column
    return column.cast(pa.list_(pa.binary()) if pa.types.is_list(column.type) else pa.binary())


def _name_labels(columns: dict[str, list]) -> tuple[str, ...] | None:
    """Makes the labels integers, in place (None if missing); returns the names if they were names."""
    if "label" not in columns:
        return None
    texts = [_decode(str(label) if isinstance(label, int) else label).strip() for label in columns["label"]]
    if all(re.fullmatch(r"-?\d+", text) for text in texts if text):
        columns["label"] = [int(text) if text else None for text in texts]
        return None
    names = tuple(sorted(set(texts) - {""}))
    number = {name: i for i, name in enumerate(names)}
    columns["label"] = [number.get(text) for text in texts]
    return names


def _find_files(path: str, suffix: str, expected: str) -> list[str]:
    """The files that a path, folder, glob or {00..11} pattern names, in order; ValueError if there are none.

    `suffix` is a regular expression for the names that count in a folder.
    """
    _refuse_url(path)
    path = os.path.expanduser(path)
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        names = sorted(name for name in os.listdir(path) if re.search(f"{suffix}$", name) and not name.startswith("."))
        if not names:
            raise ValueError(f"no data in the folder {path!r}: expected {expected}")
        return [os.path.join(path, name) for name in names]
    patterns = _expand_range(path)
    found = [sorted(filter(os.path.isfile, glob(pattern))) for pattern in patterns]
    if not any(found):
        raise ValueError(f"no data at {path!r}, which does not exist: expected {expected}")
    if not all(found):
        missing = [pattern for pattern, files in zip(patterns, found) if not files]
        raise ValueError(f"{path}: {len(missing)} of {len(patterns)} files do not exist, the first is {missing[0]}")
    return list(itertools.chain.from_iterable(found))


def _expand_range(path: str) -> list[str]:
    match = re.search(r"\{(\d+)\.\.(\d+)\}", path)
    if match is None:
        return [path]
    first, last = match.groups()
    numbers = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    return [name for number in numbers for name in _expand_range(path.replace(match[0], number, 1))]


def _refuse_url(path: str) -> None:
    if "://" in path:
        raise ValueError(f"{path} is remote, and only local paths can be read so far: copy or mount it first")


def _relative_names(paths: Sequence[str]) -> list[str]:
    paths = [os.path.abspath(path) for path in paths]
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, root).replace(os.sep, "/") for path in paths]


def _describe_files(paths: Sequence[str]) -> dict[str, list]:
    return {"files": _relative_names(paths), "sizes": [os.path.getsize(path) for path in paths]}


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _check_index(index: int, length: int) -> None:
    if not 0 <= index < length:
        raise IndexError(f"record {index} of {length}")


def _require_records(count: int, path: str, broken: Sequence[tuple[str, str]], expected: str) -> None:
    if count == 0:
        found = "; ".join(f"{name}: {reason}" for name, reason in broken[:3])
        raise ValueError(f"no usable record in {path}: {found or f'expected {expected}'}")
