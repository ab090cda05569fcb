"""Puts measured tables into the README, between markers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def block(name: str) -> re.Pattern[str]:
    """Returns what matches the block between `<!-- name -->` and `<!-- /name -->`."""
    return re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)


def replace_block(readme: Path, name: str, text: str) -> None:
    """Replaces what stands between two markers.

    Args:
        readme: The file to change.
        name: What the markers say.
        text: The new text, which ends in a line break.

    Raises:
        ValueError: The markers are not there.
    """
    changed, count = block(name).subn(
        lambda match: match[1] + text + match[2], readme.read_text(encoding="utf-8")
    )
    if count != 1:
        message = f"{readme}: expected one block between <!-- {name} --> and its end"
        raise ValueError(message)
    readme.write_text(changed, encoding="utf-8")
