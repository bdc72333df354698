"""TPU slices that are not there; what needs libtpu is skipped without it."""

import pytest
from jax.experimental import topologies

from clip_jax.losses import LossConfig, make_loss
from clip_jax.sharding import make_mesh
from clip_jax.topology import topology_devices


def test_a_slice_is_compiled_for():
    pytest.importorskip("libtpu")
    mesh = make_mesh(devices=topology_devices("v5e:4x4"))
    assert (mesh.size, mesh.devices.flat[0].device_kind) == (16, "TPU v5 lite")
    assert callable(make_loss(LossConfig(), mesh))


def test_a_slice_that_is_none_is_named():
    pytest.importorskip("libtpu")
    with pytest.raises(
        ValueError, match=r"topology 'v5e:4x7' is not one that libtpu knows .*: write one like v5e:16x16"
    ):
        topology_devices("v5e:4x7")


def test_without_libtpu_the_mend_is_told(monkeypatch):
    def fail(**_):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology. libtpu is missing")

    monkeypatch.setattr(topologies, "get_topology_desc", fail)
    with pytest.raises(ValueError, match=r"to compile for v5e:16x16 takes libtpu.*: pip install -e '.\[tpu\]'$"):
        topology_devices("v5e:16x16")
