"""Claims about perm_specs in files: JSON and YAML, lossless, and safe to read from strangers."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given

from symcompile.errors import ExportError, SpecError
from symcompile.spec import (
    Fixed,
    SpecFormat,
    bind_specs,
    dump_spec,
    dumps_spec,
    load_spec,
    loads_spec,
    parse_spec,
)
from symcompile.spec.parse import MAX_DEPTH
from tests.spec_strategies import HOSTILE, nest, spec_trees

FORMATS: tuple[SpecFormat, SpecFormat] = ("json", "yaml")
SPEC = {
    "params": {"kernel": (0, None, Fixed(9), ("heads", 1)), "bias": ()},
    "blocks": [{"w": (0, 0)}, [(1,)], [], {}],
}

# --- round trips ---------------------------------------------------------------------------------


@given(spec_trees())
@example([(0,)])
@example({"$list": (0,)})
@example({"$list": {"$list": [(0,), {"$$list": {"$list": (1,), "b": ()}}]}})
@example({"fixed": {"fixed": (Fixed(9), (Fixed(9), "fixed"))}})
def test_yaml_reads_back_every_spec(tree: Any) -> None:
    spec = parse_spec(tree)
    assert loads_spec(dumps_spec(spec, "yaml"), "yaml") == spec


@given(spec_trees(int_keys=False))
@example([(0,)])
@example({"$list": (0,)})
@example({"$list": {"$list": [(0,), {"$$list": {"$list": (1,), "b": ()}}]}})
@example({"fixed": {"fixed": (Fixed(9), (Fixed(9), "fixed"))}})
def test_json_reads_back_every_spec_without_int_keys(tree: Any) -> None:
    spec = parse_spec(tree)
    assert loads_spec(dumps_spec(spec, "json"), "json") == spec


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_every_hostile_name_survives_as_key_and_as_label(name: str, format_: SpecFormat) -> None:
    spec = parse_spec({name: {name: (name, (name, None)), "other": [{name: (name,)}]}})
    assert loads_spec(dumps_spec(spec, format_), format_) == spec


@pytest.mark.parametrize("format_", FORMATS)
def test_the_deepest_allowed_tree_round_trips(format_: SpecFormat) -> None:
    spec = parse_spec(nest(MAX_DEPTH))
    assert loads_spec(dumps_spec(spec, format_), format_) == spec


@pytest.mark.parametrize("format_", FORMATS)
def test_dumps_is_plain_text_of_its_format(format_: SpecFormat) -> None:
    text = dumps_spec(SPEC, format_)
    read = json.loads(text) if format_ == "json" else yaml.safe_load(text)
    assert read == {
        "params": {"kernel": [0, None, {"fixed": 9}, ["heads", 1]], "bias": []},
        "blocks": {"$list": [{"w": [0, 0]}, {"$list": [[1]]}, {"$list": []}, {}]},
    }


def test_json_text_has_one_leaf_a_line() -> None:
    assert dumps_spec({"a": {"w": (0, None)}, "b": [(1,), ()]}) == (
        "{\n"
        '  "a": {\n'
        '    "w": [0, null]\n'
        "  },\n"
        '  "b": {\n'
        '    "$list": [\n'
        "      [1],\n"
        "      []\n"
        "    ]\n"
        "  }\n"
        "}\n"
    )


def test_sizes_of_labels_are_not_part_of_a_file() -> None:
    spec, _ = bind_specs(parse_spec({"w": (0,)}), None, sizes={0: 3})
    assert loads_spec(dumps_spec(spec), "json") == parse_spec({"w": (0,)})


def test_int_keys_are_native_in_yaml_and_refused_in_json() -> None:
    assert loads_spec("{a: {1: [x], -2: [x]}}", "yaml") == parse_spec(
        {"a": {1: ("x",), -2: ("x",)}}
    )
    with pytest.raises(SpecError, match=r"\['a'\]\[0\]: the key 1 is an int.*use YAML"):
        dumps_spec({"a": [{1: (0,)}]}, "json")


def test_a_list_at_the_root_is_one_leaf() -> None:
    assert loads_spec("[0, [1, null]]", "json") == parse_spec((0, (1, None)))
    assert loads_spec("[0, [1, ~]]", "yaml") == parse_spec((0, (1, None)))


def test_yaml_aliases_are_read_as_written_out() -> None:
    text = "a: &block {w: &leaf [0, 1], b: [1]}\nb: *block\nc: *leaf\n"
    block = {"w": (0, 1), "b": (1,)}
    assert loads_spec(text, "yaml") == parse_spec({"a": block, "b": block, "c": (0, 1)})


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["s.json", "s.yaml", "s.yml", "S.JSON", "ключ.yaml"])
def test_a_dumped_file_loads_by_path_and_by_handle(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    dump_spec(SPEC, path)
    spec = parse_spec(SPEC)
    assert load_spec(path) == spec
    assert load_spec(str(path)) == spec
    with path.open("rb") as binary, path.open(encoding="utf-8") as text:
        assert load_spec(binary) == spec
        assert load_spec(text) == spec
    assert os.listdir(tmp_path) == [name]


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text('{"w": [0]}', encoding="utf-8-sig")
    assert load_spec(path) == parse_spec({"w": (0,)})


@pytest.mark.parametrize("name", ["s.txt", "s", "json", "s.json.bak"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError, match=r"suffix.*\.json, \.yaml, \.yml.*loads_spec"):
        load_spec(tmp_path / name)
    with pytest.raises(SpecError, match="suffix"):
        dump_spec(SPEC, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_handle_without_a_name_is_refused() -> None:
    with pytest.raises(SpecError, match=r"a file without a name.*loads_spec"):
        load_spec(io.StringIO("{}"))


def test_an_unreadable_file_is_a_spec_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"missing\.json: cannot be read \(No such file"):
        load_spec(tmp_path / "missing.json")
    (tmp_path / "latin.yaml").write_bytes(b"w: [\xff]")
    with pytest.raises(SpecError, match=r"latin\.yaml: byte 4 is not UTF-8"):
        load_spec(tmp_path / "latin.yaml")


def test_errors_inside_a_file_name_the_file_and_the_path(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text('{"a": {"w": [0, true]}}')
    with pytest.raises(SpecError, match=r"s\.json: \['a'\]\['w'\], axis 1: found True"):
        load_spec(path)


def test_a_failed_dump_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.json"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ExportError, match=r"cannot write '.*s\.json': No space left"):
        dump_spec(SPEC, path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["s.json"]


def test_a_refused_spec_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text("old")
    with pytest.raises(SpecError, match="use YAML"):
        dump_spec({0: (0,)}, path)
    assert path.read_text() == "old"


def test_dumping_into_a_missing_folder_is_an_export_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot write"):
        dump_spec(SPEC, tmp_path / "nowhere" / "s.json")


def test_dumping_through_a_link_replaces_what_it_points_at(tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    dump_spec(SPEC, link)
    assert link.is_symlink()
    assert load_spec(target) == parse_spec(SPEC)


# --- what is refused -----------------------------------------------------------------------------

BOMB = "a0: &a0 [0]\n" + "\n".join(
    f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(10))}}}" for i in range(1, 40)
)
DEEP = "[" * 100_000

REFUSED: list[tuple[str, SpecFormat, str, list[str]]] = [
    ("JSON syntax", "json", '{"a": [0,\n 1}', ["the text: line 2, column 3", "not valid JSON"]),
    ("JSON empty", "json", "", ["line 1, column 1", "not valid JSON"]),
    ("JSON trailing", "json", "[0] [1]", ["line 1, column 5"]),
    ("JSON NaN", "json", '{"a": [NaN]}', ["['a'], axis 0", "float nan"]),
    ("JSON float", "json", '{"a": [0.5]}', ["['a'], axis 0", "float 0.5"]),
    ("JSON bool", "json", '{"a": [true]}', ["['a'], axis 0", "True"]),
    ("mapping for a list", "yaml", "a: {$list: {b: [x]}}", ["['a']", "a mapping of 1 entries"]),
    (
        "large label",
        "yaml",
        f"a: [1{'0' * 30}]",
        ["['a'], axis 0: the label is an int of 100 bits"],
    ),
    ("JSON huge int", "json", f'{{"a": [{"9" * 5000}]}}', ["['a'], axis 0", "2**63"]),
    ("JSON Infinity", "json", '{"a": [0, {"fixed": -Infinity}]}', ["['a'], axis 1", "float -inf"]),
    ("JSON huge negative", "json", f'{{"a": {{"b": -{"9" * 5000}}}}}', ["['a']['b']", "an int of"]),
    ("JSON large int", "json", f'{{"a": [{2**63}]}}', ["['a'], axis 0", "2**63"]),
    ("JSON duplicate", "json", '{"a": {"b": [0], "b": [1]}}', ["['a']", "'b' appears twice"]),
    ("JSON nested duplicate", "json", '{"$list": [{"b": [], "b": []}]}', ["[0]", "'b' appears"]),
    ("JSON surrogate", "json", '{"\\ud800": [0]}', ["surrogate"]),
    ("JSON scalar", "json", "3", ["the root", "the int 3", "expected a mapping"]),
    ("JSON string leaf", "json", '{"a": "ij"}', ["['a']", "'ij'", "list of labels"]),
    ("JSON null leaf", "json", '{"a": null}', ["['a']", "None", "list of labels"]),
    ("JSON deep", "json", DEEP, ["nested too deeply"]),
    ("JSON deep mappings", "json", '{"a":' * 300 + "[]" + "}" * 300, ["200 levels"]),
    ("JSON no leaves", "json", '{"a": {}}', ["no leaves"]),
    ("list of containers", "json", '{"a": [{"w": [0]}]}', ["['a'], axis 0", "'w'", "$list"]),
    ("empty mapping axis", "json", '{"a": [{}]}', ["['a'], axis 0", "none", "$list"]),
    ("list of keyless", "yaml", "a: [{[0]: 1}]", ["['a'], axis 0", "a list of 1"]),
    ("$list scalar", "json", '{"$list": 3}', ["$list takes a list", "the int 3"]),
    ("$list of labels", "json", '{"$list": [0, 1]}', ["[0]", "the int 0"]),
    ("fixed null", "json", '{"a": [{"fixed": null}]}', ["['a'], axis 0", "write null"]),
    ("fixed zero", "json", '{"a": [{"fixed": 0}]}', ["['a'], axis 0", "positive int"]),
    ("fixed bool", "json", '{"a": [{"fixed": true}]}', ["['a'], axis 0", "True"]),
    ("fixed list", "json", '{"a": [{"fixed": [9]}]}', ["['a'], axis 0", "a list"]),
    ("fixed twice", "json", '{"a": [{"fixed": 9, "fixed": 9}]}', ["['a'], axis 0", "'fixed'"]),
    ("fixed leaf", "json", '{"a": {"fixed": 9}}', ["['a']['fixed']", "the int 9"]),
    ("empty composite", "json", '{"a": [[]]}', ["['a'], axis 0", "empty tuple"]),
    ("alike labels", "json", '{"a": [0, "0"]}', ["['a']", "looks like"]),
    ("YAML syntax", "yaml", "a: [0,\nb: ]]", ["line 2, column", "not valid YAML"]),
    ("YAML tab", "yaml", "a:\n\t- 0", ["line 2, column 1", "not valid YAML"]),
    ("YAML empty", "yaml", "# nothing\n", ["the root", "None", "expected a mapping"]),
    ("YAML documents", "yaml", "a: [0]\n---\nb: [0]", ["line 2, column 1", "not valid YAML"]),
    ("YAML control", "yaml", "a: [0]\nb: [\x01]", ["line 2, column 5", "control character"]),
    ("YAML bad escape", "yaml", 'a: ["\\UFFFFFFFF"]', ["escape"]),
    ("YAML unknown alias", "yaml", "a: *b", ["line 1, column 4", "not valid YAML"]),
    ("YAML duplicate", "yaml", "x:\n  b: [0]\n  'b': [1]", ["line 2", "['x']", "appears twice"]),
    ("YAML duplicate int", "yaml", "{1: [0], +1: [1]}", ["the key 1 appears twice"]),
    ("YAML on", "yaml", "on: [0]", ["line 1, column 1", "bool", "quotes: 'on'"]),
    ("YAML yes label", "yaml", "a: [yes]", ["line 1, column 5", "bool", "quotes: 'yes'"]),
    ("YAML fixed bool", "yaml", "a: [{fixed: true}]", ["plain decimal ints", "write a string"]),
    ("YAML float", "yaml", "a: [1.5]", ["line 1, column 5", "float", "'1.5'"]),
    ("YAML timestamp", "yaml", "a: [2001-01-01]", ["timestamp", "quotes"]),
    ("YAML sexagesimal", "yaml", "a: [1:30]", ["a int", "'1:30'"]),
    ("YAML octal", "yaml", "a: [010]", ["'010'"]),
    ("YAML huge int", "yaml", f"a: [{'9' * 5000}]", ["5000 characters"]),
    ("YAML large int", "yaml", f"a: [{2**63}]", ["['a'], axis 0", "2**63"]),
    ("YAML null key", "yaml", "~: [0]", ["the key None"]),
    ("YAML list key", "yaml", "? [0]\n: [1]", ["line 1", "a key that is a list or a mapping"]),
    ("YAML merge", "yaml", "a: &a {w: [0]}\nb: {<<: *a}", ["line 2, column 5", "merge"]),
    ("YAML python", "yaml", "a: !!python/tuple [0]", ["line 1, column 4", "python/tuple"]),
    ("YAML custom", "yaml", "a: !label x", ["!label", "not allowed"]),
    ("YAML set", "yaml", "a: !!set {x}", ["not allowed"]),
    ("YAML binary", "yaml", "a: [!!binary aGk=]", ["not allowed"]),
    ("YAML int tag", "yaml", "a: [!!int x]", ["'x'"]),
    ("YAML list tag", "yaml", "a: !!str [0]", ["not allowed"]),
    ("YAML cycle", "yaml", "a: &a {b: *a, c: [0]}", ["line 1, column 4", "alias"]),
    ("YAML deep", "yaml", DEEP[:5000], ["nested too deeply"]),
    ("YAML bomb", "yaml", BOMB, ["aliases repeat more than"]),
]


@pytest.mark.parametrize(
    ("format_", "text", "says"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_a_malformed_text_is_refused_with_place_and_mend(
    format_: SpecFormat, text: str, says: list[str]
) -> None:
    started = time.monotonic()
    with pytest.raises(SpecError) as caught:
        loads_spec(text, format_)
    message = str(caught.value)
    assert message.startswith("the text: ")
    assert all(part in message for part in says), message
    assert "\n" not in message
    assert len(message) < 500
    assert time.monotonic() - started < 20  # a text of a few kilobytes cannot hang the reader


def test_no_tag_of_a_yaml_file_is_executed(tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    text = f"a: !!python/object/apply:os.mkdir [{str(planted)!r}]"
    with pytest.raises(SpecError, match="not allowed"):
        loads_spec(text, "yaml")
    assert not planted.exists()
    # The text is live: PyYAML's own unsafe loader does run it.
    yaml.unsafe_load(text)
    assert planted.exists()


def test_an_unknown_format_is_refused() -> None:
    wrong: Any = "toml"
    with pytest.raises(SpecError, match=r"format: found the string 'toml'.*'json' or 'yaml'"):
        loads_spec("", wrong)
    with pytest.raises(SpecError, match="expected 'json' or 'yaml'"):
        dumps_spec(SPEC, wrong)
