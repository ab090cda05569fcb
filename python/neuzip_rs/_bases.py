"""Models that differences are taken from, and which checkpoint is whose base.

A compressed file says where its base lies, relative to itself, so that it can be restored without
being told. What is read while compressing may be another file than that: of a chain of checkpoints
the plain ones are read, and the compressed ones are named.
"""

import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypedDict

from neuzip_rs import _native

_NUMBER: Final = re.compile(r"(\d+)")
_KINDS: Final = frozenset({"safetensors", "neuzip-safetensors"})


class BaseArguments(TypedDict, total=False):
    """What the native functions that compress take."""

    base: str
    base_path: str


@dataclass(frozen=True, slots=True)
class Base:
    """A file or directory to take differences from."""

    path: Path
    """What is read now."""
    stays: Path | None
    """Where readers will find it; None if no path leads there."""

    @classmethod
    def at(cls, path: Path) -> "Base":
        """A base that stays where it is."""
        return cls(path, path)

    def of(self, name: str) -> "Base":
        """The base of a file of this name in a directory: that of the same name, else all."""
        if self.path.is_dir() and is_model(self.path / name):
            return Base(self.path / name, self.stays and self.stays / name)
        return self

    def arguments(self, target: Path | None) -> BaseArguments:
        """What to compress with.

        Args:
            target: The file that will be written; None for a stream, which can name no place.
        """
        if target is None or self.stays is None:
            return {"base": str(self.path)}
        return {"base": str(self.path), "base_path": relative(self.stays, target)}


def check_base(base: str | os.PathLike[str]) -> None:
    """Checks that a base that somebody has named is one.

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: It is no file of tensors, and no directory with any in it.
    """
    path = Path(base)
    if path.is_dir():
        if any(is_model(file) for file in path.rglob("*") if file.is_file()):
            return
        message = f"{path}: no .safetensors file in this base"
    elif not path.exists():
        raise FileNotFoundError(errno.ENOENT, "no such base", str(path))
    elif is_model(path):
        return
    else:
        message = f"{path}: a base is a .safetensors file, plain or compressed, and this is none"
    raise ValueError(message)


def base_arguments(base: Base | None, target: Path | None) -> BaseArguments:
    """`Base.arguments`, or nothing without a base."""
    return {} if base is None else base.arguments(target)


def relative(base: Path, target: Path) -> str:
    """The path of a base as seen from the folder of a file, with slashes."""
    # Absolute, but links are not followed: the two may be moved together.
    return Path(os.path.relpath(base.absolute(), target.absolute().parent)).as_posix()


def base_in(base: Path | None, name: str) -> str | None:
    """The base to restore the file of this name in a directory with."""
    if base is None:
        return None
    return str(base / name if base.is_dir() and is_model(base / name) else base)


def files_needed(path: Path) -> Iterator[Path]:
    """The files of a model, and those that they are differences from, in turn.

    Args:
        path: A file, or a directory with files of tensors in it.
    """
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if is_model(file):
            yield file
            with closing(_native.SafetensorsFile(str(file))) as opened:
                yield from opened.base_files()


def is_model(path: Path) -> bool:
    """Whether a path is a .safetensors file, plain or compressed."""
    return path.is_file() and _native.content_kind(str(path)) in _KINDS


def in_order(names: Iterable[str]) -> list[str]:
    """Names in the order of the numbers in them: step-200 comes before step-1000."""
    return sorted(names, key=_key)


def chains(names: Iterable[str], keyframe_every: int) -> Mapping[str, str]:
    """Which file in a directory of checkpoints is the base of which.

    Checkpoints are the files and folders directly in the directory; those whose names differ in
    numbers only follow each other in the order of these.

    Args:
        names: Names of the files, relative to the directory.
        keyframe_every: Every so many checkpoints stand alone.

    Returns:
        The name of the base for each file that has one.
    """
    series: dict[tuple[str, str], list[str]] = {}
    for name in names:
        checkpoint, _, rest = name.partition("/")
        series.setdefault((_NUMBER.sub("0", checkpoint), rest), []).append(name)
    bases: dict[str, str] = {}
    for members in series.values():
        ordered = in_order(members)
        for index, name in enumerate(ordered):
            if index % keyframe_every:
                bases[name] = ordered[index - 1]
    return bases


def _key(name: str) -> tuple[tuple[int, str], ...]:
    parts = _NUMBER.split(name)
    # Text and numbers take turns, so that like is compared with like.
    return tuple((int(part) if index % 2 else 0, part) for index, part in enumerate(parts))
