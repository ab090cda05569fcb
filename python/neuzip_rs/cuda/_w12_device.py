"""What W12 needs of a GPU: launches on torch's current stream, scratch memory, a few figures."""

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np

# torch's; through import_module, so that type checkers need no torch.
Tensor: TypeAlias = Any
TorchDevice: TypeAlias = Any
Module: TypeAlias = Any
# CuPy's, likewise.
RawModule: TypeAlias = Any
RawKernel: TypeAlias = Any

_HERE: Final = Path(__file__).resolve()
# In the package, and before it is built in the repository.
_SOURCES: Final = next(
    folder for folder in (_HERE.parent / "sources", _HERE.parents[3] / "cuda") if folder.is_dir()
)
_CUPY_EXTRAS: Final = "cuda12]' or 'neuzip_rs[cuda13"
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

    def workspace(self, partial_sums: int, tickets: int) -> tuple[int, int]:
        """Addresses of that many FP32, and of tickets: 32-bit zeros that kernels leave zero."""


def needed(name: str, extra: str) -> Module:
    """Imports a package that is not installed with neuzip_rs itself.

    Args:
        name: The package.
        extra: Of neuzip_rs, which brings it along.

    Returns:
        The module.

    Raises:
        ImportError: If it is not there; says what to install.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        message = f"W12 needs {name}: pip install 'neuzip_rs[{extra}]'"
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
        self._cupy = needed("cupy", _CUPY_EXTRAS)
        self._torch = needed("torch", "torch")
        self._device = device
        self._properties = self._torch.cuda.get_device_properties(device)
        self._workspaces: dict[int, tuple[Tensor, Tensor]] = {}
        self._captured_tickets: Tensor | None = None
        self._captured_used = 0

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
        cuda = self._cupy.cuda
        with cuda.Device(self._device.index), cuda.ExternalStream(stream):
            _kernel(self._cupy, source, kernel)(
                blocks, (block,), arguments, shared_mem=shared_bytes
            )

    def workspace(self, partial_sums: int, tickets: int) -> tuple[int, int]:
        if not partial_sums:
            return 0, 0
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
        return found[0].data_ptr(), found[1].data_ptr()

    def _captured_workspace(self, partial_sums: int, tickets: int) -> tuple[int, int]:
        """Scratch memory of a launch in a graph, which may be replayed next to anything else.

        Tickets of its own, never given to another: zeroing them would be a node of the graph. A
        graph's memory goes back to the graph when its tensor does, and is used again in order.
        """
        partial = self._empty(partial_sums)
        slab, first = self._captured_tickets, self._captured_used
        if slab is None or first + tickets > slab.numel():
            return partial.data_ptr(), self._zeros(tickets).data_ptr()
        self._captured_used += tickets
        return partial.data_ptr(), slab[first:].data_ptr()

    def _empty(self, count: int) -> Tensor:
        return self._torch.empty(count, dtype=self._torch.float32, device=self._device)

    def _zeros(self, count: int) -> Tensor:
        return self._torch.zeros(count, dtype=self._torch.int32, device=self._device)


@cache
def _module(cupy: Module, source: str) -> RawModule:
    code = (_SOURCES / f"{source}.cu").read_text()
    return cupy.RawModule(code=code, options=("-std=c++17", f"-I{_SOURCES}"))


@cache
def _kernel(cupy: Module, source: str, name: str) -> RawKernel:
    return _module(cupy, source).get_function(name)
