"""Pictures and captions of a source as shards of normalised embeddings; see `clip-jax embed`."""

import itertools
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clip_jax.inference.api import Model
from clip_jax.inference.embedding_shards import MANIFEST, Row, Shards
from input_pipeline.examples import load_image
from input_pipeline.open_data import check_broken_share, count_indexed
from input_pipeline.pipeline import BROKEN_REMEMBERED
from input_pipeline.prefetch import load_ahead, progress_bar
from input_pipeline.prepare.folder import LocalFolder
from input_pipeline.sources import BrokenRecordError, Record, Source

SOURCES = ("folder", "webdataset", "tfds", "array_record", "table")
FORMATS = ("parquet", "npy")
DTYPES = ("float32", "float16")
BATCHES_AHEAD = 2  # handed to the device's thread while the next one is prepared; also how far decoding runs ahead


class Tokenize(Protocol):
    """What is needed of a tokenizer: texts to int32 [N, L], counting what was cut to the context."""

    num_truncated: int

    def fingerprint(self) -> dict[str, Any]: ...

    def __call__(self, texts: Sequence[str]) -> np.ndarray: ...


@dataclass(kw_only=True)
class Summary:
    """What one call of `embed` made; shards that were there before are counted in shards_skipped alone."""

    images: int = 0
    captions: int = 0
    truncated: int = 0  # captions longer than the model's context
    broken: list[tuple[str, str]] = field(default_factory=list)  # (id, reason)
    seconds: float = 0.0
    files: list[Path] = field(default_factory=list)
    shards_skipped: int = 0


def embed(
    model: Model,
    preprocess: Callable[[Any], np.ndarray],
    tokenize: Tokenize,
    source: Source,
    output: Path,
    *,
    texts: bool = True,
    file_format: str = "parquet",
    dtype: str = "float32",
    shard_size: int = 4096,
    part: tuple[int, int] = (0, 1),
    batch_size: int = 256,
    max_broken_share: float = 0.01,
    num_threads: int = min(32, os.cpu_count() or 1),
    about: Mapping[str, str] | None = None,
) -> Summary:
    """Writes the shards of this part that are not there yet.

    Batches end with a shard, so its content depends on its records alone; another batch_size can change the last bits,
    and may be chosen when a run resumes.

    Args:
      model, preprocess, tokenize: as `clip_jax.load` gives them; `tokenize.num_truncated` counts what it cut.
      source: the records; those without captions have no text embeddings.
      output: folder for the shards; made when missing.
      texts: embed every caption, too.
      file_format: "parquet" or "npy".
      dtype: of the embeddings written, "float32" or "float16"; they are normalised in float32.
      shard_size: records of a shard.
      part: (i, n): of n machines this is the i-th, counted from 0.
      batch_size: images encoded at once.
      max_broken_share: of the records seen, in [0, 1].
      num_threads: threads that read, decode and resize.
      about: what a reader should know of model and data, such as their names; stands in the manifest.

    Raises:
      ValueError: `output` holds embeddings of another model, source or setting; too many broken records; features that
        are not finite; an argument out of its range.
    """
    _check_numbers(part, max_broken_share, shard_size=shard_size, batch_size=batch_size, num_threads=num_threads)
    for name, value, known in (("file_format", file_format, FORMATS), ("dtype", dtype, DTYPES)):
        if value not in known:
            raise ValueError(f"{name}={value!r} must be one of {', '.join(known)}")
    check_broken_share(len(source.broken), count_indexed(source), source.broken, max_broken_share, "max_broken_share")
    folder = LocalFolder(output)
    shards = Shards(folder=folder, source=source, shard_size=shard_size, file_format=file_format, texts=texts)
    described = {"about": dict(about or {}), **_manifest(model, tokenize, source, shards, dtype)}
    if settings := getattr(getattr(preprocess, "transform", None), "settings", {}):
        described["image_transform"] = settings
    shards.rename_earlier()
    holds = "embeddings of another model, source or other settings"
    shards.claim(
        MANIFEST, json.dumps(described, indent=2) + "\n", holds=holds, may_change=("about", "first_broken_in_index")
    )

    mine = range(part[0], len(shards), part[1])
    todo = sorted(set(shards.missing()) & set(mine))
    summary = Summary(shards_skipped=len(mine) - len(todo))
    total = sum(len(shards.indices(shard)) for shard in mine)
    seen = total - sum(len(shards.indices(shard)) for shard in todo)
    broken = [pair for shard in sorted(set(mine) - set(todo)) for pair in shards.broken(shard)]
    start, truncated_before = time.perf_counter(), tokenize.num_truncated

    def load(index: int) -> Record | BrokenRecordError:
        try:
            record = source[index]
            return {**record, "image": preprocess(load_image(record))}
        except BrokenRecordError as error:
            return error

    bar = progress_bar(total=total, initial=seen, unit=" images")
    indices = itertools.chain.from_iterable(map(shards.indices, todo))
    loaded = load_ahead(load, indices, num_threads, BATCHES_AHEAD * batch_size)
    with bar, closing(loaded):

        def usable(records: Iterable[Record | BrokenRecordError]) -> Iterator[Record]:
            nonlocal seen
            for record in records:
                seen += 1
                bar.update()
                if isinstance(record, BrokenRecordError):
                    broken.append((record.record_id, record.reason))
                    check_broken_share(len(broken), seen, broken, max_broken_share, "max_broken_share", total)
                else:
                    yield record

        for shard in todo:
            num_broken = len(broken)
            records = usable(itertools.islice(loaded, len(shards.indices(shard))))
            rows, image, text = _encode(model, tokenize, records, batch_size, texts)
            shards.write(shard, rows, image.astype(dtype), text.astype(dtype), broken[num_broken:])
            summary.images += len(image)
            summary.captions += len(text)
            summary.broken += broken[num_broken:]
            summary.files += shards.files(shard)
    summary.truncated = tokenize.num_truncated - truncated_before
    summary.seconds = time.perf_counter() - start
    return summary


def _check_numbers(part: tuple[int, int], max_broken_share: float, **at_least_one: int) -> None:
    for name, number in at_least_one.items():
        if number < 1:
            raise ValueError(f"{name}={number} must be at least 1")
    if not 0 <= max_broken_share <= 1:
        raise ValueError(f"max_broken_share={max_broken_share} must lie in [0, 1]")
    if not 0 <= part[0] < part[1]:
        raise ValueError(f"part={part[0]}/{part[1]} must be i/n with 0 <= i < n")


def _manifest(model: Model, tokenize: Tokenize, source: Source, shards: Shards, dtype: str) -> dict[str, Any]:
    """What the embeddings in a folder are of."""
    return {
        "model_fingerprint": model.fingerprint,
        "embed_dim": model.embed_dim,
        "image_size": model.image_size,
        "tokenizer": tokenize.fingerprint(),
        "source": source.fingerprint(),
        "class_names": getattr(source, "class_names", None),
        "num_records": len(source),
        "num_shards": len(shards),
        "shard_size": shards.shard_size,
        "format": shards.file_format,
        "dtype": dtype,
        "texts": shards.texts,
        # Unusable already in the source's index, so the shards lack them.
        "num_broken_in_index": len(source.broken),
        "first_broken_in_index": source.broken[:BROKEN_REMEMBERED],
    }


def _encode(
    model: Model, tokenize: Tokenize, records: Iterator[Record], batch_size: int, texts: bool
) -> tuple[list[Row], np.ndarray, np.ndarray]:
    """Returns the records without their images, and normalised float32 [n, E] and [m, E], captions in order."""
    rows: list[Row] = []
    images, captions = [np.zeros((0, model.embed_dim), np.float32)], [np.zeros((0, model.embed_dim), np.float32)]
    pending: deque[Future] = deque()

    def encode(ids: list[str], image: np.ndarray, names: list[str], text: np.ndarray | None) -> None:
        images.append(_normalise(model.encode_image(image), ids))
        if text is not None:
            captions.append(_normalise(model.encode_text(text), names))

    with ThreadPoolExecutor(1) as device:  # one thread, so the order is kept
        while batch := list(itertools.islice(records, batch_size)):
            names = [caption for record in batch for caption in record["captions"]] if texts else []
            image = np.stack([record["image"] for record in batch])
            text = tokenize(names) if names else None
            pending.append(device.submit(encode, [record["id"] for record in batch], image, names, text))
            rows += [_row(**record) for record in batch]
            if len(pending) > BATCHES_AHEAD:
                pending.popleft().result()
        while pending:
            pending.popleft().result()
    return rows, np.concatenate(images), np.concatenate(captions)


def _row(*, id: str, image: Any, path: str = "", **rest: Any) -> Row:
    """A record without its image; its path is its id where the source has no other name of the file."""
    return {"id": id, "path": path or id, **rest}


def _normalise(features: Any, names: Sequence[str]) -> np.ndarray:
    features = np.asarray(features, np.float32)
    norm = np.linalg.norm(features, axis=-1, keepdims=True)
    wrong = np.flatnonzero(~(np.isfinite(norm) & (norm > 0)))
    if len(wrong):
        raise ValueError(f"the model's features of {names[wrong[0]]!r} are zero or not finite: its weights are damaged")
    return features / norm
