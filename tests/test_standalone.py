"""Generated files stand alone: they import their framework only, and are the same to the byte.

In: exported files. The one thing to know: they are run in a process in which importing symcompile,
or any backend of it, raises.
"""

from __future__ import annotations

import ast
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import symcompile as sc
from tests.backend_cases import CUBE, MLP, SPEC, inputs, random_weights

BACKENDS = ["torch", "jax"]
IMPORTS = {
    "torch": {"torch"},
    "jax": {"sys", "jax", "jax.numpy", "numpy"},
}  # JAX needs NumPy itself

BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0].startswith("symcompile"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocker())
try:
    import symcompile
except ImportError:
    pass
else:
    raise SystemExit("the blocker does not block")
import importlib.util, pickle
spec = importlib.util.spec_from_file_location("generated", sys.argv[1])
generated = importlib.util.module_from_spec(spec)
sys.modules["generated"] = generated
spec.loader.exec_module(generated)
with open(sys.argv[2], "rb") as file:
    weights, x, expected = pickle.load(file)
import numpy as np
def compare(found, expected):
    if isinstance(expected, dict):
        assert set(found) == set(expected)
        for key in expected:
            compare(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected):
            compare(one, other)
    else:
        np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-11, atol=1e-11)
"""

RUN = {
    "torch": """
import torch
from torch.utils import _pytree
layer = generated.EquivariantLinear()
assert layer.bias.dtype == torch.float32
assert generated.EquivariantLinear(dtype=torch.bfloat16, device="meta").bias.is_meta
layer = generated.EquivariantLinear(dtype=torch.float64, device="cpu")
layer.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()}, strict=True)
with torch.no_grad():
    compare(layer(_pytree.tree_map(torch.from_numpy, x)), expected)
call = lambda x: layer(x)
""",
    "jax": """
import jax
jax.config.update("jax_enable_x64", True)
params = generated.init(jax.random.key(0))
assert {value.dtype.name for value in params.values()} == {"float64"}
params = generated.init(jax.random.key(0), dtype="float32")
assert {value.dtype.name for value in params.values()} == {"float32"}
assert {name: w.shape for name, w in params.items()} == {n: w.shape for n, w in weights.items()}
compare(jax.jit(generated.apply)(weights, x), expected)
call = lambda x: generated.apply(weights, x)
""",
}

MISFIT = """
try:
    call({"nothing": None})
except generated.ShapeError as error:
    assert "expected" in str(error), error
else:
    raise SystemExit("a misfit was accepted")
assert not [name for name in sys.modules if name.startswith("symcompile")]
print("done")
"""


def run(code: str, *arguments: Any, **environment: str) -> str:
    # Isolated: neither the working directory nor PYTHONPATH is searched.
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spec", [SPEC, CUBE])
def test_the_file_alone_gives_the_same_numbers(backend: str, spec: Any, tmp_path: Path) -> None:
    path = sc.export(spec, tmp_path / "layer.py", backend=backend, in_channels=2, out_channels=3)
    oracle = sc.compile(spec, in_channels=2, out_channels=3, backend="numpy")
    weights, x = random_weights(oracle), inputs(spec, 2)
    with open(tmp_path / "case", "wb") as file:
        pickle.dump((weights, x, oracle.apply(weights, x)), file)
    code = BLOCKER + RUN[backend] + MISFIT
    assert run(code, path, tmp_path / "case") == "done\n"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spec", [SPEC, CUBE, MLP])
def test_it_imports_its_framework_only(backend: str, spec: Any, tmp_path: Path) -> None:
    path = sc.export(spec, tmp_path / "layer.py", backend=backend, in_channels=1, out_channels=1)
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add(str(node.module))
    assert found == IMPORTS[backend]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("optimize", [False, "auto"])
def test_it_compiles_without_a_warning(backend: str, optimize: Any) -> None:
    for spec in (SPEC, CUBE, MLP):
        layer = sc.compile(spec, in_channels=2, out_channels=3, backend=backend, optimize=optimize)
        # pytest turns warnings into errors.
        compile(layer.source, "generated.py", "exec")


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_tidy(backend: str) -> None:
    for spec in (SPEC, CUBE, MLP):
        source = sc.compile(spec, in_channels=2, out_channels=3, backend=backend).source
        assert source.endswith("\n")
        assert not source.endswith("\n\n")
        for line in source.split("\n"):
            assert line == line.rstrip()
            assert "\t" not in line
            assert len(line) <= 120
        for node in ast.walk(ast.parse(source)):
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Name(id=alias)):
                    raise AssertionError(f"{name} = {alias} is a second name for one value")


@pytest.mark.parametrize("backend", BACKENDS)
def test_lint_finds_no_fault(backend: str, tmp_path: Path) -> None:
    """Unused imports and names, undefined names, shadowed definitions."""
    path = sc.export(SPEC, tmp_path / "layer.py", backend=backend, in_channels=2, out_channels=3)
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E9,F", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_header_says_what_it_is(backend: str) -> None:
    layer = sc.compile(SPEC, in_channels=2, out_channels=3, backend=backend, sizes={"a": 3})
    head = layer.source.partition("\nimport ")[0]
    assert all(line.startswith("#") or not line for line in head.split("\n"))
    assert sc.__version__ in head
    assert layer.spec.digest[:16] in head
    for line in ("['w']: ('a', 'a') x 2", "['w']: ('a', 'a') x 3", "sizes: {'a': 3}"):
        assert line in head
    for line in layer.plan.summary().split("\n"):
        assert line.rstrip() in head
    assert f"{layer.plan.diagrams:,} diagrams" in head


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_bytes_under_any_hash_seed(backend: str) -> None:
    code = (
        "import sys, symcompile as sc\n"
        "from tests.backend_cases import SPEC\n"
        f"layer = sc.compile(SPEC, in_channels=2, out_channels=3, backend={backend!r})\n"
        "sys.stdout.write(layer.source)"
    )
    root = Path(__file__).resolve().parent.parent
    found = set()
    for seed in ("0", "1", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        )
        found.add(done.stdout)
    (source,) = found
    layer = sc.compile(SPEC, in_channels=2, out_channels=3, backend=backend)
    assert source.decode("utf-8") == layer.source


def test_the_order_of_a_spec_changes_only_the_result() -> None:
    """The weights are canonical; the tree that is returned keeps the user's order."""
    one = sc.compile({"a": (0,), "b": (0, 1)}, in_channels=1, out_channels=1)
    two = sc.compile({"b": (0, 1), "a": (0,)}, in_channels=1, out_channels=1)
    assert one.compiled.shapes == two.compiled.shapes
    changed = [
        (first, second)
        for first, second in zip(one.source.split("\n"), two.source.split("\n"), strict=True)
        if first != second
    ]
    assert all("return" in first and "return" in second for first, second in changed)


def test_class_name_and_dtype_options(tmp_path: Path) -> None:
    source = sc.compile(
        SPEC, in_channels=2, out_channels=3, name="WeightLayer", dtype="bfloat16"
    ).source
    classes = [node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    assert [name for name in classes if name[0] != "_"] == ["ShapeError", "WeightLayer"]
    assert "torch.bfloat16" in source


@pytest.mark.parametrize("name", ["super", "len", "tuple", "ValueError", "torch", "ShapeError"])
def test_a_class_name_the_file_needs_itself_is_refused(name: str) -> None:
    with pytest.raises(sc.OptionError, match="no class name"):
        sc.compile({"x": (0,)}, in_channels=1, out_channels=1, name=name)


def test_export_writes_what_the_layer_runs(tmp_path: Path) -> None:
    for backend in BACKENDS:
        layer = sc.compile(SPEC, in_channels=2, out_channels=3, backend=backend)
        path = sc.export(
            SPEC, tmp_path / f"{backend}.py", backend=backend, in_channels=2, out_channels=3
        )
        assert path.read_text("utf-8") == layer.source
    for wrong in (tmp_path / "no" / "layer.py", tmp_path, "null\0byte"):
        with pytest.raises(sc.ExportError, match="cannot write"):
            sc.export({"x": (0,)}, wrong, backend="torch", in_channels=1, out_channels=1)
    assert len(list(tmp_path.iterdir())) == 2
