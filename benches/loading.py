"""How long `from_pretrained` takes: of a compressed directory, next to the plain one it came from.

    python -m benches.loading                     # a random Llama of 1.3 GB, in BF16
    python -m benches.loading --model DIR         # yours

The directories take turns in rounds, in one process, from a cache that is warm. The weights are
summed up, because plain ones are only mapped by then, and come from the file when they are used.
Before the rounds every weight of the one is compared with that of the other. Printed are medians,
and those of the ratios within a round.

With `--cold` the files are dropped from the cache before each turn (Linux), so that they come from
the disk; what that gives by itself is measured, too. `--limit 1e9` keeps it from giving more bytes
a second than that: by control groups of the system (version 1, as root), for this process alone.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils import logging

import neuzip_rs.hf  # noqa: F401  # registers the method
from benches import machine
from neuzip_rs.directory import compress_directory

if TYPE_CHECKING:
    from collections.abc import Iterator


def make(folder: Path) -> None:
    """Writes a Llama of 0.65 G parameters with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=10,
        num_attention_heads=32,
        num_key_value_heads=32,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).bfloat16()
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.fill_(1.0)
            else:
                # As before training.
                weight.normal_(0.0, 0.02 if "embed" in name else weight.shape[1] ** -0.5)
    model.save_pretrained(folder)


def load(folder: Path) -> tuple[PreTrainedModel, float, float]:
    """Loads a model and touches its weights; with the seconds that passed, and of the CPU."""
    passed, worked = time.perf_counter(), time.process_time()
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        sums = [weight.sum() for weight in model.parameters()]
    assert all(sums)
    return model, time.perf_counter() - passed, time.process_time() - worked


def same(folders: dict[str, Path]) -> int:
    """Compares the weights of both, bit by bit, and returns their bytes."""
    one, other = (load(folder)[0].state_dict() for folder in folders.values())
    assert one.keys() == other.keys()
    for name, weight in one.items():
        if not torch.equal(weight.view(torch.uint8), other[name].view(torch.uint8)):
            message = f"{name} did not come back"
            raise AssertionError(message)
    return sum(weight.nbytes for weight in one.values())


def drop(folder: Path) -> None:
    """Takes the files of a folder out of the system's cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_speed(folder: Path) -> float:
    """Bytes a second that reading a folder's files gives when they are not in the cache."""
    drop(folder)
    started, size = time.perf_counter(), 0
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while piece := file.read(4 << 20):
                size += len(piece)
    return size / (time.perf_counter() - started)


@contextlib.contextmanager
def limited(folder: Path, bytes_per_second: float | None) -> Iterator[None]:
    """Limits what this process reads from the disk that a folder is on."""
    if bytes_per_second is None:
        yield
        return
    root = Path("/sys/fs/cgroup/blkio")
    group = root / f"neuzip-{os.getpid()}"
    number = folder.stat().st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    group.mkdir()
    try:
        (group / "blkio.throttle.read_bps_device").write_text(f"{device} {bytes_per_second:.0f}")
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        (root / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, help="a plain model directory")
    parser.add_argument("--folder", help="where to write, by default the temporary folder")
    parser.add_argument("--level", default="default", help="fast, default or max")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cold", action="store_true", help="files come from the disk")
    parser.add_argument("--limit", type=float, help="bytes a second that the disk gives")
    options = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with (
        tempfile.TemporaryDirectory(prefix="neuzip-", dir=options.folder) as scratch,
        limited(Path(scratch), options.limit),
    ):
        plain = options.model or Path(scratch) / "model"
        if options.model is None:
            make(plain)
        folders = {"plain": plain, "neuzip": Path(scratch) / "model-nz"}
        compress_directory(plain, folders["neuzip"], level=options.level)
        stored = {name: sum(f.stat().st_size for f in p.iterdir()) for name, p in folders.items()}
        size = same(folders)
        disk = ""
        if options.cold:
            disk = f" from a disk that reads {disk_speed(plain) / 1e9:.2f} GB/s"
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in folders}
        for turn in range(options.rounds):
            for name in list(folders)[:: 1 if turn % 2 else -1]:
                gc.collect()
                if options.cold:
                    drop(folders[name])
                times[name].append(load(folders[name])[1:])
    threads = f"{torch.get_num_threads()} threads, {options.rounds} rounds"
    print(f"{size / 1e9:.2f} GB of weights{disk}, {threads}; {machine.describe()}\n")
    print("| directory | GB | s | x plain | s of the CPU | x plain |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, its in times.items():
        cells = [f"{stored[name] / 1e9:.2f}"]
        for clock in range(2):
            ratios = [a[clock] / b[clock] for a, b in zip(its, times["plain"], strict=True)]
            cells.append(f"{statistics.median(t[clock] for t in its):.3f}")
            cells.append(f"{statistics.median(ratios):.3f}")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
