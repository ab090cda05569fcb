"""What W12 decides on the host: the window of exponents, and how a product is cut into blocks.

Integers only, and no GPU: the choices are the same wherever the counts and the device are. The
constants of `Tuning` are what a device can be tuned by; docs/gpu.md says where they come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Final

WINDOW: Final = 16
TILE_ROWS: Final = 16
TILE_COLUMNS: Final = 64
TILE_BYTES: Final = 1536
WARPS: Final = 8
THREADS: Final = 32 * WARPS
# Shared memory of a block without asking for more than 48 KiB: 16 are for patches.
INPUT_BYTES: Final = 32 << 10
# The largest base whose lifted exponents stay below that of infinity.
_MAX_BASE: Final = 224
_INFINITE: Final = 255


@dataclass(frozen=True, slots=True)
class Window:
    """Sixteen exponents from `base`, and how many weights have others."""

    base: int
    escapes: int
    # Whether products see every weight as it is: lifting no finite escape makes it infinite.
    multiplies: bool


def choose_window(counts: Sequence[int]) -> Window:
    """The window that holds most weights, the lowest of several.

    Args:
        counts: How many weights there are of each of the 256 exponents.

    Returns:
        The window.
    """
    below = [0, *accumulate(counts)]
    held = [below[base + WINDOW] - below[base] for base in range(_MAX_BASE + 1)]
    base = max(range(len(held)), key=lambda b: (held[b], -b))
    lift = -base % WINDOW
    return Window(base, below[-1] - held[base], not any(counts[_INFINITE - lift : _INFINITE]))


@dataclass(frozen=True, slots=True)
class Tuning:
    """What choices go by; costs are in bytes of weights that take as long to read.

    The defaults follow from counting (docs/gpu.md), not from measuring:
    `python -m benches.gpu_fused --tune` measures all plans of a product.
    """

    # 8 MiB of BF16: below, a launch takes as long as reading the weights.
    min_weights: int = 4 << 20
    # More rows of x than these are multiplied by the library, with decoded weights; fewer with the
    # packed ones, `MAX_BATCH` at a time.
    max_batch: int = 64
    # Starting a block, filling its pipeline and adding its sums up.
    block: int = 12 << 10
    # Waiting for the last slice and adding the sums of all, at the end of a product.
    join: int = 48 << 10
    # A byte of inputs or partial sums, from the second-level cache, in sixteenths.
    cached_sixteenths: int = 8
    # Blocks of a multiprocessor that keep memory busy, and what fewer cost more, in sixteenths.
    busy_blocks: int = 2
    idle_sixteenths: int = 8
    # Tiles of a warp below which no slice is made: its pipeline holds three.
    warp_tiles: int = 3


DEFAULT: Final = Tuning()
# By compute capability, where it differs.
TUNING: Final[dict[tuple[int, int], Tuning]] = {}


def tuning_for(capability: tuple[int, int]) -> Tuning:
    """What choices on a device of that compute capability go by."""
    return TUNING.get(capability, DEFAULT)


@dataclass(frozen=True, slots=True)
class Plan:
    """The launch of one product."""

    kernel: str
    groups: int
    slices: int
    row_warps_log2: int
    slice_tiles: int
    shared_bytes: int

    @property
    def row_warps(self) -> int:
        """Rows of tiles of a block."""
        return 1 << self.row_warps_log2

    def partial_sums(self, batch: int) -> int:
        """How many FP32 the slices leave to be added."""
        if self.slices == 1:
            return 0
        return self.slices * self.groups * self.row_warps * TILE_ROWS * batch


def kernel_for(batch: int) -> str:
    """The kernel for that many rows of x, at most `MAX_BATCH`."""
    return next(name for rows, name in _KERNELS.items() if batch <= rows)


_KERNELS: Final = {8: "w12_linear_8", 16: "w12_linear_16", 32: "w12_linear_32"}
MAX_BATCH: Final = max(_KERNELS)


def tiles(rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of tiles."""
    return -(-rows // TILE_ROWS), -(-columns // TILE_COLUMNS)


@lru_cache(maxsize=4096)
def plan(
    rows: int, columns: int, batch: int, multiprocessors: int, tuning: Tuning = DEFAULT
) -> Plan:
    """Cuts a product into blocks so that the multiprocessor with most of them is done soonest.

    Args:
        rows: Rows of the weights.
        columns: Columns of the weights.
        batch: Rows of x, 1 to `MAX_BATCH`.
        multiprocessors: How many the device has.
        tuning: What to go by.

    Returns:
        The launch.
    """
    tile_rows, tile_columns = tiles(rows, columns)
    best: tuple[int, Plan] | None = None
    for row_warps_log2 in range(4):
        row_warps, parts = 1 << row_warps_log2, WARPS >> row_warps_log2
        if row_warps_log2 and row_warps >= 2 * tile_rows:
            break
        groups = -(-tile_rows // row_warps)
        fewest = -(-tile_columns // (INPUT_BYTES // (2 * TILE_COLUMNS * batch)))
        most = max(fewest, tile_columns // (parts * tuning.warp_tiles))
        for wanted in range(fewest, most + 1):
            slice_tiles = -(-tile_columns // wanted)
            slices = -(-tile_columns // slice_tiles)
            sums = 2 * row_warps * TILE_ROWS * 4 * batch if slices > 1 else 0
            cached = slice_tiles * TILE_COLUMNS * 2 * batch + sums
            # The warp with most tiles says when a block is done.
            tiles_done = -(-slice_tiles // parts) * WARPS
            block = tiles_done * TILE_BYTES + cached * tuning.cached_sixteenths // 16 + tuning.block
            turns = -(-groups * slices // multiprocessors)
            cost = turns * block
            if turns < tuning.busy_blocks:
                cost += cost * tuning.idle_sixteenths // 16
            if slices > 1:
                cost += tuning.join
            if best is None or cost < best[0]:
                shared = slice_tiles * TILE_COLUMNS * 2 * batch
                best = (
                    cost,
                    Plan(kernel_for(batch), groups, slices, row_warps_log2, slice_tiles, shared),
                )
            if slice_tiles == 1:
                break
    assert best is not None
    return best[1]
