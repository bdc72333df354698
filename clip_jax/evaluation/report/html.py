"""Pieces of a report's HTML: tables, numbers with intervals, pictures within the page. All text is escaped here."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from input_pipeline.storage import write_text

METRICS = {
    "accuracy": "accuracy",
    "mean_per_class": "mean per class",
    "eleven_point_map": "11-point mAP",
    "roc_auc": "ROC AUC",
    "mean_top1_top5": "mean of top-1 and top-5",
}
OPEN = 2  # parts of a section that are open from the start


class Markup(str):
    """Text that is HTML already."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the sections are made from: the contents of report.json, and the folder that its pictures lie in."""

    report: Mapping[str, Any]
    folder: Path

    def measured(self, measure: str) -> list[Mapping[str, Any]]:
        """The sets with a result of a measure."""
        return [row for row in self.report["sets"] if row.get(measure) and "absent" not in row[measure]]

    def image(self, path: str, what: str) -> Markup:
        """An img element that holds the picture itself; a PNG as WebP, a tenth of its size."""
        file = self.folder / path
        kind, data = "jpeg", file.read_bytes()
        if file.suffix == ".png":
            stream = io.BytesIO()
            with Image.open(file) as image:
                image.convert("RGB").save(stream, "WEBP", quality=85)
            kind, data = "webp", stream.getvalue()
        return Markup(f'<img alt="{escape(what)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">')

    def figures(self, pictures: Mapping[str, str], names: Sequence[str], wide: Sequence[str] = ()) -> Markup:
        """Some pictures of a result, side by side where there is room; the wide ones take a row each."""
        kinds = {name: ' class="wide"' if name in wide else "" for name in names}
        shown = [f"<figure{kinds[n]}>{self.image(pictures[n], n)}</figure>" for n in names if n in pictures]
        return Markup(f'<div class="pictures">{"".join(shown)}</div>')


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], classes: Sequence[str] | None = None) -> Markup:
    """A table that scrolls by itself where it is wider than the page; classes: one a row."""
    numeric = [any(_is_number(row[i]) for row in rows) for i in range(len(header))]
    heads = "".join(f"<th{_n(number)}>{text(name)}</th>" for name, number in zip(header, numeric))
    lines = []
    for row, kind in zip(rows, classes or [""] * len(rows)):
        cells = "".join(f"<td{_n(number)}>{text(cell)}</td>" for cell, number in zip(row, numeric))
        lines.append(f'<tr class="{kind}">{cells}</tr>' if kind else f"<tr>{cells}</tr>")
    return Markup(f'<div class="scroll"><table><tr>{heads}</tr>{"".join(lines)}</table></div>')


def text(value: Any) -> str:
    """A cell's or paragraph's HTML: Markup as it is, whole numbers with commas, None as a dash, the rest escaped."""
    if value is None:
        return "-"
    if isinstance(value, Markup):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return escape(str(value))


def percent(value: float | None) -> Markup | None:
    """A share in percent with one digit."""
    return None if value is None else Markup(f"{100 * value:.1f} %")


def points(value: float | None) -> Markup | None:
    """A difference of shares in points, with its sign."""
    return None if value is None else Markup(f"{100 * value:+.1f}".replace("-0.0", "0.0").replace("+0.0", "0.0"))


def interval(found: Mapping[str, Any]) -> Markup | None:
    """low to high of a result, in percent."""
    if found.get("low") is None:
        return None
    return Markup(f'<span class="soft">{100 * found["low"]:.1f} to {100 * found["high"]:.1f}</span>')


def bar(found: Mapping[str, Any], chance: float | None, paper: float | None = None) -> Markup:
    """A share on a line from 0 to 100 %: a dot with its interval, a grey tick for chance, a circle for the paper's."""
    width, height, middle = 150, 16, 8

    def x(value: float) -> str:
        return f"{4 + (width - 8) * value:.1f}"

    marks = [f'<line x1="4" x2="{width - 4}" y1="{middle}" y2="{middle}" stroke="#dfe3e8" stroke-width="2"/>']
    if chance is not None:
        marks.append(f'<line x1="{x(chance)}" x2="{x(chance)}" y1="3" y2="13" stroke="#767676" stroke-width="2"/>')
    if found.get("low") is not None:
        marks.append(
            f'<line x1="{x(found["low"])}" x2="{x(found["high"])}" y1="{middle}" y2="{middle}" stroke="#0072b2" '
            'stroke-width="4" opacity="0.45"/>'
        )
    marks.append(f'<circle cx="{x(found["value"])}" cy="{middle}" r="4" fill="#0072b2"/>')
    if paper is not None:
        marks.append(f'<circle cx="{x(paper)}" cy="{middle}" r="4" fill="none" stroke="#d55e00" stroke-width="2"/>')
    label = f"{100 * found['value']:.1f} percent"
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return Markup(f'<svg {size} role="img" aria-label="{label}">{"".join(marks)}</svg>')


def pairs(values: Mapping[str, Any]) -> Markup:
    """A list of names with their values."""
    return Markup("<dl>" + "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in values.items()) + "</dl>")


def paragraph(value: Any, kind: str = "") -> Markup:
    """A paragraph of text, of a class."""
    return Markup(f'<p class="{kind}">{text(value)}</p>' if kind else f"<p>{text(value)}</p>")


def code(value: Any) -> Markup:
    """What a terminal or a file would show."""
    return Markup(f"<code>{escape(str(value))}</code>")


def details(title: Any, body: str, is_open: bool = False) -> Markup:
    """A part that opens when it is asked for, without scripts."""
    return Markup(f"<details{' open' if is_open else ''}><summary>{text(title)}</summary>{body}</details>")


def _is_number(cell: Any) -> bool:
    if isinstance(cell, Markup):
        return cell[:1] in "+-0123456789" or cell.startswith('<span class="soft">')
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def _n(number: bool) -> str:
    return ' class="n"' if number else ""


def without_empty(header: list[str], rows: list[list[Any]]) -> tuple[list[str], list[list[Any]]]:
    """Header and rows less the columns in which nothing stands."""
    kept = [i for i in range(len(header)) if any(row[i] is not None for row in rows)]
    return [header[i] for i in kept], [[row[i] for i in kept] for row in rows]


def matches(few: Mapping[str, Any]) -> Markup | None:
    """How many labels a class a few-shot probe needs to match zero-shot."""
    match = few.get("matches_zero_shot")
    if not match:
        return None
    sign = {"equal": "", "at most": "≤ ", "more than": "&gt; "}[match["relation"]]
    return Markup(f"{sign}{match['labels_per_class']:.3g}")


def write_page(folder: Path, values: Mapping[str, str]) -> None:
    """report.html in the folder, whole or not at all; values: of the template's title, model, subtitle, head, warning,
    contents and sections."""
    template = Template(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    write_text(folder / "report.html", template.substitute(values))
