"""What a sweep measured, as one table: a row says arm, seed, what it is, of which set, and its value."""

import json
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from clip_jax.ablations.jobs import AblationRun
from clip_jax.ablations.spec import Ablation, Where
from clip_jax.config.experiment import make_config
from clip_jax.planning.step import forward_flops, image_flops
from clip_jax.runs.logging import read_metrics

Facts = dict[str, Any]
_compute, _image_compute = cache(forward_flops), cache(image_flops)


def facts_of(ablation: Ablation) -> dict[str, Facts]:
    """What is known of each arm before it runs: compute, FLOPs of encoding one pair; image_compute, of its image alone,
    where something is over it; pairs, seen in training; total_compute, 3 * compute * pairs; family and size, the parts
    of an arm named family/size; and the config keys that figures and findings are over."""
    facts = {}
    for arm, sections in ablation.arms.items():
        config = make_config(sections)
        compute, pairs = _compute(config.model), config.train.global_batch_size * config.train.total_steps
        family, _, size = arm.partition("/")
        facts[arm] = {"compute": compute, "pairs": pairs, "total_compute": 3 * compute * pairs}  # backward: two forward
        facts[arm] |= {"family": family, "size": size}
        for section, _, key in (name.partition(".") for name in ablation.needed_facts):
            facts[arm][f"{section}.{key}"] = sections[section][key]
        if "image_compute" in ablation.axes:
            facts[arm]["image_compute"] = _image_compute(config.model)
    return facts


def observe(ablation: Ablation, runs: Sequence[AblationRun], facts: dict[str, Facts]) -> pd.DataFrame:
    """A row for each value of the runs that are done. Besides arm, seed, value and the arm's facts:

    what="zero_shot": set, chance; with a "curve" also samples_seen, and so far_compute, 3 * compute * samples_seen,
    and last, whether it is the curve's end.
    Of a suite also "linear_probe", "few_shot" (shots), "prompts" (prompts), "labels_to_match", "adapted" (the probe of
    the reference set under a shift) and "overlap_share", each with its set; of sets with both overlapping and clean
    images "overlap_gain", all less clean accuracy, "overlap_difference", overlapping less clean, and "overlap_beyond",
    1 where that is above 0 by its 99.5 % interval. What a row does not have is NaN.
    """
    rows = []
    for run in (run for run in runs if run.done):
        common = {"arm": run.arm, "seed": run.seed, **facts[run.arm]}
        for found in _READERS[ablation.measure.kind](run):
            if not ablation.measure.sets or found["set"] in ablation.measure.sets:
                if "samples_seen" in found:
                    found["far_compute"] = 3 * common["compute"] * found["samples_seen"]
                rows.append({**common, **found})
    return as_table(rows)


def as_table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The rows as they are: whole numbers stay whole beside missing ones."""
    return pd.DataFrame(rows, columns=None if rows else ["arm", "seed", "what", "set", "value"], dtype=object)


def _final(run: AblationRun) -> Iterator[dict[str, Any]]:
    evaluation = json.loads((run.folder / "evaluation.json").read_text())
    for name, found in evaluation["zero_shot"].items():
        yield {"what": "zero_shot", "set": name, "value": found["top1"], "chance": found["chance"]}


def _curve(run: AblationRun) -> Iterator[dict[str, Any]]:
    rows = [row for row in read_metrics(run.folder) if any(key.startswith("evaluation/") for key in row)]
    for row in rows:
        position = {"samples_seen": row["samples_seen"], "last": row is rows[-1]}
        for key in row:
            if key.startswith("evaluation/") and key.endswith("/top1"):
                name = key.removeprefix("evaluation/").removesuffix("/top1")
                chance = row[f"evaluation/{name}/chance"]
                yield {"what": "zero_shot", "set": name, "value": row[key], "chance": chance, **position}


def _suite(run: AblationRun) -> Iterator[dict[str, Any]]:
    report = json.loads((run.suite_folder / "report.json").read_text())
    for row in report["sets"]:
        for found in _set_observations(row):
            yield {"set": row["name"], **found}
    for name, value in report.get("robustness", {}).get("adapted", {}).items():
        yield {"what": "adapted", "set": name, "value": value}


def _set_observations(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
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


def select(observations: pd.DataFrame, where: Where) -> pd.DataFrame:
    """The rows that have, of each key, this value or one of these."""
    for key, value in where.items():
        values = value if isinstance(value, tuple | list) else [value]
        observations = observations[observations[key].isin(values)] if key in observations else observations[:0]
    return observations


def mean_over(observations: pd.DataFrame, *keys: str) -> pd.Series:
    """The mean value of each group of rows that agree in the keys, in the order in which they come first."""
    groups = observations.groupby(list(keys), sort=False)["value"]
    return groups.agg(lambda values: np.mean(values.tolist())).astype(float)  # numpy's: NaN is not skipped


def by_seed(observations: pd.DataFrame, where: Where) -> pd.Series:
    """The mean over all that is selected, of each seed."""
    return mean_over(select(observations, where), "seed").sort_index()


def distinct(observations: pd.DataFrame, key: str) -> list[Any]:
    """The values of a key, in the order in which they come first."""
    return list(observations[key].dropna().unique()) if key in observations else []
