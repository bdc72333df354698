"""Runs that take no time: what training and suites leave behind, with accuracies that the test chooses."""

import json
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clip_jax.ablations import jobs

Accuracy = Callable[[dict[str, Any], str], float]  # of a run's sections, on a set
ENVIRONMENT = {"commit": "0123456789abcdef", "versions": {"jax": "9.9"}, "devices": ["cpu"], "command": ["x"]}


class Pretended:
    """Stands in for `jobs._call`: writes what the commands write. calls: what was run, in order."""

    def __init__(self, accuracy: Accuracy, failing: Callable[[dict[str, Any]], bool] = lambda sections: False):
        self.accuracy = accuracy
        self.failing = failing
        self.absent: set[str] = set()  # sets without data
        self.overlap: dict[str, Any] = {"overlap_share": 0.02, "all_minus_clean": 0.001}
        self.overlap |= {"overlap_minus_clean": 0.05, "overlap_minus_clean_low": -0.1}
        self.calls: list[tuple[str, Path]] = []

    def __call__(self, what: str, words: Sequence[str], folder: Path) -> str | None:
        self.calls.append((words[0], folder))
        sections = self._sections(folder / "config.py")
        if self.failing(sections):
            return "the loss is nan at step 7"
        values = {"train": self._train, "evaluate": self._evaluate}[words[0]](sections, words, folder)
        (folder / "seconds.json").write_text(json.dumps({**jobs._read_seconds(folder), what: values}))
        return None

    def _sections(self, file: Path) -> dict[str, Any]:
        return runpy.run_path(str(file))["get_config"]().to_dict()

    def _train(self, sections: dict[str, Any], words: Sequence[str], folder: Path) -> float:
        found = {
            name: {"top1": self.accuracy(sections, name), "chance": 0.1} for name in sections["evaluation"]["zero_shot"]
        }
        (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
        seen = sections["train"]["global_batch_size"] * sections["train"]["total_steps"]
        rows = [
            {"step": k, "samples_seen": seen * k // 4}
            | {f"evaluation/{name}/top1": of["top1"] * k / 4 for name, of in found.items()}
            | {f"evaluation/{name}/chance": 0.1 for name in found}
            for k in (1, 2, 3, 4)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "evaluation.json").write_text(json.dumps({"zero_shot": found, "retrieval": {}}))
        return 60.0

    def _evaluate(self, sections: dict[str, Any], words: Sequence[str], folder: Path) -> float:
        output = Path(words[3].removeprefix("--output="))
        suite = self._sections(output / "config.py")
        rows = [
            {"name": name, "state": "absent", "reason": "no such data"}
            if name in self.absent
            else self._row(suite, name, self.accuracy(sections, name))
            for name in suite["suite"]["datasets"]
        ]
        report: dict[str, Any] = {"sets": rows}
        if "robustness" in suite["suite"]["measures"]:
            names = (suite["robustness"]["reference"], *suite["robustness"]["shifts"])
            report["robustness"] = {"adapted": {name: self.accuracy(sections, name) + 0.05 for name in names}}
        (output / "report.json").write_text(json.dumps(report))
        return 30.0

    def _row(self, suite: dict[str, Any], name: str, accuracy: float) -> dict[str, Any]:
        """Each prompt set a point above the one before; a probe 0.2 above zero-shot, two labels a class match it."""
        measures, row = suite["suite"]["measures"], {"name": name}
        if "zero_shot" in measures:
            prompts = {p: {"value": accuracy + 0.01 * i} for i, p in enumerate(suite["zero_shot"]["prompts"])}
            row["zero_shot"] = {"value": accuracy, "chance": 0.1, "prompts": prompts}
        if "linear_probe" in measures:
            row["linear_probe"] = {"score": accuracy + 0.2}
        if "few_shot" in measures:
            shots = [{"labels_per_class": n, "score": accuracy - 0.1 + 0.05 * n} for n in suite["few_shot"]["shots"]]
            row["few_shot"] = {"shots": shots, "matches_zero_shot": {"labels_per_class": 2.0, "relation": "equal"}}
        if "overlap" in measures:
            row["overlap"] = self.overlap
        return row
