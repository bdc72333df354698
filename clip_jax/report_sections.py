"""The sections of a report, each from the contents of report.json to HTML; empty where there is nothing to show."""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from clip_jax.report_html import (
    Markup,
    Page,
    bar,
    code,
    details,
    interval,
    pairs,
    paragraph,
    percent,
    points,
    table,
    text,
)

METRICS = {
    "accuracy": "accuracy",
    "mean_per_class": "mean per class",
    "eleven_point_map": "11-point mAP",
    "roc_auc": "ROC AUC",
    "mean_top1_top5": "mean of top-1 and top-5",
}
OPEN = 2  # sets whose details are open from the start
WORST = 8  # classes listed of a set
LEGIBLE = 20  # classes, above which a confusion matrix needs the whole width


@cache
def paper_scores() -> Mapping[str, Any]:
    """What the paper says of its released models, {set: {model: share}}, and the source."""
    return json.loads(files("clip_jax.evaluators").joinpath("paper_scores.json").read_text(encoding="utf-8"))


def _paper(page: Page, name: str) -> float | None:
    return paper_scores().get(name, {}).get(page.report["model"]["name"])


def all_sets(page: Page) -> str:
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
                _matches(few),
                found.get("count", probed.get("count")),
                found.get("num_skipped"),
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
    kept = [i for i in range(len(header)) if any(row[i] is not None for row in rows)]
    shown = table([header[i] for i in kept], [[row[i] for i in kept] for row in rows], kinds)
    return shown + paragraph(notes + missing + counted, "soft")


def _matches(few: Mapping[str, Any]) -> Markup | None:
    match = few.get("matches_zero_shot")
    if not match:
        return None
    sign = {"equal": "", "at most": "≤ ", "more than": "&gt; "}[match["relation"]]
    return Markup(f"{sign}{match['labels_per_class']:.3g}")


def prompts(page: Page) -> str:
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
    return Markup(f"<h3>{title}</h3>") + table(["class", "right", "images"], rows) + note


def _mistakes(page: Page, found: Mapping[str, Any]) -> str:
    if not found.get("mistakes"):
        return ""
    shown = []
    for mistake in found["mistakes"]:
        image = page.image(found["pictures"][mistake["picture"]], mistake["id"])
        words = f"<b>{text(mistake['predicted'])}</b> {100 * mistake['confidence']:.0f} %, is {text(mistake['label'])}"
        shown.append(f"<figure>{image}<figcaption>{words}</figcaption></figure>")
    return f'<h3>The most confident mistakes</h3><div class="mistakes">{"".join(shown)}</div>'


def linear_probe(page: Page) -> str:
    rows = page.measured("linear_probe")
    if not rows:
        return ""
    cells = []
    for row in rows:
        found = row["linear_probe"]
        cells.append(
            [
                row["title"],
                METRICS[row["metric"]],
                percent(found["score"]),
                interval(found),
                percent(row.get("zero_shot", {}).get("value")),
                Markup(f"{found['strength']:.3g}"),
                percent(found["validation_score"]),
                found["num_train"],
                found["num_validation"],
                found["count"],
                "yes" if found["converged"] else f"no, {found['iterations']} iterations",
            ]
        )
    header = [
        "data set",
        "metric",
        "probe",
        "interval",
        "zero-shot",
        "L2 strength",
        "on validation",
        "train",
        "validation",
        "test",
    ]
    features = {"pooled": "before the projection", "joint": "after the projection, of unit length"}
    note = (
        f"Logistic regression on features {features[rows[0]['linear_probe']['features']]}; the strength found on the "
    )
    note += "validation split, then refitted on train and validation."
    figures = "".join(f"<figure>{page.image(r['linear_probe']['pictures']['sweep'], 'sweep')}</figure>" for r in rows)
    shown = details("Sweeps of the strength", f'<div class="pictures">{figures}</div>', len(rows) <= OPEN)
    return table([*header, "converged"], cells) + paragraph(note, "soft") + shown


def few_shot(page: Page) -> str:
    rows = page.measured("few_shot")
    if not rows:
        return ""
    shots = sorted({shot["labels_per_class"] for row in rows for shot in row["few_shot"]["shots"]})
    cells = []
    for row in rows:
        found = {shot["labels_per_class"]: shot for shot in row["few_shot"]["shots"]}
        curve = [_mean_and_half(found[number]) if number in found else None for number in shots]
        zero, whole = row.get("zero_shot", {}).get("value"), row.get("linear_probe", {}).get("score")
        cells.append([row["title"], percent(zero), *curve, percent(whole), _matches(row["few_shot"])])
    header = ["data set", "zero-shot", *(f"{number:g}" for number in shots), "all labels", "labels a class to match"]
    note = (
        "Mean over draws of so many labels a class, with its 95 % interval (Student's t). The last column is where the "
    )
    note += "curve first reaches zero-shot, interpolated over the logarithm of the labels, as in the paper's fig. 7."
    figures = "".join(f"<figure>{page.image(r['few_shot']['pictures']['few_shot'], 'few-shot')}</figure>" for r in rows)
    return table(header, cells) + paragraph(note, "soft") + Markup(f'<div class="pictures">{figures}</div>')


def _mean_and_half(shot: Mapping[str, Any]) -> Markup:
    half = (shot["high"] - shot["low"]) / 2
    return Markup(f'{100 * shot["score"]:.1f} <span class="soft">± {100 * half:.1f}</span>')


def retrieval(page: Page) -> str:
    found = page.report.get("retrieval", {})
    if "images" not in found:
        return ""
    rows = []
    for words, key in (("image to text", "image_to_text_r@{}"), ("text to image", "text_to_image_r@{}")):
        rows.append([words, *(percent(found[key.format(k)]) for k in (1, 5, 10))])
        rows.append([f"{words}, chance", *(percent(found[f"{key.format(k)}_chance"]) for k in (1, 5, 10))])
    note = f"{found['images']:,} images, {found['captions']:,} captions; ties count against the model."
    note += f" Prompt prefix: {found['prompt_prefix']!r}." if found["prompt_prefix"] else ""
    note += f" {found['num_skipped']:,} pictures skipped." if found["num_skipped"] else ""
    figures = page.figures(found["pictures"], ("retrieval", "similarity"))
    return table(["", "R@1", "R@5", "R@10"], rows, ["", "absent", "", "absent"]) + paragraph(note, "soft") + figures


def robustness(page: Page) -> str:
    found = page.report.get("robustness", {})
    if "shifts" not in found:
        return ""
    of = found["reference"]
    rows = [[of["name"], "no shift", percent(of["accuracy"]), interval(of), of["count"], None, None, None]]
    for name, shift in found["shifts"].items():
        rows.append(
            [
                name,
                "shift",
                percent(shift["accuracy"]),
                interval(shift),
                shift["count"],
                percent(shift["predicted"]),
                points(shift["effective_robustness"]),
                points(shift["relative_robustness"]),
            ]
        )
    header = ["data set", "", "accuracy", "interval", "images", "predicted by reference models"]
    header += ["effective robustness, points", "relative robustness, points"]
    notes = sorted({shift["note"] for shift in found["shifts"].values() if shift["note"]})
    shown = "".join(paragraph(note, "soft") for note in notes)
    return table(header, rows) + shown + page.figures(found["pictures"], ("robustness",))


def overlap(page: Page) -> str:
    rows = page.measured("overlap")
    if not rows:
        return ""
    cells = []
    for row in rows:
        found = row["overlap"]
        parts = [found[part] for part in ("all", "overlap", "clean")]
        shown = [x for part in parts for x in (percent(part["accuracy"]), interval(part))]
        p_value = None if found["p_value"] is None else Markup(f"{found['p_value']:.3g}")
        share = percent(found["overlap_share"])
        cells.append(
            [row["title"], share, found["overlap"]["count"], *shown, points(found["all_minus_clean"]), p_value]
        )
    header = ["data set", "overlap", "images", "all", "99.5 %", "in overlap", "99.5 %", "clean", "99.5 %"]
    first = rows[0]["overlap"]
    note = f"Similarity by the {first['embedding']} embedding to the nearest of {first['training_images']:,} training "
    note += (
        f"images, {first['threshold']:g} or above called a duplicate. The threshold is chosen by looking at the pairs."
    )
    figures = "".join(
        details(
            f"{row['title']}: pairs around the threshold",
            f"<figure>{page.image(row['overlap']['pictures']['duplicates'], 'pairs')}</figure>",
            i < OPEN,
        )
        for i, row in enumerate(rows)
    )
    whole = page.figures(page.report.get("overlap", {}).get("pictures", {}), ("overlap",))
    return table([*header, "all less clean, points", "p"], cells) + paragraph(note, "soft") + whole + figures


def bias(page: Page) -> str:
    found = page.report.get("bias", {})
    if "label_sets" not in found:
        return ""
    parts: list[str] = [paragraph(words) for words in found["text"].split("\n\n")]
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
            parts.append(Markup(f"<h3>{text(column)}, label set: {text(label_set)}</h3>") + table(header, rows))
    return "".join(parts) + page.figures(found["pictures"], list(found["pictures"]))


def absent(page: Page) -> str:
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
    parts = []
    named = {"model": page.report["model"], **page.report["settings"], "environment": page.report["environment"]}
    for name, values in named.items():
        shown = {
            key: code(json.dumps(value) if isinstance(value, dict | list | tuple) else value)
            for key, value in values.items()
        }
        parts.append(details(name, pairs(shown)))
    return "".join(parts)
