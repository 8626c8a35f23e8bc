"""The checkers: they pass what is right, and reject every planted fault.

A checker that accepts everything would pass all laws, so each gets faults of the kinds that real
layers have had: an order-dependent function, equal sizes taken for equal labels, a basis element
missing or twice, a backend off by one entry, a dtype or shape that changes on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import symcompile as sc
from symcompile.api import compile_spec
from symcompile.check import agreement
from symcompile.check.completeness import _null_space, _orbits
from symcompile.codegen import Compiled, get_backend
from symcompile.lower import lower_factored
from symcompile.weights import Column, Weight
from symcompile_numpy import NumpyLayer

MLP = {"w0": (0, 1), "b0": (1,), "w1": (1, 2)}


# -- equivariance -----------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_equivariance_passes_layers_of_every_backend(backend: str) -> None:
    pytest.importorskip(backend)
    layer = sc.compile(MLP, in_channels=2, out_channels=3, backend=backend)
    report = sc.check_equivariance(layer, batch_shapes=((), (3,)), trials=2)
    assert report.trials == 4
    assert report.dtype == "float64"
    assert 0 < report.max_error <= 1e-12 * 100
    assert report.relative <= report.tolerance == 1e-12
    assert "equivariant" in str(report)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64", "complex128"])
def test_equivariance_in_other_dtypes(dtype: str) -> None:
    layer = sc.compile({"w": (0, 0)}, in_channels=2, out_channels=3, backend="numpy")
    report = sc.check_equivariance(layer, dtype=dtype)
    assert report.dtype == dtype


def test_given_weights_are_used() -> None:
    layer = sc.compile({"w": (0, 0)}, in_channels=2, out_channels=3, backend="numpy")
    zeros = {name: np.zeros(shape) for name, shape in layer.compiled.shapes.items()}
    assert sc.check_equivariance(layer, weights=zeros).scale == 0


def test_bound_and_given_sizes_are_used() -> None:
    seen = set()

    def identity(x: Any) -> Any:
        seen.add(x.shape)
        return x

    spec = (0, 1, sc.Fixed(2))
    sc.check_equivariance(function=identity, spec=spec, sizes={0: 5}, batch_shapes=((),))
    assert seen == {(5, 3, 2, 1)}
    sc.check_equivariance(function=identity, spec=(0, 1), batch_shapes=((),))
    assert {(3, 4, 1), (3, 3, 1)} <= seen  # different sizes, and equal ones


def cumulative(x: Any) -> Any:
    return x.cumsum(-2)


def not_a_number(x: Any) -> Any:
    return x * np.nan


def one_entry_off(x: Any) -> Any:
    y = x.copy()
    y[..., 0, 0] += 1e-9
    return y


@pytest.mark.parametrize("fault", [cumulative, not_a_number, one_entry_off])
def test_equivariance_rejects_functions_that_depend_on_order(fault: Callable[[Any], Any]) -> None:
    if fault is not_a_number:
        with pytest.raises(sc.CheckError, match="nan"):
            sc.check_equivariance(function=fault, spec=(0,))
        return
    with pytest.raises(sc.CheckError, match="the permutation of label 0"):
        sc.check_equivariance(function=fault, spec=(0,))


def test_equivariance_rejects_equal_sizes_taken_for_equal_labels() -> None:
    """Adding the transpose is right for (0, 0); for (0, 1) only equal sizes give it away."""

    def plus_transpose(x: Any) -> Any:
        square = x.shape[-2] == x.shape[-3]
        return x + x.swapaxes(-2, -3) if square else x

    assert sc.check_equivariance(function=plus_transpose, spec=(0, 0)).relative <= 1e-12
    with pytest.raises(sc.CheckError, match=r"sizes \{0: 3, 1: 3\}"):
        sc.check_equivariance(function=plus_transpose, spec=(0, 1))


def test_equivariance_rejects_a_vector_broadcast_along_the_wrong_axis() -> None:
    def wrong(x: Any) -> Any:
        w, b = x["w"], x["b"]
        if w.shape[-2] == w.shape[-3]:
            return {"w": w + b[..., :, None, :], "b": b}
        return {"w": w + b[..., None, :, :], "b": b}

    with pytest.raises(sc.CheckError, match=r"y\['w'\]"):
        sc.check_equivariance(function=wrong, spec={"w": (0, 1), "b": (1,)})


def test_equivariance_names_the_output_and_the_label() -> None:
    def wrong(x: Any) -> Any:
        return {"fine": x["fine"], "bad": [x["bad"][0].cumsum(-3)]}

    with pytest.raises(sc.CheckError, match=r"y\['bad'\]\[0\], most for the .* label 'row'"):
        sc.check_equivariance(function=wrong, spec={"fine": ("row",), "bad": [("row", "col")]})


def test_equivariance_rejects_one_part_of_a_composite_axis() -> None:
    """Sorting within each block of the outer label moves with it, and not with the inner one."""

    def within(x: Any) -> Any:
        return x.reshape(*x.shape[:-2], 3, 4, 1).cumsum(-2).reshape(x.shape)

    with pytest.raises(sc.CheckError, match="label 'inner'"):
        sc.check_equivariance(
            function=within, spec=(("outer", "inner"),), sizes={"outer": 3, "inner": 4}
        )
    spec = (("outer", sc.Fixed(4)),)
    sc.check_equivariance(function=within, spec=spec, sizes={"outer": 3})


def test_equivariance_rejects_a_torch_layer_with_another_forward() -> None:
    torch = pytest.importorskip("torch")
    layer = sc.compile({"w": (0, 1)}, in_channels=2, out_channels=3, backend="torch")
    forward = layer.forward

    def wrong(x: Any) -> Any:
        y = forward(x)
        return {"w": y["w"] + torch.arange(y["w"].shape[-2])[:, None] * 1e-6}

    layer.forward = wrong
    with pytest.raises(sc.CheckError, match=r"y\['w'\], most for the permutation of label 1"):
        sc.check_equivariance(layer)


def test_equivariance_rejects_a_wrong_shape() -> None:
    with pytest.raises(sc.CheckError, match="does not follow its out_spec"):
        sc.check_equivariance(function=lambda x: x.mean(-2), spec=(0,))
    sc.check_equivariance(function=lambda x: x.mean(-2), spec=(0,), out_spec=())


def test_tolerance_follows_the_dtype_that_comes_back() -> None:
    def rounded(x: Any) -> Any:
        return (x.astype(np.float32).mean(-2, keepdims=True) + x).astype(np.float32)

    report = sc.check_equivariance(function=rounded, spec=(0,), sizes={0: 50})
    assert (report.dtype, report.tolerance) == ("float32", 1e-5)
    assert report.max_error > 0
    with pytest.raises(sc.CheckError, match="1e-12"):
        sc.check_equivariance(function=rounded, spec=(0,), sizes={0: 50}, tolerance=1e-12)


def test_equivariance_refuses_arguments_that_mean_nothing() -> None:
    layer = sc.compile((0,), in_channels=1, out_channels=1, backend="numpy")
    with pytest.raises(sc.OptionError, match="either a layer"):
        sc.check_equivariance()
    with pytest.raises(sc.OptionError, match="either a layer"):
        sc.check_equivariance(layer, function=cumulative)
    with pytest.raises(sc.OptionError, match="brings its specs"):
        sc.check_equivariance(layer, spec=(0,))
    with pytest.raises(sc.OptionError, match="takes spec="):
        sc.check_equivariance(function=cumulative)
    with pytest.raises(sc.OptionError, match="nothing would be checked"):
        sc.check_equivariance(layer, trials=0)
    with pytest.raises(sc.OptionError, match="cannot be checked"):
        sc.check_equivariance(layer, dtype="int32")
    with pytest.raises(sc.OptionError, match=r"what symcompile\.compile returned"):
        sc.check_equivariance(cumulative)
    with pytest.raises(sc.ShapeError, match="no label 5"):
        sc.check_equivariance(layer, sizes={5: 2})


# -- completeness -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "sizes", "dimension", "constants"),
    [
        ((0,), {0: 1}, 1, 1),
        ((0,), {0: 3}, 2, 1),
        ((0, 0), {0: 2}, 8, 2),
        ((0, 0), {0: 5}, 15, 2),
        ((0, 1), {0: 2, 1: 3}, 4, 1),
        ((), {}, 1, 1),
        ((sc.Fixed(2), 0), {0: 3}, 8, 2),
        (((0, 1),), {0: 2, 1: 2}, 4, 1),
        ({"w": (0, 1), "b": (1,)}, {0: 2, 1: 2}, 4 + 2 + 2 + 2, 2),
    ],
)
def test_completeness_counts(
    spec: Any, sizes: dict[Any, int], dimension: int, constants: int
) -> None:
    report = sc.check_completeness(spec, sizes=sizes)
    assert report.weights == report.rank == report.dimension == dimension
    assert report.constants == constants
    assert report.null_space in (None, dimension)
    assert (report.null_space is None) == (spec == (0, 0) and sizes[0] == 5)


def test_orbits_and_null_space_agree_with_burnside() -> None:
    """S_3 on pairs of entries of (0, 0): 14 orbits, the partitions of 4 into at most 3 blocks."""
    swap, cycle = np.array([1, 0, 2]), np.array([1, 2, 0])
    on_pairs = [(3 * g[:, None] + g[None, :]).ravel() for g in (swap, cycle)]
    assert _null_space(on_pairs, on_pairs, 9, 9) == 14
    on_both = [(9 * g[:, None] + g[None, :]).ravel() for g in on_pairs]
    assert len(set(_orbits(on_both, 81).tolist())) == 14


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_completeness_of_a_given_layer(backend: str) -> None:
    pytest.importorskip(backend)
    layer = sc.compile({"w": (0, 0)}, in_channels=2, out_channels=1, backend=backend)
    report = sc.check_completeness(layer=layer)
    assert report.sizes == ((0, 4),)
    assert report.weights == report.rank == report.dimension == 30


def with_columns(
    compiled: Compiled, name: str, change: Callable[[Weight], tuple[Column, ...]]
) -> NumpyLayer:
    """A layer whose schema was tampered with, and whose program follows it."""
    weights = tuple(
        replace(weight, columns=change(weight)) if weight.name == name else weight
        for weight in compiled.schema.weights
    )
    schema = replace(compiled.schema, weights=weights)
    return NumpyLayer(replace(compiled, schema=schema, program=lower_factored(schema)))


def duplicated(weight: Weight) -> tuple[Column, ...]:
    last = weight.columns[-1]
    return (*weight.columns, replace(last, start=last.start + last.width))


@pytest.mark.parametrize("name", ["mix_scalar", "mix_0", "bias"])
def test_completeness_rejects_a_column_missing_or_twice(name: str) -> None:
    compiled = compile_spec({"w": (0, 0)}, in_channels=1, out_channels=1, sizes={0: 4})
    what = "equivariant constants" if name == "bias" else "equivariant maps"
    layer = with_columns(compiled, name, lambda weight: weight.columns[:-1])
    with pytest.raises(sc.CheckError, match=rf"incomplete \(y\['w'\].* {what}"):
        sc.check_completeness(layer=layer)
    layer = with_columns(compiled, name, duplicated)
    with pytest.raises(sc.CheckError, match=rf"redundant \(y\['w'\].* {what}"):
        sc.check_completeness(layer=layer)
    layer = with_columns(compiled, name, lambda weight: weight.columns)
    assert sc.check_completeness(layer=layer).dimension == 15


def test_completeness_rejects_a_layer_with_more_diagrams_than_its_size_tells_apart() -> None:
    layer = sc.compile({"w": (0, 0)}, in_channels=1, out_channels=1, backend="numpy")
    with pytest.raises(sc.CheckError, match=r"redundant .* compiled without sizes="):
        sc.check_completeness(layer=layer, sizes={0: 3})


@dataclass(frozen=True)
class Tampered(NumpyLayer):
    """A NumPy layer with a change to its output."""

    change: Callable[[Any], Any]

    def apply(self, params: Any, x: Any) -> Any:
        return self.change(super().apply(params, x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y.cumsum(-2), "not equivariant"),
        (lambda y: y * np.where(np.arange(y.shape[-2]) == 1, 1 + 1e-6, 1)[:, None], "differ by"),
        (lambda y: np.sin(y) / np.sin(1), "not linear"),
        (lambda y: y - y.mean(-2, keepdims=True), r"incomplete \(y"),
        (lambda y: y.mean(-2), "does not follow its out_spec"),
    ],
)
def test_completeness_rejects_wrong_maps(change: Callable[[Any], Any], message: str) -> None:
    compiled = compile_spec((0,), in_channels=1, out_channels=1, bias=False)
    with pytest.raises(sc.CheckError, match=message):
        sc.check_completeness(layer=Tampered(compiled, change), sizes={0: 3})
    assert sc.check_completeness(layer=Tampered(compiled, lambda y: y)).rank == 2


def test_completeness_refuses_what_is_too_large() -> None:
    with pytest.raises(sc.OptionError, match=r"1,000,000,000,000 matrix entries, .*limit=20,000,"):
        sc.check_completeness((0, 0, 0), sizes={0: 100})
    with pytest.raises(sc.OptionError, match="limit=80;"):
        sc.check_completeness((0, 0), sizes={0: 3}, limit=80)
    with pytest.raises(sc.OptionError, match="either a spec"):
        sc.check_completeness()
    layer = sc.compile((0,), in_channels=1, out_channels=1, backend="numpy")
    with pytest.raises(sc.OptionError, match="brings its specs"):
        sc.check_completeness(layer=layer, in_channels=2)


# -- agreement --------------------------------------------------------------------------------


def test_agreement_compares_every_backend_plan_and_dtype() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    report = sc.check_backends({"w": (0, 1), "b": (1,)}, batch_shapes=((2,),))
    assert report.baseline == "numpy optimize=False"
    assert not report.skipped
    assert {(c.backend, c.optimize, c.dtype) for c in report.comparisons} == {
        (backend, plan, dtype)
        for backend in ("numpy", "torch", "jax")
        for plan in ("False", "auto")
        for dtype in ("float64", "float32")
    } - {("numpy", "False", "float64"), ("numpy", "False", "float32")}
    assert all(0 <= c.relative <= c.tolerance for c in report.comparisons)
    assert any(c.max_error > 0 for c in report.comparisons)


@dataclass(frozen=True)
class Faulty:
    """A backend that hands NumPy's outputs through `change`."""

    change: Callable[[Any], Any]
    name: str = "faulty"

    def __getattr__(self, name: str) -> Any:
        return getattr(get_backend("numpy"), name)

    def call(self, layer: Any, weights: Any, x: Any) -> Any:
        y = layer.apply(weights, x)
        return {"w": self.change(y["w"]), "b": y["b"]}


def perturbed(by: float) -> Callable[[Any], Any]:
    def change(value: Any) -> Any:
        value = value.copy()
        value.flat[-1] += value.dtype.type(by)
        return value

    return change


@pytest.mark.parametrize(("by", "dtype"), [(1e-4, "float64"), (1e-9, "float64"), (1, "float32")])
def test_agreement_rejects_a_backend_that_is_off_in_one_entry(by: float, dtype: str) -> None:
    spec = {"w": (0, 1), "b": (1,)}
    with pytest.raises(
        sc.CheckError, match=r"numpy optimize=False and faulty optimize=False disagree at y\['w'\]"
    ):
        sc.check_backends(spec, backends=["numpy", Faulty(perturbed(by))], dtypes=(dtype,))
    assert sc.check_backends(spec, backends=["numpy", Faulty(perturbed(0))], dtypes=(dtype,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.astype(np.float32), r"faulty .* is float32 for float64 inputs"),
        (lambda v: v[..., :1], r"faulty .* has shape .* expected .* with 3 channels"),
        (lambda v: v[..., :1, :], r"faulty .* has shape"),
        (lambda v: v * np.nan, "disagree"),
    ],
)
def test_agreement_rejects_other_dtypes_and_shapes(
    change: Callable[[Any], Any], message: str
) -> None:
    with pytest.raises(sc.CheckError, match=message):
        sc.check_backends({"w": (0, 1), "b": (1,)}, backends=["numpy", Faulty(change)])


def test_agreement_rejects_weights_that_depend_on_the_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def planned(*args: Any, optimize: Any, **options: Any) -> Compiled:
        bias = optimize is False
        return compile_spec(*args, optimize=optimize, **options | {"bias": bias})

    monkeypatch.setattr("symcompile.api.compile_spec", planned)
    with pytest.raises(sc.CheckError, match="must not depend on the plan"):
        sc.check_backends((0,), backends=["numpy"])


def test_agreement_says_which_backends_it_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "backend_names", lambda: ("absent", "numpy"))
    report = sc.check_backends((0,))
    assert [name for name, _ in report.skipped] == ["absent"]
    assert "skipped absent" in str(report)
    with pytest.raises(sc.BackendError, match="'absent' is not known"):
        sc.check_backends((0,), backends=["absent"])


def test_agreement_refuses_arguments_that_mean_nothing() -> None:
    with pytest.raises(sc.OptionError, match="nothing would be checked"):
        sc.check_backends((0,), backends=[])
    with pytest.raises(sc.OptionError, match="backends= and plans="):
        sc.check_backends((0,), backend="numpy")


def test_equivariance_says_when_nothing_was_permuted():
    layer = sc.compile({"w": (0, 1)}, in_channels=1, out_channels=1, backend="numpy")
    report = sc.check_equivariance(layer, sizes={0: 1, 1: 1})
    assert report.permuted == ()
    assert "nothing was permuted" in str(report)
    report = sc.check_equivariance(layer, sizes={0: 1, 1: 3})
    assert report.permuted == (1,)
    assert str(report).startswith("equivariant")


def test_completeness_takes_the_sizes_of_fixed_axes_from_shapes():
    report = sc.check_completeness({"w": (None, "a")}, shapes={"w": (3, 4)}, bias=False)
    assert report.dimension == 3 * 3 * 2
