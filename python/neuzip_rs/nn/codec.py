"""How the elements of a parameter become a code, and elements again, on the device they are on.

A code is a one-dimensional uint8 tensor on the parameter's device. Everything above this module
sees codes only through the `Codec` of their device, so that a device is supported by writing one.
"""

import ctypes
import os
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, cast

import numpy as np
import torch

from neuzip_rs import _native

if TYPE_CHECKING:
    from typing_extensions import Buffer

DTYPES: Final[dict[torch.dtype, str]] = {
    getattr(torch, name): name
    for name in (
        "bfloat16",
        "float16",
        "float32",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
    )
    if hasattr(torch, name)
}
"""The types of parameters that can be compressed, with their names in a code."""
_BY_NAME: Final = {name: dtype for dtype, name in DTYPES.items()}

# Measured on layers of 2048 x 2048 BF16: one level is as quick to decode as the other, and this one
# is smaller by up to 3 points; making it takes a few percent of a training step in any case.
_LEVEL: Final = "default"


class Header(NamedTuple):
    """What a code says of the tensor in it."""

    dtype: torch.dtype
    shape: tuple[int, ...]


class Codec(Protocol):
    """Compression on a kind of device.

    A codec keeps no tensors: where decoded elements live, and for how long, is up to its caller.
    """

    def encode(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the code of a contiguous tensor of one of `DTYPES`, in memory of its own."""

    def decode(self, code: torch.Tensor, out: torch.Tensor, start_bytes: int) -> None:
        """Fills `out`, contiguous uint8, with the decoded bytes from `start_bytes` on.

        Raises:
            CorruptDataError: If the code is damaged.
        """

    def header(self, code: torch.Tensor) -> Header:
        """Reads what the tensor in a code is, without decoding it.

        Raises:
            CorruptDataError: If that part of the code is damaged, or it is no code.
        """


def codec_for(device: torch.device) -> Codec:
    """The codec of a device.

    Raises:
        NotImplementedError: If there is none.
    """
    if device.type == "cpu":
        return _CPU
    message = (
        f"parameters on {str(device)!r} cannot be compressed: neuzip_rs.nn has a codec for the CPU "
        "only, one for this device's memory is missing; keep compressed modules on the CPU, or "
        "nz.nn.decompress_ them before moving them"
    )
    raise NotImplementedError(message)


class _CpuCodec:
    """The Rust codec, reading and writing the memory of torch's CPU tensors."""

    def encode(self, tensor: torch.Tensor) -> torch.Tensor:
        compressed = _native.compress(
            _bytes_of(tensor.view(-1).view(torch.uint8)),
            DTYPES[tensor.dtype],
            tuple(tensor.shape),
            level=_LEVEL,
            threads=_threads(),
        )
        # Nobody else holds the compressed tensor, so that its memory can be the code's: no copy.
        view = np.frombuffer(memoryview(compressed), np.uint8)
        room = (ctypes.c_ubyte * view.size).from_address(view.ctypes.data)
        room.owner = view  # type: ignore[attr-defined]  # keeps the memory alive
        return torch.frombuffer(room, dtype=torch.uint8)

    def decode(self, code: torch.Tensor, out: torch.Tensor, start_bytes: int) -> None:
        _native.decompress_into(
            _bytes_of(code), _bytes_of(out), start=start_bytes, threads=_threads()
        )

    def header(self, code: torch.Tensor) -> Header:
        name, shape, _ = _native.stream_header(_bytes_of(code))
        dtype = _BY_NAME.get(name)
        if dtype is None:
            message = f"the code holds elements of type {name}, which parameters do not have"
            raise TypeError(message)
        return Header(dtype, tuple(shape))


_CPU: Final = _CpuCodec()


def _bytes_of(tensor: torch.Tensor) -> "Buffer":
    """A view of a contiguous uint8 tensor."""
    return cast("Buffer", tensor.detach().numpy())


def _threads() -> int | None:
    """As many threads as torch takes for an operator, unless the user has decided."""
    return None if "NEUZIP_NUM_THREADS" in os.environ else torch.get_num_threads()
