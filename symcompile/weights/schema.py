"""Which weight multiplies which diagram.

In: input and output tensors, known sizes, with or without bias. Out: a `Schema`: for each
signature one matrix whose rows are in-features and whose columns are out half-diagrams, and one
bias vector. Row and column give a diagram, so a block of a matrix is a basis element's coefficient.

The one thing to know: where small sizes prune the basis, the rows of a signature are grouped by
the columns they may meet, one dense matrix per group; no weight ever stands for nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from symcompile.diagrams import (
    Diagram,
    HalfDiagram,
    Signature,
    bijections,
    glue,
    half_diagrams,
    shared_signatures,
    signatures_within,
    tight_sizes,
)
from symcompile.ir.types import Tensor
from symcompile.names import Namer
from symcompile.spec import Label, Path, label_order

__all__ = ["BasisElement", "Column", "Row", "Schema", "Weight", "basis_elements", "build_schema"]


@dataclass(frozen=True, slots=True)
class Row:
    """An in-feature: a half-diagram of an input, its axes permuted by a bijection."""

    tensor: int
    half: HalfDiagram
    bijection: tuple[int, ...]
    start: int
    width: int


@dataclass(frozen=True, slots=True)
class Column:
    """An out half-diagram of an output."""

    tensor: int
    half: HalfDiagram
    start: int
    width: int


@dataclass(frozen=True, slots=True)
class Weight:
    """One matrix (or, with no rows, the bias vector) of the canonical schema."""

    name: str
    signature: Signature
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """(in-channels, out-channels), or (out-channels,) for the bias."""
        cols = self.columns[-1].start + self.columns[-1].width
        return (self.rows[-1].start + self.rows[-1].width, cols) if self.rows else (cols,)


@dataclass(frozen=True, slots=True)
class Schema:
    """All weights of a layer from `inputs` to `outputs`."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    sizes: tuple[tuple[Label, int], ...]
    weights: tuple[Weight, ...]


@dataclass(frozen=True, slots=True)
class BasisElement:
    """One equivariant basis map and the weights that are its coefficients.

    Attributes:
        output, input: paths; `input` is None for the bias.
        diagram: the set partition of the joint axes (output's first).
        weight: name of the weight tensor.
        rows: its rows (None for the bias), one per input channel.
        cols: its columns, one per output channel. Fixed axes count as channels.
    """

    output: Path
    input: Path | None
    diagram: Diagram
    weight: str
    rows: slice | None
    cols: slice


def build_schema(
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    sizes: Mapping[Label, int],
    *,
    bias: bool = True,
) -> Schema:
    """The canonical weights, in time linear in the number of tensors.

    Tensors come in canonical order; rows and columns follow it, and within a tensor the order of
    `half_diagrams`.
    """
    shared = shared_signatures([t.labels for t in outputs], [t.labels for t in inputs])
    rows = _by_signature(inputs, sizes, shared)
    columns = _by_signature(outputs, sizes, shared)
    tight = tight_sizes([t.labels for t in outputs], [t.labels for t in inputs], sizes)
    namer = Namer({"bias", "x", "self", "torch", "training"})
    weights = []
    for signature in sorted(rows.keys() & columns.keys(), key=_signature_key):
        for row_group, column_group in _dense_blocks(
            signature, rows[signature], columns[signature], inputs, outputs, tight
        ):
            name = namer("mix_" + ("_".join(map(str, signature)) or "scalar"))
            weights.append(
                Weight(
                    name,
                    signature,
                    _place_rows(row_group, signature, inputs),
                    _place_columns(column_group, outputs),
                )
            )
    if bias:
        weights.append(Weight("bias", (), (), _place_columns(columns[()], outputs)))
    return Schema(
        tuple(inputs),
        tuple(outputs),
        tuple(sorted(sizes.items(), key=lambda item: label_order(item[0]))),
        tuple(weights),
    )


def basis_elements(schema: Schema) -> Iterator[BasisElement]:
    """Every basis element of the layer, the bias's last.

    The coefficient of an element from input channel i to output channel o is
    `weight[rows][i, o]` of `weight[rows, cols]`.
    """
    nothing = HalfDiagram((), ())
    for weight in schema.weights:
        for column in weight.columns:
            output = schema.outputs[column.tensor].path
            cols = slice(column.start, column.start + column.width)
            if not weight.rows:
                diagram = glue(column.half, nothing, ())
                yield BasisElement(output, None, diagram, weight.name, None, cols)
            for row in weight.rows:
                yield BasisElement(
                    output,
                    schema.inputs[row.tensor].path,
                    glue(column.half, row.half, row.bijection),
                    weight.name,
                    slice(row.start, row.start + row.width),
                    cols,
                )


_Member = tuple[int, HalfDiagram]


def _by_signature(
    tensors: Sequence[Tensor], sizes: Mapping[Label, int], shared: frozenset[Signature]
) -> dict[Signature, list[_Member]]:
    @cache
    def halves(labels: tuple[Label, ...]) -> list[tuple[Signature, HalfDiagram]]:
        wanted = signatures_within(labels, shared)
        return [(half.signature(labels), half) for half in half_diagrams(labels, sizes, wanted)]

    members: dict[Signature, list[_Member]] = {}
    for index, tensor in enumerate(tensors):
        for signature, half in halves(tensor.labels):
            members.setdefault(signature, []).append((index, half))
    return members


def _dense_blocks(
    signature: Signature,
    rows: list[_Member],
    columns: list[_Member],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    tight: Mapping[Label, int],
) -> Iterator[tuple[list[_Member], list[_Member]]]:
    """Rows grouped by the columns they may meet: those that keep every label within its size."""
    through = Counter(signature)
    row_profiles = [_profile(half, inputs[t].labels, tight) for t, half in rows]
    column_profiles = [_profile(half, outputs[t].labels, tight) for t, half in columns]

    def meet(row: _Profile, column: _Profile) -> bool:
        closed = Counter(dict(row)) + Counter(dict(column))
        return all(through[label] + count <= tight[label] for label, count in closed.items())

    distinct = set(column_profiles)
    partners = {
        row: frozenset(column for column in distinct if meet(row, column))
        for row in set(row_profiles)
    }
    groups: dict[frozenset[_Profile], list[_Member]] = {}
    for member, profile in zip(rows, row_profiles, strict=True):
        groups.setdefault(partners[profile], []).append(member)
    for allowed, group in groups.items():
        met = [c for c, profile in zip(columns, column_profiles, strict=True) if profile in allowed]
        if met:
            yield group, met


_Profile = tuple[tuple[Label, int], ...]


def _profile(half: HalfDiagram, labels: Sequence[Label], tight: Mapping[Label, int]) -> _Profile:
    """Closed blocks per tight label: all that pruning depends on."""
    counts = half.closed_counts(labels)
    return tuple(
        (label, counts[label]) for label in sorted(counts, key=label_order) if label in tight
    )


def _place_rows(
    members: list[_Member], signature: Signature, inputs: Sequence[Tensor]
) -> tuple[Row, ...]:
    placed: list[Row] = []
    start = 0
    joins = list(bijections(signature))
    for tensor, half in members:
        width = inputs[tensor].width
        for bijection in joins:
            placed.append(Row(tensor, half, bijection, start, width))
            start += width
    return tuple(placed)


def _place_columns(members: list[_Member], outputs: Sequence[Tensor]) -> tuple[Column, ...]:
    placed: list[Column] = []
    start = 0
    for tensor, half in members:
        placed.append(Column(tensor, half, start, outputs[tensor].width))
        start += outputs[tensor].width
    return tuple(placed)


def _signature_key(signature: Signature) -> tuple[int, list[tuple[int, int, str]]]:
    return len(signature), [label_order(label) for label in signature]
