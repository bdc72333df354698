"""The assembly of a config's training: its parts belong together."""

import dataclasses

import jax
import optax
import pytest

from clip_jax.config.experiment import make_config
from clip_jax.distributed.sharding import ShardingConfig, make_mesh
from clip_jax.training.training import Training
from configs.tiny import get_config

MESH = ShardingConfig(data=2, fsdp=2, tensor=2)


def config(**train):
    tiny = make_config(get_config().to_dict())
    optimizer = dataclasses.replace(tiny.optimizer, ema_decay=0.9, frozen=("text",))
    train = {"init_from": "ViT-B/32", **train}  # which a frozen tower asks for
    return dataclasses.replace(tiny, optimizer=optimizer, train=dataclasses.replace(tiny.train, **train))


def test_a_new_state_has_the_shapes_dtypes_and_shardings_of_the_abstract_one():
    training = Training(config(), make_mesh(MESH))
    abstract, state = training.abstract(), training.init(seed=3)
    assert set(abstract.frozen) == {"text", "text_projection"}
    assert set(abstract.ema) == {"visual", "visual_projection", "logit_scale"}

    def described(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), tree)

    assert described(state) == described(abstract)
    assert jax.random.key_data(jax.random.key(3)).tolist() == state.rng.tolist()


def test_the_schedule_is_the_configs_unless_another_is_given():
    mesh = make_mesh(MESH)
    training = Training(config(total_steps=900), mesh)
    rates = [float(training.schedule(step)) for step in (0, 100, 900)]
    assert rates == pytest.approx([0, 2e-3, 0], abs=1e-9)
    assert Training(config(), mesh, optax.constant_schedule(0.5)).schedule(0) == 0.5


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"global_batch_size": 30}, "=30 is not divisible by the 4 devices that share a batch: use 28 or 32$"),
        ({"global_batch_size": 128, "num_microbatches": 3}, "a batch, times train.num_microbatches=3: use 120 or 132$"),
    ],
)
def test_a_batch_that_devices_and_microbatches_do_not_divide_is_refused(train, message):
    mesh = make_mesh(MESH)
    with pytest.raises(ValueError, match=message):
        Training(config(**train), mesh).check()
    Training(config(**train | {"global_batch_size": 132}), mesh).check()
