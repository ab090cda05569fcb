"""What `neuzip bench` measures: the first tensors of a file or directory, in memory."""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from neuzip_rs import _native
from neuzip_rs._dtypes import ITEMSIZE
from neuzip_rs._spelling import NAMES
from neuzip_rs.directory.content import (
    COMPRESSED_KINDS,
    PIECE_BYTES,
    file_pieces,
    original_pieces,
)
from neuzip_rs.directory.tree import scan

# Beyond every cache; a whole large model would take minutes and all memory.
SAMPLE_BYTES: Final = 1 << 28
_SAFETENSORS_KINDS: Final = frozenset({"safetensors", "neuzip-safetensors"})


@dataclass(frozen=True, slots=True)
class Array:
    """An array in the sample."""

    start: int
    end: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(slots=True)
class Sample:
    """What is measured: arrays side by side, as in a file."""

    data: bytearray = field(default_factory=bytearray)
    arrays: list[Array] = field(default_factory=list)
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
        self.arrays.append(Array(len(self.data) - size, len(self.data), dtype, shape))
