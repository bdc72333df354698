"""Runs a suite: opens its data sets, measures each, continues where it was stopped, and writes the report."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from clip_jax.config.record import environment
from clip_jax.distributed.sharding import ShardingConfig, make_mesh
from clip_jax.evaluation.datasets import dataset_names, load_card
from clip_jax.evaluation.report.page import write_report
from clip_jax.evaluation.retrieval import as_table as retrieval_table
from clip_jax.evaluation.suite.comparisons import (
    bias,
    listed_people,
    overlap,
    overlap_picture,
    read_reference_models,
    retrieval,
    robustness,
)
from clip_jax.evaluation.suite.config import SuiteConfig
from clip_jax.evaluation.suite.context import SuiteContext
from clip_jax.evaluation.suite.feature_store import FeatureStore
from clip_jax.evaluation.suite.labelled_sets import AbsentError, LabelledSet, open_labelled_set
from clip_jax.evaluation.suite.measures import zero_shot
from clip_jax.evaluation.suite.probes import adapted, drawn_splits, few_shot_curve, probe
from clip_jax.evaluation.suite.result_store import ResultStore
from clip_jax.evaluation.suite.results import (
    Absent,
    LinearProbe,
    Measured,
    Report,
    Robustness,
    SetResults,
    Unmeasured,
    to_json,
)
from clip_jax.evaluation.suite.sources import RUN, open_run_sources, open_source
from clip_jax.inference.api import load
from clip_jax.tables import format_table
from input_pipeline.sources import Source
from input_pipeline.storage import digest_json, write_json

OVER_SETS = ("retrieval", "robustness", "bias")  # measures that are not of one set

Opened = LabelledSet | AbsentError
OpenedSource = Source | AbsentError


def run_suite(
    config: SuiteConfig,
    model_name: str | os.PathLike[str],
    output: Path,
    *,
    is_run: bool = False,
    data_path: str | None = None,
    activation: str | None = None,
    say: Callable[[str], None] = print,
) -> Report:
    """Measures a model on a suite; writes report.json, report.html, pictures, results and features into `output`.

    Args:
      config: see `clip_jax.evaluation.suite.config`.
      model_name: workdir, exported folder or name, as `clip_jax.load` takes it.
      output: folder; made when missing. Its finished results and features are used again where weights, data and
        settings are the same.
      is_run: model_name is a run's workdir, whose data retrieval and overlap may use.
      data_path: of a run, where its data lies now; or other data, of which retrieval then measures all.
      activation: as for `clip_jax.load`.
      say: takes lines for the user.

    Raises:
      ValueError: no such model, an unknown data set, data of another form; several processes.
    """
    if jax.process_count() > 1:
        raise ValueError(
            f"a suite is run by one process with all of its devices, not by {jax.process_count()}: leave out "
            "--coordinator and --cluster, or evaluate without --config"
        )
    mesh = make_mesh(ShardingConfig(), jax.devices())
    settings = config.suite
    model, preprocess, tokenizer = load(
        model_name,
        activation=activation,
        compute_dtype=settings.compute_dtype,
        batch_size=settings.batch_size,
        mesh=mesh,
    )
    if {"zero_shot", "retrieval", "bias"} & set(settings.measures):
        tokenizer(["a"])  # where there is none, it says so now
    opened = {name: _open(config, name, model.image_size) for name in settings.datasets}
    for name, found in opened.items():
        for remark in () if isinstance(found, AbsentError) else (*found.remarks, drawn_splits(config, found)):
            if remark:
                say(f"{name}: {remark}")
    sources = _open_others(config, Path(model_name) if is_run else None, model.image_size, data_path)
    output.mkdir(parents=True, exist_ok=True)
    context = SuiteContext(
        config=config,
        model=model,
        features=FeatureStore(output / "features", model, preprocess, tokenizer, say),
        results=ResultStore(output, say),
        say=say,
    )
    sets = [_measure_set(context, name, found, sources) for name, found in opened.items()]
    report = Report(
        title=settings.name,
        model=_describe_model(model_name, context),
        environment=environment(),
        settings=_settings(config),
        sets=sets,
        **_measure_over_sets(context, sets, opened, sources),
    )
    write_json(output / "report.json", to_json(report))
    write_report(to_json(report), output)
    if count := context.results.reused:
        say(
            f"{count} result{'s' if count > 1 else ''} of the same weights, data and settings found, not computed again"
        )
    return report


def problems(report: Report) -> dict[str, list[str]]:
    """Names of what is absent and of what failed."""
    over_sets: dict[str, Any] = {name: getattr(report, name) for name in OVER_SETS}
    states: list[tuple[str, str]] = [(found.name, found.state) for found in report.sets]
    states += [(name, found.state) for name, found in over_sets.items() if isinstance(found, Unmeasured)]
    return {state: [name for name, found in states if found == state] for state in ("absent", "failed")}


def as_table(report: Report) -> str:
    """The sets for a terminal, the absent ones with what to do."""
    header = ["data set", "metric", "zero-shot", "interval", "chance", "probe", "images", "skipped"]
    cells: list[list[Any]] = []
    notes = []
    for row in report.sets:
        if row.state != "done":
            notes.append(f"{row.state.upper()}: {row.title}: {row.reason}")
        if row.zero_shot is row.linear_probe is None:
            cells.append([row.title, row.state, *[""] * 6])
            continue
        probed = row.linear_probe if isinstance(row.linear_probe, LinearProbe) else None
        score = probed.score if probed else ""
        numbers: list[Any] = ["", "", "", score, *((probed.count, probed.num_skipped["test"]) if probed else ("", ""))]
        if found := row.zero_shot:
            interval = f"{found.low:.3f} to {found.high:.3f}"
            numbers = [found.value, interval, found.chance, score, found.count, found.num_skipped]
        cells.append([row.title, row.metric, *numbers])
    for name in OVER_SETS:
        if isinstance(unmeasured := getattr(report, name), Unmeasured):
            notes.append(f"{unmeasured.state.upper()}: {name}: {unmeasured.reason}")
    tables = [format_table(header, cells)] if cells else []
    if isinstance(report.retrieval, Measured):
        tables.append(retrieval_table(report.retrieval.metrics))
    return "\n\n".join([*tables, *notes])


def _open(config: SuiteConfig, name: str, image_size: int) -> Opened:
    try:
        return open_labelled_set(
            name, Path(config.suite.data_dir), image_size, config.suite.num_examples, config.suite.link_root
        )
    except AbsentError as error:
        return error


def _open_others(
    config: SuiteConfig, workdir: Path | None, image_size: int, data_path: str | None
) -> dict[str, OpenedSource]:
    """The sources of the measures that need one, opened before long work starts, and other files read once."""
    every = {
        "retrieval": ("retrieval.source", config.retrieval.source, "validation"),
        "overlap": ("overlap.training", config.overlap.training, "train"),
    }
    wanted = {measure: value for measure, value in every.items() if measure in config.suite.measures}
    # A run is measured on other data also where its own is not.
    of_run = any(value == RUN for _, value, _ in wanted.values())
    if data_path is not None and not (workdir and of_run):
        raise ValueError(
            f"--data_path={data_path} would not be read: it is of a run's --workdir and the measures retrieval and "
            f"overlap of 'run'; to classify its pictures, use --config.suite.datasets=\"('folder:{data_path}',)\""
        )
    run = open_run_sources(workdir, image_size, data_path) if workdir and of_run else None
    found: dict[str, OpenedSource] = {}
    for measure, (key, value, part) in wanted.items():
        try:
            found[measure] = open_source(key, value, run, part, config.suite.link_root)
        except AbsentError as error:
            found[measure] = error
    if "robustness" in config.suite.measures:
        read_reference_models(config.robustness)
    if "bias" in config.suite.measures:
        listed_people(config.bias)
    return found


def _measure_set(context: SuiteContext, name: str, labelled: Opened, sources: Mapping[str, OpenedSource]) -> SetResults:
    """All measures of one set, or why there are none."""
    if isinstance(labelled, AbsentError):
        title = load_card(name).title if name in dataset_names() else name
        context.say(f"ABSENT: {title}: {labelled}")
        return SetResults(name=name, title=title, state="absent", reason=str(labelled))
    hashes = {split: digest_json(context.features.source_id(source)) for split, source in labelled.splits.items()}
    hashes["names and prompts"] = digest_json([labelled.class_names, context.prompts(labelled)])
    found: dict[str, Any] = {}
    makers: dict[str, Callable[[], Any]] = {
        "zero_shot": lambda: zero_shot(context, labelled),
        "linear_probe": lambda: probe(context, labelled),
        "few_shot": lambda: few_shot_curve(context, labelled, found["zero_shot"], found.get("linear_probe")),
        "overlap": lambda: (
            Absent(absent=str(training))
            if isinstance(training := sources["overlap"], AbsentError)
            else overlap(context, labelled, training)
        ),
    }
    reasons = []
    for measure, make in makers.items():
        if measure in context.config.suite.measures:
            try:
                found[measure] = make()
            except ValueError as error:
                reasons.append(f"{measure}: {error}")
                context.say(f"FAILED: {labelled.title}: {reasons[-1]}")
                if measure == "zero_shot":  # the pictures or the names, which the others need, too
                    break
    return SetResults(
        name=name,
        title=labelled.title,
        state="failed" if reasons else "done",
        reason="; ".join(reasons) or None,
        metric=labelled.metric,
        note="; ".join(filter(None, [labelled.note, drawn_splits(context.config, labelled)])),
        classes=len(labelled.class_names),
        hashes=hashes,
        **found,
    )


def _measure_over_sets(
    context: SuiteContext,
    sets: list[SetResults],
    opened: Mapping[str, Opened],
    sources: Mapping[str, OpenedSource],
) -> dict[str, Any]:
    """Results of the measures that are not of one set, by their names."""

    def measure_retrieval() -> Any:
        if isinstance(pairs := sources["retrieval"], AbsentError):
            raise pairs
        return retrieval(context, pairs)

    def measure_robustness() -> Robustness:
        settings = context.config.robustness
        done = {row.name: row.zero_shot for row in sets if row.zero_shot and row.zero_shot.top1}
        if missing := [name for name in (settings.reference, *settings.shifts) if name not in done]:
            raise AbsentError(f"it needs zero-shot accuracies of {', '.join(missing)}")
        found = robustness(context, done)
        if not settings.adapt:
            return found
        there = {name: labelled for name, labelled in opened.items() if isinstance(labelled, LabelledSet)}
        return dataclasses.replace(found, adapted=adapted(context, there))

    overlaps = {row.title: row.overlap for row in sets if isinstance(row.overlap, Measured)}
    every: dict[str, Callable[[], Any]] = {
        "retrieval": measure_retrieval,
        "robustness": measure_robustness,
        "overlap": lambda: overlap_picture(context, overlaps),
        "bias": lambda: bias(context),
    }
    results: dict[str, Any] = {}
    for measure, make in every.items():
        if measure not in context.config.suite.measures or (measure == "overlap" and not overlaps):
            continue
        try:
            results[measure] = make()
        except ValueError as error:
            unmeasured = Unmeasured(state="absent" if isinstance(error, AbsentError) else "failed", reason=str(error))
            context.say(f"{unmeasured.state.upper()}: {measure}: {error}")
            results[measure] = unmeasured
    return results


def _describe_model(name: str | os.PathLike[str], context: SuiteContext) -> dict[str, Any]:
    model = context.model
    return {
        "name": str(name),
        **context.features.model_id,
        "embed_dim": model.embed_dim,
        "logit_scale": model.logit_scale,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.variables)),
        "tokenizer": context.features.tokenizer_id,
    }


def _settings(config: SuiteConfig) -> dict[str, Any]:
    """Of the suite and of the measures that were taken."""
    sections = dataclasses.asdict(config)
    return {name: values for name, values in sections.items() if name == "suite" or name in config.suite.measures}
