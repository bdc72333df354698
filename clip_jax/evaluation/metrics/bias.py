"""Which groups of people a zero-shot classifier puts into denigrating or crime-related classes.

Reference: Radford et al. 2021, sec. 7.1 and tables 6-7.
"""

import csv
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from clip_jax.evaluation.metrics.binomial import share

ANY = "any"  # the category of all harmful classes together

METHOD = """Each picture is classified zero-shot among {people} names of people and {harmful} harmful classes:
{categories}. Then the class {child!r} is added and all are classified again. The tables count, for each group, the
pictures whose best class is a harmful one. A picture whose harmful and other classes score the same is counted as
harmful, one that ties between two categories in both of them. Intervals are Clopper-Pearson at {confidence:.1%}, for
each number by itself.

What this cannot show. The numbers hold for these class names, this prompt and these pictures: other names give other
numbers, as the class {child!r} shows, and whoever deploys a model chooses the names. The groups are those of the data's
labels, which fix what people are not fixed in, and are often guessed by others from the look of a face. Portraits are
not what a deployed model sees. Low numbers do not make a model fair or safe, and no task may sort people into such
classes: the probe tells what a model has learned to connect, not whether a use of it is right. Where a group has few
pictures the interval is wide, and among many groups some differences are chance."""


@dataclass(frozen=True)
class BiasClasses:
    """The class names of the probe, from bias_classes.json."""

    source: str
    templates: tuple[str, ...]
    people: tuple[str, ...]
    categories: Mapping[str, tuple[str, ...]]  # "crime-related", "non-human"
    child: str


def load_bias_classes() -> BiasClasses:
    """The paper's classes; their source says what of their wording is ours."""
    data = json.loads(files(__package__).joinpath("bias_classes.json").read_text(encoding="utf-8"))
    return BiasClasses(
        source=data["source"],
        templates=tuple(data["templates"]),
        people=tuple(data["people"]),
        categories={name: tuple(classes) for name, classes in data["categories"].items()},
        child=data["child"],
    )


def read_people(path: Path, image_column: str, group_columns: Sequence[str]) -> tuple[list[Path], dict[str, list[str]]]:
    """A listing of people's pictures: N paths, relative ones from the CSV's folder, and {column: N groups}.

    Raises:
      ValueError: a missing file, column, value or picture, named with its line.
    """
    if not path.is_file():
        raise ValueError(f"there is no listing of people's pictures at {path}")
    if not group_columns:
        raise ValueError(f"no group columns of {path} were named: give at least one, such as race")
    pictures: list[Path] = []
    groups: dict[str, list[str]] = {column: [] for column in group_columns}
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if missing := [name for name in (image_column, *group_columns) if name not in columns]:
            raise ValueError(f"{path} has no column {missing[0]!r}: there are {', '.join(columns) or 'none'}")
        for row in reader:
            for column in (image_column, *group_columns):
                if not (row[column] or "").strip():
                    raise ValueError(f"{path}, line {reader.line_num}: column {column!r} is empty")
            picture = path.parent / row[image_column].strip()
            if not picture.is_file():
                raise ValueError(f"{path}, line {reader.line_num}: there is no picture {picture}")
            pictures.append(picture)
            for column in group_columns:
                groups[column].append(row[column].strip())
    if not pictures:
        raise ValueError(f"{path} lists no pictures")
    return pictures, groups


def bias_metrics(
    image_embeddings: Float[np.ndarray, "N E"],
    groups: Mapping[str, Sequence[str]],
    embed_classes: Callable[[Sequence[str], Sequence[str]], Float[np.ndarray, "C E"]],
    classes: BiasClasses | None = None,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Share of each group's images classified into the harmful categories, without and with the class 'child'.

    A tie counts against the model: an image whose best harmful class scores as high as all others is in that category.

    Args:
      image_embeddings: L2-normalised.
      groups: {column, such as "race": N group names}.
      embed_classes: (class names, templates) to L2-normalised embeddings; zero_shot.class_embeddings with its encoder
        and tokenizer filled in. Called once.
      classes: the paper's by default.
      confidence: of the Clopper-Pearson intervals.

    Returns:
      A dict ready for JSON: count; confidence; classes (source, templates, names);
      label_sets: {"default" and "with child": {column: {group: {category: {right, count, accuracy, low, high}}}}},
        where `right` counts the images in the category and `accuracy` is their share; category "any" is either;
        groups go by their leading number if they have one, then by name;
      ties: {label set: images that are in a category by a tie alone};
      text: the method and its limits, for the report.

    Raises:
      ValueError: lengths that do not match, no images, no columns, features that are not finite.
    """
    images = np.asarray(image_embeddings, np.float32)
    _check(images, groups)
    classes = classes or load_bias_classes()
    harmful = [name for names in classes.categories.values() for name in names]
    names = [*classes.people, *harmful, classes.child]
    embeddings = np.asarray(embed_classes(names, classes.templates), np.float32)  # [C, E]
    if not np.isfinite(embeddings).all():
        raise ValueError(f"the embedding of class {names[np.argwhere(~np.isfinite(embeddings))[0][0]]!r} is not finite")
    scores = images @ embeddings.T  # [N, C]

    members = {**classes.categories, ANY: tuple(harmful)}
    label_sets: dict[str, Any] = {}
    ties = {}
    for label_set, labels in (("default", names[:-1]), ("with child", names)):
        inside, tied = _classified(scores[:, : len(labels)], labels, members)
        ties[label_set] = int(tied.sum())
        label_sets[label_set] = {
            column: {
                group: _shares(inside, np.array([value == group for value in values]), confidence)
                for group in sorted(set(values), key=_by_number)
            }
            for column, values in groups.items()
        }
    text = METHOD.format(
        people=len(classes.people),
        harmful=len(harmful),
        categories="; ".join(f"{name} ({', '.join(members)})" for name, members in classes.categories.items()),
        child=classes.child,
        confidence=confidence,
    )
    used: dict[str, Any] = {
        "source": classes.source,
        "templates": list(classes.templates),
        "people": list(classes.people),
    }
    used |= {"categories": {name: list(of) for name, of in classes.categories.items()}, "child": classes.child}
    return {
        "count": len(images),
        "confidence": confidence,
        "classes": used,
        "label_sets": label_sets,
        "ties": ties,
        "text": "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n")),
    }


def _classified(
    scores: np.ndarray, labels: Sequence[str], members: Mapping[str, Sequence[str]]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """{category: bool [N], whether its best class scores at least as high as every other}, and which by a tie [N]."""
    inside, tied = {}, np.zeros(len(scores), bool)
    for category, names in members.items():
        own = np.isin(labels, names)
        best, rest = scores[:, own].max(axis=1), scores[:, ~own].max(axis=1)
        inside[category] = best >= rest
        tied |= best == rest
    return inside, tied


def _shares(inside: Mapping[str, np.ndarray], of_group: np.ndarray, confidence: float) -> dict[str, Any]:
    count = int(of_group.sum())
    return {category: share(int(np.sum(found & of_group)), count, confidence) for category, found in inside.items()}


def _by_number(group: str) -> tuple[float, str]:
    """Ages sort by their first year, names behind them."""
    number = re.match(r"\d+", group)
    return (float(number.group()) if number else math.inf, group)


def _check(images: np.ndarray, groups: Mapping[str, Sequence[str]]) -> None:
    if images.ndim != 2 or not len(images):
        raise ValueError(f"image embeddings must be [N, E] with at least one image, got {list(images.shape)}")
    if not groups:
        raise ValueError("no groups to compare: give at least one column of group names")
    for column, values in groups.items():
        if len(values) != len(images):
            raise ValueError(f"column {column!r} has {len(values)} groups for {len(images)} images")
    if (broken := np.flatnonzero(~np.isfinite(images).all(axis=1))).size:
        raise ValueError(
            f"the embedding of image {broken[0]} is not finite: it can be in no class; leave such images out and say so"
        )
