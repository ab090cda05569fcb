"""--rm: reading what was written again, and only then removing what it was made from."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from neuzip_rs import _native
from neuzip_rs._bases import files_needed
from neuzip_rs._errors import CorruptDataError, NeuzipError
from neuzip_rs.directory.content import (
    COMPRESSED_KINDS,
    Progress,
    matches_file,
    original_pieces,
)
from neuzip_rs.directory.manifest import MANIFEST_NAME
from neuzip_rs.directory.workspace import remove_tree

_FOLDERS_ABOVE: Final = 16


def check_restorable(
    compressed: Path,
    original: Path,
    threads: int | None,
    progress: Progress,
    base: str | None = None,
) -> None:
    """Decodes a compressed file from the disk and compares it with the original, bit for bit.

    Args:
        compressed: The compressed file.
        original: What it was made from, or what was made from it.
        threads: How many threads may decode.
        progress: Called with the bytes done and the bytes in all.
        base: What the compressed file was compressed against, if it is not where it was.

    Raises:
        CorruptDataError: They differ, or the compressed file is damaged.
    """
    pieces = original_pieces(compressed, threads=threads, base=base)
    if not matches_file(_counted(pieces, original.stat().st_size, progress), original):
        message = f"{compressed} does not give back {original}: nothing was removed"
        raise CorruptDataError(message)


def check_stands_without(compressed: Path, original: Path) -> None:
    """Refuses to remove an original that what was made of it needs.

    A base may be a difference from the very file that is compressed against it. Both could be
    restored while the original is there, and neither without it.

    Args:
        compressed: The compressed file, or a folder of them.
        original: The file or folder it was made from.

    Raises:
        NeuzipError: The original is among the bases, or the bases of bases.
    """
    gone = original.resolve()
    for file in files_needed(compressed):
        if file.resolve().is_relative_to(gone):
            message = f"{original}: not removed, because {compressed} is a difference from {file}"
            raise NeuzipError(message)


def check_not_needed(path: Path) -> None:
    """Refuses to remove a compressed file that another one refers to.

    References lead from a folder into itself and below, so that only files beside this one and in
    the folders above it, up to the top of a compressed directory, can have any.

    Raises:
        NeuzipError: A file needs this one.
    """
    place = path.absolute()
    folders = list(place.parents)[:_FOLDERS_ABOVE]
    top = next((n for n, it in enumerate(folders) if (it / MANIFEST_NAME).is_file()), 0)
    for folder in folders[: top + 1]:
        inner = place.relative_to(folder).as_posix()
        for other in sorted(folder.iterdir()):
            if other == place or not other.is_file():
                continue
            compressed = _native.content_kind(str(other)) in COMPRESSED_KINDS
            if compressed and inner in _native.references(str(other)):
                message = f"{path}: nothing done, because {other} refers to it"
                raise NeuzipError(message)


def remove_source(path: Path) -> None:
    """Removes a file, a folder with all in it, or a link but not what it leads to."""
    if path.is_dir():
        remove_tree(path)
    else:
        path.unlink()


def _counted(pieces: Iterator[memoryview], total: int, progress: Progress) -> Iterator[memoryview]:
    done = 0
    for piece in pieces:
        yield piece
        done += len(piece)
        progress(min(done, total), total)
