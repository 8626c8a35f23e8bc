"""Layers in processes that share a batch, by each of PyTorch's own ways."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch.distributed

from tests.pages import ROOT

WORLD = 2
SECONDS = 300


@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this PyTorch has no gloo",
)
def test_shared_batches_give_what_whole_ones_give(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.distributed_worker", tmp_path / "meeting", str(WORLD)]
    told = [tmp_path / f"told by {rank}" for rank in range(WORLD)]
    with ExitStack() as stack:
        workers = []
        for rank, path in enumerate(told):
            errors = stack.enter_context(path.open("w"))
            worker = subprocess.Popen([*command, str(rank)], cwd=ROOT, stderr=errors)
            workers.append(stack.enter_context(worker))
            stack.callback(worker.kill)  # before it is waited for
        end = time.monotonic() + SECONDS
        # One that fails leaves the others waiting for it.
        while time.monotonic() < end and any(worker.poll() is None for worker in workers):
            if any(worker.poll() for worker in workers):
                break
            time.sleep(0.1)
        codes = [worker.poll() for worker in workers]
    assert codes == [0] * WORLD, "\n".join(path.read_text() for path in told)
