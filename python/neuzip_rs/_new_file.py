"""Files that are there whole or not at all."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from neuzip_rs.directory.workspace import sync_folder


@contextmanager
def new_file(target: Path, *, overwrite: bool) -> Iterator[IO[bytes]]:
    """A file to write, which appears under its name when the body ends without an error.

    Raises:
        FileExistsError: The name has been taken, and what has it may not be replaced.
    """
    # Before the work is done; what takes the name meanwhile is found when the file gets it.
    if not overwrite and os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    mask = os.umask(0)
    os.umask(mask)
    # Not made of the name of the target, which may be as long as names can be.
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".neuzip-", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~mask)
        if overwrite:
            temporary.replace(target)
        else:
            _rename_new(temporary, target)
        sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _rename_new(temporary: Path, target: Path) -> None:
    # A hard link fails if the name has been taken meanwhile; renaming would replace it.
    try:
        target.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links: the check that was made before has to do.
        temporary.replace(target)
