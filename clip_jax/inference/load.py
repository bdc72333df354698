"""Opens a trained model: a run's workdir, an exported folder, a name on the Hub."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from clip_jax.config.experiment import TOKENIZER_FILE, Config
from clip_jax.config.record import load_config
from clip_jax.distributed.sharding import ShardingConfig, make_mesh
from clip_jax.models import PUBLISHED, ModelConfig
from clip_jax.pretrained import ImageTransform, Pretrained, find_vocabulary, load_pretrained, resize_positions
from clip_jax.training.checkpoint import saved_steps
from clip_jax.training.state import TrainState
from clip_jax.training.training import Training
from input_pipeline.tokenizers import Tokenizer, make_tokenizer


class RestoredRun(NamedTuple):
    """A run as its newest checkpoint has it; config.model knows the tokenizer's end token."""

    config: Config
    mesh: Mesh
    tokenizer: Tokenizer
    state: TrainState


def restore_run(workdir: Path, mesh: Mesh | None = None) -> RestoredRun:
    """The newest checkpoint of a run, on a mesh other than its own where one is given.

    Raises:
      ValueError: no run there, or one without a checkpoint.
      CheckpointError: its checkpoints cannot be read.
    """
    config = load_config(workdir)
    tokenizer = make_tokenizer(config.data.tokenizer, workdir / TOKENIZER_FILE, config.model.text.context_length)
    training = Training(config, mesh or make_mesh(config.sharding)).with_tokenizer(tokenizer)
    return RestoredRun(training.config, training.mesh, tokenizer, training.restore(workdir))


def trained_on(workdir: Path) -> Any:
    """The fingerprint of the records that a run with checkpoints was trained on, as JSON gives it back."""
    data = workdir / "checkpoints" / str(max(saved_steps(workdir))) / "data"  # it is the same in every checkpoint
    return json.loads((data / "metadata").read_text())["fingerprint"]["source"]


def open_model(name_or_path: str | os.PathLike[str], **options: Any) -> tuple[Pretrained, Tokenizer | None]:
    """A model and its tokenizer, None where no vocabulary is found.

    name_or_path: the workdir of a run, or what `load_pretrained` takes, whose options are the others.
    """
    path = Path(name_or_path).expanduser()
    if (path / "checkpoints").is_dir():
        return _open_run(path, **options)
    pretrained = load_pretrained(name_or_path, **options)
    tokenizer = _find_tokenizer(pretrained)
    if tokenizer is not None:
        pretrained = dataclasses.replace(pretrained, config=with_end_token(pretrained.config, tokenizer))
    return pretrained, tokenizer


def with_end_token(model: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """A model that reads each row's highest id, with the end token that this is in the rows of its tokenizer."""
    if not (model.text.reads_highest and tokenizer.eot_token == tokenizer.vocab_size - 1):
        return model
    return dataclasses.replace(model, text=dataclasses.replace(model.text, eot_token=tokenizer.eot_token))


def _find_tokenizer(pretrained: Pretrained) -> Tokenizer | None:
    """The vocabulary beside the weights, or CLIP's own from the Hub's cache for a model that reads it.

    Raises ValueError for a vocabulary that is another model's.
    """
    text = pretrained.config.text
    if found := find_vocabulary(pretrained.folder):
        file, kind = found
        tokenizer = make_tokenizer(kind, file, text.context_length)
        end = tokenizer.vocab_size - 1 if text.reads_highest else text.eot_token
        # Where the last position is read, no id tells; a run's own vocabulary is never SigLIP's.
        is_read = tokenizer.eot_token == end if text.pooling == "eot" else kind != "sentencepiece"
        if tokenizer.vocab_size > text.vocab_size or not is_read:
            raise ValueError(
                f"{file}, read as {kind}, is not this model's vocabulary: it has {tokenizer.vocab_size} tokens "
                f"with {tokenizer.eot_token} as the end token, the model {text.vocab_size} with {text.eot_token}"
            )
        return tokenizer
    clips = PUBLISHED["ViT-B/32"].text
    is_clips = (text.vocab_size, text.eot_token) == (clips.vocab_size, clips.eot_token)
    try:
        return make_tokenizer("clip_bpe", None, text.context_length) if is_clips else None
    except ValueError:  # none in the cache
        return None


def _open_run(
    workdir: Path,
    activation: str | None = None,
    image_size: int | None = None,
    context_length: int | None = None,
    param_dtype: str = "float32",
) -> tuple[Pretrained, Tokenizer]:
    kind = load_config(workdir).loss.caption_kind
    if kind:
        raise ValueError(
            f"the run in {workdir} was trained with loss.kind={kind!r}: it predicts captions and has no text features, "
            f"so it can only be resumed, or measured with `clip-jax evaluate --workdir={workdir}`"
        )
    run = restore_run(workdir, make_mesh(ShardingConfig(), jax.local_devices()[:1]))
    model = run.config.model
    if activation not in (None, model.activation):
        raise ValueError(f"activation={activation!r} was asked for, but the run in {workdir} has {model.activation!r}")
    variables = jax.device_get(run.state.variables)
    variables = jax.tree.map(lambda x: x if x.dtype.kind in "iu" else x.astype(param_dtype, copy=False), variables)
    variables.pop("decoder", None)  # it is no part of the features
    model = dataclasses.replace(model, decoder_depth=0)
    variables, model = resize_positions(variables, model, image_size, context_length)
    model = dataclasses.replace(model, param_dtype=param_dtype)  # type: ignore[arg-type]
    pretrained = Pretrained(config=model, variables=variables, transform=ImageTransform(), folder=workdir)
    tokenizer = run.tokenizer
    if context_length is not None:
        tokenizer = make_tokenizer(tokenizer.kind, workdir / TOKENIZER_FILE, context_length)
    return pretrained, tokenizer
