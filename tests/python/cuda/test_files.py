"""Whole files on their way to a device, on the emulated device: what `load_file` runs on a GPU."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file as save_plain

import neuzip_rs as nz
from neuzip_rs import _native
from neuzip_rs.cuda import _files, _pipeline
from neuzip_rs.cuda._files import Place, Wanted
from neuzip_rs.directory.pack import compress_directory
from tests.python.cuda.emulated import EmulatedDevice
from tests.python.cuda.emulation import needs_compiler
from tests.python.samples import contents, torch_tensor

pytestmark = needs_compiler


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pipeline, "PIECE_BYTES", 7000)
    monkeypatch.setattr(_pipeline, "BATCH_BYTES", 50_000)
    monkeypatch.setattr(_pipeline, "_PART_BYTES", 900)


def weights(dtype: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    count = int(torch.Size(shape).numel())
    return torch_tensor(dtype, shape, contents("weights", dtype, count, seed))


def model() -> dict[str, torch.Tensor]:
    """Matrices with streams of their own, and small tensors that may share one."""
    tensors = {f"layers.{i}.weight": weights("bfloat16", (300, 120 + 30 * i), i) for i in range(6)}
    tensors["norm"] = weights("float32", (99,), 7)
    tensors["scalar"] = torch.tensor(3.5)
    tensors["nothing"] = torch.zeros(0, 4)
    tensors["ids"] = torch.arange(3000)
    tensors["mask"] = torch.zeros(5000, dtype=torch.bool)
    tensors["tied"] = tensors["layers.3.weight"].clone()
    tensors["short"] = tensors["norm"][:70].clone()
    tensors["short too"] = tensors["short"].clone()
    return tensors


def places_of(path: Path) -> list[Place]:
    return [Place(*place) for place in _native.SafetensorsFile(str(path)).places()]


def read(
    path: Path, names: list[str] | None = None, base: Path | None = None, threads: int = 2
) -> tuple[dict[str, torch.Tensor], EmulatedDevice]:
    """What the device has in the end."""
    device = EmulatedDevice(lazy=True)
    file = _native.SafetensorsFile(str(path), base=None if base is None else str(base))
    with nz.safetensors.safe_open(path, "pt", base=base) as opened:
        expected = {name: opened.get_slice(name) for name in names or opened.offset_keys()}
        outs = {
            name: torch.zeros(part.get_shape(), dtype=opened.get_tensor(name).dtype)
            for name, part in expected.items()
        }
    wanted = [Wanted(name, x.data_ptr(), x.nbytes) for name, x in outs.items()]
    _files.load(device, file, str(path), wanted, verify=True, threads=threads)
    return outs, device


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, x in found.items():
        assert torch.equal(x.view(-1).view(torch.uint8), expected[name].view(-1).view(torch.uint8))


@pytest.mark.parametrize("threads", [1, 4])
def test_compressed_files(tmp_path: Path, threads: int) -> None:
    path = tmp_path / "model.safetensors"
    nz.safetensors.save_file(model(), path)
    forms = {place.name: place.form for place in places_of(path)}
    assert "repeat" in {forms["tied"], forms["layers.3.weight"]}
    assert "elsewhere" not in forms.values()
    found, device = read(path, threads=threads)
    assert_same(found, model())
    # Compressed bytes, and plans.
    assert device.uploaded < sum(x.nbytes for x in model().values())


def test_plain_files(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    nz.safetensors.save_file(model(), tmp_path / "compressed")
    nz.safetensors.decompress_file(tmp_path / "compressed", path)
    found, device = read(path)
    assert_same(found, model())
    assert device.launches == 0


def test_some_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    nz.safetensors.save_file(model(), path)
    for names in (["tied"], ["layers.3.weight"], ["short too", "norm"], ["scalar"], ["nothing"]):
        found, _ = read(path, names)
        assert_same(found, {name: model()[name] for name in names})


def small_tensors() -> dict[str, torch.Tensor]:
    """Tensors that share streams: of one kind and of others, of odd sizes, some of them repeats."""
    tensors = {f"norms.{i}": weights("bfloat16", (500 + 3 * i,), i) for i in range(150)}
    tensors |= {f"biases.{i}": weights("float32", (64 + i,), i) for i in range(9)}
    tensors |= {f"ids.{i}": torch.arange(i, 3 * i) for i in range(1, 9)}
    tensors |= {f"bytes.{i}": torch.arange(i + 1, dtype=torch.uint8) for i in range(20)}
    return tensors | {"copy": tensors["norms.77"].clone(), "other": tensors["norms.0"].clone()}


def test_bundles(tmp_path: Path) -> None:
    """Streams that small tensors share come to the device once, and none is decoded by the host."""
    path = tmp_path / "model.safetensors"
    expected = small_tensors()
    nz.safetensors.save_file(expected, path)
    places = {place.name: place for place in places_of(path)}
    forms = [place.form for place in places.values()]
    assert forms.count("bundled") > 150
    assert forms.count("elsewhere") == 0
    repeats = [place for place in places.values() if place.form == "repeat"]
    assert any(place.total for place in repeats)
    found, device = read(path, threads=3)
    assert_same(found, expected)
    stored = sum(place.nbytes for place in places.values())
    holders = {place.holder for place in places.values()}
    # Plans are what else is copied: one for each stream, and a chunk for each part of one.
    assert device.uploaded < stored + 5000 * len(holders) + 64 * len(places)
    for names in (["norms.149"], ["copy"], ["bytes.3", "norms.1"], ["other", "norms.0"]):
        found, _ = read(path, names)
        assert_same(found, {name: expected[name] for name in names})


@pytest.mark.parametrize("wanted", ["norms.3", "norms.0", "copy"])
def test_damage_of_a_bundle(tmp_path: Path, wanted: str) -> None:
    path = tmp_path / "model.safetensors"
    nz.safetensors.save_file(small_tensors(), path)
    places = places_of(path)
    (place,) = [place for place in places if place.name == wanted]
    owner = places[place.holder]
    content = bytearray(path.read_bytes())
    content[owner.offset + owner.nbytes - 40] ^= 1
    path.write_bytes(content)
    with pytest.raises(nz.CorruptDataError, match=owner.name):
        read(path, [wanted])


def near(tensors: dict[str, torch.Tensor], factor: float) -> dict[str, torch.Tensor]:
    """A later step of the same training."""
    return {
        name: (x.float() * factor).to(x.dtype) if x.is_floating_point() else x
        for name, x in tensors.items()
    }


@pytest.fixture
def chain(tmp_path: Path) -> list[tuple[Path, dict[str, torch.Tensor]]]:
    """Files each of which is next to the one before."""
    steps = [(tmp_path / "0.safetensors", model())]
    nz.safetensors.save_file(steps[0][1], steps[0][0])
    for number in (1, 2):
        path, tensors = tmp_path / f"{number}.safetensors", near(steps[-1][1], 1 + 0.01 * number)
        nz.safetensors.save_file(tensors, path, base=steps[-1][0])
        steps.append((path, tensors))
    return steps


def test_files_next_to_a_base(
    chain: list[tuple[Path, dict[str, torch.Tensor]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deltas, deltas of deltas and unchanged tensors are decoded on the device."""
    monkeypatch.setattr(_files, "BASE_BYTES", 150_000)
    decoded = []

    class Counted(_files._Decoded):
        def __init__(self, name: str, nbytes: int, decode: _files.Fallback) -> None:
            decoded.append((name, nbytes))
            super().__init__(name, nbytes, decode)

    monkeypatch.setattr(_files, "_Decoded", Counted)
    for number, (path, expected) in enumerate(chain[1:]):
        places = {place.name: place for place in places_of(path)}
        file = _native.SafetensorsFile(str(path))
        bodies = [(file.info(name) or {})["body"] for name in places]
        assert bodies.count("delta") >= 5
        assert "base" in bodies
        found, device = read(path, threads=4)
        assert_same(found, expected)
        # Streams of this file, and of those that it is next to.
        assert device.uploaded < (number + 2) * sum(x.nbytes for x in expected.values())
    # What is short, and repeats of deltas.
    assert {name for name, nbytes in decoded if nbytes > 300} <= {"tied", "layers.3.weight"}


def test_bases_that_do_not_do(
    chain: list[tuple[Path, dict[str, torch.Tensor]]], tmp_path: Path
) -> None:
    (base, tensors), (path, _), _ = chain
    name = "layers.2.weight"
    kept = base.read_bytes()
    # Others in its place, of the same shapes.
    nz.safetensors.save_file({k: x.flip(0) for k, x in tensors.items()}, base)
    with pytest.raises(nz.BaseMismatchError, match=name):
        read(path, [name], base=base)
    base.write_bytes(kept)
    (place,) = [place for place in places_of(base) if place.name == name]
    content = bytearray(kept)
    content[place.offset + place.nbytes - 40] ^= 1
    base.write_bytes(content)
    with pytest.raises(nz.BaseMismatchError, match=f"damaged.*{name}"):
        read(path, [name], base=base)
    # A directory of several files: the host decodes.
    base.write_bytes(kept)
    folder = tmp_path / "folder"
    folder.mkdir()
    base.rename(folder / "a.safetensors")
    nz.safetensors.save_file({"another": torch.ones(5)}, folder / "b.safetensors")
    found, _ = read(path, [name], base=folder)
    assert_same(found, {name: chain[1][1][name]})


def test_references_to_other_files(tmp_path: Path) -> None:
    """The same weights in several files of a folder, as they are and rounded."""
    folder, packed = tmp_path / "model", tmp_path / "packed"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    wide = {f"layers.{i}.weight": weights("float32", (200, 99 + i), i) for i in range(4)}
    wide["layers.5.weight"] = weights("bfloat16", (70, 300), 7)
    narrow = {name: x.bfloat16() for name, x in wide.items()}
    save_plain(wide, folder / "model.safetensors")
    save_plain(narrow, folder / "model.bf16.safetensors")
    compress_directory(folder, packed)
    for name, expected in (("model", wide), ("model.bf16", narrow)):
        path = packed / f"{name}.safetensors"
        forms = {place.name: place.form for place in places_of(path)}
        found, _ = read(path)
        assert_same(found, expected)
        if expected is narrow:
            assert list(forms.values()).count("elsewhere") == len(forms)


def test_damage(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    nz.safetensors.save_file(model(), path)
    name = "layers.2.weight"
    (place,) = [place for place in places_of(path) if place.name == name]
    assert place.form == "stream"
    content = bytearray(path.read_bytes())
    content[place.offset + place.nbytes - 40] ^= 1
    path.write_bytes(content)
    device = EmulatedDevice()
    out = torch.zeros(200_000, dtype=torch.uint8)
    file = _native.SafetensorsFile(str(path))
    nbytes = file.nbytes(name)
    with pytest.raises(nz.CorruptDataError, match=name):
        _files.load(
            device,
            file,
            str(path),
            [Wanted(name, out.data_ptr(), nbytes)],
            verify=True,
            threads=None,
        )


def test_a_repeat_of_another_tensor(tmp_path: Path) -> None:
    """The hash in a repeat is compared on the device."""
    path, other = tmp_path / "model.safetensors", tmp_path / "other.safetensors"
    tensors = {name: model()[name] for name in ("layers.3.weight", "tied")}
    nz.safetensors.save_file(tensors, path)
    nz.safetensors.save_file({name: x.flip(0) for name, x in tensors.items()}, other)
    places = [places_of(p) for p in (path, other)]
    (repeat,) = [place.name for place in places[0] if place.form == "repeat"]
    content = bytearray(path.read_bytes())
    streams = [{place.name: (place.offset, place.nbytes) for place in of} for of in places]
    (start, size), (start_other, size_other) = (of[repeat] for of in streams)
    assert size == size_other
    content[start : start + size] = other.read_bytes()[start_other : start_other + size]
    path.write_bytes(content)
    out = torch.zeros(tensors[repeat].shape, dtype=torch.bfloat16)
    with pytest.raises(nz.BaseMismatchError, match=repeat):
        _files.load(
            EmulatedDevice(),
            _native.SafetensorsFile(str(path)),
            str(path),
            [Wanted(repeat, out.data_ptr(), out.nbytes)],
            verify=True,
            threads=None,
        )
