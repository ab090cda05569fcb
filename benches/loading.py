"""How long loading takes: of a compressed directory, next to the plain one it came from.

    python -m benches.loading                     # a random Llama of 1.3 GB, in BF16
    python -m benches.loading --model DIR         # yours
    python -m benches.loading --call load_file    # without transformers

The directories take turns in rounds, in one process, from a cache that is warm. The weights are
summed up, because plain ones are only mapped by then, and come from the file when they are used.
Before the rounds every weight of the one is compared with that of the other. Printed are medians,
and those of the ratios within a round.

`--floor` measures what no decoder can do without, too: touching as much new memory as there are
weights, and decoding into memory that is there. With `--warm-memory` every turn begins after as
much memory was touched and given back: a virtual machine's host takes free memory away within
seconds, and giving it again takes several times as long as clearing it. Elsewhere it changes
nothing.

With `--cold` the files are dropped from the cache before each turn (Linux), so that they come from
the disk; what that gives by itself is measured, too. `--disk 1e9` reads them from one that gives so
many bytes a second: a file system in memory behind a loop device that control groups (version 1)
hold back. That needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import mmap
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import safetensors.torch
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

import neuzip_rs.hf  # registers the method
import neuzip_rs.safetensors
from benches import machine
from neuzip_rs import _native
from neuzip_rs.directory import compress_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Weights = dict[str, torch.Tensor]

_PAGE_BYTES: Final = 4096
_CGROUPS: Final = Path("/sys/fs/cgroup/blkio")


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


def from_pretrained(folder: Path) -> Weights:
    """Loads a model."""
    weights: Weights = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return weights


def load_file(folder: Path) -> Weights:
    """Loads the files of a model, each with the package that it is for."""
    weights: Weights = {}
    for path in sorted(folder.glob("*.safetensors")):
        plain = _native.content_kind(str(path)) == "safetensors"
        package = safetensors.torch if plain else neuzip_rs.safetensors
        weights.update(package.load_file(path))
    return weights


CALLS: Final[dict[str, Callable[[Path], Weights]]] = {
    "from_pretrained": from_pretrained,
    "load_file": load_file,
}


def load_and_touch(call: str, folder: Path) -> None:
    """Loads weights, and sums each of them up."""
    weights = CALLS[call](folder)
    with torch.no_grad():
        assert all(weight.sum().isfinite() for weight in weights.values())


def new_memory(size: int) -> torch.Tensor:
    """Memory in huge pages that nobody has touched."""
    room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    room.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(room, dtype=torch.uint8)


def touch_new(size: int) -> None:
    """Takes new memory, over all threads."""
    new_memory(size // _PAGE_BYTES * _PAGE_BYTES).view(-1, _PAGE_BYTES)[:, 0].fill_(1)


def decoders(folder: Path) -> Callable[[], None]:
    """What decodes the files of a folder into memory that is there."""
    files = [_native.SafetensorsFile(str(path)) for path in sorted(folder.glob("*.safetensors"))]
    sizes = [[layout[3] for layout in file.layouts()] for file in files]
    rooms = [torch.zeros(sum(lengths), dtype=torch.uint8).split(lengths) for lengths in sizes]

    def decode() -> None:
        for file, room in zip(files, rooms, strict=True):
            file.read_many(range(len(room)), room)

    return decode


def same(call: str, folders: dict[str, Path]) -> int:
    """Compares the weights of both, bit by bit, and returns their bytes."""
    one, other = (CALLS[call](folder) for folder in folders.values())
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
def disk(bytes_per_second: float, size: int) -> Iterator[Path]:
    """A folder on a disk in memory, which gives this process so many bytes a second."""
    with tempfile.TemporaryDirectory(prefix="neuzip-", dir="/dev/shm") as scratch:
        image, folder = Path(scratch) / "image", Path(scratch) / "disk"
        folder.mkdir()
        with image.open("wb") as file:
            file.truncate(size + (256 << 20))
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, folder], check=True)
        try:
            with limited(folder, bytes_per_second):
                yield folder
        finally:
            gc.collect()
            subprocess.run(["umount", folder], check=True)


@contextlib.contextmanager
def limited(folder: Path, bytes_per_second: float) -> Iterator[None]:
    """Limits what this process reads from the disk that a folder is on."""
    group = _CGROUPS / f"neuzip-{os.getpid()}"
    number = folder.stat().st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    group.mkdir()
    try:
        (group / "blkio.throttle.read_bps_device").write_text(f"{device} {bytes_per_second:.0f}")
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        (_CGROUPS / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


def folder_bytes(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


def measured(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds that pass, and of the CPU."""
    passed, worked = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - passed, time.process_time() - worked


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, help="a plain model directory")
    parser.add_argument("--call", choices=CALLS, default="from_pretrained")
    parser.add_argument("--folder", help="where to write, by default the temporary folder")
    parser.add_argument("--level", default="default", help="fast, default or max")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--floor", action="store_true", help="parts by themselves, too")
    parser.add_argument("--warm-memory", action="store_true", help="free memory is the machine's")
    parser.add_argument("--cold", action="store_true", help="files come from the disk")
    parser.add_argument("--disk", type=float, help="from one in memory: its bytes a second")
    options = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with contextlib.ExitStack() as stack:
        made = tempfile.TemporaryDirectory(prefix="neuzip-", dir=options.folder)
        scratch = Path(stack.enter_context(made))
        folders = {"plain": options.model or scratch / "model", "neuzip": scratch / "model-nz"}
        if options.model is None:
            make(folders["plain"])
        compress_directory(folders["plain"], folders["neuzip"], level=options.level)
        stored = {name: folder_bytes(folder) for name, folder in folders.items()}
        is_cold = options.cold or options.disk is not None
        if options.disk is not None:
            slow = stack.enter_context(disk(options.disk, sum(stored.values())))
            folders = {
                name: Path(shutil.copytree(folder, slow / name)) for name, folder in folders.items()
            }
        size = same(options.call, folders)
        source = ""
        if is_cold:
            source = f" from a disk that reads {disk_speed(folders['plain']) / 1e9:.2f} GB/s"
        work: dict[str, Callable[[], None]]
        work = {name: partial(load_and_touch, options.call, its) for name, its in folders.items()}
        if options.floor:
            work["touching new memory"] = partial(touch_new, size)
            work["decoding into memory that is there"] = decoders(folders["neuzip"])
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
        for turn in range(options.rounds):
            for name in list(work)[:: 1 if turn % 2 else -1]:
                gc.collect()
                if is_cold:
                    drop(folders.get(name, folders["neuzip"]))
                if options.warm_memory:
                    # The cache's pages are new ones, too, when it is cold.
                    touch_new(2 * size)
                times[name].append(measured(work[name]))
        work.clear()
    setting = f"{torch.get_num_threads()} threads, {options.rounds} rounds"
    setting += ", memory touched before" * options.warm_memory
    print(f"`{options.call}`, {size / 1e9:.2f} GB of weights{source}, {setting}; ", end="")
    print(f"{machine.describe()}\n")
    print("| | GB | s | x plain | s of the CPU | x plain |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, its in times.items():
        cells = [f"{stored[name] / 1e9:.2f}" if name in stored else ""]
        for clock in range(2):
            ratios = [a[clock] / b[clock] for a, b in zip(its, times["plain"], strict=True)]
            cells.append(f"{statistics.median(t[clock] for t in its):.3f}")
            cells.append(f"{statistics.median(ratios):.3f}")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
