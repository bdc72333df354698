"""Counts of what a compiled program moves: by hand on a short program, and on real ones beside XLA's own counts."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.distributed.sharding import make_mesh
from clip_jax.planning.hlo import Collective, Program

# As a TPU's compiler writes it: a loop of 3 within one of 2, a gather spread over two computations of one channel, a
# scatter as a sum of which each keeps its part, an array in on-chip memory, and a fusion that reads one slice.
TEXT = """HloModule jit_f, is_scheduled=true

%add.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (input: bf16[16,4]) -> bf16[2,4] {
  %input = bf16[16,4]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.7 = bf16[16,4]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=3, to_apply=%add.1
  %zero = s32[] constant(0)
  ROOT %part = bf16[2,4]{1,0} dynamic-slice(%all-reduce.7, %zero, %zero), dynamic_slice_sizes={2,4}
}

%async_collective_fusion.1 (shard: bf16[2,4]) -> bf16[16,4] {
  %shard = bf16[2,4]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[16,4]{1,0:T(8,128)(2,1)S(1)} all-gather(%shard), channel_id=5, dimensions={0}
}

%slice_fusion (stack: f32[6,10], index: s32[]) -> f32[1,10] {
  %stack = f32[6,10]{1,0} parameter(0)
  %index = s32[] parameter(1)
  %bitcast.1 = f32[6,10]{1,0} bitcast(%stack)
  ROOT %row = f32[1,10]{1,0} dynamic-slice(%bitcast.1, %index), dynamic_slice_sizes={1,10}
}

%inner_condition (p.1: (s32[], f32[8])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %limit = s32[]{:T(128)} constant(3)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

%inner_body (p.2: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.2 = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %i.2 = s32[] get-tuple-element(%p.2), index=0
  %x.2 = f32[8]{0} get-tuple-element(%p.2), index=1
  %all-reduce.9 = f32[8]{0} all-reduce(%x.2), channel_id=9, to_apply=%add.1
  ROOT %tuple.2 = (s32[], f32[8]{0}) tuple(%i.2, %all-reduce.9)
}

%outer_condition (p.3: (s32[], f32[8])) -> pred[] {
  %p.3 = (s32[], f32[8]{0}) parameter(0)
  ROOT %more = pred[] custom-call(%p.3)
}

%outer_body (p.4: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.4 = (s32[], f32[8]{0}) parameter(0)
  ROOT %while.1 = (s32[], f32[8]{0}) while(%p.4), condition=%inner_condition, body=%inner_body
}

ENTRY %main (x: f32[8], y: bf16[2,4], z: bf16[16,4], stack: f32[6,10]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %y = bf16[2,4]{1,0} parameter(1)
  %z = bf16[16,4]{1,0} parameter(2)
  %stack.1 = f32[6,10]{1,0} parameter(3)
  %zero.1 = s32[] constant(0)
  %start = bf16[16,4]{1,0:S(1)} fusion(%y), kind=kCustom, calls=%async_collective_fusion.1
  %done = bf16[16,4]{1,0:S(1)} fusion(%y), kind=kCustom, calls=%async_collective_fusion.1
  %scattered = bf16[2,4]{1,0} fusion(%z), kind=kCustom, calls=%all-reduce-scatter.1
  %row.1 = f32[1,10]{1,0} fusion(%stack.1, %zero.1), kind=kLoop, calls=%slice_fusion
  %tuple.1 = (s32[], f32[8]{0}) tuple(%zero.1, %x)
  %while.2 = (s32[], f32[8]{0}) while(%tuple.1), condition=%outer_condition, body=%outer_body, backend_config={"known_trip_count":{"n":"2"}}
  ROOT %out = f32[8]{0} get-tuple-element(%while.2), index=1
}
"""  # noqa: E501


def test_collectives_count_as_often_as_they_run():
    assert Program(TEXT).collectives() == [
        Collective("all-gather", 2, 2 * 16 * 4 * 2),
        Collective("all-reduce", 2 * 3, 2 * 3 * 8 * 4),
        Collective("reduce-scatter", 1, 16 * 4 * 2),
    ]
    assert [c.sent_bytes / c.bytes for c in Program(TEXT).collectives()] == [1, 2, 1]


def test_bytes_are_those_of_main_memory():
    gathers = 2 * (2 * 4 * 2)  # what is read; the result lies on the chip
    scatter = 16 * 4 * 2 + 2 * 4 * 2
    row = 10 * 4 + 4 + 10 * 4  # one of the six rows, and the index
    loops = 2 * 3 * 2 * 8 * 4
    assert Program(TEXT).bytes_moved() == gathers + scatter + row + loops


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="it has no ENTRY computation"):
        Program("HloModule empty\n")


def test_a_real_loop_of_sums_over_devices():
    mesh = make_mesh()
    rows, columns = NamedSharding(mesh, P("data")), NamedSharding(mesh, P(None, "data"))

    def f(x, w):
        def body(x, _):
            return jnp.tanh(x @ w), None  # x [3, 16], w [16, 16]: 16 is split over 8 devices and summed

        return jax.lax.scan(body, x, length=5)[0]

    shapes = (
        jax.ShapeDtypeStruct((3, 16), jnp.float32, sharding=columns),
        jax.ShapeDtypeStruct((16, 16), jnp.float32, sharding=rows),
    )
    program = Program(jax.jit(f, out_shardings=columns).lower(*shapes).compile().as_text())
    assert program.collectives() == [Collective("all-reduce", 5, 5 * 3 * 16 * 4)]


def test_without_loops_the_bytes_are_xlas():
    def f(x, w):
        return jnp.sum(jnp.sin(x @ w) * 2, axis=0)

    shapes = jax.ShapeDtypeStruct((37, 64), jnp.float32), jax.ShapeDtypeStruct((64, 101), jnp.float32)
    compiled = jax.jit(f).lower(*shapes).compile()
    # XLA counts the reduction's initial value and such, some bytes each.
    assert Program(compiled.as_text()).bytes_moved() == pytest.approx(
        compiled.cost_analysis()["bytes accessed"], rel=1e-2
    )
