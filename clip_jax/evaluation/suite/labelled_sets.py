"""Labelled data sets by name: class names, prompts, splits, and how to prepare what is absent."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clip_jax.evaluation.datasets import ClassName, DatasetCard, MetricName, dataset_names, load_card
from clip_jax.evaluation.suite.splits import (
    SPLITS,
    AbsentError,
    OwnSplits,
    find_splits,
    open_splits,
    own_splits,
    parse_place,
)
from input_pipeline.scenes import LabelledScenes
from input_pipeline.sources import (
    DigitsSource,
    NotPreparedError,
    Source,
    SubsetSource,
    TfdsSource,
)

NUM_SCENES = 1024  # of a drawn set, which has no end of its own
# Shares of a set without splits of its own, in its order: train, validation, test.
SHARES = (0.6, 0.2, 0.2)
KINDS = (
    "a name of the paper's sets, 'scenes/NAME', 'sklearn/digits', 'tfds/NAME/TEST', 'tfds/NAME/TEST/TRAIN', or data of "
    "your own as 'folder:DIR', 'table:FILE', 'webdataset:TARS' or 'tfds:DIR/NAME:SPLIT'"
)


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """A set to classify.

    Attributes:
      name: as the suite says it.
      title: for tables.
      metric: of its headline number.
      class_names: C names; a class of several names is a tuple.
      templates: its own prompts, empty where it has none.
      splits: {"test": source} and, where there are any, "train" and "validation".
      class_of: {split: int array}, the class of each of the source's own labels.
      multi_label: images have any number of labels.
      undivided: its owner made no splits: probes draw theirs from "test", see `splits.draw_splits`.
      note: what differs from the paper, and what the data was taken for.
      remarks: what was decided about the data, and what of it is not read, in lines for people.
    """

    name: str
    title: str
    metric: MetricName
    class_names: tuple[ClassName, ...]
    templates: tuple[str, ...]
    splits: dict[str, Source]
    class_of: dict[str, np.ndarray]
    multi_label: bool = False
    undivided: bool = False
    note: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def shown_names(self) -> tuple[str, ...]:
        """A string a class."""
        return tuple(map(shown_name, self.class_names))

    def classes_of(self, split: str, labels: np.ndarray | None, index: np.ndarray) -> np.ndarray:
        """The classes, int64 [N] or bool [N, C], of the source's own labels, whose order may be another.

        index: int [N], the records' positions in the split. Raises ValueError where labels are missing, or outside
        the names.
        """
        if labels is None:
            raise ValueError(f"{self.name} has pictures without labels in its {split} split")
        class_of = self.class_of[split]
        if labels.ndim == 2:
            ordered = np.zeros((len(labels), len(self.class_names)), bool)
            ordered[:, class_of] = labels
            return ordered
        if (outside := np.flatnonzero((labels < 0) | (labels >= len(class_of)))).size:
            i = outside[0]
            raise ValueError(
                f"label {labels[i]} of record {index[i]} of {self.name} is outside 0..{len(class_of) - 1}, the range "
                f"of its {len(class_of)} labels"
            )
        return class_of[labels]


def shown_name(name: ClassName) -> str:
    """A class's name for tables: several are joined by a slash."""
    return name if isinstance(name, str) else " / ".join(name)


def open_labelled_set(
    name: str, data_dir: Path, image_size: int, num_examples: int = 0, link_root: str = ""
) -> LabelledSet:
    """Opens a set and checks that its labels fit its names; reads no image.

    Args:
      name: the paper's sets by their card's name, from DATA_DIR, prepared by tensorflow-datasets, or else as
        DATA_DIR/NAME/SPLIT/CLASS/*.jpg with CLASS a name or its number; scenes/NAME, drawn; sklearn/digits;
        tfds/NAME/TEST, and with /TRAIN the split to train probes on, of which a fifth is for validation; folder:DIR, a
        folder a class in DIR, or, where DIR holds splits alone, in each of those (`splits.SPLIT_NAMES`); without a test
        split the validation split is measured; table:FILE, a CSV or Parquet with labels, or a folder with a table of
        each split; other KIND:PATH and tfds:DIR/NAME:SPLIT, whose records have labels with names.
      data_dir: folder of prepared sets.
      image_size: pixels at which scenes are drawn.
      num_examples: of a drawn set, 0 for 1,024.
      link_root: folder below which links in folders and paths in tables may lead; empty for their own folders alone.

    Raises:
      AbsentError: there is no such data; says how to prepare it.
      ValueError: an unknown name, or data of another form than it should have.
    """
    kind, _, rest = name.partition("/")
    if kind == "scenes" and rest:
        count = num_examples or NUM_SCENES
        seeds = {"test": 0, "train": 1, "validation": 2}  # disjoint streams
        scenes = {split: LabelledScenes(rest, count, image_size, seed) for split, seed in seeds.items()}
        return _without_card(name, dict(scenes), scenes["test"].templates)
    if name == "sklearn/digits":
        try:
            digits = DigitsSource()
        except ValueError as error:
            raise AbsentError(str(error)) from None
        return _without_card(name, _cut(digits), load_card("mnist").templates)
    if kind == "tfds" and rest:
        return _without_card(name, _tfds_splits(rest, name, data_dir), ())
    if place := parse_place(name):
        return _without_card(name, own_splits(place, link_root), ())
    if name in dataset_names():
        return _with_card(load_card(name), data_dir, link_root)
    raise ValueError(f"data set {name!r} is unknown: use {KINDS}; the paper's sets are {', '.join(dataset_names())}")


def _with_card(card: DatasetCard, data_dir: Path, link_root: str) -> LabelledSet:
    names = {"train": card.train, "validation": card.validation, "test": card.test}
    folder = data_dir / card.name
    splits: dict[str, Source] = {}
    remarks: tuple[str, ...] = ()
    found = find_splits(folder, link_root) if folder.is_dir() else {}
    if {"test", "validation"} & set(found):
        splits, remarks, _ = open_splits(found, link_root)
        class_of = {split: _classes_of_folders(card, split, source) for split, source in splits.items()}
    elif card.tfds is None:
        raise AbsentError(
            f"tensorflow-datasets has no such classification set: put its pictures into {folder}/test/CLASS/ and, for "
            f"probes, {folder}/train/CLASS/, CLASS being a class's name or its number from 0 in "
            f"clip_jax/evaluation/datasets/{card.name}.json; home: {card.home}"
        )
    else:
        for split, part in names.items():
            splits[split] = _open_tfds(card.tfds, part, data_dir)
        class_of = {split: _classes_of_labels(card, source) for split, source in splits.items()}
    return LabelledSet(
        name=card.name,
        title=card.title,
        metric=card.metric,
        class_names=card.class_names,
        templates=card.templates,
        splits=splits,
        class_of=class_of,
        multi_label=getattr(splits["test"], "multi_label", False),
        note="; ".join(filter(None, [card.note, *remarks])),
        remarks=remarks,
    )


def _classes_of_labels(card: DatasetCard, source: Source) -> np.ndarray:
    """The index in the card of each of the prepared set's labels, whose order is often another."""
    found, C = source.class_names or (), len(card.class_names)
    numbered = tuple(map(str, range(C)))
    if card.labels is None or found == numbered:
        if len(found) != C:
            raise ValueError(f"{card.name} has {len(found)} labels where {C} were expected: {list(found)[:5]}...")
        return np.arange(C)
    if set(found) != set(card.labels):
        odd = sorted(set(found) ^ set(card.labels))
        raise ValueError(
            f"the labels of {card.name} are not those of its card: {', '.join(odd[:5])} are in one of them only; "
            "prepare it with the tensorflow-datasets version that this was written for, 4.9"
        )
    return np.array([card.labels.index(label) for label in found])


def _classes_of_folders(card: DatasetCard, split: str, source: Source) -> np.ndarray:
    names: dict[str, int] = {}
    for c, name in enumerate(map(shown_name, card.class_names)):
        names |= {name: c, name.replace("/", "_"): c}  # "/" is not allowed in the name of a folder
    C = len(card.class_names)
    classes = []
    for folder in source.class_names or ():
        number = int(folder) if folder.isdecimal() and folder not in names else names.get(folder, -1)
        if not 0 <= number < C:
            raise ValueError(
                f"the folder {folder!r} of {card.name}/{split} is neither one of its {C} class names nor the number of "
                f"one, 0 to {C - 1}"
            )
        classes.append(number)
    if len(set(classes)) < len(classes):
        raise ValueError(f"two folders of {card.name}/{split} are one class: {', '.join(source.class_names or ())}")
    return np.array(classes)


def _without_card(
    name: str,
    opened: dict[str, Source] | OwnSplits,
    templates: tuple[str, ...],
) -> LabelledSet:
    """A set whose class names are its labels; splits may lack some classes."""
    splits, remarks, undivided = opened if isinstance(opened, OwnSplits) else OwnSplits(opened)
    labels = sorted({label for source in splits.values() for label in source.class_names or ()})
    test_names = splits["test"].class_names
    if test_names and set(test_names) == set(labels):
        labels = list(test_names)  # in the set's own order
    if not labels:
        raise ValueError(f"{name} has no class names: a set to classify needs labels that are names")
    if len(labels) < 2:
        raise ValueError(f"{name} has one class only, {labels[0]!r}: a classifier needs two")
    return LabelledSet(
        name=name,
        title=name,
        metric="accuracy",
        class_names=tuple(label.replace("_", " ") for label in labels),
        templates=templates,
        splits=splits,
        class_of={
            split: np.array([labels.index(label) for label in source.class_names or ()])
            for split, source in splits.items()
        },
        undivided=undivided,
        note="; ".join(remarks),
        remarks=remarks,
    )


def _open_tfds(name: str, split: str, data_dir: Path) -> TfdsSource:
    try:
        return TfdsSource(name, split, str(data_dir))
    except NotPreparedError as error:
        raise AbsentError(str(error)) from None


def _tfds_splits(rest: str, name: str, data_dir: Path) -> dict[str, Source]:
    parts = rest.split("/")
    if len(parts) not in (2, 3) or not all(re.fullmatch(r"\w+", part) for part in parts[2:]):
        raise ValueError(
            f"data set {name!r}: use 'tfds/NAME/TEST' or 'tfds/NAME/TEST/TRAIN' where TRAIN is the name of a split"
        )
    dataset, test, *train = parts
    if set(train) & set(re.findall(r"[A-Za-z_]\w*", test)):
        raise ValueError(
            f"data set {name!r} trains probes on what they are tested on: name another split than {train[0]!r}"
        )
    splits: dict[str, Source] = {"test": _open_tfds(dataset, test, data_dir)}
    for part in train:
        splits["train"] = _open_tfds(dataset, f"{part}[:80%]", data_dir)
        splits["validation"] = _open_tfds(dataset, f"{part}[80%:]", data_dir)
    if splits["test"].class_names is None:
        raise ValueError(f"data set {name!r} has no labels: it cannot be classified")
    return splits


def _cut(source: Source) -> dict[str, Source]:
    bounds = np.floor(np.cumsum((0, *SHARES)) * len(source) + 0.5).astype(int)
    return {split: SubsetSource(source, *map(int, bounds[i : i + 2])) for i, split in enumerate(SPLITS)}
