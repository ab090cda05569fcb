"""What a `.distcp` file holds: an item is one tensor stream, and its descriptor says so.

The descriptor stands in the checkpoint's metadata next to the item's place, where torch keeps the
transforms of a stream: `neuzip/1`, and `neuzip/1:PATH` for an item whose base lies in the
checkpoint at PATH, relative to this one. A reader of torch's own refuses both by name.

Items are not streams that went through `torch.save` and a transform: that takes as long as
compressing does (0.2 s for 160 MB in 1122 tensors), and knows neither shape nor element type.
"""

import os
import posixpath
from collections.abc import Sequence
from typing import Final

from neuzip_rs._errors import UnsupportedVersionError

NAME: Final = "neuzip"
VERSION: Final = "1"
PLAIN: Final = f"{NAME}/{VERSION}"


def with_base(path: str) -> str:
    """The descriptor of an item with a base in the checkpoint at `path`."""
    return f"{PLAIN}:{path}"


def is_ours(descriptors: Sequence[str] | None) -> bool:
    """Whether an item is a tensor stream.

    Raises:
        UnsupportedVersionError: A newer release wrote it.
    """
    if not descriptors or not descriptors[0].startswith(NAME + "/"):
        return False
    version = descriptors[0].removeprefix(NAME + "/").partition(":")[0]
    if version != VERSION or len(descriptors) > 1:
        message = f"an item is stored as {list(descriptors)}, which this release cannot read"
        raise UnsupportedVersionError(message)
    return True


def base_of(descriptors: Sequence[str]) -> str | None:
    """Where the base of an item is, seen from its checkpoint; None if it needs none."""
    return descriptors[0].partition(":")[2] or None


def relative(base: str, checkpoint: str) -> str:
    """The path of a base as seen from a checkpoint; a URL elsewhere stays what it is."""
    base_protocol, _, base_path = base.rpartition("://")
    protocol, _, path = checkpoint.rpartition("://")
    if base_protocol != protocol:
        return base if base_protocol else f"file://{os.path.abspath(base)}"  # noqa: PTH100 - no links
    if protocol:
        return posixpath.relpath("/" + base_path, "/" + path)
    return os.path.relpath(os.path.abspath(base), os.path.abspath(path)).replace(os.sep, "/")  # noqa: PTH100


def resolve(base: str, checkpoint: str) -> str:
    """The path of a base, from what `relative` gave."""
    if "://" in base:
        return base.removeprefix("file://")
    protocol, separator, path = checkpoint.rpartition("://")
    if separator:
        joined = posixpath.normpath(posixpath.join("/" + path, base))
        return protocol + separator + joined.removeprefix("/")
    return os.path.normpath(os.path.join(os.path.abspath(checkpoint), base))  # noqa: PTH100, PTH118
