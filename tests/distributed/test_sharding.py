import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from processes import FUSED

from clip_jax.config.experiment import OptimizerConfig
from clip_jax.distributed import sharding
from clip_jax.distributed.sharding import (
    ShardingConfig,
    batch_shards,
    constrain_batch,
    make_mesh,
    param_specs,
    place_batch,
)
from clip_jax.models import ModelConfig, TextConfig, VisionConfig
from clip_jax.models.variables import init_variables
from clip_jax.training.optimizer import make_optimizer
from clip_jax.training.state import TrainState, init_state

TINY = ModelConfig(
    embed_dim=7,
    vision=VisionConfig(width=12, depth=2, num_heads=2, mlp_dim=26, image_size=10, patch_size=5),
    text=TextConfig(width=20, depth=3, num_heads=4, mlp_dim=34, context_length=11, vocab_size=31, eot_token=30),
)
PAPER = OptimizerConfig(
    learning_rate=5e-4, weight_decay=0.2, b1=0.9, b2=0.98, eps=1e-6, warmup_steps=7, max_logit_scale=100.0
)


def mesh_of(data, fsdp, tensor):
    devices = jax.devices()[: data * fsdp * tensor]
    return make_mesh(ShardingConfig(data=data, fsdp=fsdp, tensor=tensor), devices)


@pytest.fixture(scope="module")
def params():
    return jax.eval_shape(lambda: init_variables(TINY, jax.random.key(0)))


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (8, 1, 1)),
        ({"data": 2, "fsdp": -1}, (2, 4, 1)),
        ({"fsdp": 2, "tensor": 2}, (2, 2, 2)),
        ({"data": 1, "fsdp": 1, "tensor": -1}, (1, 1, 8)),
        ({"data": 8, "fsdp": -1}, (8, 1, 1)),
        ({"data": 4, "fsdp": 1, "tensor": 2}, (4, 1, 2)),
    ],
)
def test_minus_one_stands_for_the_rest(sizes, shape):
    mesh = make_mesh(ShardingConfig(**sizes))
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert mesh.devices.shape == shape
    assert batch_shards(mesh) == shape[0] * shape[1]


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (-1, -1, 1), (0, 1, 1), (2, 2, 1), (16, 1, 1)])
def test_sizes_that_do_not_multiply_to_the_devices_are_refused(sizes):
    with pytest.raises(ValueError, match=r"data=-?\d+, fsdp=-?\d+, tensor=1 does not multiply to the 8 devices"):
        make_mesh(ShardingConfig(data=sizes[0], fsdp=sizes[1], tensor=sizes[2]))


def test_the_partition_of_every_parameter(params):
    specs = flatten_dict(param_specs(params), sep="/")
    block = {
        "attn/qkv/kernel": P(None, "fsdp", None, "tensor", None),
        "attn/qkv/bias": P(None, None, "tensor", None),
        "attn/out/kernel": P(None, "tensor", None, "fsdp"),
        "attn/out/bias": P(),
        "mlp/fc_in/kernel": P(None, "fsdp", "tensor"),
        "mlp/fc_in/bias": P(None, "tensor"),
        "mlp/fc_out/kernel": P(None, "tensor", "fsdp"),
        "mlp/fc_out/bias": P(),
        **{f"ln_{i}/{name}": P() for i in (1, 2) for name in ("scale", "bias")},
    }
    norms = ("visual/ln_pre", "visual/ln_post", "text/ln_final")
    assert specs == {
        **{f"{tower}/transformer/blocks/{name}": spec for tower in ("visual", "text") for name, spec in block.items()},
        **{f"{norm}/{name}": P() for norm in norms for name in ("scale", "bias")},
        "visual/patch_embedding/kernel": P(None, "fsdp"),
        "visual/class_embedding": P(),
        "visual/positional_embedding": P(),
        "text/token_embedding/embedding": P(None, "fsdp"),
        "text/positional_embedding": P(),
        "visual_projection/kernel": P("fsdp", None),
        "text_projection/kernel": P("fsdp", None),
        "logit_scale": P(),
    }


def test_a_parameter_that_no_rule_matches_is_refused(params):
    with pytest.raises(ValueError, match="parameter visual/gate matches 0 rules of PARAM_RULES"):
        param_specs({**params, "visual": {**params["visual"], "gate": params["logit_scale"]}})


def test_a_parameter_that_two_rules_match_is_refused(params, monkeypatch):
    monkeypatch.setattr(sharding, "PARAM_RULES", (*sharding.PARAM_RULES, (r"text_proj.*", P())))
    with pytest.raises(ValueError, match="parameter text_projection/kernel matches 2 rules of PARAM_RULES"):
        param_specs(params)


def fresh_state(*shape: int) -> TrainState:
    return init_state(TINY, make_optimizer(PAPER, optax.constant_schedule(1e-3)), 5, mesh_of(*shape))


def compare_initial_values() -> None:
    one, *others = (jax.device_get(fresh_state(*shape)) for shape in ((1, 1, 1), (8, 1, 1), (2, 2, 2)))
    assert 0.01 < np.std(one.params["text"]["token_embedding"]["embedding"]) < 0.03
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, other, one)


@pytest.mark.nightly
def test_initial_values_do_not_depend_on_the_mesh(processes):
    paths = {"PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[1:3]))}
    code = f"import sys; sys.path.append({str(Path(__file__).parent)!r})\n"
    code += "import test_sharding; test_sharding.compare_initial_values()"
    # With XLA's fusions, as users compile: without them the last bit depends on a shard's size.
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {FUSED}"}
    returncode, _, err = processes.run([sys.executable, "-c", code], 120, env={**os.environ, **paths, **flags})
    assert returncode == 0, err


def test_moments_lie_with_their_parameters():
    state = fresh_state(2, 2, 2)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    for moment in ("mu", "nu"):
        assert optax.tree_utils.tree_get(shardings.opt_state, moment) == shardings.params
    counts = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim == 0 and leaf.dtype == jnp.int32]
    assert counts
    assert all(leaf.sharding.is_fully_replicated for leaf in (*counts, state.step, state.rng))
    kernel = state.opt_state[0].mu["text"]["transformer"]["blocks"]["mlp"]["fc_in"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 20 // 2, 34 // 2)}


def test_a_batch_is_split_by_rows_and_comes_back():
    mesh = mesh_of(2, 2, 2)
    batch: dict[str, np.ndarray] = {
        "image": np.arange(12 * 3, dtype=np.uint8).reshape(12, 3),
        "text": np.arange(12, dtype=np.int32),
    }
    placed = place_batch(batch, mesh)
    for name, array in batch.items():
        assert placed[name].dtype == array.dtype
        np.testing.assert_array_equal(placed[name], array)
        for shard in placed[name].addressable_shards:
            row = 3 * int(np.argwhere(mesh.devices == shard.device)[0] @ [2, 1, 0])
            np.testing.assert_array_equal(shard.data, array[row : row + 3])


def test_constrain_batch_splits_rows_under_a_mesh_only():
    x = jnp.arange(24.0).reshape(8, 3)
    assert constrain_batch(x) is x
    mesh = mesh_of(2, 2, 2)
    with jax.set_mesh(mesh):
        split = jax.jit(lambda x: constrain_batch(2 * x))(x)
    assert split.sharding.is_equivalent_to(NamedSharding(mesh, P(("data", "fsdp"))), ndim=2)
    np.testing.assert_array_equal(split, 2 * x)
