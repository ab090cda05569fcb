"""What W12 needs of a GPU: launches on torch's current stream, scratch memory, a few figures."""

from importlib import import_module
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from neuzip_rs.cuda import _runtime

if TYPE_CHECKING:
    import numpy as np

# torch's; through import_module, so that type checkers need no torch.
Tensor: TypeAlias = Any
TorchDevice: TypeAlias = Any
Module: TypeAlias = Any
# CuPy's, likewise.
RawKernel: TypeAlias = Any

# Streams of which a process keeps scratch memory; beyond, it is made for each product.
_MAX_WORKSPACES: Final = 64
_MIN_TICKETS: Final = 4096
# 4 MiB; a graph of a step of Llama 8B takes about 10,000.
_CAPTURED_TICKETS: Final = 1 << 20


class Device(Protocol):
    """A device that runs the kernels of cuda/."""

    @property
    def multiprocessors(self) -> int:
        """How many the device has."""

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability."""

    @property
    def l2_bytes(self) -> int:
        """Size of the second-level cache."""

    def launch(
        self,
        source: str,
        kernel: str,
        grid: int | tuple[int, int],
        block: int,
        *arguments: "np.generic",
        shared_bytes: int = 0,
    ) -> None:
        """Launches a kernel of cuda/`source`.cu on torch's current stream."""

    def workspace(self, partial_sums: int, tickets: int) -> tuple[Tensor, Tensor]:
        """At least that many FP32, and tickets: 32-bit zeros that kernels leave zero."""


def torch() -> Module:
    """The module torch.

    Raises:
        ImportError: If it is not installed; the message names the extra.
    """
    try:
        return import_module("torch")
    except ImportError as error:
        message = "W12 needs torch, which cannot be imported: install neuzip_rs[torch]"
        raise ImportError(message) from error


# By torch's device; tests put one here that runs the kernels on the CPU.
devices: dict[TorchDevice, Device] = {}


def device_of(tensor: Tensor) -> Device:
    """The device of a tensor.

    Args:
        tensor: A torch tensor.

    Returns:
        What launches kernels there.

    Raises:
        ValueError: If the tensor is not on a GPU.
    """
    key = tensor.device
    found = devices.get(key)
    if found is None:
        if key.type != "cuda":
            message = f"W12 needs a tensor on a GPU, not on {key}"
            raise ValueError(message)
        found = devices[key] = _Gpu(key)
    return found


class _Gpu:
    """A CUDA device, through CuPy."""

    def __init__(self, device: TorchDevice) -> None:
        _runtime.cupy()
        self._torch = torch()
        self._device = device
        self._properties = self._torch.cuda.get_device_properties(device)
        self._kernels: dict[str, RawKernel] = {}
        self._workspaces: dict[int, tuple[Tensor, Tensor]] = {}
        self._captured_tickets: Tensor | None = None
        self._captured_used = 0
        self._lock = Lock()

    @property
    def multiprocessors(self) -> int:
        return int(self._properties.multi_processor_count)

    @property
    def capability(self) -> tuple[int, int]:
        return self._properties.major, self._properties.minor

    @property
    def l2_bytes(self) -> int:
        return int(self._properties.L2_cache_size)

    def launch(
        self,
        source: str,
        kernel: str,
        grid: int | tuple[int, int],
        block: int,
        *arguments: "np.generic",
        shared_bytes: int = 0,
    ) -> None:
        stream = self._torch.cuda.current_stream(self._device).cuda_stream
        blocks: tuple[int, ...] = (grid,) if isinstance(grid, int) else grid
        with _runtime.on(self._device.index, stream):
            function = self._kernels.get(kernel)
            if function is None:
                function = self._kernels[kernel] = _runtime.kernel(source, kernel)
            function(blocks, (block,), arguments, shared_mem=shared_bytes)

    def workspace(self, partial_sums: int, tickets: int) -> tuple[Tensor, Tensor]:
        if self._torch.cuda.is_current_stream_capturing():
            return self._captured_workspace(partial_sums, tickets)
        if self._captured_tickets is None:
            self._captured_tickets = self._zeros(_CAPTURED_TICKETS)
        stream = self._torch.cuda.current_stream(self._device).cuda_stream
        found = self._workspaces.get(stream)
        if found is None or found[0].numel() < partial_sums or found[1].numel() < tickets:
            sizes = partial_sums, max(tickets, _MIN_TICKETS)
            if found is not None:
                sizes = max(sizes[0], found[0].numel()), max(sizes[1], found[1].numel())
            found = self._empty(sizes[0]), self._zeros(sizes[1])
            if stream in self._workspaces or len(self._workspaces) < _MAX_WORKSPACES:
                self._workspaces[stream] = found
        return found

    def _captured_workspace(self, partial_sums: int, tickets: int) -> tuple[Tensor, Tensor]:
        """Scratch memory of a launch in a graph, which may be replayed next to anything else.

        Tickets of its own, never given to another: zeroing them would be a node of the graph. A
        graph's memory goes back to the graph when its tensor does, and is used again in order.
        """
        partial = self._empty(partial_sums)
        slab = self._captured_tickets
        with self._lock:
            first = self._captured_used
            self._captured_used += tickets
        if slab is None or first + tickets > slab.numel():
            return partial, self._zeros(tickets)
        return partial, slab[first:]

    def _empty(self, count: int) -> Tensor:
        return self._torch.empty(count, dtype=self._torch.float32, device=self._device)

    def _zeros(self, count: int) -> Tensor:
        return self._torch.zeros(count, dtype=self._torch.int32, device=self._device)
