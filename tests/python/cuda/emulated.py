"""A device of the emulation: what neuzip_rs.cuda needs of a GPU, on the CPU.

Memory of the device is memory of the process. The current stream works at once, as the operators of
torch's CPU tensors between its tasks do; every other stream does nothing before somebody waits for
it, so that a missing wait shows. Host memory that was let go of is overwritten, and so is device
memory, so that a missing `hold` shows.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from neuzip_rs.cuda._device import Bytes, Device, Memory, Scalar
from tests.python.cuda.emulation import Emulated

_POISON = 0xE5


@functools.cache
def _kernels(source: str) -> Emulated:
    return Emulated(source)


class _Owner:
    """Memory that is spoilt when its owner goes, and not freed: pointers may still lead there.

    Host memory is spoilt at once, device memory in the order of the current stream, which is when
    allocators would use it again.
    """

    def __init__(self, memory: Bytes, stream: "EmulatedStream | None") -> None:
        self._memory, self._stream = memory, stream

    def __del__(self) -> None:
        memory = self._memory
        if self._stream is None:
            memory[:] = _POISON
        else:
            self._stream.add(lambda: memory.fill(_POISON))


class _HostMemory(np.ndarray[Any, np.dtype[np.uint8]]):
    """An array that has an owner besides."""

    owner: _Owner

    def __array_finalize__(self, source: Any) -> None:  # noqa: ANN401 - as numpy has it
        if (owner := getattr(source, "owner", None)) is not None:
            self.owner = owner


class EmulatedEvent:
    """A place in a stream."""

    def __init__(self, stream: "EmulatedStream", place: int, *, told_late: bool) -> None:
        self._stream, self._place, self._told_late = stream, place, told_late

    @property
    def done(self) -> bool:
        return not self._told_late and self._stream.done >= self._place

    def synchronize(self) -> None:
        self._told_late = False
        self._stream.catch_up(self._place)


class EmulatedStream:
    """Work in order: done at once, or when it is waited for."""

    def __init__(self, device: "EmulatedDevice", *, lazy: bool) -> None:
        self._device, self._lazy = device, lazy
        self._tasks: deque[Callable[[], None]] = deque()
        self.asked = self.done = 0

    def add(self, task: Callable[[], None]) -> None:
        self.asked += 1
        self._tasks.append(task)
        if not self._lazy:
            self.catch_up(self.asked)

    def catch_up(self, place: int) -> None:
        while self.done < place:
            self._tasks.popleft()()
            self.done += 1

    def upload(self, target: int, source: Bytes) -> None:
        assert isinstance(source, _HostMemory), "uploads are from pinned memory"
        # As in CUDA, the address alone is remembered.
        address, nbytes = source.ctypes.data, source.size
        self._device.uploaded += nbytes
        self.add(lambda: _copy(target, address, nbytes))

    def download(self, target: Bytes, source: int) -> None:
        assert isinstance(target, _HostMemory), "downloads are into pinned memory"
        address, nbytes = target.ctypes.data, target.size
        self._device.downloaded += nbytes
        self.add(lambda: _copy(address, source, nbytes))

    def record(self) -> EmulatedEvent:
        return EmulatedEvent(self, self.asked, told_late=self._device.tells_late)

    def wait(self, event: EmulatedEvent) -> None:  # type: ignore[override]
        self.add(event.synchronize)


class EmulatedDevice:
    """The device; `uploaded` and `downloaded` count what passed between it and the host."""

    number = 0

    def __init__(
        self, *, processors: int = 2, lazy: bool = False, tells_late: bool = False
    ) -> None:
        """Makes a device.

        Args:
            processors: Its multiprocessors.
            lazy: The current stream, too, does nothing before somebody waits for it.
            tells_late: Events are said to be done only when somebody has waited for them.
        """
        self.processors = processors
        self.tells_late = tells_late
        self._lazy = lazy
        self.stream = EmulatedStream(self, lazy=lazy)
        self._others: list[EmulatedStream] = []
        self._allocated: list[Bytes] = []
        self._status = np.zeros(16, np.uint8)
        self.uploaded = self.downloaded = self.launches = 0

    def second_stream(self) -> EmulatedStream:
        self._others.append(EmulatedStream(self, lazy=True))
        return self._others[-1]

    def empty(self, nbytes: int) -> Memory:
        memory = self._room(nbytes)
        return Memory(memory.ctypes.data, _Owner(memory, self.stream))

    def staging(self, nbytes: int) -> Bytes:
        memory = self._room(nbytes)
        host = memory.view(_HostMemory)
        host.owner = _Owner(memory, None)
        return host

    def _room(self, nbytes: int) -> Bytes:
        room = np.full(nbytes + 271, _POISON, np.uint8)
        self._allocated.append(room)
        start = -room.ctypes.data % 256
        return room[start : start + max(nbytes, 0)]

    def hold(self, *objects: object) -> None:
        # The task is all that keeps them.
        held = [objects]
        self.stream.add(held.clear)

    def launch(
        self, source: str, kernel: str, blocks: int, threads: int, *arguments: Scalar
    ) -> None:
        assert blocks > 0
        self.launches += 1
        self.stream.add(lambda: _kernels(source).launch(kernel, blocks, threads, *arguments))

    def status(self) -> Memory:
        return Memory(self._status.ctypes.data, self._status)

    def synchronize(self) -> None:
        for stream in (*self._others, self.stream):
            stream.catch_up(stream.asked)


def _copy(target: int, source: int, nbytes: int) -> None:
    import ctypes

    ctypes.memmove(target, source, nbytes)


@contextmanager
def current(device: EmulatedDevice) -> Iterator[Device]:
    """As `cupy_device`."""
    yield device
