"""Measures how small real weights become, next to the other compressors.

All codecs get the same tensors, one at a time: those of the type that makes up most of a file. Each
codec's round trip is asserted. neuzip_rs also compresses the whole files, header and all.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import neuzip_rs.safetensors
from benches import child, machine, models, peers
from benches.codecs import LEVELS, Neuzip, Sample
from neuzip_rs._spelling import NAMES

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parent.parent
# Where it lies beside the repository, it makes a larger set of files from other packages.
CORPUS_SCRIPT = ROOT.parent / "shared" / "corpus" / "build_corpus.py"
CORPUS_MODELS = ("minilm_l6", "decimer", "crepe_full", "whisper_tiny")
CORPUS_FILES = (
    "minilm_l6.bf16",
    "decimer_effnet_transformer.bf16",
    "crepe_full.bf16",
    "minilm_l6.fp16",
    "whisper_tiny.fp16native",
    "minilm_l6.fp32",
    "minilm_l6.fp8e4m3",
)
DTYPES = ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
# More shows nothing new.
LIMIT_BYTES = 96 << 20
QUICK_LIMIT_BYTES = 4 << 20


def corpus_files(folder: Path | None, cache: Path) -> list[Path]:
    """Finds the files to measure, and makes them if they are not there.

    Args:
        folder: A folder of .safetensors files, or None for the standard set.
        cache: The folder in which fetched things are kept.

    Returns:
        Paths of .safetensors files.

    Raises:
        FileNotFoundError: The folder has none.
    """
    if folder is not None:
        found = sorted(folder.glob("*.safetensors"))
        if not found:
            message = f"{folder}: no .safetensors files"
            raise FileNotFoundError(message)
        return found
    if not CORPUS_SCRIPT.exists():
        return list(models.demo_models(cache))
    corpus = cache / "corpus"
    command = [sys.executable, str(CORPUS_SCRIPT), "--out", str(corpus), "--only", *CORPUS_MODELS]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return [corpus / f"{stem}.safetensors" for stem in CORPUS_FILES]


def main_tensors(path: Path, limit: int) -> list[models.Tensor]:
    """Chooses the tensors of the type that makes up most of a file.

    Args:
        path: A .safetensors file.
        limit: How many bytes at most.

    Returns:
        Its tensors of that type, as many as stay within the limit, none of them empty.

    Raises:
        ValueError: The file holds no floats.
    """
    _, tensors = models.read_tensors(path)
    totals = {
        dtype: sum(tensor.data.size for tensor in tensors if tensor.dtype == dtype)
        for dtype in DTYPES
    }
    dtype = max(totals, key=lambda key: totals[key])
    chosen: list[models.Tensor] = []
    size = 0
    for tensor in tensors:
        if tensor.dtype == dtype and tensor.data.size and size + tensor.data.size <= limit:
            size += tensor.data.size
            chosen.append(tensor)
    if not chosen:
        message = f"{path}: no float tensors"
        raise ValueError(message)
    return chosen


def work(task: dict[str, Any]) -> dict[str, Any]:
    """Measures the file of a task in this process."""
    return measure(Path(task["file"]), task["limit"])


def measure(path: Path, limit: int) -> dict[str, Any]:
    """Measures all codecs on one file.

    Args:
        path: A .safetensors file.
        limit: How many bytes of tensors at most.

    Returns:
        The file's name and size, what was measured of it, and percent by codec.
    """
    tensors = main_tensors(path, limit)
    dtype = NAMES[tensors[0].dtype]
    own = [Neuzip(level, 1) for level in LEVELS]
    others, missing = peers.available(dtype, 1)
    totals = {codec.name: 0 for codec in (*own, *others)}
    for tensor in tensors:
        sample = Sample(dtype, tensor.data, tensor.shape)
        sizes, failed = peers.proved(others, sample)
        sizes |= {codec: codec.prove(sample) for codec in own}
        for codec, size in sizes.items():
            totals[codec.name] += size
        # A codec that cannot restore one tensor has no size on this file.
        others = [codec for codec in others if codec in sizes]
        missing |= failed
        for name in failed:
            del totals[name]
    original = sum(tensor.data.size for tensor in tensors)
    return {
        "file": path.name.removesuffix(".safetensors"),
        "file_bytes": path.stat().st_size,
        "dtype": dtype,
        "measured_bytes": original,
        "percent": {name: 100 * size / original for name, size in totals.items()},
        "missing": missing,
        "file_percent": {level: _whole_file(path, level) for level in LEVELS},
    }


def _whole_file(path: Path, level: str) -> float:
    with tempfile.TemporaryDirectory() as scratch:
        packed = Path(scratch) / path.name
        neuzip_rs.safetensors.compress_file(path, packed, level=level)
        return 100 * packed.stat().st_size / path.stat().st_size


def page(rows: Sequence[dict[str, Any]], note: str) -> str:
    """Returns the whole page of results."""
    names = list(dict.fromkeys(name for row in rows for name in row["percent"]))
    lines = [
        "# Sizes",
        "",
        "Written by `make bench`. Percent of the original, smallest in bold: tensors of one type "
        "of a model, compressed one by one, every round trip asserted. Speeds: "
        "[speed.md](speed.md).",
        "",
        note,
        "",
        f"| tensors | MB | {' | '.join(names)} |",
        f"|---|--:|{'--:|' * len(names)}",
    ]
    for row in rows:
        smallest = min(row["percent"].values())
        cells = [_cell(row["percent"].get(name), smallest) for name in names]
        lines.append(f"| {row['file']} | {row['measured_bytes'] / 1e6:.1f} | {' | '.join(cells)} |")
    missing = {name: reason for row in rows for name, reason in row["missing"].items()}
    lines += ["", *(f"{name}: {reason}." for name, reason in missing.items())]
    lines += [
        "Whole files, header included:",
        "",
        f"| file | MB | {' | '.join(f'neuzip {level} %' for level in LEVELS)} |",
        f"|---|--:|{'--:|' * len(LEVELS)}",
    ]
    for row in rows:
        cells = [f"{row['file_percent'][level]:.2f}" for level in LEVELS]
        lines.append(f"| {row['file']} | {row['file_bytes'] / 1e6:.1f} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _cell(percent: float | None, smallest: float) -> str:
    if percent is None:
        return "-"
    return f"**{percent:.2f}**" if percent == smallest else f"{percent:.2f}"


def write(folder: Path | None, cache: Path, out: Path, *, quick: bool) -> None:
    """Measures the sizes and writes sizes.md and sizes.json.

    Args:
        folder: A folder of .safetensors files, or None for the standard set.
        cache: The folder in which fetched things are kept.
        out: Where the results go.
        quick: The beginning of each file is enough.
    """
    limit = QUICK_LIMIT_BYTES if quick else LIMIT_BYTES
    rows = [
        child.run("benches.sizes", {"file": str(path), "limit": limit})
        for path in corpus_files(folder, cache)
    ]
    installed = ", ".join(f"{name} {version}" for name, version in peers.versions().items())
    note = f"{machine.describe()}; {installed}."
    if quick:
        note = f"**From a quick run on the first {limit >> 20} MiB of each file.** {note}"
    (out / "sizes.md").write_text(page(rows, note), encoding="utf-8")
    text = json.dumps({"note": note, "files": rows}, indent=1) + "\n"
    (out / "sizes.json").write_text(text, encoding="utf-8")
