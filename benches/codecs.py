"""What the benchmarks compare, each from memory to memory: neuzip_rs, memcpy, and peers.py.

A codec gets one tensor at a time and gives back the same bytes. neuzip_rs is told type and shape,
as it is by every caller; the others work on bytes or on numbers of one width. All of them read the
same memory. A codec that takes the caller's memory for its output (`out=`) gets memory that has
been written before.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

import neuzip_rs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

# What a decoder is called that fills the caller's memory, and one that allocates its result.
OUT = "out="
FRESH = "fresh"
UNVERIFIED = ", unverified"

LEVELS = ("fast", "default", "max")


class Sample:
    """One tensor: its bytes, a copy for codecs to read, and memory to decode into."""

    def __init__(self, name: str, data: NDArray[np.uint8], shape: tuple[int, ...]) -> None:
        """Copies the bytes.

        Args:
            name: The numpy spelling of its type.
            data: Its bytes, C order.
            shape: Its shape.
        """
        self.dtype = name
        self.pristine = np.array(data)
        self.data = np.array(data)
        # Written, so that its pages are there.
        self.output = np.full_like(self.pristine, 1)
        self.array = typed(self.data, name, shape)
        self.output_array = typed(self.output, name, shape)

    def restore(self) -> None:
        """Puts the bytes back that a codec has overwritten."""
        np.copyto(self.data, self.pristine)

    def equals(self, restored: Any) -> bool:  # noqa: ANN401 - any buffer or array
        """Whether something holds the original bytes."""
        if isinstance(restored, np.ndarray):
            flat = np.ascontiguousarray(restored).reshape(-1).view(np.uint8)
        else:
            flat = np.frombuffer(restored, np.uint8)
        return np.array_equal(flat, self.pristine)


def typed(data: NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Returns bytes as an array of a type, which numpy or ml_dtypes has, without a copy."""
    try:
        element = np.dtype(dtype)
    except TypeError:
        element = np.dtype(getattr(importlib.import_module("ml_dtypes"), dtype))
    return data.view(element).reshape(shape)


class Codec(ABC):
    """Something that compresses a tensor and restores its bytes."""

    # What the tables call it.
    name: str
    # Whether compress() overwrites its input, which is then restored for every run.
    scratches_input = False
    # How many rounds pass between its turns: the slow ones need not run as often.
    every = 3

    @abstractmethod
    def compress(self, sample: Sample) -> Any:  # noqa: ANN401 - what decoders take
        """Returns the compressed tensor."""

    @abstractmethod
    def decoders(self) -> Mapping[str, Callable[[Any, Sample], Any]]:
        """Returns its ways to decode, by name; each takes what compress() returned."""

    def size(self, packed: Any) -> int:  # noqa: ANN401
        """Returns how many bytes a compressed tensor takes."""
        return memoryview(packed).nbytes

    def prove(self, sample: Sample) -> int:
        """Asserts that every decoder restores the tensor.

        Args:
            sample: The tensor.

        Returns:
            Its compressed size.

        Raises:
            AssertionError: One does not.
        """
        packed = self.compress(sample)
        sample.restore()
        for name, decode in self.decoders().items():
            sample.output.fill(0)
            if not sample.equals(decode(packed, sample)):
                message = f"{self.name}: {name} did not restore its input"
                raise AssertionError(message)
        return self.size(packed)


class Copy(Codec):
    """memcpy: what the output of any codec costs at the least."""

    every = 1

    def __init__(self, threads: int) -> None:
        """Remembers over how many threads the memory is divided."""
        self.name = "memcpy" if threads == 1 else f"memcpy, {threads} threads"
        self.threads = threads
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def compress(self, sample: Sample) -> NDArray[np.uint8]:
        """Copies into memory that is there."""
        self._copy(sample.data, sample)
        return sample.data

    def decoders(self) -> dict[str, Callable[[Any, Sample], Any]]:
        """Copies into memory that is there and, on one thread, into new memory."""
        if self.threads > 1:
            return {OUT: self._copy}
        return {OUT: self._copy, FRESH: lambda packed, _: packed.copy()}

    def _copy(self, source: NDArray[np.uint8], sample: Sample) -> NDArray[np.uint8]:
        if self.pool is None:
            np.copyto(sample.output, source)
        else:
            parts = (np.array_split(array, self.threads) for array in (sample.output, source))
            # numpy copies without the GIL.
            list(self.pool.map(np.copyto, *parts))
        return sample.output


class Neuzip(Codec):
    """neuzip_rs on numpy arrays."""

    def __init__(self, level: str, threads: int | None, *, name: str = "") -> None:
        """Remembers the level and the number of threads, None for all."""
        self.name = name or f"neuzip {level}"
        self.level = level
        self.threads = threads
        # `max` is a search; nobody waits for its speed.
        self.every = 3 if level == "max" else 1

    def compress(self, sample: Sample) -> neuzip_rs.CompressedTensor:
        """Compresses."""
        return neuzip_rs.compress(sample.array, level=self.level, threads=self.threads)

    def decoders(self) -> dict[str, Callable[[Any, Sample], Any]]:
        """Into the caller's memory and into a new array, with and without checking hashes."""
        return {
            OUT: partial(self._decode, out=True, verify=True),
            OUT + UNVERIFIED: partial(self._decode, out=True, verify=False),
            FRESH: partial(self._decode, out=False, verify=True),
            FRESH + UNVERIFIED: partial(self._decode, out=False, verify=False),
        }

    def _decode(
        self, packed: neuzip_rs.CompressedTensor, sample: Sample, *, out: bool, verify: bool
    ) -> Any:  # noqa: ANN401
        target = sample.output_array if out else None
        return neuzip_rs.decompress(packed, out=target, threads=self.threads, verify=verify)
