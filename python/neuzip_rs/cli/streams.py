"""Compressing and restoring what comes from, or goes to, a pipe.

What a stream is, is decided by its first bytes. A .safetensors file has to be seen as a whole,
so it is kept in a temporary file meanwhile; everything else passes through in bounded memory.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, TypeAlias

from neuzip_rs import _native
from neuzip_rs._bases import Base, base_arguments
from neuzip_rs._new_file import new_file
from neuzip_rs.cli.session import UsageError
from neuzip_rs.directory.content import Progress, file_pieces, original_pieces

Write: TypeAlias = Callable[[Any], object]

_READ_BYTES: Final = 1 << 20
_PEEK_BYTES: Final = 9
_FILE_MAGIC: Final = b"\x89NZF"
_MAGIC_PREFIX: Final = b"\x89NZ"
_MAX_HEADER_BYTES: Final = 100_000_000


@contextmanager
def open_source(path: str) -> Iterator[IO[bytes]]:
    """Standard input for "-", else the pipe or device.

    Raises:
        UsageError: It is a terminal.
    """
    if path == "-":
        if sys.stdin is None:
            message = "standard input is closed"
            raise UsageError(message)
        _refuse_terminal(sys.stdin.buffer, "data comes from a file or a pipe")
        yield sys.stdin.buffer
        return
    with Path(path).open("rb") as file:
        _refuse_terminal(file, "data comes from a file or a pipe")
        yield file


@contextmanager
def open_target(target: Path | None, *, overwrite: bool) -> Iterator[Write]:
    """A function that writes to standard output for None, to a device, or to a new file.

    The new file appears under its name when it is complete.

    Raises:
        UsageError: It is a terminal.
    """
    if target is None:
        if sys.stdout is None:
            message = "standard output is closed"
            raise UsageError(message)
        _refuse_terminal(sys.stdout.buffer, "this data is not for a terminal: use -o, or a pipe")
        yield sys.stdout.buffer.write
        sys.stdout.buffer.flush()
    elif target.exists() and not target.is_file():
        with target.open("wb") as file:
            _refuse_terminal(file, "this data is not for a terminal: use -o, or a pipe")
            yield file.write
    else:
        with new_file(target, overwrite=overwrite) as file:
            yield file.write


def compress_stream(
    source: IO[bytes],
    write: Write,
    *,
    level: str,
    threads: int | None,
    progress: Progress,
    base: Base | None = None,
) -> tuple[int, int]:
    """Compresses what comes; returns original and compressed bytes.

    Raises:
        ValueError: It is compressed already.
    """
    first = _read_up_to(source, _PEEK_BYTES)
    if _may_be_safetensors(first) or first.startswith(_MAGIC_PREFIX):
        with _spooled(first, source, progress) as path:
            return compress_to_stream(
                path, write, level=level, threads=threads, progress=progress, base=base
            )
    return _compress_frames(_pieces(first, source), write, level, threads, progress)


def compress_to_stream(
    path: Path,
    write: Write,
    *,
    level: str,
    threads: int | None,
    progress: Progress,
    base: Base | None = None,
) -> tuple[int, int]:
    """Compresses a file into a stream; returns original and compressed bytes.

    Raises:
        ValueError: It is compressed already.
    """
    if _native.content_kind(str(path)) == "other":
        return _compress_frames(file_pieces(path), write, level, threads, progress)
    with tempfile.TemporaryDirectory(prefix="neuzip-") as folder:
        compressed = Path(folder) / "compressed"
        sizes = _native.compress_file(
            str(path),
            str(compressed),
            level=level,
            threads=threads,
            progress=progress,
            **base_arguments(base, None),
        )
        for piece in file_pieces(compressed):
            write(piece)
    return sizes


def decompress_stream(
    source: IO[bytes],
    write: Write,
    *,
    threads: int | None,
    max_output_size: int | None,
    progress: Progress,
    base: str | None = None,
) -> tuple[int, int]:
    """Restores what comes; returns compressed and original bytes."""
    first = _read_up_to(source, _PEEK_BYTES)
    if not first.startswith(_FILE_MAGIC):
        with _spooled(first, source, progress) as path:
            return decompress_to_stream(
                path,
                write,
                threads=threads,
                max_output_size=max_output_size,
                progress=progress,
                base=base,
            )
    decompressor = _native.StreamDecompressor(threads=threads, max_output_size=max_output_size)
    taken = given = 0
    for piece in _pieces(first, source):
        restored = decompressor.feed(piece)
        taken += len(piece)
        given += len(restored)
        write(restored)
        progress(taken, 0)
    decompressor.finish()
    return taken, given


def decompress_to_stream(
    path: Path,
    write: Write,
    *,
    threads: int | None,
    max_output_size: int | None,
    progress: Progress,
    base: str | None = None,
) -> tuple[int, int]:
    """Restores a file into a stream; returns compressed and original bytes."""
    given = 0
    for piece in original_pieces(path, threads=threads, max_output_size=max_output_size, base=base):
        write(piece)
        given += len(piece)
        progress(given, 0)
    return path.stat().st_size, given


@contextmanager
def spooled_source(path: str, progress: Progress) -> Iterator[Path]:
    """A temporary file with everything that comes from a pipe."""
    with open_source(path) as source, _spooled(b"", source, progress) as copy:
        yield copy


@contextmanager
def _spooled(first: bytes, source: IO[bytes], progress: Progress) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="neuzip-") as folder:
        path = Path(folder) / "input"
        with path.open("wb") as file:
            count = 0
            for piece in _pieces(first, source):
                file.write(piece)
                count += len(piece)
                progress(count, 0)
        yield path


def _compress_frames(
    pieces: Iterator[bytes] | Iterator[memoryview],
    write: Write,
    level: str,
    threads: int | None,
    progress: Progress,
) -> tuple[int, int]:
    compressor = _native.StreamCompressor(level=level, threads=threads)
    taken = given = 0
    for piece in pieces:
        frames = compressor.feed(piece)
        taken += len(piece)
        given += len(frames)
        write(frames)
        progress(taken, 0)
    frames = compressor.finish()
    write(frames)
    return taken, given + len(frames)


def _may_be_safetensors(first: bytes) -> bool:
    length = int.from_bytes(first[:8], "little")
    return 2 <= length <= _MAX_HEADER_BYTES and first[8:9] == b"{"


def _read_up_to(source: IO[bytes], count: int) -> bytes:
    data = b""
    while len(data) < count and (more := source.read(count - len(data))):
        data += more
    return data


def _pieces(first: bytes, source: IO[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    while piece := source.read(_READ_BYTES):
        yield piece


def _refuse_terminal(file: IO[bytes], reason: str) -> None:
    if file.isatty():
        raise UsageError(reason)
