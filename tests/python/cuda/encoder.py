"""The encoder of cuda/encode.cu in the emulation, in place of a GPU."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from neuzip_rs.cuda._encode import Input, describe
from tests.python.cuda.emulation import Emulated, guarded

Array = np.ndarray[Any, Any]


class Encoded(NamedTuple):
    """What the kernels made of a tensor."""

    tensor: Array
    chunks: Array
    payloads: bytes


@functools.cache
def encoder() -> Emulated:
    return Emulated("encode")


def encode_many(
    tensors: Sequence[tuple[bytes, str]],
    chunk_log2: int,
    *,
    grid: int = 3,
    seed: int = 1,
    wave_bytes: int = 1 << 16,
    level: str = "fast",
) -> list[Encoded]:
    """Encodes tensors, bytes and dtype, in one launch of each kernel."""
    memory = [guarded(data) for data, _ in tensors]
    described, chunks, waves, scratch_bytes, out_bytes = describe(
        [
            Input(at.ctypes.data, len(data), dtype, chunk_log2)
            for at, (data, dtype) in zip(memory, tensors, strict=True)
        ],
        wave_bytes,
    )
    scratch, out = guarded(bytes(scratch_bytes)), guarded(bytes(out_bytes))
    chunks["scratch"] += np.uint64(scratch.ctypes.data)
    starts = described["out"].tolist()
    described["out"] += np.uint64(out.ctypes.data)
    kernels = encoder()
    kernels.launch("encode_signs", grid, 128, described, chunks, np.uint32(len(chunks)), seed=seed)
    planner = {"fast": "encode_plan", "default": "encode_choose"}[level]
    kernels.launch(planner, len(tensors), 256, described, seed=seed)
    for start, count in waves:
        part = np.uint32(start), np.uint32(count)
        kernels.launch("encode_chunks", grid, 128, described, chunks, *part, seed=seed)
        kernels.launch("encode_offsets", len(tensors), 32, described, chunks, *part, seed=seed)
        kernels.launch("encode_gather", grid, 128, described, chunks, *part, seed=seed)
    return [
        Encoded(
            tensor,
            chunks[tensor["first_chunk"] : tensor["first_chunk"] + tensor["chunks"]],
            out[start : start + int(tensor["payload_bytes"])].tobytes(),
        )
        for tensor, start in zip(described, starts, strict=True)
    ]
