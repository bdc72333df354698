"""All that training changes, as one pytree, created directly in its sharded place."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.models import CLIP, ModelConfig
from clip_jax.sharding import param_shardings

Params = dict[str, Any]
Variables = dict[str, Any]  # parameters and running statistics in one nested dict


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """params, batch_stats and opt_state are nested dicts and optax states; batch_stats, the running statistics of batch
    norms, is empty for a model without. step: int32 []. rng: uint32 key data [2], the run's key: whatever is random
    inside a step folds the step into it."""

    step: jax.Array
    params: Params
    batch_stats: Variables
    opt_state: optax.OptState
    rng: jax.Array

    @property
    def variables(self) -> Variables:
        """All that the model needs to encode."""
        return join_variables(self.params, self.batch_stats)


def model_graph(config: ModelConfig) -> nnx.GraphDef[CLIP]:
    """The model without its arrays; `nnx.merge(graph, variables)` gives the module back."""
    return nnx.split(nnx.eval_shape(lambda: CLIP(config, nnx.Rngs(0))))[0]


def init_variables(config: ModelConfig, key: jax.Array) -> Variables:
    """Fresh parameters and running statistics as a nested dict of arrays."""
    return nnx.to_pure_dict(nnx.split(CLIP(config, nnx.Rngs(key)))[1])


def split_variables(variables: Variables) -> tuple[Params, Variables]:
    """Parameters, and the running statistics: what batch norms call mean, var and count."""
    flat = flatten_dict(variables)
    is_statistic = {path: path[-1] in ("mean", "var", "count") for path in flat}
    params, batch_stats = (
        unflatten_dict({path: leaf for path, leaf in flat.items() if is_statistic[path] == wanted})
        for wanted in (False, True)
    )
    return params, batch_stats


def join_variables(params: Params, batch_stats: Variables) -> Variables:
    """The inverse of `split_variables`."""
    return unflatten_dict(flatten_dict(params) | flatten_dict(batch_stats))


def state_shardings(state: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> Any:
    """The sharding of each leaf of a (possibly abstract) TrainState: moments lie with their parameters (ZeRO)."""
    shardings, everywhere = param_shardings(state.params, mesh), NamedSharding(mesh, P())
    return TrainState(
        step=everywhere,  # type: ignore[arg-type]
        params=shardings,
        batch_stats=jax.tree.map(lambda _: everywhere, state.batch_stats),
        opt_state=optax.tree_utils.tree_map_params(
            optimizer,
            lambda _, sharding: sharding,
            state.opt_state,
            shardings,
            transform_non_params=lambda _: everywhere,
        ),
        rng=everywhere,  # type: ignore[arg-type]
    )


def variable_shardings(variables: Variables, mesh: Mesh) -> Any:
    """The sharding of each array of a model: parameters by the rules, running statistics on every device."""
    params, batch_stats = split_variables(variables)
    everywhere = NamedSharding(mesh, P())
    return join_variables(param_shardings(params, mesh), jax.tree.map(lambda _: everywhere, batch_stats))


def _make_init(config: ModelConfig, optimizer: optax.GradientTransformation) -> Any:
    def init(rng: jax.Array) -> TrainState:
        params, batch_stats = split_variables(init_variables(config, jax.random.wrap_key_data(rng)))
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params), rng)

    return init


def abstract_state(config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings of the TrainState, with nothing allocated: the target of a restore."""
    state = jax.eval_shape(_make_init(config, optimizer), jax.ShapeDtypeStruct((2,), jnp.uint32))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        state_shardings(state, optimizer, mesh),
    )


def init_state(config: ModelConfig, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh) -> TrainState:
    """A fresh TrainState, each shard computed on its own device; the values do not depend on the mesh."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, optimizer, mesh))
    rng = np.asarray(jax.random.key_data(jax.random.key(seed)))  # not yet on any mesh: each process has its own
    return jax.jit(_make_init(config, optimizer), out_shardings=shardings)(rng)
