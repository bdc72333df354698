"""Zero-shot classification of one labelled set, with its prompts and pictures."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
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
from clip_jax.evaluation.suite.context import THUMBNAIL, LabelledFeatures, SuiteContext
from clip_jax.evaluation.suite.labelled_sets import LabelledSet
from clip_jax.evaluation.suite.predictions import write_predictions
from clip_jax.evaluation.suite.result_store import file_name
from clip_jax.evaluation.suite.results import Absent, ZeroShot, count_skipped
from clip_jax.plots.probes import plot_reliability
from clip_jax.plots.training import plot_confusion


def zero_shot(context: SuiteContext, labelled: LabelledSet) -> ZeroShot:
    """The headline's numbers, predictions and pictures, and every prompt set's score; kept by the result store."""
    prompts = context.prompts(labelled)
    key = {
        **context.data_key(labelled, ["test"]),
        "tokenizer": context.features.tokenizer_id,
        "prompts": {name: list(templates) for name, templates in prompts.items()},
        "settings": dataclasses.asdict(context.config.zero_shot),
    }

    def make() -> dict[str, Any]:
        test, headline = context.labelled_features(labelled, "test"), context.config.zero_shot.headline
        scored = {name: _score(context, labelled, test, templates) for name, templates in prompts.items()}
        found = {name: _measure(context, labelled, test, of_prompts) for name, of_prompts in scored.items()}
        best = scored[headline]
        scores = {name: {key: found[name][key] for key in ("value", "low", "high")} for name in prompts}
        return {
            **found[headline],
            "prompts": {name: {"templates": len(prompts[name]), **scores[name]} for name in prompts},
            "headline": headline,
            **count_skipped(test.features.skipped),
            "files": {"predictions": _predictions(context, labelled, test, best)},
            **(_pictures(context, labelled, test, best, found[headline]) if isinstance(best, Classified) else {}),
        }

    found = context.results.result(ZeroShot, "zero_shot", labelled.name, key, make)
    assert not isinstance(found, Absent)
    return found


def headline_classified(context: SuiteContext, labelled: LabelledSet, test: LabelledFeatures) -> Classified:
    """Zero-shot by the headline's prompts, of a set with one label an image."""
    templates = context.prompts(labelled)[context.config.zero_shot.headline]
    found = _score(context, labelled, test, templates)
    assert isinstance(found, Classified)
    return found


def _score(
    context: SuiteContext, labelled: LabelledSet, test: LabelledFeatures, templates: Sequence[str]
) -> Classified | np.ndarray:
    """What a prompt set makes of the pictures; of images with several labels the scores, [N, C]."""
    classes, model = context.features.classes(labelled.class_names, templates, labelled.title), context.model
    if labelled.multi_label:
        return test.features.embeddings @ classes.T
    return classify(test.features.embeddings, test.labels, classes, model.logit_scale, model.logit_bias)


def _predictions(
    context: SuiteContext, labelled: LabelledSet, test: LabelledFeatures, found: Classified | np.ndarray
) -> Path:
    """The file of the headline's predictions."""
    file = context.results.file("predictions", f"{file_name(labelled.name)}.parquet")
    write_predictions(file, test, labelled.shown_names, found)
    return file


def _measure(
    context: SuiteContext, labelled: LabelledSet, test: LabelledFeatures, found: Classified | np.ndarray
) -> dict[str, Any]:
    names, resampling = labelled.shown_names, context.resampling()
    if isinstance(found, Classified):
        return single_label_metrics(found, names, labelled.metric, resampling)
    return multi_label_metrics(found, test.labels, test.difficult, names, resampling)


def _pictures(
    context: SuiteContext,
    labelled: LabelledSet,
    test: LabelledFeatures,
    found: Classified,
    metrics: dict[str, Any],
) -> dict[str, Any]:
    """Confusion matrix, reliability diagram, and thumbnails of the most confident mistakes with their predictions."""
    name, names, source = file_name(labelled.name), labelled.shown_names, labelled.splits["test"]
    pictures = {what: context.results.picture(f"{name}-{what}.png") for what in ("confusion", "reliability")}
    plot_confusion(confusion(found), names, pictures["confusion"], labelled.title)
    plot_reliability(metrics["calibration"], pictures["reliability"], labelled.title)
    mistakes = []
    for number, i in enumerate(confident_mistakes(found, context.config.zero_shot.num_mistakes).tolist()):
        what, index = f"mistake {number}", int(test.features.index[i])
        pictures[what] = context.results.picture(f"{name}-mistake-{number}.jpg")
        Image.fromarray(thumbnail(source, index, THUMBNAIL)).save(pictures[what], quality=85)
        mistakes.append(
            {
                "id": test.features.ids[i],
                "path": test.features.paths[i],
                "picture": what,
                "label": names[found.labels[i]],
                "predicted": names[found.predicted[i]],
                "confidence": float(found.confidence[i]),
            }
        )
    return {"mistakes": mistakes, "pictures": pictures}
