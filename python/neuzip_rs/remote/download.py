"""Restoring a file from a URL: what has arrived is decoded while the rest is under way."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

from neuzip_rs import _native
from neuzip_rs._errors import CorruptDataError, OutputTooLargeError
from neuzip_rs._new_file import new_file
from neuzip_rs.directory.content import PIECE_BYTES, Progress, original_header
from neuzip_rs.remote.places import Places
from neuzip_rs.remote.tensors import RemoteSafetensors

_FILE_MAGIC: Final = b"\x89NZF"
_MAGIC_PREFIX: Final = b"\x89NZ"


def download(
    url: str,
    target: Path | None,
    *,
    threads: int | None = None,
    overwrite: bool = False,
    max_output_size: int | None = None,
    progress: Progress | None = None,
    base: str | None = None,
) -> tuple[int, int]:
    """Restores a compressed file from a URL, every checksum verified.

    Args:
        url: Where the compressed file is.
        target: The file to write; None to check only.
        threads: How many threads may decode.
        overwrite: Replace `target` if it is there.
        max_output_size: The most bytes the restored file may have.
        progress: Called with the original bytes done, and 0.
        base: The base that the file was compressed against, if it is not where it was.

    Returns:
        The sizes of the compressed and the restored file.

    Raises:
        CorruptDataError: If the file is damaged or not compressed; nothing is written then.
        BaseMismatchError: If the file needs a base, and it is another one or missing.
        OutputTooLargeError: If the restored file would exceed `max_output_size`.
    """
    size = Places(url).size()
    done = 0
    with ExitStack() as stack:
        write = None
        if target is not None:
            write = stack.enter_context(new_file(target, overwrite=overwrite)).write
        for piece in original_pieces(
            url, threads=threads, max_output_size=max_output_size, base=base
        ):
            if write is not None:
                write(piece)
            done += len(piece)
            if progress is not None:
                progress(done, 0)
    return size, done


def original_pieces(
    url: str,
    *,
    threads: int | None = None,
    max_output_size: int | None = None,
    base: str | None = None,
) -> Iterator[bytes | bytearray | memoryview]:
    """The bytes that a compressed file at a URL was made from; errors as those of `download`."""
    with Places(url).ranged() as file:
        first = file.read(0, min(file.size, len(_FILE_MAGIC)))
        if first == _FILE_MAGIC:
            decompressor = _native.StreamDecompressor(
                threads=threads, max_output_size=max_output_size
            )
            file.start()
            for _, data in file.blocks():
                yield decompressor.feed(data)
            decompressor.finish()
            return
        if first.startswith(_MAGIC_PREFIX):
            tensor = _native.CompressedTensor.from_bytes(file.read(0, file.size))
            _check_limit(url, tensor.original_nbytes, max_output_size)
            decoded = bytearray(tensor.original_nbytes)
            _native.decompress_into(tensor, decoded, threads=threads)
            yield decoded
            return
    with closing(RemoteSafetensors(url, base=base)) as tensors:
        if not tensors.compressed:
            message = f"{url}: this is no file that neuzip compressed"
            raise CorruptDataError(message)
        header = original_header(tensors.local_path)
        names = tensors.keys()
        total = 8 + len(header) + sum(map(tensors.nbytes, names))
        _check_limit(url, total, max_output_size)
        tensors.stream()
        if tensors.base is not None:
            tensors.check_base(threads=threads)
        yield len(header).to_bytes(8, "little") + header
        longest = max(map(tensors.nbytes, names), default=0)
        buffer = memoryview(bytearray(min(PIECE_BYTES, longest)))
        for name in names:
            size = tensors.nbytes(name)
            for start in range(0, max(1, size), PIECE_BYTES):
                piece = buffer[: min(PIECE_BYTES, size - start)]
                tensors.read_into(name, piece, start=start, threads=threads)
                yield piece


def _check_limit(url: str, size: int, limit: int | None) -> None:
    if limit is not None and size > limit:
        message = f"{url}: would decompress to {size} bytes, more than the limit of {limit}"
        raise OutputTooLargeError(message)
