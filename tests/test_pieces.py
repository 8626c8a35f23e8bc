"""Weights that are read in pieces: which are cut, and what cutting costs backward.

In: small layers whose mixes are made to take every form there is. The oracle of values is the
reference program; that of costs is what torch is asked to do.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import symcompile as sc
from symcompile import passes
from symcompile.api import compile_spec
from symcompile.codegen.pieces import Grid, grids_of
from symcompile.ir import Mix, Program
from symcompile.passes.mixes import APART, FORMS, plan_mixes

pytestmark = pytest.mark.usefixtures("quick_xla")

SPEC = {"w": (0, 0)}, {"y": (0, 0), "z": (0, 0)}
OPTIONS = {"in_channels": 4, "out_channels": 3, "bias": False}

torch = pytest.importorskip("torch")
TorchDispatchMode = torch.utils._python_dispatch.TorchDispatchMode
MAKE_ZEROS = {torch.ops.aten.zeros, torch.ops.aten.new_zeros, torch.ops.aten.slice_backward}
CUT = {  # a matrix and its transpose in, one half-diagram of each output out
    "stacked": None,
    "separate": Grid(((0, 4), (4, 8)), ((0, 6),)),
    "transposed after": Grid(((0, 4), (4, 8)), ((0, 6),)),
    "stacked" + APART: Grid(((0, 8),), ((0, 3), (3, 6))),
    "separate" + APART: Grid(((0, 4), (4, 8)), ((0, 3), (3, 6))),
    "transposed after" + APART: Grid(((0, 4), (4, 8)), ((0, 3), (3, 6))),
}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A form that the large mix takes, whatever it costs."""

    def forced(program: Program, objective: Any) -> Any:
        plans = plan_mixes(program, objective)
        return tuple(
            replace(plan, chosen=request.param) for plan in plans if plan.weight == "mix_0_0"
        )

    monkeypatch.setattr(passes, "plan_mixes", forced)
    return request.param


# -- which are cut ---------------------------------------------------------------------------------


def test_a_weight_is_cut_where_its_form_reads_pieces(form: str) -> None:
    program = compile_spec(*SPEC, **OPTIONS).program
    assert grids_of(program).get("mix_0_0") == CUT[form]


READS = {
    "the grid": ([((0, 2), (0, 3)), ((2, 4), (0, 3))], Grid(((0, 2), (2, 4)), ((0, 3),))),
    "twice": ([((0, 2), (0, 3))] * 2 + [((2, 4), (0, 3))], Grid(((0, 2), (2, 4)), ((0, 3),))),
    "whole": ([((0, 4), (0, 3))], None),
    "whole as well": ([((0, 2), (0, 3)), ((2, 4), (0, 3)), ((0, 4), (0, 3))], None),
    "a gap": ([((0, 1), (0, 3)), ((2, 4), (0, 3))], None),
    "an end unread": ([((0, 1), (0, 3)), ((1, 3), (0, 3))], None),
    "an overlap": ([((0, 3), (0, 3)), ((2, 4), (0, 3))], None),
    "a cell unread": ([((0, 2), (0, 1)), ((0, 2), (1, 3)), ((2, 4), (0, 1))], None),
}


@pytest.mark.parametrize("name", READS)
def test_what_is_no_grid_is_not_cut(name: str) -> None:
    reads, expected = READS[name]
    ops = tuple(Mix((0,), "mix_0", rows, cols) for rows, cols in reads)
    program = Program(ops, (), (), (("mix_0", (4, 3)),))
    assert grids_of(program).get("mix_0") == expected


# -- what is written -------------------------------------------------------------------------------


def test_pieces_of_one_weight_are_cut_once_and_never_sliced(form: str) -> None:
    for backend, split in (("torch", "mix_0_0.split("), ("jax", "jnp.split(mix_0_0,")):
        pytest.importorskip(backend)
        source = sc.compile(*SPEC, **OPTIONS, backend=backend).source
        for part in source.split("def _gradients"):  # there, and back
            assert part.count(split) == (CUT[form] is not None)
        assert "mix_0_0[" not in source


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_values_are_those_of_the_reference(form: str, backend: str) -> None:
    pytest.importorskip(backend)
    sc.check_backends(*SPEC, **OPTIONS, sizes={0: 3}, backends=["numpy", backend])


def zeros(layer: Any, shape: tuple[int, ...]) -> int:
    """How many arrays of zeros of a shape a backward pass makes."""
    made = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            result = func(*args, **(kwargs or {}))
            if func.overloadpacket in MAKE_ZEROS:
                made.append(tuple(result.shape))
            return result

    y = layer({"w": torch.randn(2, 5, 5, 4)})
    with Watch():
        sum(leaf.sum() for leaf in y.values()).backward()
    return made.count(shape)


def test_backward_makes_no_array_of_zeros_as_large_as_a_weight(form: str) -> None:
    layer = sc.compile(*SPEC, **OPTIONS)
    assert zeros(layer, (8, 6)) == 0


def test_such_an_array_is_found_where_a_weight_is_sliced() -> None:
    class Sliced(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = torch.nn.Parameter(torch.randn(8, 6))

        def forward(self, x: Any) -> Any:
            return {"y": x["w"] @ self.mix[0:4, :], "z": x["w"] @ self.mix[4:8, :]}

    assert zeros(Sliced(), (8, 6)) == 2


def test_transforms_of_torch_see_through(form: str) -> None:
    layer = sc.compile(*SPEC, **OPTIONS)
    x = {"w": torch.randn(3, 5, 5, 4)}
    expected = layer(x)
    torch.testing.assert_close(torch.func.vmap(layer)(x), expected)
    weights = {name: torch.stack([w, 2 * w]) for name, w in layer.named_parameters()}
    y = torch.func.vmap(lambda w: torch.func.functional_call(layer, w, (x,)))(weights)
    torch.testing.assert_close({name: leaf[0] for name, leaf in y.items()}, expected)


# -- filled matrices -------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("form", FORMS)
def test_a_filled_matrix_can_be_read_in_every_form(form, backend, monkeypatch):
    """Each cell of the grid may hold parts of several weights, and zeros."""
    pytest.importorskip(backend)
    planned = passes.plan_mixes

    def forced(program: Program, objective: Any) -> Any:
        plans = planned(program, objective)
        return [replace(p, chosen=form) for p in plans if p.weight.startswith("filled")]

    monkeypatch.setattr(passes, "plan_mixes", forced)
    monkeypatch.setattr(passes, "_score", lambda done, objective: not done.filled)
    spec = {"v": (0, 0), "w": (0, 0)}
    options = {**OPTIONS, "sizes": {0: 4}, "terms": lambda output, input, diagram: input <= output}
    options["machine"] = sc.Machine("slow launches", bandwidth=1e12, flops=1e12, launch=1.0)
    program = compile_spec(spec, **options).program
    names = {matrix.name for matrix in program.filled}
    assert names
    assert bool(names & set(grids_of(program))) == (form != "stacked")
    sc.check_backends(spec, backends=["numpy", backend], plans=(False, "auto"), **options)
    sc.check_equivariance(sc.compile(spec, backend=backend, **options))


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_a_filled_matrix_read_in_pieces_are_those_of_the_reference(form, monkeypatch):
    planned = passes.plan_mixes
    monkeypatch.setattr(
        passes,
        "plan_mixes",
        lambda *args: [replace(p, chosen=form) for p in planned(*args)],
    )
    monkeypatch.setattr(passes, "_score", lambda done, objective: not done.filled)
    spec = {"v": (0, 0), "w": (0, 0)}
    options = {**OPTIONS, "sizes": {0: 4}, "terms": lambda output, input, diagram: input <= output}
    options["machine"] = sc.Machine("slow launches", bandwidth=1e12, flops=1e12, launch=1.0)
    layer = sc.compile(spec, **options, dtype="float64")
    plain = sc.compile(spec, **options, dtype="float64", optimize=False)
    assert layer.compiled.program.filled
    plain.load_state_dict(layer.state_dict())
    x = {name: torch.randn(2, 4, 4, 4, dtype=torch.float64) for name in spec}
    for one in (layer, plain):
        sum((leaf**2).sum() for leaf in one(x).values()).backward()
    for name, weight in layer.named_parameters():
        torch.testing.assert_close(weight.grad, plain.get_parameter(name).grad)
