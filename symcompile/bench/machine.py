"""The machine a run was made on, as far as it matters to times.

In: nothing. Out: plain data for JSON. Names of users and hosts are left out: results get published.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from subprocess import SubprocessError, run
from typing import Any

__all__ = ["describe", "free_on_gpu", "one_line", "usable_cores"]

_PACKAGES = (
    *("symcompile", "numpy", "scipy", "torch", "triton"),
    *("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "nfn"),
)


def describe() -> dict[str, Any]:
    """Processor, memory, GPU, system, versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "caches": _caches(),
        "memory_bytes": _memory(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "gpus": _gpus(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def one_line(machine: dict[str, Any] | Any) -> str:
    """The machine for a caption."""
    gib = (machine.get("memory_bytes") or 0) / 2**30
    parts = [f"{machine['processor']}, {machine['usable_cores']} cores, {gib:.0f} GiB"]
    parts += machine.get("gpus") or []
    parts += [f"{name} {number}" for name, number in machine["packages"].items()]
    return "; ".join(parts)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _caches() -> dict[str, str]:
    """Sizes by level, of the first core."""
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = (
                (folder / name).read_text(encoding="utf-8").strip()
                for name in ("level", "type", "size")
            )
        except OSError:
            continue
        found[f"L{level} {kind.lower()}"] = size
    return found


def _memory() -> int | None:
    try:
        return int(os.sysconf("SC_PAGE_SIZE")) * int(os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return None


def free_on_gpu() -> int | None:
    """Bytes that nobody holds on the first GPU that this process may use."""
    found = _gpus("memory.free", only_first=True)
    number, _, unit = (found[0] if found else "").partition(" ")
    return int(number) << 20 if number.isdigit() and unit == "MiB" else None


def _gpus(
    asked: str = "name,memory.total,driver_version", *, only_first: bool = False
) -> list[str]:
    """What NVIDIA's tool says of every GPU that this process may use, or of the first."""
    query = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        query += ["-i", visible.split(",")[0] if only_first else visible]
    try:
        done = run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
