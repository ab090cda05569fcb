"""Measures how far compressing and restoring one large tensor raises the memory of a process.

Each measurement has a process of its own, default allocator, whose peak is reset when everything
is imported and the input lies in memory: what counts is the output and what the codec needs for
itself. Only Linux tells (VmHWM).
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from benches import child

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")


def measure(kind: str, file: Path, limit: int | None, threads: int) -> list[dict[str, Any]]:
    """Measures neuzip_rs and zipnn.

    Args:
        kind: The type, a key of `weights.KINDS`.
        file: The buffer.
        limit: How many bytes of it, None for all.
        threads: What "all threads" means here.

    Returns:
        One object per codec: codec, threads, original_bytes, compressed_bytes, and by how many
        bytes each action raised the peak.
    """
    if sys.platform != "linux":
        return []
    rows = []
    for codec, count in (("neuzip default", 1), ("neuzip default", threads), ("zipnn", 1)):
        with tempfile.TemporaryDirectory() as scratch:
            packed = Path(scratch) / "packed"
            task = {
                "codec": codec,
                "threads": count,
                "kind": kind,
                "file": str(file),
                "limit": limit,
                "packed": str(packed),
            }
            row = child.run("benches.memory", {**task, "action": "compress"})
            for action in row.pop("decoders"):
                more = child.run("benches.memory", {**task, "action": action})
                row["peaks"].update(more["peaks"])
            rows.append({"codec": codec, "threads": count, **row})
    return rows


def work(task: dict[str, Any]) -> dict[str, Any]:
    """Measures one action in this process."""
    import numpy as np

    import neuzip_rs
    from benches import codecs, peers, weights

    kind = weights.KINDS[task["kind"]]
    data = np.load(task["file"], mmap_mode="r")[: task["limit"]]
    shape = (data.size // (kind.itemsize * weights.COLUMNS), weights.COLUMNS)
    codec: codecs.Codec
    if task["codec"] == "zipnn":
        codec = peers.Zipnn(kind.dtype, task["threads"])
    else:
        codec = codecs.Neuzip("default", task["threads"])
    # The first use of anything loads and allocates things that stay.
    for _ in range(2):
        codec.prove(codecs.Sample(kind.dtype, data[: weights.COLUMNS * 64], (-1, weights.COLUMNS)))
    packed_file = Path(task["packed"])
    sample = codecs.Sample(kind.dtype, data, shape)
    action = task["action"]
    if action == "compress":
        before = _reset_peak()
        packed = codec.compress(sample)
        peak = _memory("VmHWM") - before
        packed_file.write_bytes(packed)
        if codec.scratches_input:
            sample.restore()
    else:
        raw = packed_file.read_bytes()
        packed = neuzip_rs.CompressedTensor.from_bytes(raw) if task["codec"] != "zipnn" else raw
        decode = codec.decoders()[action]
        before = _reset_peak()
        restored = decode(packed, sample)
        peak = _memory("VmHWM") - before
        if not sample.equals(restored):
            message = f"{codec.name}: {action} did not restore its input"
            raise AssertionError(message)
    return {
        "original_bytes": data.size,
        "compressed_bytes": packed_file.stat().st_size,
        "peaks": {action: peak},
        "decoders": [name for name in codec.decoders() if codecs.UNVERIFIED not in name],
    }


def _reset_peak() -> int:
    """Makes the peak what is in use now, and returns that."""
    RESET.write_text("5", encoding="ascii")
    return _memory("VmRSS")


def _memory(field: str) -> int:
    """A field of the process status, in bytes."""
    status = STATUS.read_text(encoding="ascii")
    found = re.search(rf"^{field}:\s*(\d+) kB$", status, re.MULTILINE)
    if found is None:
        message = f"{STATUS} has no {field}"
        raise OSError(message)
    return int(found[1]) * 1024
