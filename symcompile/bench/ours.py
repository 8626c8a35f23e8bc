"""Our own contestants: a compiled layer on each backend.

In: a workload, a backend, how it is run and `optimize=`. Out: a `Subject`. On torch and JAX what
runs is the generated file by itself, as `symcompile export` writes it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from symcompile.api import compile_spec
from symcompile.bench.subject import Arrays, Setting, Stopwatch, Subject, Unsuited
from symcompile.bench.workloads import Workload
from symcompile.check.draw import dtype_of
from symcompile.codegen import get_backend, load_module
from symcompile.cost.machine import PRESETS
from symcompile.spec import flatten_like, unflatten

__all__ = ["build_ours"]

_GPU = PRESETS["h100"]
"""A GPU keeps the memory of one array for the next; it takes a pass for every term of a sum."""


def build_ours(workload: Workload, setting: Setting, mode: str, optimize: str | bool) -> Subject:
    """The layer as a contestant.

    Args:
        mode: "torch", "jax" or "numpy"; "torch.compile"; "torch.triton" and "torch.compile.triton",
            with kernels for GPUs.
        optimize: as for `symcompile.compile`.

    Raises:
        Unsuited: the backend does not run on that device, or Triton is missing.
    """
    name, *ways = mode.split(".")
    watch = Stopwatch()
    backend = get_backend(name)
    if name == "torch":
        from symcompile.bench.torch_subject import finish, prepare, torch_subject

        device = prepare(setting)
        if "triton" in ways:
            _import_kernels()
    elif name == "jax":
        from symcompile.bench.jax_subject import jax_subject
        from symcompile.bench.jax_subject import prepare as prepare_jax

        prepare_jax(setting)
    elif setting.device != "cpu":
        raise Unsuited("NumPy runs on the CPU only")
    gc.collect()  # what importing the framework left is not the planner's
    watch.lap("import")
    compiled = compile_spec(
        workload.spec,
        in_channels=workload.channels,
        out_channels=workload.channels,
        optimize=optimize,
        dtype=setting.dtype,
        machine="cpu" if setting.device == "cpu" else replace(_GPU, one_pass="triton" in ways),
    )
    watch.lap("plan")

    def pack(leaves: Any) -> Any:
        return unflatten(compiled.spec, leaves)

    def unpack(tree: Any) -> Any:
        return flatten_like(compiled.out_spec, tree, "y")

    if name == "numpy":
        layer = backend.build(compiled)
        watch.lap("emit")
        params = layer.init(0, dtype_of(setting.dtype))
        watch.lap("init")
        return _numpy(lambda x: unpack(layer.apply(params, pack(x))), watch)
    module = load_module(backend.emit(compiled), name)
    watch.lap("emit")
    if name == "torch":
        instance = getattr(module, compiled.name)(device=device)
        finish(device)
        watch.lap("init")
        return torch_subject(
            instance,
            setting,
            pack=pack,
            unpack=unpack,
            stages=watch.stages,
            compiled="compile" in ways,
        )
    import jax

    done: Callable[[Any], Any] = jax.block_until_ready
    weights = done(module.init(jax.random.key(0)))
    watch.lap("init")
    return jax_subject(
        lambda params, x: unpack(module.apply(params, pack(x))),
        weights,
        setting,
        stages=watch.stages,
    )


def _import_kernels() -> None:
    try:
        import symcompile_torch.triton  # noqa: F401
    except ImportError as error:
        raise Unsuited("Triton is not installed, or is older than 3.4") from error


def _numpy(forward: Any, watch: Stopwatch) -> Subject:
    def put(leaves: Arrays) -> list[np.ndarray[Any, Any]]:
        return [leaf.copy() for leaf in leaves]

    def get(outputs: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        return outputs

    return Subject(put, get, forward, None, watch.stages, {"numpy": np.__version__})
