"""Products of matrices in parts on JAX: held to float64, however the parts lie, to any degree."""

from __future__ import annotations

from functools import partial
from itertools import accumulate

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import symcompile as sc
from symcompile_jax import handlers, kernels, products
from tests.jax_laws import all_close, batched, close, count, draw, exact, gradients, once

pytestmark = pytest.mark.skipif(not kernels.AVAILABLE, reason="the kernels were not compiled here")

WIDTHS = st.lists(st.integers(0, 70), min_size=1, max_size=4)


@st.composite
def cases(draw_from):  # type: ignore[no-untyped-def]
    """A seed, sizes of axes of rows, widths of parts and of results, whether it is transposed."""
    axes = draw_from(st.integers(0, 3))
    sizes = [draw_from(st.integers(0, (40, 7, 5)[axes - 1])) for _ in range(axes)]
    seed = draw_from(st.integers(0, 2**32 - 1))
    return seed, sizes, draw_from(WIDTHS), draw_from(WIDTHS), draw_from(st.booleans())


def lying(rng, sizes, width):  # type: ignore[no-untyped-def]
    """How a result is stored: as it is; or its channels as axes, that are among those of rows and
    joined to some of them."""
    if width % 2 or not rng.integers(3):
        return (width,), (), ()
    apart = 2, width // 2
    count = len(sizes) + 1
    order = *(int(axis) for axis in rng.permutation(count)), count
    lies = [(*sizes, *apart)[axis] for axis in order]
    at = int(rng.integers(count))
    joined = *lies[:at], lies[at] * lies[at + 1], *lies[at + 2 :]
    return apart, order, joined if rng.integers(2) else tuple(lies)


def a_product(seed, sizes, depths, widths, transposed):  # type: ignore[no-untyped-def]
    """Parts and a weight, and the primitive with its oracle, as functions of them."""
    rng = np.random.default_rng(seed)
    sides = (sum(widths), sum(depths)) if transposed else (sum(depths), sum(widths))
    args = *(draw(rng, *sizes, depth) for depth in depths), draw(rng, *sides)
    into = tuple(lying(rng, sizes, width) for width in widths)
    params = {"into": into, "transposed": transposed}
    found = partial(products._mixed.bind, **params)
    return args, found, partial(products._plain_mixed, **params)


def a_gradient(seed, sizes, depths, widths, _):  # type: ignore[no-untyped-def]
    """Parts of two matrices, and the other primitive with its oracle."""
    rng = np.random.default_rng(seed)
    args = tuple(draw(rng, *sizes, width) for width in (*depths, *widths))
    params = {"count": len(depths)}
    found = partial(products._mixed_back.bind, **params)
    return args, found, partial(products._plain_back, **params)


BOTH = pytest.mark.parametrize("made_of", [a_product, a_gradient])


def as_one(compute):  # type: ignore[no-untyped-def]
    """All results of a function as one array."""
    return lambda *args: jnp.concatenate([one.ravel() for one in jax.tree.leaves(compute(*args))])


@BOTH
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_a_product_is_what_it_says(made_of, case) -> None:  # type: ignore[no-untyped-def]
    args, found, wanted = made_of(*case)
    all_close(found(*args), exact(wanted, *args))


@BOTH
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("sizes", "depths", "widths"),
    [
        ((1300,), (300,), (65,)),
        ((2, 25), (300, 23), (400, 31)),
        ((11, 1, 110), (70, 600), (129,)),
        ((), (700,), (3, 640)),
    ],
)
def test_products_larger_than_what_is_packed(made_of, sizes, depths, widths, transposed) -> None:  # type: ignore[no-untyped-def]
    """Of many rows, and of fewer than channels, which threads share then."""
    args, found, wanted = made_of(0, sizes, depths, widths, transposed)
    all_close(found(*args), exact(wanted, *args), 5e-6)


def test_results_lie_as_they_are_stored() -> None:
    """By the oracle of that: axes of channels among those of rows, then some as one."""
    rng = np.random.default_rng(0)
    x, weight = draw(rng, 3, 5, 40), draw(rng, 40, 2 * 7 + 6)
    fold, rest = kernels.mixed([x], weight, [((2, 7), (2, 0, 1, 3), (6, 5, 7)), 6])
    y = np.asarray(x, float) @ np.asarray(weight, float)
    apart = y[..., :14].reshape(3, 5, 2, 7)
    close(fold, apart.transpose(2, 0, 1, 3).reshape(6, 5, 7))
    close(rest, y[..., 14:])


@BOTH
@settings(max_examples=15, deadline=None)
@given(case=cases())
def test_derivatives_of_a_product(made_of, case) -> None:  # type: ignore[no-untyped-def]
    """Forward, backward, and backward again: to everything that is multiplied."""
    args, found, wanted = made_of(*case)
    made, oracle = (lambda *args, how=how: gradients(as_one(how), args) for how in (found, wanted))
    all_close(once(made, *args), exact(oracle, *args), 3e-5)


@BOTH
@settings(max_examples=15, deadline=None)
@given(case=cases(), asked=st.integers(0, 2**32 - 1))
def test_derivatives_to_some_of_it(made_of, case, asked) -> None:  # type: ignore[no-untyped-def]
    args, found, wanted = made_of(*case)
    rng = np.random.default_rng(asked)
    places = sorted({int(rng.integers(len(args))) for _ in range(2)})

    def derivatives(compute, *args):  # type: ignore[no-untyped-def]
        def of_some(*some):  # type: ignore[no-untyped-def]
            given = dict(zip(places, some, strict=True))
            return as_one(compute)(*(given.get(place, arg) for place, arg in enumerate(args)))

        return gradients(of_some, [args[place] for place in places])

    all_close(
        once(partial(derivatives, found), *args), exact(partial(derivatives, wanted), *args), 3e-5
    )


@BOTH
@settings(max_examples=15, deadline=None)
@given(case=cases(), seed=st.integers(0, 2**32 - 1))
def test_a_batch_of_products(made_of, case, seed) -> None:  # type: ignore[no-untyped-def]
    """A batch axis anywhere, of any arguments."""
    args, found, wanted = made_of(*case)
    rng = np.random.default_rng(seed)
    dims = [int(rng.integers(arg.ndim + 1)) if rng.integers(3) else None for arg in args]
    dims[int(rng.integers(len(args)))] = 0
    stacked = batched(args, dims)
    all_close(once(jax.vmap(found, dims), *stacked), exact(jax.vmap(wanted, dims), *stacked))


def test_a_batch_of_parts_is_an_axis_of_rows() -> None:
    (x, other, weight), compute, _ = a_product(0, (5, 6), (20, 17), (8, 9), False)
    batch = jnp.stack([x, 2 * x], 1)
    assert count(jax.vmap(compute, (1, None, None)), batch, other, weight) == 1
    weights = jnp.stack([weight, 2 * weight])
    assert count(jax.vmap(compute, (1, None, 0)), batch, other, weights) == 0


@BOTH
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.lists(st.integers(0, 6), max_size=3),
    channels=st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=3), min_size=2, max_size=4),
)
def test_parts_are_read_as_they_lie(made_of, seed, rows, channels) -> None:  # type: ignore[no-untyped-def]
    """Axes of rows and of channels in any order, but the last one is of channels."""
    rng = np.random.default_rng(seed)
    parts, moved, orders, joined = [], [], [], []
    for sizes in channels:
        last = len(rows) + len(sizes) - 1
        lies = [*(int(axis) for axis in rng.permutation(last)), last]
        shape = [*rows, *sizes]
        parts.append(draw(rng, *(shape[axis] for axis in lies)))
        places = [lies.index(axis) for axis in range(last + 1)]
        moved.append(parts[-1].transpose(places).reshape(*rows, int(np.prod(sizes))))
        orders.append(tuple(places[: len(rows)]))
        joined.append(tuple(places[len(rows) :]))
    places = {"orders": orders, "channels": joined}
    if made_of is a_gradient:
        found = products._kernel_back(*parts, count=1, **places)
        wanted = exact(partial(products._plain_back, count=1), *moved)
    else:
        params = {"into": (((21,), (), ()), ((5,), (), ())), "transposed": bool(rng.integers(2))}
        sides = sum(part.shape[-1] for part in moved), 26
        weight = draw(rng, *(sides[::-1] if params["transposed"] else sides))
        found = products._kernel_mixed(*parts, weight, **params, **places)
        wanted = exact(partial(products._plain_mixed, **params), *moved, weight)
    all_close(found, wanted)


# -- what runs them -------------------------------------------------------------------------


def a_fold(channels: int = 64):  # type: ignore[no-untyped-def]
    """A product large enough for the kernel, of arrays of which one has fixed axes in front."""
    rng = np.random.default_rng(0)
    x, flat = draw(rng, 3, 3, 8, 16, channels), draw(rng, 8, 16, 32)
    weight = draw(rng, 9 * channels + 32, 500)

    def compute(x, flat, weight, product=kernels.mixed):  # type: ignore[no-untyped-def]
        fold = jnp.moveaxis(x, (0, 1), (2, 3)).reshape(8, 16, 9 * channels)
        return product([fold, flat], weight, (470, 30))

    def wanted(*args):  # type: ignore[no-untyped-def]
        return compute(*args, product=plainly)

    return compute, wanted, (x, flat, weight)


def plainly(parts, weight, widths):  # type: ignore[no-untyped-def]
    y = jnp.concatenate(parts, -1) @ weight
    return jnp.split(y, [*accumulate(widths)][:-1], -1)


def pulled(how, *args):  # type: ignore[no-untyped-def]
    """What a function makes, and its gradients to all arguments."""
    y, pull = jax.vjp(how, *args)
    return y, pull(y)


def calls(compute, *args) -> list[str]:  # type: ignore[no-untyped-def]
    text = jax.jit(compute).lower(*args).as_text()
    return [line for line in text.splitlines() if "custom_call @symcompile_" in line]


def test_a_fold_of_fixed_axes_takes_no_copy() -> None:
    """Neither forward nor for the gradient of the weight."""
    compute, wanted, args = a_fold()
    (call,) = calls(compute, *args)
    assert "(%arg0, %arg1, %arg2)" in call
    program = jax.jit(compute).lower(*args).compile()
    assert program.memory_analysis().temp_size_in_bytes < args[0].nbytes / 10
    assert "transpose(" not in program.as_text()
    back = [line for line in calls(partial(pulled, compute), *args) if "mixed_back" in line]
    assert len(back) == 1
    assert "(%arg0, %arg1, " in back[0]
    all_close(jax.jit(partial(pulled, compute))(*args), exact(partial(pulled, wanted), *args), 5e-6)


def test_a_gradient_that_is_folded_takes_no_copy() -> None:
    """Results whose channels become fixed axes in front: their gradients lie as they are read."""
    rng = np.random.default_rng(0)
    x, weight, g = draw(rng, 8, 16, 600), draw(rng, 600, 9 * 64), draw(rng, 3, 3, 8, 16, 64)

    def compute(x, weight, product=kernels.mixed):  # type: ignore[no-untyped-def]
        (y,) = product([x], weight, (9 * 64,))
        return jnp.moveaxis(y.reshape(8, 16, 3, 3, 64), (2, 3), (0, 1))

    def back(how, x, weight, g):  # type: ignore[no-untyped-def]
        return jax.vjp(how, x, weight)[1](g)

    found = calls(partial(back, compute), x, weight, g)
    assert sum("%arg2" in call for call in found) == 2
    wanted = exact(partial(back, partial(compute, product=plainly)), x, weight, g)
    all_close(jax.jit(partial(back, compute))(x, weight, g), wanted, 5e-6)


@pytest.mark.parametrize(("channels", "lies"), [(7, 0), (8, 1), (17, 1), (32, 1)])
def test_short_lines_are_copied_first(channels, lies) -> None:  # type: ignore[no-untyped-def]
    compute, wanted, args = a_fold(channels)
    (call,) = calls(compute, *args)
    assert ("%arg0" in call) == lies
    all_close(jax.jit(compute)(*args), exact(wanted, *args), 5e-6)


@pytest.mark.parametrize(("channels", "lies"), [(8, 0), (16, 1), (20, 0), (40, 1), (70, 1)])
def test_gradients_whose_lines_leave_vectors_empty_are_copied_first(channels, lies) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    x, g = draw(rng, 20, 30), draw(rng, 3, 20, channels)

    def compute(x, g, how=products._mixed_back.bind):  # type: ignore[no-untyped-def]
        return how(x, jnp.moveaxis(g, 0, 1).reshape(20, 3 * channels), count=1)

    (call,) = calls(compute, x, g)
    assert ("%arg1" in call) == lies
    all_close(jax.jit(compute)(x, g), exact(partial(compute, how=products._plain_back), x, g))


def test_parts_that_do_not_vary_take_no_product() -> None:
    compute, _, (x, flat, weight) = a_fold()

    def of_flat(flat):  # type: ignore[no-untyped-def]
        return sum((one**2).sum() for one in compute(x, flat, weight))

    forward, back = calls(jax.grad(of_flat), flat)
    assert "tensor<8x16x470xf32>" in forward.split("->")[1]
    assert "tensor<8x16x32xf32>" in back.split("->")[1]
    assert "576" not in back


def test_transforms_of_transforms() -> None:
    """Hessians, checkpoints, scans."""
    (x, other, weight), compute, wanted = a_product(0, (9,), (6, 5), (6, 4), False)

    def curved(how, x):  # type: ignore[no-untyped-def]
        return (as_one(how)(x, other, weight) ** 2 / 50).sum()

    for transform in (jax.hessian, lambda f: jax.jacrev(jax.jacrev(f)), jax.checkpoint, jax.grad):
        found = jax.jit(transform(partial(curved, compute)))(x)
        close(found, exact(transform(partial(curved, wanted)), x), 1e-5)

    def thrice(how, x):  # type: ignore[no-untyped-def]
        def step(x, _):  # type: ignore[no-untyped-def]
            return jnp.tanh(how(x, other, weight)[0]), None

        return jax.lax.scan(step, x, None, 3)[0].sum()

    found, plain = (jax.jit(jax.grad(partial(thrice, how)))(x) for how in (compute, wanted))
    close(found, plain, 1e-4)


def test_programs_for_elsewhere_have_none() -> None:
    """Exported ones, and those for other platforms."""
    compute, wanted, args = a_fold()
    both = partial(pulled, compute)
    assert len(calls(both, *args)) == 3
    made = jax.export.export(jax.jit(both))(*args)
    assert "@symcompile" not in made.mlir_module()
    all_close(made.call(*args), exact(partial(pulled, wanted), *args), 5e-6)
    text = jax.jit(both).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    assert "@symcompile" not in text


def test_without_jit_and_in_other_widths() -> None:
    compute, wanted, args = a_fold()
    plain = exact(partial(pulled, wanted), *args)
    with jax.disable_jit():
        all_close(pulled(compute, *args), plain, 5e-6)
    all_close(pulled(compute, *args), plain, 5e-6)
    with jax.enable_x64(True):
        found = pulled(compute, *args)
        assert {value.dtype for value in jax.tree.leaves(found)} == {jnp.dtype("float32")}
        all_close(found, plain, 5e-6)
    for made_of in (a_product, a_gradient):
        args, found, wanted = made_of(0, (5, 6), (20, 17), (8, 9), False)
        dims = (1, *(None for _ in args[1:-1]), 0)
        stacked = batched(args, dims)
        all_close(jax.vmap(found, dims)(*stacked), exact(jax.vmap(wanted, dims), *stacked))


def test_when_a_kernel_is_the_quickest(monkeypatch: pytest.MonkeyPatch) -> None:
    """For some rows and a large weight, of float32 on CPU, by wide vectors."""
    x, weight = jnp.ones((4, 16, 512)), jnp.ones((512, 512))
    monkeypatch.setattr(products, "WIDE", True)
    assert kernels.mixed_fit([x], weight)
    assert kernels.mixed_fit([x[..., :12], x[..., 12:]], weight)
    assert not kernels.mixed_fit([x[:1, :7]], weight)
    assert not kernels.mixed_fit([x], weight[:, :511])
    assert not kernels.mixed_fit([x.astype(jnp.bfloat16)], weight)
    assert not kernels.mixed_fit([x], weight.astype(jnp.bfloat16))
    (batch,) = jax.export.symbolic_shape("batch")
    shapes = []

    def compute(x):  # type: ignore[no-untyped-def]
        shapes.append(kernels.mixed_fit([x], weight))
        return x

    jax.export.export(jax.jit(compute))(jax.ShapeDtypeStruct((batch, 16, 512), jnp.float32))
    assert shapes == [False]
    monkeypatch.setattr(products, "WIDE", False)
    assert not kernels.mixed_fit([x], weight)


def test_what_is_no_product_is_told() -> None:
    x, weight = jnp.ones((2, 3, 5)), jnp.ones((10, 4))
    for parts, widths in (([], (4,)), ([x, x[:1]], (4,)), ([x, jnp.ones(())], (4,)), ([x, x], ())):
        with pytest.raises(ValueError, match="expected some of each"):
            kernels.mixed(parts, weight, widths)
    with pytest.raises(ValueError, match=r"a weight of \(10, 4\), expected \(10, 5\)"):
        kernels.mixed([x, x], weight, (4, 1))
    with pytest.raises(ValueError, match=r"a weight of \(10, 4\), expected \(5, 4\)"):
        kernels.mixed([x], weight, (4,))
    with pytest.raises(ValueError, match="expected float32"):
        kernels.mixed([x, x.astype(jnp.bfloat16)], weight, (4,))
    ends_elsewhere, of_others, too_many = (
        ((2, 2), (0, 2, 1), (3, 2, 2)), ((2, 2), (0, 1, 2), (3, 3)), ((4,), (0,), (5,)),
    )  # fmt: skip
    for wrong in (ends_elsewhere, of_others, too_many):
        with pytest.raises(ValueError, match="an order of its last axes that ends with the last"):
            kernels.mixed([x, x], weight, [wrong])
    first, second = kernels.mixed([x, x], weight, (1, 3))
    assert (first.shape, second.shape) == ((2, 3, 1), (2, 3, 3))


@pytest.mark.parametrize("fault", ["x_step", "x_line"])
def test_a_fault_in_how_parts_lie_is_found(fault, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """What holds products to float64 would tell if rows, or lines, were read from elsewhere."""
    compute, wanted, args = a_fold()
    right = handlers._side

    def wrong(*given):  # type: ignore[no-untyped-def]
        made = right(*given)
        return {key: [0] * len(made[key]) if key == fault else made[key] for key in made}

    monkeypatch.setattr(handlers, "_side", wrong)
    found = jax.jit(lambda *args: compute(*args))(*args)
    with pytest.raises(AssertionError):
        all_close(found, exact(wanted, *args), 1e-2)


# -- layers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "stored"), [(16, True), (4, False), (20, False)])
def test_a_layer_makes_outputs_as_they_are_stored(channels, stored) -> None:  # type: ignore[no-untyped-def]
    """Where lines of channels fill vectors; the layer is the same, to NumPy's float64."""
    spec = {"k": (sc.Fixed(24), "a", sc.Fixed(2)), "b": ("a",), "t": ((sc.Fixed(3), "a"),)}
    sizes = {"in_channels": 48, "out_channels": channels}
    layer, exact = (sc.compile(spec, **sizes, backend=backend) for backend in ("jax", "numpy"))
    assert ("_onto(" in layer.source) == stored
    rng = np.random.default_rng(0)
    x = {
        "k": draw(rng, 5, 24, 11, 2, 48),
        "b": draw(rng, 5, 11, 48),
        "t": draw(rng, 5, 33, 48),
    }
    params = layer.init(jax.random.key(0))
    wanted = exact.apply(
        *(jax.tree.map(partial(np.asarray, dtype=float), one) for one in (params, x))
    )
    found = [call for call in calls(layer.apply, params, x) if "mixed" in call]
    assert len(found) == (channels > 4)  # else parts are put together: they are short
    all_close(jax.jit(layer.apply)(params, x), wanted, 5e-6)
    each = jax.jit(jax.vmap(layer.apply, (None, 0)))(params, x)
    all_close(each, wanted, 5e-6)

    def loss(how, *args):  # type: ignore[no-untyped-def]
        return sum((one**2).sum() for one in jax.tree.leaves(how(*args)))

    pull = jax.jit(jax.grad(partial(loss, layer.apply), (0, 1)))
    found = pull(params, x)
    wide = (jax.tree.map(partial(np.asarray, dtype=float), one) for one in (params, x))
    with jax.enable_x64(True):
        plain = jax.tree.map(np.asarray, pull(*wide))
    scale = max(np.abs(one).max() for one in jax.tree.leaves(plain))
    all_close(*(jax.tree.map(lambda one: np.asarray(one) / scale, one) for one in (found, plain)))
