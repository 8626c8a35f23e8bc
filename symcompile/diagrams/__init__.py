"""Partition diagrams: the basis of equivariant linear maps, as combinatorics only.

In: tuples of labels (one per axis) and, where known, label sizes. Out: half-diagrams, diagrams and
exact counts. Nothing here knows of tensors, channels or weights.
"""

from symcompile.diagrams.counts import Census, basis_size, census, tight_sizes
from symcompile.diagrams.diagram import Diagram, bijections, cut, glue
from symcompile.diagrams.half import HalfDiagram, half_diagrams
from symcompile.diagrams.partitions import bell, set_partitions, stirling2
from symcompile.diagrams.signatures import Signature, shared_signatures, signatures_within

__all__ = [
    "Census",
    "Diagram",
    "HalfDiagram",
    "Signature",
    "basis_size",
    "bell",
    "bijections",
    "census",
    "cut",
    "glue",
    "half_diagrams",
    "set_partitions",
    "shared_signatures",
    "signatures_within",
    "stirling2",
    "tight_sizes",
]
