"""What the paper's settings ask before they start: data, accelerators, and the chip-hours of each run."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clip_jax.ablations.jobs import PROGRAM, AblationRun, child_environment, commands
from clip_jax.ablations.spec import Ablation
from clip_jax.tables import format_table
from input_pipeline.storage import digest_json, write_json

DEVICES = "import jax; d = jax.devices(); print(d[0].platform, len(d), d[0].device_kind)"


def check_data(ablation: Ablation) -> None:
    """Raises ValueError where an arm reads files and none are named."""
    for arm, sections in ablation.arms.items():
        if sections["data"]["source"] != "scenes" and not sections["data"]["path"]:
            raise ValueError(
                f"--scale=full of {ablation.name} needs data, and its run {arm!r} has none: give "
                "--config.data.path='TARS/{00000..39999}.tar' and, for another kind than webdataset, "
                "--config.data.source; --scale=mini draws its own"
            )


def accelerators() -> str:
    """Kind and number of them, asked by a process of its own: who asks holds a TPU. Raises ValueError without any."""
    asked = subprocess.run(
        [sys.executable, "-c", DEVICES], env=child_environment(), capture_output=True, text=True, check=False
    )
    platform, _, rest = asked.stdout.strip().rpartition("\n")[2].partition(" ")
    if asked.returncode or platform == "cpu":
        raise ValueError(
            "--scale=full needs accelerators, and JAX sees none here"
            f"{': ' + asked.stderr.strip().splitlines()[-1] if asked.returncode and asked.stderr.strip() else ''}: "
            "--dry_run --topology=v5e:16x16 tells what it would take, --scale=mini runs on a CPU"
        )
    return rest


def plan_runs(
    runs: list[AblationRun], folder: Path, topology: str | None, say: Callable[[str], None] = print
) -> dict[str, dict[str, Any]]:
    """{arm: what `clip-jax plan` says of it}, kept in the folder; an arm's seeds are alike."""
    plans = {}
    for run in runs:
        if run.arm in plans:
            continue
        file = plan_file(folder, run, topology)
        if not file.is_file():
            say(f"planning {run.arm}, {topology or 'on the devices of this machine'}: minutes")
            commands(run)
            words = [sys.executable, "-m", PROGRAM, "plan", f"--config={run.folder / 'config.py'}", "--json"]
            words += [f"--topology={topology}"] if topology else []
            told = subprocess.run(words, env=child_environment(), capture_output=True, text=True, check=False)
            if told.returncode:
                lines = told.stderr.strip().splitlines()
                words = [line for line in lines if line.startswith("clip-jax: error: ")] or lines[-1:]
                raise ValueError(f"run {run.arm!r} cannot be planned: {words[-1].removeprefix('clip-jax: error: ')}")
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, json.loads(told.stdout))
        plans[run.arm] = json.loads(file.read_text())
    return plans


def plan_file(folder: Path, run: AblationRun, topology: str | None) -> Path:
    """Where the plan of a run is kept."""
    return folder / "plans" / f"{digest_json([run.folder.name, topology])[:12]}.json"


def as_table(runs: list[AblationRun], plans: dict[str, dict[str, Any]]) -> str:
    """Chip-hours of what is not done yet, at least; "-" where the device's own numbers are not known."""
    rows, total = [], 0.0
    for arm, plan in plans.items():
        missing = sum(run.arm == arm and not run.trained for run in runs)
        hours = plan["chip_hours"]
        total += missing * (hours if hours is not None else float("nan"))
        told = ["-", "-"] if hours is None else [f"{hours:,.0f}", f"{missing * hours:,.0f}"]
        rows.append([arm, f"{plan['parameters']:,}", plan["num_devices"], plan["topology"], missing, *told])
    rows.append(["all", "", "", "", sum(row[4] for row in rows), "", "-" if total != total else f"{total:,.0f}"])
    header = ["run", "parameters", "devices", "kind", "to train", "chip-hours each, at least", "chip-hours, at least"]
    return format_table(header, rows)
