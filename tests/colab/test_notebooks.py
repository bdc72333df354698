"""Every notebook runs from top to bottom, small and without a network, and is the text beside it.

Outside of the nightly run: one of them, and those of which a file has changed, as git has it.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient
from processes import FUSED

ROOT = Path(__file__).parents[2]
COLAB = ROOT / "colab"
NAMES = sorted(file.stem for file in COLAB.glob("*.ipynb"))
LINK = re.compile(r"\]\(([^)#\s]+)")
ALWAYS = "train"  # runs with every change
IMPORT = re.compile(r"^from ((?:clip_jax|configs|input_pipeline)[\w.]*) import (.*)$", re.MULTILINE)
COMMAND = re.compile(r"^!clip-jax (\w+)", re.MULTILINE)


def changed_files() -> set[str]:
    """Paths that differ from where the branch left its upstream, else from the commit before; none without git."""

    def git(*arguments):
        ran = subprocess.run(["git", "-C", str(ROOT), *arguments], check=False, capture_output=True, text=True)
        return ran.stdout.split() if ran.returncode == 0 else []

    bases = git("merge-base", "HEAD", "@{upstream}"), git("rev-parse", "--verify", "HEAD~1")
    for base in bases:
        if base and base != git("rev-parse", "HEAD"):
            return set(git("diff", "--name-only", *base))
    return set()


def files_of(name: str) -> set[str]:
    """Those that a notebook consists of, and those whose modules and commands it names."""
    text = (COLAB / f"{name}.md").read_text()
    modules = {f"clip_jax.cli.{command}" for command in COMMAND.findall(text)}
    for module, names in IMPORT.findall(text):
        modules |= {module, *(f"{module}.{each}" for each in names.split(", "))}
    paths = {module.replace(".", "/") for module in modules}
    files = {f"{path}.py" for path in paths} | {f"{path}/__init__.py" for path in paths}
    return {f"colab/{name}.md", f"colab/{name}.ipynb", "colab/runtime.py", *(f for f in files if (ROOT / f).exists())}


CHANGED = changed_files()


def when_changed(name: str):
    """A mark that leaves the test to the nightly run where nothing of its notebook has changed."""
    return (lambda test: test) if name == ALWAYS or CHANGED & files_of(name) else pytest.mark.nightly


pytestmark = pytest.mark.usefixtures("compile_once", "adopt")


def source(cells):
    return [(cell.cell_type, cell.source) for cell in cells]


def run(name, folder, monkeypatch, asked):
    """Runs a notebook; what the expression `asked` is at its end."""
    monkeypatch.setenv("CLIP_JAX_SMALL", "1")
    monkeypatch.setenv("CLIP_JAX_RUNS", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XLA_FLAGS", FUSED)  # one device
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    notebook = nbformat.read(COLAB / f"{name}.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json\nprint(json.dumps({asked}))"))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(COLAB)}}).execute()
    printed = "".join(output.text for output in notebook.cells[-1].outputs if output.output_type == "stream")
    return json.loads(printed.splitlines()[-1])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@when_changed("zero_shot")
def test_zero_shot(runs, monkeypatch):
    asked = "{'rows': probabilities.sum(1).tolist(), 'accuracy': accuracy, 'maps': maps.sum((1, 2)).tolist()}"
    found = run("zero_shot", runs, monkeypatch, asked)
    assert found["rows"] == pytest.approx([1] * 4)
    assert len(found["accuracy"]) == 8
    assert all(0 <= value <= 1 for value in found["accuracy"].values())
    assert all(0 < total <= 1 for total in found["maps"])


@when_changed("linear_probe")
def test_linear_probe(runs, monkeypatch):
    asked = "{'zero_shot': zero_shot, 'probe': probe['score'], 'shots': [row['score'] for row in curve]}"
    found = run("linear_probe", runs, monkeypatch, asked)
    assert found["probe"] > 0.3  # of ten digits, by features of 30 steps
    assert found["zero_shot"] < 0.3
    assert found["shots"][-1] > found["shots"][0]


@when_changed("train")
def test_train(tmp_path, monkeypatch):
    asked = "{'codes': [code, code_resumed], 'results': results, 'logits': list(logits_per_image.shape)}"
    found = run("train", tmp_path, monkeypatch, asked)
    assert found["codes"] == [130, 0]  # stopped as by Ctrl-C, and gone on to the end
    assert found["results"]["zero_shot"]["scenes/held_out"]["count"] == 128
    rows = [json.loads(line) for line in (tmp_path / "train" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 41))
    assert found["logits"] == [1, 5]


@when_changed("ablation")
def test_ablation(tmp_path, monkeypatch):
    found = run("ablation", tmp_path, monkeypatch, "results")
    assert found["seeds"] == [0]
    assert found["failed"] == []
    assert re.match(r"(Holds|Does not hold|Undecided)", found["sentence"])


@when_changed("pod")
@pytest.mark.skipif(sys.platform != "linux", reason="TPU programs are compiled on Linux only")
def test_pod(tmp_path, monkeypatch):
    found = run("pod", tmp_path, monkeypatch, "{'losses': losses, 'plan': plan}")
    one, *others = found["losses"].values()
    assert len(one) == 3
    for losses in others:
        assert losses == pytest.approx(one, abs=1e-4)
    assert found["plan"]["memory"]["peak"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_text_and_notebook_are_the_same_and_outputs_are_of_a_whole_run(name):
    notebook, text = nbformat.read(COLAB / f"{name}.ipynb", as_version=4), jupytext.read(COLAB / f"{name}.md")
    assert source(notebook.cells) == source(text.cells), f"jupytext --sync colab/{name}.md makes them so"
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert any("image/png" in o.get("data", {}) for cell in notebook.cells for o in cell.get("outputs", []))
    assert not [o for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "error"]


@pytest.mark.parametrize("file", [*(f"colab/{name}.md" for name in NAMES), "colab/README.md", "README.md"])
def test_relative_links_lead_somewhere(file):
    links = LINK.findall((ROOT / file).read_text())
    relative = [link for link in links if not link.startswith("http")]
    assert relative or file == "README.md"
    for link in relative:
        assert (ROOT / file).parent.joinpath(link).exists(), link


def test_all_have_a_badge_and_fetch_this_repository():
    repository = re.search(r'Repository = "https://github.com/([^"]+)"', (ROOT / "pyproject.toml").read_text())[1]
    for name in NAMES:
        badge = f"https://colab.research.google.com/github/{repository}/blob/main/colab/{name}.ipynb"
        assert badge in (ROOT / "README.md").read_text()
        assert f"git clone -q --depth=1 https://github.com/{repository}\n" in (COLAB / f"{name}.md").read_text()
