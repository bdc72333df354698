"""Seconds and memory of reading weights and writing them in another layout: `python tests/benchmarks/conversion.py`.

Zeros in the shapes of a published model are written as open_clip would; a fresh process reads them and writes them for
the other format. Peak memory is of the whole process, mapped file pages and JAX itself included, over the file's size.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags

from clip_jax.cli.common_flags import run_command
from clip_jax.models import ResNetConfig
from clip_jax.models.variables import init_variables
from clip_jax.pretrained import ImageTransform, Pretrained, load_pretrained, save_pretrained
from clip_jax.pretrained.names import BY_NAME
from clip_jax.tables import format_table

NAME = flags.DEFINE_enum("published", "ViT-L/14", list(BY_NAME), "Name of the model of the shapes.")
FOLDER = flags.DEFINE_string("folder", None, "Folder of the weights; used by the fresh process.")


def main() -> int:
    """Prints the table; see the module's docstring."""
    config = BY_NAME[NAME.value].config
    if FOLDER.value:
        is_resnet = isinstance(config.vision, ResNetConfig)
        _measure(Path(FOLDER.value), "open_clip" if is_resnet else "huggingface")
        return 0
    shapes = jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    with tempfile.TemporaryDirectory() as folder:
        pretrained = Pretrained(config=config, variables=variables, transform=ImageTransform(), folder=Path(folder))
        save_pretrained(pretrained, Path(folder) / "in", "open_clip")
        command = [sys.executable, __file__, f"--published={NAME.value}"]
        subprocess.run([*command, f"--folder={folder}"], check=True)
    return 0


def _measure(folder: Path, form: str) -> None:
    size = sum(file.stat().st_size for file in (folder / "in").glob("*.safetensors"))
    rows = []

    def add(what: str, seconds: float) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        rows.append([what, f"{seconds:.1f}", f"{peak / size:.2f}"])

    start = time.perf_counter()
    pretrained = load_pretrained(folder / "in")
    add("read", time.perf_counter() - start)
    save_pretrained(pretrained, folder / "out", form)  # type: ignore[arg-type]
    add(f"read and written for {form}", time.perf_counter() - start)
    print(format_table([f"{size / 2**30:.2f} GiB", "s", "peak memory over file size"], rows))


if __name__ == "__main__":
    run_command(main, sys.argv)
