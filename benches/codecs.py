"""The codecs that the benchmark compares, each from memory to memory on one thread.

A codec gets one tensor at a time and gives back the same bytes, in memory that it allocates
itself, as its own interface does by default. neuzip_rs is told the shape, as it is by every
caller; the others work on bytes and have no use for it. All verify what they decode if they can:
neuzip_rs, zstd and lz4 with checksums, zipnn and blosc2 have none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import blosc2
import lz4.frame
import ml_dtypes
import numpy as np
import zipnn
import zstandard

import neuzip_rs

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from benches.models import Tensor

# What a type is called in .safetensors files, and everywhere else.
DTYPES = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}


class Sample:
    """One tensor in the forms in which codecs want it, all of them the same memory."""

    def __init__(self, tensor: Tensor) -> None:
        """Copies the bytes of a tensor out of its file."""
        dtype = DTYPES[tensor.dtype]
        self.pristine = tensor.data.tobytes()
        self.data = bytearray(self.pristine)
        element: Any = getattr(ml_dtypes, dtype, None) or np.dtype(dtype)
        self.array = np.frombuffer(self.data, element).reshape(tensor.shape)

    def restore(self) -> None:
        """Puts the bytes back that a codec has overwritten."""
        self.data[:] = self.pristine


class Codec(Protocol):
    """Something that compresses a tensor and restores its bytes."""

    @property
    def name(self) -> str:
        """What the table calls it."""

    @property
    def scratches_input(self) -> bool:
        """Whether compress() overwrites its input, which is then restored for every run."""

    def compress(self, sample: Sample) -> Buffer:
        """Returns the compressed bytes."""

    def decompress(self, packed: Buffer, index: int) -> Any:  # noqa: ANN401 - any buffer or array
        """Returns the original bytes of the tensor with this number."""


class Neuzip:
    """neuzip_rs on numpy arrays."""

    scratches_input = False

    def __init__(self, level: str) -> None:
        """Remembers the level."""
        self.name = f"neuzip {level}"
        self.level = level

    def compress(self, sample: Sample) -> neuzip_rs.CompressedTensor:
        """Compresses."""
        return neuzip_rs.compress(sample.array, level=self.level, threads=1)

    def decompress(self, packed: Buffer, index: int) -> Any:  # noqa: ANN401, ARG002
        """Restores into a new array."""
        return neuzip_rs.decompress(packed, threads=1)


class NeuzipOut(Neuzip):
    """neuzip_rs with the `out=` argument: it decodes into memory that is there already."""

    def __init__(self, level: str, samples: list[Sample]) -> None:
        """Allocates the outputs once, as a caller who refills a model would."""
        super().__init__(level)
        self.name = f"neuzip {level}, out="
        self.outputs = [np.zeros_like(sample.array) for sample in samples]

    def decompress(self, packed: Buffer, index: int) -> Any:  # noqa: ANN401
        """Restores into the same memory every time."""
        return neuzip_rs.decompress(packed, out=self.outputs[index], threads=1)


class Zipnn:
    """zipnn as its own documentation uses it on bytes; it overwrites its input."""

    name = "zipnn"
    scratches_input = True

    def __init__(self, dtype: str) -> None:
        """Makes the coder for one type."""
        self.coder = zipnn.ZipNN(input_format="byte", bytearray_dtype=dtype, threads=1)

    def compress(self, sample: Sample) -> Buffer:
        """Compresses."""
        result: Buffer = self.coder.compress(sample.data)
        return result

    def decompress(self, packed: Buffer, index: int) -> Buffer:  # noqa: ARG002
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

    def compress(self, sample: Sample) -> bytes:
        """Compresses."""
        return self.coder.compress(sample.data)

    def decompress(self, packed: Buffer, index: int) -> bytes:  # noqa: ARG002
        """Restores."""
        return self.decoder.decompress(memoryview(packed))


class Lz4:
    """lz4 frames with content checksums."""

    name = "lz4"
    scratches_input = False

    def compress(self, sample: Sample) -> Buffer:
        """Compresses."""
        result: bytes = lz4.frame.compress(sample.data, content_checksum=True)
        return result

    def decompress(self, packed: Buffer, index: int) -> Buffer:  # noqa: ARG002
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

    def compress(self, sample: Sample) -> Buffer:
        """Compresses."""
        result: bytes = blosc2.compress2(sample.data, **self.parameters)
        return result

    def decompress(self, packed: Buffer, index: int) -> Buffer:  # noqa: ARG002
        """Restores."""
        result: bytes = blosc2.decompress2(packed, nthreads=1)
        return result


class Copy:
    """A plain copy into fresh memory: what any codec's output costs at the least."""

    name = "copy"
    scratches_input = False

    def compress(self, sample: Sample) -> Buffer:
        """Copies."""
        return bytes(sample.data)

    def decompress(self, packed: Buffer, index: int) -> Buffer:  # noqa: ARG002
        """Copies."""
        return bytearray(packed)


def codecs_for(dtype: str, samples: list[Sample]) -> list[Codec]:
    """Returns the codecs to compare on some tensors.

    Args:
        dtype: The numpy spelling of their type.
        samples: The tensors.

    Returns:
        The codecs, neuzip first.
    """
    return [
        Neuzip("default"),
        NeuzipOut("default", samples),
        Neuzip("fast"),
        Zipnn(dtype),
        Zstd(1),
        Zstd(3),
        Lz4(),
        Blosc2(dtype),
        Copy(),
    ]
