"""`neuzip bench`."""

from pathlib import Path
from typing import Any, Final

from neuzip_rs.cli import options
from neuzip_rs.cli.places import SourceKind, located, source_kind
from neuzip_rs.cli.report import percent, print_table, printable, size
from neuzip_rs.cli.session import Session, UsageError
from neuzip_rs.cli.staging import Staging

_COLUMNS: Final = {
    "compress": "compress",
    "decompress": "decompress",
    "unverified": "unverified",
    "fresh": "new memory",
}


def bench(
    paths: options.Paths,
    level: options.LevelOption = options.Level.DEFAULT,
    threads: options.Threads = 0,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Measure how fast and how well files compress on this machine, in memory.

    With one thread and with -T N (by default every core), next to memcpy and, if the zstandard
    package is installed, zstd, on the first 256 MiB of tensors; takes some 20 seconds. The codecs
    take turns in rounds, all have given back equal bytes before; printed are medians, and of the
    ratios to memcpy those within a round. Decompression: into memory in use, the same without
    checking hashes, and into new memory (zstd has only that).

    --json prints: path, kind, file_bytes, bytes (how many were measured), complete (whether these
    are all there are), tensors, memcpy_gbps, memcpy_fresh_gbps, rounds, and rows, each with name,
    threads, compressed_bytes, ratio (compressed / original), runs, and for each of compress,
    decompress, unverified and fresh ..._gbps (10^9 original bytes per second) and ..._x_memcpy; or
    name and missing. After an error: path and error.
    """
    session = Session(quiet=quiet, as_json=as_json, bar=not no_progress)
    count = options.thread_count(threads)
    with Staging(session) as staging:
        session.run(
            paths, lambda path: _bench(session, path, staging.source(path), level.value, count)
        )


def _bench(session: Session, name: str, path: str, level: str, threads: int | None) -> None:
    # Here: only this command needs it.
    from neuzip_rs.cli.measure import measure

    kind = source_kind(path)
    if kind is SourceKind.STREAM:
        message = f"{path}: only files and directories can be measured"
        raise UsageError(message)
    place = located(path) if kind is SourceKind.FOLDER else Path(path)
    with session.progress("measuring", path) as progress:
        facts: dict[str, Any] = {"path": name, **measure(place, level, threads, progress)}
    if not session.as_json:
        _print(facts)
    session.result(facts)


def _print(facts: dict[str, Any]) -> None:
    measured, file_bytes = facts["bytes"], facts["file_bytes"]
    part = "" if facts["complete"] else f", measured on the first {size(measured)} of tensors"
    print(printable(f"{facts['path']}: {facts['kind']}, {size(file_bytes)}{part}"))
    rows = [_row(row, measured) for row in facts["rows"]]
    memcpy, fresh = facts["memcpy_gbps"], facts["memcpy_fresh_gbps"]
    unit = f"{memcpy:.2f} (1.00x)"
    rows.append(["memcpy", "1", "", "", unit, unit, "", f"{fresh:.2f} ({fresh / memcpy:.2f}x)"])
    headings = ("", "threads", "compressed", "ratio", *_COLUMNS.values())
    print_table(headings, rows, right=tuple(range(1, len(headings))))
    print(f"GB/s of original bytes and (times memcpy), medians of {facts['rounds']} rounds")


def _row(row: dict[str, Any], measured: int) -> list[str]:
    if "missing" in row:
        return [row["name"], "", row["missing"], "", *[""] * len(_COLUMNS)]
    return [
        row["name"],
        str(row["threads"]),
        size(row["compressed_bytes"]),
        percent(row["compressed_bytes"], measured),
        *(_speed(row[f"{action}_gbps"], row[f"{action}_x_memcpy"]) for action in _COLUMNS),
    ]


def _speed(gbps: float | None, times: float | None) -> str:
    return "-" if gbps is None or times is None else f"{gbps:.2f} ({times:.2f}x)"
