"""The sections of a report beyond zero-shot: probes, few-shot, retrieval, robustness, overlap, bias."""

from collections.abc import Mapping
from typing import Any

from clip_jax.evaluation.report.html import (
    METRICS,
    OPEN,
    Markup,
    Page,
    details,
    interval,
    matches,
    paragraph,
    percent,
    points,
    table,
    text,
    without_empty,
)


def linear_probe(page: Page) -> str:
    """Scores, chosen strengths and the sweep of each probed set."""
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
                sum(found["num_skipped"].values()) or None,
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
        "skipped",
        "converged",
    ]
    features = {"pooled": "before the projection", "joint": "after the projection, of unit length"}
    note = (
        f"Logistic regression on features {features[rows[0]['linear_probe']['features']]}; the strength found on the "
    )
    note += "validation split, then refitted on train and validation."
    figures = "".join(f"<figure>{page.image(r['linear_probe']['pictures']['sweep'], 'sweep')}</figure>" for r in rows)
    shown = details("Sweeps of the strength", f'<div class="pictures">{figures}</div>', len(rows) <= OPEN)
    return table(*without_empty(header, cells)) + paragraph(note, "soft") + shown


def few_shot(page: Page) -> str:
    """The curve of each set, and the labels a class that match zero-shot."""
    rows = page.measured("few_shot")
    if not rows:
        return ""
    shots = sorted({shot["labels_per_class"] for row in rows for shot in row["few_shot"]["shots"]})
    cells = []
    for row in rows:
        found = {shot["labels_per_class"]: shot for shot in row["few_shot"]["shots"]}
        curve = [_mean_and_half(found[number]) if number in found else None for number in shots]
        zero, whole = row.get("zero_shot", {}).get("value"), row.get("linear_probe", {}).get("score")
        cells.append([row["title"], percent(zero), *curve, percent(whole), matches(row["few_shot"])])
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
    """Recall both ways beside chance, and queries with their best matches."""
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
    names = ("retrieval", "similarity")
    figures = page.figures(found["pictures"], names, wide=names)
    return table(["", "R@1", "R@5", "R@10"], rows, ["", "absent", "", "absent"]) + paragraph(note, "soft") + figures


def robustness(page: Page) -> str:
    """Accuracy under each shift beside what the fit predicts."""
    found = page.report.get("robustness", {})
    if "shifts" not in found:
        return ""
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
    notes = sorted({shift["note"] for shift in found["shifts"].values() if shift["note"]})
    shown = "".join(paragraph(note, "soft") for note in notes)
    figures = page.figures(found["pictures"], ("robustness",), wide=("robustness",))
    return table(*without_empty(header, rows)) + shown + figures


def overlap(page: Page) -> str:
    """Accuracy with and without near-duplicates of training images."""
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
    whole = page.figures(page.report.get("overlap", {}).get("pictures", {}), ("overlap",), wide=("overlap",))
    return table([*header, "all less clean, points", "p"], cells) + paragraph(note, "soft") + whole + figures


def bias(page: Page) -> str:
    """Shares of people put into harmful classes, by group, with the method's limits."""
    found = page.report.get("bias", {})
    if "label_sets" not in found:
        return ""
    parts: list[str] = [paragraph(words) for words in found["text"].split("\n\n")]
    skipped = (
        f"; {found['num_skipped']:,} more could not be decoded and are not counted" if found["num_skipped"] else ""
    )
    parts.append(paragraph(f"{found['count']:,} pictures{skipped}.", "soft"))
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
