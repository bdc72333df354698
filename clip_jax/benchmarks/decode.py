"""JPEGs to training crops on one core: `python -m clip_jax.benchmarks.decode --path=DIR_OF_TARS --peer_python=PYTHON`.

data.decode="fast" and "exact" by turns and, of an interpreter that has them, open_clip's transform for training and
tf.data's decoding, cropping and antialiased bicubic resize. open_clip cuts 0.9 to 1 of the picture's area, the others
squares of 0.9 to 1 of its shorter side. With --longer_side the pictures are first encoded anew at another size.
"""

import functools
import io
import itertools
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from clip_jax.benchmarks.options import PEER_PYTHON, SHARED, make_report
from clip_jax.benchmarks.peer import Peer, decode_peers
from clip_jax.benchmarks.timing import Runner, Timed
from clip_jax.cli import common_flags
from clip_jax.cli.parsing import run_command
from input_pipeline.jpeg import random_jpeg_crop
from input_pipeline.sources import make_source
from input_pipeline.transforms import decode_image, random_square_crop

for flag in ("peer_python", *SHARED):
    flags.declare_key_flag(flag)
PATH = flags.DEFINE_string("path", None, "A tar, a folder of tars or one of pictures.")
NUM_PICTURES = flags.DEFINE_integer("num_pictures", 128, "The first JPEGs of it.", lower_bound=1)
LONGER_SIDE = flags.DEFINE_integer("longer_side", None, "Pixels, encoded anew at quality 90.", lower_bound=8)
IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "Pixels a side of a crop.", lower_bound=1)

MIN_SCALE = 0.9  # of open_clip's crops, too
QUALITY = 90

Crop = Callable[[bytes, np.ndarray], np.ndarray | None]  # of encoded bytes, by three random numbers


def read_jpegs(path: str, num_pictures: int, longer_side: int | None) -> list[bytes]:
    """The first JPEGs of a path, as they are or with another longer side. Raises ValueError where there are none."""
    is_tar = not Path(path).is_dir() or any(Path(path).glob("*.tar"))
    source = make_source("webdataset" if is_tar else "folder", path)
    pictures = (source[index]["image"] for index in range(len(source)))
    jpegs = list(itertools.islice((p for p in pictures if p.startswith(b"\xff\xd8")), num_pictures))
    if not jpegs:
        raise ValueError(f"--path={path} holds no JPEG")
    return [_encode_anew(jpeg, longer_side) for jpeg in jpegs] if longer_side else jpegs


def _encode_anew(data: bytes, longer_side: int) -> bytes:
    image = decode_image(data).convert("RGB")
    size = [round(side * longer_side / max(image.size)) for side in image.size]
    buffer = io.BytesIO()
    image.resize((size[0], size[1]), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def make_crops(image_size: int) -> dict[str, Crop]:
    """Both ways of `Examples` to make a training crop."""

    def exact(data: bytes, numbers: np.ndarray) -> np.ndarray:
        return random_square_crop(decode_image(data), image_size, MIN_SCALE, numbers)

    return {"fast": lambda data, numbers: random_jpeg_crop(data, image_size, MIN_SCALE, numbers), "exact": exact}


def differences(jpegs: list[bytes], crops: dict[str, Crop], numbers: np.ndarray) -> np.ndarray:
    """Of each picture, the mean absolute difference of the fast crop's pixels from the exact ones, of 255.

    Raises ValueError where one is no plain JPEG, which has no fast way.
    """
    found = []
    for jpeg, drawn in zip(jpegs, numbers):
        fast, exact = crops["fast"](jpeg, drawn), crops["exact"](jpeg, drawn)
        if fast is None or exact is None:
            raise ValueError("--path holds a JPEG that only Pillow decodes (CMYK, or slightly broken): leave it out")
        found.append(np.abs(fast.astype(int) - exact).mean())
    return np.array(found)


def main() -> int:
    """Prints the table; see the module's docstring."""
    report = make_report("decode", main)
    jpegs = read_jpegs(common_flags.required(PATH, "DIR_OF_TARS"), NUM_PICTURES.value, LONGER_SIDE.value)
    numbers = np.random.default_rng(0).random((len(jpegs), 3))
    crops = make_crops(IMAGE_SIZE.value)
    difference = differences(jpegs, crops, numbers)

    def cut_all(crop: Crop) -> None:
        for jpeg, drawn in zip(jpegs, numbers):
            crop(jpeg, drawn)

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for number, jpeg in enumerate(jpegs):
            Path(folder, f"{number:06d}.jpg").write_bytes(jpeg)
        peers: dict[str, Peer] = {}
        if PEER_PYTHON.value:
            peers = decode_peers(PEER_PYTHON.value, Path(folder), IMAGE_SIZE.value)
        for peer in peers.values():
            stack.enter_context(closing(peer))
            peer()  # imports
        ways: dict[str, Runner] = {name: Timed(functools.partial(cut_all, crop)) for name, crop in crops.items()}
        timings = report.measure({**ways, **peers})
    width, height = np.median([Image.open(io.BytesIO(jpeg)).size for jpeg in jpegs], axis=0)
    kib = np.mean([len(jpeg) for jpeg in jpegs]) / 1024
    title = f"{len(jpegs)} JPEGs of {kib:.0f} KiB, median {width:.0f} x {height:.0f}, to {IMAGE_SIZE.value}, one core"
    report.add(title, {}, timings, {"images": len(jpegs)})
    fast = timings.seconds["fast"]
    speeds = {name: float(np.median(series / fast)) for name, series in timings.seconds.items() if name != "fast"}
    report.tell("fast is so many times as quick as", {"median of pairs": speeds})
    report.tell(
        "pixels, of 255",
        {"fast from exact": {"mean": float(difference.mean()), "mean of the worst": float(difference.max())}},
    )
    report.write()
    return 0


if __name__ == "__main__":
    run_command(main, sys.argv)
