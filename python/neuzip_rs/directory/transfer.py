"""What packing and restoring a directory share: copying, hashing meanwhile, progress, results."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Final, TypeAlias

from neuzip_rs.directory.content import Progress, file_pieces

_LISTED: Final = 5

Note: TypeAlias = Callable[[str], object]
"""Called with a sentence the user should see."""


@dataclass(frozen=True, slots=True)
class DirectoryResult:
    """What was done with a directory."""

    files: int
    """Files of the original directory."""
    compressed_files: int
    """Those of them that are stored compressed."""
    original_bytes: int
    """All original files together."""
    stored_bytes: int
    """All files of the compressed directory together."""
    changed: tuple[str, ...] = ()
    """Stored files that somebody changed and that were restored as they had been."""


def listed(items: Sequence[str], separator: str = ", ") -> str:
    """The first few of these, for a message."""
    more = len(items) - _LISTED
    return separator.join(items[:_LISTED]) + (f"{separator}and {more} more" if more > 0 else "")


class Meter:
    """Reports the progress of several files as one."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        """Starts at zero of `total` bytes."""
        self._progress = progress
        self._total = total
        self._done = 0

    def add(self, count: int) -> None:
        """Says that `count` more bytes are done."""
        self._done += count
        self._report(0)

    @contextmanager
    def part(self, size: int) -> Iterator[Progress]:
        """A progress function for something that stands for `size` bytes of the whole."""

        def report(done: int, total: int) -> None:
            self._report(size * done // total if total else 0)

        yield report
        self.add(size)

    def _report(self, more: int) -> None:
        if self._progress is not None:
            self._progress(min(self._done + more, self._total), self._total)


def copy_file(source: Path, target: Path, meter: Meter) -> tuple[str, int]:
    """Copies a file; returns its SHA-256 and size, taken from what was written."""
    # What is there may be read-only: it gets the mode of its original.
    target.unlink(missing_ok=True)
    digest = hashlib.sha256()
    size = 0
    with target.open("xb", buffering=0) as output:
        for piece in file_pieces(source):
            write_all(output.write, piece)
            digest.update(piece)
            size += len(piece)
            meter.add(len(piece))
        os.fsync(output.fileno())
    return digest.hexdigest(), size


def write_file(target: Path, data: bytes) -> None:
    """Writes a small file and puts it on the disk."""
    target.unlink(missing_ok=True)
    with target.open("xb", buffering=0) as output:
        write_all(output.write, memoryview(data))
        os.fsync(output.fileno())


def write_all(write: Callable[[memoryview], int | None], data: memoryview) -> None:
    """Writes everything: an unbuffered file may take less at once."""
    while data:
        data = data[write(data) or 0 :]


@contextmanager
def hash_meanwhile(path: Path, threads: int | None) -> Iterator[Callable[[], str]]:
    """Hashes a file on a thread of its own while the body compresses it.

    Args:
        path: The file.
        threads: With one, hashing waits until its result is asked for.

    Yields:
        A function that returns the SHA-256 when it is there.
    """
    stop = Event()
    if threads == 1:
        yield lambda: _hash_until(path, stop)
        return
    with ThreadPoolExecutor(1) as pool:
        future: Future[str] = pool.submit(_hash_until, path, stop)
        try:
            yield future.result
        finally:
            stop.set()


def _hash_until(path: Path, stop: Event) -> str:
    digest = hashlib.sha256()
    for piece in file_pieces(path):
        if stop.is_set():
            break
        digest.update(piece)
    return digest.hexdigest()
