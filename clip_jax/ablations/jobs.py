"""The runs of a sweep, each a process of its own: one that fails or takes all memory leaves the others alone."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pprint import pformat
from typing import Any

from clip_jax.ablations.spec import Ablation, Sections
from clip_jax.evaluation.suite.labelled_sets import AbsentError, open_labelled_set
from input_pipeline.storage import differences, digest_json, listed, write_json, write_text

ROOT = Path(__file__).parents[2]
PROGRAM = "clip_jax"  # run as `python -m`
CONFIG = '''"""A run of a sweep: clip-jax {command}"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(SECTIONS)


# fmt: off
SECTIONS = {sections}
'''


class StoppedError(Exception):
    """A signal came; `code` is the exit code of a command that it ended."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}: the same command resumes there")
        self.code = 128 + number


@dataclass(frozen=True, kw_only=True)
class AblationRun:
    """A run of a sweep: an arm at a seed. Runs of the same config, of whatever ablation, share a folder."""

    arm: str
    seed: int
    sections: Sections
    suite: Sections
    folder: Path
    strict: bool  # a set of the suite that is not there is an error

    @property
    def suite_folder(self) -> Path:
        """Where the suite's report lies."""
        return self.folder / "suites" / digest_json(self.suite)[:12]

    @property
    def trained(self) -> bool:
        """Whether training and its last evaluation are there."""
        return (self.folder / "evaluation.json").is_file()

    @property
    def done(self) -> bool:
        """Whether all of it is there."""
        return self.trained and (not self.suite or (self.suite_folder / "report.json").is_file())

    @property
    def arrived(self) -> list[str]:
        """Sets that the suite's report lacks for want of their data, which is there now: they are still to measure."""
        if not (self.suite and self.done):
            return []
        rows = json.loads((self.suite_folder / "report.json").read_text())["sets"]
        return [row["name"] for row in rows if row.get("state") == "absent" and self._opens(row["name"])]

    def _opens(self, name: str) -> bool:
        try:
            open_labelled_set(name, Path(self.suite["suite"]["data_dir"]), self.sections["vision"]["image_size"])
        except AbsentError:
            return False
        except ValueError:
            pass  # data of another form, as the suite will say
        return True

    @property
    def failed_file(self) -> Path:
        """Where the reason is kept: training's in the folder, a suite's in its own, of which a run may have several."""
        return (self.suite_folder if self.trained and self.suite else self.folder) / "failed.txt"

    @property
    def failure(self) -> str | None:
        """Why the last try did not end well."""
        return self.failed_file.read_text().strip() if self.failed_file.is_file() and not self.done else None

    @property
    def minutes(self) -> float:
        """That its processes took, of training and of measuring by this suite."""
        seconds = _read_seconds(self.folder)
        names = ["train", *([self.suite_folder.name] if self.suite else [])]
        return sum(seconds.get(name, 0.0) for name in names) / 60


def make_runs(ablation: Ablation, num_seeds: int, workdir: Path) -> list[AblationRun]:
    """All runs, seed by seed, so that a sweep that is cut short has whole seeds. Only reads."""
    runs, strict = [], ablation.scale == "mini"
    for seed in range(num_seeds):
        for arm, base in ablation.arms.items():
            sections = copy.deepcopy(base)
            sections["data"]["seed"] = sections["train"]["seed"] = seed
            folder = workdir / "runs" / digest_json(_as_json(sections))[:12]
            runs.append(
                AblationRun(arm=arm, seed=seed, sections=sections, suite=ablation.suite, folder=folder, strict=strict)
            )
    return runs


def unique(runs: Sequence[AblationRun]) -> list[AblationRun]:
    """Those that are not the same work as one before."""
    found: dict[tuple[Path, Path], AblationRun] = {}
    for run in runs:
        found.setdefault((run.folder, run.suite_folder), run)
    return list(found.values())


def shard(runs: Sequence[AblationRun], index: int, number: int) -> list[AblationRun]:
    """The part of them that is this machine's: every number-th folder, so that no two machines train in one."""
    folders = list(dict.fromkeys(run.folder for run in runs))
    return [run for run in runs if run.folder in folders[index::number]]


def record_sweep(ablation: Ablation, folder: Path) -> None:
    """Writes sweep.json, or raises ValueError that lists the keys in which the sweep in the folder is another one."""
    sweep = _as_json({"scale": ablation.scale, "arms": ablation.arms, "suite": ablation.suite})
    file = folder / "sweep.json"
    if file.is_file():
        if differing := _differences(json.loads(file.read_text()), sweep):
            raise ValueError(
                f"{folder} holds the sweep of another config: {listed(differing)}. "
                "Use another --workdir, or the config it was started with"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, sweep)


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    found = [] if old["scale"] == new["scale"] else [f"scale was {old['scale']}, is {new['scale']}"]
    found += [f"run {arm!r} was there, is not" for arm in old["arms"] if arm not in new["arms"]]
    found += [f"run {arm!r} was not there, is" for arm in new["arms"] if arm not in old["arms"]]
    kept = [arm for arm in old["arms"] if arm in new["arms"]]
    changes: dict[str, list[str]] = {}  # the arms of each
    for arm in kept:
        for change in differences(old["arms"][arm], new["arms"][arm], None):
            changes.setdefault(str(change), []).append(arm)
    found += [what if of == kept else f"{what} (of {', '.join(of)})" for what, of in changes.items()]
    return found + [str(change) for change in differences(old["suite"], new["suite"], None)]


def run_all(runs: Sequence[AblationRun], say: Callable[[str], None] = print) -> None:
    """Makes what is not there yet, one after the other. A run that fails says so in its failed_file, and the
    others go on.

    Raises:
      StoppedError: SIGTERM or Ctrl-C came; the run at work has saved a checkpoint.
    """
    missing = [run for run in runs if not run.done or run.arrived]
    for number, run in enumerate(missing, 1):
        say(f"run {number} of {len(missing)}: {run.arm}, seed {run.seed}, in {run.folder}")
        started = time.perf_counter()
        reason = _make(run)
        took = f"{(time.perf_counter() - started) / 60:.1f} minutes"
        if reason is None:
            for folder in {run.folder, run.failed_file.parent}:
                (folder / "failed.txt").unlink(missing_ok=True)
            say(f"  done in {took}")
        else:
            run.failed_file.write_text(f"{reason}\n")
            say(f"  FAILED after {took}: {reason}\n  its output is in {run.folder / 'log.txt'}")


def commands(run: AblationRun) -> dict[str, list[str]]:
    """The commands that make what is missing of a run, by what they make, in order; each is the words after `clip-jax`.
    Their config files are written."""
    found = {}
    if not run.trained:
        words = ["train", f"--config={run.folder / 'config.py'}", f"--workdir={run.folder}"]
        _write_config(run.folder / "config.py", run.sections, words)
        found["train"] = words
    if run.suite and (not run.done or run.arrived):
        output = run.suite_folder
        words = ["evaluate", f"--config={output / 'config.py'}", f"--workdir={run.folder}", f"--output={output}"]
        _write_config(output / "config.py", run.suite, words)
        found[output.name] = [*words, *(["--strict"] if run.strict else [])]
    return found


def _write_config(file: Path, sections: Sections, words: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = CONFIG.format(command=" ".join(words), sections=pformat(sections, width=120, sort_dicts=False))
    write_text(file, text)


def _make(run: AblationRun) -> str | None:
    """Trains and measures; the reason when it failed."""
    for what, words in commands(run).items():
        if reason := _call(what, words, run.folder):
            if what != "train":  # a report with a set that failed is no result
                (run.suite_folder / "report.json").unlink(missing_ok=True)
            return reason
    return None


def _call(what: str, words: Sequence[str], folder: Path) -> str | None:
    """Runs a command; its last message when it fails. Adds the seconds that it took to those of the folder."""
    started = time.perf_counter()
    with (folder / "log.txt").open("ab") as log:
        # A session of its own, so that Ctrl-C reaches it once, from here: at the second it would not save.
        process = subprocess.Popen(
            [sys.executable, "-m", PROGRAM, *words],
            env=child_environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        with _passing_on_signals(process) as received:
            code = process.wait()
    seconds = _read_seconds(folder)
    write_json(folder / "seconds.json", {**seconds, what: seconds.get(what, 0.0) + time.perf_counter() - started})
    if received:
        raise StoppedError(received[0])
    if code == 0:
        return None
    return (
        _last_message(folder / "log.txt") if code > 0 else f"killed by {signal.Signals(-code).name}, as for its memory"
    )


def child_environment() -> dict[str, str]:
    """This process's, with the repository where modules are found."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


@contextmanager
def _passing_on_signals(process: subprocess.Popen):
    received: list[int] = []

    def handler(number: int, _: Any) -> None:
        received.append(number)
        process.send_signal(number)

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _last_message(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("clip-jax: error: ", "FAILED: ", "ABSENT: "))]
    return errors[-1].removeprefix("clip-jax: error: ") if errors else lines[-1] if lines else "no output"


def _read_seconds(folder: Path) -> dict[str, float]:
    file = folder / "seconds.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))
