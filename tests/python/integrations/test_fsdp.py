"""FSDP2 with compressed shards, in four real processes and in one."""

import os
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("torch.distributed.tensor", reason="torch has no distributed part")

import neuzip_rs.fsdp  # noqa: E402 - after the reason to skip
from tests.python import command  # noqa: E402
from tests.python.integrations.howto import follow  # noqa: E402
from tests.python.integrations.torchrun import launch  # noqa: E402

JOB = Path(__file__).parent / "fsdp_job.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="torchrun with gloo is tried on Linux only")
def test_training_is_exact(tmp_path: Path) -> None:
    # Four: one of them has no row of the parameter with three.
    launch(JOB, 4, tmp_path, timeout=400)


def shard(plain: "torch.Tensor") -> neuzip_rs.fsdp.CompressedShard:
    return neuzip_rs.fsdp.CompressedShard.of(plain)


def test_shard_is_what_it_holds() -> None:
    plain = torch.randn(300, 128).to(torch.bfloat16)
    kept = shard(plain)
    assert kept.stored_nbytes < 0.8 * plain.nbytes
    assert kept.shape == plain.shape
    assert kept.dtype == plain.dtype
    assert torch.equal(kept.plain(), plain)
    assert "CompressedShard((300, 128), torch.bfloat16" in repr(kept)
    assert torch.equal(kept.float() + 1, plain.float() + 1)
    assert type(kept.clone()) is torch.Tensor
    assert torch.equal(torch.stack([kept, kept])[1], plain)


def test_writes_are_seen_in_all_views() -> None:
    plain = torch.randn(10, 6)
    kept = shard(plain)
    flat, rows = kept.view(-1), kept[:4]
    assert type(flat) is type(rows) is neuzip_rs.fsdp.CompressedShard
    rows.add_(1)
    plain[:4] += 1
    assert torch.equal(kept.plain(), plain)
    assert torch.equal(flat.plain(), plain.view(-1))
    flat.copy_(torch.arange(60.0))
    assert torch.equal(rows.plain(), torch.arange(24.0).view(4, 6))
    torch._foreach_mul_([kept, torch.ones(2)], 2.0)
    assert torch.equal(kept.plain().view(-1), torch.arange(60.0) * 2)
    assert kept.mul_(0.5) is kept
    out = shard(torch.zeros(10, 6))
    torch.add(kept, kept, out=out)
    assert torch.equal(out.plain(), kept.plain() * 2)
    with pytest.raises(RuntimeError):
        kept.view(7, 7)


def test_padding_is_kept() -> None:
    padded = shard(torch.zeros(2, 5)).new_zeros((8, 5))
    assert type(padded) is neuzip_rs.fsdp.CompressedShard
    padded.narrow(0, 0, 3).copy_(torch.ones(3, 5))
    (gathered,), _ = padded[:3].fsdp_pre_all_gather(None, None, None, None, None)
    assert torch.equal(gathered, torch.cat([torch.ones(3, 5), torch.zeros(5, 5)]))


def test_model_that_is_not_sharded() -> None:
    with pytest.raises(ValueError, match="fully_shard"):
        neuzip_rs.fsdp.compress_shards(torch.nn.Linear(3, 3))
    with pytest.raises(ValueError, match="level"):
        neuzip_rs.fsdp.compress_shards(torch.nn.Linear(3, 3), level="best")


GIVEN = """
import atexit

import torch

store = torch.distributed.HashStore()
torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
# Threads that are there at the end may end the process with an error.
atexit.register(torch.distributed.destroy_process_group)
model = torch.nn.Sequential(*(torch.nn.Linear(128, 128) for _ in range(2)))
model.layers = list(model)
"""


def test_page_of_instructions(tmp_path: Path) -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = command.environment(PYTHONPATH=paths)
    assert follow("fsdp.md", tmp_path, environment, given=GIVEN) == 1
