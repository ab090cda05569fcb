"""Tables of fields: where the bits of a file go."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from neuzip_rs.cli.contents import merged_fields
from neuzip_rs.cli.report import percent, print_table, printable, size

_HEADINGS: Final = (
    *("dtype", "field", "stored as", "bits", "original", "stored", "of it", "of the file"),
    *("entropy", "stored bits"),
)
_NUMBERS: Final = (3, 4, 5, 6, 7, 8, 9)
_BODIES: Final = {
    "reference": "repeats of tensors",
    "external": "tensors of other files",
    "constant": "constant tensors",
}


def print_fields(tensors: Sequence[dict[str, Any]], original: int, compressed: int) -> None:
    """Prints what the fields of all tensors take together.

    Args:
        tensors: As `describe_file` gives them.
        original: Bytes of the original file.
        compressed: Bytes of the compressed file.
    """
    merged: list[tuple[str, dict[str, Any]]] = []
    for dtype in sorted({tensor["dtype"] for tensor in tensors}):
        fields = (field for tensor in tensors if tensor["dtype"] == dtype for field in _of(tensor))
        merged += [(dtype, field) for field in merged_fields(fields)]
    merged.sort(key=lambda pair: -pair[1]["stored_bytes"])
    in_fields: int = sum(field["stored_bytes"] for _, field in merged)
    rows = [_row(dtype, field, original) for dtype, field in merged]
    for body in _BODIES:
        alike = [tensor for tensor in tensors if tensor["body"] == body]
        if alike:
            nbytes = sum(tensor["original_bytes"] for tensor in alike)
            stored = sum(tensor["compressed_bytes"] for tensor in alike)
            name = _BODIES[body]
            rows.append(_plain_row(name, body, nbytes, stored, original))
            in_fields += stored
    rest = compressed - in_fields
    rows.append(_plain_row("headers, tables, offsets, hashes", "", None, rest, original))
    print_table(_HEADINGS, rows, right=_NUMBERS, folded=(1,))


def print_reasons(tensors: Iterable[dict[str, Any]]) -> None:
    """Prints for each tensor why it is stored as it is."""
    for tensor in tensors:
        stored, original = tensor["compressed_bytes"], tensor["original_bytes"]
        share = "" if stored is None else f": {size(stored)}, {percent(stored, original)}"
        print(printable(f"{tensor['name']}{share}"))
        for reason in tensor["why"] or ():
            print(printable(f"    {reason}"))


def _of(tensor: dict[str, Any]) -> list[dict[str, Any]]:
    return tensor["fields"] or []


def _row(dtype: str, field: dict[str, Any], file_bytes: int) -> list[str]:
    elements, stored = field["elements"], field["stored_bytes"]
    original = field["bits"] * elements // 8
    measured = field["entropy_bits"]
    entropy = field["table_bits"] if measured is None else measured
    return [
        dtype,
        field["name"],
        field["mode"],
        str(field["bits"]),
        size(original),
        size(stored),
        percent(stored, original),
        percent(stored, file_bytes),
        "-" if entropy is None else f"{entropy:.3f}",
        f"{8 * stored / elements:.3f}" if elements else "-",
    ]


def _plain_row(
    name: str, mode: str, original: int | None, stored: int, file_bytes: int
) -> list[str]:
    return [
        "",
        name,
        mode,
        "",
        "" if original is None else size(original),
        size(stored),
        "" if original is None else percent(stored, original),
        percent(stored, file_bytes),
        "",
        "",
    ]
