"""The first and last sections of a report, from the contents of report.json to HTML; empty where nothing is to show."""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from clip_jax.evaluation.report.html import (
    METRICS,
    OPEN,
    Markup,
    Page,
    bar,
    code,
    details,
    interval,
    matches,
    pairs,
    paragraph,
    percent,
    table,
    text,
    without_empty,
)

WORST = 8  # classes listed of a set
NAMED = 20  # classes without images
LEGIBLE = 20  # classes, above which a confusion matrix needs the whole width


@cache
def paper_scores() -> Mapping[str, Any]:
    """What the paper says of its released models, {set: {model: share}}, and the source."""
    return json.loads(files(__package__).joinpath("paper_scores.json").read_text(encoding="utf-8"))


def _paper(page: Page, name: str) -> float | None:
    return paper_scores().get(name, {}).get(page.report["model"]["name"])


def all_sets(page: Page) -> str:
    """A row a set: our number with its interval, chance, the paper's, the probe's."""
    rows, kinds = [], []
    for row in page.report["sets"]:
        kinds.append("" if row["state"] == "done" else row["state"])
        if "metric" not in row:
            rows.append([row["title"], row["state"], *[None] * 9])
            continue
        found, probed, few = (row.get(key, {}) for key in ("zero_shot", "linear_probe", "few_shot"))
        paper = _paper(page, row["name"])
        rows.append(
            [
                row["title"],
                METRICS[row["metric"]],
                percent(found.get("value")),
                interval(found),
                bar(found, found["chance"], paper) if found else None,
                percent(found.get("chance")),
                percent(paper),
                percent(probed.get("score")),
                matches(few),
                found.get("count", probed.get("count")),
                found.get("num_skipped", probed.get("num_skipped", {}).get("test")),
            ]
        )
    header = ["data set", "metric", "zero-shot", "interval", "0 to 100 %", "chance", "paper", "linear probe"]
    header += ["labels a class to match", "images", "skipped"]
    if not rows:
        return ""
    notes = "Blue: zero-shot with its bootstrap interval. Grey: chance. Orange: the paper, for the same weights."
    missing = (
        ""
        if any(_paper(page, row["name"]) for row in page.report["sets"])
        else " The paper has no number for this model on these sets."
    )
    counted = " Skipped pictures could not be decoded; they are no part of the images that are counted."
    return table(*without_empty(header, rows), kinds) + paragraph(notes + missing + counted, "soft")


def prompts(page: Page) -> str:
    """Every prompt set on every data set."""
    rows = page.measured("zero_shot")
    names = list(dict.fromkeys(name for row in rows for name in row["zero_shot"]["prompts"]))
    if len(names) < 2:
        return ""
    cells = []
    for row in rows:
        compared = row["zero_shot"]["prompts"]
        best = max(found["value"] for found in compared.values())
        shown = [
            Markup(f"{100 * compared[n]['value']:.1f}" if compared[n]["value"] < best else f"<b>{100 * best:.1f}</b>")
            for n in names
        ]
        cells.append(
            [row["title"], METRICS[row["metric"]], *shown, compared["own"]["templates"] if "own" in compared else None]
        )
    mean = [Markup(f"{100 * sum(r['zero_shot']['prompts'][n]['value'] for r in rows) / len(rows):.1f}") for n in names]
    cells.append(["mean of all", "", *mean, None])
    words = {
        "bare": "bare name",
        "one": "a photo of a {}.",
        "own": "the set's own",
        "imagenet7": "ImageNet 7",
        "imagenet80": "ImageNet 80",
    }
    header = ["data set", "metric", *(words.get(name, name) for name in names), "own templates"]
    headline = rows[0]["zero_shot"]["headline"]
    return table(header, cells) + paragraph(
        f"In percent, the best of each set bold. The other tables show: {words.get(headline, headline)}.", "soft"
    )


def zero_shot(page: Page) -> str:
    """Each set with its pictures and most confident mistakes."""
    parts: list[str] = []
    for place, row in enumerate(page.measured("zero_shot")):
        found = row["zero_shot"]
        numbers = {METRICS[row["metric"]]: found, "top-1": found.get("top1"), "top-5": found.get("top5")}
        numbers |= {"mean per class": found.get("mean_per_class")}
        if row["metric"] in ("accuracy", "mean_per_class"):
            numbers.pop(METRICS["accuracy"], None)
        lines = [[name, percent(value["value"]), interval(value)] for name, value in numbers.items() if value]
        body = [paragraph(row["note"], "soft") if row["note"] else "", table(["", "", "interval"], lines)]
        body.append(_counts(row, found))
        wide = ("confusion",) if row["classes"] > LEGIBLE else ()  # so that its names can be read
        body.append(page.figures(found.get("pictures", {}), ("confusion", "reliability"), wide))
        body.append(_worst_classes(found))
        body.append(_mistakes(page, found))
        title = Markup(f"{text(row['title'])}: {percent(found['value'])}")
        parts.append(details(title, "".join(body), place < OPEN))
    return "".join(parts)


def _counts(row: Mapping[str, Any], found: Mapping[str, Any]) -> Markup:
    words = f"{found['count']:,} images of {row['classes']:,} classes"
    if found["num_skipped"]:
        words += f"; {found['num_skipped']:,} more could not be decoded and are not counted"
    if calibration := found.get("calibration"):
        words += f". Expected calibration error {100 * calibration['error']:.1f} %"
    return paragraph(words + ".")


def _worst_classes(found: Mapping[str, Any]) -> str:
    counts = dict(zip(found["per_class"], found["images_per_class"]))
    known = sorted((share, name) for name, share in found["per_class"].items() if share is not None)
    empty = [name for name, share in found["per_class"].items() if share is None]
    rows = [[name, percent(share), counts[name]] for share, name in known[:WORST]]
    title = "Classes" if len(known) <= WORST else f"The {WORST} worst of {len(known)} classes"
    note = (
        paragraph(f"Without images: {', '.join(empty[:20])}{', ...' if len(empty) > 20 else ''}.", "soft")
        if empty
        else ""
    )
    return (
        Markup(f"<h3>{title}</h3>")
        + table(["class", METRICS[found["metric"]] if "top1" not in found else "right", "images"], rows)
        + note
    )


def _mistakes(page: Page, found: Mapping[str, Any]) -> str:
    if not found.get("mistakes"):
        return ""
    shown = []
    for mistake in found["mistakes"]:
        image = page.image(found["pictures"][mistake["picture"]], mistake["id"])
        words = f"<b>{text(mistake['predicted'])}</b> {100 * mistake['confidence']:.0f} %, is {text(mistake['label'])}"
        shown.append(f"<figure>{image}<figcaption>{words}</figcaption></figure>")
    return f'<h3>The most confident mistakes</h3><div class="mistakes">{"".join(shown)}</div>'


def absent(page: Page) -> str:
    """What was not there, failed or was skipped, with the reason."""
    rows = [
        [r["title"], r["state"], Markup(f'<div class="reason">{code(r["reason"])}</div>')]
        for r in page.report["sets"]
        if r["state"] != "done"
    ]
    for measure in ("retrieval", "robustness", "bias"):
        found = page.report.get(measure, {})
        if found.get("state"):
            rows.append([measure, found["state"], code(found["reason"])])
    for row in page.report["sets"]:
        for measure in ("linear_probe", "few_shot", "overlap"):
            if reason := row.get(measure, {}).get("absent"):
                rows.append([f"{row['title']}, {measure.replace('_', ' ')}", "not measured", code(reason)])
        found = row.get("zero_shot", {})
        for record_id, reason in found.get("first_skipped", []):
            rows.append([row["title"], f"skipped ({found['num_skipped']:,} in all)", code(f"{record_id}: {reason}")])
    return "".join(f"<p><b>{text(name)}</b>, {text(state)}<br>{text(reason)}</p>" for name, state, reason in rows)


def settings(page: Page) -> str:
    """Every setting, version and hash."""
    parts = []
    named = {"model": page.report["model"], **page.report["settings"], "environment": page.report["environment"]}
    named["data"] = {row["name"]: row["hashes"] for row in page.report["sets"] if "hashes" in row}
    for name, values in named.items():
        shown = {
            key: code(json.dumps(value) if isinstance(value, dict | list | tuple) else value)
            for key, value in values.items()
        }
        parts.append(details(name, pairs(shown)))
    return "".join(parts)
