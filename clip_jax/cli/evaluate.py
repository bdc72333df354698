"""Measures a trained model: `clip-jax evaluate --workdir=runs/tiny`.

With --config=suites/paper (suites/scenes, suites/folder, your own) it measures a suite, on a run's workdir or on any
--model: zero-shot with several sets of prompts, linear probes, few-shot, retrieval, robustness, overlap. The results
are in report.html and report.json. The same command continues a stopped suite.
"""

import sys
from pathlib import Path

from absl import flags

from clip_jax.cli import common_flags
from clip_jax.config.record import load_config
from clip_jax.distributed import processes
from clip_jax.evaluation.in_training import as_table, evaluate
from clip_jax.evaluation.suite.config import make_suite_config
from clip_jax.evaluation.suite.runner import as_table as as_suite_table
from clip_jax.evaluation.suite.runner import problems, run_suite

common_flags.declare("workdir", "config", "model", "activation", *common_flags.HOST_FLAGS)
common_flags.declare("output")  # by default WORKDIR/evaluation, of a suite WORKDIR/suite
ZERO_SHOT = flags.DEFINE_list("zero_shot", None, "Labelled sets, as scenes/shape, folder:DIR; by default the run's.")
TEMPLATES = flags.DEFINE_string("templates", None, "A prompt set of clip_jax/evaluation/prompts; by default the run's.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of prepared tfds sets; by default the run's.")
DATA_PATH = flags.DEFINE_string(
    "data_path", None, "Present path of the run's data, if it has moved; or other data, all of which is measured."
)
STRICT = flags.DEFINE_bool("strict", False, "Fail when a data set of the suite is missing.")
NUM_EXAMPLES = flags.DEFINE_integer("num_examples", None, "Pictures of each set, 0 for all; by default the run's.")


def evaluate_suite() -> int:
    """The command with --config: a suite on a run or on any model."""
    if (common_flags.WORKDIR.value is None) == (common_flags.MODEL.value is None):
        raise ValueError("--config needs either --workdir=DIR of a run or --model=NAME_OR_PATH")
    for flag, key in (
        (ZERO_SHOT, "suite.datasets"),
        (TEMPLATES, "zero_shot.prompts"),
        (NUM_EXAMPLES, "suite.num_examples"),
    ):
        if flag.value is not None:
            raise ValueError(f"--{flag.name} is not for suites: use --config.{key}")
    sections = common_flags.CONFIG.value.to_dict()
    if "suite" not in sections:
        raise ValueError(
            "--config of this command is a suite, as suites/scenes; a run's own config is read from its --workdir"
        )
    if DATA_DIR.value is not None:
        sections["suite"]["data_dir"] = DATA_DIR.value
    config = make_suite_config(sections)
    workdir = common_flags.WORKDIR.value
    name: str = common_flags.MODEL.value or workdir or ""
    if workdir is None:
        output = Path(common_flags.required(common_flags.OUTPUT, "evaluation"))
    else:
        load_config(Path(workdir))  # raises for another folder
        output = Path(common_flags.OUTPUT.value or Path(workdir) / "suite")
    report = run_suite(
        config,
        name,
        output,
        is_run=workdir is not None,
        data_path=DATA_PATH.value,
        activation=common_flags.ACTIVATION.value,
    )
    print(f"\n{as_suite_table(report)}\n\nreport.html, report.json and pictures are in {output}")
    found = problems(report)
    if found["absent"]:
        print(f"{len(found['absent'])} absent, not measured: {', '.join(found['absent'])}", file=sys.stderr)
    if found["failed"]:
        print(f"{len(found['failed'])} failed: {', '.join(found['failed'])}", file=sys.stderr)
    return 1 if found["failed"] or (STRICT.value and found["absent"]) else 0


def main() -> int:
    """Runs the command; see the module's docstring."""
    if common_flags.CONFIG.value is not None:
        with processes.joined(**common_flags.host_options()):
            return evaluate_suite()
    if common_flags.MODEL.value is not None:
        raise ValueError("--model needs a suite, as --config=suites/paper")
    workdir = Path(common_flags.required(common_flags.WORKDIR, "runs/tiny"))
    output = Path(common_flags.OUTPUT.value or workdir / "evaluation")
    flags_given = {
        "zero_shot": None if ZERO_SHOT.value is None else tuple(ZERO_SHOT.value),
        "templates": TEMPLATES.value,
        "data_dir": DATA_DIR.value,
        "num_examples": NUM_EXAMPLES.value,
    }
    changes = {name: value for name, value in flags_given.items() if value is not None}
    with processes.joined(**common_flags.host_options()):
        results = evaluate(workdir, output, DATA_PATH.value, **changes)
        if processes.is_first():
            step = f"checkpoint of step {results['step']}"
            print(f"{step}\n\n{as_table(results)}\n\nevaluation.json and pictures are in {output}")
    return 0
