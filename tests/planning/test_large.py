"""The paper's largest models on whole slices, at its global batch: minutes each."""

import importlib

import pytest

from clip_jax.config.experiment import make_config
from clip_jax.planning.fit import Setting
from clip_jax.planning.step import GIB, compile_step
from clip_jax.planning.topology import topology_devices

# Settings that `clip-jax plan --fit` found, the peak, and the FLOPs relative to no recomputation.
PLANS = {
    "clip_vit_b32": ("v5e:4x4", Setting("attention", 1, 1), 12.7, 1.194),
    "clip_vit_l14": ("v5e:16x16", Setting("named", 2, 1), 14.3, 1.093),
    "clip_vit_l14_336": ("v5e:16x16", Setting("attention", 8, 1), 13.4, 1.206),
    "clip_rn50x64": ("v5e:16x16", Setting("attention", 4, 4), 14.6, 1.646),
}


@pytest.mark.nightly
@pytest.mark.parametrize("name", PLANS)
def test_the_largest_models_fit_a_slice_of_v5e(name):
    pytest.importorskip("libtpu")
    topology, setting, peak_gib, flops = PLANS[name]
    config = make_config(importlib.import_module(f"configs.{name}").get_config().to_dict())
    assert config.train.global_batch_size == 32_768
    plan = compile_step(setting.apply(config), topology_devices(topology))
    assert plan.memory["peak"] < peak_gib * GIB < plan.chip.memory_bytes
    assert plan.executed_flops / plan.model_flops == pytest.approx(flops, abs=0.005)
