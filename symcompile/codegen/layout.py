"""Reading tensors in and writing tensors out: names, sizes, checks, folds.

In: a `Compiled` and a `Dialect`. Out: the statements before and after the computation. Composite
axes are split and fixed axes folded into the channels on the way in; the reverse on the way out.
"""

from __future__ import annotations

from collections.abc import Sequence

from symcompile.codegen.compiled import Compiled
from symcompile.codegen.dialect import Dialect
from symcompile.ir import Tensor
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

__all__ = ["Layout", "wrapped"]

_LINE = 88


class Layout:
    """Names of tensors and sizes, and the statements that move between stored and folded form."""

    def __init__(self, compiled: Compiled, dialect: Dialect, namer: Namer) -> None:
        self._compiled = compiled
        self._dialect = dialect
        self._known = dict(compiled.program.sizes)
        self.inputs = [namer(name, "x") for name in _short_names(compiled.program.inputs)]
        self.outputs = [namer(f"out_{name}") for name in _short_names(compiled.program.outputs)]
        labels = dict.fromkeys((*compiled.spec.labels, *compiled.out_spec.labels))
        self._sizes = {label: namer(f"n_{label}", "n") for label in labels}

    def size(self, label: Label) -> str:
        """A label's size: a literal where bound, else a name that `read` assigns."""
        return str(self._known[label]) if label in self._known else self._sizes[label]

    def shape(self, labels: Sequence[Label], width: int, *, batched: bool = True) -> str:
        """The full shape of a value, as a tuple expression."""
        parts = [*(["*batch"] if batched else []), *map(self.size, labels), str(width)]
        return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"

    def read(self) -> list[str]:
        """From `leaves`, a list of tensors, to checked, folded values of one dtype."""
        tensors = self._compiled.program.inputs
        lines = [f"{wrapped(self.inputs)} = leaves"]
        lines.append(f"batch = tuple({self.inputs[0]}.shape[: -{len(tensors[0].axes) + 1}])")
        for label, source in size_sources(self._compiled.spec):
            if label in self._known or isinstance(source, int):
                continue
            leaf, axis, others = source
            text = f"{self.inputs[leaf]}.shape[{axis - len(tensors[leaf].axes) - 1}]"
            if others:
                text += f" // {self._product(others)}"
            lines.append(f"{self._sizes[label]} = {text}")
        for index, (name, tensor) in enumerate(zip(self.inputs, tensors, strict=True)):
            sizes = [self._product(axis_atoms(axis)) for axis in tensor.axes]
            shape = ", ".join(["*batch", *sizes, str(tensor.channels)])
            lines.append(f"_check({index}, {name}, ({shape}))")
        for name, tensor in zip(self.inputs, tensors, strict=True):
            folded = self._fold(name, tensor)
            if folded != name:
                lines.append(f"{name} = {folded}")
        return lines

    def write(self, text: str, tensor: int) -> str:
        """Statement that assigns output number `tensor` from its folded value."""
        return (
            f"{self.outputs[tensor]} = {self._unfold(text, self._compiled.program.outputs[tensor])}"
        )

    def result(self) -> str:
        """The output tree as a literal over output names."""

        def tree(node: Node) -> str:
            if isinstance(node, LeafNode):
                return self.outputs[node.index]
            if isinstance(node, DictNode):
                return f"{{{', '.join(f'{key!r}: {tree(child)}' for key, child in node.items)}}}"
            return f"[{', '.join(map(tree, node.items))}]"

        return tree(self._compiled.out_spec.structure)

    def _product(self, atoms: Sequence[Atom]) -> str:
        sizes = [str(a.size) if isinstance(a, Fixed) else self.size(a.label) for a in atoms]
        return sizes[0] if len(sizes) == 1 else f"({' * '.join(sizes)})"

    def _stored(self, tensor: Tensor) -> str:
        sizes = [self._product(axis_atoms(axis)) for axis in tensor.axes]
        return f"({', '.join(['*batch', *sizes, str(tensor.channels)])})"

    def _fold(self, text: str, tensor: Tensor) -> str:
        if len(tensor.atoms) != len(tensor.axes):
            sizes = [self._product((atom,)) for atom in tensor.atoms]
            text = f"{text}.reshape(({', '.join(['*batch', *sizes, str(tensor.channels)])}))"
        if tensor.fixed:
            stored, folded = _fixed_places(tensor)
            if stored != folded:
                text = self._dialect.move_axes(text, stored, folded)
            text = f"{text}.reshape({self.shape(tensor.labels, tensor.width)})"
        return text

    def _unfold(self, text: str, tensor: Tensor) -> str:
        if tensor.fixed:
            sizes = [*map(self.size, tensor.labels), *map(str, tensor.fixed)]
            text = f"{text}.reshape(({', '.join(['*batch', *sizes, str(tensor.channels)])}))"
            stored, folded = _fixed_places(tensor)
            if stored != folded:
                text = self._dialect.move_axes(text, folded, stored)
        if len(tensor.atoms) != len(tensor.axes):
            text = f"{text}.reshape({self._stored(tensor)})"
        return text


def wrapped(items: Sequence[str], *, margin: int = 4) -> str:
    """Comma-separated items in parentheses, over several lines where one would be too long."""
    text = f"({', '.join(items)}{',' if len(items) == 1 else ''})"
    if len(text) <= _LINE - 20:
        return text
    lines, line = [], ""
    for item in items:
        if line and len(line) + len(item) + 2 > _LINE - margin:
            lines.append(line)
            line = ""
        line += f"{item}, "
    lines.append(line)
    return "(\n" + "\n".join(f"    {line.rstrip()}" for line in lines) + "\n)"


def _short_names(tensors: Sequence[Tensor]) -> list[str]:
    """Paths joined, without the outer containers that all of them share."""
    paths = [tensor.path for tensor in tensors]
    shared = 0
    while len(paths) > 1 and all(
        len(path) > shared + 1 and path[shared] == paths[0][shared] for path in paths
    ):
        shared += 1
    return ["_".join(map(str, path[shared:])) or "x" for path in paths]


def _fixed_places(tensor: Tensor) -> tuple[list[int], list[int]]:
    """Where the fixed axes are stored, and where they stand once next to the channels."""
    order = len(tensor.atoms)
    stored = [k - order - 1 for k, atom in enumerate(tensor.atoms) if isinstance(atom, Fixed)]
    return stored, list(range(-1 - len(stored), -1))
