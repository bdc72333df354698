import numpy as np

from clip_jax.benchmarks.peaks import Peaks, published_peak, utilisation
from clip_jax.distributed.sharding import make_mesh


def test_utilisation_of_known_numbers():
    # 6 TFLOP on two devices of 10 TFLOP/s each in half a second.
    assert utilisation(6e12, 0.5, 2, 10e12) == 0.6


def test_published_peaks_are_of_a_dtype():
    assert published_peak("TPU v5 lite", "bfloat16") == published_peak("TPU v5 lite", "float32") == 197e12
    assert published_peak("NVIDIA H100 80GB HBM3", "float32") == 494e12
    assert published_peak("TPU v5 lite", "float64") is None
    assert published_peak("cpu", "float32") is None


def test_a_device_without_a_published_peak_is_measured():
    mesh = make_mesh()
    peaks = Peaks(mesh, {"a": "float32", "b": "bfloat16", "c": "float32"})
    assert list(peaks.runners) == ["product, float32", "product, bfloat16"]
    seconds = {"product, float32": np.array([0.5, 0.25]), "product, bfloat16": np.array([1.0])}
    assert peaks.of("c", seconds) == 2 * 1024**3 / 0.25
    described = peaks.describe(seconds)["bfloat16"]
    assert described["TFLOP/s"] == 2 * 1024**3 / 1e12
    assert described["source"] == "measured: the fastest product of 1024 rows a device and 1024 columns"


def test_the_product_is_of_every_device():
    assert make_mesh().size == 8
    assert 0 < Peaks(make_mesh(), {"a": "float32"}).runners["product, float32"]() < 60  # seconds
