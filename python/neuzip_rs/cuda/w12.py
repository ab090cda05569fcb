"""W12: BF16 weights that multiply from 12 bits, for inference with few rows at a time.

A runtime layout, made on the device from plain weights and written to no file. `linear` reads three
quarters of the bytes that a BF16 product reads, which is what a product with few rows takes its
time for. The weights come back exactly (`unpack`), and products see them exactly; like those of a
library they add in FP32, in an order of their own.

    packed = w12.pack(weight)              # None where W12 would not pay
    if packed is not None:
        weight = packed
    y = w12.linear(x, weight, bias)        # few rows: fused; many: decoded in pieces

Needs torch and CuPy, and says so when it is first used. The layout is described in
cuda/w12_layout.cuh, the figures in docs/gpu.md.
"""

import math
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final, TypeAlias

import numpy as np

from neuzip_rs.cuda import _w12_device
from neuzip_rs.cuda._w12_device import Device, Module, Tensor, TorchDevice, device_of
from neuzip_rs.cuda._w12_plan import (
    MAX_BATCH,
    THREADS,
    TILE_BYTES,
    TILE_ROWS,
    WARPS,
    Plan,
    Window,
    choose_window,
    plan,
    tiles,
    tuning_for,
)

# torch's.
TorchDtype: TypeAlias = Any

__all__ = ["MAX_ESCAPES", "W12", "linear", "pack", "unpack"]

# Escapes take 4 bytes each, so that these make the layout 1.3 % larger; models have 0.01 to 0.1 %
# (docs/gpu.md). Where there are more, exponents are spread out, and the dense format is smaller.
MAX_ESCAPES: Final = 1 / 200
# Tiles and escapes are counted in 32 bits.
_MAX_COUNT: Final = 1 << 31
_GRID_PER_MULTIPROCESSOR: Final = 8
# The structures that the kernels take by value, in the order of cuda/w12_linear.cu.
_WEIGHTS: Final = Struct("<QQQIII4x")
_PRODUCT: Final = Struct("<QIIQQIIQQ")


@dataclass(frozen=True, slots=True, eq=False)
class W12:
    """A matrix of BF16 weights in W12; immutable, on one device.

    Attributes:
        rows: Rows of the matrix, the outputs of a product.
        columns: Columns of the matrix, the inputs.
        base: The smallest exponent that is not an escape.
        tiles: 1536 bytes for each 16 rows of 64 columns.
        starts: Where the escapes of each tile begin, and where they end.
        escapes: Patterns outside of the window, and their places.
    """

    rows: int
    columns: int
    base: int
    tiles: Tensor
    starts: Tensor
    escapes: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the matrix."""
        return self.rows, self.columns

    @property
    def device(self) -> TorchDevice:
        """Where the matrix is."""
        return self.tiles.device

    @property
    def nbytes(self) -> int:
        """Bytes that the layout takes."""
        parts = (self.tiles, self.starts, self.escapes)
        return sum(part.numel() * part.element_size() for part in parts)

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight takes, escapes and filling included."""
        return self.nbytes * 8 / (self.rows * self.columns)


def pack(
    weight: Tensor,
    *,
    max_escapes: float = MAX_ESCAPES,
    min_weights: int | None = None,
) -> W12 | None:
    """Makes a W12 of a matrix, on the matrix' device.

    Waits once for the device, to learn how many weights have which exponent.

    Args:
        weight: BF16 `[outputs, inputs]` on a GPU.
        max_escapes: The largest fraction of weights that may be outside of the window.
        min_weights: The smallest number of weights; by device, 4 million, if None.

    Returns:
        The packed matrix, or None where a product from it would be no faster than with the weights
        as they are: few weights, many escapes, or weights above 2^112.

    Raises:
        TypeError: If `weight` is no BF16 tensor.
        ValueError: If it is no matrix, or not on a GPU.
    """
    torch = _w12_device.torch()
    if not isinstance(weight, torch.Tensor) or weight.dtype is not torch.bfloat16:
        message = f"W12 packs BF16 tensors, not {getattr(weight, 'dtype', type(weight).__name__)}"
        raise TypeError(message)
    if weight.dim() != 2:
        message = f"W12 packs matrices, not tensors of shape {tuple(weight.shape)}"
        raise ValueError(message)
    device = device_of(weight)
    if min_weights is None:
        min_weights = tuning_for(device.capability).min_weights
    if weight.numel() < max(min_weights, 1):
        return None
    weight = weight.detach().contiguous()
    rows, columns = weight.shape
    count = weight.numel()

    exponents = torch.zeros(256, dtype=torch.int64, device=weight.device)
    grid = min(device.multiprocessors * _GRID_PER_MULTIPROCESSOR, -(-count // (8 * THREADS)))
    device.launch(
        *("w12_pack", "w12_histogram", grid, THREADS),
        *(_pointer(weight), np.uint64(count), _pointer(exponents)),
    )
    window = choose_window(exponents.tolist())
    if window.escapes > max_escapes * count or not window.multiplies:
        return None
    if max(window.escapes, math.prod(tiles(rows, columns))) >= _MAX_COUNT:
        return None
    return _pack(torch, weight, window)


def _pack(torch: Module, weight: Tensor, window: Window) -> W12:
    device = device_of(weight)
    rows, columns = weight.shape
    tile_count = math.prod(tiles(rows, columns))
    matrix = _pointer(weight), np.uint32(rows), np.uint32(columns), np.uint32(window.base)
    grid = _grid(device, tile_count)

    def empty(count: int, dtype: TorchDtype) -> Tensor:
        return torch.empty(count, dtype=dtype, device=weight.device)

    of_tiles, starts = empty(tile_count, torch.int32), empty(tile_count + 1, torch.int32)
    device.launch("w12_pack", "w12_count", grid, THREADS, *matrix, _pointer(of_tiles))
    starts[0] = 0
    torch.cumsum(of_tiles, 0, dtype=torch.int32, out=starts[1:])
    packed = empty(tile_count * TILE_BYTES, torch.uint8)
    escapes = empty(window.escapes, torch.int32)
    device.launch(
        *("w12_pack", "w12_pack", grid, THREADS, *matrix),
        *(_pointer(starts), _pointer(packed), _pointer(escapes)),
    )
    return W12(rows, columns, window.base, packed, starts, escapes)


def unpack(weight: W12) -> Tensor:
    """The matrix as it was, bit for bit.

    Args:
        weight: The packed matrix.

    Returns:
        BF16 `[outputs, inputs]` on the same device.
    """
    torch = _w12_device.torch()
    plain = torch.empty(weight.shape, dtype=torch.bfloat16, device=weight.device)
    _decode(weight, 0, plain)
    return plain


def linear(
    x: Tensor,
    weight: W12 | Tensor,
    bias: Tensor | None = None,
    *,
    exact: bool = False,
    piece_bytes: int | None = None,
) -> Tensor:
    """`x @ weight.T + bias`, as `torch.nn.functional.linear`, without gradients.

    Up to 64 rows of x are multiplied with the packed weights themselves, 32 at a time. For more, or
    if asked for `exact`, weights are decoded into a buffer that stays in the second-level cache, a
    piece at a time, each multiplied by torch.

    Args:
        x: BF16 `[..., inputs]` on the device of `weight`.
        weight: The packed matrix; or one that `pack` left alone, which torch multiplies.
        bias: BF16 `[outputs]`.
        exact: Add as the library does: the results are those of torch with the same pieces of the
            plain weights, bit for bit. A library may choose its kernel by the number of outputs;
            `piece_bytes` of the whole matrix give what torch gives for the whole.
        piece_bytes: Size of the decoded pieces; half of the second-level cache if None.

    Returns:
        BF16 `[..., outputs]`. Sums of few rows are kept up to 32768 times as large as they are, so
        that results above 2^112 may be infinite; results below 2^-126 may be zero.

    Raises:
        TypeError: If `x` or `bias` is no BF16 tensor.
        ValueError: If shapes or devices do not fit, or a gradient would be needed.
    """
    torch = _w12_device.torch()
    if not isinstance(weight, W12):
        return torch.nn.functional.linear(x, weight, bias)
    _check(torch, x, weight, bias)
    rows = x.detach() if x.dim() == 2 else x.detach().reshape(-1, weight.columns)
    batch = rows.shape[0]
    y = x.new_empty((batch, weight.rows))
    if batch:
        device = device_of(x)
        tuning = tuning_for(device.capability)
        if exact or batch > tuning.max_batch:
            _decoded(torch, rows, weight, bias, y, piece_bytes)
        else:
            passes = -(-batch // MAX_BATCH)
            step = -(-batch // passes)
            for first in range(0, batch, step):
                of_pass = y[first : first + step]
                launch = plan(*weight.shape, len(of_pass), device.multiprocessors, tuning)
                _fused(torch, rows[first : first + step], weight, bias, of_pass, launch)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], weight.rows)


def _check(torch: Module, x: Tensor, weight: W12, bias: Tensor | None) -> None:
    for name, tensor in (("x", x), ("bias", bias)):
        if tensor is None and name == "bias":
            continue
        if not isinstance(tensor, torch.Tensor) or tensor.dtype is not torch.bfloat16:
            message = f"{name} is {getattr(tensor, 'dtype', type(tensor).__name__)}, not BF16"
            raise TypeError(message)
        if tensor.device != weight.device:
            message = f"{name} is on {tensor.device}, the weights are on {weight.device}"
            raise ValueError(message)
        if tensor.requires_grad and torch.is_grad_enabled():
            message = f"{name} wants a gradient, and W12 has none: use torch.no_grad()"
            raise ValueError(message)
    if x.dim() == 0 or x.shape[-1] != weight.columns:
        message = f"x of shape {tuple(x.shape)} does not fit weights of shape {weight.shape}"
        raise ValueError(message)
    if bias is not None and tuple(bias.shape) != (weight.rows,):
        message = f"bias of shape {tuple(bias.shape)} does not fit weights of shape {weight.shape}"
        raise ValueError(message)


def _fused(
    torch: Module, x: Tensor, weight: W12, bias: Tensor | None, y: Tensor, launch: Plan
) -> None:
    device = device_of(x)
    batch = x.shape[0]
    if weight.columns % 8:
        x = torch.nn.functional.pad(x, (0, -weight.columns % 8))
    elif x.stride(1) != 1 or x.stride(0) % 8 or x.data_ptr() % 16:
        # Sixteen-byte loads; fresh memory begins at a multiple of that.
        x = x.clone(memory_format=torch.contiguous_format)
    if bias is not None:
        bias = bias.contiguous()
    partial = tickets = None
    if launch.slices > 1:
        partial, tickets = device.workspace(launch.partial_sums(batch), launch.groups)
    weights = _by_value(
        _WEIGHTS,
        *(weight.tiles.data_ptr(), weight.starts.data_ptr(), weight.escapes.data_ptr()),
        *(weight.rows, weight.columns, weight.base),
    )
    product = _by_value(
        _PRODUCT,
        *(x.data_ptr(), x.stride(0), batch, _address(bias), y.data_ptr()),
        *(launch.row_warps_log2, launch.slice_tiles, _address(partial), _address(tickets)),
    )
    device.launch(
        *("w12_linear", launch.kernel, (launch.groups, launch.slices), THREADS, weights, product),
        shared_bytes=launch.shared_bytes,
    )


def _decoded(
    torch: Module, x: Tensor, weight: W12, bias: Tensor | None, y: Tensor, piece_bytes: int | None
) -> None:
    device = device_of(x)
    room = device.l2_bytes // 2 if piece_bytes is None else piece_bytes
    step = max(room // (2 * weight.columns * TILE_ROWS), 1) * TILE_ROWS
    piece = torch.empty(
        (min(step, weight.rows), weight.columns), dtype=torch.bfloat16, device=x.device
    )
    for first in range(0, weight.rows, step):
        last = min(first + step, weight.rows)
        plain = piece[: last - first]
        _decode(weight, first, plain)
        if bias is None:
            torch.mm(x, plain.t(), out=y[:, first:last])
        else:
            torch.addmm(bias[first:last], x, plain.t(), out=y[:, first:last])


def _decode(weight: W12, first: int, out: Tensor) -> None:
    """Decodes rows from `first` on, a multiple of 16, as many as `out` has."""
    device = device_of(out)
    tile_rows, tile_columns = tiles(out.shape[0], weight.columns)
    device.launch(
        *("w12_pack", "w12_unpack", _grid(device, tile_rows * tile_columns), THREADS),
        *(_pointer(weight.tiles), _pointer(weight.starts), _pointer(weight.escapes)),
        *(np.uint32(first // TILE_ROWS), np.uint32(out.shape[0])),
        *(np.uint32(weight.columns), np.uint32(weight.base), _pointer(out)),
    )


def _grid(device: Device, tile_count: int) -> int:
    return min(device.multiprocessors * _GRID_PER_MULTIPROCESSOR, -(-tile_count // WARPS))


def _pointer(tensor: Tensor) -> np.uint64:
    return np.uint64(tensor.data_ptr())


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else int(tensor.data_ptr())


def _by_value(layout: Struct, *values: int) -> np.void:
    value: np.void = np.frombuffer(layout.pack(*values), np.dtype((np.void, layout.size)))[0]
    return value
