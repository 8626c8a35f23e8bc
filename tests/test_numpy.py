"""The NumPy backend against hand-written loops: the independent oracle under all other tests.

In: small specs. Each map is written out with its indices, as the papers print it, and must be what
the interpreter computes with the weight that `layer.basis` names for that diagram.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import symcompile as sc
from tests.backend_cases import SPEC, inputs, random_weights

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng


def test_sets() -> None:
    """(0) -> (0): Deep Sets (Zaheer et al. 2017), x_i W + mean(x) V + b."""
    layer = sc.compile({"x": (0,)}, in_channels=2, out_channels=3, backend="numpy")
    params = random_weights(layer)
    x = RNG(0).standard_normal((5, 2))
    expected = np.empty((5, 3))
    for i in range(5):
        mean = sum(x[j] for j in range(5)) / 5
        expected[i] = x[i] @ params["mix_0"] + mean @ params["mix_scalar"] + params["bias"]
    np.testing.assert_allclose(layer.apply(params, {"x": x})["x"], expected, rtol=1e-12)


def graph_maps(x: Array) -> dict[tuple[tuple[int, ...], ...], Array]:
    """The 15 maps of Maron et al. 2019, table 1; axes 0, 1 are the output's, 2, 3 the input's."""
    n = x.shape[0]
    eye = np.eye(n)
    row, col = x.sum(1) / n, x.sum(0) / n
    diagonal = np.array([x[i, i] for i in range(n)])
    trace, total = diagonal.sum() / n, x.sum() / n**2
    ones = np.ones(n)
    return {
        ((0, 2), (1, 3)): x,
        ((0, 3), (1, 2)): x.T,
        ((0, 1, 2, 3),): np.diag(diagonal),
        ((0, 1, 2), (3,)): np.diag(row),
        ((0, 1, 3), (2,)): np.diag(col),
        ((0, 2, 3), (1,)): np.outer(diagonal, ones),
        ((0,), (1, 2, 3)): np.outer(ones, diagonal),
        ((0, 2), (1,), (3,)): np.outer(row, ones),
        ((0, 3), (1,), (2,)): np.outer(col, ones),
        ((0,), (1, 2), (3,)): np.outer(ones, row),
        ((0,), (1, 3), (2,)): np.outer(ones, col),
        ((0, 1), (2, 3)): trace * eye,
        ((0,), (1,), (2, 3)): trace * np.ones((n, n)),
        ((0, 1), (2,), (3,)): total * eye,
        ((0,), (1,), (2,), (3,)): total * np.ones((n, n)),
    }


def test_graphs() -> None:
    """(0, 0) -> (0, 0): every basis element is the map its diagram says, with its weight."""
    layer = sc.compile({"x": (0, 0)}, in_channels=1, out_channels=1, backend="numpy")
    params = random_weights(layer)
    x = RNG(0).standard_normal((4, 4))
    maps = graph_maps(x)
    expected = np.zeros((4, 4))
    seen = set()
    for element in layer.basis:
        if element.input is None:
            diagonal = len(element.diagram.blocks) == 1
            value = params[element.weight][element.cols].item()
            expected += value * (np.eye(4) if diagonal else np.ones((4, 4)))
        else:
            blocks = tuple(sorted(tuple(sorted(block)) for block in element.diagram.blocks))
            seen.add(blocks)
            expected += params[element.weight][element.rows, element.cols].item() * maps[blocks]
    assert seen == set(maps)
    found = layer.apply(params, {"x": x[..., None]})["x"][..., 0]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("optimize", [False, "auto"])
def test_two_tensors(optimize: Any) -> None:
    """A kernel (0, 1) and its bias (1,), all loops written out."""
    layer = sc.compile(
        {"w": (0, 1), "b": (1,)}, in_channels=1, out_channels=1, backend="numpy", optimize=optimize
    )
    p = random_weights(layer)
    n, m = 3, 4
    w, b = RNG(0).standard_normal((n, m)), RNG(1).standard_normal(m)
    # Rows and columns follow the tensors in canonical order: b before w.
    scalars = np.array([b.mean(), w.mean()])
    out_b, out_w = np.zeros(m), np.zeros((n, m))
    for j in range(m):
        vectors = np.array([b[j], sum(w[i, j] for i in range(n)) / n])
        out_b[j] = scalars @ p["mix_scalar"][:, 0] + vectors @ p["mix_1"][:, 0] + p["bias"][0]
        for i in range(n):
            out_w[i, j] = (
                w[i, j] * p["mix_0_1"][0, 0]
                + vectors @ p["mix_1"][:, 1]
                + sum(w[i, k] for k in range(m)) / m * p["mix_0"][0, 0]
                + scalars @ p["mix_scalar"][:, 1]
                + p["bias"][1]
            )
    y = layer.apply(p, {"w": w[..., None], "b": b[..., None]})
    np.testing.assert_allclose(y["b"][..., 0], out_b, rtol=1e-12)
    np.testing.assert_allclose(y["w"][..., 0], out_w, rtol=1e-12)


def test_fixed_axes_mix_like_channels() -> None:
    """(0, fixed 3): a dense map over tap and channel, by loops."""
    layer = sc.compile({"k": (0, sc.Fixed(3))}, in_channels=2, out_channels=4, backend="numpy")
    params = random_weights(layer)
    x = RNG(0).standard_normal((5, 3, 2))
    expected = np.zeros((5, 3, 4))
    through = params["mix_0"].reshape(3, 2, 3, 4)
    mean = params["mix_scalar"].reshape(3, 2, 3, 4)
    bias = params["bias"].reshape(3, 4)
    for i in range(5):
        for t in range(3):
            expected[i, t] = bias[t]
            for s in range(3):
                expected[i, t] += x[i, s] @ through[s, :, t] + x[:, s].mean(0) @ mean[s, :, t]
    np.testing.assert_allclose(layer.apply(params, {"k": x})["k"], expected, rtol=1e-12)


def test_composite_axes_are_outer_first() -> None:
    """An axis ("h", fixed 2) stored as h * 2 is the tensor (h, 2)."""
    merged = sc.compile(
        {"q": (("h", sc.Fixed(2)),)}, in_channels=1, out_channels=1, backend="numpy"
    )
    split = sc.compile({"q": ("h", sc.Fixed(2))}, in_channels=1, out_channels=1, backend="numpy")
    params = random_weights(merged)
    x = RNG(0).standard_normal((6, 1))
    found = merged.apply(params, {"q": x})["q"]
    expected = split.apply(params, {"q": x.reshape(3, 2, 1)})["q"]
    np.testing.assert_allclose(found, expected.reshape(6, 1), rtol=1e-14)


def test_sums_instead_of_means() -> None:
    x = RNG(0).standard_normal((5, 1))
    layer = sc.compile({"x": (0,)}, {"t": ()}, in_channels=1, out_channels=1, backend="numpy",
                       reduce="sum", bias=False)  # fmt: skip
    found = layer.apply({"mix_scalar": np.ones((1, 1))}, {"x": x})["t"]
    np.testing.assert_allclose(found, [x.sum()], rtol=1e-14)


@pytest.mark.parametrize(
    "dtype", ["float16", ml_dtypes.bfloat16, "float32", "float64", "complex64", "complex128"]
)
def test_dtype_is_kept(dtype: Any) -> None:
    layer = sc.compile(SPEC, in_channels=2, out_channels=3, backend="numpy")
    params = layer.init(0)
    assert {value.dtype for value in params.values()} == {np.dtype("float32")}
    kind = np.dtype(dtype)
    x = inputs(SPEC, 2, dtype=np.complex128 if kind.kind == "c" else np.float64)
    y = layer.apply(params, {"w": x["w"].astype(kind), **_rest(x, kind)})
    assert y["w"].dtype == y["heads"].dtype == y["deep"][0]["v"].dtype == kind
    exact = layer.apply(params, x)["w"]
    eps = ml_dtypes.finfo(kind).eps
    np.testing.assert_allclose(
        y["w"].astype(exact.dtype), exact, rtol=0, atol=float(20 * eps * abs(exact).max())
    )


def _rest(x: Any, kind: Any) -> dict[str, Any]:
    v, s = x["deep"][0]["v"].astype(kind), x["deep"][1]["s"].astype(kind)
    return {"deep": [{"v": v}, {"s": s}], "heads": x["heads"].astype(kind)}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_types_reduce_in_float32(dtype: Any) -> None:
    layer = sc.compile({"x": (0, 1)}, {"m": ()}, in_channels=1, out_channels=1, bias=False,
                       backend="numpy")  # fmt: skip
    x = (RNG(0).random((300, 301, 1)) + 100).astype(dtype)
    exact = x.astype(np.float64).mean()
    found = float(layer.apply({"mix_scalar": np.ones((1, 1))}, {"x": x})["m"][0])
    ulp = float(ml_dtypes.finfo(dtype).eps) * 64
    assert abs(found - exact) <= 0.51 * ulp


def test_inputs_stay_and_outputs_are_new() -> None:
    layer = sc.compile({"w": (0, 0), "s": ()}, in_channels=1, out_channels=1, backend="numpy")
    params = layer.init(0)
    x = {"w": np.ones((1, 1, 1)), "s": np.ones(1)}
    y = layer.apply(params, x)
    for leaf in y.values():
        leaf += 7
    assert x["w"].item() == x["s"].item() == 1
    assert not params["bias"].any()


@pytest.mark.parametrize("case", range(8))
def test_a_misfit_is_refused_by_path(case: int) -> None:
    layer = sc.compile(SPEC, in_channels=2, out_channels=3, backend="numpy")
    x, params = inputs(SPEC, 2), layer.init(0)
    w = x["w"]
    tree, words = [
        ({"deep": x["deep"], "heads": x["heads"]}, ["'w'"]),
        ({**x, "more": w}, ["'more'"]),
        ({**x, "w": None}, ["x['w']", "NoneType"]),
        ({**x, "w": w.tolist()}, ["x['w']", "list"]),
        ({**x, "w": w[..., :1]}, ["x['w']", "(2, 3, 3, 1)", "(2, 3, 3, 2)"]),
        ({**x, "w": w[:, :, :1]}, ["x['w']", "(2, 3, 1, 2)"]),
        ({**x, "w": w[:1]}, ["x['w']", "(1, 3, 3, 2)"]),
        ({**x, "heads": x["heads"][:, :6]}, ["x['heads']", "(2, 6, 3, 3, 2)"]),
    ][case]
    with pytest.raises(sc.ShapeError) as caught:
        layer.apply(params, tree)
    for word in words:
        assert word in str(caught.value)


def test_wrong_weights_are_refused() -> None:
    layer = sc.compile({"x": (0,)}, in_channels=1, out_channels=1, backend="numpy")
    params, x = layer.init(0), {"x": np.ones((3, 1))}
    for wrong, word in (
        ({**params, "bias": np.ones(2)}, "bias"),
        ({"bias": params["bias"]}, "mix_"),
        (None, "NoneType"),
    ):
        with pytest.raises(sc.ShapeError, match=word):
            layer.apply(wrong, x)


def test_it_generates_no_source() -> None:
    with pytest.raises(sc.BackendError, match="torch"):
        sc.export({"x": (0,)}, "never.py", backend="numpy", in_channels=1, out_channels=1)
