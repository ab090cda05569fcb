"""The programs that the demo runs on a path, each from file to file.

All of them read their input from a file, write their output to a file and make sure that it is
on the disk (fsync) before they are done, and all use the same number of threads as far as they
can: zstd compresses with many threads and decompresses with one.
"""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import zstandard

import neuzip_rs.safetensors

if TYPE_CHECKING:
    from collections.abc import Iterator

# zstd's own default for streams, 128 KiB, costs it speed through Python.
MIB = 1 << 20


class Program(Protocol):
    """Something that compresses a file or a folder and restores it."""

    @property
    def name(self) -> str:
        """What the table calls it."""

    def compress(self, source: Path, target: Path) -> None:
        """Compresses source to target, which does not exist."""

    def decompress(self, source: Path, target: Path) -> None:
        """Restores what `compress` wrote at source to target, which does not exist."""


def files_under(path: Path) -> Iterator[Path]:
    """Yields a file itself, or every file in a folder, in a fixed order.

    Args:
        path: A file or a folder.

    Yields:
        Paths of files.
    """
    if path.is_dir():
        yield from sorted(child for child in path.rglob("*") if child.is_file())
    else:
        yield path


def size_of(path: Path) -> int:
    """Returns the bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in files_under(path))


class NeuzipLibrary:
    """neuzip_rs called from Python, for one .safetensors file."""

    name = "neuzip"

    def __init__(self, threads: int) -> None:
        """Remembers the number of threads to use."""
        self.threads = threads

    def compress(self, source: Path, target: Path) -> None:
        """Writes a compressed .safetensors file."""
        neuzip_rs.safetensors.compress_file(source, target, threads=self.threads)

    def decompress(self, source: Path, target: Path) -> None:
        """Restores the .safetensors file, verifying every checksum."""
        neuzip_rs.safetensors.decompress_file(source, target, threads=self.threads)


class NeuzipCommand:
    """The `neuzip` command, for anything: its time includes the start of the process."""

    name = "neuzip"

    def __init__(self, threads: int) -> None:
        """Remembers the number of threads to use."""
        self.threads = threads

    def run(self, verb: str, *arguments: str | Path) -> None:
        """Runs one command line and lets its error messages through.

        Args:
            verb: "compress", "decompress" or "verify".
            arguments: The other arguments.

        Raises:
            subprocess.CalledProcessError: The command did not succeed.
        """
        script = Path(sysconfig.get_path("scripts")) / "neuzip"
        command = [script, verb, "--quiet", "-T", str(self.threads), *arguments]
        subprocess.run([str(word) for word in command], check=True, stdin=subprocess.DEVNULL)

    def compress(self, source: Path, target: Path) -> None:
        """Runs `neuzip compress`."""
        self.run("compress", source, "-o", target)

    def decompress(self, source: Path, target: Path) -> None:
        """Runs `neuzip decompress`."""
        self.run("decompress", source, "-o", target)

    def verify(self, source: Path) -> None:
        """Runs `neuzip verify`."""
        self.run("verify", source)


class Zstd:
    """The zstandard package on each file, with content checksums as neuzip_rs has them."""

    def __init__(self, level: int, threads: int) -> None:
        """Remembers the level and the number of threads to use."""
        self.name = f"zstd -{level}"
        self.level = level
        self.threads = threads

    def compress(self, source: Path, target: Path) -> None:
        """Compresses each file of source."""
        # Zero is zstd's own single-threaded mode, one would start a worker thread.
        threads = self.threads if self.threads > 1 else 0
        compressor = zstandard.ZstdCompressor(self.level, threads=threads, write_checksum=True)
        for file in files_under(source):
            self._stream(compressor, file, _counterpart(source, target, file))

    def decompress(self, source: Path, target: Path) -> None:
        """Decompresses each file of source."""
        decompressor = zstandard.ZstdDecompressor()
        for file in files_under(source):
            self._stream(decompressor, file, _counterpart(source, target, file))

    @staticmethod
    def _stream(
        coder: zstandard.ZstdCompressor | zstandard.ZstdDecompressor, source: Path, target: Path
    ) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as reader, target.open("wb") as writer:
            if isinstance(coder, zstandard.ZstdCompressor):
                size = source.stat().st_size
                coder.copy_stream(reader, writer, size, read_size=MIB, write_size=MIB)
            else:
                coder.copy_stream(reader, writer, read_size=MIB, write_size=MIB)
            writer.flush()
            os.fsync(writer.fileno())


def _counterpart(source: Path, target: Path, file: Path) -> Path:
    return target if file == source else target / file.relative_to(source)


def calls_library(path: Path) -> bool:
    """Whether neuzip_rs is called as a library for a path, not as a command."""
    return path.is_file() and path.suffix == ".safetensors"


def programs_for(path: Path, threads: int) -> list[Program]:
    """Returns the programs to compare on a path, neuzip first.

    Args:
        path: A file or a folder.
        threads: How many threads each may use.

    Returns:
        The programs.
    """
    neuzip: Program = NeuzipLibrary(threads) if calls_library(path) else NeuzipCommand(threads)
    return [neuzip, Zstd(1, threads), Zstd(3, threads)]
