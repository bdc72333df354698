"""The plan of a config's step for devices that need not exist: its own, or settings that fit."""

import dataclasses
import math
import sys
from typing import Any

import jax

from clip_jax.config.experiment import Config
from clip_jax.planning.fit import HEADROOM, Fitter, Setting, is_resnet
from clip_jax.planning.step import GIB, DoesNotFitError, StepPlan, compile_step
from clip_jax.planning.topology import CHIPS
from clip_jax.tables import format_table


def plan(config: Config, devices: list[jax.Device]) -> tuple[Setting, StepPlan]:
    """The config's own step. Raises ValueError, with settings that should fit, when it does not."""
    setting, fitter = Setting.of(config), Fitter(config, len(devices))
    try:
        return setting, _compile(config, devices, setting)
    except DoesNotFitError as refusal:
        limit = HEADROOM * refusal.available_bytes
        share = fitter.share(setting, refusal.needed_bytes)
        others = (other for other in fitter.settings() if fitter.estimate(other, share) <= limit)
        if (found := next(others, None)) is None:
            raise _nothing_fits(refusal) from refusal
        note = ", though batch norms would see smaller parts" if _relearns(config, found) else ""
        raise ValueError(
            f"the step {refusal}. The cheapest settings that should fit, by a rough estimate of "
            f"{fitter.estimate(found, share) / GIB:.1f} GiB, with {fitter.cost(found):.2f} times the FLOPs of a step "
            f"without recomputation{note}: {found.flags()}; --fit compiles until one does"
        ) from refusal


def plan_fitting(config: Config, devices: list[jax.Device]) -> tuple[Setting, StepPlan]:
    """The remat, fsdp and num_microbatches that fit with the fewest FLOPs. Raises ValueError when none fits."""
    fitter, chip, share = Fitter(config, len(devices)), CHIPS.get(devices[0].device_kind), None
    refusal = DoesNotFitError(math.inf, chip.memory_bytes if chip else math.inf)
    for setting in fitter.settings():
        if fitter.estimate(setting, share) > HEADROOM * refusal.available_bytes:
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
    """A plan for JSON; None where the device's peak is not known."""
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
    """Three significant digits, or all before the point, thousands separated by commas."""
    return f"{x:,.{max(0, 2 - math.floor(math.log10(x)))}f}" if x else "0"


def describe(config: Config, topology: str, setting: Setting, step: StepPlan) -> str:
    """The plan as a table."""
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
        ["  relative to no recomputation", f"{step.executed_flops / step.model_flops:.3f}"],
        ["GB to and from a device's memory in a step", _number(step.bytes_moved / 1e9)],
        *([f"{c.kind}: times, MB", f"{c.count:,}, {_number(c.bytes / 1e6)}"] for c in step.collectives),
    ]
    if step.chip:
        bound = max(step.times, key=step.times.__getitem__)
        rows += [
            ["lower bound of a step, s: compute, memory, network", ", ".join(map(_number, step.times.values()))],
            [f"  bound by {bound}; the MFU it allows", f"{step.mfu:.0%}"],
            ["pairs/s, at most", _number(step.samples / step.step_s)],
            [f"hours of {step.total_samples:,} pairs, at least", _number(step.hours)],
            ["chip-hours, at least", _number(step.hours * step.num_devices)],
        ]
    rows += [["seconds of compilation", _number(step.compile_s)]]
    title = f"{topology}, {step.num_devices} devices, batch {step.samples:,}"
    note = "\nBatch norms see smaller parts than the config's own do." if _relearns(config, setting) else ""
    return f"{format_table([title, ''], rows)}\n\nsettings: {setting.flags()}{note}"
