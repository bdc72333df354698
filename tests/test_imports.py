"""The direction in which modules may know each other, read off their imports; see README.md, "read in this order"."""

import ast
import gc
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("clip_jax", "configs", "input_pipeline")

# Leaves that every module but those of configs may import.
EVERYWHERE = {"input_pipeline.storage", "input_pipeline.progress"}

# Module, or package with a trailing dot -> what of this repository it may import. The longest entry that fits counts.
ALLOWED: dict[str, set[str]] = {
    "configs.": {"configs."},
    "input_pipeline.scenes.": {"input_pipeline.scenes."},
    "input_pipeline.scenes.world": set(),
    "input_pipeline.scenes.streams": set(),
    "input_pipeline.scenes.captions": {"input_pipeline.scenes.streams", "input_pipeline.scenes.world"},
    "input_pipeline.scenes.drawing": {"input_pipeline.scenes.world"},
    "input_pipeline.sources.": {"input_pipeline.sources."},
    "input_pipeline.prepare.": {
        "input_pipeline.jpeg",
        "input_pipeline.prepare.",
        "input_pipeline.resize",
        "input_pipeline.sharded_folder",
        "input_pipeline.sources.",
        "input_pipeline.transforms",
    },
    "input_pipeline.prepare.folder": set(),
    "input_pipeline.prepare.duplicates": set(),
    "input_pipeline.prepare.statistics": {"input_pipeline.sources.base"},
    "input_pipeline.prepare.manifest": {
        "input_pipeline.data_config",
        "input_pipeline.jpeg",
        "input_pipeline.prepare.",
    },
    "input_pipeline.sharded_folder": set(),
    "input_pipeline.sources.remote": set(),
    "input_pipeline.sources.listing": {"input_pipeline.sources.remote"},
    "input_pipeline.sources.opener": {"input_pipeline.sources.listing", "input_pipeline.sources.remote"},
    "input_pipeline.sources.image_header": set(),
    "input_pipeline.sources.base": {"input_pipeline.sources.opener", "input_pipeline.sources.remote"},
    "input_pipeline.storage": set(),
    "input_pipeline.progress": set(),
    "input_pipeline.tokenizers": set(),
    "input_pipeline.transforms": set(),
    "input_pipeline.vocabulary": {"input_pipeline.sources.", "input_pipeline.tokenizers"},
    "input_pipeline.resize": set(),
    "input_pipeline.jpeg": {"input_pipeline.resize", "input_pipeline.transforms"},
    "input_pipeline.examples": {"input_pipeline."},
    "input_pipeline.packing": set(),
    "input_pipeline.data_config": {"input_pipeline.order", "input_pipeline.scenes.", "input_pipeline.sources."},
    "input_pipeline.order": set(),
    "input_pipeline.pipeline": {"input_pipeline."},
    "clip_jax.distributed.sharding": set(),
    "clip_jax.planning.topology": set(),
    "clip_jax.models.": {"clip_jax.models.", "clip_jax.distributed.sharding"},
    "clip_jax.losses.": {"clip_jax.losses.", "clip_jax.distributed.sharding"},
    "clip_jax.training.accumulation": {"clip_jax.distributed.sharding"},
    "clip_jax.training.optimizer": set(),
    "clip_jax.planning.flops": set(),
    "clip_jax.planning.hlo": set(),
    "clip_jax.training.state": {"clip_jax.models.", "clip_jax.distributed.sharding"},
    "clip_jax.training.step": {
        "clip_jax.training.accumulation",
        "clip_jax.losses.",
        "clip_jax.models.",
        "clip_jax.training.state",
    },
    "clip_jax.pretrained.": {
        "clip_jax.models.",
        "clip_jax.pretrained.",
        "clip_jax.training.state",
        "input_pipeline.tokenizers",
    },
    "clip_jax.inference.encoder": {
        "clip_jax.losses.",
        "clip_jax.models.",
        "clip_jax.distributed.sharding",
        "clip_jax.training.state",
    },
    "clip_jax.inference.caption_scorer": {
        "clip_jax.inference.encoder",
        "clip_jax.losses.",
        "clip_jax.models.",
        "clip_jax.distributed.sharding",
        "clip_jax.training.state",
    },
    "clip_jax.training.text_packer": {"clip_jax.models.", "clip_jax.distributed.sharding", "input_pipeline."},
    "clip_jax.distributed.rendezvous": set(),
    "clip_jax.distributed.watchdog": set(),
    "input_pipeline.prefetch": set(),
    "clip_jax.evaluation.suite.labelled_sets": {"clip_jax.evaluation.metrics.", "input_pipeline."},
    "clip_jax.distributed.processes": {"clip_jax.distributed.rendezvous", "clip_jax.distributed.watchdog"},
    "clip_jax.runs.preflight": {
        "clip_jax.distributed.processes",
        "clip_jax.distributed.rendezvous",
        "clip_jax.config.record",
        "input_pipeline.",
    },
    "clip_jax.training.checkpoint": {"clip_jax.distributed.processes", "clip_jax.training.state"},
    "clip_jax.runs.logging": set(),
    "clip_jax.plots.training": set(),
    "clip_jax.plots.robustness": {"clip_jax.plots.training"},
    "clip_jax.plots.data": {"clip_jax.plots.training"},
    "clip_jax.runs.live_curves": {"clip_jax.runs.logging", "clip_jax.plots.training"},
    "clip_jax.plots.probes": {"clip_jax.plots.training"},
    "clip_jax.evaluation.metrics.": {"clip_jax.evaluation.metrics."},  # an evaluator is handed its arrays and callables
    "clip_jax.evaluation.metrics.logistic_regression": {"clip_jax.distributed.sharding"},
    "clip_jax.config.experiment": {
        "clip_jax.losses.",
        "clip_jax.models.",
        "clip_jax.training.optimizer",
        "clip_jax.distributed.sharding",
        "input_pipeline.",
    },
    "clip_jax.config.record": {"clip_jax.config.experiment", "clip_jax.models."},
    "clip_jax.evaluation.suite.config": {"clip_jax.config.experiment", "clip_jax.evaluation.metrics."},
    "clip_jax.evaluation.suite.": set(),
    "clip_jax.evaluation.suite.array_files": set(),
    "clip_jax.evaluation.suite.feature_store": {
        "clip_jax.evaluation.suite.array_files",
        "clip_jax.inference.api",
        "clip_jax.evaluation.metrics.",
        "input_pipeline.prefetch",
        "input_pipeline.",
    },
    "clip_jax.evaluation.suite.result_store": set(),
    # These may know everything but the entry points.
    "clip_jax.inference.load": {"clip_jax.", "input_pipeline."},
    "clip_jax.inference.api": {"clip_jax.", "input_pipeline."},
    "clip_jax.cli.convert": {"clip_jax.", "input_pipeline."},
    "clip_jax.planning.": {"clip_jax.", "input_pipeline."},
    "clip_jax.cli.plan": {"clip_jax.", "input_pipeline."},
    "clip_jax.benchmarks.": {"clip_jax.", "configs.", "input_pipeline."},
    "clip_jax.ablations.": {"clip_jax."},
    "clip_jax.cli.ablate": {"clip_jax."},
    "clip_jax.evaluation.suite.runner": {"clip_jax.", "input_pipeline."},
    "clip_jax.evaluation.suite.measures": {"clip_jax.", "input_pipeline."},
    "clip_jax.evaluation.suite.comparisons": {"clip_jax.", "input_pipeline."},
    "clip_jax.evaluation.suite.sources": {
        "clip_jax.config.experiment",
        "clip_jax.config.record",
        "clip_jax.evaluation.suite.labelled_sets",
        "input_pipeline.",
    },
    "clip_jax.evaluation.suite.probes": {"clip_jax.", "input_pipeline."},
    "clip_jax.evaluation.report.html": set(),
    "clip_jax.evaluation.report.sections": {"clip_jax.evaluation.report.html"},
    "clip_jax.evaluation.report.measures": {"clip_jax.evaluation.report.html"},
    "clip_jax.evaluation.report.page": {
        "clip_jax.evaluation.report.html",
        "clip_jax.evaluation.report.measures",
        "clip_jax.evaluation.report.sections",
    },
    "clip_jax.evaluation.in_training": {"clip_jax.", "input_pipeline."},
    "clip_jax.runs.setup": {"clip_jax.", "input_pipeline."},
    "clip_jax.runs.loop": {"clip_jax.", "input_pipeline."},
    "clip_jax.cli.evaluate": {"clip_jax.", "input_pipeline."},
    "clip_jax.cli.embed": {"clip_jax.", "input_pipeline."},
    "clip_jax.inference.embedding_shards": {"input_pipeline.prepare.folder", "input_pipeline.sharded_folder"},
    "clip_jax.cli.tokenizer": {"clip_jax.", "input_pipeline."},
    "clip_jax.cli.classify": {"clip_jax.", "input_pipeline."},
    "clip_jax.cli.prepare": {"clip_jax.", "input_pipeline."},
    "clip_jax.cli.inspect": {"clip_jax.", "input_pipeline."},
    "clip_jax.cli.command": set(),  # but for the entry points, and those only when they are asked for
}
ENTRY_POINTS = {
    "clip_jax.runs.loop",
    "clip_jax.cli.evaluate",
    "clip_jax.cli.embed",
    "clip_jax.cli.tokenizer",
    "clip_jax.cli.classify",
    "clip_jax.cli.prepare",
    "clip_jax.cli.inspect",
    "clip_jax.cli.convert",
    "clip_jax.cli.plan",
    "clip_jax.cli.ablate",
}
# Library -> the only modules that may import it; none at all for the first three.
ONLY_IN = {
    "torch": (),
    "tensorflow": (),
    "pickle": (),
    "jax": ("clip_jax.",),
    "flax": ("clip_jax.",),
    "ml_collections": ("configs.", "clip_jax.cli.command"),
    "absl.app": ("clip_jax.cli.command",),
    "absl.flags": (
        "clip_jax.cli.command",
        "clip_jax.runs.loop",
        "clip_jax.cli.evaluate",
        "clip_jax.cli.embed",
        "clip_jax.cli.tokenizer",
        "clip_jax.cli.classify",
        "clip_jax.cli.prepare",
        "clip_jax.cli.inspect",
        "clip_jax.cli.convert",
        "clip_jax.cli.plan",
        "clip_jax.cli.ablate",
        "clip_jax.benchmarks.",
        "input_pipeline.pipeline",  # grain wants it
    ),
}


def tracked_files() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):  # an unpacked archive has the same folders
        folders = (*PACKAGES, "tests", "colab")
        names = [
            str(file) for folder in folders for file in (ROOT / folder).rglob("*.*") if "__pycache__" not in str(file)
        ]
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def module_name(file: Path) -> str:
    """`a.b` for a/b.py; `a.` for the package a/__init__.py."""
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix("__init__")


MODULES = {module_name(file): file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))}


def resolve(name: str) -> str | None:
    """The module of this repository that a dotted name belongs to, if any."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        prefix = ".".join(parts[:end])
        if prefix in MODULES:
            return prefix
        if prefix + "." in MODULES:
            return prefix + "."
    return None


def imported_names(tree: ast.AST) -> set[str]:
    """Dotted names of all that is imported, at any depth; for `from a import b` it is a.b."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def parse(module: str) -> ast.Module:
    gc.disable()  # a collection that runs Python code meanwhile can break the parser of CPython 3.11
    try:
        return ast.parse(MODULES[module].read_text())
    finally:
        gc.enable()


def own_imports(tree: ast.AST) -> set[str]:
    return {found for name in imported_names(tree) if (found := resolve(name))}


def fits(module: str, entry: str) -> bool:
    return module == entry or (entry.endswith(".") and module.startswith(entry)) or entry == ""


def rule(module: str) -> str:
    entries = [entry for entry in ALLOWED if fits(module, entry)]
    assert entries, f"{module} is new: say in tests/test_imports.py what it may import"
    return max(entries, key=len)


LEAVES = [module for module in MODULES if module not in ("clip_jax.", "input_pipeline.")]


@pytest.mark.parametrize("module", LEAVES)
def test_a_module_imports_only_what_its_place_allows(module):
    allowed = ALLOWED[rule(module)] | (set() if fits(module, "configs.") else EVERYWHERE)
    wrong = {name for name in own_imports(parse(module)) if not any(fits(name, entry) for entry in allowed)}
    if module == "clip_jax.cli.command":
        wrong -= ENTRY_POINTS
    assert wrong == set(), f"{module} may import {sorted(allowed) or 'nothing of this repository'}"


def test_every_rule_is_about_a_module_that_exists():
    assert {rule(module) for module in LEAVES} == set(ALLOWED)


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_the_entry_points_but_the_command_line_when_it_is_asked_to(module):
    tree = parse(module)
    at_the_top = ast.Module([node for node in tree.body if not isinstance(node, ast.FunctionDef)], [])
    assert not own_imports(at_the_top) & ENTRY_POINTS
    if module != "clip_jax.cli.command":
        assert not own_imports(tree) & ENTRY_POINTS


@pytest.mark.parametrize("module", MODULES)
def test_libraries_stay_in_their_place(module):
    names = imported_names(parse(module))
    for library, places in ONLY_IN.items():
        if not any(fits(module, place) for place in places):
            assert not {name for name in names if f"{name}.".startswith(f"{library}.")}
    if fits(module, "configs."):
        assert {name.split(".")[0] for name in names} <= {"ml_collections", "configs"}


def test_reading_records_loads_no_machine_learning_framework():
    modules = "input_pipeline.scenes, input_pipeline.sources, input_pipeline.tokenizers, input_pipeline.transforms"
    code = f"import sys, {modules}; print({{'jax', 'flax', 'torch', 'tensorflow'}} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


def test_no_module_is_a_drawer():
    names = {file.stem for file in tracked_files() if file.suffix == ".py"}
    assert "train" in names
    assert not names & {"util", "utils", "helper", "helpers", "common", "misc"}


def test_modules_do_not_import_each_other_in_a_circle():
    graph = {module: own_imports(parse(module)) - {module} for module in MODULES if module != "clip_jax.cli.command"}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"circle: {' -> '.join([*path, module])}"
        if module not in done:
            for name in graph.get(module, ()):
                visit(name, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


MACHINE_PATH = re.compile(r"(?<![\w.$}])/(?:work|root|home|Users|mnt|srv)/[\w-]+|\.\./shared|/tmp/(?!\w*\.)")
TEXT = (".py", ".md", ".toml", ".json", ".yml", ".yaml", ".txt", ".ipynb", ".cfg", ".sh", "")


def test_no_file_names_a_place_on_one_machine():
    found = []
    for file in tracked_files():
        if file.suffix in TEXT and file != Path(__file__).resolve():
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                if MACHINE_PATH.search(line):
                    found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []
