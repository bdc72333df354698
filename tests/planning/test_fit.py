import dataclasses
import functools

import jax
import pytest

from clip_jax.config.experiment import make_config
from clip_jax.distributed.sharding import make_abstract_mesh
from clip_jax.models import ResNetConfig
from clip_jax.planning import plan as plan_module
from clip_jax.planning.fit import HEADROOM, Fitter, Setting
from clip_jax.planning.params import param_table
from clip_jax.planning.plan import plan, plan_fitting
from clip_jax.planning.step import DoesNotFitError
from clip_jax.training.training import Training
from configs import clip_vit_l14, tiny

TINY = make_config(tiny.get_config().to_dict())
VISION = ResNetConfig(image_size=64, stages=(1, 1, 1, 1), stem_width=8, num_heads=4)
RESNET = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, vision=VISION))
GIB = 2**30


VIT_L14 = make_config(clip_vit_l14.get_config().to_dict())
LARGE = dataclasses.replace(VIT_L14, model=dataclasses.replace(VIT_L14.model, remat="dots"))
fitter_of = functools.cache(Fitter)  # tracing takes seconds


@pytest.fixture(autouse=True)
def trace_once(monkeypatch):
    monkeypatch.setattr(plan_module, "Fitter", fitter_of)


@pytest.fixture
def small():
    return fitter_of(TINY, 8)


@pytest.fixture
def large():
    return fitter_of(LARGE, 256)


def test_settings_come_by_their_flops(large):
    settings = list(large.settings())
    costs = [round(large.cost(setting), 3) for setting in settings]
    assert costs == sorted(costs)
    assert len(set(settings)) == len(settings) == 5 * 9 * 8  # policies, fsdp of 1 to 256, parts of 1 to 128 rows
    assert settings[0] == Setting("none", 1, 1)
    assert [large.cost(Setting(remat, 1, 1)) for remat in ("none", "named")] == [1, pytest.approx(1.093, abs=0.002)]
    assert large.cost(Setting("none", 1, 2)) == pytest.approx(4 / 3, abs=0.001)


def test_the_estimate_is_state_and_what_is_kept(large):
    rows = param_table(Training(LARGE, make_abstract_mesh(LARGE.sharding, 256)).abstract())
    state = sum(row.param_bytes + row.optimizer_bytes for row in rows)
    whole, halved, sharded = (large.estimate(Setting("named", f, m)) for f, m in ((1, 1), (1, 2), (16, 1)))
    params = sum(row.param_bytes for row in rows)
    assert 10 * GIB < whole - state < 13 * GIB  # XLA's for v5e:16x16: 11.2
    assert 0.5 < (halved - state - params) / (whole - state) < 0.6  # the parameters that it keeps, too, are not halved
    assert whole - sharded == pytest.approx(state * 15 / 16, rel=0.01)
    share = large.share(Setting("named", 1, 1), 20 * GIB)
    assert large.estimate(Setting("named", 1, 1), share) == pytest.approx(20 * GIB)


@pytest.mark.nightly
def test_a_resnets_filters_limit_fsdp_and_its_batch_norms_the_parts():
    settings = set(Fitter(RESNET, 2).settings())  # 64 rows a device
    assert {setting.num_microbatches for setting in settings} == {1, 2}
    assert {setting.remat for setting in settings} == {"none", "dots", "named", "attention", "full"}
    narrow = dataclasses.replace(RESNET, train=dataclasses.replace(RESNET.train, global_batch_size=4096))
    assert max(Fitter(narrow, 64)._fsdp_sizes()) == 8


class Rigged:
    """compile_step of devices with some memory, of which a step takes 1.1 times the estimate; keeps what was tried."""

    def __init__(self, fitter, available):
        self.fitter, self.available, self.tried = fitter, available, []

    def __call__(self, config, devices):
        setting = Setting.of(config)
        self.tried.append(setting)
        needed = 1.1 * self.fitter.estimate(setting)
        if needed > self.available:
            raise DoesNotFitError(needed, self.available)
        return setting


def test_fit_takes_the_cheapest_that_fits_and_compiles_few(monkeypatch, small):
    rigged = Rigged(small, 1.2 * small.estimate(Setting("attention", 1, 1)))
    wanted = next(s for s in small.settings() if 1.1 * small.estimate(s) <= HEADROOM * rigged.available)
    monkeypatch.setattr(plan_module, "compile_step", rigged)
    assert plan_fitting(TINY, jax.devices()) == (wanted, wanted)
    costs = [small.cost(setting) for setting in rigged.tried]
    assert costs == sorted(costs)
    assert rigged.tried[0] == Setting("none", 1, 1)  # of a CPU's memory nothing is known before a refusal
    assert len(rigged.tried) < 5


def test_where_nothing_fits_that_is_said(monkeypatch, small):
    monkeypatch.setattr(plan_module, "compile_step", Rigged(small, 1))
    with pytest.raises(ValueError, match=r"GiB of a device, which has 0.00, and no model.remat, .* fit: use more or"):
        plan_fitting(TINY, jax.devices())


def test_the_refusal_of_a_step_names_settings_that_should_fit(monkeypatch):
    def refuse(*_):
        raise DoesNotFitError(22 * GIB, 15.75 * GIB)

    monkeypatch.setattr(plan_module, "compile_step", refuse)
    devices = jax.devices() * 32
    with pytest.raises(ValueError, match=r"needs 22.00 GiB .* --config.model.remat=named --config.sharding.fsdp=2"):
        plan(LARGE, devices)
