"""Where the bits go: the parts sum up, entropies are measured, estimates hold."""

import json
import math
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import neuzip_rs as nz
from neuzip_rs import _native
from tests.python.command import neuzip, objects
from tests.python.samples import contents, numpy_array

LEVELS = ("fast", "default", "max")


def weights(shape: tuple[int, ...]) -> NDArray[np.float32]:
    count = math.prod(shape)
    array: NDArray[np.float32] = numpy_array(
        "float32", shape, contents("weights", "float32", count, 5)
    )
    return array


def entropy(values: NDArray[np.integer]) -> float:
    _, counts = np.unique(values, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


@pytest.mark.parametrize("level", LEVELS)
def test_the_parts_sum_to_what_is_stored(level: str) -> None:
    c = nz.compress(weights((700, 96)), level=level)
    explained = nz.explain(c)
    assert explained.stored_bytes == c.nbytes
    assert explained.original_bytes == c.original_nbytes
    assert sum(field.stored_bytes for field in explained.fields) + explained.other_bytes == c.nbytes
    assert sum(field.bits for field in explained.fields) == 32
    assert explained.ratio == pytest.approx(c.ratio)
    assert json.loads(json.dumps(explained.to_json()))["why"] == explained.reasons


def test_entropies_are_those_of_the_fields() -> None:
    x = weights((64, 100))
    exponent, mantissa = nz.explain(nz.compress(x, level="fast"), measure=True).fields
    bits = x.view(np.uint32)
    assert (exponent.name, exponent.mode) == ("exponent", "coded")
    assert exponent.entropy_bits == pytest.approx(entropy(bits >> 23 & 255))
    assert exponent.stored_bits >= math.floor(entropy(bits >> 23 & 255))
    assert (mantissa.name, mantissa.mode, mantissa.bits) == ("mantissa + sign", "raw", 24)
    rotated = bits << 1 | bits >> 31
    by_byte = sum(entropy(rotated >> shift & 255) for shift in (0, 8, 16))
    assert mantissa.entropy_bits == pytest.approx(by_byte)
    # Nothing is decoded unless it was asked for.
    assert nz.explain(nz.compress(x, level="fast")).fields[1].entropy_bits is None


@given(
    st.binary(max_size=20_000) | st.binary(min_size=1, max_size=9).map(lambda it: it * 3000),
    st.sampled_from(LEVELS),
)
@settings(max_examples=60, deadline=None)
def test_estimates_of_small_arrays_are_exact(data: bytes, level: str) -> None:
    estimated = nz.estimate(data, level=level)
    c = nz.compress(data, level=level)
    assert estimated.exact
    explained = nz.explain(c, measure=True)
    if c.nbytes == estimated.stored_bytes:
        assert estimated.fields == explained.fields
    # A stream of one chunk leaves out a model that it does not use.
    assert c.nbytes <= estimated.stored_bytes <= c.nbytes + 600


def test_estimates_say_what_other_choices_would_give() -> None:
    rows = np.exp2(np.linspace(-9, 9, 1024))[:, None]
    x = (weights((1024, 512)) * rows).astype(np.float32)
    estimated = nz.estimate(x)
    assert estimated.scale_offsets is not None
    assert estimated.scale_offsets.row_offsets == 1024
    without = estimated.alternatives["no scale offsets"]
    assert without > estimated.stored_bytes
    assert estimated.alternatives["raw"] >= x.nbytes
    assert "scale offsets by row" in estimated.modes
    assert any("without them +" in reason for reason in estimated.reasons)
    assert abs(estimated.stored_bytes / nz.compress(x).nbytes - 1) < 0.003


def test_bundled_tensors_share_what_their_stream_takes(tmp_path: Path) -> None:
    source, packed = tmp_path / "m.safetensors", tmp_path / "m.nz.safetensors"
    shapes = [(64,), (40, 64), (1,), (100, 64), (7, 64), (33,), (3, 3, 8), (150, 64)]
    values = {f"t{n}": weights(shape) * 2**n for n, shape in enumerate(shapes)}
    nz.safetensors.save_file(values, packed)
    nz.safetensors.decompress_file(packed, source)
    with closing(_native.SafetensorsFile(str(packed))) as file:
        assert {file.bundle(name) for name in values} == {None, "t0", "t1"}
        explained = {name: file.explain(name) for name in values}
        stored = {name: file.stored_nbytes(name) for name in values}
    header = 8 + int.from_bytes(packed.read_bytes()[:8], "little")
    assert header + sum(stored.values()) == packed.stat().st_size
    for name, facts in explained.items():
        parts = sum(field["stored_bytes"] for field in facts["fields"])
        assert parts + facts["other_bytes"] == facts["stored_bytes"] == stored[name]
        assert facts["original_bytes"] == values[name].nbytes
    with closing(_native.SafetensorsFile(str(source))) as file:
        names = file.keys()
        estimated = dict(zip(names, file.estimate(), strict=True))
    # A stream of one chunk leaves out a model that it does not use.
    differences = [facts["stored_bytes"] - stored[name] for name, facts in estimated.items()]
    assert all(0 <= difference < 64 for difference in differences)


def test_constants_and_repeats_have_their_own_words() -> None:
    assert nz.explain(nz.compress(np.zeros(5000))).reasons == ["every element is the same"]
    with pytest.raises(nz.CorruptDataError):
        nz.explain(b"no stream")
    with pytest.raises(ValueError, match="level"):
        nz.estimate(b"abc", level="best")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explain") / "model"
    folder.mkdir()
    tensors = {"w": weights((300, 64)), "h": weights((90, 64))}
    tensors["tied"] = tensors["w"]
    nz.safetensors.save_file(tensors, folder / "c.nz.safetensors")
    neuzip("decompress", folder / "c.nz.safetensors", "-o", folder / "model.safetensors")
    (folder / "c.nz.safetensors").unlink()
    (folder / "noise.bin").write_bytes(np.random.default_rng(1).bytes(40_000))
    return folder


def test_estimate_command(folder: Path) -> None:
    before = sorted(path.name for path in folder.iterdir())
    paths = [folder, folder / "model.safetensors", folder / "noise.bin"]
    whole, model, noise = objects(neuzip("estimate", "--json", *paths))
    assert sorted(path.name for path in folder.iterdir()) == before
    compressed = folder.parent / "model.nz.safetensors"
    neuzip("compress", folder / "model.safetensors", "-o", compressed)
    assert abs(model["compressed_bytes"] - compressed.stat().st_size) <= 64
    by_name = {tensor["name"]: tensor for tensor in model["tensors"]}
    tied = by_name["tied"] if by_name["tied"]["repeats"] else by_name["w"]
    assert tied["compressed_bytes"] < 100
    assert tied["why"][0].startswith("the same as ")
    assert noise["ratio"] >= 1.0
    assert whole["original_bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    listed = {file["path"]: file for file in whole["files"]}
    assert listed["noise.bin"]["compressed_bytes"] is None
    table = neuzip("estimate", "-v", folder).stdout.decode()
    assert "would be about" in table
    assert "bits of entropy in" in table
    failed = neuzip("estimate", compressed, expect=1)
    assert b"already compressed" in failed.stderr
    stream = objects(neuzip("estimate", "--json", "-", stdin=b"abc" * 999))
    assert stream[0]["original_bytes"] == 2997


def test_info_explains_the_fields(folder: Path, tmp_path: Path) -> None:
    compressed = tmp_path / "m.nz.safetensors"
    neuzip("compress", folder / "model.safetensors", "-o", compressed)
    facts = objects(neuzip("info", "--json", "--measure", compressed))[0]
    for tensor in facts["tensors"]:
        parts = sum(field["stored_bytes"] for field in tensor["fields"])
        assert parts + tensor["other_bytes"] == tensor["compressed_bytes"]
        assert all(field["entropy_bits"] is not None for field in tensor["fields"])
    table = neuzip("info", "-v", compressed).stdout.decode()
    assert "mantissa" in table
    assert "the same as " in table
