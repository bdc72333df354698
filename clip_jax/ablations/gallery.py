"""README.md with the figures of all finished ablations: sentence, command, commit, seeds, minutes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clip_jax.ablations.spec import ablation_names
from input_pipeline.storage import write_bytes, write_text

HEAD = """# The paper's ablations, redrawn

`clip-jax ablate NAME --workdir=runs/ablations` makes one of these, `clip-jax ablate all` all of them, `--scale=full`
with the paper's settings on data of your own. Each file here says question, runs, measure and what would show the
paper's finding; a sentence says what these runs showed. Uncertainties are two standard errors over seeds. Minutes are
those of all processes of its runs, also of runs that it shares with others; two shards at once take half
(`clip_jax/ablations/README.md` says how).
"""


def write_gallery(workdir: Path, folder: Path, say: Callable[[str], None] = print) -> None:
    """Writes README.md and NAME.png into the folder from the results in the workdir; what is the same already stays.

    Raises ValueError where there are none.
    """
    found = {name: workdir / name for name in ablation_names() if (workdir / name / "results.json").is_file()}
    if not found:
        raise ValueError(f"{workdir} has no finished ablations: run clip-jax ablate all --workdir={workdir} first")
    folder.mkdir(parents=True, exist_ok=True)
    results = {name: json.loads((place / "results.json").read_text()) for name, place in found.items()}
    for name, place in found.items():
        _copy(place / "figure.png", folder / f"{name}.png")
    rows = [_row(result) for result in results.values()]
    lines = [
        HEAD,
        "| ablation | the paper | verdict here | seeds | minutes | commit |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    lines += [_section(result) for result in results.values()]
    if missing := [name for name in ablation_names() if name not in found]:
        lines.append(f"Not run yet: {', '.join(missing)}.\n")
    write_text(folder / "README.md", "\n".join(lines))
    say(f"gallery of {len(found)} ablations: {folder / 'README.md'}")


def _row(result: dict[str, Any]) -> str:
    cells = [
        f"[{result['name']}](#{result['name']})",
        result["place"],
        result["verdict"],
        len(result["seeds"]),
        f"{result['minutes']:.0f}",
        _commits(result),
    ]
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def _section(result: dict[str, Any]) -> str:
    name, note = result["name"], f"\n\n{result['note']}" if result["note"] else ""
    failed = "".join(f"\n\nFailed: {run['arm']}, seed {run['seed']}: {run['reason']}" for run in result["failed"])
    return (
        f"\n## {name}\n{result['question']} The paper, {result['place']}: {result['finding']}\n\n"
        f"**{result['sentence']}**{note}{failed}\n\n![{name}]({name}.png)\n\n    {result['command']}\n"
    )


def _commits(result: dict[str, Any]) -> str:
    return (
        ", ".join(commit[:8] + ("-dirty" if commit.endswith("-dirty") else "") for commit in result["commits"]) or "-"
    )


def _copy(source: Path, target: Path) -> None:
    if not target.is_file() or target.read_bytes() != source.read_bytes():
        write_bytes(target, source.read_bytes())
