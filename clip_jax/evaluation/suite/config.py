"""A suite's config file to frozen dataclasses: which data sets, which measures, and how."""

import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from clip_jax.config.experiment import check_sections, make_section
from clip_jax.evaluation.prompts import template_names
from input_pipeline.ranges import BATCH, COUNT, COUNT_OR_0, SEED, Range, check_ranges

Measure = Literal["zero_shot", "linear_probe", "few_shot", "retrieval", "robustness", "overlap", "bias"]
OWN = "own"  # the data set's prompts


@dataclass(frozen=True, kw_only=True)
class SuiteSection:
    """What is measured on what.

    Attributes:
      name: title of the report.
      datasets: see `labelled_sets.open_labelled_set`; may be empty for retrieval or bias alone.
      measures: which of them.
      data_dir: folder of prepared sets.
      link_root: folder below which links in folders and paths in tables may lead; empty for their own folders alone.
      num_examples: of each split, spread evenly over it; 0 takes all.
      batch_size: images or texts encoded at once, over all devices.
      compute_dtype: of the towers.
      seed: of bootstrap draws, few-shot draws and the split that replaces a missing validation split.
    """

    name: str
    datasets: tuple[str, ...]
    measures: tuple[Measure, ...]
    data_dir: str
    num_examples: Annotated[int, COUNT_OR_0]
    batch_size: Annotated[int, BATCH]
    compute_dtype: Literal["float32", "bfloat16"]
    seed: Annotated[int, SEED]
    link_root: str = ""

    def __post_init__(self) -> None:
        if repeated := sorted({name for name in self.datasets if self.datasets.count(name) > 1}):
            raise ValueError(f"suite.datasets names {', '.join(repeated)} twice")
        if not self.measures:
            raise ValueError(f"suite.measures is empty: name some of {', '.join(typing.get_args(Measure))}")
        check_ranges(self, "suite.")


@dataclass(frozen=True, kw_only=True)
class ZeroShotSection:
    """prompts: prompt sets to compare, names of clip_jax/evaluation/prompts or "own"; headline: the one that the tables
    show. templates: "own" for sets that have none. num_resamples, confidence: of the bootstrap. num_mistakes: pictures
    shown of each set."""

    prompts: tuple[str, ...]
    headline: str
    templates: tuple[str, ...]
    num_resamples: Annotated[int, COUNT]
    confidence: Annotated[float, Range(above=0, below=1)]
    num_mistakes: Annotated[int, COUNT_OR_0]

    def __post_init__(self) -> None:
        known = (OWN, *template_names())
        for name in self.prompts:
            if name not in known:
                raise ValueError(f"zero_shot.prompts has {name!r}: choose from {', '.join(known)}")
        if self.headline not in self.prompts:
            raise ValueError(f"zero_shot.headline={self.headline!r} is not one of zero_shot.prompts={self.prompts}")
        for template in self.templates:
            if template.count("{}") != 1:
                raise ValueError(
                    f"zero_shot.templates has {template!r}: each needs exactly one {{}} for the class name"
                )
        check_ranges(self, "zero_shot.")


@dataclass(frozen=True, kw_only=True)
class LinearProbeSection:
    """features: "pooled" before the projection, as the paper's, or "joint" after it, of unit length; a ResNet's are the
    same but for their length. full_sweep: all strengths instead of the search. num_parallel: strengths fitted at
    once."""

    features: Literal["pooled", "joint"]
    full_sweep: bool
    num_parallel: Annotated[int, COUNT]

    def __post_init__(self) -> None:
        check_ranges(self, "linear_probe.")


@dataclass(frozen=True, kw_only=True)
class FewShotSection:
    """shots: labels a class, ascending. num_seeds: draws of each."""

    shots: tuple[Annotated[int, COUNT], ...]
    num_seeds: Annotated[int, Range(2, COUNT.most)]

    def __post_init__(self) -> None:
        check_ranges(self, "few_shot.")
        if not self.shots or list(self.shots) != sorted(set(self.shots)):
            raise ValueError(f"few_shot.shots={self.shots} must be numbers of at least 1, ascending")


@dataclass(frozen=True, kw_only=True)
class RetrievalSection:
    """source: "run" or KIND:PATH, for tfds KIND:PATH:SPLIT. num_examples: pictures, 0 for all. prompt_prefix: goes
    before each caption."""

    source: str
    num_examples: Annotated[int, COUNT_OR_0]
    prompt_prefix: str

    def __post_init__(self) -> None:
        check_ranges(self, "retrieval.")


@dataclass(frozen=True, kw_only=True)
class RobustnessSection:
    """reference: the set without shift, and shifts: those under one; all of suite.datasets. reference_models: path of a
    JSON {model: {set: accuracy}}, or empty. baseline: one of these models, or empty. adapt: also a linear probe that is
    trained on the reference set, under each shift (sec. 3.3, fig. 14)."""

    reference: str
    shifts: tuple[str, ...]
    reference_models: str
    baseline: str
    adapt: bool


@dataclass(frozen=True, kw_only=True)
class OverlapSection:
    """training: "run" or KIND:PATH, as retrieval's. num_training: images of it, 0 for all. embedding: what similarity
    is measured by. threshold: in it, a duplicate's least. num_pairs: drawn around it."""

    training: str
    num_training: Annotated[int, COUNT_OR_0]
    embedding: Literal["perceptual", "model"]
    threshold: Annotated[float, Range(-1, 1)]  # a cosine similarity
    num_pairs: Annotated[int, COUNT]

    def __post_init__(self) -> None:
        check_ranges(self, "overlap.")


@dataclass(frozen=True, kw_only=True)
class BiasSection:
    """people: a CSV of pictures of people, image_column: its column of paths, group_columns: those of their groups."""

    people: str
    image_column: str
    group_columns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """All of an evaluation; each attribute is a section of the config file."""

    suite: SuiteSection
    zero_shot: ZeroShotSection
    linear_probe: LinearProbeSection
    few_shot: FewShotSection
    retrieval: RetrievalSection
    robustness: RobustnessSection
    overlap: OverlapSection
    bias: BiasSection

    def __post_init__(self) -> None:
        measures, datasets = self.suite.measures, self.suite.datasets
        if "robustness" in measures:
            for name in (self.robustness.reference, *self.robustness.shifts):
                if name not in datasets:
                    raise ValueError(f"robustness compares {name!r}, which is not one of suite.datasets={datasets}")
            if not self.robustness.shifts:
                raise ValueError("robustness.shifts is empty: name sets under shift, or leave the measure out")
        for needs in ("robustness", "overlap", "few_shot"):
            if needs in measures and "zero_shot" not in measures:
                raise ValueError(f"suite.measures has {needs!r}, which compares with zero-shot: add 'zero_shot'")
        if "bias" in measures and not self.bias.people:
            raise ValueError("the measure 'bias' needs bias.people, a CSV of pictures of people and their groups")
        for measure in ("zero_shot", "linear_probe"):
            if measure in measures and not datasets:
                raise ValueError(f"suite.datasets is empty, but suite.measures has {measure!r}")


def make_suite_config(sections: Mapping[str, Mapping[str, Any]]) -> SuiteConfig:
    """Checks and freezes the sections of a suite's config file; ValueError that names what is wrong."""
    classes = typing.get_type_hints(SuiteConfig)
    check_sections(sections, classes)
    return SuiteConfig(**{name: make_section(name, cls, sections[name]) for name, cls in classes.items()})
