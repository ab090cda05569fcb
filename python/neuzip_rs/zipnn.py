"""Reading what zipnn has compressed, to move away from it.

    nz.zipnn.decompress_file("model.safetensors.znn", "model.safetensors")
    nz.zipnn.decompress_file("model.znn.safetensors", "model.safetensors")
    data = nz.zipnn.decompress(compressed)      # bytes, or a tensor if it was one

This needs neither zipnn nor torch. What zipnn 0.3 to 0.5 has written of BF16, FP16, FP32 and FP8 is
read; what it stored with loss or as differences from another file raises UnsupportedVersionError.

zipnn keeps no checksums: structure and lengths are checked, and a damaged file that still looks
sound gives other weights without an error. Its output is the original only as far as its input is.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, TypeVar

from neuzip_rs import _native
from neuzip_rs._arguments import check_limit, check_threads
from neuzip_rs._arrays import Array, adapter_for, decoded
from neuzip_rs._errors import CorruptDataError, NeuzipError, OutputTooLargeError
from neuzip_rs._new_file import new_file
from neuzip_rs._spelling import spell

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["decompress", "decompress_file", "is_compressed"]

_MAGIC: Final = b"ZN"
_HEADER_BYTES: Final = 32
_KEY: Final = "znn_compressed_vectors"
"""Metadata of a `.znn.safetensors` file: types and shapes of the tensors that zipnn compressed."""

FilePath: TypeAlias = str | os.PathLike[str]
Progress: TypeAlias = Callable[[int, int], object]

_T = TypeVar("_T")


def decompress(
    data: "Buffer",
    *,
    framework: str = "numpy",
    threads: int | None = None,
    max_output_size: int | None = None,
) -> "bytes | Array":
    """What `ZipNN().compress()` was given.

    Args:
        data: The bytes that zipnn gave.
        framework: What a tensor becomes: "numpy" (for BF16 and FP8 with ml_dtypes), "torch", ...
        threads: How many threads may work, by default `NEUZIP_NUM_THREADS` or every core.
        max_output_size: The most bytes that may come out.

    Returns:
        Bytes if bytes were compressed, else an array of the tensor's type and shape.

    Raises:
        CorruptDataError: The data is damaged, as far as can be told, or none of zipnn's.
        UnsupportedVersionError: zipnn wrote it in a way that is not read here.
        OutputTooLargeError: More than `max_output_size` bytes would come out.
    """
    check_threads(threads)
    check_limit(max_output_size)
    dtype, shape, _ = _native.zipnn_header(data)
    original = _native.zipnn_decompress(data, threads=threads, max_output_size=max_output_size)
    if shape is None:
        return original

    def copy(buffer: "Buffer") -> None:
        memoryview(buffer).cast("B")[:] = original

    return decoded(adapter_for(framework), dtype, tuple(shape), copy)


def is_compressed(filename: FilePath) -> bool:
    """Whether a file looks as if zipnn had written it, by its content."""
    with Path(filename).open("rb") as file:
        first = file.read(_HEADER_BYTES)
    # The version that follows is 0.something; text goes on with letters.
    if len(first) == _HEADER_BYTES and first.startswith(_MAGIC) and first[2] == 0:
        return True
    if _native.content_kind(os.fspath(filename)) != "safetensors":
        return False
    return _KEY in (_native.SafetensorsFile(os.fspath(filename)).metadata or {})


def decompress_file(
    source: FilePath,
    target: FilePath,
    *,
    threads: int | None = None,
    overwrite: bool = True,
    max_output_size: int | None = None,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Restores a file that zipnn has compressed.

    A `.znn` file gives back every byte of the original. A `.znn.safetensors` file, in which zipnn
    has kept the tensors but not the header, gives a .safetensors file with the same tensors and
    metadata.

    Args:
        source: The file that zipnn wrote.
        target: The file to write; it appears when it is complete.
        threads: How many threads may work, by default `NEUZIP_NUM_THREADS` or every core.
        overwrite: Whether a file that is there may be replaced.
        max_output_size: The most bytes that may come out.
        progress: Called now and then with the bytes done and the bytes in all.

    Returns:
        The compressed and the original length.

    Raises:
        CorruptDataError: The file is damaged, as far as can be told, or none of zipnn's.
        UnsupportedVersionError: zipnn wrote it in a way that is not read here.
        OutputTooLargeError: More than `max_output_size` bytes would come out.
        FileExistsError: There is a target, and it may not be replaced.
    """
    check_threads(threads)
    check_limit(max_output_size)
    source, target = os.fspath(source), os.fspath(target)
    if _native.content_kind(source) == "safetensors":
        return _Tensors(source, threads).write(
            Path(target), overwrite, max_output_size, progress or (lambda _done, _total: None)
        )
    return _native.zipnn_decompress_file(
        source,
        target,
        threads=threads,
        overwrite=overwrite,
        max_output_size=max_output_size,
        progress=progress,
    )


class _Entry(NamedTuple):
    """A tensor of the file to write."""

    name: str
    spelling: str
    shape: tuple[int, ...]
    nbytes: int
    dtype: str | None  # None if it was not compressed


class _Tensors:
    """A .safetensors file, some of whose tensors are bytes that zipnn made."""

    def __init__(self, path: str, threads: int | None) -> None:
        self._path, self._threads = path, threads
        self._file = _native.SafetensorsFile(path)
        self._metadata = dict(self._file.metadata or {})
        if _KEY not in self._metadata:
            message = f"{path}: zipnn has compressed no tensor of this file"
            raise CorruptDataError(message)
        listed = self._listed(self._metadata.pop(_KEY))
        entries = [self._entry(name, listed.get(name)) for name in self._file.keys()]  # noqa: SIM118
        # As the safetensors package has them, so that large elements are aligned.
        self._entries = sorted(entries, key=lambda e: (-_element_bits(e), e.name))

    def _listed(self, text: str) -> dict[str, object]:
        try:
            listed = json.loads(text)
        except (ValueError, RecursionError):
            listed = None
        if not isinstance(listed, dict) or not set(listed) <= set(self._file.keys()):
            message = f"{self._path}: the list of what zipnn compressed is damaged"
            raise CorruptDataError(message)
        return listed

    def _entry(self, name: str, listed: object) -> _Entry:
        if listed is None:
            plain = tuple(self._file.shape(name))
            return _Entry(name, self._file.dtype(name), plain, self._file.nbytes(name), None)
        dtype, shape, nbytes = self._within(name, lambda: _native.zipnn_header(self._stored(name)))
        spelled = None if shape is None else spell(dtype, tuple(shape))
        if spelled is None or listed != {"dtype": dtype, "shape": str(shape)}:
            message = f"{self._path}: tensor {name!r} is not what the list says"
            raise CorruptDataError(message)
        return _Entry(name, spelled[0], spelled[1], nbytes, dtype)

    def _stored(self, name: str) -> bytearray:
        stored = bytearray(self._file.nbytes(name))
        self._file.read_into(name, stored, threads=self._threads)
        return stored

    def _within(self, name: str, work: Callable[[], _T]) -> _T:
        """Names the tensor in an error."""
        try:
            return work()
        except NeuzipError as error:
            message = f"{self._path}: tensor {name!r}: {error}"
            raise type(error)(message) from error

    def _content(self, entry: _Entry) -> "bytes | bytearray":
        stored = self._stored(entry.name)
        if entry.dtype is None:
            return stored

        def decode() -> bytes:
            return _native.zipnn_decompress(
                stored, threads=self._threads, max_output_size=entry.nbytes
            )

        return self._within(entry.name, decode)

    def _pieces(self) -> Iterator["bytes | bytearray"]:
        header: dict[str, object] = {"__metadata__": self._metadata} if self._metadata else {}
        position = 0
        for entry in self._entries:
            end = position + entry.nbytes
            header[entry.name] = {
                "dtype": entry.spelling,
                "shape": entry.shape,
                "data_offsets": [position, end],
            }
            position = end
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        yield len(text).to_bytes(8, "little") + text
        for entry in self._entries:
            yield self._content(entry)

    def write(
        self, target: Path, overwrite: bool, limit: int | None, progress: Progress
    ) -> tuple[int, int]:
        total = sum(entry.nbytes for entry in self._entries)
        if limit is not None and total > limit:
            message = f"the decoded data has {total} bytes, more than the limit of {limit}"
            raise OutputTooLargeError(message)
        written = 0
        with new_file(target, overwrite=overwrite) as file:
            for piece in self._pieces():
                file.write(piece)
                written += len(piece)
                progress(min(written, total), total)
        return Path(self._path).stat().st_size, written


def _element_bits(entry: _Entry) -> int:
    """Bits of an element, by which the safetensors package sorts."""
    digits = "".join(c for c in entry.spelling.split("_")[0] if c.isdigit())
    return int(digits) if digits else 8
