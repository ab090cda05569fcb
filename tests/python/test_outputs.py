"""Where `decompress` puts the tensor: framework, device, out."""

import array
import mmap
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import neuzip_rs as nz
from tests.python.conftest import RunPython
from tests.python.samples import WEIGHTS, Sample, assert_same, bits
from tests.python.test_inputs import Exporter


def test_framework() -> None:
    x = WEIGHTS.float()
    c = nz.compress(x)
    stream = bytes(c)
    for source in (c, stream, bytearray(stream), memoryview(stream)):
        assert_same(nz.decompress(source, framework="torch"), x)
        assert_same(nz.decompress(source, framework="numpy"), x.numpy())
        assert_same(nz.decompress(source, framework="bytes"), bits(x))
    assert_same(nz.decompress(stream), x.numpy())
    for wrong in ("pt", "tensorflow", "", 3):
        with pytest.raises(ValueError, match="framework"):
            nz.decompress(c, framework=wrong)  # type: ignore[arg-type]


def test_a_stream_in_a_tensor() -> None:
    stream = torch.frombuffer(bytearray(nz.compress(WEIGHTS)), dtype=torch.uint8)
    assert_same(nz.decompress(stream, framework="torch"), WEIGHTS)
    assert_same(nz.decompress(stream.numpy(), framework="torch"), WEIGHTS)
    with pytest.raises(TypeError, match="float32"):
        nz.decompress(torch.ones(30))


def test_the_framework_is_not_in_the_bytes() -> None:
    x = WEIGHTS.view(torch.int16)
    raw = nz.compress(bits(x), dtype="int16")
    assert bytes(nz.compress(x)) == bytes(nz.compress(x.numpy()))
    assert bytes(nz.compress(x.reshape(-1))) == bytes(raw)


def test_framework_lacks_the_type() -> None:
    x = np.arange(8).astype(ml_dtypes.int4)
    with pytest.raises(ValueError, match="int4"):
        nz.decompress(nz.compress(x), framework="torch")
    assert bits(nz.decompress(nz.compress(x), framework="torch", dtype="uint8")) == bits(x)
    pair = torch.arange(6, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    y = nz.decompress(nz.compress(pair), framework="numpy")
    assert_same(y, np.arange(6, dtype=np.uint8).reshape(6, 1))


def test_without_ml_dtypes(run_python: RunPython) -> None:
    program = """
import sys
sys.modules["ml_dtypes"] = None
import numpy as np
import neuzip_rs as nz
data = bytes(range(24))
c = nz.CompressedTensor.from_bytes(bytes(nz.compress(data, dtype="bfloat16")))
y = nz.decompress(c)
print(y.dtype, y.shape, y.tobytes() == data, c[2:4].shape, c[3].tolist())
"""
    assert run_python(program) == "uint8 (12, 2) True (2, 2) [6, 7]"


def test_without_numpy(run_python: RunPython) -> None:
    program = """
import sys
sys.modules["numpy"] = None
import neuzip_rs as nz
c = nz.compress(memoryview(bytes(range(8))).cast("i"))
assert nz.decompress(c, framework="bytes") == bytes(range(8))
try:
    nz.decompress(c)
except ImportError as error:
    print(error)
"""
    assert "framework='bytes'" in run_python(program)


@pytest.mark.filterwarnings("ignore")
def test_torch_without_numpy(run_python: RunPython) -> None:
    program = """
import sys, warnings
warnings.simplefilter("ignore")
sys.modules["numpy"] = None
import torch
import neuzip_rs as nz
for x in (torch.randn(7, 5).bfloat16(), torch.empty(0, 2), torch.tensor(3), torch.randn(4, 4).t()):
    y = nz.decompress(nz.compress(x))
    assert torch.equal(x, y) and x.dtype == y.dtype, x
try:
    torch.ones(1).numpy()
except RuntimeError:
    print("ok")
"""
    assert run_python(program) == "ok"


def test_device() -> None:
    c = nz.compress(WEIGHTS)
    assert_same(nz.decompress(c, device="cpu"), WEIGHTS)
    assert_same(nz.decompress(c, device=torch.device("cpu")), WEIGHTS)
    assert bits(nz.decompress(c, device="cpu", framework="numpy")) == bits(WEIGHTS)
    assert nz.decompress(c, device="meta").device.type == "meta"
    with pytest.raises(ValueError, match="device"):
        nz.decompress(c, device="nowhere")
    with pytest.raises(ValueError, match=r"device.*cuda"):
        nz.decompress(c, device="cuda", framework="numpy")
    with pytest.raises(ValueError, match=r"device.*cuda"):
        nz.decompress(bytes(c), device="cuda")
    with pytest.raises(ValueError, match=r"device.*cuda"):
        nz.decompress(c, device="cuda", framework="bytes")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda() -> None:
    x = WEIGHTS.cuda()
    c = nz.compress(x)
    assert c == nz.compress(WEIGHTS)
    assert_same(nz.decompress(c), WEIGHTS)
    y = nz.decompress(c, device="cuda")
    assert y.is_cuda
    assert bits(y.cpu()) == bits(WEIGHTS)
    out = torch.empty_like(x)
    assert nz.decompress(c, out=out) is out
    assert bits(out.cpu()) == bits(WEIGHTS)


def test_out() -> None:
    c = nz.compress(WEIGHTS)
    expected = bits(WEIGHTS)
    outs: list[Any] = [
        torch.empty_like(WEIGHTS),
        torch.empty_like(WEIGHTS).requires_grad_(),
        torch.nn.Parameter(torch.empty_like(WEIGHTS)),
        np.empty((40, 50), ml_dtypes.bfloat16),
        bytearray(4000),
        memoryview(bytearray(4000)),
        memoryview(bytearray(4001))[1:],
        mmap.mmap(-1, 4000),
    ]
    for out in outs:
        assert nz.decompress(c, out=out) is out
        assert bits(out) == expected
    outs[-1].close()


def test_out_with_offset() -> None:
    room = torch.zeros(3, 40, 50, dtype=torch.bfloat16)
    nz.decompress(nz.compress(WEIGHTS), out=room[1])
    assert bits(room[1]) == bits(WEIGHTS)
    assert not room[0].any()
    assert not room[2].any()


def test_out_of_typed_buffer() -> None:
    x = np.arange(4, dtype=np.int32)
    out = array.array("i", [0] * 4)
    assert nz.decompress(nz.compress(x), out=out) is out
    assert out.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="dtype"):
        nz.decompress(nz.compress(x), out=array.array("f", [0] * 4))
    with pytest.raises(ValueError, match="shape"):
        nz.decompress(nz.compress(x), out=array.array("i", [0] * 5))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,)])
def test_out_of_small_shapes(shape: tuple[int, ...]) -> None:
    x = torch.ones(shape)
    for out in (torch.zeros(shape), np.zeros(shape, np.float32), bytearray(4 * x.numel())):
        assert nz.decompress(nz.compress(x), out=out) is out
        assert bits(out) == bits(x)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (torch.empty(40, 50), "dtype bfloat16.*float32"),
        (torch.empty(50, 40, dtype=torch.bfloat16), r"shape \(40, 50\).*\(50, 40\)"),
        (torch.empty(2000, dtype=torch.bfloat16), "shape"),
        (torch.empty(50, 40, dtype=torch.bfloat16).t(), "contiguous"),
        (torch.empty(40, 100, dtype=torch.bfloat16)[:, ::2], "contiguous"),
        (np.empty((40, 50), np.float16), "dtype bfloat16.*float16"),
        (np.empty((40, 50), ">i2"), "dtype"),
        (np.empty((40, 51), ml_dtypes.bfloat16), "shape"),
        (np.empty((50, 40), ml_dtypes.bfloat16).T, "contiguous"),
        (np.frombuffer(bytes(4000), ml_dtypes.bfloat16).reshape(40, 50), "read-only"),
        (bytearray(3999), "4000 bytes, not 3999"),
        (bytearray(4001), "4000 bytes, not 4001"),
        (bytes(4000), "read-only"),
        (memoryview(bytearray(8000))[::2], "contiguous"),
    ],
)
def test_out_must_match(out: Sample, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nz.decompress(nz.compress(WEIGHTS), out=out)


@pytest.mark.parametrize("out", [[0] * 2000, "text", 3, np.float32(0), Exporter(WEIGHTS)])
def test_out_of_other_types(out: Sample) -> None:
    with pytest.raises(TypeError):
        nz.decompress(nz.compress(WEIGHTS), out=out)


def test_out_against_other_arguments() -> None:
    c = nz.compress(WEIGHTS)
    out = torch.empty_like(WEIGHTS)
    assert nz.decompress(c, out=out, framework="torch", device="cpu") is out
    with pytest.raises(ValueError, match="framework"):
        nz.decompress(c, out=out, framework="numpy")
    with pytest.raises(ValueError, match="device"):
        nz.decompress(c, out=out, device="cuda")


def test_out_may_overlap_the_stream_or_is_refused() -> None:
    stream = bytes(nz.compress(WEIGHTS))
    room = bytearray(stream + bytes(4000))
    view = memoryview(room)
    try:
        nz.decompress(view[: len(stream)], out=view[100:4100])
    except ValueError:
        assert view[: len(stream)] == stream
    else:
        assert view[100:4100] == bits(WEIGHTS)
