"""The options that several commands share."""

import re
from enum import StrEnum
from typing import Annotated, Final

import typer

from neuzip_rs.cli.session import UsageError


class Level(StrEnum):
    """How hard to try."""

    FAST = "fast"
    DEFAULT = "default"
    MAX = "max"


Paths = Annotated[
    list[str],
    typer.Argument(metavar="PATH...", help="Files or model directories; - is standard input."),
]
Output = Annotated[
    str | None,
    typer.Option("-o", "--output", metavar="OUT", help="Where to write; - is standard output."),
]
Force = Annotated[bool, typer.Option("-f", "--force", help="Replace an existing output.")]
Verbose = Annotated[
    bool, typer.Option("-v", "--verbose", help="Say of each tensor why it is stored as it is.")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")]
Threads = Annotated[
    int,
    typer.Option(
        "-T",
        "--threads",
        metavar="N",
        min=0,
        max=4096,
        show_default=False,
        help="Use N threads; 0, the default: NEUZIP_NUM_THREADS, or every core.",
    ),
]
LevelOption = Annotated[
    Level, typer.Option("--level", help="The smaller, the slower: fast, default, max.")
]
Base = Annotated[
    str | None,
    typer.Option(
        "--base", metavar="PATH", help="Model that the differences are from: a file or directory."
    ),
]
KeyframeEvery = Annotated[
    int | None,
    typer.Option(
        "--keyframe-every",
        metavar="N",
        min=1,
        max=256,
        help="Store checkpoints as differences from the one before, every Nth as it is.",
    ),
]
Models = Annotated[
    bool, typer.Option("--models", help="Each PATH is a folder of models, done one by one.")
]
Remove = Annotated[
    bool, typer.Option("--rm", help="Remove each source after checking what was written.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object per PATH, each on its line.")
]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="Show no progress bar.")]
MaxOutputSize = Annotated[
    str | None,
    typer.Option(
        "--max-output-size",
        metavar="N[K|M|G]",
        help="Refuse to decompress to more bytes (K = 1024).",
    ),
]

_SIZE: Final = re.compile(r"(\d+)([KMGT]?)(?:I?B)?", re.IGNORECASE | re.ASCII)
_UNITS: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def thread_count(option: int) -> int | None:
    """What the library calls this many threads."""
    return option or None


def size_limit(option: str | None) -> int | None:
    """The bytes that --max-output-size names.

    Raises:
        UsageError: It names none.
    """
    if option is None:
        return None
    match = _SIZE.fullmatch(option)
    if match is None:
        message = f"--max-output-size: {option!r} is no size like 500M or 2G"
        raise UsageError(message)
    return int(match[1]) << _UNITS[match[2].upper()]
