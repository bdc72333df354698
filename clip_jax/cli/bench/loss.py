"""Seconds and memory of a loss and its gradients: the whole matrix against blocks, interleaved in one process.

    clip-jax bench loss --num_pairs=16384
    clip-jax bench loss --num_pairs=32768 --num_devices=8 --num_runs=0       memory only
    clip-jax bench loss --num_pairs=1048576 --topology=v5e:16x16             memory on devices that need not exist

Temporaries are what the compiled program needs on each device besides its inputs and outputs; on TPU, where XLA reports
it, the peak includes all three.
"""

from absl import flags

from clip_jax.benchmarks.loss import SCALARS, make_forms, measure_loss, plan_forms
from clip_jax.cli import common_flags
from clip_jax.cli.bench.options import SHARED, chosen_devices, make_report
from clip_jax.distributed.sharding import ShardingConfig, make_mesh
from clip_jax.losses.blockwise import BLOCK_SIZE
from clip_jax.losses.config import FORMS
from clip_jax.planning.topology import topology_devices

common_flags.declare("num_devices", *SHARED)
LOSS = flags.DEFINE_enum("loss", "contrastive", list(FORMS), "Kind of loss.")
NUM_PAIRS = flags.DEFINE_multi_integer("num_pairs", [4096], "Pairs of a global batch; may be repeated.")
EMBED_DIM = flags.DEFINE_integer("embed_dim", 512, "Channels of the features.")
BLOCK_SIZES = flags.DEFINE_multi_integer("block_size", [BLOCK_SIZE], "Rows of a block; may be repeated.")
TOPOLOGY = flags.DEFINE_string("topology", None, "TPU slice to compile for, such as v5e:16x16; nothing is run.")


def main() -> int:
    """Prints a table for each number of pairs; see the module's docstring."""
    report = make_report("loss", main)
    mesh = make_mesh(ShardingConfig(), topology_devices(TOPOLOGY.value) if TOPOLOGY.value else chosen_devices())
    loss, E, blocks = LOSS.value, EMBED_DIM.value, BLOCK_SIZES.value
    for N in NUM_PAIRS.value:
        if TOPOLOGY.value:
            figures = plan_forms(make_forms(loss, mesh, blocks), N, E, len(SCALARS[loss]), mesh)
            report.add(f"{N:,} pairs, {E} channels, {TOPOLOGY.value}", figures)
        else:
            measure_loss(report, loss, N, E, blocks, mesh)
    report.write()
    return 0
