"""`nz.safetensors` against the safetensors package itself."""

import math
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import neuzip_rs as nz
from tests.python.samples import Sample, assert_same, bits, contents, numpy_array, torch_tensor

SPELLINGS = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2": "F8_E5M2",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
}
NAMES = (
    "model.layers.0.weight",
    "a",
    "B",
    "",
    "é",
    "日本",
    'quote"back\\slash',
    "line\nbreak",
    "\x7f",
)

Tensors = dict[str, torch.Tensor]
Write = Callable[[Path], None]


def every_type() -> Tensors:
    tensors = {
        name: torch_tensor(name, (6, 10), contents("weights", name, 60, 1)) for name in SPELLINGS
    }
    tensors["float4"] = (
        torch.arange(60, dtype=torch.uint8).reshape(6, 10).view(torch.float4_e2m1fn_x2)
    )
    tensors["scalar"] = torch.tensor(1.5)
    tensors["empty"] = torch.empty(0, 3)
    tensors["empty too"] = torch.empty(0, dtype=torch.int8)
    tensors["large"] = torch_tensor(
        "bfloat16", (500, 400), contents("weights", "bfloat16", 200_000, 2)
    )
    return tensors


def restored(compressed: Path) -> bytes:
    """The file that `decompress_file` makes of a compressed one."""
    plain = compressed.with_suffix(".restored")
    nz.safetensors.decompress_file(compressed, plain, overwrite=True)
    return plain.read_bytes()


def assert_same_tensors(found: dict[str, Sample], expected: dict[str, Sample]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert_same(found[name], tensor)


# -- save_file ----------------------------------------------------------------------------------


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_save_file_keeps_what_the_package_would_have_written(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    tensors = every_type()
    nz.safetensors.save_file(tensors, tmp_path / "compressed", metadata=metadata)
    safetensors.torch.save_file(tensors, tmp_path / "plain", metadata=metadata)
    assert restored(tmp_path / "compressed") == (tmp_path / "plain").read_bytes()
    nz.safetensors.compress_file(tmp_path / "plain", tmp_path / "same")
    assert (tmp_path / "same").read_bytes() == (tmp_path / "compressed").read_bytes()


def test_save_file_of_numpy_arrays(tmp_path: Path) -> None:
    arrays = {
        name: numpy_array(name, (5, 7), contents("weights", name, 35, 3)) for name in SPELLINGS
    }
    arrays["scalar"] = np.array(2.5)
    arrays["empty"] = np.empty((3, 0))
    nz.safetensors.save_file(arrays, tmp_path / "compressed")
    safetensors.numpy.save_file(arrays, tmp_path / "plain")
    assert restored(tmp_path / "compressed") == (tmp_path / "plain").read_bytes()


def test_save_file_of_strided_numpy_arrays(tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    nz.safetensors.save_file({"x": x.T, "y": x[::2, ::-1]}, tmp_path / "compressed")
    found = nz.safetensors.load_file(tmp_path / "compressed", framework="np")
    assert (found["x"] == x.T).all()
    assert (found["y"] == x[::2, ::-1]).all()


tensor_dicts = st.dictionaries(
    st.sampled_from(NAMES),
    st.tuples(
        st.sampled_from(sorted(SPELLINGS)), st.lists(st.integers(0, 7), max_size=3).map(tuple)
    ),
    max_size=6,
)


@given(described=tensor_dicts, seed=st.integers(0, 1000), note=st.none() | st.text(max_size=9))
def test_any_tensors(
    tmp_path: Path,
    described: dict[str, tuple[str, tuple[int, ...]]],
    seed: int,
    note: str | None,
) -> None:
    tensors = {
        name: torch_tensor(dtype, shape, contents("weights", dtype, math.prod(shape), seed))
        for name, (dtype, shape) in described.items()
    }
    metadata = None if note is None else {"note": note}
    nz.safetensors.save_file(tensors, tmp_path / "compressed", metadata)
    safetensors.torch.save_file(tensors, tmp_path / "plain", metadata)
    if tensors:
        assert restored(tmp_path / "compressed") == (tmp_path / "plain").read_bytes()
    # Sorted: the package puts empty tensors at the same place in any order.
    found = nz.safetensors.load_file(tmp_path / "compressed")
    expected = safetensors.torch.load_file(tmp_path / "plain")
    assert_same_tensors(dict(sorted(found.items())), dict(sorted(expected.items())))
    with nz.safetensors.safe_open(tmp_path / "compressed", "pt") as file:
        assert file.metadata() == metadata


def test_metadata_of_several_entries(tmp_path: Path) -> None:
    # The package writes them in an order that changes from run to run.
    metadata = {f"key {n}": f"välue {n}" for n in range(20)}
    nz.safetensors.save_file({"x": torch.ones(3)}, tmp_path / "a", metadata)
    nz.safetensors.save_file({"x": torch.ones(3)}, tmp_path / "b", metadata)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with nz.safetensors.safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata() == metadata
    (tmp_path / "plain").write_bytes(restored(tmp_path / "a"))
    with safetensors.safe_open(tmp_path / "plain", "pt") as file:
        assert file.metadata() == metadata


def test_a_compressed_file_is_a_safetensors_file(tmp_path: Path) -> None:
    tensors = every_type()
    nz.safetensors.save_file(tensors, tmp_path / "compressed", {"format": "pt"})
    with safetensors.safe_open(tmp_path / "compressed", "pt") as file:
        assert set(file.keys()) == set(tensors)
        metadata = file.metadata()
        assert metadata.pop("neuzip.header")
        assert metadata == {"format": "pt"}
        for name, tensor in tensors.items():
            stream = file.get_tensor(name)
            assert stream.dtype == torch.uint8
            assert stream.ndim == 1
            found = nz.decompress(stream, framework="bytes")
            assert found == bits(tensor)
    with nz.safetensors.safe_open(tmp_path / "compressed", "pt") as file:
        assert "neuzip.header" not in file.metadata()
    size = (tmp_path / "compressed").stat().st_size
    assert size < 0.75 * sum(tensor.nbytes for tensor in tensors.values())


def test_equal_tensors_are_stored_once(tmp_path: Path) -> None:
    x = torch_tensor("float32", (300, 100), contents("random", "float32", 30_000, 4))
    tensors = {"head": x, "embedding": x.clone(), "other shape": x.clone().reshape(-1)}
    nz.safetensors.save_file(tensors, tmp_path / "compressed")
    assert (tmp_path / "compressed").stat().st_size < 2.2 * x.nbytes
    assert_same_tensors(
        nz.safetensors.load_file(tmp_path / "compressed"),
        dict(sorted(tensors.items())),
    )
    with nz.safetensors.safe_open(tmp_path / "compressed", "pt") as file:
        for name in ("head", "embedding"):
            assert bits(file.get_slice(name)[7:9]) == bits(x[7:9])


def test_the_same_bytes_with_any_number_of_threads(tmp_path: Path) -> None:
    tensors = every_type()
    files = set()
    for threads in (None, 1, 2, 7):
        nz.safetensors.save_file(tensors, tmp_path / "file", threads=threads)
        files.add((tmp_path / "file").read_bytes())
    assert len(files) == 1


@pytest.mark.parametrize("level", ["fast", "default", "max"])
def test_levels(tmp_path: Path, level: str) -> None:
    tensors = every_type()
    nz.safetensors.save_file(tensors, tmp_path / "file", level=level)
    found = nz.safetensors.load_file(tmp_path / "file", threads=1, verify=False)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert_same(found[name], tensor)


REFUSED: list[tuple[Sample, type[Exception], str]] = [
    ([torch.ones(1)], ValueError, "dict"),
    ({1: torch.ones(1)}, TypeError, "1"),
    ({"x": [1.0, 2.0]}, ValueError, "'x'.*list"),
    ({"x": b"raw"}, ValueError, "'x'.*bytes"),
    ({"x": None}, ValueError, "'x'"),
    ({"x": torch.ones(2, 3).t()}, ValueError, "'x'.*contiguous"),
    ({"x": torch.eye(3).to_sparse()}, ValueError, "'x'.*sparse"),
    ({"x": torch.ones(2, dtype=torch.complex128)}, ValueError, "'x'.*complex128"),
    ({"x": np.ones(2, ml_dtypes.int4)}, ValueError, "'x'.*int4"),
    ({"x": np.array(["text"])}, ValueError, "'x'"),
    ({"x": np.ones(2, ">f4")}, ValueError, "'x'.*byte order"),
    ({"x": torch.ones(2, device="meta")}, ValueError, "'x'.*meta"),
]


@pytest.mark.parametrize(("tensors", "error", "message"), REFUSED, ids=lambda x: str(x)[:30])
@pytest.mark.filterwarnings("ignore:Sparse")
def test_refused_tensors(
    tmp_path: Path, tensors: Sample, error: type[Exception], message: str
) -> None:
    (tmp_path / "file").write_text("the file before")
    with pytest.raises(error, match=message):
        nz.safetensors.save_file(tensors, tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "the file before"


@pytest.mark.parametrize("metadata", [{1: "a"}, {"a": 1}, [("a", "b")], "text", {"a": None}])
def test_refused_metadata(tmp_path: Path, metadata: Sample) -> None:
    with pytest.raises(TypeError, match="metadata"):
        nz.safetensors.save_file({"x": torch.ones(1)}, tmp_path / "file", metadata)
    assert not list(tmp_path.iterdir())


def test_refused_arguments(tmp_path: Path) -> None:
    for arguments in ({"level": "best"}, {"threads": 0}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            nz.safetensors.save_file({}, tmp_path / "file", **arguments)
    with pytest.raises(OSError, match="nowhere"):
        nz.safetensors.save_file({"x": torch.ones(1)}, tmp_path / "nowhere" / "file")


def test_names_that_headers_keep_for_themselves(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="__metadata__"):
        nz.safetensors.save_file({"__metadata__": torch.ones(1)}, tmp_path / "file")
    with pytest.raises(ValueError, match=r"neuzip\.header"):
        nz.safetensors.save_file({"x": torch.ones(1)}, tmp_path / "file", {"neuzip.header": ""})


def test_shared_memory_is_refused_as_by_the_package(tmp_path: Path) -> None:
    x = torch.arange(12.0)
    cases: list[tuple[Tensors, bool]] = [
        ({"a": x, "b": x}, True),
        ({"a": x, "b": x.view(3, 4)}, True),
        ({"a": x[:8], "b": x[4:]}, True),
        ({"a": x[:6], "b": x[6:]}, False),
        ({"a": x, "b": x.clone()}, False),
        ({"a": x[:0], "b": x}, False),
        ({"a": x[:1], "b": x[:1]}, True),
        ({"a": torch.nn.Parameter(x), "b": x}, True),
    ]
    for tensors, shared in cases:
        for save_file in (safetensors.torch.save_file, nz.safetensors.save_file):
            if shared:
                with pytest.raises(RuntimeError, match=r"(?s)a.*b|b.*a"):
                    save_file(tensors, tmp_path / "file")
            else:
                save_file(tensors, tmp_path / "file")


def test_save_file_replaces(tmp_path: Path) -> None:
    nz.safetensors.save_file({"x": torch.ones(3)}, tmp_path / "file")
    nz.safetensors.save_file({"y": torch.ones(4)}, str(tmp_path / "file"))
    assert list(nz.safetensors.load_file(tmp_path / "file")) == ["y"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# -- load_file and safe_open --------------------------------------------------------------------


@pytest.fixture(params=["compressed", "plain"])
def file_and_reference(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A file for nz and the plain file for the safetensors package."""
    safetensors.torch.save_file(every_type(), tmp_path / "plain", {"format": "pt"})
    nz.safetensors.compress_file(tmp_path / "plain", tmp_path / "compressed")
    return tmp_path / request.param, tmp_path / "plain"


def test_load_file(file_and_reference: tuple[Path, Path]) -> None:
    file, reference = file_and_reference
    expected = safetensors.torch.load_file(reference)
    assert_same_tensors(nz.safetensors.load_file(file), expected)
    assert_same_tensors(nz.safetensors.load_file(str(file), "cpu", framework="pt"), expected)
    assert_same_tensors(nz.safetensors.load_file(file, backend="pread"), expected)
    on_meta = nz.safetensors.load_file(file, device="meta")
    assert all(tensor.device.type == "meta" for tensor in on_meta.values())


def test_load_file_into_numpy(file_and_reference: tuple[Path, Path]) -> None:
    file, reference = file_and_reference
    expected = safetensors.torch.load_file(reference)
    found = nz.safetensors.load_file(file, framework="np")
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert type(found[name]) is np.ndarray
        assert bits(found[name]) == bits(tensor)
        assert found[name].shape == tuple(tensor.shape)
        if name in SPELLINGS:
            assert found[name].dtype.name == name
    assert found["float4"].dtype == np.uint8


def test_keys_and_metadata(file_and_reference: tuple[Path, Path]) -> None:
    file, reference = file_and_reference
    with (
        nz.safetensors.safe_open(file, "pt") as mine,
        safetensors.safe_open(reference, "pt") as theirs,
    ):
        assert mine.keys() == theirs.keys()
        assert mine.offset_keys() == theirs.offset_keys()
        assert mine.metadata() == theirs.metadata()
        for name in theirs.keys():  # noqa: SIM118 - not a dict
            assert_same(mine.get_tensor(name), theirs.get_tensor(name))
            assert mine.get_slice(name).get_shape() == theirs.get_slice(name).get_shape()
            assert mine.get_slice(name).get_dtype() == theirs.get_slice(name).get_dtype()
        assert_same_tensors(mine.get_tensors(), theirs.get_tensors())


KEYS: list[Sample] = [
    0,
    -1,
    slice(None),
    slice(1, 4),
    slice(-3, None),
    slice(4, 1),
    slice(90, 99),
    slice(None, None, 2),
    ...,
    (),
    (slice(1, 3), 0),
    (slice(None), slice(2, 5)),
    (2, slice(1, 3)),
    (2, 3),
    (..., 0),
    (slice(None), [0, 2]),
    None,
]


@pytest.mark.parametrize("framework", ["pt", "np"])
@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_slices(file_and_reference: tuple[Path, Path], framework: str, key: Sample) -> None:
    file, reference = file_and_reference
    with (
        nz.safetensors.safe_open(file, framework) as mine,
        safetensors.safe_open(reference, framework) as theirs,
    ):
        for name in ("bfloat16", "int64", "bool", "complex64", "large"):
            if framework == "pt":
                expected = theirs.get_slice(name)[key]
            else:
                # The package's own slices for numpy fail on many of these keys.
                expected = np.asarray(theirs.get_tensor(name)[key])
            assert_same(mine.get_slice(name)[key], expected)


def test_slices_out_of_range(file_and_reference: tuple[Path, Path]) -> None:
    with nz.safetensors.safe_open(file_and_reference[0], "pt") as file:
        for name, key in (("int8", 6), ("int8", -7), ("int8", (0, 10)), ("scalar", 0)):
            with pytest.raises(IndexError):
                file.get_slice(name)[key]
        assert file.get_slice("scalar")[...].item() == 1.5
        descending = file.get_slice("int8")[::-2]
        assert torch.equal(descending, every_type()["int8"].flip(0)[::2])


@pytest.mark.parametrize("framework", ["pt", "torch", "pytorch", "np", "numpy"])
def test_framework_names(file_and_reference: tuple[Path, Path], framework: str) -> None:
    with nz.safetensors.safe_open(file_and_reference[0], framework) as file:
        expected = np.ndarray if framework.startswith("n") else torch.Tensor
        assert type(file.get_tensor("float32")) is expected


def test_open_errors(file_and_reference: tuple[Path, Path], tmp_path: Path) -> None:
    file = file_and_reference[0]
    for framework in ("tf", "", None):
        with pytest.raises(ValueError, match="framework"):
            nz.safetensors.safe_open(file, framework)  # type: ignore[arg-type]
    for arguments in ({"device": "nowhere"}, {"backend": "telepathy"}, {"threads": 0}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            nz.safetensors.safe_open(file, "pt", **arguments)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=next(iter(arguments))):
            nz.safetensors.load_file(file, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cuda"):
        nz.safetensors.safe_open(file, "np", device="cuda")
    for path in (tmp_path / "missing", str(tmp_path / "missing")):
        with pytest.raises(FileNotFoundError):
            nz.safetensors.safe_open(path, "pt")
        with pytest.raises(FileNotFoundError):
            nz.safetensors.load_file(path)
    with pytest.raises(OSError, match=tmp_path.name):
        nz.safetensors.load_file(tmp_path)


def test_missing_tensors_and_closed_files(file_and_reference: tuple[Path, Path]) -> None:
    with nz.safetensors.safe_open(file_and_reference[0], "pt") as file:
        part = file.get_slice("large")
        for look_up in (file.get_tensor, file.get_slice):
            with pytest.raises(KeyError, match="nothing"):
                look_up("nothing")
        kept = file.get_tensor("float32")
    for use in (file.keys, file.metadata, lambda: file.get_tensor("float32"), lambda: part[0]):
        with pytest.raises(ValueError, match="closed"):
            use()
    assert_same(kept, every_type()["float32"])


def test_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nz.safetensors.save_file({"x": np.ones(3)}, tmp_path / "file")
    monkeypatch.setattr("neuzip_rs.safetensors.find_spec", lambda name: None)
    assert type(nz.safetensors.load_file(tmp_path / "file")["x"]) is np.ndarray


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("device", ["cuda", 0])
def test_cuda(tmp_path: Path, device: Sample) -> None:
    nz.safetensors.save_file({"x": torch.ones(30, device="cuda")}, tmp_path / "file")
    x = nz.safetensors.load_file(tmp_path / "file", device=device)["x"]
    assert x.is_cuda
    assert torch.equal(x.cpu(), torch.ones(30))
