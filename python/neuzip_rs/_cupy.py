"""Adapter for cupy arrays, by way of numpy arrays on the CPU."""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from neuzip_rs import _numpy
from neuzip_rs._arrays import Array, Device, Source

if TYPE_CHECKING:
    from typing_extensions import Buffer

_cupy: Final[Any] = import_module("cupy")


def describe(array: Array, /) -> Source:
    """Copies an array to the CPU and views the copy as bytes."""
    _numpy.name_of(array.dtype)
    return _numpy.describe(_cupy.asnumpy(array, order="C"))._replace(framework="cupy")


def check_device(device: Device, /) -> Device:
    """The number of a CUDA device, None for the current one."""
    if device is None or isinstance(device, int):
        return device
    kind, _, index = str(device).partition(":")
    if kind != "cuda" or not (index.isdecimal() or not index):
        message = f"device must be 'cuda' or 'cuda:N' for a cupy result, not {device!r}"
        raise ValueError(message)
    return int(index) if index else None


def allocate(dtype: str, shape: tuple[int, ...], /) -> tuple[Array, "Buffer"]:
    """Makes room on the CPU."""
    return _numpy.allocate(dtype, shape)


def finish(result: Array, device: Device, /) -> Array:
    """Copies the filled room to the device."""
    if device is None:
        return _cupy.asarray(result)
    with _cupy.cuda.Device(device):
        return _cupy.asarray(result)


def writable(
    out: Array, dtype: str, shape: tuple[int, ...], /
) -> tuple["Buffer", Callable[[], object] | None]:
    """Makes room on the CPU whose bytes are copied into `out` afterwards."""
    if out.dtype.name != dtype:
        message = f"out must have dtype {dtype}, not {out.dtype.name}"
        raise ValueError(message)
    if out.shape != shape:
        message = f"out must have shape {shape}, not {out.shape}"
        raise ValueError(message)
    if not out.flags.c_contiguous:
        message = "out must be C-contiguous"
        raise ValueError(message)
    room, buffer = _numpy.allocate(dtype, shape)
    return buffer, lambda: out.set(room)
