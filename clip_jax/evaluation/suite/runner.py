"""Runs a suite: opens its data sets, measures each, goes on where it was stopped, and writes the report."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import jax

from clip_jax.config.record import environment, write_json
from clip_jax.distributed.sharding import ShardingConfig, make_mesh
from clip_jax.evaluation.datasets import dataset_names, load_card
from clip_jax.evaluation.report.page import write_report
from clip_jax.evaluation.retrieval import as_table as retrieval_table
from clip_jax.evaluation.suite.array_files import content_hash
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
from clip_jax.evaluation.suite.feature_store import FeatureStore
from clip_jax.evaluation.suite.labelled_sets import AbsentError, LabelledSet, open_labelled_set
from clip_jax.evaluation.suite.measures import Bench, zero_shot
from clip_jax.evaluation.suite.probes import adapted, few_shot_curve, probe
from clip_jax.evaluation.suite.result_store import Results, ResultStore
from clip_jax.evaluation.suite.sources import RUN, open_run_sources, open_source
from clip_jax.inference.api import load
from clip_jax.tables import format_table
from input_pipeline.sources import Source


def run_suite(
    config: SuiteConfig,
    model_name: str | os.PathLike[str],
    output: Path,
    *,
    is_run: bool = False,
    data_path: str | None = None,
    activation: str | None = None,
    say: Callable[[str], None] = print,
) -> Results:
    """Measures a model on a suite; writes report.json, report.html, pictures, results and features into `output`.

    Args:
      config: see `clip_jax.evaluation.suite.config`.
      model_name: workdir, exported folder or name, as `clip_jax.load` takes it.
      output: folder; made when missing. Finished results and features that lie there are used again where weights,
        data and settings are the same.
      is_run: model_name is a run's workdir, whose data retrieval and overlap may use.
      data_path: where the run's data lies now, if it has moved.
      activation: as for `clip_jax.load`.
      say: takes lines for the user.

    Returns:
      What report.json holds: model, environment, settings, sets (a row each, with state "done", "absent" or "failed",
      and `reason`), and of other measures their results.

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
    sources = _open_others(config, Path(model_name) if is_run else None, model.image_size, data_path)
    output.mkdir(parents=True, exist_ok=True)
    bench = Bench(
        config=config,
        model=model,
        features=FeatureStore(output / "features", model, preprocess, tokenizer, say),
        results=ResultStore(output, say),
    )
    rows = [_measure_set(bench, name, found, sources, say) for name, found in opened.items()]
    report = {
        "title": settings.name,
        "model": _describe_model(model_name, bench),
        "environment": environment(),
        "settings": _settings(config),
        "sets": rows,
        **_measure_others(bench, rows, opened, sources, say),
    }
    write_json(output / "report.json", report)
    write_report(report, output)
    if bench.results.reused:
        say(f"{bench.results.reused} results were there already, of the same weights, data and settings")
    return report


def problems(report: Results) -> dict[str, list[str]]:
    """Names of what is absent and of what failed."""
    others = [
        {"name": measure, **report[measure]} for measure in ("retrieval", "robustness", "bias") if measure in report
    ]
    states = [(row["name"], row.get("state", "done")) for row in [*report["sets"], *others]]
    return {state: [name for name, found in states if found == state] for state in ("absent", "failed")}


def as_table(report: Results) -> str:
    """The sets as a person reads them in a terminal, the absent ones with what to do."""
    header = ["data set", "metric", "zero-shot", "interval", "chance", "probe", "images", "skipped"]
    cells, notes = [], []
    for row in report["sets"]:
        if row["state"] != "done":
            notes.append(f"{row['state'].upper()}: {row['title']}: {row['reason']}")
        if "zero_shot" not in row and "linear_probe" not in row:
            cells.append([row["title"], row["state"], *[""] * 6])
            continue
        found, probed = row.get("zero_shot", {}), row.get("linear_probe", {})
        interval = f"{found['low']:.3f} to {found['high']:.3f}" if found else ""
        cells.append(
            [
                row["title"],
                row["metric"],
                found.get("value", ""),
                interval,
                found.get("chance", ""),
                probed.get("score", ""),
                found.get("count", probed.get("count", "")),
                found.get("num_skipped", probed.get("num_skipped", {}).get("test", "")),
            ]
        )
    for measure in ("retrieval", "robustness", "bias"):
        if (found := report.get(measure, {})).get("state"):
            notes.append(f"{found['state'].upper()}: {measure}: {found['reason']}")
    tables = [format_table(header, cells)] if cells else []
    if "images" in (found := report.get("retrieval", {})):
        tables.append(retrieval_table(found))
    return "\n\n".join([*tables, *notes])


def _open(config: SuiteConfig, name: str, image_size: int) -> LabelledSet | AbsentError:
    try:
        return open_labelled_set(name, Path(config.suite.data_dir), image_size, config.suite.num_examples)
    except AbsentError as error:
        return error


def _open_others(
    config: SuiteConfig, workdir: Path | None, image_size: int, data_path: str | None
) -> dict[str, Source | AbsentError]:
    """The sources of the measures that need one, opened before long work starts, and other files read once."""
    every = {
        "retrieval": ("retrieval.source", config.retrieval.source, "validation"),
        "overlap": ("overlap.training", config.overlap.training, "train"),
    }
    wanted = {measure: value for measure, value in every.items() if measure in config.suite.measures}
    # A run is measured on other data also where its own is not.
    of_run = any(value == RUN for _, value, _ in wanted.values())
    run = open_run_sources(workdir, image_size, data_path) if workdir and of_run else None
    found: dict[str, Source | AbsentError] = {}
    for measure, (key, value, part) in wanted.items():
        try:
            found[measure] = open_source(key, value, run, part)
        except AbsentError as error:
            found[measure] = error
    if "robustness" in config.suite.measures:
        read_reference_models(config.robustness)
    if "bias" in config.suite.measures:
        listed_people(config.bias)
    return found


def _measure_set(
    bench: Bench,
    name: str,
    labelled: LabelledSet | AbsentError,
    sources: Mapping[str, Source | AbsentError],
    say: Callable[[str], None],
) -> Results:
    """A row of the report: all measures of one set, or why there are none."""
    if isinstance(labelled, AbsentError):
        title = load_card(name).title if name in dataset_names() else name
        say(f"ABSENT: {title}: {labelled}")
        return {"name": name, "title": title, "state": "absent", "reason": str(labelled)}
    row: Results = {"name": name, "title": labelled.title, "state": "done", "metric": labelled.metric}
    row |= {"note": labelled.note, "classes": len(labelled.class_names)}
    row["hashes"] = {split: content_hash(bench.features.source_id(source)) for split, source in labelled.splits.items()}
    row["hashes"]["names and prompts"] = content_hash([labelled.class_names, bench.prompts(labelled)])
    makers: dict[str, Callable[[], Results]] = {
        "zero_shot": lambda: zero_shot(bench, labelled),
        "linear_probe": lambda: probe(bench, labelled),
        "few_shot": lambda: few_shot_curve(bench, labelled, row["zero_shot"], row.get("linear_probe")),
        "overlap": lambda: _overlap(bench, labelled, sources["overlap"]),
    }
    for measure, make in makers.items():
        if measure in bench.config.suite.measures:
            try:
                row[measure] = make()
            except ValueError as error:
                reason = f"{measure}: {error}"
                say(f"FAILED: {labelled.title}: {reason}")
                row |= {"state": "failed", "reason": "; ".join(filter(None, [row.get("reason"), reason]))}
                if measure == "zero_shot":  # the pictures or the names, which the others need, too
                    break
    return row


def _overlap(bench: Bench, labelled: LabelledSet, training: Source | AbsentError) -> Results:
    if isinstance(training, AbsentError):
        return {"absent": str(training)}
    if labelled.multi_label:
        return {"absent": "images with several labels are neither right nor wrong"}
    return overlap(bench, labelled, training)


def _measure_others(
    bench: Bench,
    rows: list[Results],
    opened: Mapping[str, LabelledSet | AbsentError],
    sources: Mapping[str, Source | AbsentError],
    say: Callable[[str], None],
) -> Results:
    """Results of the measures that are not of one set, by their names."""
    measures = bench.config.suite.measures
    done = {row["name"]: row["zero_shot"] for row in rows if "zero_shot" in row}
    makers: dict[str, Callable[[], Results]] = {}
    if isinstance(pairs := sources.get("retrieval"), AbsentError):
        makers["retrieval"] = _raise(pairs)
    elif pairs is not None:
        makers["retrieval"] = lambda: retrieval(bench, pairs)
    if "robustness" in measures:
        settings = bench.config.robustness
        missing = [name for name in (settings.reference, *settings.shifts) if "top1" not in done.get(name, {})]
        missed = AbsentError(f"it needs zero-shot accuracies of {', '.join(missing)}")
        makers["robustness"] = _raise(missed) if missing else lambda: _robustness(bench, done, opened)
    overlaps = {row["title"]: row["overlap"] for row in rows if "all" in row.get("overlap", {})}
    if overlaps:
        makers["overlap"] = lambda: overlap_picture(bench, overlaps)
    if "bias" in measures:
        makers["bias"] = lambda: bias(bench)
    results: Results = {}
    for measure, make in makers.items():
        try:
            results[measure] = make()
        except ValueError as error:
            state = "absent" if isinstance(error, AbsentError) else "failed"
            say(f"{state.upper()}: {measure}: {error}")
            results[measure] = {"state": state, "reason": str(error)}
    return results


def _robustness(bench: Bench, done: Mapping[str, Results], opened: Mapping[str, LabelledSet | AbsentError]) -> Results:
    there = {name: labelled for name, labelled in opened.items() if isinstance(labelled, LabelledSet)}
    probed = {"adapted": adapted(bench, there)} if bench.config.robustness.adapt else {}
    return {**robustness(bench, done), **probed}


def _raise(error: AbsentError) -> Callable[[], Results]:
    def fail() -> Results:
        raise error

    return fail


def _describe_model(name: str | os.PathLike[str], bench: Bench) -> Results:
    model = bench.model
    return {
        "name": str(name),
        **bench.features.model_id,
        "embed_dim": model.embed_dim,
        "logit_scale": model.logit_scale,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.variables)),
        "tokenizer": bench.features.tokenizer_id,
    }


def _settings(config: SuiteConfig) -> Results:
    """Of the suite and of the measures that were taken."""
    sections = dataclasses.asdict(config)
    return {name: values for name, values in sections.items() if name == "suite" or name in config.suite.measures}
