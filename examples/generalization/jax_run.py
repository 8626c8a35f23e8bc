"""Who predicts a network's accuracy best from its weights? In JAX, with Flax NNX.

In: nothing. Out: `results/jax.json`, `.md` and `.png`, and the table on the terminal.

The one thing to know: the contest of `torch_run`, with the same zoo, splits and budget; `nfn` is
PyTorch's alone, and in its place stand our layers with a mean pool and no statistics beside.

    python -m examples.generalization.jax_run            # minutes, on two cores
    python -m examples.generalization.jax_run --quick    # under a minute; says little
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
import typer
from flax import nnx
from numpy.typing import NDArray

from examples.generalization import contest
from examples.generalization.contest import TREES, Budget, Fit, Train
from examples.generalization.networks import permute_all
from examples.generalization.task import Split, Task, kendall
from symcompile_jax import nn as scnn

CHANNELS = 16
HIDDEN = 64


class Ours(nnx.Module):
    """An equivariant trunk's features, pooled, beside the statistics of the weights themselves."""

    def __init__(self, task: Task, rngs: nnx.Rngs) -> None:
        self.trunk = Pooled(task, ("mean", "var"), rngs)
        self.statistics = scnn.StatFeaturizer(task.spec)
        features = self.trunk.features + self.statistics.out_features(1)
        self.head = Head(features, rngs)

    def __call__(self, x: Any) -> jax.Array:
        return self.head(jnp.concatenate([self.trunk(x), self.statistics(x)], axis=-1))


class Alone(nnx.Module):
    """Equivariant layers and a mean pool."""

    def __init__(self, task: Task, rngs: nnx.Rngs) -> None:
        self.trunk = Pooled(task, ("mean",), rngs)
        self.head = Head(self.trunk.features, rngs)

    def __call__(self, x: Any) -> jax.Array:
        return self.head(self.trunk(x))


class Pooled(nnx.Module):
    """Two equivariant layers, each with an activation, then a pool."""

    def __init__(self, task: Task, stats: Sequence[str], rngs: nnx.Rngs) -> None:
        spec, shapes = permute_all(task.spec), task.shapes
        self.layers = scnn.trunk(spec, [1, CHANNELS, CHANNELS], shapes=shapes, rngs=rngs)
        self.activation = scnn.Activation(jax.nn.relu)
        self.pool = scnn.InvariantPool(spec, stats, shapes=shapes)
        self.features = self.pool.out_features(CHANNELS)

    def __call__(self, x: Any) -> jax.Array:
        return self.pool(self.activation(self.layers(x)))


class Statistics(nnx.Module):
    """Mean, variance and quantiles of every tensor (arXiv 2002.11448)."""

    def __init__(self, task: Task, rngs: nnx.Rngs) -> None:
        self.statistics = scnn.StatFeaturizer(task.spec)
        self.head = Head(self.statistics.out_features(1), rngs)

    def __call__(self, x: Any) -> jax.Array:
        return self.head(self.statistics(x))


class Flat(nnx.Module):
    """All weights in a row."""

    def __init__(self, task: Task, rngs: nnx.Rngs) -> None:
        self.head = Head(sum(leaf[0].size for leaf in jax.tree.leaves(task.train.weights)), rngs)

    def __call__(self, x: Any) -> jax.Array:
        leaves = [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(x)]
        return self.head(jnp.concatenate(leaves, axis=-1))


class Head(nnx.Module):
    """The regressor that all contestants share."""

    def __init__(self, features: int, rngs: nnx.Rngs) -> None:
        self.norm = nnx.BatchNorm(features, momentum=0.9, rngs=rngs)
        uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # as torch's
        self.first = nnx.Linear(features, HIDDEN, kernel_init=uniform, rngs=rngs)
        self.second = nnx.Linear(HIDDEN, HIDDEN, kernel_init=uniform, rngs=rngs)
        self.last = nnx.Linear(HIDDEN, 1, kernel_init=uniform, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.first(self.norm(x)))
        return self.last(jax.nn.relu(self.second(x)))[:, 0]


def fit(model: Callable[[Task, nnx.Rngs], nnx.Module]) -> Train:
    """Training by the budget: AdamW, one cycle of the learning rate, squared error of ranks."""

    def train(task: Task, seed: int, rate: float, budget: Budget) -> Fit:
        network = model(task, nnx.Rngs(seed))
        network.train()  # type: ignore[no-untyped-call]
        graph, weights, *others = nnx.split(network, nnx.Param, ...)
        rest: Any = others[0]
        count = len(task.train.targets)
        steps = count // budget.batch
        cycle = optax.cosine_onecycle_schedule(budget.epochs * steps, rate, 0.1)
        adam = optax.adamw(cycle, weight_decay=budget.decay)

        def loss(weights: Any, rest: Any, x: Any, targets: jax.Array) -> tuple[jax.Array, Any]:
            merged = nnx.merge(graph, weights, rest, copy=True)
            error = jnp.square(merged(x) - targets).mean()
            return error, nnx.state(merged, nnx.Not(nnx.Param))

        def step(carry: Any, batch: Any) -> tuple[Any, None]:
            weights, rest, state = carry
            gradient, rest = jax.grad(loss, has_aux=True)(weights, rest, *batch)
            change, state = adam.update(gradient, state, weights)
            return (optax.apply_updates(weights, change), rest, state), None

        @jax.jit
        def epoch(carry: Any, x: Any, targets: jax.Array, rows: jax.Array) -> Any:
            def take(carry: Any, rows: jax.Array) -> tuple[Any, None]:
                return step(carry, (jax.tree.map(lambda leaf: leaf[rows], x), targets[rows]))

            return jax.lax.scan(take, carry, rows)[0]

        network.eval()  # type: ignore[no-untyped-call]
        still = nnx.graphdef(network)
        predict = jax.jit(lambda weights, rest, x: nnx.merge(still, weights, rest)(x))

        carry = weights, rest, adam.init(weights)
        best = Fit(-2.0, np.empty(0), sum(leaf.size for leaf in jax.tree.leaves(weights)))
        rng = np.random.default_rng(seed)
        for _ in range(budget.epochs):
            rows = rng.permutation(count)[: steps * budget.batch].reshape(steps, budget.batch)
            carry = epoch(carry, task.train.weights, task.train.targets, rows)
            guessed = np.asarray(predict(*carry[:2], task.validation.weights))
            tau = kendall(guessed, task.validation.accuracies)
            if tau > best.validation:
                predicted = np.asarray(predict(*carry[:2], task.test.weights), np.float64)
                best = Fit(tau, predicted, best.parameters)
        return best

    return train


def featurize(task: Task) -> Sequence[NDArray[np.float32]]:
    """The statistics of the train, validation and test networks, for trees."""
    featurizer = scnn.StatFeaturizer(task.spec)

    def features(split: Split) -> NDArray[np.float32]:
        return np.asarray(featurizer(jax.tree.map(jnp.asarray, split.weights)))

    return [features(split) for split in (task.train, task.validation, task.test)]


CONTESTANTS: dict[str, Train] = {
    "ours": fit(Ours),
    "our layers, mean pool alone": fit(Alone),
    "statistics + MLP": fit(Statistics),
    TREES: contest.boosted_trees(featurize),
    "flat MLP": fit(Flat),
}


def main(
    quick: Annotated[bool, typer.Option(help="Under a minute: shows that it works.")] = False,
    out: Annotated[Path, typer.Option(help="Where the results go.")] = contest.RESULTS,
) -> None:
    """Train all contestants and write the results."""
    contest.run("jax", list(CONTESTANTS), quick=quick, out=out)


if __name__ == "__main__":
    typer.run(main)
