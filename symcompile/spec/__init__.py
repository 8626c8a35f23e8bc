"""perm_spec → `PermSpec`: parse, validate, bind sizes, load and dump JSON and YAML."""

from symcompile.spec.bind import SizeSource, bind_specs, require_derivable, size_sources
from symcompile.spec.channels import resolve_channels
from symcompile.spec.files import SpecFormat, dump_spec, dumps_spec, load_spec, loads_spec
from symcompile.spec.parse import parse_spec
from symcompile.spec.read import TreeReader
from symcompile.spec.trees import flatten_like, lookup, unflatten
from symcompile.spec.types import (
    Atom,
    Axis,
    Composite,
    DictNode,
    Fixed,
    Label,
    Leaf,
    LeafNode,
    ListNode,
    Node,
    Path,
    Perm,
    PermSpec,
    axis_atoms,
    format_axis,
    format_label,
    format_path,
    format_place,
    label_order,
)

__all__ = [
    "Atom",
    "Axis",
    "Composite",
    "DictNode",
    "Fixed",
    "Label",
    "Leaf",
    "LeafNode",
    "ListNode",
    "Node",
    "Path",
    "Perm",
    "PermSpec",
    "SizeSource",
    "SpecFormat",
    "TreeReader",
    "axis_atoms",
    "bind_specs",
    "dump_spec",
    "dumps_spec",
    "flatten_like",
    "format_axis",
    "format_label",
    "format_path",
    "format_place",
    "label_order",
    "load_spec",
    "loads_spec",
    "lookup",
    "parse_spec",
    "require_derivable",
    "resolve_channels",
    "size_sources",
    "unflatten",
]
