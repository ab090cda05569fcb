"""Compresses real weights, restores them, compares every byte and prints how well that went.

Without arguments the weights are those of a small published model, in BF16, FP16 and FP32; they
are fetched once (83 MB) and kept in .demo/. With --model any file or folder is taken, a folder as
`neuzip` takes it: as a model with its shards, index and configuration.

    python -m benches.demo [--model PATH] [--threads N] [--update-readme]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import neuzip_rs
from benches import machine, models, programs, readme

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".demo"
README_BLOCK = "demo-table"

# Medians of so many alternating rounds; a large file is its own average.
ROUNDS = 5
LARGE_BYTES = 1 << 30
# A folder in memory: there the programs are measured, not the disk. Both the compressed and the
# restored copy of one file lie there at a time.
MEMORY = Path("/dev/shm")

# Short enough for a terminal of 80 columns.
COLUMNS = ("file", "MB", "program", "MB after", "size %", "GB/s in", "GB/s out", "bits")


@dataclass(frozen=True)
class Measurement:
    """What one program did with one file or folder."""

    program: str
    original_bytes: int
    compressed_bytes: int
    compress_seconds: float
    decompress_seconds: float
    identical: bool

    def cells(self) -> tuple[str, ...]:
        """Returns its cells of the table, after the name and the size of the original."""
        return (
            self.program,
            f"{self.compressed_bytes / 1e6:.1f}",
            f"{percent(self.compressed_bytes, self.original_bytes):.1f}",
            speed(self.original_bytes, self.compress_seconds),
            speed(self.original_bytes, self.decompress_seconds),
            "same" if self.identical else "DIFFERENT",
        )


@dataclass(frozen=True)
class Comparison:
    """All programs on one file or folder, neuzip first."""

    name: str
    original_bytes: int
    measurements: tuple[Measurement, ...]

    @property
    def identical(self) -> bool:
        """Whether every program restored every byte."""
        return all(measurement.identical for measurement in self.measurements)

    def rows(self) -> list[tuple[str, ...]]:
        """Returns its rows of the table; only the first one names the original."""
        head = (self.name, f"{self.original_bytes / 1e6:.1f}")
        return [
            (*(head if index == 0 else ("", "")), *measurement.cells())
            for index, measurement in enumerate(self.measurements)
        ]


def percent(part: int, whole: int) -> float:
    """Returns a share in percent; nothing of nothing is all of it."""
    return 100 * part / whole if whole else 100.0


def speed(size: int, seconds: float) -> str:
    """Returns GB/s for the table."""
    return f"{size / seconds / 1e9:.2f}"


def digests(path: Path) -> dict[str, str]:
    """Hashes a file, or all files in a folder.

    Args:
        path: A file or a folder.

    Returns:
        SHA-256 by path relative to the folder; "." for a file.
    """
    result = {}
    for file in programs.files_under(path):
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256")
        result[file.relative_to(path).as_posix()] = digest.hexdigest()
    return result


def timed(action: Callable[[Path, Path], None], source: Path, target: Path) -> float:
    """Runs an action on a source and a target, and returns its seconds."""
    started = time.perf_counter()
    action(source, target)
    return time.perf_counter() - started


def remove(path: Path) -> None:
    """Removes a file or a folder if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def scratch_folder(size: int) -> tuple[Path, str]:
    """Chooses where compressed and restored copies are written.

    Args:
        size: The bytes of the largest original.

    Returns:
        The folder, and what the note under the table says of it.
    """
    writable = MEMORY.is_dir() and os.access(MEMORY, os.W_OK)
    if writable and shutil.disk_usage(MEMORY).free > 4 * size:
        return MEMORY, "in memory"
    return CACHE, "on the disk"


def compare(path: Path, contestants: Sequence[programs.Program], scratch: Path) -> Comparison:
    """Compresses and restores a path with every program, in turn, some rounds long.

    Args:
        path: A file or a folder.
        contestants: The programs, neuzip first.
        scratch: A folder for what they write.

    Returns:
        Medians and sizes, and whether everything came back.
    """
    original = digests(path)
    original_bytes = programs.size_of(path)
    times: list[list[tuple[float, float]]] = [[] for _ in contestants]
    sizes = [0] * len(contestants)
    identical = [True] * len(contestants)
    for _ in range(ROUNDS if original_bytes < LARGE_BYTES else 1):
        for index, program in enumerate(contestants):
            # Compressed and restored data keep the name, by which some tools tell what it is.
            packed = scratch / "packed" / path.name
            restored = scratch / "restored" / path.name
            for target in (packed, restored):
                remove(target)
                target.parent.mkdir(exist_ok=True)
            seconds = timed(program.compress, path, packed)
            times[index].append((seconds, timed(program.decompress, packed, restored)))
            sizes[index] = programs.size_of(packed)
            identical[index] &= digests(restored) == original
    measurements = tuple(
        Measurement(
            program=program.name,
            original_bytes=original_bytes,
            compressed_bytes=size,
            compress_seconds=statistics.median(seconds for seconds, _ in both),
            decompress_seconds=statistics.median(seconds for _, seconds in both),
            identical=same,
        )
        for program, both, size, same in zip(contestants, times, sizes, identical, strict=True)
    )
    return Comparison(path.name.removesuffix(".safetensors"), original_bytes, measurements)


def verify(path: Path, threads: int, scratch: Path) -> None:
    """Compresses a path with the command and has the command verify the result.

    Args:
        path: A file or a folder.
        threads: How many threads to use.
        scratch: A folder for the compressed data.
    """
    command = programs.NeuzipCommand(threads)
    packed = scratch / "verified" / path.name
    packed.parent.mkdir(exist_ok=True)
    command.compress(path, packed)
    command.verify(packed)
    remove(packed)


def table_of(comparisons: Sequence[Comparison], note: str) -> Table:
    """Returns the table for a terminal."""
    table = Table(caption=escape(note), caption_justify="left", caption_style="dim")
    for column in COLUMNS:
        left = column in {"file", "program", "bits"}
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    for comparison in comparisons:
        for index, cells in enumerate(comparison.rows()):
            table.add_row(
                *(escape(cell) for cell in cells),
                style="bold" if index == 0 else None,
                end_section=index == len(comparison.measurements) - 1,
            )
    return table


def markdown_of(comparisons: Sequence[Comparison], note: str) -> str:
    """Returns the table for the README."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|--:|---|--:|--:|--:|--:|---|"]
    for comparison in comparisons:
        for index, cells in enumerate(comparison.rows()):
            marked = [f"**{cell}**" if index == 0 and cell else cell for cell in cells]
            lines.append("| " + " | ".join(marked) + " |")
    return "\n".join([*lines, "", note, ""])


def summary(comparisons: Sequence[Comparison]) -> str:
    """Returns the closing line: what was saved, and whether every bit is the same."""
    different = [
        f"{comparison.name} ({measurement.program})"
        for comparison in comparisons
        for measurement in comparison.measurements
        if not measurement.identical
    ]
    if different:
        return f"NOT RESTORED: {', '.join(different)}"
    original = sum(comparison.original_bytes for comparison in comparisons)
    compressed = sum(comparison.measurements[0].compressed_bytes for comparison in comparisons)
    saved = original - compressed
    return (
        f"neuzip saved {saved / 1e6:.1f} of {original / 1e6:.1f} MB "
        f"({percent(saved, original):.1f} %), and every bit is the same (SHA-256 compared)."
    )


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benches.demo", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--model", type=Path, metavar="PATH", help="your own file or folder")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--update-readme", action="store_true", help="put the table into README.md")
    options = parser.parse_args(arguments)
    if options.model is not None:
        options.model = options.model.expanduser().absolute()
        if not options.model.exists():
            parser.error(f"{options.model} does not exist")
    if options.threads < 1:
        parser.error("--threads must be at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo.

    Args:
        arguments: The command line, by default the real one.

    Returns:
        0 if every program restored every byte, else 1.
    """
    options = parse_arguments(arguments)
    # A table that goes to a log is not squeezed into the 80 columns of no terminal.
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    CACHE.mkdir(exist_ok=True)
    comparisons = []
    try:
        if options.model is None:
            console.print("fetching the model, unless it is there ...")
            paths = list(models.demo_models(CACHE))
        else:
            paths = [options.model]
        folder, where = scratch_folder(max(map(programs.size_of, paths)))
        with tempfile.TemporaryDirectory(dir=folder, prefix="neuzip-demo-") as scratch:
            for path in paths:
                console.print(f"{escape(path.name)}: compress, verify, decompress, compare ...")
                verify(path, options.threads, Path(scratch))
                contestants = programs.programs_for(path, options.threads)
                comparisons.append(compare(path, contestants, Path(scratch)))
    except (models.FetchError, neuzip_rs.NeuzipError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:  # it has printed why
        return int(error.returncode) or 1

    as_command = not all(map(programs.calls_library, paths))
    started = "each neuzip a process with its start, " if as_command else ""
    note = (
        "GB/s of original bytes, compressing (in) and decompressing (out), from file to file "
        f"{where}, with checksums, {options.threads} threads (zstd decompresses with one), "
        f"{started}median of {ROUNDS}. {machine.describe()}."
    )
    console.print(table_of(comparisons, note))
    console.print(summary(comparisons), style="bold", markup=False)
    identical = all(comparison.identical for comparison in comparisons)
    if options.update_readme and identical:
        readme.replace_block(ROOT / "README.md", README_BLOCK, markdown_of(comparisons, note))
    return 0 if identical else 1


if __name__ == "__main__":
    sys.exit(main())
