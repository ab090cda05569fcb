"""How often each exponent occurs in a model, by the type of its elements."""

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from neuzip_rs import _native

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Spelling in .safetensors files -> bytes, bits of exponent and of mantissa.
_FIELDS: Final = {
    "BF16": (2, 8, 7),
    "F16": (2, 5, 10),
    "F32": (4, 8, 23),
    "F64": (8, 11, 52),
    "F8_E4M3": (1, 4, 3),
    "F8_E4M3FNUZ": (1, 4, 3),
    "F8_E5M2": (1, 5, 2),
    "F8_E5M2FNUZ": (1, 5, 2),
}
_PIECES: Final = 8
_PIECE_BYTES: Final = 1 << 20
"""Of large tensors this many pieces of this size, spread evenly, are counted."""


@dataclass(slots=True)
class Histogram:
    """Counts of exponents."""

    bits: int
    """Width of an exponent."""
    counts: "NDArray[np.int64]"

    @property
    def elements(self) -> int:
        """Elements that were counted."""
        return int(self.counts.sum())

    @property
    def entropy(self) -> float:
        """Bits per exponent that an ideal code without context would take."""
        total = self.elements
        present = self.counts[self.counts > 0] / max(1, total)
        return float(-(present * np.log2(present)).sum()) + 0.0

    def shares(self) -> list[tuple[int, float]]:
        """Every exponent from the smallest to the largest there is, and its share."""
        present = np.flatnonzero(self.counts)
        if not present.size:
            return []
        window = range(int(present[0]), int(present[-1]) + 1)
        return [(exponent, float(self.counts[exponent]) / self.elements) for exponent in window]

    def common(self, most: int = 32) -> list[tuple[int, float]]:
        """A window of neighbouring exponents, at most so many, that holds as much as one can."""
        shares = self.shares()
        starts = range(max(1, len(shares) - most + 1))
        best = max(starts, key=lambda i: sum(share for _, share in shares[i : i + most]))
        return shares[best : best + most]


def count(path: Path, threads: int | None) -> dict[str, dict[str, Histogram]]:
    """Counts the exponents of the tensors in a .safetensors file, compressed or not.

    Returns:
        For each spelling of a type the histograms of its tensors, by name.
    """
    found: dict[str, dict[str, Histogram]] = {}
    with closing(_native.SafetensorsFile(str(path))) as file:
        for name, spelling, _, nbytes in file.layouts():
            if spelling not in _FIELDS or not nbytes:
                continue
            width, bits, mantissa = _FIELDS[spelling]
            counts = np.zeros(1 << bits, np.int64)
            for piece in _pieces(file, name, nbytes, threads):
                words = piece.view(f"<u{width}") >> np.array(mantissa, f"<u{width}")
                exponents = words & np.array((1 << bits) - 1, f"<u{width}")
                counts += np.bincount(exponents.astype(np.int64), minlength=1 << bits)
            found.setdefault(spelling, {})[name] = Histogram(bits, counts)
    return found


def total(histograms: list[Histogram]) -> Histogram:
    """All of them together; they must be of one type."""
    counts: Any = sum(histogram.counts for histogram in histograms)
    return Histogram(histograms[0].bits, counts)


def _pieces(
    file: _native.SafetensorsFile, name: str, nbytes: int, threads: int | None
) -> Iterator["NDArray[np.uint8]"]:
    if nbytes <= _PIECES * _PIECE_BYTES:
        spans = [(0, nbytes)]
    else:
        step = (nbytes - _PIECE_BYTES) / (_PIECES - 1)
        # At multiples of eight bytes, so that elements stay whole.
        spans = [(math.floor(i * step) // 8 * 8, _PIECE_BYTES) for i in range(_PIECES)]
    for start, length in spans:
        room = bytearray(length)
        file.read_into(name, room, start=start, threads=threads)
        yield np.frombuffer(room, np.uint8)
