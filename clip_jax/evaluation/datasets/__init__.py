"""The paper's 27 labelled data sets as data: one JSON file a set, with names, prompts, splits, metric and source."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

MetricName = Literal["accuracy", "mean_per_class", "eleven_point_map", "roc_auc", "mean_top1_top5"]
ClassName = str | tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DatasetCard:
    """A data set, known before its pictures are read.

    Attributes:
      name: of the file, as configs say it.
      title: the paper's name.
      home: home page.
      tfds: its name in tensorflow-datasets, None where that has no such classification set.
      train, validation, test: splits of the tfds set, or folders below DATA_DIR/NAME.
      metric: the paper's.
      table9: number of classes and of train and test images in the paper; both differ from what is published for some
        sets, as `note` says.
      note: what differs from the paper, or is easily mistaken.
      class_names: C names in the order of the released list; a class of several names is a tuple, whose prompts are
        averaged.
      labels: the prepared set's own C names in that order, which is often not its own; None where it has numbers only.
      templates: the paper's prompts.
      source, licence, sha256: of names and prompts; the hash is of the text they were read from.
      renamed: {name here: name in the source}, where the source has one name for two classes, which no model could
        distinguish.

    Reference: Radford et al. 2021, table 9 and https://github.com/openai/CLIP/blob/main/data/prompts.md.
    """

    name: str
    title: str
    home: str
    tfds: str | None
    train: str
    validation: str
    test: str
    metric: MetricName
    table9: dict[str, int]
    note: str
    class_names: tuple[ClassName, ...]
    labels: tuple[str, ...] | None
    templates: tuple[str, ...]
    source: str
    licence: str
    sha256: str
    renamed: dict[str, str]


@cache
def dataset_names() -> tuple[str, ...]:
    """Names of the sets in the package, sorted."""
    names = (file.name for file in files(__name__).iterdir() if file.name.endswith(".json"))
    return tuple(sorted(name.removesuffix(".json") for name in names))


@cache
def load_card(name: str) -> DatasetCard:
    """The card of a set. Raises ValueError that lists the sets for another name."""
    if name not in (known := dataset_names()):
        raise ValueError(f"no data set named {name!r}: choose one of {', '.join(known)}")
    values: dict[str, Any] = json.loads(files(__name__).joinpath(f"{name}.json").read_text(encoding="utf-8"))
    names = tuple(tuple(item) if isinstance(item, list) else item for item in values.pop("class_names"))
    labels = values.pop("labels")
    return DatasetCard(
        name=name,
        class_names=names,
        labels=None if labels is None else tuple(labels),
        templates=tuple(values.pop("templates")),
        renamed=values.pop("renamed", {}),
        **values,
    )
