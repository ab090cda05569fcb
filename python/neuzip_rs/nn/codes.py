"""What a code consists of: a tensor stream, or the streams of what rounding makes of a tensor.

A parameter that is not rounded is the stream of docs/format.md, as `nz.compress` makes it. A
rounded one is, in little-endian order:

    [64 bits]  magic 89 4E 5A 52 0D 0A 1A, then the version, 01
    [32 bits]  block_size: elements that share a scale
    [32 bits]  precision: bits of mantissa kept
    [64 bits]  bytes of the first stream
    [32 bits]  0
    [32 bits]  CRC-32 of the 28 bytes before
    stream of the quotients, of the type and shape of the parameter; their dropped bits are zero,
    which is why they take no space
    stream of the scales: one-dimensional, ceil(elements / block_size) of them, bfloat16 for
    bfloat16, else float32

Decoding multiplies each quotient by the scale of its block and rounds to the type.
"""

import struct
import zlib
from typing import Final, NamedTuple, cast

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from neuzip_rs._errors import CorruptDataError, UnsupportedVersionError
from neuzip_rs.nn import rounding as blocks
from neuzip_rs.nn.codec import Codec, codec_for
from neuzip_rs.nn.rounding import MANTISSA_BITS, SCALE_TYPES, Rounding

_MAGIC: Final = b"\x89NZR\r\n\x1a"
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<7sBIIQI")
_CHECKSUM: Final = struct.Struct("<I")
_HEAD_BYTES: Final = _HEAD.size + _CHECKSUM.size


class Header(NamedTuple):
    """What a code says of the tensor in it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    rounding: Rounding | None


class _Parts(NamedTuple):
    """A rounded code, taken apart."""

    rounding: Rounding
    quotients: torch.Tensor
    scales: torch.Tensor


def encode(tensor: torch.Tensor, rounding: Rounding | None) -> torch.Tensor:
    """Makes the code of a contiguous tensor, in memory of its own."""
    codec = codec_for(tensor.device)
    if rounding is None:
        return codec.encode(tensor)
    quotients, scales = blocks.split(tensor.view(-1), rounding)
    streams = codec.encode(quotients.view(tensor.shape)), codec.encode(scales)
    for stream in streams:
        codec.settle(stream)
    head = _HEAD.pack(
        _MAGIC, _VERSION, rounding.block_size, rounding.precision, streams[0].numel(), 0
    )
    head += _CHECKSUM.pack(zlib.crc32(head))
    start = torch.tensor(list(head), dtype=torch.uint8, device=tensor.device)
    return torch.cat((start, *streams))


def decode(
    code: torch.Tensor, out: torch.Tensor, start_bytes: int, *, is_stream: bool = False
) -> None:
    """Fills `out`, contiguous uint8, with the decoded bytes from `start_bytes` on.

    Args:
        code: The code.
        out: Where the bytes go.
        start_bytes: The first of them.
        is_stream: Whether the code is known to be one that is not rounded, so that nobody looks.

    Raises:
        CorruptDataError: If the code is damaged.
    """
    codec = codec_for(code.device)
    parts = None if is_stream else _take_apart(code)
    if parts is None:
        codec.decode(code, out, start_bytes)
        return
    dtype, shape = codec.header(parts.quotients)
    scales = _scales(codec, parts, dtype, shape)
    codec.decode(parts.quotients, out, start_bytes)
    start = start_bytes // dtype.itemsize
    blocks.join_(out.view(dtype), scales, parts.rounding.block_size, start)


def header(code: torch.Tensor) -> Header:
    """Reads what the tensor in a code is, without decoding it.

    Raises:
        CorruptDataError: If that part of the code is damaged, or it is no code.
    """
    codec = codec_for(code.device)
    parts = _take_apart(code)
    if parts is None:
        return Header(*codec.header(code), None)
    return Header(*codec.header(parts.quotients), parts.rounding)


def settle(code: torch.Tensor) -> None:
    """Makes a code one that may be copied, measured and stored; it stays the same tensor."""
    codec_for(code.device).settle(code)


_PLAIN: Final = object()
_taken: Final = WeakTensorKeyDictionary()
"""The parts of codes on devices, whose first bytes are read once; `_PLAIN` for plain streams."""


def _take_apart(code: torch.Tensor) -> _Parts | None:
    """The parts of a rounded code; None if it is a plain stream."""
    if not codec_for(code.device).works_by_itself:
        return _parts_of(code)
    known = _taken.get(code)
    if known is None:
        known = _taken[code] = _parts_of(code) or _PLAIN
    return None if known is _PLAIN else cast("_Parts", known)


def _parts_of(code: torch.Tensor) -> _Parts | None:
    head = code[:_HEAD_BYTES].cpu().numpy().tobytes()
    if not head.startswith(_MAGIC):
        return None
    if len(head) < _HEAD_BYTES:
        message = f"a rounded code has at least {_HEAD_BYTES} bytes, this one {len(head)}"
        raise CorruptDataError(message)
    (checksum,) = _CHECKSUM.unpack_from(head, _HEAD.size)
    _, version, block_size, precision, length, _ = _HEAD.unpack_from(head)
    if version != _VERSION:
        message = f"rounded codes of version {version} need a newer release of neuzip_rs"
        raise UnsupportedVersionError(message)
    if checksum != zlib.crc32(head[: _HEAD.size]):
        message = "the head of a rounded code does not have its checksum"
        raise CorruptDataError(message)
    rest = code.numel() - _HEAD_BYTES
    if not block_size or precision > max(MANTISSA_BITS.values()) or length > rest:
        message = "the head of a rounded code has values that it cannot have"
        raise CorruptDataError(message)
    return _Parts(
        Rounding(precision, block_size),
        _part(code, _HEAD_BYTES, length),
        _part(code, _HEAD_BYTES + length, rest - length),
    )


def _part(code: torch.Tensor, start: int, count: int) -> torch.Tensor:
    """A part of a code that does not know, and so not keep alive, the code."""
    with torch.inference_mode(mode=False), torch.no_grad():
        part = torch.empty(0, dtype=torch.uint8, device=code.device)
        return part.set_(code.untyped_storage(), code.storage_offset() + start, (count,), (1,))


def _scales(
    codec: Codec, parts: _Parts, dtype: torch.dtype, shape: tuple[int, ...]
) -> torch.Tensor:
    count = 1
    for size in shape:
        count *= size
    expected = -(-count // parts.rounding.block_size)
    scale_type, (*sizes,) = codec.header(parts.scales)
    if SCALE_TYPES.get(dtype) != scale_type or sizes != [expected]:
        message = f"the code of {count} elements should have {expected} scales"
        raise CorruptDataError(message)
    scales = torch.empty(expected, dtype=scale_type, device=parts.scales.device)
    codec.decode(parts.scales, scales.view(torch.uint8), 0)
    return scales
