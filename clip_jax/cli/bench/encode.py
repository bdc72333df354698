"""Speed of encoding images and texts.

    clip-jax bench encode --config=tiny --variants=text=padded,text=short

compares two variants, interleaved in one process, on random pictures and captions. A variant sets text (padded to the
context length, or short: sorted and cut at its longest row) and compute_dtype. MFU is of the images.
"""

from absl import flags

from clip_jax.benchmarks.encode import SETTINGS, measure_encoding
from clip_jax.benchmarks.variants import make_variants
from clip_jax.cli import common_flags
from clip_jax.cli.bench.options import SUBJECT, chosen_config, chosen_devices, make_report
from clip_jax.distributed.sharding import make_mesh

common_flags.declare(*SUBJECT)
DEFAULT_CONFIG = "tiny"
VARIANTS = flags.DEFINE_list(
    "variants", ["text=short", "text=padded"], "Variants to compare, the first with the others."
)
NUM_ROWS = flags.DEFINE_integer(
    "num_rows", None, "Images, and texts, of a run; default: two batches of the config's.", lower_bound=1
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Rows of a batch; default: the config's.", lower_bound=1)


def main() -> int:
    """Prints the tables; see the module's docstring."""
    report = make_report("encode", main)
    subject, config = chosen_config()
    mesh = make_mesh(config.sharding, chosen_devices())
    variants = make_variants(config, VARIANTS.value, SETTINGS)
    batch_size = BATCH_SIZE.value or config.evaluation.batch_size
    measure_encoding(report, subject, config, variants, mesh, batch_size, NUM_ROWS.value or 2 * batch_size)
    report.write()
    return 0
