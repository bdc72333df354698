"""What a config asks of its devices, before any is rented.

    clip-jax plan --config=clip_vit_l14 --topology=v5e:16x16

compiles the true train step for a TPU slice that need not exist, or for the devices of this machine, and reports
memory, FLOPs, collectives, and lower bounds of time and hours from the chip's own numbers. --fit looks for settings
that fit; --params lists every parameter with its shape, partition and bytes a device, optimizer state included.
"""

import json
from pathlib import Path
from typing import Any

import jax
from absl import flags

from clip_jax.cli import common_flags
from clip_jax.config.experiment import make_config
from clip_jax.distributed.sharding import make_abstract_mesh
from clip_jax.planning.params import as_table, param_table
from clip_jax.planning.plan import as_record, describe, plan, plan_fitting
from clip_jax.planning.topology import topology_devices
from clip_jax.plots.planning import plot_memory
from clip_jax.training.training import Training
from input_pipeline.storage import write_json

common_flags.declare("config")
TOPOLOGY = flags.DEFINE_string("topology", None, "TPU slice, such as v5e:16x16; default: this machine's devices.")
FIT = flags.DEFINE_bool("fit", False, "Find the settings that fit with the fewest FLOPs.")
OUTPUT = flags.DEFINE_string("output", None, "Folder for plan.json and memory.png.", allow_override=True)
JSON = flags.DEFINE_bool("json", False, "Print JSON instead of tables.", allow_override=True)
PARAMS = flags.DEFINE_bool("params", False, "List every parameter.")
NUM_DEVICES = flags.DEFINE_integer("num_devices", None, "Number of devices, for --params alone; they need not exist.")


def main() -> int:
    """Prints the plan; see the module's docstring."""
    sections: dict[str, Any] = common_flags.required(common_flags.CONFIG, "clip_vit_b32").to_dict()
    config = make_config(sections)
    if PARAMS.value:
        num_devices = NUM_DEVICES.value or len(topology_devices(TOPOLOGY.value) if TOPOLOGY.value else jax.devices())
        mesh = make_abstract_mesh(config.sharding, num_devices)
        print(as_table(param_table(Training(config, mesh).abstract())))
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
