"""One of the processes that share a batch: `python -m tests.distributed_worker FILE WORLD RANK`.

The one thing to know: what every way of sharing gives is compared with one module that has the
whole batch, outputs and gradients of all weights, at sizes at which kernels are chosen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import symcompile as sc
from symcompile_torch.nn import ChannelNorm, EquivariantAttention, Sequential, trunk

SPEC = {"kernel": ("in", "out"), "bias": ("out",), "graph": ("out", "out")}
SHAPES = {"kernel": (64, 48), "bias": (48,), "graph": (48, 48)}
BATCH = 4
CHANNELS = 16


def layer() -> nn.Module:
    return sc.compile(SPEC, in_channels=CHANNELS, out_channels=CHANNELS)


def network() -> nn.Module:
    widths = [CHANNELS, CHANNELS, CHANNELS]
    body = trunk(SPEC, widths, shapes=SHAPES, norm=ChannelNorm, residual=True)
    return Sequential(body, EquivariantAttention(SPEC, CHANNELS, heads=4))


def compare(
    make: Callable[[], nn.Module],
    share: Callable[[nn.Module], nn.Module],
    place: Callable[[Tensor], Tensor],
) -> None:
    """Hold what is shared to a module that has the whole batch.

    Args:
        share: makes a module one of several that learn together.
        place: what of a batch such a module is given.
    """
    modules = []
    for _ in range(2):
        torch.manual_seed(0)
        modules.append(make())
    alone, shared = modules[0], share(modules[1])
    inputs = {name: torch.randn(BATCH, *shape, CHANNELS) for name, shape in SHAPES.items()}
    expected = alone(inputs)
    found = shared({name: place(value) for name, value in inputs.items()})
    for name, value in found.items():
        torch.testing.assert_close(value, place(expected[name]))
    for outputs in (expected, found):
        # A mean over samples: that of equal parts is the mean of theirs.
        sum(value.square().mean() for value in outputs.values()).backward()
    for weight, known in zip(shared.parameters(), alone.parameters(), strict=True):
        assert weight.grad is not None
        torch.testing.assert_close(whole(weight.grad), known.grad)


def whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def main(meeting: str, world: int, rank: int) -> None:
    dist.init_process_group("gloo", f"file://{meeting}", world_size=world, rank=rank)
    mesh = init_device_mesh("cpu", (world,))

    def samples(value: Tensor) -> Tensor:
        return value.chunk(world)[rank]

    def fully_sharded(module: nn.Module) -> nn.Module:
        for part in module.modules():
            if hasattr(part, "reset_parameters"):
                fully_shard(part, mesh=mesh)
        return module if isinstance(module, FSDPModule) else fully_shard(module, mesh=mesh)

    for make in (layer, network):
        compare(make, DistributedDataParallel, samples)
        compare(make, fully_sharded, samples)

    # Weights that are made where they belong, and drawn there, are those that the first one draws.
    with torch.device("meta"):
        shared = fully_sharded(network())
    shared.to_empty(device="cpu")
    torch.manual_seed(rank)
    for part in shared.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    torch.manual_seed(0)
    for weight, known in zip(shared.parameters(), network().parameters(), strict=True):
        torch.testing.assert_close(whole(weight), known, rtol=0, atol=0)

    inputs = {name: torch.zeros(BATCH, *shape, CHANNELS) for name, shape in SHAPES.items()}
    inputs["graph"] = distribute_tensor(inputs["graph"], mesh, [Shard(0)])
    for call in (layer(), torch.compile(layer(), backend="eager")):
        with pytest.raises(ValueError, match=r"^x\['graph'\] is a DTensor, .* to_local"):
            call(inputs)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
