"""cuda/encode*.cu against the Rust encoder, in the emulation: the same tables, the same bytes."""

import math
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuzip_rs import _native
from neuzip_rs._dtypes import ITEMSIZE
from neuzip_rs.cuda._encode import LEVELS
from neuzip_rs.cuda._encode_layout import EXPONENT_BITS, is_complex
from tests.python import second_decoder as page
from tests.python.cuda.emulation import needs_compiler
from tests.python.cuda.encoder import encode_many
from tests.python.samples import FLOATS, KINDS, contents, numpy_dtype

pytestmark = needs_compiler
EXAMPLES = settings().max_examples
Shape: TypeAlias = tuple[int, ...]


def compressed(
    data: bytes, dtype: str, chunk_log2: int, level: str = "fast", shape: Shape | None = None
) -> bytes:
    shape = shape or (len(data) // ITEMSIZE[dtype],)
    return bytes(_native.compress(data, dtype, shape, level=level, chunk_bytes=1 << chunk_log2))


def one(
    data: bytes,
    dtype: str,
    chunk_log2: int,
    seed: int = 1,
    level: str = "fast",
    shape: Shape | None = None,
) -> None:
    """The device makes of a tensor what the CPU makes."""
    shape = shape or (len(data) // ITEMSIZE[dtype],)
    (found,) = encode_many([(data, dtype, shape)], chunk_log2, seed=seed, level=level)
    assert found == compressed(data, dtype, chunk_log2, level, shape)


@pytest.mark.parametrize("dtype", EXPONENT_BITS)
@pytest.mark.parametrize("level", LEVELS)
def test_weights(dtype: str, level: str) -> None:
    """Ordinary weights are encoded on the device."""
    for count in (5000, 8192, 20_000, 70_003, 200_000):
        one(contents("weights", dtype, count, count), dtype, 13, level=level)


def test_sampled_tables() -> None:
    """A sample is looked at: other exponents turn up behind it, and are escaped."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal(300_000).astype(np.float32) * 0.02
    x[rng.integers(0, x.size, 300)] *= 1e20
    one((x.view(np.uint32) >> 16).astype(np.uint16).tobytes(), "bfloat16", 17)


@pytest.mark.parametrize("level", LEVELS)
def test_a_launch_takes_many_tensors(level: str) -> None:
    tensors = []
    for i, (kind, dtype) in enumerate((kind, dtype) for kind in KINDS for dtype in EXPONENT_BITS):
        shape = (100, 70) if i % 3 else (3000 + 7 * i,)
        tensors.append((contents(kind, dtype, math.prod(shape), i), dtype, shape))
    for processors in (1, 10):
        found = encode_many(tensors, 12, processors=processors, wave_bytes=1 << 16, level=level)
        expected = [compressed(data, dtype, 12, level, shape) for data, dtype, shape in tensors]
        assert found == expected


@settings(max_examples=EXAMPLES)
@given(
    st.sampled_from(list(EXPONENT_BITS)),
    st.sampled_from(KINDS),
    st.one_of(st.integers(0, 2500), st.integers(0, 20_000)),
    st.integers(12, 15),
    st.integers(0, 99),
    st.integers(0, 3),
    st.sampled_from(LEVELS),
)
def test_any_floats(
    dtype: str, kind: str, count: int, chunk: int, seed: int, order: int, level: str
) -> None:
    one(contents(kind, dtype, count, seed), dtype, chunk, order, level)


@settings(max_examples=EXAMPLES)
@given(
    st.sampled_from(list(EXPONENT_BITS)),
    st.integers(1, 30_000),
    st.integers(1, 64),
    st.integers(0, 99),
    st.integers(0, 2),
    st.sampled_from(LEVELS),
)
def test_one_exponent(
    dtype: str, count: int, mantissas: int, seed: int, signs: int, level: str
) -> None:
    """Exponents that are all the same, few mantissas, few signs; one element that is not so."""
    rng = np.random.default_rng(seed)
    width = ITEMSIZE[dtype] // (2 if is_complex(dtype) else 1)
    below = 8 * width - 1 - EXPONENT_BITS[dtype]
    values = rng.integers(0, 1 << below, mantissas, np.uint64)
    count *= ITEMSIZE[dtype] // width
    x = rng.choice(values, count) | np.uint64(seed % (1 << EXPONENT_BITS[dtype]) << below)
    x |= (rng.integers(0, 2, count, np.uint64) if signs == 2 else np.uint64(signs)) << np.uint64(
        8 * width - 1
    )
    if seed % 4 == 0:
        x[rng.integers(0, count)] ^= np.uint64(rng.integers(0, 1 << 8 * width - 1))
    shape = (count * width // ITEMSIZE[dtype],)
    matrix = (shape[0] // 70, 70) if shape[0] % 70 == 0 and shape[0] else shape
    one(x.astype(f"<u{width}").tobytes(), dtype, 12 + seed % 3, seed, level, matrix)


@pytest.mark.parametrize("dtype", EXPONENT_BITS)
@pytest.mark.parametrize("level", LEVELS)
def test_one_element(dtype: str, level: str) -> None:
    """Tensors whose elements are all the same, but perhaps for the last."""
    for count in (1, 2, 3, 100, 5000, 20_001):
        for seed in (0, 1):
            data = contents("constant", dtype, count, seed)
            one(data, dtype, 12, seed, level)
            one(data[:-1] + bytes([data[-1] ^ 1]), dtype, 12, seed, level)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_one_sign(dtype: str, sign: int, level: str) -> None:
    x = np.abs(np.random.default_rng(1).standard_normal(200_000)) * sign
    data = as_bytes(x, dtype)
    one(data, dtype, 14, level=level)
    # One element of the other sign, outside of the sample.
    x[123_457] = -x[123_457]
    one(as_bytes(x, dtype), dtype, 14, level=level)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("negative", [True, False])
def test_trailing_zeros(dtype: str, negative: bool) -> None:
    """Rounded weights, each sub-block to another width."""
    x = np.random.default_rng(2).standard_normal(50_003)
    steps = 2.0 ** -(np.arange(x.size) // 4096 % 7)
    rounded = np.round(x / steps) * steps
    one(as_bytes(rounded if negative else np.abs(rounded) + 1e-3 * steps, dtype), dtype, 14)


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
    one(x.astype(np.uint16).tobytes(), "bfloat16", 14)


# --- matrices at the level "default" -------------------------------------------------------------


def scaled(shape: Shape, dtype: str, seed: int, spread: tuple[float, float]) -> bytes:
    """A tensor whose first and last dimensions have scales of their own: `spread` in octaves."""
    rng = np.random.default_rng(seed)
    # The shortest types have few exponents: around the middle of them.
    x = rng.standard_normal(shape) * (1 if dtype.startswith("float8") else 0.02)
    rows = np.exp2(rng.normal(0, spread[0], shape[0]))
    columns = np.exp2(rng.normal(0, spread[1], shape[-1]))
    x = x * rows.reshape(-1, *[1] * (len(shape) - 1)) * columns
    with np.errstate(all="ignore"):
        return x.astype(numpy_dtype(dtype)).tobytes()


def offsets_of(stream: bytes) -> str:
    """Which axes have offsets: "", "r", "c" or "rc"."""
    offsets = page.parse(stream).offsets
    axes = offsets.axes if offsets else 0
    return "r" * (axes & 1) + "c" * (axes >> 1 & 1)


SPREADS = [(0.0, 0.0), (0.7, 0.0), (0.0, 0.7), (0.7, 0.7), (3.0, 2.0)]


@pytest.mark.parametrize("dtype", FLOATS)
def test_matrices(dtype: str) -> None:
    """Small ones are counted whole, larger ones by samples; scales of rows, of columns, of both."""
    found = set()
    for shape in ((80, 60), (60, 80), (120, 136), (136, 121), (300, 260)):
        tensors = [
            (scaled(shape, dtype, i, spread), dtype, shape) for i, spread in enumerate(SPREADS)
        ]
        streams = encode_many(tensors, 13, level="default", processors=2)
        for stream, (data, _, _) in zip(streams, tensors, strict=True):
            assert stream == compressed(data, dtype, 13, "default", shape)
            found.add(offsets_of(stream))
    assert found == {"", "r", "c", "rc"}


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        # A sample is taken of the elements, of the columns, and of the rows for them.
        ((700, 1100), "bfloat16"),
        ((3000, 200), "float32"),
        # Several runs side by side in each row.
        ((40, 30_000), "bfloat16"),
        # Filters, whose last dimensions count as one; experts; vectors with a dimension of one.
        ((64, 32, 3, 3), "float16"),
        ((20, 300, 2), "bfloat16"),
        ((8, 100, 90), "bfloat16"),
        ((20_000, 1, 2), "bfloat16"),
        ((2, 20_000), "float32"),
        ((1, 20_000), "bfloat16"),
    ],
    ids=str,
)
def test_shapes(shape: Shape, dtype: str) -> None:
    for i, spread in enumerate(SPREADS[1:4]):
        data = scaled(shape, dtype, i, spread)
        one(data, dtype, 17, i, "default", shape)


@settings(max_examples=EXAMPLES)
@given(
    st.sampled_from(FLOATS),
    st.one_of(
        st.tuples(st.integers(1, 300), st.integers(1, 300)),
        st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(1, 20)),
        st.tuples(*[st.integers(1, 12)] * 4),
    ),
    st.one_of(st.sampled_from(KINDS), st.sampled_from(SPREADS)),
    st.integers(12, 15),
    st.integers(0, 99),
    st.integers(0, 3),
)
def test_any_matrix(
    dtype: str,
    shape: Shape,
    kind: str | tuple[float, float],
    chunk: int,
    seed: int,
    order: int,
) -> None:
    if isinstance(kind, str):
        data = contents(kind, dtype, math.prod(shape), seed)
    else:
        data = scaled(shape, dtype, seed, kind)
    one(data, dtype, chunk, order, "default", shape)


@settings(max_examples=EXAMPLES // 2)
@given(
    st.sampled_from(FLOATS),
    st.integers(60, 200),
    st.integers(60, 200),
    st.integers(0, 99),
    st.floats(0, 1),
)
def test_odd_values_among_scaled_ones(
    dtype: str, rows: int, columns: int, seed: int, share: float
) -> None:
    """Zeros, infinities, NaNs and subnormals; rows and columns of zeros; signs of one kind."""
    rng = np.random.default_rng(seed)
    data = scaled((rows, columns), dtype, seed, SPREADS[1 + seed % 4])
    width = ITEMSIZE[dtype]
    x = np.frombuffer(bytearray(data), f"<u{width}").reshape(rows, columns)
    odd = np.frombuffer(contents("special", dtype, 4096, seed), x.dtype)
    where = rng.random(x.shape) < share**4
    x[where] = rng.choice(odd, int(where.sum()))
    x[rng.random(rows) < 0.1] = 0
    x[:, rng.random(columns) < 0.1] = 0
    if seed % 3 == 0:
        x &= (1 << (8 * width - 1)) - 1
    one(x.tobytes(), dtype, 13, seed, "default", (rows, columns))
