"""Numbers and names as people read them."""

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import JustifyMethod

# A table for a file or a pipe is as wide as it needs to be; in a narrow terminal lines may run
# over, because columns squeezed further say nothing any more.
_WIDE = 10_000
_NARROW = 120


def printable(text: str) -> str:
    """The text without what would control a terminal: names come from files of strangers."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
        for char in text
    )


def size(count: int) -> str:
    """A number of bytes, in decimal units."""
    value = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 999.5:
            return f"{count} B" if unit == "B" else f"{value:.{_decimals(value)}f} {unit}"
        value /= 1000
    return f"{value:.{_decimals(value)}f} TB"


def percent(part: int, whole: int) -> str:
    """A part of a whole."""
    return f"{100 * part / whole:.2f} %" if whole else "-"


def ratio(compressed: int | None, original: int) -> float | None:
    """Compressed size over original size, as everywhere in neuzip_rs; 1 for nothing."""
    if compressed is None:
        return None
    return round(compressed / original, 6) if original else 1.0


def print_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[int] = (),
    folded: Sequence[int] = (0,),
) -> None:
    """Prints a table.

    Args:
        headings: The first line.
        rows: The other ones.
        right: Columns aligned to the right.
        folded: Columns that take several lines in a terminal if need be.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout)
    console.width = max(console.width, _NARROW) if sys.stdout.isatty() else _WIDE
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, heading in enumerate(headings):
        justify: JustifyMethod = "right" if index in right else "left"
        # Text: a tensor called [red] is no markup.
        table.add_column(
            Text(heading), justify=justify, no_wrap=index not in folded, overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table, highlight=False)


def _decimals(value: float) -> int:
    return max(0, 2 - int(math.log10(value))) if value >= 1 else 2
