"""Looking up a few rows of a table without decoding the others."""

from typing import Final

import torch

from neuzip_rs.nn import codes
from neuzip_rs.nn.codec import codec_for
from neuzip_rs.nn.record import Record

# What one more piece costs, in bytes that could be decoded meanwhile: a call, and the parts of
# chunks (128 KiB) that nobody asked for.
_PIECE_BYTES: Final = 256 << 10


def decode_rows(record: Record, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Decodes the rows of a row-major matrix that `indices` names.

    Args:
        record: The matrix.
        indices: Which rows, on the same device; any shape.

    Returns:
        A smaller matrix, and the indices into it that mean the same; None where it is quicker to
        decode all rows, as on a device, or where an index is out of range.
    """
    layout = record.layout
    if len(layout.shape) != 2 or not layout.is_row_major() or indices.device != record.device:
        return None
    if codec_for(record.device).works_by_itself:
        # Which rows are wanted is not known here without waiting for the device.
        return None
    height, width = layout.shape
    row_bytes = width * layout.dtype.itemsize
    if not indices.numel() or layout.nbytes < 2 * _PIECE_BYTES:
        return None
    # The number of distinct rows is not known before they are sorted, which takes its time too.
    if indices.numel() * row_bytes > layout.nbytes:
        return None
    wanted, places = torch.unique(indices, return_inverse=True)
    if wanted[0] < 0 or wanted[-1] >= height:
        return None
    pieces = _pieces(wanted.tolist(), max(_PIECE_BYTES // row_bytes, 1))
    decoded_rows = sum(stop - start for start, stop, _ in pieces)
    if 2 * (decoded_rows * row_bytes + len(pieces) * _PIECE_BYTES) > layout.nbytes:
        return None
    room = torch.empty(decoded_rows * row_bytes, dtype=torch.uint8, device=record.device)
    shift = torch.empty_like(wanted)
    done = 0
    found = 0
    for start, stop, count in pieces:
        part = room.narrow(0, done * row_bytes, (stop - start) * row_bytes)
        is_stream = record.rounding is None
        codes.decode(record.stored, part, start * row_bytes, is_stream=is_stream)
        shift[found : found + count] = done - start
        done += stop - start
        found += count
    table = room.view(layout.dtype).view(decoded_rows, width)
    return table, (wanted + shift)[places]


def _pieces(wanted: list[int], gap: int) -> list[tuple[int, int, int]]:
    """Ranges of rows that cover all wanted ones, and how many wanted ones are in each."""
    pieces: list[tuple[int, int, int]] = []
    start = last = wanted[0]
    count = 0
    for row in wanted:
        if row - last > gap:
            pieces.append((start, last + 1, count))
            start, count = row, 0
        last = row
        count += 1
    pieces.append((start, last + 1, count))
    return pieces
