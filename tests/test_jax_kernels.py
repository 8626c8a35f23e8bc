"""The CPU kernels on JAX: held to float64, to JAX's own ops, and to layers without them."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import symcompile as sc
from symcompile_jax import kernels
from symcompile_kernels import build as building
from tests.jax_laws import QUICK, all_close, batched, close, count, draw, exact, gradients, once
from tests.kernel_cases import CHANNELS, SIZES, recipes, views

pytestmark = pytest.mark.skipif(not kernels.AVAILABLE, reason="the kernels were not compiled here")


def a_sum(seed, sizes, depth, width, products, terms):  # type: ignore[no-untyped-def]
    """Arguments of the primitive, and its parameters: terms are broadcast any way."""
    rng, axes = np.random.default_rng(seed), len(sizes)
    sources = [0, *(int(rng.integers(2)) for _ in range(products - 1))]
    x = [draw(rng, *sizes, depth) for _ in range(max(sources) + 1)]
    orders = tuple(tuple(int(axis) for axis in rng.permutation(axes)) for _ in sources)
    weights = [draw(rng, depth, width) for _ in sources]
    shapes = [[size if rng.integers(2) else 1 for size in sizes] for _ in range(terms)]
    added = [draw(rng, *shape[int(rng.integers(axes + 1)) :], width) for shape in shapes]
    params = {"sources": tuple(sources), "orders": orders, "shape": (*sizes, width), "held": False}
    return (*x, *weights, *added), params


def both_sums(recipe):  # type: ignore[no-untyped-def]
    args, params = a_sum(*recipe)
    return args, partial(kernels._linear_sum.bind, **params), partial(kernels._plain_sum, **params)


@settings(max_examples=60, deadline=None)
@given(recipes())
def test_a_sum_is_what_it_says(recipe) -> None:  # type: ignore[no-untyped-def]
    args, found, wanted = both_sums(recipe)
    close(found(*args), exact(wanted, *args))


@settings(max_examples=25, deadline=None)
@given(recipes())
def test_gradients_of_a_sum(recipe) -> None:  # type: ignore[no-untyped-def]
    """Those of the first degree by kernels, those of the second by kernels of kernels."""
    args, found, wanted = both_sums(recipe)
    made, oracle = (lambda *args, how=how: gradients(how, args) for how in (found, wanted))
    all_close(once(made, *args), exact(oracle, *args), 3e-5)


@settings(max_examples=25, deadline=None)
@given(recipes(), st.integers(0, 2**32 - 1))
def test_a_batch_of_sums(recipe, seed) -> None:  # type: ignore[no-untyped-def]
    """A batch axis anywhere, of any arguments."""
    args, found, wanted = both_sums(recipe)
    rng = np.random.default_rng(seed)
    dims = [int(rng.integers(arg.ndim + 1)) if rng.integers(3) else None for arg in args]
    dims[0] = 0
    stacked = batched(args, dims)
    close(once(jax.vmap(found, dims), *stacked), exact(jax.vmap(wanted, dims), *stacked))


def test_a_batch_is_an_axis_of_rows() -> None:
    rng = np.random.default_rng(0)
    x, weight, term = draw(rng, 3, 5, 6, 8), draw(rng, 8, 8), draw(rng, 3, 1, 6, 8)
    compute = partial(
        kernels._linear_sum.bind, sources=(0,), orders=((1, 0),), shape=(6, 5, 8), held=False
    )
    swapped = term.transpose(0, 2, 1, 3)
    assert count(jax.vmap(compute, (0, None, 0)), x, weight, swapped) == 1
    assert count(jax.vmap(compute, (0, None, None)), x, weight, swapped[0]) == 1
    weights = jnp.stack([weight] * 3)
    assert count(jax.vmap(compute, (0, 0, 0)), x, weights, swapped) == 0


@settings(max_examples=10, deadline=None)
@given(st.tuples(*[st.integers(1, 12)] * 3), st.integers(1, 40), st.booleans(), st.integers(0, 9))
def test_sums_over_two_axes_and_back(sizes, width, mean, seed) -> None:  # type: ignore[no-untyped-def]
    x = draw(np.random.default_rng(seed), *sizes, width)

    def all_of_them(compute, x):  # type: ignore[no-untyped-def]
        y, pull = jax.vjp(lambda x: compute(x), x)
        one_only = jax.grad(lambda x: compute(x)[1].sum())(x)
        batch = jax.vmap(compute, 2)(x[:, :, None])
        return (y, one_only, batch), pull([jnp.cos(one) for one in y])

    for axis in (0, 1):
        found = partial(kernels._sums.bind, axis=axis, mean=mean)
        values, gradient = once(partial(all_of_them, found), x)
        wanted = partial(kernels._plain_sums, axis=axis, mean=mean)
        oracle = exact(partial(all_of_them, wanted), x)
        all_close(values, oracle[0])
        all_close(gradient, oracle[1], 5e-6)
        all_close(found(x), oracle[0][0])  # and by itself


@pytest.mark.parametrize(
    ("batch", "rows", "count", "inner", "depth", "width"),
    [(2, 13, 11, 1, 5, 7), (3, 29, 30, 1, 16, 16), (1, 17, 3, 4, 33, 40), (2, 1, 1, 1, 8, 8)],
)
def test_all_gradients_at_once(batch, rows, count, inner, depth, width) -> None:  # type: ignore[no-untyped-def]
    """And their own derivatives, forward, backward and in batches."""
    rng = np.random.default_rng(0)
    x, weight = draw(rng, batch, rows, count, inner, depth), draw(rng, depth, width)
    g = draw(rng, batch, rows, count, inner, width)
    found = partial(kernels._back.bind, axis=1)

    def wanted(g, x, weight):  # type: ignore[no-untyped-def]
        of_weight = jnp.tensordot(x, g, ([0, 1, 2, 3], [0, 1, 2, 3]))
        return [g @ weight.T, of_weight, g.sum(1), g.sum(2)]

    all_close(found(g, x, weight), exact(wanted, g, x, weight), 5e-6)

    def derivatives(compute, *args):  # type: ignore[no-untyped-def]
        y, forward = jax.jvp(lambda *args: compute(*args), args, tuple(map(jnp.cos, args)))
        _, pull = jax.vjp(lambda *args: compute(*args), *args)
        (again,) = jax.linear_transpose(lambda g: compute(g, *args[1:]), args[0])(y)
        batch = [jnp.stack([arg, -arg], 1) for arg in args[:2]]
        return forward, pull(y), again, jax.vmap(compute, (1, 1, None))(*batch, args[2])

    found_all = once(partial(derivatives, found), g, x, weight)
    all_close(found_all, exact(partial(derivatives, wanted), g, x, weight), 2e-5)


def test_long_sums_keep_their_digits() -> None:
    """Sums of 200,000 equal terms, which float32 gets wrong by 1e-3 if it adds them up in order."""
    x = jnp.full((1, 200_000, 2, 16), 0.1, jnp.float32)
    value = float(np.float32(0.1))
    for tall in (x, x.transpose(0, 2, 1, 3)):
        for mean in kernels._sums.bind(tall, axis=1, mean=True):
            assert jnp.abs(mean - value).max() < 1e-5 * value
    outer = kernels._outer.bind(x, x, order=(0, 1, 2))
    assert jnp.abs(outer - 400_000 * value**2).max() < 1e-6 * 400_000 * value**2


def joined(axis, used, x, weight, term):  # type: ignore[no-untyped-def]
    """Means and a sum of the same array, some of them."""
    first, second, held = kernels.two_means_held(x, weight, axis)
    y = kernels.linear_sum([((x,), weight)], [term], held)
    return [part for part, yes in zip((first, second, y), used, strict=True) if yes]


def joined_plainly(axis, used, x, weight, term):  # type: ignore[no-untyped-def]
    made = x.mean(axis), x.mean(axis + 1), x @ weight + term
    return [part for part, yes in zip(made, used, strict=True) if yes]


USED = [(1, 1, 1), (1, 0, 1), (0, 0, 1), (1, 1, 0)]


@pytest.mark.parametrize("used", USED)
@settings(max_examples=3, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 9)] * 4),
    channels=st.tuples(*[st.integers(1, 40)] * 2),
    axis=st.integers(0, 2),
    asked=st.sampled_from([(0, 1, 2), (0, 1), (0, 2), (1, 2), (0,), (1,)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_derivatives_of_means_and_a_sum_together(sizes, channels, axis, used, asked, seed) -> None:  # type: ignore[no-untyped-def]
    """Forward, backward, backward again, transposed, of what is asked for; and a batch of them."""
    rng, (depth, width) = np.random.default_rng(seed), channels
    args = draw(rng, *sizes, depth), draw(rng, depth, width), draw(rng, width)

    def all_of_them(how, *args):  # type: ignore[no-untyped-def]
        def of_asked(*some):  # type: ignore[no-untyped-def]
            every = [*args]
            for place, one in zip(asked, some, strict=True):
                every[place] = one
            return how(axis, used, *every)

        def loss(some):  # type: ignore[no-untyped-def]
            return sum((part**2).sum() for part in of_asked(*some))

        some = tuple(args[place] for place in asked)
        tangents = tuple(jnp.cos(one) for one in some)
        first = jax.grad(loss)(some)
        second = jax.grad(lambda some: sum((g**2).sum() for g in jax.grad(loss)(some)))(some)
        values, forward = jax.jvp(of_asked, some, tangents)
        each = jax.vmap(lambda x: jax.grad(lambda x: loss_of(how, x, *args[1:]))(x))(
            jnp.stack([args[0], -args[0]], 1).swapaxes(0, 1)
        )
        both = jax.vmap(lambda w: jax.grad(lambda w: loss_of(how, args[0], w, args[2]))(w))(
            jnp.stack([args[1], -args[1]])
        )
        return values, forward, first, second, each, both

    def loss_of(how, *args):  # type: ignore[no-untyped-def]
        return sum((part**2).sum() for part in how(axis, used, *args))

    found = once(partial(all_of_them, joined), *args)
    all_close(found, exact(partial(all_of_them, joined_plainly), *args), 1e-4)


@pytest.mark.parametrize("used", USED, ids=str)
def test_means_and_a_sum_as_a_linear_function(used) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(2)
    x, weight = draw(rng, 3, 5, 6, 8), draw(rng, 8, 4)
    term = jnp.zeros(4)
    y = joined_plainly(1, used, x, weight, term)
    found, wanted = (
        jax.linear_transpose(lambda x, how=how: how(1, used, x, weight, term), x)(y)
        for how in (joined, joined_plainly)
    )
    all_close(found, wanted, 1e-5)


# -- what runs them -------------------------------------------------------------------------


def a_call():  # type: ignore[no-untyped-def]
    """A sum large enough for kernels, as generated modules write it, and its arguments."""
    rng = np.random.default_rng(0)
    x, weight = draw(rng, 2, 64, 96, 16), draw(rng, 16, 16)
    terms = draw(rng, 2, 1, 96, 16), draw(rng, 2, 64, 1, 16)

    def compute(x, weight, *terms):  # type: ignore[no-untyped-def]
        assert kernels.fits([((x,), weight)], terms)
        return kernels.linear_sum([((x,), weight)], terms)

    def wanted(x, weight, first, second):  # type: ignore[no-untyped-def]
        return x @ weight + first + second

    return compute, wanted, (x, weight, *terms)


def test_a_gradient_is_one_kernel() -> None:
    compute, _, args = a_call()

    def pulled(*args):  # type: ignore[no-untyped-def]
        y, pull = jax.vjp(compute, *args)
        return y, pull(y)

    text = jax.jit(pulled).lower(*args).as_text()
    assert text.count("@symcompile_") == 2
    assert text.count("@symcompile_linear_sum_") == text.count("@symcompile_back_") == 1


def test_gradients_of_means_and_a_sum_are_one_kernel() -> None:
    """And what the sum holds is never made."""
    _, _, (x, weight, *terms) = a_call()

    def compute(x, weight, *terms):  # type: ignore[no-untyped-def]
        first, second, held = kernels.two_means_held(x, weight, 1)
        return first, second, kernels.linear_sum([((x,), weight)], terms, held)

    def pulled(*args):  # type: ignore[no-untyped-def]
        y, pull = jax.vjp(compute, *args)
        return y, pull(y)

    program = jax.jit(pulled).lower(x, weight, *terms)
    text = program.as_text()
    calls = [text.count(f"@symcompile_{name}_") for name in ("linear_sum", "sums", "back_from")]
    assert calls == [1, 2, 1]
    assert text.count("@symcompile_") == 4
    forward = jax.jit(compute).lower(x, weight, *terms).compile().memory_analysis()
    assert forward.temp_size_in_bytes < x.nbytes / 10


def test_axes_that_move_before_a_sum_are_read_as_they_lie() -> None:
    """XLA would copy them for a kernel; other readers get what they ask for."""
    _, _, (x, weight, *_) = a_call()

    def compute(x, weight):  # type: ignore[no-untyped-def]
        moved = jnp.transpose(jnp.swapaxes(x, 0, 1), (2, 0, 1, 3))
        products = ((x,), weight), ((moved,), weight.T, (2, 1, 0))
        return kernels.linear_sum(products, []), moved.max(0)

    def wanted(x, weight):  # type: ignore[no-untyped-def]
        return x @ weight + x @ weight.T, x.max(2).transpose(1, 0, 2)

    def pulled(compute, *args):  # type: ignore[no-untyped-def]
        y, pull = jax.vjp(compute, *args)
        return y, pull(y)

    text = jax.jit(compute).lower(x, weight).as_text()
    (call,) = (line for line in text.splitlines() if "@symcompile_linear_sum_" in line)
    assert "(%arg0, %arg0, " in call
    text = jax.jit(partial(pulled, compute)).lower(x, weight).as_text()
    outers = [line for line in text.splitlines() if "@symcompile_outer_" in line]
    assert [line.count("(%arg0, ") for line in outers] == [1, 1]
    found, plain = (jax.jit(partial(pulled, how))(x, weight) for how in (compute, wanted))
    all_close(found, plain, 1e-5)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("rank", SIZES)
def test_means_of_what_is_transposed(rank, channels) -> None:  # type: ignore[no-untyped-def]
    """And their gradients; of the most axes, over the last two alone, every order once."""
    cases = views(rank)
    if rank == 5:
        cases = [case for case in cases if case[1] == 2][CHANNELS.index(channels) :: len(CHANNELS)]
    x = draw(np.random.default_rng(0), *SIZES[rank], channels)

    def means_of(how, x):  # type: ignore[no-untyped-def]
        return [how(x.transpose(order), axis) for order, axis in cases]

    def pulled(how, x):  # type: ignore[no-untyped-def]
        y, pull = jax.vjp(partial(means_of, how), x)
        cotangents = [jnp.linspace(-1, 1, one.size, dtype=one.dtype) for one in jax.tree.leaves(y)]
        shaped = [
            c.reshape(one.shape) for c, one in zip(cotangents, jax.tree.leaves(y), strict=True)
        ]
        return y, pull(jax.tree.unflatten(jax.tree.structure(y), shaped))

    def plainly(x, axis):  # type: ignore[no-untyped-def]
        return x.mean(axis), x.mean(axis + 1)

    text = jax.jit(partial(means_of, kernels.two_means)).lower(x).as_text()
    calls = [line for line in text.splitlines() if "@symcompile_sums_" in line]
    assert len(calls) == len(cases)
    assert all("(%arg0)" in call for call in calls)
    all_close(
        jax.jit(partial(pulled, kernels.two_means))(x), exact(partial(pulled, plainly), x), 1e-5
    )


def test_means_of_what_is_transposed_take_no_copy() -> None:
    x = draw(np.random.default_rng(0), 4, 64, 96, 16)

    def compute(x):  # type: ignore[no-untyped-def]
        moved = jnp.moveaxis(x, -4, -2)
        assert kernels.two_means_fit(moved, -3)
        return kernels.two_means(moved, -3)

    program = jax.jit(compute).lower(x).compile()
    assert program.memory_analysis().temp_size_in_bytes < x.nbytes / 10
    assert "transpose(" not in program.as_text()
    all_close(program(x), exact(lambda x: (x.mean(2).swapaxes(0, 1), x.mean(0)), x))


def test_channels_joined_of_several_axes_are_read_as_they_lie() -> None:
    """By the sum and by the means: fixed axes moved to the channels are copied by gradients alone,
    and all of it is what it is without kernels, under vmap too."""
    rng = np.random.default_rng(0)
    x, weight = draw(rng, 3, 2, 8, 40, 48, 16), draw(rng, 96, 96)
    flat = draw(rng, 8, 40, 48, 96)

    def compute(x, weight):  # type: ignore[no-untyped-def]
        moved = x.transpose(2, 3, 4, 0, 1, 5).reshape(8, 40, 48, 96)
        first, second, held = kernels.two_means_held(moved, weight, 1)
        terms = [first[:, None], second[:, :, None]]
        y = kernels.linear_sum([((moved,), weight)], terms, held)
        return y, kernels.linear_sum([((flat,), weight), ((moved,), weight, (0, 1))], [])

    def wanted(x, weight):  # type: ignore[no-untyped-def]
        moved = x.transpose(2, 3, 4, 0, 1, 5).reshape(8, 40, 48, 96)
        y = moved @ weight + moved.mean(1)[:, None] + moved.mean(2)[:, :, None]
        return y, jnp.asarray(flat, x.dtype) @ weight + moved @ weight

    def pulled(how, *args):  # type: ignore[no-untyped-def]
        y, pull = jax.vjp(how, *args)
        return y, pull(jax.tree.map(jnp.cos, y))

    text = jax.jit(compute).lower(x, weight).as_text()
    calls = [line for line in text.splitlines() if "custom_call @symcompile_" in line]
    assert len(calls) == 3
    assert all("%arg0" in call for call in calls)
    program = jax.jit(compute).lower(x, weight).compile()
    assert program.memory_analysis().temp_size_in_bytes < x.nbytes / 4
    found = jax.jit(partial(pulled, compute))(x, weight)
    all_close(found, exact(partial(pulled, wanted), x, weight), 1e-5)
    several = jnp.stack([x, 2 * x])
    each = jax.jit(jax.vmap(partial(pulled, compute), (0, None)))(several, weight)
    all_close(jax.tree.map(lambda value: value[0], each), found, 1e-5)


def test_axes_joined_into_one_of_rows_are_left_to_xla() -> None:
    """Though below them, too, the channels of the sum are the last axis."""
    x, weight = draw(np.random.default_rng(0), 4, 40, 50, 16), jnp.eye(16)
    text = jax.jit(a_detour(kernels.linear_sum, kernels.two_means)).lower(x, weight).as_text()
    assert text.count("custom_call @symcompile_") == 2
    assert not any("(%arg0" in line for line in text.splitlines() if "@symcompile_" in line)

    def pulled(how, *args):  # type: ignore[no-untyped-def]
        y, pull = jax.vjp(how, *args)
        return y, pull(jax.tree.map(jnp.cos, y))

    found = jax.jit(partial(pulled, a_detour(kernels.linear_sum, kernels.two_means)))(x, weight)

    def plain_sum(products, terms):  # type: ignore[no-untyped-def]
        (((part,), factor),) = products
        return part @ factor

    def plain_means(x, axis):  # type: ignore[no-untyped-def]
        return x.mean(axis), x.mean(axis + 1)

    wanted = exact(partial(pulled, a_detour(plain_sum, plain_means)), x, weight)
    all_close(found, wanted, 1e-5)


def a_detour(linear_sum, two_means):  # type: ignore[no-untyped-def]
    """Channels first, pixels joined, channels last: pixels are an axis of rows then."""

    def compute(x, weight):  # type: ignore[no-untyped-def]
        pixels = x.transpose(0, 3, 1, 2).reshape(4, 16, 2000).transpose(0, 2, 1)
        return linear_sum([((pixels,), weight)], []), two_means(pixels, 0)

    return compute


def test_outputs_with_fixed_axes_are_copied_once() -> None:
    """From what a kernel wrote to where they are stored; XLA copies twice what moves by axes."""
    spec = {name: (sc.Fixed(3), sc.Fixed(3), k, k + 1) for k, name in enumerate(("a", "b"))}
    options = {"in_channels": 16, "out_channels": 16, "sizes": {0: 24, 1: 36, 2: 40}}
    layer = sc.compile(spec, backend="jax", **options)
    inputs = {"a": jnp.ones((3, 3, 3, 24, 36, 16)), "b": jnp.ones((3, 3, 3, 36, 40, 16))}
    params = layer.init(jax.random.key(0))
    program = jax.jit(layer.apply).lower(params, inputs).compile()
    whole = sum(value.nbytes for value in inputs.values())
    assert program.memory_analysis().temp_size_in_bytes < 1.4 * whole
    assert "wrapped_copy" not in program.as_text()


def test_means_of_more_axes_than_kernels_have_room_for() -> None:
    x = draw(np.random.default_rng(0), *[2] * 8, 5, 6, 8)
    moved = x.swapaxes(0, 1)
    wanted = moved.mean(8), moved.mean(9)
    assert count(lambda x: kernels.two_means(x.swapaxes(0, 1), 8), x) == 1
    all_close(jax.jit(lambda x: kernels.two_means(x.swapaxes(0, 1), 8))(x), wanted)


def test_what_is_not_asked_for_is_not_made() -> None:
    compute, wanted, args = a_call()
    of_weight = jax.jit(jax.grad(lambda w: compute(args[0], w, *args[2:]).sum()))
    text = of_weight.lower(args[1]).as_text()
    assert text.count("@symcompile_outer_") == 1
    assert "@symcompile_back_" not in text
    close(
        of_weight(args[1]), jax.grad(lambda w: wanted(args[0], w, *args[2:]).sum())(args[1]), 1e-5
    )


def test_transforms_of_transforms() -> None:
    """Hessians, checkpoints, scans, donated arguments."""
    compute, wanted, args = a_call()
    x, weight, *terms = args

    def curved(how, w):  # type: ignore[no-untyped-def]
        return (how(x, w, *terms) ** 2).mean()

    for hessian in (jax.hessian, lambda f: jax.jacrev(jax.jacrev(f))):
        found, plain = (jax.jit(hessian(partial(curved, how)))(weight) for how in (compute, wanted))
        close(found, plain, 1e-5)
    kept = jax.jit(jax.grad(jax.checkpoint(partial(curved, compute))))(weight)
    close(kept, jax.grad(partial(curved, wanted))(weight), 1e-5)

    def thrice(how, x):  # type: ignore[no-untyped-def]
        def step(x, _):  # type: ignore[no-untyped-def]
            return jnp.tanh(how(x, weight, *terms)), None

        return jax.lax.scan(step, x, None, 3)[0].sum()

    found, plain = (jax.jit(jax.grad(partial(thrice, how)))(x) for how in (compute, wanted))
    close(found, plain, 1e-5)
    donated = jax.jit(compute, donate_argnums=0)(x + 0, weight, *terms)
    close(donated, wanted(*args), 1e-5)


def test_a_term_of_one_channel_is_no_pair_with_another() -> None:
    _, wanted, (x, weight, *_) = a_call()
    terms = jnp.ones((2, 64, 1, 16)), jnp.ones((2, 64, 96, 1))

    def compute(*args):  # type: ignore[no-untyped-def]
        return kernels.linear_sum([((args[0],), args[1])], args[2:])

    found, plain = (
        jax.grad(lambda *args, how=how: (how(*args) ** 2).sum(), (0, 1, 2, 3))(x, weight, *terms)
        for how in (compute, wanted)
    )
    all_close(found, plain, 1e-5)


def test_nans_are_found() -> None:
    compute, _, (x, weight, *terms) = a_call()
    x = x.at[0, 0, 0, 0].set(jnp.nan)
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        jax.jit(compute)(x, weight, *terms)
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        kernels.two_means(x, 1)


def test_what_is_held_is_held_by_programs_alone() -> None:
    _, _, (x, weight, *terms) = a_call()
    assert kernels.two_means_held(x, weight, 1)[2] is None

    def forward(weight):  # type: ignore[no-untyped-def]
        *_, held = kernels.two_means_held(x, weight, 1)
        return kernels.linear_sum([((x,), weight)], terms, held).sum((0, 1, 2))

    memory = jax.jit(jax.jacfwd(forward)).lower(weight).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2 * x.nbytes  # not an array for each of 256 tangents
    with pytest.raises(ValueError, match="found 2 products"):
        kernels.linear_sum([((x,), weight), ((x,), weight, (0, 1))], terms, jnp.zeros(x.shape))
    with pytest.raises(ValueError, match="expected one with an axis and channels"):
        kernels.two_means_held(x, weight, 2)


def test_programs_for_elsewhere_have_none() -> None:
    """Exported ones, and those for several platforms at once."""
    compute, wanted, args = a_call()
    made = jax.export.export(jax.jit(compute))(*args)
    assert "@symcompile" not in made.mlir_module()
    close(made.call(*args), wanted(*args), 1e-5)
    both = jax.export.export(jax.jit(compute), platforms=("cpu", "cuda"))(*args)
    close(both.call(*args), wanted(*args), 1e-5)
    pulled = jax.jit(lambda *args: jax.vjp(compute, *args)[1](args[0]))
    assert "@symcompile" not in jax.export.export(pulled)(*args).mlir_module()
    text = jax.jit(compute).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    assert "@symcompile" not in text


def test_sizes_that_are_not_known_yet() -> None:
    """A program exported for any batch."""
    layer, params, inputs = a_layer("mlp")
    (batch,) = jax.export.symbolic_shape("batch")
    kinds = {
        key: jax.ShapeDtypeStruct((batch, *value.shape[1:]), value.dtype)
        for key, value in inputs.items()
    }
    made = jax.export.export(jax.jit(layer.apply))(params, kinds)
    all_close(made.call(params, inputs), jax.jit(layer.apply)(params, inputs), 1e-5)


def test_without_jit_and_in_other_widths() -> None:
    compute, wanted, args = a_call()
    with jax.disable_jit():
        close(compute(*args), wanted(*args), 1e-5)
    _, eager = jax.vjp(compute, *args)
    _, plain = jax.vjp(wanted, *args)
    all_close(eager(args[0]), plain(args[0]), 1e-5)
    with jax.enable_x64(True):
        _, wide = jax.vjp(compute, *args)
        found = wide(args[0])
        assert {value.dtype for value in found} == {jnp.dtype("float32")}
        all_close(found, plain(args[0]), 1e-5)
    # Batches too.
    dims = (1, None, 0, None)
    stacked = batched(args, dims)
    close(jax.vmap(compute, dims)(*stacked), exact(jax.vmap(wanted, dims), *stacked))
    x = args[0]
    means = jax.vmap(partial(kernels._sums.bind, axis=1, mean=True), 2)(x[:, :, None])
    all_close(means, exact(lambda x: [x.mean(1)[None], x.mean(2)[None]], x))


def test_arrays_over_several_devices(tmp_path: Path) -> None:
    """Results are right, whether XLA or shard_map distributes them."""
    program = """
import jax, jax.numpy as jnp, numpy as np
from functools import partial
from jax.sharding import NamedSharding, PartitionSpec as P
from symcompile_jax import kernels

assert jax.device_count() == 2
rng = np.random.default_rng(0)
x, w, first, second = (
    jnp.asarray(rng.standard_normal(shape, np.float32))
    for shape in ((4, 64, 96, 16), (16, 16), (4, 1, 96, 16), (4, 64, 1, 16))
)
plain = lambda x, w, a, b: x @ w + a + b + x.mean(1, keepdims=True)

def layer(x, w, a, b):
    if kernels.fits([((x,), w)], (a, b)):
        return kernels.linear_sum([((x,), w)], (a, b)) + kernels.two_means(x, 1)[0][:, None]
    return plain(x, w, a, b)

def pulled(how, *args):
    y, pull = jax.vjp(how, *args)
    return y, pull(y)

wanted = pulled(plain, x, w, first, second)
mesh = jax.make_mesh((2,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
for spec in (P("i"), P(None, "i"), P(None, None, "i"), P()):
    put = lambda value: jax.device_put(value, NamedSharding(mesh, spec))
    args = put(x), jax.device_put(w, NamedSharding(mesh, P())), first, second
    args = (*args[:2], *(jax.device_put(t, NamedSharding(mesh, P())) for t in args[2:]))
    found = jax.jit(partial(pulled, layer))(*args)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() < 1e-5 * max(1, np.abs(b).max())
specs = P("i"), P(), P("i"), P("i")
for check in (True, False):
    over = jax.shard_map(layer, mesh=mesh, in_specs=specs, out_specs=P("i"), check_vma=check)
    found = jax.jit(partial(pulled, over))(x, w, first, second)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() < 1e-5 * max(1, np.abs(b).max())
explicit = jax.make_mesh((2,), ("i",), axis_types=(jax.sharding.AxisType.Explicit,))
with jax.set_mesh(explicit):
    put = lambda value: jax.device_put(value, NamedSharding(explicit, P("i")))
    args = put(x), jax.device_put(w, NamedSharding(explicit, P())), put(first), put(second)
    found = jax.jit(layer)(*args)
assert np.abs(np.asarray(found) - np.asarray(wanted[0])).max() < 1e-4
second_device = [jax.device_put(value, jax.devices()[1]) for value in (x, w, first, second)]
assert "symcompile_linear" in jax.jit(layer).lower(*second_device).as_text()
assert np.abs(np.asarray(jax.jit(layer)(*second_device)) - np.asarray(wanted[0])).max() < 1e-4
"""
    run_alone(program, tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=2")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no thread is moved")
@pytest.mark.parametrize("one", [False, True])
def test_threads_that_were_moved_may_run_where_they_might_before(one: bool, tmp_path: Path) -> None:
    program = """
import os, sys, time
allowed = os.sched_getaffinity(0)
import jax, jax.numpy as jnp
from symcompile_jax import kernels

@jax.jit
def work(x):
    for _ in range(8):  # one after the other: only a kernel that runs alone moves its threads
        x = kernels.linear_sum([((x,), jnp.eye(16))], [])
    return x

def cores():
    found = {}
    for thread in map(int, os.listdir("/proc/self/task")):
        try:
            found[thread] = os.sched_getaffinity(thread)
        except ProcessLookupError:  # it has ended
            pass
    return found

def rest():
    # Until threads that came late are asleep: one on its way would undo what is set meanwhile.
    for _ in range(600):
        states = []
        for thread in set(os.listdir("/proc/self/task")) - {str(os.getpid())}:
            try:
                with open(f"/proc/self/task/{thread}/stat") as stat:
                    states.append(stat.read().rpartition(")")[2].split()[0])
            except (FileNotFoundError, ProcessLookupError):
                pass
        if set(states) <= {"S"}:
            return
        time.sleep(0.1)
    raise AssertionError(states)

x = jnp.ones((8, 128, 128, 16))
assert work.lower(x).as_text().count("@symcompile_") == 8
jax.block_until_ready(work(x))
if sys.argv[1:]:
    rest()
    allowed = {min(allowed)}
    for thread in cores():
        os.sched_setaffinity(thread, allowed)
for _ in range(400):
    jax.block_until_ready(work(x))
rest()
assert all(found == allowed for found in cores().values()), (allowed, cores())
"""
    run_alone(program, tmp_path, *["one"] * one)


def test_many_at_once(tmp_path: Path) -> None:
    """More programs at a time than XLA has threads: every one comes to its end."""
    program = """
import jax, jax.numpy as jnp, numpy as np
from concurrent.futures import ThreadPoolExecutor
from symcompile_jax import kernels

x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 64, 128, 16), np.float32))
w = jnp.eye(16)

@jax.jit
def work(x):
    made = [kernels.linear_sum([((x * k,), w)], []) for k in range(6)]
    return [y.sum() for y in made], [kernels.two_means(y, 1) for y in made]

with ThreadPoolExecutor(8) as pool:
    for found, means in pool.map(lambda _: jax.block_until_ready(work(x)), range(64)):
        for k, (total, (first, second)) in enumerate(zip(found, means, strict=True)):
            assert jnp.abs(second - k * x.mean(2)).max() < 1e-5, k
"""
    run_alone(program, tmp_path)


def run_alone(program: str, folder: Path, *args: str, **environment: str) -> None:
    (folder / "program.py").write_text(program)
    subprocess.run(
        [sys.executable, "program.py", *args],
        cwd=folder,
        check=True,
        timeout=200,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]),
            **environment,
        },
    )


# -- layers ---------------------------------------------------------------------------------

SPECS = {
    "mlp": ({"w0": (0, 1), "b0": (1,), "w1": (1, 2), "b1": (2,)}, {0: 70, 1: 90, 2: 60}),
    "graph": ({"x": ("n", "n")}, {"n": 80}),
    "triples": ({"x": ("n", "n", "n")}, {"n": 18}),
    "rnn": ({"in": ("i", "h"), "cell": ("h", "h"), "b": ("h",)}, {"i": 60, "h": 80}),
    "taps": (
        {"k0": (sc.Fixed(3), sc.Fixed(3), 0, 1), "b0": (1,), "k1": (1, sc.Fixed(2), 2)},
        {0: 24, 1: 36, 2: 40},
    ),
}


def shape_of(labels, sizes):  # type: ignore[no-untyped-def]
    return [part.size if isinstance(part, sc.Fixed) else sizes[part] for part in labels]


def a_layer(name: str, channels: int = 16):  # type: ignore[no-untyped-def]
    """A layer large enough for kernels, its weights, and its inputs."""
    spec, sizes = SPECS[name]
    layer = sc.compile(
        spec, in_channels=channels, out_channels=channels, sizes=sizes, backend="jax"
    )
    rng = np.random.default_rng(0)
    inputs = {key: draw(rng, 3, *shape_of(labels, sizes), channels) for key, labels in spec.items()}
    return layer, layer.init(jax.random.key(0)), inputs


@pytest.mark.parametrize("name", SPECS)
def test_layers_for_a_gpu_have_none(name: str) -> None:
    layer, params, inputs = a_layer(name)

    def train(params, x):  # type: ignore[no-untyped-def]
        y, pull = jax.vjp(layer.apply, params, x)
        return y, pull(y)

    here, there = (
        jax.jit(train).trace(params, inputs).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda")
    )
    assert "@symcompile" in here
    assert "custom_call" not in there


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("channels", [8, 16, 24])
def test_a_layer_by_kernels_is_the_layer(name, channels, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    layer, params, inputs = a_layer(name, channels)

    def pulled(params, x):  # type: ignore[no-untyped-def]
        y, pull = jax.vjp(layer.apply, params, x)
        return y, pull(jax.tree.map(jnp.cos, y))

    program = jax.jit(pulled).lower(params, inputs)
    text = program.as_text()
    assert "@symcompile_linear_sum_" in text
    assert "@symcompile_sums_" in text
    assert "@symcompile_outer_" in text or "@symcompile_back_" in text
    found = program.compile()(params, inputs)
    with jax.enable_x64(True):
        doubles = jax.tree.map(partial(np.asarray, dtype=float), (params, inputs))
        program = jax.jit(pulled).lower(*doubles)
        assert "@symcompile" not in program.as_text()
        wanted = program.compile(compiler_options=QUICK)(*doubles)
    all_close(found[0], wanted[0])
    all_close(found[1], wanted[1], 1e-5)


@pytest.mark.parametrize(
    ("channels", "sums", "means"),
    [
        ((2, 2), 1, 1),
        ((12, 12), 1, 1),
        ((16, 16), 1, 1),
        ((20, 20), 1, 1),
        ((1, 16), 1, 0),
        ((16, 1), 0, 1),
    ],
)
def test_what_is_of_one_channel_is_left_to_xla(channels, sums, means) -> None:  # type: ignore[no-untyped-def]
    layer = sc.compile(
        {"w": (0, 1)}, in_channels=channels[0], out_channels=channels[1], backend="jax"
    )
    x = {"w": jnp.ones((8, 128, 128, channels[0]))}
    text = jax.jit(layer.apply).lower(layer.init(jax.random.key(0)), x).as_text()
    assert text.count("@symcompile_linear_sum_") == sums
    assert text.count("@symcompile_sums_") == means


@pytest.mark.parametrize("name", ["mlp", "graph"])
def test_what_kernels_cannot_do_is_done_without(name) -> None:  # type: ignore[no-untyped-def]
    """Other dtypes, and weights that differ from sample to sample."""
    layer, params, inputs = a_layer(name)
    wanted = jax.jit(layer.apply)(params, inputs)
    half = jax.tree.map(lambda value: value.astype(jnp.bfloat16), inputs)
    assert "@symcompile" not in jax.jit(layer.apply).lower(params, half).as_text()
    weights = jax.tree.map(lambda value: jnp.stack([value, 2 * value]), params)
    each = jax.jit(jax.vmap(layer.apply, (0, None)))(weights, inputs)
    all_close(jax.tree.map(lambda value: value[0], each), wanted, 1e-5)
    per_sample = jax.jit(jax.vmap(layer.apply, (None, 0)))(params, inputs)
    all_close(per_sample, wanted, 1e-5)


def test_a_fault_in_a_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What compares layers with and without kernels would tell if they differed."""
    from symcompile_jax import handlers

    layer, params, inputs = a_layer("rnn")
    steps = handlers._steps
    monkeypatch.setattr(handlers, "_steps", lambda shape: [0] * len(steps(shape)))
    wrong = jax.jit(lambda *args: layer.apply(*args))(params, inputs)
    monkeypatch.undo()
    right = jax.jit(lambda *args: layer.apply(*args))(params, inputs)
    with pytest.raises(AssertionError):
        all_close(wrong, right, 1e-2)


def test_the_file_alone_runs_without_kernels(tmp_path: Path) -> None:
    """And with them where the package was imported before."""
    layer, params, inputs = a_layer("rnn")
    (tmp_path / "layer.py").write_text(layer.source)
    y = jax.jit(layer.apply)(params, inputs)
    for kind, values in (("weights", params), ("x", inputs), ("y", y)):
        np.savez(tmp_path / f"{kind}.npz", **values)
    program = """
import sys, jax, numpy as np
if HOW == "kernels": import symcompile_jax.kernels
import layer

weights, x, wanted = (dict(np.load(f"{name}.npz")) for name in ("weights", "x", "y"))
assert (layer._KERNELS is not None) == (HOW == "kernels")
assert HOW == "kernels" or not [name for name in sys.modules if "symcompile" in name]
compute = jax.jit(layer.apply)
assert ("@symcompile" in compute.lower(weights, x).as_text()) == (HOW == "kernels")
y = compute(weights, x)
assert all(np.abs(y[k] - wanted[k]).max() < 1e-5 for k in y)
"""
    for how in ("kernels", "plain"):
        run_alone(program.replace("HOW", repr(how)), tmp_path)


def test_only_files_that_call_helpers_have_them() -> None:
    small = sc.compile({"b": ()}, in_channels=2, out_channels=2, backend="jax")
    assert "_KERNELS" not in small.source
    assert "import sys" not in small.source
    assert "_linear_sum" not in small.source


# -- building -------------------------------------------------------------------------------


def test_a_library_is_for_one_version_of_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    """XLA takes no handler that was made for another version of its interface."""
    version = building._xla_version()
    assert len(version) == 2
    before = building.library("AVX2", host="xla")
    monkeypatch.setattr(building, "_xla_version", lambda: ["0", "0"])
    assert building.library("AVX2", host="xla") != before


def test_without_headers_there_are_kernels_for_pytorch_alone(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(building, "find_spec", lambda name: None)
    monkeypatch.setattr(building, "FLAGS", ("-O0", *building.FLAGS[1:]))
    made = building.build(tmp_path)
    assert made
    assert all(path.name.startswith("openmp-") for path in made)


def test_no_processor_is_given_what_it_lacks(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Of several processors, what Linux says of the first."""
    read = Path.read_text
    for flags, wide, narrow in (
        ("fpu sse2", False, False),
        ("fpu avx2 fma", False, True),
        ("avx2 fma avx512f avx512vl avx512bw", False, True),
        ("avx2 fma avx512f avx512vl avx512bw avx512dq", True, True),
    ):
        told = f"vendor_id\t: x\nflags\t\t: {flags}\nbugs\t\t: avx512dq\n"
        monkeypatch.setattr(Path, "read_text", lambda self, *a, told=told: told)
        found = building.runs_here("AVX512"), building.runs_here("AVX2")
        monkeypatch.setattr(Path, "read_text", read)
        assert found == (wide, narrow)
