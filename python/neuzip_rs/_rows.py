"""Indexing a tensor that is still compressed: decode the rows that are needed, index the rest.

A row is everything under one index of the first dimension. Rows lie one after the other in the
original bytes, so a range of rows is a range of bytes.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from neuzip_rs._arrays import Adapter, Array, adapter_for, decoded
from neuzip_rs._dtypes import ITEMSIZE, element_count

if TYPE_CHECKING:
    from typing_extensions import Buffer

Key: TypeAlias = Any
"""What stands in the brackets of `c[key]`: whatever a framework takes for an index."""
Read: TypeAlias = Callable[["Buffer", int], None]
"""Decodes original bytes from an offset on, as many as the buffer holds."""

# Rows further apart than this are decoded one by one: two chunks of the default size, so that no
# chunk is decoded twice and most of those in between are not decoded at all.
_SPARSE_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class _Plan:
    """The rows to decode, in ascending order, and what to do with them then."""

    rows: range
    reverse: bool
    rest: tuple[Key, ...]
    """What to index the decoded rows with."""

    @property
    def span(self) -> int:
        """The number of rows from the first to the last, those in between included."""
        return self.rows[-1] - self.rows[0] + 1 if self.rows else 0


def decode_rows(
    adapter: Adapter, dtype: str, shape: tuple[int, ...], key: Key, read: Read
) -> Array:
    """Indexes a compressed tensor.

    Args:
        adapter: The framework to return an array of.
        dtype: The tensor's element type.
        shape: The tensor's shape.
        key: An int, a slice, or a tuple that starts with one, and then whatever the framework's own
            indexing takes; any other key works too, but decodes the whole tensor.
        read: Decodes a range of the original bytes.

    Returns:
        What the framework gives for `tensor[key]`.

    Raises:
        IndexError: If an index is out of range, or the tensor has no dimension to index.
    """
    plan = _plan(shape, key)
    if plan is None:
        return decoded(adapter, dtype, shape, lambda buffer: read(buffer, 0))[key]
    rows = plan.rows
    row_bytes = element_count(shape[1:]) * ITEMSIZE[dtype]

    def read_one_by_one(buffer: "Buffer") -> None:
        room = memoryview(buffer)
        for place, row in enumerate(rows):
            read(room[place * row_bytes : (place + 1) * row_bytes], row * row_bytes)

    if rows.step * row_bytes >= _SPARSE_BYTES and rows.step > 1:
        array = decoded(adapter, dtype, (len(rows), *shape[1:]), read_one_by_one)
    else:
        start = rows.start * row_bytes
        span = (plan.span, *shape[1:])
        array = decoded(adapter, dtype, span, lambda buffer: read(buffer, start))
        if rows.step > 1:
            array = array[:: rows.step]
    if plan.reverse:
        array = _reverse(array)
    return array[plan.rest] if plan.rest else array


def decode_bytes(dtype: str, shape: tuple[int, ...], key: Key, read: Read) -> bytes | int:
    """Indexes compressed bytes, as `bytes` are indexed: by an int or a slice.

    Raises:
        TypeError: If `key` is anything else.
        IndexError: If an index is out of range.
    """
    plan = _plan(shape, key)
    if plan is None or isinstance(key, tuple):
        message = f"compressed bytes are indexed with an int or a slice, not {key!r}"
        raise TypeError(message)
    row_bytes = element_count(shape[1:]) * ITEMSIZE[dtype]
    start, nbytes = plan.rows.start * row_bytes, plan.span * row_bytes
    span: bytes = decoded(
        adapter_for("bytes"), "uint8", (nbytes,), lambda buffer: read(buffer, start)
    )
    if plan.rest and dtype == "uint8" and row_bytes == 1:
        return span[0]
    if plan.rows.step > 1 or plan.reverse:
        starts = range(0, nbytes, plan.rows.step * row_bytes)[:: -1 if plan.reverse else 1]
        return b"".join(span[start : start + row_bytes] for start in starts)
    return span


def _plan(shape: tuple[int, ...], key: Key) -> _Plan | None:
    """Which rows `key` touches; None if it does not start with rows."""
    first, rest = (key[0], key[1:]) if isinstance(key, tuple) and key else (key, ())
    if isinstance(first, slice):
        if not shape:
            message = "a tensor of shape () has no rows to slice; use [...] or [()]"
            raise IndexError(message)
        rows = range(*first.indices(shape[0]))
        reverse = rows.step < 0
        if reverse:
            rows = rows[::-1]
        return _Plan(rows, reverse, (slice(None), *rest) if rest else ())
    # True is an int, but frameworks take it as a mask.
    if isinstance(first, bool) or not hasattr(first, "__index__"):
        return None
    try:
        row = operator.index(first)
    except TypeError:
        # An array of several elements has the method, but no answer.
        return None
    if not shape:
        message = "a tensor of shape () cannot be indexed with an int; use [...] or [()]"
        raise IndexError(message)
    if not -shape[0] <= row < shape[0]:
        message = f"row {row} is out of range for a tensor of shape {shape}"
        raise IndexError(message)
    row %= shape[0]
    return _Plan(range(row, row + 1), reverse=False, rest=(0, *rest))


def _reverse(array: Array) -> Array:
    try:
        return array[::-1]
    except ValueError:
        # Only torch refuses negative steps.
        from neuzip_rs._torch import flip_rows

        return flip_rows(array)
