"""Copying and decoding at the same time: the code that a GPU runs, on the emulated device."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import neuzip_rs as nz
from neuzip_rs import _native
from neuzip_rs.cuda import _launch, _pipeline
from neuzip_rs.cuda._device import Device, Memory
from neuzip_rs.cuda._pipeline import InFile, InMemory, Item
from tests.python.cuda.emulated import EmulatedDevice
from tests.python.cuda.emulation import needs_compiler
from tests.python.samples import contents

pytestmark = needs_compiler
DTYPES = ("bfloat16", "float32", "int8", "float64")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces and batches so small that little data has many of them."""
    monkeypatch.setattr(_pipeline, "PIECE_BYTES", 5000)
    monkeypatch.setattr(_pipeline, "BATCH_BYTES", 30_000)
    monkeypatch.setattr(_pipeline, "_PART_BYTES", 700)


def tensors(counts: Sequence[int]) -> list[tuple[bytes, str]]:
    return [
        (contents("weights", DTYPES[i % 4], count, i), DTYPES[i % 4])
        for i, count in enumerate(counts)
    ]


def compressed(data: bytes, dtype: str, base: bytes | None = None) -> _native.CompressedTensor:
    shape = (len(data) // {"bfloat16": 2, "float32": 4, "int8": 1, "float64": 8}[dtype],)
    return _native.compress(data, dtype, shape, chunk_bytes=4096, base=base)


def room(device: Device, nbytes: int) -> Memory:
    return device.empty(nbytes)


def found(memory: Memory, nbytes: int) -> bytes:
    import ctypes

    return ctypes.string_at(memory.address, nbytes)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize("counts", [[], [0], [100], [9000, 0, 70_000, 3, 20_001, 5000, 1, 40_000]])
def test_pieces_and_batches(lazy: bool, readers: int, counts: list[int]) -> None:
    """Whatever the order in which streams work, everything is there in the end."""
    device = EmulatedDevice(lazy=lazy)
    originals = tensors(counts)
    outs = [room(device, len(data)) for data, _ in originals]
    items = []
    for i, ((data, dtype), out) in enumerate(zip(originals, outs, strict=True)):
        c = compressed(data, dtype)
        if i % 3 == 2:
            items.append(Item(InMemory(data), None, (out.address,)))
        else:
            items.append(Item(InMemory(c), c, (out.address,)))
    _pipeline.decode(device, items, readers=readers)
    del items
    _launch.raise_errors(device)
    for (data, _), out in zip(originals, outs, strict=True):
        assert found(out, len(data)) == data


def test_only_compressed_bytes_are_copied() -> None:
    device = EmulatedDevice()
    data, dtype = tensors([100_000])[0]
    c, out = compressed(data, dtype), room(device, len(data))
    _pipeline.decode(device, [Item(InMemory(c), c, (out.address,))])
    plan, _, _ = _native.device_plan([(c, 0, 0, None)])
    assert device.uploaded == c.nbytes + len(plan)
    assert device.downloaded == 0


def test_a_stream_that_is_wanted_twice_is_copied_once() -> None:
    device = EmulatedDevice()
    data, dtype = tensors([30_000])[0]
    c = compressed(data, dtype)
    outs = [room(device, len(data)) for _ in range(2)]
    item = Item(InMemory(c), c, tuple(out.address for out in outs))
    _pipeline.decode(device, [item])
    assert [found(out, len(data)) for out in outs] == [data, data]
    assert device.uploaded < 2 * c.nbytes


def test_files(tmp_path: Path) -> None:
    device = EmulatedDevice(lazy=True)
    data, dtype = tensors([50_000])[0]
    c = compressed(data, dtype)
    path = tmp_path / "streams"
    path.write_bytes(b"in front" + bytes(c) + data)
    outs = [room(device, len(data)) for _ in range(2)]
    file = os.open(path, os.O_RDONLY)
    try:
        items = [
            Item(InFile(file, 8, c.nbytes), c, (outs[0].address,)),
            Item(InFile(file, 8 + c.nbytes, len(data)), None, (outs[1].address,)),
        ]
        _pipeline.decode(device, items)
        _launch.raise_errors(device)
        assert [found(out, len(data)) for out in outs] == [data, data]
        longer = Item(InFile(file, 8 + c.nbytes, len(data) + 1), None, (outs[1].address,))
        with pytest.raises(nz.CorruptDataError, match="ends within"):
            _pipeline.decode(device, [longer])
    finally:
        os.close(file)


def test_errors_name_the_tensor_of_any_batch() -> None:
    device = EmulatedDevice()
    originals = tensors([40_000, 30_000, 50_000])
    streams = [bytearray(compressed(data, dtype)) for data, dtype in originals]
    streams[2][-5000] ^= 255
    outs = [room(device, len(data)) for data, _ in originals]
    items = [
        Item(InMemory(c), bytes(c), (out.address,)) for c, out in zip(streams, outs, strict=True)
    ]
    _pipeline.decode(device, items)
    with pytest.raises(nz.CorruptDataError, match=r"chunk \d+ of tensor 'c'"):
        _launch.raise_errors(device, ["a", "b", "c"])
    _launch.raise_errors(device)


# --- the hash of a whole tensor -----------------------------------------------------------------


@pytest.mark.parametrize("shift", [0, 1])
def test_content_hashes(shift: int) -> None:
    device = EmulatedDevice()
    rng = np.random.default_rng(1)
    for nbytes in (241, 255, 256, 1023, 1024, 1025, 1087, 1088, 2048, 4096, 4097, 70_001):
        data = rng.bytes(nbytes)
        memory = room(device, nbytes + shift)
        at = memory.address + shift
        ctypes_copy(at, data)
        expected = _native.content_hash(data)
        _launch.check_content(device, at, nbytes, expected, 0)
        _launch.raise_errors(device)
        for place in (0, nbytes // 2, nbytes - 1):
            ctypes_copy(at + place, bytes([data[place] ^ 1]))
            _launch.check_content(device, at, nbytes, expected, 0)
            with pytest.raises(nz.BaseMismatchError, match="'x'"):
                _launch.raise_errors(device, ["x"])
            ctypes_copy(at + place, data[place : place + 1])


def ctypes_copy(target: int, data: bytes) -> None:
    import ctypes

    ctypes.memmove(target, data, len(data))
