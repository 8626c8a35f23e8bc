"""Reading tensors in and writing tensors out: names, sizes, checks, folds.

In: a `Compiled` and a `Dialect`. Out: the statements before and after the computation. Composite
axes are split and fixed axes folded into the channels on the way in; the reverse on the way out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby

from symcompile.codegen.compiled import Compiled
from symcompile.codegen.dialect import Dialect, Piece
from symcompile.ir import Input, Tensor
from symcompile.names import Namer
from symcompile.spec import (
    Atom,
    DictNode,
    Fixed,
    Label,
    LeafNode,
    Node,
    axis_atoms,
    size_sources,
)

__all__ = ["Layout", "one_move", "wrapped"]

_LINE = 88

_DEEPEST = 16
"""Most containers nested in one expression; Python's parser gives up at 200."""

_VECTOR, _FILLED = 16, 0.8
"""Channels in a vector of the widest, and how much of one is to be filled where results are written
in lines of channels."""


class Layout:
    """Names of tensors and sizes, and the statements that move between stored and folded form."""

    def __init__(
        self,
        compiled: Compiled,
        dialect: Dialect,
        namer: Namer,
        apart: Collection[int],
        prefix: str = "",
        sizes: Mapping[Label, str] | None = None,
        folded: bool = False,
    ) -> None:
        """Inputs `apart`, see `ownership`, have several axes of channels if the dialect likes.

        Args:
            prefix: what names of inputs begin with.
            sizes: names of the sizes that are not known, where they have been read before.
            folded: whether outputs are to stay as they are in the program.
        """
        self._compiled = compiled
        self._dialect = dialect
        self._namer = namer
        self._known = dict(compiled.program.sizes)
        self._folded = folded
        self.inputs = [
            namer(f"{prefix}{name}", "x") for name in _short_names(compiled.program.inputs)
        ]
        inputs = [(k, op) for k, op in enumerate(compiled.program.ops) if isinstance(op, Input)]
        self.used = sorted({op.tensor for _, op in inputs})
        self.channels = dict.fromkeys(self.used, 1)
        if dialect.joins_late:
            tensors = [op.tensor for number, op in inputs if number in apart]
            self.channels.update((k, _channels_apart(compiled.program.inputs[k])) for k in tensors)
        self.outputs = [namer(f"out_{name}") for name in _short_names(compiled.program.outputs)]
        labels = dict.fromkeys((*compiled.spec.labels, *compiled.out_spec.labels))
        if sizes is None:
            sizes = {label: namer(f"n_{label}", "n") for label in labels}
        self.sizes = {label: name for label, name in sizes.items() if label not in self._known}

    def size(self, label: Label) -> str:
        """A label's size: a literal where bound, else a name that `read` assigns."""
        return str(self._known[label]) if label in self._known else self.sizes[label]

    def shape(self, labels: Sequence[Label], width: int, *, batched: bool = True) -> str:
        """The full shape of a value, as a tuple expression."""
        parts = [*(["*batch"] if batched else []), *map(self.size, labels), str(width)]
        return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"

    def read(self) -> list[str]:
        """From `leaves`, a list of tensors, to checked values, folded where they are used."""
        tensors = self._compiled.program.inputs
        lines = [f"{wrapped(self.inputs, bare=True)} = leaves"]
        lines.append(f"batch = tuple({self.inputs[0]}.shape[:-{len(tensors[0].axes) + 1}])")
        for label, source in size_sources(self._compiled.spec):
            if label in self._known or isinstance(source, int):
                continue
            leaf, axis, others = source
            text = f"{self.inputs[leaf]}.shape[{axis - len(tensors[leaf].axes) - 1}]"
            if others:
                divisor = self._product(others)
                text += f" // ({divisor})" if len(others) > 1 else f" // {divisor}"
            lines.append(f"{self.sizes[label]} = {text}")
        for index, (name, tensor) in enumerate(zip(self.inputs, tensors, strict=True)):
            lines.append(f"_check({index}, {name}, {self._stored(tensor)})")
        return lines + self.fold()

    def fold(self) -> list[str]:
        """Of what is used, from tensors as they are stored to values."""
        lines = []
        for index in self.used:
            steps = self._fold(self.inputs[index], self._compiled.program.inputs[index])
            lines += steps[:-1] if self.channels[index] > 1 else steps
        return lines

    def write(self, text: str, tensor: int, *, stored: bool = False) -> list[str]:
        """Statements that make output number `tensor` from its value, folded or as it is stored."""
        name, output = self.outputs[tensor], self._compiled.program.outputs[tensor]
        steps = [] if stored or self._folded else self._unfold(name, text, output)
        if not steps and text.isidentifier():
            self.outputs[tensor] = text
        return steps or ([] if text.isidentifier() else [f"{name} = {text}"])

    def result(self, lines: list[str]) -> str:
        """The output tree as a literal over output names; deep parts of it are put in `lines`."""

        def tree(node: Node) -> tuple[str, int]:
            if isinstance(node, LeafNode):
                return self.outputs[node.index], 0
            if isinstance(node, DictNode):
                parts = [(f"{key!r}: ", tree(child)) for key, child in node.items]
                ends = "{}"
            else:
                parts = [("", tree(child)) for child in node.items]
                ends = "[]"
            text = _literal([f"{key}{value}" for key, (value, _) in parts], ends)
            depth = 1 + max((depth for _, (_, depth) in parts), default=0)
            if depth < _DEEPEST:
                return text, depth
            name = self._namer("tree")
            lines.append(f"{name} = {text}")
            return name, 0

        return tree(self._compiled.out_spec.structure)[0]

    def _product(self, atoms: Sequence[Atom]) -> str:
        return " * ".join(
            str(a.size) if isinstance(a, Fixed) else self.size(a.label) for a in atoms
        )

    def _stored(self, tensor: Tensor) -> str:
        sizes = [self._product(axis_atoms(axis)) for axis in tensor.axes]
        return f"({', '.join(['*batch', *sizes, str(tensor.channels)])})"

    def _fold(self, name: str, tensor: Tensor) -> list[str]:
        stored, folded = _fixed_places(tensor.atoms)
        composite = len(tensor.atoms) != len(tensor.axes)
        runs = self._runs(tensor, together=False)
        steps = []
        if runs:
            stored, folded = _fixed_places([run[0] for run in runs])
            steps.append(f"{name}.reshape({self._split(tensor, runs)})")
        elif composite and (stored != folded or not tensor.fixed):
            steps.append(f"{name}.reshape({self._split(tensor, _apart(tensor.atoms))})")
        if stored != folded:
            steps.append(self._dialect.move_axes(name, stored, folded))
        if tensor.fixed:
            steps.append(f"{name}.reshape({self.shape(tensor.labels, tensor.width)})")
        return [f"{name} = {step}" for step in steps]

    def piece(self, width: int, tensor: int) -> Piece:
        """Of a product, what becomes an output: to lie as that is stored, unless no axis moves, or
        vectors would be written for few channels each."""
        output = self._compiled.program.outputs[tensor]
        places, folded = _fixed_places(output.atoms)
        filled = output.channels / (-(-output.channels // _VECTOR) * _VECTOR)
        if places == folded or filled < _FILLED:
            return Piece(width)
        count = len(output.labels)
        sizes = [int(self._product([atom])) for atom in output.atoms if isinstance(atom, Fixed)]
        labels, fixed = iter(range(count)), iter(range(count, count + len(sizes)))
        order = [next(fixed if isinstance(atom, Fixed) else labels) for atom in output.atoms]
        sizes.append(output.channels)
        shape = ["*batch", *map(self.size, output.labels), *map(str, sizes)]
        return Piece(
            width,
            tuple(sizes),
            (*order, count + len(sizes) - 1),
            f"({', '.join(shape)})",
            self._stored(output).replace("*batch, ", "", 1),
        )

    def _unfold(self, name: str, text: str, tensor: Tensor) -> list[str]:
        stored, folded = _fixed_places(tensor.atoms)
        composite = len(tensor.atoms) != len(tensor.axes)
        runs = self._runs(tensor, together=True)
        steps = []
        if stored != folded:
            parts = sorted(runs or _apart(tensor.atoms), key=lambda run: isinstance(run[0], Fixed))
            if runs:
                stored, folded = _fixed_places([run[0] for run in runs])
            steps.append(f"{text}.reshape({self._split(tensor, parts)})")
            steps.append(self._dialect.move_axes(name, folded, stored))
        if runs or composite or (tensor.fixed and not steps):
            steps.append(f"{name if steps else text}.reshape({self._stored(tensor)})")
        return [f"{name} = {step}" for step in steps]

    def _runs(self, tensor: Tensor, *, together: bool) -> list[Sequence[Atom]]:
        """Atoms that move as one: fixed ones beside each other, and `together` others too.

        None where all move alone, or the dialect has no use for it.
        """
        stored, folded = _fixed_places(tensor.atoms)
        if stored == folded or not self._dialect.moves_together:
            return []
        runs: list[Sequence[Atom]] = []
        for fixed, run in groupby(tensor.atoms, lambda atom: isinstance(atom, Fixed)):
            atoms = tuple(run)
            runs += [atoms] if fixed or together else _apart(atoms)
        return runs if len(runs) < len(tensor.atoms) else []

    def _split(self, tensor: Tensor, runs: Sequence[Sequence[Atom]]) -> str:
        """The shape with an axis for every run of atoms, the parts of composite axes."""
        sizes = [self._product(run) for run in runs]
        return f"({', '.join(['*batch', *sizes, str(tensor.channels)])})"


def one_move(source: Sequence[int], target: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """The same rearrangement of the last axes as the move of a single one, if it is one.

    >>> one_move((-1, -3, -2), (-3, -2, -1))
    ((-1,), (-3,))
    """
    places = sorted(target)
    moved = dict(zip(target, source, strict=True))
    wanted = [moved[place] for place in places]
    # Moves of the channels last and by short ways first, so that neighbours read as a swap.
    for first in places:
        for last in places:
            trial = [place for place in places if place != first]
            trial.insert(places.index(last), first)
            if trial == wanted and first != last:
                return (first,), (last,)
    return tuple(source), tuple(target)


def wrapped(items: Sequence[str], *, bare: bool = False, width: int = _LINE - 20) -> str:
    """Comma-separated items in parentheses, over several lines where one would be too long.

    Args:
        bare: leave the parentheses out where neither length nor a lone item calls for them.
        width: longest text kept in one line.
    """
    text = ", ".join(items)
    if len(text) <= width:
        if len(items) == 1:
            return f"({text},)"
        return text if bare else f"({text})"
    lines, line = [], ""
    for item in items:
        if line and len(line) + len(item) + 2 > _LINE - 4:
            lines.append(line)
            line = ""
        line += f"{item}, "
    lines.append(line)
    return "(\n" + "\n".join(f"    {line.rstrip()}" for line in lines) + "\n)"


def _literal(items: Sequence[str], ends: str) -> str:
    """A dict or list literal, over several lines where one would be too long."""
    text = ends[0] + ", ".join(items) + ends[1]
    if len(text) <= _LINE - 10 and "\n" not in text:
        return text
    inner = "".join(textwrap.indent(f"{item},\n", "    ") for item in items)
    return f"{ends[0]}\n{inner}{ends[1]}"


def _short_names(tensors: Sequence[Tensor]) -> list[str]:
    """Paths joined, without the outer containers that all of them share."""
    paths = [tensor.path for tensor in tensors]
    shared = 0
    while len(paths) > 1 and all(
        len(path) > shared + 1 and path[shared] == paths[0][shared] for path in paths
    ):
        shared += 1
    return ["_".join(map(str, path[shared:])) or "x" for path in paths]


def _channels_apart(tensor: Tensor) -> int:
    """How many axes the channels of a tensor are before they are joined; 1 if that is no copy."""
    stored, folded = _fixed_places(tensor.atoms)
    return 1 if stored == folded else 1 + len(stored)


def _apart(atoms: Sequence[Atom]) -> list[Sequence[Atom]]:
    """Every atom alone."""
    return [(atom,) for atom in atoms]


def _fixed_places(atoms: Sequence[Atom]) -> tuple[list[int], list[int]]:
    """Where the fixed axes are stored, and where they stand once next to the channels."""
    order = len(atoms)
    stored = [k - order - 1 for k, atom in enumerate(atoms) if isinstance(atom, Fixed)]
    return stored, list(range(-1 - len(stored), -1))
