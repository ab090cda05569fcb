"""Reading what zipnn has written; the files under tests/data/zipnn are by zipnn 0.5.4."""

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest

import neuzip_rs as nz
from neuzip_rs import _native
from tests.python.command import neuzip, objects
from tests.python.zipnn_samples import DATA, METADATA, STREAMED, TENSORS, originals, tensors

READ_ERRORS = (nz.CorruptDataError, nz.UnsupportedVersionError)


def stored(name: str) -> bytes:
    return (DATA / name).read_bytes()


@pytest.mark.parametrize("name", originals())
def test_files_come_back(tmp_path: Path, name: str) -> None:
    original = originals()[name]
    for threads in (1, 3):
        assert nz.zipnn.decompress(stored(name), threads=threads) == original
    target = tmp_path / "target"
    sizes = nz.zipnn.decompress_file(DATA / name, target)
    assert sizes == (len(stored(name)), len(original))
    assert target.read_bytes() == original


def test_tensors_come_back(tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    _, original = nz.zipnn.decompress_file(DATA / TENSORS, target)
    assert target.stat().st_size == original
    found = nz.safetensors.load_file(target, framework="numpy")
    assert found.keys() == tensors().keys()
    for name, (dtype, shape, data) in tensors().items():
        array = found[name]
        assert (array.dtype.name, array.shape, array.tobytes()) == (dtype, shape, data)
    with nz.safetensors.safe_open(target, framework="numpy") as file:
        assert file.metadata() == METADATA


def test_a_tensor_comes_back_as_one() -> None:
    with nz.safetensors.safe_open(DATA / TENSORS, framework="numpy") as file:
        compressed = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
    for name, (dtype, shape, data) in tensors().items():
        if dtype != "int64":
            array = nz.zipnn.decompress(compressed[name])
            assert isinstance(array, np.ndarray)
            assert (array.dtype.name, array.shape, array.tobytes()) == (dtype, shape, data)


def test_what_is_zipnns(tmp_path: Path) -> None:
    assert all(nz.zipnn.is_compressed(path) for path in DATA.iterdir())
    other = tmp_path / "other"
    for content in (b"", b"ZN", b"ZN" + b"text" * 9, bytes(40), stored(STREAMED)[:31]):
        other.write_bytes(content)
        assert not nz.zipnn.is_compressed(other)


# --- the command ------------------------------------------------------------------------------


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.znn").write_bytes(stored("bfloat16.znn"))
    (tmp_path / "other.znn.safetensors").write_bytes(stored(TENSORS))
    done = neuzip("decompress", "--json", "model.safetensors.znn", cwd=tmp_path)
    (record,) = objects(done)
    original = originals()["bfloat16.znn"]
    assert (record["kind"], record["original_bytes"]) == ("zipnn", len(original))
    assert (tmp_path / "model.safetensors").read_bytes() == original
    neuzip("decompress", "other.znn.safetensors", cwd=tmp_path)
    assert set(nz.safetensors.load_file(tmp_path / "other.safetensors", framework="numpy"))
    neuzip("decompress", "model.safetensors.znn", cwd=tmp_path, expect=1)  # it exists
    neuzip("decompress", "-f", "model.safetensors.znn", "-o", "elsewhere", cwd=tmp_path)
    assert (tmp_path / "elsewhere").read_bytes() == original


def test_the_command_keeps_the_source(tmp_path: Path) -> None:
    """No checksum says whether what came out is what went in."""
    source = tmp_path / "model.znn"
    source.write_bytes(stored("bfloat16.znn"))
    done = neuzip("decompress", "--rm", source, expect=2)
    assert b"no checksums" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model.znn"]


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    source = tmp_path / "model.znn"
    source.write_bytes(stored("bfloat16.znn")[:-1])
    done = neuzip("decompress", source, expect=1)
    assert b"frame" in done.stderr
    source.write_bytes(changed("bfloat16.znn", 9, 1))
    assert b"differences" in neuzip("decompress", source, expect=1).stderr
    source.write_bytes(stored("bfloat16.znn"))
    assert b"limit" in neuzip("decompress", "--max-output-size", "9K", source, expect=1).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model.znn"]


# --- hostile input ----------------------------------------------------------------------------


def changed(name: str, position: int, value: int) -> bytes:
    data = bytearray(stored(name))
    data[position] = value
    return bytes(data)


@pytest.mark.parametrize("name", [STREAMED, "float32.znn", "float8_e5m2.znn"])
def test_truncation(name: str) -> None:
    data, original = stored(name), originals()[name]
    for end in {*range(600), *range(600, len(data), 131), len(data) - 1}:
        # Where a frame of several ends, nothing says that there were more.
        try:
            assert original.startswith(nz.zipnn.decompress(data[:end]))
            assert name == STREAMED
        except nz.CorruptDataError:
            continue


def test_damage_is_an_error_or_other_bytes() -> None:
    """Never a crash, and never more bytes than the header says."""
    rng = Random(1)
    names = [*originals()]
    refused = 0
    for _ in range(3000):
        name = rng.choice(names)
        data = bytearray(stored(name))
        for _ in range(rng.choice((1, 1, 3))):
            data[rng.randrange(rng.choice((32, 200, len(data))))] = rng.randrange(256)
        limit = 4 * len(originals()[name])
        try:
            assert len(nz.zipnn.decompress(bytes(data), threads=1, max_output_size=limit)) <= limit
        except (*READ_ERRORS, nz.OutputTooLargeError):
            refused += 1
    assert refused > 1000


def test_claims_cost_nothing() -> None:
    """A header that claims 2^62 bytes is refused before anything is allocated."""
    for name in ("bfloat16.znn", STREAMED):
        data = bytearray(stored(name))
        data[16:24] = (1 << 62).to_bytes(8, "little")
        with pytest.raises(nz.CorruptDataError, match="index"):
            nz.zipnn.decompress(bytes(data))
    assert nz.zipnn.decompress(stored(STREAMED), max_output_size=len(originals()[STREAMED]))
    with pytest.raises(nz.OutputTooLargeError):
        nz.zipnn.decompress(stored(STREAMED), max_output_size=len(originals()[STREAMED]) - 1)


LIST = "znn_compressed_vectors"


@pytest.mark.parametrize(
    "listed",
    [
        "",
        "[]",
        "[" * 100_000,
        json.dumps({"none": {"dtype": "bfloat16", "shape": "[50, 300]"}}),
        json.dumps({"ids": {"dtype": "int64", "shape": "[40]"}}),
        json.dumps({"bfloat16": {"dtype": "float16", "shape": "[50, 300]"}}),
        json.dumps({"bfloat16": {"dtype": "bfloat16", "shape": "[300, 50]"}}),
    ],
)
def test_wrong_lists(tmp_path: Path, listed: str) -> None:
    source, target = tmp_path / TENSORS, tmp_path / "target"
    data = stored(TENSORS)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"][LIST] = listed
    text = json.dumps(header).encode()
    source.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(nz.CorruptDataError, match=r"tensor|list"):
        nz.zipnn.decompress_file(source, target)
    assert not target.exists()


def test_progress_can_stop_it(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    for name in (STREAMED, TENSORS):
        with pytest.raises(KeyboardInterrupt):
            nz.zipnn.decompress_file(DATA / name, tmp_path / "target", progress=stop)
    assert not [*tmp_path.iterdir()]


def test_the_native_module_names_the_file(tmp_path: Path) -> None:
    source = tmp_path / "x.znn"
    source.write_bytes(b"ZN" + bytes(40))
    with pytest.raises(READ_ERRORS, match=r"x\.znn"):
        _native.zipnn_decompress_file(str(source), str(tmp_path / "target"))
