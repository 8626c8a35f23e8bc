"""The kernels for GPUs: held to the laws of those for CPU, by interpretation where there is no GPU.

Compiled they are too: for two generations of GPUs, in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import symcompile as sc
from symcompile_torch.kernels import AVAILABLE
from tests import operator_laws as laws
from tests.kernel_cases import recipes

tl = pytest.importorskip("triton.language")
interpreter = pytest.importorskip("triton.runtime.interpreter")
kernels = pytest.importorskip("symcompile_torch.triton")

ops = torch.ops.symcompile
ON_GPU = torch.cuda.is_available()


@pytest.fixture(scope="module", autouse=True)
def by_triton() -> Iterator[None]:
    """Operators are computed by Triton: on the GPU, or in place of the kernels for CPU."""
    if ON_GPU:
        with torch.device("cuda"):
            yield
        return
    with (
        pytest.MonkeyPatch.context() as patch,
        torch.library._scoped_library("symcompile", "IMPL") as library,
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Warning only once", UserWarning)  # it is overridden
        multiply_bfloat16(patch)
        for name, compute in kernels.COMPUTES.items():
            library.impl(name, compute, "CPU", allow_override=AVAILABLE)
        yield


def multiply_bfloat16(patch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter takes the bits of bfloat16 for integers in products, up to 3.9."""
    builder = interpreter.InterpreterBuilder
    multiply = builder.create_dot

    def widened(part):  # type: ignore[no-untyped-def]
        if part.dtype.scalar is not tl.bfloat16:
            return part
        wide = (part.data.astype(np.uint32) << 16).view(np.float32)
        return interpreter.TensorHandle(wide, tl.float32)

    def create_dot(self, a, b, *args):  # type: ignore[no-untyped-def]
        return multiply(self, widened(a), widened(b), *args)

    patch.setattr(builder, "create_dot", create_dot)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the programs that are launched from now on."""
    launched: list[str] = []
    launch = kernels._launch

    def noted(kernel, *args, **known):  # type: ignore[no-untyped-def]
        launched.append(kernel.__name__)
        launch(kernel, *args, **known)

    monkeypatch.setattr(kernels, "_launch", noted)
    return launched


# -- the laws of the kernels for CPU --------------------------------------------------------


@settings(max_examples=40)
@given(recipes())
def test_a_sum_is_what_it_says(recipe) -> None:  # type: ignore[no-untyped-def]
    laws.a_sum_is_what_it_says(recipe)


@settings(max_examples=10)
@given(recipes())
def test_gradients_of_a_sum(recipe) -> None:  # type: ignore[no-untyped-def]
    laws.gradients_of_a_sum(recipe)


@settings(max_examples=40)
@given(st.tuples(*[st.integers(0, 12)] * 3), st.integers(1, 40), st.booleans(), st.integers(0, 9))
def test_sums_over_two_axes_and_back(sizes, width, mean, seed) -> None:  # type: ignore[no-untyped-def]
    laws.sums_over_two_axes_and_back(sizes, width, mean, seed)


@pytest.mark.parametrize(
    ("batch", "rows", "count", "inner", "depth", "width"),
    [(2, 13, 11, 1, 5, 7), (3, 29, 30, 1, 16, 16), (1, 17, 3, 4, 33, 40), (2, 1, 1, 1, 8, 8)],
)
def test_all_gradients_at_once(batch, rows, count, inner, depth, width) -> None:  # type: ignore[no-untyped-def]
    laws.all_gradients_at_once(batch, rows, count, inner, depth, width)


@settings(max_examples=2)
@given(
    st.tuples(*[st.integers(1, 9)] * 4),
    st.integers(1, 40),
    st.integers(1, 40),
    st.booleans(),
    st.integers(0, 9),
)
def test_gradients_of_means_and_a_sum_together(sizes, depth, width, mean, seed) -> None:  # type: ignore[no-untyped-def]
    laws.gradients_of_means_and_a_sum_together(sizes, depth, width, mean, seed)


@settings(max_examples=10)
@given(
    st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 40)),
    st.lists(st.integers(1, 4), min_size=1, max_size=2),
    st.integers(1, 40),
    st.integers(1, 70),
    st.integers(0, 9),
)
def test_channels_of_several_axes_are_as_joined(rows, taps, line, width, seed) -> None:  # type: ignore[no-untyped-def]
    laws.channels_of_several_axes_are_as_joined(rows, taps, line, width, seed)


def test_pytorch_finds_no_fault_with_the_operators() -> None:
    laws.pytorch_finds_no_fault_with_the_operators()


# -- what is their own ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_summed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    x, weight = laws.draw(rng, 2, 33, 70, 20).to(dtype), laws.draw(rng, 20, 24).to(dtype)
    terms = [laws.draw(rng, 2, 1, 70, 24).to(dtype), laws.draw(rng, 33, 1, 24).to(dtype)]
    found = ops.linear_sum([x], [weight], [0], [0, 1, 2], terms)
    assert found.dtype is dtype
    doubles = [term.double() for term in terms]
    exact = laws.sum_of([x.double()], [weight.double()], [0], [0, 1, 2], doubles)
    # Half a unit in the last place, and what float32 loses before; but the interpreter cuts
    # bfloat16 off instead of rounding it.
    unit = torch.finfo(dtype).eps / 2
    units = 1.01 if ON_GPU or dtype is torch.float16 else 2.01
    assert ((found.double() - exact).abs() <= units * unit * exact.abs() + 4e-6).all()
    for mean, axis in zip(ops.sums(x, 1, True), (1, 2), strict=True):
        assert mean.dtype is torch.float32
        laws.close(mean, x.double().mean(axis))
    to_weight = ops.outer(x, [0, 1, 2], found)
    assert to_weight.dtype is dtype
    wanted = x.double().flatten(0, 2).t() @ found.double().flatten(0, 2)
    assert (to_weight.double() - wanted).abs().max() <= 2 * unit * wanted.abs().max()
    leaf = x.detach().requires_grad_()
    sums = ops.sums(leaf, 1, False)
    (to_x,) = torch.autograd.grad(sums, leaf, [torch.full_like(part, 0.5) for part in sums])
    assert to_x.dtype is dtype
    assert (to_x == 1).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pytorch_finds_no_fault_with_half_types(dtype: torch.dtype) -> None:
    """Shapes and dtypes without data are those with data."""
    rng = np.random.default_rng(1)
    x, weight = laws.draw(rng, 2, 5, 6, 8).to(dtype), laws.draw(rng, 8, 8).to(dtype)
    first, second = ops.sums(x, 1, False)
    check = {"test_utils": ("test_schema", "test_faketensor"), "rtol": 1e-2, "atol": 1e-2}
    opcheck = torch.library.opcheck
    opcheck(ops.sums.default, (x, 1, True), **check)
    opcheck(ops.sums_held.default, (x, weight, 1, True), **check)
    opcheck(ops.spread.default, (first, second, 1, dtype), **check)
    opcheck(ops.linear_sum.default, ([x], [weight], [0], [0, 1, 2], [x]), **check)
    opcheck(ops.outer.default, (x, [0, 1, 2], x), **check)
    opcheck(ops.back.default, (x, x, weight, 1), **check)
    opcheck(ops.back_from.default, (x, x, weight, 1, first, second), **check)


def test_sums_of_what_does_not_merge_copy_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    launch = kernels._launch

    def noted(kernel, plan, first, second, x):  # type: ignore[no-untyped-def]
        read.append(x.data_ptr())
        launch(kernel, plan, first, second, x)

    monkeypatch.setattr(kernels, "_launch", noted)
    whole = laws.draw(np.random.default_rng(0), 2, 3, 7, 5, 16)
    for x in (whole, whole.transpose(1, 3), whole.transpose(0, 2), whole.permute(1, 3, 2, 0, 4)):
        for axis in range(3):
            for found, other in zip(ops.sums(x, axis, True), (axis, axis + 1), strict=True):
                laws.close(found, x.double().mean(other))
    assert read == [whole.data_ptr()] * 12


def test_wide_products_are_left_to_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = counted(monkeypatch)
    rng = np.random.default_rng(0)
    x, weight, term = laws.draw(rng, 3, 4, 140), laws.draw(rng, 140, 16), laws.draw(rng, 1, 4, 16)
    laws.close(
        ops.linear_sum([x], [weight], [0], [0, 1], [term]),
        x.double() @ weight.double() + term.double(),
    )
    laws.close(ops.outer(x, [0, 1], x), x.double().flatten(0, 1).t() @ x.double().flatten(0, 1))
    assert not launched


def test_float32_is_multiplied_in_tf32_only_if_pytorch_is_told_so() -> None:
    x = torch.ones(1)
    for told, done in (("highest", "tf32x3"), ("high", "tf32"), ("highest", "tf32x3")):
        torch.set_float32_matmul_precision(told)
        assert kernels._precision(x) == done


def test_what_the_kernels_do_not_take_is_refused() -> None:
    x, weight = torch.ones(2, 3), torch.ones(3, 3)
    with pytest.raises(ValueError, match="more than 8"):
        ops.linear_sum([x], [weight], [0], [0], [x] * 9)
    for call in (
        lambda: ops.linear_sum([x.double()], [weight.double()], [0], [0], []),
        lambda: ops.linear_sum([x.bfloat16()], [weight], [0], [0], []),
        lambda: ops.sums(x.double()[:, None], 0, True),
        lambda: ops.outer(x.double(), [0], x.double()),
    ):
        with pytest.raises(ValueError, match="expected one of float32, bfloat16 and float16"):
            call()
    with pytest.raises(ValueError, match=r"found \(2, 3\) times \(4, 3\)"):
        ops.linear_sum([x], [torch.ones(4, 3)], [0], [0], [])
    with pytest.raises(ValueError, match="axes differ"):
        ops.outer(x, [0], torch.ones(5, 3))
    y = torch.ones(1, 40, 40, 3)
    with pytest.raises(ValueError, match=r"expected \(1, 40, 3\)"):
        ops.back_from(y, y, weight, 1, torch.ones(1, 40, 4), torch.ones(1, 40, 3))
    with pytest.raises(ValueError, match="expected two before channels"):
        ops.back(x, x, weight, 1)


def test_places_beyond_32_bits_are_counted_in_64() -> None:
    """Of a view with steps so long: memory in between is never touched."""
    assert not kernels._is_wide((5, 7), [(700, 100)], 100)
    rng = np.random.default_rng(0)
    x = torch.empty(2**31 + 2**10).as_strided((2, 3, 7, 16), (112, 2**30, 16, 1))
    x.copy_(laws.draw(rng, *x.shape))
    assert kernels._is_wide(x.shape[:3], [x.stride()[:3]], 16)
    weight, term = laws.draw(rng, 16, 16), laws.draw(rng, 2, 1, 7, 16)
    laws.close(
        ops.linear_sum([x], [weight], [0], [0, 1, 2], [term]),
        x.double() @ weight.double() + term.double(),
    )
    for found, axis in zip(ops.sums(x, 1, False), (1, 2), strict=True):
        laws.close(found, x.double().sum(axis))
    wanted = x.double().flatten(0, 2).t() @ x.double().flatten(0, 2)
    laws.close(ops.outer(x, [0, 1, 2], x), wanted)


# -- layers ---------------------------------------------------------------------------------

SPECS = {
    "mlp": ({"w0": (0, 1), "b0": (1,), "w1": (1, 2)}, {0: 40, 1: 30, 2: 20}),
    "graph": ({"x": ("n", "n")}, {"n": 40}),
    "taps": (
        {"k0": (sc.Fixed(2), sc.Fixed(2), 0, 1), "b0": (1,), "k1": (1, 2)},
        {0: 8, 1: 9, 2: 12},
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SPECS)
def test_a_layer_by_triton_is_the_layer(name, dtype, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Values and all gradients, in one pass over each large tensor."""
    spec, sizes = SPECS[name]
    torch.manual_seed(0)
    layer = sc.compile(spec, in_channels=16, out_channels=16, sizes=sizes, machine="h100")
    layer = layer.to(device="cuda" if ON_GPU else "cpu", dtype=dtype)
    # However small, and on whatever device.
    monkeypatch.setattr(
        sys.modules[type(layer).__module__], "_has_kernels", lambda x, entries: True
    )
    shapes = {
        key: [part.size if isinstance(part, sc.Fixed) else sizes[part] for part in labels]
        for key, labels in spec.items()
    }
    leaves = {
        key: torch.randn(3, *shape, 16, dtype=dtype).requires_grad_()
        for key, shape in shapes.items()
    }
    launched = counted(monkeypatch)
    y = layer(leaves)
    # One of either for each large tensor, those that bring their own weights to the sum.
    large = sum(len(labels) > 1 for labels in spec.values())
    assert [launched.count(name) for name in ("linear_sum", "two_sums")] == [large, large]
    cotangents = [torch.randn_like(value) for value in y.values()]
    asked = [*leaves.values(), *layer.parameters()]
    found = torch.autograd.grad([*y.values()], asked, cotangents)
    assert "outer_product" in launched
    monkeypatch.undo()
    exact = layer.double()
    doubles = {key: value.detach().double().requires_grad_() for key, value in leaves.items()}
    wanted_y = exact(doubles)
    wanted = torch.autograd.grad(
        [*wanted_y.values()],
        [*doubles.values(), *exact.parameters()],
        [cotangent.double() for cotangent in cotangents],
    )
    within = 5e-6 if dtype is torch.float32 else 3e-2
    for a, b in zip((*y.values(), *found), (*wanted_y.values(), *wanted), strict=True):
        assert a.dtype is dtype
        assert (a - b).abs().max() <= within * max(b.abs().max(), 1.0)


def test_modules_use_them_for_large_tensors_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = sc.compile({"w": (0, 1)}, in_channels=16, out_channels=16)
    module = sys.modules[type(layer).__module__]
    assert module._are_made("CUDA")
    x = SimpleNamespace(is_cpu=False, is_cuda=True, dtype=torch.bfloat16)
    assert module._has_kernels(x, 2**22)
    assert not module._has_kernels(x, 2**22 - 1)
    x.dtype = torch.float64
    assert not module._has_kernels(x, 2**22)
    x.dtype, x.is_cuda = torch.float32, False  # on the meta device
    assert not module._has_kernels(x, 2**22)
    monkeypatch.setattr(module, "_TRITON", False)
    x.is_cuda = True
    assert not module._has_kernels(x, 2**22)


# -- compiled for a GPU ---------------------------------------------------------------------

COMPILE = """
import subprocess
import sys
from tempfile import NamedTemporaryFile
import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
import symcompile_torch.triton as kernels

class Absent:
    def get_current_target(self): return GPUTarget("cuda", int(sys.argv[1]), 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0

driver.set_active(Absent())

def launch(kernel, plan, *tensors, **known):
    made = kernel.warmup(*tensors, *plan.sizes, **plan.known, **known, grid=(plan.programs,))
    text = made.asm["ptx"]
    wide = any(word in text for word in ("ld.global.v4", "cp.async.cg"))
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        look = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        used = subprocess.run(look, capture_output=True, text=True, check=True).stdout
    print(kernel.__name__, wide, "REG:" in used and "STACK:0 " in used and "LOCAL:0 " in used)

kernels._launch = launch
for channels, dtype in ((16, torch.float32), (16, torch.bfloat16), (64, torch.float32)):
    x, weight = (torch.empty(*s, channels, dtype=dtype) for s in ((4, 784, 512), (channels,)))
    terms = [torch.empty(*s, channels, dtype=dtype) for s in ((4, 512), (4, 784))]
    kernels._linear_sum([x], [weight], [0], [0, 1, 2], [terms[0][:, None], terms[1][:, :, None]])
    kernels._spread(*terms, 1)
    kernels._sums(x, 1, True)
    kernels._outer(x, [0, 1, 2], x)
"""


@pytest.mark.parametrize("generation", ["80", "90"])
def test_they_compile_for_gpus_and_move_sixteen_bytes_at_a_time(generation: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Nor is anything spilled to local memory."""
    known = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, generation],
        env={**known, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    names = ["linear_sum", "linear_sum", "two_sums", "outer_product"]
    assert done.stdout.splitlines() == [f"{name} True True" for name in names * 3]
