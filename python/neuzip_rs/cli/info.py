"""`neuzip info`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from neuzip_rs.cli import options
from neuzip_rs.cli.contents import describe_directory, describe_file
from neuzip_rs.cli.fields import print_fields, print_reasons
from neuzip_rs.cli.places import SourceKind, located, source_kind
from neuzip_rs.cli.report import percent, print_table, printable, size
from neuzip_rs.cli.session import Session
from neuzip_rs.cli.staging import Staging
from neuzip_rs.cli.streams import spooled_source

_HEADINGS = (
    *("tensor", "dtype", "shape", "size", "compressed", "ratio"),
    *("modes", "entropy", "chunks"),
)
_NUMBERS = (3, 4, 5, 7, 8)
_FOLDED = (0, 6)

Measure = Annotated[
    bool,
    typer.Option("--measure", help="Decode some chunks of each tensor to measure all entropies."),
]


def info(
    paths: options.Paths,
    verbose: options.Verbose = False,
    measure: Measure = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Show what is in files and directories, compressed or not, and where the bits go.

    The first table adds up the fields of all tensors: what they had, what they take, and their
    entropy next to what is stored, in bits per value; without --measure only tables of coded fields
    know an entropy. The second table has one line per tensor; -v says of each why.

    --json prints: path, kind (safetensors, neuzip-safetensors, neuzip-file, neuzip-tensor, other
    or directory), original_bytes, compressed_bytes and ratio (null if it is not compressed), and
    tensors, each with name, dtype, shape, original_bytes, compressed_bytes, ratio, body, modes,
    features, entropy_bits, chunks and chunk_bytes, repeats, fields (each with name, mode, bits,
    elements, stored_bytes, overhead_bytes, table_bits, entropy_bits), other_bytes, scale_offsets
    (columns, row_offsets, column_offsets, stored_bytes), alternatives (none here) and why (null
    where there is nothing to say); for
    .safetensors also metadata and base (identity and path of the model that it holds differences
    from, or null), for a neuzip-file also frames. A directory has files instead: the
    same objects, their path relative to it. After an error: path and error.
    """
    session = Session(quiet=quiet, as_json=as_json, bar=not no_progress)
    with Staging(session) as staging:
        session.run(
            paths,
            lambda path: _show(
                session, path, staging.source(path), verbose=verbose, measure=measure
            ),
        )


def _show(session: Session, name: str, path: str, *, verbose: bool, measure: bool) -> None:
    kind = source_kind(path)
    if kind is SourceKind.FOLDER:
        facts = {"path": name, **describe_directory(located(path), measure=measure)}
    elif kind is SourceKind.FILE:
        facts = {"path": name, **describe_file(Path(path), measure=measure)}
    else:
        with (
            session.progress("reading", path) as progress,
            spooled_source(path, progress) as copy,
        ):
            facts = {"path": name, **describe_file(copy, measure=measure)}
    if not session.as_json:
        print_facts(facts, verbose=verbose)
    session.result(facts)


def print_facts(facts: dict[str, Any], *, verbose: bool, verb: str = "compressed") -> None:
    """Prints what is known of a file or directory.

    Args:
        facts: The JSON object.
        verbose: Say why each tensor is stored as it is.
        verb: What comes before the compressed size.
    """
    for part in facts.get("files", [facts]):
        print(_totals(part, verb))
        _print_tensors(part, verbose=verbose)
    if "files" in facts:
        print(_totals(facts, verb))
        tensors = [tensor for part in facts["files"] for tensor in part["tensors"]]
        if verbose and facts["compressed_bytes"] is not None and tensors:
            print_fields(tensors, facts["original_bytes"], facts["compressed_bytes"])


def _print_tensors(facts: dict[str, Any], *, verbose: bool) -> None:
    tensors = facts["tensors"]
    if not tensors:
        return
    if facts["compressed_bytes"] is not None:
        print_fields(tensors, facts["original_bytes"], facts["compressed_bytes"])
        print()
    print_table(_HEADINGS, [_row(tensor) for tensor in tensors], right=_NUMBERS, folded=_FOLDED)
    print()
    if verbose:
        print_reasons(tensors)
        print()


def _totals(facts: dict[str, Any], verb: str) -> str:
    original, compressed = facts["original_bytes"], facts["compressed_bytes"]
    line = f"{facts['path']}: {facts['kind']}, {size(original)}"
    if compressed is None:
        return printable(f"{line}, not compressed")
    line += f", {verb} {size(compressed)} ({percent(compressed, original)})"
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
