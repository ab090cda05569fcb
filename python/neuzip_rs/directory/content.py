"""The original bytes behind a file, piece by piece, to hash them or to compare them.

Pieces are at most `PIECE_BYTES` long and share one buffer: each is valid until the next is asked
for. So a file of any size is checked in little memory, without writing anything.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final, TypeAlias

from neuzip_rs import _native
from neuzip_rs._errors import CorruptDataError, OutputTooLargeError

PIECE_BYTES: Final = 16 << 20
COMPRESSED_KINDS: Final = frozenset({"neuzip-safetensors", "neuzip-file", "neuzip-tensor"})

Progress: TypeAlias = Callable[[int, int], object]
"""Called with the bytes done and the bytes in all; what it raises stops the work."""

# Where a compressed .safetensors file keeps its original header (docs/format.md): base64 of
# [8 bytes hash][varint length][raw deflate].
_HEADER_KEY: Final = "neuzip.header"
_HASH_BYTES: Final = 8
_MAX_HEADER_BYTES: Final = 100_000_000


def file_pieces(path: Path) -> Iterator[memoryview]:
    """The bytes of a file as they are."""
    buffer = memoryview(bytearray(min(PIECE_BYTES, max(1, path.stat().st_size))))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            yield buffer[:count]


def original_pieces(
    path: Path,
    *,
    threads: int | None = None,
    max_output_size: int | None = None,
    base: str | None = None,
) -> Iterator[memoryview]:
    """The bytes that a compressed file was made from, every checksum verified.

    Args:
        path: A compressed file.
        threads: How many threads may decode, by default all.
        max_output_size: The most bytes to accept.
        base: The model that the file was compressed against, if it is not where it was.

    Raises:
        BaseMismatchError: That is another model, or missing; then no piece was given out.
        CorruptDataError: The file is damaged, or not compressed at all.
        OutputTooLargeError: There are more bytes than `max_output_size`.
    """
    kind = _native.content_kind(str(path))
    if kind in COMPRESSED_KINDS:
        # Before the first piece: a file that this one needs may not be there.
        _native.references(str(path), check=True)
    if kind == "neuzip-safetensors":
        yield from _safetensors_pieces(path, threads, max_output_size, base)
    elif kind == "neuzip-file":
        yield from _frame_pieces(path, threads, max_output_size)
    elif kind == "neuzip-tensor":
        yield from _tensor_pieces(path, threads, max_output_size)
    else:
        message = f"{path}: this is no file that neuzip compressed"
        raise CorruptDataError(message)


def original_size(path: Path, file: _native.SafetensorsFile) -> int:
    """The size of the file that an (open) compressed .safetensors file restores."""
    return 8 + len(original_header(path)) + sum(map(file.nbytes, file.keys()))


def sha256(pieces: Iterable[memoryview]) -> tuple[str, int]:
    """The SHA-256, in hexadecimal, and the number of all bytes together."""
    digest = hashlib.sha256()
    count = 0
    for piece in pieces:
        digest.update(piece)
        count += len(piece)
    return digest.hexdigest(), count


def matches_file(pieces: Iterable[memoryview], path: Path) -> bool:
    """Whether a file holds exactly these bytes."""
    buffer = bytearray()
    with path.open("rb", buffering=0) as file:
        for piece in pieces:
            if len(buffer) != len(piece):
                buffer = bytearray(len(piece))
            # bytearray == memoryview is one memcmp; two memoryviews compare item by item.
            if not _fill(file.readinto, buffer) or buffer != piece:
                return False
        return not file.read(1)


def _fill(readinto: Callable[[memoryview], int | None], buffer: bytearray) -> bool:
    view = memoryview(buffer)
    while view:
        count = readinto(view)
        if not count:
            return False
        view = view[count:]
    return True


def _safetensors_pieces(
    path: Path, threads: int | None, max_output_size: int | None, base: str | None
) -> Iterator[memoryview]:
    # Opening checks the file as a whole, above all that both headers name the same tensors.
    with closing(_native.SafetensorsFile(str(path), base=base)) as file:
        header = original_header(path)
        layout: dict[str, Any] = json.loads(header)
        layout.pop("__metadata__", None)
        names = sorted(layout, key=lambda name: tuple(layout[name]["data_offsets"]))
        prefix = len(header).to_bytes(8, "little") + header
        sizes = {name: file.nbytes(name) for name in names}
        _check_limit(path, len(prefix) + sum(sizes.values()), max_output_size)
        file.check_base(threads=threads)
        yield memoryview(prefix)
        buffer = memoryview(bytearray(min(PIECE_BYTES, max(sizes.values(), default=0))))
        for name in names:
            # Empty tensors are read as well: that is what checks them.
            for start in range(0, max(1, sizes[name]), PIECE_BYTES):
                piece = buffer[: min(PIECE_BYTES, sizes[name] - start)]
                file.read_into(name, piece, start=start, threads=threads)
                yield piece


def original_header(path: Path) -> bytes:
    """The header of the file that a compressed .safetensors file was made from.

    Raises:
        CorruptDataError: It is damaged.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        outer = file.read(min(length, _MAX_HEADER_BYTES))
    try:
        blob = base64.b64decode(json.loads(outer)["__metadata__"][_HEADER_KEY], validate=True)
        size, start = read_varint(blob, _HASH_BYTES)
        if size > _MAX_HEADER_BYTES:
            message = f"{path}: its original header would have {size} bytes"
            raise CorruptDataError(message)
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        header = inflate.decompress(blob[start:], size + 1)
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        message = f"{path}: damaged original header: {error}"
        raise CorruptDataError(message) from error
    if len(header) != size:
        message = f"{path}: its original header has not the {size} bytes it should have"
        raise CorruptDataError(message)
    return header


def read_varint(data: bytes | memoryview, start: int) -> tuple[int, int]:
    """An unsigned LEB128 number and the position after it.

    Raises:
        CorruptDataError: The number does not end, is too large, or is longer than need be.
    """
    value = 0
    for index in range(10):
        position = start + index
        if position >= len(data):
            break
        byte = data[position]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if value >= 1 << 64 or (byte == 0 and index > 0):
                break
            return value, position + 1
    message = f"damaged number at byte {start}"
    raise CorruptDataError(message)


def _frame_pieces(
    path: Path, threads: int | None, max_output_size: int | None
) -> Iterator[memoryview]:
    decompressor = _native.StreamDecompressor(
        threads=threads, max_output_size=max_output_size, beside=str(path)
    )
    for piece in file_pieces(path):
        decoded = memoryview(decompressor.feed(piece))
        for start in range(0, len(decoded), PIECE_BYTES):
            yield decoded[start : start + PIECE_BYTES]
    decompressor.finish()


def _tensor_pieces(
    path: Path, threads: int | None, max_output_size: int | None
) -> Iterator[memoryview]:
    tensor = _native.CompressedTensor.from_bytes(path.read_bytes())
    size = tensor.original_nbytes
    _check_limit(path, size, max_output_size)
    buffer = memoryview(bytearray(min(PIECE_BYTES, size)))
    for start in range(0, max(1, size), PIECE_BYTES):
        piece = buffer[: min(PIECE_BYTES, size - start)]
        _native.decompress_into(tensor, piece, start=start, threads=threads)
        yield piece


def _check_limit(path: Path, size: int, limit: int | None) -> None:
    if limit is not None and size > limit:
        message = f"{path}: would decompress to {size} bytes, more than the limit of {limit}"
        raise OutputTooLargeError(message)
