"""Speed of making batches, and how many cores keep an accelerator busy.

    clip-jax bench input --config=tiny --images_per_s=2000

Two tables. On one core, each stage and its share of the whole: read a record (or draw a scene), decode and crop with
both values of data.decode, tokenise, stack. Then the pipeline as training runs it: in the training process, with one
worker process and with --num_workers; each run starts its own workers and is timed once the batches that they made in
advance are used up. --memory_records=100000 reports the memory of the process and its workers while so many are read.
Records that were read before lie in the system's cache: a cold disk or a network is slower.
"""

import dataclasses
import tempfile
from pathlib import Path

from absl import flags

from clip_jax.benchmarks.input import measure_pipeline, measure_stages, open_examples
from clip_jax.cli import common_flags
from clip_jax.cli.bench.options import SHARED, chosen_config, make_report

common_flags.declare("config", *SHARED)
DEFAULT_CONFIG = "tiny"
NUM_WORKERS = flags.DEFINE_integer("num_workers", None, "Worker processes; default: the config's.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images of a batch; default: the config's.", lower_bound=1)
NUM_BATCHES = flags.DEFINE_integer("num_batches", 8, "Batches timed in a run of the pipeline.", lower_bound=1)
NUM_RECORDS = flags.DEFINE_integer("num_records", 64, "Records on which each stage is timed.", lower_bound=1)
IMAGES_PER_S = flags.DEFINE_float("images_per_s", 1000.0, "Images per second that training takes.", lower_bound=1)
MEMORY_RECORDS = flags.DEFINE_integer("memory_records", None, "Records over which memory is watched.", lower_bound=1)


def main() -> int:
    """Prints the tables; see the module's docstring."""
    report = make_report("input", main)
    subject, config = chosen_config()
    if not report.num_runs:
        raise ValueError("--num_runs=0 leaves nothing to do here: the input pipeline compiles nothing")
    report.content["config"] = dataclasses.asdict(config)
    with tempfile.TemporaryDirectory() as folder:
        examples = open_examples(config, Path(folder))
        measure_stages(report, subject, examples, NUM_RECORDS.value)
        measure_pipeline(
            report,
            subject,
            config,
            examples,
            batch_size=BATCH_SIZE.value or config.train.global_batch_size,
            num_batches=NUM_BATCHES.value,
            num_workers=NUM_WORKERS.value or max(1, config.data.num_workers),
            images_per_s=IMAGES_PER_S.value,
            memory_records=MEMORY_RECORDS.value,
        )
    report.write()
    return 0
