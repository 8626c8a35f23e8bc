"""What operators of PyTorch are held to on any device, by whatever computes them.

In: what is drawn, made on PyTorch's default device. Out: nothing, or an AssertionError: against
float64, PyTorch's own operations and PyTorch's own checks.
"""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from torch import Tensor

import symcompile_torch  # noqa: F401  (makes the operators)

ops = torch.ops.symcompile


def close(found: Tensor, wanted: Tensor, within: float = 2e-6) -> None:
    """Within a few roundings of float32, on the scale of the whole."""
    assert found.shape == wanted.shape
    if wanted.numel():
        scale = max(wanted.abs().max().item(), 1.0)
        assert (found.double() - wanted).abs().max().item() <= within * scale


def draw(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.tensor(rng.standard_normal(shape).astype(np.float32))


def laid_out(rng: np.random.Generator, *shape: int) -> Tensor:
    """Of that shape, in one of many layouts."""
    match rng.integers(4):
        case 0:
            return draw(rng, *shape)
        case 1:  # axes in another order
            order = rng.permutation(len(shape))
            return draw(rng, *(shape[axis] for axis in order)).permute(*np.argsort(order).tolist())
        case 2:  # a part of a larger tensor
            whole = draw(rng, *(size + 2 for size in shape))
            return whole[tuple(slice(1, size + 1) for size in shape)]
        case _:  # equal along the first axis
            return draw(rng, 1, *shape[1:]).expand(shape)


def sum_of(x, weights, sources, orders, terms):  # type: ignore[no-untyped-def]
    """What `linear_sum` computes, by the book."""
    axes = x[0].dim() - 1
    total = sum(
        x[source].permute(*orders[i * axes : (i + 1) * axes], axes) @ weights[i]
        for i, source in enumerate(sources)
    )
    return sum(terms, total)


def arguments(seed, sizes, depth, width, products, terms):  # type: ignore[no-untyped-def]
    """Of `linear_sum`: products of tensors of any layout, terms broadcast any way."""
    rng, axes = np.random.default_rng(seed), len(sizes)
    x = [laid_out(rng, *sizes, depth) for _ in range(1 + rng.integers(2))]
    sources = [int(rng.integers(len(x))) for _ in range(products)]
    orders = [int(axis) for _ in sources for axis in rng.permutation(axes)]
    weights = [draw(rng, depth, width) for _ in sources]
    shapes = [[size if rng.integers(2) else 1 for size in sizes] for _ in range(terms)]
    added = [laid_out(rng, *shape[int(rng.integers(axes + 1)) :], width) for shape in shapes]
    return x, weights, sources, orders, added


def doubled(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def a_sum_is_what_it_says(recipe) -> None:  # type: ignore[no-untyped-def]
    x, weights, sources, orders, terms = arguments(*recipe)
    wanted = sum_of(doubled(x), doubled(weights), sources, orders, doubled(terms))
    close(ops.linear_sum(x, weights, sources, orders, terms), wanted)


def gradients_of_a_sum(recipe) -> None:  # type: ignore[no-untyped-def]
    """Those of the first degree by kernels, those of the second by kernels of kernels."""
    x, weights, sources, orders, terms = arguments(*recipe)
    leaves = [tensor.detach().requires_grad_() for tensor in (*x, *weights, *terms)]
    exact = doubled(leaves)

    def gradients(compute, values):  # type: ignore[no-untyped-def]
        first, second = len(x), len(x) + len(weights)
        parts = values[:first], values[first:second], sources, orders, values[second:]
        y = compute(*parts)
        # No long sums of one sign, undone by others: float32 keeps few digits of those.
        cotangent = torch.arange(y.numel(), dtype=torch.float64).sin().to(y.dtype)
        asked = torch.autograd.grad(
            y, values, cotangent.view(y.shape), create_graph=True, allow_unused=True
        )
        # Through squares, so that gradients of gradients are no constants.
        length = sum((part**2).sum() for part in asked if part is not None)
        again = torch.autograd.grad(length, values, allow_unused=True)
        plain = torch.autograd.grad(
            compute(*parts), values, cotangent.view(y.shape), allow_unused=True
        )
        return [*asked, *again, *plain]

    found, wanted = gradients(ops.linear_sum, leaves), gradients(sum_of, exact)
    for a, b in zip(found, wanted, strict=True):
        if a is not None or b is not None:
            zero = torch.zeros(())
            close(zero if a is None else a, (zero if b is None else b).double(), within=3e-5)


def sums_over_two_axes_and_back(sizes, width, mean, seed) -> None:  # type: ignore[no-untyped-def]
    x = laid_out(np.random.default_rng(seed), *sizes, width).requires_grad_()
    exact = x.detach().double().requires_grad_()
    if 0 in sizes and mean:
        return  # a mean over nothing
    for axis in (0, 1):
        how = torch.mean if mean else torch.sum
        found, wanted = ops.sums(x, axis, mean), [how(exact, axis), how(exact, axis + 1)]
        for a, b in zip(found, wanted, strict=True):
            close(a, b)
        weights = [torch.linspace(0, 1, max(b.numel(), 1))[: b.numel()].view_as(b) for b in wanted]
        (to_x,) = torch.autograd.grad(found, x, weights)
        (to_exact,) = torch.autograd.grad(wanted, exact, [w.double() for w in weights])
        close(to_x, to_exact)


def all_gradients_at_once(batch, rows, count, inner, depth, width) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    x, weight = draw(rng, batch, rows, count, inner, depth), draw(rng, depth, width)
    grad = draw(rng, batch, rows, count, inner, width)
    to_x, to_weight, first, second = ops.back(grad, x, weight, 1)
    x, weight, grad = x.double(), weight.double(), grad.double()
    close(to_x, grad @ weight.t())
    close(to_weight, x.reshape(-1, depth).t() @ grad.reshape(-1, width))
    close(first, grad.sum(1))
    close(second, grad.sum(2))


def gradients_of_means_and_a_sum_together(sizes, depth, width, mean, seed) -> None:  # type: ignore[no-untyped-def]
    """Of the first degree by one kernel, of the second by others; with parts that are not asked."""
    if 0 in sizes and mean:
        return  # a mean over nothing
    rng = np.random.default_rng(seed)
    x, weight = laid_out(rng, *sizes, depth), draw(rng, depth, width)
    asked = [bool(rng.integers(4)), bool(rng.integers(4))]
    used = [bool(rng.integers(4)) for _ in range(3)]
    if not any(asked) or not any(used):
        return
    how = torch.mean if mean else torch.sum
    for axis in (0, 1, 2)[: len(sizes) - 1]:
        found = []
        for dtype in (torch.float32, torch.float64):
            a, w = (part.detach().to(dtype) for part in (x, weight))
            a.requires_grad_(asked[0]), w.requires_grad_(asked[1])
            term = torch.linspace(-1, 1, width, dtype=dtype).requires_grad_()
            if dtype is torch.float32:
                *sums, held = ops.sums_held(a, w, axis, mean)
                order = [*range(a.dim() - 1)]
                y = ops.linear_sum([a.detach()], [w.detach()], [0], order, [term, held])
            else:
                sums, y = [how(a, axis), how(a, axis + 1)], a @ w + term
            whole = sum((part**2).sum() for part, yes in zip((*sums, y), used, strict=True) if yes)
            leaves = [leaf for leaf in (a, w, term) if leaf.requires_grad]
            if not whole.requires_grad:
                return
            plain = torch.autograd.grad(whole, leaves, retain_graph=True, allow_unused=True)
            first = torch.autograd.grad(whole, leaves, create_graph=True, allow_unused=True)
            deeper = [part for part in first if part is not None and part.requires_grad]
            second = [None] * len(leaves)
            if deeper:
                length = sum((part**2).sum() for part in deeper)
                second = torch.autograd.grad(length, leaves, allow_unused=True)
            found.append([*sums, y, *plain, *first, *second])
        for one, exact in zip(*found, strict=True):
            if one is not None or exact is not None:
                zero = torch.zeros(())
                close(zero if one is None else one, zero if exact is None else exact, 1e-4)


def channels_of_several_axes_are_as_joined(rows, taps, line, width, seed) -> None:  # type: ignore[no-untyped-def]
    """In any layout: values, and derivatives of the first and second degree."""
    rng = np.random.default_rng(seed)
    x = laid_out(rng, *rows, *taps, line)
    other, term = draw(rng, *rows, 5), draw(rng, rows[0], 1, rows[2], width)
    weights = [draw(rng, line * prod(taps), width), draw(rng, 5, width)]
    weights.append(draw(rng, len(weights[0]), width))
    order, channels = [0, 1, 2], 1 + len(taps)
    found = []
    for dtype in (torch.float32, torch.float64):
        a, w, *rest = leaves = [
            part.detach().to(dtype).requires_grad_() for part in (x, weights[0], other, term)
        ]
        second, third = (part.to(dtype) for part in weights[1:])
        if dtype is torch.float32:
            *means, held = ops.sums_held(a, w, 1, True, channels)
            fixed = [a.detach()], [w.detach()], [0], order, [held]
            parts = [a, rest[0]], [third, second], [0, 1], order * 2, [rest[1]]
            y, z = ops.linear_sum(*fixed), ops.linear_sum(*parts)
            with torch.no_grad():
                assert torch.equal(ops.linear_sum(*parts), z)
        else:
            joined = a.flatten(3)
            means, y = [a.mean(1), a.mean(2)], joined @ w
            z = joined @ third + rest[0] @ second + rest[1]
        whole = sum((part**2).sum() for part in (*means, y, z))
        plain = torch.autograd.grad(whole, leaves, retain_graph=True)
        first = torch.autograd.grad(whole, leaves, create_graph=True)
        deeper = torch.autograd.grad(sum((part**2).sum() for part in first), leaves)
        found.append([*means, y, z, *plain, *first, *deeper])
    for one, exact in zip(*found, strict=True):
        close(one, exact, 1e-4)


def pytorch_finds_no_fault_with_the_operators() -> None:
    """Its own checks: schema, shapes without data, gradients, tracing."""
    rng = np.random.default_rng(1)
    x, weight = draw(rng, 2, 5, 5, 3).requires_grad_(), draw(rng, 3, 4).requires_grad_()
    term = draw(rng, 2, 1, 5, 4).requires_grad_()
    grad = draw(rng, 2, 5, 5, 4).requires_grad_()
    opcheck = torch.library.opcheck
    arguments = [x], [weight, weight], [0, 0], [0, 1, 2, 0, 2, 1], [term]
    opcheck(ops.linear_sum.default, arguments, rtol=1e-4, atol=1e-4)
    opcheck(ops.sums.default, (x, 1, True), rtol=1e-4, atol=1e-4)
    opcheck(ops.sums.default, (x.detach().permute(2, 0, 1, 3), 1, True), rtol=1e-4, atol=1e-4)
    for view in (x, x.detach().permute(2, 0, 1, 3)):
        opcheck(ops.mean.default, (view, 1), rtol=1e-4, atol=1e-4)
    opcheck(ops.spread.default, (draw(rng, 2, 5, 3), draw(rng, 2, 4, 3), 1))
    opcheck(ops.outer.default, (x, [0, 2, 1], grad), rtol=1e-4, atol=1e-4)
    opcheck(ops.sums_held.default, (x, weight, 0, True), rtol=1e-4, atol=1e-4)
    apart, joined = draw(rng, 3, 2, 7, 6, 4).movedim(0, -2).requires_grad_(), draw(rng, 12, 5)
    opcheck(ops.sums_held.default, (apart, joined, 1, True, 2), rtol=1e-4, atol=1e-4)
    arguments = [apart], [joined.requires_grad_()], [0], [0, 2, 1], []
    opcheck(ops.linear_sum.default, arguments, rtol=1e-4, atol=1e-4)
    first, second = (part.detach() for part in ops.sums(x, 1, False))
    parts = grad.detach(), x.detach(), weight.detach(), 1, first, second
    opcheck(ops.back_from.default, parts, rtol=1e-4, atol=1e-4)
    opcheck(ops.back.default, (grad.detach(), x.detach(), weight.detach(), 1))
