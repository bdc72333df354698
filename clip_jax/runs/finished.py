"""The results of a run that has ended: entered again, it measures nothing twice."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from clip_jax.config.experiment import Config
from clip_jax.evaluation.in_training import Results
from input_pipeline.storage import checksum, write_json

RESULTS, MADE_BY = "evaluation.json", "evaluation_settings.json"


def keep_results(workdir: Path, config: Config, results: Results) -> None:
    """Writes the results of the last step, and beside them the settings that they were made by."""
    write_json(workdir / RESULTS, results)
    write_json(workdir / MADE_BY, _settings(workdir, config))


def kept_results(workdir: Path, config: Config) -> Results | None:
    """The results of the last step by these settings; None where they are others, or a file is damaged."""
    try:
        if json.loads((workdir / MADE_BY).read_text()) != _settings(workdir, config):
            return None
        return json.loads((workdir / RESULTS).read_text())
    except (OSError, ValueError):
        return None


def _settings(workdir: Path, config: Config) -> dict[str, Any]:
    """As JSON gives them back."""
    settings = {
        "step": config.train.total_steps,
        "evaluation": dataclasses.asdict(config.evaluation),
        "results_sha256": checksum([(workdir / RESULTS).read_bytes()]),
    }
    return json.loads(json.dumps(settings))
