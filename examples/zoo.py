"""Small trained networks on scikit-learn's bundled digits, to try weight-space layers on.

In: how many networks of a family (MLP, CNN, RNN) to train. Out: a `Zoo`, whose params tree holds
all networks of the family stacked along one leading axis, next to the family's perm_spec, its
`predict` function and every network's accuracy on held-out images.

The one thing to know: training is vectorised (`vmap` over networks, `scan` over steps), and every
network has its own initialisation, its own batches and its own `Recipe`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
from numpy.typing import NDArray
from sklearn.datasets import load_digits  # type: ignore[import-untyped]

from symcompile.errors import ShapeError
from symcompile.spec import Fixed
from symcompile.specs import Axis, Network, Shapes, Spec, cnn, mlp, rnn

__all__ = [
    "Digits",
    "Recipe",
    "Zoo",
    "apply_permutations",
    "digits",
    "draw_permutations",
    "permute",
    "predict_mlp",
    "predict_pooled_cnn",
    "prediction_change",
    "train",
    "train_cnns",
    "train_mlps",
    "train_rnns",
]

Array: TypeAlias = jax.Array | NDArray[np.generic]
Params: TypeAlias = Mapping[str, Mapping[str, Array]]
Tree = TypeVar("Tree")  # any nesting of dicts and lists of arrays, or one array
Permutations: TypeAlias = dict[str | int, NDArray[np.intp]]
Predict: TypeAlias = Callable[[Params, Array], jax.Array]
Progress: TypeAlias = Callable[[int, int], None]

BATCH = 64  # images each network sees in one step
ROUNDS = 10  # training is cut into this many compiled calls, between which progress is told


@dataclass(frozen=True, slots=True, eq=False)
class Zoo:
    """The trained networks of one family.

    params: tree of float32 NumPy arrays, each (networks, *axes); spec, shapes: trees of the same
    structure without that leading axis; predict(params of one network, images (n, 8, 8)) -> logits
    (n, 10), in JAX; accuracies: (networks,) float32, the share of test images classified rightly.
    """

    name: str
    params: Params
    spec: Mapping[str, Spec]
    shapes: Mapping[str, Shapes]
    predict: Predict
    accuracies: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """How each network of a zoo is trained with Adam: arrays (networks,).

    rates: learning rates. steps: after how many it stops. scales: factors on the initial kernels,
    whose variance is 1 / fan-in at 1. decays: decoupled weight decay (arXiv 1711.05101). noise:
    the share of training images whose label is replaced by one drawn at random.
    """

    rates: NDArray[np.float32]
    steps: NDArray[np.int64]
    scales: NDArray[np.float32]
    decays: NDArray[np.float32]
    noise: NDArray[np.float32]


class Digits(NamedTuple):
    """Images (n, 8, 8) float32 in [0, 1], and labels (n,) int32 below 10."""

    train_images: NDArray[np.float32]
    train_labels: NDArray[np.int32]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.int32]


class Tensor(NamedTuple):
    """One leaf of a collection: its path, its labels, its stacked weights (networks, *axes)."""

    path: str
    axes: tuple[Axis, ...]
    weights: NDArray[np.generic]


def digits(test: int = 500) -> Digits:
    """scikit-learn's 1,797 digits in one fixed random order, the last `test` held out.

    >>> digits().train_images.shape
    (1297, 8, 8)
    """
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    images = (bunch.images[order] / 16).astype(np.float32)
    labels = bunch.target[order].astype(np.int32)
    return Digits(images[:-test], labels[:-test], images[-test:], labels[-test:])


def train_mlps(
    count: int = 300,
    *,
    steps: int = 300,
    learning_rates: tuple[float, float] = (5e-4, 3e-2),
    seed: int = 0,
    progress: Progress | None = None,
) -> Zoo:
    """Trains `count` MLPs 64-16-16-10 with Adam, learning rates log-uniform in the given range.

    `progress(steps done, steps in all)` is called a few times on the way.

    >>> zoo = train_mlps(2, steps=10)
    >>> zoo.params["Dense_0"]["kernel"].shape, zoo.accuracies.shape
    ((2, 64, 16), (2,))
    """
    network = mlp((64, 16, 16, 10))
    recipe = _plain(count, steps, learning_rates, seed)
    return train("mlp", network, predict_mlp, recipe, seed=seed, progress=progress)


def train_cnns(
    count: int = 24,
    *,
    steps: int = 150,
    learning_rates: tuple[float, float] = (1e-3, 2e-2),
    seed: int = 0,
    progress: Progress | None = None,
) -> Zoo:
    """Trains `count` CNNs: two 3x3 convolutions of stride 2 (8, 16 channels), then a linear layer.

    Arguments as in `train_mlps`.
    """
    network = cnn((8, 16), pixels=4)
    recipe = _plain(count, steps, learning_rates, seed)
    return train("cnn", network, _predict_cnn, recipe, seed=seed, progress=progress)


def train_rnns(
    count: int = 24,
    *,
    steps: int = 300,
    learning_rates: tuple[float, float] = (1e-3, 1e-2),
    seed: int = 0,
    progress: Progress | None = None,
) -> Zoo:
    """Trains `count` recurrent networks of 32 hidden neurons that read the 8 rows in turn.

    Arguments as in `train_mlps`.
    """
    network = rnn(8, 32, 10)
    recipe = _plain(count, steps, learning_rates, seed)
    return train("rnn", network, _predict_rnn, recipe, seed=seed, progress=progress)


def permute(params: Tree, spec: Spec, rng: np.random.Generator) -> Tree:
    """Stacked weights with one random permutation drawn for every label and applied throughout.

    `params` is a tree like `spec` whose leaves are (networks, *axes); all networks of the stack
    get the same permutations. Raises `ShapeError` where sizes do not fit the spec.

    >>> params = {"kernel": np.eye(3)[None], "bias": np.arange(3)[None]}
    >>> moved = permute(params, {"kernel": ("a", "a"), "bias": ("a",)}, np.random.default_rng(0))
    >>> bool((moved["kernel"] == params["kernel"]).all()), moved["bias"].tolist()
    (True, [[2, 0, 1]])
    """
    return apply_permutations(params, spec, draw_permutations(params, spec, rng))


def draw_permutations(params: object, spec: Spec, rng: np.random.Generator) -> Permutations:
    """One random permutation for every label of `spec`, in order of appearance in the tree.

    Raises `ShapeError` if a label has two sizes. A label needs a plain axis somewhere in the spec.

    >>> perms = draw_permutations(np.zeros((1, 5)), ("a",), np.random.default_rng(0))
    >>> sorted(perms["a"].tolist())
    [0, 1, 2, 3, 4]
    """
    sizes: dict[str | int, int] = {}
    for path, axes, weights in _tensors(spec, params):
        for axis, size in zip(axes, weights.shape[1:], strict=True):
            if isinstance(axis, (str, int)) and sizes.setdefault(axis, size) != size:
                raise ShapeError(
                    f"{path}: label {axis!r} has size {size} here and {sizes[axis]} before; "
                    "axes that share a label must have one size"
                )
    return {label: rng.permutation(size) for label, size in sizes.items()}


def apply_permutations(params: Tree, spec: Spec, permutations: Permutations) -> Tree:
    """Stacked weights with entry `permutations[label][i]` moved to place i along each such axis.

    Raises `ShapeError` where a permutation is missing or does not fit its axis.

    >>> apply_permutations(np.array([[5, 6, 7]]), ("a",), {"a": np.array([2, 0, 1])}).tolist()
    [[7, 5, 6]]
    """
    moved = []
    for path, axes, weights in _tensors(spec, params):
        for i, axis in enumerate(axes, start=1):
            index = _axis_index(path, axis, weights.shape[i], permutations)
            weights = np.take(weights, index, axis=i)
        moved.append(weights)
    tree: Tree = jax.tree.unflatten(jax.tree.structure(spec, is_leaf=_is_leaf), moved)
    return tree


def prediction_change(zoo: Zoo, rng: np.random.Generator) -> float:
    """The largest change of any network's logits on the test images when `zoo.spec` is permuted.

    Zero up to rounding when the spec tells true symmetries of the networks.
    """
    images = digits().test_images
    logits = jax.jit(jax.vmap(zoo.predict, in_axes=(0, None)))
    after = logits(permute(zoo.params, zoo.spec, rng), images)
    return float(jnp.abs(after - logits(zoo.params, images)).max())


def train(
    name: str,
    network: Network,
    predict: Predict,
    recipe: Recipe,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Zoo:
    """Trains one network for each entry of the recipe.

    The networks are all `network`, and compute `predict`. `progress` as in `train_mlps`.
    """
    data = digits()
    rng = np.random.default_rng(seed)
    params = _init(network.shapes, recipe.scales, rng)
    labels = _noisy(data.train_labels, recipe.noise, rng)
    state = jax.vmap(optax.scale_by_adam().init)(params)

    run = jax.jit(partial(_steps, predict, data.train_images))
    steps, count = int(recipe.steps.max()), len(recipe.rates)
    for numbers in np.array_split(np.arange(steps), min(ROUNDS, steps)):
        rows = rng.integers(labels.shape[1], size=(len(numbers), count, BATCH)).astype(np.int32)
        targets = np.take_along_axis(labels[None], rows, axis=2)
        rates = np.where(numbers[:, None] < recipe.steps, recipe.rates, np.float32(0))
        params, state = run(params, state, recipe.decays, rates, rows, targets)
        if progress is not None:
            jax.tree.leaves(params)[0].block_until_ready()
            progress(int(numbers[-1]) + 1, steps)

    logits = jax.jit(jax.vmap(predict, in_axes=(0, None)))(params, data.test_images)
    right = np.asarray(logits.argmax(-1) == data.test_labels)
    return Zoo(
        name=name,
        params=jax.tree.map(np.asarray, params),
        spec=network.spec,
        shapes=network.shapes,
        predict=predict,
        accuracies=right.mean(axis=1, dtype=np.float32),
    )


def _plain(count: int, steps: int, learning_rates: tuple[float, float], seed: int) -> Recipe:
    """Nothing varies but the learning rate, log-uniform in a range."""
    low, high = learning_rates
    draws = np.random.default_rng([seed, 1]).random(count, np.float32)
    ones = np.ones(count, np.float32)
    return Recipe(
        rates=np.float32(low) * np.float32(high / low) ** draws,
        steps=np.full(count, steps),
        scales=ones,
        decays=0 * ones,
        noise=0 * ones,
    )


def _init(shapes: Shapes, scales: NDArray[np.float32], rng: np.random.Generator) -> Params:
    """Random kernels of variance scale² / fan-in and zero biases, for a stack of networks.

    Drawn by NumPy: jax.random would compile one program for every shape, a second each.
    """
    count = len(scales)

    def draw(shape: tuple[int, ...]) -> NDArray[np.float32]:
        if len(shape) == 1:
            return np.zeros((count, *shape), np.float32)
        scale = scales.reshape(-1, *(1 for _ in shape)) * np.float32(prod(shape[:-1]) ** -0.5)
        return rng.standard_normal((count, *shape), np.float32) * scale

    params: Params = jax.tree.map(draw, shapes, is_leaf=_is_leaf)
    return params


def _noisy(
    labels: NDArray[np.int32], noise: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.int32]:
    """Every network's own labels (networks, images), a share of them drawn at random."""
    if not noise.any():
        return np.broadcast_to(labels, (len(noise), len(labels)))
    size = (len(noise), len(labels))
    others = rng.integers(10, size=size, dtype=np.int32)
    return np.where(rng.random(size, np.float32) < noise[:, None], others, labels)


def _steps(
    predict: Predict,
    images: Array,
    params: Params,
    state: optax.OptState,
    decays: Array,
    rates: Array,
    rows: Array,
    targets: Array,
) -> tuple[Params, optax.OptState]:
    """One training step for each of rates (steps, networks), on rows (steps, networks, batch).

    A network whose steps are over has rate 0: it stands still.
    """
    adam = optax.scale_by_adam()

    def loss(params: Params, rows: Array, targets: Array) -> jax.Array:
        logits = predict(params, jnp.asarray(images)[rows])
        losses: jax.Array = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return losses.mean()

    def update(
        params: Params,
        state: optax.OptState,
        decay: Array,
        rate: Array,
        rows: Array,
        targets: Array,
    ) -> tuple[Params, optax.OptState]:
        direction, state = adam.update(jax.grad(loss)(params, rows, targets), state)
        moved = jax.tree.map(lambda p, d: p - rate * (d + decay * p), params, direction)
        return moved, state

    def step(
        carry: tuple[Params, optax.OptState], now: tuple[Array, Array, Array]
    ) -> tuple[tuple[Params, optax.OptState], None]:
        return jax.vmap(update)(*carry, jnp.asarray(decays), *now), None

    return jax.lax.scan(step, (params, state), (rates, rows, targets))[0]


def predict_mlp(params: Params, images: Array) -> jax.Array:
    """Logits (n, 10) of an MLP with two hidden layers."""
    x = jnp.reshape(images, (len(images), -1))
    x = jax.nn.relu(_linear(params["Dense_0"], x))
    x = jax.nn.relu(_linear(params["Dense_1"], x))
    return _linear(params["Dense_2"], x)


def _predict_cnn(params: Params, images: Array) -> jax.Array:
    x = jnp.asarray(images)[..., None]
    x = jax.nn.relu(_conv(params["Conv_0"], x))
    x = jax.nn.relu(_conv(params["Conv_1"], x))
    return _linear(params["Dense_0"], x.reshape(len(x), -1))


def predict_pooled_cnn(params: Params, images: Array) -> jax.Array:
    """Logits (n, 10) of a CNN whose two convolutions end in the mean over all places."""
    x = jnp.asarray(images)[..., None]
    x = jax.nn.relu(_conv(params["Conv_0"], x))
    x = jax.nn.relu(_conv(params["Conv_1"], x))
    return _linear(params["Dense_0"], x.mean((1, 2)))


def _predict_rnn(params: Params, images: Array) -> jax.Array:
    cell = params["cell"]

    def read(state: jax.Array, row: jax.Array) -> tuple[jax.Array, None]:
        total = row @ cell["input_kernel"] + state @ cell["state_kernel"] + cell["bias"]
        return jnp.tanh(total), None

    start = jnp.zeros((len(images), len(cell["bias"])), jnp.asarray(images).dtype)
    state, _ = jax.lax.scan(read, start, jnp.swapaxes(images, 0, 1))
    return _linear(params["readout"], state)


def _linear(params: Mapping[str, Array], x: jax.Array) -> jax.Array:
    return x @ params["kernel"] + params["bias"]


def _conv(params: Mapping[str, Array], x: jax.Array) -> jax.Array:
    """A 3x3 convolution of stride 2 over (n, height, width, channels), padded by one all round.

    Written as patches times kernel: under `vmap` over networks that is one batched matmul, where
    a convolution primitive would become a grouped one, which is slow on a CPU.
    """
    kernel = params["kernel"]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = x.shape[1], x.shape[2]
    patches = jnp.stack(
        [padded[:, i : i + rows : 2, j : j + columns : 2] for i in range(3) for j in range(3)],
        axis=-2,
    )
    merged = patches.reshape(*patches.shape[:3], -1)
    return merged @ kernel.reshape(-1, kernel.shape[-1]) + params["bias"]


def _is_leaf(node: object) -> bool:
    return isinstance(node, tuple)


def _tensors(spec: Spec, params: object) -> list[Tensor]:
    """Every tensor of the collection, in the order of JAX's tree leaves."""
    tensors = jax.tree.map_with_path(_tensor, spec, params, is_leaf=_is_leaf)
    return jax.tree.leaves(tensors, is_leaf=_is_leaf)


def _tensor(
    keys: tuple[jax.tree_util.KeyEntry, ...], axes: tuple[Axis, ...], leaf: object
) -> Tensor:
    path, weights = jax.tree_util.keystr(keys, simple=True, separator="/"), np.asarray(leaf)
    if weights.ndim != len(axes) + 1:
        raise ShapeError(
            f"{path}: shape {weights.shape} has {weights.ndim} axes, expected one of networks "
            f"and {len(axes)} as in the spec {axes}; stack the networks along a leading axis"
        )
    return Tensor(path, axes, weights)


def _axis_index(path: str, axis: Axis, size: int, permutations: Permutations) -> NDArray[np.intp]:
    """Where each entry of one stored axis comes from, (size,)."""
    if axis is None or isinstance(axis, Fixed):
        return np.arange(size)
    if isinstance(axis, tuple):
        sizes = _factor_sizes(path, axis, size, permutations)
        factors = [
            _axis_index(path, factor, n, permutations)
            for factor, n in zip(axis, sizes, strict=True)
        ]
        return np.ravel_multi_index(np.ix_(*factors), sizes).ravel()
    if axis not in permutations or len(permutations[axis]) != size:
        found = f"one of size {len(permutations[axis])}" if axis in permutations else "none"
        raise ShapeError(
            f"{path}: label {axis!r} needs a permutation of size {size}, found {found}; "
            "draw permutations from the same spec and weights"
        )
    return permutations[axis]


def _factor_sizes(
    path: str, axes: tuple[Axis, ...], size: int, permutations: Permutations
) -> tuple[int, ...]:
    """The sizes of a composite axis's factors, one of which may be what the others leave."""
    known = [_known_size(axis, permutations) for axis in axes]
    rest, left = divmod(size, prod(n for n in known if n is not None))
    missing = known.count(None)
    if left or missing > 1 or (missing == 0 and rest != 1):
        raise ShapeError(
            f"{path}: an axis of size {size} does not split into {axes} of sizes {known}; "
            "at most one factor may be of unknown size, and it must divide evenly"
        )
    return tuple(rest if n is None else n for n in known)


def _known_size(axis: Axis, permutations: Permutations) -> int | None:
    if isinstance(axis, Fixed):
        return axis.size
    if isinstance(axis, (str, int)) and axis in permutations:
        return len(permutations[axis])
    return None
