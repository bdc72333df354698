"""Trains CLIP: `python -m clip_jax.train --config=tiny --workdir=runs/tiny`, and goes on where a run was stopped."""

import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import config_flags

from clip_jax import cli
from clip_jax.checkpoint import Checkpointer
from clip_jax.config import (
    TOKENIZER_FILE,
    Config,
    check_workdir,
    make_config,
    record_config,
    with_tokenizer,
    write_json,
)
from clip_jax.evaluation import Evaluator, Results, as_row, as_table
from clip_jax.evaluators.encoder import Encoder
from clip_jax.metrics import NonFiniteLossError, ProgressLog, format_table, read_metrics
from clip_jax.models import ModelConfig
from clip_jax.optimizer import make_optimizer, make_schedule
from clip_jax.plots import plot_curves
from clip_jax.sharding import batch_shards, make_mesh, place_batch
from clip_jax.train_state import TrainState, abstract_state, init_state, model_graph
from clip_jax.train_step import make_train_step
from input_pipeline.pipeline import BatchIterator, DataConfig, Examples, make_sources
from input_pipeline.sources import BrokenRecordError, Source
from input_pipeline.tokenizers import Tokenizer, find_clip_vocab, make_tokenizer, train_sentencepiece

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, or the bare name of a shipped one; --config.SECTION.KEY=VALUE changes a key."
)
flags.declare_key_flag("workdir")

TOKENIZER_RECORDS = 20_000  # whose captions train the tokenizer


def store_tokenizer(data: DataConfig, model: ModelConfig, source: Source, file: Path) -> None:
    """Puts the run's vocabulary into its workdir: the config's file, or SentencePiece trained on the captions."""
    if file.exists():
        return
    if data.tokenizer == "sentencepiece" and not data.tokenizer_file:
        train_sentencepiece(_captions(source), model.text.vocab_size, file)
        return
    given = find_clip_vocab(data.tokenizer_file or None) if data.tokenizer == "clip_bpe" else Path(data.tokenizer_file)
    tokenizer = make_tokenizer(data.tokenizer, given, model.text.context_length)
    with_tokenizer(model, tokenizer)  # refused before it is copied
    partial = file.with_name(f".{file.name}.partial")
    shutil.copyfile(given, partial)
    partial.replace(file)


def _captions(source: Source) -> Iterator[str]:
    for index in range(min(len(source), TOKENIZER_RECORDS)):
        with suppress(BrokenRecordError):  # met and counted in training
            yield from source.captions(index)


def train(sections: dict[str, dict[str, Any]], workdir: Path) -> int:
    """Trains to train.total_steps, evaluates and draws; a second call goes on, bit-identically, where one was stopped.

    Args:
      sections: a config file's ConfigDict as a plain dict.
      workdir: folder of the run; made when missing.

    Returns:
      The exit code: 0, or 128 + the signal's number after SIGINT or SIGTERM, with a checkpoint saved.

    Raises:
      ValueError: the config, the data or the workdir cannot be used, or the loss is no longer finite.
      CheckpointError: a checkpoint could not be saved or read.
    """
    config = make_config(sections)
    mesh = make_mesh(config.sharding)
    _check_batch(config, mesh)
    schedule = make_schedule(config.optimizer, config.train.total_steps)
    source, validation = make_sources(config.data, config.model.vision.image_size)
    check_workdir(sections, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    store_tokenizer(config.data, config.model, source, workdir / TOKENIZER_FILE)
    tokenizer = make_tokenizer(config.data.tokenizer, workdir / TOKENIZER_FILE, config.model.text.context_length)
    model = with_tokenizer(config.model, tokenizer)
    graph = model_graph(model)
    optimizer = make_optimizer(config.optimizer, schedule)
    target = abstract_state(model, optimizer, mesh)
    encoder = Encoder(graph, mesh, config.evaluation.batch_size)
    evaluator = Evaluator(config.evaluation, encoder, tokenizer, validation, model.vision.image_size)
    record_config(sections, workdir)  # only now, so that a config that was refused does not bind the workdir

    checkpointer = Checkpointer(workdir, config.train.keep_checkpoints)
    state, data_state = checkpointer.restore(target) or (init_state(model, optimizer, config.train.seed, mesh), None)
    batches = BatchIterator(
        Examples(
            source=source,
            tokenizer=tokenizer,
            image_size=model.vision.image_size,
            min_scale=config.data.min_crop_scale,
            seed=config.data.seed,
        ),
        config.train.global_batch_size,
        state=data_state,
        num_workers=config.data.num_workers,
        max_broken_share=config.data.max_broken_share,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    first_step = int(state.step)
    evaluated = any(row["step"] == first_step and "loss" not in row for row in read_metrics(workdir))
    checkpointer.delete_after(first_step)
    _print_plan(config, state, source, validation, tokenizer, mesh)
    step_fn = make_train_step(
        graph,
        optimizer,
        schedule,
        config.optimizer.max_logit_scale,
        jax.tree.map(lambda leaf: leaf.sharding, target),
    )

    last_step, batch_size = config.train.total_steps, config.train.global_batch_size
    log = ProgressLog(workdir, first_step, last_step, batch_size)
    start = time.perf_counter()

    def evaluate(step: int, pictures: Path | None = None) -> Results:
        results = evaluator(state.params, pictures)
        if step > first_step or not evaluated:
            log.write({"step": step, "samples_seen": step * batch_size, **as_row(results)})
        return results

    try:
        with (
            closing(checkpointer),
            closing(batches),
            closing(log),
            jax.set_mesh(mesh),
            _stop_signals() as received,
        ):
            if 0 < first_step < last_step and not evaluated and _is_due(first_step, config.train.evaluate_every):
                evaluate(first_step)  # the run was stopped after the checkpoint and before the evaluation
            for step in range(first_step + 1, last_step + 1):
                with log.waiting_for_data():
                    batch = next(batches)
                arrays = {"image": batch["image"], "text": batch["text"]}
                state, metrics = step_fn(state, place_batch(arrays, mesh))
                log.add(step, metrics, batch["index"])
                last = step == last_step
                if last or received or _is_due(step, config.train.checkpoint_every):
                    log.flush()
                    checkpointer.save(step, state, batches.get_state())
                if received:
                    checkpointer.wait()
                    log.close()
                    print(f"stopped by {received[0].name}, saved at step {step}: the same command goes on from there")
                    return 128 + received[0]
                if not last and _is_due(step, config.train.evaluate_every):
                    with log.paused():
                        evaluate(step)
            checkpointer.wait()
            train_s = time.perf_counter() - start
            log.flush()
            results = evaluate(last_step, pictures=workdir)
    except NonFiniteLossError as error:
        raise _explain_non_finite(error, source, workdir, checkpointer.steps()) from error
    write_json(workdir / "evaluation.json", results)
    plot_curves(read_metrics(workdir), workdir / "curves.png")
    print("\n".join(["", _summary(workdir, batches.get_state(), len(source.broken), train_s), "", as_table(results)]))
    print(f"\ncheckpoints, metrics.jsonl, evaluation.json, tensorboard/ and pictures (*.png) are in {workdir}")
    return 0


def _check_batch(config: Config, mesh: Mesh) -> None:
    batch_size, shards = config.train.global_batch_size, batch_shards(mesh)
    if batch_size % shards:
        below = batch_size // shards * shards
        raise ValueError(
            f"train.global_batch_size={batch_size} is not divisible by the {shards} devices that share a batch: "
            f"use {below or shards} or {below + shards}"
        )


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@contextmanager
def _stop_signals() -> Iterator[list[signal.Signals]]:
    """Collects SIGINT and SIGTERM instead of dying of them; a second Ctrl-C interrupts at once."""
    received: list[signal.Signals] = []

    def handler(number: int, _: FrameType | None) -> None:
        received.append(signal.Signals(number))
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _explain_non_finite(error: NonFiniteLossError, source: Source, workdir: Path, saved: Sequence[int]) -> ValueError:
    ids = [source[i]["id"] for i in error.index.tolist()]
    file = workdir / "non_finite_batch.json"
    write_json(file, {"step": error.step, "ids": ids})
    return ValueError(
        f"{error}, in the batch of {', '.join(ids[:3])}, ... (all ids in {file}). "
        f"The newest checkpoint is {f'step {saved[-1]}' if saved else 'none'}. Try a lower optimizer.learning_rate, a "
        "longer optimizer.warmup_steps or model.compute_dtype=float32 in another --workdir, and look at those records"
    )


def _print_plan(
    config: Config, state: TrainState, source: Source, validation: Source, tokenizer: Tokenizer, mesh: Mesh
) -> None:
    num_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(
        f"{num_params:,} parameters on {mesh.size} {jax.devices()[0].device_kind} "
        f"(data={mesh.shape['data']}, fsdp={mesh.shape['fsdp']}, tensor={mesh.shape['tensor']}); "
        f"{len(source):,} pairs to train on, {len(validation):,} to validate; "
        f"{tokenizer.vocab_size:,} tokens; steps {int(state.step)} to {config.train.total_steps} "
        f"of {config.train.global_batch_size} pairs"
    )
    for record_id, reason in source.broken[:3]:
        print(f"  left out: {record_id}: {reason}")


def _summary(workdir: Path, data_state: dict[str, Any], num_left_out: int, train_s: float) -> str:
    rows = [row for row in read_metrics(workdir) if "loss" in row]
    final = rows[-max(len(rows) // 20, 1) :]

    def mean(name: str) -> float:
        return sum(row[name] for row in final) / len(final)

    cells = [
        ["samples seen", f"{rows[-1]['samples_seen']:,}"],
        ["loss, mean of the last twentieth", f"{mean('loss'):.3f} (chance {rows[-1]['chance_loss']:.3f})"],
        ["image to text accuracy in the batch", f"{mean('image_to_text_accuracy'):.1%}"],
        ["text to image accuracy in the batch", f"{mean('text_to_image_accuracy'):.1%}"],
        ["logit scale", f"{rows[-1]['logit_scale']:.2f}"],
        ["images/s", f"{mean('images_per_s'):.0f} ({mean('data_wait_share'):.0%} of the time waiting for data)"],
        ["time of this call", f"{train_s:.0f} s"],
        ["records that could not be used", f"{data_state['broken']} met, {num_left_out} left out beforehand"],
        ["captions truncated", f"{data_state['truncated']:,}"],
    ]
    broken = "".join(f"\n  broken: {record_id}: {reason}" for record_id, reason in data_state["first_broken"])
    return format_table(["training", ""], cells) + broken


def main() -> int:
    workdir = Path(cli.required(cli.WORKDIR, "runs/tiny"))
    return train(cli.required(CONFIG, "tiny").to_dict(), workdir)


if __name__ == "__main__":
    cli.run(main, sys.argv)
