"""`symcompile explain`: a compiled layer for people.

In: a `Compiled`. Out: its tensors, labels, half-diagrams, mixes, plan and program, printed.
The one thing to know: counts come from the closed form (`census`) and from the schema; diagrams
are never enumerated, half-diagrams only where they are few.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from math import factorial, prod
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from symcompile.cli.show import escaped
from symcompile.codegen import Compiled
from symcompile.diagrams import census, half_diagrams
from symcompile.ir import print_program
from symcompile.spec import (
    Axis,
    Fixed,
    Label,
    LeafNode,
    ListNode,
    Node,
    PermSpec,
    axis_atoms,
    format_axis,
    format_label,
    format_path,
    label_order,
)

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["explain"]

FEW = 24  # half-diagrams of one tensor that are listed
HEAD = 40  # lines of the program shown without --program, or half as many if there are more
LONGEST = 200  # characters of a line of the plan or of that beginning
NAMED = 4  # tensors named for one pattern of labels
WIDTH = 96


def explain(
    compiled: Compiled, title: str, console: Console, *, whole_program: bool, why: bool = False
) -> None:
    """Print everything about a layer; `title` names where the spec came from."""
    _tensors(compiled, title, console)
    _labels(compiled, console)
    _halves(compiled, console)
    _mixes(compiled, console)
    first, *lines = escaped(str(compiled.plan)).splitlines()
    _heading(_cut(first), console)
    for line in lines:
        console.print(Text(_cut(line)))
    if why:
        _heading(
            "decisions: what was chosen, at what cost, and what else it could have been", console
        )
        for line in escaped(compiled.plan.explain()).splitlines():
            console.print(Text(line))
    _program(compiled, whole_program, console)


def _heading(text: str, console: Console) -> None:
    console.print()
    console.print(Text(text, style="bold"))


# --- tensors -------------------------------------------------------------------------------------


def _tensors(compiled: Compiled, title: str, console: Console) -> None:
    inputs = [t.channels for t in compiled.schema.inputs]
    outputs = [t.channels for t in compiled.schema.outputs]
    shown = escaped(title, keep="")
    if compiled.out_spec is compiled.spec:
        channels = [f"channels {i} -> {o}" for i, o in zip(inputs, outputs, strict=True)]
        console.print(_tree(compiled.spec, channels, f"{shown}: {_count(compiled.spec)}"))
        return
    for spec, counts, side in (
        (compiled.spec, inputs, "inputs"),
        (compiled.out_spec, outputs, "outputs"),
    ):
        channels = [f"channels {count}" for count in counts]
        console.print(_tree(spec, channels, f"{shown}, {side}: {_count(spec)}"))


def _count(spec: PermSpec) -> str:
    tensors, labels = len(spec.leaves), len(spec.labels)
    return f"{tensors} tensor{'s' * (tensors != 1)}, {labels} label{'s' * (labels != 1)}"


def _tree(spec: PermSpec, channels: Sequence[str], title: str) -> Tree:
    def leaf(name: str, node: LeafNode) -> Text:
        axes = spec.leaves[node.index].axes
        labels = ", ".join(map(format_axis, axes)) + ("," if len(axes) == 1 else "")
        return Text(f"{name}  ({labels})  {_shape(axes, spec)}  {channels[node.index]}")

    def grow(branch: Tree, node: Node) -> None:
        if isinstance(node, LeafNode):
            branch.add(leaf("tensor", node))
            return
        items = enumerate(node.items) if isinstance(node, ListNode) else node.items
        for key, child in items:
            name = format_label(key)
            if isinstance(child, LeafNode):
                branch.add(leaf(name, child))
            else:
                grow(branch.add(Text(name)), child)

    root = Tree(Text(title, style="bold"))
    grow(root, spec.structure)
    return root


def _shape(axes: Sequence[Axis], spec: PermSpec) -> str:
    if not axes:
        return "scalar"
    sizes = [_size(axis, spec) for axis in axes]
    return "any size" if set(sizes) == {"?"} else " x ".join(sizes)


def _size(axis: Axis, spec: PermSpec) -> str:
    sizes = [a.size if isinstance(a, Fixed) else spec.size(a.label) for a in axis_atoms(axis)]
    known = [size for size in sizes if size is not None]
    return str(prod(known)) if len(known) == len(sizes) else "?"


def _labels(compiled: Compiled, console: Console) -> None:
    specs = {id(spec): spec for spec in (compiled.spec, compiled.out_spec)}.values()
    axes = Counter(label for spec in specs for leaf in spec.leaves for label in leaf.labels)
    if not axes:
        return
    sizes = dict(compiled.schema.sizes)
    _heading("labels: each one permutation", console)
    table = _table("label", "size", "axes it moves", right=(1, 2))
    for label in sorted(axes, key=label_order):
        table.add_row(Text(format_label(label)), str(sizes.get(label, "any")), str(axes[label]))
    console.print(table)


# --- half-diagrams -------------------------------------------------------------------------------


def _halves(compiled: Compiled, console: Console) -> None:
    sizes = dict(compiled.schema.sizes)
    _heading("half-diagrams: the ways to group a tensor's permuted axes into blocks", console)
    console.print(
        Text(
            "0|(12): axis 0 propagates; the block of axes 1 and 2 is reduced over its diagonal on "
            "the way in, spread over it on the way out."
        )
    )
    leaves = (*compiled.spec.leaves, *compiled.out_spec.leaves)
    if any(len(leaf.labels) != len(leaf.axes) for leaf in leaves):
        console.print(Text("Parts of composite axes count one by one, fixed axes not at all."))
    for labels, names in _by_labels(compiled):
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        console.print(Text(f"{_signature(labels)}: {', '.join(names[:NAMED])}{more}"))
        counts = {
            signature: closed.total() for signature, closed in census([labels], sizes).items()
        }
        total = sum(counts.values())
        parts = [
            f"{count:,} of {_signature(signature)}"
            for signature, count in sorted(
                counts.items(), key=lambda item: (-len(item[0]), list(map(label_order, item[0])))
            )
        ]
        _wrapped(f"{total:,} in all: " + ", ".join(parts), console)
        if total <= FEW:
            _wrapped("  ".join(str(half) for half in half_diagrams(labels, sizes)), console)


def _by_labels(compiled: Compiled) -> Iterator[tuple[tuple[Label, ...], list[str]]]:
    """Tensors with the same labels have the same half-diagrams."""
    schema = compiled.schema
    sides = [("", schema.inputs)]
    if compiled.out_spec is not compiled.spec:
        sides = [("input ", schema.inputs), ("output ", schema.outputs)]
    groups: dict[tuple[Label, ...], list[str]] = {}
    for side, tensors in sides:
        for tensor in tensors:
            groups.setdefault(tensor.labels, []).append(f"{side}{format_path(tensor.path)}")
    yield from groups.items()


def _signature(labels: Sequence[Label]) -> str:
    inner = ", ".join(map(format_label, labels))
    return f"({inner},)" if len(labels) == 1 else f"({inner})"


def _wrapped(text: str, console: Console) -> None:
    lines = textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
    for line in lines:
        console.print(Text(f"  {line}"))


# --- mixes ---------------------------------------------------------------------------------------


def _mixes(compiled: Compiled, console: Console) -> None:
    _heading("mixes: half-diagrams of equal signature meet, one matrix for each signature", console)
    table = _table(
        "weight",
        "signature",
        "in-features",
        "joins",
        "out half-diagrams",
        "diagrams",
        "shape",
        right=(2, 3, 4, 5, 6),
    )
    maps = constants = 0
    for weight in compiled.schema.weights:
        shape = " x ".join(map(str, weight.shape))
        if weight.factors is not None:
            shape = f"{weight.shape[0]} x {weight.factors.inner} x {weight.shape[1]}"
        columns = len(weight.columns)
        if not weight.rows:
            constants += columns
            figures = ("1", "1", f"{columns:,}", f"{columns:,}", shape)
        else:
            joins = prod(factorial(times) for times in Counter(weight.signature).values())
            diagrams = len(weight.rows) * columns
            maps += diagrams
            figures = (
                f"{len({(row.tensor, row.half) for row in weight.rows}):,}",
                f"{joins:,}",
                f"{columns:,}",
                f"{diagrams:,}",
                shape,
            )
        table.add_row(weight.name, Text(_signature(weight.signature)), *figures)
    console.print(table)
    mixes = compiled.plan.planned.mixes
    console.print(
        Text(
            f"{maps + constants:,} diagrams: {maps:,} maps in {mixes:,} mixes and {constants:,} "
            f"constants (bias); {compiled.program.weight_count:,} weights"
        )
    )


def _table(*columns: str, right: Sequence[int] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="italic")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place in right else "left", no_wrap=True)
    return table


# --- program -------------------------------------------------------------------------------------


def _program(compiled: Compiled, whole: bool, console: Console) -> None:
    program = compiled.program
    kinds = Counter(type(op).__name__.lower() for op in program.ops)
    summary = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    _heading(f"program: {len(program.ops):,} ops ({summary})", console)
    lines = print_program(program).splitlines()
    if whole or len(lines) <= HEAD:
        for line in lines:
            console.print(Text(line))
        return
    for line in lines[: HEAD // 2]:
        console.print(Text(_cut(line)))
    console.print(Text(f"... {len(lines) - HEAD // 2:,} more lines; --program prints them all"))


def _cut(line: str) -> str:
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."
