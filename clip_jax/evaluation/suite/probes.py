"""What a suite learns on frozen features of one labelled set: the linear probe and the few-shot curve."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from clip_jax.evaluation.metrics.classification import measure_scores, metric_score
from clip_jax.evaluation.metrics.few_shot import few_shot, labels_to_match
from clip_jax.evaluation.metrics.linear_probe import linear_probe, split_off_validation
from clip_jax.evaluation.metrics.logistic_regression import Split
from clip_jax.evaluation.suite.labelled_sets import LabelledSet
from clip_jax.evaluation.suite.measures import Bench, LabelledFeatures, data_key, labelled_features
from clip_jax.evaluation.suite.result_store import Results, file_name
from clip_jax.plots.probes import plot_few_shot, plot_sweep

NO_TRAINING = "the set has no training split here"


def probe(bench: Bench, labelled: LabelledSet) -> Results:
    """The paper's linear probe, or {"absent": reason} where there is nothing to train on."""
    if "train" not in labelled.splits:
        return {"absent": NO_TRAINING}
    settings = bench.config.linear_probe
    key = {**data_key(bench, labelled, sorted(labelled.splits)), "settings": dataclasses.asdict(settings)}
    key |= {"resampling": bench.resampling()}

    def make() -> Results:
        found = {split: labelled_features(bench, labelled, split) for split in labelled.splits}
        splits = {split: _probed(bench, features) for split, features in found.items()}
        if reason := _untrained(labelled, splits["train"]):
            return {"absent": reason}
        asked: dict[str, np.ndarray] = {}  # what the metric was asked about: in the end, the test split

        def metric(labels: np.ndarray, logits: np.ndarray) -> float:
            asked.update(labels=labels, scores=logits)
            return metric_score(labelled.metric, labels, logits)

        result = linear_probe(
            splits["train"],
            splits.get("validation"),
            splits["test"],
            len(labelled.class_names),
            metric=metric,
            full_sweep=settings.full_sweep,
            num_parallel=settings.num_parallel,
            mesh=bench.model.mesh,
            seed=bench.config.suite.seed,
        )
        measured = measure_scores(labelled.metric, **asked, resampling=bench.resampling())
        assert measured["value"] == result["score"]
        picture = bench.results.picture(f"{file_name(labelled.name)}-sweep.png")
        plot_sweep(result["sweep"], result["strength"], picture, labelled.title)
        interval = {"low": measured["low"], "high": measured["high"]}
        return {
            **result,
            **interval,
            "num_skipped": {split: len(features.features.skipped) for split, features in found.items()},
            "features": settings.features,
            "pictures": {"sweep": picture},
        }

    return bench.results.result("linear_probe", labelled.name, key, make)


def adapted(bench: Bench, opened: Mapping[str, LabelledSet]) -> dict[str, float]:
    """{set: accuracy} of a linear probe trained on robustness.reference, on its test split and on that of each shift
    with the same class names.

    Reference: Radford et al. 2021, sec. 3.3 and fig. 14 (adaptation to ImageNet). Raises ValueError where the reference
    has no training split.
    """
    settings = bench.config.robustness
    reference = opened[settings.reference]
    if "train" not in reference.splits:
        raise ValueError(f"robustness.adapt=True needs one to learn from: {NO_TRAINING}, {settings.reference}")
    same = [name for name in settings.shifts if opened[name].class_names == reference.class_names]
    tested = [reference, *(opened[name] for name in same)]
    key = {
        **data_key(bench, reference, sorted(reference.splits)),
        "shifts": {labelled.name: data_key(bench, labelled, ["test"])["splits"] for labelled in tested[1:]},
        "settings": dataclasses.asdict(bench.config.linear_probe),
    }

    def make() -> Results:
        splits = {split: _probed(bench, labelled_features(bench, reference, split)) for split in reference.splits}
        tests = [_probed(bench, labelled_features(bench, labelled, "test")) for labelled in tested]
        asked: dict[str, np.ndarray] = {}  # in the end, all tests one after the other

        def metric(labels: np.ndarray, logits: np.ndarray) -> float:
            asked.update(right=logits.argmax(axis=1) == labels)
            return float(asked["right"].mean())

        linear_probe(
            splits["train"],
            splits.get("validation"),
            Split(np.concatenate([test.features for test in tests]), np.concatenate([test.labels for test in tests])),
            len(reference.class_names),
            metric=metric,
            full_sweep=bench.config.linear_probe.full_sweep,
            num_parallel=bench.config.linear_probe.num_parallel,
            mesh=bench.model.mesh,
            seed=bench.config.suite.seed,
        )
        ends = np.cumsum([len(test.labels) for test in tests])[:-1]
        parts = np.split(asked["right"], ends)
        return {labelled.name: float(part.mean()) for labelled, part in zip(tested, parts)}

    return bench.results.result("adapted", reference.name, key, make)


def few_shot_curve(bench: Bench, labelled: LabelledSet, zero_shot: Results, probed: Results | None) -> Results:
    """Score over labels a class, and how many match zero-shot; {"absent": reason} where there is nothing to draw from.

    zero_shot, probed: the set's results; the probe's score stands for all labels.
    """
    if "train" not in labelled.splits:
        return {"absent": NO_TRAINING}
    if labelled.multi_label:
        return {"absent": "images with several labels have no number of labels a class"}
    settings, features = bench.config.few_shot, bench.config.linear_probe.features
    key = {
        **data_key(bench, labelled, sorted(labelled.splits)),
        "settings": dataclasses.asdict(settings),
        "features": features,
        "zero_shot": zero_shot["value"],
        "probe": probed and probed.get("score"),
    }

    def make() -> Results:
        splits = {split: _probed(bench, labelled_features(bench, labelled, split)) for split in labelled.splits}
        C, train, validation = len(labelled.class_names), splits["train"], splits.get("validation")
        if validation is None:
            train, validation = split_off_validation(train, bench.config.suite.seed)
        if reason := _untrained(labelled, train):
            return {"absent": reason}
        fewest = int(np.bincount(train.labels, minlength=C).min())
        shots = [number for number in settings.shots if number <= fewest]
        if not shots:
            return {"absent": f"a class has {fewest} training images, fewer than the fewest shots, {settings.shots[0]}"}
        result = few_shot(
            train,
            validation,
            splits["test"],
            C,
            metric=lambda labels, logits: metric_score(labelled.metric, labels, logits),
            shots=shots,
            num_seeds=settings.num_seeds,
            seed=bench.config.suite.seed,
        )
        labels, scores = [float(x) for x in shots], [row["score"] for row in result["shots"]]
        whole = None
        if probed and "score" in probed:
            whole = (probed["num_train"] + probed["num_validation"]) / C, probed["score"]
            labels, scores = [*labels, whole[0]], [*scores, whole[1]]
        picture = bench.results.picture(f"{file_name(labelled.name)}-few-shot.png")
        plot_few_shot(result["shots"], zero_shot["value"], whole, picture, labelled.title)
        return {
            **result,
            "matches_zero_shot": labels_to_match(zero_shot["value"], labels, scores),
            "left_out_shots": [number for number in settings.shots if number > fewest],
            "features": features,
            "pictures": {"few_shot": picture},
        }

    return bench.results.result("few_shot", labelled.name, key, make)


def _untrained(labelled: LabelledSet, train: Split) -> str:
    """Why there is no probe of this training split, empty where there can be one."""
    C = len(labelled.class_names)
    images = train.labels.sum(axis=0) if labelled.multi_label else np.bincount(train.labels, minlength=C)
    bare = np.flatnonzero(images == 0)
    first = labelled.shown_names[bare[0]] if bare.size else ""
    return f"{bare.size} of {C} classes have no training images here, the first is {first!r}" if bare.size else ""


def _probed(bench: Bench, found: LabelledFeatures) -> Split:
    pooled = bench.config.linear_probe.features == "pooled"
    return Split(found.features.pooled if pooled else found.features.embeddings, found.labels)
