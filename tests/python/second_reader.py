"""Restores a compressed file without the package, slowly: the reader written from the pages alone.

    python -m tests.python.second_reader FILE -o ORIGINAL [--base BASE]

from the root of the repository; it needs Python and xxhash. FILE is a compressed .safetensors file,
a .nz file or a bare stream, with every mode, with deltas and references to files beside it. A base,
and that of a base, is looked for where the file says, unless it is named.

It was written from docs/format.md and docs/format-files.md, shares no code with the package, and
checks every rule of the pages. The tests hold it against the package (test_second_decoder.py,
test_second_files.py), so it says what the pages mean where their words leave a doubt.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.python import second_files as files


class Beside(Mapping[str, bytes]):
    """The files in a folder and below, by relative name, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __getitem__(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes()
        except OSError:
            raise KeyError(name) from None

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (self._folder / name).is_file()

    def __iter__(self) -> Iterator[str]:
        paths = (path for path in self._folder.rglob("*") if path.is_file())
        return (path.relative_to(self._folder).as_posix() for path in paths)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def original(path: Path, base: Path | None = None) -> bytes:
    """The original of a file; of a plain .safetensors file, the file itself.

    Raises:
        ValueError: The file breaks a rule of the pages, which the message names.
    """
    file, beside = path.read_bytes(), Beside(path.parent)
    kind = files.kind(file)
    if kind == "safetensors":
        return file
    if kind != "neuzip-safetensors":
        return files.restore(file, beside)
    base = base or named_base(path, file)
    return files.restore_safetensors(file, original(base) if base else b"", beside)


def named_base(path: Path, file: bytes) -> Path | None:
    """The file that the entry of a compressed file says is its base, if it is one that is there."""
    entry = files.base_entry(file)
    _, _, relative = (entry or "").partition(" ")
    base = path.parent / relative
    return base if relative and base.is_file() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("-o", "--output", type=Path, help="standard output unless given")
    parser.add_argument("--base", type=Path, help="what FILE has the differences from")
    arguments = parser.parse_args()
    try:
        restored = original(arguments.file, arguments.base)
    except ValueError as error:
        sys.exit(f"{arguments.file}: not as the page has it: {error or type(error).__name__}")
    if arguments.output:
        arguments.output.write_bytes(restored)
    else:
        sys.stdout.buffer.write(restored)


if __name__ == "__main__":
    main()
