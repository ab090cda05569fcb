"""Launching what a plan says, and what the kernels say of it afterwards."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from neuzip_rs._errors import BaseMismatchError, CorruptDataError
from neuzip_rs.cuda._device import Device, pointer, to_device

# Chunk of cuda/layout.cuh.
CHUNK: Final = np.dtype(
    {
        "names": [
            *("payload", "out", "base", "payload_bytes", "bytes"),
            *("kind", "flags", "tensor", "number"),
        ],
        "formats": ["<u8", "<u8", "<u8", "<u4", "<u4", "u1", "u1", "<u4", "<u4"],
        "offsets": [0, 8, 16, 40, 44, 52, 53, 56, 60],
        "itemsize": 64,
    }
)
CUT_FLAG: Final = 4
_COPY_KIND: Final = 6
_CUT_THREADS: Final = 32
_ANY_THREADS: Final = 128
# Blocks on each multiprocessor: what registers leave room for, rounded up.
_CUT_BLOCKS: Final = 16
_ANY_BLOCKS: Final = 3

# Error of cuda/layout.cuh.
_HASH_ERROR: Final = 2
_CONTENT_ERROR: Final = 3

_SUM_THREADS: Final = 128
_SUM_BLOCKS: Final = 16
_BLOCK_BYTES: Final = 1024
_SUMS_BYTES: Final = 64
SHORT_BYTES: Final = 240
"""Up to here, bytes are hashed in a way that only the host knows."""


def decode_cut(
    device: Device, plan: int, first: int, count: int, payloads: int = 0, out: int = 0
) -> None:
    """Decodes those of a range of chunks that the fast kernel takes."""
    grid = _CUT_BLOCKS * device.processors, _CUT_THREADS
    _decode(device, "decode_cut", grid, (plan, first, count), payloads, out)


def decode_any(
    device: Device, plan: int, first: int, count: int, payloads: int = 0, out: int = 0
) -> None:
    """Decodes those of a range of chunks that the fast kernel does not take."""
    grid = _ANY_BLOCKS * device.processors, _ANY_THREADS
    _decode(device, "decode_any", grid, (plan, first, count), payloads, out)


def _decode(
    device: Device,
    kernel: str,
    grid: tuple[int, int],
    chunks: tuple[int, int, int],
    payloads: int,
    out: int,
) -> None:
    plan, first, count = chunks
    if count:
        device.launch(
            "decode",
            kernel,
            min(count, grid[0]),
            grid[1],
            pointer(plan),
            np.uint32(first),
            np.uint32(count),
            pointer(payloads),
            pointer(out),
            pointer(device.status().address),
        )


def copy(device: Device, parts: Sequence[tuple[int, int, int]]) -> None:
    """Copies on the device: from an address, to an address, less than 4 GiB each."""
    chunks = np.zeros(len(parts), CHUNK)
    chunks["kind"] = _COPY_KIND
    for chunk, (source, target, nbytes) in zip(chunks, parts, strict=True):
        chunk["base"], chunk["out"], chunk["bytes"] = source, target, nbytes
    plan = to_device(device, chunks.view(np.uint8))
    decode_any(device, plan.address, 0, len(parts))
    device.hold(plan)


def check_content(device: Device, address: int, nbytes: int, expected: bytes, tensor: int) -> None:
    """Lets the device compare the hash of a tensor's bytes, more than `SHORT_BYTES` of them."""
    blocks = (nbytes - 1) // _BLOCK_BYTES
    sums = device.empty(blocks * _SUMS_BYTES)
    if blocks:
        warps = _SUM_THREADS // 32
        device.launch(
            "content_hash",
            "content_sums",
            min(-(-blocks // warps), _SUM_BLOCKS * device.processors),
            _SUM_THREADS,
            pointer(address),
            pointer(sums.address),
            np.uint64(blocks),
        )
    device.launch(
        "content_hash",
        "content_check",
        1,
        32,
        pointer(address),
        np.uint64(nbytes),
        pointer(sums.address),
        np.uint64(int.from_bytes(expected[:8], "little")),
        np.uint64(int.from_bytes(expected[8:], "little")),
        np.uint32(tensor),
        pointer(device.status().address),
    )
    device.hold(sums)


def raise_errors(device: Device, names: Sequence[str] | None = None) -> None:
    """Waits for the device, and raises what its kernels have found wrong since the last time.

    Args:
        device: The device.
        names: What to call the tensors of the only launch since then.

    Raises:
        CorruptDataError: If a chunk was damaged.
        BaseMismatchError: If the bytes of a base are others than expected.
    """
    device.synchronize()
    words, status = device.staging(16), device.status()
    device.stream.download(words, status.address)
    device.stream.record().synchronize()
    error, tensor, chunk, _ = words.view(np.uint32).tolist()
    if not error:
        return
    words[:] = 0
    device.stream.upload(status.address, words)
    device.stream.record().synchronize()
    named = None if names is None or tensor >= len(names) else names[tensor]
    which = f"tensor {tensor} of a launch" if named is None else f"tensor {named!r}"
    if error == _CONTENT_ERROR:
        message = f"base mismatch: {which}: the base, or what it repeats, has other bytes"
        raise BaseMismatchError(message)
    what = (
        "the hash of the decoded bytes does not match"
        if error == _HASH_ERROR
        else "a payload is not one that its model can have written"
    )
    message = f"corrupt data: chunk {chunk} of {which}: {what}"
    raise CorruptDataError(message)
