"""Many tensors encoded in one launch, with the bytes of the CPU."""

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from neuzip_rs import _arrays, _native
from neuzip_rs._native import CompressedTensor
from neuzip_rs.cuda import _runtime
from neuzip_rs.cuda._decode import _framework_of, _pointer
from neuzip_rs.cuda._device import (
    Bytes,
    Device,
    Memory,
    aligned,
    cupy_device,
    pointer,
    to_device,
)
from neuzip_rs.cuda._encode_layout import (
    CHUNK,
    EXPONENT_BITS,
    SCALE_BYTES,
    SUB_BLOCK,
    TENSOR,
    WAVE_BYTES,
    Described,
    Input,
    Structs,
    describe,
    views,
)

Array: TypeAlias = Any

# What a chunk says of its storage if it has the model, and what the fast kernel decodes: elements
# of up to four bytes in whole sub-blocks.
MODEL_STORAGE: Final = 2
_MOST_CUT_LOG2: Final = 2
# EncodeSign: from here on, all elements have one sign.
_SIGN_RAW: Final = 0
_POSITIVE: Final = 2
# Neighbours that the fast kernel puts together have one row.
_CUT_ELEMENTS: Final = 8
# EncodeState: no model, a table, one element.
RAW, CUT, CONSTANT = range(3)
LEVELS: Final = ("fast", "default")
# EncodeModel.scale: the number of a view times this, and the axes whose offsets are subtracted.
_CHOICES: Final = 4
_ROWS: Final = 1
_COLUMNS: Final = 2
# Offsets are steps of so many parts of an octave, as a binary logarithm, or fewer.
_OCTAVE_LOG2: Final = 3
_COUNTED_BITS: Final = 3
# What a block that counts needs for each value of exponent and counted bits, how many blocks there
# are on each multiprocessor, and what they need altogether.
_CUT_BYTES: Final = 40
_CUT_BLOCKS: Final = 2
_CUTS_BYTES: Final = 64 << 20
_PLAN_THREADS: Final = 256
_CHUNK_THREADS: Final = 128
# Blocks on each multiprocessor.
_CHUNK_BLOCKS: Final = 5
_PUBLISH_THREADS: Final = 128


def prelude(
    tensor: Structs,
    chunks: Structs,
    dtype: str,
    shape: Sequence[int],
    scale: "tuple[int, int, bytes, bytes] | None" = None,
) -> bytes:
    """What goes in front of the payloads that the device has made of a tensor."""
    model, made = tensor["model"], None
    if int(model["state"]) == CONSTANT:
        element = model["index"][: int(tensor["item_bytes"])].tobytes()
        return _native.assemble_constant(dtype, shape, element)
    if int(model["state"]) == CUT:
        count = int(model["entries"])
        listed = zip(
            model["index"][:count].tolist(), model["frequency"][:count].tolist(), strict=True
        )
        form = int(model["joint"]), int(model["sign"]), bool(model["trailing_zeros"])
        made = (*form, int(model["base"]), bool(model["escape"]), list(listed))
    columns = (chunks[name].tolist() for name in ("payload_bytes", "storage", "hash"))
    return _native.assemble_prelude(
        dtype, shape, int(tensor["chunk_log2"]), made, scale, list(zip(*columns, strict=True))
    )


class Offsets(NamedTuple):
    """The scale offsets of a tensor that has been encoded.

    Attributes:
        columns: Of the matrix that it is seen as.
        shift: log2 of their unit.
        rows: Where those of rows are on the device, and how many.
        cols: The same of columns.
    """

    columns: int
    shift: int
    rows: tuple[int, int]
    cols: tuple[int, int]


def offsets(tensor: Structs, own_views: Structs) -> Offsets | None:
    """The scale offsets that the device has chosen for a tensor, with these views."""
    chosen = int(tensor["model"]["scale"])
    if not chosen or int(tensor["model"]["state"]) != CUT:
        return None
    view, mantissa_bits = own_views[chosen // _CHOICES], int(tensor["mantissa_bits"])
    rows = int(view["rows"]) if chosen & _ROWS else 0
    cols = int(view["columns"]) if chosen & _COLUMNS else 0
    return Offsets(
        int(view["columns"]),
        mantissa_bits - min(_OCTAVE_LOG2, mantissa_bits),
        (int(view["row_offsets"]), rows),
        (int(view["column_offsets"]), cols),
    )


def published(offsets: Offsets, lists: Bytes) -> tuple[int, int, bytes, bytes]:
    """Scale offsets from the part of a plan that begins with its Scale."""
    rows, cols = offsets.rows[1], offsets.cols[1]
    start = SCALE_BYTES + aligned(rows)
    first, second = lists[SCALE_BYTES:][:rows], lists[start:][:cols]
    return offsets.columns, offsets.shift, first.tobytes(), second.tobytes()


def is_cut(tensor: Structs, chunks: Structs, scale: Offsets | None) -> Structs:
    """Which chunks the fast kernel decodes: what encode_publish says of them."""
    model, element_log2 = tensor["model"], int(tensor["element_log2"])
    sign, joint = int(model["sign"]), int(model["joint"])
    raw_bits = int(tensor["mantissa_bits"]) - joint + (sign == _SIGN_RAW)
    coded = int(model["entries"]) > 0 and sign < _POSITIVE and raw_bits > 0
    aligned_columns = scale is None or scale.columns % _CUT_ELEMENTS == 0
    form = coded and aligned_columns and not int(model["trailing_zeros"])
    if element_log2 > _MOST_CUT_LOG2 or not form:
        return np.zeros(len(chunks), bool)
    whole = chunks["bytes"] % (SUB_BLOCK << element_log2) == 0
    found: Structs = (chunks["storage"] == MODEL_STORAGE) & whole
    return found


def can_encode(array: Array, level: str = "fast") -> bool:
    """Whether an array is one that this module encodes: floats on a CUDA device."""
    if level not in LEVELS:
        return False
    device = str(getattr(array, "device", ""))
    if not device.startswith(("cuda", "<CUDA")):
        return False
    # Sparse tensors are refused elsewhere.
    strided = str(getattr(array, "layout", "torch.strided")) == "torch.strided"
    return _name_of(array) in EXPONENT_BITS and strided


def _dense(array: Array) -> Array:
    """The elements of an array one after the other, on its device."""
    if hasattr(array, "data_ptr"):
        return array.detach().resolve_conj().resolve_neg().contiguous()
    return _runtime.cupy().ascontiguousarray(array).reshape(array.shape)


def _name_of(array: Array) -> str:
    return str(getattr(array, "dtype", "")).removeprefix("torch.")


def compress_many(arrays: Iterable[Array], *, level: str = "fast") -> list[CompressedTensor]:
    """Compresses tensors where they are, all of them in one launch.

    The bytes are those that `neuzip_rs.compress` makes on the CPU at this level. Only compressed
    bytes are copied to the host. What the device has no kernel for (types that are no floats) is
    compressed by the CPU.

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
    if level not in LEVELS:
        message = f"level must be 'fast' or 'default' on a GPU, not {level!r}"
        raise ValueError(message)
    arrays = list(arrays)
    results: list[CompressedTensor | None] = [None] * len(arrays)
    here = [number for number, array in enumerate(arrays) if can_encode(array, level)]
    if here:
        frame = _framework_of([arrays[number] for number in here])
        device, stream = frame.place_of([arrays[number] for number in here])
        with cupy_device(device, stream, frame) as current:
            names = [_name_of(arrays[number]) for number in here]
            dense = [_dense(arrays[number]) for number in here]
            inputs = [
                Input(
                    _pointer(array),
                    int(array.nbytes),
                    name,
                    _native.chunk_log2(name, int(array.nbytes), level=level),
                    views(name, array.shape) if level == "default" else (),
                )
                for array, name in zip(dense, names, strict=True)
            ]
            shapes = [tuple(array.shape) for array in dense]
            # What is dense stays until the device is done, which `encode` waits for.
            streams = encode(current, inputs, shapes, level=level)
            for number, made in zip(here, streams, strict=True):
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
    wave_bytes: int = WAVE_BYTES,
) -> list[bytes]:
    """Encodes tensors and brings them to the host."""
    described = describe(inputs, wave_bytes)
    out = device.empty(described.out_bytes)
    on_device = launch(device, described, out.address, level=level)
    tensors, chunks = download_structs(device, described, on_device)
    device.stream.record().synchronize()
    streams: list[bytes] = []
    for number, (tensor, one, shape) in enumerate(zip(tensors, inputs, shapes, strict=True)):
        first = int(tensor["first_chunk"])
        own = chunks[first : first + int(tensor["chunks"])]
        scale = offsets(tensor, described.views[described.views["tensor"] == number])
        lists = None if scale is None else [_fetch(device, *of) for of in (scale.rows, scale.cols)]
        payloads = _fetch(device, int(tensor["out"]), int(tensor["payload_bytes"]))
        device.stream.record().synchronize()
        made = None
        if scale is not None and lists is not None:
            rows, cols = (part.tobytes() for part in lists)
            made = scale.columns, scale.shift, rows, cols
        head = prelude(tensor, own, one.dtype, shape, made)
        streams.append(head + payloads.tobytes())
    return streams


def _fetch(device: Device, address: int, nbytes: int) -> Bytes:
    """Copies to the host; it is there when the stream is."""
    host = device.staging(nbytes)
    device.stream.download(host, address)
    return host


class OnDevice(NamedTuple):
    """The structs of tensors and chunks on the device, and its room for scale offsets."""

    tensors: Memory
    chunks: Memory
    offsets: Memory


def launch(device: Device, described: Described, out: int, *, level: str = "fast") -> OnDevice:
    """Encodes into memory at `out`."""
    tensors, chunks, waves, scratch_bytes, _, seen, views_bytes = described
    scratch, room = device.empty(scratch_bytes), device.empty(views_bytes)
    chunks["scratch"] += np.uint64(scratch.address)
    tensors["out"] += np.uint64(out)
    for name in ("sums", "row_offsets", "column_offsets"):
        seen[name] += np.uint64(room.address)
    views_there = to_device(device, seen.view(np.uint8))
    tensors["view"] += np.uint64(views_there.address)
    on_device = OnDevice(
        to_device(device, tensors.view(np.uint8)), to_device(device, chunks.view(np.uint8)), room
    )
    both = pointer(on_device.tensors.address), pointer(on_device.chunks.address)
    if len(chunks):
        blocks = max(1, min(len(chunks), _CHUNK_BLOCKS * device.processors))
        count = np.uint32(len(chunks))
        device.launch("encode_plan", "encode_traits", blocks, _CHUNK_THREADS, *both, count)
    if len(tensors) and level == "fast":
        device.launch("encode_plan", "encode_plan", len(tensors), _PLAN_THREADS, both[0])
    elif len(tensors):
        _choose(device, tensors, both[0], len(seen), pointer(views_there.address))
    for start, length in waves:
        part = np.uint32(start), np.uint32(length)
        blocks = max(1, min(length, _CHUNK_BLOCKS * device.processors))
        device.launch("encode", "encode_chunks", blocks, _CHUNK_THREADS, *both, *part)
        device.launch("encode", "encode_offsets", len(tensors), 32, *both, *part)
        device.launch("encode", "encode_gather", blocks, _CHUNK_THREADS, *both, *part)
    if tensors["plan"].any():
        device.launch("encode", "encode_publish", len(tensors), _PUBLISH_THREADS, *both)
    device.hold(scratch, views_there)
    return on_device


def _choose(
    device: Device, tensors: Structs, at: np.uint64, views: int, views_at: np.uint64
) -> None:
    """Chooses what each tensor is stored with at the level "default"."""
    most_exponent_bits = int(tensors["exponent_bits"].max())
    block_bytes = _CUT_BYTES << most_exponent_bits + _COUNTED_BITS
    blocks = max(1, min(_CUT_BLOCKS * device.processors, _CUTS_BYTES // block_bytes))
    blocks = min(blocks, max(_CHOICES * views, len(tensors)))
    memory = device.empty(blocks * block_bytes)
    own = pointer(memory.address), np.uint64(block_bytes)
    if views:
        device.launch("encode_choose", "encode_probe", views, _PLAN_THREADS, at, views_at)
        grid = _CHUNK_BLOCKS * device.processors
        count = np.uint32(views)
        device.launch("encode_choose", "encode_rows", grid, _CHUNK_THREADS, at, views_at, count)
        device.launch("encode_choose", "encode_columns", views, _PLAN_THREADS, at, views_at)
        device.launch(
            "encode_choose", "encode_estimate", blocks, _PLAN_THREADS, at, views_at, count, *own
        )
    count = np.uint32(len(tensors))
    device.launch("encode_choose", "encode_choose", blocks, _PLAN_THREADS, at, count, *own)
    device.hold(memory)


def download_structs(
    device: Device, described: Described, on_device: OnDevice
) -> tuple[Structs, Structs]:
    """Copies what the kernels say of tensors and chunks; it is there when the stream is."""
    tensors = _fetch(device, on_device.tensors.address, described.tensors.nbytes)
    chunks = _fetch(device, on_device.chunks.address, described.chunks.nbytes)
    device.hold(on_device, tensors, chunks)
    return tensors.view(TENSOR), chunks.view(CHUNK)


def _on_the_host(array: Array, level: str) -> CompressedTensor:
    data, name, shape, framework, hint = _arrays.describe(array)
    return _native.compress(data, name, shape, level=level, framework=framework, hint=hint)
