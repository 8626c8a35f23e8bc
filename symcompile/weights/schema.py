"""Which weight multiplies which diagram.

In: input and output tensors, known sizes, with or without bias, which part of the basis to keep and
at which rank. Out: a `Schema`: for each signature one matrix whose rows are in-features and whose
columns are out half-diagrams, and one bias vector. Row and column give a diagram, so a block of a
matrix is a basis element's coefficient.

The one thing to know: where small sizes prune the basis, or a predicate does, what is left of a
signature is covered by several dense matrices; no weight ever stands for nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

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
from symcompile.weights.cover import dense_pieces
from symcompile.weights.rank import Ranks, inner_width, require_known

__all__ = [
    "BasisElement",
    "Column",
    "Factors",
    "Row",
    "Schema",
    "Weight",
    "basis_elements",
    "build_schema",
]

Keep = Callable[[Path, Path, Diagram], bool]
"""(output path, input path, diagram) -> whether this basis element is part of the layer."""

_STEM = 40
"""Letters of a mix's name that its factors' names begin with."""


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
class Factors:
    """A matrix as the product of two: `into` has all its rows, `out` all its columns.

    Attributes:
        into, out: names of the two weight tensors.
        inner: columns of `into`, rows of `out`.
    """

    into: str
    out: str
    inner: int


@dataclass(frozen=True, slots=True)
class Weight:
    """One matrix (or, with no rows, the bias vector) of the canonical schema.

    Attributes:
        name: of the weight tensor; with `factors`, of the product, which is stored nowhere.
        factors: what is stored in its place, if it is of low rank.
    """

    name: str
    signature: Signature
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    factors: Factors | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(in-channels, out-channels), or (out-channels,) for the bias."""
        cols = self.columns[-1].start + self.columns[-1].width
        return (self.rows[-1].start + self.rows[-1].width, cols) if self.rows else (cols,)

    @property
    def stored(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """(name, shape) of the tensors that hold it: one, or two factors."""
        if self.factors is None:
            return ((self.name, self.shape),)
        rows, cols = self.shape
        inner = self.factors.inner
        return ((self.factors.into, (rows, inner)), (self.factors.out, (inner, cols)))


@dataclass(frozen=True, slots=True)
class Schema:
    """All weights of a layer from `inputs` to `outputs`."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    sizes: tuple[tuple[Label, int], ...]
    weights: tuple[Weight, ...]

    @property
    def stored(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """(name, shape) of every weight tensor of the layer."""
        return tuple(part for weight in self.weights for part in weight.stored)

    @property
    def elements(self) -> int:
        """The number of basis elements, the bias's included."""
        return sum(max(len(weight.rows), 1) * len(weight.columns) for weight in self.weights)


@dataclass(frozen=True, slots=True)
class BasisElement:
    """One equivariant basis map and the weights that are its coefficients.

    Attributes:
        output, input: paths; `input` is None for the bias.
        diagram: the set partition of the joint axes (output's first).
        weight: name of the weight tensor, or of the product of two.
        rows: its rows (None for the bias), one per input channel.
        cols: its columns, one per output channel. Fixed axes count as channels.
        factors: names of the two weight tensors of a mix of low rank: the first has the rows, the
            second the columns. Elements then share weights, and cannot be chosen freely.
    """

    output: Path
    input: Path | None
    diagram: Diagram
    weight: str
    rows: slice | None
    cols: slice
    factors: tuple[str, str] | None = None

    def coefficient(self, weights: Mapping[str, Any]) -> Any:
        """This element's coefficient, out of all weights by name.

        Returns:
            an array (input channels, output channels), or (output channels,) for the bias.
        """
        if self.factors is not None:
            into, out = self.factors
            return weights[into][self.rows] @ weights[out][:, self.cols]
        if self.rows is None:
            return weights[self.weight][self.cols]
        return weights[self.weight][self.rows, self.cols]


def build_schema(
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    sizes: Mapping[Label, int],
    *,
    bias: bool = True,
    keep: Keep | None = None,
    rank: Ranks = None,
) -> Schema:
    """The canonical weights, in time linear in the number of tensors unless `keep` is given.

    Tensors come in canonical order; rows and columns follow it, and within a tensor the order of
    `half_diagrams`.

    Args:
        keep: asked about every basis element but the bias's.
        rank: as `parse_rank` returns it.

    Raises:
        OptionError: a rank is given for a signature that no mix has.
    """
    shared = shared_signatures([t.labels for t in outputs], [t.labels for t in inputs])
    rows = _by_signature(inputs, sizes, shared)
    columns = _by_signature(outputs, sizes, shared)
    tight = tight_sizes([t.labels for t in outputs], [t.labels for t in inputs], sizes)
    namer = Namer({"bias", "x", "self", "torch", "training"})
    weights = []
    for signature in sorted(rows.keys() & columns.keys(), key=_signature_key):
        features = [
            (tensor, half, bijection)
            for tensor, half in rows[signature]
            for bijection in bijections(signature)
        ]
        for row_group, column_group in _dense_blocks(
            signature, features, columns[signature], inputs, outputs, tight, keep
        ):
            name = namer("mix_" + ("_".join(map(str, signature)) or "scalar"))
            weights.append(
                Weight(
                    name,
                    signature,
                    _place_rows(row_group, inputs),
                    _place_columns(column_group, outputs),
                )
            )
    require_known(rank, dict.fromkeys(weight.signature for weight in weights))
    # Names of factors come second: those of dense mixes are the same at every rank.
    weights = [_factored(weight, outputs, rank, namer) for weight in weights]
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

    The coefficient of an element from input channel i to output channel o is entry (i, o) of
    `weight[rows, cols]`, or at low rank of `into[rows] @ out[:, cols]`.
    """
    nothing = HalfDiagram((), ())
    for weight in schema.weights:
        factors = (weight.factors.into, weight.factors.out) if weight.factors else None
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
                    factors,
                )


_Member = tuple[int, HalfDiagram]
_Feature = tuple[int, HalfDiagram, tuple[int, ...]]


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
    rows: list[_Feature],
    columns: list[_Member],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    tight: Mapping[Label, int],
    keep: Keep | None,
) -> Iterator[tuple[list[_Feature], list[_Member]]]:
    """Rows and columns of every dense matrix: those that keep every label within its size."""
    through = Counter(signature)
    row_profiles = [_profile(half, inputs[t].labels, tight) for t, half, _ in rows]
    column_profiles = [_profile(half, outputs[t].labels, tight) for t, half in columns]

    def fit(row: _Profile, column: _Profile) -> bool:
        closed = Counter(dict(row)) + Counter(dict(column))
        return all(through[label] + count <= tight[label] for label, count in closed.items())

    if keep is None:
        # Without a predicate profiles decide, and no pair of tensors is ever looked at.
        pieces = dense_pieces(row_profiles, column_profiles, fit)
    else:
        fits, diagram = cache(fit), cache(glue)

        def kept(row: int, column: int) -> bool:
            (into, half, bijection), (out, out_half) = rows[row], columns[column]
            return fits(row_profiles[row], column_profiles[column]) and keep(
                outputs[out].path, inputs[into].path, diagram(out_half, half, bijection)
            )

        pieces = dense_pieces(range(len(rows)), range(len(columns)), kept)
    for row_places, column_places in pieces:
        yield [rows[k] for k in row_places], [columns[k] for k in column_places]


_Profile = tuple[tuple[Label, int], ...]


def _profile(half: HalfDiagram, labels: Sequence[Label], tight: Mapping[Label, int]) -> _Profile:
    """Closed blocks per tight label: all that pruning depends on."""
    counts = half.closed_counts(labels)
    return tuple(
        (label, counts[label]) for label in sorted(counts, key=label_order) if label in tight
    )


def _factored(weight: Weight, outputs: Sequence[Tensor], rank: Ranks, namer: Namer) -> Weight:
    """The weight with factors, where those are smaller."""
    rows, cols = weight.shape
    channels = max(outputs[column.tensor].channels for column in weight.columns)
    inner = inner_width(rank, weight.signature, channels, (rows, cols))
    if inner is None:
        return weight
    stem = weight.name[:_STEM]
    return replace(weight, factors=Factors(namer(f"{stem}_in"), namer(f"{stem}_out"), inner))


def _place_rows(members: list[_Feature], inputs: Sequence[Tensor]) -> tuple[Row, ...]:
    placed: list[Row] = []
    start = 0
    for tensor, half, bijection in members:
        placed.append(Row(tensor, half, bijection, start, inputs[tensor].width))
        start += inputs[tensor].width
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
