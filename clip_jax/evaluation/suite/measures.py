"""What a suite measures on one labelled set: zero-shot with its prompts and pictures, linear probe, few-shot."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from clip_jax.evaluation.metrics.classification import (
    Classified,
    classify,
    confident_mistakes,
    confusion,
    multi_label_metrics,
    single_label_metrics,
)
from clip_jax.evaluation.pictures import thumbnail
from clip_jax.evaluation.prompts import load_templates
from clip_jax.evaluation.suite.config import OWN, SuiteConfig
from clip_jax.evaluation.suite.feature_store import FeatureStore, ImageFeatures
from clip_jax.evaluation.suite.labelled_sets import LabelledSet
from clip_jax.evaluation.suite.result_store import Results, ResultStore, file_name
from clip_jax.inference.api import Model
from clip_jax.plots.probes import plot_reliability
from clip_jax.plots.training import plot_confusion

THUMBNAIL = 96  # pixels
SKIPPED_NAMED = 5  # in results; the count is of all


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every measure needs: the model, its features, the results so far and the settings."""

    config: SuiteConfig
    model: Model
    features: FeatureStore
    results: ResultStore

    def resampling(self) -> dict[str, Any]:
        """Of bootstrap intervals."""
        settings = self.config.zero_shot
        return {
            "num_resamples": settings.num_resamples,
            "confidence": settings.confidence,
            "seed": self.config.suite.seed,
        }

    def prompts(self, labelled: LabelledSet) -> dict[str, tuple[str, ...]]:
        """The prompt sets to compare, by name."""
        settings = self.config.zero_shot
        own = labelled.templates or settings.templates or load_templates("one")
        return {name: own if name == OWN else load_templates(name) for name in settings.prompts}


@dataclass(frozen=True, kw_only=True)
class LabelledFeatures:
    """Features of a split and its labels, int [N] or bool [N, C], in the order of the class names."""

    features: ImageFeatures
    labels: np.ndarray
    difficult: np.ndarray | None


def labelled_features(bench: Bench, labelled: LabelledSet, split: str) -> LabelledFeatures:
    """Raises ValueError where labels are missing or outside the names."""
    title = labelled.title if split == "test" else f"{labelled.title}, {split}"
    features = bench.features.images(labelled.splits[split], title, bench.config.suite.num_examples)
    labels = labelled.classes_of(split, features.labels, features.index)
    difficult = features.difficult
    if difficult is not None:
        difficult = labelled.classes_of(split, difficult, features.index)
    return LabelledFeatures(features=features, labels=labels, difficult=difficult)


def data_key(bench: Bench, labelled: LabelledSet, splits: Sequence[str]) -> dict[str, Any]:
    """What decides the features and labels of some splits, ready for JSON."""
    return {
        **bench.features.model_id,
        "num_examples": bench.config.suite.num_examples,
        "seed": bench.config.suite.seed,
        "metric": labelled.metric,
        "class_names": list(labelled.class_names),
        "splits": {
            split: {
                "source": bench.features.source_id(labelled.splits[split]),
                "class_of": labelled.class_of[split].tolist(),
            }
            for split in splits
        },
    }


def headline_classes(bench: Bench, labelled: LabelledSet) -> np.ndarray:
    """Class embeddings of the headline's prompts."""
    templates = bench.prompts(labelled)[bench.config.zero_shot.headline]
    return bench.features.classes(labelled.class_names, templates, labelled.title)


def headline_classified(bench: Bench, labelled: LabelledSet) -> Classified:
    """Zero-shot by the headline's prompts, of a set with one label an image."""
    test = labelled_features(bench, labelled, "test")
    return _classify(bench, test, headline_classes(bench, labelled))


def zero_shot(bench: Bench, labelled: LabelledSet) -> Results:
    """The headline's numbers and pictures, and every prompt set's score; kept by the result store."""
    prompts = bench.prompts(labelled)
    key = {
        **data_key(bench, labelled, ["test"]),
        "tokenizer": bench.features.tokenizer_id,
        "prompts": {name: list(templates) for name, templates in prompts.items()},
        "settings": dataclasses.asdict(bench.config.zero_shot),
    }

    def make() -> Results:
        test = labelled_features(bench, labelled, "test")
        compared: dict[str, Any] = {}
        result: Results = {}
        for name, templates in prompts.items():
            classes = bench.features.classes(labelled.class_names, templates, labelled.title)
            found = _measure(bench, labelled, test, classes)
            compared[name] = {"templates": len(templates), **{k: found[k] for k in ("value", "low", "high")}}
            if name == bench.config.zero_shot.headline:
                result = found
        skipped = test.features.skipped
        return {
            **result,
            "prompts": compared,
            "headline": bench.config.zero_shot.headline,
            "num_skipped": len(skipped),
            "first_skipped": [list(pair) for pair in skipped[:SKIPPED_NAMED]],
            **({} if labelled.multi_label else _pictures(bench, labelled, test, result)),
        }

    return bench.results.result("zero_shot", labelled.name, key, make)


def _classify(bench: Bench, test: LabelledFeatures, classes: np.ndarray) -> Classified:
    model = bench.model
    return classify(test.features.embeddings, test.labels, classes, model.logit_scale, model.logit_bias)


def _measure(bench: Bench, labelled: LabelledSet, test: LabelledFeatures, classes: np.ndarray) -> dict[str, Any]:
    if labelled.multi_label:
        scores = test.features.embeddings @ classes.T
        return multi_label_metrics(scores, test.labels, test.difficult, labelled.shown_names, bench.resampling())
    found = _classify(bench, test, classes)
    return single_label_metrics(found, labelled.shown_names, labelled.metric, bench.resampling())


def _pictures(bench: Bench, labelled: LabelledSet, test: LabelledFeatures, result: Results) -> Results:
    """Confusion matrix, reliability diagram, and thumbnails of the most confident mistakes with what was said."""
    found = headline_classified(bench, labelled)
    name, names = file_name(labelled.name), labelled.shown_names
    pictures = {
        "confusion": bench.results.picture(f"{name}-confusion.png"),
        "reliability": bench.results.picture(f"{name}-reliability.png"),
    }
    plot_confusion(confusion(found), names, pictures["confusion"], labelled.title)
    plot_reliability(result["calibration"], pictures["reliability"], labelled.title)
    mistakes = []
    for place, i in enumerate(confident_mistakes(found, bench.config.zero_shot.num_mistakes).tolist()):
        what = f"mistake {place}"
        pictures[what] = bench.results.picture(f"{name}-mistake-{place}.jpg")
        source, index = labelled.splits["test"], int(test.features.index[i])
        Image.fromarray(thumbnail(source, index, THUMBNAIL)).save(pictures[what], quality=85)
        mistakes.append(
            {
                "id": str(source[index]["id"]),
                "picture": what,
                "label": names[found.labels[i]],
                "predicted": names[found.predicted[i]],
                "confidence": float(found.confidence[i]),
            }
        )
    return {"mistakes": mistakes, "pictures": pictures}
