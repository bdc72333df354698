"""All that training changes, as one pytree, each shard created on its own device."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.distributed.sharding import param_shardings, place_as
from clip_jax.models import ModelConfig
from clip_jax.models.variables import (
    Params,
    Variables,
    init_variables,
    join_variables,
    split_variables,
    tower_variables,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that a step changes. A nested dict is empty where the model or the run has nothing of its kind.

    Attributes:
      step: int32 [], number of steps taken.
      params: the parameters that learn.
      frozen: those of frozen towers, without gradient, moments or decay.
      batch_stats: the running statistics of batch norms.
      ema: the exponential moving average of params and batch_stats, in at least float32.
      opt_state: optax's.
      rng: uint32 [2], the run's key data; what is random inside a step folds the step into it.
    """

    step: jax.Array
    params: Params
    frozen: Params = field(default_factory=dict)
    batch_stats: Variables
    ema: Variables = field(default_factory=dict)
    opt_state: optax.OptState
    rng: jax.Array

    @property
    def variables(self) -> Variables:
        """The variables that are evaluated and exported: the moving average where one is kept, and frozen towers."""
        return join_variables(self.ema or join_variables(self.params, self.batch_stats), self.frozen)


def moved_average(average: Variables, new: Variables, decay: float, step: jax.Array) -> Variables:
    """The moving average after a step: d * average + (1 - d) * new with d = min(decay, (1 + step) / (10 + step)), so
    that the random start is soon forgotten. Integers are the new ones.

    Reference: Polyak & Juditsky 1992; the ramp as in TensorFlow's ExponentialMovingAverage.
    """
    share = 1 - jnp.minimum(decay, (1 + step) / (10 + step))

    def move(old: jax.Array, new: jax.Array) -> jax.Array:
        if not jnp.issubdtype(old.dtype, jnp.floating):
            return new
        return old + share.astype(old.dtype) * (new.astype(old.dtype) - old)

    return jax.tree.map(move, average, new) if average else {}


def state_shardings(state: Any, optimizer: optax.GradientTransformation, mesh: Mesh | AbstractMesh) -> Any:
    """The sharding of each leaf of a (possibly abstract) TrainState: moments are split as their parameters (ZeRO)."""
    shardings, everywhere = param_shardings(state.params, mesh), NamedSharding(mesh, P())
    return TrainState(
        step=everywhere,  # type: ignore[arg-type]
        params=shardings,
        frozen=param_shardings(state.frozen, mesh),
        batch_stats=variable_shardings(state.batch_stats, mesh),
        ema=variable_shardings(state.ema, mesh),
        opt_state=optax.tree_utils.tree_map_params(
            optimizer,
            lambda _, sharding: sharding,
            state.opt_state,
            shardings,
            transform_non_params=lambda _: everywhere,
        ),
        rng=everywhere,  # type: ignore[arg-type]
    )


def variable_shardings(variables: Variables, mesh: Mesh | AbstractMesh) -> Any:
    """The sharding of each array of a model: parameters by PARAM_RULES, running statistics on every device."""
    params, batch_stats = split_variables(variables)
    everywhere = NamedSharding(mesh, P())
    return join_variables(param_shardings(params, mesh), jax.tree.map(lambda _: everywhere, batch_stats))


def _make_init(
    config: ModelConfig, optimizer: optax.GradientTransformation, frozen: tuple[str, ...], has_ema: bool
) -> Any:
    def init(rng: jax.Array) -> TrainState:
        params, batch_stats = split_variables(init_variables(config, jax.random.wrap_key_data(rng)))
        kept = tower_variables(params, frozen)
        params = {name: value for name, value in params.items() if name not in kept}

        def widen(x: jax.Array) -> jax.Array:
            return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if jnp.issubdtype(x.dtype, jnp.floating) else x

        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            frozen=kept,
            batch_stats=batch_stats,
            ema=jax.tree.map(widen, join_variables(params, batch_stats)) if has_ema else {},
            opt_state=optimizer.init(params),
            rng=rng,
        )

    return init


def abstract_state(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | AbstractMesh,
    *,
    frozen: tuple[str, ...] = (),
    has_ema: bool = False,
) -> Any:
    """Shapes, dtypes and shardings of the TrainState, with nothing allocated: the target of a restore.

    frozen: towers that do not learn, of "visual" and "text". has_ema: whether a moving average is kept.
    """
    state = jax.eval_shape(_make_init(config, optimizer, frozen, has_ema), jax.ShapeDtypeStruct((2,), jnp.uint32))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        state_shardings(state, optimizer, mesh),
    )


def init_state(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh,
    *,
    frozen: tuple[str, ...] = (),
    has_ema: bool = False,
) -> TrainState:
    """A new TrainState, each shard computed on its own device; the values do not depend on the mesh."""
    target = abstract_state(config, optimizer, mesh, frozen=frozen, has_ema=has_ema)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
    rng = np.asarray(jax.random.key_data(jax.random.key(seed)))  # not yet on any mesh: each process has its own
    return jax.jit(_make_init(config, optimizer, frozen, has_ema), out_shardings=shardings)(rng)


def with_variables(state: TrainState, given: Variables) -> TrainState:
    """The state with its parameters, statistics and moving average replaced by the given arrays of the same path.

    given: of the whole model or a part of it, [same shapes]; other paths are ignored.
    """
    flat = flatten_dict(given)

    def replaced(tree: Variables) -> Variables:
        own = flatten_dict(tree)
        new = {path: flat[path].astype(leaf.dtype) for path, leaf in own.items() if path in flat}
        return unflatten_dict(own | {path: place_as(x, own[path].sharding) for path, x in new.items()})

    return dataclasses.replace(
        state,
        params=replaced(state.params),
        frozen=replaced(state.frozen),
        batch_stats=replaced(state.batch_stats),
        ema=replaced(state.ema),
    )
