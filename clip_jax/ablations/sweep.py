"""One ablation from its runs to its sentence: what is missing is made, what is there is read."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clip_jax.ablations.figures import draw
from clip_jax.ablations.findings import judge, overall, sentence
from clip_jax.ablations.jobs import Run, make_runs, record_sweep
from clip_jax.ablations.observations import Observation, by_seed, distinct, facts_of, observe, select
from clip_jax.ablations.report import write_report
from clip_jax.ablations.spec import Ablation
from clip_jax.ablations.statistics import summary
from input_pipeline.storage import write_json

FILES = ("results.json", "figure.png", "report.html")
PARTS = ("prompts", "shots")  # what else tells observations of a run and set apart


def unique(runs: Sequence[Run]) -> list[Run]:
    """Those that are not the same work as one before."""
    found: dict[tuple[Path, Path], Run] = {}
    for run in runs:
        found.setdefault((run.folder, run.suite_folder), run)
    return list(found.values())


def shard(runs: Sequence[Run], place: int, number: int) -> list[Run]:
    """The part of them that is this machine's: every number-th folder, so that no two machines train in one."""
    folders = list(dict.fromkeys(run.folder for run in runs))
    own = set(folders[place::number])
    return [run for run in runs if run.folder in own]


def prepare(ablation: Ablation, num_seeds: int, workdir: Path) -> list[Run]:
    """The runs, with sweep.json written. Raises ValueError where the folder holds the sweep of another config."""
    record_sweep(ablation, workdir / ablation.name)
    return make_runs(ablation, num_seeds, workdir)


def conclude(
    ablation: Ablation, runs: Sequence[Run], workdir: Path, command: str, say: Callable[[str], None] = print
) -> dict[str, Any] | None:
    """Results, figure and report of the runs that are done; None while some are neither done nor failed.

    Nothing is written where the same results are there already.
    """
    if waiting := [run for run in runs if not run.done and run.failure is None]:
        say(f"{ablation.name}: {len(waiting)} of {len(runs)} runs are not there yet; the report comes with the last")
        return None
    folder = workdir / ablation.name
    if not any(run.done for run in runs):
        say(f"{ablation.name}: all {len(runs)} runs failed; the first: {runs[0].failure}")
        return None
    facts = facts_of(ablation)
    observations = observe(ablation, runs, facts)
    results = json.loads(json.dumps(summarize(ablation, runs, facts, observations, workdir, command)))
    file = folder / "results.json"
    if all((folder / name).is_file() for name in FILES) and json.loads(file.read_text()) == results:
        say(f"{ablation.name}: everything was done, nothing changed\n{results['sentence']}")
        return results
    draw(ablation, observations, folder / "figure.png")
    write_report(results, folder)
    write_json(file, results)  # last: it says that the others are there
    say(f"{ablation.name}: {results['sentence']}\nreport.html, figure.png and results.json are in {folder}")
    return results


def summarize(
    ablation: Ablation,
    runs: Sequence[Run],
    facts: dict[str, dict[str, Any]],
    observations: Sequence[Observation],
    workdir: Path,
    command: str,
) -> dict[str, Any]:
    """What results.json holds: question, sentence, verdict, findings, cells (each arm's means), facts, runs, and how
    they were made. A function of the runs alone, so that a second call gives the same."""
    expected = [{"arm": run.arm, "seed": run.seed, **facts[run.arm]} for run in runs]
    findings = [judge(finding, observations, expected) for finding in ablation.findings]
    done = [run for run in runs if run.done]
    environments = [json.loads((run.folder / "environment.json").read_text()) for run in done]
    return {
        "name": ablation.name,
        "scale": ablation.scale,
        "question": ablation.about.question,
        "place": ablation.about.place,
        "finding": ablation.about.finding,
        "note": ablation.about.note,
        "verdict": overall(findings),
        "sentence": sentence(findings),
        "findings": findings,
        "cells": _cells(observations),
        "facts": facts,
        "seeds": sorted({run.seed for run in done}),
        "runs": [
            {
                "arm": run.arm,
                "seed": run.seed,
                "state": "done" if run.done else "failed",
                "minutes": run.minutes,
                "folder": str(run.folder.relative_to(workdir)),
            }
            for run in runs
        ],
        "failed": [{"arm": run.arm, "seed": run.seed, "reason": run.failure} for run in runs if not run.done],
        "minutes": sum(run.minutes for run in unique(runs)),
        "command": command,
        "commits": sorted({environment["commit"] for environment in environments if environment["commit"]}),
        "versions": environments[0]["versions"],
        "devices": sorted({device for environment in environments for device in environment["devices"]}),
    }


def _cells(observations: Sequence[Observation]) -> list[dict[str, Any]]:
    """Mean and error over seeds of each arm and measure: over all sets, and of each."""
    cells = []
    for arm in distinct(observations, "arm"):
        of_arm = [found for found in observations if found["arm"] == arm]
        last = max((found.get("samples_seen", 0) for found in of_arm), default=0)
        of_arm = [found for found in of_arm if found.get("samples_seen", last) == last]
        for what in distinct(of_arm, "what"):
            of_what = select(of_arm, {"what": what})
            key = next((part for part in PARTS if part in of_what[0]), None)
            names = distinct(of_what, "set")
            groups: list[tuple[str, dict[str, Any]]] = [("", {})] if not key and len(names) > 1 else []
            groups += [(f"{key} {value}", {key: value}) for value in distinct(of_what, key)] if key else []
            groups += [(name, {"set": name}) for name in names] if not key else []
            for of, where in groups:
                values = by_seed(of_what, where)
                found = summary(list(values.values()))
                cells.append(
                    {
                        "arm": arm,
                        "what": what,
                        "of": of,
                        "mean": found["mean"],
                        "standard_error": found["standard_error"],
                        "values": {str(seed): value for seed, value in values.items()},
                    }
                )
    return cells
