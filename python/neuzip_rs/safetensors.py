"""Compressed .safetensors files, with the functions of the safetensors package.

    nz.safetensors.save_file(tensors, "model.safetensors")
    tensors = nz.safetensors.load_file("model.safetensors")

A compressed file is itself a valid .safetensors file, in which every tensor has its own name and
holds its compressed bytes, or says where they are: small tensors share a stream. Everything that
reads here takes plain files too, and `decompress_file` gives back the very file that the
safetensors package would have written.

Wherever a path is taken, a URL that fsspec knows may stand ("s3://bucket/model.safetensors"): of
such a file the header and the tensors that are asked for are fetched. Files on disk are read
through a memory map and written under a temporary name, which replaces the target only when
everything is on the disk.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeAlias

from neuzip_rs import _native, _rows
from neuzip_rs._arguments import check_level, check_limit, check_threads
from neuzip_rs._arrays import Array, Device, Room, adapter_for, decoded, make_room
from neuzip_rs._bases import Base, BaseArguments, check_base
from neuzip_rs._entries import check_layouts, check_text, entry
from neuzip_rs._spelling import F4_PAIR, NAMES
from neuzip_rs.remote import download, is_url, local_path
from neuzip_rs.remote.places import brought, relative_url, sent

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from neuzip_rs.remote.tensors import LocalWithBase, RemoteSafetensors

__all__ = [
    "compress_file",
    "decompress_file",
    "load_file",
    "safe_open",
    "save_file",
    "verify_file",
]

_BACKENDS: Final = ("mmap", "pread")
_BYTES_AT_ONCE: Final = 256 << 20
"""What `get_tensors` decodes between two transfers to a device: many tensors, not a whole model."""

FilePath: TypeAlias = str | os.PathLike[str]
Progress: TypeAlias = Callable[[int, int], object]
"""Called now and then with the bytes done and the bytes in all; what it raises stops the work."""

_FRAMEWORKS: Final = {
    "pt": "torch",
    "torch": "torch",
    "pytorch": "torch",
    "np": "numpy",
    "numpy": "numpy",
}


def save_file(
    tensors: Mapping[str, Array],
    filename: FilePath,
    metadata: dict[str, str] | None = None,
    *,
    level: str = "default",
    threads: int | None = None,
    base: FilePath | None = None,
) -> None:
    """Writes tensors to a compressed .safetensors file, replacing one that is there.

    Args:
        tensors: torch tensors or numpy arrays by name. Like in the safetensors package, torch
            tensors must be contiguous and must not share memory.
        filename: The file to write.
        metadata: Text to keep in the file's header.
        level: "fast", "default" or "max".
        threads: How many threads may work, by default `NEUZIP_NUM_THREADS` or every core.
        base: A .safetensors file, plain or compressed, or a directory of them: tensors are stored
            as their differences from those of the same name in it, where that is smaller. The
            file remembers where the base is, relative to itself.

    Raises:
        RuntimeError: If tensors share memory; the message names them.
        ValueError: If a value is not a tensor, is sparse or not contiguous, or has a type that
            .safetensors files cannot hold, or if `base` is no file of tensors.
        FileNotFoundError: If there is no `base`.
        TypeError: If a name or the metadata is not text.
    """
    check_level(level)
    check_threads(threads)
    check_text(tensors, metadata)
    check_layouts(tensors)
    entries = [entry(name, tensor) for name, tensor in tensors.items()]
    with sent(filename) as target, _base_to_write(base, filename, target) as arguments:
        _native.write_safetensors(
            target, entries, metadata, level=level, threads=threads, **arguments
        )


def load_file(
    filename: FilePath,
    device: Device = "cpu",
    *,
    backend: str = "mmap",
    framework: str | None = None,
    threads: int | None = None,
    verify: bool = True,
    base: FilePath | None = None,
) -> dict[str, Array]:
    """Reads every tensor of a compressed or plain .safetensors file.

    On a CUDA device, tensors are decoded there if CuPy is installed (`neuzip_rs[cuda12]` or
    `[cuda13]`): what is read from the file is copied and decoded at the same time.

    Args:
        filename: The file to read.
        device: Where to put torch tensors.
        backend: "mmap" or "pread", as in the safetensors package; files are mapped in any case.
        framework: "pt" or "np"; by default torch tensors if torch is installed.
        threads: How many threads may work, by default `NEUZIP_NUM_THREADS` or every core.
        verify: Check the hash of everything decoded.
        base: The base that the file was compressed against, if it is not where it was.

    Returns:
        The tensors by name, in the order they have in the file.

    Raises:
        CorruptDataError: If the file is damaged or no .safetensors file.
        BaseMismatchError: If the file needs a base, and it is another one or missing.
    """
    if framework is None:
        framework = "pt" if find_spec("torch") is not None else "np"
    with safe_open(
        filename,
        framework,
        device,
        backend=backend,
        threads=threads,
        verify=verify,
        base=base,
    ) as file:
        return file.get_tensors()


class safe_open:
    """Opens a compressed or plain .safetensors file; tensors are decoded when they are asked for.

    Usable as a context manager. Slices decode only the rows they touch.
    """

    def __init__(
        self,
        filename: FilePath,
        framework: str,
        device: Device = "cpu",
        *,
        backend: str = "mmap",
        threads: int | None = None,
        verify: bool = True,
        base: FilePath | None = None,
    ) -> None:
        """Opens the file and checks its header.

        Args:
            filename: The file to read.
            framework: "pt" (also "torch", "pytorch") or "np" (also "numpy").
            device: Where to put torch tensors.
            backend: "mmap" or "pread", as in the safetensors package; files are mapped in any case.
            threads: How many threads may work, by default `NEUZIP_NUM_THREADS` or every core.
            verify: Check the hash of everything decoded.
            base: The base that the file was compressed against, if it is not where it was. Reading
                a tensor raises BaseMismatchError if it needs one and that is not it.

        Raises:
            CorruptDataError: If the header is damaged or the file is no .safetensors file.
            ValueError: If the framework or the device is unknown.
        """
        check_threads(threads)
        adapter_name = _FRAMEWORKS.get(framework)
        if adapter_name is None:
            message = f"framework must be 'pt' or 'np', not {framework!r}"
            raise ValueError(message)
        if backend not in _BACKENDS:
            message = f"backend must be 'mmap' or 'pread', not {backend!r}"
            raise ValueError(message)
        self._adapter = adapter_for(adapter_name)
        self._device = self._adapter.check_device(device)
        self._framework = adapter_name
        self._filename = filename
        self._threads = threads
        self._verify = verify
        self._open_file: OpenFile | None = open_tensors(filename, base)
        self._names = frozenset(self._open_file.keys())

    def __enter__(self) -> Self:
        """Returns the open file."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the file; tensors that were read stay valid."""
        if self._open_file is not None:
            self._open_file.close()
            self._open_file = None

    def keys(self) -> list[str]:
        """The names of the tensors, sorted."""
        return sorted(self._file.keys())

    def offset_keys(self) -> list[str]:
        """The names of the tensors in the order of their data."""
        return self._file.keys()

    def metadata(self) -> dict[str, str] | None:
        """The text in the header, as the original file had it."""
        return self._file.metadata

    def nbytes(self, name: str) -> int:
        """The bytes of a tensor once it is decoded.

        Raises:
            KeyError: If there is none of that name.
        """
        self._check_name(name)
        return self._file.nbytes(name)

    def get_tensor(self, name: str) -> Array:
        """Decodes one tensor.

        Raises:
            KeyError: If there is none of that name.
        """
        dtype, shape = self._layout(name)
        if self._decodes_there():
            return self._read_there([(name, dtype, shape)])[name]
        return decoded(
            self._adapter, dtype, shape, lambda buffer: self._read(name, buffer, 0), self._device
        )

    def get_tensors(self, names: Iterable[str] | None = None) -> dict[str, Array]:
        """Decodes many tensors, over all threads.

        Args:
            names: Which, by default every one, in the order of the data.

        Returns:
            The tensors by name, in the order in which they were named.

        Raises:
            KeyError: If there is none of a name.
        """
        file, make, finish = self._file, self._room(), self._adapter.finish
        layouts = self._layouts
        if names is not None:
            wanted = list(dict.fromkeys(names))
            for name in wanted:
                self._check_name(name)
            layouts = {name: layouts[name] for name in wanted}
        elif not isinstance(file, _native.SafetensorsFile):
            file.stream()
        if self._decodes_there():
            return self._read_there([(name, *self._layout(name)) for name in layouts])
        tensors: dict[str, Array] = {}
        pending: list[tuple[int, str, tuple[Array, Array]]] = []
        bytes_made = 0
        for name, (number, spelling, shape, nbytes) in layouts.items():
            made = make_room(make, *self._layout_of(spelling, shape, nbytes))
            pending.append((number, name, made))
            bytes_made += nbytes
            if bytes_made >= _BYTES_AT_ONCE or len(tensors) + len(pending) == len(layouts):
                file.read_many(
                    [number for number, _, _ in pending],
                    [room for _, _, (_, room) in pending],
                    verify=self._verify,
                    threads=self._threads,
                )
                for _, name_made, (result, _) in pending:
                    tensors[name_made] = finish(result, self._device)
                pending, bytes_made = [], 0
        return tensors

    def get_slice(self, name: str) -> "SafeSlice":
        """A tensor that is decoded as far as it is indexed.

        Raises:
            KeyError: If there is none of that name.
        """
        dtype, shape = self._layout(name)

        def decode_rows(key: _rows.Key) -> Array:
            read = partial(self._read, name)
            part = _rows.decode_rows(self._adapter, dtype, shape, key, read)
            if self._framework == "numpy":
                # The safetensors package never gives scalars.
                return _as_numpy_array(part)
            return self._adapter.finish(part, self._device)

        return SafeSlice(self._file.dtype(name), self._file.shape(name), decode_rows)

    def _layout(self, name: str) -> tuple[str, tuple[int, ...]]:
        """The element type and the shape a tensor gets in the framework."""
        file = self._file
        self._check_name(name)
        return self._layout_of(file.dtype(name), file.shape(name), file.nbytes(name))

    @cached_property
    def _layouts(self) -> dict[str, tuple[int, str, tuple[int, ...], int]]:
        """Number, type, shape and bytes of all tensors, in the order of the data."""
        return {
            name: (number, spelling, shape, nbytes)
            for number, (name, spelling, shape, nbytes) in enumerate(self._file.layouts())
        }

    def _check_name(self, name: str) -> None:
        if name not in self._names:
            message = f"the file has no tensor {name!r}"
            raise KeyError(message)

    def _layout_of(
        self, spelling: str, shape: tuple[int, ...], nbytes: int
    ) -> tuple[str, tuple[int, ...]]:
        known = NAMES.get(spelling)
        if known is not None:
            return known, shape
        if spelling == "F4" and shape and shape[-1] % 2 == 0:
            # torch has a type for two values in a byte, numpy has not.
            pairs = (*shape[:-1], shape[-1] // 2)
            return (F4_PAIR if self._framework == "torch" else "uint8"), pairs
        # Values that straddle bytes: no framework has them.
        return "uint8", (nbytes,)

    def _decodes_there(self) -> bool:
        """Whether the device decodes by itself."""
        if getattr(self._device, "type", None) != "cuda":
            return False
        from neuzip_rs.cuda import is_available

        return isinstance(self._file, _native.SafetensorsFile) and is_available()

    def _read_there(self, layouts: list[tuple[str, str, tuple[int, ...]]]) -> dict[str, Array]:
        """Reads tensors, given by name, type and shape, on a device that decodes by itself."""
        from neuzip_rs.cuda import _files, _torch

        file = self._file
        assert isinstance(file, _native.SafetensorsFile)
        number, _ = _torch.place(self._device)

        def make() -> dict[str, Array]:
            return {name: _torch.empty(dtype, shape, number) for name, dtype, shape in layouts}

        return _files.load_tensors(
            file,
            local_path(self._filename),
            make,
            self._device,
            verify=self._verify,
            threads=self._threads,
        )

    def _room(self) -> Room:
        """How to make room for many tensors, with as little as possible for each."""
        if self._framework == "torch":
            from neuzip_rs import _torch

            return _torch.room
        return self._adapter.allocate

    def _read(self, name: str, buffer: "Buffer", start: int) -> None:
        self._file.read_into(
            name, buffer, start=start, verify=self._verify, threads=self._threads, fresh=True
        )

    @property
    def _file(self) -> "OpenFile":
        if self._open_file is None:
            message = "the file is closed"
            raise ValueError(message)
        return self._open_file


class SafeSlice:
    """A tensor in a file that is decoded as far as it is indexed."""

    def __init__(
        self, dtype: str, shape: tuple[int, ...], decode_rows: Callable[[_rows.Key], Array]
    ) -> None:
        """Made by `safe_open.get_slice`."""
        self._dtype = dtype
        self._shape = shape
        self._decode_rows = decode_rows

    def get_shape(self) -> list[int]:
        """The tensor's shape in the header."""
        return list(self._shape)

    def get_dtype(self) -> str:
        """The tensor's type in the header, such as "BF16"."""
        return self._dtype

    def __getitem__(self, key: _rows.Key) -> Array:
        """Decodes the rows that `key` touches and indexes them."""
        return self._decode_rows(key)


def compress_file(
    src: FilePath,
    dst: FilePath,
    *,
    level: str = "default",
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    base: FilePath | None = None,
) -> tuple[int, int]:
    """Compresses a .safetensors file so that `decompress_file` restores it byte for byte.

    Args:
        src: The file to compress; one of another kind becomes a .nz file.
        dst: The file to write.
        level: "fast", "default" or "max".
        threads: How many threads may work, by default `NEUZIP_NUM_THREADS` or every core.
        overwrite: Replace `dst` if it is there.
        progress: Called now and then with the bytes done and the bytes in all.
        base: What to store the differences from, as in `save_file`. A .nz file has none.

    Returns:
        The sizes of the original and the compressed file.

    Raises:
        FileExistsError: If `dst` is there and may not be replaced.
        ValueError: If `src` is compressed already.
    """
    check_level(level)
    check_threads(threads)
    with (
        brought(src) as source,
        sent(dst, overwrite=overwrite) as target,
        _base_to_write(base, dst, target) as arguments,
    ):
        return _native.compress_file(
            source,
            target,
            level=level,
            threads=threads,
            overwrite=overwrite,
            progress=progress,
            **arguments,
        )


def decompress_file(
    src: FilePath,
    dst: FilePath,
    *,
    threads: int | None = None,
    overwrite: bool = False,
    verify: bool = True,
    max_output_size: int | None = None,
    progress: Progress | None = None,
    base: FilePath | None = None,
) -> tuple[int, int]:
    """Restores the file that was compressed, byte for byte.

    Args:
        src: The file to restore from.
        dst: The file to write.
        threads: How many threads may work, by default `NEUZIP_NUM_THREADS` or every core.
        overwrite: Replace `dst` if it is there.
        verify: Check the hash of everything decoded.
        max_output_size: The most bytes the restored file may have.
        progress: Called now and then with the bytes done and the bytes in all.
        base: The base that the file was compressed against, if it is not where it was.

    Returns:
        The sizes of the compressed and the restored file.

    Raises:
        CorruptDataError: If `src` is damaged or not compressed; nothing is written then.
        BaseMismatchError: If the file needs a base, and it is another one or missing.
        OutputTooLargeError: If the restored file would exceed `max_output_size`.
        FileExistsError: If `dst` is there and may not be replaced.
    """
    check_threads(threads)
    check_limit(max_output_size)
    with sent(dst, overwrite=overwrite) as target:
        if is_url(src):
            return download(
                os.fsdecode(src),
                Path(target),
                threads=threads,
                overwrite=overwrite,
                max_output_size=max_output_size,
                progress=progress,
                base=None if base is None else os.fsdecode(base),
            )
        with _base_to_read(base) as base_path:
            return _native.decompress_file(
                local_path(src),
                target,
                threads=threads,
                overwrite=overwrite,
                verify=verify,
                max_output_size=max_output_size,
                progress=progress,
                base=base_path,
            )


def verify_file(
    src: FilePath,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
    base: FilePath | None = None,
) -> tuple[int, int]:
    """Decodes everything in a compressed file without writing anything.

    Args:
        src: The file to check.
        threads: How many threads may work, by default `NEUZIP_NUM_THREADS` or every core.
        progress: Called now and then with the bytes done and the bytes in all.
        base: The base that the file was compressed against, if it is not where it was.

    Returns:
        The sizes of the compressed file and of the file it restores to.

    Raises:
        CorruptDataError: If the file is damaged or not compressed.
    """
    check_threads(threads)
    if is_url(src):
        return download(
            os.fsdecode(src),
            None,
            threads=threads,
            progress=progress,
            base=None if base is None else os.fsdecode(base),
        )
    with _base_to_read(base) as base_path:
        return _native.verify_file(
            local_path(src), threads=threads, progress=progress, base=base_path
        )


OpenFile: TypeAlias = "_native.SafetensorsFile | RemoteSafetensors | LocalWithBase"
"""An open file of tensors, here or at a URL."""


def open_tensors(filename: FilePath, base: FilePath | None = None) -> OpenFile:
    """Opens a file of tensors by its path or URL; errors as those of `safe_open`."""
    named = None if base is None else os.fsdecode(base)
    if is_url(filename):
        from neuzip_rs.remote.tensors import RemoteSafetensors

        return RemoteSafetensors(os.fsdecode(filename), base=named)
    if named is not None and is_url(named):
        from neuzip_rs.remote.tensors import LocalWithBase

        return LocalWithBase(local_path(filename), named)
    if named is not None:
        named = local_path(named)
        check_base(named)
    return _native.SafetensorsFile(local_path(filename), base=named)


@contextmanager
def _base_to_read(base: FilePath | None) -> Iterator[str | None]:
    if base is None:
        yield None
        return
    with brought(base) as path:
        check_base(path)
        yield path


@contextmanager
def _base_to_write(
    base: FilePath | None, filename: FilePath, target: str
) -> Iterator[BaseArguments]:
    """What to compress with; a base at a URL is brought here, and called what it is there."""
    if base is None:
        yield {}
        return
    with brought(base) as path:
        check_base(path)
        if not is_url(base) and not is_url(filename):
            yield Base.at(Path(path)).arguments(Path(target))
            return
        found = relative_url(os.fsdecode(base), os.fsdecode(filename))
        yield {"base": path} if found is None else {"base": path, "base_path": found}


def _as_numpy_array(value: Array) -> Array:
    from neuzip_rs._numpy import as_array

    return as_array(value)
