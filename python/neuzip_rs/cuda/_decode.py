"""Many tensors in one launch: plan on the host, upload, decode."""

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from neuzip_rs import _native
from neuzip_rs._errors import BaseMismatchError, CorruptDataError
from neuzip_rs._native import CompressedTensor
from neuzip_rs.cuda import _runtime

if TYPE_CHECKING:
    from typing_extensions import Buffer

Array: TypeAlias = Any
Compressed: TypeAlias = "CompressedTensor | Buffer"

# Chunk of cuda/layout.cuh.
_CHUNK: Final = np.dtype(
    {
        "names": ["payload", "payload_bytes"],
        "formats": ["<u8", "<u4"],
        "offsets": [0, 40],
        "itemsize": 64,
    }
)
_ALIGNMENT: Final = 16
_CUT_THREADS: Final = 32
_ANY_THREADS: Final = 128
# Blocks on each multiprocessor: what registers leave room for, rounded up.
_CUT_BLOCKS: Final = 16
_ANY_BLOCKS: Final = 3
# Compressed bytes that are copied before the first of them are decoded.
PIECE_BYTES: Final = 16 << 20
_HASH_ERROR: Final = 2


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
    with _runtime.on(number, stream):
        outs = [frame.empty(c.dtype, c.shape, number) for c in opened]
        _upload_and_decode(opened, outs, bases, number, verify=verify)
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
        with _runtime.on(number, stream):
            streams, addresses = _upload(opened)
            plan, self._cut_chunks, self._any_chunks = _plan(
                opened, addresses, outs, bases, verify=verify
            )
            self._streams, self._plan = streams, _to_device(plan)
            self._status = _status(number)

    def decode(self) -> Sequence[Array]:
        """Decodes into the outputs, on the current stream; returns them."""
        number, stream = self._frame.place_of(self._outs)
        with _runtime.on(number, stream):
            _launch(
                self._plan, (0, self._cut_chunks), (0, self._any_chunks), self._cut_chunks, number
            )
        return self._outs


def check(device: int | None = None) -> None:
    """Waits for a device, and raises if anything decoded on it since the last check was damaged.

    Args:
        device: Number of the device; by default CuPy's current one.

    Raises:
        CorruptDataError: If a chunk was damaged; what was decoded along with it is worthless.
    """
    cupy = _runtime.cupy()
    number = cupy.cuda.runtime.getDevice() if device is None else device
    with cupy.cuda.Device(number):
        cupy.cuda.runtime.deviceSynchronize()
        status = _status(number)
        error, tensor, chunk, _ = (int(word) for word in status.get())
        if error:
            status.fill(0)
            what = (
                "the hash of the decoded bytes does not match"
                if error == _HASH_ERROR
                else "a payload is not one that its model can have written"
            )
            message = f"corrupt data: chunk {chunk} of tensor {tensor} of a launch: {what}"
            raise CorruptDataError(message)


def decompress_one(
    c: Compressed, framework: str, device: object, base: Array, *, verify: bool
) -> Array:
    """Decodes one tensor and checks it: `neuzip_rs.decompress` for a CUDA device."""
    bases = None if base is None else [base]
    (result,) = decompress_many([c], device=device, framework=framework, bases=bases, verify=verify)
    check(_frameworks(framework).place(device)[0])
    return result


# --- upload and launch ------------------------------------------------------------------------


def _open(c: Compressed) -> CompressedTensor:
    return c if isinstance(c, CompressedTensor) else CompressedTensor.from_bytes(c)


def _places(opened: Sequence[CompressedTensor]) -> tuple[list[int], int]:
    """Where each stream begins in one buffer, aligned, and how long the buffer is."""
    places, end = [], 0
    for c in opened:
        places.append(end)
        end += -(-c.nbytes // _ALIGNMENT) * _ALIGNMENT
    return places, end


def _upload(opened: Sequence[CompressedTensor]) -> tuple[Array, list[int]]:
    """All streams in one buffer on the device, and their addresses."""
    places, end = _places(opened)
    host = _runtime.staging(end)
    for c, place in zip(opened, places, strict=True):
        host[place : place + c.nbytes] = np.frombuffer(memoryview(c), np.uint8)
    memory = _runtime.cupy().empty(max(end, 1), np.uint8)
    if end:
        memory.data.copy_from_host_async(host.ctypes.data, end)
    _runtime.hold(host)
    return memory, [memory.data.ptr + place for place in places]


def _to_device(content: bytes) -> Array:
    host = _runtime.staging(len(content))
    host[:] = np.frombuffer(content, np.uint8)
    memory = _runtime.cupy().empty(max(len(content), 1), np.uint8)
    if content:
        memory.data.copy_from_host_async(host.ctypes.data, len(content))
    _runtime.hold(host)
    return memory


def _plan(
    opened: Sequence[CompressedTensor],
    addresses: Sequence[int],
    outs: Sequence[Array],
    bases: Sequence[Array] | None,
    *,
    verify: bool,
) -> tuple[bytes, int, int]:
    placed = []
    for number, (c, address, out) in enumerate(zip(opened, addresses, outs, strict=True)):
        base = None if bases is None else bases[number]
        base_address = None
        if base is not None and c.base_hash is not None:
            base_address = _pointer(_checked_base(c, base, verify=verify))
        placed.append((c, address, _pointer(out), base_address))
    return _native.device_plan(placed, verify=verify)


def _checked_base(c: CompressedTensor, base: Array, *, verify: bool) -> Array:
    """A base of the right size on the device.

    The hashes of the chunks tell whether a delta was decoded next to the right base. A tensor that
    is its base has no chunks: the base's own hash is compared, on the host.
    """
    frame = _framework_of([base])
    try:
        frame.check(base, c.dtype, c.shape)
    except ValueError as error:
        message = f"base mismatch: {error}"
        raise BaseMismatchError(message) from None
    if verify and c.info()["body"] == "base":
        room = bytearray(c.original_nbytes)
        _native.decompress_into(c, room, base=frame.to_bytes(base))
    return base


def split(chunks: "np.ndarray[Any, Any]", ends: Sequence[int]) -> list[int]:
    """How many of the chunks, in the order of the plan, have arrived when each piece has.

    `chunks` are Chunk structs, `ends` the addresses behind the pieces.
    """
    last = np.maximum.accumulate(chunks["payload"] + chunks["payload_bytes"])
    return [int(np.searchsorted(last, end, side="right")) for end in ends]


def _upload_and_decode(
    opened: Sequence[CompressedTensor],
    outs: Sequence[Array],
    bases: Sequence[Array] | None,
    device: int,
    *,
    verify: bool,
) -> None:
    cupy = _runtime.cupy()
    places, total = _places(opened)
    if not opened:
        return
    memory = cupy.empty(max(total, 1), np.uint8)
    addresses = [memory.data.ptr + place for place in places]
    content, cut_chunks, any_chunks = _plan(opened, addresses, outs, bases, verify=verify)
    plan = _to_device(content)
    chunks = np.frombuffer(content, _CHUNK, cut_chunks + any_chunks)
    ends = [*range(PIECE_BYTES, total, PIECE_BYTES), total]
    behind = [memory.data.ptr + end for end in ends]
    cuts, others = split(chunks[:cut_chunks], behind), split(chunks[cut_chunks:], behind)
    # Whatever has no payload of its own comes with the last piece.
    cuts[-1], others[-1] = cut_chunks, any_chunks

    host = _runtime.staging(total)
    decoding = cupy.cuda.get_current_stream()
    copying = cupy.cuda.Stream(non_blocking=True) if len(ends) > 1 else decoding
    # The memory may have been in use on the decoding stream until now.
    copying.wait_event(decoding.record())
    filled, start, cut, other = 0, 0, 0, 0
    for piece, end in enumerate(ends):
        while filled < len(opened) and places[filled] < end:
            source = np.frombuffer(memoryview(opened[filled]), np.uint8)
            host[places[filled] : places[filled] + source.size] = source
            filled += 1
        if end > start:
            with copying:
                target = memory.data + start
                target.copy_from_host_async(host.ctypes.data + start, end - start)
        if copying is not decoding:
            decoding.wait_event(copying.record())
        _launch(plan, (cut, cuts[piece]), (other, others[piece]), cut_chunks, device)
        start, cut, other = end, cuts[piece], others[piece]
    _runtime.hold((host, memory, plan, copying, bases))


def _launch(
    plan: Array, cut: tuple[int, int], other: tuple[int, int], cut_chunks: int, device: int
) -> None:
    """Decodes ranges of the chunks of a plan on the current stream."""
    status, processors = _status(device), _runtime.processors(device)
    if cut[1] > cut[0]:
        count = cut[1] - cut[0]
        _runtime.launch(
            _runtime.kernel("decode", "decode_cut"),
            min(count, _CUT_BLOCKS * processors),
            _CUT_THREADS,
            (plan, np.uint32(cut[0]), np.uint32(count), status),
        )
    if other[1] > other[0]:
        count = other[1] - other[0]
        _runtime.launch(
            _runtime.kernel("decode", "decode_any"),
            min(count, _ANY_BLOCKS * processors),
            _ANY_THREADS,
            (plan, np.uint32(cut_chunks + other[0]), np.uint32(count), status),
        )


_statuses: Final[dict[int, Array]] = {}


def _status(device: int) -> Array:
    """What the kernels of a device write their first error into."""
    found = _statuses.get(device)
    if found is None:
        found = _statuses[device] = _runtime.cupy().zeros(4, np.uint32)
    return found


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
