"""The flags that several kinds of `clip-jax bench` share, and what they ask for."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import flags

from clip_jax.benchmarks.report import Report
from clip_jax.cli import common_flags
from clip_jax.config.experiment import Config, make_config
from clip_jax.losses import LossConfig
from clip_jax.models import PUBLISHED
from configs import clip_vit_b32, tiny

NUM_RUNS = flags.DEFINE_integer(
    "num_runs",
    10,
    "Runs of each variant, at least; more follow while the noise is high. 0 only compiles.",
    lower_bound=0,
)
MAX_MINUTES = flags.DEFINE_float(
    "max_minutes", 2.0, "Minutes for a table after which a noisy machine is measured no longer.", lower_bound=0
)
JSON = flags.DEFINE_string(
    "json", None, "File for settings, versions, all times and the verdict on the noise.", allow_override=True
)
PUBLISHED_NAME = flags.DEFINE_enum(
    "published", None, list(PUBLISHED), "Published model, in float32 without remat, instead of a config's."
)
NUM_DEVICES = flags.DEFINE_integer(
    "num_devices", None, "Number of devices, default: all; on CPU any number.", lower_bound=1
)
SHARED = ("num_runs", "max_minutes", "json")
SUBJECT = ("config", "published", "num_devices", *SHARED)


def make_report(benchmark: str, main: Callable[[], int]) -> Report:
    """The report that the flags ask for; its settings are the flags of main's module."""
    own = flags.FLAGS.get_key_flags_for_module(sys.modules[main.__module__])
    settings: dict[str, Any] = {flag.name: flag.value for flag in own if flag.name != "config"}
    return Report(benchmark, settings, Path(JSON.value) if JSON.value else None, NUM_RUNS.value, 60 * MAX_MINUTES.value)


def chosen_config() -> tuple[str, Config]:
    """Name and config of what is measured: --config, by default tiny, or the base config with the --published model, in
    float32 and without remat. Raises ValueError when both are given."""
    if PUBLISHED_NAME.value is None and common_flags.CONFIG.value is None:
        return "tiny", make_config(tiny.get_config().to_dict())
    if PUBLISHED_NAME.value is None:
        file = flags.FLAGS["config"].config_filename  # type: ignore[attr-defined]
        return Path(file).stem, make_config(common_flags.CONFIG.value.to_dict())
    if common_flags.CONFIG.value is not None:
        raise ValueError(f"--published={PUBLISHED_NAME.value} and --config exclude each other: leave one out")
    model = PUBLISHED[PUBLISHED_NAME.value]
    base = make_config(clip_vit_b32.get_config().to_dict())
    loss = LossConfig(kind="contrastive" if model.logit_bias_init is None else "sigmoid")
    return PUBLISHED_NAME.value, dataclasses.replace(base, model=model, loss=loss)


def chosen_devices() -> list[jax.Device]:
    """The first --num_devices of this machine's devices."""
    if NUM_DEVICES.value:
        jax.config.update("jax_num_cpu_devices", NUM_DEVICES.value)
    devices = jax.devices()
    if NUM_DEVICES.value and NUM_DEVICES.value > len(devices):
        raise ValueError(f"--num_devices={NUM_DEVICES.value} is more than there are: {len(devices)}")
    return devices[: NUM_DEVICES.value]
