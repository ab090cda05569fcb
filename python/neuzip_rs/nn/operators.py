"""Decoding as an operator of torch, for graphs that outlive a call.

Eager code decodes through `neuzip_rs.nn.record`, which has a cache; what is traced (torch.compile,
torch.export) contains this operator instead, with the code as its input.
"""

import torch

from neuzip_rs.nn import codes


# Tagged as if it drew random numbers: a compiler that folds constants would otherwise replace it by
# the decoded weight, and the memory saved would be lost without a word.
@torch.library.custom_op(
    "neuzip::decode", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
def decode(code: torch.Tensor, start: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    """Decodes elements `start..start + count` of a code, in the order of memory.

    Args:
        code: The code: one-dimensional, uint8.
        start: The first element.
        count: How many elements.
        dtype: Their type, which must be that of the code.

    Returns:
        A new one-dimensional tensor.

    Raises:
        CorruptDataError: If the code is damaged.
    """
    out = torch.empty(count * dtype.itemsize, dtype=torch.uint8, device=code.device)
    codes.decode(code.contiguous(), out, start * dtype.itemsize)
    return out.view(dtype)


@decode.register_fake
def _(code: torch.Tensor, start: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    torch._check(start >= 0)
    return code.new_empty((count,), dtype=dtype)
