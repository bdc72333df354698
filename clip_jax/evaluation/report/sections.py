"""The sections of a report: from the contents of report.json to what a macro of sections.html.j2 shows, or None."""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from clip_jax.evaluation.report.values import (
    METRICS,
    Page,
    bar,
    digits,
    interval,
    matching_labels,
    percent,
    points,
    table,
)

PROMPTS = {
    "bare": "bare name",
    "one": "a photo of a {}.",
    "own": "the set's own",
    "imagenet7": "ImageNet 7",
    "imagenet80": "ImageNet 80",
}
Section = Mapping[str, Any] | None


@cache
def paper_scores() -> Mapping[str, Any]:
    """What the paper says of its released models, {set: {model: share}}, and the source."""
    return json.loads(files(__package__).joinpath("paper_scores.json").read_text(encoding="utf-8"))


def _paper(page: Page, name: str) -> float | None:
    return paper_scores().get(name, {}).get(page.report["model"]["name"])


def all_sets(page: Page) -> Section:
    """A row a set: our number with its interval, chance, the paper's, the probe's."""
    rows = []
    for row in page.report["sets"]:
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
                matching_labels(few),
                found.get("count", probed.get("count")),
                found.get("num_skipped", probed.get("num_skipped", {}).get("test")),
            ]
        )
    if not rows:
        return None
    header = ["data set", "metric", "zero-shot", "interval", "0 to 100 %", "chance", "paper", "linear probe"]
    header += ["labels a class to match", "images", "skipped"]
    kinds = ["" if row["state"] == "done" else row["state"] for row in page.report["sets"]]
    has_paper = any(_paper(page, row["name"]) for row in page.report["sets"])
    return {"table": table(header, rows, kinds), "has_paper": has_paper}


def prompts(page: Page) -> Section:
    """Every prompt set on every data set."""
    rows = page.measured("zero_shot")
    names = list(dict.fromkeys(name for row in rows for name in row["zero_shot"]["prompts"]))
    if len(names) < 2:
        return None
    cells = []
    for row in rows:
        compared = row["zero_shot"]["prompts"]
        best = max(result["value"] for result in compared.values())
        shown = [Markup("<b>{:.1f}</b>" if compared[n]["value"] >= best else "{:.1f}") for n in names]
        values = [cell.format(100 * compared[n]["value"]) for cell, n in zip(shown, names)]
        cells.append([row["title"], METRICS[row["metric"]], *values, compared.get("own", {}).get("templates")])
    means = [sum(row["zero_shot"]["prompts"][n]["value"] for row in rows) / len(rows) for n in names]
    cells.append(["mean of all", "", *(Markup(f"{100 * mean:.1f}") for mean in means), None])
    header = ["data set", "metric", *(PROMPTS.get(name, name) for name in names), "own templates"]
    headline = rows[0]["zero_shot"]["headline"]
    return {"table": table(header, cells), "headline": PROMPTS.get(headline, headline)}


def zero_shot(page: Page) -> Section:
    """Each set with its numbers, pictures, classes and most confident mistakes."""
    sets = []
    for row in page.measured("zero_shot"):
        found = row["zero_shot"]
        numbers = {METRICS[row["metric"]]: found, "top-1": found.get("top1"), "top-5": found.get("top5")}
        numbers |= {"mean per class": found.get("mean_per_class")}
        if row["metric"] in ("accuracy", "mean_per_class"):
            numbers.pop(METRICS["accuracy"], None)
        counts = dict(zip(found["per_class"], found["images_per_class"]))
        known = sorted((share, name) for name, share in found["per_class"].items() if share is not None)
        header = ["class", METRICS[found["metric"]] if "top1" not in found else "right", "images"]
        lines = [[name, percent(value["value"]), interval(value)] for name, value in numbers.items() if value]
        sets.append(
            {
                "row": row,
                "numbers": table(["", "", "interval"], lines),
                "classes": table(header, [[name, percent(share), counts[name]] for share, name in known]),
                "empty": [name for name, share in found["per_class"].items() if share is None],
            }
        )
    return {"sets": sets} if sets else None


def linear_probe(page: Page) -> Section:
    """Scores, chosen strengths and the sweep of each probed set."""
    cells = []
    for row in (rows := page.measured("linear_probe")):
        found = row["linear_probe"]
        cells.append(
            [
                row["title"],
                METRICS[row["metric"]],
                percent(found["score"]),
                interval(found),
                percent(row.get("zero_shot", {}).get("value")),
                digits(found["strength"]),
                percent(found["validation_score"]),
                found["num_train"],
                found["num_validation"],
                found["count"],
                sum(found["num_skipped"].values()) or None,
                "yes" if found["converged"] else f"no, {found['iterations']} iterations",
            ]
        )
    header = ["data set", "metric", "probe", "interval", "zero-shot", "L2 strength", "on validation", "train"]
    header += ["validation", "test", "skipped", "converged"]
    return {"table": table(header, cells), "rows": rows} if rows else None


def few_shot(page: Page) -> Section:
    """The curve of each set, and the labels a class that match zero-shot."""
    rows = page.measured("few_shot")
    shots = sorted({shot["labels_per_class"] for row in rows for shot in row["few_shot"]["shots"]})
    cells = []
    for row in rows:
        found = {shot["labels_per_class"]: shot for shot in row["few_shot"]["shots"]}
        curve = [_mean_and_half(found[number]) if number in found else "-" for number in shots]
        zero, whole = row["few_shot"]["zero_shot"], row.get("linear_probe", {}).get("score")
        cells.append([row["title"], percent(zero), *curve, percent(whole), matching_labels(row["few_shot"])])
    header = ["data set", "zero-shot", *(f"{number:g}" for number in shots), "all labels", "labels a class to match"]
    return {"table": table(header, cells), "rows": rows} if rows else None


def _mean_and_half(shot: Mapping[str, Any]) -> Markup:
    half = (shot["high"] - shot["low"]) / 2
    return Markup('{:.1f} <span class="soft">± {:.1f}</span>').format(100 * shot["score"], 100 * half)


def retrieval(page: Page) -> Section:
    """Recall in both directions beside chance, and queries with their best matches."""
    found = page.report.get("retrieval", {})
    if "images" not in found:
        return None
    rows = [
        [direction + note, *(percent(found[f"{direction.replace(' ', '_')}_r@{k}{suffix}"]) for k in (1, 5, 10))]
        for direction in ("image to text", "text to image")
        for note, suffix in (("", ""), (", chance", "_chance"))
    ]
    return {"table": table(["", "R@1", "R@5", "R@10"], rows, ["", "absent", "", "absent"]), "found": found}


def robustness(page: Page) -> Section:
    """Accuracy under each shift beside what the fit predicts."""
    found = page.report.get("robustness", {})
    if "shifts" not in found:
        return None
    of, adapted = found["reference"], found.get("adapted", {})
    probed = percent(adapted.get(of["name"]))
    rows = [[of["name"], "no shift", percent(of["accuracy"]), interval(of), of["count"], probed, None, None, None]]
    for name, shift in found["shifts"].items():
        rows.append(
            [
                name,
                "shift",
                percent(shift["accuracy"]),
                interval(shift),
                shift["count"],
                percent(adapted.get(name)),
                percent(shift["predicted"]),
                points(shift["effective_robustness"]),
                points(shift["relative_robustness"]),
            ]
        )
    header = ["data set", "", "accuracy", "interval", "images", "probe of the set without shift"]
    header += ["predicted by reference models", "effective robustness, points", "relative robustness, points"]
    return {"table": table(header, rows), "found": found}


def overlap(page: Page) -> Section:
    """Accuracy with and without near-duplicates of training images."""
    cells = []
    for row in (rows := page.measured("overlap")):
        found = row["overlap"]
        parts = [found[part] for part in ("all", "overlap", "clean")]
        shown = [x for part in parts for x in (percent(part["accuracy"]), interval(part))]
        difference, p_value = points(found["all_minus_clean"]), digits(found["p_value"])
        share = percent(found["overlap_share"])
        cells.append([row["title"], share, found["overlap"]["count"], *shown, difference, p_value])
    header = ["data set", "overlap", "images", "all", "99.5 %", "in overlap", "99.5 %", "clean", "99.5 %"]
    return {"table": table([*header, "all less clean, points", "p"], cells), "rows": rows} if rows else None


def bias(page: Page) -> Section:
    """Shares of people put into harmful classes, by group, with the method's limits."""
    found = page.report.get("bias", {})
    if "label_sets" not in found:
        return None
    tables = []
    for label_set, columns in found["label_sets"].items():
        for column, groups in columns.items():
            categories = list(next(iter(groups.values())))
            rows = [
                [
                    group,
                    *(x for c in categories for x in (percent(shares[c]["accuracy"]), interval(shares[c]))),
                    shares[categories[0]]["count"],
                ]
                for group, shares in groups.items()
            ]
            header = [column, *(name for c in categories for name in (c, "interval")), "images"]
            tables.append((f"{column}, label set: {label_set}", table(header, rows)))
    return {"tables": tables, "found": found}


def absent(page: Page) -> Section:
    """What was not there, failed or was skipped, with the reason."""
    rows = [(r["title"], r["state"], r["reason"]) for r in page.report["sets"] if r["state"] != "done"]
    for measure in ("retrieval", "robustness", "bias"):
        found = page.report.get(measure, {})
        if found.get("state"):
            rows.append((measure, found["state"], found["reason"]))
    for row in page.report["sets"]:
        for measure in ("linear_probe", "few_shot", "overlap"):
            if reason := row.get(measure, {}).get("absent"):
                rows.append((f"{row['title']}, {measure.replace('_', ' ')}", "not measured", reason))
        found = row.get("zero_shot", {})
        for record_id, reason in found.get("first_skipped", []):
            rows.append((row["title"], f"skipped ({found['num_skipped']:,} in all)", f"{record_id}: {reason}"))
    return {"rows": rows} if rows else None


def settings(page: Page) -> Section:
    """Every setting, version and hash."""
    groups = {"model": page.report["model"], **page.report["settings"], "environment": page.report["environment"]}
    groups["data"] = {row["name"]: row["hashes"] for row in page.report["sets"] if "hashes" in row}

    def shown(value: Any) -> Any:
        return json.dumps(value) if isinstance(value, dict | list | tuple) else value

    return {"groups": {name: {k: shown(v) for k, v in values.items()} for name, values in groups.items()}}
