"""Torch tensors on CUDA devices."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final, TypeAlias

from neuzip_rs import _arrays

Array: TypeAlias = Any

_torch: Final[Any] = import_module("torch")


def place(device: object) -> tuple[int, int]:
    """Number of a device (None: the current one), and its current stream."""
    if device is None:
        number = _torch.cuda.current_device()
    else:
        found = _torch.device(device)
        if found.type != "cuda":
            message = f"device must be a CUDA device, not {str(device)!r}"
            raise ValueError(message)
        number = _torch.cuda.current_device() if found.index is None else found.index
    return int(number), int(_torch.cuda.current_stream(number).cuda_stream)


def place_of(arrays: Sequence[Array]) -> tuple[int, int]:
    """The device that all arrays are on, and its current stream."""
    devices = {array.device for array in arrays}
    if len(devices) != 1 or next(iter(devices)).type != "cuda":
        message = "all tensors must be on one CUDA device"
        raise ValueError(message)
    return place(devices.pop())


def empty(dtype: str, shape: tuple[int, ...], device: int) -> Array:
    """Room for a tensor."""
    return _arrays.make_room(
        lambda dtype, shape: (
            _torch.empty(shape, dtype=_dtype(dtype), device=_torch.device("cuda", device)),
            None,
        ),
        dtype,
        shape,
    )[0]


def memory(nbytes: int, device: int) -> tuple[int, Array]:
    """Memory of torch's allocator: its address, and what keeps it."""
    owner = _torch.empty(nbytes, dtype=_torch.uint8, device=_torch.device("cuda", device))
    return int(owner.data_ptr()), owner


def check(array: Array, dtype: str, shape: tuple[int, ...]) -> None:
    """ValueError unless an array can hold a tensor as it lies there."""
    if array.dtype != _dtype(dtype) or tuple(array.shape) != shape:
        message = (
            f"expected dtype {dtype} and shape {shape}, not {array.dtype} and {tuple(array.shape)}"
        )
        raise ValueError(message)
    if not array.is_contiguous() or array.is_conj() or array.is_neg():
        message = "the tensor must be contiguous, without lazy conjugation or negation"
        raise ValueError(message)


def to_bytes(array: Array) -> bytes:
    """The bytes of a contiguous tensor, on the host."""
    flat = array.detach().as_strided((array.numel(),), (1,)).view(_torch.uint8)
    return bytes(flat.cpu().numpy())


def _dtype(name: str) -> Any:  # noqa: ANN401 - a torch.dtype
    found = getattr(_torch, name, None)
    if found is None:
        raise KeyError(name)
    return found
