"""The example end to end: one command each, every contestant, the same figures again; and nothing
is learned where there is nothing to learn.
"""

from __future__ import annotations

import json
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from examples import zoo
from examples.generalization import contest
from examples.generalization.networks import FAMILIES, draw_recipe, make_zoo, permute_all
from examples.generalization.task import kendall, make_task
from symcompile.spec import parse_spec

pytest.importorskip("nfn", reason="nfn is not installed")


@pytest.mark.parametrize("framework", ["torch", "jax"])
@pytest.mark.timeout(900)
def test_one_command_plays_the_whole_contest(framework: str, tmp_path: Path) -> None:
    run = import_module(f"examples.generalization.{framework}_run")
    run.main(quick=True, out=tmp_path)
    scores = json.loads((tmp_path / f"{framework}.json").read_text())["scores"]
    table = (tmp_path / f"{framework}.md").read_text()
    assert [(s["family"], s["contestant"]) for s in scores] == [
        (family, name) for family in ("mlp", "cnn") for name in run.CONTESTANTS
    ]
    for score in scores:
        assert np.isfinite([score["mean"], score["spread"], *score["taus"]]).all()
        assert f"| {score['contestant']} |" in table
        assert -1 <= score["mean"] <= 1
    assert (tmp_path / f"{framework}.png").stat().st_size > 10_000


@pytest.fixture(scope="module")
def networks() -> zoo.Zoo:
    return make_zoo("mlp", 600, steps=60, cache=None)


def play(networks: zoo.Zoo, name: str, *, shuffled: bool = False, epochs: int = 8) -> float:
    torch_run: Any = import_module("examples.generalization.torch_run")
    task = make_task(networks, 0, shuffled=shuffled)
    budget = replace(contest.QUICK, epochs=epochs, batch=32)
    fit = torch_run.CONTESTANTS[name](task, 0, 3e-3, budget)
    return kendall(fit.predicted, task.test.accuracies)


@pytest.mark.parametrize("name", ["ours", "statistics + MLP"])
def test_accuracy_is_learned_from_weights_and_shuffled_labels_are_not(
    networks: zoo.Zoo, name: str
) -> None:
    assert play(networks, name) > 0.45
    assert abs(play(networks, name, shuffled=True)) < 0.2


def test_a_seed_gives_the_same_figures_again(networks: zoo.Zoo) -> None:
    assert play(networks, "ours", epochs=2) == play(networks, "ours", epochs=2)


def test_the_zoo_is_the_same_again_from_disk_and_not(tmp_path: Path) -> None:
    first = make_zoo("cnn", 4, steps=20, cache=tmp_path)
    stored = make_zoo("cnn", 4, steps=20, cache=tmp_path)
    again = make_zoo("cnn", 4, steps=20, cache=None)
    other = make_zoo("cnn", 4, steps=20, seed=1, cache=None)
    leaf = first.params["Conv_1"]["kernel"]
    assert len(list(tmp_path.iterdir())) == 1
    for same in (stored, again):
        assert jax.tree.all(jax.tree.map(np.array_equal, first.params, same.params))
        assert np.array_equal(first.accuracies, same.accuracies)
    assert not np.allclose(leaf, other.params["Conv_1"]["kernel"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_networks_have_the_symmetry_of_their_spec(family: Any) -> None:
    assert zoo.prediction_change(make_zoo(family, 4, cache=None), np.random.default_rng(0)) < 1e-3


def test_each_ingredient_of_a_recipe_does_what_it_says() -> None:
    network, predict = FAMILIES["mlp"]
    plain = draw_recipe(40, 60, np.random.default_rng(0))
    ones = np.ones(40, np.float32)
    plain = replace(plain, rates=3e-3 * ones, steps=60 * np.ones(40, int), scales=ones)
    plain = replace(plain, decays=0 * ones, noise=0 * ones)

    def norm(recipe: zoo.Recipe) -> float:
        leaves = jax.tree.leaves(zoo.train("mlp", network, predict, recipe).params)
        return float(sum(np.square(leaf).sum() for leaf in leaves))

    def accuracy(recipe: zoo.Recipe) -> float:
        return float(zoo.train("mlp", network, predict, recipe).accuracies.mean())

    base, right = norm(plain), accuracy(plain)
    assert norm(replace(plain, scales=2 * ones)) > 2 * base
    assert norm(replace(plain, decays=3 * ones)) < 0.9 * base
    assert accuracy(replace(plain, noise=ones)) < 0.25 < 0.5 < right
    assert accuracy(replace(plain, steps=np.full(40, 6))) < right - 0.1


def test_splits_are_disjoint_and_standardised_by_the_training_networks(networks: zoo.Zoo) -> None:
    task = make_task(networks, 3)
    splits = task.train, task.validation, task.test
    rows = [tuple(row) for s in splits for row in s.weights["Dense_1"]["bias"][..., 0]]
    assert len(set(rows)) == len(rows) == 600
    for leaf in jax.tree.leaves(task.train.weights):
        assert abs(leaf.mean()) < 1e-3
        assert abs(leaf.std() - 1) < 1e-3
    order = np.argsort(task.test.accuracies, kind="stable")
    assert (np.diff(task.test.targets[order]) >= 0).all()
    assert kendall(task.test.targets, task.test.accuracies) > 0.97


def test_all_axes_of_the_larger_group_are_permuted() -> None:
    for network, _ in FAMILIES.values():
        spec = parse_spec(permute_all(network.spec))
        assert not any(leaf.fixed for leaf in spec.leaves)


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_the_documentation_shows_the_committed_results(framework: str) -> None:
    page = (Path(__file__).parents[1] / "docs" / "generalization.md").read_text(encoding="utf-8")
    told = json.loads((contest.RESULTS / f"{framework}.json").read_text(encoding="utf-8"))
    names = {field.name for field in fields(contest.Score)}
    scores = [contest.Score(**{k: v for k, v in s.items() if k in names}) for s in told["scores"]]
    assert contest.summary(scores) in page
    assert len(told["budget"]["seeds"]) >= 3


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_the_page_shows_the_committed_plots(framework: str) -> None:
    root = Path(__file__).parents[1]
    shown = root / "docs" / "figures" / f"generalization_{framework}.png"
    made = root / "examples" / "generalization" / "results" / f"{framework}.png"
    assert shown.read_bytes() == made.read_bytes()
    page = (root / "docs" / "generalization.md").read_text(encoding="utf-8")
    assert f"(figures/{shown.name})" in page
