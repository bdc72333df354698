"""The floating-point operations of a function, counted from its jaxpr.

XLA's own count, `cost_analysis()["flops"]`, takes the body of a scan once, whatever its length.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

# Primitives that run the jaxpr they hold exactly once.
CALLS = {"jit", "remat2", "custom_jvp_call", "custom_vjp_call"}


def count_flops(fn: Callable[..., Any], *args: Any) -> int:
    """FLOPs of `fn(*args)` in matrix products and convolutions, two per multiply-add; nothing is computed.

    Only shapes matter, so `args` may be ShapeDtypeStructs. What is computed again counts again; a `cond` counts as its
    largest branch, a `shard_map` on all its devices. Taps of a convolution on its padding count, as in published tables
    and unlike in XLA's count; taps on the holes of a dilated input do not. Element-wise operations, reductions, sorts
    and factorisations are left out.

    Raises ValueError for products in a while loop, or in a primitive that is not known to run once.
    """
    return _count(jax.make_jaxpr(fn)(*args).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        lhs, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
        return 2 * math.prod(out) * math.prod(lhs[i] for i in contracted)
    if name == "conv_general_dilated":
        return _count_convolution(equation)
    counts = [_count(inner) for inner in _inner_jaxprs(params)]
    if name == "cond":
        return max(counts)
    if name == "scan":
        return params["length"] * sum(counts)
    if name == "shard_map":
        num_devices = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
        return num_devices * sum(counts)
    if sum(counts) and name not in CALLS:
        raise ValueError(f"a {name} holds products, and how often they run is not known: use a scan of known length")
    return sum(counts)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _inner_jaxprs(params: dict[str, Any]) -> list[Jaxpr]:
    values = [item for value in params.values() for item in (value if isinstance(value, tuple | list) else (value,))]
    jaxprs = [value.jaxpr if isinstance(value, ClosedJaxpr) else value for value in values]
    return [jaxpr for jaxpr in jaxprs if isinstance(jaxpr, Jaxpr)]


def _count_convolution(equation: JaxprEqn) -> int:
    params = equation.params
    numbers = params["dimension_numbers"]
    kernel, out = _shape(equation.invars[1]), _shape(equation.outvars[0])
    # The kernel's second number is its input channels within a group.
    products = math.prod(out[i] for i in numbers.out_spec[:2]) * kernel[numbers.rhs_spec[1]]
    for out_dim, kernel_dim, stride, (pad, _), hole, step in zip(
        numbers.out_spec[2:],
        numbers.rhs_spec[2:],
        params["window_strides"],
        params["padding"],
        params["lhs_dilation"],
        params["rhs_dilation"],
    ):
        taps = [i * stride + j * step - pad for i in range(out[out_dim]) for j in range(kernel[kernel_dim])]
        products *= sum(position % hole == 0 for position in taps)
    return 2 * products
