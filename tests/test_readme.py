"""The README's commands are those that are tested."""

import re
import sysconfig
from pathlib import Path

import pytest

from clip_jax.runs.logging import read_metrics

ROOT = Path(__file__).parent.parent
SMALL = [
    *("--config.train.total_steps=2", "--config.optimizer.warmup_steps=1", "--config.train.global_batch_size=8"),
    *("--config.vision.depth=1", "--config.data.num_validation=8", "--config.data.num_workers=0"),
    *("--config.evaluation.zero_shot=()", "--config.evaluation.batch_size=8"),
]


CODE = (".py", ".sh", ".sbatch")
ROW = re.compile(r"^\| `([\w/]+)` \| ([\d,]+) \|", re.MULTILINE)


def commands() -> list[str]:
    readme = (ROOT / "README.md").read_text()
    return re.findall(r"^    (python3 -m venv .*)$", readme, re.MULTILINE)


def test_ci_runs_the_test_command_as_the_readme_has_it():
    _, test = commands()
    lines = [line.strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()]
    assert lines.count(test) == 1


def test_the_main_job_trains(processes, tmp_path):
    train, _ = commands()
    prefix = "python3 -m venv .venv && .venv/bin/pip install -e . && .venv/bin/clip-jax "
    assert train.startswith(prefix)
    command = [Path(sysconfig.get_path("scripts")) / "clip-jax", *train.removeprefix(prefix).split(), *SMALL]
    code, out, err = processes.run(command, 120, cwd=tmp_path)
    assert code == 0, err
    assert "are in runs/tiny" in out
    rows = read_metrics(tmp_path / "runs" / "tiny")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]


def test_the_map_has_every_folder_with_its_lines():
    rows = {name: int(lines.replace(",", "")) for name, lines in ROW.findall((ROOT / "README.md").read_text())}
    files = [path for path in (ROOT / "clip_jax").glob("*/*") if path.is_file()]
    folders = {f"clip_jax/{path.parent.name}" for path in files if path.parent.name != "__pycache__"}
    assert set(rows) == folders | {"configs", "input_pipeline", "colab", "tests"}
    for name, lines in rows.items():
        code = (path for path in (ROOT / name).rglob("*") if path.suffix in CODE or path.name == "Dockerfile")
        counted = sum(len(file.read_text().splitlines()) for file in code)
        assert lines == pytest.approx(counted, rel=0.1, abs=20), name
