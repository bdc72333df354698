"""What training is, put together once: optimizer, schedule, state and step of a config on a mesh."""

import dataclasses
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import AbstractMesh, Mesh

from clip_jax.config.experiment import Config, with_tokenizer
from clip_jax.distributed.sharding import batch_shards
from clip_jax.models.variables import model_graph
from clip_jax.training.checkpoint import Checkpointer
from clip_jax.training.optimizer import make_optimizer, make_schedule
from clip_jax.training.state import TrainState, abstract_state, init_state
from clip_jax.training.step import TrainStep, make_train_step
from input_pipeline.tokenizers import Tokenizer


class Training:
    """A config's optimizer, its step and the state that the step changes, on a mesh.

    Only `init` and `restore` allocate memory on the devices.

    Args:
      config: of the run. To encode text its model must know the tokenizer's end token, see `with_tokenizer`; shapes
        and shardings do not depend on it.
      mesh: of the state and the batches; of an abstract one there are shapes alone, see `abstract`.
      schedule: step to learning rate; by default the config's warm-up and cosine.

    Attributes: config, mesh, schedule, and optimizer, an optax transformation.

    Raises ValueError for more warm-up steps than steps.
    """

    def __init__(self, config: Config, mesh: Mesh | AbstractMesh, schedule: optax.Schedule | None = None):
        self.config = config
        self.mesh: Mesh = mesh  # type: ignore[assignment]  # who gives an abstract one asks for shapes alone
        self.schedule = schedule or make_schedule(config.optimizer, config.train.total_steps)
        self.optimizer = make_optimizer(config.optimizer, self.schedule)
        self._parts: dict[str, Any] = {"frozen": config.optimizer.frozen, "has_ema": config.optimizer.has_ema}

    def with_tokenizer(self, tokenizer: Tokenizer) -> "Training":
        """The same training of a model that reads this tokenizer's rows.

        Raises ValueError for a vocabulary larger than the model's.
        """
        model = with_tokenizer(self.config.model, tokenizer)
        return Training(dataclasses.replace(self.config, model=model), self.mesh, self.schedule)

    def check(self) -> None:
        """Raises ValueError, with sizes that fit, for a mesh that does not divide the batch or a parameter."""
        train, shards = self.config.train, batch_shards(self.mesh)
        batch_size, microbatches = train.global_batch_size, train.num_microbatches
        parts = shards * microbatches
        if batch_size % parts:
            below = batch_size // parts * parts
            times = f", times train.num_microbatches={microbatches}" if microbatches > 1 else ""
            raise ValueError(
                f"train.global_batch_size={batch_size} is not divisible by the {shards} devices that share a "
                f"batch{times}: use {f'{below} or {below + parts}' if below else parts}"
            )
        self.abstract()

    def abstract(self) -> TrainState:
        """Shapes, dtypes and shardings of the state: ShapeDtypeStructs in the places of its arrays.

        Devices of the mesh that do not exist (`planning`) must not be in context (`jax.set_mesh`): optax computes here.

        Raises ValueError for a mesh that does not divide a parameter.
        """
        return abstract_state(self.config.model, self.optimizer, self.mesh, **self._parts)

    def init(self, seed: int) -> TrainState:
        """A new state with random parameters; the seed decides them, whatever the mesh."""
        return init_state(self.config.model, self.optimizer, seed, self.mesh, **self._parts)

    def restore(self, workdir: Path) -> TrainState:
        """The state of the newest checkpoint of a run.

        Raises:
          ValueError: the workdir has no checkpoint.
          CheckpointError: none of its checkpoints can be read.
        """
        with closing(Checkpointer(workdir)) as checkpointer:
            restored = checkpointer.restore(self.abstract())
        if restored is None:
            raise ValueError(f"{workdir} has no checkpoint yet: train first, or wait for the first checkpoint")
        return restored[0]

    @cached_property
    def step(self) -> TrainStep:
        """The jitted step, see `make_train_step`; the same object each time, for it keeps what it compiled."""
        config = self.config
        return make_train_step(
            model_graph(config.model),
            self.optimizer,
            self.schedule,
            config.optimizer.max_logit_scale,
            jax.tree.map(lambda leaf: leaf.sharding, self.abstract()),
            loss=config.loss,
            num_microbatches=config.train.num_microbatches,
            ema_decay=config.optimizer.ema_decay,
        )
