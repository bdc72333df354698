"""Redraws ablations of the paper: `clip-jax ablate batch_size --workdir=runs/ablations`, or `all`.

configs/ablations/NAME.py says what is asked, of which runs, and what would show the paper's finding. Runs that are done
are skipped, one that was stopped goes on, and runs of one config are shared between ablations. At the end DIR/NAME has
report.html, figure.png and results.json. --scale=mini needs two cores and no data; --scale=full are the paper's
settings on data of your own, as --config.data.path=DIR, with their chip-hours shown before anything starts. Without
NAME it lists what there is.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from clip_jax.ablations import full_scale
from clip_jax.ablations.gallery import write_gallery
from clip_jax.ablations.jobs import AblationRun, StoppedError, commands, run_all, shard, unique
from clip_jax.ablations.spec import Ablation, ablation_names, load_ablation, questions
from clip_jax.ablations.sweep import conclude, prepare
from clip_jax.cli import common_flags
from clip_jax.tables import format_table

POSITIONAL = "NAME"
DEFAULT_CONFIG = "clip_vit_b32"  # whose keys --config.SECTION.KEY=VALUE changes in all runs
ALL = "all"

common_flags.declare("workdir", "config")
HELP = {
    "workdir": "Folder of the runs and the reports.",
    "config": "No file: --config.SECTION.KEY=VALUE changes a key of all runs.",
}
SCALE = flags.DEFINE_enum(
    "scale", "mini", ["mini", "full"], "mini: drawn scenes on two cores; full: the paper's settings."
)
SEEDS = flags.DEFINE_integer("seeds", 3, "Number of runs of each arm, a seed each.", lower_bound=1)
SHARD = flags.DEFINE_string(
    "shard", "0/1", "Part of the runs, i/n with 0 <= i < n; the last part to end makes the report."
)
REPORT_ONLY = flags.DEFINE_bool("report_only", False, "Make the reports of finished runs, without running anything.")
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "List the runs with the commands that make them, without running anything."
)
TOPOLOGY = flags.DEFINE_string(
    "topology", None, "With --scale=full: TPU slice to plan for, such as v5e:16x16.", allow_override=True
)
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the prepared data sets to measure on.", allow_override=True)
GALLERY = flags.DEFINE_string("gallery", None, "Folder for a README.md of all that is finished, with its figures.")


def main(arguments: Sequence[str]) -> int:
    """Runs the sweeps; see the module's docstring."""
    if not arguments:
        print(format_table(["ablation", "asks"], [[name, asks] for name, asks in questions().items()]))
        print(f"\nclip-jax ablate NAME --workdir=runs/ablations runs one, {ALL} runs all; --help lists the flags.")
        return 0
    if len(arguments) > 1:
        raise ValueError(f"one ablation at a time, or {ALL}: {' '.join(arguments)}")
    # The processes of the runs take the accelerators; this one only counts and draws.
    jax.config.update("jax_platforms", "cpu")
    names = ablation_names() if arguments[0] == ALL else (arguments[0],)
    index, number = _shard(SHARD.value)
    overrides = common_flags.config_changes(DEFAULT_CONFIG)
    ablations = [load_ablation(name, SCALE.value, overrides, DATA_DIR.value) for name in names]
    if SCALE.value == "full":
        for ablation in ablations:
            full_scale.check_data(ablation)
        if not (DRY_RUN.value or REPORT_ONLY.value):
            print(f"on {full_scale.accelerators()}")
    workdir = Path(common_flags.required(common_flags.WORKDIR, "runs/ablations"))
    runs = {ablation.name: prepare(ablation, SEEDS.value, workdir) for ablation in ablations}
    every = unique([run for of_one in runs.values() for run in of_one])
    own = {run.folder for run in shard(every, index, number)}
    if SCALE.value == "full" and not REPORT_ONLY.value:
        _show_plans(ablations, runs, workdir)
    if DRY_RUN.value:
        _list([run for run in every if run.folder in own])
        return 0
    return _run(ablations, runs, own, workdir, overrides)


def _run(
    ablations: Sequence[Ablation],
    runs: dict[str, list[AblationRun]],
    own: set[Path],
    workdir: Path,
    overrides: dict[str, object],
) -> int:
    failed = []
    for ablation in ablations:
        of_one = runs[ablation.name]
        try:
            if not REPORT_ONLY.value:
                run_all([run for run in unique(of_one) if run.folder in own])
        except StoppedError as stopped:
            print(stopped, file=sys.stderr)
            return stopped.code
        conclude(ablation, of_one, workdir, _command(ablation, workdir, overrides))
        failed += [f"{ablation.name}, {run.arm}, seed {run.seed}: {run.failure}" for run in of_one if run.failure]
    if GALLERY.value:
        write_gallery(workdir, Path(GALLERY.value))
    if failed:
        print(f"{len(failed)} failed, which the same command tries again:", *failed, sep="\n  ", file=sys.stderr)
    return 1 if failed else 0


def _shard(value: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", value)
    if not found or int(found[1]) >= int(found[2]):
        raise ValueError(f"--shard={value} must be i/n with 0 <= i < n: for instance --shard=0/2 and --shard=1/2")
    return int(found[1]), int(found[2])


def _command(ablation: Ablation, workdir: Path, overrides: dict[str, object]) -> str:
    """What makes these results, whether it ran alone or among all."""
    words = [f"clip-jax ablate {ablation.name} --workdir={workdir}"]
    words += [] if SCALE.value == "mini" else [f"--scale={SCALE.value}"]
    words += [] if SEEDS.value == 3 else [f"--seeds={SEEDS.value}"]
    words += [f"--data_dir={DATA_DIR.value}"] if DATA_DIR.value else []
    return " ".join([*words, *(f"--config.{key}={value}" for key, value in overrides.items())])


def _show_plans(ablations: Sequence[Ablation], runs: dict[str, list[AblationRun]], workdir: Path) -> None:
    for ablation in ablations:
        of_one = runs[ablation.name]
        plans = full_scale.plan_runs(of_one, workdir / ablation.name, TOPOLOGY.value)
        print(f"\n{ablation.name}\n{full_scale.as_table(of_one, plans)}\n", flush=True)


def _list(runs: Sequence[AblationRun]) -> None:
    for run in runs:
        print(f"{run.arm}, seed {run.seed}: {'done' if run.done else 'to do'}")
        for words in commands(run).values():
            print(f"  clip-jax {' '.join(words)}")
