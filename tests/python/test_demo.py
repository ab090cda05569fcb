"""`make demo` tells the truth: its casts, its comparison, its table and its exit code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benches import demo, models
from benches.readme import block, replace_block

ROOT = Path(__file__).resolve().parents[2]


class CopyProgram:
    """A program that stores its input as it is, and damages what it restores if told to."""

    name = "copy"

    def __init__(self, *, damage: bool = False) -> None:
        self.damage = damage

    def compress(self, source: Path, target: Path) -> None:
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)

    def decompress(self, source: Path, target: Path) -> None:
        self.compress(source, target)
        if self.damage:
            file = next(path for path in (target, *target.rglob("*")) if path.is_file())
            data = bytearray(file.read_bytes())
            data[-1] ^= 1
            file.write_bytes(data)


def write_model(path: Path, *, count: int = 4096) -> Path:
    values = np.random.default_rng(0).normal(0, 0.02, count).astype(np.float32)
    tensors = [
        models.Tensor("ids", "I64", (3,), np.arange(3, dtype="<i8").view(np.uint8)),
        models.Tensor("weight", "F32", (count // 4, 4), values.view(np.uint8)),
    ]
    models.write_tensors(path, {"format": "pt"}, tensors)
    return path


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1))
def test_bfloat16_cast_is_that_of_ml_dtypes(patterns: list[int]) -> None:
    values = np.array(patterns, np.uint32).view(np.float32)
    with np.errstate(invalid="ignore"):
        expected = values.astype(ml_dtypes.bfloat16)
    cast = models.float32_to_bfloat16(values).view(ml_dtypes.bfloat16)
    is_nan = np.isnan(values)
    assert np.array_equal(np.isnan(cast), is_nan)
    assert np.array_equal(cast[~is_nan].view(np.uint16), expected[~is_nan].view(np.uint16))


def test_files_survive_reading_and_writing(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source.safetensors")
    metadata, tensors = models.read_tensors(source)
    models.write_tensors(tmp_path / "target.safetensors", metadata, tensors)
    assert (tmp_path / "target.safetensors").read_bytes() == source.read_bytes()


def test_safetensors_reads_what_is_written(tmp_path: Path) -> None:
    numpy_files = pytest.importorskip("safetensors.numpy")
    path = write_model(tmp_path / "model.safetensors")
    loaded = numpy_files.load_file(path)
    assert loaded["weight"].shape == (1024, 4)
    assert loaded["ids"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_casts_keep_everything_but_the_floats(tmp_path: Path, kind: str) -> None:
    source = write_model(tmp_path / "source.safetensors")
    target = tmp_path / "target.safetensors"
    models.cast_file(source, target, kind)
    metadata, (ids, weight) = models.read_tensors(target)
    _, (source_ids, source_weight) = models.read_tensors(source)
    assert metadata == {"format": "pt"}
    assert ids.dtype == "I64"
    assert ids.data.tobytes() == source_ids.data.tobytes()
    assert weight.dtype == models.CASTS[kind][0]
    assert weight.shape == source_weight.shape
    assert weight.data.size * 2 == source_weight.data.size


def test_comparison_of_a_file(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.safetensors")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    result = demo.compare(path, [CopyProgram(), CopyProgram(damage=True)], scratch)
    faithful, damaged = result.measurements
    assert faithful.identical
    assert not damaged.identical
    assert not result.identical
    assert faithful.compressed_bytes == result.original_bytes == path.stat().st_size
    assert "NOT RESTORED: model (copy)" in demo.summary([result])
    assert "DIFFERENT" in demo.markdown_of([result], "note")


def test_comparison_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    write_model(folder / "sub" / "model.safetensors")
    (folder / "config.json").write_text("{}")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert demo.compare(folder, [CopyProgram()], scratch).identical
    assert not demo.compare(folder, [CopyProgram(damage=True)], scratch).identical


def test_readme_block_is_replaced(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- demo-table -->\nold\n<!-- /demo-table -->\nb\n")
    replace_block(readme, "demo-table", "new \\1\n")
    assert readme.read_text() == "a\n<!-- demo-table -->\nnew \\1\n<!-- /demo-table -->\nb\n"
    readme.write_text("no block")
    with pytest.raises(ValueError, match="expected one block"):
        replace_block(readme, "demo-table", "new\n")


def test_readme_has_the_block() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert block(demo.README_BLOCK).search(text)


def run_demo(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benches.demo", *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_demo_of_a_tensor_file(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.safetensors", count=1 << 16)
    result = run_demo("--model", path, "--threads", "1")
    assert result.returncode == 0, result.stderr
    assert "every bit is the same" in result.stdout
    for program in ("neuzip", "zstd -1", "zstd -3"):
        assert program in result.stdout


def test_demo_of_any_file(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("any file will do\n" * 1000)
    result = run_demo("--model", path)
    assert result.returncode == 0, result.stderr
    assert "every bit is the same" in result.stdout


def test_demo_of_a_model_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_model(folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    result = run_demo("--model", folder)
    assert result.returncode == 0, result.stderr
    assert "every bit is the same" in result.stdout


def test_demo_of_nothing(tmp_path: Path) -> None:
    result = run_demo("--model", tmp_path / "missing")
    assert result.returncode == 2
    assert "does not exist" in result.stderr


def test_demo_of_a_compressed_file(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("any file will do\n" * 1000)
    packed = tmp_path / "notes.txt.nz"
    demo.programs.NeuzipCommand(1).compress(notes, packed)
    result = run_demo("--model", packed)
    assert result.returncode == 1
    assert "already compressed" in result.stderr
    assert "Traceback" not in result.stderr
