"""What a training run needs, made and checked before long work starts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from clip_jax.config.experiment import TOKENIZER_FILE, Config, make_config, with_mixture, with_tokenizer
from clip_jax.config.record import check_workdir, record_config
from clip_jax.distributed import processes
from clip_jax.distributed.sharding import batch_shards, local_rows, make_mesh
from clip_jax.evaluation.in_training import Evaluator
from clip_jax.inference.caption_scorer import make_encoder
from clip_jax.inference.load import open_model
from clip_jax.models import ModelConfig
from clip_jax.models.variables import model_graph, tower_variables
from clip_jax.pretrained import Pretrained
from clip_jax.runs import preflight
from clip_jax.training.checkpoint import Checkpointer, saved_steps
from clip_jax.training.optimizer import make_optimizer, make_schedule
from clip_jax.training.state import TrainState, abstract_state, init_state, with_variables
from clip_jax.training.step import TrainStep, make_train_step
from clip_jax.training.text_packer import TextPacker, make_text_packer
from input_pipeline.data_config import DataConfig, make_sources
from input_pipeline.examples import make_examples
from input_pipeline.pipeline import BatchIterator
from input_pipeline.sources import Source
from input_pipeline.storage import write_bytes
from input_pipeline.tokenizers import Tokenizer, find_clip_vocab, make_tokenizer
from input_pipeline.vocabulary import sample_captions, train_on_sample

TOKENIZER_RECORDS = 20_000  # whose captions train the tokenizer
MEASURED_RECORDS = 2_000  # whose captions' lengths decide the rows of packed text


@dataclass
class Run:
    """A run at its first step, or at the one it was stopped at."""

    config: Config
    workdir: Path
    mesh: Mesh
    source: Source
    state: TrainState
    step_fn: TrainStep
    batches: BatchIterator
    text_packer: TextPacker | None  # None: text is not packed
    checkpointer: Checkpointer
    evaluator: Evaluator
    plan: str

    @property
    def first_step(self) -> int:
        """How many steps have been taken."""
        return int(self.state.step)


def prepare_run(sections: dict[str, dict[str, Any]], workdir: Path) -> Run:
    """Reads the config, opens the data, makes tokenizer, mesh and model, restores the newest checkpoint.

    Raises ValueError or CheckpointError, see `train`. A config that is refused leaves no record in the workdir.
    """
    sections = with_mixture(sections)  # so that the record in the workdir is whole
    preflight.check_programs(sections)
    config = make_config(sections)
    mesh = make_mesh(config.sharding)
    check_batch(config, mesh)
    schedule = make_schedule(config.optimizer, config.train.total_steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    frozen_towers, has_ema = config.optimizer.frozen, config.optimizer.has_ema
    # Before any work, for it refuses a mesh that does not divide the parameters; the tokenizer changes no shape.
    target = abstract_state(config.model, optimizer, mesh, frozen=frozen_towers, has_ema=has_ema)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
    image_size = config.model.vision.image_size
    source, validation = make_sources(config.data, image_size)
    preflight.check_data(source, validation)
    is_new = processes.from_first("the workdir", lambda: _open_workdir(sections, workdir))
    preflight.check_shared(workdir)
    given, given_tokenizer = _open_start(config) if is_new and config.train.init_from else (None, None)
    if processes.is_first():
        store_tokenizer(config.data, config.model, source, workdir / TOKENIZER_FILE, given_tokenizer)
    processes.gather("the tokenizer", None)
    tokenizer = make_tokenizer(config.data.tokenizer, workdir / TOKENIZER_FILE, config.model.text.context_length)
    model = with_tokenizer(config.model, tokenizer)
    if given:
        _check_start(config, given, given_tokenizer, model, tokenizer)
    graph = model_graph(model)
    text_packer = _make_text_packer(config, model, source, tokenizer, mesh)
    encoder = make_encoder(model, mesh, config.evaluation.batch_size)
    evaluator = Evaluator(config.evaluation, encoder, tokenizer, validation, image_size)
    first_state = _first_state(config, model, optimizer, mesh, given) if is_new else None
    if processes.is_first():
        record_config(sections, workdir)

    checkpointer = Checkpointer(workdir, config.train.keep_checkpoints)
    state, data_state = checkpointer.restore(target) or (first_state, None)
    assert state is not None
    checkpointer.set_aside_after(int(state.step))
    batches = BatchIterator(
        make_examples(config.data, source, tokenizer, image_size),
        config.train.global_batch_size,
        state=data_state,
        num_workers=config.data.num_workers,
        max_broken_share=config.data.max_broken_share,
        rows=local_rows(mesh, config.train.global_batch_size),
    )
    num_params, num_frozen = (sum(leaf.size for leaf in jax.tree.leaves(p)) for p in (state.params, state.frozen))
    frozen = f" and {num_frozen:,} frozen ones" if num_frozen else ""
    axes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    if processes.process_count() > 1:
        axes += f", {processes.process_count()} processes"
    plan = [
        f"{num_params:,} parameters{frozen} on {mesh.size} {jax.devices()[0].device_kind} ({axes}); {len(source):,} "
        f"pairs to train on, {len(validation):,} to validate; {tokenizer.vocab_size:,} tokens; steps "
        f"{int(state.step)} to {config.train.total_steps} of {config.train.global_batch_size} pairs",
        *([text_packer.plan] if text_packer else []),
        *(f"  left out: {record_id}: {reason}" for record_id, reason in source.broken[:3]),
        *(f"  filtered: {reason}: {count:,} records" for reason, count in left_out(source).items()),
    ]
    return Run(
        config=config,
        workdir=workdir,
        mesh=mesh,
        source=source,
        state=state,
        step_fn=make_train_step(
            graph,
            optimizer,
            schedule,
            config.optimizer.max_logit_scale,
            shardings,
            loss=config.loss,
            num_microbatches=config.train.num_microbatches,
            ema_decay=config.optimizer.ema_decay,
        ),
        batches=batches,
        text_packer=text_packer,
        checkpointer=checkpointer,
        evaluator=evaluator,
        plan="\n".join(plan),
    )


def _open_workdir(sections: dict[str, dict[str, Any]], workdir: Path) -> bool:
    """Whether the run is new; makes its folder, and refuses that of a run of another config."""
    check_workdir(sections, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    if not (workdir / "config.json").exists():
        for name in (TOKENIZER_FILE, f"{TOKENIZER_FILE}.json"):  # left by a config that was refused
            (workdir / name).unlink(missing_ok=True)
    return not saved_steps(workdir)


def _open_start(config: Config) -> tuple[Pretrained, Tokenizer | None]:
    """The weights to start from, their towers resized where they are taken, and the vocabulary of their text tower."""
    model, towers = config.model, config.train.init_towers
    given, tokenizer = open_model(
        config.train.init_from,
        image_size=model.vision.image_size if "visual" in towers else None,
        context_length=model.text.context_length if "text" in towers else None,
        param_dtype=model.param_dtype,
    )
    return given, tokenizer if "text" in towers else None


def _check_start(
    config: Config, given: Pretrained, given_tokenizer: Tokenizer | None, model: ModelConfig, tokenizer: Tokenizer
) -> None:
    """ValueError when what is taken from train.init_from is not the config's model, or reads other words."""
    name, towers = config.train.init_from, config.train.init_towers
    if differing := given.config.differences(model, towers):
        raise ValueError(f"train.init_from={name} is not the config's model: {'; '.join(differing)}")
    if given_tokenizer and given_tokenizer.fingerprint() != tokenizer.fingerprint():
        raise ValueError(
            f"train.init_from={name} was trained on another vocabulary ({given_tokenizer.kind}): set data.tokenizer "
            "and data.tokenizer_file to it"
        )


def _first_state(
    config: Config, model: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh, given: Pretrained | None
) -> TrainState:
    """Random parameters, or those of them that are given."""
    state = init_state(
        model, optimizer, config.train.seed, mesh, frozen=config.optimizer.frozen, has_ema=config.optimizer.has_ema
    )
    if given is None:
        return state
    towers = config.train.init_towers
    return with_variables(state, given.variables if len(towers) == 2 else tower_variables(given.variables, towers))


def store_tokenizer(
    data: DataConfig, model: ModelConfig, source: Source, file: Path, start: Tokenizer | None = None
) -> None:
    """Puts the run's vocabulary into its workdir: the config's file, that of the weights training starts from, or
    SentencePiece trained on the captions."""
    if file.exists():
        return
    if start and start.kind == data.tokenizer and not data.tokenizer_file:
        write_bytes(file, next(iter(start.files().values())))
        return
    if data.tokenizer == "sentencepiece" and not data.tokenizer_file:
        train_on_sample(source, model.text.vocab_size, file, TOKENIZER_RECORDS)
        return
    given = find_clip_vocab(data.tokenizer_file or None) if data.tokenizer == "clip_bpe" else Path(data.tokenizer_file)
    tokenizer = make_tokenizer(data.tokenizer, given, model.text.context_length)
    with_tokenizer(model, tokenizer)  # refused before it is copied
    write_bytes(file, given.read_bytes())


def _make_text_packer(
    config: Config, model: ModelConfig, source: Source, tokenizer: Tokenizer, mesh: Mesh
) -> TextPacker | None:
    if not config.data.pack_text:
        return None
    return make_text_packer(
        model,
        sample_captions(source, MEASURED_RECORDS),
        tokenizer,
        mesh,
        config.train.global_batch_size,
        config.data.seed,
        config.train.num_microbatches,
    )


def left_out(source: Source) -> dict[str, int]:
    """How many records filters left out, by the reason; of a mixture NAME: reason."""
    return dict(getattr(source, "filtered", {}))


def check_batch(config: Config, mesh: Mesh) -> None:
    """Raises ValueError, with batch sizes that would do, when the devices and microbatches do not divide the batch."""
    batch_size, microbatches, shards = config.train.global_batch_size, config.train.num_microbatches, batch_shards(mesh)
    parts = shards * microbatches
    if batch_size % parts:
        below = batch_size // parts * parts
        times = f", times train.num_microbatches={microbatches}" if microbatches > 1 else ""
        raise ValueError(
            f"train.global_batch_size={batch_size} is not divisible by the {shards} devices that share a batch{times}: "
            f"use {f'{below} or {below + parts}' if below else parts}"
        )
