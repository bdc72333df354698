"""Folders know only those above them, read off their imports; see clip_jax/README.md for the order."""

import ast
import gc
import re
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Folder -> the others that it imports, each of which stands above it here. Those without a slash lie in clip_jax/.
IMPORTS = {
    "installation": "",
    "configs/": "",
    "input_pipeline/": "",
    "tables": "",
    "plots": "input_pipeline/",
    "distributed": "input_pipeline/",
    "models": "input_pipeline/ distributed",
    "losses": "input_pipeline/ distributed",
    "config": "input_pipeline/ installation distributed models losses",
    "training": "input_pipeline/ distributed models losses config",
    "pretrained": "input_pipeline/ models",
    "inference": "input_pipeline/ distributed models losses config training pretrained",
    "evaluation": "input_pipeline/ tables plots distributed models config inference",
    "runs": "input_pipeline/ tables plots distributed models config training inference evaluation",
    "planning": "tables distributed models config training",
    "benchmarks": "input_pipeline/ tables distributed models losses config training inference planning",
    "ablations": "input_pipeline/ tables plots config evaluation runs planning",
    "cli": (
        "configs/ input_pipeline/ installation tables plots distributed models losses config training pretrained "
        "inference evaluation runs planning benchmarks ablations"
    ),
    "clip_jax/": "installation distributed models losses inference cli",
    "colab/": "configs/ runs clip_jax/",
}


def place(name: str) -> str:
    return name.removesuffix("/") if name.endswith("/") else f"clip_jax/{name}"


ALLOWED = {place(entry): set(map(place, names.split())) for entry, names in IMPORTS.items()}

# Library -> the only folders that may import it; none at all for the first three.
ONLY_IN = {
    "torch": (),
    "tensorflow": (),
    "pickle": (),
    "jax": ("clip_jax",),
    "flax": ("clip_jax",),
    "ml_collections": ("configs", "clip_jax/cli"),
    "absl.app": ("clip_jax/cli",),
    "absl.flags": ("clip_jax/cli", "input_pipeline/pipeline.py"),  # grain wants it
}
GROUND_FLOOR = {"__init__.py", "__main__.py", "installation.py", "tables.py"}


def tracked_files() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):  # an unpacked archive has the same folders
        folders = ("clip_jax", "configs", "input_pipeline", "tests", "colab")
        names = [
            str(file) for folder in folders for file in (ROOT / folder).rglob("*.*") if "__pycache__" not in str(file)
        ]
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for package in ("clip_jax", "configs", "input_pipeline", "colab")
    for file in sorted((ROOT / package).rglob("*.py"))
}


def folder(module: str) -> str:
    """The entry of ALLOWED that a module belongs to: its folder, or itself on the ground floor of clip_jax."""
    path = module.replace(".", "/")
    return max((entry for entry in ALLOWED if f"{path}/".startswith(f"{entry}/")), key=len)


@cache
def imported_names(module: str) -> frozenset[str]:
    """Dotted names of all that is imported, at any depth; for `from a import b` it is a.b."""
    gc.disable()  # a collection that runs Python code meanwhile can break the parser of CPython 3.11
    tree = ast.parse(MODULES[module].read_text())
    gc.enable()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {module}"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def own_imports(module: str) -> set[str]:
    """The modules of this repository that a module imports, each the longest that a name begins with."""
    found = set()
    for name in imported_names(module):
        parts = name.split(".")
        prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        found |= {next((prefix for prefix in prefixes if prefix in MODULES), module)}
    return found - {module}


def test_a_folder_imports_those_that_it_may_and_no_others():
    arrows = {(folder(module), folder(name), module) for module in MODULES for name in own_imports(module)}
    allowed = {(entry, name) for entry, names in ALLOWED.items() for name in names}
    assert [f"{module} imports {name}" for of, name, module in arrows if name != of and (of, name) not in allowed] == []
    assert allowed - {(of, name) for of, name, _ in arrows} == set()


def test_the_allowed_imports_run_one_way_and_name_folders_that_exist():
    order = list(ALLOWED)
    assert len(order) <= 25
    assert all(order.index(name) < order.index(entry) for entry, allowed in ALLOWED.items() for name in allowed)
    assert {folder(module) for module in MODULES} == set(ALLOWED)


def test_modules_do_not_import_each_other_in_a_circle():
    packages = {name for name, file in MODULES.items() if file.name == "__init__.py"}
    graph = {
        module: {n for n in own_imports(module) if not (n in packages and module.startswith(f"{n}."))}
        for module in MODULES
    }
    assert set(TopologicalSorter(graph).static_order()) == set(MODULES)  # raises CycleError, which names the circle


def test_nothing_imports_the_commands_but_the_entry_point():
    users = {module for module in MODULES if any(folder(name) == "clip_jax/cli" for name in own_imports(module))}
    assert {module for module in users if folder(module) != "clip_jax/cli"} == {"clip_jax.__main__"}


def test_libraries_are_imported_only_where_they_belong():
    wrong = []
    for module, file in MODULES.items():
        path = file.relative_to(ROOT).as_posix()
        for library, places in ONLY_IN.items():
            if not any(path == place or path.startswith(f"{place}/") for place in places):
                wrong += [f"{module}: {n}" for n in imported_names(module) if f"{n}.".startswith(f"{library}.")]
    assert wrong == []
    used_by_configs = {name.split(".")[0] for m in MODULES if folder(m) == "configs" for name in imported_names(m)}
    assert used_by_configs <= {"ml_collections", "configs", *sys.stdlib_module_names}


def test_reading_records_loads_no_machine_learning_framework():
    modules = "input_pipeline.scenes, input_pipeline.sources, input_pipeline.tokenizers, input_pipeline.transforms"
    code = f"import sys, {modules}; print({{'jax', 'flax', 'torch', 'tensorflow'}} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


def test_the_ground_floor_is_small_and_no_module_is_a_drawer():
    assert {file.name for file in (ROOT / "clip_jax").glob("*.py")} == GROUND_FLOOR
    names = {file.stem for file in tracked_files() if file.suffix == ".py"}
    assert "loop" in names
    assert not names & {"util", "utils", "helper", "helpers", "common", "misc"}


MACHINE_PATH = re.compile(r"(?<![\w.$}])/(?:work|root|home|Users|mnt|srv)/[\w-]+|\.\./shared|/tmp/(?!\w*\.)")
TEXT = (".py", ".md", ".toml", ".json", ".yml", ".yaml", ".txt", ".ipynb", ".cfg", ".sh", "")


def test_no_file_names_a_path_of_one_machine():
    found = []
    for file in tracked_files():
        if file.suffix in TEXT and file != Path(__file__).resolve():
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                if MACHINE_PATH.search(line):
                    found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []
