"""An equivariant network that edits classifiers: weights in, better weights out, in one step.

In: nothing. Out: a table on the terminal, and `results/editing.json` and `.md`.

The zoo's MLPs differ in scale, steps, weight decay and label noise; many classify badly. An editor
sees the weights of one, and no data, and returns weights. It is trained through the loss of edited
networks on training images, and judged by the accuracy of edited networks it has never seen, on
images that nothing was trained on. Beside it: no edit; a learned scale for every tensor; a learned
update, the same for all networks; and one step of gradient descent on training images, which does
see data, at the best of several step sizes.

The one thing to know: reordering a classifier's hidden neurons reorders the edited ones, and the
edited classifier computes the same function.

    python -m examples.editing.run            # minutes, on two cores
    python -m examples.editing.run --quick    # under a minute; says little
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from examples import zoo
from examples.generalization.networks import make_zoo
from symcompile_torch import nn as scnn

__all__ = [
    "EDITORS",
    "FULL",
    "QUICK",
    "Budget",
    "accuracies",
    "contest",
    "main",
    "predict",
    "train",
]

RESULTS = Path(__file__).parent / "results"
CHANNELS = 8
RATE = 0.01
RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True, slots=True)
class Budget:
    """How much of everything: networks, steps of training them, epochs of editors, seeds."""

    networks: int
    steps: int
    epochs: int
    seeds: int


FULL, QUICK = Budget(1500, 200, 20, 3), Budget(300, 60, 8, 1)


class Scale(scnn.LearnedScale):
    """A factor for every tensor: an editor that does not look."""

    def __init__(self, spec: Any, shapes: Any) -> None:
        super().__init__(spec, 1, init=1.0)


class Update(nn.Module):
    """The same update for all networks, whose hidden neurons come in any order."""

    def __init__(self, spec: Any, shapes: Any) -> None:
        super().__init__()
        leaves, self.structure = torch.utils._pytree.tree_flatten(
            dict(shapes), is_leaf=lambda node: isinstance(node, tuple)
        )
        self.update = nn.ParameterList(nn.Parameter(torch.zeros(*shape, 1)) for shape in leaves)

    def forward(self, x: Any) -> Any:
        update = torch.utils._pytree.tree_unflatten(list(self.update), self.structure)
        return torch.utils._pytree.tree_map(torch.add, x, update)


class Ours(nn.Module):
    """Weights plus a small equivariant correction; inputs and classes keep their places."""

    def __init__(self, spec: Any, shapes: Any) -> None:
        super().__init__()
        self.residual = scnn.Residual(
            scnn.trunk(spec, [1, CHANNELS, CHANNELS, 1], norm=scnn.ChannelNorm, shapes=shapes),
            scnn.LearnedScale(spec, 1, init=0.1),
        )

    def forward(self, x: Any) -> Any:
        return self.residual(x)


EDITORS: dict[str, type[nn.Module]] = {
    "a scale for every tensor": Scale,
    "one update for all": Update,
    "ours": Ours,
}


def predict(params: Any, images: Tensor) -> Tensor:
    """Logits (networks, images, 10) of MLPs whose leaves are (networks, *axes, 1)."""
    hidden = images.reshape(len(images), -1).expand(len(params["Dense_0"]["bias"]), -1, -1)
    for number in range(len(params)):
        layer = params[f"Dense_{number}"]
        hidden = hidden @ layer["kernel"][..., 0] + layer["bias"][:, None, :, 0]
        if number + 1 < len(params):
            hidden = hidden.relu()
    return hidden


def loss_of(params: Any, images: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy, over images and networks."""
    logits = predict(params, images)
    return cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)))


@torch.no_grad()
def accuracies(params: Any, images: Tensor, labels: Tensor) -> Tensor:
    """(networks,)"""
    return (predict(params, images).argmax(-1) == labels).float().mean(-1)


def take(params: Any, index: Tensor | slice) -> Any:
    """Some of the networks."""
    if isinstance(params, dict):
        return {key: take(child, index) for key, child in params.items()}
    return params[index]


def train(editor: nn.Module, params: Any, data: zoo.Digits, epochs: int, seed: int) -> None:
    """Adam on the loss of edited networks on training images."""
    images, labels = _images(data.train_images, data.train_labels)
    generator = torch.Generator().manual_seed(seed)
    count, batch = len(params["Dense_0"]["bias"]), 32
    optimizer = torch.optim.Adam(editor.parameters(), lr=RATE)
    total = epochs * (count // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=total)
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - batch + 1, batch):
            some = torch.randint(len(images), (128,), generator=generator)
            optimizer.zero_grad()
            edited = editor(take(params, order[start : start + batch]))
            loss_of(edited, images[some], labels[some]).backward()
            nn.utils.clip_grad_norm_(editor.parameters(), 1.0)
            optimizer.step()
            schedule.step()


def gradient_step(params: Any, data: zoo.Digits, rate: float) -> Any:
    """One step of gradient descent for every network, on all training images."""
    images, labels = _images(data.train_images, data.train_labels)
    leaves, structure = torch.utils._pytree.tree_flatten(params)
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    networks = torch.utils._pytree.tree_unflatten(leaves, structure)
    # The mean over networks, times their number: the sum of every network's own loss.
    loss = loss_of(networks, images, labels) * len(leaves[0])
    steps = torch.autograd.grad(loss, leaves)
    moved = [(leaf - rate * step).detach() for leaf, step in zip(leaves, steps, strict=True)]
    return torch.utils._pytree.tree_unflatten(moved, structure)


def contest(budget: Budget) -> dict[str, list[float]]:
    """Mean accuracy of held-out networks on held-out images, by editor, for every seed."""
    networks, data = make_zoo("mlp", budget.networks, steps=budget.steps), zoo.digits()
    params = torch.utils._pytree.tree_map(
        lambda leaf: torch.from_numpy(np.array(leaf))[..., None], dict(networks.params)
    )
    images, labels = _images(data.test_images, data.test_labels)
    found: dict[str, list[float]] = {}
    for seed in range(budget.seeds):
        order = torch.randperm(budget.networks, generator=torch.Generator().manual_seed(seed))
        held = budget.networks // 4
        trained, test = take(params, order[held:]), take(params, order[:held])
        found.setdefault("no edit", []).append(accuracies(test, images, labels).mean().item())
        # The step size that is best for the networks that editors are trained on.
        on_train = _images(data.train_images, data.train_labels)
        best = max(
            RATES, key=lambda rate: accuracies(gradient_step(trained, data, rate), *on_train).mean()
        )
        moved = accuracies(gradient_step(test, data, best), images, labels)
        found.setdefault("one gradient step, sees data", []).append(moved.mean().item())
        for name, make in EDITORS.items():
            torch.manual_seed(seed)
            editor = make(networks.spec, networks.shapes)
            train(editor, trained, data, budget.epochs, seed)
            with torch.no_grad():
                edited = accuracies(editor(test), images, labels)
            found.setdefault(name, []).append(edited.mean().item())
    return found


def table(found: dict[str, list[float]]) -> str:
    """Markdown."""
    lines = ["| Editor | Accuracy, mean ± spread | each seed |", "|---|---|---|"]
    for name, each in found.items():
        spread = float(np.std(each, ddof=1)) if len(each) > 1 else 0.0
        seeds = " ".join(f"{value:.3f}" for value in each)
        lines.append(f"| {name} | {np.mean(each):.3f} ± {spread:.3f} | {seeds} |")
    return "\n".join(lines) + "\n"


def main(
    quick: Annotated[
        bool, typer.Option("--quick", help="A small zoo and little training.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    """Train editors, and say what they are worth."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    found = contest(QUICK if quick else FULL)
    out.mkdir(parents=True, exist_ok=True)
    (out / "editing.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (out / "editing.md").write_text(table(found), encoding="utf-8")
    Console().print(table(found) + f"{time.perf_counter() - start:.0f} s")


def _images(images: Any, labels: Any) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.array(images)), torch.from_numpy(np.array(labels)).long()


if __name__ == "__main__":
    typer.run(main)
