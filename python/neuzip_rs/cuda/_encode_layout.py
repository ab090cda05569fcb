"""What the kernels that encode are told: the structs of cuda/encode_layout.cuh, and memory."""

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from neuzip_rs._dtypes import ITEMSIZE
from neuzip_rs.cuda._device import aligned

Structs: TypeAlias = "np.ndarray[Any, Any]"

MODEL: Final = np.dtype(
    [
        ("state", "<u4"),
        ("base", "<u4"),
        ("escape", "<u4"),
        ("entries", "<u4"),
        ("joint", "<u4"),
        ("sign", "<u4"),
        ("trailing_zeros", "<u4"),
        ("scale", "<u4"),
        ("index", "u1", 64),
        ("frequency", "u1", 64),
    ]
)
TENSOR: Final = np.dtype(
    [
        ("data", "<u8"),
        ("bytes", "<u8"),
        ("out", "<u8"),
        ("payload_bytes", "<u8"),
        ("first_chunk", "<u4"),
        ("chunks", "<u4"),
        ("chunk_log2", "<u4"),
        ("element_log2", "u1"),
        ("exponent_bits", "u1"),
        ("mantissa_bits", "u1"),
        ("views", "u1"),
        ("plan", "<u8"),
        ("traits", "<u4"),
        ("item_bytes", "<u4"),
        ("view", "<u8"),
        ("model", MODEL),
    ]
)
VIEW: Final = np.dtype(
    {
        "names": [
            "columns",
            "rows",
            "reciprocal",
            "row_offsets",
            "column_offsets",
            "sums",
            "tensor",
        ],
        "formats": ["<u8"] * 6 + ["<u4"],
        "offsets": [0, 8, 16, 24, 32, 40, 160],
        "itemsize": 168,
    }
)
CHUNK: Final = np.dtype(
    [
        ("data", "<u8"),
        ("scratch", "<u8"),
        ("hash", "<u8"),
        ("offset", "<u8"),
        ("bytes", "<u4"),
        ("tensor", "<u4"),
        ("payload_bytes", "<u4"),
        ("storage", "<u4"),
        ("stream_bytes", "<u4"),
        ("escapes", "<u4"),
        ("raw_bytes", "<u4"),
        ("escapes_head", "<u4"),
    ]
)
SUB_BLOCK: Final = 4096
EXPONENT_BITS: Final = {
    "bfloat16": 8,
    "float16": 5,
    "float32": 8,
    "float64": 11,
    "float8_e3m4": 3,
    "float8_e4m3": 4,
    "float8_e4m3b11fnuz": 4,
    "float8_e4m3fn": 4,
    "float8_e4m3fnuz": 4,
    "float8_e5m2": 5,
    "float8_e5m2fnuz": 5,
    "bcomplex32": 8,
    "complex32": 5,
    "complex64": 8,
    "complex128": 11,
}
"""Types of floats, and of pairs of floats."""
_SCALED_DIMENSIONS: Final = 2
_MIN_SCALED_ELEMENTS: Final = 4096
# Dimensions below this are those of a filter.
_SHORT: Final = 16
# Columns that a stripe has at least.
_LEAST_RUN: Final = 32
# Offsets of the columns of elements up to this size are words of 16 bits in a plan.
_NARROW_BYTES: Final = 2
_STATES_BYTES: Final = 128
WAVE_BYTES: Final = 256 << 20
"""Scratch memory is used again when the chunks that fit into it are done."""
# What a plan has besides its chunks: two Models, and the tables of both kernels.
_PLAN_REST_BYTES: Final = 2 * 400 + 256 * 4 + 256 * 8
_PLAN_CHUNK_BYTES: Final = 64
SCALE_BYTES: Final = 48


class Input(NamedTuple):
    """A tensor to encode: where it is on the device, what it is, and row lengths to see it by."""

    address: int
    nbytes: int
    dtype: str
    chunk_log2: int
    columns: tuple[int, ...] = ()


def is_complex(dtype: str) -> bool:
    """Whether an element is two floats."""
    return "complex" in dtype


def views(dtype: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Row lengths of the matrices that get scale offsets: `views` of rust/model/select.rs."""
    if is_complex(dtype):
        return ()
    dims = [int(size) for size in shape if size != 1]
    count = math.prod(dims)
    if len(dims) < _SCALED_DIMENSIONS or count < _MIN_SCALED_ELEMENTS:
        return ()
    last = dims[-1]
    for size in reversed(dims[1:-1]):
        if dims[-1] >= _SHORT or size >= _SHORT:
            break
        last *= size
    return tuple(dict.fromkeys((count // dims[0], last)))


def plan_bytes(chunks: int) -> int:
    """Bytes of the plan that the device makes of a tensor it has encoded, without scale offsets."""
    return _PLAN_CHUNK_BYTES * chunks + _PLAN_REST_BYTES


class ScaleRoom(NamedTuple):
    """What a plan has behind the rest: room for the scale offsets of any view.

    Attributes:
        lists: Bytes of the Scale and the offsets of rows and columns, one behind the other.
        nbytes: Bytes of all, with the words of the columns.
    """

    lists: int
    nbytes: int


def scale_room(one: "Input") -> ScaleRoom:
    """The room for the scale offsets of a tensor."""
    if not one.columns:
        return ScaleRoom(0, 0)
    elements = one.nbytes // ITEMSIZE[one.dtype]
    word = 4 if ITEMSIZE[one.dtype] > _NARROW_BYTES else 2
    lists = [aligned(elements // columns) + aligned(columns) for columns in one.columns]
    words = [max(aligned(word * columns), aligned(1)) for columns in one.columns]
    both = max(a + b for a, b in zip(lists, words, strict=True))
    return ScaleRoom(SCALE_BYTES + max(lists), SCALE_BYTES + both)


class Described(NamedTuple):
    """What the kernels are told, and the memory that they need.

    Attributes:
        tensors: TENSOR structs; `out` counts from the beginning of the room for payloads.
        chunks: CHUNK structs; `scratch` counts from the beginning of the scratch memory.
        waves: Ranges of chunks that have room in the scratch memory at the same time.
        scratch_bytes: Scratch memory.
        out_bytes: Room for payloads.
        views: VIEW structs; the addresses in them count from the beginning of the room for them.
        views_bytes: Room for the offsets, and the sums that they come from.
    """

    tensors: Structs
    chunks: Structs
    waves: list[tuple[int, int]]
    scratch_bytes: int
    out_bytes: int
    views: Structs
    views_bytes: int


def describe(inputs: Sequence[Input], wave_bytes: int = WAVE_BYTES) -> Described:
    """Makes the structs of tensors and chunks."""
    tensors = np.zeros(len(inputs), TENSOR)
    parts: list[Structs] = []
    rooms: list[Structs] = []
    seen: list[tuple[int, int, int]] = []
    out = first = 0
    for number, (address, nbytes, dtype, chunk_log2, columns) in enumerate(inputs):
        item_bytes, exponent_bits = ITEMSIZE[dtype], EXPONENT_BITS[dtype]
        itemsize = item_bytes // 2 if is_complex(dtype) else item_bytes
        starts = np.arange(0, nbytes, 1 << chunk_log2, dtype=np.uint64)
        chunks = np.zeros(len(starts), CHUNK)
        lengths = np.minimum(np.uint64(nbytes) - starts, np.uint64(1 << chunk_log2))
        elements = lengths // itemsize
        escapes = 1 if exponent_bits <= 8 else 2
        zeros = aligned((elements + SUB_BLOCK - 1) // SUB_BLOCK)
        # The raw plane takes less than the chunk.
        planes = aligned(lengths) + (1 + escapes) * aligned(elements)
        rooms.append(zeros + _STATES_BYTES + planes)
        chunks["data"], chunks["bytes"] = np.uint64(address) + starts, lengths
        chunks["tensor"] = number
        tensor = tensors[number]
        tensor["data"], tensor["bytes"], tensor["out"] = address, nbytes, out
        tensor["first_chunk"], tensor["chunks"] = first, len(starts)
        tensor["chunk_log2"], tensor["element_log2"] = chunk_log2, itemsize.bit_length() - 1
        tensor["exponent_bits"], tensor["item_bytes"] = exponent_bits, item_bytes
        tensor["mantissa_bits"] = 8 * itemsize - 1 - exponent_bits
        # Where its views are, in bytes.
        tensor["views"], tensor["view"] = len(columns), len(seen) * VIEW.itemsize
        seen += [(number, width, nbytes // itemsize // width) for width in columns]
        parts.append(chunks)
        first += len(starts)
        out += int(aligned(lengths).sum())
    chunks = np.concatenate(parts) if parts else np.zeros(0, CHUNK)
    waves, scratch_bytes = _waves(
        chunks, np.concatenate(rooms) if rooms else np.zeros(0), wave_bytes
    )
    return Described(tensors, chunks, waves, scratch_bytes, out, *_views(seen))


def _views(seen: Sequence[tuple[int, int, int]]) -> tuple[Structs, int]:
    """Gives views, each the number of its tensor, columns and rows, their places in memory."""
    made = np.zeros(len(seen), VIEW)
    end = 0
    for view, (tensor, columns, rows) in zip(made, seen, strict=True):
        view["tensor"], view["columns"], view["rows"] = tensor, columns, rows
        view["reciprocal"] = -(-(1 << 64) // columns)
        sums = 8 * (columns + max(columns // _LEAST_RUN, 1))
        for name, nbytes in (("sums", sums), ("row_offsets", rows), ("column_offsets", columns)):
            view[name] = end
            end += aligned(nbytes)
    return made, end


def _waves(chunks: Structs, rooms: Structs, wave_bytes: int) -> tuple[list[tuple[int, int]], int]:
    """Gives chunks their places in the scratch memory, from its beginning in each wave."""
    waves: list[tuple[int, int]] = []
    start = most = 0
    ends = np.cumsum(rooms)
    while start < len(chunks):
        before = int(ends[start] - rooms[start])
        stop = max(start + 1, int(np.searchsorted(ends, before + wave_bytes, side="right")))
        chunks["scratch"][start:stop] = ends[start:stop] - rooms[start:stop] - before
        most = max(most, int(ends[stop - 1]) - before)
        waves.append((start, stop - start))
        start = stop
    return waves, most
