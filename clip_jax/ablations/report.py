"""report.html of an ablation: its sentence, figure and numbers in one page, which needs no network and no scripts."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from clip_jax.ablations.findings import describe_range, number, seed_values
from clip_jax.evaluation.report.html import Markup, Page, code, pairs, paragraph, table, write_page

Results = Mapping[str, Any]


def write_report(results: Results, folder: Path) -> None:
    """Writes report.html into the folder in which figure.png lies; whole, or not at all."""
    page = Page(report=results, folder=folder)
    sections = {
        "Figure": f'<figure class="wide">{page.image("figure.png", results["question"])}</figure>',
        "Findings": _findings(results),
        "Numbers": _cells(results),
        "Runs": _runs(results),
    }
    failed = ", ".join(f"{run['arm']} of seed {run['seed']}" for run in results["failed"])
    values = {
        "title": escape(results["question"]),
        "model": escape(results["name"]),
        "subtitle": escape(f"{results['name']}, {results['place']}"),
        "head": _head(results),
        "warning": f'<div class="warning">Failed, and left out: {escape(failed)}.</div>' if failed else "",
        "contents": "".join(f'<a href="#{title.lower()}">{title}</a>' for title in sections),
        "sections": "".join(
            f'<section id="{title.lower()}"><h2>{title}</h2>{body}</section>' for title, body in sections.items()
        ),
    }
    write_page(folder, values)


def _head(results: Results) -> str:
    told = {
        "scale": results["scale"],
        "seeds": len(results["seeds"]),
        "minutes of all runs": f"{results['minutes']:.1f}",
        "command": code(results["command"]),
        "commit": ", ".join(results["commits"]) or "not known",
        "devices": ", ".join(results["devices"]),
    }
    return paragraph(Markup(f"<b>{escape(results['sentence'])}</b>")) + pairs(told)


def _findings(results: Results) -> str:
    rows = []
    for found in results["findings"]:
        unit = found["unit"]
        shown = [
            None if found[name] is None else Markup(number(found[name], unit, bare=name != "mean"))
            for name in ("mean", "standard_error", "low", "high", "student_low", "student_high")
        ]
        seeds = ", ".join([*seed_values(found), *(f"{seed}: {why}" for seed, why in found["left_out"].items())])
        words = found["words"] if found["relation"] in ("equal", None) else f"{found['words']} {found['relation']}"
        rows.append([words, *shown, describe_range(found) or None, seeds, found["verdict"]])
    header = [
        "number",
        "mean",
        "standard error",
        "less two",
        "plus two",
        "Student 95 %: low",
        "high",
        "asked",
        "by seed",
    ]
    told = {"the paper": results["finding"], "where": results["place"]}
    note = paragraph(results["note"], "soft") if results["note"] else ""
    return pairs(told) + table([*header, "verdict"], rows) + note


def _cells(results: Results) -> str:
    rows = []
    for cell in results["cells"]:
        shown = [None if cell[name] is None else Markup(f"{cell[name]:.4g}") for name in ("mean", "standard_error")]
        by_seed = ", ".join(f"{value:.4g}" for value in cell["values"].values())
        rows.append([cell["arm"], cell["what"].replace("_", " "), cell["of"] or None, *shown, by_seed])
    return table(["run", "measure", "of", "mean over sets and seeds", "standard error over seeds", "by seed"], rows)


def _runs(results: Results) -> str:
    rows = [
        [run["arm"], run["seed"], run["state"], Markup(f"{run['minutes']:.1f}"), code(run["folder"])]
        for run in results["runs"]
    ]
    notes = [paragraph(f"{run['arm']}, seed {run['seed']}, failed: {run['reason']}") for run in results["failed"]]
    versions = pairs(results["versions"])
    return table(["run", "seed", "state", "minutes", "folder, below the workdir"], rows) + "".join(notes) + versions
