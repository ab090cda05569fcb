"""`neuzip info`."""

from pathlib import Path
from typing import Any

from neuzip_rs.cli import options
from neuzip_rs.cli.contents import describe_directory, describe_file
from neuzip_rs.cli.places import SourceKind, located, source_kind
from neuzip_rs.cli.report import percent, print_table, printable, size
from neuzip_rs.cli.session import Session
from neuzip_rs.cli.streams import spooled_source

_HEADINGS = (
    *("tensor", "dtype", "shape", "size", "compressed", "ratio"),
    *("modes", "entropy", "chunks"),
)
_NUMBERS = (3, 4, 5, 7, 8)
_FOLDED = (0, 6)


def info(
    paths: options.Paths,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Show what is in files and directories, compressed or not.

    The table has one line per tensor: entropy is in bits per value of the planes that are coded.

    --json prints: path, kind (safetensors, neuzip-safetensors, neuzip-file, neuzip-tensor, other
    or directory), original_bytes, compressed_bytes and ratio (null if it is not compressed), and
    tensors, each with name, dtype, shape, original_bytes, compressed_bytes, ratio, body, modes,
    features, entropy_bits, chunks and chunk_bytes (null where there is nothing to say); for
    .safetensors also metadata and base (identity and path of the model that it holds differences
    from, or null), for a neuzip-file also frames. A directory has files instead: the
    same objects, their path relative to it. After an error: path and error.
    """
    session = Session(quiet=quiet, as_json=as_json, bar=not no_progress)
    session.run(paths, lambda path: _show(session, path))


def _show(session: Session, path: str) -> None:
    kind = source_kind(path)
    if kind is SourceKind.FOLDER:
        facts = {"path": path, **describe_directory(located(path))}
    elif kind is SourceKind.FILE:
        facts = {"path": path, **describe_file(Path(path))}
    else:
        with (
            session.progress("reading", path) as progress,
            spooled_source(path, progress) as copy,
        ):
            facts = {"path": path, **describe_file(copy)}
    if not session.as_json:
        for part in facts.get("files", [facts]):
            _print_file(part)
        if "files" in facts:
            print(_totals(facts))
    session.result(facts)


def _print_file(facts: dict[str, Any]) -> None:
    print(_totals(facts))
    if not facts["tensors"]:
        return
    print_table(
        _HEADINGS, [_row(tensor) for tensor in facts["tensors"]], right=_NUMBERS, folded=_FOLDED
    )
    print()


def _totals(facts: dict[str, Any]) -> str:
    original, compressed = facts["original_bytes"], facts["compressed_bytes"]
    line = f"{facts['path']}: {facts['kind']}, {size(original)}"
    if compressed is None:
        return printable(f"{line}, not compressed")
    line += f", compressed {size(compressed)} ({percent(compressed, original)})"
    base = facts.get("base")
    if base is not None:
        line += f", differences from {base['path'] or 'a base'} ({base['identity']})"
    return printable(line)


def _row(tensor: dict[str, Any]) -> list[str]:
    original, compressed = tensor["original_bytes"], tensor["compressed_bytes"]
    bits = tensor["entropy_bits"]
    return [
        tensor["name"],
        tensor["dtype"],
        " x ".join(str(extent) for extent in tensor["shape"]) or "scalar",
        size(original),
        "-" if compressed is None else size(compressed),
        "-" if compressed is None else percent(compressed, original),
        " ".join(tensor["modes"] or ()) or "-",
        "-" if bits is None else f"{bits:.3f}",
        "-" if tensor["chunks"] is None else str(tensor["chunks"]),
    ]
