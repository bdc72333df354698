"""TPU slices that need not exist; what needs libtpu is skipped without it."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.distributed.sharding import batch_sharding, make_mesh
from clip_jax.losses import LossConfig, make_loss
from clip_jax.planning.topology import CHIPS, FAMILIES, topology_devices


def test_a_slice_is_compiled_for():
    pytest.importorskip("libtpu")
    mesh = make_mesh(devices=topology_devices("v5e:4x4"))
    assert (mesh.size, mesh.devices.flat[0].device_kind) == (16, "TPU v5 lite")


def test_the_streamed_loss_sends_while_it_computes_and_holds_no_matrix():
    pytest.importorskip("libtpu")
    mesh, N, E = make_mesh(devices=topology_devices("v5e:2x4")), 32_768, 512
    features = jax.ShapeDtypeStruct((N, E), jnp.float32, sharding=batch_sharding(mesh))
    scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, P()))
    loss = make_loss(LossConfig(block_size=256), mesh)
    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    compiled = gradient.lower({"logit_scale": scale}, (features, features)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 50e6
    # In each round of the ring the transfer starts before the blocks, a loop of its own, and is awaited after it.
    rounds = [
        body
        for body in compiled.as_text().split("\n\n")
        if "collective-permute-start(" in body and " while(" in body and "ENTRY" not in body
    ]
    assert rounds
    for body in rounds:
        starts, loop, done = map(body.find, ("collective-permute-start(", " while(", "collective-permute-done("))
        assert starts < loop < done


def test_an_unknown_slice_is_refused():
    pytest.importorskip("libtpu")
    with pytest.raises(
        ValueError,
        match=r"topology 'v5e:4x7' is not one that libtpu knows .*: use the chip and the slice's shape, such as",
    ):
        topology_devices("v5e:4x7")


def test_an_unknown_chip_is_refused_with_the_known():
    known = (
        r"v4:4x4x4 \(v4: 30.75 GiB a chip, 275 TFLOP/s\), v5e:16x16 \(v5e: 15.75 .*, v5p:4x4x4 .*, v6e:16x16 \(v6e: "
    )
    with pytest.raises(ValueError, match=rf"topology 'v9:2x2' is not one to plan for: use the chip .* {known}"):
        topology_devices("v9:2x2")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_memory_of_a_chip_is_its_compilers(family):
    """What XLA calls available when it refuses a product of 256 GiB."""
    pytest.importorskip("libtpu")
    mesh = make_mesh(devices=topology_devices({"v4": "v4:2x2x1", "v5p": "v5p:2x2x1"}.get(family, f"{family}:2x2")))
    assert CHIPS[mesh.devices.flat[0].device_kind] is FAMILIES[family]
    x = jax.ShapeDtypeStruct((2**18, 2**18), jnp.float32, sharding=NamedSharding(mesh, P()))
    with pytest.raises(
        jax.errors.JaxRuntimeError, match=rf"available HBM \({FAMILIES[family].memory_bytes / 2**30:.2f}G\)"
    ):
        jax.jit(jnp.matmul).lower(x, x).compile()


def test_without_libtpu_the_error_says_how_to_install_it(monkeypatch):
    def fail(**_):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology. libtpu is missing")

    monkeypatch.setattr(topologies, "get_topology_desc", fail)
    with pytest.raises(ValueError, match=r"to compile for v5e:16x16 takes libtpu.*: pip install 'jax-clip\[tpu\]'$"):
        topology_devices("v5e:16x16")
