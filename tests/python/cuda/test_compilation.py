"""Every cuda/*.cu compiles alone for every architecture, and no kernel spills registers."""

from pathlib import Path

import pytest

from tests.python.cuda.count import integer_operations
from tests.python.cuda.emulation import CUDA, EMULATION, kernels
from tests.python.cuda.nvrtc import (
    ARCHITECTURES,
    CompileError,
    compiled,
    needs_nvdisasm,
    needs_nvrtc,
)

SOURCES = [*sorted(CUDA.glob("*.cu")), EMULATION / "collectives.cu"]


@needs_nvrtc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_compiles_without_spills(source: Path, architecture: int) -> None:
    result = compiled(source, architecture)
    assert sorted(result.kernels) == sorted(kernels(source))
    for name, kernel in result.kernels.items():
        assert kernel.registers > 0, name
        assert kernel.spill_bytes == 0, name
        assert kernel.shared_bytes <= 48 << 10, name


@needs_nvrtc
def test_an_error_is_reported(tmp_path: Path) -> None:
    source = tmp_path / "wrong.cu"
    source.write_text('extern "C" __global__ void wrong() { nothing(); }')
    with pytest.raises(CompileError, match="nothing"):
        compiled(source, 80)


@needs_nvdisasm
def test_instructions_are_listed() -> None:
    listing = compiled(EMULATION / "collectives.cu", 90).disassembly()
    assert any("VOTE" in line for line in listing["partition"])
    assert any("SHFL" in line for line in listing["sums"])


@needs_nvdisasm
@pytest.mark.parametrize(
    ("arguments", "most"),
    [("2, 8, false", 16), ("2, 7, false", 16), ("2, 8, true", 19), ("2, 7, true", 20)],
)
def test_a_plain_decode_takes_few_instructions(arguments: str, most: float) -> None:
    """The target of a BF16 weight, on the architecture that it is set for."""
    without_refill, with_refill = integer_operations(arguments, 90)
    assert without_refill <= most
    # The refill of the ring is needed about every third time.
    assert without_refill + (with_refill - without_refill) / 3 <= most
