"""Features on the disk: each set is encoded once, and only again when weights, preprocessing or data change."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from clip_jax.evaluation.datasets import ClassName
from clip_jax.evaluation.metrics.overlap import PERCEPTUAL_SIZE, perceptual_embedding
from clip_jax.evaluation.metrics.zero_shot import class_embeddings, normalized
from clip_jax.evaluation.pictures import encode_pictures
from clip_jax.evaluation.suite.array_files import read_arrays, write_arrays
from clip_jax.inference.api import MissingTokenizer, Model, Preprocess
from input_pipeline.examples import load_image
from input_pipeline.sources import BrokenRecordError, Record, Source
from input_pipeline.storage import digest, digest_json
from input_pipeline.tokenizers import Tokenizer

FORMAT = 2  # of the cached files: raise it when the same key would mean other numbers
MANY = 2048  # prompts, above which their progress is shown
NOT_FINITE = "its weights are damaged, or compute_dtype is too narrow for them"
SAMPLED = 64  # pictures of a source that its id reads


@dataclass(frozen=True, kw_only=True)
class ImageFeatures:
    """Features of the pictures of a source that could be used.

    pooled: float32 [N, D], before the projection. embeddings: float32 [N, E], of unit length.
    index: int64 [N], their records' positions in the source. ids, paths: N of each, the path the id where the source
    has no other name of the file. skipped: (id, reason) of the others.
    labels: int64 [N] of labelled records; of records with several, bool [N, C], and `difficult`, bool [N, C], says
    which of them count neither way. None where the source has no labels.
    """

    pooled: np.ndarray
    embeddings: np.ndarray
    index: np.ndarray
    ids: tuple[str, ...]
    paths: tuple[str, ...]
    labels: np.ndarray | None
    difficult: np.ndarray | None
    skipped: tuple[tuple[str, str], ...]


class FeatureStore:
    """Encodes with one model and keeps what it encoded in a folder.

    Names of files are hashes of all that decides their content; a damaged file is detected by its checksum, reported
    through `say`, and computed again.
    """

    def __init__(
        self,
        folder: Path,
        model: Model,
        preprocess: Preprocess,
        tokenizer: Tokenizer | MissingTokenizer,
        say: Callable[[str], None] = print,
    ):
        self._folder = folder
        self.tokenizer = tokenizer
        self._model, self._preprocess = model, preprocess
        self._say = say
        self.model_id = {
            "weights": model.fingerprint,
            "compute_dtype": model.config.compute_dtype,
            "image_size": preprocess.image_size,
            "resize_mode": preprocess.transform.resize_mode,
            **preprocess.transform.settings,
        }
        self.tokenizer_id = tokenizer.fingerprint()
        self._source_ids: dict[int, tuple[Source, dict[str, Any]]] = {}  # by id(), which lasts as long as the source

    def source_id(self, source: Source) -> dict[str, Any]:
        """Its fingerprint, and a digest of pictures spread over it: a folder's has names and sizes alone, which all
        pictures of one form may share. Ready for JSON."""
        if id(source) not in self._source_ids:
            found = {
                **source.fingerprint(),
                "sample": digest(*(_pixels(source, i) for i in _spread(len(source), SAMPLED))),
            }
            self._source_ids[id(source)] = source, found
        return self._source_ids[id(source)][1]

    def images(self, source: Source, title: str, num_examples: int = 0) -> ImageFeatures:
        """Features of a source, or of num_examples of its records spread evenly over it.

        Raises:
          ValueError: no picture can be used, or features that are not finite.
        """
        chosen = _spread(len(source), num_examples)
        key = {**self.model_id, "source": self.source_id(source), "count": len(chosen)}
        arrays = self.cached("images", key, title, lambda: self._encode(source, title, chosen))
        skipped, ids, paths = (json.loads(str(arrays[name])) for name in ("skipped", "ids", "paths"))
        broken = [(str(name), str(reason)) for name, reason in [*source.broken, *skipped]]
        return ImageFeatures(
            pooled=arrays["pooled"],
            embeddings=arrays["embeddings"],
            index=arrays["index"],
            ids=tuple(ids),
            paths=tuple(paths),
            labels=arrays.get("labels"),
            difficult=arrays.get("difficult"),
            skipped=tuple(broken),
        )

    def classes(self, class_names: Sequence[ClassName], templates: Sequence[str], title: str) -> np.ndarray:
        """Embedding of each class, float32 [C, E]; arguments and errors as for `class_embeddings`."""
        key = {
            **self.model_id,
            "tokenizer": self.tokenizer_id,
            "class_names": list(class_names),
            "templates": list(templates),
        }

        def encode_prompts(tokens: np.ndarray) -> np.ndarray:
            with tqdm(desc=f"{title}, {len(tokens):,} prompts", unit=" batches", disable=len(tokens) < MANY) as bar:
                encoder.on_batch = lambda: bar.update() and None
                try:
                    return self.texts(tokens)
                finally:
                    encoder.on_batch = silent

        encoder, silent = self._model.encoder, self._model.encoder.on_batch

        def encode() -> dict[str, np.ndarray]:
            return {"embeddings": class_embeddings(encode_prompts, self.tokenizer, class_names, templates)}

        return self.cached("classes", key, title, encode)["embeddings"]

    def texts(self, tokens: np.ndarray) -> np.ndarray:
        """Token ids int32 [N, L] to embeddings of unit length, float32 [N, E]; ValueError if one is not finite."""
        embeddings = normalized(self._model.encoder.texts(tokens))
        if wrong := np.count_nonzero(~np.isfinite(embeddings).all(axis=1)):
            raise ValueError(f"features of {wrong} of {len(tokens)} texts are not finite: {NOT_FINITE}")
        return embeddings

    def _encode(self, source: Source, title: str, chosen: np.ndarray) -> dict[str, np.ndarray]:
        def prepare(record: Record) -> np.ndarray:
            return self._preprocess(load_image(record))

        found = encode_pictures(self._model.encoder.pooled_images, source, chosen, prepare, title)
        pooled, embeddings = np.asarray(found.features[0], np.float32), normalized(found.features[1])
        wrong = np.flatnonzero(~np.isfinite(embeddings).all(axis=1) | ~np.isfinite(pooled).all(axis=1))
        if wrong.size:
            raise ValueError(
                f"features of {wrong.size} of the {len(embeddings)} pictures of {title} are not finite, the first "
                f"those of {found.records[wrong[0]]['id']}: {NOT_FINITE}"
            )
        return {
            "pooled": pooled,
            "embeddings": embeddings,
            "index": found.index,
            "skipped": np.array(json.dumps(found.skipped)),
            "ids": np.array(json.dumps([record["id"] for record in found.records])),
            "paths": np.array(json.dumps([record.get("path", record["id"]) for record in found.records])),
            **found.labels(len(source.class_names or ())),
        }

    def perceptual(self, source: Source, title: str, num_examples: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """`perceptual_embedding` of the pictures, float32 [N, P], and their positions in the source [N].

        Arguments as for `images`.
        """
        chosen = _spread(len(source), num_examples)

        def prepare(record: Record) -> np.ndarray:
            return perceptual_embedding(np.asarray(load_image(record)))

        def encode() -> dict[str, np.ndarray]:
            found = encode_pictures(lambda rows: np.stack(list(rows)), source, chosen, prepare, title)
            return {"index": found.index, "embeddings": found.features}

        key = {"source": self.source_id(source), "count": len(chosen), "size": PERCEPTUAL_SIZE}
        arrays = self.cached("perceptual", key, title, encode)
        return arrays["embeddings"], arrays["index"]

    def cached(
        self, kind: str, key: dict[str, Any], title: str, make: Callable[[], dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Arrays from the file of this key, or made and written there."""
        file = self._folder / f"{kind}-{digest_json({'format': FORMAT, **key})}.npz"
        if file.is_file():
            try:
                return read_arrays(file)
            except (ValueError, OSError) as error:
                self._say(f"the cache {file.name} of {title} is damaged ({error}): computing it again")
        arrays = make()
        self._folder.mkdir(parents=True, exist_ok=True)
        write_arrays(file, arrays)
        return arrays


def _spread(length: int, num_examples: int) -> np.ndarray:
    """num_examples positions, or all for 0, spread evenly over a source, whose order may be that of its classes."""
    count = min(num_examples or length, length)
    return (np.arange(count) * length // count).astype(np.int64)


def _pixels(source: Source, index: int) -> bytes:
    """A record's picture, drawn or encoded; empty where it cannot be read."""
    try:
        image = source[index]["image"]
    except BrokenRecordError:
        return b""
    return image.tobytes() if isinstance(image, np.ndarray) else image
