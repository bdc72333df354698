"""A training step beside open_clip's: `python tests/benchmarks/peers/step.py --published=ViT-B/32
--peer_python=PYTHON`.

Both in float32 on the CPU, interleaved: ours for each of --variants, as `clip-jax bench step` takes them; open_clip's
in the interpreter that has it. Random pictures, text of 77 positions.
"""

import sys
from contextlib import closing

from absl import flags
from peer import PEER_PYTHON, open_clip_step

from clip_jax.benchmarks.batch_size import memory_limit
from clip_jax.benchmarks.step import measure_steps
from clip_jax.benchmarks.variants import make_variants
from clip_jax.cli import common_flags
from clip_jax.cli.bench.options import PUBLISHED_NAME, SUBJECT, chosen_config, chosen_devices, make_report
from clip_jax.cli.common_flags import run_command
from clip_jax.distributed.sharding import make_mesh

for flag in ("peer_python", *SUBJECT):
    flags.declare_key_flag(flag)
VARIANTS = flags.DEFINE_list("variants", [], "Variants to compare, the first with the others; default: the baseline.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Pairs of a step.", lower_bound=1)


def main() -> int:
    """Prints the tables; see the module's docstring."""
    report = make_report("step", main)
    common_flags.required(PUBLISHED_NAME, "ViT-B/32")
    name, config = chosen_config()
    mesh = make_mesh(config.sharding, chosen_devices())
    python = common_flags.required(PEER_PYTHON, "PYTHON")
    with closing(open_clip_step(python, name, BATCH_SIZE.value, config.model.vision.image_size)) as peer:
        peer()  # the first step takes longer
        limit = memory_limit(mesh.devices.flat[0])
        variants = make_variants(config, VARIANTS.value)
        measure_steps(report, name, config, variants, mesh, BATCH_SIZE.value, limit, {"open_clip": peer})
    report.write()
    return 0


if __name__ == "__main__":
    run_command(main, sys.argv)
