"""Which elements of a record a tensor shows: strided views and casts that nobody has computed."""

from typing import NamedTuple

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

    def span(self) -> int:
        """How many elements lie between the first and the last, both included."""
        if 0 in self.size:
            return 0
        pairs = zip(self.size, self.stride, strict=True)
        return 1 + sum((size - 1) * stride for size, stride in pairs)
