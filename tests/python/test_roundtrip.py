"""Whatever goes in comes out, bit for bit."""

import array
import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import neuzip_rs as nz
from neuzip_rs._dtypes import ITEMSIZE
from tests.python.samples import (
    FLOATS,
    KINDS,
    NUMPY_DTYPES,
    TORCH_DTYPES,
    assert_same,
    contents,
    numpy_array,
    numpy_dtype,
    torch_tensor,
)

LEVELS = ("fast", "default", "max")
CHUNK = 128 * 1024

shapes = st.lists(st.integers(0, 13), max_size=4).map(tuple)
kinds = st.sampled_from(KINDS)
levels = st.sampled_from(LEVELS)
seeds = st.integers(0, 2**32)


@given(dtype=st.sampled_from(NUMPY_DTYPES), shape=shapes, kind=kinds, level=levels, seed=seeds)
def test_numpy(dtype: str, shape: tuple[int, ...], kind: str, level: str, seed: int) -> None:
    x = numpy_array(dtype, shape, contents(kind, dtype, math.prod(shape), seed))
    c = nz.compress(x, level=level)
    assert (c.dtype, c.shape, c.original_nbytes) == (dtype, shape, x.nbytes)
    assert_same(nz.decompress(c), x)
    assert_same(nz.decompress(bytes(c)), x)


@given(dtype=st.sampled_from(TORCH_DTYPES), shape=shapes, kind=kinds, level=levels, seed=seeds)
def test_torch(dtype: str, shape: tuple[int, ...], kind: str, level: str, seed: int) -> None:
    x = torch_tensor(dtype, shape, contents(kind, dtype, math.prod(shape), seed))
    c = nz.compress(x, level=level)
    assert (c.dtype, c.shape, c.original_nbytes) == (dtype, shape, x.nbytes)
    assert_same(nz.decompress(c), x)


@given(data=st.binary(max_size=3000), repeat=st.integers(1, 5), level=levels)
def test_bytes(data: bytes, repeat: int, level: str) -> None:
    data *= repeat
    assert_same(nz.decompress(nz.compress(data, level=level)), data)
    assert_same(nz.decompress(nz.compress(bytearray(data), level=level)), data)
    assert_same(nz.decompress(nz.compress(memoryview(data), level=level)), data)


@given(
    dtype=st.sampled_from(NUMPY_DTYPES),
    nbytes=st.integers(0, 5000),
    kind=kinds,
    level=levels,
    seed=seeds,
)
def test_bytes_of_a_named_type(dtype: str, nbytes: int, kind: str, level: str, seed: int) -> None:
    data = contents(kind, "uint8", nbytes, seed)
    c = nz.compress(data, dtype=dtype, level=level)
    assert_same(nz.decompress(c), data)


@given(
    dtype=st.sampled_from([*FLOATS, "int32", "complex64"]),
    nbytes=st.integers(CHUNK // 2, 5 * CHUNK),
    columns=st.integers(1, 700),
    kind=kinds,
    level=levels,
    seed=seeds,
)
def test_several_chunks(
    dtype: str, nbytes: int, columns: int, kind: str, level: str, seed: int
) -> None:
    shape = (nbytes // ITEMSIZE[dtype] // columns, columns)
    x = numpy_array(dtype, shape, contents(kind, dtype, math.prod(shape), seed))
    c = nz.compress(x, level=level)
    assert_same(nz.decompress(c), x)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("extra", [-1, 0, 1, 63, 64, 65])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float8_e4m3fn", "int64", "uint8"])
def test_around_the_end_of_a_chunk(dtype: str, extra: int, level: str) -> None:
    count = CHUNK // numpy_dtype(dtype).itemsize + extra
    x = numpy_array(dtype, (count,), contents("weights", dtype, count, extra + 2))
    assert_same(nz.decompress(nz.compress(x, level=level)), x)


@pytest.mark.parametrize("count", range(200))
def test_every_small_count(count: int) -> None:
    for dtype in ("bfloat16", "float32", "float8_e5m2", "int16"):
        x = numpy_array(dtype, (count,), contents("weights", dtype, count, count))
        assert_same(nz.decompress(nz.compress(x)), x)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int16", "uint16"])
def test_all_patterns_of_two_bytes(dtype: str, level: str) -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    shuffled = np.random.default_rng(0).permutation(patterns)
    for order in (patterns, shuffled, np.repeat(shuffled, 5)):
        x = order.view(numpy_dtype(dtype))
        assert_same(nz.decompress(nz.compress(x, level=level)), x)
        if dtype != "uint16":
            t = torch.from_numpy(order).view(getattr(torch, dtype))
            assert_same(nz.decompress(nz.compress(t, level=level)), t)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "dtype", [name for name in NUMPY_DTYPES if numpy_dtype(name).itemsize == 1]
)
def test_all_patterns_of_one_byte(dtype: str, level: str) -> None:
    patterns = np.arange(256, dtype=np.uint8)
    if dtype == "bool":
        patterns &= 1
    for order in (patterns, np.tile(patterns, 33), np.repeat(patterns, 1000)):
        x = order.view(numpy_dtype(dtype))
        assert_same(nz.decompress(nz.compress(x, level=level)), x)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("dtype", "unsigned"), [("float32", np.uint32), ("float64", np.uint64)])
def test_nan_payloads_and_subnormals(dtype: str, unsigned: type, level: str) -> None:
    rng = np.random.default_rng(1)
    width = np.dtype(unsigned).itemsize * 8
    mantissa = 23 if width == 32 else 52
    payloads = rng.integers(0, 1 << mantissa, 5000, dtype=unsigned)
    exponents = np.array([0, (1 << (width - 1 - mantissa)) - 1], unsigned)
    signs = rng.integers(0, 2, 5000, dtype=unsigned) << unsigned(width - 1)
    patterns = payloads | (rng.choice(exponents, 5000) << unsigned(mantissa)) | signs
    x = patterns.view(dtype)
    assert_same(nz.decompress(nz.compress(x, level=level)), x)
    t = torch.from_numpy(x)
    assert_same(nz.decompress(nz.compress(t, level=level)), t)


@given(
    shape=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    steps=st.lists(st.sampled_from([-2, -1, 1, 2]), min_size=4, max_size=4),
    data=st.data(),
)
def test_strides(shape: list[int], steps: list[int], data: st.DataObject) -> None:
    axes = data.draw(st.permutations(range(len(shape))))
    whole = np.arange(math.prod(shape) * 2 ** len(shape), dtype=np.float32)
    whole = whole.reshape([2 * n for n in shape])
    x = whole[tuple(slice(None, None, step) for step in steps[: len(shape)])].transpose(axes)
    assert_same(nz.decompress(nz.compress(x)), np.ascontiguousarray(x).reshape(x.shape))
    t = torch.from_numpy(whole)[tuple(slice(None, None, abs(s)) for s in steps[: len(shape)])]
    t = t.permute(tuple(axes))
    assert_same(nz.decompress(nz.compress(t)), t.contiguous())


@pytest.mark.parametrize("code", "bBhHiIlLqQfd")
def test_array_array(code: str) -> None:
    x = array.array(code, [1, 2, 100, 3])
    y = nz.decompress(nz.compress(x))
    assert_same(y, np.array(x, dtype=np.dtype(code)))


@given(level=levels, seed=seeds, dtype=st.sampled_from(TORCH_DTYPES))
def test_equal_bits_give_equal_bytes_from_every_framework(
    level: str, seed: int, dtype: str
) -> None:
    data = contents("weights", dtype, 600, seed)
    t = torch_tensor(dtype, (20, 30), data)
    streams = {bytes(nz.compress(t, level=level))}
    if dtype in NUMPY_DTYPES:
        streams.add(bytes(nz.compress(numpy_array(dtype, (20, 30), data), level=level)))
    else:
        assert dtype == "float4_e2m1fn_x2"
    assert len(streams) == 1


def test_type_lists_are_whole() -> None:
    assert set(NUMPY_DTYPES) | set(TORCH_DTYPES) == set(ITEMSIZE)
    assert ml_dtypes.bfloat16 is numpy_dtype("bfloat16").type
