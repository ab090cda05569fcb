"""What `compress` and `decompress` say when something is done."""

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter

from neuzip_rs.cli.places import is_device
from neuzip_rs.cli.report import percent, ratio, size
from neuzip_rs.cli.session import Session


def report(
    session: Session,
    path: str,
    target: Path | None,
    kind: str,
    *,
    original: int,
    compressed: int,
    restored: bool,
    started: float,
    more: Mapping[str, object],
) -> None:
    """Reports a converted file or directory: its sizes, and the speed in original bytes.

    Args:
        session: Where to.
        path: The PATH on the command line, "-" for standard input.
        target: Where the result is, None for standard output.
        kind: What the PATH is.
        original: Bytes before compression.
        compressed: Bytes after it.
        restored: Whether the original is the result rather than the source.
        started: When the work began.
        more: What only --json shows.
    """
    seconds = perf_counter() - started
    facts: dict[str, object] = {
        "path": path,
        "output": None if target is None else str(target),
        "kind": kind,
        "original_bytes": original,
        "compressed_bytes": compressed,
        "ratio": ratio(compressed, original),
        "seconds": round(seconds, 6),
    }
    source = "standard input" if path == "-" else path
    output = "standard output" if target is None else str(target)
    before, after = (compressed, original) if restored else (original, compressed)
    speed = f", {size(int(original / seconds))}/s" if original and seconds > 0 else ""
    sentence = (
        f"{source} -> {output}: {size(before)} -> {size(after)} "
        f"({percent(compressed, original)}), {seconds:.2f} s{speed}"
    )
    session.result(facts | dict(more), sentence, aside=target is None or is_device(target))
