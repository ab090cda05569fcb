"""Golden files: what a release has written must stay readable, and what it writes must not drift.

Until 0.1.0 is tagged the files may be written anew: `python -m tests.python.test_compatibility`
from the root of the repository.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

import neuzip_rs as nz
from neuzip_rs import _native

DATA = Path(__file__).resolve().parents[1] / "data" / "v1"


def noise(count: int) -> np.ndarray:
    """Numbers from -1 to 1, dense around 0, the same on every machine."""
    words = (np.arange(1, 4 * count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> 40
    uniform = words.astype(np.float64).reshape(count, 4) / 2**24 - 0.5
    return uniform.sum(axis=1) / 2


def tensors() -> dict[str, np.ndarray]:
    """One small tensor for each way of storing one; BF16 as the integers of its bits."""
    weights = noise(4608).astype(np.float32).reshape(48, 96)
    scales = np.exp2((np.arange(48) % 7)[:, None] - (np.arange(96) % 5)[None, :])
    bfloat16 = ((weights * scales.astype(np.float32)).view(np.uint32) >> 16).astype(np.uint16)
    return {
        "empty": np.zeros((0, 3), np.float32),
        "raw": np.arange(40, dtype=np.uint8) * 37,
        "constant": np.full((300, 2), -0.0, np.float64),
        "float16": weights.astype(np.float16),
        "float32": weights,
        "float32_upcast": (weights.view(np.uint32) & 0xFFFF0000).view(np.float32),
        "float32_positive": np.abs(weights),
        "float64": weights.astype(np.float64)[:20],
        "uint16": bfloat16,
        "bfloat16_scaled": bfloat16,
        "int64": (np.arange(600) % 7 - 3).astype(np.int64),
        "complex64": weights.view(np.complex64),
        "bool": np.arange(5000) % 3 == 0,
    }


def dtype_of(name: str, array: np.ndarray) -> str:
    """The type a golden stream says it has."""
    return "bfloat16" if name.startswith("bfloat16") else array.dtype.name


def streams() -> dict[str, bytes]:
    """The tensors compressed in chunks of 4 KiB, so that most of them have several."""
    return {
        name: bytes(
            _native.compress(
                array.reshape(-1).view(np.uint8),
                dtype_of(name, array),
                array.shape,
                chunk_bytes=4096,
            )
        )
        for name, array in tensors().items()
    }


@pytest.mark.parametrize("name", tensors())
def test_golden_streams_decode(name: str) -> None:
    """Files written by the first release decode to what they were made from."""
    expected = tensors()[name]
    golden = nz.CompressedTensor.from_bytes((DATA / f"{name}.nzt").read_bytes())
    assert golden.dtype == dtype_of(name, expected)
    assert golden.shape == expected.shape
    assert nz.decompress(golden, framework="bytes") == expected.tobytes()


def test_the_encoder_has_not_drifted() -> None:
    """Equal input gives equal bytes, also from one release to the next of the same format."""
    for name, stream in streams().items():
        assert stream == (DATA / f"{name}.nzt").read_bytes(), name


def test_golden_files_restore(tmp_path: Path) -> None:
    """The file containers too."""
    plain = DATA / "plain.safetensors"
    for golden, original in (("plain.nz.safetensors", plain), ("plain.bin.nz", plain)):
        restored = tmp_path / golden
        _native.decompress_file(str(DATA / golden), str(restored))
        assert restored.read_bytes() == (
            original.read_bytes() if golden != "plain.bin.nz" else b"\0" + original.read_bytes()
        )


def write() -> None:
    """Writes the golden files anew."""
    DATA.mkdir(parents=True, exist_ok=True)
    for name, stream in streams().items():
        (DATA / f"{name}.nzt").write_bytes(stream)
    names = ("float16", "float32", "raw", "constant", "empty")
    spelled = {"float16": "F16", "float32": "F32", "uint8": "U8", "float64": "F64"}
    entries = [
        (
            name,
            spelled[array.dtype.name],
            array.shape,
            array.reshape(-1).view(np.uint8),
            array.dtype.name,
        )
        for name, array in tensors().items()
        if name in names
    ]
    compressed, plain = DATA / "plain.nz.safetensors", DATA / "plain.safetensors"
    _native.write_safetensors(str(compressed), entries, {"format": "pt"})
    _native.decompress_file(str(compressed), str(plain), overwrite=True)
    other = DATA / "plain.bin"
    other.write_bytes(b"\0" + plain.read_bytes())
    _native.compress_file(str(other), str(other) + ".nz", overwrite=True)
    other.unlink()


if __name__ == "__main__":
    write()
    sys.stdout.write(f"{sum(1 for _ in DATA.iterdir())} files in {DATA.name}\n")
