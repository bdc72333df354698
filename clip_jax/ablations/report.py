"""report.html of an ablation: its sentence, figure and numbers in one page, which needs no network and no scripts."""

from importlib.resources import files
from pathlib import Path

from clip_jax.ablations.findings import describe_range, label, number, seed_values
from clip_jax.ablations.results import Results
from clip_jax.evaluation.report.values import TEMPLATES, Page
from input_pipeline.storage import write_text


def write_report(results: Results, folder: Path) -> None:
    """Writes report.html into the folder in which figure.png lies; whole, or not at all."""
    template = TEMPLATES.from_string(files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8"))
    html = template.render(
        results=results,
        page=Page(report={}, folder=folder),
        describe_range=describe_range,
        label=label,
        seed_values=seed_values,
        number=lambda value, *unit, **bare: None if value is None else number(value, *unit, **bare),
        four_digits=lambda value: None if value is None else f"{value:.4g}",
    )
    write_text(folder / "report.html", html)
