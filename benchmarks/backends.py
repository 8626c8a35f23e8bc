"""Time one layer's forward pass on every backend, reference against planned.

In: a workload's name. Out: a Markdown table of medians. Every contestant runs in a fresh process
with the same number of threads (JAX, torch's OpenMP and Inductor in one process disturb each other
by factors of ten), contestants take turns, and inputs rotate so that no cache is measured.

    python benchmarks/backends.py                # all workloads
    python benchmarks/backends.py mlp --rounds 5
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONTESTANTS = [
    (backend, optimize) for backend in ("torch", "jax", "numpy") for optimize in ("auto", "off")
]


def workload(name: str) -> tuple[Any, dict[Any, int], int, int]:
    """A spec, its sizes, batch and channels."""
    dense = {
        "Dense_0": {"kernel": (0, 1), "bias": (1,)},
        "Dense_1": {"kernel": (1, 2), "bias": (2,)},
    }
    rnn = {"wx": (0, 1), "wh": (1, 1), "bh": (1,), "wo": (1, 2), "bo": (2,)}
    deep = {f"layer{k}": {"kernel": (k, k + 1), "bias": (k + 1,)} for k in range(8)}
    return {
        "mlp": (dense, {0: 784, 1: 512, 2: 10}, 8, 16),
        "deep": (deep, dict.fromkeys(range(9), 128), 8, 32),
        "graph2": ({"edges": (0, 0)}, {0: 64}, 8, 32),
        "graph3": ({"edges": (0, 0, 0)}, {0: 16}, 4, 16),
        "rnn": (rnn, {0: 32, 1: 128, 2: 10}, 8, 16),
    }[name]


def measure(name: str, backend: str, optimize: str, calls: int) -> list[float]:
    """Milliseconds per call, in this process."""
    import numpy as np

    import symcompile as sc
    from symcompile.spec import unflatten

    spec, sizes, batch, channels = workload(name)
    layer = sc.compile(
        spec,
        in_channels=channels,
        out_channels=channels,
        sizes=sizes,
        backend=backend,
        optimize="auto" if optimize == "auto" else False,
    )
    rng = np.random.default_rng(0)

    def tree(convert: Any) -> Any:
        shapes = [[sizes[label] for label in leaf.labels] for leaf in layer.spec.leaves]
        arrays = [rng.standard_normal((batch, *s, channels), np.float32) for s in shapes]
        return unflatten(layer.spec, [convert(array) for array in arrays])

    if backend == "torch":
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        inputs = [tree(torch.from_numpy) for _ in range(3)]
        run = torch.no_grad()(layer)
    elif backend == "jax":
        import jax

        inputs = [tree(jax.numpy.asarray) for _ in range(3)]
        params, call = layer.init(jax.random.key(0)), jax.jit(layer.apply)

        def run(x: Any) -> Any:
            return jax.block_until_ready(call(params, x))
    else:
        inputs = [tree(np.asarray) for _ in range(3)]
        weights = layer.init(0)

        def run(x: Any) -> Any:
            return layer.apply(weights, x)

    for x in inputs:
        run(x)
    times = []
    for k in range(calls):
        start = time.perf_counter()
        run(inputs[k % 3])
        times.append(1e3 * (time.perf_counter() - start))
    return times


def fresh(name: str, backend: str, optimize: str, calls: int, threads: int) -> list[float]:
    """`measure`, in a process of its own."""
    pinned = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    pinned["XLA_FLAGS"] = (
        f"--xla_cpu_multi_thread_eigen=true intra_op_parallelism_threads={threads}"
    )
    command = [sys.executable, __file__, name, "--child", backend, optimize, "--calls", str(calls)]
    if hasattr(os, "sched_setaffinity"):
        command = ["taskset", "-c", f"0-{threads - 1}", *command]
    done = subprocess.run(
        command, env={**os.environ, **pinned}, capture_output=True, text=True, check=True
    )
    times: list[float] = json.loads(done.stdout.strip().splitlines()[-1])
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["mlp", "deep", "graph2", "graph3", "rnn"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.names[0], *options.child, options.calls)))
        return
    print("| workload | " + " | ".join(f"{b} {o}" for b, o in CONTESTANTS) + " |")
    print("|---" * (len(CONTESTANTS) + 1) + "|")
    for name in options.names:
        times: dict[tuple[str, str], list[float]] = {pair: [] for pair in CONTESTANTS}
        for _ in range(options.rounds):
            for pair in CONTESTANTS:
                times[pair] += fresh(name, *pair, options.calls, options.threads)
        cells = [f"{statistics.median(values):.1f}" for values in times.values()]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
