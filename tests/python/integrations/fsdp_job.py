"""What torchrun starts for test_fsdp.py: training with and without compressed shards, compared."""

import sys
import warnings
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

import neuzip_rs.dcp
import neuzip_rs.fsdp


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        # 3 and 131 rows: shards of different sizes, and processes without any.
        self.up = nn.Linear(width, 131)
        self.down = nn.Linear(131, width, bias=False)
        self.gate = nn.Parameter(torch.full((3, width), 0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x)))) * self.gate.sum(0)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(257, 96)
        self.blocks = nn.ModuleList(Block(96) for _ in range(3))
        self.head = nn.Linear(96, 257, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def build(*, compressed: bool, dtype: torch.dtype, mixed: bool) -> nn.Module:
    torch.manual_seed(0)
    model = Model().to(dtype)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if mixed else None,
        reduce_dtype=torch.float32 if mixed else None,
    )
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    if compressed:
        count = neuzip_rs.fsdp.compress_shards(model, min_bytes=0)
        assert count == len(list(model.parameters()))
    return model


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        generator = torch.Generator().manual_seed(1000 * step + dist.get_rank())
        # Two passes for each step: gradients add up over them.
        for _ in range(2):
            tokens = torch.randint(0, 257, (4, 33), generator=generator)
            scores = model(tokens[:, :-1]).float().flatten(0, 1)
            loss = nn.functional.cross_entropy(scores, tokens[:, 1:].flatten())
            loss.backward()
            losses.append(loss.item())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return losses


def full(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.full_tensor() for name, tensor in model.state_dict().items()}


def assert_equal(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert type(mine[name]) is torch.Tensor, name
        assert torch.equal(mine[name].view(torch.uint8), tensor.view(torch.uint8)), name


def assert_held_compressed(model: nn.Module, dtype: torch.dtype) -> None:
    for parameter in model.parameters():
        assert isinstance(parameter, DTensor)
        assert type(parameter.to_local().detach()) is neuzip_rs.fsdp.CompressedShard
    stored, plain = neuzip_rs.fsdp.shard_bytes(model)
    if dtype is torch.bfloat16:
        assert stored < 0.8 * plain, (stored, plain)


def exact(folder: Path) -> None:
    optimizers = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
        "foreach": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True),
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    }
    cases = [
        ("adamw", torch.bfloat16, False),
        ("foreach", torch.float32, True),
        ("sgd", torch.float32, False),
    ]
    for name, dtype, mixed in cases:
        ways = []
        for compressed in (False, True):
            model = build(compressed=compressed, dtype=dtype, mixed=mixed)
            optimizer = optimizers[name](model.parameters())
            losses = train(model, optimizer, range(3))
            ways.append((losses, full(model), model, optimizer))
        assert ways[0][0] == ways[1][0], name
        assert_equal(ways[1][1], ways[0][1])
        assert_held_compressed(ways[1][2], dtype)
    checkpoints(folder, *ways)


def checkpoints(folder: Path, plain: tuple, compressed: tuple) -> None:
    """A checkpoint of one kind is one of the other, through either writer."""
    for number, (source, target) in enumerate(((compressed, plain), (plain, compressed))):
        for name, writer, reader in (
            ("ours", neuzip_rs.dcp.writer, neuzip_rs.dcp.reader),
            ("torch", dcp.FileSystemWriter, dcp.FileSystemReader),
        ):
            expected = full(source[2])
            path = folder / f"{name}-{number}-{dist.get_world_size()}"
            dcp.save(get_model_state_dict(source[2]), storage_writer=writer(path))
            train(target[2], target[3], range(5, 6))
            state = get_model_state_dict(target[2])
            dcp.load(state, storage_reader=reader(path))
            assert_equal(full(target[2]), expected)
    assert_held_compressed(compressed[2], torch.float32)
    assert neuzip_rs.fsdp.decompress_shards(compressed[2]) == len(list(plain[2].parameters()))
    assert_equal(full(compressed[2]), full(plain[2]))


def main() -> None:
    # What torch says of its own future is not what is tested here.
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    exact(Path(sys.argv[1]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
