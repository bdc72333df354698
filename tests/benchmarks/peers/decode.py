"""JPEGs to training crops on one core, ours beside open_clip's and tf.data's: `python
tests/benchmarks/peers/decode.py --path=DIR_OF_TARS --peer_python=PYTHON`.

Interleaved: data.decode="fast" and "exact", and in the interpreter that has them open_clip's transform for training and
tf.data's decoding, cropping and antialiased bicubic resize. open_clip cuts 0.9 to 1 of the picture's area, the others
squares of 0.9 to 1 of its shorter side. --longer_side first encodes the pictures anew at another size.
"""

import sys
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path

from absl import flags
from peer import PEER_PYTHON, decode_peers

from clip_jax.benchmarks.decode import measure_decoding, read_jpegs
from clip_jax.cli import common_flags
from clip_jax.cli.bench.decode import IMAGE_SIZE, LONGER_SIDE, NUM_PICTURES, PATH
from clip_jax.cli.bench.options import SHARED, make_report
from clip_jax.cli.common_flags import run_command

for flag in ("peer_python", "path", "num_pictures", "longer_side", "image_size", *SHARED):
    flags.declare_key_flag(flag)


def main() -> int:
    """Prints the table; see the module's docstring."""
    report = make_report("decode", main)
    jpegs = read_jpegs(common_flags.required(PATH, "DIR_OF_TARS"), NUM_PICTURES.value, LONGER_SIDE.value)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for number, jpeg in enumerate(jpegs):
            Path(folder, f"{number:06d}.jpg").write_bytes(jpeg)
        peers = decode_peers(common_flags.required(PEER_PYTHON, "PYTHON"), Path(folder), IMAGE_SIZE.value)
        for peer in peers.values():
            stack.enter_context(closing(peer))
            peer()  # imports
        measure_decoding(report, jpegs, IMAGE_SIZE.value, peers)
    report.write()
    return 0


if __name__ == "__main__":
    run_command(main, sys.argv)
