"""The folder in which a directory is built: `DIR-nz.partial` until everything is in it.

    DIR-nz.partial/journal.jsonl   the settings, then one line for each finished file
    DIR-nz.partial/content/        the files

A run that was interrupted leaves the folder, and the next one with the same settings takes its
finished files over. `publish` renames `content` to the final name, or exchanges it with what has
that name, in one step where the system can: there is never half a directory under that name.
"""

import ctypes
import errno
import json
import os
import shutil
import stat
import sys
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from neuzip_rs._errors import NeuzipError
from neuzip_rs.directory.tree import keep_attributes

if sys.platform == "win32":  # a second run is not noticed there
    fcntl = None
else:
    import fcntl

JOURNAL_NAME: Final = "journal.jsonl"
_REPLACED_NAME: Final = "replaced"


class Workspace:
    """The folder next to `destination` in which its new content is made.

    As a context manager: an error removes the folder, an interruption (Ctrl-C, SIGTERM) leaves it
    if a file is finished, `publish` uses it up.
    """

    def __init__(self, destination: Path, settings: Mapping[str, Any]) -> None:
        """Makes the folder, or takes over the one of an interrupted run.

        Args:
            destination: Where the directory will be.
            settings: What finished files depend on besides the file they came from.

        Raises:
            FileExistsError: There is a folder of that name that neuzip did not make.
            NeuzipError: Another process is at it.
        """
        self.destination = destination
        self.root = partial_folder(destination)
        self.content = self.root / "content"
        self._replaced = self.root / _REPLACED_NAME
        self._finished: dict[str, dict[str, Any]] = {}
        self._used: set[str] = set()
        self._published = False
        self._journal = self._open_journal()
        try:
            self._restore_replaced()
            self._resume(dict(settings))
        except BaseException:
            self._remove()
            raise

    def finished(self, name: str) -> dict[str, Any] | None:
        """What was recorded for a file by this run or the one before it."""
        return self._finished.get(name)

    def record(self, name: str, facts: Mapping[str, Any]) -> None:
        """Says that the file `name` is finished, and on the disk."""
        self._used.add(name)
        facts = dict(facts)
        if self._finished.get(name) == facts:
            return
        self._finished[name] = facts
        self._append({"file": name, "facts": facts})

    def target(self, name: str) -> Path:
        """Where to write the file `name`; its folder exists afterwards."""
        path = self.content / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def make_folder(self, name: str) -> None:
        """Makes an (empty) folder."""
        (self.content / name).mkdir(parents=True, exist_ok=True)

    def publish(self, folders: Mapping[str, Path], *, overwrite: bool) -> None:
        """Gives the content its final name; the folder of this object is gone afterwards.

        Args:
            folders: The folders that the directory has, "" for itself, and for each the folder
                whose mode and times it gets. All others go.
            overwrite: Whether to replace what has that name.
        """
        self._prune(folders.keys())
        # Inner folders first: what happens in a folder changes its time.
        for name in sorted(folders, reverse=True):
            sync_folder(self.content / name)
            keep_attributes(folders[name], self.content / name)
        # A folder that moves must be writable.
        make_writable(self.content)
        try:
            self.content.rename(self.destination)
        except OSError:
            if not overwrite or not self.destination.is_dir():
                raise
            self._exchange()
        keep_attributes(folders[""], self.destination)
        sync_folder(self.destination.parent)
        self._remove()
        self._published = True

    def __enter__(self) -> Self:
        """Returns the workspace."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Removes the folder unless the run was interrupted with something finished."""
        if self._published:
            return
        interrupted = isinstance(error, (KeyboardInterrupt, SystemExit))
        if interrupted and self._used:
            self._journal.close()
        else:
            self._remove()

    def _open_journal(self) -> IO[str]:
        path = self.root / JOURNAL_NAME
        if not path.is_file():
            with suppress(FileExistsError):
                self.root.mkdir()
            # A run killed right here leaves an empty folder.
            if self.root.is_symlink() or not self.root.is_dir() or any(self.root.iterdir()):
                message = "exists already, and is not from an interrupted run of neuzip"
                raise FileExistsError(errno.EEXIST, message, str(self.root))
        journal = path.open("a+", encoding="ascii")
        try:
            if fcntl is not None:
                fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            journal.close()
            if error.errno in (errno.EAGAIN, errno.EACCES):
                message = f"{self.root}: another neuzip process is working there"
                raise NeuzipError(message) from None
            raise
        return journal

    def _resume(self, settings: dict[str, Any]) -> None:
        lines = self._read_journal()
        if lines[:1] == [{"settings": settings}] and self.content.is_dir():
            for line in lines[1:]:
                self._finished[line["file"]] = line["facts"]
            # An interrupted run may have got as far as making folders read-only.
            for folder, _, _ in os.walk(self.content):
                make_writable(Path(folder))
            return
        _remove_folder(self.content)
        self._journal.truncate(0)
        self._append({"settings": settings})
        self.content.mkdir()

    def _read_journal(self) -> list[dict[str, Any]]:
        self._journal.seek(0)
        text = self._journal.read()
        if text and not text.endswith("\n"):
            # The last line of a run that was killed while writing it: it must not run into ours.
            self._journal.write("\n")
        lines: list[dict[str, Any]] = []
        for line in text.splitlines():
            with suppress(ValueError):
                lines.append(json.loads(line))
        return lines

    def _append(self, line: dict[str, Any]) -> None:
        # Mode "a" writes at the end, wherever reading got to.
        self._journal.write(json.dumps(line) + "\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def _prune(self, folders: AbstractSet[str]) -> None:
        # Files of an interrupted run that the source no longer has, temporary files of a killed
        # one.
        for folder, names, files in os.walk(self.content, topdown=False):
            prefix = Path(folder).relative_to(self.content).as_posix() + "/"
            prefix = "" if prefix == "./" else prefix
            for name in files:
                if prefix + name not in self._used:
                    (Path(folder) / name).unlink()
            for name in names:
                if prefix + name not in folders:
                    (Path(folder) / name).rmdir()

    def _exchange(self) -> None:
        if not self.destination.is_symlink():
            # It moves as well.
            make_writable(self.destination)
        if _rename_exchange(self.content, self.destination):
            return
        # Two steps: between them nothing has the name, see _restore_replaced.
        self.destination.rename(self._replaced)
        try:
            self.content.rename(self.destination)
        except BaseException:
            self._replaced.rename(self.destination)
            raise

    def _restore_replaced(self) -> None:
        if self._replaced.is_dir() and not self.destination.exists():
            self._replaced.rename(self.destination)

    def _remove(self) -> None:
        # The journal goes last: with it a later run knows the folder as ours. Windows removes
        # no open file.
        for path in (self.content, self._replaced):
            _remove_folder(path)
        self._journal.close()
        with suppress(OSError):
            (self.root / JOURNAL_NAME).unlink()
            self.root.rmdir()


def partial_folder(destination: Path) -> Path:
    """Where the content of a directory is until it is complete."""
    return destination.with_name(destination.name + ".partial")


def make_writable(folder: Path) -> None:
    """Lets the owner make and remove files in a folder."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & stat.S_IRWXU != stat.S_IRWXU:
        folder.chmod(mode | stat.S_IRWXU)


def sync_folder(folder: Path) -> None:
    """Puts the names in a folder on the disk, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems refuse, and have no more to offer.
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Removes a folder and all in it, of a link to one only the link.

    Folders without write permission are no obstacle if they are ours.
    """
    if path.is_symlink():
        path.unlink()
        return
    for folder, _, _ in os.walk(path):
        with suppress(OSError):
            make_writable(Path(folder))
    shutil.rmtree(path)


def _remove_folder(path: Path) -> None:
    with suppress(FileNotFoundError):
        remove_tree(path)


def _rename_exchange(first: Path, second: Path) -> bool:
    """Lets two paths change names in one step; False where the system cannot."""
    at_cwd, exchange = -100, 2
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    done: int = rename(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), exchange)
    if done == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(code, os.strerror(code), str(second))
