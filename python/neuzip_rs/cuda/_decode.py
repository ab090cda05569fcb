"""Many tensors in one launch: plan on the host, upload, decode."""

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from neuzip_rs import _native
from neuzip_rs._errors import BaseMismatchError
from neuzip_rs._native import CompressedTensor
from neuzip_rs.cuda import _launch, _pipeline, _runtime
from neuzip_rs.cuda._device import Device, Memory, aligned, cupy_device, to_device

if TYPE_CHECKING:
    from typing_extensions import Buffer

Array: TypeAlias = Any
Compressed: TypeAlias = "CompressedTensor | Buffer"


def decompress_many(
    tensors: Iterable[Compressed],
    *,
    device: object = None,
    framework: str = "torch",
    bases: Sequence[Array] | None = None,
    verify: bool = True,
) -> list[Array]:
    """Decodes compressed tensors on a GPU, all of them in one launch.

    Compressed bytes are copied to the device in pieces, and those that have arrived are decoded
    while the next are on their way. Nothing waits for the device: whether the data was sound is
    known to `check`.

    Args:
        tensors: What `neuzip_rs.compress` returned, or its bytes.
        device: The device to decode on, as the framework names it; by default its current one.
        framework: "torch" or "cupy".
        bases: For each tensor the array on the same device that it was compressed against, or
            None for those that need none.
        verify: Compare the hashes of all chunks, and of bases that are to be copied.

    Returns:
        One array per tensor, on the device.

    Raises:
        ImportError: If CuPy (or torch) is not installed.
        CorruptDataError: If a header is damaged; UnsupportedVersionError if a later release wrote
            it.
        BaseMismatchError: If a tensor needs a base, or another file, that is not given.
        OutputTooLargeError: If the memory of the device does not suffice.
    """
    _runtime.cupy()
    frame = _frameworks(framework)
    opened = [_open(c) for c in tensors]
    number, stream = frame.place(device)
    with cupy_device(number, stream, frame) as current:
        outs = [frame.empty(c.dtype, c.shape, number) for c in opened]
        decode_into(current, opened, outs, bases, verify=verify)
    return outs


class Resident:
    """Compressed tensors that stay on a device, to be decoded again and again.

    Making one copies the compressed bytes; `decode` only launches kernels, so that it can be
    captured in a CUDA graph.
    """

    def __init__(
        self,
        tensors: Iterable[Compressed],
        outs: Sequence[Array],
        *,
        bases: Sequence[Array] | None = None,
        verify: bool = True,
    ) -> None:
        """Copies compressed tensors to the device on which their outputs are.

        Args:
            tensors: What `neuzip_rs.compress` returned, or its bytes.
            outs: For each tensor a contiguous array of its type and shape, all on one device.
            bases: As in `decompress_many`.
            verify: Compare the hashes of all chunks in every decode.

        Raises:
            ImportError: If CuPy is not installed.
            ValueError: If an output does not have the type, shape or device it must have.
            CorruptDataError: If a header is damaged.
        """
        _runtime.cupy()
        opened = [_open(c) for c in tensors]
        outs = list(outs)
        frame = _framework_of(outs)
        number, stream = frame.place_of(outs)
        for c, out in zip(opened, outs, strict=True):
            frame.check(out, c.dtype, c.shape)
        self._frame, self._outs, self._bases = frame, outs, bases
        with cupy_device(number, stream, frame) as current:
            # Made now, because a graph that is being captured cannot make it.
            current.status()
            streams, addresses = _upload(current, opened)
            addressed = bases_on_device(current, opened, bases, verify=verify)
            placed = [
                (c, address, _pointer(out), base)
                for c, address, out, base in zip(opened, addresses, outs, addressed, strict=True)
            ]
            plan, self._cuts, self._others = _native.device_plan(placed, verify=verify)
            self._memory = streams, to_device(current, np.frombuffer(plan, np.uint8))

    def decode(self) -> Sequence[Array]:
        """Decodes into the outputs, on the current stream; returns them."""
        number, stream = self._frame.place_of(self._outs)
        plan = self._memory[1].address
        with cupy_device(number, stream, self._frame) as current:
            _launch.decode_cut(current, plan, 0, self._cuts)
            _launch.decode_any(current, plan, self._cuts, self._others)
        return self._outs


def check(device: int | None = None) -> None:
    """Waits for a device, and raises if anything decoded on it since the last check was damaged.

    Args:
        device: Number of the device; by default CuPy's current one.

    Raises:
        CorruptDataError: If a chunk was damaged; what was decoded along with it is worthless.
        BaseMismatchError: If the base of a tensor has other bytes than the one it was made from.
    """
    cupy = _runtime.cupy()
    number = cupy.cuda.runtime.getDevice() if device is None else device
    with cupy_device(number, None, _frameworks("cupy")) as current:
        _launch.raise_errors(current)


def decompress_one(
    c: Compressed, framework: str, device: object, base: Array, *, verify: bool
) -> Array:
    """Decodes one tensor and checks it: `neuzip_rs.decompress` for a CUDA device."""
    bases = None if base is None else [base]
    (result,) = decompress_many([c], device=device, framework=framework, bases=bases, verify=verify)
    check(_frameworks(framework).place(device)[0])
    return result


# --- upload and launch ------------------------------------------------------------------------


def decode_into(
    device: Device,
    opened: Sequence[CompressedTensor],
    outs: Sequence[Array],
    bases: Sequence[Array] | None,
    *,
    verify: bool,
) -> None:
    """Copies and decodes tensors into arrays on a device."""
    addressed = bases_on_device(device, opened, bases, verify=verify)
    items = [
        _pipeline.Item(_pipeline.InMemory(c), c, (_pointer(out),), base)
        for c, out, base in zip(opened, outs, addressed, strict=True)
    ]
    _pipeline.decode(device, items, verify=verify)
    device.hold(bases)


def _open(c: Compressed) -> CompressedTensor:
    return c if isinstance(c, CompressedTensor) else CompressedTensor.from_bytes(c)


def _upload(device: Device, opened: Sequence[CompressedTensor]) -> tuple[Memory, list[int]]:
    """All streams in one buffer on the device, and their addresses."""
    places, end = [], 0
    for c in opened:
        places.append(end)
        end += aligned(c.nbytes)
    content = np.zeros(end, np.uint8)
    for c, place in zip(opened, places, strict=True):
        content[place : place + c.nbytes] = np.frombuffer(memoryview(c), np.uint8)
    memory = to_device(device, content)
    return memory, [memory.address + place for place in places]


def bases_on_device(
    device: Device,
    opened: Sequence[CompressedTensor],
    bases: Sequence[Array] | None,
    *,
    verify: bool,
) -> list[int | None]:
    """The addresses of the bases that are needed; the device compares their hashes."""
    addresses: list[int | None] = [None] * len(opened)
    for number, (c, base) in enumerate(zip(opened, bases or addresses, strict=True)):
        expected = c.base_hash
        if base is None or expected is None:
            continue
        frame = _framework_of([base])
        try:
            frame.check(base, c.dtype, c.shape)
        except ValueError as error:
            message = f"base mismatch: {error}"
            raise BaseMismatchError(message) from None
        address = addresses[number] = _pointer(base)
        if not verify:
            continue
        if c.original_nbytes > _launch.SHORT_BYTES:
            _launch.check_content(device, address, c.original_nbytes, expected, number)
        elif _native.content_hash(frame.to_bytes(base)) != expected:
            message = "base mismatch: the base is not the one that the tensor was made from"
            raise BaseMismatchError(message)
    return addresses


# --- frameworks -------------------------------------------------------------------------------


def _frameworks(name: str) -> Any:  # noqa: ANN401 - a module of functions
    if name not in {"torch", "cupy"}:
        message = f"framework must be 'torch' or 'cupy' on a GPU, not {name!r}"
        raise ValueError(message)
    return import_module(f"neuzip_rs.cuda._{name}")


def _framework_of(arrays: Sequence[Array]) -> Any:  # noqa: ANN401 - as above
    kinds = {type(array).__module__.partition(".")[0] for array in arrays}
    return _frameworks("cupy" if kinds == {"cupy"} else "torch")


def _pointer(array: Array) -> int:
    data_ptr = getattr(array, "data_ptr", None)
    return int(array.data.ptr if data_ptr is None else data_ptr())
