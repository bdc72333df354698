"""What a training run needs, made and checked before long work starts."""

import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from clip_jax.config.experiment import TOKENIZER_FILE, Config, make_config, with_found_data
from clip_jax.config.record import check_workdir, has_config, record_config
from clip_jax.distributed import processes
from clip_jax.distributed.sharding import local_rows, make_mesh
from clip_jax.evaluation.in_training import Evaluator, make_encoder
from clip_jax.evaluation.suite.splits import only_splits
from clip_jax.runs import preflight
from clip_jax.runs.initial_weights import InitialWeights
from clip_jax.runs.logging import left_out
from clip_jax.training.checkpoint import Checkpointer, saved_steps
from clip_jax.training.state import TrainState
from clip_jax.training.step import TrainStep
from clip_jax.training.text_packer import TextPacker, make_text_packer
from clip_jax.training.training import Training
from input_pipeline.lock import lock_folder
from input_pipeline.open_data import make_examples, make_sources
from input_pipeline.pipeline import BatchIterator
from input_pipeline.sources import Source
from input_pipeline.sources.unread import remarks
from input_pipeline.tokenizers import Tokenizer, make_tokenizer
from input_pipeline.vocabulary import sample_captions, store_vocabulary

MEASURED_RECORDS = 2_000  # whose captions' lengths decide the rows of packed text


@dataclass
class TrainingRun:
    """A run at its first step, or at the one it was stopped at."""

    config: Config
    workdir: Path
    mesh: Mesh
    source: Source
    validation: Source
    tokenizer: Tokenizer
    text_packer: TextPacker | None  # None: text is not packed
    evaluator: Evaluator
    step_fn: TrainStep
    state: TrainState
    checkpointer: Checkpointer
    batches: BatchIterator
    owned: ExitStack  # the lock of the workdir, on the first process; closed at the run's end

    def close(self) -> None:
        """Leaves the workdir to another run; `train` does so at its end."""
        self.owned.close()

    @property
    def first_step(self) -> int:
        """How many steps have been taken."""
        return int(self.state.step)

    @property
    def plan(self) -> str:
        """What the run is about to do, in a few lines for people."""
        state, train = self.state, self.config.train
        num_params, num_frozen = (sum(leaf.size for leaf in jax.tree.leaves(p)) for p in (state.params, state.frozen))
        frozen = f" and {num_frozen:,} frozen ones" if num_frozen else ""
        axes = ", ".join(f"{axis}={size}" for axis, size in self.mesh.shape.items())
        if processes.process_count() > 1:
            axes += f", {processes.process_count()} processes"
        lines = [
            f"{num_params:,} parameters{frozen} on {self.mesh.size} {jax.devices()[0].device_kind} ({axes}); "
            f"{len(self.source):,} pairs to train on, {len(self.validation):,} to validate; "
            f"{self.tokenizer.vocab_size:,} tokens; steps {int(state.step)} to {train.total_steps} of "
            f"{train.global_batch_size} pairs",
            *([self.text_packer.plan] if self.text_packer else []),
            *(f"  left out: {record_id}: {reason}" for record_id, reason in self.source.broken[:3]),
            *(f"  filtered: {reason}: {count:,} records" for reason, count in left_out(self.source).items()),
            *(f"  {remark}" for remark in remarks(self.source)),
        ]
        return "\n".join(lines)


def prepare_run(sections: dict[str, dict[str, Any]], workdir: Path) -> TrainingRun:
    """Opens data and workdir, makes vocabulary and training, restores the newest checkpoint.

    Args:
      sections: a config file's ConfigDict as a plain dict.
      workdir: folder of the run; made when missing. A config that is refused leaves no record in it.

    Raises ValueError or CheckpointError, see `train`; ValueError also when another process trains into the workdir.
    """
    with ExitStack() as owned:
        run = _prepare_run(sections, workdir, owned)
        run.owned = owned.pop_all()
    return run


def _prepare_run(sections: dict[str, dict[str, Any]], workdir: Path, owned: ExitStack) -> TrainingRun:
    if scheme := re.match(r"[a-z][a-z0-9]+:/", str(workdir)):
        raise ValueError(
            f"--workdir={workdir}: a run cannot write to {scheme[0]}/...; give a folder, for instance of the bucket "
            "mounted by gcsfuse"
        )
    asked, sections = sections, with_found_data(sections)  # so that the record in the workdir is whole
    if processes.process_count() > 1:
        preflight.check_programs(sections)
    config = make_config(sections)
    training = Training(config, make_mesh(config.sharding))
    training.check()  # before any work
    if asked.get("data", {}).get("source") != config.data.source and processes.is_first():
        print(f"data.source={config.data.source!r}, guessed from the files at {config.data.path}")

    source, validation = _open_data(config)
    is_new = _open_workdir(sections, workdir, owned)
    if is_new:
        _check_batch(config, source)
        _check_splits(config)
    weights = InitialWeights(config) if is_new and config.train.init_from else None

    tokenizer = _make_tokenizer(config, source, workdir, weights)
    training = training.with_tokenizer(tokenizer)
    if weights:
        weights.check(training.config.model, tokenizer)
    text_packer = _make_text_packer(training, source, tokenizer)
    evaluator = _make_evaluator(training, tokenizer, validation)
    new_state = _make_state(training, weights) if is_new else None
    if processes.is_first():
        record_config(sections, workdir)  # a config that is refused leaves none

    checkpointer, state, data_state = _restore(training, workdir, new_state)
    return TrainingRun(
        config=training.config,
        workdir=workdir,
        mesh=training.mesh,
        source=source,
        validation=validation,
        tokenizer=tokenizer,
        text_packer=text_packer,
        evaluator=evaluator,
        step_fn=training.step,
        state=state,
        checkpointer=checkpointer,
        batches=_open_batches(training, source, tokenizer, data_state),
        owned=owned,
    )


def _open_data(config: Config) -> tuple[Source, Source]:
    """The records to train on and those for validation, the same on all processes."""
    source, validation = make_sources(config.data, config.model.vision.image_size)
    if processes.process_count() > 1:
        preflight.check_data(source, validation)
    return source, validation


def _check_batch(config: Config, source: Source) -> None:
    """ValueError for a batch in which a record would be its own negative."""
    size, count = config.train.global_batch_size, len(source)
    if size > count and not config.data.repeat:
        raise ValueError(
            f"train.global_batch_size={size} is larger than the {count} records to train on, so that a batch would "
            f"hold pictures twice, as each other's negatives: set it to at most {count}, or data.repeat=True"
        )


def _check_splits(config: Config) -> None:
    """ValueError where training would take the splits of others for one heap of records."""
    data = config.data
    parts = [(f"data.mixture[{i}]", part.kind, part.path) for i, part in enumerate(data.mixture)]
    for where, kind, name in [("data", data.source, data.path), *parts]:
        path = Path(name).expanduser()
        if names := only_splits(path, kind) if name else []:
            raise ValueError(
                f"{where}.path={path} holds {' and '.join(names)}, and the run would train on all of them: name one, "
                f"as {where}.path={path / names[0]}, and to validate on another data.num_validation=0 with "
                "data.validation_path"
            )


def _open_workdir(sections: dict[str, dict[str, Any]], workdir: Path, owned: ExitStack) -> bool:
    """Whether the run is new; makes and locks its folder, and refuses that of a run of another config."""

    def open_folder() -> bool:
        check_workdir(sections, workdir)
        lock = lock_folder(workdir, doing="training into", fix="use another --workdir", beats=True)
        owned.enter_context(lock)
        if not has_config(workdir) and not saved_steps(workdir):
            for name in (TOKENIZER_FILE, f"{TOKENIZER_FILE}.json"):  # left by a config that was refused
                (workdir / name).unlink(missing_ok=True)
        return not saved_steps(workdir)

    is_new = processes.from_first("the workdir", open_folder)
    if processes.process_count() > 1:
        preflight.check_shared(workdir)
    return is_new


def _make_tokenizer(config: Config, source: Source, workdir: Path, weights: InitialWeights | None) -> Tokenizer:
    """The tokenizer of the vocabulary in the workdir, where the first process has put it."""
    text, vocabulary = config.model.text, workdir / TOKENIZER_FILE
    if processes.is_first():
        given = weights.tokenizer if weights else None
        store_vocabulary(config.data, text.vocab_size, text.context_length, source, vocabulary, given)
    processes.gather("the tokenizer", None)
    return make_tokenizer(config.data.tokenizer, vocabulary, text.context_length)


def _make_text_packer(training: Training, source: Source, tokenizer: Tokenizer) -> TextPacker | None:
    config = training.config
    if not config.data.pack_text:
        return None
    return make_text_packer(
        config.model,
        sample_captions(source, MEASURED_RECORDS),
        tokenizer,
        training.mesh,
        config.train.global_batch_size,
        config.data.seed,
        config.train.num_microbatches,
    )


def _make_evaluator(training: Training, tokenizer: Tokenizer, validation: Source) -> Evaluator:
    config = training.config
    encoder = make_encoder(config.model, training.mesh, config.evaluation.batch_size)
    return Evaluator(config.evaluation, encoder, tokenizer, validation, config.model.vision.image_size)


def _make_state(training: Training, weights: InitialWeights | None) -> TrainState:
    """Random parameters, with the given weights in their place."""
    state = training.init(training.config.train.seed)
    return weights.put_into(state) if weights else state


def _restore(
    training: Training, workdir: Path, new: TrainState | None
) -> tuple[Checkpointer, TrainState, dict[str, Any] | None]:
    """The workdir's checkpoints; the newest state that can be read, and its position in the data; or the new state."""
    checkpointer = Checkpointer(workdir, training.config.train.keep_checkpoints)
    state, data_state = checkpointer.restore(training.abstract()) or (new, None)
    assert state is not None
    checkpointer.move_newer_than(int(state.step))
    return checkpointer, state, data_state


def _open_batches(
    training: Training, source: Source, tokenizer: Tokenizer, data_state: dict[str, Any] | None
) -> BatchIterator:
    """This process's rows of the batches from the position on."""
    config = training.config
    return BatchIterator(
        make_examples(config.data, source, tokenizer, config.model.vision.image_size),
        config.train.global_batch_size,
        state=data_state,
        num_workers=config.data.num_workers,
        max_broken_share=config.data.max_broken_share,
        rows=local_rows(training.mesh, config.train.global_batch_size),
    )
