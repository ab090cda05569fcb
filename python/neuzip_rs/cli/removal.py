"""--rm: reading what was written again, and only then removing what it was made from."""

from collections.abc import Iterator
from pathlib import Path

from neuzip_rs._errors import CorruptDataError
from neuzip_rs.directory.content import Progress, matches_file, original_pieces
from neuzip_rs.directory.workspace import remove_tree


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
