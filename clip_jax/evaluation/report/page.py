"""report.html: one evaluation in one page, which needs no network and no scripts."""

from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from clip_jax.evaluation.report import measures, sections
from clip_jax.evaluation.report.html import Markup, Page, pairs, write_page

# What makes the HTML of each section, by its heading.
SECTIONS: dict[str, Callable[[Page], str]] = {
    "All sets": sections.all_sets,
    "Prompts": sections.prompts,
    "Zero-shot": sections.zero_shot,
    "Linear probe": measures.linear_probe,
    "Few-shot": measures.few_shot,
    "Retrieval": measures.retrieval,
    "Robustness": measures.robustness,
    "Overlap with training": measures.overlap,
    "Bias": measures.bias,
    "Absent, failed, skipped": sections.absent,
    "Settings and hashes": sections.settings,
}


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    """Writes report.html into the folder in which the pictures of report.json lie; whole, or not at all."""
    page = Page(report=report, folder=folder)
    bodies = {title: body for title, make in SECTIONS.items() if (body := make(page))}
    anchors = {title: "".join(c if c.isalnum() else "-" for c in title.lower()) for title in bodies}
    states = [row["state"] for row in report["sets"]]
    missing = [f"{states.count(state)} {state}" for state in ("absent", "failed") if state in states]
    values = {
        "title": escape(report["title"]),
        "model": escape(report["model"]["name"]),
        "subtitle": escape(f"{report['model']['name']}, {states.count('done')} of {len(states)} data sets measured"),
        "head": _head(report),
        "warning": f'<div class="warning">Of {len(states)} data sets {" and ".join(missing)}: see below.</div>'
        if missing
        else "",
        "contents": "".join(f'<a href="#{anchors[title]}">{escape(title)}</a>' for title in bodies),
        "sections": "".join(
            f'<section id="{anchors[title]}"><h2>{escape(title)}</h2>{body}</section>' for title, body in bodies.items()
        ),
    }
    write_page(folder, values)


def _head(report: Mapping[str, Any]) -> Markup:
    model, environment = report["model"], report["environment"]
    return pairs(
        {
            "weights": f"{model['weights']}, {model['parameters']:,} numbers",
            "images": f"{model['image_size']} pixels, {model['resize_mode']}; {model['embed_dim']} features",
            "logit scale": f"{model['logit_scale']:.2f}",
            "commit": environment["commit"] or "not known",
            "command": " ".join([Path(environment["command"][0]).name, *environment["command"][1:]]),
        }
    )
