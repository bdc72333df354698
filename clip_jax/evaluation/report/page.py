"""report.html: one evaluation in one page, which needs no network; its one script sorts tables."""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clip_jax.evaluation.report import sections
from clip_jax.evaluation.report.sections import Section
from clip_jax.evaluation.report.values import TEMPLATES, Page
from input_pipeline.storage import write_text

# What each section shows, by its heading; a macro of the function's name writes it.
SECTIONS: dict[str, Callable[[Page], Section]] = {
    "All sets": sections.all_sets,
    "Prompts": sections.prompts,
    "Zero-shot": sections.zero_shot,
    "Linear probe": sections.linear_probe,
    "Few-shot": sections.few_shot,
    "Retrieval": sections.retrieval,
    "Robustness": sections.robustness,
    "Overlap with training": sections.overlap,
    "Bias": sections.bias,
    "Absent, failed, skipped": sections.absent,
    "Settings and hashes": sections.settings,
}


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    """Writes report.html into the folder in which the pictures of report.json lie; whole, or not at all."""
    page = Page(report=report, folder=folder)
    macros = TEMPLATES.get_template("sections.html.j2").module
    bodies = [
        (
            title,
            "".join(c if c.isalnum() else "-" for c in title.lower()),
            getattr(macros, make.__name__)(page, **shown),
        )
        for title, make in SECTIONS.items()
        if (shown := make(page)) is not None
    ]
    states = [row["state"] for row in report["sets"]]
    model, environment = report["model"], report["environment"]
    html = TEMPLATES.get_template("page.html.j2").render(
        title=report["title"],
        model=model["name"],
        measured=states.count("done"),
        total=len(states),
        missing=[f"{states.count(state)} {state}" for state in ("absent", "failed") if state in states],
        head={
            "weights": f"{model['weights']}, {model['parameters']:,} numbers",
            "images": f"{model['image_size']} pixels, {model['resize_mode']}; {model['embed_dim']} features",
            "logit scale": f"{model['logit_scale']:.2f}",
            "commit": environment["commit"] or "not known",
            "command": shlex.join([Path(environment["command"][0]).name, *environment["command"][1:]]),
        },
        sections=bodies,
    )
    write_text(folder / "report.html", html)
