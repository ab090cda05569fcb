"""What the files of a model directory have in common, so that it is stored once.

A tensor that an earlier .safetensors file has too is stored as a reference to it, and so is one
that an earlier file has in float32 and that was rounded from there. A PyTorch checkpoint, which is
a zip file of uncompressed storages, is stored as references to the tensors that its storages are,
and the bytes between them. All references lead to files in the same folder or below, so that a
folder can be moved as a whole.
"""

import zipfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from neuzip_rs import _native
from neuzip_rs.directory.content import Progress
from neuzip_rs.directory.tree import TreeFile

_ZIP_MAGIC: Final = b"PK\x03\x04"
# Of the header in front of each member: its length without name and extra field, whose lengths are
# its last two numbers.
_LOCAL_HEADER_BYTES: Final = 30
_MEMBERS: Final = 1_000_000


def in_order(files: Sequence[TreeFile], shards: Sequence[TreeFile]) -> list[TreeFile]:
    """The files in the order to compress them in: what others may refer to comes first.

    Args:
        files: All files.
        shards: Those that are plain .safetensors files.
    """
    names = {file.name for file in shards}
    first = sorted(shards, key=_rank)
    return [*first, *(file for file in files if file.name not in names)]


def can_be_named(name: str) -> bool:
    """Whether references can name a file: they are UTF-8, names of files are any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def catalog_for(name: str, catalog: _native.Catalog | None) -> _native.Catalog | None:
    """The catalog of a file's directory, if there is one and references can name the file."""
    return catalog if can_be_named(name) else None


def catalog_of(
    root: Path,
    shards: Sequence[TreeFile],
    others: Sequence[TreeFile],
    threads: int | None,
    progress: Progress | None = None,
) -> _native.Catalog | None:
    """A catalog of the .safetensors files, None if nothing can be in two files.

    Args:
        root: The directory.
        shards: Its plain .safetensors files, in the order to compress them in.
        others: Its other files.
        threads: How many threads may work.
        progress: Called now and then; what it raises stops the work.
    """
    if len(shards) + sum(is_zip(file.path) for file in others) < 2:
        return None
    names = [file.name for file in shards if can_be_named(file.name)]
    # How much there is to look at nobody knows beforehand.
    report = None if progress is None else lambda _done, _total: progress(0, 0)
    return _native.Catalog(str(root), names, threads=threads, progress=report)


def is_zip(path: Path) -> bool:
    """Whether a file begins as a zip file."""
    with path.open("rb") as file:
        return file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC


def stored_members(path: Path) -> list[tuple[int, int]]:
    """Where the uncompressed members of a zip file lie: first byte and length.

    Nothing depends on it being right: what is not what it looks like is stored as it is.
    """
    ranges: list[tuple[int, int]] = []
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            for member in archive.infolist()[:_MEMBERS]:
                if member.compress_type != zipfile.ZIP_STORED or not member.file_size:
                    continue
                file.seek(member.header_offset)
                header = file.read(_LOCAL_HEADER_BYTES)
                if len(header) == _LOCAL_HEADER_BYTES and header.startswith(_ZIP_MAGIC):
                    name = int.from_bytes(header[26:28], "little")
                    extra = int.from_bytes(header[28:30], "little")
                    start = member.header_offset + _LOCAL_HEADER_BYTES + name + extra
                    ranges.append((start, member.file_size))
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, OverflowError):
        return []
    return ranges


def _rank(file: TreeFile) -> tuple[int, bool, str]:
    # References lead into folders below, and from 16-bit floats to float32.
    nbytes = {"F32": 0, "F16": 0, "BF16": 0}
    with closing(_native.SafetensorsFile(str(file.path))) as tensors:
        for _, element, _, size in tensors.layouts():
            if element in nbytes:
                nbytes[element] += size
    is_narrow = nbytes["F32"] < nbytes["F16"] + nbytes["BF16"]
    return -file.name.count("/"), is_narrow, file.name
