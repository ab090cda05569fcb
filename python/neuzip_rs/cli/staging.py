"""Arguments that are URLs: a folder here in which everything has the place that it has there.

    s3://bucket/a/model.safetensors  ↔  TEMPORARY/s3/bucket/a/model.safetensors

A command works on the paths on the right, with its usual rules for names and for where a base is,
and what it has written is sent to the URLs on the left. Whoever reads its messages sees URLs.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from neuzip_rs.cli.places import Places as OutputPlaces
from neuzip_rs.cli.session import Session, UsageError
from neuzip_rs.directory.manifest import MANIFEST_NAME
from neuzip_rs.hub import is_hub_path
from neuzip_rs.models import MODELS_NAME
from neuzip_rs.remote import Places, is_url, local_path

_LAST: Final = frozenset({MANIFEST_NAME, MODELS_NAME})


class Staging:
    """The URLs among the arguments of a command, as a context manager."""

    def __init__(self, session: Session) -> None:
        """Makes nothing yet."""
        self._session = session
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._root = Path()
        self._known: set[Path] = set()
        self._bases: dict[str, str] = {}

    def __enter__(self) -> Self:
        """Returns the staging."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Removes the folder."""
        if self._folder is not None:
            self._folder.cleanup()

    def source(self, path: str) -> str:
        """The path here of something to read, which is fetched if it is at a URL.

        Raises:
            FileNotFoundError: There is nothing.
        """
        if not is_url(path):
            return local_path(path)
        known = self._bases.get(path)
        if known is not None:
            return known
        place = Places(path)
        target = self.place(path)
        with self._session.progress("fetching", place.name) as progress:
            place.fetch(target, progress)
        self._remember()
        self._bases[path] = str(target)
        return str(target)

    def output(self, path: str | None) -> str | None:
        """The path here of what -o names."""
        if path is None or not is_url(path):
            return path if path is None else local_path(path)
        target = self.place(path.rstrip("/"))
        if path.endswith("/") or Places(path).is_folder():
            target.mkdir(exist_ok=True)
        return str(target)

    def place(self, url: str) -> Path:
        """Where something at a URL is here; its folder exists afterwards."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="neuzip-")
            self._root = Path(self._folder.name).resolve()
            self._session.shown = self.shown
        protocol, _, path = url.partition("://")
        parts = [part for part in path.split("/") if part]
        if not parts or ".." in parts:
            message = f"{url}: no URL of a file or folder"
            raise UsageError(message)
        target = self._root.joinpath(protocol, *parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def is_inside(self, path: Path | None) -> bool:
        """Whether a path here stands for a URL."""
        return path is not None and self._folder is not None and self._root in path.parents

    def shown(self, text: str) -> str:
        """A text in which paths of the folder are the URLs that they stand for."""
        for protocol in self._root.iterdir():
            text = text.replace(f"{protocol}/", f"{protocol.name}://")
        return text

    def is_folder(self, path: str) -> bool:
        """Whether a path or URL is one of a folder."""
        return Places(path).is_folder() if is_url(path) else Path(local_path(path)).is_dir()

    def run(self, path: str, work: Callable[[str], None], *, overwrite: bool) -> None:
        """Does something with what is at a path or URL, and sends what came of it.

        Raises:
            FileExistsError: Something is there already, and may not be replaced.
        """
        # Addresses on a hub have a cache of their own, and nothing is sent back there.
        work(path if is_hub_path(path) else self.source(path))
        self.send(overwrite=overwrite)

    def send(self, *, overwrite: bool) -> None:
        """Sends what has been written since the last time."""
        places = {path: self._remote(path) for path in self._files() - self._known}
        if not overwrite:
            for place in places.values():
                place.check_free()
        # A folder is complete when the file that lists the others is there.
        for path in sorted(places, key=lambda path: (path.name in _LAST, path)):
            with self._session.progress("sending", path):
                places[path].send(path)
        self._remember()

    def _remote(self, path: Path) -> Places:
        protocol, *parts = path.relative_to(self._root).parts
        return Places(f"{protocol}://{'/'.join(parts)}")

    def _remember(self) -> None:
        self._known |= self._files()

    def _files(self) -> set[Path]:
        if self._folder is None:
            return set()
        return {path for path in self._root.rglob("*") if path.is_file()}


def staged_places(
    staging: Staging, paths: Sequence[str], output: str | None, force: bool, *, remove: bool
) -> OutputPlaces:
    """Where results go, URLs included.

    Raises:
        UsageError: The options make no sense for URLs.
    """
    if remove and any(map(is_url, (*paths, *([] if output is None else [output])))):
        message = "--rm needs files of this machine"
        raise UsageError(message)
    if output is None:
        for path in paths:
            if path.startswith(("http://", "https://")):
                message = f"{path}: cannot be written next to; say with -o where to write"
                raise UsageError(message)
    return OutputPlaces(staging.output(output), force, several=len(paths) > 1)
