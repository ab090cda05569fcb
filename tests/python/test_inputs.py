"""What `compress` takes, what it refuses, and what its arguments mean."""

import array
import io
import mmap
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import pytest
import torch

import neuzip_rs as nz
from tests.python.samples import WEIGHTS, Sample, assert_same, bits, contents

Capsule: TypeAlias = Any


def test_torch_inputs() -> None:
    base = torch.randn(6, 8)
    inputs: list[torch.Tensor] = [
        torch.tensor(1.5),
        torch.empty(0),
        torch.empty(3, 0, 2),
        base,
        base.t(),
        base[::2, 1:],
        base[:, 3],
        base.expand(2, 6, 8),
        base.clone().requires_grad_(),
        (base.clone().requires_grad_() * 2),
        torch.nn.Parameter(base.clone()),
        torch.nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False),
        torch.randn(5, dtype=torch.complex64).conj(),
        torch.randn(5, dtype=torch.complex64).conj().imag,
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch._efficientzerotensor((3, 2)),
    ]
    for x in inputs:
        y = nz.decompress(nz.compress(x))
        assert type(y) is torch.Tensor
        assert y.is_contiguous()
        assert not y.requires_grad
        assert y.dtype == x.dtype
        assert y.shape == x.shape
        if not x._is_zerotensor():
            assert bits(y) == bits(x)
        assert torch.equal(y, x)


def test_torch_inference_tensors() -> None:
    with torch.inference_mode():
        x = torch.randn(10)
        assert_same(nz.decompress(nz.compress(x)), x)
    assert_same(nz.decompress(nz.compress(x)), x)


def test_torch_default_device_is_ignored() -> None:
    with torch.device("meta"):
        y = nz.decompress(nz.compress(WEIGHTS))
    assert_same(y, WEIGHTS)


def test_torch_subclass_without_dispatch() -> None:
    class Named(torch.Tensor):
        pass

    x = torch.randn(4).as_subclass(Named)
    y = nz.decompress(nz.compress(x))
    assert type(y) is torch.Tensor
    assert bits(y) == bits(x.as_subclass(torch.Tensor))


def refused_torch() -> list[Any]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.empty(3)
    quantized = torch._empty_affine_quantized([3], scale=1.0, zero_point=0, dtype=torch.qint8)
    return [
        fake,
        quantized,
        torch.eye(3).to_sparse(),
        torch.empty(3, device="meta"),
        torch.nested.as_nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    ]


@pytest.mark.filterwarnings("ignore")
def test_refused_torch_tensors() -> None:
    for x in refused_torch():
        with pytest.raises(TypeError):
            nz.compress(x)


def test_numpy_inputs() -> None:
    base = np.arange(24, dtype=np.int32).reshape(4, 6)
    inputs: list[Any] = [
        np.array(2.5),
        np.empty(0),
        np.empty((2, 0, 3), np.int8),
        base,
        base.T,
        np.asfortranarray(base),
        base[::2, ::-1],
        base[:, 2],
        np.broadcast_to(base, (3, 4, 6)),
        np.rec.array(base),
        np.array([True, False]),
        np.arange(3, dtype=ml_dtypes.bfloat16),
        np.array([1 + 2j]),
    ]
    for x in inputs:
        y = nz.decompress(nz.compress(x))
        assert type(y) is np.ndarray
        assert y.flags.c_contiguous
        assert y.flags.owndata
        assert y.flags.writeable
        assert y.dtype == x.dtype
        assert y.shape == x.shape
        assert bits(y) == bits(np.asarray(x))


@pytest.mark.parametrize("x", [np.float32(1.5), np.int8(-3), ml_dtypes.bfloat16(2), np.bool_(True)])
def test_numpy_scalars_become_arrays(x: Sample) -> None:
    assert_same(nz.decompress(nz.compress(x)), np.asarray(x))


@pytest.mark.parametrize(
    "x",
    [
        np.array([None, 1]),
        np.array(["text"]),
        np.array([b"bytes"]),
        np.zeros(2, [("a", "i4")]),
        np.array(["2020-01-01"], "datetime64[D]"),
        np.array([1], "timedelta64[s]"),
        np.zeros(2, np.longdouble),
        np.zeros(2, np.clongdouble),
        np.zeros(2, ">f4"),
        np.zeros(2, "V2"),
        np.ma.masked_array([1.0, 2.0], [True, False]),
        np.str_("text"),
    ],
    ids=lambda x: str(getattr(x, "dtype", x)),
)
def test_refused_numpy_arrays(x: Sample) -> None:
    with pytest.raises(TypeError):
        nz.compress(x)


@pytest.mark.parametrize(
    "x", [None, 3, 2.5, "text", [1, 2], {"a": 1}, object(), print, io.BytesIO()]
)
def test_refused_objects(x: Sample) -> None:
    with pytest.raises(TypeError):
        nz.compress(x)


def test_buffers() -> None:
    data = contents("skewed", "uint8", 1000, 2)
    mapped = mmap.mmap(-1, 1000)
    mapped.write(data)
    for x in (data, bytearray(data), memoryview(data), memoryview(data).cast("c"), mapped):
        c = nz.compress(x)
        assert (c.dtype, c.shape, c.framework) == ("uint8", (1000,), "bytes")
        assert_same(nz.decompress(c), data)
    assert_same(nz.decompress(nz.compress(memoryview(data)[::2])), data[::2])
    x = memoryview(data).cast("f")
    assert_same(nz.decompress(nz.compress(x)), np.frombuffer(data, np.float32))
    x = memoryview(data).cast("H", (5, 100))
    assert_same(nz.decompress(nz.compress(x)), np.frombuffer(data, np.uint16).reshape(5, 100))
    x = memoryview(data).cast("B", (10, 100))
    assert_same(nz.decompress(nz.compress(x)), np.frombuffer(data, np.uint8).reshape(10, 100))
    assert_same(nz.decompress(nz.compress(array.array("d"))), np.empty(0))
    mapped.close()


def test_foreign_byte_order_is_refused() -> None:
    class BigEndian:
        def __init__(self) -> None:
            self.array = np.zeros(3, ">i4")

    with pytest.raises(TypeError, match="byte order"):
        nz.compress(memoryview(BigEndian().array))


class Exporter:
    """An array of a framework nobody knows, which speaks DLPack."""

    def __init__(self, array: Sample) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Capsule:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


@pytest.mark.parametrize(
    "x",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        torch.arange(6).reshape(2, 3),
        WEIGHTS,
        WEIGHTS.t(),
        torch.tensor(3.0),
    ],
    ids=["numpy", "torch", "bfloat16", "transposed", "scalar"],
)
def test_dlpack(x: Sample) -> None:
    c = nz.compress(Exporter(x))
    y = nz.decompress(c)
    assert type(y) is np.ndarray
    assert y.shape == tuple(x.shape)
    assert y.dtype.name == str(x.dtype).removeprefix("torch.")
    assert bits(y) == bits(x)


def test_dlpack_that_fails() -> None:
    class Broken(Exporter):
        def __dlpack__(self, **options: Any) -> Capsule:
            raise RuntimeError("no memory to show")

    with pytest.raises(TypeError, match="no memory to show"):
        nz.compress(Broken(WEIGHTS))


def test_input_is_never_modified() -> None:
    for x in (WEIGHTS.clone(), WEIGHTS.float().numpy(), bytearray(b"abc" * 1000)):
        before = bits(x)
        c = nz.compress(x)
        y = nz.decompress(c)
        if not isinstance(y, bytes):
            y[...] = 0
        assert bits(x) == before
        assert bits(nz.decompress(c)) == before


def test_read_only_input() -> None:
    x = WEIGHTS.float().numpy()
    x.setflags(write=False)
    assert bits(nz.decompress(nz.compress(x))) == bits(x)


@pytest.mark.parametrize(
    "spec",
    ["bfloat16", torch.bfloat16, ml_dtypes.bfloat16, np.dtype(ml_dtypes.bfloat16)],
    ids=["name", "torch", "type", "numpy"],
)
def test_dtype_names_the_elements_of_bytes(spec: Sample) -> None:
    data = contents("weights", "bfloat16", 5000, 3)
    c = nz.compress(data, dtype=spec)
    assert (c.dtype, c.shape, c.framework) == ("bfloat16", (5000,), "bytes")
    assert c.ratio < 0.7
    assert_same(nz.decompress(c), data)
    assert bits(nz.decompress(c, framework="torch")) == data
    assert nz.decompress(bytes(c)).dtype == ml_dtypes.bfloat16


def test_dtype_of_bytes_with_a_rest() -> None:
    data = contents("weights", "bfloat16", 5000, 3) + b"x"
    c = nz.compress(data, dtype="bfloat16")
    assert (c.dtype, c.shape) == ("uint8", (10001,))
    assert c.ratio < 0.85
    assert_same(nz.decompress(c), data)


def test_dtype_of_arrays_must_agree() -> None:
    assert nz.compress(WEIGHTS, dtype="bfloat16") == nz.compress(WEIGHTS)
    assert nz.compress(WEIGHTS, dtype=torch.bfloat16) == nz.compress(WEIGHTS)
    with pytest.raises(ValueError, match=r"bfloat16.*float32"):
        nz.compress(WEIGHTS, dtype="float32")
    with pytest.raises(ValueError, match="float16"):
        nz.compress(np.zeros(4, np.uint8), dtype="float16")


def test_dtype_errors() -> None:
    for spec in ("float31", "", "BF16", torch.qint8, "object", np.dtype(">f4"), np.dtype("S3")):
        with pytest.raises(ValueError, match="dtype"):
            nz.compress(b"1234", dtype=spec)
        with pytest.raises(ValueError, match="dtype"):
            nz.decompress(nz.compress(b"1234"), dtype=spec)
    for spec in (3, [], b"bfloat16", 2.5):
        with pytest.raises(TypeError, match="dtype"):
            nz.compress(b"1234", dtype=spec)


def test_decompress_dtype() -> None:
    data = contents("weights", "float32", 500, 4)
    c = nz.compress(data)
    assert_same(nz.decompress(c, dtype="float32"), np.frombuffer(data, np.float32))
    assert_same(nz.decompress(bytes(c), dtype=np.float64), np.frombuffer(data, np.float64))
    y = nz.decompress(c, dtype=torch.bfloat16, framework="torch")
    assert_same(y, torch.frombuffer(bytearray(data), dtype=torch.bfloat16))
    assert_same(nz.decompress(c, dtype="float32", framework="bytes"), data)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert_same(nz.decompress(nz.compress(x), dtype="int32"), x.view(np.int32))
    assert_same(nz.decompress(nz.compress(x), dtype="float32"), x)
    out = np.empty((2, 3), np.uint32)
    assert nz.decompress(nz.compress(x), dtype="uint32", out=out) is out
    assert bits(out) == bits(x)
    for wrong in ("float16", "float64", "uint8"):
        with pytest.raises(ValueError, match=rf"dtype.*{wrong}"):
            nz.decompress(nz.compress(x), dtype=wrong)
    with pytest.raises(ValueError, match="dtype"):
        nz.decompress(nz.compress(b"123"), dtype="float16")


def test_level() -> None:
    sizes = []
    for level in ("fast", "default", "max"):
        c = nz.compress(WEIGHTS, level=level)
        assert_same(nz.decompress(c), WEIGHTS)
        sizes.append(c.nbytes)
    assert sizes[2] <= sizes[0]
    for wrong in ("slow", "", "FAST", 3, None):
        with pytest.raises(ValueError, match=r"level.*'fast', 'default' or 'max'"):
            nz.compress(WEIGHTS, level=wrong)  # type: ignore[arg-type]


def test_threads() -> None:
    x = torch.randn(300_000).bfloat16()
    streams = {bytes(nz.compress(x, threads=n)) for n in (None, 1, 2, 3, 8, 61)}
    assert len(streams) == 1
    for n in (None, 1, 2, 5, np.int64(2)):
        assert_same(nz.decompress(streams.copy().pop(), threads=n, framework="torch"), x)
    for wrong in (0, -1, -(2**70)):
        with pytest.raises(ValueError, match="threads"):
            nz.compress(x, threads=wrong)
        with pytest.raises(ValueError, match="threads"):
            nz.decompress(nz.compress(x), threads=wrong)
    for wrong in (True, 1.0, "2"):
        with pytest.raises(TypeError, match="threads"):
            nz.compress(x, threads=wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="threads"):
            nz.decompress(nz.compress(x), threads=wrong)  # type: ignore[arg-type]


def test_max_output_size() -> None:
    c = nz.compress(WEIGHTS)
    assert_same(nz.decompress(c, max_output_size=4000), WEIGHTS)
    for limit in (3999, 0):
        with pytest.raises(nz.OutputTooLargeError, match=rf"4000.*{limit}"):
            nz.decompress(c, max_output_size=limit)
        with pytest.raises(nz.OutputTooLargeError):
            nz.decompress(bytes(c), max_output_size=limit, out=torch.empty_like(WEIGHTS))
    with pytest.raises(ValueError, match="max_output_size"):
        nz.decompress(c, max_output_size=-1)
    for wrong in (True, 2.5, "1"):
        with pytest.raises(TypeError, match="max_output_size"):
            nz.decompress(c, max_output_size=wrong)  # type: ignore[arg-type]


def test_verify() -> None:
    assert_same(nz.decompress(nz.compress(WEIGHTS), verify=False), WEIGHTS)


def test_base_is_never_needed() -> None:
    base = WEIGHTS + 1
    c = nz.compress(WEIGHTS, base=base)
    assert_same(nz.decompress(c, base=base), WEIGHTS)
    assert_same(nz.decompress(nz.compress(WEIGHTS), base=base), WEIGHTS)
    assert_same(nz.decompress(nz.compress(b"1234", dtype="int16", base=b"1235")), b"1234")
    with pytest.raises(ValueError, match=r"base.*float32"):
        nz.compress(WEIGHTS, base=base.float())
    with pytest.raises(ValueError, match=r"base.*shape"):
        nz.compress(WEIGHTS, base=base.t())
    with pytest.raises(TypeError):
        nz.compress(WEIGHTS, base=3)
