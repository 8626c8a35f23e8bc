"""Weights on disk: one safetensors file for every backend.

In: layers of all backends. The one thing to know: the file is whole or absent, never half written.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

import symcompile as sc
from tests.backend_cases import SPEC, inputs, random_weights

BACKENDS = ["torch", "jax", "numpy"]


def layer_of(backend: str, **options: Any) -> Any:
    return sc.compile(SPEC, in_channels=2, out_channels=3, backend=backend, **options)


def output_of(backend: str, weights: Any) -> Any:
    layer, x = layer_of(backend), inputs(SPEC, 2)
    if backend == "torch":
        layer = layer.double()
        layer.load_state_dict(weights, strict=True)
        y = layer({**x, **_as_torch(x)})
        return y["w"].detach().numpy()
    if backend == "jax":
        return np.asarray(jax.jit(layer.apply)(weights, x)["w"])
    return layer.apply(weights, x)["w"]


def _as_torch(x: Any) -> Any:
    v, s = (torch.from_numpy(leaf) for leaf in (x["deep"][0]["v"], x["deep"][1]["s"]))
    return {
        "w": torch.from_numpy(x["w"]),
        "deep": [{"v": v}, {"s": s}],
        "heads": torch.from_numpy(x["heads"]),
    }


@pytest.mark.parametrize("writer", BACKENDS)
def test_written_by_one_backend_read_by_all(writer: str, tmp_path: Path) -> None:
    with jax.enable_x64(True):
        weights: Any = random_weights(layer_of("numpy"))
        expected = output_of("numpy", weights)
        if writer == "torch":
            layer = layer_of("torch").double()
            layer.load_state_dict({n: torch.from_numpy(w) for n, w in weights.items()})
            weights = layer
        elif writer == "jax":
            weights = jax.tree.map(jnp.asarray, weights)
        path = sc.save_weights(weights, tmp_path / "w.safetensors")
        for reader in BACKENDS:
            loaded = sc.load_weights(path, reader)
            np.testing.assert_allclose(output_of(reader, loaded), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64"])
@pytest.mark.parametrize("writer", BACKENDS)
@pytest.mark.parametrize("reader", BACKENDS)
def test_every_dtype_to_the_bit(dtype: str, writer: str, reader: str, tmp_path: Path) -> None:
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((3, 4)) * (1 + 1j if kind.kind == "c" else 1)).astype(kind)
    scalar = np.asarray(values[0, 0])
    from symcompile.codegen import get_backend

    with jax.enable_x64(True):
        make, back = get_backend(writer).from_numpy, get_backend(reader).to_numpy
        path = tmp_path / "w.safetensors"
        # A transposed view and a scalar: neither memory order nor rank may be lost.
        sc.save_weights({"m": make(values), "t": make(values).T, "s": make(scalar)}, path)
        loaded = {name: back(value) for name, value in sc.load_weights(path, reader).items()}
    for name, expected in (("m", values), ("t", values.T), ("s", scalar)):
        assert loaded[name].dtype == kind
        assert loaded[name].shape == expected.shape
        assert loaded[name].tobytes() == np.ascontiguousarray(expected).tobytes()


def test_what_is_loaded_is_writable_and_its_own(tmp_path: Path) -> None:
    path = sc.save_weights({"m": np.zeros(3)}, tmp_path / "w")
    for backend in ("numpy", "torch"):
        sc.load_weights(path, backend)["m"][0] = 1
        assert float(sc.load_weights(path, backend)["m"][0]) == 0


def test_layer_and_state_are_saved_alike(tmp_path: Path) -> None:
    layer = layer_of("torch")
    one = sc.save_weights(layer, tmp_path / "one")
    two = sc.save_weights(layer.state_dict(), str(tmp_path / "two"))
    assert one.read_bytes() == Path(two).read_bytes()
    other = layer_of("torch")
    other.load_state_dict(sc.load_weights(one, "torch"), strict=True)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


@pytest.mark.parametrize("dtype", ["complex128", "int64"])
def test_a_dtype_the_format_lacks_is_refused_by_name(dtype: str, tmp_path: Path) -> None:
    with pytest.raises(sc.ExportError, match=f"'m' is {dtype}.*convert"):
        sc.save_weights({"m": np.zeros(3, dtype)}, tmp_path / "w")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [None, 3, [np.ones(2)], {"a": 1.0}, layer_of("numpy")])
def test_what_is_no_weights_is_refused(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(sc.ShapeError, match="expected a torch layer or a dict"):
        sc.save_weights(wrong, tmp_path / "w")


@pytest.mark.parametrize(
    "content", [b"", b"not weights at all", b"\xff" * 64, b"\x10\0\0\0\0\0\0\0{broken json...}"]
)
def test_a_wrong_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(content)
    for backend in BACKENDS:
        with pytest.raises(sc.ExportError, match="cannot read weights"):
            sc.load_weights(path, backend)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = sc.save_weights({"m": np.arange(100.0)}, tmp_path / "w")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(sc.ExportError, match="cannot read weights"):
        sc.load_weights(path)


def test_a_file_of_other_tensors_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"tokens": np.arange(3)}, tmp_path / "w")
    with pytest.raises(sc.ExportError, match="'tokens' has dtype I64"):
        sc.load_weights(tmp_path / "w")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(sc.ExportError, match="cannot read weights"):
        sc.load_weights(tmp_path / "nothing")
    for path in (tmp_path / "no folder" / "w", tmp_path, "nul\0l"):
        with pytest.raises(sc.ExportError, match="cannot write"):
            sc.save_weights({"m": np.zeros(3)}, path)
    with pytest.raises(sc.BackendError, match="nonesuch"):
        sc.load_weights(sc.save_weights({"m": np.zeros(3)}, tmp_path / "w"), "nonesuch")


def test_what_stood_there_survives_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w"
    sc.save_weights({"m": np.zeros(3)}, path)
    before = path.read_bytes()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(sc.ExportError, match="No space left"):
        sc.save_weights({"m": np.ones(3)}, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["w"]  # nothing left beside it


def test_the_file_has_the_rights_of_a_new_file(tmp_path: Path) -> None:
    path = sc.save_weights({"m": np.zeros(3)}, tmp_path / "w")
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_weights_of_another_layer_do_not_load(tmp_path: Path) -> None:
    other = sc.compile({"w": (0, 0)}, in_channels=1, out_channels=1)
    path = sc.save_weights(other, tmp_path / "w")
    with pytest.raises(RuntimeError, match="Missing key"):
        layer_of("torch").load_state_dict(sc.load_weights(path, "torch"), strict=True)
    for backend in ("jax", "numpy"):
        with pytest.raises(sc.ShapeError, match="params"):
            layer_of(backend).apply(sc.load_weights(path, backend), inputs(SPEC, 2))
