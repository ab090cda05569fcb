"""What a PATH on the command line is, and where its result goes."""

import errno
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Final

from neuzip_rs.cli.session import UsageError

_MARK: Final = ".nz"
# Ours, and zipnn's, which is read as well.
_MARKS: Final = (_MARK, ".znn")
_SAFETENSORS: Final = ".safetensors"
_FOLDER_MARK: Final = "-nz"
# Names in these folders stand for open files, wherever they lead to: renaming something to
# /dev/stdout would replace the device.
_DEVICE_FOLDERS: Final = frozenset({"/dev", "/dev/fd", "/proc/self/fd"})


class SourceKind(Enum):
    """How something is read."""

    STREAM = auto()
    FILE = auto()
    FOLDER = auto()


def source_kind(path: str) -> SourceKind:
    """Tells streams (standard input, pipes, devices), files and folders apart.

    Raises:
        FileNotFoundError: There is nothing.
    """
    location = Path(path)
    if path == "-" or str(location.parent) in _DEVICE_FOLDERS:
        return SourceKind.STREAM
    # The error names the path as the user wrote it.
    location.stat()
    if location.is_dir():
        return SourceKind.FOLDER
    return SourceKind.FILE if location.is_file() else SourceKind.STREAM


def compressed_name(name: str, kind: SourceKind, content: str) -> str:
    """The name of the compressed file or folder.

    Args:
        name: Name of the original.
        kind: File or folder.
        content: What `content_kind` says about a file.
    """
    if kind is SourceKind.FOLDER:
        return name + _FOLDER_MARK
    stem, suffix = name[: -len(_SAFETENSORS)], name[-len(_SAFETENSORS) :]
    if content == "safetensors" and suffix.lower() == _SAFETENSORS:
        return stem + _MARK + suffix
    return name + _MARK


def _without(mark: str, name: str) -> str:
    """The name without the mark, which is at its end or before ".safetensors"."""
    stem, suffix = name[: -len(_SAFETENSORS)], name[-len(_SAFETENSORS) :]
    if suffix.lower() == _SAFETENSORS and stem.lower().endswith(mark):
        return stem[: -len(mark)] + suffix
    return name.removesuffix(mark)


def original_name(name: str, kind: SourceKind) -> str:
    """The name that compressing has made this one from.

    Raises:
        UsageError: It is no such name.
    """
    if kind is SourceKind.FOLDER:
        original = name.removesuffix(_FOLDER_MARK)
    else:
        original = next((s for mark in _MARKS if (s := _without(mark, name)) != name), name)
    if original in ("", name):
        endings = "-nz" if kind is SourceKind.FOLDER else ".nz.safetensors or .nz"
        message = f"{name}: no name ending in {endings}; say with -o where to write"
        raise UsageError(message)
    return original


@dataclass(slots=True)
class Places:
    """Where results go: what -o and -f say, and what has been written in this run."""

    output: str | None
    force: bool
    several: bool
    _taken: set[Path] = field(default_factory=set)

    def check(self, paths: Sequence[str], *, remove: bool, as_json: bool) -> None:
        """Checks the options that depend on each other, before anything is done.

        Args:
            paths: The PATHs.
            remove: Whether sources are to be removed (--rm).
            as_json: Whether results are JSON (--json).

        Raises:
            UsageError: They make no sense together.
        """
        output = self.output
        if self.several and output is not None and not Path(output).is_dir():
            message = f"-o {output}: for several PATHs this must be a folder that exists"
            raise UsageError(message)
        if paths.count("-") > 1:
            message = "standard input can be read once"
            raise UsageError(message)
        to_output = output == "-" or ("-" in paths and output is None)
        if as_json and to_output:
            message = "--json would be mixed with the data on standard output"
            raise UsageError(message)
        if remove and (to_output or "-" in paths or (output and is_device(Path(output)))):
            message = "--rm needs files: a stream cannot be read again"
            raise UsageError(message)

    def of_fetched(self) -> "Places":
        """The places of what comes from elsewhere: beside nothing, so in this folder."""
        if self.output is not None:
            return self
        return Places(".", self.force, several=True, _taken=self._taken)

    def target(self, source: str, name: str | None) -> Path | None:
        """Where the result of a file or stream goes, None for standard output.

        Args:
            source: The PATH.
            name: The name that the result has unless -o says otherwise; None if there is none.

        Raises:
            UsageError: Nobody can know, or the output is the source.
            FileExistsError: Something is there.
        """
        if self.output == "-" or (self.output is None and source == "-"):
            return None
        if self.output is None:
            target = Path(source).with_name(_required(source, name))
        elif Path(self.output).is_dir():
            target = Path(self.output) / _required(source, name)
        elif self.output.endswith("/"):
            message = f"-o {self.output}: no such folder"
            raise UsageError(message)
        else:
            target = Path(self.output)
        if not is_device(target):
            self._take(source, target)
            self._check_file(target)
        return target

    def folder_target(self, source: str, name: str | None) -> Path:
        """Where the result of a folder goes.

        Args:
            source: The PATH.
            name: The name that the result has unless -o says otherwise; None if there is none.

        Raises:
            UsageError: It cannot go there.
        """
        if self.output == "-":
            message = f"{source}: a folder cannot go to standard output"
            raise UsageError(message)
        if self.output is None:
            target = located(source).with_name(_required(source, name))
        elif self.several:
            target = Path(self.output) / _required(source, name)
        else:
            # Exactly this place, also if it exists, so that a second run finds it there.
            target = located(self.output)
        self._take(source, target)
        return target

    def _take(self, source: str, target: Path) -> None:
        if source != "-" and target.exists() and target.samefile(source):
            message = f"{source}: the output would be the source"
            raise UsageError(message)
        if target.absolute() in self._taken:
            message = f"{target} was just written from another PATH"
            raise FileExistsError(message)
        self._taken.add(target.absolute())

    def _check_file(self, target: Path) -> None:
        if not target.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such folder", str(target.parent))
        if target.is_dir():
            message = f"{target} is a folder"
        elif target.exists() and not target.is_file():
            message = f"{target} is no regular file"
        elif not self.force and (target.exists() or target.is_symlink()):
            message = f"{target} exists already; -f replaces it"
        else:
            return
        raise FileExistsError(message)


def located(source: str) -> Path:
    """The path of a source, with a name to derive another one from."""
    path = Path(source)
    # "." and ".." have no name of their own.
    return path if path.name not in ("", "..") else path.resolve()


def is_device(path: Path) -> bool:
    """Whether writing goes into what is there: a pipe or a device, not a file to replace."""
    return (str(path.parent) in _DEVICE_FOLDERS and path.exists()) or (
        path.is_fifo() or path.is_char_device()
    )


def _required(source: str, name: str | None) -> str:
    if name is None:
        message = f"{source}: nothing to name the output after; name it with -o"
        raise UsageError(message)
    return name
