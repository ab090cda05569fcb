"""torch.distributed.checkpoint: sharded, resharded, asynchronous, killed, against a base."""

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
dcp = pytest.importorskip("torch.distributed.checkpoint", reason="torch has no distributed part")

import neuzip_rs as nz  # noqa: E402 - after the reason to skip
import neuzip_rs.dcp  # noqa: E402
from tests.python import command  # noqa: E402
from tests.python.integrations.howto import follow  # noqa: E402
from tests.python.integrations.torchrun import ENVIRONMENT, launch  # noqa: E402

JOB = Path(__file__).parent / "dcp_job.py"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    # Saving in one process, and over a checkpoint, is what torch warns of.
    with warnings.catch_warnings():
        for text in ("torch.distributed is", "Detected an existing checkpoint"):
            warnings.filterwarnings("ignore", message=text)
        yield


def state(seed: int = 0, scale: float = 0.02) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "bf16": (torch.randn(300, 257, generator=generator) * scale).to(torch.bfloat16),
        "fp32": torch.randn(64, 33, generator=generator) * scale,
        "transposed": torch.randn(40, 50, generator=generator).t(),
        "strided": torch.randn(64, 64, generator=generator)[::2, 3:],
        "scalar": torch.tensor(-0.0),
        "empty": torch.empty(0, 5, dtype=torch.float16),
        "ints": torch.arange(1000),
        "bools": torch.arange(77) % 3 == 0,
        "fp8": torch.randn(130, generator=generator).to(torch.float8_e4m3fn),
        "nan": torch.tensor([0x7FC1, 0xFFC2, 0x8000], dtype=torch.uint16).view(torch.bfloat16),
        "text": "anything",
        "nested": {"list": [torch.ones(3), 2.5, None]},
    }


def cleared(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return torch.zeros_like(value)
    if isinstance(value, dict):
        return {key: cleared(part) for key, part in value.items()}
    if isinstance(value, list):
        return [cleared(part) for part in value]
    return None


def flat(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.contiguous().flatten().view(torch.uint8).tolist()
    if isinstance(value, dict):
        return {key: flat(part) for key, part in value.items()}
    return [flat(part) for part in value] if isinstance(value, list) else value


def save(values: dict, path: Path, **options: object) -> None:
    dcp.save(values, storage_writer=nz.dcp.writer(path, **options), no_dist=True)


def load(values: dict, path: Path, **options: object) -> dict:
    result = cleared(values)
    dcp.load(result, storage_reader=nz.dcp.reader(path, **options), no_dist=True)
    return result


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.distcp"))


@pytest.mark.parametrize("level", ["fast", "default", "max"])
def test_every_bit_comes_back(tmp_path: Path, level: str) -> None:
    values = state()
    save(values, tmp_path / "one", level=level)
    assert flat(load(values, tmp_path / "one")) == flat(values)


@pytest.mark.parametrize(
    "options", [{"thread_count": 3}, {"single_file_per_rank": False}, {"sync_files": False}]
)
def test_takes_the_options_of_torch(tmp_path: Path, options: dict) -> None:
    values = state()
    save(values, tmp_path / "one", **options)
    assert flat(load(values, tmp_path / "one")) == flat(values)


def test_is_smaller_than_plain_and_zstandard(tmp_path: Path) -> None:
    from torch.distributed.checkpoint._extension import ZStandard

    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(4096, 512, generator=generator) * 0.02
    values = {"weight": weights.to(torch.bfloat16)}
    save(values, tmp_path / "ours")
    plain = dcp.FileSystemWriter(tmp_path / "plain")
    dcp.save(values, storage_writer=plain, no_dist=True)
    assert size_of(tmp_path / "ours") < 0.7 * size_of(tmp_path / "plain")
    if ZStandard.is_available():
        zstd = dcp.FileSystemWriter(tmp_path / "zstd", _extensions=[ZStandard()])
        dcp.save(values, storage_writer=zstd, no_dist=True)
        assert size_of(tmp_path / "ours") < size_of(tmp_path / "zstd")
        # Other people's checkpoints are read as they are.
        assert flat(load(values, tmp_path / "zstd")) == flat(values)
    assert flat(load(values, tmp_path / "plain")) == flat(values)


def test_loads_into_other_types_and_layouts(tmp_path: Path) -> None:
    values = state()
    save(values, tmp_path / "one")
    target = {
        "bf16": torch.zeros(300, 257),
        "fp32": torch.zeros(33, 64).t(),
        "ints": torch.zeros(1000, dtype=torch.float64),
    }
    dcp.load(target, storage_reader=nz.dcp.reader(tmp_path / "one"), no_dist=True)
    assert torch.equal(target["bf16"], values["bf16"].float())
    assert torch.equal(target["fp32"], values["fp32"])
    assert torch.equal(target["ints"], values["ints"].double())


def test_plain_reader_refuses_by_name(tmp_path: Path) -> None:
    values = state()
    save(values, tmp_path / "one")
    with pytest.raises(dcp.CheckpointException, match="Unknown extension name='neuzip'"):
        dcp.load(
            cleared(values), storage_reader=dcp.FileSystemReader(tmp_path / "one"), no_dist=True
        )


def test_base(tmp_path: Path) -> None:
    before = state()
    after = {**before, "bf16": before["bf16"] + 0.0002, "fp32": before["fp32"] * 1.0001}
    other = {**after, "bf16": after["bf16"].clone(), "new": torch.ones(5)}
    other["bf16"][7] = 1
    save(before, tmp_path / "a" / "one")
    save(after, tmp_path / "a" / "two", base=tmp_path / "a" / "one")
    save(other, tmp_path / "three", base=tmp_path / "a" / "two")
    assert size_of(tmp_path / "a" / "two") < 0.6 * size_of(tmp_path / "a" / "one")
    assert size_of(tmp_path / "three") < 0.2 * size_of(tmp_path / "a" / "one")
    assert flat(load(other, tmp_path / "three")) == flat(other)
    # Together they can be moved; alone only with a word where the base is.
    (tmp_path / "moved").mkdir()
    (tmp_path / "a").rename(tmp_path / "moved" / "a")
    (tmp_path / "three").rename(tmp_path / "moved" / "three")
    assert flat(load(other, tmp_path / "moved" / "three")) == flat(other)
    (tmp_path / "moved" / "a" / "one").rename(tmp_path / "elsewhere")
    with pytest.raises(dcp.CheckpointException, match="base is missing"):
        load(after, tmp_path / "moved" / "a" / "two")
    found = load(after, tmp_path / "moved" / "a" / "two", base=tmp_path / "elsewhere")
    assert flat(found) == flat(after)


def test_base_that_is_plain(tmp_path: Path) -> None:
    before = state()
    after = {**before, "bf16": before["bf16"] + 0.0002}
    dcp.save(before, storage_writer=dcp.FileSystemWriter(tmp_path / "one"), no_dist=True)
    save(after, tmp_path / "two", base=tmp_path / "one")
    assert size_of(tmp_path / "two") < 0.5 * size_of(tmp_path / "one")
    assert flat(load(after, tmp_path / "two")) == flat(after)


def test_base_that_was_replaced(tmp_path: Path) -> None:
    before = state()
    after = {**before, "bf16": before["bf16"] + 0.0002}
    save(before, tmp_path / "one")
    save(after, tmp_path / "two", base=tmp_path / "one")
    save(state(seed=5), tmp_path / "one")
    with pytest.raises(dcp.CheckpointException, match="BaseMismatchError"):
        load(after, tmp_path / "two")


def test_base_that_leads_in_a_circle(tmp_path: Path) -> None:
    before = state()
    after = {**before, "bf16": before["bf16"] + 0.0002}
    save(before, tmp_path / "one")
    save(after, tmp_path / "two", base=tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "old")
    (tmp_path / "two").rename(tmp_path / "one")
    with pytest.raises(dcp.CheckpointException, match="BaseMismatchError"):
        load(after, tmp_path / "one")


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        nz.dcp.writer(tmp_path / "two", base=tmp_path / "one")
    with pytest.raises(ValueError, match="level"):
        nz.dcp.writer(tmp_path, level="best")
    with pytest.raises(ValueError, match="threads"):
        nz.dcp.reader(tmp_path, threads=0)
    with pytest.raises(ValueError, match="serialization_format"):
        nz.dcp.writer(tmp_path, serialization_format=dcp.filesystem.SerializationFormat.SAFETENSORS)
    save(state(), tmp_path / "one")
    with pytest.raises(dcp.CheckpointException, match="cannot replace its own base"):
        save(state(), tmp_path / "one", base=tmp_path / "one")
    with pytest.raises(dcp.CheckpointException, match="already exists"):
        save(state(), tmp_path / "one", overwrite=False)


def test_damage_is_noticed(tmp_path: Path) -> None:
    values = state()
    save(values, tmp_path / "one")
    (file,) = (tmp_path / "one").glob("*.distcp")
    data = file.read_bytes()
    for place in range(0, len(data), len(data) // 12):
        file.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        with pytest.raises(dcp.CheckpointException, match="neuzip_rs"):
            load(values, tmp_path / "one")
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(dcp.CheckpointException, match="the file ends at"):
        load(values, tmp_path / "one")


def test_second_save_into_one_folder_leaves_one_checkpoint(tmp_path: Path) -> None:
    save(state(), tmp_path / "one", thread_count=2)
    (tmp_path / "one" / "notes.txt").write_text("mine")
    values = state(seed=3)
    save(values, tmp_path / "one")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) == 3
    assert names[0] == ".metadata"
    assert names[2] == "notes.txt"
    assert flat(load(values, tmp_path / "one")) == flat(values)


SAVE_FOR_EVER = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
from torch.distributed import checkpoint as dcp
import neuzip_rs.dcp
step = 0
while True:
    step += 1
    values = {f"w{i}": torch.full((400, 501), float(step + i), dtype=torch.bfloat16)
              + torch.randn(400, 501, dtype=torch.bfloat16) * 0.01 for i in range(12)}
    values["step"] = torch.tensor(step)
    values["sums"] = torch.stack([w.view(torch.int16).long().sum() for k, w in values.items()
                                  if k.startswith("w")])
    dcp.save(values, storage_writer=neuzip_rs.dcp.writer(sys.argv[1]), no_dist=True)
    print(step, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.slow
def test_killed_save_leaves_the_previous_checkpoint_whole(tmp_path: Path) -> None:
    shapes = {f"w{i}": torch.zeros(400, 501, dtype=torch.bfloat16) for i in range(12)}
    shapes |= {"step": torch.tensor(0), "sums": torch.zeros(12, dtype=torch.int64)}
    job = [sys.executable, "-c", SAVE_FOR_EVER, str(tmp_path)]
    for attempt in range(3):
        with subprocess.Popen(job, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
            assert process.stdout is not None
            # One is whole; the kill comes at some moment of those after it.
            process.stdout.readline()
            time.sleep(0.011 + 0.037 * attempt)
            process.kill()
            done = 1 + sum(1 for _ in process.stdout)
        found = load(shapes, tmp_path)
        assert done <= found["step"].item() <= done + 1
        sums = [found[f"w{i}"].view(torch.int16).long().sum().item() for i in range(12)]
        assert found["sums"].tolist() == sums


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="torchrun with gloo is tried on Linux only")
def test_four_processes_then_two_then_one(tmp_path: Path) -> None:
    launch(JOB, 4, tmp_path, "save", "replicated")
    launch(JOB, 2, tmp_path, "load", "go-on", "replicated")
    plain = size_of(tmp_path / "plain")
    assert size_of(tmp_path / "one") < 0.9 * plain
    assert size_of(tmp_path / "two") < 0.9 * size_of(tmp_path / "one")
    # One process, without torch.distributed, and whole tensors.
    for name in ("one", "two", "three", "four", "replicated-4", "replicated-2"):
        expected = torch.load(tmp_path / f"expected-{name}.pt")
        assert flat(load(expected, tmp_path / name)) == flat(expected), name


GIVEN = """
import atexit

import torch

store = torch.distributed.HashStore()
torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
# Threads that are there at the end may end the process with an error.
atexit.register(torch.distributed.destroy_process_group)
model = torch.nn.Linear(256, 256)
"""


def test_page_of_instructions(tmp_path: Path) -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = command.environment(PYTHONPATH=paths)
    assert follow("dcp.md", tmp_path, environment, given=GIVEN) == 3
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "step-1000",
        "step-1100",
        "step-1200",
    }
