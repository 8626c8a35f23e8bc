"""Claims about perm_specs in memory: parsing, printing, binding sizes, channels, tree walks."""

from __future__ import annotations

import collections
import copy
import os
import pickle
import subprocess
import sys
import types as pytypes
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from symcompile.errors import OptionError, ShapeError, SpecError
from symcompile.spec import (
    Composite,
    DictNode,
    Fixed,
    Leaf,
    LeafNode,
    ListNode,
    Perm,
    PermSpec,
    axis_atoms,
    bind_specs,
    flatten_like,
    format_axis,
    format_label,
    format_path,
    label_order,
    lookup,
    parse_spec,
    require_derivable,
    resolve_channels,
    size_sources,
    unflatten,
)
from symcompile.spec.parse import MAX_ATOMS, MAX_DEPTH
from tests.spec_strategies import nest, spec_trees

MLP = {
    "params": {
        "Dense_0": {"kernel": (0, 1), "bias": (1,)},
        "Dense_1": {"kernel": (1, 2), "bias": (2,)},
    }
}


def reversed_dicts(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: reversed_dicts(tree[key]) for key in reversed(tree)}
    return [reversed_dicts(child) for child in tree] if isinstance(tree, list) else tree


@given(spec_trees())
def test_parsing_and_printing_as_python_round_trips(tree: Any) -> None:
    spec = parse_spec(tree)
    assert spec.to_python() == tree
    assert parse_spec(spec.to_python()) == spec
    assert hash(parse_spec(tree)) == hash(spec)


@given(spec_trees())
def test_leaves_labels_and_digest_ignore_the_insertion_order_of_dicts(tree: Any) -> None:
    spec, other = parse_spec(tree), parse_spec(reversed_dicts(tree))
    assert other.leaves == spec.leaves
    assert other.labels == spec.labels
    assert other.digest == spec.digest


@given(spec_trees(), spec_trees())
def test_digests_agree_only_for_the_same_leaves(first: Any, second: Any) -> None:
    one, two = parse_spec(first), parse_spec(second)
    if one.leaves != two.leaves:
        assert one.digest != two.digest


@given(spec_trees())
def test_str_has_one_bounded_line_for_each_leaf(tree: Any) -> None:
    spec = parse_spec(tree)
    lines = str(spec).splitlines()
    assert len(lines) == 1 + len(spec.leaves)
    assert all(line.isprintable() for line in lines)
    assert all(len(line) < 10_000 for line in lines)


@given(spec_trees())
def test_unflatten_inverts_flatten_like(tree: Any) -> None:
    spec = parse_spec(tree)
    numbers = list(range(len(spec.leaves)))
    built = unflatten(spec, numbers)
    assert flatten_like(spec, built) == numbers
    assert [lookup(built, leaf.path) for leaf in spec.leaves] == numbers


# --- canonical order and data --------------------------------------------------------------------


def test_leaves_come_with_int_keys_first_then_strings_and_lists_in_order() -> None:
    spec = parse_spec({"b": (), 10: (), "a": [(), {2: (), 1: ()}], 9: ()})
    paths = [leaf.path for leaf in spec.leaves]
    assert paths == [(9,), (10,), ("a", 0), ("a", 1, 1), ("a", 1, 2), ("b",)]


def test_structure_keeps_the_order_the_user_wrote() -> None:
    spec = parse_spec({"b": (), "a": [()], "c": {}})
    assert spec.structure == DictNode(
        (("b", LeafNode(1)), ("a", ListNode((LeafNode(0),))), ("c", DictNode(())))
    )
    assert list(unflatten(spec, [1, 2])) == ["b", "a", "c"]


def test_labels_are_sorted_ints_first() -> None:
    assert parse_spec([("b", 10), (9, "a"), (-1,)]).labels == (-1, 9, 10, "a", "b")
    mixed: list[int | str] = ["10", 2, "1", 10]
    assert sorted(mixed, key=label_order) == [2, 10, "1", "10"]


def test_equality_tells_labels_kinds_and_containers_apart() -> None:
    trees: list[Any] = [
        (0,),
        ("0",),
        (None,),
        (Fixed(1),),
        ((0, 0),),
        (0, 0),
        [(0,)],
        {0: (0,)},
        {"0": (0,)},
        {0: (0,), 1: {}},
        {0: (0,), 1: []},
    ]
    specs = [parse_spec(tree) for tree in trees]
    assert len(set(specs)) == len(specs)
    assert len({spec.digest for spec in specs}) == len(specs)


def test_digest_covers_the_sizes() -> None:
    spec = parse_spec((0,))
    assert bind_specs(spec, None, sizes={0: 3})[0].digest != spec.digest


def test_digest_does_not_change_between_releases() -> None:
    assert parse_spec(MLP).digest == (
        "50e27a01bb7123b451cc2841dec0dea3b87cf18e98f0de4dc9f03e8864c1f85a"
    )


def test_a_leaf_knows_its_atoms_labels_and_fixed_parts() -> None:
    leaf = parse_spec((0, ("h", (Fixed(2), 0)), None)).leaves[0]
    assert leaf.axes == (Perm(0), Composite((Perm("h"), Fixed(2), Perm(0))), Fixed())
    assert leaf.atoms == (Perm(0), Perm("h"), Fixed(2), Perm(0), Fixed())
    assert leaf.labels == (0, "h", 0)
    assert leaf.fixed == (Fixed(2), Fixed())
    assert axis_atoms(leaf.axes[0]) == (Perm(0),)
    assert str(leaf) == "the root  (0, ('h', Fixed(2), 0), None)"


def test_size_returns_what_was_bound_or_none() -> None:
    spec, _ = bind_specs(parse_spec((0, "0x")), None, sizes={0: 4})
    assert (spec.size(0), spec.size("0x"), spec.size("0")) == (4, None, None)


def test_str_shows_the_sizes() -> None:
    spec, _ = bind_specs(parse_spec({"w": (0, "k")}), None, sizes={"k": 4, 0: 2})
    assert str(spec) == "PermSpec with 1 leaf, sizes {0: 2, 'k': 4}\n  ['w']  (0, 'k')"


def test_copies_share_the_spec() -> None:
    spec = parse_spec(nest(MAX_DEPTH))
    assert copy.copy(spec) is spec
    assert copy.deepcopy([spec])[0] is spec


def test_pickling_round_trips() -> None:
    spec = parse_spec(MLP)
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_format_path_quotes_truncates_and_names_the_root() -> None:
    assert format_path(()) == "the root"
    assert format_path(("a\nb", 3)) == r"['a\nb'][3]"
    shown = format_path(("x" * 10_000,))
    assert "10000 characters" in shown
    assert len(shown) < 120
    assert format_label(-1) == "-1"
    assert format_axis(Composite((Fixed(3), Perm("q")))) == "(Fixed(3), 'q')"


def test_importing_the_spec_package_is_light() -> None:
    heavy = "{'torch', 'jax', 'numpy', 'sympy', 'yaml', 'optree', 'networkx'}"
    code = f"import sys, symcompile.spec; sys.exit(str({heavy} & set(sys.modules)) != 'set()')"
    # A spec package that pulls a framework in does so in a fresh interpreter too.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


# --- what is accepted ----------------------------------------------------------------------------


class Box(collections.abc.Mapping[str, Any]):
    """A mapping that is no dict, as flax's FrozenDict is none."""

    def __init__(self, data: dict[str, Any]) -> None:
        self._data = data

    def __getitem__(self, key: str) -> Any:
        return self._data[key]

    def __iter__(self) -> Any:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)


@pytest.mark.parametrize(
    "wrap", [collections.OrderedDict, pytypes.MappingProxyType, Box, collections.defaultdict]
)
def test_any_mapping_is_a_container(wrap: Any) -> None:
    inner = {"w": (0, 1)}
    tree = wrap(None, inner) if wrap is collections.defaultdict else wrap(inner)
    assert parse_spec(tree) == parse_spec(inner)


def test_a_perm_spec_is_returned_as_it_is() -> None:
    spec = parse_spec(MLP)
    assert parse_spec(spec) is spec


def test_numpy_scalars_become_plain_ints_and_strings() -> None:
    raw = {np.int64(3): (np.int32(0), np.str_("a"), Fixed(np.int64(9)))}  # type: ignore[arg-type]
    spec = parse_spec(raw)
    assert spec == parse_spec({3: (0, "a", Fixed(9))})
    leaf = spec.leaves[0]
    assert [type(entry) for entry in (*leaf.path, *leaf.labels, leaf.fixed[0].size)] == [
        int,
        int,
        str,
        int,
    ]


def test_parsed_axes_are_accepted_in_a_spec() -> None:
    axes = (Perm(0), Composite((Perm(1), Fixed(2))), Fixed())
    assert parse_spec(axes).leaves == (Leaf((), axes),)


def test_a_composite_of_one_part_is_that_part() -> None:
    assert parse_spec(((0,), ((None,),))) == parse_spec((0, None))


def test_a_container_may_be_shared_between_places() -> None:
    block = {"w": (0, 1)}
    assert len(parse_spec({"a": block, "b": [block, block]}).leaves) == 3


def test_empty_containers_inside_a_spec_are_kept() -> None:
    tree = {"a": {}, "b": [[], (0,)]}
    assert parse_spec(tree).to_python() == tree


def test_the_deepest_allowed_tree_works_everywhere() -> None:
    spec = parse_spec(nest(MAX_DEPTH))
    assert spec.to_python() == nest(MAX_DEPTH)
    assert parse_spec(nest(MAX_DEPTH)) == spec
    assert hash(spec)
    assert len(spec.digest) == 64
    assert flatten_like(spec, unflatten(spec, [7])) == [7]


# --- what is refused -----------------------------------------------------------------------------


class Pair(NamedTuple):
    w: tuple[int, ...]
    b: tuple[int, ...]


def cycle() -> Any:
    tree: dict[str, Any] = {"a": (0,)}
    tree["b"] = [tree]
    return tree


def tuple_bomb() -> Any:
    bomb: Any = (0, 0)
    for _ in range(40):
        bomb = (bomb, bomb)
    return (bomb,)


def deep_tuple() -> Any:
    deep: Any = (0,)
    for _ in range(5_000):
        deep = (deep,)
    return deep


REFUSED: list[tuple[str, Any, list[str]]] = [
    ("empty dict", {}, ["no leaves", "tuple"]),
    ("nested empties", {"a": [], "b": {"c": {}}}, ["no leaves"]),
    ("string leaf", {"a": "ij"}, ["['a']", "'ij'", "write ('i', 'j')"]),
    ("one-letter string", {"a": "i"}, ["write ('i',)"]),
    ("list of labels", {"a": [0, 1]}, ["['a']", "write (0, 1)"]),
    ("list of one label", {"a": ["x"]}, ["write ('x',)"]),
    ("long list of labels", [0, None, "c", (1, 2), 4], ["write (0, None, 'c', (...), ...)"]),
    ("int leaf", {"a": 3}, ["['a']", "the int 3", "(0,)"]),
    ("None leaf", {"a": None}, ["['a']", "None"]),
    ("Fixed leaf", {"a": Fixed(3)}, ["['a']", "Fixed"]),
    ("array leaf", {"a": np.zeros(3)}, ["['a']", "array", "shapes="]),
    ("set leaf", {"a": {0, 1}}, ["['a']", "a set", "mappings and lists"]),
    ("PermSpec inside", {"a": parse_spec((0,))}, ["['a']", "to_python()"]),
    ("bool label", {"a": (0, True)}, ["['a'], axis 1", "True", "write 1"]),
    ("numpy bool label", {"a": (np.True_,)}, ["['a'], axis 0", "bool"]),
    ("float label", {"a": (1.0,)}, ["['a'], axis 0", "float 1.0", "int or a string"]),
    ("bytes label", {"a": (b"x",)}, ["['a'], axis 0", "bytes"]),
    ("list axis", {"a": ([0, 1],)}, ["['a'], axis 0", "tuple"]),
    ("mapping axis", {"a": ({"w": (0,)},)}, ["['a'], axis 0", "list"]),
    ("huge label", {"a": (10**5000,)}, ["['a'], axis 0", "2**63"]),
    ("huge negative label", {"a": (-(2**63),)}, ["2**63"]),
    ("surrogate label", {"a": ("\ud800",)}, ["['a'], axis 0", "surrogate"]),
    ("surrogate key", {"\ud800": (0,)}, ["the root", "surrogate"]),
    ("empty composite", {"a": (0, ())}, ["['a'], axis 1", "empty tuple", "Fixed(1)"]),
    ("empty inner composite", {"a": ((0, ()),)}, ["['a'], axis 0", "empty tuple"]),
    ("bool key", {"a": {True: (0,)}}, ["['a']", "True", "string"]),
    ("float key", {1.5: (0,)}, ["the root", "1.5"]),
    ("tuple key", {("a", "b"): (0,)}, ["the root", "tuple"]),
    ("huge key", {10**5000: (0,)}, ["the root", "2**63"]),
    ("alike keys", {"a": {0: (0,), "0": (0,)}}, ["['a']", "0 and '0'", "look alike"]),
    ("alike labels", {"a": (0,), "b": [("0",)]}, ["['a']", "['b'][0]", "'0'", "label 0"]),
    ("named tuple", {"a": Pair((0, 1), (1,))}, ["['a']", "Pair", "_asdict"]),
    ("named tuple axis", {"a": (Pair((0, 1), (1,)),)}, ["['a'], axis 0", "Pair"]),
    ("cycle", cycle(), ["['b'][0]", "contains itself"]),
    ("depth", nest(MAX_DEPTH + 1), ["200 levels", "flatten"]),
    ("deep tuple", deep_tuple(), ["nested more than", "flat tuple"]),
    ("tuple bomb", tuple_bomb(), [f"more than {MAX_ATOMS} axes"]),
    ("many axes", tuple(range(MAX_ATOMS + 1)), ["the root", f"more than {MAX_ATOMS} axes"]),
]


@pytest.mark.parametrize(("tree", "says"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_malformed_spec_is_refused_with_path_and_mend(tree: Any, says: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(tree)
    message = str(caught.value)
    assert all(part in message for part in says), message
    assert "\n" not in message
    assert len(message) < 600


def test_a_spec_of_too_many_leaves_or_containers_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("symcompile.spec.parse.MAX_LEAVES", 10)
    assert len(parse_spec([(0,)] * 10).leaves) == 10
    with pytest.raises(SpecError, match="more than 10 leaves"):
        parse_spec([(0,)] * 11)
    with pytest.raises(SpecError, match="more than 10 containers"):
        parse_spec([(0,), *([[]] * 10)])


def test_running_out_of_stack_is_a_spec_error() -> None:
    def call_deep(frames: int) -> PermSpec:
        return call_deep(frames - 1) if frames else parse_spec(nest(MAX_DEPTH))

    depth = len(_frames())
    with pytest.raises(SpecError, match="Python stack"):
        call_deep(sys.getrecursionlimit() - depth - 150)


def _frames() -> list[Any]:
    frame: Any = sys._getframe()
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


@pytest.mark.parametrize(
    "size", [0, -1, True, 1.0, "9", 2**63, pytest.param(10**5000, id="huge"), [9]]
)
def test_fixed_takes_a_positive_int_only(size: Any) -> None:
    with pytest.raises(SpecError, match=r"positive int.*Fixed\(9\)"):
        Fixed(size)


@pytest.mark.parametrize("label", [True, 1.0, None, (0,)])
def test_perm_takes_an_int_or_a_string_only(label: Any) -> None:
    with pytest.raises(SpecError, match="int or a string"):
        Perm(label)


def test_a_composite_needs_a_part() -> None:
    with pytest.raises(SpecError, match="at least one part"):
        Composite(())


# --- walking trees -------------------------------------------------------------------------------

SPEC = parse_spec({"w": (0, 1), "list": [(0,), (1,)], "ints": {0: (0,), 1: (1,)}})


@pytest.mark.parametrize(
    "tree",
    [
        {"w": 5, "list": [3, 4], "ints": {0: 1, 1: 2}},
        {"ints": {1: 2, 0: 1}, "list": (3, 4), "w": 5},
        {"w": 5, "list": {0: 3, 1: 4}, "ints": [1, 2]},
        Box({"w": 5, "list": collections.OrderedDict({1: 4, 0: 3}), "ints": (1, 2)}),
        {"w": 5, "list": collections.UserList([3, 4]), "ints": {0: 1, 1: 2}},
        {"w": 5, "list": Pair(3, 4), "ints": {0: 1, 1: 2}},  # type: ignore[arg-type]
    ],
)
def test_flatten_like_accepts_any_container_with_the_same_paths(tree: Any) -> None:
    assert flatten_like(SPEC, tree) == [1, 2, 3, 4, 5]
    assert lookup(tree, ("list", 1)) == 4


def test_flatten_like_takes_containers_that_only_have_keys_and_brackets() -> None:
    class Bag:
        def keys(self) -> list[str]:
            return ["w"]

        def __getitem__(self, key: str) -> int:
            return {"w": 5}[key]

    assert flatten_like(parse_spec({"w": (0,)}), Bag()) == [5]


def test_torch_and_flax_containers_are_walked() -> None:
    torch = pytest.importorskip("torch")
    weight, bias = torch.zeros(2, 3), torch.zeros(3)
    spec = parse_spec({"w": (0, 1), "b": [(1,)]})
    parameters = torch.nn.ParameterDict({"w": weight, "b": torch.nn.ParameterList([bias])})
    found = flatten_like(spec, parameters)
    assert [tuple(leaf.shape) for leaf in found] == [(3,), (2, 3)]


def test_flax_frozen_dicts_are_specs_and_trees() -> None:
    core = pytest.importorskip("flax.core")
    assert parse_spec(core.freeze(MLP)) == parse_spec(MLP)
    assert flatten_like(parse_spec({"a": {"b": (0,)}}), core.freeze({"a": {"b": 5}})) == [5]


def test_leaves_may_be_tuples_and_dicts_since_the_spec_says_where_they_are() -> None:
    spec = parse_spec({"a": (0,), "b": ()})
    assert flatten_like(spec, {"a": (1, 2), "b": {"c": 3}}) == [(1, 2), {"c": 3}]
    assert flatten_like(parse_spec((0,)), [1, 2]) == [[1, 2]]


WRONG_TREES: list[tuple[Any, list[str]]] = [
    ({"list": [3, 4], "ints": [1, 2]}, ["x, at the root", "missing 'w'"]),
    ({"w": 5, "list": [3, 4], "ints": [1, 2], "v": 0}, ["extra 'v'", "expected the entries 'w'"]),
    ({"W": 5, "list": [3, 4], "ints": [1, 2]}, ["missing 'w' and extra 'W'"]),
    ({"w": 5, "list": [3], "ints": [1, 2]}, ["x['list']", "missing 1"]),
    ({"w": 5, "list": [3, 4, 5], "ints": [1, 2]}, ["x['list']", "extra 2"]),
    ({"w": 5, "list": {"0": 3, "1": 4}, "ints": [1, 2]}, ["x['list']", "missing 0, 1", "'0', '1'"]),
    ({"w": 5, "list": [3, 4], "ints": np.zeros(2)}, ["x['ints']", "ndarray", "container"]),
    ({"w": 5, "list": [3, 4], "ints": "ab"}, ["x['ints']", "string 'ab'", "container"]),
    ({"w": 5, "list": [3, 4], "ints": None}, ["x['ints']", "None", "container"]),
    ([5, [3, 4], [1, 2]], ["x, at the root", "missing 'w', 'list', 'ints' and extra 0, 1, 2"]),
    ({**dict.fromkeys(range(20)), None: 1}, ["extra 0, 1", "(21 in all)"]),
]


@pytest.mark.parametrize(("tree", "says"), WRONG_TREES)
def test_missing_and_extra_entries_are_named(tree: Any, says: list[str]) -> None:
    with pytest.raises(ShapeError) as caught:
        flatten_like(SPEC, tree)
    assert all(part in str(caught.value) for part in says), str(caught.value)


def test_a_missing_key_of_a_defaultdict_is_missing_and_not_made() -> None:
    tree: Any = collections.defaultdict(int, {"list": [3, 4], "ints": [1, 2]})
    with pytest.raises(ShapeError, match="missing 'w'"):
        flatten_like(SPEC, tree)
    assert "w" not in tree


def test_lookup_names_the_first_missing_key() -> None:
    with pytest.raises(ShapeError, match=r"\['a'\]\[1\].*missing 'c'"):
        lookup({"a": [0, {"b": 1}]}, ("a", 1, "c"))
    with pytest.raises(ShapeError, match=r"missing -1"):
        lookup([0, 1], (-1,))


def test_unflatten_wants_one_leaf_each() -> None:
    with pytest.raises(ShapeError, match="5 leaves, found 4"):
        unflatten(SPEC, [1, 2, 3, 4])


# --- channels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [7, np.int32(7)])
def test_one_channel_count_serves_all_leaves(channels: Any) -> None:
    assert resolve_channels(SPEC, channels, "in_channels") == (7,) * 5


def test_a_tree_of_channels_is_read_in_canonical_order() -> None:
    tree = {"w": 5, "list": [3, 4], "ints": {0: 1, 1: 2}}
    assert resolve_channels(SPEC, tree, "out_channels") == (1, 2, 3, 4, 5)
    assert resolve_channels(parse_spec((0,)), 2, "out_channels") == (2,)


@pytest.mark.parametrize("channels", [0, -1, True, 1.0, "3", None, 2**63])
def test_channels_are_positive_ints(channels: Any) -> None:
    with pytest.raises(OptionError, match=r"in_channels: found .* expected a positive int"):
        resolve_channels(SPEC, channels, "in_channels")
    tree = {"w": channels, "list": [3, 4], "ints": {0: 1, 1: 2}}
    with pytest.raises(OptionError, match=r"in_channels, \['w'\]: found"):
        resolve_channels(SPEC, tree, "in_channels")


def test_missing_and_extra_channels_are_named() -> None:
    with pytest.raises(ShapeError, match=r"out_channels, at the root: missing 'ints', 'list'|'w'"):
        resolve_channels(SPEC, {"list": [1, 1], "ints": [1, 1]}, "out_channels")
    with pytest.raises(ShapeError, match=r"out_channels\['list'\]: extra 2"):
        resolve_channels(SPEC, {"w": 1, "list": [1, 1, 1], "ints": [1, 1]}, "out_channels")


# --- binding sizes -------------------------------------------------------------------------------


def bind(tree: Any, shapes: Any = None, sizes: Any = None) -> PermSpec:
    return bind_specs(parse_spec(tree), None, shapes, None, sizes)[0]


def test_shapes_bind_labels_and_fixed_axes() -> None:
    tree = {"w": (0, None, "k"), "b": [("k",)]}
    expected = parse_spec({"w": (0, Fixed(9), "k"), "b": [("k",)]})
    for shapes in (
        {"w": (4, 9, 5), "b": [(5,)]},
        {"w": [4, 9, 5], "b": ([5],)},
        {"w": np.zeros((4, 9, 5)), "b": [np.zeros(5)]},
    ):
        spec = bind(tree, shapes)
        assert spec.leaves == expected.leaves
        assert spec.sizes == ((0, 4), ("k", 5))
        assert spec.structure == parse_spec(tree).structure


def test_without_an_out_spec_the_same_object_comes_back_twice() -> None:
    first, second = bind_specs(parse_spec(MLP), None, sizes={0: 3})
    assert first is second


def test_nothing_given_leaves_sizes_unknown() -> None:
    assert bind_specs(parse_spec(MLP), None)[0] == parse_spec(MLP)


def test_both_specs_carry_the_same_sizes() -> None:
    spec, out = bind_specs(
        parse_spec((0, None)), parse_spec({"y": ("new", 0, None)}), (3, 4), {"y": (7, 3, 5)}
    )
    assert spec.sizes == out.sizes == ((0, 3), ("new", 7))
    assert spec.leaves[0].axes == (Perm(0), Fixed(4))
    assert out.leaves[0].axes == (Perm("new"), Perm(0), Fixed(5))


def test_out_shapes_alone_bind_a_spec_without_out_spec() -> None:
    spec, _ = bind_specs(parse_spec((0, None)), None, None, (3, 4))
    assert spec.leaves[0].axes == (Perm(0), Fixed(4))


def test_binding_again_keeps_earlier_sizes() -> None:
    spec = bind((0, 1), sizes={0: 3})
    assert bind_specs(spec, None, sizes={1: 4})[0].sizes == ((0, 3), (1, 4))
    assert bind_specs(spec, parse_spec(()), sizes={0: 3})[1].sizes == ((0, 3),)
    with pytest.raises(ShapeError, match="size 3 by the bound spec but 5 by sizes="):
        bind_specs(spec, None, sizes={0: 5})
    with pytest.raises(ShapeError, match="label 0 has size 3 by the bound spec"):
        bind_specs(spec, None, shapes=(5, 1))


def test_a_bound_spec_sheds_sizes_that_no_leaf_uses() -> None:
    spec, _ = bind_specs(parse_spec((0,)), parse_spec((1,)), sizes={0: 2, 1: 3})
    assert spec.sizes == ((0, 2), (1, 3))
    assert bind_specs(spec, None)[0].sizes == ((0, 2),)


def test_one_unknown_part_of_a_composite_axis_is_solved() -> None:
    spec = bind([(("h", "d"), ("h", None, Fixed(2)))], [(12, 24)], {"h": 4})
    assert spec.sizes == (("d", 3), ("h", 4))
    assert spec.leaves[0].axes[1] == Composite((Perm("h"), Fixed(3), Fixed(2)))


def test_unknown_parts_are_solved_once_another_leaf_settles_them() -> None:
    # c needs b, b needs a, and a stands last.
    tree = [(("b", "c"),), (("a", "b"),), ("a",)]
    assert bind(tree, [(35,), (10,), (2,)]).sizes == (("a", 2), ("b", 5), ("c", 7))


def test_several_unknown_parts_stay_unknown() -> None:
    assert bind([(("a", "b"), "c")], [(12, 5)]).sizes == (("c", 5),)


def test_a_repeated_part_is_an_exact_root() -> None:
    assert bind([((0, 0, Fixed(2)),)], [(98,)]).sizes == ((0, 7),)
    big = 3_037_000_499
    assert bind([((0, 0),)], [(big**2,)]).sizes == ((0, big),)
    with pytest.raises(ShapeError, match="not the product of its parts"):
        bind([((0, 0),)], [(8,)])


@given(st.data())
@settings(max_examples=60)
def test_binding_recovers_the_sizes_that_made_the_shapes(data: st.DataObject) -> None:
    tree = data.draw(
        st.lists(
            st.lists(st.integers(0, 4) | st.none(), max_size=3).map(tuple), min_size=1, max_size=4
        )
    )
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=5, max_size=5))
    shapes = [tuple(6 if axis is None else sizes[axis] for axis in leaf) for leaf in tree]
    spec = bind(tree, shapes)
    assert spec.sizes == tuple((label, sizes[int(label)]) for label in spec.labels)
    assert all(atom == Fixed(6) for leaf in spec.leaves for atom in leaf.fixed)


WRONG_SIZES: list[tuple[str, Any, Any, Any, list[str]]] = [
    (
        "two leaves disagree",
        {"w": (0, 1), "b": (1,)},
        {"w": (3, 4), "b": (5,)},
        None,
        ["shapes['w'], axis 1 has size 4", "label 1 has size 5 by shapes['b'], axis 0"],
    ),
    ("one leaf disagrees", (0, 0), (3, 4), None, ["axis 1 has size 4", "size 3", "axis 0"]),
    ("sizes disagree", {"w": (0,)}, {"w": (3,)}, {0: 4}, ["shapes['w'], axis 0", "4 by sizes="]),
    ("fixed", {"w": (Fixed(9),)}, {"w": (8,)}, None, ["shapes['w'], axis 0", "8", "Fixed(9)"]),
    ("too few axes", {"w": (0, 1)}, {"w": (3,)}, None, ["shapes['w']", "found 1", "expected 2"]),
    ("channel axis", {"w": (0,)}, {"w": (3, 1)}, None, ["without batch and channel axes"]),
    ("scalar", {"w": ()}, {"w": (3,)}, None, ["found 1 axes, expected 0"]),
    ("missing leaf", {"w": (0,), "b": ()}, {"w": (3,)}, None, ["shapes, at the root", "'b'"]),
    ("int shape", {"w": (0,)}, {"w": 3}, None, ["shapes['w']", "the int 3", "tuple of ints"]),
    ("dict shape", {"w": (0,)}, {"w": {"v": (3,)}}, None, ["shapes['w']", "a dict"]),
    ("zero size", {"w": (0,)}, {"w": (0,)}, None, ["shapes['w'], axis 0", "positive int"]),
    ("float size", {"w": (0,)}, {"w": (3.0,)}, None, ["shapes['w'], axis 0", "float 3.0"]),
    ("huge size", (0,), (2**63,), None, ["axis 0", "positive int below"]),
    ("bool in sizes=", (0,), None, {0: True}, ["sizes: the label 0", "True"]),
    ("negative in sizes=", (0,), None, {0: -3}, ["sizes: the label 0", "-3"]),
    ("unknown label", (0, "a"), None, {1: 3}, ["no label 1", "0, 'a'"]),
    ("unknown look-alike", (0,), None, {"0": 3}, ["no label '0'", "are 0"]),
    ("bool label", (1,), None, {True: 3}, ["no label True"]),
    ("tuple label", (1,), None, {(1, 2): 3}, ["no label a tuple"]),
    ("label of none", ((None,)), (3,), {1: 3}, ["no label 1", "none"]),
    ("many labels", tuple(range(20)), None, {99: 3}, ["(20 in all)"]),
    ("sizes is no mapping", (0,), None, [3], ["sizes", "mapping"]),
    (
        "composite does not divide",
        {"w": (("h", "d"),)},
        {"w": (10,)},
        {"h": 4},
        ["shapes['w'], axis 0 has size 10", "('h', 'd')", "'h' has size 4 by sizes="],
    ),
    ("composite does not match", ((0, 1),), (10,), {0: 2, 1: 4}, ["size 10", "0 has", "1 has"]),
    ("root does not divide", ((0, 0, Fixed(2)),), (9,), None, ["size 9", "not the product"]),
    ("partly known", ((0, 1, Fixed(3)),), (10,), None, ["size 10", "not the product"]),
    ("None without shapes", {"w": (0, None)}, None, None, ["spec['w'], axis 1", "shapes="]),
    (
        "two None parts",
        {"w": ((None, None),)},
        {"w": (6,)},
        None,
        ["spec['w'], axis 0", "Fixed(n)"],
    ),
    ("None at the root", (None,), None, {}, ["spec, at the root, axis 0"]),
]


@pytest.mark.parametrize(
    ("tree", "shapes", "sizes", "says"),
    [r[1:] for r in WRONG_SIZES],
    ids=[r[0] for r in WRONG_SIZES],
)
def test_sizes_that_do_not_fit_are_refused(
    tree: Any, shapes: Any, sizes: Any, says: list[str]
) -> None:
    with pytest.raises(ShapeError) as caught:
        bind(tree, shapes, sizes)
    assert all(part in str(caught.value) for part in says), str(caught.value)


def test_out_shapes_are_named_in_errors() -> None:
    spec, out = parse_spec({"w": (0,)}), parse_spec({"y": (0, None)})
    with pytest.raises(ShapeError, match=r"out_shapes\['y'\], axis 0 has size 4.*shapes\['w'\]"):
        bind_specs(spec, out, {"w": (3,)}, {"y": (4, 1)})
    with pytest.raises(ShapeError, match=r"out_spec\['y'\], axis 1 None.*out_shapes="):
        bind_specs(spec, out, {"w": (3,)})
    with pytest.raises(ShapeError, match=r"out_shapes\['w'\], axis 0 has size 4, but shapes"):
        bind_specs(parse_spec({"w": (None,)}), None, {"w": (3,)}, {"w": (4,)})


def test_labels_that_look_alike_across_the_two_specs_are_refused() -> None:
    with pytest.raises(SpecError, match=r"label '0' of \['y'\].*label 0 of \['w'\].*other spec"):
        bind_specs(parse_spec({"w": (0,)}), parse_spec({"y": ("0",)}))


# --- what is known at run time -------------------------------------------------------------------


def test_size_sources_read_plain_axes_composites_and_bound_sizes_in_order() -> None:
    tree = [(("b", "c"),), (("a", Fixed(3), "b"), 0), (1, "a")]
    spec = bind(tree, sizes={1: 4})
    assert size_sources(spec) == (
        (1, 4),
        (0, (1, 1, ())),
        ("a", (2, 1, ())),
        ("b", (1, 0, (Perm("a"), Fixed(3)))),
        ("c", (0, 0, (Perm("b"),))),
    )


def test_each_size_source_uses_only_earlier_labels() -> None:
    spec = parse_spec([((i, i + 1),) for i in reversed(range(12))] + [(0,)])
    seen: set[Any] = set()
    for label, source in size_sources(spec):
        assert not isinstance(source, int)
        assert {atom.label for atom in source[2] if isinstance(atom, Perm)} <= seen
        seen.add(label)
    assert seen == set(range(13))


def test_a_label_that_no_axis_tells_must_be_bound() -> None:
    with pytest.raises(ShapeError, match=r"\['w'\], axis 0 \('h', 'd'\).*'h'.*sizes={'h': "):
        size_sources(parse_spec({"w": (("h", "d"),)}))
    with pytest.raises(ShapeError, match="cannot be read off"):
        size_sources(parse_spec({"w": ((0, 0),)}))
    assert size_sources(bind({"w": (("h", "d"),)}, sizes={"d": 2}))[1] == (
        "h",
        (0, 0, (Perm("d"),)),
    )


def test_require_derivable_wants_every_out_label_bound_or_readable() -> None:
    spec, out = parse_spec({"w": (0, (0, 1))}), parse_spec({"y": (1, 2)})
    with pytest.raises(ShapeError, match=r"out_spec\['y'\].*label 2.*out_shapes=.*sizes={2: "):
        require_derivable(spec, out)
    require_derivable(*bind_specs(spec, out, sizes={2: 5}))
    require_derivable(spec, parse_spec((1, 0)))
    with pytest.raises(ShapeError, match="cannot be read off the inputs"):
        require_derivable(parse_spec({"w": ((0, 1),)}), parse_spec(()))
