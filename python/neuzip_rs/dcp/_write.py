"""Writing checkpoints: each process compresses its own items into its own files."""

import dataclasses
import io
import os
import pickle
import queue
import threading
import warnings
from inspect import signature
from typing import IO, TYPE_CHECKING, Any, Final, cast

import torch
from torch.distributed.checkpoint.filesystem import (
    CURRENT_DCP_VERSION,
    FileSystemWriter,
    SerializationFormat,
    _StorageInfo,
    _StoragePrefix,
)
from torch.distributed.checkpoint.planner import WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

import neuzip_rs as nz
from neuzip_rs.dcp import _items
from neuzip_rs.dcp._read import Checkpoint
from neuzip_rs.directory.workspace import sync_folder

if TYPE_CHECKING:
    from pathlib import Path

    from torch.distributed.checkpoint.metadata import Metadata
    from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem

_SUFFIX: Final = ".distcp"
_METADATA: Final = ".metadata"


class LocalWriter(FileSystemWriter):
    """Writes a checkpoint into a folder; made by `neuzip_rs.dcp.writer`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        level: str = "default",
        base: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        **options: Any,
    ) -> None:
        """Prepares writing.

        Args:
            path: Where the checkpoint goes.
            level: How hard to try.
            base: Where the base is, None for none.
            threads: How many threads may compress.
            options: What the writer of torch's takes.

        Raises:
            FileNotFoundError: There is no base.
            ValueError: An option makes no sense here.
        """
        form = options.get("serialization_format", SerializationFormat.TORCH_SAVE)
        if form is not SerializationFormat.TORCH_SAVE or options.get("_extensions"):
            message = "items are tensor streams here: no other serialization_format or _extensions"
            raise ValueError(message)
        super().__init__(path, **options)
        self._level = level
        self._threads = threads
        self._base_place = None if base is None else os.fspath(base)
        if self._base_place is not None:
            # Now, rather than after every process has planned.
            self._open_base()

    def prepare_local_plan(self, plan: "SavePlan") -> "SavePlan":
        """Makes the folder, and names the files of this process after this save.

        Raises:
            ValueError: The checkpoint would replace its own base.
        """
        if self._base_place is not None and self._relative_base() == ".":
            message = f"{self.path}: a checkpoint cannot replace its own base"
            raise ValueError(message)
        plan = super().prepare_local_plan(plan)
        if plan.storage_data is not None:
            plan = dataclasses.replace(plan, storage_data=self._named(plan.storage_data))
        return plan

    def prepare_global_plan(self, plans: "list[SavePlan]") -> "list[SavePlan]":
        """Names the files of all processes after this save."""
        return [
            dataclasses.replace(plan, storage_data=self._named(plan.storage_data))
            if self.use_collectives
            else plan
            for plan in super().prepare_global_plan(plans)
        ]

    def _named(self, prefix: _StoragePrefix) -> _StoragePrefix:
        return _StoragePrefix(f"{prefix.prefix}{self.save_id[:8]}_")

    def _write_data(
        self, planner: "SavePlanner", file_queue: "queue.Queue[Any]"
    ) -> Future[list[WriteResult]]:
        base = None if self._base_place is None else self._open_base()
        results: list[WriteResult] = []
        failures: list[BaseException] = []

        def work() -> None:
            try:
                while True:
                    path, name, items = file_queue.get_nowait()
                    results.extend(self._write_file(planner, base, path, name, items))
            except queue.Empty:
                pass
            except BaseException as error:
                failures.append(error)

        helpers = [threading.Thread(target=work) for _ in range(1, self.thread_count)]
        for helper in helpers:
            helper.start()
        work()
        for helper in helpers:
            helper.join()
        if failures:
            raise failures[0]
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def _write_file(
        self,
        planner: "SavePlanner",
        base: Checkpoint | None,
        path: "Path",
        name: str,
        items: "list[WriteItem]",
    ) -> list[WriteResult]:
        results: list[WriteResult] = []
        # One list for all items: pickled, the others are references to it.
        alone = [_items.PLAIN]
        against = alone if base is None else [_items.with_base(self._relative_base())]
        with self.fs.create_stream(path, "wb") as opened:
            stream = cast("IO[bytes]", opened)
            offset = 0
            for item in items:
                data = planner.resolve_data(item)
                compressed = self._compress(item, data, base)
                # memoryview, and not bytes(), which would copy.
                length = stream.write(memoryview(compressed))
                descriptors = alone if compressed.base_hash is None else against
                info = _StorageInfo(name, offset, length, transform_descriptors=descriptors)
                results.append(
                    WriteResult(index=item.index, size_in_bytes=length, storage_data=info)
                )
                offset += length
            if self.sync_files:
                _sync(stream)
        return results

    def _compress(
        self, item: "WriteItem", data: io.BytesIO | torch.Tensor, base: Checkpoint | None
    ) -> nz.CompressedTensor:
        if item.type == WriteItemType.BYTE_IO:
            with cast("io.BytesIO", data).getbuffer() as raw:
                return nz.compress(raw, level=self._level, threads=self._threads)
        tensor = cast("torch.Tensor", data).detach()
        if type(tensor) is not torch.Tensor:
            # Classes that hold their elements elsewhere, as `neuzip_rs.fsdp` has one.
            tensor = tensor.clone()
        tensor = tensor.cpu()
        before: torch.Tensor | None = None
        if base is not None and tensor.numel():
            offsets = item.index.offset or [0] * tensor.dim()
            before = base.region(item.index.fqn, offsets, tensor.shape, tensor.dtype)
        try:
            return nz.compress(tensor, level=self._level, base=before, threads=self._threads)
        except TypeError as error:
            message = f"{item.index.fqn}: {error}"
            raise TypeError(message) from error

    def finish(self, metadata: "Metadata", results: list[list[WriteResult]]) -> None:
        """Makes the checkpoint complete, in one step, and removes what it replaces."""
        metadata.version = CURRENT_DCP_VERSION
        stored = {result.index: result.storage_data for part in results for result in part}
        metadata.storage_data = stored
        metadata.storage_meta = self.storage_meta()
        own_rank = None if self.use_collectives else self.rank
        self._publish(self._get_metadata_path(own_rank), pickle.dumps(metadata))
        prefix = "__" if own_rank is None else f"__{own_rank}_"
        self._remove_others(prefix, {info.relative_path for info in stored.values()})

    def _publish(self, target: Any, data: bytes) -> None:  # noqa: ANN401 - a path of the file system
        folder = cast("Path", self.path)
        if self.sync_files:
            # The names of the files that the metadata name must not be lost after these are there.
            sync_folder(folder)
        temporary = folder / f"{target.name}.{self.save_id[:8]}.tmp"
        with temporary.open("wb") as file:
            file.write(data)
            if self.sync_files:
                _sync(file)
        temporary.replace(target)
        if self.sync_files:
            sync_folder(folder)

    def _remove_others(self, prefix: str, names: set[str]) -> None:
        """Removes the files of saves that this one has replaced, killed ones included."""
        for path in self._listed():
            name = path.rpartition("/")[2]
            data = name.startswith(prefix) and name.endswith(_SUFFIX) and name not in names
            if data or (name.startswith(_METADATA) and name.endswith(".tmp")):
                self.fs.rm_file(path)

    def _listed(self) -> list[str]:
        return [entry.as_posix() for entry in cast("Path", self.path).iterdir()]

    def _relative_base(self) -> str:
        return _items.relative(cast("str", self._base_place), os.fspath(self.path))

    def _open_base(self) -> Checkpoint:
        return Checkpoint(cast("str", self._base_place), self._threads)


def _sync(stream: IO[bytes]) -> None:
    stream.flush()
    try:
        os.fsync(stream.fileno())
    except (AttributeError, io.UnsupportedOperation) as error:
        warnings.warn(f"fsync is not supported here, flushed only: {error}", stacklevel=3)


class RemoteWriter(LocalWriter):
    """Writes a checkpoint to a URL; made by `neuzip_rs.dcp.writer`."""

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Prepares writing: arguments of `LocalWriter`, others for the file system."""
        from torch.distributed.checkpoint.fsspec_filesystem import _FileSystem

        known = {*signature(LocalWriter).parameters, *signature(FileSystemWriter).parameters}
        own = {key: options.pop(key) for key in list(options) if key in known}
        # A store has kept what it was sent when the file is closed.
        super().__init__(path, **{"sync_files": False, **own})
        self.fs = cast("Any", _FileSystem())
        self.path = self.fs.init_path(path, **options)

    def _publish(self, target: Any, data: bytes) -> None:  # noqa: ANN401 - a path of the file system
        # One request: an object is there when all of it is.
        cast("Any", self.fs).fs.pipe_file(target, data)

    def _listed(self) -> list[str]:
        return list(cast("Any", self.fs).ls(self.path))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether this is a URL that fsspec knows."""
        from torch.distributed.checkpoint.fsspec_filesystem import _FileSystem

        return _FileSystem.validate_checkpoint_id(checkpoint_id)
