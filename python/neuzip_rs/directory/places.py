"""Where a directory may be written."""

import errno
import os
from contextlib import suppress
from pathlib import Path

from neuzip_rs._bases import files_needed


class PlaceError(ValueError):
    """The output may not be where it was asked to be."""


def check_places(source: Path, destination: Path, *, overwrite: bool) -> None:
    """Refuses outputs that would destroy something.

    Raises:
        PlaceError: One of the two is in the other, or the output is a folder that nobody means.
        FileExistsError: Something has the name, and is not to be overwritten.
        FileNotFoundError: There is no folder to put it in.
    """
    origin = source.resolve()
    target = destination.resolve()
    if target == origin or origin in target.parents:
        message = f"the output {destination} is in {source}"
        raise PlaceError(message)
    if target in origin.parents:
        message = f"{source} is in the output {destination}"
        raise PlaceError(message)
    if not destination.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(destination.parent))
    if destination.is_symlink() and not destination.exists():
        raise FileExistsError(errno.EEXIST, "is a link that leads nowhere", str(destination))
    if not destination.exists():
        return
    if not destination.is_dir():
        raise FileExistsError(errno.EEXIST, "exists and is no folder", str(destination))
    if not any(destination.iterdir()):
        return
    if not overwrite:
        message = "exists already; -f replaces it"
        raise FileExistsError(errno.EEXIST, message, str(destination))
    inhabited = [Path.cwd()]
    with suppress(RuntimeError):  # users without a home
        inhabited.append(Path.home())
    if os.path.ismount(target) or any(target in (path, *path.parents) for path in inhabited):
        message = f"{destination} is too much to replace"
        raise PlaceError(message)


def check_apart(base: Path, destination: Path) -> None:
    """Refuses to replace a directory by differences from what is in it.

    Raises:
        PlaceError: The base, or what it is a difference from in turn, is in the directory.
    """
    target = destination.resolve()
    for file in files_needed(base):
        if file.resolve().is_relative_to(target):
            message = f"{destination} is not replaced by a difference from {file}"
            raise PlaceError(message)
