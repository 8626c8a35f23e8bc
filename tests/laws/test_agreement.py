"""Laws of agreement: one layer, whatever computes it.

Reference and planned program, NumPy, torch and JAX give the same outputs from the same weights,
within 1e-12 in float64 and 1e-5 in float32; batches are single calls side by side.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

import symcompile as sc
from symcompile.api import compile_spec
from symcompile.cost.work import Accountant
from symcompile.spec import unflatten
from tests.laws.strategies import Case, cases, leaves_of, normal_weights

pytestmark = pytest.mark.usefixtures("quick_xla")

TOLERANCE = {"float64": 1e-12, "float32": 1e-5}


@settings(max_examples=60)
@given(cases(max_weights=1_000, max_entries=1_500))
def test_reference_and_planned_agree_on_numpy_and_torch(case: Case) -> None:
    pytest.importorskip("torch")
    _agree(case, ["numpy", "torch"], (False, "auto"))


# One plan a case: most of the time goes to XLA, which compiles every example anew.
@settings(max_examples=25)
@given(cases(max_weights=600, max_entries=1_500))
def test_jax_agrees_with_numpy(case: Case) -> None:
    pytest.importorskip("jax")
    _agree(case, ["numpy", "jax"], (False if case.seed % 3 == 0 else "auto",))


@settings(max_examples=60)
@given(cases(max_weights=1_000, max_entries=1_500))
def test_plans_for_kernels_agree_whatever_computes_them(case: Case) -> None:
    """As if every sum had few channels and many entries: the planner takes other forms then."""
    pytest.importorskip("torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Accountant, "_suits", lambda *args: True)
        _agree(case, ["numpy", "torch"], (False, "auto"))


def _agree(case: Case, backends: list[str], plans: tuple[bool | str, ...]) -> None:
    # Labels that are not bound are 2 to 6 in turn there.
    report = sc.check_backends(
        case.spec,
        case.out_spec,
        backends=backends,
        plans=plans,
        batch_shapes=((2,),) if case.seed % 2 else ((),),
        seed=case.seed,
        **case.options,
    )
    assert len(report.comparisons) == 2 * (len(backends) * len(plans) - 1)
    assert all(c.tolerance == TOLERANCE[c.dtype] for c in report.comparisons)


@settings(max_examples=60)
@given(cases(max_weights=1_000, max_entries=500))
def test_a_batch_is_single_calls_stacked(case: Case) -> None:
    layer = sc.compile(case.spec, case.out_spec, backend="numpy", **case.options)
    rng = np.random.default_rng(case.seed)
    weights = normal_weights(rng, layer.compiled.shapes)
    x = case.inputs(rng, batch=(2, 3))
    whole = leaves_of(layer.compiled.out_spec, layer.apply(weights, unflatten(layer.spec, x)))
    for place in np.ndindex(2, 3):
        one = layer.apply(weights, unflatten(layer.spec, [leaf[place] for leaf in x]))
        for together, alone in zip(whole, leaves_of(layer.compiled.out_spec, one), strict=True):
            np.testing.assert_allclose(
                together[place], alone, rtol=0, atol=1e-12 * np.abs(together).max()
            )


@settings(max_examples=60)
@given(cases())
def test_weights_have_the_same_names_and_shapes_under_every_plan(case: Case) -> None:
    shapes = [
        compile_spec(case.spec, case.out_spec, optimize=plan, **case.options).shapes
        for plan in (False, "greedy", "auto")
    ]
    assert list(shapes[0].items()) == list(shapes[1].items()) == list(shapes[2].items())
