"""The demo does what it says, in little; and it notices when what it says is not so."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from examples import demo, zoo
from examples.demo import Claim
from examples.families import difference
from symcompile.errors import CheckError

EXAMPLES = Path(__file__).parents[1] / "examples"


@dataclass(frozen=True)
class Story:
    """What a run printed."""

    text: str

    def step(self, number: int) -> str:
        """What the demo printed under one of its numbered headings."""
        return re.split(r"^(?:\d  |What was checked)", self.text, flags=re.MULTILINE)[number]

    def rows(self, number: int, name: str) -> list[list[str]]:
        """The cells of a step's table rows that start with a name."""
        lines = [line.strip() for line in self.step(number).splitlines()]
        return [re.split(r"\s{2,}", line) for line in lines if re.match(name + r"\b", line)]


def test_the_demo_keeps_its_word(tmp_path: Path) -> None:
    """One run for all claims: `demo.py --quick`, as from a pipe, from another folder."""
    here, scratch = tmp_path / "here", tmp_path / "scratch"
    here.mkdir()
    scratch.mkdir()
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "demo.py"), "--quick"],
        cwd=here,
        env={**os.environ, "COLUMNS": "100", "TMPDIR": str(scratch)},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [list(folder.iterdir()) for folder in (here, scratch)] == [[], []]
    assert "Warning" not in done.stderr
    story = Story(done.stdout)
    claims_hold(story)
    output_is_plain_and_fits(story)
    networks_are_trained_and_permuting_them_changes_no_prediction(story)
    spec_plan_and_source_are_shown(story)
    backends_agree_and_layers_are_equivariant(story)
    exported_files_run_where_symcompile_cannot_be_imported(story)
    both_programs_are_timed_on_both_backends(story)


def claims_hold(story: Story) -> None:
    claims = [line for line in story.step(8).splitlines() if line.rstrip().endswith("holds")]
    assert len(claims) == 7
    assert "All 7 claims hold" in story.text
    assert "FAILS" not in story.text


def output_is_plain_and_fits(story: Story) -> None:
    assert "\x1b" not in story.text
    assert max(map(len, story.text.splitlines())) <= 100
    headings = re.findall(r"^(\d)  \w", story.text, flags=re.MULTILINE)
    assert headings == [str(number) for number in range(1, 8)]


def networks_are_trained_and_permuting_them_changes_no_prediction(story: Story) -> None:
    for name, count in (("MLP", 12), ("RNN", 4)):
        ((_, networks, _, _, median, _),) = story.rows(1, name)
        assert int(networks) == count
        assert percent(median) > 50
        ((_, change, predictions, before, after, alone),) = story.rows(2, name)
        assert float(change) < 1e-5
        assert predictions == f"0 of {500 * count:,}"
        assert percent(before) == percent(after) > 50 > percent(alone)


def spec_plan_and_source_are_shown(story: Story) -> None:
    assert "kernel: [hidden0, hidden1]" in story.step(3)
    assert "80 diagrams in 3 mixes" in story.step(3)
    assert story.rows(3, "MLP")[0][1:4] == ["6", "61", "4"]
    assert "torch.cat((" in story.step(6)
    assert "@ mix_scalar" in story.step(6)


def backends_agree_and_layers_are_equivariant(story: Story) -> None:
    for name in ("MLP", "RNN"):
        ((_, _, largest, apart),) = story.rows(4, name)
        assert float(apart) < 1e-5 * max(1.0, float(largest))
        rows = story.rows(5, name)
        assert [row[0] for row in rows] == [f"{name}, torch", f"{name}, jax"]
        for _, trained, torn, drawn in rows:
            assert float(trained) < 1e-5 < 1e-2 < float(torn)
            assert float(drawn) < 1e-5


def exported_files_run_where_symcompile_cannot_be_imported(story: Story) -> None:
    for backend in ("torch", "jax"):
        ((_, lines, apart, refusal),) = story.rows(6, rf"layer_{backend}\.py")
        assert int(lines) > 100
        assert float(apart) < 1e-5
        assert refusal == "ImportError"


def both_programs_are_timed_on_both_backends(story: Story) -> None:
    for name in ("MLP", "RNN"):
        rows = story.rows(7, name)
        assert [row[0] for row in rows] == [f"{name}, torch, eager", f"{name}, JAX, jit"]
        for _, reference, factored, ratio in rows:
            slow, fast = (float(cell.removesuffix(" ms")) for cell in (reference, factored))
            assert min(slow, fast) > 0
            # To the rounding of the cells: three digits, and one after the point.
            assert abs(float(ratio.removesuffix(" x")) - slow / fast) < 0.06 + 0.02 * slow / fast


# --- the demo notices ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "claim",
    [
        Claim("too far", [1e-7, 1e-3]),
        Claim("not a number", [1e-7, float("nan")]),
        Claim("no figure at all", []),
        Claim("holds of anything", [1e-7], broken=[1.0, 1e-7]),
    ],
    ids=lambda claim: claim.text,
)
def test_a_claim_that_fails_is_told_and_ends_in_status_1(
    claim: Claim, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "tell", lambda *_: iter([Claim("good", [0.0]), claim]))
    assert demo.main([]) == 1
    printed = capsys.readouterr().out
    assert re.search(rf"{claim.text}.*FAILS", printed)
    assert "1 of 2 claims FAIL" in printed


def test_an_error_ends_in_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tell(*_: Any) -> Iterator[Claim]:
        yield Claim("good", [0.0])
        raise CheckError("not equivariant at y['w']")

    monkeypatch.setattr(demo, "tell", tell)
    assert demo.main([]) == 1
    assert "CheckError: not equivariant at y['w']" in capsys.readouterr().out


def test_a_spec_that_is_no_symmetry_is_noticed() -> None:
    networks = zoo.train_mlps(2, steps=10)
    wrong = {**networks.spec, "Dense_1": {"kernel": ("other", "hidden1"), "bias": ("hidden1",)}}
    quiet = Console(file=io.StringIO())
    assert demo.keep_predictions(quiet, [networks]).holds
    assert not demo.keep_predictions(quiet, [replace(networks, spec=wrong)]).holds


def test_difference_is_the_worst_of_all_tensors_and_keeps_a_nan() -> None:
    one = {"a": np.array([1.0, 2.0]), "b": np.array([100.0])}
    assert difference(one, one) == 0
    assert difference({**one, "a": np.array([1.0, 1.5])}, one) == 0.25
    assert np.isnan(difference({**one, "b": np.array([np.nan])}, one))


@pytest.mark.parametrize("module", ["symcompile", "symcompile_torch.layer"])
def test_a_generated_file_that_needed_symcompile_would_not_run(tmp_path: Path, module: str) -> None:
    (tmp_path / "layer_torch.py").write_text(f"import {module}\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "standalone.py"), "torch", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "is kept out of this process" in done.stderr


def percent(cell: str) -> float:
    return float(cell.removesuffix("%"))
