"""Time and memory of a training step.

    clip-jax bench step --config=tiny --variants=remat=none,remat=full+num_microbatches=4

compares two variants, interleaved in one process, on random pictures and captions. A variant sets remat,
num_microbatches, block_size (of the streamed loss, 0 for the whole matrix), text (padded, short, packed, or a number of
positions to cut at), compute_dtype, patch_dropout. MFU counts the model's products once, even where a variant computes
them twice. --batch_size=auto takes the largest batch that fits the device in every variant, found by compiling.
"""

from absl import flags

from clip_jax.benchmarks.batch_size import memory_limit
from clip_jax.benchmarks.step import measure_steps
from clip_jax.benchmarks.variants import make_variants
from clip_jax.cli import common_flags
from clip_jax.cli.bench.options import PUBLISHED_NAME, SUBJECT, chosen_config, chosen_devices, make_report
from clip_jax.distributed.sharding import make_mesh

common_flags.declare(*SUBJECT)
DEFAULT_CONFIG = "tiny"
VARIANTS = flags.DEFINE_list("variants", [], "Variants to compare, the first with the others; default: the baseline.")
BATCH_SIZE = flags.DEFINE_string(
    "batch_size", None, "Pairs of a step over all devices, or auto; default: the config's, 32 of a published model."
)
MEMORY_GIB = flags.DEFINE_float("memory_gib", None, "Memory of a device; default: what it has.", lower_bound=0)


def main() -> int:
    """Prints the tables; see the module's docstring."""
    report = make_report("step", main)
    subject, config = chosen_config()
    variants = make_variants(config, VARIANTS.value)
    mesh = make_mesh(config.sharding, chosen_devices())
    limit = int(MEMORY_GIB.value * 2**30) if MEMORY_GIB.value else memory_limit(mesh.devices.flat[0])
    given = BATCH_SIZE.value or str(32 if PUBLISHED_NAME.value else config.train.global_batch_size)
    if given != "auto" and (not given.isdigit() or int(given) < 1):
        raise ValueError(f"--batch_size={given} must be a number of pairs, or auto")
    batch_size = None if given == "auto" else int(given)
    measure_steps(report, subject, config, variants, mesh, batch_size, limit)
    report.write()
    return 0
