"""Lossy compression: which numbers come out, how large the error is, and the space it takes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import neuzip_rs as nz
from neuzip_rs.nn import codes, rounding
from neuzip_rs.nn.rounding import Rounding

BITS = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23}


def rounded(tensor: torch.Tensor, precision: int, block_size: int = 512) -> torch.Tensor:
    holder = nn.ParameterList([nn.Parameter(tensor.clone())])
    nz.nn.compress_(holder, precision=precision, block_size=block_size, min_numel=1)
    return holder[0].decoded()


def naive(values: list[float], precision: int, dtype: torch.dtype) -> list[float]:
    """One block divided by the mantissa of its largest magnitude, rounded in rational steps."""
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    scale = math.frexp(largest)[0] * 2 if largest else 1.0
    out = []
    for value in values:
        quotient = torch.tensor(value).div(scale).item()
        mantissa, exponent = math.frexp(quotient)
        steps = round(mantissa * 2 ** (precision + 1))
        out.append(math.ldexp(steps, exponent - precision - 1) * scale)
    return torch.tensor(out).to(dtype).tolist()


@pytest.mark.parametrize("dtype", BITS, ids=str)
@pytest.mark.parametrize("precision", [0, 1, 3, 6])
def test_error_is_no_more_than_with_other_scales(dtype: torch.dtype, precision: int) -> None:
    generator = torch.Generator().manual_seed(precision)
    blocks = (torch.randn(40, 64, generator=generator) * 0.05).to(dtype)
    result = rounded(blocks, precision, 64).double()
    # Block after block: no worse than as in the paper, and no worse than without scales.
    for block, its in zip(blocks.double(), result, strict=True):
        error = (its - block).square().sum()
        paper = torch.tensor(naive(block.tolist(), precision, dtype)).double()
        steps = 2.0 ** (block.abs().log2().floor() - precision)
        unscaled = (block / steps).round() * steps
        assert error <= (paper - block).square().sum() * 1.001
        assert error <= (unscaled - block).square().sum() * 1.001


@pytest.mark.parametrize("dtype", BITS, ids=str)
def test_relative_error_of_every_element(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(100_000, generator=generator).to(dtype)
    values = values[values.abs() > 2e-3]
    for precision in range(BITS[dtype]):
        error = (rounded(values, precision).double() - values.double()).abs()
        # Half a step of the quotient, and half a step of the type when dividing and multiplying.
        bound = 2.0 ** -(precision + 1) + 2.0 ** -BITS[dtype] * 1.01
        assert (error <= values.double().abs() * bound).all()


@pytest.mark.parametrize("dtype", BITS, ids=str)
def test_sizes(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(1024, 1024, bias=False)
    layer.weight = nn.Parameter((torch.randn(1024, 1024, generator=generator) * 0.05).to(dtype))
    width = dtype.itemsize * 8
    for precision in (0, 1, 3, 5):
        nz.nn.compress_(layer, precision=precision)
        share = nz.nn.memory_report(layer).ratio
        # The sign, what is kept, 2.6 bits of exponent, and 0.07 bits of scales and frames.
        assert share * width < 1 + precision + 2.6 + 0.12
        nz.nn.decompress_(layer)
    if dtype == torch.bfloat16:
        for precision, expected in ((3, 0.41), (1, 0.29), (0, 0.23)):
            share = nz.nn.memory_report(nz.nn.compress_(layer, precision=precision)).ratio
            assert share < expected + 0.01
            nz.nn.decompress_(layer)


@pytest.mark.parametrize("dtype", BITS, ids=str)
def test_all_bits_kept_is_lossless(dtype: torch.dtype) -> None:
    values = torch.randn(5000).to(dtype)
    holder = nn.ParameterList([nn.Parameter(values.clone())])
    nz.nn.compress_(holder, precision=BITS[dtype])
    assert holder[0].record.rounding is None
    assert torch.equal(holder[0], values)
    with pytest.raises(ValueError, match="precision"):
        nz.nn.compress_(nn.ParameterList([nn.Parameter(values)]), precision=BITS[dtype] + 1)


@pytest.mark.parametrize("dtype", BITS, ids=str)
@pytest.mark.parametrize("precision", [0, 2, 6])
def test_special_values(dtype: torch.dtype, precision: int) -> None:
    limits = torch.finfo(dtype)
    special = [0.0, -0.0, math.inf, -math.inf, math.nan]
    extreme = [limits.max, -limits.max, limits.tiny, limits.tiny / 2, limits.smallest_normal * 3]
    torch.manual_seed(0)
    rows = [
        torch.tensor(special + extreme + [0.5, -0.7] * 27).to(dtype),
        torch.rand(64).mul(limits.max).to(dtype),
        torch.rand(64).mul(limits.tiny).to(dtype),
        torch.zeros(64).to(dtype),
        torch.full((64,), math.nan).to(dtype),
        torch.tensor([math.inf, limits.max] * 32).to(dtype),
        torch.tensor([1.9921875] * 63 + [-1.0]).to(dtype),
    ]
    values = torch.stack(rows)
    result = rounded(values, precision, 64)
    finite = values.isfinite()
    assert torch.equal(result.isfinite(), finite)
    assert torch.equal(result[~finite].nan_to_num(7.0), values[~finite].nan_to_num(7.0))
    zeros = values == 0
    assert torch.equal(result[zeros].signbit(), values[zeros].signbit())
    assert not result[zeros].any()
    normal = finite & (values.abs() >= 4 * limits.smallest_normal)
    error = (result[normal].double() - values[normal].double()).abs()
    assert (error <= values[normal].double().abs() * 2.0**-precision).all()


@pytest.mark.parametrize("block_size", [1, 7, 512, 100_000, 2**32 - 1])
@pytest.mark.parametrize("numel", [1, 511, 512, 513, 5000])
def test_blocks_and_lengths(block_size: int, numel: int) -> None:
    torch.manual_seed(0)
    values = torch.randn(numel)
    quotients, scales = rounding.split(values, Rounding(2, block_size))
    assert scales.numel() == -(-numel // block_size)
    whole = quotients.clone()
    rounding.join_(whole, scales, block_size, 0)
    assert torch.equal(whole, rounded(values, 2, block_size))
    for start in (0, 1, numel // 3, numel - 1):
        for stop in (start + 1, (start + numel) // 2, numel):
            part = quotients[start:stop].clone()
            rounding.join_(part, scales, block_size, start)
            assert torch.equal(part, whole[start:stop])
    if block_size == 1:
        assert torch.equal(whole, values)


def test_the_same_codes_with_any_number_of_threads() -> None:
    torch.manual_seed(0)
    values = torch.randn(700, 1000).bfloat16()
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(codes.encode(values, Rounding(3, 512)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@given(data=st.binary(min_size=8, max_size=400), precision=st.integers(0, 6))
def test_any_bits(data: bytes, precision: int) -> None:
    raw = torch.frombuffer(bytearray(data[: len(data) // 4 * 4]), dtype=torch.uint8)
    for dtype in BITS:
        values = raw.view(dtype)
        result = rounded(values, precision, 16)
        finite = values.isfinite()
        assert torch.equal(result.isfinite(), finite)
        assert torch.equal(result.isnan(), values.isnan())
        # Twice is once, or nearly so: errors do not pile up.
        error = (result[finite].double() - values[finite].double()).abs()
        floor = torch.finfo(dtype).smallest_normal * 2.0
        assert (error <= values[finite].double().abs() * 2.0**-precision + floor).all()


def test_a_rounded_code_reads_as_documented() -> None:
    torch.manual_seed(0)
    values = torch.randn(10, 100).bfloat16()
    code = bytes(codes.encode(values, Rounding(3, 128)).tolist())
    assert code[:8] == b"\x89NZR\r\n\x1a\x01"
    assert int.from_bytes(code[8:12], "little") == 128
    assert int.from_bytes(code[12:16], "little") == 3
    length = int.from_bytes(code[16:24], "little")
    quotients = nz.decompress(code[32 : 32 + length], framework="torch")
    scales = nz.decompress(code[32 + length :], framework="torch")
    assert quotients.shape == values.shape
    assert not (quotients.view(torch.int16) & 0xF).any()
    assert scales.shape == (8,)
    assert scales.dtype == torch.bfloat16
    product = (quotients.view(-1).float() * scales.float().repeat_interleave(128)[:1000]).bfloat16()
    assert torch.equal(product.view(10, 100), rounded(values, 3, 128))


def test_outliers_cost_only_their_own_block() -> None:
    torch.manual_seed(0)
    values = torch.randn(8 * 512) * 0.01
    before = rounded(values, 3)
    values[600] = 1e6
    after = rounded(values, 3)
    assert torch.equal(before[:512], after[:512])
    assert torch.equal(before[1024:], after[1024:])
    assert after[600] == pytest.approx(1e6, rel=2**-4)


def test_conversions_round_again() -> None:
    torch.manual_seed(0)
    layer = nz.nn.compress_(nn.Linear(256, 256), precision=3)
    exact = layer.weight.decoded()
    layer.bfloat16()
    assert layer.weight.record.rounding == Rounding(3, 512)
    assert torch.allclose(layer.weight.decoded().float(), exact, rtol=2**-3, atol=0)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(256, 256))
    assert nz.nn.memory_report(layer).rows[0].precision == 3
