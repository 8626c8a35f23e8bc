"""The editor's example end to end; its symmetry; and that it learns what it is trained for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from examples import zoo
from examples.editing import run
from examples.generalization.networks import make_zoo

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def networks() -> zoo.Zoo:
    return make_zoo("mlp", 128, steps=60, cache=None)


@pytest.fixture(scope="module")
def params(networks: zoo.Zoo) -> Any:
    return torch.utils._pytree.tree_map(
        lambda leaf: torch.from_numpy(np.array(leaf))[..., None], dict(networks.params)
    )


def shuffled(params: Any, order: torch.Tensor) -> Any:
    """The same networks, the first hidden layer's neurons in another order."""
    first, second = params["Dense_0"], params["Dense_1"]
    return {
        **params,
        "Dense_0": {"kernel": first["kernel"][:, :, order], "bias": first["bias"][:, order]},
        "Dense_1": {**second, "kernel": second["kernel"][:, order]},
    }


def test_predictions_are_those_of_the_zoo(networks: zoo.Zoo, params: Any) -> None:
    data = zoo.digits()
    images, labels = torch.from_numpy(data.test_images), torch.from_numpy(data.test_labels)
    found = run.accuracies(params, images, labels)
    np.testing.assert_allclose(found, networks.accuracies, atol=2 / len(labels))


@pytest.mark.parametrize(("name", "holds"), [("ours", True), ("one update for all", False)])
def test_an_edited_network_does_not_depend_on_the_order_of_its_neurons(
    networks: zoo.Zoo, params: Any, name: str, holds: bool
) -> None:
    torch.manual_seed(0)
    editor = run.EDITORS[name](networks.spec, networks.shapes).double()
    for weight in editor.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    params = torch.utils._pytree.tree_map(torch.Tensor.double, params)
    images = torch.rand(5, 8, 8, dtype=torch.float64)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    moved = shuffled(params, order)
    torch.testing.assert_close(run.predict(moved, images), run.predict(params, images))
    with torch.no_grad():
        one, other = (run.predict(editor(each), images) for each in (params, moved))
    assert torch.allclose(one, other, rtol=1e-9, atol=1e-9) == holds
    assert not torch.allclose(one, run.predict(params, images))


def test_an_editor_lowers_the_loss_it_is_trained_on(networks: zoo.Zoo, params: Any) -> None:
    data = zoo.digits()
    images, labels = torch.from_numpy(data.train_images), torch.from_numpy(data.train_labels)
    torch.manual_seed(0)
    editor = run.EDITORS["ours"](networks.spec, networks.shapes)
    before = run.loss_of(params, images, labels.long()).item()
    run.train(editor, params, data, epochs=80, seed=0)
    with torch.no_grad():
        after = run.loss_of(editor(params), images, labels.long()).item()
    assert after < 0.9 * before


def test_one_command_runs_all_editors(tmp_path: Path) -> None:
    run.main(quick=True, out=tmp_path)
    found = json.loads((tmp_path / "editing.json").read_text())
    assert list(found) == ["no edit", "one gradient step, sees data", *run.EDITORS]
    assert all(0 <= value <= 1 for each in found.values() for value in each)
    assert (tmp_path / "editing.md").read_text() == run.table(found)


def test_the_page_shows_the_committed_table() -> None:
    results = ROOT / "examples" / "editing" / "results"
    found = json.loads((results / "editing.json").read_text())
    assert (results / "editing.md").read_text() == run.table(found)
    assert run.table(found) in (ROOT / "docs" / "editing.md").read_text(encoding="utf-8")
