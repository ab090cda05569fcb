"""What several files of a directory have in common: stored once, restored byte for byte."""

import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import neuzip_rs as nz
from neuzip_rs import _native
from neuzip_rs._errors import BaseMismatchError, CorruptDataError
from neuzip_rs.directory import compress_directory, decompress_directory, verify_directory
from neuzip_rs.directory.content import original_pieces
from tests.python import second_decoder as page
from tests.python import second_encoder as writer
from tests.python import second_files
from tests.python.command import files_below, flipped, neuzip, objects
from tests.python.test_second_files import compressed_file, listed, nz_file

ALONE = 3000
"""More than everything around the tensors takes in these tests."""


def floats(*shape: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * 0.02).astype(np.float32)


def save(path: Path, tensors: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if all(isinstance(tensor, np.ndarray) for tensor in tensors.values()):
        safetensors.numpy.save_file(tensors, path)
    else:
        safetensors.torch.save_file(tensors, path)


def roundtrip(folder: Path) -> Path:
    """Compresses and restores a directory; returns the compressed one."""
    packed = folder.with_name(folder.name + "-nz")
    compress_directory(folder, packed)
    verify_directory(packed, original=folder)
    back = folder.with_name(folder.name + "-back")
    decompress_directory(packed, back)
    assert files_below(back) == files_below(folder)
    for path in packed.rglob("*"):
        if path.is_file() and _native.content_kind(str(path)).startswith("neuzip"):
            below = {
                file.relative_to(path.parent).as_posix(): file.read_bytes()
                for file in path.parent.rglob("*")
                if file.is_file()
            }
            original = (folder / path.relative_to(packed)).read_bytes()
            assert second_files.restore(path.read_bytes(), below) == original
    return packed


def test_shards_with_the_same_tensor(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shared, tied = floats(300, 40), floats(300, 40, seed=1)
    save(folder / "a.safetensors", {"x": shared, "own": floats(300, 40, seed=2)})
    save(folder / "b.safetensors", {"y": shared, "t1": tied, "t2": tied, "few": floats(9)})
    save(folder / "c.safetensors", {"z": shared, "t": tied, "constant": np.ones(4000)})
    packed = roundtrip(folder)
    assert (packed / "c.safetensors").stat().st_size < ALONE
    assert _native.references(str(packed / "b.safetensors")) == ["a.safetensors"]
    assert _native.references(str(packed / "c.safetensors")) == ["a.safetensors", "b.safetensors"]
    loaded = nz.safetensors.load_file(packed / "c.safetensors", framework="numpy")
    np.testing.assert_array_equal(loaded["t"], tied)
    with nz.safetensors.safe_open(packed / "c.safetensors", "numpy") as file:
        np.testing.assert_array_equal(file.get_slice("z")[100:120, 3:9], shared[100:120, 3:9])
    shown = objects(neuzip("info", "--json", packed / "c.safetensors"))[0]["tensors"]
    why = {tensor["name"]: tensor["why"] for tensor in shown}
    assert why["z"] == ["the same as x of a.safetensors"]


def test_folders(tmp_path: Path) -> None:
    """References lead downwards or stay: a folder is complete when it is moved alone."""
    folder, shared = tmp_path / "m", floats(400, 30)
    save(folder / "model.safetensors", {"x": shared})
    save(folder / "deep/er/one.safetensors", {"x": shared})
    save(folder / "deep/two.safetensors", {"x": shared})
    save(folder / "else/three.safetensors", {"x": shared})
    packed = roundtrip(folder)
    found = {
        file.relative_to(packed).as_posix(): _native.references(str(file))
        for file in packed.rglob("*.safetensors")
    }
    assert found == {
        "model.safetensors": ["deep/er/one.safetensors"],
        "deep/two.safetensors": ["er/one.safetensors"],
        "deep/er/one.safetensors": [],
        "else/three.safetensors": [],
    }
    shutil.move(packed / "deep", tmp_path / "moved")
    neuzip("verify", tmp_path / "moved/two.safetensors")


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "truncated"])
def test_casts(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "m"
    wide = {"w": floats(200, 70), "v": floats(64, 9, seed=4), "ids": np.arange(900)}
    wide["w"][0, :4] = [np.inf, -np.nan, 1e-42, 65520.0]
    save(folder / "model.safetensors", wide)
    narrow: dict[str, torch.Tensor] = {}
    for name, array in wide.items():
        tensor = torch.from_numpy(array.copy())
        if kind == "truncated" and tensor.is_floating_point():
            narrow[name] = tensor.view(torch.int16)[..., 1::2].contiguous().view(torch.bfloat16)
        elif tensor.is_floating_point():
            narrow[name] = tensor.to(getattr(torch, kind))
        else:
            narrow[name] = tensor
    # The exact difference, where somebody changed a few elements.
    narrow["w"].view(torch.int16)[7, ::9] += 1
    narrow["tied"] = narrow["w"].clone()
    save(folder / "model.narrow.safetensors", narrow)
    save(folder / "other.safetensors", {"w": floats(200, 70, seed=9).astype(ml_dtypes.bfloat16)})
    packed = roundtrip(folder)
    assert (packed / "model.narrow.safetensors").stat().st_size < ALONE
    assert (packed / "other.safetensors").stat().st_size > 15_000
    shown = objects(neuzip("info", "--json", packed / "model.narrow.safetensors"))[0]["tensors"]
    bodies = {tensor["name"]: tensor["body"] for tensor in shown}
    assert bodies == dict.fromkeys(("w", "v", "ids", "tied"), "external")
    with nz.safetensors.safe_open(packed / "model.narrow.safetensors", "pt") as file:
        part = file.get_slice("w")[5:9, 1:-1]
    assert torch.equal(part.view(torch.int16), narrow["w"][5:9, 1:-1].view(torch.int16))
    estimated = objects(neuzip("estimate", "--json", folder))[0]
    stored = sum(path.stat().st_size for path in packed.glob("*.safetensors"))
    assert abs(estimated["compressed_bytes"] - stored) < 200


def test_checkpoint_beside_safetensors(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    tensors = {f"layer.{n}": torch.from_numpy(floats(130, 50, seed=n)) for n in range(6)}
    save(folder / "model.safetensors", tensors)
    torch.save(tensors, folder / "pytorch_model.bin")
    torch.save({"x": torch.randn(100, 100)}, folder / "unrelated.bin")
    packed = roundtrip(folder)
    stored = packed / "pytorch_model.bin"
    assert stored.stat().st_size < 6000
    assert _native.content_kind(str(stored)) == "neuzip-file"
    unrelated = "unrelated.bin"
    assert (packed / unrelated).read_bytes() == (folder / unrelated).read_bytes()
    out = tmp_path / "out.bin"
    neuzip("decompress", stored, "-o", out)
    assert out.read_bytes() == (folder / "pytorch_model.bin").read_bytes()
    piped = neuzip("decompress", stored, "-o", "-")
    assert piped.stdout == out.read_bytes()
    # Alone it says what is missing, before anything is written.
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(stored, alone)
    failed = neuzip("decompress", alone / "pytorch_model.bin", "-o", alone / "out", expect=1)
    assert b"model.safetensors" in failed.stderr
    assert neuzip("decompress", alone / "pytorch_model.bin", "-o", "-", expect=1).stdout == b""
    neuzip("decompress", "-", "-o", "-", stdin=stored.read_bytes(), expect=1)
    assert [path.name for path in alone.iterdir()] == ["pytorch_model.bin"]


def test_storages_larger_than_frames(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    big = {"big": torch.from_numpy(floats(4200, 1100))}
    save(folder / "model.safetensors", big)
    torch.save(big, folder / "model.bin")
    packed = tmp_path / "m-nz"
    compress_directory(folder, packed)
    assert (packed / "model.bin").stat().st_size < ALONE
    out = tmp_path / "out"
    _native.decompress_file(str(packed / "model.bin"), str(out))
    assert out.read_bytes() == (folder / "model.bin").read_bytes()
    pieces = b"".join(original_pieces(packed / "model.bin"))
    assert pieces == out.read_bytes()


def test_odd_archives_are_copied(tmp_path: Path) -> None:
    folder, data = tmp_path / "m", floats(500, 20)
    save(folder / "model.safetensors", {"x": data})
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data/0", data.tobytes())
        file.writestr("small", b"s")
        file.writestr("packed", b"z" * 900, compress_type=zipfile.ZIP_DEFLATED)
    whole = archive.getvalue()
    (folder / "good.zip").write_bytes(whole)
    (folder / "cut.zip").write_bytes(whole[:-7])
    (folder / "not.zip").write_bytes(b"PK\x03\x04" + bytes(90))
    rng = np.random.default_rng(0)
    for number in range(20):
        broken = bytearray(whole)
        for place in rng.integers(len(whole) - 400, len(whole), 3):
            broken[place] = rng.integers(256)
        (folder / f"broken{number}.zip").write_bytes(bytes(broken))
    packed = roundtrip(folder)
    assert (packed / "good.zip").stat().st_size < ALONE


def test_rm_keeps_what_others_refer_to(tmp_path: Path) -> None:
    folder, shared = tmp_path / "m", floats(400, 30)
    save(folder / "model.safetensors", {"x": shared})
    save(folder / "deep/base.safetensors", {"x": shared})
    original = files_below(folder)
    neuzip("compress", "--rm", folder)
    packed = tmp_path / "m-nz"
    assert not folder.exists()
    out = tmp_path / "out"
    refused = neuzip("decompress", "--rm", packed / "deep/base.safetensors", "-o", out, expect=1)
    assert b"refers to it" in refused.stderr
    assert not out.exists()
    neuzip("decompress", "--rm", packed / "model.safetensors", "-o", out)
    neuzip("decompress", "--rm", packed / "deep/base.safetensors", "-o", tmp_path / "base")
    assert out.read_bytes() == original["model.safetensors"]


def test_changed_and_missing_bases(tmp_path: Path) -> None:
    folder, shared = tmp_path / "m", floats(400, 30)
    save(folder / "a.safetensors", {"x": shared})
    save(folder / "b.safetensors", {"x": shared})
    packed = roundtrip(folder)
    base, user = packed / "a.safetensors", packed / "b.safetensors"
    good = base.read_bytes()
    for content in (b"", good[:-1], flipped(good, len(good) - 40)):
        base.write_bytes(content)
        with pytest.raises((BaseMismatchError, CorruptDataError)):
            _native.verify_file(str(user))
        with pytest.raises(CorruptDataError, match=r"b\.safetensors"):
            verify_directory(packed)
    # A plain file in its place will do, and another tensor of that name will not.
    base.unlink()
    shutil.copy(folder / "a.safetensors", base)
    _native.verify_file(str(user))
    base.unlink()
    save(base, {"x": floats(400, 30, seed=8)})
    with pytest.raises(BaseMismatchError, match="not what it was"):
        _native.verify_file(str(user))
    base.unlink()
    with pytest.raises(BaseMismatchError, match=r"a\.safetensors"):
        _native.decompress_file(str(user), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(BaseMismatchError):
        nz.safetensors.load_file(user)


DATA = floats(30, 20).tobytes()


def external(**changes: Any) -> bytes:
    """A stream of 600 bfloat16 or other elements that refers to `other` of `base`."""
    settings: dict[str, Any] = {"dtype": 11, "shape": (30, 20), "original": DATA, **changes}
    fields = writer.external_fields(
        settings.pop("original"),
        settings.pop("name", "other"),
        settings.pop("file", "base"),
        **{
            key: settings.pop(key)
            for key in ("derivation", "start", "exceptions")
            if key in settings
        },
    )
    return writer.encode_body(
        page.EXTERNAL_BODY,
        fields,
        settings["shape"],
        dtype=settings["dtype"],
        features=page.EXTERNAL,
    )


def holder(stream: bytes, dtype: str = "F32", shape: tuple[int, ...] = (30, 20)) -> bytes:
    size = {"F32": 4, "BF16": 2, "U8": 1}[dtype] * int(np.prod(shape))
    header = json.dumps(listed({"other": (dtype, [*shape], size)})).encode()
    return compressed_file(header, {"other": stream})


BASE = holder(bytes(_native.compress(DATA, "float32", (30, 20))))


@pytest.mark.parametrize(
    ("stream", "base"),
    [
        (external(name="another"), BASE),
        (external(file="missing"), BASE),
        (external(original=b"?"), BASE),
        (external(start=4), BASE),
        (external(), b""),
        (external(), holder(external())),
        (external(), holder(external(file="user"))),
        (external(derivation=page.ROUNDED, dtype=10, shape=(30, 10)), BASE),
    ],
)
def test_references_to_nothing(tmp_path: Path, stream: bytes, base: bytes) -> None:
    """References in circles, to references, and to what is not there or not the same."""
    # The features take two bytes.
    dtype, shape = ("BF16", (30, 10)) if stream[7] == 10 else ("F32", (30, 20))
    user = holder(stream, dtype, shape)
    (tmp_path / "user").write_bytes(user)
    (tmp_path / "base").write_bytes(base)
    with pytest.raises(BaseMismatchError):
        _native.verify_file(str(tmp_path / "user"))
    with pytest.raises(ValueError, match=r".*"):
        second_files.restore(user, {"base": base, "user": user})


@pytest.mark.parametrize(
    "file", ["", "..", "../base", "/base", "a/../../base", "./base", "a//base", "a\\base", "c:base"]
)
def test_files_outside_of_the_folder(tmp_path: Path, file: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "base").write_bytes(BASE)
    stream = external(file=file)
    with pytest.raises(CorruptDataError, match="folder"):
        nz.CompressedTensor.from_bytes(stream)
    with pytest.raises(page.CorruptError, match="folder"):
        page.parse(stream)
    (inner / "user").write_bytes(holder(stream))
    with pytest.raises(CorruptDataError):
        _native.verify_file(str(inner / "user"))


def test_ranges_and_what_is_unknown(tmp_path: Path) -> None:
    part = external(original=DATA[40:90], dtype=1, shape=(50,), start=40)
    user = nz_file([part, part])
    (tmp_path / "base").write_bytes(BASE)
    (tmp_path / "user").write_bytes(user)
    assert b"".join(original_pieces(tmp_path / "user")) == 2 * DATA[40:90]
    assert second_files.restore(user, {"base": BASE}) == 2 * DATA[40:90]
    with pytest.raises(nz.UnsupportedVersionError):
        nz.CompressedTensor.from_bytes(external(derivation=3))
    with pytest.raises(page.UnsupportedError):
        page.parse(external(derivation=3))
    with pytest.raises(BaseMismatchError, match="base"):
        nz.decompress(part)


@given(st.dictionaries(st.integers(0, 599), st.binary(min_size=2, max_size=2)), st.data())
@settings(max_examples=60, deadline=None)
def test_every_bit_of_a_reference_counts(
    tmp_path_factory: pytest.TempPathFactory, exceptions: dict[int, bytes], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("bits")
    narrow = bytearray(np.frombuffer(DATA, np.float32).astype(ml_dtypes.bfloat16).tobytes())
    for index, element in exceptions.items():
        narrow[2 * index : 2 * index + 2] = element
    stream = external(
        original=bytes(narrow), derivation=page.ROUNDED, dtype=10, exceptions=exceptions
    )
    (folder / "base").write_bytes(BASE)
    (folder / "user").write_bytes(holder(stream, "BF16"))
    with nz.safetensors.safe_open(folder / "user", "numpy") as file:
        assert file.get_tensor("other").tobytes() == bytes(narrow)
        first = data.draw(st.integers(0, 28))
        rows = file.get_slice("other")[first : first + 2]
        assert rows.tobytes() == bytes(narrow[40 * first : 40 * first + 80])
    assert second_files.restore((folder / "user").read_bytes(), {"base": BASE})[-1200:] == narrow
    place = data.draw(st.integers(0, 8 * len(stream) - 1))
    damaged = bytearray(stream)
    damaged[place // 8] ^= 1 << place % 8
    with pytest.raises((CorruptDataError, nz.UnsupportedVersionError)):
        nz.CompressedTensor.from_bytes(bytes(damaged))


@given(st.lists(st.integers(0, 2**32 - 1), min_size=600, max_size=600), st.booleans())
@settings(max_examples=30, deadline=None)
def test_rounding_agrees_with_the_second_reader(
    tmp_path_factory: pytest.TempPathFactory, bits: list[int], half: bool
) -> None:
    folder = tmp_path_factory.mktemp("rounding")
    wide = np.array(bits, np.uint32)
    expected = b"".join(
        second_files.narrow(x, 5 if half else 8).to_bytes(2, "little") for x in bits
    )
    stream = external(original=expected, derivation=page.ROUNDED, dtype=9 if half else 10)
    safetensors.numpy.save_file({"other": wide.view(np.float32).reshape(30, 20)}, folder / "base")
    (folder / "user").write_bytes(holder(stream, "BF16"))
    if half:
        header = json.dumps(listed({"other": ("F16", [30, 20], 1200)})).encode()
        (folder / "user").write_bytes(compressed_file(header, {"other": stream}))
    _native.verify_file(str(folder / "user"))


def test_interrupted_runs_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shared = floats(400, 300)
    save(folder / "a.safetensors", {"x": shared})
    save(folder / "b.safetensors", {"x": shared, "y": floats(300, 100)})

    def stop(done: int, _total: int) -> None:
        if done > shared.nbytes + 100:
            raise KeyboardInterrupt

    packed = tmp_path / "m-nz"
    with pytest.raises(KeyboardInterrupt):
        compress_directory(folder, packed, progress=stop)
    # What the finished file was made from is another one now: nothing may refer to the old one.
    (folder / "a.safetensors").unlink()
    save(folder / "a.safetensors", {"x": floats(400, 300, seed=5)})
    compress_directory(folder, packed)
    decompress_directory(packed, tmp_path / "back")
    assert files_below(tmp_path / "back") == files_below(folder)
    assert _native.references(str(packed / "b.safetensors")) == []
