"""Deltas: every bit comes back with the base, nothing without it, and the second decoder agrees."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import neuzip_rs as nz
from neuzip_rs import _native
from tests.python.second_decoder import decode, parse
from tests.python.second_delta import BaseMismatch, decode_delta

DTYPES = ["bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2", "int8"]
DTYPES += ["int16", "uint32", "int64", "bool", "complex64", "complex128"]


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def pair(name: str, count: int, step: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights and what became of them; a few of them are infinite, NaN or zero."""
    rng = np.random.default_rng(seed)
    old = rng.normal(0, 0.05, count)
    new = old + rng.normal(0, 0.05 * step, count)
    dtype = dtype_of(name)
    if dtype.kind in "iub":
        old, new = np.round(old * 1000), np.round(new * 1000)
        return old.astype(np.int64).astype(dtype), new.astype(np.int64).astype(dtype)
    with np.errstate(all="ignore"):
        old, new = old.astype(dtype), new.astype(dtype)
        for values in (old, new):
            special = rng.integers(0, count, count // 100)
            values[special] = rng.choice([0.0, -0.0, np.inf, -np.inf, np.nan], len(special))
    return old, new


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(DTYPES),
    count=st.integers(0, 5000),
    step=st.sampled_from([0.0, 1e-4, 1e-2, 0.3, 10.0]),
    seed=st.integers(0, 1 << 32),
    level=st.sampled_from(["fast", "default", "max"]),
)
def test_every_bit_comes_back(name: str, count: int, step: float, seed: int, level: str) -> None:
    old, new = pair(name, count, step, seed)
    c = nz.compress(new, base=old, level=level)
    back = nz.decompress(c, base=old)
    assert back.dtype == new.dtype
    assert back.tobytes() == new.tobytes()
    if c.base_hash is None:
        assert decode(bytes(c)) == new.tobytes()
        assert c == nz.compress(new, level=level)
    else:
        assert decode_delta(bytes(c), old.tobytes()) == new.tobytes()


@given(data=st.binary(min_size=2048, max_size=6000), other=st.binary(max_size=6000))
@settings(max_examples=30, deadline=None)
def test_any_bytes_next_to_any_bytes(data: bytes, other: bytes) -> None:
    base = (other * (len(data) // max(1, len(other)) + 1) or bytes(len(data)))[: len(data)]
    for dtype in ("uint8", "bfloat16", "float32"):
        whole = len(data) // 4 * 4
        c = nz.compress(data[:whole], base=base[:whole], dtype=dtype)
        assert nz.decompress(c, base=base[:whole]) == data[:whole]
        if c.base_hash is not None:
            assert decode_delta(bytes(c), base[:whole]) == data[:whole]


@pytest.mark.parametrize("name", ["bfloat16", "float32", "int8"])
def test_several_chunks(name: str) -> None:
    old, new = pair(name, 9000, 1e-2, 1)
    shape = [new.size]
    c = _native.compress(
        new.tobytes(), name, shape, base=old.tobytes(), chunk_bytes=4096, threads=1
    )
    assert c.info()["body"] == "delta"
    assert decode_delta(bytes(c), old.tobytes()) == new.tobytes()
    many = _native.compress(
        new.tobytes(), name, shape, base=old.tobytes(), chunk_bytes=4096, threads=3
    )
    assert many == c
    part = bytearray(5000)
    _native.decompress_into(c, part, start=3001, base=old.tobytes())
    assert part == new.tobytes()[3001:8001]


def test_a_copy_of_the_base_is_a_header() -> None:
    x = torch.randn(1000, 100)
    c = nz.compress(x, base=x.clone())
    assert c.nbytes < 48
    assert c.info()["body"] == "base"
    assert decode_delta(bytes(c), x.numpy().tobytes()) == x.numpy().tobytes()
    assert torch.equal(nz.decompress(c, base=x), x)


def test_bases_of_all_kinds() -> None:
    old = torch.randn(300, 100, dtype=torch.bfloat16)
    new = old + 0.01 * torch.randn(300, 100, dtype=torch.bfloat16)
    older = old + 0.01 * torch.randn(300, 100, dtype=torch.bfloat16)
    compressed = nz.compress(old)
    c = nz.compress(new, base=compressed)
    assert c == nz.compress(new, base=old)
    assert c.nbytes < nz.compress(new).nbytes * 0.9
    raw = old.view(torch.uint8).numpy().tobytes()
    for base in (old, compressed, raw, old.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)):
        assert torch.equal(nz.decompress(c, base=base), new)
    out = torch.empty_like(new)
    assert nz.decompress(c, base=old, out=out) is out
    assert torch.equal(out, new)
    assert c.shape == (300, 100)
    assert c.dtype == "bfloat16"
    # A base that is a delta itself has to be decoded first.
    link = nz.compress(old, base=older)
    with pytest.raises(nz.BaseMismatchError):
        nz.compress(new, base=link)
    assert torch.equal(nz.decompress(c, base=nz.decompress(link, base=older)), new)


def test_wrong_bases() -> None:
    old = torch.randn(300, 100)
    new = old + 0.01 * torch.randn(300, 100)
    c = nz.compress(new, base=old)
    out = torch.full_like(new, 7.0)
    shifted = old.clone()
    shifted[299, 99] += 1
    for base in (None, shifted, old.double(), old.reshape(-1), old[:10], b"", nz.compress(new)):
        with pytest.raises(nz.BaseMismatchError):
            nz.decompress(c, base=base, out=out)
    assert torch.equal(out, torch.full_like(new, 7.0))
    with pytest.raises(nz.BaseMismatchError):
        c[3]
    with pytest.raises(TypeError):
        nz.decompress(c, base=3)
    with pytest.raises(BaseMismatch):
        decode_delta(bytes(c), shifted.numpy().tobytes())
    for wrong in (old.double(), old.reshape(-1)):
        with pytest.raises(ValueError, match="base must have"):
            nz.compress(new, base=wrong)
    with pytest.raises(ValueError, match="shares memory"):
        nz.decompress(c, base=old, out=old)
    plain = nz.compress(new)
    assert torch.equal(nz.decompress(plain, base=shifted), new)


def test_damage_is_noticed() -> None:
    old, new = pair("bfloat16", 2000, 1e-2, 3)
    stream = bytes(nz.compress(new, base=old))
    assert parse(stream).delta is not None
    rng = np.random.default_rng(0)
    for bit in rng.choice(len(stream) * 8, 400, replace=False):
        damaged = bytearray(stream)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(nz.NeuzipError):
            nz.decompress(bytes(damaged), base=old)
        with pytest.raises(ValueError):  # noqa: PT011 - a subclass each time
            decode_delta(bytes(damaged), old.tobytes())
    for length in range(0, len(stream), 7):
        with pytest.raises(nz.NeuzipError):
            nz.decompress(stream[:length], base=old)


def test_a_copy_of_the_stream_remembers_nothing_else() -> None:
    old, new = pair("float32", 3000, 1e-3, 3)
    c = nz.compress(new, base=old)
    again = nz.CompressedTensor.from_bytes(bytes(c))
    assert again == c
    assert again.base_hash == c.base_hash
    assert nz.decompress(again, base=old).tobytes() == new.tobytes()
