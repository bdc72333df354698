"""What an ablation asks, of which runs, by which measure: a file of configs/ablations, checked and frozen."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from clip_jax.config.experiment import check_names, make_config, make_section

Sections = dict[str, dict[str, Any]]
Scale = str  # "mini" or "full"
Where = Mapping[str, Any]  # which observations: those with this value, or one of these, of each key
Statistic = Literal[
    "mean", "difference", "difference_to_best", "difference_to_worst", "largest_difference", "share_above",
    "correlation", "median", "log_slope", "log_r2", "ratio_to_reach", "matching_shots",
]  # fmt: skip
FOLDER = Path(__file__).parents[2] / "configs" / "ablations"


@dataclass(frozen=True, kw_only=True)
class About:
    """question; place: figure, table or section of the paper; finding: the paper's, in words; note: what is otherwise
    here."""

    question: str
    place: str
    finding: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Measure:
    """kind: where the numbers of a run come from. "final": its last evaluation; "curve": all of them, over images
    processed; "suite": a suite of `clip-jax evaluate`. sets: the labelled sets that count, () for all."""

    kind: Literal["final", "curve", "suite"]
    sets: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FigureSpec:
    """How the observations are drawn; see `clip_jax.ablations.figures`.

    Attributes:
      kind: "arms", a position an arm; "lines" over a number; "scatter", a point a set; "bars", a row a set.
      x: of lines, the key over which they go: a fact of a run (compute, image_compute, samples_seen), a key of its
        config (train.global_batch_size), or of its observations (shots).
      series: pairs of a label and which observations; of "arms" and "lines" what is drawn, of "scatter" exactly two,
        the axes; of "bars" one bar each. A label that is "{key}" stands for a series for each value of that key.
      minus: of "bars", subtracted from each.
      x_label, y_label, log_x, log_y: of the axes. error: 1 less the value is drawn. unit: how values are written.
      chance: the level of chance, 0 for none.
    """

    kind: Literal["arms", "lines", "scatter", "bars"]
    x: str
    series: tuple
    minus: dict
    x_label: str
    y_label: str
    log_x: bool
    log_y: bool
    error: bool
    unit: Literal["percent", "points", "number"]
    chance: float


@dataclass(frozen=True, kw_only=True)
class Paper:
    """The paper's points in the form of our figure: pairs of a label and ((x, y), ...), with their axes and source."""

    series: tuple
    x_label: str
    y_label: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A statistic of the observations, one number a seed, and the range in which the paper's finding holds.

    It holds where the mean over seeds with two standard errors either way lies within (low, high), does not hold where
    it lies outside, and is undecided where an end of the range lies within.

    Attributes:
      words: what the number is.
      statistic: see `clip_jax.ablations.statistics`.
      a, b: which observations.
      x: the key that a slope or a ratio is over.
      unit: of the number: points (of a share), times, or a plain number.
      low, high: ends of the range; a number without one is reported only and decides nothing.
      nothing: what it means that nothing was measured.
    """

    words: str
    statistic: Statistic
    a: dict
    b: dict
    x: str
    low: float
    high: float
    unit: Literal["points", "percent", "times", "number"]
    nothing: str = ""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """All of it. second: another panel of the figure; arms: {name: the sections of a run's config}, of seed 0; suite:
    the sections of a suite, or {}."""

    name: str
    scale: Scale
    about: About
    measure: Measure
    figure: FigureSpec
    second: FigureSpec | None
    paper: Paper
    findings: tuple[Finding, ...]
    arms: dict[str, Sections] = field(repr=False)
    suite: Sections = field(repr=False)

    @property
    def axes(self) -> set[str]:
        """What figures and findings are over."""
        panels = [self.figure, *([self.second] if self.second else [])]
        return {panel.x for panel in panels} | {finding.x for finding in self.findings}

    @property
    def needed_facts(self) -> set[str]:
        """Config keys among them."""
        return {x for x in self.axes if "." in x}


def ablation_names() -> tuple[str, ...]:
    """All there are, by their files' names."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.py") if file.stem not in ("__init__", "bases")))


def load_ablation(
    name: str, scale: Scale, overrides: Mapping[str, Any] | None = None, data_dir: str | None = None
) -> Ablation:
    """Reads configs/ablations/NAME.py.

    Args:
      overrides: {"section.key": value}, changes to the base of every run, before the arms change it.
      data_dir: where the prepared sets of evaluations and suites lie.

    Raises:
      ValueError: unknown name (the message lists those known) or key; a run's config that does not stand; an override
        that a run would lose; two runs of the same config.
    """
    module = _module(name)
    overrides = {**(overrides or {}), **({"evaluation.data_dir": data_dir} if data_dir else {})}
    spec = _plain(module.get_config(scale))
    check_names("ablation", set(spec), {"about", "measure", "figure", "second", "paper", "findings", "base", "suite"})
    if spec["suite"] and data_dir:
        spec["suite"]["suite"]["data_dir"] = data_dir
    arms = {}
    for arm, change in module.arms(scale).items():
        arms[arm] = sections = _sections(module, scale, change, overrides, f"ablation {name}, run {arm!r}")
        if same := next((other for other in arms if other != arm and arms[other] == sections), None):
            raise ValueError(
                f"ablation {name}: its runs {same!r} and {arm!r} are of the same config, so that nothing is compared: "
                "leave out the --config.SECTION.KEY that makes them so"
            )
    _check_effects(module, scale, overrides, arms, name)
    for arm, sections in arms.items():
        try:
            make_config(sections)
        except ValueError as error:
            raise ValueError(f"ablation {name}, run {arm!r}: {error}") from error
    classes = {"about": About, "measure": Measure, "figure": FigureSpec, "paper": Paper}
    return Ablation(
        name=name,
        scale=scale,
        findings=tuple(make_section("findings", Finding, finding) for finding in spec["findings"]),
        second=make_section("second", FigureSpec, spec["second"]) if spec["second"] else None,
        arms=arms,
        suite=spec["suite"],
        **{section: make_section(section, cls, spec[section]) for section, cls in classes.items()},
    )


def questions() -> dict[str, str]:
    """{ablation: its question}."""
    return {name: str(_module(name).get_config("mini").about.question) for name in ablation_names()}


def _module(name: str) -> ModuleType:
    if name not in ablation_names():
        raise ValueError(f"ablation {name!r} is unknown: choose from {', '.join(ablation_names())}, or all")
    return importlib.import_module(f"configs.ablations.{name}")


def _sections(
    module: ModuleType, scale: Scale, change: Callable[[Any], Any], overrides: Mapping[str, Any], whose: str
) -> Sections:
    base = module.get_config(scale).base
    for key, value in overrides.items():
        section, _, name = key.partition(".")
        base[section][name] = value
    before = dict(base.items())
    changed = change(base)
    for key, value in overrides.items():
        section = key.partition(".")[0]
        if changed[section] is not before[section]:
            raise ValueError(
                f"{whose}: it has a section {section!r} of its own, which would lose --config.{key}={value}: leave "
                "it out"
            )
    return _plain(changed)


def _arms_are(arms: Mapping[str, Sections], module: ModuleType, scale: Scale, overrides: Mapping[str, Any]) -> bool:
    """Whether these overrides, too, give these arms."""
    try:
        changes = module.arms(scale).items()
        return all(_sections(module, scale, change, overrides, "") == arms[arm] for arm, change in changes)
    except ValueError:
        return False  # without what is left out they do not stand


def _check_effects(
    module: ModuleType, scale: Scale, overrides: Mapping[str, Any], arms: Mapping[str, Sections], name: str
) -> None:
    """Raises ValueError where all runs set a key themselves that was to be changed."""
    for key, value in overrides.items():
        section, _, field_name = key.partition(".")
        base = module.get_config(scale).base
        others = {other: overrides[other] for other in overrides if other != key}
        if base[section][field_name] != value and _arms_are(arms, module, scale, others):
            raise ValueError(
                f"ablation {name}: each of its runs sets {key} itself, and --config.{key}={value} would be lost: "
                f"leave it out, or change configs/ablations/{name}.py"
            )


def _plain(value: Any) -> Any:
    """ConfigDicts to dicts, those within tuples, too."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return tuple(_plain(item) for item in value) if isinstance(value, tuple | list) else value
