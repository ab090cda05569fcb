"""How the elements of a parameter become a code, and elements again, on the device they are on.

A code is a one-dimensional uint8 tensor on the parameter's device. Everything above this module
sees codes only through the `Codec` of their device, so that a device is supported by writing one.
"""

import ctypes
import os
from collections.abc import Callable
from functools import cache
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

    Attributes:
        works_by_itself: Whether the device goes on while the host does, so that reading its memory
            would wait for it.
    """

    works_by_itself: bool

    def encode(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the code of a contiguous tensor of one of `DTYPES`, in memory of its own.

        A device that works by itself may know later how long it is: only `decode`, `header` and
        `settle` take such a code.
        """

    def settle(self, code: torch.Tensor) -> None:
        """Makes a code one that may be copied, measured and stored; it stays the same tensor."""

    def decode(self, code: torch.Tensor, out: torch.Tensor, start_bytes: int) -> None:
        """Fills `out`, contiguous uint8, with the decoded bytes from `start_bytes` on.

        Raises:
            CorruptDataError: If the code is damaged, as far as that is known without waiting for
                a device that works by itself.
        """

    def header(self, code: torch.Tensor) -> Header:
        """Reads what the tensor in a code is, without decoding it.

        Raises:
            CorruptDataError: If that part of the code is damaged, or it is no code.
        """


def named_dtype(name: str) -> torch.dtype:
    """The type of parameters that has this name in a code.

    Raises:
        TypeError: If parameters do not have it.
    """
    dtype = _BY_NAME.get(name)
    if dtype is None:
        message = f"the code holds elements of type {name}, which parameters do not have"
        raise TypeError(message)
    return dtype


def codec_for(device: torch.device) -> Codec:
    """The codec of a device.

    Raises:
        NotImplementedError: If there is none.
        ImportError: If it needs a package that is not installed; the message names the extra.
    """
    make = CODECS.get(device.type)
    if make is not None:
        return make()
    message = (
        f"parameters on {str(device)!r} cannot be compressed: neuzip_rs.nn has codecs for the CPU "
        "and for CUDA devices, one for this device's memory is missing; keep compressed modules "
        "there, or nz.nn.decompress_ them before moving them"
    )
    raise NotImplementedError(message)


class _CpuCodec:
    """The Rust codec, reading and writing the memory of torch's CPU tensors."""

    works_by_itself = False

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
        # The very tensors, not buffers of them: those take torch as long as a small one decodes.
        if not code.is_contiguous():
            code = code.contiguous()
        _native.decompress_to_use(code, out, start_bytes, out.nbytes, _threads())

    def header(self, code: torch.Tensor) -> Header:
        name, shape, _ = _native.stream_header(_bytes_of(code))
        return Header(named_dtype(name), tuple(shape))

    def settle(self, code: torch.Tensor) -> None:
        """Codes are as long as they are."""


@cache
def _cpu() -> Codec:
    return _CpuCodec()


@cache
def _cuda() -> Codec:
    # Imported when a parameter is there: CuPy is not needed before.
    from neuzip_rs.cuda._codec import cuda_codec

    return cuda_codec()


CODECS: Final[dict[str, Callable[[], Codec]]] = {"cpu": _cpu, "cuda": _cuda}
"""What makes the codec of a type of devices."""


def _bytes_of(tensor: torch.Tensor) -> "Buffer":
    """A view of a contiguous uint8 tensor."""
    return cast("Buffer", tensor.detach().numpy())


def _threads() -> int | None:
    """As many threads as torch takes for an operator, unless the user has decided."""
    return None if "NEUZIP_NUM_THREADS" in os.environ else torch.get_num_threads()
