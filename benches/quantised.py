"""Sizes of quantised models next to zstd -19: `python -m benches.quantised FILE...`.

Takes files as they are; docs/design.md says which were measured. Prints a table in Markdown.
"""

import sys
import tempfile
from pathlib import Path

import zstandard

from neuzip_rs import _native

_LEVELS = ("default", "max")


def sizes(path: Path, folder: Path) -> list[float]:
    """Percent that zstd -19 and each level take; every result is restored and compared."""
    data = path.read_bytes()
    found = [len(zstandard.ZstdCompressor(19).compress(data))]
    compressed, restored = folder / "compressed", folder / "restored"
    for level in _LEVELS:
        _native.compress_file(str(path), str(compressed), level=level, overwrite=True)
        _native.decompress_file(str(compressed), str(restored), overwrite=True)
        if restored.read_bytes() != data:
            message = f"{path}: not the same bytes"
            raise ValueError(message)
        found.append(compressed.stat().st_size)
    return [100 * size / max(1, len(data)) for size in found]


def main(paths: list[str]) -> None:
    """Prints the table."""
    headings = ["file", "MB", "zstd -19", *(f"`{level}`" for level in _LEVELS)]
    print(f"| {' | '.join(headings)} |\n|---{'|--:' * (len(headings) - 1)}|")
    with tempfile.TemporaryDirectory() as folder:
        for path in map(Path, paths):
            shares = " | ".join(f"{share:.2f}" for share in sizes(path, Path(folder)))
            print(f"| {path.name} | {path.stat().st_size / 1e6:.2f} | {shares} |")


if __name__ == "__main__":
    main(sys.argv[1:])
