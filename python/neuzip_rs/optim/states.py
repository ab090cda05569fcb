"""Optimizer states that are kept compressed from one use to the next."""

from typing import Any

import torch

from neuzip_rs.nn.codec import DTYPES, codec_for
from neuzip_rs.nn.record import Layout, Record
from neuzip_rs.nn.weight import CompressedWeight

# As for parameters: below that, a header weighs more than what is saved.
_MIN_NUMEL = 4096


def compress(state: dict[str, Any]) -> None:
    """Replaces the tensors of a parameter's state by compressed ones, where that is worth it."""
    for key, value in state.items():
        if (
            isinstance(value, torch.Tensor)
            and not isinstance(value, CompressedWeight)
            and value.dtype in DTYPES
            and value.numel() >= _MIN_NUMEL
            and value.layout is torch.strided
        ):
            try:
                layout = Layout.of(value)
            except ValueError:
                # Gaps or overlaps: not a tensor of the parameter's shape, and rare.
                continue
            with torch.inference_mode(mode=False), torch.no_grad():
                state[key] = CompressedWeight(Record(Record.encode(value).stored, layout))


def decompress(state: dict[str, Any]) -> None:
    """Undoes `compress`; the tensors are the caller's own.

    Raises:
        CorruptDataError: If a code is damaged.
    """
    for key, value in state.items():
        if isinstance(value, CompressedWeight):
            state[key] = decoded(value)


def decoded(value: CompressedWeight) -> torch.Tensor:
    """The tensor, in memory of its own: the one that weights are decoded into stays as it is.

    Raises:
        CorruptDataError: If the code is damaged.
    """
    record = value.record
    layout = record.layout
    out = torch.empty(layout.nbytes, dtype=torch.uint8, device=record.device)
    codec_for(out.device).decode(record.stored, out, 0)
    return out.view(layout.dtype).as_strided(layout.shape, layout.stride)
