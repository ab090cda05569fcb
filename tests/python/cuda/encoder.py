"""The encoder of cuda/encode.cu in the emulation, in place of a GPU."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from neuzip_rs.cuda._encode import Input, describe, sizes
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
    tensors: Sequence[tuple[bytes, str]], chunk_log2: int, *, grid: int = 3, seed: int = 1
) -> list[Encoded]:
    """Encodes tensors, bytes and dtype, in one launch of each kernel."""
    memory = [guarded(data) for data, _ in tensors]
    described, chunks = describe(
        [
            Input(at.ctypes.data, len(data), dtype, chunk_log2)
            for at, (data, dtype) in zip(memory, tensors, strict=True)
        ]
    )
    scratch, out = (guarded(bytes(size)) for size in sizes(described, chunks))
    chunks["scratch"] += np.uint64(scratch.ctypes.data)
    starts = described["out"].tolist()
    described["out"] += np.uint64(out.ctypes.data)
    kernels, count = encoder(), np.uint32(len(chunks))
    kernels.launch("encode_plan", len(tensors), 256, described, seed=seed)
    kernels.launch("encode_chunks", grid, 128, described, chunks, count, seed=seed)
    kernels.launch("encode_offsets", len(tensors), 32, described, chunks, seed=seed)
    kernels.launch("encode_gather", grid, 128, described, chunks, count, seed=seed)
    return [
        Encoded(
            tensor,
            chunks[tensor["first_chunk"] : tensor["first_chunk"] + tensor["chunks"]],
            out[start : start + int(tensor["payload_bytes"])].tobytes(),
        )
        for tensor, start in zip(described, starts, strict=True)
    ]
