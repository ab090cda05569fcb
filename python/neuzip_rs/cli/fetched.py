"""PATHs on a hub: `hf://org/model` is downloaded, and what comes of it goes into this folder."""

import sys
from pathlib import Path
from typing import NamedTuple

from neuzip_rs.cli.session import Session, UsageError
from neuzip_rs.hub import HubPath, download, is_hub_path

__all__ = ["Fetched", "fetch", "is_hub_path"]


class Fetched(NamedTuple):
    """A downloaded file or folder."""

    local: Path
    """Where it is: in a cache, under a name of its own."""
    name: str
    """What it is called on the hub."""


def fetch(path: str, session: Session, *, remove: bool) -> Fetched:
    """Downloads a PATH.

    Args:
        path: `hf://org/model`, or a file in it.
        session: Says whether the user wants to see progress.
        remove: Whether sources are to be removed (--rm).

    Raises:
        UsageError: It is no such address, or cannot be removed.
        OSError: There is no such model.
    """
    if remove:
        message = f"{path}: --rm removes files here, not on a hub"
        raise UsageError(message)
    try:
        name = HubPath.parse(path).name
    except ValueError as error:
        raise UsageError(str(error)) from error
    if not (session.bar and sys.stderr.isatty()):
        _silence()
    return Fetched(download(path), name)


def _silence() -> None:
    try:
        from huggingface_hub.utils import disable_progress_bars
    except ImportError:
        # Said by `download`, with what to do about it.
        return
    disable_progress_bars()
