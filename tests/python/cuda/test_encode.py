"""cuda/encode.cu against the Rust encoder, in the emulation: the same tables, the same bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuzip_rs import _native
from neuzip_rs._dtypes import ITEMSIZE
from neuzip_rs.cuda._encode import EXPONENT_BITS, HOST, prelude
from tests.python import second_decoder as page
from tests.python.cuda.emulation import needs_compiler
from tests.python.cuda.encoder import Encoded, encode_many
from tests.python.samples import KINDS, contents

pytestmark = needs_compiler
EXAMPLES = settings().max_examples


def compressed(data: bytes, dtype: str, chunk_log2: int) -> bytes:
    count = len(data) // ITEMSIZE[dtype]
    stream = _native.compress(data, dtype, (count,), level="fast", chunk_bytes=1 << chunk_log2)
    return bytes(stream)


def agree(found: Encoded, data: bytes, dtype: str, chunk_log2: int) -> bool:
    """Whether the device made it, and then the same as the CPU."""
    if int(found.tensor["model"]["state"]) == HOST:
        return False
    stream = compressed(data, dtype, chunk_log2)
    shape = (len(data) // ITEMSIZE[dtype],)
    assert prelude(found.tensor, found.chunks, dtype, shape) + found.payloads == stream
    return True


def one(data: bytes, dtype: str, chunk_log2: int, seed: int = 1) -> bool:
    (found,) = encode_many([(data, dtype)], chunk_log2, seed=seed)
    return agree(found, data, dtype, chunk_log2)


@pytest.mark.parametrize("dtype", EXPONENT_BITS)
def test_weights(dtype: str) -> None:
    """Ordinary weights are encoded on the device."""
    for count in (5000, 8192, 70_003):
        assert one(contents("weights", dtype, count, count), dtype, 13)


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
)
def test_any_floats(dtype: str, kind: str, count: int, chunk: int, seed: int, order: int) -> None:
    data = contents(kind, dtype, count, seed)
    if one(data, dtype, chunk, order):
        return
    # What is left to the CPU is what it stores in another form.
    parsed = page.parse(compressed(data, dtype, chunk))
    assert (
        parsed.body != page.CHUNKED_BODY
        or any(
            [plane.mode for plane in model.planes] != [page.CODED, page.RAW] or model.trailing_zeros
            for model in parsed.models
        )
        or not parsed.models
    )


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
