"""The decoder of cuda/decode.cu in the emulation, in place of a GPU.

Streams, outputs and bases lie in memory that ends at forbidden pages. Which kernel takes a chunk
depends on where things lie, as it does on a device: `shift` moves them off their alignment.
"""

import functools
from collections.abc import Sequence

import numpy as np

from neuzip_rs import _native
from tests.python.cuda.emulation import Bytes, Emulated, guarded

CUT_BLOCK = 32
ANY_BLOCK = 128


class DeviceError(Exception):
    """What the status of a launch says."""


@functools.cache
def decoder() -> Emulated:
    return Emulated("decode")


def _placed(content: bytes, shift: int) -> Bytes:
    return guarded(bytes(shift) + content)[shift:]


def decode_many(
    streams: Sequence[bytes],
    bases: Sequence[bytes | None] | None = None,
    *,
    verify: bool = True,
    shift: int = 0,
    grid: int = 3,
    seed: int = 1,
) -> list[bytes]:
    """What the kernels make of streams, in one launch of each kernel."""
    bases = bases or [None] * len(streams)
    sizes = [_native.stream_header(stream)[2] for stream in streams]
    on_device = [_placed(stream, shift) for stream in streams]
    outs = [_placed(bytes([0x5A]) * size, shift) for size in sizes]
    base_memory = [None if base is None else _placed(base, shift) for base in bases]
    planned, cut_chunks, any_chunks = _native.device_plan(
        [
            (
                stream,
                memory.ctypes.data,
                out.ctypes.data,
                None if base is None else base.ctypes.data,
            )
            for stream, memory, out, base in zip(streams, on_device, outs, base_memory, strict=True)
        ],
        verify=verify,
    )
    plan, status = guarded(planned), np.zeros(4, np.uint32)
    kernels = decoder()
    if cut_chunks:
        kernels.launch(
            "decode_cut",
            grid,
            CUT_BLOCK,
            plan,
            np.uint32(0),
            np.uint32(cut_chunks),
            *(np.uint64(0), np.uint64(0)),
            status,
            seed=seed,
        )
    if any_chunks:
        sizes32 = np.uint32(cut_chunks), np.uint32(any_chunks)
        nowhere = np.uint64(0), np.uint64(0)
        kernels.launch("decode_any", grid, ANY_BLOCK, plan, *sizes32, *nowhere, status, seed=seed)
    if status[0]:
        message = f"error {status[0]} in chunk {status[2]} of tensor {status[1]}"
        raise DeviceError(message)
    return [out.tobytes() for out in outs]


def decode(
    stream: bytes,
    base: bytes | None = None,
    *,
    verify: bool = True,
    shift: int = 0,
    grid: int = 3,
    seed: int = 1,
) -> bytes:
    """What the kernels make of one stream."""
    return decode_many([stream], [base], verify=verify, shift=shift, grid=grid, seed=seed)[0]
