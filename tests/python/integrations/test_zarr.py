"""Zarr 3 arrays, numcodecs, and JAX arrays."""

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("zarr", reason="zarr is not installed")
ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")

import numcodecs  # noqa: E402 - after the reason to skip
import zarr  # noqa: E402

import neuzip_rs as nz  # noqa: E402
from neuzip_rs.numcodecs import NeuzipCodec as OldCodec  # noqa: E402
from neuzip_rs.zarr import NeuzipCodec  # noqa: E402
from tests.python import command  # noqa: E402
from tests.python.integrations.howto import follow  # noqa: E402

FLOATS = ["float16", "float32", "bfloat16"]


def weights(dtype: str, shape: tuple[int, ...] = (300, 130), seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(scale=0.02, size=shape).astype(np.float32)
    values.flat[:3] = [np.nan, -0.0, np.inf]
    return values.astype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("dtype", [*FLOATS, "float64", "int32", "uint8", "bool", "complex64"])
@pytest.mark.parametrize("sharded", [False, True])
def test_zarr_3_arrays(tmp_path: Path, dtype: str, sharded: bool) -> None:
    values = (
        weights(dtype) if dtype in FLOATS else (weights("float32")[1:] * 1000 % 99).astype(dtype)
    )
    array = zarr.create_array(
        tmp_path / "a.zarr",
        shape=values.shape,
        dtype=values.dtype,
        chunks=(100, 65),
        shards=(200, 130) if sharded else None,
        compressors=[NeuzipCodec(level="default")],
    )
    array[:] = values
    # Opened anew: everything comes from the metadata.
    found = zarr.open_array(tmp_path / "a.zarr", mode="r")
    assert same(found[:], values)
    assert same(found[17:230, 60:71], values[17:230, 60:71])
    metadata = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())
    assert metadata["data_type"] == dtype
    assert "neuzip" in json.dumps(metadata["codecs"])


@pytest.mark.parametrize(
    ("dtype", "most"), [("bfloat16", 0.72), ("float16", 0.9), ("float32", 0.86)]
)
def test_chunks_are_compressed_as_what_they_are(tmp_path: Path, dtype: str, most: float) -> None:
    values = weights(dtype, (512, 512))
    for name, codec in (("ours", NeuzipCodec()), ("zstd", zarr.codecs.ZstdCodec(level=3))):
        array = zarr.create_array(
            tmp_path / name, data=values, chunks=(512, 512), compressors=[codec]
        )
        assert same(array[:], values)
    ours = (tmp_path / "ours" / "c" / "0" / "0").stat().st_size
    assert ours < most * values.nbytes
    assert ours < (tmp_path / "zstd" / "c" / "0" / "0").stat().st_size
    stream = nz.CompressedTensor.from_bytes((tmp_path / "ours" / "c" / "0" / "0").read_bytes())
    assert (stream.dtype, stream.shape) == (dtype, (512, 512))


def test_zarr_codec_says_what_the_elements_are(tmp_path: Path) -> None:
    values = weights("bfloat16").view(np.uint16)
    codec = NeuzipCodec(dtype="bfloat16")
    array = zarr.create_array(tmp_path, data=values, compressors=[codec], fill_value=0)
    assert same(zarr.open_array(tmp_path)[:], values)
    assert array.nbytes_stored() < 0.75 * values.nbytes
    assert array.metadata.to_dict()["codecs"][1]["configuration"]["dtype"] == "bfloat16"


def test_zarr_big_endian_and_checksum(tmp_path: Path) -> None:
    values = weights("float32")
    array = zarr.create_array(
        tmp_path,
        data=values,
        serializer=zarr.codecs.BytesCodec(endian="big"),
        compressors=[NeuzipCodec(), zarr.codecs.Crc32cCodec()],
    )
    assert same(array[:], values)


def test_zarr_chunk_that_is_damaged(tmp_path: Path) -> None:
    zarr.create_array(
        tmp_path, data=weights("float32"), chunks=(300, 130), compressors=[NeuzipCodec()]
    )
    chunk = tmp_path / "c" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 4
    chunk.write_bytes(data)
    with pytest.raises(nz.CorruptDataError):
        zarr.open_array(tmp_path)[:]
    chunk.write_bytes(bytes(nz.compress(np.zeros(1 << 28, np.uint8))))
    with pytest.raises(nz.CorruptDataError, match="stored as another one"):
        zarr.open_array(tmp_path)[:]


def test_wrong_arguments() -> None:
    for kind in (NeuzipCodec, OldCodec):
        with pytest.raises(ValueError, match="level"):
            kind(level="best")
        with pytest.raises(ValueError, match="dtype"):
            kind(dtype="float17")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["float16", "float32", ">f4", "datetime64[s]", "int16"])
def test_zarr_2_arrays(tmp_path: Path, dtype: str, order: str) -> None:
    values = (weights("float32", (90, 70))[1:] * 1e4).astype("int16").astype(dtype)
    array = zarr.create_array(
        tmp_path,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(50, 40),
        order=order,
        zarr_format=2,
        compressors=OldCodec(),
    )
    array[:] = values
    numcodecs.register_codec(OldCodec)
    assert same(np.asarray(zarr.open_array(tmp_path)[:]), values)


def test_numcodecs() -> None:
    numcodecs.register_codec(OldCodec)
    codec = numcodecs.get_codec({"id": "neuzip", "level": "fast"})
    assert codec.get_config() == {"id": "neuzip", "level": "fast", "dtype": None}
    assert codec == OldCodec(level="fast")
    for values in (weights("float16"), weights("bfloat16"), weights("float32").T[::2]):
        out = np.empty(values.shape, values.dtype)
        encoded = codec.encode(values)
        assert bytes(codec.decode(encoded)) == values.tobytes() or values.T.flags.c_contiguous
        codec.decode(bytes(encoded), out=out)
        assert out.tobytes() == bytes(codec.decode(encoded))
    raw = weights("bfloat16").tobytes()
    as_said = OldCodec(dtype="bfloat16").encode(raw)
    assert as_said.nbytes < 0.75 * len(raw)
    assert bytes(codec.decode(as_said)) == raw
    assert bytes(codec.decode(codec.encode(b""))) == b""
    with pytest.raises(TypeError, match="objects"):
        codec.encode(np.array([{}, None], dtype=object))


READ = """
import sys, numcodecs, zarr
assert "neuzip_rs" not in sys.modules
array = zarr.open_array(sys.argv[1], mode="r")
print(array.dtype, float(array[5, 6]))
print(type(numcodecs.get_codec({"id": "neuzip"})).__module__)
"""


def test_entry_points(tmp_path: Path) -> None:
    if not entry_points(group="zarr.codecs", name="neuzip"):
        pytest.skip("the package is imported from its source, without being installed")
    values = weights("float16")
    zarr.create_array(tmp_path / "a", data=values, compressors=[{"name": "neuzip"}])
    result = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "a")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines() == [
        f"float16 {float(values[5, 6])}",
        "neuzip_rs.numcodecs",
    ]


@pytest.mark.parametrize("dtype", [*FLOATS, "int8", "bool", "float8_e4m3fn", "uint32"])
def test_jax(dtype: str) -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    array = (jax.random.normal(jax.random.key(0), (60, 50)) * 10).astype(dtype)
    compressed = nz.compress(array)
    assert compressed.framework == "jax"
    assert compressed.dtype == dtype
    found = nz.decompress(compressed)
    assert isinstance(found, jax.Array)
    assert same(np.asarray(found), np.asarray(array))
    assert same(np.asarray(compressed[3:9]), np.asarray(array[3:9]))
    assert same(nz.decompress(compressed, framework="numpy"), np.asarray(array))
    on_device = nz.decompress(bytes(compressed), framework="jax", device="cpu")
    assert on_device.device == jax.devices("cpu")[0]


def test_jax_through_dlpack() -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    torch = pytest.importorskip("torch", reason="torch is not installed")
    array = jax.numpy.linspace(0, 1, 999, dtype="bfloat16")
    # The memory goes from JAX to torch and back without a copy.
    tensor = nz.decompress(nz.compress(torch.from_dlpack(array)))
    assert same(np.asarray(jax.numpy.from_dlpack(tensor)), np.asarray(array))


def test_jax_refuses_what_it_would_round() -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    assert not jax.config.jax_enable_x64
    with pytest.raises(ValueError, match="float64"):
        nz.decompress(nz.compress(np.ones(3)), framework="jax")
    with pytest.raises(TypeError, match="out must be"):
        nz.decompress(nz.compress(np.ones(3)), out=jax.numpy.ones(3))


def test_page_of_instructions(tmp_path: Path) -> None:
    pytest.importorskip("jax", reason="jax is not installed")
    if not entry_points(group="zarr.codecs", name="neuzip"):
        pytest.skip("neuzip_rs runs from its source tree, without entry points")
    paths = os.pathsep.join(path for path in sys.path if path)
    assert follow("zarr.md", tmp_path, command.environment(PYTHONPATH=paths)) == 3
    assert {"weights.zarr", "bf16.zarr"} <= {file.name for file in tmp_path.iterdir()}
