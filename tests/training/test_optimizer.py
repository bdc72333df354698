import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from clip_jax.config.experiment import OptimizerConfig
from clip_jax.models import ModelConfig, TextConfig, VisionConfig
from clip_jax.models.variables import init_variables
from clip_jax.training.optimizer import decay_mask, make_optimizer, make_schedule

PAPER = OptimizerConfig(
    learning_rate=5e-4, weight_decay=0.2, b1=0.9, b2=0.98, eps=1e-6, warmup_steps=7, max_logit_scale=100.0
)


def test_weights_decay_and_gains_biases_and_the_temperature_do_not():
    tower = {"width": 6, "depth": 1, "num_heads": 2, "mlp_dim": 11}
    config = ModelConfig(
        embed_dim=5,
        vision=VisionConfig(image_size=6, patch_size=3, **tower),
        text=TextConfig(context_length=7, vocab_size=13, eot_token=12, **tower),
    )
    mask = flatten_dict(decay_mask(jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))), sep="/")
    blocks = [f"blocks/{name}/kernel" for name in ("attn/out", "attn/qkv", "mlp/fc_in", "mlp/fc_out")]
    assert sorted(name for name, decays in mask.items() if decays) == sorted(
        [
            *(f"{tower}/transformer/{name}" for tower in ("text", "visual") for name in blocks),
            "text/positional_embedding",
            "text/token_embedding/embedding",
            "text_projection/kernel",
            "visual/patch_embedding/kernel",
            "visual/positional_embedding",
            "visual_projection/kernel",
        ]
    )
    assert {"logit_scale", "visual/class_embedding", "visual/ln_pre/scale", "text/ln_final/bias"} < mask.keys()


def test_a_parameter_of_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"parameter \['head'\]\['gate'\]: say in optimizer.py whether 'gate' decays"):
        decay_mask({"head": {"kernel": jnp.ones(3), "gate": jnp.ones(3)}})


def test_linear_warm_up_then_half_a_cosine():
    schedule = make_schedule(PAPER, total_steps=107)
    # Half-way down the cosine is half the peak, a third of the way three quarters of it.
    expected = {0: 0.0, 1: 1 / 7, 5: 5 / 7, 7: 1.0, 57: 0.5, 107: 0.0, 150: 0.0}
    for step, share in expected.items():
        assert float(schedule(step)) == pytest.approx(share * 5e-4, abs=1e-10), step
    assert float(make_schedule(PAPER, 157)(57)) == pytest.approx(0.75 * 5e-4, rel=1e-6)


def test_without_warm_up_the_peak_comes_first():
    schedule = make_schedule(dataclasses.replace(PAPER, warmup_steps=0), total_steps=10)
    assert float(schedule(0)) == pytest.approx(5e-4, rel=1e-6)


@pytest.mark.parametrize("total_steps", [1, 6, 7])
def test_warm_up_must_end_before_the_run(total_steps):
    with pytest.raises(ValueError, match=f"warmup_steps=7 must lie between 0 and train.total_steps={total_steps}"):
        make_schedule(PAPER, total_steps)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, "optimizer.learning_rate=0.0 must be above 0"),
        ({"max_logit_scale": 0.5}, "optimizer.max_logit_scale=0.5 must be at least 1"),
        ({"ema_decay": 1.0}, r"optimizer.ema_decay=1.0 must lie in \[0, 1\)$"),
        ({"first_moment_dtype": "float16"}, "optimizer.first_moment_dtype='float16' must be 'param_dtype' or 'bfl"),
        ({"frozen": ("visual", "text")}, r"optimizer.frozen=\('visual', 'text'\) must be \(\), \('visual',\) or"),
    ],
)
def test_impossible_optimizers_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PAPER, **changes)


@pytest.mark.usefixtures("x64")
def test_two_steps_equal_adamw_by_hand():
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 5)), "bias": rng.normal(size=5)}
    learning_rates = [1e-3, 7e-4]
    optimizer = make_optimizer(PAPER, lambda step: jnp.asarray(learning_rates)[step])
    opt_state = optimizer.init(params)
    m = v = {name: np.zeros_like(p) for name, p in params.items()}
    for t, learning_rate in enumerate(learning_rates, start=1):
        grads = {name: rng.normal(size=p.shape) * 10.0 ** rng.integers(-7, 2, p.shape) for name, p in params.items()}
        updates, opt_state = optimizer.update(grads, opt_state, params)
        m = {name: 0.9 * m[name] + 0.1 * grads[name] for name in m}
        v = {name: 0.98 * v[name] + 0.02 * grads[name] ** 2 for name in v}
        for name, decay in (("kernel", 0.2), ("bias", 0.0)):
            adam = m[name] / (1 - 0.9**t) / (np.sqrt(v[name] / (1 - 0.98**t)) + 1e-6)
            np.testing.assert_allclose(updates[name], -learning_rate * (adam + decay * params[name]), rtol=1e-12)
        params = {name: params[name] + updates[name] for name in params}


def test_a_first_moment_in_bfloat16_is_rounded_and_nothing_else():
    rng = np.random.default_rng(0)
    params, grads = ({"kernel": rng.normal(size=(3, 5)).astype(np.float32)} for _ in range(2))
    moments = {}
    for dtype in ("param_dtype", "bfloat16"):
        optimizer = make_optimizer(dataclasses.replace(PAPER, first_moment_dtype=dtype), lambda step: 1e-3)
        _, opt_state = optimizer.update(grads, optimizer.init(params), params)
        moments[dtype] = opt_state[0]
    exact, rounded = moments["param_dtype"], moments["bfloat16"]
    assert (rounded.mu["kernel"].dtype, rounded.nu["kernel"].dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(rounded.mu["kernel"], exact.mu["kernel"].astype(jnp.bfloat16))
    np.testing.assert_array_equal(rounded.nu["kernel"], exact.nu["kernel"])


def test_a_logit_scale_that_does_not_learn_stays_and_nothing_else_does():
    params = {"logit_scale": jnp.asarray(2.5), "text": {"kernel": jnp.full((2, 3), 0.5), "bias": jnp.zeros(3)}}
    grads = jax.tree.map(jnp.ones_like, params)
    updates = {}
    for learns in (True, False):
        optimizer = make_optimizer(dataclasses.replace(PAPER, learn_logit_scale=learns), lambda _: 1e-3)
        updates[learns], _ = optimizer.update(grads, optimizer.init(params), params)
    assert float(updates[False]["logit_scale"]) == 0
    np.testing.assert_allclose(updates[True]["logit_scale"], -1e-3, rtol=1e-5)  # a first step of Adam: the rate
    np.testing.assert_array_equal(updates[False]["text"]["kernel"], updates[True]["text"]["kernel"])
    np.testing.assert_array_equal(updates[False]["text"]["bias"], updates[True]["text"]["bias"])
