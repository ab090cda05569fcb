"""Many tensors encoded in one launch, with the bytes of the CPU."""

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from neuzip_rs import _arrays, _native
from neuzip_rs._dtypes import ITEMSIZE
from neuzip_rs._native import CompressedTensor
from neuzip_rs.cuda import _runtime
from neuzip_rs.cuda._decode import _framework_of, _pointer
from neuzip_rs.cuda._device import Device, Memory, cupy_device, pointer, to_device

Array: TypeAlias = Any
Structs: TypeAlias = "np.ndarray[Any, Any]"

# The structs of cuda/encode_layout.cuh.
MODEL: Final = np.dtype(
    [
        ("state", "<u4"),
        ("base", "<u4"),
        ("escape", "<u4"),
        ("entries", "<u4"),
        ("joint", "<u4"),
        ("sign", "<u4"),
        ("trailing_zeros", "<u4"),
        ("reserved", "<u4"),
        ("index", "u1", 64),
        ("frequency", "u1", 64),
    ]
)
TENSOR: Final = np.dtype(
    [
        ("data", "<u8"),
        ("bytes", "<u8"),
        ("out", "<u8"),
        ("payload_bytes", "<u8"),
        ("first_chunk", "<u4"),
        ("chunks", "<u4"),
        ("chunk_log2", "<u4"),
        ("element_log2", "u1"),
        ("exponent_bits", "u1"),
        ("mantissa_bits", "u1"),
        ("reserved", "u1"),
        ("plan", "<u8"),
        ("signs", "<u4"),
        ("reserved_too", "<u4"),
        ("model", MODEL),
    ]
)
CHUNK: Final = np.dtype(
    [
        ("data", "<u8"),
        ("scratch", "<u8"),
        ("hash", "<u8"),
        ("offset", "<u8"),
        ("bytes", "<u4"),
        ("tensor", "<u4"),
        ("payload_bytes", "<u4"),
        ("storage", "<u4"),
        ("stream_bytes", "<u4"),
        ("escapes", "<u4"),
        ("raw_bytes", "<u4"),
        ("escapes_head", "<u4"),
    ]
)
# What a chunk says of its storage if it has the model, and what the fast kernel decodes: elements
# of up to four bytes in whole sub-blocks.
MODEL_STORAGE: Final = 2
CONSTANT_STORAGE: Final = 1
SUB_BLOCK: Final = 4096
_MOST_CUT_LOG2: Final = 2
# EncodeSign: from here on, all elements have one sign.
_POSITIVE: Final = 2
# EncodeState: no model, a table, and what is left to the CPU.
RAW, CUT, HOST = range(3)
EXPONENT_BITS: Final = {
    "bfloat16": 8,
    "float16": 5,
    "float32": 8,
    "float64": 11,
    "float8_e4m3fn": 4,
    "float8_e4m3fnuz": 4,
    "float8_e5m2": 5,
    "float8_e5m2fnuz": 5,
}
CHOSEN: Final = frozenset(EXPONENT_BITS) - {"float64"}
"""The types that are encoded at the level "default", too."""
_SCALED_DIMENSIONS: Final = 2
_MIN_SCALED_ELEMENTS: Final = 4096
_PLANNERS: Final = {"fast": "encode_plan", "default": "encode_choose"}
_STATES_BYTES: Final = 128
_PLAN_THREADS: Final = 256
_CHUNK_THREADS: Final = 128
# Blocks on each multiprocessor.
_CHUNK_BLOCKS: Final = 5
_PUBLISH_THREADS: Final = 128
# Scratch memory is used again when the chunks that fit into it are done.
WAVE_BYTES: Final = 256 << 20
# What a plan has besides its chunks: two Models, and the tables of both kernels.
_PLAN_REST_BYTES: Final = 2 * 400 + 256 * 4 + 256 * 8
_PLAN_CHUNK_BYTES: Final = 64


class Input(NamedTuple):
    """A tensor to encode: where it is on the device, and what it is."""

    address: int
    nbytes: int
    dtype: str
    chunk_log2: int


def plan_bytes(chunks: int) -> int:
    """Bytes of the plan that the device makes of a tensor it has encoded."""
    return _PLAN_CHUNK_BYTES * chunks + _PLAN_REST_BYTES


def _aligned(count: Any) -> Any:  # noqa: ANN401 - numbers, or arrays of them
    return (count + 15) // 16 * 16


class Described(NamedTuple):
    """What the kernels are told, and the memory that they need.

    Attributes:
        tensors: TENSOR structs; `out` counts from the beginning of the room for payloads.
        chunks: CHUNK structs; `scratch` counts from the beginning of the scratch memory.
        waves: Ranges of chunks that have room in the scratch memory at the same time.
        scratch_bytes: Scratch memory.
        out_bytes: Room for payloads.
    """

    tensors: Structs
    chunks: Structs
    waves: list[tuple[int, int]]
    scratch_bytes: int
    out_bytes: int


def describe(inputs: Sequence[Input], wave_bytes: int = WAVE_BYTES) -> Described:
    """Makes the structs of tensors and chunks."""
    tensors = np.zeros(len(inputs), TENSOR)
    parts: list[Structs] = []
    rooms: list[Structs] = []
    out = first = 0
    for number, (address, nbytes, dtype, chunk_log2) in enumerate(inputs):
        itemsize, exponent_bits = ITEMSIZE[dtype], EXPONENT_BITS[dtype]
        starts = np.arange(0, nbytes, 1 << chunk_log2, dtype=np.uint64)
        chunks = np.zeros(len(starts), CHUNK)
        lengths = np.minimum(np.uint64(nbytes) - starts, np.uint64(1 << chunk_log2))
        elements = lengths // itemsize
        escapes = 1 if exponent_bits <= 8 else 2
        zeros = _aligned((elements + SUB_BLOCK - 1) // SUB_BLOCK)
        # The raw plane takes less than the chunk.
        planes = _aligned(lengths) + (1 + escapes) * _aligned(elements)
        rooms.append(zeros + _STATES_BYTES + planes)
        chunks["data"], chunks["bytes"] = np.uint64(address) + starts, lengths
        chunks["tensor"] = number
        tensor = tensors[number]
        tensor["data"], tensor["bytes"], tensor["out"] = address, nbytes, out
        tensor["first_chunk"], tensor["chunks"] = first, len(starts)
        tensor["chunk_log2"], tensor["element_log2"] = chunk_log2, itemsize.bit_length() - 1
        tensor["exponent_bits"] = exponent_bits
        tensor["mantissa_bits"] = 8 * itemsize - 1 - exponent_bits
        parts.append(chunks)
        first += len(starts)
        out += int(_aligned(lengths).sum())
    chunks = np.concatenate(parts) if parts else np.zeros(0, CHUNK)
    waves, scratch_bytes = _waves(
        chunks, np.concatenate(rooms) if rooms else np.zeros(0), wave_bytes
    )
    return Described(tensors, chunks, waves, scratch_bytes, out)


def _waves(chunks: Structs, rooms: Structs, wave_bytes: int) -> tuple[list[tuple[int, int]], int]:
    """Gives chunks their places in the scratch memory, from its beginning in each wave."""
    waves: list[tuple[int, int]] = []
    start = most = 0
    ends = np.cumsum(rooms)
    while start < len(chunks):
        before = int(ends[start] - rooms[start])
        stop = max(start + 1, int(np.searchsorted(ends, before + wave_bytes, side="right")))
        chunks["scratch"][start:stop] = ends[start:stop] - rooms[start:stop] - before
        most = max(most, int(ends[stop - 1]) - before)
        waves.append((start, stop - start))
        start = stop
    return waves, most


def prelude(tensor: Structs, chunks: Structs, dtype: str, shape: Sequence[int]) -> bytes:
    """What goes in front of the payloads that the device has made of a tensor."""
    model, made = tensor["model"], None
    if int(model["state"]) == CUT:
        count = int(model["entries"])
        listed = zip(
            model["index"][:count].tolist(), model["frequency"][:count].tolist(), strict=True
        )
        form = int(model["joint"]), int(model["sign"]), bool(model["trailing_zeros"])
        made = (*form, int(model["base"]), bool(model["escape"]), list(listed))
    columns = (chunks[name].tolist() for name in ("payload_bytes", "storage", "hash"))
    return _native.assemble_prelude(
        dtype, shape, int(tensor["chunk_log2"]), made, list(zip(*columns, strict=True))
    )


def is_cut(tensor: Structs, chunks: Structs) -> Structs:
    """Which chunks the fast kernel decodes: what encode_publish says of them."""
    model, element_log2 = tensor["model"], int(tensor["element_log2"])
    form = int(model["sign"]) < _POSITIVE and not int(model["trailing_zeros"])
    if element_log2 > _MOST_CUT_LOG2 or not form:
        return np.zeros(len(chunks), bool)
    whole = chunks["bytes"] % (SUB_BLOCK << element_log2) == 0
    found: Structs = (chunks["storage"] == MODEL_STORAGE) & whole
    return found


def left_to_cpu(tensor: Structs, chunks: Structs) -> bool:
    """Whether the CPU stores a tensor in a form that the device does not make.

    So it may where all chunks are constant: the tensor may be, which the device does not ask.
    """
    constant = len(chunks) > 0 and bool((chunks["storage"] == CONSTANT_STORAGE).all())
    return constant or int(tensor["model"]["state"]) == HOST


def can_encode(array: Array, level: str = "fast") -> bool:
    """Whether an array is one that this module encodes: floats on a CUDA device, contiguous.

    At the level "default" tensors that the CPU would give no scale offsets by their shape: those of
    one dimension, and small ones.
    """
    if level == "default" and not _is_unscaled(array):
        return False
    device = str(getattr(array, "device", ""))
    if not device.startswith(("cuda", "<CUDA")):
        return False
    name = str(getattr(array, "dtype", "")).removeprefix("torch.")
    contiguous = getattr(array, "is_contiguous", None)
    is_dense = contiguous() if contiguous is not None else array.flags.c_contiguous
    return name in EXPONENT_BITS and bool(is_dense)


def _is_unscaled(array: Array) -> bool:
    dims = [int(size) for size in getattr(array, "shape", ()) if size > 1]
    is_known = str(getattr(array, "dtype", "")).removeprefix("torch.") in CHOSEN
    count = 1
    for size in dims:
        count *= size
    return is_known and (len(dims) < _SCALED_DIMENSIONS or count < _MIN_SCALED_ELEMENTS)


def compress_many(arrays: Iterable[Array], *, level: str = "fast") -> list[CompressedTensor]:
    """Compresses tensors where they are, all of them in one launch.

    The bytes are those that `neuzip_rs.compress` makes on the CPU at this level. Only compressed
    bytes are copied to the host. What the device has no kernel for (other types, constant
    tensors, floats of one exponent) is compressed by the CPU; so are, at the level "default",
    FP64 and tensors of two dimensions and more, which may get scale offsets.

    Args:
        arrays: Torch or CuPy arrays on one device.
        level: "fast" or "default".

    Returns:
        The compressed tensors, in order.

    Raises:
        ImportError: If CuPy is not installed.
        TypeError: If an array cannot be compressed.
        ValueError: If there is no such level.
    """
    _runtime.cupy()
    if level not in _PLANNERS:
        message = f"level must be 'fast' or 'default' on a GPU, not {level!r}"
        raise ValueError(message)
    arrays = list(arrays)
    results: list[CompressedTensor | None] = [None] * len(arrays)
    here = [number for number, array in enumerate(arrays) if can_encode(array, level)]
    if here:
        frame = _framework_of([arrays[number] for number in here])
        device, stream = frame.place_of([arrays[number] for number in here])
        with cupy_device(device, stream, frame) as current:
            names = [str(arrays[number].dtype).removeprefix("torch.") for number in here]
            inputs = [
                Input(
                    _pointer(arrays[number]),
                    int(arrays[number].nbytes),
                    name,
                    _native.chunk_log2(name, int(arrays[number].nbytes), level=level),
                )
                for number, name in zip(here, names, strict=True)
            ]
            shapes = [tuple(arrays[number].shape) for number in here]
            streams = encode(current, inputs, shapes, level=level)
            for number, made in zip(here, streams, strict=True):
                if made is not None:
                    kind = "torch" if hasattr(arrays[number], "data_ptr") else "cupy"
                    results[number] = CompressedTensor.from_bytes(made, framework=kind)
    return [
        _on_the_host(array, level) if result is None else result
        for array, result in zip(arrays, results, strict=True)
    ]


def encode(
    device: Device,
    inputs: Sequence[Input],
    shapes: Sequence[tuple[int, ...]],
    *,
    level: str = "fast",
) -> list[bytes | None]:
    """Encodes tensors and brings them to the host; None for what is left to the CPU."""
    described = describe(inputs)
    out = device.empty(described.out_bytes)
    on_device = launch(device, described, out.address, level=level)
    tensors, chunks = download_structs(device, described, on_device)
    device.stream.record().synchronize()
    streams: list[bytes | None] = []
    for tensor, (_, _, dtype, _), shape in zip(tensors, inputs, shapes, strict=True):
        first = int(tensor["first_chunk"])
        own = chunks[first : first + int(tensor["chunks"])]
        if left_to_cpu(tensor, own):
            streams.append(None)
            continue
        payloads = device.staging(int(tensor["payload_bytes"]))
        device.stream.download(payloads, int(tensor["out"]))
        device.stream.record().synchronize()
        head = prelude(tensor, own, dtype, shape)
        streams.append(head + payloads.tobytes())
    return streams


class OnDevice(NamedTuple):
    """The structs of tensors and chunks on the device."""

    tensors: Memory
    chunks: Memory


def launch(device: Device, described: Described, out: int, *, level: str = "fast") -> OnDevice:
    """Encodes into memory at `out`."""
    tensors, chunks, waves, scratch_bytes, _ = described
    scratch = device.empty(scratch_bytes)
    chunks["scratch"] += np.uint64(scratch.address)
    tensors["out"] += np.uint64(out)
    on_device = OnDevice(
        to_device(device, tensors.view(np.uint8)), to_device(device, chunks.view(np.uint8))
    )
    both = pointer(on_device.tensors.address), pointer(on_device.chunks.address)
    if len(chunks):
        blocks = max(1, min(len(chunks), _CHUNK_BLOCKS * device.processors))
        count = np.uint32(len(chunks))
        device.launch("encode", "encode_signs", blocks, _CHUNK_THREADS, *both, count)
    if len(tensors):
        device.launch("encode", _PLANNERS[level], len(tensors), _PLAN_THREADS, both[0])
    for start, length in waves:
        part = np.uint32(start), np.uint32(length)
        blocks = max(1, min(length, _CHUNK_BLOCKS * device.processors))
        device.launch("encode", "encode_chunks", blocks, _CHUNK_THREADS, *both, *part)
        device.launch("encode", "encode_offsets", len(tensors), 32, *both, *part)
        device.launch("encode", "encode_gather", blocks, _CHUNK_THREADS, *both, *part)
    if tensors["plan"].any():
        device.launch("encode", "encode_publish", len(tensors), _PUBLISH_THREADS, *both)
    device.hold(scratch)
    return on_device


def download_structs(
    device: Device, described: Described, on_device: OnDevice
) -> tuple[Structs, Structs]:
    """Copies what the kernels say of tensors and chunks; it is there when the stream is."""
    tensors = device.staging(described.tensors.nbytes)
    chunks = device.staging(described.chunks.nbytes)
    device.stream.download(tensors, on_device.tensors.address)
    device.stream.download(chunks, on_device.chunks.address)
    device.hold(on_device, tensors, chunks)
    return tensors.view(TENSOR), chunks.view(CHUNK)


def _on_the_host(array: Array, level: str) -> CompressedTensor:
    data, name, shape, framework, hint = _arrays.describe(array)
    return _native.compress(data, name, shape, level=level, framework=framework, hint=hint)
