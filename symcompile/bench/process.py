"""The parent's end of a contestant's process.

In: a job. Out: answers to commands. Every contestant has a process of its own with the same number
of threads on the same cores, the same allocator, and empty compilation caches.

The one thing to know: a process that dies, hangs or answers nonsense is an answer too, never an
exception.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

from symcompile.bench.subject import Setting

__all__ = ["Child", "cpus_for", "environment"]


def cpus_for(threads: int) -> list[int]:
    """The cores that every contestant is pinned to; empty where pinning is not possible."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    return sorted(os.sched_getaffinity(0))[:threads]


def environment(setting: Setting, caches: str) -> dict[str, str]:
    """Environment of a contestant: threads, allocator, device, empty caches.

    Args:
        caches: the folder of those, and of temporary files: a contestant is ended, not asked to go.
    """
    threads = str(setting.threads)
    names = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB_MAXIMUM")
    own = {f"{name}_NUM_THREADS": threads for name in names}
    own |= {} if setting.fresh else _KEEPING
    own |= {
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=true",
        "NPROC": threads,  # XLA's thread pools on CPU
        "JAX_PLATFORMS": "cpu" if setting.device == "cpu" else "cuda,cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TORCHINDUCTOR_CACHE_DIR": f"{caches}/inductor",
        # Processes that compile; torch's own default is at most 32.
        "TORCHINDUCTOR_COMPILE_THREADS": str(min(setting.threads, 32)),
        "TRITON_CACHE_DIR": f"{caches}/triton",
        "CUDA_CACHE_PATH": f"{caches}/cuda",
        "PYTORCH_KERNEL_CACHE_PATH": f"{caches}/torch",
        **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), caches),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as NVIDIA's tool numbers them
        "NVIDIA_TF32_OVERRIDE": "0",  # whatever the user's says: everyone in full precision
        # Answers are UTF-8 whatever the locale; and a child finds what its parent found.
        "PYTHONIOENCODING": "utf-8",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    return {**os.environ, **own}


_KEEPING = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 60),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
"""Makes the GNU C library's malloc use memory again. By itself it maps every large block anew, and
a call that takes 36 ms spends 66 more on page faults; smaller blocks it keeps or not depending on
what went before, so that one layer differs by half from process to process."""


class Child:
    """A process that builds one contestant, or calibrates, and then obeys."""

    def __init__(self, job: Mapping[str, Any], setting: Setting) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="symcompile-bench-")
        self._log = Path(self._folder.name) / "stderr"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "symcompile.bench.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(setting, self._folder.name),
                text=True,
                encoding="utf-8",
                start_new_session=True,  # so that compilers it starts end with it
            )
        self._answers: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._job = {"setting": asdict(setting), "cpus": cpus_for(setting.threads), **job}

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self, limit: float) -> dict[str, Any]:
        """Build it, within `limit` seconds."""
        return self.ask(self._job, limit)

    def ask(self, command: Mapping[str, Any], limit: float) -> dict[str, Any]:
        """The answer to a command; its "status" is "ok" or as in `records.Measurement`."""
        start = monotonic()
        try:
            assert self._process.stdin is not None, "made with a pipe"
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=max(limit, 0.0))
            answer: dict[str, Any] = json.loads(line)
        except queue.Empty:
            self.close()
            return {"status": "late", "reason": f"no answer within {monotonic() - start:.0f} s"}
        except (OSError, ValueError):
            return {"status": "failed", "reason": self._epitaph()}
        return answer

    @property
    def alive(self) -> bool:
        """Whether it can be asked again."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the process and everything it started."""
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        else:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            # What was not yet written has nowhere to go.
            with suppress(OSError):
                stream.close() if stream is not None else None
        self._reader.join(timeout=5)
        with suppress(OSError):
            self._folder.cleanup()

    def _read(self) -> None:
        assert self._process.stdout is not None, "made with a pipe"
        with suppress(ValueError, OSError):  # closed meanwhile
            for line in self._process.stdout:
                self._answers.put(line)
        self._answers.put("")  # the end: no JSON

    def _epitaph(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        code = self._process.returncode
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        told = [line.strip() for line in lines if any(map(str.isalnum, line))]  # no rows of stars
        last = f": {told[-1][:200]}" if told else ""
        if code is not None and code < 0:
            with suppress(ValueError):
                name = signal.Signals(-code).name
                # Nobody else ends it so: not this parent, which would not ask why.
                why = ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
                return f"the process was ended by {name}{why}{last}"
        return f"the process ended with exit code {code}{last}"
