"""The measurements of `neuzip bench`: in this process, in memory, medians of several runs."""

import os
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final, Protocol

from neuzip_rs import _native
from neuzip_rs._dtypes import ITEMSIZE
from neuzip_rs._errors import NeuzipError
from neuzip_rs._spelling import NAMES
from neuzip_rs.directory.content import (
    COMPRESSED_KINDS,
    PIECE_BYTES,
    Progress,
    file_pieces,
    original_pieces,
)
from neuzip_rs.directory.tree import scan

# Enough for steady numbers; a whole large model would take minutes and all memory.
SAMPLE_BYTES: Final = 1 << 30
MIN_RUNS: Final = 3
MAX_RUNS: Final = 50
# Small inputs are repeated until the runs together take so long.
MIN_SECONDS: Final = 0.5
_ZSTD_LEVELS: Final = (1, 3)
_SAFETENSORS_KINDS: Final = frozenset({"safetensors", "neuzip-safetensors"})


def measure(path: Path, level: str, threads: int | None, progress: Progress) -> dict[str, Any]:
    """Measures a file, or the .safetensors files of a directory.

    Args:
        path: Compressed files are restored first, so that their original is measured.
        level: "fast", "default" or "max".
        threads: How many threads the second row uses, by default all.
        progress: Called with the steps done and the steps in all.

    Returns:
        The JSON object that `neuzip bench --json` prints, without the path.

    Raises:
        NeuzipError: There is nothing to measure, or a codec did not give the bytes back.
    """
    sample = _Sample()
    kind, file_bytes = sample.load(path)
    if not sample.data:
        message = f"{path}: nothing in it to measure"
        raise NeuzipError(message)
    out = bytearray(len(sample.data))
    everything = threads or _all_threads()
    codecs: list[_Codec | str] = [_Neuzip(sample, level, 1)]
    if everything > 1:
        codecs.append(_Neuzip(sample, level, everything))
    has_zstd = find_spec("zstandard") is not None
    codecs += [_Zstd(sample.data, n) if has_zstd else f"zstd -{n}" for n in _ZSTD_LEVELS]
    progress(0, len(codecs) + 1)
    seconds, _ = _time(lambda: _copy(sample.data, out))
    rows: list[dict[str, Any]] = []
    for codec in codecs:
        progress(len(rows) + 1, len(codecs) + 1)
        if isinstance(codec, str):
            rows.append({"name": codec, "missing": "the zstandard package is not installed"})
        else:
            rows.append(_measure(codec, sample.data, out))
    return {
        "kind": kind,
        "file_bytes": file_bytes,
        "bytes": len(sample.data),
        "complete": sample.complete,
        "tensors": len(sample.arrays),
        "memcpy_gbps": _gbps(len(sample.data), seconds),
        "rows": rows,
    }


@dataclass(frozen=True, slots=True)
class _Array:
    """An array in the sample."""

    start: int
    end: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(slots=True)
class _Sample:
    """What is measured: arrays side by side, as in a file."""

    data: bytearray = field(default_factory=bytearray)
    arrays: list[_Array] = field(default_factory=list)
    complete: bool = True

    def load(self, path: Path) -> tuple[str, int]:
        """Reads the beginning of a file or directory; returns its kind and size."""
        if path.is_dir():
            files = scan(path).files
            for file in files:
                if _native.content_kind(str(file.path)) in _SAFETENSORS_KINDS:
                    self._add_tensors(file.path)
            return "directory", sum(file.size for file in files)
        kind = _native.content_kind(str(path))
        if kind in _SAFETENSORS_KINDS:
            self._add_tensors(path)
        else:
            self._add_pieces(
                original_pieces(path) if kind in COMPRESSED_KINDS else file_pieces(path)
            )
        return kind, path.stat().st_size

    def _room(self) -> int:
        return SAMPLE_BYTES - len(self.data)

    def _add_pieces(self, pieces: Iterable[memoryview]) -> None:
        # Pieces are as long as the frames of a .nz file.
        for piece in pieces:
            if len(piece) > self._room():
                self.complete = False
                break
            self.data += piece
            self._add_array(len(piece), "uint8", None)

    def _add_tensors(self, path: Path) -> None:
        with closing(_native.SafetensorsFile(str(path))) as file:
            for name in file.keys():  # noqa: SIM118 - no dict
                size = file.nbytes(name)
                # Of a tensor that is too large the first pieces: whole elements in any case.
                taken = size if size <= self._room() else self._room() // PIECE_BYTES * PIECE_BYTES
                start = len(self.data)
                self.data += bytes(taken)
                with memoryview(self.data)[start:] as view:
                    file.read_into(name, view)
                dtype = NAMES.get(file.dtype(name), "uint8")
                self._add_array(taken, dtype, file.shape(name) if taken == size else None)
                if taken < size:
                    self.complete = False
                    return

    def _add_array(self, size: int, dtype: str, shape: tuple[int, ...] | None) -> None:
        flat = (size // ITEMSIZE[dtype],)
        # Types that NAMES lacks are bytes here, whatever their shape.
        shape = flat if shape is None or dtype == "uint8" else shape
        self.arrays.append(_Array(len(self.data) - size, len(self.data), dtype, shape))


class _Codec(Protocol):
    name: str
    threads: int

    def compress(self) -> None: ...
    def decompress_into(self, out: bytearray) -> None: ...
    def compressed_bytes(self) -> int: ...


class _Neuzip:
    def __init__(self, sample: _Sample, level: str, threads: int) -> None:
        self.name = f"neuzip {level}"
        self.threads = threads
        self._sample = sample
        self._level = level
        self._compressed: list[_native.CompressedTensor] = []

    def compress(self) -> None:
        with memoryview(self._sample.data) as data:
            self._compressed = [
                _native.compress(
                    data[array.start : array.end],
                    array.dtype,
                    array.shape,
                    level=self._level,
                    threads=self.threads,
                )
                for array in self._sample.arrays
            ]

    def decompress_into(self, out: bytearray) -> None:
        with memoryview(out) as view:
            for array, tensor in zip(self._sample.arrays, self._compressed, strict=True):
                part = view[array.start : array.end]
                _native.decompress_into(tensor, part, threads=self.threads)

    def compressed_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._compressed)


class _Zstd:
    threads = 1

    def __init__(self, data: bytearray, level: int) -> None:
        import zstandard

        self.name = f"zstd -{level}"
        self._data = data
        # With a checksum, like everything that neuzip writes.
        self._compressor = zstandard.ZstdCompressor(level, write_checksum=True)
        self._decompressor = zstandard.ZstdDecompressor()
        self._compressed = b""

    def compress(self) -> None:
        self._compressed = self._compressor.compress(self._data)

    def decompress_into(self, out: bytearray) -> None:
        # The package only decompresses into memory of its own: one copy more, if that.
        with self._decompressor.stream_reader(self._compressed) as reader:
            reader.readinto(out)

    def compressed_bytes(self) -> int:
        return len(self._compressed)


def _measure(codec: _Codec, data: bytearray, out: bytearray) -> dict[str, Any]:
    out[:] = bytes(len(out))
    codec.compress()
    codec.decompress_into(out)
    if out != data:
        message = f"{codec.name} did not give the bytes back"
        raise NeuzipError(message)
    compress_seconds, compress_runs = _time(codec.compress)
    decompress_seconds, decompress_runs = _time(lambda: codec.decompress_into(out))
    size = codec.compressed_bytes()
    return {
        "name": codec.name,
        "threads": codec.threads,
        "compressed_bytes": size,
        "ratio": round(size / len(data), 6),
        "compress_gbps": _gbps(len(data), compress_seconds),
        "decompress_gbps": _gbps(len(data), decompress_seconds),
        "runs": min(compress_runs, decompress_runs),
    }


def _time(work: Callable[[], None]) -> tuple[float, int]:
    """The median of the seconds that `work` takes, and the number of runs."""
    work()
    seconds: list[float] = []
    while len(seconds) < MIN_RUNS or (sum(seconds) < MIN_SECONDS and len(seconds) < MAX_RUNS):
        started = perf_counter()
        work()
        seconds.append(perf_counter() - started)
    return median(seconds), len(seconds)


def _copy(source: bytearray, target: bytearray) -> None:
    with memoryview(source) as data, memoryview(target) as out:
        out[:] = data


def _gbps(count: int, seconds: float) -> float:
    return round(count / max(seconds, 1e-9) / 1e9, 3)


def _all_threads() -> int:
    stated = os.environ.get("NEUZIP_NUM_THREADS", "")
    if stated.isdecimal() and int(stated) > 0:
        return int(stated)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
