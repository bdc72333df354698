"""What a sweep saw, as one flat list: each observation says arm, seed, what it is, of which set, and its value."""

import json
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

from clip_jax.ablations.jobs import Run
from clip_jax.ablations.spec import Ablation, Where
from clip_jax.config.experiment import make_config
from clip_jax.models import ModelConfig
from clip_jax.planning.step import forward_flops, image_flops
from clip_jax.runs.logging import read_metrics

Observation = dict[str, Any]


def facts_of(ablation: Ablation) -> dict[str, dict[str, Any]]:
    """What is known of each arm before it runs: compute, FLOPs of encoding one pair; image_compute, of its image alone,
    where something is over it; pairs, seen in training; total_compute, 3 * compute * pairs; family and size, the parts
    of an arm named family/size; and the config keys that figures and findings are over."""
    facts = {}
    for arm, sections in ablation.arms.items():
        config = make_config(sections)
        compute = _compute(config.model)
        pairs = config.train.global_batch_size * config.train.total_steps
        family, _, size = arm.partition("/")
        keys: dict[str, Any] = {
            name: sections[name.partition(".")[0]][name.partition(".")[2]] for name in ablation.needed_facts
        }
        if "image_compute" in ablation.axes:
            keys["image_compute"] = _image_compute(config.model)
        facts[arm] = {
            "compute": compute,
            "pairs": pairs,
            "total_compute": 3 * compute * pairs,  # a backward pass is two forward ones
            "family": family,
            "size": size,
            **keys,
        }
    return facts


@cache
def _compute(model: ModelConfig) -> int:
    return forward_flops(model)


@cache
def _image_compute(model: ModelConfig) -> int:
    return image_flops(model)


def observe(ablation: Ablation, runs: Sequence[Run], facts: dict[str, dict[str, Any]]) -> list[Observation]:
    """Of the runs that are done. Besides arm, seed, value and the arm's facts:

    what="zero_shot": set, chance; with a "curve" also samples_seen, and so far_compute, 3 * compute * samples_seen,
    and last, whether it is the curve's end.
    Of a suite also "linear_probe", "few_shot" (shots), "prompts" (prompts), "labels_to_match", "adapted" (the probe of
    the reference set under a shift) and "overlap_share", each with its set; of sets with both overlapping and clean
    images "overlap_gain", all less clean accuracy, "overlap_difference", overlapping less clean, and "overlap_beyond",
    1 where that is above 0 by its 99.5 % interval.
    """
    observations = []
    for run in runs:
        if not run.done:
            continue
        common = {"arm": run.arm, "seed": run.seed, **facts[run.arm]}
        for found in _READERS[ablation.measure.kind](run):
            if not ablation.measure.sets or found["set"] in ablation.measure.sets:
                if "samples_seen" in found:
                    found["far_compute"] = 3 * common["compute"] * found["samples_seen"]
                observations.append({**common, **found})
    return observations


def _final(run: Run) -> Iterator[Observation]:
    evaluation = json.loads((run.folder / "evaluation.json").read_text())
    for name, found in evaluation["zero_shot"].items():
        yield {"what": "zero_shot", "set": name, "value": found["top1"], "chance": found["chance"]}


def _curve(run: Run) -> Iterator[Observation]:
    rows = [row for row in read_metrics(run.folder) if any(key.startswith("evaluation/") for key in row)]
    for row in rows:
        place = {"samples_seen": row["samples_seen"], "last": row is rows[-1]}
        for key in row:
            if key.startswith("evaluation/") and key.endswith("/top1"):
                name = key.removeprefix("evaluation/").removesuffix("/top1")
                chance = row[f"evaluation/{name}/chance"]
                yield {"what": "zero_shot", "set": name, "value": row[key], "chance": chance, **place}


def _suite(run: Run) -> Iterator[Observation]:
    report = json.loads((run.suite_folder / "report.json").read_text())
    for row in report["sets"]:
        for found in _set_observations(row):
            yield {"set": row["name"], **found}
    for name, value in report.get("robustness", {}).get("adapted", {}).items():
        yield {"what": "adapted", "set": name, "value": value}


def _set_observations(row: dict[str, Any]) -> Iterator[Observation]:
    if zero_shot := row.get("zero_shot"):
        yield {"what": "zero_shot", "value": zero_shot["value"], "chance": zero_shot["chance"]}
        for prompts, found in zero_shot["prompts"].items():
            yield {"what": "prompts", "prompts": prompts, "value": found["value"]}
    if "score" in (probe := row.get("linear_probe", {})):
        yield {"what": "linear_probe", "value": probe["score"]}
    few_shot = row.get("few_shot", {})
    for found in few_shot.get("shots", ()):
        yield {"what": "few_shot", "shots": found["labels_per_class"], "value": found["score"]}
    if "matches_zero_shot" in few_shot:
        # "at most" and "more than" are taken at their ends, as the paper's figure 7 draws them.
        yield {"what": "labels_to_match", "value": few_shot["matches_zero_shot"]["labels_per_class"]}
    if "overlap_share" in (overlap := row.get("overlap", {})):
        yield {"what": "overlap_share", "value": overlap["overlap_share"]}
        if overlap["overlap_minus_clean"] is not None:  # both parts have images
            yield {"what": "overlap_gain", "value": overlap["all_minus_clean"]}
            yield {"what": "overlap_difference", "value": overlap["overlap_minus_clean"]}
            yield {"what": "overlap_beyond", "value": float(overlap["overlap_minus_clean_low"] > 0)}


_READERS = {"final": _final, "curve": _curve, "suite": _suite}


def select(observations: Sequence[Observation], where: Where) -> list[Observation]:
    """Those that have, of each key, this value or one of these."""

    def fits(found: Observation) -> bool:
        return all(
            key in found and (found[key] in value if isinstance(value, tuple | list) else found[key] == value)
            for key, value in where.items()
        )

    return [found for found in observations if fits(found)]


def by_seed(observations: Sequence[Observation], where: Where) -> dict[int, float]:
    """{seed: mean over all that is selected}."""
    values: dict[int, list[float]] = {}
    for found in select(observations, where):
        values.setdefault(found["seed"], []).append(found["value"])
    return {seed: float(np.mean(of_seed)) for seed, of_seed in sorted(values.items())}


def distinct(observations: Sequence[Observation], key: str) -> list[Any]:
    """The values of a key, in the order in which they come first."""
    return list(dict.fromkeys(found[key] for found in observations if key in found))
