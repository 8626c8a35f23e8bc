"""Programs as text, and back.

In: a Program. Out: one op per line with its shape and size; the text parses back to an equal
Program. Comments carry what is derived, so the parser ignores them. Only literals are read: the
parser never evaluates anything.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import astuple, fields
from math import prod
from typing import Any

from symcompile.errors import ProgramError
from symcompile.ir.filled import Block, Filled
from symcompile.ir.ops import OPS, Op
from symcompile.ir.program import Program, types_of
from symcompile.ir.types import Tensor, Type
from symcompile.spec import Axis, Composite, Fixed, Label, Perm

__all__ = ["format_axes", "format_type", "parse_program", "print_program"]


def print_program(program: Program) -> str:
    """The program's text: a header of tensors and weights, then one op per line."""
    facts = [f"{name}={getattr(program, name)!r}" for name in ("reduce", "sizes", "in_place")]
    lines = [f"program({', '.join(facts)})"]
    for kind, tensors in (("input", program.inputs), ("output", program.outputs)):
        lines += [
            f"{kind}(path={t.path!r}, axes={_axes_literal(t.axes)!r}, channels={t.channels!r})"
            for t in tensors
        ]
    lines += [f"weight(name={name!r}, shape={shape!r})" for name, shape in program.weights]
    lines += [
        f"filled(name={m.name!r}, shape={m.shape!r}, blocks={tuple(map(astuple, m.blocks))!r})"
        for m in program.filled
    ]
    sizes = dict(program.sizes)
    body = [
        (f"v{number} = {_op_text(op)}", format_type(kind, sizes))
        for number, (op, kind) in enumerate(zip(program.ops, types_of(program), strict=True))
    ]
    margin = min(max((len(text) for text, _ in body), default=0), 72)
    lines += [f"{text:<{margin}}  # {note}" for text, note in body]
    return "\n".join(lines) + "\n"


def parse_program(text: str) -> Program:
    """Read what `print_program` wrote.

    Raises:
        ProgramError: naming the line that does not parse.
    """
    header: dict[str, Any] = {}
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    weights: list[tuple[str, tuple[int, ...]]] = []
    filled: list[Filled] = []
    ops: list[Op] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            target, name, args, values = _statement(line)
            if target is not None:
                if target != f"v{len(ops)}":
                    raise ValueError(f"expected v{len(ops)}, found {target}")
                ops.append(OPS[name](args, **values))
            elif name == "program":
                header = {
                    "reduce": str(values["reduce"]),
                    "sizes": tuple(values["sizes"]),
                    "in_place": bool(values.get("in_place", False)),
                }
            elif name == "weight":
                weights.append((str(values["name"]), tuple(values["shape"])))
            elif name == "filled":
                blocks = tuple(Block(*block) for block in values["blocks"])
                filled.append(Filled(str(values["name"]), tuple(values["shape"]), blocks))
            else:
                tensors = {"input": inputs, "output": outputs}[name]
                axes = _axes_of(values["axes"])
                tensors.append(Tensor(tuple(values["path"]), axes, int(values["channels"])))
        except (SyntaxError, ValueError, KeyError, TypeError, MemoryError, RecursionError) as error:
            # The last two are what Python's own parser says to nesting too deep for it.
            raise ProgramError(
                f"line {number} is not a line of a program: {error or type(error).__name__}"
            ) from None
    return Program(
        tuple(ops),
        tuple(inputs),
        tuple(outputs),
        tuple(weights),
        header.get("sizes", ()),
        header.get("reduce", "mean"),
        header.get("in_place", False),
        tuple(filled),
    )


def format_type(kind: Type, sizes: Mapping[Label, int]) -> str:
    """A type's shape and element count, symbolic where sizes are unknown.

    >>> format_type(Type((0, 1), 16), {0: 784})
    '(0, 1) x 16 = 12544*n[1]'
    """
    known = prod(sizes.get(label, 1) for label in kind.labels) * kind.width
    unknown = [f"n[{label!r}]" for label in kind.labels if label not in sizes]
    count = "*".join(([str(known)] if known > 1 or not unknown else []) + unknown)
    batch = "" if kind.batched else ", no batch"
    return f"{kind.labels!r} x {kind.width} = {count}{batch}"


def format_axes(axes: tuple[Axis, ...]) -> str:
    """Axes as they read in a perm_spec, with fixed sizes in braces: `(0, {9}, ('h', 'w'))`."""

    def one(axis: Axis) -> str:
        match axis:
            case Perm(label=label):
                return repr(label)
            case Fixed(size=size):
                return f"{{{size}}}"
            case Composite(parts=parts):
                return f"({', '.join(map(one, parts))})"

    return f"({', '.join(map(one, axes))}{',' if len(axes) == 1 else ''})"


def _op_text(op: Op) -> str:
    parts = [f"v{arg}" for arg in op.args]
    parts += [f"{f.name}={getattr(op, f.name)!r}" for f in fields(op) if f.name != "args"]
    return f"{type(op).__name__.lower()}({', '.join(parts)})"


def _axes_literal(axes: tuple[Axis, ...]) -> tuple[object, ...]:
    def one(axis: Axis) -> object:
        match axis:
            case Perm(label=label):
                return label
            case Fixed(size=size):
                return {"fixed": size}
            case Composite(parts=parts):
                return tuple(map(one, parts))

    return tuple(map(one, axes))


def _axes_of(literal: Any) -> tuple[Axis, ...]:
    def one(item: Any) -> Axis:
        match item:
            case {"fixed": size}:
                return Fixed(size)
            case tuple():
                parts = tuple(map(one, item))
                if any(isinstance(part, Composite) for part in parts):
                    raise ValueError("composite axes do not nest")
                return Composite(parts)  # type: ignore[arg-type]
            case bool():
                raise ValueError(f"{item!r} is not a label")
            case int() | str():
                return Perm(item)
        raise ValueError(f"{item!r} is not an axis")

    return tuple(map(one, literal))


def _statement(line: str) -> tuple[str | None, str, tuple[int, ...], dict[str, Any]]:
    """Split `target = name(v0, v1, key=literal)` without evaluating anything."""
    (node,) = ast.parse(line.strip()).body
    target = None
    match node:
        case ast.Assign(targets=[ast.Name() as name], value=call):
            target = name.id
        case ast.Expr(value=call):
            pass
        case _:
            raise ValueError("expected a call or an assignment")
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise ValueError("expected a call by name")
    args = []
    for arg in call.args:
        if not isinstance(arg, ast.Name) or not arg.id.startswith("v"):
            raise ValueError("operands are v0, v1, …")
        args.append(int(arg.id[1:]))
    values = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    return target, call.func.id, tuple(args), values
