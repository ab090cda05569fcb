"""What the launch logic needs of a device, and how CuPy and torch give it.

Everything that plans, copies and launches is written against `Device`, so that it runs the same
way on a GPU and in the emulation of the tests (tests/python/cuda/emulated.py), where streams do
what they were told as late and in as odd an order as CUDA allows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias, overload

import numpy as np

from neuzip_rs.cuda import _runtime

if TYPE_CHECKING:
    from types import ModuleType

Bytes: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"
Scalar: TypeAlias = "np.uint32 | np.uint64"
"""What kernels take: addresses are 64 bits."""

_STATUS_BYTES: Final = 16
_TO_DEVICE: Final = 1
_TO_HOST: Final = 2


class Memory(NamedTuple):
    """Memory of a device, which belongs to `owner`."""

    address: int
    owner: object


class Event(Protocol):
    """A place in a stream."""

    @property
    def done(self) -> bool:
        """Whether the device has got there."""

    def synchronize(self) -> None:
        """Waits until it has."""


class Stream(Protocol):
    """Work that a device does in order. Host memory must be pinned, and stay until it is done."""

    def upload(self, target: int, source: Bytes) -> None:
        """Copies to the device."""

    def download(self, target: Bytes, source: int) -> None:
        """Copies to the host."""

    def record(self) -> Event:
        """The place behind what has been asked for until now."""

    def wait(self, event: Event) -> None:
        """Does what comes from now on only when another stream has got to a place."""


class Device(Protocol):
    """A device, and the stream that is its current one."""

    @property
    def number(self) -> int:
        """Its number."""

    @property
    def processors(self) -> int:
        """Multiprocessors."""

    @property
    def stream(self) -> Stream:
        """The stream that results are used on."""

    def second_stream(self) -> Stream:
        """A stream beside the current one."""

    def empty(self, nbytes: int) -> Memory:
        """Memory that is free again, for later work on the current stream, when it is dropped."""

    def staging(self, nbytes: int) -> Bytes:
        """Pinned memory of the host."""

    def hold(self, *objects: object) -> None:
        """Keeps objects until the current stream has done what it has been told."""

    def launch(
        self, source: str, kernel: str, blocks: int, threads: int, *arguments: Scalar
    ) -> None:
        """Runs a kernel of cuda/`source`.cu on the current stream."""

    def status(self) -> Memory:
        """What kernels write their first error into: Status of cuda/layout.cuh."""

    def synchronize(self) -> None:
        """Waits for everything on the device."""


ALIGNMENT: Final = 16
"""Payloads begin at multiples of this, and what kernels read and write widely."""


@overload
def aligned(count: int) -> int: ...
@overload
def aligned(count: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]": ...
def aligned(count: Any) -> Any:
    """The next multiple of `ALIGNMENT`: of a number, or of each of an array."""
    return (count + (ALIGNMENT - 1)) // ALIGNMENT * ALIGNMENT


def pointer(address: int) -> np.uint64:
    """An address as kernels take it."""
    return np.uint64(address % (1 << 64))


def to_device(device: Device, content: Bytes) -> Memory:
    """A copy of bytes on the device."""
    host = device.staging(content.size)
    host[:] = content
    memory = device.empty(content.size)
    device.stream.upload(memory.address, host)
    device.hold(host, memory)
    return memory


@contextmanager
def cupy_device(number: int, stream: int | None, frame: "ModuleType") -> Iterator[Device]:
    """A device for the time being, with a stream (its address, `None` for CuPy's own) as current.

    `frame` is the module of the framework whose memory is used.
    """
    with _runtime.on(number, stream):
        yield _CupyDevice(number, frame)


class _CupyStream:
    def __init__(self, stream: _runtime.Cupy) -> None:
        self._stream = stream

    def upload(self, target: int, source: Bytes) -> None:
        if source.size:
            copy = _runtime.cupy().cuda.runtime.memcpyAsync
            copy(target, source.ctypes.data, source.size, _TO_DEVICE, self._stream.ptr)

    def download(self, target: Bytes, source: int) -> None:
        if target.size:
            copy = _runtime.cupy().cuda.runtime.memcpyAsync
            copy(target.ctypes.data, source, target.size, _TO_HOST, self._stream.ptr)

    def record(self) -> Event:
        event: Event = _runtime.cupy().cuda.Event(disable_timing=True)
        self._stream.record(event)
        return event

    def wait(self, event: Event) -> None:
        self._stream.wait_event(event)


class _CupyDevice:
    def __init__(self, number: int, frame: "ModuleType") -> None:
        self.number = number
        self.processors = _runtime.processors(number)
        self.stream = _CupyStream(_runtime.cupy().cuda.get_current_stream())
        self._frame = frame

    def second_stream(self) -> Stream:
        return _CupyStream(_runtime.cupy().cuda.Stream(non_blocking=True))

    def empty(self, nbytes: int) -> Memory:
        address, owner = self._frame.memory(max(nbytes, 1), self.number)
        return Memory(address, owner)

    def staging(self, nbytes: int) -> Bytes:
        staging: Bytes = _runtime.staging(nbytes)
        return staging

    def hold(self, *objects: object) -> None:
        _runtime.hold(objects)

    def launch(
        self, source: str, kernel: str, blocks: int, threads: int, *arguments: Scalar
    ) -> None:
        _runtime.launch(_runtime.kernel(source, kernel), blocks, threads, arguments)

    def status(self) -> Memory:
        found = _statuses.get(self.number)
        if found is None:
            memory = _runtime.cupy().zeros(_STATUS_BYTES, np.uint8)
            # Other streams write into it, too.
            _runtime.cupy().cuda.get_current_stream().synchronize()
            found = _statuses[self.number] = Memory(int(memory.data.ptr), memory)
        return found

    def synchronize(self) -> None:
        _runtime.cupy().cuda.runtime.deviceSynchronize()


_statuses: Final[dict[int, Memory]] = {}
