"""Reading checkpoints: items are decoded into the tensors they are for, rows of them if need be."""

import io
import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Final, cast

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType
from torch.futures import Future

import neuzip_rs as nz
from neuzip_rs._errors import BaseMismatchError, CorruptDataError
from neuzip_rs.dcp import _items

if TYPE_CHECKING:
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem

_MAX_CHAIN: Final = 64


class LocalReader(FileSystemReader):
    """Reads a checkpoint in a folder; made by `neuzip_rs.dcp.reader`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        base: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        trail: tuple[str, ...] = (),
        **options: Any,
    ) -> None:
        """Prepares reading.

        Args:
            path: Where the checkpoint is.
            base: Where its base is, None for where it was.
            threads: How many threads may decode.
            trail: The checkpoints that have led here as their base, the first one first.
            options: What the reader of torch's takes.
        """
        super().__init__(path, **options)
        self._base = None if base is None else os.fspath(base)
        self._threads = threads
        self._trail = trail
        self._options = options
        self._bases: dict[str, Checkpoint] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Starts again, with another checkpoint if one is named."""
        super().reset(checkpoint_id)
        self._bases = {}

    def read_data(self, plan: "LoadPlan", planner: "LoadPlanner") -> Future[None]:
        """Reads what the plan asks for, file by file and in the order of the bytes."""
        files: dict[str, list[tuple[_StorageInfo, ReadItem]]] = {}
        for request in plan.items:
            info = self.storage_data[request.storage_index]
            files.setdefault(info.relative_path, []).append((info, request))
        for name, requests in files.items():
            requests.sort(key=lambda pair: pair[0].offset)
            with self.fs.create_stream(self.fs.concat_path(self.path, name), "rb") as stream:
                item: Item | None = None
                for info, request in requests:
                    # One item may be asked for in several parts.
                    if item is None or item.info is not info:
                        item = Item(self, info, request.storage_index, stream)
                    _load(item, request, planner)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def base_at(self, path: str) -> "Checkpoint":
        """The checkpoint that items of this one name as their base.

        Raises:
            BaseMismatchError: There is none, or bases lead in a circle.
        """
        place = self._base or _items.resolve(path, os.fspath(self.path))
        known = self._bases.get(place)
        if known is None:
            trail = (*self._trail, os.fspath(self.path))
            if place in trail:
                message = f"{place}: this checkpoint is, by way of others, its own base"
                raise BaseMismatchError(message)
            if len(trail) > _MAX_CHAIN:
                message = f"{place}: more than {_MAX_CHAIN} checkpoints, each the base of the next"
                raise BaseMismatchError(message)
            try:
                known = Checkpoint(place, self._threads, trail, self._options)
            except FileNotFoundError as error:
                message = (
                    f"{self.path}: its base is missing: {error}; if it has been moved, "
                    "name it with reader(..., base=...)"
                )
                raise BaseMismatchError(message) from error
            self._bases[place] = known
        return known

    @property
    def threads(self) -> int | None:
        """How many threads may decode."""
        return self._threads


class Checkpoint:
    """A complete checkpoint, of which any part of any tensor can be read."""

    def __init__(
        self,
        path: str,
        threads: int | None,
        trail: tuple[str, ...] = (),
        options: dict[str, Any] | None = None,
    ) -> None:
        """Opens a checkpoint.

        Args:
            path: Where it is.
            threads: How many threads may decode.
            trail: The checkpoints that have led here as their base.
            options: What the reader of torch's takes.

        Raises:
            FileNotFoundError: There is none that is complete.
        """
        if "://" in path:
            self._reader: LocalReader = RemoteReader(
                path, threads=threads, trail=trail, **(options or {})
            )
        else:
            self._reader = LocalReader(path, threads=threads, trail=trail)
        try:
            self._metadata: Metadata = self._reader.read_metadata()
        except FileNotFoundError:
            message = f"no complete checkpoint at {path}: it has no .metadata"
            raise FileNotFoundError(message) from None
        except (pickle.UnpicklingError, EOFError, AttributeError, ImportError) as error:
            message = f"{path}: its .metadata is damaged: {error}"
            raise CorruptDataError(message) from error

    def region(
        self, name: str, offsets: Sequence[int], sizes: Sequence[int], dtype: torch.dtype
    ) -> torch.Tensor | None:
        """A part of a tensor, put together from wherever it is stored.

        Args:
            name: The tensor's name in the checkpoint.
            offsets: Where the part begins in each dimension.
            sizes: How large it is.
            dtype: The type it must have.

        Returns:
            The part; None if the checkpoint has no tensor of this name and type there.
        """
        known = self._metadata.state_dict_metadata.get(name)
        if not isinstance(known, TensorStorageMetadata) or known.properties.dtype != dtype:
            return None
        if len(known.size) != len(sizes):
            return None
        result: torch.Tensor | None = None
        missing = _count(sizes)
        for chunk in known.chunks:
            starts = [max(a, b) for a, b in zip(offsets, chunk.offsets, strict=True)]
            ends = [
                min(a + n, b + m)
                for a, n, b, m in zip(offsets, sizes, chunk.offsets, chunk.sizes, strict=True)
            ]
            lengths = [end - start for start, end in zip(starts, ends, strict=True)]
            if any(length <= 0 for length in lengths) and _count(sizes):
                continue
            with self._item(name, chunk.offsets) as item:
                inside = [a - b for a, b in zip(starts, chunk.offsets, strict=True)]
                part = item.tensor(inside, lengths)
            if lengths == list(sizes):
                return part.contiguous()
            if result is None:
                result = torch.empty(list(sizes), dtype=dtype)
            place = [a - b for a, b in zip(starts, offsets, strict=True)]
            narrow_tensor_by_index(result, place, lengths).copy_(part)
            missing -= _count(lengths)
        return result if missing == 0 else None

    @contextmanager
    def _item(self, name: str, offsets: torch.Size) -> Iterator["Item"]:
        index = MetadataIndex(name, offsets)
        info = cast("dict[MetadataIndex, _StorageInfo]", self._metadata.storage_data)[index]
        fs, path = self._reader.fs, self._reader.path
        with fs.create_stream(fs.concat_path(path, info.relative_path), "rb") as stream:
            yield Item(self._reader, info, index, stream)


class Item:
    """One item of a checkpoint, read whole and decoded as far as it is asked for."""

    def __init__(
        self, reader: LocalReader, info: "_StorageInfo", index: MetadataIndex, stream: io.IOBase
    ) -> None:
        """Reads the item.

        Raises:
            CorruptDataError: The file ends before it.
        """
        self.info = info
        self._reader = reader
        self._index = index
        self._descriptors: Sequence[str] = info.transform_descriptors or ()
        self._decoded: torch.Tensor | None = None
        file = cast("IO[bytes]", stream)
        file.seek(info.offset)
        data = file.read(info.length)
        if len(data) != info.length:
            message = f"{self._place()}: the file ends at {len(data)} of {info.length} bytes"
            raise CorruptDataError(message)
        if _items.is_ours(self._descriptors):
            self._data: bytes | nz.CompressedTensor = self._stream(data)
        else:
            self._data = data

    def content(self) -> bytes:
        """What an item that is no tensor holds."""
        if isinstance(self._data, bytes):
            return self._transformed(self._data).read()
        return cast("bytes", nz.decompress(self._data, framework="bytes", threads=self._threads))

    def into(self, target: torch.Tensor) -> bool:
        """Decodes the whole item into a tensor, if that can be done without a copy."""
        compressed = self._data
        if (
            isinstance(compressed, bytes)
            or type(target) is not torch.Tensor
            or not target.is_cpu
            or not target.is_contiguous()
            or target.is_conj()
            or target.is_neg()
            or str(target.dtype) != f"torch.{compressed.dtype}"
            or tuple(target.shape) != compressed.shape
            or self._decoded is not None
        ):
            return False
        nz.decompress(compressed, out=target, base=self._base(compressed), threads=self._threads)
        return True

    def tensor(self, offsets: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
        """A part of the tensor that the item is."""
        compressed = self._data
        if self._decoded is None and not isinstance(compressed, bytes):
            rows = compressed.shape[0] if compressed.shape else 0
            few = rows and lengths[0] < rows and compressed.base_hash is None
            if few and self._dtype_is_known(compressed):
                # Whole tensors are kept for the next request, parts are decoded as they come.
                part = compressed[offsets[0] : offsets[0] + lengths[0]]
                inside = [0, *offsets[1:]]
                return narrow_tensor_by_index(part, inside, lengths)
        return narrow_tensor_by_index(self._whole(), offsets, lengths)

    def _whole(self) -> torch.Tensor:
        if self._decoded is None:
            if isinstance(self._data, bytes):
                self._decoded = torch.load(
                    self._transformed(self._data), map_location="cpu", weights_only=True
                )
            else:
                self._decoded = nz.decompress(
                    self._data,
                    base=self._base(self._data),
                    framework="torch",
                    threads=self._threads,
                )
        return self._decoded

    def _base(self, compressed: nz.CompressedTensor) -> torch.Tensor | None:
        """The part of the base that this item is a difference from."""
        if compressed.base_hash is None:
            return None
        path = _items.base_of(self._descriptors)
        if path is None:
            message = f"{self._place()}: it needs a base, and does not say which"
            raise CorruptDataError(message)
        checkpoint = self._reader.base_at(path)
        offsets = self._index.offset or [0] * len(compressed.shape)
        dtype = getattr(torch, compressed.dtype)
        found = checkpoint.region(self._index.fqn, offsets, compressed.shape, dtype)
        if found is None:
            message = f"{self._place()}: its base has no such tensor"
            raise BaseMismatchError(message)
        return found

    def _stream(self, data: bytes) -> nz.CompressedTensor:
        try:
            return nz.CompressedTensor.from_bytes(data, framework="torch")
        except CorruptDataError as error:
            message = f"{self._place()}: {error}"
            raise CorruptDataError(message) from error

    def _transformed(self, data: bytes) -> IO[bytes]:
        stream = self._reader.transforms.transform_load_stream(
            cast("ReadItem", None), self._descriptors, io.BytesIO(data)
        )
        return stream if stream.seekable() else io.BytesIO(stream.read())

    def _dtype_is_known(self, compressed: nz.CompressedTensor) -> bool:
        return hasattr(torch, compressed.dtype)

    def _place(self) -> str:
        return f"{self._reader.path}: {self._index.fqn} in {self.info.relative_path}"

    @property
    def _threads(self) -> int | None:
        return self._reader.threads


def _load(item: Item, request: "ReadItem", planner: "LoadPlanner") -> None:
    if request.type == LoadItemType.BYTE_IO:
        planner.load_bytes(request, io.BytesIO(item.content()))
        return
    target = planner.resolve_tensor(request).detach()
    whole = not any(request.storage_offsets)
    if not (whole and item.into(target)):
        part = item.tensor(request.storage_offsets, request.lengths)
        if target.size() != part.size():
            message = f"{request.storage_index}: {tuple(part.size())} for {tuple(target.size())}"
            raise CorruptDataError(message)
        target.copy_(part)
    planner.commit_tensor(request, target)


def _count(sizes: Sequence[int]) -> int:
    count = 1
    for size in sizes:
        count *= size
    return count


class RemoteReader(LocalReader):
    """Reads a checkpoint at a URL; made by `neuzip_rs.dcp.reader`."""

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Prepares reading: arguments of `LocalReader`, others for the file system."""
        from torch.distributed.checkpoint.fsspec_filesystem import _FileSystem

        own = {key: options.pop(key) for key in ("base", "threads", "trail") if key in options}
        super().__init__(path, **own)
        self._options = options
        self.fs = cast("Any", _FileSystem())
        self.path = self.fs.init_path(path, **options)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether this is a URL that fsspec knows."""
        from torch.distributed.checkpoint.fsspec_filesystem import _FileSystem

        return _FileSystem.validate_checkpoint_id(checkpoint_id)
