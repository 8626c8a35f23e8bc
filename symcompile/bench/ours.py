"""Our own contestants: a compiled layer on each backend.

In: a workload, a backend, how it is run and `optimize=`. Out: a `Subject`, with planning and
emitting timed apart. Frameworks are imported before the clock starts.
"""

from __future__ import annotations

import gc
from time import perf_counter
from typing import Any

import numpy as np

from symcompile.api import compile_spec
from symcompile.bench.subject import Arrays, Setting, Subject, Unsuited
from symcompile.bench.workloads import Workload
from symcompile.check.draw import dtype_of
from symcompile.codegen import get_backend
from symcompile.spec import flatten_like, unflatten

__all__ = ["build_ours"]


def build_ours(workload: Workload, setting: Setting, mode: str, optimize: str | bool) -> Subject:
    """The layer as a contestant.

    Args:
        mode: "torch", "torch.compile", "jax" or "numpy".
        optimize: as for `symcompile.compile`.

    Raises:
        Unsuited: the backend does not run on that device.
    """
    name = mode.split(".")[0]
    backend = get_backend(name)
    if name == "torch":
        from symcompile.bench.torch_subject import prepare, torch_subject

        device = prepare(setting)
    elif name == "jax":
        from symcompile.bench.jax_subject import jax_subject
        from symcompile.bench.jax_subject import prepare as prepare_jax

        prepare_jax(setting)
    elif setting.device != "cpu":
        raise Unsuited("NumPy runs on the CPU only")

    gc.collect()  # what importing the framework left is not the planner's
    start = perf_counter()
    compiled = compile_spec(
        workload.spec,
        in_channels=workload.channels,
        out_channels=workload.channels,
        optimize=optimize,
        dtype=setting.dtype,
    )
    planned = perf_counter()
    layer = backend.build(compiled)
    stages = {"plan": planned - start, "emit": perf_counter() - planned}

    def pack(leaves: Any) -> Any:
        return unflatten(compiled.spec, leaves)

    def unpack(tree: Any) -> Any:
        return flatten_like(compiled.out_spec, tree, "y")

    if name == "torch":
        return torch_subject(
            layer.to(device),
            setting,
            pack=pack,
            unpack=unpack,
            stages=stages,
            compiled=mode == "torch.compile",
        )
    if name == "jax":
        import jax

        return jax_subject(
            lambda params, x: unpack(layer.apply(params, pack(x))),
            layer.init(jax.random.key(0)),
            setting,
            stages=stages,
        )
    return _numpy(layer, pack, unpack, setting, stages)


def _numpy(
    layer: Any, pack: Any, unpack: Any, setting: Setting, stages: dict[str, float]
) -> Subject:
    params = layer.init(0, dtype_of(setting.dtype))

    def put(leaves: Arrays) -> list[np.ndarray[Any, Any]]:
        return [leaf.copy() for leaf in leaves]

    def get(outputs: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        return outputs

    def forward(x: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        outputs: list[np.ndarray[Any, Any]] = unpack(layer.apply(params, pack(x)))
        return outputs

    return Subject(put, get, forward, None, stages, {"numpy": np.__version__})
