"""Laws of the maps themselves: every random layer is equivariant and complete.

Checked from the definitions, on arrays; nothing here knows of diagrams.
"""

from __future__ import annotations

from hypothesis import given, settings

import symcompile as sc
from tests.laws.strategies import Case, cases


@settings(max_examples=150)
@given(cases(max_weights=4_000))
def test_permuted_inputs_give_permuted_outputs(case: Case) -> None:
    layer = sc.compile(case.spec, case.out_spec, backend="numpy", **case.options)
    report = sc.check_equivariance(
        layer, sizes=case.sizes, batch_shapes=((), (2,)), trials=2, seed=case.seed
    )
    assert report.dtype == "float64"
    assert report.relative <= 1e-12


@settings(max_examples=60)
@given(cases(max_weights=120, max_entries=100, max_channels=2, max_size=4))
def test_weights_are_exactly_a_basis_of_the_equivariant_maps(case: Case) -> None:
    options = case.options | {"sizes": case.sizes}
    bias = options.pop("bias")
    report = sc.check_completeness(case.spec, case.out_spec, bias=bias, **options)
    assert report.weights == report.rank == report.dimension
    assert (report.constants is not None) == bias
