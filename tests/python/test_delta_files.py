"""Files and directories next to a base, and chains of checkpoints: API and command."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file as load_plain
from safetensors.torch import save_file as save_plain

import neuzip_rs as nz
from neuzip_rs import _native
from neuzip_rs._bases import chains, in_order
from tests.python import second_files
from tests.python.command import files_below, flipped, neuzip, objects
from tests.python.second_decoder import parse
from tests.python.second_delta import decode_delta

Tensors = dict[str, torch.Tensor]


def start(seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.05).to(dtype)

    weight = normal(300, 200, dtype=torch.bfloat16)
    return {
        "layer.weight": weight,
        "layer.tied": weight.clone(),
        "layer.frozen": normal(100, 100, dtype=torch.float32),
        "layer.bias": normal(50, dtype=torch.float32),
        "adam.m": normal(300, 200, dtype=torch.float32),
        "ids": torch.arange(9000),
    }


def step(tensors: Tensors, seed: int) -> Tensors:
    """The tensors after a step of training."""
    generator = torch.Generator().manual_seed(seed)
    after = dict(tensors)
    noise = torch.randn((300, 200), generator=generator) * 2e-4
    after["layer.weight"] = (tensors["layer.weight"].float() + noise).bfloat16()
    after["layer.tied"] = after["layer.weight"].clone()
    after["layer.bias"] = tensors["layer.bias"] * 1.001
    after["adam.m"] = tensors["adam.m"] * 0.9 + noise
    return after


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A model and what it became."""
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    tensors = start()
    save_plain(tensors, old)
    save_plain(step(tensors, 1), new, metadata={"format": "pt"})
    return old, new


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", ["plain", "compressed", "directory", "packed directory"])
def test_files_next_to_a_base(pair: tuple[Path, Path], kind: str) -> None:
    old, new = pair
    folder = new.parent
    base = old
    if kind == "compressed":
        base = folder / "old.nz.safetensors"
        nz.safetensors.compress_file(old, base)
    elif kind != "plain":
        base = folder / "old"
        base.mkdir()
        tensors = load_plain(old)
        save_plain({k: v for k, v in tensors.items() if "layer" in k}, base / "a.safetensors")
        save_plain({k: v for k, v in tensors.items() if "layer" not in k}, base / "b.safetensors")
        if kind == "packed directory":
            neuzip("compress", "-q", base, "--rm")
            base = folder / "old-nz"
    target = folder / "new.nz.safetensors"
    original, compressed = nz.safetensors.compress_file(new, target, base=base)
    alone = nz.safetensors.compress_file(new, folder / "alone.nz.safetensors")[1]
    assert original == new.stat().st_size
    assert compressed < 0.75 * alone
    back = folder / "back.safetensors"
    for named in (base, None):
        nz.safetensors.decompress_file(target, back, overwrite=True, base=named)
        assert back.read_bytes() == new.read_bytes()
        nz.safetensors.verify_file(target, base=named)
        assert same(nz.safetensors.load_file(target, base=named), load_plain(new))
        with nz.safetensors.safe_open(target, "pt", base=named) as file:
            rows = file.get_slice("layer.weight")[17:40]
            assert torch.equal(rows, load_plain(new)["layer.weight"][17:40])
            assert file.metadata() == {"format": "pt"}
    # The same tensors give the same identity, however they are stored.
    with_plain = folder / "with_plain.nz.safetensors"
    nz.safetensors.compress_file(new, with_plain, base=old)
    identities = [_native.SafetensorsFile(str(path)).base for path in (target, with_plain)]
    assert identities[0] is not None
    assert identities[1] is not None
    assert identities[0].partition(" ")[0] == identities[1].partition(" ")[0]
    assert identities[0].partition(" ")[2] == base.name


def test_the_second_reader_restores_files(pair: tuple[Path, Path]) -> None:
    old, new = pair
    target = new.parent / "new.nz.safetensors"
    nz.safetensors.compress_file(new, target, base=old)
    before, compressed = old.read_bytes(), target.read_bytes()
    assert second_files.restore_safetensors(compressed, before) == new.read_bytes()
    entry = second_files.base_entry(compressed)
    assert entry == f"{second_files.identity(second_files.model(before))} old.safetensors"
    assert _native.SafetensorsFile(str(target)).base == entry


def test_the_second_decoder_reads_the_streams(pair: tuple[Path, Path]) -> None:
    old, new = pair
    target = new.parent / "new.nz.safetensors"
    nz.safetensors.compress_file(new, target, base=old)
    before, after = load_plain(old), load_plain(new)
    bodies = {}
    for name, stream in load_plain(target).items():
        data = stream.numpy().tobytes()
        bodies[name] = parse(data).body
        if bodies[name] in (3, 4):
            original = after[name].view(torch.uint8).numpy().tobytes()
            base = before[name].view(torch.uint8).numpy().tobytes()
            assert decode_delta(data, base) == original
    assert bodies["layer.frozen"] == bodies["ids"] == 4
    assert bodies["adam.m"] == 3
    # One of the two is the other.
    assert sorted([bodies["layer.weight"], bodies["layer.tied"]]) == [2, 3]


def test_save_file_next_to_a_base(pair: tuple[Path, Path]) -> None:
    old, new = pair
    target = new.parent / "saved.nz.safetensors"
    tensors = load_plain(new)
    nz.safetensors.save_file(tensors, target, base=old)
    assert same(nz.safetensors.load_file(target), tensors)
    assert target.stat().st_size < 0.6 * new.stat().st_size


def test_wrong_and_missing_bases(pair: tuple[Path, Path]) -> None:
    old, new = pair
    target, back = new.parent / "new.nz.safetensors", new.parent / "back.safetensors"
    nz.safetensors.compress_file(new, target, base=old)
    wrong = new.parent / "wrong.safetensors"
    save_plain(start(seed=5), wrong)
    other = new.parent / "other.safetensors"
    save_plain({"something": torch.zeros(3)}, other)
    for base in (wrong, other, new):
        with pytest.raises(nz.BaseMismatchError):
            nz.safetensors.decompress_file(target, back, base=base)
        with pytest.raises(nz.BaseMismatchError):
            nz.safetensors.load_file(target, base=base)
        with pytest.raises(nz.BaseMismatchError):
            nz.safetensors.verify_file(target, base=base)
        assert neuzip("decompress", target, "-o", "-", "--base", base, expect=1).stdout == b""
    with pytest.raises(FileNotFoundError):
        nz.safetensors.load_file(target, base=new.parent / "nothing")
    old.rename(new.parent / "elsewhere.safetensors")
    with pytest.raises(nz.BaseMismatchError, match=r"old\.safetensors"):
        nz.safetensors.decompress_file(target, back)
    assert not back.exists()
    # What needs no base can be read without it, and the file can be looked at.
    with nz.safetensors.safe_open(target, "pt") as file:
        assert len(file.keys()) == 6
        with pytest.raises(nz.BaseMismatchError):
            file.get_tensor("layer.weight")
    assert b"old.safetensors" in neuzip("info", target).stdout
    nz.safetensors.decompress_file(target, back, base=new.parent / "elsewhere.safetensors")
    assert back.read_bytes() == new.read_bytes()


def test_damage_never_gives_other_bytes(pair: tuple[Path, Path]) -> None:
    old, new = pair
    target, back = new.parent / "new.nz.safetensors", new.parent / "back.safetensors"
    nz.safetensors.compress_file(new, target, base=old)
    data, original = target.read_bytes(), new.read_bytes()
    header = int.from_bytes(data[:8], "little")
    rng = np.random.default_rng(0)
    positions = [*rng.choice(header, 150), *rng.choice(len(data) - header, 60) + header]
    for position in positions:
        target.write_bytes(flipped(data, int(position), 1 << int(rng.integers(8))))
        try:
            nz.safetensors.decompress_file(target, back, overwrite=True)
        except (nz.NeuzipError, OSError):
            continue
        assert back.read_bytes() == original


def test_a_file_is_not_its_own_base(pair: tuple[Path, Path]) -> None:
    old, new = pair
    one, two = new.parent / "one.safetensors", new.parent / "two.safetensors"
    nz.safetensors.compress_file(new, one, base=old)
    shutil.copy(old, two)
    nz.safetensors.compress_file(new, one, base=two, overwrite=True)
    shutil.copy(one, two)
    with pytest.raises(nz.BaseMismatchError):
        nz.safetensors.load_file(one)


def test_the_entry_of_the_original_stays(tmp_path: Path) -> None:
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    save_plain(start(), old)
    save_plain(step(start(), 1), new, metadata={"neuzip.base": "mine"})
    target, back = tmp_path / "new.nz.safetensors", tmp_path / "back.safetensors"
    nz.safetensors.compress_file(new, target, base=old)
    nz.safetensors.decompress_file(target, back, base=old)
    assert back.read_bytes() == new.read_bytes()
    with pytest.raises(nz.BaseMismatchError):
        nz.safetensors.load_file(target)


def test_command_with_a_base(pair: tuple[Path, Path]) -> None:
    old, new = pair
    done = neuzip("compress", new, "--base", old, "--json", "--rm")
    assert objects(done)[0]["ratio"] < 0.6
    target = new.parent / "new.nz.safetensors"
    content = new.parent / "content"
    facts = json.loads(neuzip("info", target, "--json").stdout)
    assert facts["base"]["path"] == "old.safetensors"
    assert len(facts["base"]["identity"]) == 32
    bodies = {tensor["name"]: tensor["body"] for tensor in facts["tensors"]}
    assert bodies["layer.frozen"] == "base"
    assert bodies["adam.m"] == "delta"
    neuzip("verify", target)
    neuzip("verify", target, "--base", old)
    neuzip("decompress", target, "--base", old, "-o", content)
    piped = neuzip("decompress", "-", "--base", old, stdin=target.read_bytes())
    assert piped.stdout == content.read_bytes()
    neuzip("decompress", "-", stdin=target.read_bytes(), expect=1)
    again = neuzip("compress", "-", "--base", old, stdin=content.read_bytes()).stdout
    restored = neuzip("decompress", "-", "--base", old, stdin=again).stdout
    assert restored == content.read_bytes()
    other = new.parent / "other.bin"
    other.write_bytes(b"no tensors")
    assert b"only" in neuzip("compress", other, "--base", old).stderr


def test_directories_next_to_a_base(tmp_path: Path) -> None:
    tensors = start()
    for name, model in {"old": tensors, "new": step(tensors, 1)}.items():
        (tmp_path / name).mkdir()
        for part in ("layer", "adam"):
            shard = {key: value for key, value in model.items() if part in key}
            save_plain(shard, tmp_path / name / f"{part}.safetensors")
        (tmp_path / name / "config.json").write_text("{}")
    old, new = tmp_path / "old", tmp_path / "new"
    content = files_below(new)
    done = neuzip("compress", new, "--base", old, "--rm", "--json")
    assert objects(done)[0]["ratio"] < 0.6
    packed = tmp_path / "new-nz"
    neuzip("verify", packed)
    neuzip("decompress", packed)
    assert files_below(new) == content
    # The base is found under the name that compressing gives it, and wherever one says.
    neuzip("compress", "-q", old, "--rm")
    neuzip("verify", packed)
    (tmp_path / "old-nz").rename(tmp_path / "moved")
    neuzip("verify", packed, expect=1)
    neuzip("decompress", "-f", packed, expect=1)
    neuzip("verify", packed, "--base", tmp_path / "moved")
    neuzip("decompress", "-f", packed, "--base", tmp_path / "moved")
    assert files_below(new) == content


def checkpoints(folder: Path, numbers: list[int]) -> dict[int, Tensors]:
    """Files of a training run, one for each number."""
    tensors, saved = start(), {}
    for number in numbers:
        tensors = saved[number] = step(tensors, number)
        save_plain(tensors, folder / f"step-{number}.safetensors")
    return saved


def test_chain_of_files(tmp_path: Path) -> None:
    numbers = [50, 100, 150, 1000, 1050]
    checkpoints(tmp_path, numbers)
    originals = files_below(tmp_path)
    # As a shell lists them: 100 comes before 50.
    paths = sorted(tmp_path.glob("step-*"))
    neuzip("compress", "-q", "--rm", "--keyframe-every", "3", *paths)
    bases = {}
    for number in numbers:
        path = tmp_path / f"step-{number}.nz.safetensors"
        bases[number] = json.loads(neuzip("info", path, "--json").stdout)["base"]
    assert bases[50] is None
    assert bases[100]["path"] == "step-50.nz.safetensors"
    assert bases[150]["path"] == "step-100.nz.safetensors"
    assert bases[1000] is None
    assert bases[1050]["path"] == "step-1000.nz.safetensors"
    sizes = [(tmp_path / f"step-{n}.nz.safetensors").stat().st_size for n in numbers]
    assert max(sizes[1], sizes[2]) < 0.75 * sizes[0]
    # Moved together, they still find each other.
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in tmp_path.glob("*.nz.safetensors"):
        path.rename(moved / path.name)
    neuzip("decompress", "-q", moved / "step-150.nz.safetensors")
    restored = (moved / "step-150.safetensors").read_bytes()
    assert restored == originals["step-150.safetensors"]
    # Without the keyframe nothing that leads back to it.
    (moved / "step-50.nz.safetensors").unlink()
    neuzip("verify", moved / "step-100.nz.safetensors", expect=1)
    neuzip("verify", moved / "step-1050.nz.safetensors")


def test_chain_in_a_directory(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    saved = checkpoints(run, [9, 10, 11])
    for number, tensors in saved.items():
        (run / f"checkpoint-{number}").mkdir()
        save_plain(tensors, run / f"checkpoint-{number}" / "model.safetensors")
        (run / f"checkpoint-{number}" / "config.json").write_text("{}")
    content = files_below(run)
    neuzip("compress", run, "--rm", "--keyframe-every", "2")
    packed = tmp_path / "run-nz"
    middle = json.loads(
        neuzip("info", packed / "checkpoint-10" / "model.safetensors", "--json").stdout
    )
    assert middle["base"]["path"] == "../checkpoint-9/model.safetensors"
    last = json.loads(neuzip("info", packed / "step-11.safetensors", "--json").stdout)
    assert last["base"] is None
    neuzip("verify", packed)
    tensors = nz.safetensors.load_file(packed / "checkpoint-10" / "model.safetensors")
    assert same(tensors, saved[10])
    neuzip("decompress", packed)
    assert files_below(run) == content


def test_chains_of_directories(tmp_path: Path) -> None:
    saved = checkpoints(tmp_path, [1, 2, 3])
    folders = []
    for number in saved:
        folder = tmp_path / f"epoch{number}"
        folder.mkdir()
        (tmp_path / f"step-{number}.safetensors").rename(folder / "model.safetensors")
        folders.append(folder)
    neuzip("compress", *folders, "--rm", "--keyframe-every", "9")
    path = tmp_path / "epoch3-nz" / "model.safetensors"
    assert same(nz.safetensors.load_file(path), saved[3])
    base = _native.SafetensorsFile(str(path)).base
    assert base is not None
    assert base.endswith(" ../epoch2-nz/model.safetensors")


@pytest.mark.parametrize(
    "arguments",
    [
        ["new.safetensors", "--keyframe-every", "2"],
        [
            "new.safetensors",
            "old.safetensors",
            "--keyframe-every",
            "2",
            "--base",
            "old.safetensors",
        ],
        ["new.safetensors", "-", "--keyframe-every", "2"],
        ["new.safetensors", "old.safetensors", "--keyframe-every", "0"],
    ],
)
def test_wrong_usage_of_chains(pair: tuple[Path, Path], arguments: list[str]) -> None:
    neuzip("compress", *arguments, expect=2, cwd=pair[0].parent)


def test_orders() -> None:
    assert in_order(["a10b2", "a9", "b1", "a10b10", "a"]) == ["a", "a9", "a10b2", "a10b10", "b1"]
    names = ["c-1/m", "c-2/m", "c-10/m", "c-2/other", "final/m", "c-3/n"]
    assert chains(names, 2) == {"c-2/m": "c-1/m"}
    assert chains(names, 3) == {"c-2/m": "c-1/m", "c-10/m": "c-2/m"}
    assert chains(names, 1) == {}


CORPUS = Path(os.environ.get("NEUZIP_CORPUS", "/nonexistent"))
# Percent of the original files, everything included (docs/design.md).
TARGETS = {
    ("tinylm_s500.bf16", "tinylm_s501.bf16"): 21.0,
    ("chgnet_030.bf16", "chgnet_r2scan_ft.bf16"): 47.5,
}


@pytest.mark.parametrize(("names", "target"), TARGETS.items())
def test_targets_on_real_weights(tmp_path: Path, names: tuple[str, str], target: float) -> None:
    old, new = (CORPUS / f"{name}.safetensors" for name in names)
    if not old.exists() or not new.exists():
        pytest.skip("NEUZIP_CORPUS does not name a corpus that was built with --train")
    compressed = tmp_path / "new.nz.safetensors"
    sizes = nz.safetensors.compress_file(new, compressed, base=old)
    assert 100 * sizes[1] / sizes[0] <= target
    nz.safetensors.verify_file(compressed)
