"""Measures the `neuzip` command next to the `zstd` command, from file to file.

One .safetensors file of more than 1 GB, read from the page cache, written to the folder given; each
program with every core and its checksums, until its output has been synced (neuzip does that by
itself, for the others fsync is called and timed). The programs take turns; `cp` shows what the
files alone cost. Peak memory is what the system counted for the process: resident pages,
memory-mapped ones of the input included.
"""

from __future__ import annotations

import filecmp
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benches import child
from benches.paired import Spread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ZSTD = "zstd -1 -T0"
COPY = "cp"
ACTIONS = ("compress", "decompress")


@dataclass(frozen=True)
class Program:
    """A program, and its command lines from a source to a target."""

    name: str
    compress: Callable[[str, str], list[str]]
    decompress: Callable[[str, str], list[str]]
    # Whether it syncs what it has written.
    syncs: bool = False


@dataclass
class Result:
    """What the programs did with one file."""

    original_bytes: int
    sizes: dict[str, int]
    # program -> action -> one figure per round.
    seconds: dict[str, dict[str, list[float]]]
    # program -> action -> the largest of all rounds.
    peak_bytes: dict[str, dict[str, int]]
    missing: dict[str, str]
    where: str

    def speed(self, program: str, action: str) -> Spread:
        """Returns GB of original bytes per second."""
        return Spread.of([self.original_bytes / s / 1e9 for s in self.seconds[program][action]])

    def ratio(self, program: str, action: str, reference: str = ZSTD) -> Spread | None:
        """Returns how many times as fast as a reference, None if that is missing."""
        if reference not in self.seconds:
            return None
        pairs = zip(self.seconds[reference][action], self.seconds[program][action], strict=True)
        return Spread.of([other / own for other, own in pairs])


def measure(file: Path, scratch: Path, where: str, rounds: int) -> Result:
    """Measures all programs on a file.

    Args:
        file: What to compress.
        scratch: A folder for what they write.
        where: What that folder is, for the record.
        rounds: How often each program has its turn.

    Returns:
        Times, sizes and peak memory.
    """
    task = {"file": str(file), "scratch": str(scratch), "rounds": rounds}
    return Result(**child.run("benches.command", task), where=where)


def work(task: dict[str, Any]) -> dict[str, Any]:
    """Measures in this process."""
    source = Path(task["file"])
    programs, missing = _programs()
    seconds: dict[str, dict[str, list[float]]] = {
        program.name: {action: [] for action in ACTIONS} for program in programs
    }
    peaks = {program.name: dict.fromkeys(ACTIONS, 0) for program in programs}
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory(dir=task["scratch"], prefix="neuzip-bench-") as scratch:
        packed, restored = Path(scratch) / "packed", Path(scratch) / "restored"
        with source.open("rb") as file:
            while file.read(1 << 24):  # into the page cache
                pass
        for number in range(task["rounds"] + 1):
            first = number % len(programs)
            for program in (*programs[first:], *programs[:first]):
                for action, command, target in (
                    ("compress", program.compress(str(source), str(packed)), packed),
                    ("decompress", program.decompress(str(packed), str(restored)), restored),
                ):
                    took, peak = _run(command, None if program.syncs else target)
                    # The first round proves that the file comes back, and warms everything up.
                    if number > 0:
                        seconds[program.name][action].append(took)
                        peaks[program.name][action] = max(peaks[program.name][action], peak)
                sizes[program.name] = packed.stat().st_size
                if number == 0 and not filecmp.cmp(source, restored, shallow=False):
                    message = f"{program.name} did not restore {source}"
                    raise AssertionError(message)
                packed.unlink()
                restored.unlink()
    return {
        "original_bytes": source.stat().st_size,
        "sizes": sizes,
        "seconds": seconds,
        "peak_bytes": peaks,
        "missing": missing,
    }


def _programs() -> tuple[list[Program], dict[str, str]]:
    programs = [_neuzip("default"), _neuzip("fast")]
    missing: dict[str, str] = {}
    for name, package, compress, decompress in (
        (ZSTD, "zstd", ["zstd", "-1", "-T0", "-q", "-f"], ["zstd", "-d", "-T0", "-q", "-f"]),
        (COPY, "coreutils", ["cp"], ["cp"]),
    ):
        if shutil.which(compress[0]) is None:
            missing[name] = f"no {compress[0]} on PATH (Debian package {package})"
        else:
            output = ["-o"] if name == ZSTD else []
            programs.append(Program(name, _line(compress, output), _line(decompress, output)))
    return programs, missing


def _neuzip(level: str) -> Program:
    script = Path(sysconfig.get_path("scripts")) / "neuzip"
    start = [str(script)] if script.exists() else [sys.executable, "-m", "neuzip_rs"]
    return Program(
        f"neuzip {level}",
        _line([*start, "compress", "-q", "-f", "--level", level], ["-o"]),
        _line([*start, "decompress", "-q", "-f"], ["-o"]),
        syncs=True,
    )


def _line(start: Sequence[str], output: Sequence[str]) -> Callable[[str, str], list[str]]:
    return lambda source, target: [*start, source, *output, target]


# Runs a command and syncs a file, in an interpreter with next to nothing loaded: the peak memory
# that the system counts for a process begins with that of the process that started it.
LAUNCHER = """
import os, sys, time
target, *command = sys.argv[1:]
started = time.perf_counter()
process = os.posix_spawnp(command[0], command, os.environ)
_, status, usage = os.wait4(process, 0)
if target:
    descriptor = os.open(target, os.O_RDONLY)
    os.fsync(descriptor)
print(time.perf_counter() - started, usage.ru_maxrss, os.waitstatus_to_exitcode(status))
"""


def _run(command: Sequence[str], sync: Path | None) -> tuple[float, int]:
    """Runs a command; returns seconds and peak bytes."""
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(sync or ""), *command]
    done = subprocess.run(
        launcher, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    seconds, peak, code = done.stdout.split()
    if int(code):
        raise subprocess.CalledProcessError(int(code), command)
    # Linux counts in KiB, macOS in bytes.
    return float(seconds), int(peak) * (1 if sys.platform == "darwin" else 1024)
