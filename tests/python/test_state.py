"""`nz.save` and `nz.load`: nested state comes back as it was, and nothing is executed."""

import enum
import math
import struct
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import neuzip_rs as nz
from neuzip_rs._dtypes import ITEMSIZE
from tests.python.conftest import RunPython
from tests.python.samples import (
    TORCH_DTYPES,
    WEIGHTS,
    Sample,
    assert_same,
    contents,
    numpy_array,
    torch_tensor,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state.nz"


def through(state: Sample, file: Path) -> Sample:
    nz.save(state, file)
    return nz.load(file)


def assert_equal(found: Sample, expected: Sample) -> None:
    """Fails unless both are the same all the way down, in type and in every bit."""
    assert type(found) is type(expected)
    if isinstance(expected, (torch.Tensor, np.ndarray, np.generic)):
        assert_same(found, expected)
    elif isinstance(expected, dict):
        assert len(found) == len(expected)
        for (key, value), (wanted_key, wanted) in zip(found.items(), expected.items(), strict=True):
            assert_equal(key, wanted_key)
            assert_equal(value, wanted)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for value, wanted in zip(found, expected, strict=True):
            assert_equal(value, wanted)
    elif isinstance(expected, float):
        assert struct.pack("<d", found) == struct.pack("<d", expected)
    elif isinstance(expected, complex):
        assert_equal(found.real, expected.real)
        assert_equal(found.imag, expected.imag)
    else:
        assert found == expected


NAN_WITH_PAYLOAD = struct.unpack("<d", struct.pack("<Q", 0xFFF8_0000_0000_1234))[0]
SCALARS: list[Sample] = [
    None,
    True,
    False,
    0,
    -1,
    2**63 - 1,
    -(2**63),
    2**63,
    -(2**64) - 1,
    3**5000,
    -(2**20_000),
    0.0,
    -0.0,
    1.5,
    0.1,
    5e-324,
    1.7976931348623157e308,
    math.inf,
    -math.inf,
    math.nan,
    NAN_WITH_PAYLOAD,
    1 + 2j,
    complex(-0.0, math.nan),
    "",
    "text",
    "é 日本 \0 \n \ud800",
    b"",
    b"\x00\xff",
    bytes(5000),
    bytearray(b"abc"),
    bytearray(4000),
    [],
    (),
    {},
    set(),
    frozenset(),
    OrderedDict(),
    [1, [2, [3, (4, {5: 6})]]],
    {1, "a", (2, None), frozenset({3}), 4.5},
    frozenset({b"x", 2.5}),
    OrderedDict([("b", 1), ("a", 2)]),
    OrderedDict({1: 2}),
    {"dict": 1, "tensor": {"tensor": 0}},
    {1: "int", True + 1: "two", None: "none", (1, 2): "pair", b"k": "bytes", -1.5: "float"},
    {2**70: 1, NAN_WITH_PAYLOAD: 2},
    {2**20_000: torch.ones(2), (2**20_000,): torch.ones(3)},
    torch.Size([2, 3]),
    torch.Size([]),
    torch.bfloat16,
    torch.qint8,
    np.float32(-0.0),
    np.float64(1.5),
    np.int64(-3),
    np.uint8(200),
    np.bool_(True),
    np.complex64(1 - 2j),
    ml_dtypes.bfloat16(2.5),
    ml_dtypes.float8_e4m3fn(0.5),
    {np.int32(4): "numpy key", torch.float16: "dtype key", torch.Size([1]): "size key"},
]


@pytest.mark.parametrize("value", SCALARS, ids=lambda value: type(value).__name__)
def test_values(value: Sample, file: Path) -> None:
    assert_equal(through(value, file), value)
    assert_equal(through({"x": [value]}, file), {"x": [value]})


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.complex_numbers()
)
keys = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.tuples(st.integers())
states = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=3).map(OrderedDict)
    ),
    max_leaves=20,
)


@given(state=states)
def test_any_structure(state: Sample, tmp_path: Path) -> None:
    assert_equal(through(state, tmp_path / "state.nz"), state)


@pytest.mark.parametrize("dtype", list(ITEMSIZE))
@pytest.mark.parametrize("shape", [(), (0,), (3, 4), (2, 0, 5)])
def test_arrays_of_every_type(dtype: str, shape: tuple[int, ...], file: Path) -> None:
    data = contents("weights", dtype, math.prod(shape), 1)
    state: dict[str, Sample] = {}
    if dtype in TORCH_DTYPES:
        state["torch"] = torch_tensor(dtype, shape, data)
    if dtype != "float4_e2m1fn_x2":
        state["numpy"] = numpy_array(dtype, shape, data)
    assert_equal(through(state, file), state)


def test_strided_arrays(file: Path) -> None:
    x = torch.arange(24).reshape(4, 6)
    found = through([x.t(), x[::2, 1:], x[:, 0], x.numpy().T], file)
    assert torch.equal(found[0], x.t())
    assert torch.equal(found[1], x[::2, 1:])
    assert torch.equal(found[2], x[:, 0])
    assert (found[3] == x.numpy().T).all()


def checkpoint() -> dict[str, Sample]:
    """What training scripts save."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.LayerNorm(30)).bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    for _ in range(3):
        model(torch.randn(4, 20, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": {k: v for k, v in schedule.state_dict().items() if not callable(v)},
        "rng": torch.get_rng_state(),
        "step": 3,
    }


def test_a_training_checkpoint(file: Path) -> None:
    state = checkpoint()
    # state_dict() is an OrderedDict with an attribute of its own, which is no state.
    assert type(state["model"]) is OrderedDict
    found = through(state, file)
    assert_equal(found, state)
    model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.LayerNorm(30)).bfloat16()
    model.load_state_dict(found["model"])
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.load_state_dict(found["optimizer"])
    assert optimizer.state_dict()["param_groups"][0]["lr"] == 1e-3


def test_parameters_and_gradients(file: Path) -> None:
    state = {
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "frozen": torch.nn.Parameter(torch.randn(3), requires_grad=False),
        "leaf": torch.randn(3, requires_grad=True),
        "result": torch.randn(3, requires_grad=True) * 2,
        "plain": torch.randn(3),
    }
    found = through(state, file)
    assert_equal(found, state)
    assert {name: x.requires_grad for name, x in found.items()} == {
        name: x.requires_grad for name, x in state.items()
    }
    assert all(x.is_leaf for x in found.values())


def test_tied_tensors_stay_tied(file: Path) -> None:
    x = torch.randn(50, 20)
    other = x.detach()
    parameter = torch.nn.Parameter(x)
    a = np.arange(1000.0)
    state = {
        "same": [x, x],
        "other": other,
        "view": x.view(50, 20),
        "parameter": parameter,
        "reshaped": x.view(20, 50),
        "clone": x.clone(),
        "numpy": [a, a, a[:], a.copy()],
    }
    found = through(state, file)
    assert_equal(found, state)
    assert found["same"][0] is found["same"][1]
    pointer = found["same"][0].data_ptr()
    for name in ("other", "view", "parameter"):
        assert found[name] is not found["same"][0]
        assert found[name].data_ptr() == pointer
    assert not found["other"].requires_grad
    # The same memory in another shape, and equal values in other memory, are their own tensors.
    assert found["reshaped"].data_ptr() != pointer
    assert found["clone"].data_ptr() != pointer
    first, again, view, copy = found["numpy"]
    assert first is again
    assert np.shares_memory(first, view)
    assert not np.shares_memory(first, copy)
    found["same"][0].fill_(7)
    assert (found["parameter"] == 7).all()
    # Equal bytes are stored once.
    assert file.stat().st_size < 1.3 * (x.nbytes + a.nbytes)


def test_empty_tensors_are_not_tied(file: Path) -> None:
    first, second = through([torch.empty(0), torch.empty(0)], file)
    assert first is not second


class Point(NamedTuple):
    x: int
    y: int


class Colour(enum.IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


REFUSED: list[tuple[Sample, str]] = [
    ({"a": [1, object()]}, r"state\['a'\]\[1\] is a builtins.object"),
    ({"a": {3: lambda: None}}, r"state\['a'\]\[3\] is a builtins.function"),
    (Point(1, 2), r"state is a .*Point.*namedtuple.*_asdict"),
    ([Colour.RED], r"state\[0\] is a .*Colour"),
    ([Text("a")], r"state\[0\] is a .*Text"),
    ({"x": defaultdict(list)}, r"state\['x'\] is a collections.defaultdict"),
    ([Counter()], "Counter"),
    ([range(3)], "range"),
    ([slice(1)], "slice"),
    ([Path()], "Path"),
    ([np.dtype("f4")], r"state\[0\] is a numpy.*"),
    ([np.datetime64(1, "s")], r"state\[0\].*datetime64"),
    ([np.array(["text"])], r"state\[0\].*<U4"),
    ([np.array([None])], r"state\[0\].*object"),
    ([np.str_("x")], r"state\[0\].*<U1"),
    ({"w": torch.eye(2).to_sparse()}, r"state\['w'\].*sparse"),
    ({"w": torch.empty(2, device="meta")}, r"state\['w'\].*meta"),
    ({torch.ones(1): 1}, r"state\[.*key"),
    ({"a": {torch.ones(1)}}, r"state\['a'\].*set"),
    ([memoryview(b"x")], "memoryview"),
    ([torch.nn.Linear(1, 1)], r"state\[0\] is a torch.nn.modules.linear.Linear"),
    ([torch.device("cpu")], r"state\[0\] is a torch.device"),
    ([Exception], r"state\[0\] is a builtins.type"),
    ({("a", object()): 1}, "builtins.object"),
]


@pytest.mark.parametrize(("state", "message"), REFUSED, ids=lambda x: str(x)[:40])
@pytest.mark.filterwarnings("ignore:Sparse")
def test_refused_types(state: Sample, message: str, file: Path) -> None:
    with pytest.raises(TypeError, match=message):
        nz.save(state, file)
    assert not file.exists()


def test_circles_and_depth(file: Path) -> None:
    circle: list[Sample] = [1]
    circle.append({"again": circle})
    with pytest.raises(ValueError, match=r"state\[1\]\['again'\] contains itself"):
        nz.save(circle, file)
    deep: Sample = 1
    for _ in range(128):
        deep = {1: (deep,)} if _ % 2 else [deep]
        deep = deep[1] if isinstance(deep, dict) else deep
    assert_equal(through(deep, file), deep)
    with pytest.raises(ValueError, match="nested"):
        nz.save([deep], file)
    shared = [1, 2]
    assert_equal(through([shared, shared], file), [[1, 2], [1, 2]])


def test_the_file_is_a_safetensors_file(file: Path) -> None:
    nz.save({"model": {"w": WEIGHTS, "b": [torch.ones(3)]}, 5: {"w": torch.ones(2)}}, file)
    with nz.safetensors.safe_open(file, "pt") as opened:
        assert set(opened.keys()) == {"model.w", "model.b.0", "5.w", "neuzip.state"}
        assert_same(opened.get_tensor("model.w"), WEIGHTS)
        assert opened.metadata() == {"neuzip.state": "1"}
    with safetensors.safe_open(file, "pt") as opened:
        assert set(opened.keys()) == {"model.w", "model.b.0", "5.w", "neuzip.state"}
    nz.save(WEIGHTS, file)
    assert_same(nz.load(file), WEIGHTS)
    nz.safetensors.decompress_file(file, file.with_suffix(".plain"))
    assert_same(nz.load(file.with_suffix(".plain")), WEIGHTS)


def test_names_that_collide(file: Path) -> None:
    tensors = [torch.full((2,), float(n)) for n in range(8)]
    state = {
        "a": {"b": tensors[0]},
        "a.b": tensors[1],
        "a.b#2": tensors[2],
        "neuzip.state": tensors[3],
        "__metadata__": tensors[4],
        "\ud800": tensors[5],
        "\\ud800": tensors[6],
        "": tensors[7],
    }
    assert_equal(through(state, file), state)


def test_floats_are_compressed_as_floats(file: Path) -> None:
    x = torch_tensor("bfloat16", (300, 300), contents("weights", "bfloat16", 90_000, 1))
    y = torch.complex(x.double(), x.double())
    nz.save({"x": x, "y": y}, file)
    assert file.stat().st_size < 0.75 * x.nbytes + 0.5 * y.nbytes + 2000


def test_equal_state_gives_equal_bytes(run_python: RunPython, file: Path) -> None:
    program = f"""
import neuzip_rs as nz
nz.save({{"set": {{"a", "b", "c", ("d", 1)}}, "f": frozenset("xyz")}}, {str(file)!r})
print(open({str(file)!r}, "rb").read().hex())
"""
    assert run_python(program, PYTHONHASHSEED="1") == run_python(program, PYTHONHASHSEED="2")


def test_save_replaces_and_load_takes_paths(file: Path) -> None:
    nz.save([1], str(file))
    nz.save([2], file, level="max", threads=1)
    assert nz.load(str(file), threads=1, verify=False) == [2]
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_load_framework_and_device(file: Path) -> None:
    state = {"t": WEIGHTS, "n": np.arange(5), "b": bytes(3000), "s": torch.Size([3])}
    nz.save(state, file)
    found = nz.load(file, framework="numpy")
    assert found["t"].dtype == ml_dtypes.bfloat16
    assert type(found["n"]) is np.ndarray
    assert found["b"] == bytes(3000)
    found = nz.load(file, framework="torch", device="cpu")
    assert_same(found["t"], WEIGHTS)
    assert_same(found["n"], torch.arange(5))
    found = nz.load(file, device="meta")
    assert found["t"].is_meta
    assert type(found["n"]) is np.ndarray
    for arguments in ({"framework": "tensorflow"}, {"device": "nowhere", "framework": "torch"}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            nz.load(file, **arguments)  # type: ignore[arg-type]


def test_max_output_size(file: Path) -> None:
    nz.save({"x": WEIGHTS}, file)
    with pytest.raises(nz.OutputTooLargeError, match="max_output_size=4000"):
        nz.load(file, max_output_size=4000)
    assert_same(nz.load(file, max_output_size=8000)["x"], WEIGHTS)


def test_wrong_arguments(file: Path) -> None:
    for arguments in ({"level": "much"}, {"threads": 0}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            nz.save(1, file, **arguments)  # type: ignore[arg-type]
    nz.save(1, file)
    for arguments in ({"max_output_size": -1}, {"threads": 0}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            nz.load(file, **arguments)
    with pytest.raises(FileNotFoundError):
        nz.load(file.with_name("missing"))
    with pytest.raises(OSError, match="nowhere"):
        nz.save(1, file.with_name("nowhere") / "state")
