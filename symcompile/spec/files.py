"""perm_specs in files: JSON and YAML, read and written.

In: text in which containers are mappings, a list is a leaf, null or `{fixed: 9}` is a fixed axis,
and a list inside a leaf is a composite axis.
Out: a `PermSpec`, or from one such text; dumping and loading gives the same spec back.
The one thing to know: a file is untrusted. YAML is only composed into nodes, never constructed
into objects; duplicate keys are refused; aliases are counted before they are expanded. A Python
list, which mappings cannot stand for, is written `{$list: [child, ...]}`, and a mapping whose only
key is itself `$list` gets one more `$`.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, Literal, Protocol, TypeAlias

from symcompile.errors import SpecError
from symcompile.files import write_atomically
from symcompile.spec.parse import MAX_DEPTH, parse_spec
from symcompile.spec.types import (
    Axis,
    DictNode,
    Fixed,
    LeafNode,
    Node,
    Path,
    Perm,
    PermSpec,
    format_label,
    format_path,
    short_repr,
)

__all__ = ["SpecFormat", "dump_spec", "dumps_spec", "load_spec", "loads_spec"]

SpecFormat: TypeAlias = Literal["json", "yaml"]

MAX_REPEATED = 100_000
"""YAML nodes that aliases may add by repeating others; a few lines can ask for billions."""

_SUFFIXES: dict[str, SpecFormat] = {".json": "json", ".yaml": "yaml", ".yml": "yaml"}
_ESCAPED_LIST = re.compile(r"\$+list", re.ASCII)
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*)", re.ASCII)


class _Readable(Protocol):
    def read(self) -> str | bytes: ...


@dataclass(frozen=True, slots=True)
class _Map:
    """A mapping as written: pairs in order, duplicates kept; `where` is its line if known."""

    pairs: tuple[tuple[Any, Any], ...]
    where: str = ""


def load_spec(path_or_file: str | os.PathLike[str] | _Readable) -> PermSpec:
    """The `PermSpec` in a file, JSON or YAML by its suffix (.json, .yaml, .yml).

    Takes a path, or an open file that has a name. Raises `SpecError`, naming the file, when it
    cannot be read, has another suffix, or holds no valid spec.

    >>> import io
    >>> file = io.StringIO('{"kernel": ["in", "out"], "bias": ["out"]}')
    >>> file.name = "dense.json"
    >>> load_spec(file).to_python()
    {'kernel': ('in', 'out'), 'bias': ('out',)}
    """
    if isinstance(path_or_file, str | os.PathLike):
        name = os.fspath(path_or_file)
        read: Callable[[], str | bytes] = FilePath(name).read_bytes
    else:
        name = str(getattr(path_or_file, "name", ""))
        read = path_or_file.read
    format_ = _format_of(name)
    try:
        text = read()
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    except OSError as error:
        raise SpecError(
            f"{name}: cannot be read ({error.strerror or error}); give the path of a spec file"
        ) from error
    except UnicodeDecodeError as error:
        raise SpecError(
            f"{name}: byte {error.start} is not UTF-8 text; save the file as UTF-8"
        ) from None
    return _loads(text, format_, name)


def loads_spec(text: str, format: SpecFormat) -> PermSpec:
    """The `PermSpec` written in a text, `format` "json" or "yaml".

    Raises `SpecError` for a syntax error (with line and column), a duplicate key, or a bad spec.

    >>> loads_spec("{kernel: [in, out], bias: [out]}", "yaml").to_python()
    {'kernel': ('in', 'out'), 'bias': ('out',)}
    """
    return _loads(text, format, "the text")


def dumps_spec(spec: object, format: SpecFormat = "json") -> str:
    """A spec as JSON or YAML text that `loads_spec` reads back to an equal spec, sizes aside.

    Raises `SpecError` for int keys in JSON, which has none.

    >>> print(dumps_spec({"kernel": (0, None), "bias": (0,)}), end="")
    {
      "kernel": [0, null],
      "bias": [0]
    }
    """
    parsed = parse_spec(spec)
    if _checked_format(format) == "json":
        return _json_text(_to_file(parsed.structure, parsed, ()), "") + "\n"
    import yaml

    tree = _to_file(parsed.structure, parsed, None)
    # ASCII only: PyYAML writes some line breaks of Unicode (U+0085) as they are, then folds them.
    text: str = yaml.safe_dump(
        tree, sort_keys=False, default_flow_style=None, allow_unicode=False, width=float("inf")
    )
    return text


def dump_spec(spec: object, path: str | os.PathLike[str]) -> None:
    """Write a spec to a file, JSON or YAML by its suffix; all of it, or nothing.

    Raises `SpecError` for another suffix or for int keys in JSON, `ExportError` when the file
    cannot be written; what stood there before then still does.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dump_spec({"kernel": (0, 1), "bias": (1,)}, f"{folder}/dense.yaml")
    ...     load_spec(f"{folder}/dense.yaml").to_python()
    {'kernel': (0, 1), 'bias': (1,)}
    """
    text = dumps_spec(spec, _format_of(os.fspath(path)))
    write_atomically(FilePath(path), text)


def _format_of(name: str) -> SpecFormat:
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in _SUFFIXES:
        raise SpecError(
            f"{name or 'a file without a name'}: the suffix {suffix!r} is none of "
            f"{', '.join(_SUFFIXES)}; rename it, or call loads_spec(text, format)"
        )
    return _SUFFIXES[suffix]


def _checked_format(format_: str) -> SpecFormat:
    if format_ == "json":
        return "json"
    if format_ == "yaml":
        return "yaml"
    raise SpecError(f"format: found {short_repr(format_)}, expected 'json' or 'yaml'")


# --- text → spec ---------------------------------------------------------------------------------


def _loads(text: str, format_: SpecFormat, name: str) -> PermSpec:
    reader = _read_json if _checked_format(format_) == "json" else _read_yaml
    try:
        return parse_spec(_container(reader(text), ()))
    except RecursionError:
        raise SpecError(f"{name}: nested too deeply; at most {MAX_DEPTH} levels are read") from None
    except SpecError as error:
        raise SpecError(f"{name}: {error}") from None


def _read_json(text: str) -> Any:
    try:
        return json.loads(
            text, object_pairs_hook=lambda pairs: _Map(tuple(pairs)), parse_int=_bounded_int
        )
    except json.JSONDecodeError as error:
        raise SpecError(
            f"line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}"
        ) from None


def _bounded_int(digits: str) -> int:
    """Python reads no ints of thousands of digits; cut short they are still refused, in place."""
    return int(digits[: sys.int_info.str_digits_check_threshold])


def _read_yaml(text: str) -> Any:
    import yaml

    try:
        # Composing resolves aliases and guesses scalar tags, but constructs nothing.
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise SpecError(f"{place}not valid YAML: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        raise SpecError(
            f"line {line}, column {column}: not valid YAML: it holds a control character; write "
            "it as an escape in double quotes"
        ) from None
    except (ValueError, OverflowError):  # an escape such as "\UFFFFFFFF"
        raise SpecError("not valid YAML: an escape names no character") from None
    if root is None:
        return None
    sizes: dict[int, int] = {}
    repeated = _expanded(root, sizes, set()) - len(sizes)
    if repeated > MAX_REPEATED:
        raise SpecError(
            f"aliases repeat more than {MAX_REPEATED:,} nodes; give a smaller tree, or write it "
            "out without aliases"
        )
    return _from_yaml(root)


def _expanded(node: Any, sizes: dict[int, int], open_ids: set[int]) -> int:
    """How many nodes `node` expands to; an alias used twice counts twice but is walked once."""
    if id(node) in sizes:
        return sizes[id(node)]
    if id(node) in open_ids:
        raise SpecError(f"{_mark(node)}: an alias refers to what contains it; write a tree")
    open_ids.add(id(node))
    total = 1 + sum(_expanded(child, sizes, open_ids) for child in _children(node))
    open_ids.discard(id(node))
    sizes[id(node)] = total
    return total


def _children(node: Any) -> Iterator[Any]:
    if node.id == "sequence":
        yield from node.value
    elif node.id == "mapping":
        for pair in node.value:
            yield from pair


def _from_yaml(node: Any) -> Any:
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if node.id == "mapping" and kind == "map":
        pairs = tuple((_from_yaml(key), _from_yaml(value)) for key, value in node.value)
        return _Map(pairs, f"{_mark(node)}: ")
    if node.id == "sequence" and kind == "seq":
        return [_from_yaml(child) for child in node.value]
    if node.id == "scalar":
        if kind == "str":
            return node.value
        if kind == "null":
            return None
        if kind == "int" and _DECIMAL.fullmatch(node.value) and len(node.value) < 40:
            return int(node.value)
        text = format_label(node.value)
        if kind == "merge":
            raise SpecError(f"{_mark(node)}: merge keys (<<) are not supported; write them out")
        if kind in ("bool", "int", "float", "timestamp", "value"):
            raise SpecError(
                f"{_mark(node)}: YAML reads {text[1:-1]} as a {kind}, where a spec has plain "
                f"decimal ints and strings; to write a string put it in quotes: {text}"
            )
    raise SpecError(f"{_mark(node)}: the tag {format_label(node.tag)} is not allowed in a spec")


def _mark(node: Any) -> str:
    return f"line {node.start_mark.line + 1}, column {node.start_mark.column + 1}"


def _container(value: Any, path: Path) -> Any:
    """A value of the file at a place where the tree has a container or a leaf."""
    if len(path) > MAX_DEPTH:
        raise SpecError(f"nested more than {MAX_DEPTH} levels deep; flatten the mappings")
    if isinstance(value, list):
        return _leaf_axes(value, path)
    if not isinstance(value, _Map):
        raise SpecError(
            f"{format_path(path)}: found {short_repr(value)}, expected a mapping (a container) or "
            "a list of labels (a leaf), for example [0, 1]"
        )
    seen: dict[Any, Any] = {}
    for key, child in value.pairs:
        if isinstance(key, list | _Map):
            raise SpecError(
                f"{value.where}{format_path(path)}: found a key that is a list or a mapping; a "
                "key is a string or an int"
            )
        if key in seen:
            raise SpecError(
                f"{value.where}{format_path(path)}: the key {format_label(key)} appears twice; "
                "rename or remove one"
            )
        seen[key] = child
    if len(seen) == 1:
        key, child = next(iter(seen.items()))
        if key == "$list":
            if not isinstance(child, list):
                raise SpecError(
                    f"{format_path(path)}: $list takes a list of children, found {_shown(child)}"
                )
            return [_container(entry, (*path, index)) for index, entry in enumerate(child)]
        if isinstance(key, str) and _ESCAPED_LIST.fullmatch(key):
            return {key[1:]: _container(child, (*path, key[1:]))}
    return {key: _container(child, (*path, key)) for key, child in seen.items()}


def _leaf_axes(entries: list[Any], path: Path) -> tuple[Any, ...]:
    return tuple(_axis(entry, f"{format_path(path)}, axis {i}") for i, entry in enumerate(entries))


def _axis(entry: Any, where: str) -> Any:
    if isinstance(entry, list):
        return tuple(_axis(part, where) for part in entry)
    if not isinstance(entry, _Map):
        return entry
    if len(entry.pairs) == 1 and entry.pairs[0][0] == "fixed":
        size = entry.pairs[0][1]
        if size is None:
            raise SpecError(f"{where}: found {{fixed: null}}; write null for an axis of any size")
        try:
            return Fixed(size)
        except SpecError:
            raise SpecError(
                f"{where}: found {{fixed: ...}} with {_shown(size)}; it takes a positive int"
            ) from None
    raise SpecError(
        f"{where}: found a mapping with the keys "
        f"{', '.join(_key_text(key) for key, _ in entry.pairs[:4]) or 'none'}; inside a leaf only "
        "{fixed: n} is a mapping: write a list of containers as {$list: [...]}"
    )


def _key_text(key: Any) -> str:
    return format_label(key) if isinstance(key, int | str) else _shown(key)


def _shown(value: Any) -> str:
    """As `short_repr` says it, of mappings too."""
    return (
        f"a mapping of {len(value.pairs)} entries" if isinstance(value, _Map) else short_repr(value)
    )


# --- spec → text ---------------------------------------------------------------------------------


def _to_file(node: Node, spec: PermSpec, path: Path | None) -> Any:
    """Plain dicts and lists as the file holds them; a `path` means int keys must be refused."""
    if isinstance(node, LeafNode):
        return [_axis_to_file(axis) for axis in spec.leaves[node.index].axes]

    def below(key: int | str) -> Path | None:
        return None if path is None else (*path, key)

    if not isinstance(node, DictNode):
        children = enumerate(node.items)
        return {"$list": [_to_file(child, spec, below(i)) for i, child in children]}
    if path is not None:
        for key, _ in node.items:
            if isinstance(key, int):
                raise SpecError(
                    f"{format_path(path)}: the key {key} is an int, and JSON has string keys only; "
                    "use YAML (format='yaml', or the suffix .yaml)"
                )
    tree = {key: _to_file(child, spec, below(key)) for key, child in node.items}
    if len(tree) == 1:
        key, child = next(iter(tree.items()))
        if isinstance(key, str) and _ESCAPED_LIST.fullmatch(key):
            return {f"${key}": child}
    return tree


def _axis_to_file(axis: Axis) -> Any:
    if isinstance(axis, Perm):
        return axis.label
    if isinstance(axis, Fixed):
        return None if axis.size is None else {"fixed": axis.size}
    return [_axis_to_file(part) for part in axis.parts]


def _json_text(tree: Any, indent: str) -> str:
    """JSON with one leaf a line, which json.dumps(indent=2) would spread over many."""
    deeper = indent + "  "
    if isinstance(tree, dict) and tree:
        escaped = len(tree) == 1 and "$list" in tree
        lines = [
            f"{deeper}{json.dumps(key)}: "
            + (_json_list(child, deeper) if escaped else _json_text(child, deeper))
            for key, child in tree.items()
        ]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    return json.dumps(tree)


def _json_list(children: list[Any], indent: str) -> str:
    if not children:
        return "[]"
    deeper = indent + "  "
    lines = [deeper + _json_text(child, deeper) for child in children]
    return "[\n" + ",\n".join(lines) + f"\n{indent}]"
