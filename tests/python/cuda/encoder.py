"""The encoder of cuda/encode.cu in the emulation, in place of a GPU."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from neuzip_rs._dtypes import ITEMSIZE
from tests.python.cuda.emulation import Bytes, Emulated, guarded

Array = np.ndarray[Any, Any]

# The structs of cuda/encode_layout.cuh.
MODEL = np.dtype(
    [
        ("state", "<u4"),
        ("base", "<u4"),
        ("escape", "<u4"),
        ("entries", "<u4"),
        ("index", "u1", 64),
        ("frequency", "u1", 64),
    ]
)
TENSOR = np.dtype(
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
CHUNK = np.dtype(
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
EXPONENT_BITS = {
    "bfloat16": 8,
    "float16": 5,
    "float32": 8,
    "float64": 11,
    "float8_e4m3fn": 4,
    "float8_e4m3fnuz": 4,
    "float8_e5m2": 5,
    "float8_e5m2fnuz": 5,
}
RAW, CUT, HOST = range(3)


class Encoded(NamedTuple):
    """What the kernels made of a tensor."""

    model: Array
    chunks: Array
    payloads: bytes


@functools.cache
def encoder() -> Emulated:
    return Emulated("encode")


def _aligned(count: int) -> int:
    return -(-count // 16) * 16


def encode_many(
    tensors: Sequence[tuple[bytes, str]], chunk_log2: int, *, grid: int = 3, seed: int = 1
) -> list[Encoded]:
    """Encodes tensors, bytes and dtype, in one launch of each kernel."""
    described = np.zeros(len(tensors), TENSOR)
    chunks: list[tuple[int, int, int, int]] = []
    memory: list[Bytes] = []
    outs, scratches = [], []
    for number, (data, dtype) in enumerate(tensors):
        itemsize = ITEMSIZE[dtype]
        exponents = EXPONENT_BITS[dtype]
        on_device = guarded(data)
        memory.append(on_device)
        lengths = [
            min(1 << chunk_log2, len(data) - start)
            for start in range(0, len(data), 1 << chunk_log2)
        ]
        out = guarded(bytes(sum(map(_aligned, lengths))))
        outs.append(out)
        tensor = described[number]
        tensor["data"], tensor["bytes"] = on_device.ctypes.data, len(data)
        tensor["out"], tensor["chunk_log2"] = out.ctypes.data, chunk_log2
        tensor["first_chunk"], tensor["chunks"] = len(chunks), len(lengths)
        tensor["element_log2"], tensor["exponent_bits"] = itemsize.bit_length() - 1, exponents
        tensor["mantissa_bits"] = 8 * itemsize - 1 - exponents
        for index, length in enumerate(lengths):
            elements = length // itemsize
            scratch = guarded(bytes(128 + 3 * _aligned(elements) + _aligned(length) + 64))
            scratches.append(scratch)
            address = on_device.ctypes.data + (index << chunk_log2)
            chunks.append((address, scratch.ctypes.data, length, number))
    table = np.zeros(max(len(chunks), 1), CHUNK)
    for row, values in zip(table, chunks, strict=False):
        row["data"], row["scratch"], row["bytes"], row["tensor"] = values
    kernels, count = encoder(), np.uint32(len(chunks))
    kernels.launch("encode_plan", len(tensors), 256, described, seed=seed)
    kernels.launch("encode_chunks", grid, 128, described, table, count, seed=seed)
    kernels.launch("encode_offsets", len(tensors), 32, described, table, seed=seed)
    kernels.launch("encode_gather", grid, 128, described, table, count, seed=seed)
    return [
        Encoded(
            tensor["model"],
            table[tensor["first_chunk"] : tensor["first_chunk"] + tensor["chunks"]],
            out.tobytes()[: tensor["payload_bytes"]],
        )
        for tensor, out in zip(described, outs, strict=True)
    ]
