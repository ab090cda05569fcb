"""The measurements of `neuzip bench`: in this process, in memory, in paired rounds.

In every round each codec has its turn, in rotated order, and its ratio to memcpy is taken within
the round: a machine that is slow for a while is slow for all. Reported are medians over the rounds.
"""

import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from neuzip_rs import _native
from neuzip_rs._errors import NeuzipError
from neuzip_rs._tensor import decompress
from neuzip_rs.cli.sample import Sample
from neuzip_rs.directory.content import Progress

MIN_ROUNDS: Final = 3
MAX_ROUNDS: Final = 50
# After so long no round begins, but for the first few; after twice as long not even those.
SECONDS: Final = 10.0
_ZSTD_LEVELS: Final = (1, 3)

_COMPRESS: Final = "compress"
# Into memory that has been written before, the same without checking hashes, into new memory.
_DECODERS: Final = ("decompress", "unverified", "fresh")
# All ratios are to the first codec, memcpy.
_REFERENCE: Final = (0, "decompress")

_Bytes = NDArray[np.uint8]
_Round = dict[tuple[int, str], float]


def measure(path: Path, level: str, threads: int | None, progress: Progress) -> dict[str, Any]:
    """Measures a file, or the .safetensors files of a directory.

    Args:
        path: Compressed files are restored first, so that their original is measured.
        level: "fast", "default" or "max".
        threads: How many threads the second row uses, by default all.
        progress: Called with the milliseconds spent and those there are.

    Returns:
        The JSON object that `neuzip bench --json` prints, without the path.

    Raises:
        NeuzipError: There is nothing to measure, or a codec did not give the bytes back.
    """
    sample = Sample()
    kind, file_bytes = sample.load(path)
    if not sample.data:
        message = f"{path}: nothing in it to measure"
        raise NeuzipError(message)
    # numpy asks for huge pages, and what is measured should not be the page tables.
    data = np.frombuffer(sample.data, np.uint8).copy()
    sample.data = bytearray()
    out = np.full_like(data, 1)
    everything = threads or _all_threads()
    codecs: list[_Codec] = [_Copy(data, out), _Neuzip(sample, data, out, level, 1)]
    if everything > 1:
        codecs.append(_Neuzip(sample, data, out, level, everything))
    has_zstd = find_spec("zstandard") is not None
    if has_zstd:
        codecs += [_Zstd(data, level) for level in _ZSTD_LEVELS]
    for codec in codecs:
        progress(0, int(SECONDS * 1000))
        _prove(codec, data, out)
    rounds = _rounds(codecs, progress)
    copy, *rows = (_row(index, codec, rounds, data.size) for index, codec in enumerate(codecs))
    if not has_zstd:
        reason = "the zstandard package is not installed"
        rows += [{"name": f"zstd -{level}", "missing": reason} for level in _ZSTD_LEVELS]
    return {
        "kind": kind,
        "file_bytes": file_bytes,
        "bytes": data.size,
        "complete": sample.complete,
        "tensors": len(sample.arrays),
        "memcpy_gbps": copy["decompress_gbps"],
        "memcpy_fresh_gbps": copy["fresh_gbps"],
        "rounds": len(rounds),
        "rows": rows,
    }


class _Codec(Protocol):
    name: str
    threads: int

    def compress(self) -> None: ...
    def decoders(self) -> Mapping[str, Callable[[], object]]: ...
    def compressed_bytes(self) -> int: ...


class _Copy:
    name = "memcpy"
    threads = 1

    def __init__(self, data: _Bytes, out: _Bytes) -> None:
        self._data = data
        self._out = out

    def compress(self) -> None:
        np.copyto(self._out, self._data)

    def decoders(self) -> dict[str, Callable[[], object]]:
        return {"decompress": self._into, "fresh": self._data.copy}

    def _into(self) -> _Bytes:
        np.copyto(self._out, self._data)
        return self._out

    def compressed_bytes(self) -> int:
        return self._data.size


class _Neuzip:
    def __init__(self, sample: Sample, data: _Bytes, out: _Bytes, level: str, threads: int) -> None:
        self.name = f"neuzip {level}"
        self.threads = threads
        self._parts = [(data[a.start : a.end], a.dtype, a.shape) for a in sample.arrays]
        self._outs = [out[a.start : a.end] for a in sample.arrays]
        self._out = out
        self._level = level
        self._compressed: list[_native.CompressedTensor] = []

    def compress(self) -> None:
        self._compressed = [
            _native.compress(part.data, dtype, shape, level=self._level, threads=self.threads)
            for part, dtype, shape in self._parts
        ]

    def decoders(self) -> dict[str, Callable[[], object]]:
        return {
            "decompress": lambda: self._into(verify=True),
            "unverified": lambda: self._into(verify=False),
            "fresh": self._fresh,
        }

    def _into(self, *, verify: bool) -> _Bytes:
        for part, tensor in zip(self._outs, self._compressed, strict=True):
            _native.decompress_into(tensor, part.data, verify=verify, threads=self.threads)
        return self._out

    def _fresh(self) -> list[Any]:
        # All of them are kept, as the tensors of a model are when it is loaded.
        return [decompress(tensor, threads=self.threads) for tensor in self._compressed]

    def compressed_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._compressed)


class _Zstd:
    threads = 1

    def __init__(self, data: _Bytes, level: int) -> None:
        import zstandard

        self.name = f"zstd -{level}"
        self._data = data
        # With a checksum, like everything that neuzip writes.
        self._compressor = zstandard.ZstdCompressor(level, write_checksum=True)
        self._decompressor = zstandard.ZstdDecompressor()
        self._compressed = b""

    def compress(self) -> None:
        self._compressed = self._compressor.compress(self._data.data)

    def decoders(self) -> dict[str, Callable[[], object]]:
        return {"fresh": lambda: self._decompressor.decompress(self._compressed)}

    def compressed_bytes(self) -> int:
        return len(self._compressed)


def _prove(codec: _Codec, data: _Bytes, out: _Bytes) -> None:
    """Has a codec restore the data in each of its ways.

    Raises:
        NeuzipError: It did not.
    """
    codec.compress()
    for decode in codec.decoders().values():
        out.fill(0)
        start = 0
        for part in _parts(decode()):
            if not np.array_equal(part, data[start : start + part.size]):
                break
            start += part.size
        if start != data.size:
            message = f"{codec.name} did not give the bytes back"
            raise NeuzipError(message)


def _parts(restored: Any) -> list[_Bytes]:  # noqa: ANN401 - bytes, an array or a list of them
    parts = restored if isinstance(restored, list) else [restored]
    return [
        part.reshape(-1).view(np.uint8)
        if isinstance(part, np.ndarray)
        else np.frombuffer(part, np.uint8)
        for part in parts
    ]


def _rounds(codecs: list[_Codec], progress: Progress) -> list[_Round]:
    """Seconds by number of the codec and what it does, for every round."""
    rounds: list[_Round] = []
    started = perf_counter()
    while len(rounds) < MAX_ROUNDS:
        spent = perf_counter() - started
        if rounds and spent > (SECONDS if len(rounds) >= MIN_ROUNDS else 2 * SECONDS):
            break
        entries: _Round = {}
        for step in range(len(codecs)):
            index = (len(rounds) + step) % len(codecs)
            codec = codecs[index]
            entries[index, _COMPRESS] = _time(codec.compress)
            for name, decode in codec.decoders().items():
                entries[index, name] = _time(decode)
            spent = min(perf_counter() - started, SECONDS)
            progress(int(spent * 1000), int(SECONDS * 1000))
        rounds.append(entries)
    return rounds


def _time(work: Callable[[], object]) -> float:
    started = perf_counter()
    result = work()
    seconds = perf_counter() - started
    # Freeing a large result is not part of the next measurement.
    del result
    return max(seconds, 1e-9)


def _row(index: int, codec: _Codec, rounds: list[_Round], count: int) -> dict[str, Any]:
    """One object of `rows`."""
    size = codec.compressed_bytes()
    row: dict[str, Any] = {
        "name": codec.name,
        "threads": codec.threads,
        "compressed_bytes": size,
        "ratio": round(size / count, 6),
    }
    # A codec that only decodes into memory of its own has no other speed.
    decompress_action = "decompress" if "decompress" in codec.decoders() else "fresh"
    for action in (_COMPRESS, *_DECODERS):
        key = (index, decompress_action if action == "decompress" else action)
        pairs = [(entries[_REFERENCE], entries[key]) for entries in rounds if key in entries]
        row[f"{action}_gbps"] = (
            round(count / median(own for _, own in pairs) / 1e9, 3) if pairs else None
        )
        row[f"{action}_x_memcpy"] = (
            round(median(copy / own for copy, own in pairs), 4) if pairs else None
        )
    row["runs"] = len(rounds)
    return row


def _all_threads() -> int:
    stated = os.environ.get("NEUZIP_NUM_THREADS", "")
    if stated.isdecimal() and int(stated) > 0:
        return int(stated)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
