"""Laws of the way back: the transpose of a layer, and the gradients that PyTorch makes of it.

In: random layers. Out: nothing, or an AssertionError. The transpose is held to the layer diagram by
diagram, without numbers; to the inner products of both, by NumPy; and generated modules that take
gradients by it to autograd.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import symcompile as sc
from symcompile.api import compile_spec
from symcompile.ir import Add, Output, Program, Transposed, diagrams_of, transposed, verify
from symcompile.ir.meaning import BIAS
from symcompile.spec import Label, axis_atoms, flatten_like, unflatten
from symcompile_numpy import run
from tests.laws.strategies import Case, cases, normal_weights
from tests.torch_nodes import node_of

ONE: Any = {"in_channels": 1, "out_channels": 1}

Summand = tuple[Any, ...]


def turned(program: Program) -> Counter[Summand]:
    """What the transpose of a program is to sum: all terms but the bias', the other way round."""
    terms: Counter[Summand] = Counter()
    read = sorted({term.input for term in diagrams_of(program)} - {BIAS})
    for term, count in diagrams_of(program).items():
        if term.input == BIAS:
            continue
        order, out = len(program.inputs[term.input].labels), term.diagram.out_order
        blocks = sorted(
            tuple(sorted(axis + order if axis < out else axis - out for axis in block))
            for block in term.diagram.blocks
        )
        slots = tuple((weight, cols, rows) for weight, rows, cols in reversed(term.slots))
        terms[read.index(term.input), term.output, tuple(blocks), slots] += count
    return terms


def summed(found: Transposed) -> Counter[Summand]:
    """What the transpose sums, its outputs for biases left out."""
    ops, count = found.program.ops, len(found.read)
    kept = [k for k, op in enumerate(ops) if not isinstance(op, Output) or op.tensor < count]
    program = replace(found.program.only(kept), outputs=found.program.outputs[:count])
    terms: Counter[Summand] = Counter()
    for term, times in diagrams_of(program).items():
        terms[term.output, term.input, tuple(sorted(term.diagram.blocks)), term.slots] += times
    return terms


def matrices(program: Program, weights: Mapping[str, Any]) -> dict[str, Any]:
    """All that mixes read, put together."""
    found = dict(weights)
    for filled in program.filled:
        found[filled.name] = np.zeros(filled.shape)
        for block in filled.blocks:
            part = weights[block.weight][slice(*block.rows), slice(*block.cols)]
            found[filled.name][slice(*block.down), slice(*block.across)] = part
    return found


def taken_back(
    found: Transposed,
    weights: Mapping[str, Any],
    gradients: list[Any],
    sizes: Mapping[Label, int],
) -> list[Any]:
    """The transpose, by NumPy."""
    divided = {}
    for name, runs in found.means.items():
        counts = [
            prod(sizes[label] for label in labels) for width, labels in runs for _ in range(width)
        ]
        divided[name] = (weights[name] / np.array(counts)[:, None]).T
    return run(found.program, divided, gradients, sizes)


def adjoint(program: Program, found: Transposed, case: Case) -> None:
    """Hold <layer(x), g> to <x, transpose(g)> and to what the bias adds."""
    rng = np.random.default_rng(case.seed)
    weights = matrices(program, normal_weights(rng, dict(program.weights)))
    x = case.inputs(rng, (2,))
    y = run(program, weights, x, case.sizes)
    g = [rng.standard_normal(part.shape) for part in y]
    back = taken_back(found, weights, g, case.sizes)
    read = zip(found.read, back[: len(found.read)], strict=True)
    parts = [np.vdot(x[place], part) for place, part in read]
    parts += [
        (back[bias.output] @ weights[bias.weight][slice(*bias.cols)]).sum() for bias in found.biases
    ]
    whole = [np.vdot(one, other) for one, other in zip(y, g, strict=True)]
    scale = sum(np.abs(one * other).sum() for one, other in zip(y, g, strict=True))
    assert abs(sum(parts) - sum(whole)) <= 1e-12 * max(scale, 1.0)


@settings(max_examples=80)
@given(cases())
def test_the_transpose_sums_every_diagram_the_other_way(case: Case) -> None:
    program = compile_spec(case.spec, case.out_spec, **case.options).program
    found = transposed(program)
    assert found is not None
    verify(found.program)
    if not program.filled:
        assert summed(found) == turned(program)
    adjoint(program, found, case)


def test_a_term_that_is_missing_is_found() -> None:
    program = compile_spec({"w": ("a", "a")}, sizes={"a": 3}, **ONE).program
    found = transposed(program)
    assert found is not None
    ops = list(found.program.ops)
    place = next(k for k, op in enumerate(ops) if isinstance(op, Add) and len(op.args) > 2)
    ops[place] = replace(ops[place], args=ops[place].args[1:])
    less = replace(found, program=replace(found.program, ops=tuple(ops)))
    assert summed(less) != turned(program)
    case = Case({"w": ("a", "a")}, None, {"a": 3}, 1, 1, True, True, "mean", 0)
    adjoint(program, found, case)
    with pytest.raises(AssertionError):
        adjoint(program, less, case)


def test_means_that_are_not_divided_are_found() -> None:
    program = compile_spec({"w": ("a",)}, sizes={"a": 3}, **ONE).program
    found = transposed(program)
    assert found is not None
    case = Case({"w": ("a",)}, None, {"a": 3}, 1, 1, True, True, "mean", 0)
    adjoint(program, found, case)
    plain = {name: tuple((width, ()) for width, _ in runs) for name, runs in found.means.items()}
    with pytest.raises(AssertionError):
        adjoint(program, replace(found, means=plain), case)


# -- by PyTorch --------------------------------------------------------------------------------


def gradients(layer: Any, case: Case, seed: int, learn: str, node: str) -> list[Any]:
    """Outputs and gradients of a layer in float64, by its own node or, where there is none, by
    autograd.

    Inputs learn, or the first one does, or none: `learn` is "all", "one" or "none".
    """
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    x = [torch.tensor(part) for part in case.inputs(rng, (2,))]
    learning = {"all": x, "one": x[:1], "none": []}[learn]
    for part in learning:
        part.requires_grad_()
    y = flatten_like(case.target, layer(unflatten(case.source, x)), "y")
    kinds = {node_of(part) for part in y}
    assert kinds == {f"{node}Backward"} if node else not any("Layer" in kind for kind in kinds)
    g = [torch.tensor(rng.standard_normal(part.shape)) for part in y]
    found = torch.autograd.grad(y, [*learning, *layer.parameters()], g, allow_unused=True)
    return [*y, *found]


def channels_apart(case: Case) -> bool:
    """Whether a tensor is stored with a fixed axis before others, and so may have several axes of
    channels."""
    for leaf in case.source.leaves:
        fixed = [isinstance(atom, sc.Fixed) for axis in leaf.axes for atom in axis_atoms(axis)]
        if fixed != sorted(fixed):
            return True
    return False


@settings(max_examples=60)
@given(cases(max_weights=1_000, max_entries=1_500))
def test_a_layer_of_pytorch_takes_the_gradients_that_autograd_takes(case: Case) -> None:
    torch = pytest.importorskip("torch")
    options: dict[str, Any] = {"rank": (None, None, 1)[case.seed % 3], **case.options}
    planned = bool(case.seed % 4)
    options |= {"optimize": "auto" if planned else False}
    layer: Any = sc.compile(case.spec, case.out_spec, backend="torch", **options).double()
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(torch.randn(weight.shape, dtype=torch.float64))
    names = layer.forward.__globals__
    assert "_layer" in names or not planned or channels_apart(case)
    learn = ("all", "one", "none")[case.seed // 4 % 3]
    if learn == "one" and len(case.source.leaves) == 1:
        learn = "all"
    node = {"all": "_Layer", "none": "_FirstLayer", "one": ""}[learn]
    found = gradients(layer, case, case.seed, learn, node if node in names else "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(names, "_node", lambda *values: None)
        wanted = gradients(layer, case, case.seed, learn, "")
    for one, other in zip(found, wanted, strict=True):
        if other is None:  # no output depends on it
            assert one is None or not one.any()
        else:
            assert one.shape == other.shape
            scale = max(other.abs().max().item(), 1.0) if other.numel() else 1.0
            assert (one - other).abs().le(1e-12 * scale).all()
