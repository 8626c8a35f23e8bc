"""An operator with lists in it is to autograd what its parts are.

In: operators made here, float64. Out: nothing, or an AssertionError: against finite differences,
and against PyTorch's own way of giving an operator a gradient.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from symcompile_torch.autograd import with_gradient

SCHEMA = "(Tensor[] x, Tensor weight, int[] powers, Tensor[] terms, float factor=2.0) -> Tensor[]"


def compute(
    x: list[Tensor], weight: Tensor, powers: list[int], terms: list[Tensor], factor: float = 2.0
) -> list[Tensor]:
    """Of every x: factor times weight times its power, and all terms."""
    products = [factor * weight * part**power for part, power in zip(x, powers, strict=True)]
    return [sum(terms, product) for product in products]


def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, ctx.powers, terms, ctx.factor = inputs
    ctx.of, ctx.count = len(x), len(terms)
    ctx.save_for_backward(*x, weight)


def back(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    *x, weight = ctx.saved_tensors
    each = [*zip(grads, x, ctx.powers, strict=True)]
    of_x = [ctx.factor * weight * power * part ** (power - 1) * g for g, part, power in each]
    of_weight = sum(ctx.factor * part**power * g for g, part, power in each)
    to_x, to_weight, _, to_terms, _ = ctx.needs
    SEEN.append(ctx.needs)
    return (
        [found if need else None for found, need in zip(of_x, to_x, strict=True)],
        of_weight if to_weight else None,
        None,
        [sum(grads) if need else None for need in to_terms],
        None,
    )


SEEN: list[Any] = []


def wrong(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    of_x, of_weight, *others = back(ctx, grads)
    return of_x[::-1], of_weight, *others


@pytest.fixture(scope="module")
def made() -> Iterator[Any]:
    """Operators: `ours`, `theirs` and one whose gradients are in the wrong places."""
    library: Any = torch.library.Library("symcompile_test", "DEF")  # type: ignore[no-untyped-call]
    for name, gradient in (("ours", back), ("wrong", wrong), ("theirs", None)):
        library.define(name + SCHEMA)
        library.impl(name, compute, "CPU")
        if gradient is not None:
            op = getattr(torch.ops.symcompile_test, name).default
            library.impl(name, with_gradient(op, gradient, keep), "Autograd", with_keyset=True)

    def as_theirs(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
        ctx.needs = ctx.needs_input_grad
        return back(ctx, grads)

    register: Any = torch.library.register_autograd
    register("symcompile_test::theirs", as_theirs, setup_context=keep, lib=library)
    yield torch.ops.symcompile_test
    library._destroy()


def inputs(learning: str = "xxwtt") -> list[Tensor]:
    torch.manual_seed(0)
    values = [torch.randn(3, 2, dtype=torch.float64) + 3 for _ in "xxwtt"]
    return [value.requires_grad_(mark != ".") for value, mark in zip(values, learning, strict=True)]


def call(op: Any, x: Tensor, other: Tensor, weight: Tensor, *terms: Tensor) -> list[Tensor]:
    found: list[Tensor] = op([x, other], weight, [2, 3], list(terms), 0.5)
    return found


def test_gradients_of_any_degree(made: Any) -> None:
    torch.autograd.gradcheck(lambda *args: call(made.ours, *args), inputs())
    torch.autograd.gradgradcheck(lambda *args: call(made.ours, *args), inputs())


def test_gradients_in_the_wrong_places_are_found(made: Any) -> None:
    with pytest.raises(GradcheckError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(lambda *args: call(made.wrong, *args), inputs())


@pytest.mark.parametrize("learning", ["xxwtt", "x....", ".x...", "..w..", "....t", "x.w.t"])
def test_as_pytorch_itself_gives_an_operator_a_gradient(made: Any, learning: str) -> None:
    found, needs = [], []
    for op in (made.ours, made.theirs):
        SEEN.clear()
        args = inputs(learning)
        y = call(op, *args)
        assert type(y) is list
        assert all(part.requires_grad for part in y)
        (y[0].sin().sum() + y[1].sum()).backward()
        found.append([arg.grad for arg in args])
        needs.append([[*need] if isinstance(need, list) else need for need in SEEN[0]])
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)
    learns = [mark != "." for mark in learning]
    for of_x, of_weight, _, of_terms, _ in needs:
        assert [*of_x, of_weight, *of_terms] == learns


def test_lists_may_be_empty_and_defaults_left_out(made: Any) -> None:
    x, *_, weight = inputs()[:3]
    (y,) = made.ours([x], weight, [1], [])
    y.sum().backward()
    for value, other in ((x, weight), (weight, x)):
        assert torch.equal(value.grad, 2 * other.detach())
    x, *_, weight = inputs()[:3]
    assert made.ours([], weight, [], [x]) == []


def test_no_gradient_where_none_is_asked_for(made: Any) -> None:
    for y in call(made.ours, *inputs(".....")):
        assert not y.requires_grad
    with torch.no_grad():
        for y in call(made.ours, *inputs()):
            assert not y.requires_grad


def test_what_is_not_kept_is_let_go(made: Any) -> None:
    """Terms are needed by no gradient: they do not outlive the call, nor does the call its end."""
    gc.disable()
    try:
        args = inputs("xxw..")
        term = weakref.ref(args[-1])
        y = call(made.ours, *args)
        args.pop()
        assert term() is None
        first = weakref.ref(args[0])
        y[0].sum().backward()
        del y, args
        assert first() is None
    finally:
        gc.enable()


def test_its_name_tells_which_operator_it_was(made: Any) -> None:
    y, _ = call(made.ours, *inputs())
    assert "OursBackward" in str(y.grad_fn)
