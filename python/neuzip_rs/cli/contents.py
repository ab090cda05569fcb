"""What `neuzip info` knows about a file or directory, as JSON objects."""

import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from neuzip_rs import _native
from neuzip_rs._errors import CorruptDataError
from neuzip_rs._explain import Explanation, Field
from neuzip_rs._spelling import NAMES
from neuzip_rs.cli.report import ratio
from neuzip_rs.directory.content import original_size, read_varint
from neuzip_rs.directory.tree import scan

# The .nz file around the frames (docs/format.md): magic; after them a zero, size and checksum.
_MAGIC_BYTES: Final = 8
_END_BYTES: Final = 17
_MAX_STREAM_BYTES: Final = 1 << 25


def describe_directory(directory: Path, *, measure: bool = False) -> dict[str, Any]:
    """All files of a directory.

    Args:
        directory: Where they are.
        measure: Decode some chunks of each tensor to measure its entropy.

    Raises:
        CorruptDataError: One is damaged.
    """
    files = [
        {"path": file.name, **describe_file(file.path, measure=measure)}
        for file in scan(directory).files
    ]
    return directory_facts(files)


def directory_facts(files: list[dict[str, Any]]) -> dict[str, Any]:
    """What is known of a directory with these files."""
    original = sum(file["original_bytes"] for file in files)
    is_compressed = any(file["compressed_bytes"] is not None for file in files)
    compressed = sum(_stored(file) for file in files) if is_compressed else None
    return {
        "kind": "directory",
        "original_bytes": original,
        "compressed_bytes": compressed,
        "ratio": ratio(compressed, original),
        "files": files,
    }


def describe_file(path: Path, *, measure: bool = False) -> dict[str, Any]:
    """A file and the tensors in it.

    Args:
        path: Where it is.
        measure: Decode some chunks of each tensor to measure its entropy.

    Raises:
        CorruptDataError: It is damaged.
    """
    kind = _native.content_kind(str(path))
    size = path.stat().st_size
    tensors: list[dict[str, Any]] = []
    more: dict[str, Any] = {}
    original, compressed = size, None if kind in ("other", "safetensors") else size
    if kind in ("safetensors", "neuzip-safetensors"):
        with closing(_native.SafetensorsFile(str(path))) as file:
            tensors = [_tensor_in(file, name, measure=measure) for name in file.keys()]  # noqa: SIM118 - no dict
            more = {"metadata": file.metadata, "base": _base(file.base)}
            original = original_size(path, file) if file.compressed else size
    elif kind == "neuzip-tensor":
        tensor = _native.CompressedTensor.from_bytes(path.read_bytes())
        tensors = [_tensor(path.name, tensor, measure=measure)]
        original = tensor.original_nbytes
    elif kind == "neuzip-file":
        frames = list(_frames(path, measure=measure))
        original = sum(frame["original_bytes"] for frame in frames)
        tensors = [merged(path.name.removesuffix(".nz"), frames, original, size)]
        more = {"frames": len(frames)}
    return {
        "kind": kind,
        "original_bytes": original,
        "compressed_bytes": compressed,
        "ratio": ratio(compressed, original),
        **more,
        "tensors": tensors,
    }


def _base(entry: str | None) -> dict[str, str | None] | None:
    """What a file says of the model that it holds the differences from."""
    if entry is None:
        return None
    identity, _, path = entry.partition(" ")
    return {"identity": identity, "path": path or None}


def _stored(file: dict[str, Any]) -> int:
    compressed, original = file["compressed_bytes"], file["original_bytes"]
    size: int = original if compressed is None else compressed
    return size


def _tensor_in(file: _native.SafetensorsFile, name: str, *, measure: bool) -> dict[str, Any]:
    dtype = file.dtype(name)
    original = file.nbytes(name)
    compressed = file.stored_nbytes(name) if file.compressed else None
    info = file.info(name) or {}
    if file.compressed:
        info |= _explained(file.explain(name, measure=measure))
    return tensor_facts(name, NAMES.get(dtype, dtype), file.shape(name), original, compressed, info)


def _tensor(name: str, tensor: _native.CompressedTensor, *, measure: bool) -> dict[str, Any]:
    info = tensor.info() | _explained(tensor.explain(measure=measure))
    return tensor_facts(
        name, tensor.dtype, tensor.shape, tensor.original_nbytes, tensor.nbytes, info
    )


def _explained(facts: dict[str, Any]) -> dict[str, Any]:
    return {**Explanation.from_native(facts).to_json(), "repeats": facts["repeats"]}


def tensor_facts(
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    original: int,
    compressed: int | None,
    info: dict[str, Any],
) -> dict[str, Any]:
    """What is known of a tensor, with the keys of the JSON object in their order."""
    known = (
        *("body", "modes", "features", "entropy_bits", "chunks", "chunk_bytes"),
        *("repeats", "fields", "other_bytes", "scale_offsets", "alternatives", "why"),
    )
    return {
        "name": name,
        "dtype": dtype,
        "shape": list(shape),
        "original_bytes": original,
        "compressed_bytes": compressed,
        "ratio": ratio(compressed, original),
        **{key: info.get(key) for key in known},
    }


def _frames(path: Path, *, measure: bool) -> Iterator[dict[str, Any]]:
    """The frames of a .nz file, whose checksums `neuzip verify` checks."""
    # Not mapped: a map that another process cuts short would end this one.
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        position = _MAGIC_BYTES
        total = 0
        while True:
            file.seek(position)
            head = file.read(_END_BYTES + 1)
            length, used = read_varint(head, 0)
            if length == 0:
                break
            file.seek(position + used)
            frame = file.read(length) if length <= _MAX_STREAM_BYTES else b""
            if len(frame) != length:
                message = f"{path}: the frame at byte {position} does not end"
                raise CorruptDataError(message)
            tensor = _native.CompressedTensor.from_bytes(frame)
            facts = _tensor("", tensor, measure=measure)
            total += facts["original_bytes"]
            position += used + length
            yield facts
        stated = int.from_bytes(head[used : used + 8], "little")
        if position + _END_BYTES != size or stated != total:
            message = f"{path}: damaged at its end, byte {position}"
            raise CorruptDataError(message)


def merged(
    name: str, frames: list[dict[str, Any]], original: int, compressed: int
) -> dict[str, Any]:
    """All frames as the one array of bytes that they are."""
    info: dict[str, Any] = {"body": "frames"}
    info["modes"] = sorted({mode for frame in frames for mode in frame["modes"] or ()})
    info["features"] = sorted({item for frame in frames for item in frame["features"] or ()})
    info["chunks"] = sum(frame["chunks"] or 0 for frame in frames)
    info["chunk_bytes"] = max((frame["chunk_bytes"] or 0 for frame in frames), default=None)
    info["fields"] = merged_fields(field for frame in frames for field in frame["fields"])
    info["other_bytes"] = compressed - sum(field["stored_bytes"] for field in info["fields"])
    info["why"] = [Field(**field).reason for field in info["fields"]]
    coded = [frame for frame in frames if frame["entropy_bits"] is not None]
    weight = sum(frame["original_bytes"] for frame in coded)
    if weight:
        bits = sum(frame["entropy_bits"] * frame["original_bytes"] for frame in coded)
        info["entropy_bits"] = bits / weight
    return tensor_facts(name, "uint8", (original,), original, compressed, info)


def merged_fields(fields: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds up the fields that have the same name, mode and width."""
    merged: dict[tuple[str, str, int], dict[str, Any]] = {}
    for field in fields:
        key = field["name"], field["mode"], field["bits"]
        known = merged.get(key)
        if known is None:
            merged[key] = dict(field)
            continue
        weights = known["elements"], field["elements"]
        for bits in ("entropy_bits", "table_bits"):
            known[bits] = _mean(known[bits], field[bits], *weights)
        for count in ("elements", "stored_bytes", "overhead_bytes"):
            known[count] += field[count]
    return list(merged.values())


def _mean(a: float | None, b: float | None, a_weight: int, b_weight: int) -> float | None:
    if a is None or b is None or not a_weight + b_weight:
        return b if a is None else a
    return (a * a_weight + b * b_weight) / (a_weight + b_weight)
