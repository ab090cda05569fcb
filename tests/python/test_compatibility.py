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
    rows, columns = np.arange(48), np.arange(96)
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
        "delta_float32": weights,
        "delta_far": weights,
        "delta_int16": (noise(4000) * 3000).astype(np.int16),
        "delta_same": weights[:40],
        "bfloat16_delta": bfloat16,
        "max_symbols": (1 + weights / 50).astype(np.float16),
        "max_signs": (np.abs(weights) * np.outer(rows % 5 - 1.5, columns % 7 - 2.5)).astype("f2"),
        "max_classes": np.where(np.arange(48)[:, None] % 3, weights, weights**5).astype(np.float16),
    }


def level_of(name: str) -> str:
    """The level a golden stream is written at."""
    return "max" if name.startswith("max") else "default"


def dtype_of(name: str, array: np.ndarray) -> str:
    """The type a golden stream says it has."""
    return "bfloat16" if name.startswith("bfloat16") else array.dtype.name


def bases() -> dict[str, np.ndarray]:
    """What tensors are stored as the differences from: some bits, many bits, none."""
    before = noise(9216).astype(np.float32)[4608:].reshape(48, 96)
    near = tensors()["delta_float32"] * np.float32(1 - 2**-12)
    bits = tensors()["bfloat16_delta"] - (np.arange(4608).reshape(48, 96) % 5 == 0)
    return {
        "delta_float32": near,
        "delta_far": before / 8 + tensors()["delta_far"],
        "delta_int16": tensors()["delta_int16"] - (np.arange(4000) % 3).astype(np.int16),
        "delta_same": tensors()["delta_same"],
        "bfloat16_delta": bits.astype(np.uint16),
    }


def base_of(name: str) -> bytes | None:
    """The bytes of the base of a tensor, None if it has none."""
    base = bases().get(name)
    return None if base is None else base.tobytes()


def streams() -> dict[str, bytes]:
    """The tensors compressed in chunks of 4 KiB, so that most of them have several."""
    return {
        name: bytes(
            _native.compress(
                array.reshape(-1).view(np.uint8),
                dtype_of(name, array),
                array.shape,
                level=level_of(name),
                chunk_bytes=4096,
                base=base_of(name),
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
    assert (golden.base_hash is None) == (base_of(name) is None)
    restored = nz.decompress(golden, framework="bytes", base=base_of(name))
    assert restored == expected.tobytes()


def test_golden_streams_use_the_level_max() -> None:
    opened = [nz.CompressedTensor.from_bytes(stream) for stream in streams().values()]
    features = {feature for tensor in opened for feature in tensor.info()["features"]}
    assert features >= {"contexts", "sign-flips"}
    assert any("x2" in mode or "x4" in mode for t in opened for mode in t.info()["modes"])


def test_the_encoder_has_not_drifted() -> None:
    """Equal input gives equal bytes, also from one release to the next of the same format."""
    for name, stream in streams().items():
        assert stream == (DATA / f"{name}.nzt").read_bytes(), name


def test_golden_files_restore(tmp_path: Path) -> None:
    """The file containers too."""
    plain = DATA / "plain.safetensors"
    small = DATA / "small.safetensors"
    for golden, original in (
        ("plain.nz.safetensors", plain),
        ("small.nz.safetensors", small),
        ("plain.bin.nz", plain),
    ):
        restored = tmp_path / golden
        _native.decompress_file(str(DATA / golden), str(restored))
        assert restored.read_bytes() == (
            original.read_bytes() if golden != "plain.bin.nz" else b"\0" + original.read_bytes()
        )


def test_bundles_have_not_drifted(tmp_path: Path) -> None:
    """Which tensors share a stream is the writer's choice, and stays so."""
    again = tmp_path / "small.nz.safetensors"
    _native.compress_file(str(DATA / "small.safetensors"), str(again))
    assert again.read_bytes() == (DATA / again.name).read_bytes()


def small_tensors() -> list[tuple[str, str, tuple[int, ...], np.ndarray, str]]:
    """Rows of 96, vectors, a scalar, a constant, a repeat and a tensor too large for a bundle."""
    weights = tensors()["float16"].reshape(-1)
    shapes = [(10, 96), (96,), (20, 96), (), (5, 3, 3), (7, 3, 3), (33,), (2, 96)]
    entries, at = [], 0
    for number, shape in enumerate(shapes):
        size = int(np.prod(shape))
        part = weights[at : at + size].view(np.uint8)
        entries.append((f"layer.{number}", "F16", shape, part, "float16"))
        at += size
    ones = np.ones(200, np.float16).view(np.uint8)
    entries.append(("ones", "F16", (200,), ones, "float16"))
    entries.append(("tied", "F16", (10, 96), weights[:960].view(np.uint8), "float16"))
    large = np.tile(weights, 9).view(np.uint8)
    entries.append(("large", "F16", (432, 96), large, "float16"))
    return entries


def test_golden_delta_file_finds_its_base(tmp_path: Path) -> None:
    """A file next to its base, which it names."""
    restored = tmp_path / "restored"
    _native.decompress_file(str(DATA / "delta.nz.safetensors"), str(restored))
    again = tmp_path / "delta.nz.safetensors"
    _native.compress_file(
        str(restored),
        str(again),
        base=str(DATA / "plain.nz.safetensors"),
        base_path="plain.nz.safetensors",
    )
    assert again.read_bytes() == (DATA / again.name).read_bytes()


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
    small = DATA / "small.nz.safetensors"
    _native.write_safetensors(str(small), small_tensors(), None)
    _native.decompress_file(str(small), str(DATA / "small.safetensors"), overwrite=True)
    changed = DATA / "changed.safetensors"
    data = bytearray(plain.read_bytes())
    data[-600::7] = bytes(byte ^ 1 for byte in data[-600::7])
    changed.write_bytes(data)
    _native.compress_file(
        str(changed),
        str(DATA / "delta.nz.safetensors"),
        overwrite=True,
        base=str(compressed),
        base_path=compressed.name,
    )
    changed.unlink()
    other = DATA / "plain.bin"
    other.write_bytes(b"\0" + plain.read_bytes())
    _native.compress_file(str(other), str(other) + ".nz", overwrite=True)
    other.unlink()


if __name__ == "__main__":
    write()
    sys.stdout.write(f"{sum(1 for _ in DATA.iterdir())} files in {DATA.name}\n")
