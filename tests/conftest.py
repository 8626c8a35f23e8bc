"""What every test runs under: the number of threads, hypothesis's profiles, an empty folder.

The one thing to know: HYPOTHESIS_PROFILE=dev looks for new counterexamples; the default, `ci`,
tries the same examples on every run.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from glob import glob
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# pytest-xdist already runs one process per core; more threads in each only fight over the cores.
# The libraries read these when they are first imported, which is later than this file.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
# JAX prefers a GPU, multiplies in TF32 there, and takes most of its memory for each process.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Without a GPU, Triton's programs are interpreted; Triton reads this when it is first imported.
if not glob("/dev/nvidia[0-9]*") and not os.path.exists("/dev/kfd"):
    os.environ.setdefault("TRITON_INTERPRET", "1")
if "torch" in sys.modules:  # a plugin imported it first, so the variables came too late
    sys.modules["torch"].set_num_threads(1)

# Workers hold millions of objects by the end, and looking through them took a fifth of the time;
# `nothing_old_is_looked_through` saves those that ask for it by themselves.
gc.set_threshold(100_000, 20, 20)

settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    # Wall-clock time on a shared machine says nothing about the code under test.
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("dev", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True, scope="module")
def nothing_old_is_looked_through() -> None:
    """What earlier modules left, and libraries keep, is no garbage of this one."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def planned_anew() -> None:
    """Layers that an earlier test left in use are not taken for a later one's: it may have planted
    a fault in what plans them."""
    from symcompile import api

    api._IN_USE.clear()


@pytest.fixture(scope="module")
def quick_xla() -> Iterator[None]:
    """XLA compiles without its optimizer, in half the time: for tests of many small programs.

    What JAX compiled op by op it goes on using, in other modules too: these take it as it is.
    """
    if find_spec("jax") is None:  # what needs it is skipped by itself
        yield
        return
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to stand in, whose modules can be imported and are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(f"{tmp_path}{os.sep}"):
            del sys.modules[name]
