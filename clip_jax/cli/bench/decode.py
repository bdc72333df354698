"""Speed of turning JPEGs into training crops on one core, data.decode=fast against exact, and the pixels' difference.

    clip-jax bench decode --path=DIR_OF_TARS

--longer_side first encodes the pictures anew at another size.
"""

from absl import flags

from clip_jax.benchmarks.decode import measure_decoding, read_jpegs
from clip_jax.cli import common_flags
from clip_jax.cli.bench.options import SHARED, make_report

common_flags.declare(*SHARED)
PATH = flags.DEFINE_string("path", None, "A tar, a folder of tars or a folder of pictures.")
NUM_PICTURES = flags.DEFINE_integer("num_pictures", 128, "Number of JPEGs, the first of the path.", lower_bound=1)
LONGER_SIDE = flags.DEFINE_integer(
    "longer_side", None, "Pixels of the longer side, encoded anew at quality 90.", lower_bound=8
)
IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "Pixels a side of a crop.", lower_bound=1)


def main() -> int:
    """Prints the table; see the module's docstring."""
    report = make_report("decode", main)
    jpegs = read_jpegs(common_flags.required(PATH, "DIR_OF_TARS"), NUM_PICTURES.value, LONGER_SIDE.value)
    measure_decoding(report, jpegs, IMAGE_SIZE.value)
    report.write()
    return 0
