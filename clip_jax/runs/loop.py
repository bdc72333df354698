"""Trains CLIP from a config to its last step, evaluates and draws; a second call resumes where one was stopped."""

import signal
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from clip_jax.distributed import processes
from clip_jax.distributed.sharding import local_rows, place_batch
from clip_jax.distributed.watchdog import hang_watch
from clip_jax.evaluation.in_training import Results, as_row, as_table
from clip_jax.plots.training import plot_curves
from clip_jax.runs.finished import keep_results, kept_results
from clip_jax.runs.logging import NonFiniteLossError, ProgressLog, read_metrics, summary_table
from clip_jax.runs.setup import TrainingRun, prepare_run
from clip_jax.runs.stopping import EVALUATION_S, Stopped, Stopping, stop_signals
from input_pipeline.examples import STAGES
from input_pipeline.prefetch import Reader
from input_pipeline.storage import write_json

T = TypeVar("T")
BATCHES_AHEAD = 2  # read and placed on the devices before their step asks for them


def train(sections: dict[str, dict[str, Any]], workdir: Path) -> int:
    """Trains to train.total_steps, evaluates and draws; a second call resumes, bit-identically, where one was stopped.

    All processes of a run call it within `processes.joined`; the first one prints and writes.

    Args:
      sections: a config file's ConfigDict as a plain dict.
      workdir: folder of the run; made when missing.

    Returns:
      The exit code: 0, or 128 + the signal's number after SIGINT or SIGTERM, with a checkpoint saved.

    Raises:
      ValueError: the config, the data or the workdir cannot be used, or the loss is no longer finite.
      CheckpointError: a checkpoint could not be saved or read.
    """
    run = prepare_run(sections, workdir)
    with run.owned:
        return _train(run)


def _train(run: TrainingRun) -> int:
    workdir = run.workdir
    first = processes.is_first()
    if first:
        print(run.plan)
    start = time.perf_counter()
    try:
        results = _train_and_evaluate(run)
    except NonFiniteLossError as error:
        raise _explain_non_finite(error, run) from error
    if isinstance(results, signal.Signals):
        if first:
            print(f"stopped by {results.name}, saved at step {run.first_step}: the same command resumes there")
        return 128 + results
    data_state = _data_state(run)  # by all processes
    if first:
        keep_results(workdir, run.config, results)
        if rows := read_metrics(workdir):
            plot_curves(rows, workdir / "curves.png")
        seen, seconds = run.batches.samples_seen(data_state["next_batch"]), time.perf_counter() - start
        summary = summary_table(rows, run.source, data_state, seen, seconds, packed=run.text_packer is not None)
        print(f"\n{summary}\n\n{as_table(results)}")
        print(f"\ncheckpoints, metrics.jsonl, evaluation.json, tensorboard/ and pictures (*.png) are in {workdir}")
    return 0


def _train_and_evaluate(run: TrainingRun) -> Results | signal.Signals:
    """The loop. Leaves run.state at the last step; returns the final evaluation, or the signal that stopped it."""
    settings, several = run.config.train, processes.process_count() > 1
    batch_size, first_step, last_step = settings.global_batch_size, run.first_step, settings.total_steps
    steps = range(first_step + 1, last_step + 1)
    evaluated = processes.from_first(
        "the metrics", lambda: any(r["step"] == first_step and "loss" not in r for r in read_metrics(run.workdir))
    )
    log = ProgressLog(run.workdir, first_step, last_step, batch_size, silent=not processes.is_first())

    def evaluate(step: int, pictures: Path | None = None) -> Results:
        log.show("evaluating")
        stopping.report_progress(EVALUATION_S)
        results = run.evaluator(run.state.variables, pictures)
        stopping.report_progress()
        if step > first_step or not evaluated:
            log.write({"step": step, "samples_seen": step * batch_size, **as_row(results)})
        return results

    with (
        stop_signals() as stopping,
        closing(run.checkpointer),
        closing(run.batches),
        closing(Reader(lambda: _next_batch(run), len(steps), BATCHES_AHEAD)) as batches,
        closing(log),
        hang_watch(settings.hang_timeout_s, stopping.on_hang) as watched,
        jax.set_mesh(run.mesh),
        processes.failure_reported(shared=(NonFiniteLossError,)),
    ):
        received = stopping.received

        def on_batch() -> None:
            watched("an evaluation's batch")
            stopping.report_progress(EVALUATION_S)
            if not several:
                stopping.check()

        run.evaluator.encoder.on_batch = on_batch
        if 0 < first_step < last_step and not evaluated and _is_due(first_step, settings.evaluate_every):
            try:
                evaluate(first_step)  # the run was stopped after the checkpoint and before the evaluation
            except Stopped:
                return received[0]
        used: dict[str, Any] | None = None  # of the data, by the steps so far
        for step in steps:
            batches_ready = run.batches.progress["batches"] - (step - 1 - first_step)
            try:
                with log.waiting_for_data():
                    batch = batches.get(lambda: bool(received or stopping.hung))
            except ValueError:  # of the data; once that is fixed the run resumes here
                _save_alone(run, log, stopping, step - 1, used)
                raise
            if batch is None:
                _save_alone(run, log, stopping, step - 1, used)
                if received:
                    return received[0]
                raise ValueError(
                    f"{stopping.hung[0]}: no batch came, so a data worker is stuck, or what it reads. The steps so far "
                    "are saved: the same command resumes there"
                )
            used = batch.progress
            run.state, metrics = run.step_fn(run.state, batch.arrays)
            measures = {**batch.measures, **run.batches.samples_seen(step), "data_batches_ready": batches_ready}
            log.add(step, {**metrics, **measures}, batch.index)
            watched(f"step {step}")
            stopping.report_progress()
            last, stop = step == last_step, _must_stop(step, received)
            if last or stop or _is_due(step, settings.checkpoint_every):
                log.flush()  # a state that is not finite must not be saved
                run.checkpointer.save(step, run.state, _data_state(run, used))
            if stop:
                stopping.seen.set()
                run.checkpointer.wait()
                return stop
            if not last and _is_due(step, settings.evaluate_every):
                try:
                    with log.paused():
                        evaluate(step)
                except Stopped:
                    _save_alone(run, log, stopping, step, used)
                    return received[0]
        run.checkpointer.wait()
        kept: Results | None = None
        if first_step == last_step and evaluated:
            kept = processes.from_first("the results", lambda: kept_results(run.workdir, run.config))
        if kept and processes.is_first():
            print("evaluation.json has the results of the last step by these settings: nothing is measured again")
        try:
            results = kept or evaluate(last_step, pictures=run.workdir if processes.is_first() else None)
        except Stopped:
            return received[0]
        return received[0] if received else results


def _save_alone(run: TrainingRun, log: ProgressLog, stopping: Stopping, step: int, used: dict[str, Any] | None) -> None:
    """Saves the last step of a run that goes no further, of one process: several must save at the same step."""
    if used is not None and processes.process_count() == 1:
        log.flush()
        stopping.seen.set()
        run.checkpointer.save(step, run.state, _data_state(run, used))
        run.checkpointer.wait()
    stopping.saved.set()


@dataclass(frozen=True)
class _PlacedBatch:
    """A batch on its way to the step.

    Attributes:
      arrays: image and text on the devices, rows split over them.
      index: the records of this process's rows, int [b].
      progress: `BatchIterator.progress` behind this batch.
      measures: for its row of metrics.
    """

    arrays: dict[str, Any]
    index: np.ndarray
    progress: dict[str, Any]
    measures: dict[str, float]


def _next_batch(run: TrainingRun) -> _PlacedBatch:
    batch = next(run.batches)
    progress = run.batches.progress
    text = run.text_packer(batch["text"]) if run.text_packer else batch["text"]
    arrays = place_batch({"image": batch["image"], "text": text}, run.mesh)
    measures = {f"data_{stage}_s": float(seconds) for stage, seconds in zip(STAGES, batch["seconds"])}
    measures["data_broken"] = run.batches.get_state(progress=progress)["broken"]  # of the whole run
    measures["data_worker_restarts"] = progress["restarts"]
    if run.text_packer:
        measures["unpacked"] = float(text is batch["text"])
    return _PlacedBatch(arrays, batch["index"], progress, measures)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _must_stop(step: int, received: list[signal.Signals]) -> signal.Signals | None:
    """The signal that ends the run after this step; several processes all get it at the same step."""
    if processes.process_count() > 1:
        return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None
    return received[0] if received else None


def _data_state(run: TrainingRun, progress: dict[str, Any] | None = None) -> dict[str, Any]:
    """The position in the data, with the counts of all processes; by default behind all that was read."""
    return run.batches.get_state(lambda own: _gather_parts(run, own), progress)


def _gather_parts(run: TrainingRun, own: T) -> list[T]:
    """What each process reports about its rows of the batch; once, where several hold the same rows."""
    first_row = int(local_rows(run.mesh, run.config.train.global_batch_size)[0])
    return list(dict(processes.gather("the other rows of the batch", (first_row, own))).values())


def _explain_non_finite(error: NonFiniteLossError, run: TrainingRun) -> ValueError:
    own = [run.source[i]["id"] for i in error.index.tolist()]
    ids = [record_id for part in _gather_parts(run, own) for record_id in part]
    saved = run.checkpointer.steps()
    file = run.workdir / "non_finite_batch.json"
    if processes.is_first():
        write_json(file, {"step": error.step, "ids": ids})
    return ValueError(
        f"{error}, in the batch of {', '.join(ids[:3])}, ... (all ids in {file}). "
        f"The newest checkpoint is {f'step {saved[-1]}' if saved else 'none'}. Try a lower optimizer.learning_rate, a "
        "longer optimizer.warmup_steps or model.compute_dtype=float32 in another --workdir, and look at those records"
    )
