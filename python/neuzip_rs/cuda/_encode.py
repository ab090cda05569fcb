"""Many tensors encoded in one launch, as the CPU does at the level `fast`."""

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from neuzip_rs import _arrays, _native
from neuzip_rs._dtypes import ITEMSIZE
from neuzip_rs._native import CompressedTensor
from neuzip_rs.cuda import _runtime
from neuzip_rs.cuda._decode import _framework_of, _pointer, _to_device

Array: TypeAlias = Any
Structs: TypeAlias = "np.ndarray[Any, Any]"

# The structs of cuda/encode_layout.cuh.
MODEL: Final = np.dtype(
    [
        ("state", "<u4"),
        ("base", "<u4"),
        ("escape", "<u4"),
        ("entries", "<u4"),
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
        ("reserved", "<u4", 2),
    ]
)
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
_STATES_BYTES: Final = 128
_PLAN_THREADS: Final = 256
_CHUNK_THREADS: Final = 128
# Blocks on each multiprocessor.
_CHUNK_BLOCKS: Final = 5


class Input(NamedTuple):
    """A tensor to encode: where it is on the device, and what it is."""

    address: int
    nbytes: int
    dtype: str
    chunk_log2: int


def _aligned(count: Any) -> Any:  # noqa: ANN401 - numbers, or arrays of them
    return (count + 15) // 16 * 16


def describe(inputs: Sequence[Input]) -> tuple[Structs, Structs]:
    """The structs of tensors and chunks; scratch and out count from the beginning of each."""
    tensors = np.zeros(len(inputs), TENSOR)
    parts, scratch, out, first = [], 0, 0, 0
    for number, (address, nbytes, dtype, chunk_log2) in enumerate(inputs):
        itemsize, exponent_bits = ITEMSIZE[dtype], EXPONENT_BITS[dtype]
        starts = np.arange(0, nbytes, 1 << chunk_log2, dtype=np.uint64)
        chunks = np.zeros(len(starts), CHUNK)
        lengths = np.minimum(np.uint64(nbytes) - starts, np.uint64(1 << chunk_log2))
        elements = lengths // itemsize
        escapes = 1 if exponent_bits <= 8 else 2
        # The raw plane takes less than the chunk.
        room = _STATES_BYTES + _aligned(lengths) + (1 + escapes) * _aligned(elements)
        ends = scratch + np.cumsum(room)
        chunks["data"], chunks["bytes"] = address + starts, lengths
        chunks["scratch"], chunks["tensor"] = ends - room, number
        tensor = tensors[number]
        tensor["data"], tensor["bytes"], tensor["out"] = address, nbytes, out
        tensor["first_chunk"], tensor["chunks"] = first, len(starts)
        tensor["chunk_log2"], tensor["element_log2"] = chunk_log2, itemsize.bit_length() - 1
        tensor["exponent_bits"] = exponent_bits
        tensor["mantissa_bits"] = 8 * itemsize - 1 - exponent_bits
        parts.append(chunks)
        first += len(starts)
        out += int(_aligned(lengths).sum())
        scratch = int(ends[-1]) if len(ends) else scratch
    return tensors, np.concatenate(parts) if parts else np.zeros(0, CHUNK)


def sizes(tensors: Structs, chunks: Structs) -> tuple[int, int]:
    """Bytes of scratch memory and of room for payloads that `describe` counted on."""
    if not len(chunks):
        return 0, 0
    last = chunks[-1]
    length = int(last["bytes"])
    elements = length >> int(tensors[last["tensor"]]["element_log2"])
    # At most: not every type has a high byte of escapes.
    room = _STATES_BYTES + _aligned(length) + 3 * _aligned(elements)
    return int(last["scratch"]) + room, int(_aligned(chunks["bytes"].astype(np.uint64)).sum())


def assemble(
    tensor: Structs,
    chunks: Structs,
    payloads: bytes,
    dtype: str,
    shape: Sequence[int],
) -> bytes:
    """The stream around what the device has made of a tensor."""
    model, table = tensor["model"], None
    if int(model["state"]) == CUT:
        count = int(model["entries"])
        listed = zip(
            model["index"][:count].tolist(), model["frequency"][:count].tolist(), strict=True
        )
        table = int(model["base"]), bool(model["escape"]), list(listed)
    columns = (chunks[name].tolist() for name in ("payload_bytes", "storage", "hash"))
    return _native.assemble_stream(
        dtype, shape, int(tensor["chunk_log2"]), table, list(zip(*columns, strict=True)), payloads
    )


def can_encode(array: Array) -> bool:
    """Whether an array is one that this module encodes: floats on a CUDA device, contiguous."""
    device = str(getattr(array, "device", ""))
    if not device.startswith(("cuda", "<CUDA")):
        return False
    name = str(getattr(array, "dtype", "")).removeprefix("torch.")
    contiguous = getattr(array, "is_contiguous", None)
    is_dense = contiguous() if contiguous is not None else array.flags.c_contiguous
    return name in EXPONENT_BITS and bool(is_dense)


def compress_many(arrays: Iterable[Array]) -> list[CompressedTensor]:
    """Compresses tensors where they are, all of them in one launch, at the level "fast".

    The bytes are those that `neuzip_rs.compress(x, level="fast")` makes on the CPU. Only compressed
    bytes are copied to the host. What the device has no kernel for (other types, tensors of one
    sign, constant ones, floats widened from a shorter type) is compressed by the CPU.

    Args:
        arrays: Torch or CuPy arrays on one device.

    Returns:
        The compressed tensors, in order.

    Raises:
        ImportError: If CuPy is not installed.
        TypeError: If an array cannot be compressed.
    """
    cupy = _runtime.cupy()
    arrays = list(arrays)
    results: list[CompressedTensor | None] = [None] * len(arrays)
    here = [number for number, array in enumerate(arrays) if can_encode(array)]
    if here:
        frame = _framework_of([arrays[number] for number in here])
        device, stream = frame.place_of([arrays[number] for number in here])
        with _runtime.on(device, stream):
            names = [str(arrays[number].dtype).removeprefix("torch.") for number in here]
            inputs = [
                Input(
                    _pointer(arrays[number]),
                    int(arrays[number].nbytes),
                    name,
                    _native.chunk_log2(name, int(arrays[number].nbytes), level="fast"),
                )
                for number, name in zip(here, names, strict=True)
            ]
            tensors, chunks, payloads = _encode(cupy, inputs, device)
            for index, (number, name) in enumerate(zip(here, names, strict=True)):
                tensor = tensors[index]
                if int(tensor["model"]["state"]) == HOST:
                    continue
                start = int(tensor["out"]) - payloads.data.ptr
                part = payloads[start : start + int(tensor["payload_bytes"])].get().tobytes()
                first = int(tensor["first_chunk"])
                made = assemble(
                    tensor,
                    chunks[first : first + int(tensor["chunks"])],
                    part,
                    name,
                    tuple(arrays[number].shape),
                )
                kind = "torch" if hasattr(arrays[number], "data_ptr") else "cupy"
                results[number] = CompressedTensor.from_bytes(made, framework=kind)
    return [
        _on_the_host(array) if result is None else result
        for array, result in zip(arrays, results, strict=True)
    ]


def _encode(cupy: Array, inputs: Sequence[Input], device: int) -> tuple[Structs, Structs, Array]:
    """Launches the kernels; what they say of tensors and chunks, and the payloads on the device."""
    tensors, chunks = describe(inputs)
    scratch_bytes, out_bytes = sizes(tensors, chunks)
    scratch, out = cupy.empty(scratch_bytes + 1, np.uint8), cupy.empty(out_bytes + 1, np.uint8)
    chunks["scratch"] += np.uint64(scratch.data.ptr)
    tensors["out"] += np.uint64(out.data.ptr)
    on_device = _to_device(tensors.tobytes()), _to_device(chunks.tobytes())
    count, processors = np.uint32(len(chunks)), _runtime.processors(device)
    blocks = max(1, min(len(chunks), _CHUNK_BLOCKS * processors))

    def launch(name: str, blocks: int, threads: int, arguments: Sequence[object]) -> None:
        _runtime.launch(_runtime.kernel("encode", name), blocks, threads, arguments)

    launch("encode_plan", len(tensors), _PLAN_THREADS, on_device[:1])
    launch("encode_chunks", blocks, _CHUNK_THREADS, (*on_device, count))
    launch("encode_offsets", len(tensors), 32, on_device)
    launch("encode_gather", blocks, _CHUNK_THREADS, (*on_device, count))
    made = on_device[0].get()[: tensors.nbytes].view(TENSOR)
    return made, on_device[1].get()[: chunks.nbytes].view(CHUNK), out


def _on_the_host(array: Array) -> CompressedTensor:
    data, name, shape, framework, hint = _arrays.describe(array)
    return _native.compress(data, name, shape, level="fast", framework=framework, hint=hint)
