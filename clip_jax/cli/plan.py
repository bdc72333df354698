"""What a config asks of its devices, before any is rented: `clip-jax plan --config=clip_vit_l14 --topology=v5e:16x16`.

Compiles the true train step for a TPU slice that need not be there, or for the devices of this machine, and tells
memory, FLOPs, collectives, and the least time and hours that the chip's own numbers allow. --fit looks for settings
that fit; --params lists every parameter with its shape, partition and bytes a device, optimizer state included.
"""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import jax
from absl import flags

from clip_jax.cli import common_flags
from clip_jax.config.experiment import Config, make_config
from clip_jax.planning.fit import HEADROOM, Fitter, Setting, is_resnet
from clip_jax.planning.params import as_table, param_table
from clip_jax.planning.step import GIB, DoesNotFitError, StepPlan, compile_step
from clip_jax.planning.topology import CHIPS, topology_devices
from clip_jax.plots.planning import plot_memory
from clip_jax.tables import format_table
from input_pipeline.storage import write_json

flags.declare_key_flag("config")
TOPOLOGY = flags.DEFINE_string("topology", None, "TPU slice, such as v5e:16x16; by default this machine's devices.")
FIT = flags.DEFINE_bool("fit", False, "Find the settings that fit with the fewest FLOPs.")
OUTPUT = flags.DEFINE_string("output", None, "Folder for plan.json and memory.png.", allow_override=True)
JSON = flags.DEFINE_bool("json", False, "Print JSON instead of tables.", allow_override=True)
PARAMS = flags.DEFINE_bool("params", False, "List every parameter.")
NUM_DEVICES = flags.DEFINE_integer("num_devices", None, "For --params alone: devices, which need not be there.")


def plan(config: Config, devices: list[jax.Device]) -> tuple[Setting, StepPlan]:
    """The config's own step.

    Raises ValueError, with a guess at what would fit, when it does not.
    """
    setting, fitter = Setting.of(config), Fitter(config, len(devices))
    try:
        return setting, _compile(config, devices, setting)
    except DoesNotFitError as refusal:
        limit = HEADROOM * refusal.available_bytes
        share = fitter.share(setting, refusal.needed_bytes)
        others = (other for other in fitter.settings() if fitter.guess(other, share) <= limit)
        if (found := next(others, None)) is None:
            raise _nothing_fits(refusal) from refusal
        note = ", though batch norms would see smaller parts" if _relearns(config, found) else ""
        raise ValueError(
            f"the step {refusal}. The cheapest that should fit, by a rough guess at "
            f"{fitter.guess(found, share) / GIB:.1f} GiB and with {fitter.cost(found):.2f} times the FLOPs of one that "
            f"computes nothing twice{note}: {found.flags()}; --fit compiles until one does"
        ) from refusal


def plan_fitting(config: Config, devices: list[jax.Device]) -> tuple[Setting, StepPlan]:
    """The setting of remat, fsdp and num_microbatches that fits with the fewest FLOPs, whatever the config's own are.

    Raises ValueError when none fits.
    """
    fitter, chip, share = Fitter(config, len(devices)), CHIPS.get(devices[0].device_kind), None
    refusal = DoesNotFitError(math.inf, chip.memory_bytes if chip else math.inf)
    for setting in fitter.settings():
        if fitter.guess(setting, share) > HEADROOM * refusal.available_bytes:
            continue
        try:
            return setting, _compile(setting.apply(config), devices, setting)
        except DoesNotFitError as error:
            refusal, share = error, fitter.share(setting, error.needed_bytes)
            _say(f"that {error}")
    raise _nothing_fits(refusal)


def _compile(config: Config, devices: list[jax.Device], setting: Setting) -> StepPlan:
    _say(f"compiling for {len(devices)} {devices[0].device_kind} {setting.flags()}; a large step takes minutes")
    return compile_step(config, devices)


def _nothing_fits(refusal: DoesNotFitError) -> ValueError:
    return ValueError(
        f"the step {refusal}, and no model.remat, sharding.fsdp or train.num_microbatches makes it fit: use more or "
        "larger devices, or a smaller train.global_batch_size"
    )


def _relearns(config: Config, setting: Setting) -> bool:
    """Whether a setting moves batch norms to other parts of a batch than the config's own."""
    return is_resnet(config.model) and setting.num_microbatches != config.train.num_microbatches


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def as_record(config: Config, topology: str, setting: Setting, step: StepPlan) -> dict[str, Any]:
    """All of a plan, ready for JSON; NaN of what a device without known numbers leaves open is None."""
    record = {
        "topology": topology,
        **dataclasses.asdict(step),
        "settings": setting._asdict(),
        "times": step.times,
        "step_s": step.step_s,
        "mfu": step.mfu,
        "executed_over_model_flops": step.executed_flops / step.model_flops,
        "samples_per_s": step.samples / step.step_s,
        "hours": step.hours,
        "chip_hours": step.hours * step.num_devices,
        "changes_what_is_learned": _relearns(config, setting),
    }
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in record.items()}


def _number(x: float) -> str:
    """Three significant digits or all before the point, with thousands apart."""
    return f"{x:,.{max(0, 2 - math.floor(math.log10(x)))}f}" if x else "0"


def describe(config: Config, topology: str, setting: Setting, step: StepPlan) -> str:
    """The plan as a person reads it."""
    memory = step.memory
    capacity = f" of {_number(step.chip.memory_bytes / GIB)}" if step.chip else ""
    rows = [
        ["parameters", f"{step.parameters:,}"],
        ["peak memory of a device, GiB", f"{_number(memory['peak'] / GIB)}{capacity}"],
        *(
            [f"  {part}", _number(memory[name] / GIB)]
            for name, part in (
                ("parameters", "parameters"),
                ("optimizer", "moments and average"),
                ("batch", "batch"),
                ("kept", "kept for the backward pass, as traced"),
                ("other", "other temporaries"),
            )
        ),
        ["GFLOPs of encoding one pair", f"{step.forward_flops / 1e9:,.2f}"],
        ["TFLOPs of a step, all devices", _number(step.executed_flops / 1e12)],
        ["  over those with nothing computed twice", f"{step.executed_flops / step.model_flops:.3f}"],
        ["GB to and from a device's memory in a step", _number(step.bytes_moved / 1e9)],
        *([f"{c.kind}: times, MB", f"{c.count:,}, {_number(c.bytes / 1e6)}"] for c in step.collectives),
    ]
    if step.chip:
        bound = max(step.times, key=step.times.__getitem__)
        rows += [
            ["least time of a step, s: compute, memory, network", ", ".join(map(_number, step.times.values()))],
            [f"  bound by {bound}; the MFU it allows", f"{step.mfu:.0%}"],
            ["pairs/s, at most", _number(step.samples / step.step_s)],
            [f"hours of {step.total_samples:,} pairs, at least", _number(step.hours)],
            ["chip-hours, at least", _number(step.hours * step.num_devices)],
        ]
    rows += [["seconds of compilation", _number(step.compile_s)]]
    title = f"{topology}, {step.num_devices} devices, batch {step.samples:,}"
    note = "\nBatch norms see smaller parts than the config's own do." if _relearns(config, setting) else ""
    return f"{format_table([title, ''], rows)}\n\nsettings: {setting.flags()}{note}"


def main() -> int:
    """Prints the plan; see the module's docstring."""
    sections: dict[str, Any] = common_flags.required(common_flags.CONFIG, "clip_vit_b32").to_dict()
    config = make_config(sections)
    if PARAMS.value:
        num_devices = NUM_DEVICES.value or len(topology_devices(TOPOLOGY.value) if TOPOLOGY.value else jax.devices())
        print(as_table(param_table(config.model, config.optimizer, config.sharding, num_devices)))
        return 0
    if NUM_DEVICES.value:
        raise ValueError("--num_devices is for --params; a step is compiled for a --topology")
    devices = topology_devices(TOPOLOGY.value) if TOPOLOGY.value else jax.devices()
    topology = TOPOLOGY.value or devices[0].device_kind
    setting, step = (plan_fitting if FIT.value else plan)(config, devices)
    record = as_record(config, topology, setting, step)
    if OUTPUT.value:
        folder = Path(OUTPUT.value)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "plan.json", record)
        label = f"{setting.remat}, fsdp {setting.fsdp}, {setting.num_microbatches} part(s)"
        title = f"Memory of a device: {topology}, batch {step.samples:,}"
        memory_bytes = step.chip.memory_bytes if step.chip else None
        plot_memory({label: step.memory}, memory_bytes, folder / "memory.png", title)
    print(json.dumps(record, indent=2) if JSON.value else describe(config, topology, setting, step))
    return 0
