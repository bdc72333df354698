import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from clip_jax.distributed.sharding import ShardingConfig, make_mesh
from clip_jax.losses import contrastive_loss, sharded_contrastive_loss
from clip_jax.planning.flops import count_flops


def array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def xla_flops(fn, *args) -> float:
    return jax.jit(fn).lower(*args).cost_analysis()["flops"]


def conv(x, kernel, **options):
    options = {"window_strides": (1, 1), "padding": "VALID"} | options
    return lax.conv_general_dilated(x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)


def with_gradients(fn, *args):
    """The value and the gradient of every argument but the last, which is the cotangent."""
    *primals, cotangent = args
    value, pullback = jax.vjp(fn, *primals)
    return value, pullback(cotangent)


def square_each(x):
    return lax.scan(lambda carry, _: (carry @ carry, None), x, None, length=7)[0]


IMAGE, KERNEL = array(2, 11, 13, 6), array(3, 5, 6, 7)
PRODUCTS = {
    "matrix product": (jnp.matmul, (array(3, 5), array(5, 7)), 2 * 3 * 5 * 7),
    "matrix and vector": (jnp.matmul, (array(3, 5), array(5)), 2 * 3 * 5),
    "batched product": (jnp.matmul, (array(11, 3, 5), array(11, 5, 7)), 2 * 11 * 3 * 5 * 7),
    "two contracted axes": (partial(jnp.einsum, "abcd,bdce->ae"), (array(2, 3, 5, 7), array(3, 7, 5, 11)), 4620),
    "outer product": (partial(jnp.einsum, "a,b->ab"), (array(3), array(5)), 2 * 3 * 5),
    "vmapped product": (jax.vmap(jnp.matmul, (0, None)), (array(11, 3, 5), array(5, 7)), 2 * 11 * 3 * 5 * 7),
    "product and both gradients": (
        partial(with_gradients, jnp.matmul),
        (array(3, 5), array(5, 7), array(3, 7)),
        3 * 2 * 3 * 5 * 7,
    ),
    "convolution": (conv, (IMAGE, KERNEL), 2 * (2 * 9 * 9 * 7) * (3 * 5 * 6)),
    "strided": (partial(conv, window_strides=(2, 3)), (IMAGE, KERNEL), 2 * (2 * 5 * 3 * 7) * (3 * 5 * 6)),
    "grouped": (
        partial(conv, feature_group_count=3),
        (IMAGE, array(3, 5, 2, 9)),
        2 * (2 * 9 * 9 * 9) * (3 * 5 * 2),
    ),
    "dilated kernel": (partial(conv, rhs_dilation=(4, 2)), (IMAGE, KERNEL), 2 * (2 * 3 * 5 * 7) * (3 * 5 * 6)),
    "grouped, and its kernel's gradient": (
        lambda x, k, g: with_gradients(partial(conv, x, feature_group_count=3), k, g),
        (IMAGE, array(3, 5, 2, 9), array(2, 9, 9, 9)),
        2 * 2 * (2 * 9 * 9 * 9) * (3 * 5 * 2),
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_counted_as_by_hand_and_as_xla_does(name):
    fn, args, by_hand = PRODUCTS[name]
    assert count_flops(fn, *args) == by_hand
    assert xla_flops(fn, *args) == by_hand


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("pad", [0, -1, -2])
def test_taps_on_the_holes_of_a_dilated_image_do_not_count(stride, step, pad):
    options = {"window_strides": (stride, 2), "rhs_dilation": (step, 1), "lhs_dilation": (2, 3)}
    fn = partial(conv, padding=((pad, 0), (pad, 0)), **options)
    multiplied = fn(jnp.ones(IMAGE.shape), jnp.ones(KERNEL.shape)).sum()  # every product of two values gives one
    assert count_flops(fn, IMAGE, KERNEL) == 2 * multiplied
    assert xla_flops(fn, IMAGE, KERNEL) == 2 * multiplied


def test_taps_on_padding_count():
    same = partial(conv, padding="SAME")
    args = array(2, 11, 11, 6), array(3, 3, 6, 7)
    assert count_flops(same, *args) == 2 * 2 * 6 * 7 * (3 * 11) ** 2
    assert xla_flops(same, *args) == 2 * 2 * 6 * 7 * (3 * 11 - 2) ** 2  # XLA leaves out the two at the ends


@pytest.mark.parametrize("stride", [1, 2])
def test_each_gradient_of_a_convolution_costs_what_it_costs_itself(stride):
    fn = partial(conv, window_strides=(stride, stride), padding=((1, 1), (1, 1)))
    args = array(2, 10, 10, 6), array(3, 3, 6, 7)
    gradients = partial(with_gradients, fn)
    side = 10 // stride
    assert count_flops(fn, *args) == 2 * (2 * side**2 * 7) * (9 * 6)
    assert count_flops(gradients, *args, array(2, side, side, 7)) == 3 * count_flops(fn, *args)


def test_a_scan_is_its_length_times_its_body_where_xla_counts_it_once():
    x = array(5, 5)
    body = 2 * 5**3
    assert count_flops(square_each, x) == 7 * body
    assert xla_flops(square_each, x) < 2 * body

    def in_line(x):
        for _ in range(7):
            x = x @ x
        return x

    assert xla_flops(in_line, x) == 7 * body


def test_nested_scans_multiply():
    def twice(x):
        return lax.scan(lambda carry, _: (square_each(carry), None), x, None, length=3)[0]

    assert count_flops(twice, array(5, 5)) == 3 * 7 * 2 * 5**3
    assert count_flops(lambda xs: lax.map(square_each, xs), array(11, 5, 5)) == 11 * 7 * 2 * 5**3


def test_the_gradient_of_a_scan_and_what_is_computed_again():
    def loss(block, x, w):
        return lax.scan(lambda carry, _: (block(carry, w), None), x, None, length=7)[0].sum()

    def block(x, w):
        return jnp.tanh(x @ w)

    args = array(3, 5), array(5, 5)
    one = 2 * 3 * 5 * 5
    assert count_flops(jax.grad(partial(loss, block), (0, 1)), *args) == 7 * 3 * one
    assert count_flops(jax.grad(partial(loss, jax.checkpoint(block)), (0, 1)), *args) == 7 * 4 * one


@jax.custom_jvp
def cube_forward(x):
    return x @ x @ x


cube_forward.defjvp(lambda primals, tangents: (cube_forward(*primals), tangents[0] @ primals[0]))


@jax.custom_vjp
def cube_backward(x):
    return x @ x @ x


cube_backward.defvjp(lambda x: (x @ x @ x, x), lambda x, g: (g @ x,))


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, lambda fn: jax.jit(jax.checkpoint(jax.jit(fn)))])
@pytest.mark.parametrize("cube", [cube_forward, cube_backward])
def test_what_is_called_is_counted(cube, wrap):
    one = 2 * 5**3
    assert count_flops(wrap(cube), array(5, 5)) == 2 * one
    assert count_flops(jax.grad(lambda x: cube(x).sum()), array(5, 5)) == 3 * one  # the rule's single product


def test_of_a_condition_the_largest_branch_counts():
    def fn(x):
        return lax.switch(jnp.argmax(x[0]), [lambda y: y, lambda y: y @ y @ y, lambda y: y @ y], x)

    assert count_flops(fn, array(5, 5)) == 2 * 2 * 5**3


def test_products_repeated_an_unknown_number_of_times_are_an_error():
    message = "a while holds products, and how often they run is not known: use a scan of known length"
    for fn in (
        lambda x: lax.while_loop(lambda y: y[0, 0] < 9, lambda y: y @ y, x),
        lambda x: lax.while_loop(lambda y: (y @ y)[0, 0] < 9, lambda y: y + 1, x),
        jax.jit(lambda x: lax.while_loop(lambda y: y[0, 0] < 9, square_each, x)),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            count_flops(fn, array(5, 5))
    assert count_flops(lambda x: lax.while_loop(lambda y: y[0, 0] < 9, lambda y: y + 1, x) @ x, array(5, 5)) == 250
    assert count_flops(lambda x: lax.fori_loop(0, 7, lambda _, y: y @ y, x), array(5, 5)) == 7 * 250


def test_a_shard_map_counts_on_all_its_devices():
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    args = array(12, 5), array(5, 6)
    dense = 2 * 12 * 5 * 6
    both = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(P("data"), P(None, "tensor")), out_specs=P("data", "tensor"))
    assert count_flops(both, *args) == dense
    copied = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    assert count_flops(copied, *args) == 2 * dense  # both devices of the second axis compute the same
    one_axis = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"), axis_names={"data"})
    assert count_flops(one_axis, *args) == dense


def test_the_sharded_loss_computes_every_logit_once():
    features, scale = array(16, 5), array()
    mesh = make_mesh(ShardingConfig(data=4, fsdp=2, tensor=1))
    sharded = partial(sharded_contrastive_loss, mesh=mesh)
    assert count_flops(contrastive_loss, features, features, scale) == 2 * 16 * 16 * 5
    assert count_flops(sharded, features, features, scale) == 2 * 16 * 16 * 5


def test_nothing_is_allocated():
    assert count_flops(jnp.matmul, array(10**7, 10**7), array(10**7, 10**7)) == 2 * 10**21
