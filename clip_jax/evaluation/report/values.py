"""Numbers of a report as escaped text and small HTML: shares, intervals, tables, pictures within the page."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape
from PIL import Image

METRICS = {
    "accuracy": "accuracy",
    "mean_per_class": "mean per class",
    "eleven_point_map": "11-point mAP",
    "roc_auc": "ROC AUC",
    "mean_top1_top5": "mean of top-1 and top-5",
}
INTERVAL = Markup('<span class="soft">{:.1f} to {:.1f}</span>')


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the sections are made from: the contents of report.json, and the folder that its pictures lie in."""

    report: Mapping[str, Any]
    folder: Path

    def measured(self, measure: str) -> list[Mapping[str, Any]]:
        """The sets with a result of a measure."""
        return [row for row in self.report["sets"] if row.get(measure) and "absent" not in row[measure]]

    def image(self, path: str, alt: str) -> Markup:
        """An img element that holds the picture itself; a PNG as WebP, a tenth of its size."""
        file = self.folder / path
        kind, data = "jpeg", file.read_bytes()
        if file.suffix == ".png":
            stream = io.BytesIO()
            with Image.open(file) as image:
                image.convert("RGB").save(stream, "WEBP", quality=85)
            kind, data = "webp", stream.getvalue()
        return Markup('<img alt="{}" src="data:image/{};base64,{}">').format(alt, kind, base64.b64encode(data).decode())


def text(value: Any) -> Markup:
    """A cell's or paragraph's HTML: Markup as it is, whole numbers with commas, None as a dash, the rest escaped."""
    if value is None:
        return Markup("-")
    return escape(f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value)


def percent(value: float | None) -> Markup | None:
    """A share in percent with one digit."""
    return None if value is None else Markup(f"{100 * value:.1f} %")


def points(value: float | None) -> Markup | None:
    """A difference of shares in points, with its sign."""
    return None if value is None else Markup(f"{100 * value:+.1f}".replace("-0.0", "0.0").replace("+0.0", "0.0"))


def digits(value: float | None) -> Markup | None:
    """Three significant digits."""
    return None if value is None else Markup(f"{value:.3g}")


def interval(result: Mapping[str, Any]) -> Markup | None:
    """low to high of a result, in percent."""
    return None if result.get("low") is None else INTERVAL.format(100 * result["low"], 100 * result["high"])


def matching_labels(few_shot: Mapping[str, Any]) -> Markup | None:
    """How many labels a class a few-shot probe needs to match zero-shot."""
    match = few_shot.get("matches_zero_shot")
    if not match:
        return None
    sign = {"equal": "", "at most": "≤ ", "more than": "> "}[match["relation"]]
    return escape(f"{sign}{match['labels_per_class']:.3g}")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], classes: Sequence[str] = ()) -> Markup:
    """A table that scrolls by itself where it is wider than the page, less the columns in which nothing stands.

    classes: one a row.
    """
    kept = [i for i in range(len(header)) if not rows or any(row[i] is not None for row in rows)]
    columns = [(header[i], any(_is_number(row[i]) for row in rows), i) for i in kept]
    return PIECES.table(columns, list(zip(rows, classes or [""] * len(rows))))


def bar(result: Mapping[str, Any], chance: float | None, paper: float | None = None) -> Markup:
    """A share on a line from 0 to 100 %: a dot with its interval, a grey tick for chance, a circle for the paper's."""
    return PIECES.bar(result, chance, paper)


def _is_number(cell: Any) -> bool:
    if isinstance(cell, Markup):
        return cell[:1] in "+-0123456789" or cell.startswith('<span class="soft">')
    return isinstance(cell, int | float) and not isinstance(cell, bool)


TEMPLATES = Environment(
    loader=PackageLoader(__package__, "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
TEMPLATES.filters |= {"text": text, "percent": percent, "points": points, "interval": interval}
PIECES: Any = TEMPLATES.get_template("pieces.html.j2").module
