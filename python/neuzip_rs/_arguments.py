"""Checks of the arguments that several public functions share."""

import operator
from typing import Final, SupportsIndex, cast

LEVELS: Final = ("fast", "default", "max")


def check_level(level: object) -> None:
    """Raises ValueError unless `level` names a compression level."""
    if level not in LEVELS:
        message = f"level must be 'fast', 'default' or 'max', not {level!r}"
        raise ValueError(message)


def check_threads(threads: object) -> None:
    """Raises TypeError or ValueError unless `threads` is None or a positive integer."""
    if threads is None:
        return
    if _integer("threads", threads) < 1:
        message = f"threads must be at least 1, not {threads!r}"
        raise ValueError(message)


def check_limit(limit: object) -> None:
    """Raises TypeError or ValueError unless `limit` is None or a number of bytes."""
    if limit is None:
        return
    if _integer("max_output_size", limit) < 0:
        message = f"max_output_size must not be negative, not {limit!r}"
        raise ValueError(message)


def _integer(argument: str, value: object) -> int:
    # True would pass as 1, which nobody means.
    if isinstance(value, bool):
        message = f"{argument} must be an int, not {value!r}"
        raise TypeError(message)
    try:
        return operator.index(cast("SupportsIndex", value))
    except TypeError:
        message = f"{argument} must be an int, not {value!r}"
        raise TypeError(message) from None
