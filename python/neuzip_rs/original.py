"""`open`: the original bytes of a compressed file as a file object, wherever the file is.

    with nz.open("s3://models/model.bin.nz") as file:
        state = torch.load(file)

Any part can be read without the rest: a seek costs nothing, and a read decodes, and fetches, the
chunks of a .safetensors tensor or the frames of a .nz file that it touches.
"""

import io
import os
from bisect import bisect_right
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Final, cast

from neuzip_rs import _native
from neuzip_rs._arguments import check_level, check_threads
from neuzip_rs._errors import CorruptDataError
from neuzip_rs._new_file import new_file
from neuzip_rs._preludes import Prelude
from neuzip_rs.directory.content import original_header, read_varint
from neuzip_rs.remote import is_url, local_path
from neuzip_rs.remote.places import Places, sent

if TYPE_CHECKING:
    from neuzip_rs.remote.tensors import RemoteSafetensors

__all__ = ["open"]

_BUFFER_BYTES: Final = 1 << 20
_MAGIC: Final = b"\x89NZF\x0d\x0a\x1a"
_TENSOR_MAGIC: Final = b"\x89NZ"
_HEADER_ROOM: Final = 4096
_VERSION: Final = b"\x01"
_MAX_STREAM_BYTES: Final = 1 << 25
_MAX_FRAME_BYTES: Final = 1 << 24
_END_BYTES: Final = 17


def open(  # noqa: A001 - what it is: nz.open
    file: str | os.PathLike[str],
    mode: str = "rb",
    *,
    level: str = "default",
    threads: int | None = None,
    base: str | os.PathLike[str] | None = None,
) -> IO[bytes]:
    """Opens the original of a compressed file, or makes a compressed file of what is written.

    Args:
        file: A path or URL. Reading takes compressed files of every kind, and others as they are.
        mode: "rb", or "wb" to write a .nz file, replacing one that is there when it is closed.
        level: How hard to try when writing: "fast", "default" or "max".
        threads: How many threads may work, by default `NEUZIP_NUM_THREADS` or every core.
        base: The base that a .safetensors file was compressed against, if it is not where it was.

    Returns:
        A binary file object; one for reading can seek.

    Raises:
        CorruptDataError: If the file is damaged; also when it is read.
        ValueError: If the mode is another one.
    """
    check_level(level)
    check_threads(threads)
    if mode in ("wb", "w"):
        return cast("IO[bytes]", _Writer(file, level, threads))
    if mode not in ("rb", "r"):
        message = f"mode must be 'rb' or 'wb', not {mode!r}"
        raise ValueError(message)
    raw = _Original(file, threads, None if base is None else os.fsdecode(base))
    return io.BufferedReader(raw, _BUFFER_BYTES)


class _Original(io.RawIOBase):
    """The original bytes, put together from pieces that know how to read themselves."""

    def __init__(self, path: str | os.PathLike[str], threads: int | None, base: str | None) -> None:
        super().__init__()
        self._position = 0
        self._ends: list[int] = []
        self._pieces: list[Callable[[memoryview, int], None]] = []
        self._threads = threads
        with ExitStack() as stack:
            if is_url(path):
                remote = stack.enter_context(Places(os.fsdecode(path)).ranged())
                self._open(os.fsdecode(path), remote.size, remote.read, stack, base)
            else:
                local = local_path(path)
                handle = stack.enter_context(Path(local).open("rb", buffering=0))

                def read(start: int, end: int) -> bytes:
                    handle.seek(start)
                    return handle.read(end - start) or b""

                self._open(local, Path(local).stat().st_size, read, stack, base)
            self._stack = stack.pop_all()

    def _open(
        self,
        path: str,
        size: int,
        read: Callable[[int, int], bytes],
        stack: ExitStack,
        base: str | None,
    ) -> None:
        first = read(0, min(size, _HEADER_ROOM))
        if first.startswith(_MAGIC):
            self._add_frames(path, size, read)
        elif first.startswith(_TENSOR_MAGIC):
            self._add_stream(read(0, size))
        elif self._add_tensors(path, first, stack, base):
            return
        else:
            self._add(size, lambda out, start: _fill(out, read(start, start + len(out))))

    def _add(self, size: int, read: Callable[[memoryview, int], None]) -> None:
        if size:
            self._ends.append(self._size + size)
            self._pieces.append(read)

    def _add_tensors(self, path: str, first: bytes, stack: ExitStack, base: str | None) -> bool:
        length = int.from_bytes(first[:8], "little")
        if not (2 <= length <= 100_000_000 and first[8:9] == b"{"):
            return False
        try:
            file, header = _open_tensors(path, base)
        except CorruptDataError:
            if b'"neuzip.header"' in first:
                raise
            return False
        stack.enter_context(closing(file))
        if not file.compressed:
            return False
        file.check_base(threads=self._threads)
        prefix = len(header).to_bytes(8, "little") + header
        self._add(len(prefix), lambda out, start: _fill(out, prefix[start : start + len(out)]))
        for name in file.keys():  # noqa: SIM118 - no dict

            def read(out: memoryview, start: int, name: str = name) -> None:
                file.read_into(name, out, start=start, threads=self._threads)

            self._add(file.nbytes(name), read)
        return True

    def _add_stream(self, data: bytes) -> None:
        tensor = _native.CompressedTensor.from_bytes(data)

        def read(out: memoryview, start: int) -> None:
            _native.decompress_into(tensor, out, start=start, threads=self._threads)

        self._add(tensor.original_nbytes, read)

    def _add_frames(self, path: str, size: int, read: Callable[[int, int], bytes]) -> None:
        """The frames of a .nz file, of which only the heads are read here."""
        place = len(_MAGIC) + 1
        while True:
            head = read(place, min(size, place + _HEADER_ROOM))
            length, start = read_varint(head, 0)
            if length == 0:
                break
            if length > _MAX_STREAM_BYTES or place + start + length > size:
                message = f"{path}: the frame at byte {place} does not end"
                raise CorruptDataError(message)
            shape = Prelude.read_from(head[start:]).shape
            if len(shape) != 1 or shape[0] > _MAX_FRAME_BYTES:
                message = f"{path}: the frame at byte {place} is no frame"
                raise CorruptDataError(message)
            end = place + start + length
            self._add(shape[0], _Frame(read, place, end, path, self._threads).read)
            place += start + length
        if place + _END_BYTES != size:
            message = f"{path}: damaged at its end, byte {place}"
            raise CorruptDataError(message)
        if int.from_bytes(read(place + 1, place + 9), "little") != self._size:
            message = f"{path}: its frames have {self._size} bytes, and its end says otherwise"
            raise CorruptDataError(message)

    @property
    def _size(self) -> int:
        return self._ends[-1] if self._ends else 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}.get(whence)
        if start is None or start + offset < 0:
            message = f"cannot seek to {offset} (whence {whence})"
            raise ValueError(message)
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any, /) -> int:  # noqa: ANN401 - any writable buffer
        self._check_open()
        index = bisect_right(self._ends, self._position)
        if index == len(self._ends):
            return 0
        piece_start = self._ends[index - 1] if index else 0
        out = memoryview(buffer).cast("B")[: self._ends[index] - self._position]
        if out:
            self._pieces[index](out, self._position - piece_start)
        self._position += len(out)
        return len(out)

    def close(self) -> None:
        if not self.closed:
            self._pieces.clear()
            self._ends.clear()
            stack = getattr(self, "_stack", None)
            if stack is not None:
                stack.close()
        super().close()

    def _check_open(self) -> None:
        if self.closed:
            message = "the file is closed"
            raise ValueError(message)


class _Frame:
    """A frame of a .nz file, decoded while it is read through."""

    def __init__(
        self,
        read: Callable[[int, int], bytes],
        start: int,
        end: int,
        path: str,
        threads: int | None,
    ) -> None:
        self._read_range = read
        self._start = start
        self._end = end
        self._path = path
        self._threads = threads
        self._data: bytes | None = None

    def read(self, out: memoryview, start: int) -> None:
        if self._data is None:
            decompressor = _native.StreamDecompressor(threads=self._threads, beside=self._path)
            decompressor.feed(_MAGIC + _VERSION)
            self._data = decompressor.feed(self._read_range(self._start, self._end))
        _fill(out, self._data[start : start + len(out)])
        if start + len(out) == len(self._data):
            self._data = None


class _Writer(io.RawIOBase):
    """Compresses what is written; the file appears when it is closed."""

    def __init__(self, path: str | os.PathLike[str], level: str, threads: int | None) -> None:
        super().__init__()
        self._compressor = _native.StreamCompressor(level=level, threads=threads)
        with ExitStack() as stack:
            target = Path(stack.enter_context(sent(path)))
            self._file = stack.enter_context(new_file(target, overwrite=True))
            self._stack = stack.pop_all()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - any buffer
        if self.closed:
            message = "the file is closed"
            raise ValueError(message)
        view = memoryview(data).cast("B")
        self._file.write(self._compressor.feed(view))
        return len(view)

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        with self._stack:
            self._file.write(self._compressor.finish())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            # Half a file is no file.
            self._abandon(error)
        self.close()

    def __del__(self) -> None:
        # Forgotten, not finished.
        self._abandon(InterruptedError())

    def _abandon(self, error: BaseException) -> None:
        if not self.closed and hasattr(self, "_stack"):
            super().close()
            with suppress(BaseException):
                self._stack.__exit__(type(error), error, error.__traceback__)


def _open_tensors(
    path: str, base: str | None
) -> "tuple[_native.SafetensorsFile | RemoteSafetensors, bytes]":
    """A .safetensors file, and its original header if it is compressed."""
    if is_url(path):
        from neuzip_rs.remote.tensors import RemoteSafetensors

        remote = RemoteSafetensors(path, base=base)
        header = original_header(remote.local_path) if remote.compressed else b""
        return remote, header
    file = _native.SafetensorsFile(path, base=base)
    return file, original_header(Path(path)) if file.compressed else b""


def _fill(out: memoryview, data: bytes) -> None:
    if len(data) != len(out):
        message = f"{len(data)} bytes came where {len(out)} were expected"
        raise CorruptDataError(message)
    out[:] = data
