"""The public contract: names, signatures, `CompressedTensor`, sizes."""

import copy
import inspect
import io
import pickle
import time

import numpy as np
import pytest
import torch

import neuzip_rs as nz
from neuzip_rs._dtypes import ITEMSIZE
from tests.python.conftest import RunPython
from tests.python.samples import WEIGHTS, Sample, assert_same, contents, numpy_array


def test_signatures() -> None:
    parameters = inspect.signature(nz.compress).parameters
    assert list(parameters) == ["x", "dtype", "level", "base", "threads"]
    assert [p.default for p in parameters.values()][1:] == [None, "default", None, None]
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    assert all(p.kind is keyword_only for p in list(parameters.values())[1:])
    parameters = inspect.signature(nz.decompress).parameters
    assert {name: p.default for name, p in parameters.items() if name != "c"} == {
        "out": None,
        "base": None,
        "device": None,
        "framework": None,
        "dtype": None,
        "threads": None,
        "verify": True,
        "max_output_size": None,
    }
    assert next(iter(parameters)) == "c"
    assert all(p.kind is keyword_only for p in list(parameters.values())[1:])


def test_public_names() -> None:
    for name in nz.__all__:
        assert getattr(nz, name) is not None
        assert name in dir(nz)
    assert nz.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="nonsense"):
        nz.nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_errors_form_one_family() -> None:
    assert issubclass(nz.NeuzipError, Exception)
    for error in (
        nz.CorruptDataError,
        nz.UnsupportedVersionError,
        nz.OutputTooLargeError,
        nz.BaseMismatchError,
    ):
        assert issubclass(error, nz.NeuzipError)
    assert issubclass(nz.CorruptDataError, ValueError)
    assert not issubclass(nz.OutputTooLargeError, ValueError)


def test_import_loads_no_framework(run_python: RunPython) -> None:
    program = """
import sys
import neuzip_rs as nz
c = nz.compress(b"some bytes" * 100)
assert nz.decompress(c) == b"some bytes" * 100
assert c[5:10] == b"bytes"
nz.safetensors, nz.save, nz.load
print(sorted({"torch", "numpy", "cupy", "ml_dtypes", "safetensors", "typer"} & set(sys.modules)))
"""
    assert run_python(program) == "[]"


def test_numpy_alone_loads_no_torch(run_python: RunPython) -> None:
    program = """
import sys
import numpy as np
import neuzip_rs as nz
x = np.arange(1000, dtype=np.float32)
assert (nz.decompress(nz.compress(x)) == x).all()
nz.decompress(nz.compress(b"ab" * 100, dtype="bfloat16"))
print(sorted({"torch", "ml_dtypes"} & set(sys.modules)))
"""
    assert run_python(program) == "[]"


def test_properties() -> None:
    c = nz.compress(WEIGHTS)
    assert type(c) is nz.CompressedTensor
    assert c.shape == (40, 50)
    assert type(c.shape) is tuple
    assert all(type(n) is int for n in c.shape)
    assert c.dtype == "bfloat16"
    assert c.original_nbytes == 4000
    assert c.nbytes == len(bytes(c)) == len(memoryview(c))
    assert c.ratio == c.nbytes / 4000
    assert c.ratio < 0.95
    assert c.framework == "torch"
    assert "bfloat16" in repr(c)
    assert nz.compress(torch.empty(0)).ratio == 1.0


@pytest.mark.parametrize(
    "name", ["shape", "dtype", "nbytes", "original_nbytes", "ratio", "framework"]
)
def test_properties_are_read_only(name: str) -> None:
    with pytest.raises((AttributeError, TypeError)):
        setattr(nz.compress(WEIGHTS), name, None)


def test_buffer_protocol() -> None:
    c = nz.compress(WEIGHTS)
    view = memoryview(c)
    assert view.readonly
    assert (view.format, view.ndim, view.itemsize) == ("B", 1, 1)
    assert bytes(view) == bytes(c)
    assert io.BytesIO(c).read() == bytes(c)
    del c
    assert_same(nz.decompress(view, framework="torch"), WEIGHTS)


def test_equality_and_hash() -> None:
    a, b = nz.compress(WEIGHTS), nz.compress(WEIGHTS.clone())
    assert a == b
    assert hash(a) == hash(b)
    assert not (a != b)  # noqa: SIM202 - the operator itself is tested
    assert a != nz.compress(WEIGHTS + 1)
    assert a != "text"


@pytest.mark.parametrize("x", [WEIGHTS, WEIGHTS.float().numpy(), b"raw bytes"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(x: Sample, protocol: int) -> None:
    c = nz.compress(x)
    again = pickle.loads(pickle.dumps(c, protocol))
    assert again == c
    assert again.framework == c.framework
    assert_same(nz.decompress(again), x)


def test_copies_are_the_same() -> None:
    c = nz.compress(WEIGHTS)
    assert copy.copy(c) == c
    assert copy.deepcopy({"x": c})["x"] == c


def test_from_bytes() -> None:
    c = nz.compress(WEIGHTS)
    for data in (bytes(c), bytearray(c), memoryview(c), np.frombuffer(c, np.uint8)):
        again = nz.CompressedTensor.from_bytes(data)
        assert again == c
        assert again.framework is None
        assert_same(nz.decompress(again, framework="torch"), WEIGHTS)
    again = nz.CompressedTensor.from_bytes(bytes(c), framework="torch")
    assert_same(nz.decompress(again), WEIGHTS)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x89", b"\x89NZ", b"plain text, not compressed", bytes(100), b"\x89NZ\x01" * 9],
)
def test_from_bytes_refuses_what_is_no_stream(data: bytes) -> None:
    with pytest.raises(nz.NeuzipError):
        nz.CompressedTensor.from_bytes(data)
    with pytest.raises(nz.NeuzipError):
        nz.decompress(data)


def test_from_bytes_refuses_other_types() -> None:
    for data in ("text", 3, None, [1, 2]):
        with pytest.raises(TypeError):
            nz.CompressedTensor.from_bytes(data)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            nz.decompress(data)


@pytest.mark.parametrize("level", ["fast", "default", "max"])
@pytest.mark.parametrize("dtype", list(ITEMSIZE))
def test_incompressible_input_hardly_grows(dtype: str, level: str) -> None:
    for nbytes in (0, 16, 160, 4096, 70_000, 1_000_000):
        data = contents("random", "uint8", nbytes, nbytes)
        c = nz.compress(data, dtype=dtype, level=level)
        assert c.nbytes <= nbytes * 1.001 + 64


def test_small_headers() -> None:
    c = nz.compress(numpy_array("bfloat16", (4, 4), contents("random", "uint8", 32, 0)))
    assert c.nbytes <= 32 + 32


def test_a_constant_stream_is_tiny() -> None:
    assert nz.compress(np.full(1_000_000, 1.5, np.float32)).nbytes < 64


def test_round_trip_of_a_kibibyte_is_quick() -> None:
    x = torch.randn(512).bfloat16()
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(100):
            nz.decompress(nz.compress(x))
        best = min(best, time.perf_counter() - start)
    # The target is 20 µs; this only catches a fall by an order of magnitude on a busy machine.
    assert best / 100 < 200e-6
