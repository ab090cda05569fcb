"""Running the `neuzip` command as a process, and things to run it on."""

import gzip
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

PROGRAM = (sys.executable, "-W", "error", "-m", "neuzip_rs")


def environment(**more: str) -> dict[str, str]:
    """The environment of this process without what changes the command's behaviour."""
    switches = ("NEUZIP", "HF_HUB", "COLUMNS", "FORCE_COLOR")
    return {
        name: value for name, value in os.environ.items() if not name.startswith(switches)
    } | more


def neuzip(
    *arguments: str | Path,
    stdin: bytes | None = None,
    expect: int = 0,
    cwd: Path | None = None,
    **options: Any,
) -> subprocess.CompletedProcess[bytes]:
    """Runs the command to its end and checks its exit status."""
    done = subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=options.pop("env", None) or environment(),
        timeout=60,
        check=False,
        **options,
    )
    said = done.stderr.decode(errors="replace")
    assert done.returncode == expect, said
    assert "Traceback" not in said
    assert "panicked" not in said
    assert "internal error" not in said
    return done


def objects(done: subprocess.CompletedProcess[bytes]) -> list[dict[str, Any]]:
    """The JSON lines that a run printed."""
    return [json.loads(line) for line in done.stdout.splitlines()]


def weights(count: int, *, dtype: str = "BF16", seed: int = 0) -> bytes:
    """Floats as models have them."""
    values = np.random.default_rng(seed).standard_normal(count).astype(np.float32) * 0.02
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def safetensors_bytes(*, count: int = 40_000, seed: int = 0, names: str = "layer") -> bytes:
    """A .safetensors file with tensors of several types, one of them twice, one empty."""
    tensors = [
        (f"{names}.weight", "BF16", [count // 8, 8], weights(count, seed=seed)),
        (f"{names}.tied", "BF16", [count // 8, 8], weights(count, seed=seed)),
        (f"{names}.scale", "F32", [500], weights(500, dtype="F32", seed=seed)),
        (f"{names}.ids", "I64", [3], np.arange(3, dtype="<i8").tobytes()),
        (f"{names}.zeros", "F16", [9000], bytes(18_000)),
        (f"{names}.none", "F32", [0, 4], b""),
    ]
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "note": "äöü"}}
    position = 0
    for name, dtype, shape, data in tensors:
        offsets = [position, position + len(data)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        position += len(data)
    text = json.dumps(header).encode()
    # Not the padding that the safetensors package would write: bytes are bytes.
    text += b" " * (-len(text) % 8 + 8)
    return len(text).to_bytes(8, "little") + text + b"".join(data for *_, data in tensors)


def npz_bytes() -> bytes:
    """A numpy archive."""
    stream = io.BytesIO()
    np.savez(stream, a=np.frombuffer(weights(30_000, dtype="F32"), "<f4"), b=np.arange(10))
    return stream.getvalue()


def zip_bytes() -> bytes:
    """A zip of stored floats, as torch.save writes them."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("archive/data/0", weights(50_000))
    return stream.getvalue()


def gguf_bytes() -> bytes:
    """Something like a GGUF file: a header and aligned half floats."""
    header = b"GGUF" + (3).to_bytes(4, "little") + (1).to_bytes(8, "little") + bytes(48)
    return header + weights(60_000, dtype="F16")


OTHER_FILES: dict[str, bytes] = {
    "weights.npz": npz_bytes(),
    "checkpoint.pt": zip_bytes(),
    "model.gguf": gguf_bytes(),
    "program": Path(sys.executable).resolve().read_bytes()[:300_001],
    "noise.bin": np.random.default_rng(5).bytes(100_003),
    "text.txt.gz": gzip.compress(b"tensor " * 999, mtime=0),
    "byte": b"x",
    "empty": b"",
    # Named like one, but none.
    "pointer.safetensors": b"version https://git-lfs.github.com/spec/v1\n",
}
"""Name -> content of files that are not .safetensors."""


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, links followed: relative path -> content."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def flipped(data: bytes, position: int, mask: int = 1) -> bytes:
    """The same bytes with one bit changed."""
    changed = bytearray(data)
    changed[position] ^= mask
    return bytes(changed)
