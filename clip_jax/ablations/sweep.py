"""One ablation from its runs to its sentence: what is missing is made, what is there is read."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from clip_jax.ablations.figures import draw
from clip_jax.ablations.jobs import AblationRun, make_runs, record_sweep
from clip_jax.ablations.observations import facts_of, observe
from clip_jax.ablations.report import write_report
from clip_jax.ablations.results import Results, conclude_runs
from clip_jax.ablations.spec import Ablation
from input_pipeline.storage import write_json

FILES = ("results.json", "figure.png", "report.html")


def prepare(ablation: Ablation, num_seeds: int, workdir: Path) -> list[AblationRun]:
    """The runs, with sweep.json written. Raises ValueError where the folder holds the sweep of another config."""
    record_sweep(ablation, workdir / ablation.name)
    return make_runs(ablation, num_seeds, workdir)


def conclude(
    ablation: Ablation, runs: Sequence[AblationRun], workdir: Path, command: str, say: Callable[[str], None] = print
) -> Results | None:
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
    results = conclude_runs(ablation, runs, facts, observations, workdir, command)
    file, stored = folder / "results.json", json.loads(json.dumps(asdict(results)))
    if all((folder / name).is_file() for name in FILES) and json.loads(file.read_text()) == stored:
        say(f"{ablation.name}: everything was done, nothing changed\n{results.sentence}")
        return results
    draw(ablation, observations, folder / "figure.png")
    write_report(results, folder)
    write_json(file, stored)  # last: it says that the others are there
    say(f"{ablation.name}: {results.sentence}\nreport.html, figure.png and results.json are in {folder}")
    return results
