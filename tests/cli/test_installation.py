"""What is installed, and what an import costs: lazy names, the other project of this name, sdist and wheel."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from processes import FUSED

import clip_jax
from clip_jax.cli.command import COMMANDS

ROOT = Path(__file__).parents[2]
PACKAGES = ("clip_jax", "configs", "input_pipeline")
HEAVY = "{'absl', 'flax', 'grain', 'jax', 'matplotlib', 'numpy', 'orbax', 'PIL'}"


def python(*arguments: str | Path, cwd: Path = ROOT, code: int = 0, path: Path | None = None, timeout: int = 120):
    """Runs Python in a folder, with another before all on its path; returns what it printed, and its errors' lines."""
    environment = {**os.environ, **({"PYTHONPATH": str(path)} if path else {})}
    ran = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran.stdout, ran.stderr.splitlines()


def test_import_loads_nothing_and_each_name_when_it_is_used():
    names = "[getattr(clip_jax, name).__name__ for name in clip_jax.__all__ if name != '__version__']"
    code = f"import sys, clip_jax; print({HEAVY} & set(sys.modules)); print({names})"
    first, second = python("-c", code)[0].splitlines()
    assert first == "set()"
    assert second == str([name for name in clip_jax.__all__ if name != "__version__"])
    assert set(clip_jax.__all__) <= set(dir(clip_jax))
    with pytest.raises(AttributeError, match="module 'clip_jax' has no attribute 'lod'"):
        clip_jax.lod  # noqa: B018


def test_a_package_configs_of_the_users_own_is_in_nobodys_way(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").touch()
    code = "import clip_jax, configs; print(len(clip_jax.available_models()), configs.__file__)"
    printed, _ = python("-c", code, cwd=tmp_path, path=ROOT)
    assert printed == f"144 {tmp_path / 'configs' / '__init__.py'}\n"


@pytest.mark.parametrize(
    ("arguments", "loaded"),
    [
        (["--help"], set()),
        (["bench"], set()),
        (["trian"], set()),
        (["train", "--help"], {"absl"}),
        (["convert", "--help"], {"absl"}),
        (["embed", "--help"], ["PIL", "absl", "numpy"]),
        (["classify", "--help"], ["absl", "numpy"]),
        (["prepare", "--help"], ["PIL", "absl", "numpy"]),
        (["inspect", "--help"], ["PIL", "absl", "numpy"]),
        (["tokenizer", "--help"], ["PIL", "absl", "numpy"]),
    ],
    ids=" ".join,
)
def test_help_loads_only_what_it_needs(arguments, loaded):
    code = (
        "import atexit, sys; from clip_jax.cli.command import main;"
        f"atexit.register(lambda: print(sorted({HEAVY} & set(sys.modules)))); main()"
    )
    printed, _ = python("-c", code, *arguments, code=int(arguments == ["trian"]))
    assert printed.splitlines()[-1] == str(sorted(loaded))


def distribution(folder: Path, files: str) -> Path:
    """A folder of site-packages with a distribution clip-jax that has installed files."""
    info = folder / "clip_jax-0.0.6.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: clip-jax\nVersion: 0.0.6\n")
    (info / "RECORD").write_text(files)
    return folder


def test_the_other_project_of_this_name_is_an_error(tmp_path):
    folder = distribution(tmp_path / "site", "clip_jax/__init__.py,,\nclip_jax/modeling.py,,\n")
    message = (
        f"the distribution clip-jax in {folder} has a package clip_jax, too, whose files mix with those of jax-clip in "
        f"{ROOT}: pip uninstall clip-jax, then install jax-clip again"
    )
    for arguments in (["-c", "import clip_jax"], ["-m", "clip_jax", "train"]):
        _, errors = python(*arguments, path=folder, code=1)
        assert errors[-1] == f"ImportError: {message}"


def test_a_clone_installed_under_the_former_name_is_no_error(tmp_path):
    folder = distribution(tmp_path / "site", "_editable_impl_clip_jax.pth,,\nclip_jax-0.0.6.dist-info/METADATA,,\n")
    assert python("-c", "import clip_jax", path=folder) == ("", [])


@pytest.mark.parametrize("name", ["configs", "input_pipeline"])
def test_a_package_that_hides_ours_is_an_error(name, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    assert python("-c", "import clip_jax", cwd=tmp_path, path=ROOT) == ("", [])
    _, errors = python("-m", "clip_jax", "--help", cwd=tmp_path, path=ROOT, code=1)
    assert errors == [
        f"clip-jax: error: the package {name} that belongs to clip_jax, in {ROOT}, is hidden by {tmp_path / name}: "
        "start the command in another folder, or rename or uninstall the other package"
    ]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist and the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    python("-m", "hatchling", "build", "-d", folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"jax_clip-{clip_jax.__version__}-py3-none-any.whl"
    return wheel


def names(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def test_the_wheel_has_all_files_of_the_packages_and_no_others(wheel):
    files = {file for package in PACKAGES for file in (ROOT / package).rglob("*") if file.is_file()}
    assert names(wheel) == {str(f.relative_to(ROOT)) for f in files if "__pycache__" not in f.parts}
    assert {".json", ".j2", ".sh", ".sbatch", ".md"} < {Path(name).suffix for name in names(wheel)}
    assert {"configs/tiny.py", "clip_jax/launch/Dockerfile"} < names(wheel)


def test_the_sdist_has_what_makes_the_same_wheel_and_tests_it(built, wheel, tmp_path):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    assert (unpacked / "tests" / Path(__file__).relative_to(ROOT / "tests")).is_file()
    python("-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "again", cwd=unpacked)
    (again,) = (tmp_path / "again").iterdir()
    assert names(again) == names(wheel)


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


EACH_HELP = """
import os, sys
import clip_jax.runs.loop, clip_jax.evaluation.suite.runner  # what takes long, once
from clip_jax.cli.command import COMMANDS, main
for name in COMMANDS:
    if not os.fork():
        sys.argv = ["clip-jax", name, "--help"]
        main()
        sys.stdout.flush()
        os._exit(0)
    assert os.wait()[1] == 0, name
print(clip_jax.__file__)
"""


def test_each_command_helps_outside_the_clone(unpacked, tmp_path):
    printed, _ = python("-c", EACH_HELP, cwd=tmp_path, path=unpacked)
    *lines, where = printed.splitlines()
    assert where == str(unpacked / "clip_jax" / "__init__.py")
    assert sum(line == "flags:" for line in lines) == len(COMMANDS) - 1  # of bench it is the list of its kinds


def test_the_command_says_so_where_the_other_project_has_overwritten_the_package(unpacked, tmp_path):
    shutil.copytree(unpacked, tmp_path / "site")
    distribution(tmp_path / "site", "clip_jax/__init__.py,,\n")
    (tmp_path / "site" / "clip_jax" / "__init__.py").write_text('__version__ = "0.0.6"\n')
    _, errors = python("-m", "clip_jax", "--help", cwd=tmp_path, path=tmp_path / "site", code=1)
    assert len(errors) == 1
    assert errors[0].startswith(f"clip-jax: error: the distribution clip-jax in {tmp_path / 'site'} has a package ")


SMALL = {
    "train.total_steps": 2,
    "optimizer.warmup_steps": 1,
    "train.global_batch_size": 8,
    "vision.image_size": 16,
    "vision.depth": 1,
    "text.vocab_size": 64,
    "data.num_validation": 8,
    "data.num_examples": 32,
    "data.num_workers": 0,
    "evaluation.batch_size": 8,
    "evaluation.num_examples": 8,
}


@pytest.mark.nightly
def test_a_user_without_the_clone_runs_every_command(wheel, tmp_path):
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True, timeout=120)
    install = [venv / "bin" / "pip", "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, timeout=120)
    (site,) = venv.glob("lib/python*/site-packages")
    # What it depends on is not installed anew. The clone is not among it: .pth files count in a venv's own folder only.
    folders = [entry for entry in sys.path if Path(entry).name == "site-packages"]
    (site / "dependencies.pth").write_text("\n".join(folders))
    small = [f"--config.{key}={value}" for key, value in SMALL.items()]
    environment = {**os.environ, "XLA_FLAGS": FUSED}  # one device
    environment.pop("PYTHONPATH", None)

    def run(*arguments: str) -> str:
        command = [venv / "bin" / "clip-jax", *arguments]
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    where = "import clip_jax, configs, input_pipeline as i; print(clip_jax.__file__, configs.__file__, i.__file__)"
    found = subprocess.run([venv / "bin" / "python", "-c", where], cwd=tmp_path, capture_output=True, text=True).stdout
    assert [Path(file).parent.parent for file in found.split()] == [site] * 3

    run("train", "--config=tiny", "--workdir=run", *small)
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["versions"]["jax-clip"] == "0.1.0"
    run("evaluate", "--workdir=run")
    assert json.loads((tmp_path / "run" / "evaluation" / "evaluation.json").read_text())["step"] == 2
    run("evaluate", "--config=suites/scenes", "--workdir=run", "--config.suite.num_examples=40")
    run("convert", "--model=run", "--output=exported")
    run("prepare", "--source=scenes", "--num_scenes=20", "--image_size=32", "--output=prepared", "--num_workers=0")
    assert run("inspect", "scenes", "--num_records=20").startswith("scenes, 20 records, 20 looked at\n")
    run("tokenizer", "--source=array_record", "--path=prepared", "--vocab_size=64")
    run("embed", "--model=run", "--source=array_record", "--path=prepared", "--output=embeddings")
    assert "\na dog" in run(
        "classify", str(ROOT / "input_pipeline/statistics.png"), "--model=run", "--labels=a cat,a dog"
    )
    assert "logit_scale" in run("plan", "--config=tiny", "--params", "--num_devices=2")
    assert "seed 0: to do" in run("ablate", "loss", "--workdir=sweeps", "--dry_run")
    run("bench", "loss", "--num_pairs=16", "--num_runs=1", "--max_minutes=0")
