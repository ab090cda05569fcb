"""What docs/gpu.md says of the products' main loops: few integer operations, enough warps."""

import pytest

from tests.python.cuda.nvrtc import ARCHITECTURES, compiled, needs_nvdisasm
from tests.python.cuda.w12_instructions import fused, unpacking

REGISTERS = 65536
THREADS = 256
RESIDENT_BLOCKS = 2
KERNELS = ["w12_linear_8", "w12_linear_16", "w12_linear_32"]


@needs_nvdisasm
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_product_keeps_up_with_memory(kernel: str, architecture: int) -> None:
    counted = fused(kernel, architecture)
    assert 11 / 8 <= counted.integer <= 3  # 11 for eight weights is what decoding takes
    assert counted.all <= 5
    registers = compiled("w12_linear", architecture).kernels[kernel].registers
    assert registers * THREADS * RESIDENT_BLOCKS <= REGISTERS


@needs_nvdisasm
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_decoding_keeps_up_with_memory(architecture: int) -> None:
    assert 11 / 8 <= unpacking(architecture).integer <= 12
