"""Measures a model: zero-shot classification on each labelled set, retrieval on held-out pairs, and their pictures."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.config.experiment import EvaluationConfig
from clip_jax.evaluation.metrics.retrieval import recall_at_k, top_matches
from clip_jax.evaluation.metrics.zero_shot import (
    class_embeddings,
    class_scores,
    embedding_scores,
    score_confusion,
    score_metrics,
)
from clip_jax.evaluation.prompts import load_templates
from clip_jax.inference.caption_scorer import CaptionScorer
from clip_jax.inference.encoder import Encoder
from clip_jax.models.variables import Variables
from clip_jax.plots.training import plot_confusion, plot_retrieval, plot_similarity
from clip_jax.runs.logging import Row
from clip_jax.tables import format_table
from input_pipeline.examples import load_image
from input_pipeline.scenes import LabelledScenes
from input_pipeline.sources import BrokenRecordError, Source, TfdsSource
from input_pipeline.tokenizers import Tokenizer
from input_pipeline.transforms import resize_and_center_crop

Results = dict[str, Any]
NUM_SCENES = 1024  # of a drawn set, which has no end of its own
QUERIES_DRAWN, MATCHES_DRAWN, PAIRS_DRAWN, THUMBNAIL = 6, 3, 10, 128


class Evaluator:
    """Everything an evaluation needs; made, and its sets looked for, before training starts."""

    def __init__(
        self, config: EvaluationConfig, encoder: Encoder, tokenizer: Tokenizer, validation: Source, image_size: int
    ):
        self.encoder = encoder
        self._tokenizer = tokenizer
        self._validation = validation
        self._image_size = image_size
        self._limit = config.num_examples
        self._sets = {name: _labelled_source(name, config, image_size) for name in config.zero_shot}
        self._templates = {name: _templates(config, source) for name, source in self._sets.items()}

    def __call__(self, variables: Variables, pictures: Path | None = None) -> Results:
        """{"zero_shot": {set: metrics}, "retrieval": metrics}, ready for JSON; PNGs into the folder `pictures`.

        A model that predicts captions has no text features to be found by: it is not measured in retrieval.
        """
        self.encoder.variables = variables
        results: Results = {"zero_shot": {n: self._zero_shot(n, source, pictures) for n, source in self._sets.items()}}
        if not isinstance(self.encoder, CaptionScorer):
            results["retrieval"] = self._retrieval(pictures)
        return results

    def _zero_shot(self, name: str, source: Source, pictures: Path | None) -> Results:
        records, features, skipped = self._encode_images(source)
        labels = np.array([record["label"] for record in records])
        names = source.class_names or ()
        prompts = self._tokenizer, names, self._templates[name]
        if isinstance(self.encoder, CaptionScorer):
            scores = class_scores(partial(self.encoder.score, features), *prompts)
        else:
            scores = embedding_scores(features, class_embeddings(self.encoder.texts, *prompts))
        if pictures:
            file = pictures / f"confusion_{name.replace('/', '_')}.png"
            plot_confusion(score_confusion(scores, labels), names, file, name)
        return {**score_metrics(scores, labels, names), "skipped": skipped}

    def _retrieval(self, pictures: Path | None) -> Results:
        records, images, skipped = self._encode_images(self._validation)
        captions = [caption for record in records for caption in record["captions"]]
        image_of_text = np.repeat(np.arange(len(records)), [len(record["captions"]) for record in records])
        texts = self.encoder.texts(self._tokenizer(captions))
        if pictures:
            index = [record["index"] for record in records]
            draw_retrieval(self._validation, index, captions, image_of_text, images, texts, pictures)
        recalls = recall_at_k(images, texts, image_of_text)
        return {**recalls, "images": len(records), "captions": len(captions), "skipped": skipped}

    def _encode_images(self, source: Source) -> tuple[list[dict[str, Any]], np.ndarray, list[tuple[str, str]]]:
        """The usable records without their pictures, their features [N, E], and (id, reason) of the others."""
        records: list[dict[str, Any]] = []
        skipped: list[tuple[str, str]] = []

        def images() -> Iterator[np.ndarray]:
            for index in range(min(len(source), self._limit or len(source))):
                try:
                    record = source[index]
                    image = resize_and_center_crop(load_image(record), self._image_size)
                except BrokenRecordError as error:
                    skipped.append((error.record_id, error.reason))
                    continue
                records.append({**record, "image": None, "index": index})
                yield image

        features = self.encoder.images(images())
        return records, features, skipped


def draw_retrieval(
    source: Source,
    index: Sequence[int] | np.ndarray,
    captions: Sequence[str],
    image_of_text: np.ndarray,
    images: np.ndarray,
    texts: np.ndarray,
    pictures: Path,
) -> None:
    """similarity.png, the matrix of the first pairs, and retrieval.png, queries spread over the set with their matches.

    Args:
      source: of the pictures; index: the places in it of N of them.
      captions: M strings, image by image; image_of_text: int [M].
      images, texts: [N, E] and [M, E], L2-normalised.
      pictures: folder to write into.
    """

    def thumbnail(i: int) -> np.ndarray:
        return resize_and_center_crop(load_image(source[int(index[i])]), THUMBNAIL)

    first_text = np.searchsorted(image_of_text, np.arange(len(images)))
    pairs = list(range(min(PAIRS_DRAWN, len(images))))
    plot_similarity(
        np.stack([thumbnail(i) for i in pairs]),
        [captions[i] for i in first_text[pairs]],
        texts[first_text[pairs]] @ images[pairs].T,
        pictures / "similarity.png",
    )
    queries = np.linspace(0, len(images) - 1, min(QUERIES_DRAWN, len(images))).astype(int).tolist()
    found_texts, text_scores = top_matches(images[queries], texts, MATCHES_DRAWN)
    found_images, image_scores = top_matches(texts[first_text[queries]], images, MATCHES_DRAWN)
    plot_retrieval(
        [
            (thumbnail(q), [(captions[t], float(s), bool(image_of_text[t] == q)) for t, s in zip(*found)])
            for q, *found in zip(queries, found_texts, text_scores)
        ],
        [
            (captions[first_text[q]], [(thumbnail(i), float(s), bool(i == q)) for i, s in zip(*found)])
            for q, *found in zip(queries, found_images, image_scores)
        ],
        pictures / "retrieval.png",
    )


def _labelled_source(name: str, config: EvaluationConfig, image_size: int) -> Source:
    match name.split("/"):
        case ["scenes", scenes]:
            return LabelledScenes(scenes, config.num_examples or NUM_SCENES, image_size)
        case ["tfds", dataset, split]:
            source = TfdsSource(dataset, split, config.data_dir)
            if not source.class_names:
                raise ValueError(f"evaluation.zero_shot set {name!r} has no labels: it cannot be classified zero-shot")
            return source
    raise ValueError(f"evaluation.zero_shot set {name!r} is unknown: use 'scenes/NAME' or 'tfds/NAME/SPLIT'")


def _templates(config: EvaluationConfig, source: Source) -> tuple[str, ...]:
    if config.templates:
        return load_templates(config.templates)
    return source.templates if isinstance(source, LabelledScenes) else load_templates("one")


def as_row(results: Results) -> Row:
    """The headline numbers, flat, as a row of metrics has them."""
    keys = ("top1", "chance")
    row = {f"evaluation/{name}/{key}": metrics[key] for name, metrics in results["zero_shot"].items() for key in keys}
    recalls = {name: value for name, value in results.get("retrieval", {}).items() if "_r@" in name}
    return row | {f"evaluation/retrieval/{name}": value for name, value in recalls.items()}


def as_table(results: Results) -> str:
    """The results as a person reads them, with the level of chance beside each."""
    tables = []
    if results["zero_shot"]:
        header = ["zero-shot", "top-1", "top-5", "per class", "chance", "classes", "images", "skipped"]
        rows = [
            [
                name,
                *(m.get(key, float("nan")) for key in ("top1", "top5", "mean_per_class", "chance")),
                *(len(m["per_class"]), m["count"], len(m["skipped"])),
            ]
            for name, m in results["zero_shot"].items()
        ]
        tables.append(format_table(header, rows))
    if (r := results.get("retrieval")) is None:
        return "\n\n".join(tables)
    header = [f"retrieval ({r['images']} images, {r['captions']} captions)", "R@1", "R@5", "R@10"]
    ways = (("image to text", "image_to_text_r@{}"), ("text to image", "text_to_image_r@{}"))
    rows = [
        [label + note, *(r[key.format(k) + suffix] for k in (1, 5, 10))]
        for label, key in ways
        for note, suffix in (("", ""), (", chance", "_chance"))
    ]
    return "\n\n".join([*tables, format_table(header, rows)])
