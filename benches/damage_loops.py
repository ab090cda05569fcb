"""References that go round in circles, made of real files by changing names in them.

The names have the same length as before, and headers with checksums get new ones.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import neuzip_rs
import neuzip_rs.directory
import neuzip_rs.safetensors
from benches.damage_subjects import plain_file, weights
from benches.damage_trials import MAGIC, forged

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BYTES = 64 << 10


def renamed(path: Path, old: bytes, new: bytes) -> None:
    """Changes a name in every stream header that has it, which gets a new checksum."""
    data = path.read_bytes()
    start = data.find(MAGIC)
    changed = data[:start] + data[start:].replace(old, new)
    if changed == data or len(old) != len(new):
        message = f"{path}: {old!r} cannot be renamed"
        raise AssertionError(message)
    while start >= 0:
        changed = forged(changed, start)
        start = changed.find(MAGIC, start + 1)
    path.write_bytes(changed)


def a_tensor_that_repeats_itself(folder: Path) -> None:
    """`layer.tied` is stored as a reference to `layer.half`."""
    packed = _packed(folder, "m")
    renamed(packed, b"layer.half", b"layer.tied")
    neuzip_rs.safetensors.load_file(packed)


def a_file_that_is_its_own_base(folder: Path) -> None:
    """The entry of the base leads back to the file."""
    _, new = _pair(folder)
    _rebase(new, "old.nz.safetensors", "new.nz.safetensors")
    neuzip_rs.safetensors.load_file(new)


def two_files_that_are_bases_of_each_other(folder: Path) -> None:
    """Each is the base of the other."""
    old, new = _pair(folder)
    copy = new.read_bytes()
    old.write_bytes(copy.replace(b"old.nz.safetensors", b"new.nz.safetensors"))
    neuzip_rs.safetensors.load_file(new)


def a_file_that_refers_to_itself(folder: Path) -> None:
    """A tensor is stored as the one of its own file."""
    packed = _directory(folder)
    renamed(packed / "copy.safetensors", b"base.safetensors", b"copy.safetensors")
    neuzip_rs.safetensors.load_file(packed / "copy.safetensors")


def two_files_that_refer_to_each_other(folder: Path) -> None:
    """Tensors of two files are stored as those of the other."""
    packed = _directory(folder)
    shutil.copy(packed / "copy.safetensors", packed / "base.safetensors")
    renamed(packed / "base.safetensors", b"base.safetensors", b"copy.safetensors")
    neuzip_rs.safetensors.load_file(packed / "copy.safetensors")


def a_chain_of_three_hundred_bases(folder: Path) -> None:
    """More files than a reader follows; each names the one before."""
    old, new = _pair(folder)
    content = new.read_bytes()
    name = len("old.nz.safetensors")
    before = old
    for number in range(300):
        path = folder / f"{number:0{name - 15}}.nz.safetensors"
        path.write_bytes(content.replace(old.name.encode(), before.name.encode()))
        before = path
    neuzip_rs.safetensors.load_file(before)


def _packed(folder: Path, stem: str) -> Path:
    source, target = folder / f"{stem}.safetensors", folder / f"{stem}.nz.safetensors"
    plain_file(source, weights(BYTES, 2, 0.0005))
    neuzip_rs.safetensors.compress_file(source, target)
    return target


def _pair(folder: Path) -> tuple[Path, Path]:
    old = _packed(folder, "old")
    source, target = folder / "new.safetensors", folder / "new.nz.safetensors"
    plain_file(source, weights(BYTES, 3, 0.0005))
    neuzip_rs.safetensors.compress_file(source, target, base=old)
    for plain in (folder / "old.safetensors", source):
        plain.unlink()
    return old, target


def _rebase(path: Path, old: str, new: str) -> None:
    data = path.read_bytes()
    if data.count(old.encode()) != 1:
        message = f"{path}: names no base"
        raise AssertionError(message)
    path.write_bytes(data.replace(old.encode(), new.encode()))


def _directory(folder: Path) -> Path:
    model, packed = folder / "model", folder / "model-nz"
    model.mkdir()
    plain_file(model / "base.safetensors", weights(BYTES, 2, 0.0005))
    shutil.copy(model / "base.safetensors", model / "copy.safetensors")
    neuzip_rs.directory.compress_directory(model, packed)
    return packed


def loops(scratch: Path) -> dict[str, str]:
    """Makes each circle and reads it.

    Args:
        scratch: A folder to work in.

    Returns:
        What was raised, by what was made.
    """
    found = {}
    circles: tuple[Callable[[Path], None], ...] = (
        a_tensor_that_repeats_itself,
        a_file_that_is_its_own_base,
        two_files_that_are_bases_of_each_other,
        a_file_that_refers_to_itself,
        two_files_that_refer_to_each_other,
        a_chain_of_three_hundred_bases,
    )
    for circle in circles:
        folder = scratch / circle.__name__
        folder.mkdir()
        try:
            circle(folder)
            outcome = "it was read"
        except neuzip_rs.NeuzipError as error:
            text = str(error).replace(f"{folder}/", "")
            outcome = f"`{type(error).__name__}: {text}`"
        found[circle.__name__.replace("_", " ")] = outcome
    return found
