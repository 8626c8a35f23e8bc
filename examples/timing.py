"""Times one program of one backend, in a process that does nothing else.

In: a backend, "reference" or "factored", and folders that each hold a `spec.yaml`,
`weights.safetensors` and `inputs.safetensors`. Out: `outputs-PROGRAM-BACKEND.safetensors` in each
folder, and one line of JSON: the median seconds per call for each.

The one thing to know: JAX and torch in one process take each other's threads, and two programs in
one process share its caches. So each pair gets a process of its own, held to one core.

    python examples/timing.py torch factored FOLDER [FOLDER ...] --out-channels 8
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARM_UP = 3


def main() -> None:
    """Time every folder and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("backend", choices=("torch", "jax"))
    parser.add_argument("program", choices=("reference", "factored"))
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out-channels", type=int, required=True)
    parser.add_argument("--calls", type=int, default=30, help="timed calls for each folder")
    options = parser.parse_args()
    _hold_to_one_core()
    medians = {}
    for folder in options.folders:
        call, save = _prepare(options.backend, options.program, folder, options.out_channels)
        medians[folder.name] = _median(call, save, options.calls)
    print(json.dumps(medians))


def _hold_to_one_core() -> None:
    """Before a framework is imported: they count the cores they may use when they start."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    if hasattr(os, "sched_setaffinity"):  # Linux: the one limit that binds every thread pool
        # Any core will do, but not always the same one: another process may be timing too.
        os.sched_setaffinity(0, {random.choice(sorted(os.sched_getaffinity(0)))})


def _median(call: Callable[[], Any], save: Callable[[Any], None], calls: int) -> float:
    for _ in range(WARM_UP):  # the first call compiles, in JAX
        outputs = call()
    save(outputs)
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _prepare(
    backend: str, program: str, folder: Path, channels: int
) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    """A call that runs the layer once and waits for it, and a way to keep what it returns."""
    import symcompile as sc
    from symcompile.spec import flatten_like, unflatten

    spec = sc.load_spec(folder / "spec.yaml")
    names = ["/".join(map(str, leaf.path)) for leaf in spec.leaves]
    arrays = sc.load_weights(folder / "inputs.safetensors", backend)
    weights = sc.load_weights(folder / "weights.safetensors", backend)
    x = unflatten(spec, [arrays[name] for name in names])
    layer = sc.compile(
        spec,
        shapes=unflatten(spec, [tuple(arrays[name].shape[1:-1]) for name in names]),
        in_channels=1,
        out_channels=channels,
        backend=backend,
        optimize="auto" if program == "factored" else False,
    )

    def save(outputs: Any) -> None:
        flat = dict(zip(names, flatten_like(spec, outputs), strict=True))
        sc.save_weights(flat, folder / f"outputs-{program}-{backend}.safetensors")

    if backend == "torch":
        import torch

        torch.set_num_threads(1)
        layer.load_state_dict(weights)
        return torch.no_grad()(lambda: layer(x)), save

    import jax

    apply = jax.jit(layer.apply)
    return lambda: jax.block_until_ready(apply(weights, x)), save


if __name__ == "__main__":
    main()
