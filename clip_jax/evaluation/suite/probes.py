"""What a suite learns on frozen features of one labelled set: the linear probe and the few-shot curve."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from clip_jax.evaluation.metrics.classification import measure_scores, metric_score
from clip_jax.evaluation.metrics.few_shot import few_shot, labels_to_match
from clip_jax.evaluation.metrics.linear_probe import Metric, linear_probe, split_off_validation
from clip_jax.evaluation.metrics.logistic_regression import Split
from clip_jax.evaluation.suite.config import SuiteConfig
from clip_jax.evaluation.suite.context import LabelledFeatures, SuiteContext
from clip_jax.evaluation.suite.labelled_sets import LabelledSet
from clip_jax.evaluation.suite.measures import headline_classified
from clip_jax.evaluation.suite.result_store import file_name
from clip_jax.evaluation.suite.results import Absent, LinearProbe, Measured, ZeroShot
from clip_jax.evaluation.suite.splits import FEWEST
from clip_jax.plots.probes import plot_few_shot, plot_sweep

NO_TRAINING = "the set has no training split here"
DRAWN = (
    "it has no splits, so probes draw theirs by suite.seed={seed}: of each class a fifth to test, a fifth to validate, "
    "the rest to train"
)


def probe(context: SuiteContext, labelled: LabelledSet) -> LinearProbe | Absent:
    """The paper's linear probe."""
    if "train" not in labelled.splits and not labelled.undivided:
        return Absent(absent=NO_TRAINING)
    settings, resampling = context.config.linear_probe, context.resampling()
    key = {**context.data_key(labelled, sorted(labelled.splits)), "settings": dataclasses.asdict(settings)}
    key |= {"resampling": resampling}

    def make() -> dict[str, Any]:
        if reason := _too_few(context, labelled):
            return {"absent": reason}
        splits = _splits(context, labelled)
        if reason := _untrained(labelled, splits["train"]):
            return {"absent": reason}

        def metric(labels: np.ndarray, logits: np.ndarray) -> float:
            return metric_score(labelled.metric, labels, logits)

        result, logits = _probe(context, splits, splits["test"], len(labelled.class_names), metric)
        measured = measure_scores(labelled.metric, splits["test"].labels, logits, resampling)
        assert measured["value"] == result["score"]
        picture = context.results.picture(f"{file_name(labelled.name)}-sweep.png")
        plot_sweep(result["sweep"], result["strength"], picture, labelled.title)
        return {
            **result,
            "low": measured["low"],
            "high": measured["high"],
            "num_skipped": {
                split: len(context.labelled_features(labelled, split).features.skipped) for split in labelled.splits
            },
            "features": settings.features,
            "pictures": {"sweep": picture},
        }

    return context.results.result(LinearProbe, "linear_probe", labelled.name, key, make)


def adapted(context: SuiteContext, opened: Mapping[str, LabelledSet]) -> dict[str, float]:
    """{set: accuracy} of a linear probe trained on robustness.reference, on its test split and on that of each shift
    with the same class names.

    Reference: Radford et al. 2021, sec. 3.3 and fig. 14 (adaptation to ImageNet). Raises ValueError where the reference
    has no training split.
    """
    settings = context.config.robustness
    reference = opened[settings.reference]
    if "train" not in reference.splits:
        raise ValueError(f"robustness.adapt=True needs a training split: {NO_TRAINING}, {settings.reference}")
    same = [name for name in settings.shifts if opened[name].class_names == reference.class_names]
    tested = [reference, *(opened[name] for name in same)]
    key = {
        **context.data_key(reference, sorted(reference.splits)),
        "shifts": {labelled.name: context.data_key(labelled, ["test"])["splits"] for labelled in tested[1:]},
        "settings": dataclasses.asdict(context.config.linear_probe),
    }

    def make() -> dict[str, Any]:
        tests = [_split(context, labelled, "test") for labelled in tested]
        test = Split(*(np.concatenate(parts) for parts in zip(*tests)))

        def metric(labels: np.ndarray, logits: np.ndarray) -> float:
            return float((logits.argmax(axis=1) == labels).mean())

        _, logits = _probe(context, _splits(context, reference), test, len(reference.class_names), metric)
        parts = np.split(logits.argmax(axis=1) == test.labels, np.cumsum([len(part.labels) for part in tests])[:-1])
        return {labelled.name: float(part.mean()) for labelled, part in zip(tested, parts)}

    found = context.results.result(Measured, "adapted", reference.name, key, make)
    assert isinstance(found, Measured)
    return dict(found.metrics)


def few_shot_curve(
    context: SuiteContext, labelled: LabelledSet, zero_shot: ZeroShot, probed: LinearProbe | Absent | None
) -> Measured | Absent:
    """Score over labels a class, and how many match zero-shot.

    zero_shot, probed: the set's results; the probe's score stands for all labels.
    """
    if "train" not in labelled.splits and not labelled.undivided:
        return Absent(absent=NO_TRAINING)
    if labelled.multi_label:
        return Absent(absent="images with several labels have no number of labels a class")
    settings, features = context.config.few_shot, context.config.linear_probe.features
    whole = probed if isinstance(probed, LinearProbe) else None
    key = {
        **context.data_key(labelled, sorted(labelled.splits)),
        "settings": dataclasses.asdict(settings),
        "features": features,
        "zero_shot": zero_shot.value,
        "probe": whole and whole.score,
    }
    if labelled.undivided:  # zero-shot is measured on a part of it, too
        headline = context.prompts(labelled)[context.config.zero_shot.headline]
        key |= {"headline": list(headline), "tokenizer": context.features.tokenizer_id}

    def make() -> dict[str, Any]:
        if reason := _too_few(context, labelled):
            return {"absent": reason}
        splits, C = _splits(context, labelled), len(labelled.class_names)
        train, validation = splits["train"], splits.get("validation")
        if validation is None:
            train, validation = split_off_validation(train, context.config.suite.seed)
        if reason := _untrained(labelled, train):
            return {"absent": reason}
        fewest = int(np.bincount(train.labels, minlength=C).min())
        shots = [number for number in settings.shots if number <= fewest]
        if not shots:
            return {"absent": f"a class has {fewest} training images, fewer than the fewest shots, {settings.shots[0]}"}
        zero = zero_shot.value
        if labelled.undivided:  # of the pictures that the curve is of; such a set's metric is the accuracy
            part = context.probe_features(labelled)["test"]
            zero = float((headline_classified(context, labelled, part).rank == 0).mean())
        result = few_shot(
            train,
            validation,
            splits["test"],
            C,
            metric=lambda labels, logits: metric_score(labelled.metric, labels, logits),
            shots=shots,
            num_seeds=settings.num_seeds,
            seed=context.config.suite.seed,
        )
        curve = [(float(number), row["score"]) for number, row in zip(shots, result["shots"])]
        end = ((whole.num_train + whole.num_validation) / C, whole.score) if whole else None
        picture = context.results.picture(f"{file_name(labelled.name)}-few-shot.png")
        plot_few_shot(result["shots"], zero, end, picture, labelled.title)
        return {
            **result,
            "zero_shot": zero,
            "matches_zero_shot": labels_to_match(zero, *zip(*curve, *([end] if end else []))),
            "left_out_shots": [number for number in settings.shots if number > fewest],
            "features": features,
            "pictures": {"few_shot": picture},
        }

    return context.results.result(Measured, "few_shot", labelled.name, key, make)


def drawn_splits(config: SuiteConfig, labelled: LabelledSet) -> str:
    """A line that says how probes divide a set which its owner did not, empty where none does."""
    probed = labelled.undivided and {"linear_probe", "few_shot"} & set(config.suite.measures)
    return DRAWN.format(seed=config.suite.seed) if probed else ""


def _too_few(context: SuiteContext, labelled: LabelledSet) -> str:
    """Why no splits can be drawn from an undivided set, empty where they can, or need not."""
    if not labelled.undivided:
        return ""
    labels = context.labelled_features(labelled, "test").labels
    c, count = min(zip(*np.unique(labels, return_counts=True)), key=lambda pair: pair[1])
    if count >= FEWEST:
        return ""
    return f"{NO_TRAINING}, and {labelled.shown_names[c]!r} has {count} of the {FEWEST} pictures to draw one from"


def _untrained(labelled: LabelledSet, train: Split) -> str:
    """Why there is no probe of this training split, empty where there can be one."""
    C = len(labelled.class_names)
    images = train.labels.sum(axis=0) if labelled.multi_label else np.bincount(train.labels, minlength=C)
    bare = np.flatnonzero(images == 0)
    first = labelled.shown_names[bare[0]] if bare.size else ""
    return f"{bare.size} of {C} classes have no training images here, the first is {first!r}" if bare.size else ""


def _split(context: SuiteContext, labelled: LabelledSet, split: str) -> Split:
    return _as_split(context, context.labelled_features(labelled, split))


def _as_split(context: SuiteContext, found: LabelledFeatures) -> Split:
    pooled = context.config.linear_probe.features == "pooled"
    return Split(found.features.pooled if pooled else found.features.embeddings, found.labels)


def _splits(context: SuiteContext, labelled: LabelledSet) -> dict[str, Split]:
    return {split: _as_split(context, found) for split, found in context.probe_features(labelled).items()}


def _probe(
    context: SuiteContext, splits: Mapping[str, Split], test: Split, num_classes: int, metric: Metric
) -> tuple[dict[str, Any], np.ndarray]:
    """What `linear_probe` returns by the suite's settings, and its logits of the test split."""
    asked: list[np.ndarray] = []

    def recorded(labels: np.ndarray, logits: np.ndarray) -> float:
        asked[:] = [logits]  # the test split's come last
        return metric(labels, logits)

    settings = context.config.linear_probe
    result = linear_probe(
        splits["train"],
        splits.get("validation"),
        test,
        num_classes,
        metric=recorded,
        full_sweep=settings.full_sweep,
        num_parallel=settings.num_parallel,
        mesh=context.model.mesh,
        seed=context.config.suite.seed,
    )
    return result, asked[0]
