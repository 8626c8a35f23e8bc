"""Right where the predecessors are wrong: one test for each of their faults.

UNF (arXiv 2402.05232) crashes on labels that repeat three times, is silently not equivariant where
sizes are equal, prunes nothing at small sizes, has one bias per output, loses bfloat16 and
imaginary parts on diagonals, takes None for a shared permutation and broadcasts sizes that
disagree. NFN (arXiv 2302.14040) has one channel count for all tensors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import symcompile as sc
from symcompile.check.draw import dtype_of, tolerance_of
from symcompile.codegen import get_backend

BACKENDS = ["numpy", "torch", "jax"]

REPEATED = [
    (0, 0, 0),
    (0, 0, 0, 0),
    (0, 0, 0, 1),
    (1, 0, 0, 0),
    (0, 0, 0, 1, 1),
    (0, 0, 0, 1, 2),
]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param)
    if request.param == "jax":
        request.getfixturevalue("quick_xla")
    name: str = request.param
    return name


def apply(layer: Any, weights: dict[str, Any], x: Any) -> Any:
    """Run a layer of any backend on one NumPy array under "w", in that array's precision."""
    chosen = get_backend(layer.backend)
    with chosen.precision(x.dtype.name):
        own = {name: chosen.from_numpy(np.asarray(value)) for name, value in weights.items()}
        return chosen.to_numpy(chosen.call(layer, own, {"w": chosen.from_numpy(x)})["w"])


def draw_weights(layer: Any, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name, shape in layer.compiled.shapes.items()}


@pytest.mark.parametrize("bound", [True, False], ids=["bound", "unbound"])
@pytest.mark.parametrize("spec", REPEATED, ids=str)
def test_labels_repeated_on_one_tensor_with_all_sizes_equal_are_equivariant(
    spec: tuple[int, ...], bound: bool, backend: str
) -> None:
    sizes = dict.fromkeys(spec, 3)
    layer = sc.compile(
        {"w": spec},
        in_channels=1,
        out_channels=1,
        backend=backend,
        sizes=sizes if bound else None,
    )
    report = sc.check_equivariance(layer, sizes=sizes, trials=1, batch_shapes=((2,),))
    assert report.relative <= 1e-12
    assert report.scale > 1


@pytest.mark.parametrize("spec", REPEATED, ids=str)
def test_labels_repeated_on_one_tensor_with_all_sizes_equal_are_complete(
    spec: tuple[int, ...],
) -> None:
    n = 3 if len(spec) == 3 else 2
    report = sc.check_completeness({"w": spec}, sizes=dict.fromkeys(spec, n))
    assert report.weights == report.rank == report.dimension
    assert (
        report.dimension
        == {
            (0, 0, 0): 122,  # partitions of 6 into at most 3 blocks
            (0, 0, 0, 0): 128,  # of 8 into at most 2
            (0, 0, 0, 1): 32 * 2,
            (1, 0, 0, 0): 32 * 2,
            (0, 0, 0, 1, 1): 32 * 8,
            (0, 0, 0, 1, 2): 32 * 2 * 2,
        }[spec]
    )


@pytest.mark.parametrize(("order", "constants"), [(1, 1), (2, 2), (3, 5), (4, 15)])
def test_the_bias_is_complete_on_diagonals(order: int, constants: int, backend: str) -> None:
    layer = sc.compile({"w": (0,) * order}, in_channels=1, out_channels=1, backend=backend)
    n = order
    zero = {name: np.zeros(shape) for name, shape in layer.compiled.shapes.items()}
    x = np.zeros((*(n,) * order, 1))
    found = [
        apply(layer, zero | {"bias": row}, x).ravel()
        for row in np.eye(*layer.compiled.shapes["bias"])
    ]
    assert len(found) == constants
    assert np.linalg.matrix_rank(found) == constants
    # The indicator of the whole diagonal is among their sums.
    diagonal = np.zeros((n,) * order)
    diagonal[(np.arange(n),) * order] = 1
    solved = np.linalg.lstsq(np.array(found).T, diagonal.ravel(), rcond=None)[0]
    np.testing.assert_allclose(np.array(found).T @ solved, diagonal.ravel(), atol=1e-12)


@pytest.mark.parametrize(("n", "rank"), [(1, 1), (2, 8), (3, 14), (4, 15)])
def test_one_label_has_rank_1_8_14_at_sizes_1_2_3(n: int, rank: int, backend: str) -> None:
    layer = sc.compile(
        {"w": (0, 0)},
        in_channels=1,
        out_channels=1,
        backend=backend,
        sizes={0: n},
        bias=False,
    )
    report = sc.check_completeness(layer=layer)
    assert report.weights == report.rank == report.dimension == rank


def test_tensors_of_different_channel_counts(backend: str) -> None:
    layer = sc.compile(
        {"w": (0, 1), "b": (1,), "s": ()},
        in_channels={"w": 1, "b": 5, "s": 2},
        out_channels={"w": 4, "b": 1, "s": 3},
        backend=backend,
    )
    assert sc.check_equivariance(layer, trials=2, batch_shapes=((2,),)).relative <= 1e-12
    report = sc.check_completeness(layer=layer, sizes={0: 2, 1: 2})
    diagrams = {"ww": 4, "wb": 2, "ws": 1, "bw": 2, "bb": 2, "bs": 1, "sw": 1, "sb": 1, "ss": 1}
    into, out = {"w": 1, "b": 5, "s": 2}, {"w": 4, "b": 1, "s": 3}
    assert report.rank == sum(n * out[pair[0]] * into[pair[1]] for pair, n in diagrams.items())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "complex64", "complex128"])
@pytest.mark.parametrize("spec", [(0, 0), (0, 0, 1)], ids=str)
def test_dtypes_stay_where_diagonals_are_embedded(
    spec: tuple[int, ...], dtype: str, backend: str
) -> None:
    kind = dtype_of(dtype)
    layer = sc.compile({"w": spec}, in_channels=2, out_channels=2, backend=backend)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, *(4,) * len(spec), 2))
    if kind.kind == "c":
        x = x + 1j * rng.standard_normal(x.shape)
    x = x.astype(kind)
    weights = draw_weights(layer)
    rounded = {name: value.astype(np.float32) for name, value in weights.items()}
    y = apply(layer, rounded, x)
    assert y.dtype == kind
    exact = sc.compile({"w": spec}, in_channels=2, out_channels=2, backend="numpy")
    wanted = apply(exact, weights, x.astype(np.complex128 if kind.kind == "c" else np.float64))
    error = np.abs(y.astype(wanted.dtype) - wanted).max() / np.abs(wanted).max()
    # The weights were rounded to float32, whatever the inputs are.
    assert error <= max(tolerance_of(kind), 1e-6)


@pytest.mark.parametrize("spec", [(0, 0), (0, 0, 0)], ids=str)
def test_complex_inputs_keep_their_imaginary_part(spec: tuple[int, ...], backend: str) -> None:
    layer = sc.compile({"w": spec}, in_channels=2, out_channels=2, backend=backend, bias=False)
    rng = np.random.default_rng(0)
    real, imaginary = rng.standard_normal((2, *(3,) * len(spec), 2))
    weights = draw_weights(layer)
    y = apply(layer, weights, real + 1j * imaginary)
    scale = np.abs(y).max()
    np.testing.assert_allclose(y.real, apply(layer, weights, real), atol=1e-12 * scale)
    np.testing.assert_allclose(y.imag, apply(layer, weights, imaginary), atol=1e-12 * scale)
    assert np.abs(y.imag).max() > 1


@pytest.mark.parametrize("fixed", [None, sc.Fixed(3)], ids=["None", "Fixed"])
def test_an_unpermuted_axis_is_no_permutation(fixed: Any, backend: str) -> None:
    """Permuting it changes the outputs; every pair of its entries has weights of its own."""
    layer = sc.compile(
        {"w": (0, fixed)}, in_channels=1, out_channels=1, backend=backend, shapes={"w": (4, 3)}
    )
    weights = draw_weights(layer)
    x = np.random.default_rng(1).standard_normal((4, 3, 1))
    order = [1, 2, 0]
    y = apply(layer, weights, x)
    moved = apply(layer, weights, x[:, order])
    assert np.abs(moved - y[:, order]).max() > 0.1
    permuted = apply(layer, weights, x[[1, 3, 0, 2]])
    np.testing.assert_allclose(permuted, y[[1, 3, 0, 2]], atol=1e-12 * np.abs(y).max())
    assert sc.check_completeness(layer=layer).dimension == 2 * 3 * 3


def test_two_unsized_axes_share_no_permutation(backend: str) -> None:
    """UNF takes every None for the same label, even on different tensors."""
    layer = sc.compile(
        {"a": (None, 0), "b": (None,)},
        in_channels=1,
        out_channels=1,
        backend=backend,
        shapes={"a": (2, 3), "b": (2,)},
    )
    # (2x2)·2 of a with itself, 2·2 between a and b each way, 2·2 of b with itself.
    assert sc.check_completeness(layer=layer).dimension == 8 + 4 + 4 + 4


@pytest.mark.parametrize("shapes", [((5, 6), (1,)), ((5, 1), (6,)), ((5, 6), (5,))], ids=str)
def test_sizes_that_disagree_are_refused_not_broadcast(shapes: Any, backend: str) -> None:
    layer = sc.compile({"w": (0, 1), "b": (1,)}, in_channels=1, out_channels=1, backend=backend)
    chosen = get_backend(backend)
    x = {
        name: chosen.from_numpy(np.ones((*shape, 1), np.float32))
        for name, shape in zip("wb", shapes, strict=True)
    }
    weights = {
        name: chosen.from_numpy(value.astype(np.float32))
        for name, value in draw_weights(layer).items()
    }
    with pytest.raises(sc.ShapeError, match=r"x\['[wb]'\] has shape"):
        chosen.call(layer, weights, x)


def test_one_label_of_two_sizes_on_one_tensor_is_refused(backend: str) -> None:
    layer = sc.compile({"w": (0, 0)}, in_channels=1, out_channels=1, backend=backend)
    with pytest.raises(sc.ShapeError, match=r"x\['w'\] has shape"):
        apply(layer, draw_weights(layer), np.ones((6, 1, 1)))


def test_sizes_that_disagree_are_refused_when_compiling() -> None:
    with pytest.raises(sc.ShapeError, match=r"\['b'\].*has size 1.*\['w'\]|\['w'\].*\['b'\]"):
        sc.compile(
            {"w": (0, 1), "b": (1,)},
            in_channels=1,
            out_channels=1,
            backend="numpy",
            shapes={"w": (5, 6), "b": (1,)},
        )
