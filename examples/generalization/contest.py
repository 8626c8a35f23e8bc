"""The contest: who may do what, and what is told about it; the same for torch and JAX.

In: a way to train one contestant on one task. Out: `Score`s, as JSON, a Markdown table and a plot.

The one thing to know: nobody sees the test networks before its weights are final. The learning rate
and the epoch whose weights are kept are chosen by the validation networks, by one rule for all.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import TypeAlias

import matplotlib.figure
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.ensemble import HistGradientBoostingRegressor  # type: ignore[import-untyped]

from examples.generalization.networks import CACHE, Family, make_zoo
from examples.generalization.task import Task, kendall, make_task

__all__ = [
    "FULL",
    "QUICK",
    "RESULTS",
    "TREES",
    "Budget",
    "Fit",
    "Points",
    "Score",
    "Train",
    "boosted_trees",
    "hold",
    "play",
    "run",
    "show",
    "summary",
    "write",
]

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Budget:
    """What every contestant gets.

    networks: by family; train_steps: at most so many for each network of the zoo; rates: the
    learning rates tried on the first seed, of which the best by validation is kept.
    """

    networks: Mapping[Family, int]
    train_steps: int
    epochs: int
    seeds: Sequence[int]
    rates: Sequence[float]
    batch: int = 64
    decay: float = 0.01


FULL = Budget({"mlp": 3000, "cnn": 2000}, 200, epochs=12, seeds=(0, 1, 2), rates=(1e-3, 3e-3))
QUICK = Budget({"mlp": 240, "cnn": 120}, 40, epochs=4, seeds=(0,), rates=(3e-3,))


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """One contestant, trained on one task.

    validation: τ of the epoch that was kept; predicted: of the test networks, (networks,);
    parameters: of the model.
    """

    validation: float
    predicted: NDArray[np.float64]
    parameters: int


@dataclass(frozen=True, slots=True)
class Score:
    """What a contestant reached: τ on the test networks for each seed, and what it was."""

    family: Family
    contestant: str
    parameters: int
    rate: float | None
    taus: tuple[float, ...]
    validations: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.taus)

    @property
    def spread(self) -> float:
        """The standard deviation over seeds; 0 for one."""
        return statistics.stdev(self.taus) if len(self.taus) > 1 else 0.0


Train: TypeAlias = Callable[[Task, int, float, Budget], Fit]
"""(task, seed, learning rate, budget) -> Fit."""

Points: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float32]]
"""What was predicted, and what is true, of some networks."""

TREES = "statistics + trees"


def boosted_trees(featurize: Callable[[Task], Sequence[NDArray[np.float32]]]) -> Train:
    """The strong baseline: gradient-boosted trees on the statistics, as large as validation says.

    `featurize` has the features of the train, validation and test networks.
    """

    def train(task: Task, seed: int, rate: float, budget: Budget) -> Fit:
        known, checked, hidden = featurize(task)
        best: Fit | None = None
        for leaves in (7, 15, 31):
            trees = HistGradientBoostingRegressor(
                max_iter=20 * budget.epochs,
                learning_rate=0.05,
                max_leaf_nodes=leaves,
                random_state=seed,
            ).fit(known, task.train.targets)
            tau = kendall(trees.predict(checked), task.validation.accuracies)
            if best is None or tau > best.validation:
                best = Fit(tau, trees.predict(hidden), 0)
        assert best is not None
        return best

    return train


def play(
    train: Train, family: Family, name: str, budget: Budget, *, shuffled: bool, cache: Path | None
) -> tuple[Score, Points]:
    """One contestant on one family, all seeds.

    Args:
        train: the contestant; without a learning rate if its name is `TREES`.
        family, name, budget: what is played.
        shuffled: as in `make_task`.
        cache: where zoos are kept.

    Returns:
        the score, and (predictions, accuracies) of the first seed's test networks.
    """
    zoo = make_zoo(family, budget.networks[family], steps=budget.train_steps, cache=cache)
    tasks = [make_task(zoo, seed, shuffled=shuffled) for seed in budget.seeds]
    rates = budget.rates[:1] if name == TREES else budget.rates
    tried = {rate: train(tasks[0], budget.seeds[0], rate, budget) for rate in rates}
    rate = max(tried, key=lambda rate: tried[rate].validation)
    rest = zip(tasks[1:], budget.seeds[1:], strict=True)
    fits = [tried[rate], *(train(task, seed, rate, budget) for task, seed in rest)]
    score = Score(
        family,
        name,
        fits[0].parameters,
        None if name == TREES else rate,
        tuple(kendall(f.predicted, t.test.accuracies) for f, t in zip(fits, tasks, strict=True)),
        tuple(fit.validation for fit in fits),
    )
    return score, (fits[0].predicted, tasks[0].test.accuracies)


def hold(
    module: str,
    names: Sequence[str],
    budget: Budget,
    *,
    shuffled: bool = False,
    cache: Path = CACHE,
    workers: int = 2,
    console: Console | None = None,
) -> tuple[list[Score], dict[tuple[Family, str], Points]]:
    """Every contestant on every family, each in a process of one thread.

    Threads of many processes that share cores wait for one another: one each is far faster.

    Args:
        module: where the dict `CONTESTANTS` is.
        names: of those that play.
        budget: the same for all.
        shuffled: as in `make_task`.
        cache: where zoos are kept.
        workers: processes at a time.
        console: where progress is told.
    """
    told = console or Console(quiet=True)
    for family, count in budget.networks.items():
        with told.status(f"training {count} networks: {family}"):
            start = time.perf_counter()
            make_zoo(family, count, steps=budget.train_steps, cache=cache)
        told.print(f"{family}  {count} networks at hand after {time.perf_counter() - start:.0f} s")
    played: dict[tuple[Family, str], Future[tuple[Score, Points]]] = {}
    with ProcessPoolExecutor(workers, get_context("spawn"), _start) as pool:
        for family in budget.networks:
            for name in names:
                played[family, name] = pool.submit(
                    _play, module, family, name, budget, shuffled, cache
                )
        with told.status("training contestants"):
            for future in as_completed(played.values()):
                score, _ = future.result()
                told.print(_line(score))
    return (
        [future.result()[0] for future in played.values()],
        {key: future.result()[1] for key, future in played.items()},
    )


def _start() -> None:
    """Before a framework is imported in the process."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def _play(
    module: str, family: Family, name: str, budget: Budget, shuffled: bool, cache: Path
) -> tuple[Score, Points]:
    train = import_module(module).CONTESTANTS[name]
    return play(train, family, name, budget, shuffled=shuffled, cache=cache)


def _line(score: Score) -> str:
    return f"{score.family}  {score.contestant:<28} τ {score.mean:.3f} ± {score.spread:.3f}"


def run(framework: str, names: Sequence[str], *, quick: bool, out: Path) -> None:
    """Hold a framework's contest, show its table and write its results."""
    console, budget = Console(highlight=False), QUICK if quick else FULL
    start = time.perf_counter()
    module = f"examples.generalization.{framework}_run"
    scores, points = hold(module, names, budget, console=console)
    show(scores, console)
    write(scores, points, budget, framework, time.perf_counter() - start, out)


def show(scores: Sequence[Score], console: Console) -> None:
    """The table on a terminal."""
    table = Table("family", "contestant", "parameters", "learning rate", "τ", "seeds")
    for score in scores:
        table.add_row(*_cells(score))
    console.print(table)


def summary(scores: Sequence[Score]) -> str:
    """The table in Markdown."""
    lines = ["| Family | Contestant | Parameters | Learning rate | τ, mean ± spread | each seed |"]
    lines.append("|---|---|---|---|---|---|")
    lines += [f"| {' | '.join(_cells(score))} |" for score in scores]
    return "\n".join(lines) + "\n"


def _cells(score: Score) -> tuple[str, ...]:
    return (
        score.family.upper(),
        score.contestant,
        f"{score.parameters:,}" if score.parameters else "–",
        f"{score.rate:g}" if score.rate else "–",
        f"{score.mean:.3f} ± {score.spread:.3f}",
        " ".join(f"{tau:.3f}" for tau in score.taus),
    )


def write(
    scores: Sequence[Score],
    points: Mapping[tuple[Family, str], Points],
    budget: Budget,
    framework: str,
    seconds: float,
    folder: Path = RESULTS,
) -> None:
    """`FRAMEWORK.json`, `.md` and `.png` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        "framework": framework,
        "budget": asdict(budget),
        "seconds": round(seconds, 1),
        "scores": [asdict(s) | {"mean": s.mean, "spread": s.spread} for s in scores],
    }
    text = json.dumps(told, indent=1, ensure_ascii=False) + "\n"
    (folder / f"{framework}.json").write_text(text, encoding="utf-8")
    (folder / f"{framework}.md").write_text(summary(scores), encoding="utf-8")
    _plot(points).savefig(folder / f"{framework}.png", dpi=80)


def _plot(
    points: Mapping[tuple[Family, str], Points],
) -> matplotlib.figure.Figure:
    """Predicted against true accuracy, a panel for each family and contestant."""
    families = list(dict.fromkeys(family for family, _ in points))
    names = list(dict.fromkeys(name for _, name in points))
    figure = matplotlib.figure.Figure(
        figsize=(2.3 * len(names), 2.5 * len(families)), layout="constrained"
    )
    axes = figure.subplots(len(families), len(names), squeeze=False, sharey=True)
    for row, family in enumerate(families):
        for column, name in enumerate(names):
            predicted, accuracies = points[family, name]
            ax = axes[row, column]
            ax.scatter(predicted, accuracies, s=5, alpha=0.4, linewidths=0)
            ax.set_title(f"{name}\nτ = {kendall(predicted, accuracies):.3f}", fontsize=8)
            ax.tick_params(labelsize=7)
        axes[row, 0].set_ylabel(f"{family.upper()}: test accuracy", fontsize=8)
    figure.supxlabel("predicted rank", fontsize=8)
    return figure
