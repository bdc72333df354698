"""L2-regularised logistic regression on the device, many strengths in a row or at once, rows split over devices.

`logistic_objective` is the definition; what is fitted is the same function of other coordinates, in which L-BFGS needs
fewer iterations and float32 is enough.

Reference: Radford et al. 2021, appendix A.3.
"""

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Float32, Int, Shaped

from clip_jax.distributed.sharding import batch_shards, constrain_batch, make_mesh, place_whole_batch

TOLERANCE = 1e-8  # see `_minimise`
LINE_SEARCH_STEPS = 20


class Split(NamedTuple):
    """Features, float [N, D], and their labels: int [N] in 0..C-1, or of several classes an image, bool [N, C]."""

    features: Float[np.ndarray, "N D"]
    labels: Shaped[np.ndarray, "N *C"]


class LogisticFit(NamedTuple):
    """S fits: weights float32 [S, D, C], biases float32 [S, C], and for each the objective where it stopped, float [S],
    iterations, int [S], and whether its gradient came below the tolerance, bool [S]."""

    weights: Float32[np.ndarray, "S D C"]
    biases: Float32[np.ndarray, "S C"]
    objective: Float[np.ndarray, "S"]
    iterations: Int[np.ndarray, "S"]
    converged: Bool[np.ndarray, "S"]


def logistic_objective(
    weights: Float[Array | np.ndarray, "D C"],
    bias: Float[Array | np.ndarray, "C"],
    features: Float[Array | np.ndarray, "N D"],
    labels: Shaped[Array | np.ndarray, "N *C"],
    strength: float,
) -> Float[Array, ""]:
    """What is minimised, the definition: sum of cross-entropies + strength / 2 * |weights|^2, the bias free.

    weights [D, C], bias [C], features [N, D]. That of scikit-learn's LogisticRegression with C = 1 / strength; it has
    one weight vector for two classes, which as two opposite ones has half the squared norm, so that counts twice. With
    labels bool [N, C] the sum is over the binary cross-entropies of every class: a LogisticRegression a class.
    """
    logits = features @ weights + bias  # [N, C]
    if labels.ndim == 2:
        cross_entropy = optax.sigmoid_binary_cross_entropy(logits, labels).sum()
        return cross_entropy + strength / 2 * (weights**2).sum()
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()
    return cross_entropy + _penalty(strength, weights.shape[1]) / 2 * (weights**2).sum()


def _penalty(strength: Any, num_classes: int) -> Any:
    return strength * 2 if num_classes == 2 else strength


class Problem(NamedTuple):
    """Rows in the basis of their principal axes, centred: the objective is the same there, for the penalty does not
    change under a rotation, and the bias takes up the mean."""

    features: jax.Array  # [N, A]
    labels: jax.Array  # bool [N, C]
    present: jax.Array  # [N], 0 for padding
    variance: jax.Array  # [A], of each axis
    mean: jax.Array  # [D], in the given basis
    axes: jax.Array  # [D, A], a column each; fewer rows than D have no others


@jax.jit
def _prepare(features: jax.Array, labels: jax.Array, present: jax.Array) -> Problem:
    N = present.sum()
    mean = present @ features / N
    centred = (features - mean) * present[:, None]
    variance, axes = (x[..., -min(features.shape) :] for x in jnp.linalg.eigh(centred.T @ centred / N))
    return Problem(constrain_batch(centred @ axes), labels, present, jnp.maximum(variance, 0), mean, axes)


def _cross_entropy(logits: jax.Array, labels: jax.Array, exclusive: bool) -> jax.Array:
    """[N]. Of a row that is nearly certain float32 loses 1 - p; the sum of the other probabilities keeps it, and so
    does this form's gradient."""
    if not exclusive:
        return jax.nn.softplus(jnp.where(labels, -logits, logits)).sum(-1)
    own = jnp.where(labels, logits, 0).sum(-1, keepdims=True)
    return jax.nn.softplus(jax.nn.logsumexp(jnp.where(labels, -jnp.inf, logits - own), axis=-1))


def _minimise(
    start: tuple[jax.Array, jax.Array],
    penalty: jax.Array,
    problem: Problem,
    exclusive: bool,
    max_iterations: int | jax.Array,
) -> tuple[tuple[jax.Array, jax.Array], jax.Array, jax.Array, jax.Array]:
    """L-BFGS on (weights [A, C], bias [C]) in the problem's basis: where it ends, objective, iterations, converged.

    Each axis is divided by the root of its curvature: that of the data, p (1 - p) of the start times the variance, and
    the penalty's. Then half the squared gradient is near the distance to the minimum, and it stops at TOLERANCE times
    the objective; or where the line search finds nothing lower, which is float32's end. Where classes separate the
    curvature falls on the way and the distance is up to a thousand times that: 1e-8 for 1e-5.
    """
    N = problem.present.sum()

    def cross_entropy(weights: jax.Array, bias: jax.Array) -> jax.Array:
        return _cross_entropy(problem.features @ weights + bias, problem.labels, exclusive) @ problem.present / N

    logits = problem.features @ start[0] + start[1]
    p = jax.nn.softmax(logits) if exclusive else jax.nn.sigmoid(logits)
    # Never 0, or a start that is certain would divide by it.
    spread = (p * (1 - p)).mean(1) @ problem.present / N + jnp.finfo(p.dtype).eps
    scale = (spread * problem.variance + penalty / N)[:, None] ** -0.5, spread**-0.5

    def objective(scaled: tuple[jax.Array, jax.Array]) -> jax.Array:
        weights, bias = scaled[0] * scale[0], scaled[1] * scale[1]
        return cross_entropy(weights, bias) + penalty / (2 * N) * (weights**2).sum()

    optimizer = optax.lbfgs(
        linesearch=optax.scale_by_zoom_linesearch(max_linesearch_steps=LINE_SEARCH_STEPS, initial_guess_strategy="one")
    )
    value_and_grad = optax.value_and_grad_from_state(objective)

    def gradient_is_small(search: Any) -> jax.Array:
        return optax.tree.norm(search.grad, squared=True) <= TOLERANCE * search.value

    def goes_on(carry: Any) -> jax.Array:
        _, state, iterations = carry
        search = state[-1]
        ended = gradient_is_small(search) | (search.info.num_linesearch_steps >= LINE_SEARCH_STEPS)
        return (iterations == 0) | (~ended & (iterations < max_iterations))

    def step(carry: Any) -> Any:
        scaled, state, iterations = carry
        value, gradient = value_and_grad(scaled, state=state)
        updates, state = optimizer.update(gradient, state, scaled, value=value, grad=gradient, value_fn=objective)
        return optax.apply_updates(scaled, updates), state, iterations + 1

    scaled = start[0] / scale[0], start[1] / scale[1]
    scaled, state, iterations = jax.lax.while_loop(goes_on, step, (scaled, optimizer.init(scaled), jnp.zeros((), int)))
    search = state[-1]
    return (scaled[0] * scale[0], scaled[1] * scale[1]), search.value * N, iterations, gradient_is_small(search)


@partial(jax.jit, static_argnames="exclusive")
def _fit_group(
    start: tuple[jax.Array, jax.Array],
    penalties: jax.Array,
    problem: Problem,
    exclusive: bool,
    max_iterations: int | jax.Array,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
    """All of a group from one start: the last one's parameters, the next group's start, and what LogisticFit holds."""
    minimise = partial(_minimise, problem=problem, exclusive=exclusive, max_iterations=max_iterations)
    (weights, biases), *rest = jax.vmap(minimise, in_axes=(None, 0))(start, penalties)
    in_given_basis = problem.axes @ weights
    fit = (in_given_basis, biases - problem.mean @ in_given_basis, *rest)
    # Every process reads all of it.
    return jax.lax.with_sharding_constraint(((weights[-1], biases[-1]), fit), P())


def make_problem(split: Split, num_classes: int, mesh: Mesh, rows: int = 0) -> Problem:
    """The checked split on the devices, padded with rows that count for nothing to `rows` and a multiple of the devices
    (programs are compiled for a number of rows)."""
    labels = split.labels if split.labels.ndim == 2 else split.labels[:, None] == np.arange(num_classes)
    N = len(labels)
    size = -(-max(rows, N) // batch_shards(mesh)) * batch_shards(mesh)
    batch = {"features": np.asarray(split.features, np.float32), "labels": labels, "present": np.ones(N, np.float32)}
    padded = {name: np.pad(x, [(0, size - N)] + [(0, 0)] * (x.ndim - 1)) for name, x in batch.items()}
    return _prepare(**place_whole_batch(padded, mesh))


def fit_problem(
    problem: Problem,
    strengths: Sequence[float],
    exclusive: bool,
    num_parallel: int = 1,
    max_iterations: int = 1000,
) -> LogisticFit:
    """From strong to weak, each group from where the one before it ended."""
    A, C = problem.features.shape[1], problem.labels.shape[1]
    order = np.argsort(strengths)[::-1]
    size = min(num_parallel, len(order))
    padded = np.concatenate([order, np.repeat(order[-1:], -len(order) % size)])
    start = jnp.zeros((A, C)), jnp.zeros(C)
    groups = []
    for chosen in padded.reshape(-1, size):
        penalties = np.asarray(strengths, np.float32)[chosen]
        penalties = _penalty(penalties, C) if exclusive else penalties
        start, fit = _fit_group(start, penalties, problem, exclusive=exclusive, max_iterations=max_iterations)
        groups.append(jax.tree.map(np.asarray, fit))
    in_order = np.argsort(order)
    return LogisticFit(*(np.concatenate(parts)[in_order] for parts in zip(*groups)))


def computing(mesh: Mesh) -> contextlib.AbstractContextManager:
    """Within it things are placed and fitted: on that mesh, products in float32 on TPU and GPU too."""
    stack = contextlib.ExitStack()
    stack.enter_context(jax.set_mesh(mesh))
    stack.enter_context(jax.default_matmul_precision("highest"))
    return stack


def one_device() -> Mesh:
    return make_mesh(devices=jax.local_devices()[:1])


def fit_logistic(
    split: Split,
    num_classes: int,
    strengths: Sequence[float],
    *,
    mesh: Mesh | None = None,
    num_parallel: int = 1,
    max_iterations: int = 1000,
) -> LogisticFit:
    """Minimises `logistic_objective` for every strength, by L-BFGS on the device.

    Args:
      split: N images, of at least two classes.
      num_classes: C. A class without images is an error.
      strengths: S numbers above 0, in any order.
      mesh: rows are split over its devices; None is one device.
      num_parallel: strengths fitted at once, each group from where the one before it ended. One at a time takes the
        fewest iterations, and is fastest on a CPU.
      max_iterations: of one strength.

    Raises:
      ValueError: no images, one class only, a class without images, a label outside 0..C-1, features that are not
        finite, a strength that is not above 0.
    """
    check_split(split, "the split", num_classes, trained_on=True)
    if not len(strengths) or not min(strengths) > 0:
        raise ValueError(f"strengths={list(strengths)} must be numbers above 0, at least one")
    if num_parallel < 1 or max_iterations < 1:
        raise ValueError(f"num_parallel={num_parallel} and max_iterations={max_iterations} must be at least 1")
    mesh = mesh or one_device()
    with computing(mesh):
        problem = make_problem(split, num_classes, mesh)
        return fit_problem(problem, strengths, split.labels.ndim == 1, num_parallel, max_iterations)


def logits_of(
    weights: Float[np.ndarray, "D C"], bias: Float[np.ndarray, "C"], features: Float[np.ndarray, "N D"]
) -> Float[np.ndarray, "N C"]:
    """Float32 [N, C] of weights [D, C], bias [C], features [N, D]."""
    return np.asarray(features, np.float32) @ weights + bias


def check_split(split: Split, name: str, num_classes: int, trained_on: bool) -> None:
    """Raises ValueError for what cannot be fitted or scored; see `fit_logistic`."""
    features, labels = split
    if num_classes < 2:
        raise ValueError(f"a probe needs at least two classes, got num_classes={num_classes}")
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features of {name} have shape {features.shape}, expected [N, D] with at least one image")
    N = len(features)
    several = labels.dtype == bool
    expected = (N, num_classes) if several else (N,)
    if labels.shape != expected or not (several or np.issubdtype(labels.dtype, np.integer)):
        raise ValueError(
            f"labels of {name} are {labels.dtype} of shape {labels.shape} for {N} images of {num_classes} classes: "
            f"expected int [{N}], or of several classes an image bool [{N}, {num_classes}]"
        )
    if not np.isfinite(features).all():
        row = np.flatnonzero(~np.isfinite(features).all(1))[0]
        raise ValueError(f"features of {name} are not finite in row {row}: leave that image out, or fix its encoder")
    if not several and (outside := np.flatnonzero((labels < 0) | (labels >= num_classes))).size:
        row = outside[0]
        raise ValueError(f"label {labels[row]} of row {row} of {name} is outside 0..{num_classes - 1}")
    if not trained_on:
        return
    images = labels.sum(0) if several else np.bincount(labels, minlength=num_classes)
    if (empty := np.flatnonzero(images == 0)).size:
        raise ValueError(
            f"class {empty[0]} has no images in {name}: add some, or leave out the {empty.size} classes without images"
        )
    if several and (full := np.flatnonzero(images == N)).size:
        raise ValueError(f"class {full[0]} is in every image of {name}: leave it out")
