"""What is at a URL, bringing it here, and sending it there."""

import errno
import os
import posixpath
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Final

from neuzip_rs.directory.content import Progress
from neuzip_rs.remote.ranges import RangedFile

# Two letters at least: C:\ is no protocol. `::` chains file systems, as in fsspec.
_URL: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9+.\-]+(::|://)")
_LOCAL: Final = ("file://", "local://")
# Where an object is there when all of it is, whatever happens while it is sent.
_WHOLE: Final = frozenset(
    {"abfs", "az", "gcs", "gs", "hf", "memory", "oci", "s3", "s3a", "adl", "oss", "r2", "cos"}
)


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a URL of another file system than this machine's."""
    text = os.fsdecode(path)
    return _URL.match(text) is not None and not text.startswith(_LOCAL)


def local_path(path: str | os.PathLike[str]) -> str:
    """The path of a local file, also where it is written as a URL."""
    text = os.fsdecode(path)
    for prefix in _LOCAL:
        text = text.removeprefix(prefix)
    return text


class Places:
    """A URL, and the file system that it is in."""

    def __init__(self, url: str) -> None:
        """Finds the file system.

        Raises:
            ImportError: fsspec is missing, or the package that knows the protocol.
            ValueError: Nobody knows the protocol.
        """
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            message = f"{url}: URLs need fsspec: pip install fsspec"
            raise ImportError(message) from error
        self.url = url
        fs, self.path = url_to_fs(url)
        self.fs: Any = fs

    @property
    def name(self) -> str:
        """The last part of the path."""
        path = self.path.partition("?")[0] if self.path.startswith("http") else self.path
        return PurePosixPath(path.rstrip("/")).name

    def exists(self) -> bool:
        """Whether something is there, file or folder."""
        self._forget()
        # Not the file system's own question, for which that of HTTP begins to fetch the file.
        try:
            self.fs.info(self.path)
        except FileNotFoundError:
            return False
        return True

    def is_folder(self) -> bool:
        """Whether it is a folder."""
        self._forget()
        return bool(self.fs.isdir(self.path))

    def size(self) -> int:
        """Bytes in the file.

        Raises:
            FileNotFoundError: There is none.
            OSError: The server does not say.
        """
        self._forget()
        size = self.fs.info(self.path).get("size")
        if size is None:
            message = f"{self.url}: the server does not say how long the file is"
            raise OSError(message)
        return int(size)

    def _forget(self) -> None:
        # fsspec keeps listings, which may be of before.
        self.fs.invalidate_cache()

    def ranged(self) -> RangedFile:
        """The file, to read ranges of."""
        return RangedFile(self.fs, self.path, self.url, self.size())

    def files(self) -> list[str]:
        """The files below a folder, relative to it."""
        self._forget()
        top = self.path.rstrip("/")
        return [found[len(top) + 1 :] for found in self.fs.find(top) if found != top]

    def inside(self, name: str) -> "Places":
        """The place of this name in a folder."""
        place = object.__new__(Places)
        place.url = self.url.rstrip("/") + "/" + name
        place.fs, place.path = self.fs, self.path.rstrip("/") + "/" + name
        return place

    def fetch(self, target: Path, progress: Progress | None = None) -> None:
        """Brings a file or folder here, whole.

        Raises:
            FileNotFoundError: There is nothing.
        """
        if not self.is_folder():
            self._fetch_file(target, progress)
            return
        names = self.files()
        for name in names:
            part = target / name
            part.parent.mkdir(parents=True, exist_ok=True)
            self.inside(name)._fetch_file(part, progress)
        if not names:
            raise FileNotFoundError(errno.ENOENT, "no such file or folder", self.url)

    def _fetch_file(self, target: Path, progress: Progress | None) -> None:
        with self.ranged() as file:
            file.start()
            for start, data in file.blocks():
                with target.open("r+b" if start else "wb") as out:
                    out.seek(start)
                    out.write(data)
                if progress is not None:
                    progress(start + len(data), file.size)
            if file.size == 0:
                target.touch()

    def check_free(self) -> None:
        """Checks that nothing is there.

        Raises:
            FileExistsError: Something is, and may not be replaced.
        """
        if self.exists():
            raise FileExistsError(errno.EEXIST, "exists already", self.url)

    def send(self, source: Path) -> None:
        """Sends a file there, replacing one.

        Raises:
            OSError: It cannot be written.
        """
        protocols = self.fs.protocol
        protocol = protocols if isinstance(protocols, str) else protocols[0]
        if protocol in ("http", "https"):
            message = f"{self.url}: files can be read over {protocol}, but not written"
            raise OSError(message)
        if protocol in _WHOLE:
            self.fs.put_file(str(source), self.path)
            return
        self.fs.makedirs(self.path.rpartition("/")[0], exist_ok=True)
        temporary = f"{self.path}.{os.getpid()}.tmp"
        try:
            self.fs.put_file(str(source), temporary)
            self.fs.mv(temporary, self.path)
        except BaseException:
            if self.fs.exists(temporary):
                self.fs.rm(temporary)
            raise


@contextmanager
def brought(path: str | os.PathLike[str]) -> Iterator[str]:
    """A path that can be read here: of what is at a URL a copy, until the body ends."""
    if not is_url(path):
        yield local_path(path)
        return
    place = Places(os.fsdecode(path))
    with tempfile.TemporaryDirectory(prefix="neuzip-") as folder:
        copy = Path(folder) / place.name
        place.fetch(copy)
        yield str(copy)


@contextmanager
def sent(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[str]:
    """A path to write to: what is for a URL is sent there when the body has written it.

    Raises:
        FileExistsError: Something is there, and may not be replaced.
    """
    if not is_url(path):
        yield local_path(path)
        return
    place = Places(os.fsdecode(path))
    if not overwrite:
        place.check_free()
    with tempfile.TemporaryDirectory(prefix="neuzip-") as folder:
        copy = Path(folder) / place.name
        yield str(copy)
        place.send(copy)


def relative_url(base: str, target: str) -> str | None:
    """The path of a base as seen from the folder of a file; None if none leads there."""
    protocols = [path.partition("://")[0] if is_url(path) else "" for path in (base, target)]
    if protocols[0] != protocols[1]:
        return None
    base_path, path = ("/" + text.partition("://")[2] for text in (base, target))
    return posixpath.relpath(base_path, posixpath.dirname(path))
