"""CuPy, streams, memory and kernels: what the rest of the package needs of a device."""

import re
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final, TypeAlias

Cupy: TypeAlias = Any
"""The module cupy, and what comes of it: typed nowhere."""

_SOURCES: Final = Path(__file__).parent / "sources"
_INCLUDE: Final = re.compile(r'^#include "(\w+\.cuh)"$', re.MULTILINE)
_MISSING: Final = (
    "decoding on a GPU needs CuPy, which cannot be imported: install neuzip_rs[cuda12] or "
    "neuzip_rs[cuda13], whichever CUDA version the driver (and torch) has"
)


def cupy() -> Cupy:
    """The module cupy.

    Raises:
        ImportError: If it is not installed; the message names the extra.
    """
    try:
        return import_module("cupy")
    except ImportError as error:
        raise ImportError(_MISSING) from error


def is_available() -> bool:
    """Whether there is a CUDA device that CuPy can use."""
    try:
        return int(cupy().cuda.runtime.getDeviceCount()) > 0
    except Exception:
        return False


def source(name: str) -> str:
    """A .cu file with what it includes written into it.

    CuPy keeps compiled kernels by the text it is given, which has to be all of it.
    """
    done: set[str] = set()

    def expand(text: str) -> str:
        def replace(match: re.Match[str]) -> str:
            included = match[1]
            if included in done:
                return ""
            done.add(included)
            return expand((_SOURCES / included).read_text(encoding="utf-8"))

        return _INCLUDE.sub(replace, text)

    return expand((_SOURCES / f"{name}.cu").read_text(encoding="utf-8")).replace("#pragma once", "")


@cache
def _module(name: str, device: int) -> Cupy:
    del device  # A module belongs to a device.
    return cupy().RawModule(code=source(name), options=("-std=c++17",), backend="nvrtc")


def kernel(name: str, function: str) -> Cupy:
    """A kernel of `name`.cu for the current device, compiled when it is first asked for."""
    return _function(name, function, cupy().cuda.runtime.getDevice())


@cache
def _function(name: str, function: str, device: int) -> Cupy:
    # Modules look their functions up anew each time.
    return _module(name, device).get_function(function)


@cache
def processors(device: int) -> int:
    """Multiprocessors of a device."""
    return int(cupy().cuda.Device(device).attributes["MultiProcessorCount"])


@contextmanager
def on(device: int, stream: int | None) -> Iterator[None]:
    """Makes a device and a stream (its address, `None` for CuPy's own) CuPy's current ones."""
    module = cupy()
    with module.cuda.Device(device):
        if stream is None:
            yield
            return
        external = getattr(module.cuda.Stream, "from_external", None)
        made = (
            module.cuda.ExternalStream(stream)
            if external is None
            else external(_Address(stream, device))
        )
        with made:
            yield


class _Address:
    """A stream as the CUDA stream protocol has it."""

    def __init__(self, stream: int, device: int) -> None:
        self._stream = stream
        self.device = device

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._stream


# Pinned memory that a copy may still be reading, and the event behind the copy.
_in_flight: Final[deque[tuple[Cupy, Cupy]]] = deque()
_in_flight_lock: Final = threading.Lock()


def staging(nbytes: int) -> Cupy:
    """Pinned host memory, as a numpy array of bytes; `hold` it until it has been copied."""
    with _in_flight_lock:
        while _in_flight and _in_flight[0][0].done:
            _in_flight.popleft()
    numpy = import_module("numpy")
    memory = cupy().cuda.alloc_pinned_memory(max(nbytes, 1))
    return numpy.frombuffer(memory, numpy.uint8, nbytes)


def hold(memory: Cupy) -> None:
    """Keeps staging memory until what is on the current stream has been done."""
    event = cupy().cuda.Event(disable_timing=True)
    event.record()
    _in_flight.append((event, memory))


def launch(
    function: Cupy, blocks: int, threads: int, arguments: Sequence[object], shared_bytes: int = 0
) -> None:
    """Launches a kernel on the current stream; integers must be of numpy's sized types."""
    function((blocks,), (threads,), tuple(arguments), shared_mem=shared_bytes)
