"""Who predicts a network's accuracy best from its weights? In PyTorch, against `nfn`.

In: nothing. Out: `results/torch.json`, `.md` and `.png`, and the table on the terminal.

The one thing to know: all have the same head, loss, optimiser, batches, epochs, search over
learning rates and choice of the epoch; only what turns weights into features differs.

    python -m examples.generalization.torch_run            # minutes, on two cores
    python -m examples.generalization.torch_run --quick    # under a minute; says little
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from nfn import common as nfn_common  # type: ignore[import-untyped]
from nfn import layers as nfn_layers
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from examples.generalization import contest
from examples.generalization.contest import TREES, Budget, Fit, Train
from examples.generalization.networks import permute_all
from examples.generalization.task import Split, Task, kendall
from symcompile_torch import nn as scnn

CHANNELS = 16
HIDDEN = 64


class Ours(nn.Module):
    """An equivariant trunk's features, pooled, beside the statistics of the weights themselves."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        spec, shapes = permute_all(task.spec), task.shapes
        self.trunk = scnn.trunk(spec, [1, CHANNELS, CHANNELS], shapes=shapes)
        self.activation = scnn.Activation(torch.relu)
        self.pool = scnn.InvariantPool(spec, ("mean", "var"), shapes=shapes)
        self.statistics = scnn.StatFeaturizer(task.spec)
        pooled = self.pool.out_features(CHANNELS) + self.statistics.out_features(1)
        self.head = head(pooled)

    def forward(self, x: Any) -> Tensor:
        """(networks,) from the weights of each."""
        pooled = self.pool(self.activation(self.trunk(x)))
        predicted: Tensor = self.head(torch.cat([pooled, self.statistics(x)], dim=-1))
        return predicted


class Statistics(nn.Sequential):
    """Mean, variance and quantiles of every tensor (arXiv 2002.11448)."""

    def __init__(self, task: Task) -> None:
        featurizer = scnn.StatFeaturizer(task.spec)
        super().__init__(featurizer, head(featurizer.out_features(1)))


class Flat(nn.Module):
    """All weights in a row."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        leaves = pytree.tree_leaves(task.train.weights)
        self.head = head(sum(leaf[0].size for leaf in leaves))

    def forward(self, x: Any) -> Tensor:
        """(networks,) from the weights of each."""
        predicted: Tensor = self.head(
            torch.cat([leaf.flatten(1) for leaf in pytree.tree_leaves(x)], dim=-1)
        )
        return predicted


class Nfn(nn.Module):
    """The package `nfn`: two linear layers and its pool, channels first and (outputs, inputs)."""

    def __init__(self, task: Task, linear: Callable[..., nn.Module], pool: Any) -> None:
        super().__init__()
        spec = nfn_common.network_spec_from_wsfeat(features_of(torch_tree(task.train.weights, 2)))
        self.layers = nn.Sequential(
            linear(spec, 1, CHANNELS),
            nfn_layers.TupleOp(nn.ReLU()),
            linear(spec, CHANNELS, CHANNELS),
            nfn_layers.TupleOp(nn.ReLU()),
            pool(spec),
            nn.Flatten(),
        )
        self.head = head(CHANNELS * pool.get_num_outs(spec))

    def forward(self, x: Any) -> Tensor:
        """(networks,) from the weights of each."""
        predicted: Tensor = self.head(self.layers(features_of(x)))
        return predicted


class Squeeze(nn.Module):
    """(n, 1) to (n,)."""

    def forward(self, x: Tensor) -> Tensor:
        """The one column."""
        return x[:, 0]


def head(features: int) -> nn.Module:
    """The regressor that all contestants share."""
    return nn.Sequential(
        nn.BatchNorm1d(features),
        nn.Linear(features, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, 1),
        Squeeze(),
    )


def features_of(tree: Any) -> Any:
    """nfn's features: kernels (n, *taps, in, out, 1) as (n, 1, out, in, *taps)."""
    weights, biases = [], []
    for layer in tree.values():
        kernel = layer["kernel"]
        taps = range(1, kernel.ndim - 3)
        weights.append(kernel.permute(0, -1, -2, -3, *taps))
        biases.append(layer["bias"].permute(0, 2, 1))
    return nfn_common.WeightSpaceFeatures(weights, biases)


def torch_tree(tree: Any, first: int | None = None) -> Any:
    """Arrays as tensors, of the first networks or of all."""
    return pytree.tree_map(lambda leaf: torch.from_numpy(leaf[:first]), tree)


def fit(model: Callable[[Task], nn.Module]) -> Train:
    """Training by the budget: AdamW, one cycle of the learning rate, squared error of ranks."""

    def train(task: Task, seed: int, rate: float, budget: Budget) -> Fit:
        torch.manual_seed(seed)
        network = model(task)
        weights, targets = torch_tree(task.train.weights), torch.from_numpy(task.train.targets)
        checked, hidden = torch_tree(task.validation.weights), torch_tree(task.test.weights)
        steps = len(targets) // budget.batch
        adam = torch.optim.AdamW(network.parameters(), rate, weight_decay=budget.decay)
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            adam, rate, total_steps=budget.epochs * steps, pct_start=0.1
        )
        best = Fit(-2.0, np.empty(0), sum(p.numel() for p in network.parameters()))
        for _ in range(budget.epochs):
            network.train()
            order = torch.randperm(len(targets))[: steps * budget.batch]
            for rows in order.reshape(steps, budget.batch):
                x = pytree.tree_map(lambda leaf, rows=rows: leaf[rows], weights)
                loss = (network(x) - targets[rows]).square().mean()
                adam.zero_grad()
                loss.backward()
                adam.step()
                cycle.step()
            network.eval()
            with torch.no_grad():
                tau = kendall(network(checked).numpy(), task.validation.accuracies)
                if tau > best.validation:
                    predicted = network(hidden).double().numpy()
                    best = Fit(tau, predicted, best.parameters)
        return best

    return train


def featurize(task: Task) -> Sequence[NDArray[np.float32]]:
    """The statistics of the train, validation and test networks, for trees."""
    featurizer = scnn.StatFeaturizer(task.spec)

    def features(split: Split) -> NDArray[np.float32]:
        values: NDArray[np.float32] = featurizer(torch_tree(split.weights)).numpy()
        return values

    return [features(split) for split in (task.train, task.validation, task.test)]


CONTESTANTS: dict[str, Train] = {
    "ours": fit(Ours),
    "nfn NP": fit(
        lambda task: Nfn(
            task,
            lambda *args: nfn_layers.NPLinear(*args, io_embed=args[1] == 1),
            nfn_layers.NPPool,
        )
    ),
    "nfn HNP": fit(lambda task: Nfn(task, nfn_layers.HNPLinear, nfn_layers.HNPPool)),
    "statistics + MLP": fit(Statistics),
    TREES: contest.boosted_trees(featurize),
    "flat MLP": fit(Flat),
}


def main(
    quick: Annotated[bool, typer.Option(help="Under a minute: shows that it works.")] = False,
    out: Annotated[Path, typer.Option(help="Where the results go.")] = contest.RESULTS,
) -> None:
    """Train all contestants and write the results."""
    contest.run("torch", list(CONTESTANTS), quick=quick, out=out)


if __name__ == "__main__":
    typer.run(main)
