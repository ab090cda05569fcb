"""Whole .safetensors files: restored byte for byte, atomic, and errors where they are damaged."""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch

import neuzip_rs as nz
from tests.python.samples import bits, contents, torch_tensor

Header = dict[str, dict[str, object]]


def tensor_file(header: str, data: bytes) -> bytes:
    encoded = header.encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def one(dtype: str, shape: list[int], nbytes: int) -> str:
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, nbytes]}
    return json.dumps({"x": entry})


WEIGHTS = contents("weights", "bfloat16", 500, 1)
AB = (
    '{"a":{"dtype":"BF16","shape":[20,10],"data_offsets":[0,400]},'
    '"b":{"dtype":"BF16","shape":[300],"data_offsets":[400,1000]}}'
)
# The same in the order of the names, not of the data.
BA = (
    '{"a":{"dtype":"BF16","shape":[300],"data_offsets":[400,1000]},'
    '"b":{"dtype":"BF16","shape":[20,10],"data_offsets":[0,400]}}'
)
METADATA = '{"__metadata__":{"format":"pt","z":"","a":"\\u00e9 \\ud83d\\ude00 \\n"},'

FILES = {
    "usual": tensor_file(AB, WEIGHTS),
    "padded to 8": tensor_file(AB + " " * (-len(AB) % 8), WEIGHTS),
    "padded to 4096": tensor_file(AB + " " * (-len(AB) % 4096), WEIGHTS),
    "data out of order": tensor_file(BA, WEIGHTS),
    "metadata first": tensor_file(METADATA + AB[1:], WEIGHTS),
    "metadata last": tensor_file(AB[:-1] + "," + METADATA[1:-1] + "}", WEIGHTS),
    "indented": tensor_file(json.dumps(json.loads(AB), indent=3), WEIGHTS),
    "escaped names": tensor_file(AB.replace('"a"', '"\\u0061\\u00e9\\/"'), WEIGHTS),
    "unicode names": tensor_file(AB.replace('"a"', '"層.重み"'), WEIGHTS),
    "other key order": tensor_file(
        '{"x":{"shape":[500],"data_offsets":[0,1000],"dtype":"BF16"}}', WEIGHTS
    ),
    "no tensors": tensor_file("{}", b""),
    "no tensors, metadata": tensor_file('{"__metadata__":{"a":"b"}}', b""),
    "empty metadata": tensor_file('{"__metadata__":{},' + AB[1:], WEIGHTS),
    "scalar": tensor_file(one("F64", [], 8), bytes(range(8))),
    "empty tensor": tensor_file(one("F32", [3, 0, 5], 0), b""),
    "many empty tensors": tensor_file(
        json.dumps(
            {
                f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [4 * (n > 2)] * 2}
                for n in range(5)
            }
            | {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
        ),
        b"abcd",
    ),
    "F8_E4M3": tensor_file(one("F8_E4M3", [40, 25], 1000), WEIGHTS),
    "F8_E5M2": tensor_file(one("F8_E5M2", [1000], 1000), WEIGHTS),
    "F8_E8M0": tensor_file(one("F8_E8M0", [1000], 1000), WEIGHTS),
    "F4": tensor_file(one("F4", [40, 50], 1000), WEIGHTS),
    "F4 of odd rows": tensor_file(one("F4", [4, 3], 6), WEIGHTS[:6]),
    "F6_E2M3": tensor_file(one("F6_E2M3", [100, 4], 300), WEIGHTS[:300]),
    "F6_E3M2": tensor_file(one("F6_E3M2", [4], 3), WEIGHTS[:3]),
    "C64": tensor_file(one("C64", [125], 1000), WEIGHTS),
    "unaligned": tensor_file(
        '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        '"b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}}',
        bytes(range(9)),
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_byte_for_byte(tmp_path: Path, name: str) -> None:
    (tmp_path / "plain").write_bytes(FILES[name])
    # The package reads it, so it is a legal file.
    with safetensors.safe_open(tmp_path / "plain", "np") as file:
        keys, offset_keys, metadata = file.keys(), file.offset_keys(), file.metadata()
    sizes = nz.safetensors.compress_file(tmp_path / "plain", tmp_path / "compressed")
    assert sizes == (len(FILES[name]), (tmp_path / "compressed").stat().st_size)
    assert nz.safetensors.verify_file(tmp_path / "compressed") == sizes[::-1]
    assert (
        nz.safetensors.decompress_file(tmp_path / "compressed", tmp_path / "again") == sizes[::-1]
    )
    assert (tmp_path / "again").read_bytes() == FILES[name]
    with safetensors.safe_open(tmp_path / "compressed", "np") as file:
        assert file.keys() == keys
    data = FILES[name][8 + struct.unpack("<Q", FILES[name][:8])[0] :]
    for path in (tmp_path / "plain", tmp_path / "compressed"):
        with nz.safetensors.safe_open(path, "np") as file:
            assert file.keys() == keys
            if name != "many empty tensors":
                # The package lists those in another order every time.
                assert file.offset_keys() == offset_keys
            assert file.metadata() == metadata
            assert b"".join(bits(x) for x in file.get_tensors().values()) == data


MALFORMED = {
    "empty": b"",
    "short": b"\x10\0\0",
    "text": b"just some text, longer than eight bytes",
    "no header": struct.pack("<Q", 0),
    "header cut": tensor_file(AB, b"")[:-20],
    "header too long": struct.pack("<Q", 2**63) + b"{}",
    "no object": tensor_file("[]", b""),
    "no JSON": tensor_file('{"a"', b""),
    "data cut": FILES["usual"][:-1],
    "data too long": FILES["usual"] + b"\0",
    "hole": tensor_file(one("U8", [3], 3).replace("[0, 3]", "[1, 4]"), bytes(4)),
    "overlap": tensor_file(AB.replace("[400,1000]", "[300,900]"), WEIGHTS[:900]),
    "size": tensor_file(one("F32", [3], 8), bytes(8)),
    "overflow": tensor_file(one("F32", [2**62, 2**62], 0), b""),
    "type": tensor_file(one("F33", [3], 12), bytes(12)),
    "negative": tensor_file('{"x":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}', b"\0"),
    "twice": tensor_file(AB.replace('"b"', '"a"'), WEIGHTS),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(MALFORMED[name])
    with pytest.raises(nz.CorruptDataError):
        nz.safetensors.load_file(tmp_path / "file", framework="np")
    with pytest.raises(nz.CorruptDataError):
        nz.safetensors.decompress_file(tmp_path / "file", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    # Any file at all can be compressed and comes back.
    nz.safetensors.compress_file(tmp_path / "file", tmp_path / "compressed")
    nz.safetensors.decompress_file(tmp_path / "compressed", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == MALFORMED[name]


@pytest.fixture(scope="module")
def small() -> bytes:
    """A small plain file with a float tensor, a repeated one, and metadata."""
    header = (
        '{"__metadata__":{"k":"v"},"a":{"dtype":"BF16","shape":[10,8],"data_offsets":[0,160]},'
        '"b":{"dtype":"BF16","shape":[10,8],"data_offsets":[160,320]},'
        '"c":{"dtype":"I8","shape":[5],"data_offsets":[320,325]}}'
    )
    return tensor_file(header, WEIGHTS[:160] * 2 + b"12345")


def compressed_bytes(plain: bytes, folder: Path) -> bytes:
    (folder / "plain").write_bytes(plain)
    nz.safetensors.compress_file(folder / "plain", folder / "compressed")
    (folder / "plain").unlink()
    return (folder / "compressed").read_bytes()


def everything_fails(path: Path) -> None:
    """Fails unless every way to read a damaged file raises."""
    with pytest.raises(nz.NeuzipError):
        nz.safetensors.load_file(path, framework="np")
    with pytest.raises(nz.NeuzipError):
        nz.safetensors.decompress_file(path, path.with_name("out"))


def test_every_bit_flip(tmp_path: Path, small: bytes) -> None:
    data = compressed_bytes(small, tmp_path)
    path = tmp_path / "compressed"
    # In place: file systems write to the disk at once when a file is truncated and written anew.
    with path.open("r+b", buffering=0) as file:
        for position, byte in enumerate(data):
            for bit in range(8):
                file.seek(position)
                file.write(bytes([byte ^ 1 << bit]))
                everything_fails(path)
            file.seek(position)
            file.write(bytes([byte]))
    assert path.read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["compressed"]


def test_every_truncation(tmp_path: Path, small: bytes) -> None:
    data = compressed_bytes(small, tmp_path)
    path = tmp_path / "compressed"
    for length in reversed(range(len(data))):
        os.truncate(path, length)
        everything_fails(path)
    path.write_bytes(data + b"\0")
    everything_fails(path)
    assert [path.name for path in tmp_path.iterdir()] == ["compressed"]


def test_streams_that_were_exchanged(tmp_path: Path) -> None:
    # Both streams are intact and of the same type and length, but under each other's names.
    tensors = {"a": torch.full((300,), 1.0), "b": torch.full((300,), 2.0)}
    nz.safetensors.save_file(tensors, tmp_path / "file")
    data = (tmp_path / "file").read_bytes()
    with safetensors.safe_open(tmp_path / "file", "np") as file:
        a, b = file.get_tensor("a").tobytes(), file.get_tensor("b").tobytes()
    assert len(a) == len(b)
    at, bt = data.index(a), data.index(b)
    other = bytearray(data)
    other[at : at + len(a)], other[bt : bt + len(b)] = b, a
    (tmp_path / "file").write_bytes(other)
    found = {}
    try:
        found = nz.safetensors.load_file(tmp_path / "file")
    except nz.NeuzipError:
        return
    # The format does not bind a stream to its name: what is read must at least be what is there.
    assert found["a"].eq(2).all()


def test_a_slice_reads_only_its_chunks(tmp_path: Path) -> None:
    x = torch_tensor("bfloat16", (1000, 1000), contents("weights", "bfloat16", 1_000_000, 5))
    nz.safetensors.save_file({"x": x}, tmp_path / "file")
    data = bytearray((tmp_path / "file").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "file").write_bytes(data)
    with nz.safetensors.safe_open(tmp_path / "file", "pt") as file:
        part = file.get_slice("x")
        assert torch.equal(part[:200], x[:200])
        assert torch.equal(part[-200:], x[-200:])
        assert torch.equal(part[::999], x[::999])
        with pytest.raises(nz.CorruptDataError, match="x"):
            part[:]
        with pytest.raises(nz.CorruptDataError, match="x"):
            file.get_tensor("x")


# -- files on disk ------------------------------------------------------------------------------


def test_existing_files_are_kept(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(FILES["usual"])
    (tmp_path / "there").write_text("kept")
    with pytest.raises(FileExistsError):
        nz.safetensors.compress_file(tmp_path / "plain", tmp_path / "there")
    assert (tmp_path / "there").read_text() == "kept"
    nz.safetensors.compress_file(tmp_path / "plain", tmp_path / "there", overwrite=True)
    (tmp_path / "target").write_text("kept")
    with pytest.raises(FileExistsError):
        nz.safetensors.decompress_file(tmp_path / "there", tmp_path / "target")
    assert (tmp_path / "target").read_text() == "kept"
    nz.safetensors.decompress_file(tmp_path / "there", tmp_path / "target", overwrite=True)
    assert (tmp_path / "target").read_bytes() == FILES["usual"]


def test_wrong_kinds_of_files(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(FILES["usual"])
    nz.safetensors.compress_file(tmp_path / "plain", tmp_path / "compressed")
    with pytest.raises(ValueError, match="already compressed"):
        nz.safetensors.compress_file(tmp_path / "compressed", tmp_path / "twice")
    with pytest.raises(nz.CorruptDataError):
        nz.safetensors.decompress_file(tmp_path / "plain", tmp_path / "out")
    with pytest.raises(nz.CorruptDataError):
        nz.safetensors.verify_file(tmp_path / "plain")
    for action in (nz.safetensors.compress_file, nz.safetensors.decompress_file):
        with pytest.raises(FileNotFoundError):
            action(tmp_path / "missing", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compressed", "plain"]


def test_file_arguments(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(FILES["usual"])
    compress_file = nz.safetensors.compress_file
    with pytest.raises(ValueError, match="level"):
        compress_file(tmp_path / "plain", tmp_path / "out", level="most")
    with pytest.raises(ValueError, match="threads"):
        compress_file(tmp_path / "plain", tmp_path / "out", threads=-1)
    compress_file(str(tmp_path / "plain"), str(tmp_path / "out"), level="max", threads=1)
    with pytest.raises(nz.OutputTooLargeError):
        nz.safetensors.decompress_file(tmp_path / "out", tmp_path / "x", max_output_size=1000)
    assert not (tmp_path / "x").exists()
    limit = len(FILES["usual"])
    nz.safetensors.decompress_file(tmp_path / "out", tmp_path / "x", max_output_size=limit)


def test_progress(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal(3_000_000).astype(np.float32)
    safetensors.numpy.save_file({"x": x, "y": x[:100_000]}, tmp_path / "plain")
    steps: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        steps.append((done, total))

    for run in (
        lambda: nz.safetensors.compress_file(
            tmp_path / "plain", tmp_path / "compressed", progress=progress
        ),
        lambda: nz.safetensors.verify_file(tmp_path / "compressed", progress=progress),
        lambda: nz.safetensors.decompress_file(
            tmp_path / "compressed", tmp_path / "again", progress=progress
        ),
    ):
        steps.clear()
        run()
        assert len(steps) > 1
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1]


def test_an_exception_in_progress_stops_everything(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(FILES["usual"])
    nz.safetensors.compress_file(tmp_path / "plain", tmp_path / "compressed")

    class Stop(BaseException):
        pass

    def progress(done: int, total: int) -> None:
        raise Stop

    for action, source in (
        (nz.safetensors.compress_file, "plain"),
        (nz.safetensors.decompress_file, "compressed"),
    ):
        with pytest.raises(Stop):
            action(tmp_path / source, tmp_path / "out", progress=progress)
    with pytest.raises(Stop):
        nz.safetensors.verify_file(tmp_path / "compressed", progress=progress)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compressed", "plain"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(FILES["usual"])
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o500)
    with pytest.raises(PermissionError):
        nz.safetensors.compress_file(tmp_path / "plain", folder / "out")
