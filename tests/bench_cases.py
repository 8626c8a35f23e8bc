"""What the tests of the benchmarks share: a setting, small workloads, and results to read."""

from __future__ import annotations

from symcompile.bench.records import Measurement, Results, Session
from symcompile.bench.roofline import Rates
from symcompile.bench.subject import Setting
from symcompile.bench.workloads import own_workload

SETTING = Setting(threads=1)
TINY = own_workload(
    {
        "Dense_0": {"kernel": (0, 1), "bias": (1,)},
        "Dense_1": {"kernel": (1, 2), "bias": (2,)},
    },
    sizes={0: 5, 1: 4, 2: 3},
    batch=2,
    channels=3,
    name="tiny",
)
CNN = own_workload(
    {
        "Conv_0": {"kernel": (None, None, None, "a"), "bias": ("a",)},
        "Conv_1": {"kernel": (None, None, "a", "b"), "bias": ("b",)},
        "Dense_0": {"kernel": ((None, "b"), None), "bias": (None,)},
    },
    shapes={
        "Conv_0": {"kernel": (3, 3, 2, 5), "bias": (5,)},
        "Conv_1": {"kernel": (3, 3, 5, 4), "bias": (4,)},
        "Dense_0": {"kernel": (24, 7), "bias": (7,)},
    },
    sizes={"b": 4},
    batch=2,
    channels=3,
    name="cnn",
)


def results_of(times: dict[str, float], sessions: dict[str, str] | None = None) -> Results:
    """Of a run on `TINY` with so many seconds for every contestant, and its session if not `s`."""
    made = tuple(
        Measurement(
            TINY.to_dict(),
            name,
            name in ("torch auto", "torch.compile auto", "jax auto", "numpy auto"),
            "k",
            (sessions or {}).get(name, "s"),
            (sessions or {}).get(name, "s"),
            "ok",
            stages={"plan": 1.0, "emit": 1.0, "compile": 1.0, "run": seconds},
            forward=((seconds, seconds), (seconds,)),
            extra=100,
        )
        for name, seconds in times.items()
    )
    kept = tuple(
        Session(name, "", {}, SETTING, Rates(1e6, 1e9), 2, 0.1, 9.0)
        for name in {"s", *(sessions or {}).values()}
    )
    return Results(kept, made)
