"""W12 as its description says, in numpy: no tiles at a time, no bit tricks of the kernels.

`places` is the description of a tile; `packed` builds tiles from it bit by bit, and `product` adds
in the order in which the emulated kernels do, so that results can be compared exactly.
"""

from typing import Any, TypeAlias

import numpy as np

from neuzip_rs.cuda._w12_plan import WARPS, Plan

Array: TypeAlias = np.ndarray[Any, Any]


def places() -> tuple[Array, Array]:
    """Row and column in the tile of each of its 1024 places."""
    fragment, lane, pair, half = np.indices((4, 32, 4, 2)).reshape(4, -1)
    g, t = lane // 4, lane % 4
    column = 32 * (fragment // 2) + 8 * t + 4 * (fragment % 2) + 2 * (pair // 2) + half
    return g + 8 * (pair % 2), column


def tiled(patterns: Array, filler: int) -> Array:
    """Patterns by tile and place, with `filler` around the matrix."""
    rows, columns = -(-patterns.shape[0] // 16), -(-patterns.shape[1] // 64)
    full = np.full((16 * rows, 64 * columns), filler, np.uint16)
    full[: patterns.shape[0], : patterns.shape[1]] = patterns
    tiles = full.reshape(rows, 16, columns, 64).transpose(0, 2, 1, 3).reshape(-1, 16, 64)
    row, column = places()
    return tiles[:, row, column]


def packed(patterns: Array, base: int) -> tuple[Array, Array, Array]:
    """Tiles, starts and escapes of a matrix of BF16 patterns."""
    by_place = tiled(patterns, base << 7).astype(np.int64)
    distance = (by_place >> 7 & 255) - base
    escaped = (distance < 0) | (distance > 15)
    sign, mantissa = by_place >> 15, by_place & 127
    for field in (sign, mantissa, distance):
        field[escaped] = 0
    shape = (-1, 4, 32, 4, 2)
    sign, mantissa, distance = (f.reshape(shape) for f in (sign, mantissa, distance))
    words = np.zeros((len(by_place), 4, 32, 3), np.int64)  # raw 0, raw 1, code
    # The lowest bit of each field, as in the diagrams of w12_layout.cuh.
    for pair in range(4):
        turn = 8 * (pair % 2)
        for half in range(2):
            raw, at = pair // 2, 16 * half
            words[..., raw] |= sign[..., pair, half] << (at + 15 - turn) % 32
            words[..., raw] |= mantissa[..., pair, half] << (at - turn) % 32
            for bit in range(4):
                to = (at + 7 + bit - turn - 4 * raw) % 32
                words[..., 2] |= (distance[..., pair, half] >> bit & 1) << to
    tiles = np.empty((len(by_place), 3, 32, 4), np.uint32)
    for fragment in range(4):
        column = 2 * (fragment % 2)
        tiles[:, fragment // 2, :, column] = words[:, fragment, :, 0]
        tiles[:, fragment // 2, :, column + 1] = words[:, fragment, :, 1]
        tiles[:, 2, :, fragment] = words[:, fragment, :, 2]

    escapes = []
    for patterns_of_tile, of_tile in zip(by_place, escaped, strict=True):
        found = np.flatnonzero(of_tile)
        order = np.lexsort((found, found // 8 % 32))  # by lane, then by place
        escapes.append(patterns_of_tile[found[order]] << 16 | found[order])
    starts = np.cumsum([0, *map(len, escapes)]).astype(np.uint32)
    return tiles.view(np.uint8).reshape(-1), starts, np.concatenate(escapes).astype(np.uint32)


def values(patterns: Array) -> Array:
    """BF16 patterns as FP32."""
    return (patterns.astype(np.uint32) << 16).view(np.float32)


def _wide(patterns: Array) -> Array:
    with np.errstate(invalid="ignore"):  # signaling NaN become quiet
        return values(patterns).astype(np.float64)


def rounded(sums: Array) -> Array:
    """FP32 to BF16 patterns, to the nearest, ties to even; all NaN are one."""
    bits = sums.view(np.uint32)
    result = (bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(sums), 0x7FC0, result).astype(np.uint16)


def product(patterns: Array, base: int, x: Array, bias: Array | None, plan: Plan) -> Array:
    """The product, added in the order of the emulated kernels."""
    lift = -base % 16
    rows, columns = patterns.shape
    tile_columns = -(-columns // 64)
    w = np.zeros((rows, 64 * tile_columns), np.float64)
    w[:, :columns] = np.ldexp(_wide(patterns), lift)
    inputs = np.zeros((len(x), 64 * tile_columns), np.float64)
    inputs[:, :columns] = _wide(x)
    parts = WARPS // plan.row_warps
    total = None
    with np.errstate(all="ignore"):
        for first in range(0, tile_columns, plan.slice_tiles):
            last = min(first + plan.slice_tiles, tile_columns)
            of_slice = None
            for part in range(parts):
                sums = np.zeros((len(x), rows), np.float32)
                for tile in range(first + part, last, parts):
                    for fragment in range(4):
                        sums = _fragment(sums, w, inputs, tile, fragment)
                of_slice = sums if of_slice is None else of_slice + sums
            total = of_slice if total is None else total + of_slice
        assert total is not None
        total = total * np.float32(2.0**-lift)
        if bias is not None:
            total = total + values(bias)
    return rounded(total)


def _fragment(sums: Array, w: Array, inputs: Array, tile: int, fragment: int) -> Array:
    products = np.zeros(sums.shape, np.float64)
    for t in range(4):
        for k in range(4):
            column = 64 * tile + 32 * (fragment // 2) + 8 * t + 4 * (fragment % 2) + k
            products = products + inputs[:, None, column] * w[None, :, column]
    return (sums + products).astype(np.float32)
