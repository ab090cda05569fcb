"""CuPy arrays."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final, TypeAlias

from neuzip_rs import _arrays

Array: TypeAlias = Any

_cupy: Final[Any] = import_module("cupy")


def place(device: object) -> tuple[int, None]:
    """Number of a device (None: the current one); the stream is CuPy's current one."""
    if device is None:
        return int(_cupy.cuda.runtime.getDevice()), None
    checked = _arrays.adapter_for("cupy").check_device(device)
    return place(None) if checked is None else (int(checked), None)


def place_of(arrays: Sequence[Array]) -> tuple[int, None]:
    """The device that all arrays are on."""
    devices = {int(array.device.id) for array in arrays}
    if len(devices) != 1:
        message = "all arrays must be on one CUDA device"
        raise ValueError(message)
    return devices.pop(), None


def empty(dtype: str, shape: tuple[int, ...], device: int) -> Array:
    """Room for an array on the current device."""
    del device
    return _arrays.make_room(
        lambda dtype, shape: (_cupy.empty(shape, _dtype(dtype)), None), dtype, shape
    )[0]


def memory(nbytes: int, device: int) -> tuple[int, Array]:
    """Memory of CuPy's allocator: its address, and what keeps it."""
    del device
    owner = _cupy.empty(nbytes, "uint8")
    return int(owner.data.ptr), owner


def check(array: Array, dtype: str, shape: tuple[int, ...]) -> None:
    """ValueError unless an array can hold a tensor as it lies there."""
    if array.dtype != _dtype(dtype) or array.shape != shape:
        message = f"expected dtype {dtype} and shape {shape}, not {array.dtype} and {array.shape}"
        raise ValueError(message)
    if not array.flags.c_contiguous:
        message = "the array must be C-contiguous"
        raise ValueError(message)


def to_bytes(array: Array) -> bytes:
    """The bytes of an array, on the host."""
    return bytes(_cupy.asnumpy(array).tobytes())


def _dtype(name: str) -> Any:  # noqa: ANN401 - a numpy dtype
    try:
        return _cupy.dtype(name)
    except TypeError:
        raise KeyError(name) from None
