"""The canonical weights of a layer: their names, shapes, meaning and initial scale.

In: input and output tensors and known sizes. Out: a `Schema` that no plan, backend or optimizer
setting can change, so that a checkpoint never goes stale.
"""

from symcompile.weights.rank import Ranks, parse_rank
from symcompile.weights.scale import INITS, Scale, init_scales
from symcompile.weights.schema import (
    BasisElement,
    Column,
    Factors,
    Keep,
    Row,
    Schema,
    Weight,
    basis_elements,
    build_schema,
)

__all__ = [
    "INITS",
    "BasisElement",
    "Column",
    "Factors",
    "Keep",
    "Ranks",
    "Row",
    "Scale",
    "Schema",
    "Weight",
    "basis_elements",
    "build_schema",
    "init_scales",
    "parse_rank",
]
