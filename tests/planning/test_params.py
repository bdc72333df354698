import dataclasses
import math

import jax
import pytest
from jax.sharding import PartitionSpec as P

from clip_jax.config.experiment import OptimizerConfig, make_config
from clip_jax.distributed.sharding import ShardingConfig, make_abstract_mesh, make_mesh
from clip_jax.models import PUBLISHED
from clip_jax.planning.params import as_table, param_table
from clip_jax.training.training import Training
from configs import clip_vit_l14
from configs.tiny import get_config

CONFIG = make_config(get_config().to_dict())
OPTIMIZER = OptimizerConfig(
    learning_rate=5e-4, weight_decay=0.2, b1=0.9, b2=0.98, eps=1e-6, warmup_steps=7, max_logit_scale=100.0
)


def rows_of(model, optimizer, sharding, num_devices):
    train = dataclasses.replace(CONFIG.train, total_steps=100_000, init_from="released", init_towers=("visual",))
    config = dataclasses.replace(CONFIG, model=model, optimizer=optimizer, sharding=sharding, train=train)
    return param_table(Training(config, make_abstract_mesh(sharding, num_devices)).abstract())


def rows_by_name(*args):
    return {row.name: row for row in rows_of(*args)}


def test_the_bytes_are_those_of_a_real_state():
    sharding = ShardingConfig(data=2, fsdp=2, tensor=2)
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, param_dtype="bfloat16"))
    rows = rows_of(config.model, config.optimizer, sharding, 8)
    state = Training(config, make_mesh(sharding)).init(0)
    device = jax.devices()[3]

    def held(tree):
        shards = (shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards)
        return sum(shard.data.nbytes for shard in shards if shard.device == device)

    counters = 8  # the two steps that adam and the schedule count
    assert sum(row.param_bytes for row in rows) == held(state.params)
    assert sum(row.optimizer_bytes for row in rows) == held(state.opt_state) - counters
    assert sum(row.param_bytes for row in rows) < sum(leaf.nbytes for leaf in jax.tree.leaves(state.params)) / 2


def test_devices_that_are_not_there_are_planned_for():
    rows = rows_by_name(PUBLISHED["ViT-L/14"], OPTIMIZER, ShardingConfig(fsdp=16), 256)
    kernel = rows["visual/transformer/blocks/mlp/fc_in/kernel"]
    assert kernel == (
        "visual/transformer/blocks/mlp/fc_in/kernel",
        (24, 1024, 4096),
        P(None, "fsdp", "tensor"),
        24 * 1024 * 4096 * 4 // 16,
        2 * 24 * 1024 * 4096 * 4 // 16,
    )
    assert rows["visual/class_embedding"][2:] == (P(), 4 * 1024, 2 * 4 * 1024)
    assert sum(math.prod(row.shape) for row in rows.values()) == 427_616_513


def test_a_frozen_tower_is_listed_and_has_no_optimizer_state():
    frozen = dataclasses.replace(OPTIMIZER, frozen=("visual",))
    whole, kept = (rows_by_name(PUBLISHED["ViT-B/32"], o, ShardingConfig(), 8) for o in (OPTIMIZER, frozen))
    assert {name: row[:4] for name, row in kept.items()} == {name: row[:4] for name, row in whole.items()}
    is_free = {name for name, row in kept.items() if not row.optimizer_bytes}
    assert is_free == {name for name in kept if name.startswith("visual")}


def test_a_moving_average_is_counted():
    averaged = dataclasses.replace(OPTIMIZER, ema_decay=0.9)
    plain, more = (rows_by_name(PUBLISHED["RN50"], o, ShardingConfig(fsdp=2), 8) for o in (OPTIMIZER, averaged))
    assert all(row.optimizer_bytes == 2 * row.param_bytes for row in plain.values())
    assert all(more[name].optimizer_bytes == 3 * row.param_bytes for name, row in plain.items())


def test_the_table_ends_with_sums():
    config = make_config(clip_vit_l14.get_config().to_dict())
    lines = as_table(rows_of(config.model, config.optimizer, config.sharding, 4)).splitlines()
    assert lines[0].split()[:3] == ["parameter", "shape", "partition"]
    assert len(lines) == 38 + 3
    assert lines[-1].split() == ["38", "parameters", "427,616,513", "numbers", "1,710,466,052", "3,420,932,104"]


@pytest.mark.parametrize(
    ("sharding", "num_devices", "message"),
    [
        (ShardingConfig(data=3, fsdp=-1), 256, "data=3, fsdp=-1, tensor=1 does not multiply to the 256 devices"),
        (
            ShardingConfig(data=1, fsdp=256),
            256,
            r"fsdp=256 does not divide the 64 of visual/stage_1/.*: use 64, ",
        ),
    ],
)
def test_what_does_not_divide_is_refused(sharding, num_devices, message):
    with pytest.raises(ValueError, match=message):
        rows_of(PUBLISHED["RN50"], OPTIMIZER, sharding, num_devices)
