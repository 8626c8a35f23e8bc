"""Specs from a stranger: whatever the keys and labels are, a working layer or a clear error.

In: specs renamed to hostile keys and labels. The one thing to know: a layer's weights depend on
structure alone, so a hostile spec must compute exactly what its tame twin does.
"""

from __future__ import annotations

import ast
import builtins
import io
import itertools
import keyword
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import symcompile as sc
from symcompile.api import compile_spec
from symcompile.codegen import get_backend
from tests.spec_strategies import HOSTILE, nest, spec_trees

pytestmark = pytest.mark.usefixtures("quick_xla")

BACKENDS = ["torch", "jax"]

CODE = [
    "__import__('os').system('touch PWNED')",
    "');open('PWNED','w');('",
    "\nopen('PWNED','w')\n",
    "\ropen('PWNED','w')\r",
    "\x0copen('PWNED','w')",
    "'''\nopen('PWNED','w')\n'''",
    '"""\nopen("PWNED","w")\n"""',
    "\\\nopen('PWNED','w')",
    "# coding: rot13",
    "{__import__('os').system('touch PWNED')}",
    "${open('PWNED','w')}",
]
FORMATS = ["{", "}", "{}", "{0}", "{name}", "{{", "}}", "{header}", "%s", "%(x)s", "%", "$x", "#"]
# Names that the templates or the generated statements use themselves.
OURS = [
    *["x", "leaves", "batch", "torch", "self", "jnp", "jax", "nn", "dtype", "wide", "params"],
    *["weights", "weight", "mix_scalar", "mix_0", "mix_a", "bias", "TENSORS", "SCALES", "WEIGHTS"],
    *["ShapeError", "EquivariantLinear", "forward", "apply", "init", "_read", "_check", "_draw"],
    *["sum_x", "to_x", "mixed", "out_x", "tree", "one", "n_0", "in_scalar", "x_mean_0", "x_T"],
]
LOOKALIKES = [
    "\uff58",
    "\u0445",
    "\u017f",
    "\ufb01",
    "\u212a",
    "n\u0303",
    "\u202e",
    "\u2066",
    "\u3164",
]
PYTHONS = [*keyword.kwlist, *keyword.softkwlist, *sorted({*dir(builtins)} - {"_"})]
NAMES = list(dict.fromkeys([*HOSTILE, *CODE, *FORMATS, *OURS, *LOOKALIKES, *PYTHONS]))

FUNCTIONS = {
    "torch": {
        *["_read", "_check", "_cast", "_common_dtype", "_flatten", "_place", "_draw"],
        "_orthogonal",
        *["ShapeError", "super", "__init__", "tuple", "zip", "enumerate", "isinstance", "hasattr"],
        *["len", "type", "range", "join", "keys", "items", "update", "append", "format", "sorted"],
        *[
            "no_grad",
            "empty",
            "Parameter",
            "reset_parameters",
            "named_parameters",
            "copy_",
            "zero_",
        ],
        *["_shared_out", "share"],
        *[
            "randn",
            "tensor",
            "qr",
            "sgn",
            "dim",
            "promote_types",
            "is_complex",
            "to",
            "mean",
            "sum",
        ],
        *[
            "is_autocast_enabled",
            "get_autocast_dtype",
            "cat",
            "split",
            "movedim",
            "diagonal",
        ],
        *["expand", "contiguous", "clone", "reshape", "new_zeros", "add_", "ones"],
        *["weights", "dict", "bmm", "transpose", "unbind", "stack", "detach", "any", "pop"],
        *[
            "_mean",
            "_product",
            "_exporting",
            "_flat",
            "_fill",
            "_places",
            "flatten",
            "view",
            "arange",
            "index_put_",
            "_side_by_side",
            "_can_move",
            "__setstate__",
            "is_shared",
            "_lay_out",
            "_apply",
            "apply",
            "all",
            "type",
            "is_contiguous",
            "data_ptr",
            "untyped_storage",
            "as_strided",
            "stride",
            "get",
            "is_compiling",
            "_LINEAR",
            "_linear",
            "linear",
            *["_define", "define", "impl", "register_fake", "register_autograd"],
            "conv2d",
            "_transformed",
            "_in_transform",
            *["_differs", "forward"],
            *["_mixed", "_is_wide", "mixed", "_onto", "unflatten", "Size", "nbytes"],
            *["get_capabilities", "is_available", "str"],
            *["_linear_sum", "_fits", "_in_one_go", "_joined", "_add_product", "linear_sum"],
            *["_two_means_held", "sums_held", "_reads_once"],
            *["_two_means", "sums", "_fill_vectors", "_has_kernels", "max", "list"],
            *["_are_made", "known"],
            "_outer",
            "convolution_backward",
            "new_empty",
            "save_for_backward",
            "save_for_forward",
            "numel",
            "permute",
            "t",
            "_unsafe_view",
            "is_grad_enabled",
            *["_by_product", "_is_outer", "_along", "reduce", "index", "remove"],
            "new_ones",
            "div_",
            "unsqueeze",
            "getattr",
            *["_given", "_layer", "_gradients", "_weight_gradients", "_node", "is_tracing"],
            *["keep", "clear", "is_floating_point", "mixed_back", "_is_legacy_batched"],
            "_is_batched",
            "_made",
            *["_divided", "tensor", "zeros_like", "enable_grad", "inference_mode", "grad"],
            *["_outers", "_outer_of", "_beside", "outer", "map", "view_as"],
            *["_sum_and_outer", "_lacking", "back_from", "squeeze", "_two_sums"],
            "_save_to_state_dict",
            "_load_from_state_dict",
        ],
    },
    "jax": {
        *["_read", "_check", "_common_dtype", "_flatten", "_place", "_draw", "_weights", "_equal"],
        *["ShapeError", "tuple", "zip", "enumerate", "isinstance", "hasattr", "len", "type"],
        *["range", "join", "keys", "items", "values", "update", "append", "sorted", "split"],
        *["dtype", "result_type", "zeros", "normal", "orthogonal", "array", "ix_", "set", "max"],
        *["asarray", "issubdtype", "promote_types", "astype", "mean", "sum", "concatenate"],
        *["moveaxis", "diagonal", "broadcast_to", "reshape", "where", "arange", "ones", "draw"],
        *["_noise", "_drawn", "share", "_scaled", "_orthogonal", "jit", "qr", "abs", "conj"],
        *["devices", "default_device", "device_get", "device_put", "TypeError"],
        *["map", "repeat", "flatnonzero", "_diagonal", "slice_in_dim"],
        *["_linear_sum", "_joined", "fits", "linear_sum", "transpose", "get"],
        *["_mixed", "mixed", "getattr", "prod", "_stored", "_onto"],
        *["_two_means", "two_means_fit", "two_means", "_two_means_held", "two_means_held"],
    },
}
"""Every function that generated source may call; `split` is also that of random keys."""


def called(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            match node.func:
                case ast.Name(id=name) | ast.Attribute(attr=name):
                    names.add(name)
                case other:
                    names.add(ast.dump(other))
    return names


def identifiers(source: str) -> Iterator[str]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME:
            yield token.string


def harmless(source: str, backend: str) -> None:
    """No text of a spec is code: only known calls, plain names and known lines of comment."""
    tree = ast.parse(source)
    assert called(tree) <= FUNCTIONS[backend]
    for name in identifiers(source):
        assert name.isascii()
        assert len(name) < 80
        assert not name.startswith("__") or name in ("__init__", "__name__", "__setstate__")
        assert name != "PWNED"
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):  # only the templates' own, which hold no spec text
            assert "PWNED" not in ast.unparse(node)
    head, *_ = source.partition("\nimport ")
    assert all(not line or line.startswith("#") for line in head.splitlines())


def twin(first: str, second: str, label: Any, other: Any) -> Any:
    return {first: {second: (label, label)}, second: (other,), LAST: [(label, other), ()]}


LAST = "the last two"

TAME = twin("first", "second", "p", "q")
SIZES = {"p": 3, "q": 2}


def data(first: str, second: str) -> Any:
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return rng.standard_normal((2, *shape, 1))

    pp, q, pq, s = draw(3, 3), draw(2), draw(3, 2), draw()
    return {first: {second: pp}, second: q, LAST: [pq, s]}


def run(spec: Any, first: str, second: str, backend: str) -> tuple[list[Any], Any]:
    layer = sc.compile(spec, in_channels=1, out_channels=2, backend=backend)
    x = data(first, second)
    # Element by element of the basis, as row and column orders follow the sorted paths.
    weights = {name: np.zeros(shape, np.float32) for name, shape in layer.compiled.shapes.items()}
    paths = {
        (first, second): "pp", (second,): "q", (LAST, 0): "pq", (LAST, 1): "s", None: "one",
    }  # fmt: skip
    for element in layer.basis:
        signature = (paths[element.output], paths[element.input], element.diagram.blocks)
        seed = int.from_bytes(repr(signature).encode(), "little") % 2**32
        block = np.random.default_rng(seed).standard_normal((1, 2))
        if element.rows is None:
            weights[element.weight][element.cols] = block[0]
        else:
            weights[element.weight][element.rows, element.cols] = block
    if backend == "torch":
        layer.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
        x = {
            key: (
                [torch.from_numpy(leaf) for leaf in value]
                if isinstance(value, list)
                else {k: torch.from_numpy(leaf) for k, leaf in value.items()}
                if isinstance(value, dict)
                else torch.from_numpy(value)
            )
            for key, value in x.items()
        }
        with torch.no_grad():
            y = layer(x)
    else:
        with jax.enable_x64(True):
            y = jax.jit(layer.apply)(weights, x)
    flat = [y[first][second], y[second], *y[LAST]]
    return [np.asarray(leaf) for leaf in flat], layer


def source_of(spec: Any, backend: str, **options: Any) -> str:
    return get_backend(backend).emit(compile_spec(spec, **options))


def refused(call: Callable[[], object]) -> str | None:
    """The message of symcompile's own error, if `call` raises one."""
    try:
        call()
    except sc.SymcompileError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def expected() -> list[Any]:
    return run(TAME, "first", "second", "torch")[0]


@pytest.fixture(autouse=True)
def _nothing_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


def check(names: tuple[str, str, str, str], backend: str, expected: list[Any]) -> None:
    first, second, label, other = names
    found, layer = run(twin(first, second, label, other), first, second, backend)
    for one, tame in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, tame, rtol=1e-9, atol=1e-9)
    harmless(layer.source, backend)


@pytest.mark.parametrize("start", range(0, len(NAMES), 2))
def test_every_bad_name_in_torch(start: int, expected: list[Any]) -> None:
    chosen = [NAMES[(start + k) % len(NAMES)] for k in range(4)]
    check((chosen[0], chosen[1], chosen[2], chosen[3]), "torch", expected)


@pytest.mark.parametrize("start", range(0, len(NAMES), 40))
def test_some_bad_names_in_jax(start: int, expected: list[Any]) -> None:
    chosen = [NAMES[(start + k) % len(NAMES)] for k in range(4)]
    check((chosen[0], chosen[1], chosen[2], chosen[3]), "jax", expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_bad_name_alone_is_harmless_as_source(backend: str) -> None:
    for name in NAMES:
        spec = {name: (name, name)}
        harmless(source_of(spec, backend, in_channels=1, out_channels=1), backend)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(NAMES) | st.text(max_size=6), min_size=4, max_size=4, unique=True))
def test_drawn_names_in_torch(expected: list[Any], names: list[str]) -> None:
    chosen = (names[0], names[1], names[2], names[3])
    refusal = refused(lambda: check(chosen, "torch", expected))
    assert refusal is None or "\n" not in refusal


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spec=spec_trees())
def test_drawn_specs_compile_or_are_refused(backend: str, spec: Any) -> None:
    def emit() -> None:
        source = source_of(spec, backend, in_channels=1, out_channels=1, max_basis=2_000)
        harmless(source, backend)

    refusal = refused(emit)
    assert refusal is None or len(refusal) < 2000


def test_a_planted_fault_is_found() -> None:
    """`harmless` itself: each of these must be refused."""
    source = sc.compile(TAME, in_channels=1, out_channels=1).source
    for planted in (
        "open('PWNED')",
        "PWNED = 1",
        "__builtins__",
        "(lambda: 0)()",
        "caf\u00e9 = 1",
    ):
        with pytest.raises(AssertionError):
            harmless(f"{source}\n{planted}\n", "torch")
    with pytest.raises(AssertionError):
        harmless(source.replace("# Generated", "Generated = 1 #"), "torch")


# -- size --------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("depth", [1, 15, 16, 17, 50, 100, 200])
def test_deep_trees_work(depth: int, backend: str) -> None:
    spec = nest(depth)
    layer = sc.compile(spec, in_channels=1, out_channels=1, backend=backend)

    def tree(leaf: Any) -> Any:
        for level in range(depth):
            leaf = {"k": leaf} if level % 2 else [leaf]
        return leaf

    if backend == "torch":
        y = layer(tree(torch.ones(3, 1)))
    else:
        y = layer.apply(layer.init(jax.random.key(0)), tree(np.ones((3, 1))))
    for level in reversed(range(depth)):
        y = y["k"] if level % 2 else y[0]
    assert y.shape == (3, 1)


def test_deeper_trees_are_refused() -> None:
    for depth in (201, 5_000):
        with pytest.raises(sc.SpecError, match="200 levels"):
            sc.compile(nest(depth), in_channels=1, out_channels=1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_labels_of_equal_size(backend: str) -> None:
    names = [*HOSTILE, *CODE, "stack_0", "STACKS", "filled", "filled_0", "FILLED"][-14:]
    spec = [(one, two) for one, two in itertools.pairwise(names)]
    sizes = dict.fromkeys(names, 2)
    layer = sc.compile(spec, in_channels=1, out_channels=1, backend=backend, sizes=sizes)
    harmless(layer.source, backend)
    assert ("STACKS = (" in layer.source) == (backend == "torch")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_thousand_tensors(backend: str) -> None:
    spec = {f"layer {k}": (k, k + 1) if k % 2 else (k,) for k in range(1000)}
    layer = sc.compile(spec, in_channels=1, out_channels=1, backend=backend, max_basis=10**7)
    harmless(layer.source, backend)
    if backend == "torch":
        x = {key: torch.ones(*[2] * len(leaf), 1) for key, leaf in spec.items()}
        y = layer(x)
        assert {key: leaf.shape for key, leaf in y.items()} == {k: v.shape for k, v in x.items()}
