"""What torchrun runs in each process: data-parallel training, compared with torch's own.

The reference is `DistributedDataParallel` around the same model with the factory's optimizer; the
processes are given other weights to start from, which the first one's replace.
"""

import os
import sys
import warnings
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

import neuzip_rs as nz
from tests.python.optim import language
from tests.python.optim.language import Trace, batches

STEPS = 100


def adamw(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, 1e-3, foreach=False)


def loop(
    net: nn.Module, inner: nn.Module, optimizer: torch.optim.Optimizer, steps: int, accumulate: int
) -> Trace:
    trace = Trace()
    rank, size = distributed.get_rank(), distributed.get_world_size()
    for i in range(steps):
        for j, batch in enumerate(batches(accumulate, (i * size + rank) * accumulate)):
            if isinstance(net, DistributedDataParallel):
                net.require_backward_grad_sync = j == accumulate - 1
            loss = net(batch) / accumulate
            loss.backward()
            trace.losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return language.finish(trace, inner, optimizer)


def compare(
    dtype: torch.dtype, steps: int, accumulate: int, *, compress: bool, **options: Any
) -> None:
    seed = distributed.get_rank()
    net = language.model(dtype, seed=seed, layers=1)
    parallel = DistributedDataParallel(net)
    expected = loop(parallel, net, adamw(net.parameters()), steps, accumulate)

    net = language.model(dtype, seed=seed, layers=1)
    if compress:
        nz.nn.compress_(net, min_numel=256)
    optimizer = nz.optim.InBackward(
        net,
        adamw,
        accumulate_steps=accumulate,
        process_group=distributed.group.WORLD,
        **options,
    )
    assert loop(net, net, optimizer, steps, accumulate) == expected, (dtype, compress)


class Experts(nn.Module):
    """Which parameters get a gradient, and in which order, depends on the process."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))

    def forward(self, x: torch.Tensor, path: list[int]) -> torch.Tensor:
        for i in path:
            x = self.experts[i](x).tanh()
        return x.sum()


def unequal_graphs() -> None:
    """One process uses experts that the other does not, in another order; one nobody uses."""
    paths = [[[0, 1], [1, 0, 2], [0]], [[1, 0], [2], [1, 2, 0]]][distributed.get_rank()]
    results = []
    for ours in (False, True):
        torch.manual_seed(0)
        net = Experts()
        if ours:
            nz.nn.compress_(net, min_numel=0)
            optimizer: torch.optim.Optimizer = nz.optim.InBackward(
                net, adamw, process_group=distributed.group.WORLD
            )
        else:
            optimizer = adamw(net.parameters())
        for i, path in enumerate(paths):
            x = torch.full((2, 64), 0.1 * (1 + i + distributed.get_rank()))
            net(x, path).backward()
            if not ours:
                average(net)
            optimizer.step()
            optimizer.zero_grad()
        results.append(language.finish(Trace(), net, optimizer))
    assert results[0] == results[1]


def average(net: nn.Module) -> None:
    for parameter in net.parameters():
        used = torch.tensor([parameter.grad is not None], dtype=torch.int32)
        distributed.all_reduce(used)
        if int(used):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.div_(distributed.get_world_size())
            distributed.all_reduce(parameter.grad)


def wrappers() -> None:
    net = language.model(torch.float32)
    with pytest.raises(TypeError, match=r"model\.module.*process_group"):
        nz.optim.InBackward(DistributedDataParallel(net), adamw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FSDP prefers a GPU
        flat = FullyShardedDataParallel(nn.Linear(8, 8), device_id=torch.device("cpu"))
    with pytest.raises(TypeError, match=r"FSDP.*process_group"):
        nz.optim.InBackward(nn.Sequential(flat), adamw)
    with pytest.raises(TypeError, match=r"module\.0 is a FullyShardedDataParallel.*fully_shard"):
        nz.nn.compress_(nn.Sequential(flat))
    compressed = nz.nn.compress_(nn.Linear(8, 8), min_numel=1)
    with pytest.raises(RuntimeError, match=r"FullyShardedDataParallel.*fully_shard"):
        FullyShardedDataParallel(compressed, device_id=torch.device("cpu"))
    sharded = fully_shard(nn.Linear(8, 8), mesh=init_device_mesh("cpu", (2,)))
    with pytest.raises(TypeError, match=r"DTensor.*FSDP2"):
        nz.optim.InBackward(sharded, adamw)


def main() -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    compare(torch.bfloat16, STEPS, 1, compress=True)
    compare(torch.float32, STEPS // 10, 1, compress=False)
    compare(torch.float32, STEPS // 10, 2, compress=True, compress_states=True)
    unequal_graphs()
    wrappers()
    if distributed.get_rank() == 0:
        print("the same in", distributed.get_world_size(), "processes")
    distributed.barrier()
    distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # what gloo's threads do at exit is no concern of this test


if __name__ == "__main__":
    main()
