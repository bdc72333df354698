"""What every measure of a suite needs, and what decides its result."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clip_jax.evaluation.prompts import load_templates
from clip_jax.evaluation.suite.config import OWN, SuiteConfig
from clip_jax.evaluation.suite.feature_store import FeatureStore, ImageFeatures
from clip_jax.evaluation.suite.labelled_sets import LabelledSet
from clip_jax.evaluation.suite.result_store import ResultStore
from clip_jax.evaluation.suite.splits import draw_splits
from clip_jax.inference.api import Model
from input_pipeline.sources import Source

THUMBNAIL = 96  # pixels
ALL = "all"  # name of a result over several sets


@dataclass(frozen=True, kw_only=True)
class LabelledFeatures:
    """Features of a split and its labels, int [N] or bool [N, C], in the order of the class names."""

    features: ImageFeatures
    labels: np.ndarray
    difficult: np.ndarray | None

    def select(self, rows: np.ndarray) -> "LabelledFeatures":
        """Those of some pictures, by a bool [N], with one label each; what was skipped is not among them."""
        of, names = self.features, np.array([self.features.ids, self.features.paths], object)[:, rows]
        features = dataclasses.replace(
            of,
            pooled=of.pooled[rows],
            embeddings=of.embeddings[rows],
            index=of.index[rows],
            ids=tuple(names[0]),
            paths=tuple(names[1]),
            labels=None if of.labels is None else of.labels[rows],
            skipped=(),
        )
        return LabelledFeatures(features=features, labels=self.labels[rows], difficult=None)


@dataclass(frozen=True, kw_only=True)
class SuiteContext:
    """The model, its features, the results so far and the settings; `say` takes lines for the user."""

    config: SuiteConfig
    model: Model
    features: FeatureStore
    results: ResultStore
    say: Callable[[str], None]

    def resampling(self) -> dict[str, Any]:
        """Settings of bootstrap intervals."""
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

    def labelled_features(self, labelled: LabelledSet, split: str) -> LabelledFeatures:
        """Raises ValueError where labels are missing or outside the names."""
        title = labelled.title if split == "test" else f"{labelled.title}, {split}"
        features = self.features.images(labelled.splits[split], title, self.config.suite.num_examples)
        labels = labelled.classes_of(split, features.labels, features.index)
        difficult = features.difficult
        if difficult is not None:
            difficult = labelled.classes_of(split, difficult, features.index)
        return LabelledFeatures(features=features, labels=labels, difficult=difficult)

    def probe_features(self, labelled: LabelledSet) -> dict[str, LabelledFeatures]:
        """Features and labels by split; an undivided set's splits are drawn by the suite's seed.

        Raises ValueError as `labelled_features`.
        """
        if not labelled.undivided:
            return {split: self.labelled_features(labelled, split) for split in labelled.splits}
        whole = self.labelled_features(labelled, "test")
        drawn = draw_splits(whole.labels, self.config.suite.seed)
        return {split: whole.select(rows) for split, rows in drawn.items()}

    def data_key(self, labelled: LabelledSet, splits: Sequence[str]) -> dict[str, Any]:
        """What decides the features and labels of some splits, ready for JSON."""
        return {
            **self.features.model_id,
            "num_examples": self.config.suite.num_examples,
            "seed": self.config.suite.seed,
            "metric": labelled.metric,
            "class_names": list(labelled.class_names),
            "splits": {
                split: {
                    "source": self.features.source_id(labelled.splits[split]),
                    "class_of": labelled.class_of[split].tolist(),
                }
                for split in splits
            },
        }

    def source_key(self, source: Source, settings: Any) -> dict[str, Any]:
        """What decides the features of a source's pictures and texts, and a measure's settings, ready for JSON."""
        return {
            **self.features.model_id,
            "tokenizer": self.features.tokenizer_id,
            "source": self.features.source_id(source),
            "settings": dataclasses.asdict(settings),
        }
