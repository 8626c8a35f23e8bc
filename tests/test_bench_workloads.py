"""Claims about what is timed: the workloads, their inputs, and the peers."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from symcompile.bench import child
from symcompile.bench.child import Bench, check_gradients, check_outputs
from symcompile.bench.contestants import Contestant, build_of, find_contestants, peers_beside
from symcompile.bench.ours import build_ours
from symcompile.bench.subject import Setting, Subject, Unsuited
from symcompile.bench.workloads import (
    SERIES,
    WORKLOADS,
    Workload,
    own_workload,
    series,
    transformer,
    workload,
)
from symcompile.check.draw import dtype_of
from symcompile.diagrams import basis_size
from symcompile.errors import OptionError, ShapeError
from symcompile.spec import load_spec, parse_spec
from tests.bench_cases import CNN, SETTING, TINY

ROOT = Path(__file__).parents[1]


# --- workloads ------------------------------------------------------------------------------------


def test_the_workloads_are_those_that_were_agreed() -> None:
    assert list(WORKLOADS) == ["mlp", "deep", "graph2", "graph3", "rnn", "transformer", "cnn"]
    made = {name: workload(name) for name in WORKLOADS}
    assert {name: (w.batch, w.channels) for name, w in made.items()} == {
        "mlp": (8, 16),
        "deep": (8, 32),
        "graph2": (8, 32),
        "graph3": (4, 16),
        "rnn": (8, 16),
        "transformer": (4, 16),
        "cnn": (16, 16),
    }
    assert set(made["mlp"].shapes) == {
        (8, 784, 512, 16),
        (8, 512, 16),
        (8, 512, 10, 16),
        (8, 10, 16),
    }
    assert made["deep"].shapes.count((8, 128, 128, 32)) == 8
    assert made["graph3"].shapes == ((4, 16, 16, 16, 16),)
    spec = load_spec(ROOT / "symcompile" / "bench" / "specs" / "transformer.yaml")
    assert made["transformer"].spec.leaves == spec.leaves
    blocks = [w.series for w in series("blocks", SERIES["blocks"])]
    assert blocks == [("blocks", count) for count in (1, 2, 4, 8)]
    assert transformer(4).spec.size("block3.qk") == 16
    with pytest.raises(OptionError, match="workload 'mpl' is not known"):
        workload("mpl")


@pytest.mark.parametrize("name", ["mlp", "cnn", "graph2-n128", "transformer"])
def test_a_workload_is_the_same_in_another_process(name: str) -> None:
    made = workload(name)
    again = Workload.from_dict(json.loads(json.dumps(made.to_dict())))
    assert again == made
    assert again.digest == made.digest


def test_inputs_are_the_same_for_everyone_and_differ_by_seed() -> None:
    kind = np.dtype("float32")
    one, same, other = TINY.inputs(0, kind), TINY.inputs(0, kind), TINY.inputs(1, kind)
    assert [a.shape for a in one] == list(TINY.shapes)
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    with pytest.raises(ShapeError, match="label 'b'"):
        own_workload({"w": ("a", "b")}, sizes={"a": 2})
    with pytest.raises(ShapeError, match="the fixed axis written None has no size"):
        own_workload({"w": ("a", None)}, sizes={"a": 2})


def test_inputs_take_turns_beyond_what_caches_hold() -> None:
    small = Bench(TINY, Contestant("numpy auto"), SETTING)
    small.first()
    assert len({id(small._next()[0]) for _ in range(1000)}) == len(small.inputs) == 128
    for name in WORKLOADS:
        made = workload(name)
        count = max(2, min(128, (1 << 27) // (4 * made.entries)))
        assert count * 4 * made.entries >= 64 << 20, name


def test_cotangents_lie_in_memory_as_outputs_do() -> None:
    bench = Bench(replace(transformer(1), batch=2), Contestant("torch auto"), SETTING)
    bench.first()
    bench.first_train()
    assert bench.subject.train is not None
    outputs = bench.subject.train(*bench._next())[0]
    assert not all(output.is_contiguous() for output in outputs)
    for cotangent, data in zip(bench.cotangents, bench.inputs, strict=True):
        for part, same, output in zip(cotangent, data, outputs, strict=True):
            assert part.stride() == output.stride()
            assert part.equal(same)
            assert part.data_ptr() != same.data_ptr(), "it would be in a cache when it is the input"


def test_memory_is_given_back_before_others_have_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rests: list[str] = []
    build = build_of(Contestant("numpy auto"))

    def built(workload: Workload, setting: Any) -> Subject:
        subject = build(workload, setting)
        train = lambda x, cotangent: (x, x, x)  # noqa: E731
        return replace(subject, train=train, rest=lambda: rests.append("rest"))

    monkeypatch.setattr(child, "build_of", lambda contestant: built)
    monkeypatch.setattr(child, "check_gradients", lambda *_: None)
    bench = Bench(TINY, Contestant("numpy auto"), SETTING)
    assert rests == []
    for count, command in enumerate((bench.first, bench.first_train), start=1):
        command()
        assert len(rests) == count
    bench.round("train", 0.0, 1)
    assert len(rests) == 3


def test_a_gpu_has_contestants_of_its_own() -> None:
    names = {device: {c.name for c in find_contestants([], device)} for device in ("cpu", "cuda")}
    assert names["cuda"] - names["cpu"] == {"torch.triton auto", "torch.compile.triton auto"}
    assert names["cpu"] < names["cuda"]


def test_kernels_for_gpus_are_imported_for_those_who_use_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("triton")
    from symcompile_torch.registry import is_implemented

    build = build_of(Contestant("torch.triton auto"))
    assert "triton" in build.keywords["mode"]
    subject = build(TINY, SETTING)  # on a CPU they are there, and idle
    error, tolerance = check_outputs(subject, TINY, np.dtype("float32"))
    assert error <= tolerance
    assert is_implemented("linear_sum", "cuda")
    monkeypatch.setitem(sys.modules, "symcompile_torch.triton", None)
    with pytest.raises(Unsuited, match="Triton is not installed"):
        build(TINY, SETTING)


@pytest.mark.parametrize("optimize", ["auto", False])
@pytest.mark.parametrize("name", [*WORKLOADS])
def test_layers_keep_to_a_device_that_is_no_cpu(name: str, optimize: str | bool) -> None:
    """With the plan of a GPU: torch refuses to mix tensors of two devices."""
    dtype = "bfloat16" if optimize else "float32"
    made = workload(name)
    subject = build_ours(made, Setting(device="meta", dtype=dtype), "torch", optimize)
    x, cotangent = (subject.put(made.inputs(seed, dtype_of(dtype))) for seed in range(2))
    assert subject.train is not None
    outputs, of_x, of_weights = subject.train(x, cotangent)
    assert [y.shape for y in subject.forward(x)] == [y.shape for y in outputs]
    assert [grad.shape for grad in of_x] == [tensor.shape for tensor in x]
    kinds = {(t.device.type, t.dtype) for t in (*outputs, *of_x, *of_weights) if t is not None}
    assert {(device, str(kind)) for device, kind in kinds} == {("meta", f"torch.{dtype}")}


# --- peers ----------------------------------------------------------------------------------------


def _peer(name: str) -> Contestant:
    return next(c for c in find_contestants(peers_beside()) if c.name == name)


SPECS: Sequence[Workload] = (
    TINY,
    CNN,
    own_workload({"w": ("a", "a")}, sizes={"a": 4}, batch=2, channels=2, name="graph"),
    own_workload(
        {"w": ("a", "b", "a"), "v": ("b",), "s": ()}, sizes={"a": 3, "b": 4}, batch=2, channels=2
    ),
)


@pytest.mark.parametrize("made", SPECS, ids=lambda w: w.name)
def test_one_term_at_a_time_is_equivariant(made: Workload) -> None:
    pytest.importorskip("jax")
    subject = build_of(_peer("one term at a time"))(made, SETTING)
    error, tolerance = check_outputs(subject, made, np.dtype("float32"))
    assert error <= tolerance


def test_one_term_at_a_time_has_the_whole_basis() -> None:
    jnp = pytest.importorskip("jax.numpy")
    module = sys.modules[build_of(_peer("one term at a time")).__module__]
    blocks = list(module.partitions(("a",) * 4))
    assert len(blocks) == basis_size([("a", "a")], [("a", "a")], {})
    eye = np.eye(16, dtype=np.float32).reshape(16, 4, 4)
    maps = [
        np.concatenate([np.asarray(module.term(jnp.asarray(x), b, (4, 4))).ravel() for x in eye])
        for b in blocks
    ]
    assert np.linalg.matrix_rank(np.stack(maps)) == 15


IN_PYTORCH = own_workload(
    {
        "conv": {"weight": ("a", None, None, None), "bias": ("a",)},
        "next": {"weight": ("b", "a", None, None), "bias": ("b",)},
        "head": {"weight": (None, ("b", None)), "bias": (None,)},
    },
    shapes={
        "conv": {"weight": (5, 2, 3, 3), "bias": (5,)},
        "next": {"weight": (4, 5, 3, 3), "bias": (4,)},
        "head": {"weight": (7, 24), "bias": (7,)},
    },
    sizes={"b": 4},
    batch=2,
    channels=3,
    name="pytorch",
)


@pytest.mark.parametrize("made", [TINY, CNN, IN_PYTORCH], ids=lambda w: w.name)
def test_nfn_is_equivariant_on_its_own_layout(made: Workload) -> None:
    pytest.importorskip("nfn", reason="nfn is not installed")
    subject = build_of(_peer("nfn"))(made, SETTING)
    error, tolerance = check_outputs(subject, made, np.dtype("float32"))
    assert error <= tolerance
    assert subject.train is not None
    x = subject.put(made.inputs(0, np.dtype("float32")))
    check_gradients(subject, made, np.dtype("float32"))
    outputs, gradients, of_weights = subject.train(x, subject.forward(x))
    assert len(outputs) == len(gradients) == len(made.shapes)
    assert all(g is None or np.isfinite(g.numpy()).all() for g in of_weights)


@pytest.mark.parametrize(
    "spec",
    [
        {"w": ("a", "b")},
        {
            "l0": {"kernel": ("a", "a"), "bias": ("a",)},
            "l1": {"kernel": ("a", "b"), "bias": ("b",)},
        },
        {
            "l0": {"kernel": ("a", "b"), "bias": ("b",)},
            "l1": {"kernel": ("c", "d"), "bias": ("d",)},
        },
        {
            "l0": {"kernel": ("a", "b"), "bias": ("b",)},
            "l1": {"kernel": ("b", "a"), "bias": ("a",)},
        },
        {"l0": {"kernel": ("a", "b")}, "l1": {"kernel": ("b", "c")}},
        {"l0": {"kernel": ("a", "b"), "bias": ("b",)}},
    ],
)
def test_nfn_takes_no_part_where_it_has_no_layer(spec: Any) -> None:
    made = own_workload(spec, sizes=dict.fromkeys(parse_spec(spec).labels, 3), name="other")
    with pytest.raises(Unsuited, match="nfn has layers for"):
        build_of(_peer("nfn"))(made, SETTING)
