"""Bytes that repeat a layout: the blocks of quantised models."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import neuzip_rs as nz
from neuzip_rs import _native
from tests.python import second_decoder as page


def blocks(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Blocks like those of GGUF's Q4_0: a float16 scale and 32 numbers of four bits."""
    rng = np.random.default_rng(seed)
    weights = (rng.standard_normal((count, 32)) * rng.gamma(4, 0.01, (count, 1))).astype(np.float32)
    scales = np.abs(weights).max(axis=1, keepdims=True) / 8
    numbers = np.clip(np.round(weights / scales) + 8, 0, 15).astype(np.uint8)
    packed = numbers[:, :16] | numbers[:, 16:] << 4
    return np.concatenate([scales.astype(np.float16).view(np.uint8), packed], axis=1)


@pytest.mark.parametrize("level", ["default", "max"])
@pytest.mark.parametrize("shift", [0, 7])
def test_blocks_are_taken_apart(level: str, shift: int) -> None:
    data = bytes(range(shift)) + blocks(20_000).tobytes()
    c = nz.compress(data, level=level)
    explained = nz.explain(c, measure=True)
    assert "records" in _native.CompressedTensor.from_bytes(bytes(c)).info()["features"]
    assert sum(f.stored_bytes for f in explained.fields) + explained.other_bytes == c.nbytes
    assert nz.decompress(c) == data
    assert nz.decompress(c, threads=1) == data
    # Scales take about half, and each number its entropy, which is some 3.7 bits.
    assert c.ratio < 0.95
    assert c.ratio < nz.compress(data, level="fast").ratio - 0.015
    part = np.empty(5000, np.uint8)
    _native.decompress_into(c, part.data, start=130_000)
    assert part.tobytes() == data[130_000:135_000]
    assert abs(nz.estimate(data, level=level).stored_bytes - c.nbytes) < 64


def test_the_second_decoder_reads_records() -> None:
    data = blocks(4000).tobytes()
    stream = bytes(_native.compress(data, "uint8", (len(data),), level="max", chunk_bytes=1 << 15))
    assert page.parse(stream).features & page.RECORDS
    assert page.decode(stream) == data


def test_damage_is_noticed() -> None:
    data = blocks(9000).tobytes()
    stream = bytes(nz.compress(data, level="max"))
    rng = np.random.default_rng(0)
    for place in rng.integers(0, 8 * len(stream), 300):
        damaged = bytearray(stream)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises((nz.CorruptDataError, nz.UnsupportedVersionError)):
            nz.decompress(bytes(damaged))


@given(
    st.binary(min_size=2, max_size=300),
    st.binary(min_size=1, max_size=300),
    st.integers(1, 60_000),
    st.sampled_from(["default", "max"]),
)
@settings(max_examples=60, deadline=None)
def test_every_period_comes_back(mask: bytes, first: bytes, count: int, level: str) -> None:
    rng = np.random.default_rng(count)
    limits = np.resize(np.frombuffer(mask, np.uint8), count)
    data = first + (rng.integers(0, 256, count) & limits).astype(np.uint8).tobytes()
    assert nz.decompress(nz.compress(data, level=level)) == data


def test_packed_numbers() -> None:
    """Two numbers in a byte, or eight in 32 bits: each half is coded."""
    rng = np.random.default_rng(1)
    numbers = np.clip(np.round(rng.standard_normal(400_000) * 2 + 8), 0, 15).astype(np.uint32)
    packed = (numbers[::2] | numbers[1::2] << 4).astype(np.uint8)
    shifts = np.arange(8, dtype=np.uint32) * 4
    words = (numbers.reshape(-1, 8) << shifts).sum(axis=1).astype(np.uint32).view(np.int32)
    for array in (packed, words):
        c = nz.compress(array)
        np.testing.assert_array_equal(nz.decompress(c), array)
        assert c.ratio < 0.785
    few = np.repeat(np.arange(3, dtype=np.int32), 128)
    assert nz.compress(few).nbytes < few.nbytes / 2
