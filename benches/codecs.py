"""The codecs that the benchmark compares, each from memory to memory on one thread.

A codec gets the bytes of many values of one type and gives back the same bytes, in memory that it
allocates itself, as its own interface does by default. All verify what they decode if they can:
neuzip_rs and lz4 (frames) with checksums, zstd with its content checksum; zipnn and blosc2 have
none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import blosc2
import lz4.frame
import zipnn
import zstandard

import neuzip_rs

if TYPE_CHECKING:
    from typing_extensions import Buffer

ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}


class Codec(Protocol):
    """Something that compresses a buffer and restores it."""

    @property
    def name(self) -> str:
        """What the table calls it."""

    @property
    def scratches_input(self) -> bool:
        """Whether compress() overwrites its input, which is then restored for every run."""

    def compress(self, data: bytearray) -> Buffer:
        """Returns the compressed bytes."""

    def decompress(self, packed: Buffer) -> Buffer:
        """Returns the original bytes."""


class Neuzip:
    """neuzip_rs on raw bytes whose type it is told."""

    scratches_input = False

    def __init__(self, dtype: str, level: str) -> None:
        """Remembers the type and the level."""
        self.name = f"neuzip {level}"
        self.dtype = dtype
        self.level = level

    def compress(self, data: bytearray) -> neuzip_rs.CompressedTensor:
        """Compresses."""
        return neuzip_rs.compress(data, dtype=self.dtype, level=self.level, threads=1)

    def decompress(self, packed: Buffer) -> Buffer:
        """Restores into fresh memory."""
        result: Buffer = neuzip_rs.decompress(packed, framework="bytes", threads=1)
        return result


class NeuzipOut(Neuzip):
    """neuzip_rs with the `out=` argument: it decodes into memory that is there already."""

    def __init__(self, dtype: str, level: str, size: int) -> None:
        """Allocates the output once, as a caller with many tensors would."""
        super().__init__(dtype, level)
        self.name = f"neuzip {level}, out="
        self.out = bytearray(size)

    def decompress(self, packed: Buffer) -> Buffer:
        """Restores into the same memory every time."""
        neuzip_rs.decompress(packed, out=self.out, threads=1)
        return self.out


class Zipnn:
    """zipnn as its own documentation uses it on bytes; it overwrites its input."""

    name = "zipnn"
    scratches_input = True

    def __init__(self, dtype: str) -> None:
        """Makes the coder for one type."""
        self.coder = zipnn.ZipNN(input_format="byte", bytearray_dtype=dtype, threads=1)

    def compress(self, data: bytearray) -> Buffer:
        """Compresses."""
        result: Buffer = self.coder.compress(data)
        return result

    def decompress(self, packed: Buffer) -> Buffer:
        """Restores."""
        result: Buffer = self.coder.decompress(packed)
        return result


class Zstd:
    """The zstandard package, with content checksums."""

    scratches_input = False

    def __init__(self, level: int) -> None:
        """Makes the coders for one level."""
        self.name = f"zstd -{level}"
        self.coder = zstandard.ZstdCompressor(level, write_checksum=True)
        self.decoder = zstandard.ZstdDecompressor()

    def compress(self, data: bytearray) -> bytes:
        """Compresses."""
        return self.coder.compress(data)

    def decompress(self, packed: Buffer) -> bytes:
        """Restores."""
        return self.decoder.decompress(memoryview(packed))


class Lz4:
    """lz4 frames with content checksums."""

    name = "lz4"
    scratches_input = False

    def compress(self, data: bytearray) -> Buffer:
        """Compresses."""
        result: bytes = lz4.frame.compress(data, content_checksum=True)
        return result

    def decompress(self, packed: Buffer) -> Buffer:
        """Restores."""
        result: bytes = lz4.frame.decompress(packed)
        return result


class Blosc2:
    """blosc2: byte shuffle, then zstd level 1."""

    name = "blosc2 shuffle+zstd1"
    scratches_input = False

    def __init__(self, dtype: str) -> None:
        """Remembers the parameters for one type."""
        self.parameters = {
            "codec": blosc2.Codec.ZSTD,
            "clevel": 1,
            "typesize": ITEMSIZE[dtype],
            "filters": [blosc2.Filter.SHUFFLE],
            "filters_meta": [0],
            "nthreads": 1,
        }

    def compress(self, data: bytearray) -> Buffer:
        """Compresses."""
        result: bytes = blosc2.compress2(data, **self.parameters)
        return result

    def decompress(self, packed: Buffer) -> Buffer:
        """Restores."""
        result: bytes = blosc2.decompress2(packed, nthreads=1)
        return result


class Copy:
    """A plain copy into fresh memory: what any codec's output costs at the least."""

    name = "copy"
    scratches_input = False

    def compress(self, data: bytearray) -> Buffer:
        """Copies."""
        return bytes(data)

    def decompress(self, packed: Buffer) -> Buffer:
        """Copies."""
        return bytearray(packed)


def codecs_for(dtype: str, size: int) -> list[Codec]:
    """Returns the codecs to compare on a buffer.

    Args:
        dtype: The numpy spelling of the type of its values.
        size: Its bytes.

    Returns:
        The codecs, neuzip first.
    """
    return [
        Neuzip(dtype, "default"),
        NeuzipOut(dtype, "default", size),
        Neuzip(dtype, "fast"),
        Zipnn(dtype),
        Zstd(1),
        Zstd(3),
        Lz4(),
        Blosc2(dtype),
        Copy(),
    ]
