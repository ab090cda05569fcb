"""Which elements of a record a tensor shows: strided views and casts that nobody has computed."""

from functools import lru_cache
from typing import Final, NamedTuple

import torch

from neuzip_rs.nn.record import Layout


class Geometry(NamedTuple):
    """Which of a record's elements a tensor shows, and as what.

    `bits` is the type that the decoded bytes are taken for; sizes are in its elements. `cast` is
    the type they are then converted to, None if they are not.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    bits: torch.dtype
    cast: torch.dtype | None = None

    @classmethod
    def whole(cls, layout: Layout) -> "Geometry":
        """All of a record."""
        return cls(layout.shape, layout.stride, 0, layout.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the tensor."""
        return self.cast or self.bits

    def transposed(self) -> "Geometry":
        """That of the transposed matrix."""
        return _transposed(self)

    def span(self) -> int:
        """How many elements lie between the first and the last, both included."""
        if 0 in self.size:
            return 0
        pairs = zip(self.size, self.stride, strict=True)
        return 1 + sum((size - 1) * stride for size, stride in pairs)


class Plan(NamedTuple):
    """What to decode of a record for a geometry.

    Attributes:
        first: The first element, in the order of memory.
        elements: How many.
        start_bytes: The first byte.
        nbytes: How many.
        offset: Where the geometry begins, counted in its own elements from the first that is
            decoded.
    """

    first: int
    elements: int
    start_bytes: int
    nbytes: int
    offset: int


_MOST_KNOWN: Final = 4096
"""How many different geometries are remembered. A model has few, and asks for them every time."""


@lru_cache(_MOST_KNOWN)
def plan(geometry: Geometry, layout: Layout) -> Plan:
    """What to decode: the elements that are shown, or all where they are most of them."""
    start, count = 0, layout.numel
    if geometry.bits == layout.dtype and 4 * geometry.span() <= 3 * count:
        start, count = geometry.offset, geometry.span()
    itemsize = layout.dtype.itemsize
    return Plan(start, count, start * itemsize, count * itemsize, geometry.offset - start)


@lru_cache(_MOST_KNOWN)
def _transposed(geometry: Geometry) -> Geometry:
    return geometry._replace(size=geometry.size[::-1], stride=geometry.stride[::-1])
