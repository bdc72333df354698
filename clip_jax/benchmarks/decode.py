"""JPEGs to training crops on one core: data.decode="fast" against "exact", and the difference of the pixels."""

import functools
import io
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from clip_jax.benchmarks.report import Report
from clip_jax.benchmarks.timing import Runner, Timed
from input_pipeline.jpeg import random_jpeg_crop
from input_pipeline.sources import make_source
from input_pipeline.transforms import decode_image, random_square_crop

MIN_SCALE = 0.9  # of the shorter side
QUALITY = 90

Crop = Callable[[bytes, np.ndarray], np.ndarray | None]  # of encoded bytes, with three random numbers


def read_jpegs(path: str, num_pictures: int, longer_side: int | None) -> list[bytes]:
    """The first JPEGs of a path, unchanged or with another longer side. Raises ValueError where there are none."""
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
    """The crops of `Examples`, by the value of data.decode."""

    def exact(data: bytes, numbers: np.ndarray) -> np.ndarray:
        return random_square_crop(decode_image(data), image_size, MIN_SCALE, numbers)

    return {"fast": lambda data, numbers: random_jpeg_crop(data, image_size, MIN_SCALE, numbers), "exact": exact}


def differences(jpegs: list[bytes], crops: dict[str, Crop], numbers: np.ndarray) -> np.ndarray:
    """Of each picture, the mean absolute difference of the fast crop's pixels from the exact ones, of 255.

    Raises ValueError for a JPEG that has no fast decoder.
    """
    found = []
    for jpeg, drawn in zip(jpegs, numbers):
        fast, exact = crops["fast"](jpeg, drawn), crops["exact"](jpeg, drawn)
        if fast is None or exact is None:
            raise ValueError("--path holds a JPEG that only Pillow decodes (CMYK, or slightly broken): leave it out")
        found.append(np.abs(fast.astype(int) - exact).mean())
    return np.array(found)


def measure_decoding(
    report: Report, jpegs: list[bytes], image_size: int, peers: Mapping[str, Runner] | None = None
) -> None:
    """Adds a table of both decoders to the report.

    peers: runners of other packages on the same JPEGs by name, interleaved with ours.
    """
    numbers = np.random.default_rng(0).random((len(jpegs), 3))
    crops = make_crops(image_size)
    difference = differences(jpegs, crops, numbers)

    def cut_all(crop: Crop) -> None:
        for jpeg, drawn in zip(jpegs, numbers):
            crop(jpeg, drawn)

    runners: dict[str, Runner] = {name: Timed(functools.partial(cut_all, crop)) for name, crop in crops.items()}
    timings = report.measure({**runners, **(peers or {})})
    width, height = np.median([Image.open(io.BytesIO(jpeg)).size for jpeg in jpegs], axis=0)
    kib = np.mean([len(jpeg) for jpeg in jpegs]) / 1024
    title = f"{len(jpegs)} JPEGs of {kib:.0f} KiB, median {width:.0f} x {height:.0f}, to {image_size}, one core"
    report.add(title, {}, timings, {"images": len(jpegs)})
    fast = timings.seconds["fast"]
    speeds = {name: float(np.median(series / fast)) for name, series in timings.seconds.items() if name != "fast"}
    report.note("speed of fast over that of", {"median of pairs": speeds})
    pixels = {"mean": float(difference.mean()), "mean of the worst": float(difference.max())}
    report.note("pixels, of 255", {"fast from exact": pixels})
