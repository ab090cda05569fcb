"""What is in a directory: every file and folder below it, symbolic links followed.

Hub caches are folders of links into a store of blobs, so what counts is what a link leads to.
"""

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from neuzip_rs._errors import NeuzipError


@dataclass(frozen=True, slots=True)
class TreeFile:
    """A regular file below the directory."""

    name: str
    """Path relative to the directory, with "/" between the parts."""
    path: Path
    size: int
    mtime_ns: int
    inode: int

    @property
    def stamp(self) -> tuple[int, int, int]:
        """What changes when somebody writes to the file or replaces it."""
        return self.size, self.mtime_ns, self.inode


@dataclass(frozen=True, slots=True)
class Tree:
    """Everything below one directory, in the order of the names."""

    root: Path
    files: tuple[TreeFile, ...]
    folders: tuple[str, ...]
    """Every folder below the root, outer ones first."""

    def empty_folders(self) -> list[str]:
        """Folders with nothing in them: no file keeps these alive in a copy."""
        parents = folders_above([*self.folders, *(file.name for file in self.files)])
        return [name for name in self.folders if name not in parents]


def scan(root: Path) -> Tree:
    """Lists a directory.

    Raises:
        NeuzipError: It holds something that cannot be restored, such as a dangling link.
        OSError: Something in it cannot be read.
    """
    files: list[TreeFile] = []
    folders: list[str] = []
    _scan_folder(root, "", frozenset(), files, folders)
    return Tree(root, tuple(files), tuple(folders))


def folders_above(names: Iterable[str]) -> set[str]:
    """All folders that these paths are in."""
    folders: set[str] = set()
    for name in names:
        folder = name.rpartition("/")[0]
        while folder and folder not in folders:
            folders.add(folder)
            folder = folder.rpartition("/")[0]
    return folders


def stamp_of(path: Path) -> tuple[int, int, int]:
    """The stamp that the file has now."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def keep_attributes(source: Path, target: Path) -> None:
    """Gives a file or folder the permissions and times of another one."""
    status = source.stat()
    # Not setuid and the like: the owner may be another one.
    target.chmod(status.st_mode & 0o777)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _scan_folder(
    folder: Path,
    prefix: str,
    ancestors: frozenset[tuple[int, int]],
    files: list[TreeFile],
    folders: list[str],
) -> None:
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    # Windows file systems may report no inode numbers.
    if status.st_ino and identity in ancestors:
        message = f"{folder}: this link leads back to a folder that it is in"
        raise NeuzipError(message)
    with os.scandir(folder) as listing:
        entries = sorted(listing, key=lambda entry: entry.name)
    for entry in entries:
        name = prefix + entry.name
        try:
            status = entry.stat()
        except FileNotFoundError:
            message = f"{entry.path}: this link leads nowhere"
            raise NeuzipError(message) from None
        path = Path(entry.path)
        if stat.S_ISDIR(status.st_mode):
            folders.append(name)
            _scan_folder(path, name + "/", ancestors | {identity}, files, folders)
        elif stat.S_ISREG(status.st_mode):
            # entry.stat() has no inode numbers on Windows.
            inode = status.st_ino or path.stat().st_ino
            files.append(TreeFile(name, path, status.st_size, status.st_mtime_ns, inode))
        else:
            message = f"{entry.path}: neither a file nor a folder"
            raise NeuzipError(message)
