"""cuda/encode.cu against the Rust encoder, in the emulation: the same tables, the same bytes."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuzip_rs import _native
from neuzip_rs._dtypes import ITEMSIZE
from neuzip_rs.cuda._encode import CHOSEN, EXPONENT_BITS, left_to_cpu, prelude
from tests.python import second_decoder as page
from tests.python.cuda.emulation import needs_compiler
from tests.python.cuda.encoder import Encoded, encode_many
from tests.python.samples import KINDS, contents

pytestmark = needs_compiler
EXAMPLES = settings().max_examples


def compressed(data: bytes, dtype: str, chunk_log2: int, level: str = "fast") -> bytes:
    count = len(data) // ITEMSIZE[dtype]
    stream = _native.compress(data, dtype, (count,), level=level, chunk_bytes=1 << chunk_log2)
    return bytes(stream)


def agree(found: Encoded, data: bytes, dtype: str, chunk_log2: int, level: str = "fast") -> bool:
    """Whether the device made it, and then the same as the CPU."""
    if left_to_cpu(found.tensor, found.chunks):
        return False
    stream = compressed(data, dtype, chunk_log2, level)
    shape = (len(data) // ITEMSIZE[dtype],)
    assert prelude(found.tensor, found.chunks, dtype, shape) + found.payloads == stream
    return True


def one(data: bytes, dtype: str, chunk_log2: int, seed: int = 1, level: str = "fast") -> bool:
    (found,) = encode_many([(data, dtype)], chunk_log2, seed=seed, level=level)
    return agree(found, data, dtype, chunk_log2, level)


@pytest.mark.parametrize("dtype", EXPONENT_BITS)
@pytest.mark.parametrize("level", ["fast", "default"])
def test_weights(dtype: str, level: str) -> None:
    """Ordinary weights are encoded on the device."""
    for count in (5000, 8192, 20_000, 70_003, 200_000):
        if level == "fast" or dtype in CHOSEN:
            assert one(contents("weights", dtype, count, count), dtype, 13, level=level)


def test_sampled_tables() -> None:
    """A sample is looked at: other exponents turn up behind it, and are escaped."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal(300_000).astype(np.float32) * 0.02
    x[rng.integers(0, x.size, 300)] *= 1e20
    assert one((x.view(np.uint32) >> 16).astype(np.uint16).tobytes(), "bfloat16", 17)


def test_a_launch_takes_many_tensors() -> None:
    tensors = [
        (contents(kind, dtype, 3000 + 7 * i, i), dtype)
        for i, (kind, dtype) in enumerate(
            (kind, dtype) for kind in KINDS for dtype in EXPONENT_BITS
        )
    ]
    for grid in (1, 50):
        found = encode_many(tensors, 12, grid=grid)
        made = [
            agree(encoded, data, dtype, 12)
            for encoded, (data, dtype) in zip(found, tensors, strict=True)
        ]
        assert sum(made) >= len(made) // 2


@settings(max_examples=EXAMPLES)
@given(
    st.sampled_from(list(EXPONENT_BITS)),
    st.sampled_from(KINDS),
    st.one_of(st.integers(0, 2500), st.integers(0, 20_000)),
    st.integers(12, 15),
    st.integers(0, 99),
    st.integers(0, 3),
    st.sampled_from(["fast", "default"]),
)
def test_any_floats(
    dtype: str, kind: str, count: int, chunk: int, seed: int, order: int, level: str
) -> None:
    data = contents(kind, dtype, count, seed)
    if (level == "default" and dtype not in CHOSEN) or one(data, dtype, chunk, order, level):
        return
    # What is left to the CPU is constant, or has one exponent.
    parsed = page.parse(compressed(data, dtype, chunk, level))
    assert parsed.body != page.CHUNKED_BODY or not any(
        plane.mode == page.CODED for model in parsed.models for plane in model.planes
    )


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("level", ["fast", "default"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_one_sign(dtype: str, sign: int, level: str) -> None:
    if level == "default" and dtype not in CHOSEN:
        return
    x = np.abs(np.random.default_rng(1).standard_normal(200_000)) * sign
    data = as_bytes(x, dtype)
    assert one(data, dtype, 14, level=level)
    # One element of the other sign, outside of the sample.
    x[123_457] = -x[123_457]
    assert one(as_bytes(x, dtype), dtype, 14, level=level)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("negative", [True, False])
def test_trailing_zeros(dtype: str, negative: bool) -> None:
    """Rounded weights, each sub-block to another width."""
    x = np.random.default_rng(2).standard_normal(50_003)
    steps = 2.0 ** -(np.arange(x.size) // 4096 % 7)
    rounded = np.round(x / steps) * steps
    assert one(as_bytes(rounded if negative else np.abs(rounded) + 1e-3 * steps, dtype), dtype, 14)


def as_bytes(x: np.ndarray[Any, np.dtype[np.float64]], dtype: str) -> bytes:
    if dtype == "bfloat16":
        return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return x.astype(dtype).tobytes()


@settings(max_examples=EXAMPLES // 2)
@given(
    st.lists(st.floats(0.01, 1), min_size=2, max_size=90),
    st.integers(0, 255),
    st.integers(0, 1 << 32),
)
def test_any_table(shares: list[float], base: int, seed: int) -> None:
    """Exponents of any distribution, wherever their window lies."""
    rng = np.random.default_rng(seed)
    chances = np.array(shares) ** 3 / sum(np.array(shares) ** 3)
    exponents = (rng.choice(len(shares), 6000, p=chances) + base) % 256
    x = exponents.astype(np.uint16) << 7 | rng.integers(0, 128, 6000, np.uint16)
    x |= rng.integers(0, 2, 6000, np.uint16) << 15
    assert one(x.astype(np.uint16).tobytes(), "bfloat16", 14) or len(set(exponents)) < 2
