"""What is to be predicted: a network's test accuracy, from its weights alone.

In: a `zoo.Zoo` and a seed. Out: a `Task`: weights and targets, split into train, validation, test.

The one thing to know: targets are ranks (the share of training networks that are worse), since the
measure, Kendall's τ, sees nothing but order. What is standardised is so by the training networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from examples.zoo import Zoo

__all__ = ["Split", "Task", "kendall", "make_task"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Some networks.

    weights: tree like the zoo's spec, each (networks, *axes, 1), of mean 0 and variance 1 over the
    training networks and all axes; targets: (networks,) in [0, 1]; accuracies: (networks,).
    """

    weights: Any
    targets: Floats
    accuracies: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """The networks of a zoo: two thirds to train on, a sixth each to validate and to test."""

    spec: Any
    shapes: Any
    train: Split
    validation: Split
    test: Split


def make_task(zoo: Zoo, seed: int, *, shuffled: bool = False) -> Task:
    """The networks of a zoo, split at random.

    Args:
        zoo: its accuracies are those on held-out images.
        seed: of the split.
        shuffled: give every network the accuracy of another, so that there is nothing to learn.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(zoo.accuracies))
    accuracies = rng.permutation(zoo.accuracies) if shuffled else zoo.accuracies
    sixth = len(order) // 6
    parts = order[2 * sixth :], order[:sixth], order[sixth : 2 * sixth]
    ranks = np.sort(accuracies[parts[0]])

    def standardised(leaf: Floats) -> Floats:
        known = leaf[parts[0]]
        values: Floats = ((leaf - known.mean()) / known.std()).astype(np.float32)
        return values[..., None]

    weights = jax.tree.map(standardised, zoo.params)

    def split(rows: NDArray[np.intp]) -> Split:
        found = accuracies[rows]
        worse = np.searchsorted(ranks, found, "left") + np.searchsorted(ranks, found, "right")
        targets = (worse / (2 * len(ranks))).astype(np.float32)
        return Split(jax.tree.map(lambda leaf: leaf[rows], weights), targets, found)

    return Task(zoo.spec, zoo.shapes, *map(split, parts))


def kendall(predicted: NDArray[Any], accuracies: NDArray[Any]) -> float:
    """Kendall's τ-b between predictions and accuracies, 0 for predictions that are all the same.

    >>> kendall(np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.7, 0.6]))  # doctest: +ELLIPSIS
    0.333...
    """
    tau = float(kendalltau(predicted, accuracies).statistic)
    return tau if np.isfinite(tau) else 0.0
