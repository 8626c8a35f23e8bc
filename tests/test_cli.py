"""Claims about the `symcompile` command: right output, one clear message, and nothing evaluated."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt
from typer.testing import CliRunner

import symcompile as sc
import symcompile_numpy.layer
from symcompile.cli import app
from symcompile.cli.app import FORMAT
from symcompile.cli.show import escaped
from symcompile.codegen import backend_names
from symcompile.ir import parse_program
from symcompile.spec import dump_spec, loads_spec
from tests.spec_strategies import HOSTILE, nest

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
COMMAND = Path(sys.executable).with_name("symcompile")
COMMANDS = ("compile", "export", "explain", "check")
MLP = {
    "Dense_0": {"kernel": (0, 1), "bias": (1,)},
    "Dense_1": {"kernel": (1, 2), "bias": (2,)},
}
SHAPES = {
    "Dense_0": {"kernel": [3, 5], "bias": [5]},
    "Dense_1": {"kernel": [5, 2], "bias": [2]},
}
# Neither a terminal nor a wish for colour.
PLAIN = {
    key: value
    for key, value in os.environ.items()
    if key not in ("COLUMNS", "LINES", "FORCE_COLOR", "TTY_COMPATIBLE", "PYTHONIOENCODING")
}


class Done:
    """What a command printed, and its exit code."""

    def __init__(self, arguments: Sequence[str]) -> None:
        result = CliRunner().invoke(app, list(arguments), prog_name="symcompile")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr
        self.bytes = result.stdout_bytes


def cli(*arguments: object) -> Done:
    return Done([str(argument) for argument in arguments])


def shell(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [str(COMMAND), *map(str, arguments)],
        timeout=120,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": PLAIN, **options},
    )


def refused(done: Done, pattern: str) -> None:
    """Exit code 2, nothing on stdout, and one line on stderr that says what `pattern` says."""
    assert (done.code, done.out) == (2, "")
    assert re.fullmatch(r"Error: [^\n]+\n", done.err), done.err
    assert re.search(pattern, done.err), done.err


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    dump_spec(MLP, tmp_path / "spec.yaml")
    return tmp_path / "spec.yaml"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    def write_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


# --- compile -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_compile_writes_the_bytes_of_export(spec: Path, backend: str, tmp_path: Path) -> None:
    wanted = sc.export(
        MLP, tmp_path / "wanted.py", backend=backend, in_channels=2, out_channels=16
    ).read_bytes()
    options = ("--backend", backend, "--in-channels", 2, "--out-channels", 16)
    to_file = cli("compile", spec, *options, "-o", tmp_path / "layer.py")
    assert (to_file.code, to_file.out) == (0, "")
    assert f"layer.py: {backend} source, 36 diagrams, 1,088 weights" in to_file.err
    assert (tmp_path / "layer.py").read_bytes() == wanted
    for name in ("compile", "export"):
        assert cli(name, spec, *options).bytes == wanted
        assert cli(name, spec, *options, "-o", "-").bytes == wanted


def test_the_installed_command_writes_the_same_bytes_to_a_pipe(spec: Path, tmp_path: Path) -> None:
    wanted = sc.export(
        MLP, tmp_path / "wanted.py", backend="torch", in_channels=1, out_channels=1
    ).read_bytes()
    done = shell("export", spec)
    assert (done.returncode, done.stdout, done.stderr) == (0, wanted, b"")


def test_every_option_reaches_the_compiler(
    spec: Path, write: Callable[[str, str], Path], tmp_path: Path
) -> None:
    out_spec = write("out.yaml", "{total: [], classes: [2, null]}")
    channels = {
        "Dense_0": {"kernel": 4, "bias": 1},
        "Dense_1": {"kernel": 4, "bias": 2},
    }
    as_lists = {
        name: {key: [count] for key, count in layer.items()} for name, layer in channels.items()
    }
    done = cli(
        *("compile", spec, "--backend", "jax", "--out-spec", out_spec, "--no-bias"),
        *("--in-channels", write("channels.json", json.dumps(as_lists)), "--out-channels", 3),
        *("--shapes", write("shapes.yaml", yaml.safe_dump(SHAPES)), "--size", "2=2"),
        *("--out-shapes", write("out_shapes.json", '{"total": [], "classes": [2, 7]}')),
        *("--reduce", "sum", "--optimize", "false", "--init", "unf", "--dtype", "float64"),
        *("--name", "Readout", "--max-basis", "500", "--machine", "h100"),
    )
    wanted = sc.export(
        MLP,
        tmp_path / "wanted.py",
        {"total": (), "classes": (2, None)},
        backend="jax",
        in_channels=channels,
        out_channels=3,
        shapes=SHAPES,
        out_shapes={"total": (), "classes": (2, 7)},
        bias=False,
        reduce="sum",
        optimize=False,
        init="unf",
        dtype="float64",
        name="Readout",
        machine="h100",
    ).read_bytes()
    assert done.err == ""
    assert done.bytes == wanted


@pytest.mark.parametrize("option", ["--no-bias", "--reduce=sum", "--dtype=float64", "--name=A"])
def test_every_option_changes_the_source(spec: Path, option: str) -> None:
    changed = cli("compile", spec, option)
    assert changed.code == 0
    assert changed.bytes != cli("compile", spec).bytes


def test_size_labels_are_ints_where_the_spec_has_ints(write: Callable[[str, str], Path]) -> None:
    mixed = write("mixed.yaml", 'w: [0, "7", a=b, -3]')
    options = ("--size", "0=4", "--size", "7=5", "--size", "a=b=6", "--size", "-3=2")
    done = cli("explain", mixed, *options)
    assert done.code == 0
    assert "'w'  (0, '7', 'a=b', -3)  4 x 5 x 6 x 2  channels 1 -> 1" in done.out


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (("--size", "0"), r"--size: found '0', expected LABEL=N"),
        (("--size", "0=x"), r"--size: found '0=x', expected LABEL=N"),
        (("--size", "0=" + "9" * 5000), r"--size: found .*expected LABEL=N"),
        (("--size", "0=0"), r"label 0: a size is a positive int"),
        (("--size", "zero=3"), r"no label 'zero'; its labels are 0, 1, 2"),
        (("--size", "0=3", "--size", "0=4"), r"label 0 is given the sizes 3 and 4"),
        (("--in-channels", "0"), r"in_channels: found the int 0"),
        (("--in-channels", "many"), r"--in-channels: found 'many', expected a positive int, or a"),
        (("--out-channels", "no.yaml"), r"--out-channels no\.yaml: cannot be read"),
        (("--shapes", "no.yaml"), r"--shapes no\.yaml: cannot be read"),
        (("--out-spec", "no.txt"), r"--out-spec no\.txt: the suffix '\.txt' is none of"),
        (("--reduce", "max"), r"reduce='max' is not known; choose one of 'mean', 'sum'"),
        (("--optimize", "hard"), r"optimize='hard' is not known"),
        (("--dtype", "int8"), r"dtype='int8' is not known"),
        (("--name", "import"), r"name='import' is no class name"),
        (("--init", "ones"), r"ones"),
        (("--backend", "[red]tf[/red]"), r"backend='\[red\]tf\[/red\]' is not known; installed"),
        (("--backend", "numpy"), r"'numpy' interprets the program and generates no source"),
        (("--max-basis", "31"), r"the basis has 32 elements, more than max_basis=31"),
        (("-o", "no/such/folder/layer.py"), r"cannot write '.*': No such file or directory"),
        (("-o", "."), r"cannot write '\.'"),
        (("-o", "/dev/null"), r"cannot write '/dev/null': it is not a file"),
    ],
)
def test_bad_words_are_refused_in_one_line(
    spec: Path, words: tuple[str, ...], pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(spec.parent)
    refused(cli("compile", spec, *words), pattern)
    assert sorted(path.name for path in spec.parent.iterdir()) == ["spec.yaml"]
    assert not Path("/dev/null").is_file()


def test_a_shapes_file_that_does_not_fit_is_refused_by_path(
    spec: Path, write: Callable[[str, str], Path]
) -> None:
    wrong = {**SHAPES, "Dense_1": {"kernel": [4, 2], "bias": [2]}}
    path = write("shapes.json", json.dumps(wrong))
    refused(cli("explain", spec, "--shapes", path), r"\['Dense_1'\]\['kernel'\].*size 4")
    path = write("named.json", json.dumps({**SHAPES, "Dense_0": {"kernel": ["a", 5], "bias": [5]}}))
    refused(
        cli("explain", spec, "--shapes", path),
        r"\['Dense_0'\]\['kernel'\], axis 0: a size is a positive int, found the string 'a'",
    )
    path = write("channels.json", json.dumps(SHAPES))
    refused(
        cli("explain", spec, "--in-channels", path),
        r"--in-channels .*\['kernel'\]: found \[3, 5\], expected one int in brackets",
    )


def test_what_stood_there_is_left_when_compiling_fails(spec: Path, tmp_path: Path) -> None:
    output = tmp_path / "layer.py"
    output.write_text("precious")
    refused(cli("compile", spec, "--reduce", "max", "-o", output), "reduce")
    assert output.read_text() == "precious"


def test_a_name_too_long_to_look_up_is_one_clear_error(spec: Path, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 300)
    refused(cli("compile", spec, "-o", long), "cannot write .*File name too long")
    refused(cli("bench", "--peers", long, "--list"), "does not exist")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize("command", ["compile", "explain", "check"])
def test_a_full_disk_is_no_failed_check(command: str, spec: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = shell(command, spec, stdout=full)
    assert done.returncode == 2
    assert done.stderr == (
        b"Error: no space is left where stdout, or a temporary file, is written\n"
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize(("words", "code"), [((), 0), (("--name", "class"), 2)])
@pytest.mark.parametrize("stderr", ["closed", "full"])
def test_what_cannot_be_said_changes_no_exit_code(
    words: tuple[str, ...], code: int, stderr: str, spec: Path, tmp_path: Path
) -> None:
    ending = {"closed": "2>&-", "full": "2>/dev/full"}[stderr]
    output = tmp_path / "layer.py"
    command = ["sh", "-c", f'exec "$@" {ending}', "sh", str(COMMAND), "compile", str(spec)]
    done = subprocess.run([*command, "-o", str(output), *words], env=PLAIN, timeout=120)
    assert done.returncode == code
    assert output.exists() == (code == 0)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_huge_basis_is_refused_by_its_exact_count(
    command: str, write: Callable[[str, str], Path]
) -> None:
    path = write("huge.yaml", f"w: [{', '.join(['n'] * 16)}]")
    # Bell number of 32.
    refused(cli(command, path), "128,064,670,049,908,713,818,925,644 elements")


# --- spec files are data -------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("name", "text", "pattern"),
    [
        ("a.yaml", "!!python/object/apply:os.system ['touch pwned']", "tag .* is not allowed"),
        ("a.yaml", "w: !!python/name:os.system [0]", "tag .* is not allowed"),
        ("a.yaml", "? !!python/object/new:os.mkdir [pwned]\n: [0]", "tag .* is not allowed"),
        ("a.yaml", "w: __import__('os').mkdir('pwned')", "found the string"),
        ("a.json", '{"w": __import__("os").mkdir("pwned")}', "line 1, column 7: not valid JSON"),
        ("a.yaml", "w: [0, 1", "not valid YAML"),
        ("a.yaml", "w: [yes]", "in quotes"),
        ("a.yaml", "a: &a [*a]", "contains it|not valid"),
        ("a.yaml", "", "found None"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.json", '{"w": [0], "w": [1]}', "the key 'w' appears twice"),
        ("a.txt", "w: [0]", r"the suffix '\.txt' is none of"),
        ("a.yaml", "w: [0, '0']", "looks like the label"),
        ("a.yaml", "'\x1b]0;title\x07[bold]': 3", "not valid YAML"),
        ("a.yaml", '"\\e]0;title\\a[bold]\\n": 3', r"\['\\x1b\]0;title\\x07\[bold\]\\n'\]: found"),
    ],
)
def test_a_hostile_or_broken_spec_is_refused_and_runs_nothing(
    command: str,
    name: str,
    text: str,
    pattern: str,
    write: Callable[[str, str], Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(cli(command, write(name, text)), pattern)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_or_unreadable_spec_is_refused(command: str, tmp_path: Path) -> None:
    refused(cli(command, tmp_path / "none.yaml"), r"none\.yaml: cannot be read \(No such file")
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    refused(cli(command, folder), r"folder\.yaml: cannot be read \(Is a directory")
    noise = tmp_path / "noise.yaml"
    noise.write_bytes(b"\xff\xfe\x00")
    refused(cli(command, noise), "is not UTF-8 text")
    refused(cli(command, tmp_path / "a\x1b[31m\nb.yaml"), r"a\\x1b\[31m\\nb\.yaml: cannot be read")


def test_hostile_names_are_shown_escaped_and_exported_intact(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    dump_spec({f"{name}k": {name: (name, name), "other": (name,)} for name in HOSTILE}, path)
    done = cli("explain", path)
    assert done.code == 0
    assert all(char.isprintable() for line in done.out.split("\n") for char in line)
    for shown in (
        r"'\x1b[31m'",
        r"'a\nimport os'",
        r"'\u202eabc'",
        "(10000 characters)",
        "'{x!r}'",
    ):
        assert shown in done.out
    source = cli("compile", path)
    assert source.code == 0
    compile(source.out, "layer.py", "exec")


def test_markup_and_emoji_of_a_spec_are_text(write: Callable[[str, str], Path]) -> None:
    path = write("spec.yaml", "'[red]w[/red] :smile: https://a.b': ['[/]', '[bold]']")
    done = shell("explain", path)
    assert done.returncode == 0
    assert b"'[red]w[/red] :smile: https://a.b'  ('[/]', '[bold]')  any size" in done.stdout


# --- explain -------------------------------------------------------------------------------------


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the table under a heading, its header left out."""
    block = text.split(f"{heading}\n", 1)[1].split("\n\n", 1)[0]
    return [re.split(r" {2,}", line.strip()) for line in block.splitlines()[1:]]


def test_explain_shows_tensors_labels_and_sizes(
    spec: Path, write: Callable[[str, str], Path]
) -> None:
    shapes = write("shapes.yaml", yaml.safe_dump(SHAPES))
    done = cli("explain", spec, "--shapes", shapes, "--out-channels", 16)
    assert done.code == 0
    assert f"{spec}: 4 tensors, 3 labels\n" in done.out
    assert "'kernel'  (0, 1)  3 x 5  channels 1 -> 16\n" in done.out
    assert "'bias'  (2,)  2  channels 1 -> 16\n" in done.out
    table = rows(done.out, "labels: each one permutation")
    assert table == [["0", "3", "1"], ["1", "5", "3"], ["2", "2", "2"]]
    assert "sizes not bound" in cli("explain", spec).out
    assert "sizes not bound" not in done.out


def test_explain_counts_half_diagrams_and_diagrams(write: Callable[[str, str], Path]) -> None:
    done = cli("explain", write("cube.yaml", "w: [n, n, n]"))
    text = " ".join(done.out.split())
    # 22 half-diagrams and 203 diagrams; per signature 1 x 3!, 6 x 2! x 6, 10 x 10 and 5 x 5.
    assert (
        "22 in all: 1 of ('n', 'n', 'n'), 6 of ('n', 'n'), 10 of ('n',), 5 of () "
        "0|1|2 1|2|(0) 0|2|(1) 0|1|(2) "
    ) in text
    table = rows(done.out, "one matrix for each signature")
    figures = {line[0]: line[2:6] for line in table if len(line) > 5}
    assert figures == {
        "mix_scalar": ["5", "1", "5", "25"],
        "mix_n": ["10", "1", "10", "100"],
        "mix_n_n": ["6", "2", "6", "72"],
        "mix_n_n_n": ["1", "6", "1", "6"],
        "bias": ["1", "1", "5", "5"],
    }
    assert "208 diagrams: 203 maps in 4 mixes and 5 constants (bias); 208 weights" in text


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_explain_counts_only_diagrams_that_small_sizes_allow(
    size: int, write: Callable[[str, str], Path]
) -> None:
    done = cli("explain", write("square.yaml", "w: [0, 0]"), "--size", f"0={size}", "--no-bias")
    maps = {1: 1, 2: 8, 3: 14, 4: 15}[size]
    table = rows(done.out, "one matrix for each signature")
    mixes = sum(line[0].startswith("mix_") for line in table)
    assert (
        f"{maps} diagrams: {maps} maps in {mixes} mixes and 0 constants (bias); {maps} weights"
    ) in done.out
    assert f"{maps} diagrams in {mixes} mixes, {maps} weights" in done.out
    assert sum(int(line[5]) for line in table if len(line) > 5) == maps


def test_explain_shows_both_sides_of_a_different_output(
    spec: Path, write: Callable[[str, str], Path]
) -> None:
    out = write("out.yaml", "total: []\nrest: {$list: [[2, {fixed: 3}], [[1, 2]]]}")
    done = cli("explain", spec, "--out-spec", out, "--out-channels", 4)
    assert done.code == 0
    assert f"{spec}, inputs: 4 tensors, 3 labels\n" in done.out
    assert "'total'  ()  scalar  channels 4\n" in done.out
    assert "0  (2, Fixed(3))  ? x 3  channels 4\n" in done.out
    assert "1  ((1, 2),)  any size  channels 4\n" in done.out
    assert "(2,): input ['Dense_1']['bias'], output ['rest'][0]\n" in done.out
    assert "Parts of composite axes count one by one" in done.out


def test_explain_of_one_tensor_at_the_root(write: Callable[[str, str], Path]) -> None:
    done = cli("explain", write("leaf.json", "[0, 1]"))
    assert "tensor  (0, 1)  any size  channels 1 -> 1\n" in done.out


def test_program_prints_what_parses_back(spec: Path) -> None:
    program = sc.compile(MLP, in_channels=1, out_channels=1, backend="numpy").program
    whole = cli("explain", spec, "--program").out
    printed = whole[whole.index("\nprogram(reduce=") + 1 :]
    assert parse_program(printed) == program
    short = cli("explain", spec).out
    missing = len(str(program).splitlines()) - 20
    assert short.endswith(f"... {missing} more lines; --program prints them all\n")
    assert str(program).splitlines()[19] in short
    assert str(program).splitlines()[20] not in short


def test_output_to_a_pipe_is_plain_and_not_wrapped(tmp_path: Path) -> None:
    dump_spec(nest(199), tmp_path / "deep.yaml")
    done = shell("explain", tmp_path / "deep.yaml")
    text = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"")
    assert all(char.isprintable() for line in text.split("\n") for char in line)
    (leaf,) = re.findall(r".*\(0,\)  any size  channels 1 -> 1", text)
    assert len(leaf) > 700  # 199 levels of the tree on one line


def test_letters_that_the_terminal_lacks_are_escaped(write: Callable[[str, str], Path]) -> None:
    path = write("spec.yaml", "鍵: [ключ]")
    env = {**PLAIN, "PYTHONIOENCODING": "ascii"}
    done = shell("explain", path, env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"'\u9375'" in done.stdout
    assert shell("explain", path.with_name("нет.yaml"), env=env).returncode == 2


@pytest.mark.parametrize("words", [("explain", "SPEC"), ("compile", "SPEC"), ("compile", "--help")])
def test_a_closed_pipe_is_no_traceback(spec: Path, words: tuple[str, ...]) -> None:
    read, write_end = os.pipe()
    os.close(read)
    with open(write_end, "wb") as closed:
        done = subprocess.run(
            [str(COMMAND), *(str(spec) if word == "SPEC" else word for word in words)],
            stdout=closed,
            stderr=subprocess.PIPE,
            env=PLAIN,
            timeout=120,
        )
    assert done.returncode == 1
    assert done.stderr == b""


# --- check ---------------------------------------------------------------------------------------


def test_check_passes_a_right_layer_with_figures(write: Callable[[str, str], Path]) -> None:
    done = cli("check", write("graph.yaml", "{w: [n, n], x: [n, {fixed: 2}]}"))
    assert (done.code, done.err) == (0, "")
    assert re.search(r"^equivariance \(numpy\): ok .*largest error \d", done.out, re.M)
    assert re.search(r"^agreement \(numpy\): ok .*\n +numpy optimize=auto float64", done.out, re.M)
    # 15 maps w -> w, 2 x 5 each way between w and x, 2 x 2 x 2 x -> x; 2 + 2 constants.
    assert "completeness: ok complete: 43 weights, rank 43, dimension 43, 4 constants" in done.out


def test_check_runs_every_installed_backend(write: Callable[[str, str], Path]) -> None:
    done = cli("check", write("set.yaml", "x: [n]"), "--backend", "all", "--backend", "numpy")
    assert done.code == 0, done.out
    checked = re.findall(r"^equivariance \((\w+)\): ok", done.out, re.M)
    assert checked == list(backend_names())
    assert f"agreement ({', '.join(checked)}): ok" in done.out


def test_check_skips_the_rank_of_large_tensors_and_says_so(
    write: Callable[[str, str], Path],
) -> None:
    done = cli("check", write("wide.yaml", "x: [n, {fixed: 100}]"))
    assert done.code == 0
    assert "completeness: skipped" in done.out
    # 2**40 numbers are refused before any is drawn.
    huge = write("huge.yaml", "x: [n, {fixed: 1099511627776}]")
    refused(cli("check", huge), "the layer has .* weights, more than")


def test_check_reports_a_planted_fault_and_exits_1(
    write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = symcompile_numpy.layer.run

    def wrong(*arguments: Any) -> list[Any]:
        return [np.cumsum(output, axis=-2) for output in right(*arguments)]

    monkeypatch.setattr(symcompile_numpy.layer, "run", wrong)
    done = cli("check", write("set.yaml", "x: [n]"))
    assert done.code == 1
    assert "equivariance (numpy): FAILED not equivariant" in done.out
    assert "completeness: FAILED" in done.out
    assert "agreement (numpy): ok" in done.out  # both plans have the fault
    assert done.err == "Check failed: 2 checks failed, see above\n"


def test_check_refuses_bad_words(spec: Path) -> None:
    refused(cli("check", spec, "--backend", "tf"), "backend='tf' is not known")
    refused(cli("check", spec, "--seed", "-1"), "--seed: found -1")


# --- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_the_file_format(command: str) -> None:
    done = cli(command, "--help")
    assert done.code == 0
    assert re.search(r"^    symcompile \w+ \w+\.yaml", done.out, re.M)
    for line in FORMAT.split("\b\n")[1].split("\n\n")[0].splitlines():
        assert f"  {line}\n" in done.out  # not reflowed


def test_the_spec_in_the_help_is_one() -> None:
    example = FORMAT.split("\b\n")[1].split("\n\n")[0]
    params = loads_spec(example, "yaml").to_python()["params"]
    assert (params["scale"], params["layers"]) == ((), [(0,), (0,)])
    assert params["Conv_0"] == {
        "kernel": (1, 2, None, None),
        "taps": (2, sc.Fixed(9)),
        "flat": (("heads", 3),),
    }


def test_the_root_help_lists_the_commands_and_version_prints_it() -> None:
    done = cli("--help")
    assert done.code == 0
    for command in COMMANDS:
        assert re.search(rf"^  {command}  +\S", done.out, re.M)
    assert cli("--version").out == f"symcompile {sc.__version__}\n"


@pytest.mark.parametrize(
    "words", [(), ("nonsense",), ("compile",), ("explain", "--nonsense"), ("check", "a", "b")]
)
def test_wrong_usage_exits_2_and_shows_usage(words: tuple[str, ...]) -> None:
    done = cli(*words)
    assert done.code == 2
    assert "Usage: symcompile" in done.out + done.err


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['symcompile', 'compile', '--help']\n"
        "from symcompile.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'sympy', 'networkx', 'torch', 'jax', 'yaml', 'rich', 'symcompile.api'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr == "[]\n"
    assert done.stdout.startswith("Usage: ")


def test_escaped_keeps_what_prints() -> None:
    assert escaped("a é 鍵 [red]\\") == "a é 鍵 [red]\\"
    assert escaped("\x1b\x00\n\u202e", keep="") == r"\x1b\x00\n\u202e"


# --- the page ------------------------------------------------------------------------------------


def test_the_page_shows_what_its_commands_print(tmp_path: Path) -> None:
    blocks = [
        (token.info, token.content)
        for token in MarkdownIt().parse(PAGE.read_text(encoding="utf-8"))
        if token.type == "fence"
    ]
    assert {language for language, _ in blocks} == {"bash", "text"}
    env = {**PLAIN, "PATH": os.pathsep.join([str(COMMAND.parent), PLAIN.get("PATH", "")])}
    printed = ""
    for language, text in blocks:
        if language == "text":
            assert text in printed
            continue
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        printed = done.stdout + done.stderr


def test_the_spec_is_never_overwritten_by_its_source(tmp_path):
    spec = tmp_path / "spec.json"
    spec.write_text('{"w": [0, 1]}')
    result = CliRunner().invoke(app, ["compile", str(spec), "-o", str(spec)])
    assert result.exit_code == 2
    assert spec.read_text() == '{"w": [0, 1]}'
