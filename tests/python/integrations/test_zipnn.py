"""What the zipnn that is installed writes is read."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("zipnn", reason="zipnn is not installed")

import os
import sys

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from zipnn import ZipNN

import neuzip_rs as nz
from tests.python import command, zipnn_samples
from tests.python.integrations.howto import follow

DTYPES = st.sampled_from(zipnn_samples.DTYPES)


def weights(dtype: str, count: int, seed: int, kind: str) -> torch.Tensor:
    values = np.random.default_rng(seed).standard_normal(count).astype(np.float32) * 0.02
    if kind == "same":
        values[:] = 0.5
    elif kind == "special":
        values[::3], values[1::7], values[2::5] = np.nan, -np.inf, -0.0
    return torch.from_numpy(values).to(getattr(torch, dtype))


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())


KINDS = st.sampled_from(["weights", "same", "special"])
# zipnn crashes where a chunk is no multiple of eight bytes.
COUNTS = st.one_of(st.integers(1, 400), st.integers(400, 20_000)).map(lambda n: 8 * n)


@given(DTYPES, COUNTS, st.integers(0, 99), KINDS, st.integers(11, 18), st.booleans())
@settings(max_examples=80, deadline=None)
def test_bytes(
    dtype: str, count: int, seed: int, kind: str, log2_chunk: int, streaming: bool
) -> None:
    original = bits(weights(dtype, count, seed, kind))
    options: dict[str, Any] = {"bytearray_dtype": dtype, "compression_chunk": 1 << log2_chunk}
    if streaming:
        options |= {"is_streaming": True, "streaming_chunk": 1 << 16}
    # It is given a copy, because it changes its input.
    compressed = ZipNN(threads=1, **options).compress(bytearray(original))
    assert nz.zipnn.decompress(bytes(compressed)) == original


@given(DTYPES, COUNTS, st.integers(0, 99), KINDS)
@settings(max_examples=30, deadline=None)
def test_tensors(dtype: str, count: int, seed: int, kind: str) -> None:
    tensor = weights(dtype, count, seed, kind).reshape(-1, 4)
    original = bits(tensor)
    compressed = ZipNN(input_format="torch", threads=1).compress(tensor.clone())
    found = nz.zipnn.decompress(bytes(compressed), framework="torch")
    assert isinstance(found, torch.Tensor)
    assert (found.dtype, found.shape, bits(found)) == (tensor.dtype, tensor.shape, original)


def test_the_samples_are_what_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipnn_samples, "DATA", tmp_path)
    zipnn_samples.write()
    for name, original in zipnn_samples.originals().items():
        assert nz.zipnn.decompress((tmp_path / name).read_bytes()) == original
    nz.zipnn.decompress_file(tmp_path / zipnn_samples.TENSORS, tmp_path / "plain.safetensors")
    found = nz.safetensors.load_file(tmp_path / "plain.safetensors", framework="torch")
    for name, (_, shape, data) in zipnn_samples.tensors().items():
        assert (tuple(found[name].shape), bits(found[name])) == (shape, data)


GIVEN = """
compressed = open("model.safetensors.znn", "rb").read()
"""


def test_page_of_instructions(tmp_path: Path) -> None:
    nz.safetensors.save_file({"w": weights("bfloat16", 8000, 0, "weights")}, tmp_path / "m.nz")
    nz.safetensors.decompress_file(tmp_path / "m.nz", tmp_path / "original")
    original = (tmp_path / "original").read_bytes()
    compressed = ZipNN(bytearray_dtype="bfloat16", threads=1).compress(bytearray(original))
    (tmp_path / "model.safetensors.znn").write_bytes(compressed)
    samples = zipnn_samples.DATA / zipnn_samples.TENSORS
    (tmp_path / "tuned.znn.safetensors").write_bytes(samples.read_bytes())
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = command.environment(PYTHONPATH=paths)
    assert follow("migrate.md", tmp_path, environment, given=GIVEN) == 2
    for name in ("model.safetensors", "again.safetensors"):
        assert (tmp_path / name).read_bytes() == original
    assert nz.safetensors.load_file(tmp_path / "tuned.safetensors", framework="torch")
    assert (tmp_path / "model.nz.safetensors").is_file()
