"""`compile`, `export` and `plan`: every option, every refusal, and files written whole or not."""

from __future__ import annotations

import gc
import inspect
import os
import stat
import time
import weakref

import numpy as np
import pytest

import symcompile as sc
from symcompile import api
from symcompile.api import BASIS_LIMIT, compile_spec
from symcompile.diagrams import bell
from symcompile.planner.search import PLANNERS
from symcompile.request import parse_request

SPEC = {"w": (0, 1), "b": (1,)}
ONE = {"in_channels": 1, "out_channels": 1}


def built(**options):
    return sc.compile(SPEC, **{"backend": "numpy", **ONE, **options})


# -- options that mean nothing ----------------------------------------------------------------

REFUSED = {
    "reduce unknown": ({"reduce": "max"}, "reduce='max' is not known; choose one of 'mean', 'sum'"),
    "reduce None": ({"reduce": None}, "reduce=None is not known"),
    "optimize unknown": (
        {"optimize": "best"},
        "optimize='best' is not known; choose False, 'greedy'",
    ),
    "optimize True": ({"optimize": True}, "optimize=True is not known"),
    "optimize zero": ({"optimize": 0}, "optimize=0 is not known"),
    "minimize unknown": ({"minimize": "cost"}, "minimize='cost' is not known"),
    "init unknown": (
        {"init": "xavier"},
        "init='xavier' is not known; choose one of",
    ),
    "dtype unknown": ({"dtype": "int32"}, "dtype='int32' is not known; choose one of float16"),
    "dtype of torch": ({"dtype": "torch.int64"}, "dtype='torch.int64' is not known"),
    "dtype code": ({"dtype": "float32; import os"}, "is not known"),
    "name with a space": ({"name": "My Layer"}, "name='My Layer' is no class name"),
    "name empty": ({"name": ""}, "is no class name"),
    "name code": ({"name": "A:\n    import os\nclass B"}, "is no class name"),
    "name a keyword": ({"name": "class"}, "is no class name"),
    "name None": ({"name": None}, "name=None is no class name"),
    "name a builtin constant": ({"name": "None"}, "is no class name"),
    "name private": ({"name": "_Layer"}, "is no class name"),
    "name dunder": ({"name": "__class__"}, "is no class name"),
    "name in use": ({"name": "torch"}, "is no class name"),
    "name in use too": ({"name": "ShapeError"}, "is no class name"),
    "name in another alphabet": ({"name": "Слой"}, "is no class name"),
    "name of great length": ({"name": "L" * 101}, "is no class name"),
    "channels zero": ({"in_channels": 0}, "in_channels: found the int 0, expected a positive int"),
    "channels negative": ({"out_channels": -1}, "out_channels: found the int -1"),
    "channels a float": ({"in_channels": 1.5}, "in_channels: found the float 1.5"),
    "channels a bool": ({"in_channels": True}, "in_channels: found True"),
    "channels text": ({"out_channels": "16"}, "out_channels: found the string '16'"),
    "channels of one leaf": (
        {"in_channels": {"w": 1, "b": 0}},
        r"\['b'\]: found the int 0",
    ),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_an_option_that_means_nothing_is_refused_everywhere(options, message, tmp_path):
    for backend in ("numpy", "torch"):
        with pytest.raises(sc.OptionError, match=message):
            sc.compile(SPEC, **{**ONE, **options, "backend": backend})
    with pytest.raises(sc.OptionError, match=message):
        sc.plan(SPEC, **options)
    with pytest.raises(sc.OptionError, match=message):
        sc.export(SPEC, tmp_path / "layer.py", backend="torch", **{**ONE, **options})
    assert not list(tmp_path.iterdir())


def test_an_option_error_is_a_value_error_and_a_symcompile_error():
    assert issubclass(sc.OptionError, ValueError)
    assert issubclass(sc.OptionError, sc.SymcompileError)


@pytest.mark.parametrize("channels", [{"w": 1}, {"w": 1, "b": 1, "c": 1}, [1, 1]])
def test_channels_of_another_tree_are_refused(channels):
    with pytest.raises(sc.ShapeError, match="in_channels"):
        built(in_channels=channels)


def test_an_unknown_backend_is_refused_with_those_installed():
    message = r"backend='tensorflow' is not known; .*'jax', 'numpy', 'torch'"
    with pytest.raises(sc.BackendError, match=message):
        built(backend="tensorflow")


def test_options_are_given_by_name_only():
    with pytest.raises(TypeError):
        sc.compile(SPEC, SPEC, 1, 1)  # type: ignore[misc]
    with pytest.raises(TypeError, match="in_channel"):
        sc.compile(SPEC, in_channel=1, out_channels=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="out_channels"):
        sc.compile(SPEC, in_channels=1)  # type: ignore[call-arg]


# -- a basis too large ------------------------------------------------------------------------


@pytest.mark.parametrize("order", [8, 12, 40])
def test_a_basis_too_large_is_refused_at_once_with_its_exact_count(order):
    start = time.perf_counter()
    with pytest.raises(sc.BasisTooLargeError) as caught:
        sc.plan({"w": (0,) * order})
    elapsed = time.perf_counter() - start
    assert f"the basis has {bell(2 * order):,} elements, more than max_basis=1,000,000" in str(
        caught.value
    )
    assert "nothing was built" in str(caught.value)
    assert elapsed < 0.25


def test_twelve_axes_are_refused_within_milliseconds():
    def refuse():
        start = time.perf_counter()
        with pytest.raises(sc.BasisTooLargeError, match=f"{bell(24):,}"):
            sc.plan((0,) * 12)
        return time.perf_counter() - start

    assert min(refuse() for _ in range(5)) < 0.02


def test_the_limit_is_a_million_and_can_be_set_to_the_exact_count():
    assert BASIS_LIMIT == 1_000_000
    spec = {"w": (0, 0)}
    assert sc.plan(spec, max_basis=15).diagrams == 17
    with pytest.raises(sc.BasisTooLargeError, match="has 15 elements, more than max_basis=14"):
        sc.plan(spec, max_basis=14)


def test_small_sizes_bring_a_basis_under_the_limit():
    spec = {"w": (0, 0)}
    assert sc.plan(spec, sizes={0: 2}, max_basis=8).diagrams == 8 + 2
    with pytest.raises(sc.BasisTooLargeError, match="has 8 elements"):
        sc.plan(spec, sizes={0: 2}, max_basis=7)


def test_many_tensors_are_counted_together():
    with pytest.raises(sc.BasisTooLargeError, match="has 1,500 elements"):
        sc.plan([(0, 0)] * 10, max_basis=1499)


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_every_way_in_refuses_a_basis_too_large(backend, tmp_path):
    with pytest.raises(sc.BasisTooLargeError):
        sc.compile({"w": (0, 0)}, backend=backend, max_basis=3, **ONE)
    if backend != "numpy":
        with pytest.raises(sc.BasisTooLargeError):
            sc.export({"w": (0, 0)}, tmp_path / "x.py", backend=backend, max_basis=3, **ONE)
    assert not list(tmp_path.iterdir())


# -- options that mean something --------------------------------------------------------------


@pytest.mark.parametrize("name", ["EquivariantLinear", "WeightLayer", "L2", "l"])
def test_a_name_names_the_class_in_generated_source(name):
    source = sc.compile(SPEC, name=name, **ONE).source
    assert f"class {name}(nn.Module):" in source
    assert type(sc.compile(SPEC, name=name, **ONE)).__name__ == name


def test_the_default_name():
    assert "class EquivariantLinear(nn.Module):" in sc.compile(SPEC, **ONE).source


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]
)
def test_a_dtype_names_the_weights_dtype(dtype):
    import torch

    layer = sc.compile(SPEC, dtype=dtype, **ONE)
    assert {w.dtype for w in layer.parameters()} == {getattr(torch, dtype)}
    assert {str(w.dtype) for w in built(dtype=dtype).init(0).values()} == {dtype}


def test_a_dtype_may_be_any_framework_s_object():
    import jax.numpy as jnp
    import torch

    for given in ("bfloat16", torch.bfloat16, jnp.bfloat16, np.dtype(jnp.bfloat16)):
        assert built(dtype=given).compiled.dtype == "bfloat16"
    for given in (np.float64, np.dtype("float64"), torch.float64, jnp.float64):
        assert built(dtype=given).compiled.dtype == "float64"
    assert built().compiled.dtype is None


def test_stages_are_kept_when_asked_for():
    assert built().compiled.stages == ()
    kept = built(keep_stages=True).compiled
    assert [name for name, _ in kept.stages] == [
        "lowered",
        "share_equal",
        "mix_before_spread",
        "share_reductions",
        "fill_mixes",
        "form_mixes",
        "sum_before_spread",
        "add_before_slice",
        "sum_in_place",
        "batch_mixes",
        "schedule",
    ]
    assert kept.stages[-1][1] == kept.program
    reference = built(keep_stages=True, optimize=False).compiled
    assert [name for name, _ in reference.stages] == ["lowered"]
    assert reference.stages[0][1] == reference.program


def test_keeping_stages_changes_nothing_else():
    assert sc.compile(SPEC, keep_stages=True, **ONE).source == sc.compile(SPEC, **ONE).source


def test_channels_may_be_a_tree():
    layer = built(in_channels={"w": 3, "b": 2}, out_channels={"b": 5, "w": 1})
    x = {"w": np.ones((4, 6, 3)), "b": np.ones((6, 2))}
    y = layer.apply(layer.init(0), x)
    assert {name: value.shape for name, value in y.items()} == {"w": (4, 6, 1), "b": (6, 5)}


def test_channels_of_the_output_follow_the_output_spec():
    layer = sc.compile(SPEC, {"s": ()}, in_channels=2, out_channels={"s": 7}, backend="numpy")
    y = layer.apply(layer.init(0), {"w": np.ones((4, 6, 2)), "b": np.ones((6, 2))})
    assert y["s"].shape == (7,)


def test_the_bias_can_be_left_out():
    assert "bias" in built().init(0)
    without = built(bias=False)
    assert "bias" not in without.init(0)
    assert all(element.input is not None for element in without.basis)
    zeros = {"w": np.zeros((2, 3, 1)), "b": np.zeros((3, 1))}
    assert not any(value.any() for value in without.apply(without.init(0), zeros).values())


def test_sums_and_means_differ_by_sizes():
    mean, total = (built(reduce=reduce, init="unf", bias=False) for reduce in ("mean", "sum"))
    weights = mean.init(0)
    only_scalar = {k: v if k == "mix_scalar" else 0 * v for k, v in weights.items()}
    x = {"w": np.ones((4, 6, 1)), "b": np.zeros((6, 1))}
    one, other = mean.apply(only_scalar, x), total.apply(only_scalar, x)
    np.testing.assert_allclose(other["w"], 24 * one["w"], rtol=1e-6)


def test_an_output_of_other_labels_and_a_bare_leaf():
    layer = sc.compile((0, 1), (1, 0), in_channels=1, out_channels=2, backend="numpy")
    assert layer.apply(layer.init(0), np.ones((3, 4, 1))).shape == (4, 3, 2)


def test_sizes_bind_labels():
    assert built(sizes={0: 3}).spec.sizes == ((0, 3),)
    assert built(shapes={"w": (3, 4), "b": (4,)}).spec.sizes == ((0, 3), (1, 4))
    with pytest.raises(sc.ShapeError):
        built(shapes={"w": (3, 4), "b": (5,)})


def test_a_bound_spec_brings_its_sizes_along():
    bound = built(shapes={"w": (3, 4), "b": (4,)}).spec
    again = sc.compile(bound, backend="numpy", **ONE)
    assert again.spec == bound
    assert again.spec.sizes == ((0, 3), (1, 4))


def test_optimizing_or_not_gives_the_same_outputs():
    rng = np.random.default_rng(0)
    x = {"w": rng.standard_normal((4, 3, 2)), "b": rng.standard_normal((3, 2))}
    layers = [
        built(in_channels=2, out_channels=3, optimize=optimize)
        for optimize in (False, "greedy", "auto")
    ]
    weights = layers[0].init(0, "float64")
    outputs = [layer.apply(weights, x) for layer in layers]
    for other in outputs[1:]:
        for name in outputs[0]:
            np.testing.assert_allclose(other[name], outputs[0][name], rtol=1e-12, atol=1e-12)


def test_plan_is_the_plan_of_the_layer():
    options = {"in_channels": 2, "out_channels": 3, "sizes": {0: 5, 1: 7}}
    assert sc.plan(SPEC, **options) == built(**options).plan
    assert sc.plan(SPEC) == built().plan


def test_compile_then_plan_and_plan_after_importing_everything():
    """`plan` is the function, whatever was imported before."""
    import symcompile.planner  # noqa: F401

    built()
    assert callable(sc.plan)
    assert sc.plan(SPEC).diagrams == 12


def test_every_public_name_is_there_and_listed():
    assert dir(sc) == sorted(sc.__all__)
    for name in sc.__all__:
        assert getattr(sc, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'compyle'"):
        _ = sc.compyle


def test_compiling_is_deterministic():
    options = {"in_channels": 2, "out_channels": 3, "keep_stages": True}
    one, other = (compile_spec(SPEC, **options) for _ in range(2))
    assert one is not other
    assert one == other
    assert str(one.program) == str(other.program)


# -- layers that are alike --------------------------------------------------------------------


@pytest.mark.parametrize("optimize", ["auto", "greedy", False])
def test_a_layer_like_one_in_use_is_not_planned_again(optimize):
    one = built(optimize=optimize, rank={(0, 1): 2})
    assert built(optimize=optimize, rank={(1, 0): 2}).compiled is one.compiled
    pair = [sc.compile(SPEC, **ONE, optimize=optimize) for _ in range(2)]
    assert type(pair[0]) is type(pair[1])
    assert not pair[0].mix_0.equal(pair[1].mix_0), "weights are each layer's own"


def test_a_layer_nobody_holds_is_forgotten():
    one = built().compiled
    watched = weakref.ref(one)
    assert built().compiled is watched()
    del one
    gc.collect()
    assert watched() is None
    assert len(api._IN_USE) == 0


class _Slower(sc.Machine):
    pass


OTHERS = {
    "spec": {"spec": {"w": (0, 1), "b": (0,)}},
    "order of keys": {"spec": {"b": (1,), "w": (0, 1)}},
    "out_spec": {"out_spec": {"b": (1,)}},
    "in_channels": {"in_channels": 2},
    "out_channels": {"out_channels": 2},
    "sizes": {"sizes": {0: 3}},
    "shapes": {"shapes": {"w": (3, 2), "b": (2,)}},
    "bias": {"bias": False},
    "reduce": {"reduce": "sum"},
    "optimize": {"optimize": "greedy"},
    "minimize": {"minimize": "flops"},
    "machine": {"machine": "h100"},
    "memory_limit": {"memory_limit": 10**9},
    "rank": {"rank": 1},
    "init": {"init": "unf"},
    "dtype": {"dtype": "float64"},
    "name": {"name": "Other"},
    "terms": {"terms": lambda *_: True},
    "planner": {"optimize": PLANNERS["auto"]},
    "kind of machine": {"machine": _Slower("slower", 1e9, 1e12, 1e-6)},
    "keep_stages": {"keep_stages": True},
}


@pytest.mark.parametrize("option", OTHERS)
def test_a_layer_that_differs_in_one_option_is_a_layer_of_its_own(option):
    one = compile_spec(SPEC, **ONE)
    options = {"spec": SPEC, **ONE, **OTHERS[option]}
    assert compile_spec(**options) is not one
    if option in ("terms", "planner", "kind of machine", "keep_stages"):  # asked each time
        first = compile_spec(**options)
        assert compile_spec(**options) is not first
    assert set(OTHERS) >= {*inspect.signature(parse_request).parameters} - {
        "out_shapes",
        "max_basis",
    }


def test_what_verifies_is_planned_again(monkeypatch):
    one = built()
    monkeypatch.setenv("SYMCOMPILE_VERIFY", "1")
    assert built().compiled is not one.compiled


def test_a_limit_holds_for_a_layer_in_use_too():
    one = built()
    with pytest.raises(sc.BasisTooLargeError):
        built(max_basis=1)
    assert built().compiled is one.compiled


# -- export -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_an_exported_file_is_the_layer_s_source(backend, tmp_path):
    path = tmp_path / "layer.py"
    options = {"in_channels": 2, "out_channels": 3, "name": "Mine", "sizes": {0: 4}}
    assert sc.export(SPEC, path, backend=backend, **options) == path
    expected = sc.compile(SPEC, backend=backend, **options).source
    assert path.read_bytes() == expected.encode()
    assert [p.name for p in tmp_path.iterdir()] == ["layer.py"]


def test_export_takes_a_path_as_text_and_an_output_spec(tmp_path):
    path = tmp_path / "layer.py"
    written = sc.export({"x": (0,)}, str(path), {"s": ()}, backend="torch", **ONE)
    assert written == path
    assert path.read_text() == sc.compile({"x": (0,)}, {"s": ()}, **ONE).source


def test_export_replaces_what_stood_there(tmp_path):
    path = tmp_path / "layer.py"
    path.write_text("old")
    sc.export(SPEC, path, backend="torch", **ONE)
    assert path.read_text().startswith("# EquivariantLinear")


def test_an_exported_file_has_the_permissions_of_a_new_file(tmp_path):
    plain, path = tmp_path / "plain", tmp_path / "layer.py"
    plain.write_text("")
    sc.export(SPEC, path, backend="torch", **ONE)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def failing(monkeypatch, call, error):
    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(f"symcompile.files.os.{call}", fail)


@pytest.mark.parametrize("call", ["replace", "fdopen"])
def test_a_failed_export_leaves_the_old_file_and_nothing_beside_it(call, tmp_path, monkeypatch):
    path = tmp_path / "layer.py"
    path.write_text("old")
    failing(monkeypatch, call, OSError(28, "No space left on device"))
    with pytest.raises(sc.ExportError, match=r"cannot write .*layer\.py.*No space left on device"):
        sc.export(SPEC, path, backend="torch", **ONE)
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["layer.py"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_not_writable_leaves_the_old_file(tmp_path):
    path = tmp_path / "layer.py"
    path.write_text("old")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(sc.ExportError, match="Permission denied"):
            sc.export(SPEC, path, backend="torch", **ONE)
        assert path.read_text() == "old"
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(sc.ExportError, match=r"missing.*give a path in a folder that exists"):
        sc.export(SPEC, tmp_path / "missing" / "layer.py", backend="torch", **ONE)
    assert not list(tmp_path.iterdir())


def test_a_name_too_long_for_the_file_system_is_refused(tmp_path):
    with pytest.raises(sc.ExportError, match="cannot write"):
        sc.export(SPEC, tmp_path / ("a" * 300), backend="torch", **ONE)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "layer.py").mkdir()
    with pytest.raises(sc.ExportError, match="cannot write"):
        sc.export(SPEC, tmp_path / "layer.py", backend="torch", **ONE)
    assert [p.name for p in tmp_path.iterdir()] == ["layer.py"]


@pytest.mark.parametrize(
    ("spec", "options"),
    [({"w": (True,)}, {}), (SPEC, {"reduce": "max"}), ((0,) * 12, {}), (SPEC, {"sizes": {0: 0}})],
)
def test_an_export_that_cannot_be_compiled_leaves_the_old_file(spec, options, tmp_path):
    path = tmp_path / "layer.py"
    path.write_text("old")
    with pytest.raises(sc.SymcompileError):
        sc.export(spec, path, backend="torch", **ONE, **options)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["layer.py"]


def test_the_backend_that_interprets_has_nothing_to_export(tmp_path):
    with pytest.raises(sc.BackendError, match="generates no source"):
        sc.export(SPEC, tmp_path / "layer.py", backend="numpy", **ONE)
    assert not list(tmp_path.iterdir())


def test_an_export_error_is_an_os_error():
    assert issubclass(sc.ExportError, OSError)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"sizes": [1, 2]}, "sizes: found a list"),
        ({"max_basis": "5"}, "max_basis='5'"),
        ({"max_basis": None}, "max_basis=None"),
        ({"max_basis": True}, "max_basis=True"),
        ({"bias": "no"}, "bias='no'"),
        ({"bias": None}, "bias=None"),
        ({"reduce": np.array([1, 2])}, "reduce=array"),
        ({"init": ["unf"]}, "init=['unf']"),
    ],
)
def test_options_of_the_wrong_kind_are_named(options, found):
    with pytest.raises(sc.SymcompileError) as caught:
        sc.compile(SPEC, backend="numpy", **ONE, **options)
    assert found in str(caught.value)


def test_export_names_what_it_does_not_know(tmp_path):
    with pytest.raises(sc.OptionError, match="'colour' is no option"):
        sc.export(SPEC, tmp_path / "layer.py", backend="torch", colour=3, **ONE)
    with pytest.raises(sc.OptionError, match="'backend' is no option of plan"):
        sc.plan(SPEC, backend="torch", **ONE)
    with pytest.raises(sc.OptionError, match="path is a NoneType"):
        sc.export(SPEC, None, backend="torch", **ONE)
    assert not list(tmp_path.iterdir())


def test_export_follows_links_and_keeps_modes(tmp_path):
    target, link = tmp_path / "target.py", tmp_path / "link.py"
    target.write_text("old")
    target.chmod(0o755)
    link.symlink_to(target)
    sc.export(SPEC, link, backend="torch", **ONE)
    assert link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o755
    assert "class EquivariantLinear" in target.read_text()
