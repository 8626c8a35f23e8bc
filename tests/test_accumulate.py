"""Sums in place: which ones, what anchors them, and that vmap still works."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

import symcompile as sc
from symcompile.api import compile_spec
from symcompile.codegen import get_backend
from symcompile.ir import Add, Mix, accumulations

MLP = {"k": (0, 1), "b": (1,)}
FOUR = {"in_channels": 4, "out_channels": 4}


def test_a_large_sum_is_accumulated_into_the_mix_that_reads_its_input_whole():
    program = compile_spec(MLP, **FOUR).program
    ((total, found),) = accumulations(program).items()
    assert isinstance(program.ops[total], Add)
    base = program.ops[found.base]
    assert isinstance(base, Mix)
    assert base.weight == "mix_0_1"
    assert found.anchors  # row and column terms come from other weights


@pytest.mark.parametrize(
    ("spec", "sizes", "weights"),
    [
        ({"x": (0,)}, {}, ["mix_0"]),
        ({"x": (0,)}, {0: 9}, ["mix_0"]),
        ({"x": (0,), "w": (1, 2)}, {}, ["mix_1_2"]),
        ({"x": (0,), "w": (1, 2)}, {0: 64, 1: 64, 2: 8}, ["mix_1_2"]),
        ({"x": (0,), "w": (1, 2)}, {0: 64, 1: 64, 2: 7}, ["mix_0", "mix_1_2"]),
        ({"x": (sc.Fixed(9), 0), "w": (1, 2)}, {0: 64, 1: 64, 2: 8}, ["mix_0", "mix_1_2"]),
        ({"x": (sc.Fixed(9), 0), "b": (1,)}, {}, ["mix_0"]),
        ({"x": (0,), "g": (sc.Fixed(9),)}, {}, ["mix_0"]),
        ({"x": (0,), "g": (sc.Fixed(9),)}, {0: 1}, []),
        ({"x": (sc.Fixed(127), 0)}, {}, ["mix_0"]),
        ({"x": (sc.Fixed(128), 0)}, {}, []),  # its product takes far longer
        ({"x": ()}, {}, []),
    ],
    ids=str,
)
def test_a_sum_over_one_axis_is_too_if_it_is_not_small_beside_the_largest_tensor(
    spec, sizes, weights
):
    program = compile_spec(spec, **FOUR, sizes=sizes).program
    bases = [program.ops[found.base] for found in accumulations(program).values()]
    assert sorted(base.weight for base in bases) == weights


def test_nothing_is_in_place_unless_the_program_says_so():
    program = compile_spec(MLP, **FOUR).program
    assert program.in_place
    assert accumulations(replace(program, in_place=False)) == {}
    assert not compile_spec(MLP, **FOUR, optimize=False).program.in_place


TWO = {"x": (0, 1)}, {"y": (0, 1), "z": (0, 1)}


def test_a_mix_that_something_else_reads_is_left_alone():
    # Small, one mix makes both outputs, so neither may be summed into it.
    program = compile_spec(*TWO, **FOUR, sizes={0: 5, 1: 5}).program
    assert accumulations(program) == {}


def test_large_outputs_of_one_mix_are_products_of_their_own_that_their_sums_are_made_in():
    program = compile_spec(*TWO, **FOUR, sizes={0: 300, 1: 300}).program
    bases = [program.ops[found.base] for found in accumulations(program).values()]
    assert [(op.weight, op.rows, op.cols) for op in bases] == [
        ("mix_0_1", (0, 4), (0, 4)),
        ("mix_0_1", (0, 4), (4, 8)),
    ]


GRAPHS = [
    (2, "time", [(1, 0)]),
    (3, "peak", [(0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]),
]


@pytest.mark.parametrize(("order", "minimize", "axes"), GRAPHS)
def test_products_of_an_input_are_made_when_they_are_added(order, minimize, axes):
    options = {"in_channels": 32, "out_channels": 32, "sizes": {0: 64}, "minimize": minimize}
    program = compile_spec({"x": (0,) * order}, **options).program
    ((_, found),) = accumulations(program).items()
    assert sorted(program.ops[term].axes for term in found.late) == axes
    for term, mix in found.late.items():
        assert program.ops[term].args == (mix,)
        assert program.ops[mix].weight == program.ops[found.base].weight


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_products_made_late_are_transposed_as_the_interpreter_has_it(backend):
    pytest.importorskip(backend)
    options = {"in_channels": 3, "out_channels": 2, "sizes": {0: 5}, "dtype": "float64"}
    compiled = compile_spec({"x": (0, 0, 0)}, **options, minimize="peak")
    ((_, found),) = accumulations(compiled.program).items()
    assert len(found.late) == 5
    oracle = get_backend("numpy").build(compiled)
    params = oracle.init(0, np.dtype("float64"))
    x = {"x": np.random.default_rng(0).standard_normal((4, 5, 5, 5, 3))}
    expected = oracle.apply(params, x)["x"]
    made = get_backend(backend).build(compiled)
    if backend == "torch":
        import torch

        made.load_state_dict({name: torch.from_numpy(value) for name, value in params.items()})
        with torch.no_grad():
            found = made({"x": torch.from_numpy(x["x"])})["x"].numpy()
    else:
        import jax

        with jax.enable_x64(True):
            found = np.asarray(made.apply(params, x)["x"])
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batched", ["x", "y", "both"])
def test_products_of_other_inputs_are_made_late_and_give_the_sum_their_batch_axes(batched):
    torch = pytest.importorskip("torch")
    spec = {"x": (0, 0), "y": (0, 0)}
    options = {"in_channels": 32, "out_channels": 32, "sizes": {0: 64}}
    layer = sc.compile(spec, **options).double()
    program = layer.compiled.program
    made = accumulations(program)
    assert len(made) == 2
    for found in made.values():
        base = program.ops[found.base].args
        assert any(program.ops[mix].args != base for mix in found.late.values())
        assert not set(found.anchors) & {*found.late, *found.late.values()}
    torch.manual_seed(0)
    x = {name: torch.randn(2, 1, 64, 64, 32, dtype=torch.float64) for name in spec}
    over = {name: 0 if batched in (name, "both") else None for name in spec}
    given = {name: x[name] if dim == 0 else x[name][0] for name, dim in over.items()}
    with torch.no_grad():
        found = torch.func.vmap(layer, ({**over},))(given)
        each = [
            layer({name: given[name][k] if over[name] == 0 else given[name] for name in spec})
            for k in range(2)
        ]
    for name in spec:
        expected = torch.stack([one[name] for one in each])
        torch.testing.assert_close(found[name], expected, rtol=1e-12, atol=1e-12)


def test_products_added_a_few_samples_at_a_time_are_those_added_at_once(monkeypatch):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    options = {"in_channels": 32, "out_channels": 32, "sizes": {0: 48}}
    layer = sc.compile({"x": (0, 0)}, **options, dtype="float32")
    monkeypatch.setattr(sys.modules[type(layer).__module__], "_KERNELS", False)
    assert ", (1, 0))," in layer.source
    for batch in [(7,), (2, 3), (1,), ()]:
        x = {"x": torch.randn(*batch, 48, 48, 32)}
        whole = layer(x)["x"]
        assert whole.requires_grad
        with torch.no_grad():
            parts = layer(x)["x"]
            each = torch.func.vmap(layer)(x)["x"] if batch else parts
        torch.testing.assert_close(parts, whole.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(each, whole.detach(), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert layer({"x": torch.randn(0, 48, 48, 32)})["x"].shape == (0, 48, 48, 32)


@pytest.mark.parametrize(("channels", "samples"), [(32, 6), (8, 29)])
def test_few_samples_make_a_large_product_still(channels, samples, monkeypatch):
    """Of few channels 1.5 MiB are multiplied too little for oneDNN."""
    torch = pytest.importorskip("torch")
    options = {
        "in_channels": channels,
        "out_channels": channels,
        "sizes": {0: 48},
        "minimize": "peak",
    }
    layer = sc.compile({"x": (0, 0)}, **options, dtype="float32")
    for name in ("_KERNELS", "_BLAS"):
        monkeypatch.setattr(sys.modules[type(layer).__module__], name, False)
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "_linear_pointwise" in str(func):
                seen.append(len(args[0]) // 48**2)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Watch():
        layer({"x": torch.randn(40, 48, 48, channels)})
    assert next(count for count in seen if 0 < count < 40) == samples


def test_one_array_of_full_size_is_made_for_an_output():
    source = sc.compile(MLP, **FOUR).source
    assert source.count(" = _linear_sum(") == 1
    assert "terms=(sum_k[..., None, :, :], to_k[..., :, None, :])" in source


@pytest.mark.parametrize("batched", ["k", "b", "mix_0_1", "mix_1", "mix_scalar", "bias"])
def test_vmap_over_any_one_input_or_weight_alone(batched):
    torch = pytest.importorskip("torch")
    layer = sc.compile(MLP, **FOUR, dtype="float64")
    rng = np.random.default_rng(0)
    weights = {
        name: torch.from_numpy(rng.standard_normal(shape))
        for name, shape in layer.compiled.shapes.items()
    }
    x = {
        "k": torch.from_numpy(rng.standard_normal((3, 5, 4))),
        "b": torch.from_numpy(rng.standard_normal((5, 4))),
    }
    everything = weights | x
    many = torch.stack([everything[batched], 2 * everything[batched]])

    def run(value):
        given = everything | {batched: value}
        tree = {name: given.pop(name) for name in ("k", "b")}
        return torch.func.functional_call(layer, given, (tree,))

    together = torch.func.vmap(run)(many)
    for place, one in enumerate(many):
        alone = run(one)
        for name in ("k", "b"):
            torch.testing.assert_close(together[name][place], alone[name])
