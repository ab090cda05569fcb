"""Compressed checkpoints through torch.distributed.checkpoint.

    from torch.distributed import checkpoint as dcp
    import neuzip_rs.dcp

    dcp.save(state, storage_writer=neuzip_rs.dcp.writer("run/step-1000"))
    dcp.load(state, storage_reader=neuzip_rs.dcp.reader("run/step-1000"))

`dcp.save`, `dcp.async_save` and `dcp.load` do what they always do: plan, deduplicate, reshard. Only
what lies in the `.distcp` files is different: each item is one tensor stream (docs/format.md) of
the tensor's own type, instead of an archive made by `torch.save`.

A checkpoint is complete when its `.metadata` appears, in one step and after everything it names is
on the disk. Every save takes new names for its files, also into a folder that holds a checkpoint
already, and removes the old ones at its end: whenever a save is killed, a whole checkpoint stays.
"""

import os
from typing import Any, TypeAlias

from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter

from neuzip_rs._arguments import check_level, check_threads
from neuzip_rs.dcp._read import LocalReader, RemoteReader
from neuzip_rs.dcp._write import LocalWriter, RemoteWriter

__all__ = ["reader", "writer"]

Place: TypeAlias = str | os.PathLike[str]


def writer(
    path: Place,
    *,
    level: str = "default",
    base: Place | None = None,
    threads: int | None = None,
    **options: Any,
) -> FileSystemWriter:
    """A storage writer for `dcp.save` and `dcp.async_save`.

    Args:
        path: The folder of the checkpoint; a URL such as "s3://bucket/step-1000" goes to fsspec.
        level: "fast", "default" or "max".
        base: An earlier checkpoint, of this writer or of torch's own: tensors are stored as their
            differences from those of the same name in it, where that is smaller, however either
            was sharded. The checkpoint remembers where the base is, relative to itself, and cannot
            be read without it.
        threads: How many threads may compress in each process, by default `NEUZIP_NUM_THREADS` or
            every core.
        options: What `torch.distributed.checkpoint.FileSystemWriter` takes (`FsspecWriter` for a
            URL, and the options of the file system).

    Returns:
        The writer, for one save.

    Raises:
        FileNotFoundError: There is no complete checkpoint at `base`.
        ValueError: If an argument has a value it cannot have, such as a `serialization_format`:
            this writer has its own.
    """
    check_level(level)
    check_threads(threads)
    place, base = _place(path), None if base is None else _place(base)
    kind = RemoteWriter if "://" in place else LocalWriter
    return kind(place, level=level, base=base, threads=threads, **options)


def reader(
    path: Place, *, base: Place | None = None, threads: int | None = None, **options: Any
) -> FileSystemReader:
    """A storage reader for `dcp.load`; it reads plain checkpoints too.

    Args:
        path: The folder of the checkpoint; a URL such as "s3://bucket/step-1000" goes to fsspec.
        base: The checkpoint that this one holds the differences from, if it is not where it was.
        threads: How many threads may decode in each process, by default `NEUZIP_NUM_THREADS` or
            every core.
        options: What `torch.distributed.checkpoint.FileSystemReader` takes (`FsspecReader` for a
            URL, and the options of the file system).

    Returns:
        The reader. Loading raises CorruptDataError if a file is damaged, and BaseMismatchError if
        the base is missing or another one.
    """
    check_threads(threads)
    place, base = _place(path), None if base is None else _place(base)
    kind = RemoteReader if "://" in place else LocalReader
    return kind(place, base=base, threads=threads, **options)


def _place(path: Place) -> str:
    """A path or a URL; those of local files become paths."""
    return os.fspath(path).removeprefix("file://")
