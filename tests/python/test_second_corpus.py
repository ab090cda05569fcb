"""The second reader's run over real files, on a small file that has what they have."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest

from neuzip_rs import safetensors
from tests.python import second_agreement, second_corpus


def tensors(step: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((40, 64)) * 0.02).astype(np.float32)
    found = {"weight": weight + np.float32(step), "tied": weight + np.float32(step)}
    found["zeros"] = np.zeros(500, np.float32)
    found |= {f"bias.{i}": weight[i, :24] * np.float32(1 + step) for i in range(6)}
    return found


def written(folder: Path, name: str, step: float) -> Path:
    path = folder / name
    safetensors.save_file(tensors(step), folder / "packed", level="fast")
    safetensors.decompress_file(folder / "packed", path, overwrite=True)
    return path


def test_every_kind_of_stream_is_compared(tmp_path: Path) -> None:
    path, packed = written(tmp_path, "plain", 0), tmp_path / "compressed"
    safetensors.compress_file(path, packed)
    plain = path.read_bytes()
    seen = second_agreement.check(plain, packed.read_bytes(), b"", 0, random.Random(0))
    assert seen["tensors"] == 9
    assert seen["bundled"] == 5
    assert seen["constants"] == seen["references"] == 1
    assert seen["decoded"] == seen["chunks"] == 2
    changed = plain[:-1] + bytes([plain[-1] ^ 1])
    with pytest.raises(second_agreement.Disagreement):
        second_agreement.check(changed, packed.read_bytes(), b"", 0, random.Random(0))


def test_differences_are_compared(tmp_path: Path) -> None:
    base, path = written(tmp_path, "base", 0), written(tmp_path, "plain", 1e-6)
    packed = tmp_path / "compressed"
    safetensors.compress_file(path, packed, base=base)
    plain, other = path.read_bytes(), base.read_bytes()
    seen = second_agreement.check(plain, packed.read_bytes(), other, 0, random.Random(0))
    assert seen["deltas"]
    place = plain.index(tensors(1e-6)["weight"].tobytes())
    wrong = plain[:place] + bytes([plain[place] ^ 1]) + plain[place + 1 :]
    with pytest.raises(second_agreement.Disagreement):
        second_agreement.check(wrong, packed.read_bytes(), other, 0, random.Random(0))


def test_a_folder_is_compared_file_by_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, "tinylm_s500.fp32.safetensors", 0)
    written(tmp_path, "tinylm_s501.fp32.safetensors", 1e-6)
    (tmp_path / "packed").unlink()
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path), "--chunks", "0", "--levels", "fast"])
    assert second_corpus.main() == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4
    assert printed[-1].startswith("2 files, {'tensors': 27,")
    assert "'deltas'" in printed[-1]
    assert "no disagreement" in printed[-1]
    monkeypatch.setattr(
        safetensors, "compress_file", lambda _, packed, **__: packed.write_bytes(b"damaged")
    )
    with pytest.raises(SystemExit, match=r"tinylm_s500\.fp32\.safetensors fast: "):
        second_corpus.main()
