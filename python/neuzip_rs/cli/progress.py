"""A progress bar on standard error, for people who look at it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from neuzip_rs.directory.content import Progress

_LABEL_WIDTH = 34
_NO = frozenset({"", "0", "false", "no", "off"})


@contextmanager
def progress_bar(label: str, *, shown: bool) -> Iterator[Progress]:
    """Shows a bar while the body runs.

    Args:
        label: What is being done.
        shown: Whether the user wants a bar; it takes a terminal as well.

    Yields:
        A function of the bytes done and the bytes in all (0: nobody knows).
    """
    if not shown or not _can_show():
        yield lambda _done, _total: None
        return
    # Here: importing rich takes longer than many a file.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr, highlight=False),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with bar:
        task = bar.add_task(shortened(label), total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total or None)

        yield show


def shortened(label: str) -> str:
    """The beginning and the end of what would fill the line."""
    if len(label) <= _LABEL_WIDTH:
        return label
    return label[:14] + "…" + label[15 - _LABEL_WIDTH :]


def _can_show() -> bool:
    hidden = os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", "").lower() not in _NO
    return not hidden and sys.stderr is not None and sys.stderr.isatty()
