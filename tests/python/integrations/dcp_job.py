"""What torchrun starts for test_dcp.py: saves and loads of one small model, in 4, 2 or 1 processes.

    torchrun --nproc-per-node 4 dcp_job.py FOLDER COMMAND...

Every command works on checkpoints in FOLDER and compares with `expected-*.pt`, which one of them
has written with `torch.save`.
"""

import sys
import warnings
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import neuzip_rs.dcp

Model = tuple[nn.Module, torch.optim.Optimizer]


def build(*, sharded: bool, seed: int) -> Model:
    torch.manual_seed(seed)
    # 67 rows: 4 and 2 processes have shards of different sizes, and 3 of 4 have the same.
    model = nn.Sequential(nn.Embedding(67, 48), nn.Linear(48, 130), nn.Linear(130, 1, bias=False))
    model = model.to(torch.bfloat16)
    model[2].to(torch.float32)
    model.register_buffer("steps", torch.tensor(3))
    if sharded:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in model:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    else:
        model = nn.parallel.DistributedDataParallel(model)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    # The same in every process, so that the replicas of DistributedDataParallel stay the same.
    plain = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    for parameter in plain.parameters():
        full = torch.linspace(-1, 1, parameter.numel()).view(parameter.shape).to(parameter.dtype)
        if isinstance(parameter, DTensor):
            from torch.distributed.tensor import distribute_tensor

            full = distribute_tensor(full, parameter.device_mesh, parameter.placements)
        parameter.grad = full
    optimizer.step()


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    weights, states = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": states, "note": "a string", "step": 7}


def full(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, states = get_state_dict(model, optimizer, options=options)
    return {"model": weights, "optimizer": states}


def leaves(value: object, path: str = "") -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {path: value}
    if isinstance(value, dict):
        pairs = [leaves(part, f"{path}.{key}") for key, part in value.items()]
        return {name: leaf for pair in pairs for name, leaf in pair.items()}
    return {}


def assert_same(found: dict, expected: dict) -> None:
    found, expected = leaves(found), leaves(expected)
    assert found.keys() == expected.keys()
    assert len(found) >= 8
    for name, tensor in expected.items():
        other = found[name]
        assert other.dtype == tensor.dtype, name
        assert other.shape == tensor.shape, name
        mine, theirs = (x.contiguous().flatten().view(torch.uint8) for x in (other, tensor))
        assert torch.equal(mine, theirs), name


def expect(folder: Path, name: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    gathered = full(model, optimizer)
    if dist.get_rank() == 0:
        torch.save(gathered, folder / f"expected-{name}.pt")
    dist.barrier()


def save(folder: Path) -> None:
    """FSDP2: two steps, the second as a difference from the first, and a plain one to compare."""
    model, optimizer = build(sharded=True, seed=1)
    step(model, optimizer)
    expect(folder, "one", model, optimizer)
    state = state_of(model, optimizer)
    dcp.save(state, storage_writer=neuzip_rs.dcp.writer(folder / "one"))
    dcp.save(state, storage_writer=dcp.FileSystemWriter(folder / "plain"))
    step(model, optimizer)
    expect(folder, "two", model, optimizer)
    writer = neuzip_rs.dcp.writer(folder / "two", base=folder / "one", thread_count=2)
    # A group of its own: the collectives of saving run next to those of training.
    group = dist.new_group(backend="gloo")
    state = state_of(model, optimizer)
    future = dcp.async_save(state, storage_writer=writer, process_group=group)
    # What training does meanwhile must not be in the checkpoint.
    step(model, optimizer)
    future.result()
    expect(folder, "three", model, optimizer)
    writer = neuzip_rs.dcp.writer(folder / "three", base=folder / "plain")
    dcp.save(state_of(model, optimizer), storage_writer=writer)


def replicated(folder: Path) -> None:
    """Data-parallel: every process has everything, each item is written once."""
    name = f"replicated-{dist.get_world_size()}"
    model, optimizer = build(sharded=False, seed=2)
    step(model, optimizer)
    expect(folder, name, model, optimizer)
    state = state_of(model, optimizer)
    dcp.save(state, storage_writer=neuzip_rs.dcp.writer(folder / name))
    dist.barrier()
    load_into(folder, name, *build(sharded=False, seed=3))


def load_into(folder: Path, name: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    # States of an optimizer exist after its first step.
    step(model, optimizer)
    state = state_of(model, optimizer)
    state["note"] = None
    dcp.load(state, storage_reader=neuzip_rs.dcp.reader(folder / name))
    assert state["note"] == "a string"
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )
    gathered = full(model, optimizer)
    if dist.get_rank() == 0:
        assert_same(gathered, torch.load(folder / f"expected-{name}.pt"))


def load(folder: Path) -> None:
    """Loads what another number of processes has saved."""
    for name in ("one", "two", "three"):
        load_into(folder, name, *build(sharded=True, seed=4))


def go_on(folder: Path) -> None:
    """A difference from a checkpoint that another number of processes has saved."""
    model, optimizer = build(sharded=True, seed=5)
    load_into(folder, "three", model, optimizer)
    step(model, optimizer)
    expect(folder, "four", model, optimizer)
    writer = neuzip_rs.dcp.writer(folder / "four", base=folder / "three", level="fast")
    dcp.save(state_of(model, optimizer), storage_writer=writer)


def main() -> None:
    # What torch says of its own future is not what is tested here.
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # gloo for collectives, and for the thread of an asynchronous save.
    dist.init_process_group("cpu:gloo")
    folder = Path(sys.argv[1])
    for command in sys.argv[2:]:
        {"save": save, "replicated": replicated, "load": load, "go-on": go_on}[command](folder)
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
