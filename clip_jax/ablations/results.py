"""What an ablation found, as results.json holds it: a function of its runs alone, so a second call gives the same."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from clip_jax.ablations.findings import Result, judge, overall, sentence
from clip_jax.ablations.jobs import AblationRun, unique
from clip_jax.ablations.observations import Facts, as_table, by_seed, distinct, select
from clip_jax.ablations.spec import Ablation
from clip_jax.ablations.statistics import summarize

PARTS = ("prompts", "shots")  # what else distinguishes observations of a run and set


@dataclass(frozen=True)
class Cell:
    """Mean and error over seeds of an arm's measure, over all sets ("") or of one; values: {seed: mean over sets}."""

    arm: str
    what: str
    of: str
    mean: float | None
    standard_error: float | None
    values: dict[int, float]


@dataclass(frozen=True)
class RunState:
    """A run, "done" or "failed", and its folder below the workdir."""

    arm: str
    seed: int
    state: str
    minutes: float
    folder: str


@dataclass(frozen=True)
class Failure:
    """Why a run did not end well."""

    arm: str
    seed: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Results:
    """Question, sentence, verdict, findings, cells, facts of each arm, runs, and how they were made."""

    name: str
    scale: str
    question: str
    place: str
    finding: str
    note: str
    verdict: str
    sentence: str
    findings: tuple[Result, ...]
    cells: tuple[Cell, ...]
    facts: dict[str, Facts]
    seeds: list[int]
    runs: list[RunState]
    failed: list[Failure]
    minutes: float
    command: str
    commits: list[str]
    versions: dict[str, Any]
    devices: list[str]


def conclude_runs(
    ablation: Ablation,
    runs: Sequence[AblationRun],
    facts: dict[str, Facts],
    observations: pd.DataFrame,
    workdir: Path,
    command: str,
) -> Results:
    """The results of runs that are done or failed; command: what makes them again."""
    about, done = ablation.about, [run for run in runs if run.done]
    expected = as_table([{"arm": run.arm, "seed": run.seed, **facts[run.arm]} for run in runs])
    findings = tuple(judge(finding, observations, expected) for finding in ablation.findings)
    environments = [json.loads((run.folder / "environment.json").read_text()) for run in done]
    return Results(
        name=ablation.name,
        scale=ablation.scale,
        question=about.question,
        place=about.place,
        finding=about.finding,
        note=about.note,
        verdict=overall(findings),
        sentence=sentence(findings),
        findings=findings,
        cells=tuple(_cells(observations)),
        facts=facts,
        seeds=sorted({run.seed for run in done}),
        runs=[_state(run, workdir) for run in runs],
        failed=[Failure(run.arm, run.seed, run.failure or "") for run in runs if not run.done],
        minutes=sum(run.minutes for run in unique(runs)),
        command=command,
        commits=sorted({environment["commit"] for environment in environments if environment["commit"]}),
        versions=environments[0]["versions"],
        devices=sorted({device for environment in environments for device in environment["devices"]}),
    )


def _state(run: AblationRun, workdir: Path) -> RunState:
    state, folder = "done" if run.done else "failed", str(run.folder.relative_to(workdir))
    return RunState(run.arm, run.seed, state, run.minutes, folder)


def _cells(observations: pd.DataFrame) -> list[Cell]:
    """Of each arm and measure at the end of training: by prompts or shots, or over all sets and of each."""
    cells = []
    last = select(observations, {"last": True}) if "last" in observations else observations
    for (arm, what), rows in last.groupby(["arm", "what"], sort=False):
        groups: list[tuple[str, dict[str, Any]]]
        if key := next((part for part in PARTS if distinct(rows, part)), None):
            groups = [(f"{key} {value}", {key: value}) for value in distinct(rows, key)]
        else:
            names = distinct(rows, "set")
            groups = [*([("", {})] if len(names) > 1 else []), *((name, {"set": name}) for name in names)]
        for of, where in groups:
            values = by_seed(rows, where)
            found = summarize(values)
            cells.append(Cell(arm, what, of, found.mean, found.standard_error, dict(values)))
    return cells
