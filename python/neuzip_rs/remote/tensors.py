"""A .safetensors file at a URL, plain or compressed, with the methods of a local one.

A sparse file here stands for the remote one: as long, with holes where nothing has been fetched.
The native reader maps it and checks it as it checks any file; what it is about to read is fetched
before, and lands where it belongs. So every kind of stream can be read from anywhere: a tensor that
is stored as another one of the file, of a file beside it, or as the difference from a base brings
those along.
"""

import json
import posixpath
import tempfile
from contextlib import ExitStack
from pathlib import Path
from threading import Condition, Thread
from typing import TYPE_CHECKING, Any, Final

from neuzip_rs import _native
from neuzip_rs._errors import BaseMismatchError, CorruptDataError
from neuzip_rs._preludes import Prelude
from neuzip_rs.directory.transfer import write_all
from neuzip_rs.remote.places import Places, brought, is_url, local_path
from neuzip_rs.remote.ranges import Ranges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

_LENGTH_BYTES: Final = 8
"""What is fetched before anything is known: the length of the header. More would save a request
where it is short, but a bundle may take all of the 64 KiB that reading a tensor may cost."""
_MAX_HEADER_BYTES: Final = 100_000_000
_PRELUDE_BYTES: Final = 4096
_BUNDLED_RANK: Final = 3
"""Dimensions that the header gives a bundled tensor: 0, the number of the first one, the place."""
_HEADER_KEY: Final = "neuzip.header"
_BASE_KEY: Final = "neuzip.base"
_MAX_CHAIN: Final = 256


class RemoteSafetensors:
    """A remote file of tensors; what is read is fetched, once."""

    def __init__(self, url: str, *, base: str | None = None) -> None:
        """Fetches and checks the header.

        Args:
            url: Where the file is.
            base: What it was compressed against, if that is not where it was: a path or URL.

        Raises:
            CorruptDataError: It is no .safetensors file, or its header is damaged.
            FileNotFoundError: There is none.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="neuzip-")
        try:
            self._mirror = _Mirror(Path(self._folder.name), base)
            self._file = self._mirror.file(Places(url))
            self._native = self._file.open()
        except BaseException:
            self._folder.cleanup()
            raise

    def stream(self) -> None:
        """Begins to fetch the whole file, in order, while tensors are read as they arrive."""
        self._file.stream()

    def close(self) -> None:
        """Closes the file and forgets what was fetched."""
        self._native.close()
        self._mirror.close()
        self._folder.cleanup()

    @property
    def transferred_bytes(self) -> int:
        """Bytes that were fetched."""
        return self._mirror.transferred_bytes

    @property
    def local_path(self) -> Path:
        """The sparse file; only what has been read may be there."""
        return self._file.path

    @property
    def size(self) -> int:
        """Bytes in the remote file."""
        return self._file.size

    @property
    def base(self) -> str | None:
        """Identity and place of the base."""
        return self._native.base

    @property
    def compressed(self) -> bool:
        """Whether the file is compressed."""
        return self._native.compressed

    @property
    def metadata(self) -> dict[str, str] | None:
        """The text in the header."""
        return self._native.metadata

    def keys(self) -> list[str]:
        """The names of the tensors, in the order of the data."""
        return self._native.keys()

    def dtype(self, name: str) -> str:
        """The type of a tensor."""
        return self._native.dtype(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._native.shape(name)

    def nbytes(self, name: str) -> int:
        """The original bytes of a tensor."""
        return self._native.nbytes(name)

    def stored_nbytes(self, name: str) -> int:
        """The stored bytes of a tensor."""
        return self._native.stored_nbytes(name)

    def layouts(self) -> list[tuple[str, str, tuple[int, ...], int]]:
        """Name, type, shape and original bytes of all tensors."""
        return self._native.layouts()

    def check_base(self, *, threads: int | None = None) -> None:
        """Checks that the base is the right one, as far as the file needs it."""
        if self._native.base is None:
            return
        for name in self.keys():
            self._file.need(name)
        self._native.check_base(threads=threads)

    def read_into(
        self,
        name: str,
        out: "Buffer",
        *,
        start: int = 0,
        verify: bool = True,
        threads: int | None = None,
        fresh: bool = False,
    ) -> None:
        """Decodes a part of a tensor, fetching what is not here yet."""
        self._file.need(name)
        self._native.read_into(name, out, start=start, verify=verify, threads=threads, fresh=fresh)

    def read_many(
        self,
        numbers: "Sequence[int]",
        outs: "Sequence[Buffer | Any]",
        *,
        verify: bool = True,
        threads: int | None = None,
    ) -> None:
        """Decodes tensors, given by their place in `keys()`, each as soon as it is here."""
        names = self.keys()
        for number, out in zip(numbers, outs, strict=True):
            self._file.need(names[number])
            self._native.read_many([number], [out], verify=verify, threads=threads)


class LocalWithBase:
    """A file here whose base is at a URL: `_native.SafetensorsFile`, and a copy of the base."""

    def __init__(self, path: str, base: str) -> None:
        """Brings the base here and opens the file."""
        with ExitStack() as stack:
            copy = stack.enter_context(brought(base))
            self._native = _native.SafetensorsFile(path, base=copy)
            self._stack = stack.pop_all()

    def stream(self) -> None:
        """Everything is here already."""

    def close(self) -> None:
        """Closes the file and forgets the base."""
        self._native.close()
        self._stack.close()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the native file has
        """Everything else is the native file's."""
        return getattr(self._native, name)


class _Mirror:
    """A folder with the sparse files that stand for remote ones, at the places that they have."""

    def __init__(self, root: Path, base: str | None) -> None:
        self._root = root
        self._files: dict[str, _SparseFile] = {}
        self.named_base = base
        self.transferred_bytes = 0

    def file(self, place: Places) -> "_SparseFile":
        known = self._files.get(place.path)
        if known is None:
            path = self.local(place.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            known = self._files[place.path] = _SparseFile(self, place, path)
        return known

    def local(self, path: str) -> Path:
        """Where the file of a path in the file system is here; nothing leads out of the folder."""
        clean = posixpath.normpath("/" + path.replace("://", "/")).lstrip("/")
        return self._root / clean

    def close(self) -> None:
        for file in self._files.values():
            file.close()


class _SparseFile:
    """A remote file and the sparse one that stands for it."""

    def __init__(self, mirror: _Mirror, place: Places, path: Path) -> None:
        self._mirror = mirror
        self._place = place
        self.path = path
        self._remote = place.ranged()
        self.size = self._remote.size
        self._there = Ranges()
        self._changed = Condition()
        self._streaming: Thread | None = None
        self._stop = False
        self._failure: BaseException | None = None
        self._needed: set[str] = set()
        self._local = path.open("w+b", buffering=0)
        self._local.truncate(self.size)
        self.compressed = False
        self._base_entry: str | None = None
        self._data_start, self._offsets = self._read_header()

    def open(self) -> _native.SafetensorsFile:
        """The native reader on the sparse file, told of its base if it has one."""
        return _native.SafetensorsFile(str(self.path), base=self._fetch_base(), filled_in=True)

    def need(self, name: str) -> None:
        """Makes sure that a tensor can be read: its bytes, and those that it refers to."""
        if name in self._needed:
            return
        offsets = self._offsets.get(name)
        if offsets is None:
            # The native reader says what is wrong.
            return
        start, end = (self._data_start + offset for offset in offsets)
        self._ensure(start, end)
        self._needed.add(name)
        if not self.compressed:
            return
        try:
            prelude = Prelude.read_from(self._read(start, min(end, start + _PRELUDE_BYTES)))
        except CorruptDataError:
            # The native reader says it better.
            return
        if prelude.tensor is not None and prelude.file is None:
            self.need(prelude.tensor)
        elif (
            prelude.tensor is not None
            and prelude.file is not None
            # The native reader refuses names that lead out of the folder; nothing is asked for.
            and not {"", ".", ".."} & set(prelude.file.split("/"))
        ):
            beside = self._at(_joined(posixpath.dirname(self._place.path), prelude.file))
            if beside.exists():
                self._mirror.file(beside).need(prelude.tensor)

    def stream(self) -> None:
        """Fetches everything on a thread of its own."""
        self._streaming = Thread(target=self._fetch_all, name="neuzip-stream", daemon=True)
        self._streaming.start()

    def close(self) -> None:
        with self._changed:
            self._stop = True
        if self._streaming is not None:
            self._streaming.join()
        self._remote.close()
        self._local.close()

    def _at(self, path: str) -> Places:
        place = object.__new__(Places)
        place.fs, place.path = self._place.fs, path
        protocol = self._place.url.partition("://")[0]
        place.url = path if "://" in path else f"{protocol}://{path}"
        return place

    def _fetch_all(self) -> None:
        try:
            self._remote.start()
            for start, data in self._remote.blocks():
                self._write(start, data)
                if self._stop:
                    return
        except BaseException as error:  # raised by the thread that waits for the bytes
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _ensure(self, start: int, end: int) -> None:
        if self._streaming is not None:
            with self._changed:
                while self._failure is None and self._there.missing(start, end):
                    self._changed.wait()
                if self._failure is not None:
                    raise self._failure
            return
        with self._changed:
            gaps = self._there.missing(start, end)
        for gap_start, gap_end in gaps:
            self._write(gap_start, self._remote.read(gap_start, gap_end))

    def _write(self, start: int, data: bytes) -> None:
        with self._changed:
            self._local.seek(start)
            write_all(self._local.write, memoryview(data))
            self._there.add(start, start + len(data))
            self._mirror.transferred_bytes += len(data)
            self._changed.notify_all()

    def _read(self, start: int, end: int) -> bytes:
        with self._changed:
            self._local.seek(start)
            return self._local.read(end - start)

    def _read_header(self) -> tuple[int, dict[str, tuple[int, int]]]:
        """Fetches the header; what is wrong with it, the native reader says."""
        self._ensure(0, min(self.size, _LENGTH_BYTES))
        length = int.from_bytes(self._read(0, _LENGTH_BYTES), "little")
        if self.size < 8 or length > min(self.size - 8, _MAX_HEADER_BYTES):
            message = f"{self._place.url}: no .safetensors file: its header would not fit"
            raise CorruptDataError(message)
        self._ensure(0, 8 + length)
        try:
            header: Any = json.loads(self._read(8, 8 + length))
            metadata = header.pop("__metadata__", None) or {}
            offsets = {}
            for name, fields in header.items():
                start, end = fields["data_offsets"]
                if not 0 <= start <= end <= self.size - 8 - length:
                    message = f"{self._place.url}: tensor {name!r} lies outside of the file"
                    raise CorruptDataError(message)
                offsets[name] = (start, end)
            self.compressed = _HEADER_KEY in metadata
            if self.compressed:
                # What is needed of a bundled tensor is the stream of its bundle.
                names = sorted(offsets, key=offsets.__getitem__)
                for name, fields in header.items():
                    if len(fields["shape"]) == _BUNDLED_RANK:
                        offsets[name] = offsets[names[fields["shape"][1]]]
            self._base_entry = metadata.get(_BASE_KEY) if self.compressed else None
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            if isinstance(error, CorruptDataError):
                raise
            message = f"{self._place.url}: no .safetensors file: {error!r}"
            raise CorruptDataError(message) from error
        return 8 + length, offsets

    def _fetch_base(self) -> str | None:
        """Brings the base and the bases of that; None if the file has none, or nobody knows where.

        Differences are of nearly all tensors, and a base is read for as many: it is fetched whole.
        """
        named = self._mirror.named_base
        if named is None:
            if self._base_entry is None:
                return None
            _, _, relative = self._base_entry.partition(" ")
            if not relative:
                return None
            # Here it has the place that it has there: the native reader finds it.
            self._bring(self._at(_joined(posixpath.dirname(self._place.path), relative)))
            return None
        return self._bring(Places(named)) if is_url(named) else local_path(named)

    def _bring(self, place: Places, trail: int = 0) -> str:
        """Fetches a base and the bases of that; returns where it is here."""
        target = self._mirror.local(place.path)
        # What is not there, the native reader misses if a tensor needs it.
        if not target.exists() and trail < _MAX_CHAIN and place.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            place.fetch(target)
            following = _base_of(target)
            if following is not None:
                folder = place.path if target.is_dir() else posixpath.dirname(place.path)
                self._bring(self._at(_joined(folder, following)), trail + 1)
        return str(target)


def _joined(folder: str, relative: str) -> str:
    """A path in a file system; those of HTTP are URLs."""
    protocol, separator, path = folder.rpartition("://")
    return protocol + separator + posixpath.normpath(posixpath.join(path, relative))


def _base_of(path: Path) -> str | None:
    """The place of the base of a model, relative to its folder."""
    paths = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    for file in paths:
        try:
            entry = _native.SafetensorsFile(str(file)).base
        except (BaseMismatchError, CorruptDataError):
            continue
        if entry is not None and " " in entry:
            return entry.partition(" ")[2]
    return None
