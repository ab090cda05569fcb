"""Measures how small files of real weights become, next to the other compressors.

Percent of the whole file, header included. neuzip_rs compresses the file and restores it, byte for
byte. The others get the tensors one at a time, which is how they do best, every round trip is
asserted, and the file's header counts as it is; a tensor of a type that one does not take counts as
it is too.
"""

from __future__ import annotations

import filecmp
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import neuzip_rs.safetensors
from benches import child, machine, models, peers
from benches.codecs import LEVELS, Sample
from neuzip_rs._spelling import NAMES

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parent.parent
# Where it lies beside the repository, it makes a larger set of files from other packages.
CORPUS_SCRIPT = ROOT.parent / "shared" / "corpus" / "build_corpus.py"
QUICK_LIMIT_BYTES = 4 << 20
# What the README shows of the others, and what it calls them.
SHOWN = {
    "zipnn": "zipnn",
    "lmzip": "lmzip",
    "openzl": "OpenZL",
    "z4ai": "z4ai",
    "zstd -19": "zstd -19",
    "byte planes, zstd -19": "on byte planes",
}


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
    if folder is None:
        if not CORPUS_SCRIPT.exists():
            return list(models.demo_models(cache))
        folder = cache / "corpus"
        command = [sys.executable, str(CORPUS_SCRIPT), "--out", str(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        message = f"{folder}: no .safetensors files"
        raise FileNotFoundError(message)
    return found


def work(task: dict[str, Any]) -> dict[str, Any]:
    """Measures the file of a task in this process."""
    path = Path(task["file"])
    return {
        "file": path.name.removesuffix(".safetensors"),
        "file_bytes": path.stat().st_size,
        "percent": {level: _whole_file(path, level) for level in LEVELS},
        **(task["others"] or measure_others(path, task["quick"])),
    }


def measure_others(path: Path, quick: bool) -> dict[str, Any]:
    """Measures the other compressors on one file.

    Args:
        path: A .safetensors file.
        quick: They get a part of the tensors only, and what that is of the file is measured.

    Returns:
        Percent by codec, and reasons for what a codec did not take.
    """
    _, tensors = models.read_tensors(path)
    tensors = [tensor for tensor in tensors if tensor.data.size]
    file_bytes = path.stat().st_size
    header = file_bytes - sum(tensor.data.size for tensor in tensors)
    if quick:
        tensors = _first(tensors, QUICK_LIMIT_BYTES)
    measured = header + sum(tensor.data.size for tensor in tensors)
    missing: dict[str, str] = {}
    totals: dict[str, int] = {}
    for tensor in tensors:
        dtype = NAMES[tensor.dtype]
        codecs, absent = peers.for_size(dtype)
        missing |= absent
        sizes, failed = peers.proved(codecs, Sample(dtype, tensor.data, tensor.shape))
        for name, reason in failed.items():
            missing.setdefault(name, f"{dtype} {reason}")
        taken = {codec.name: size for codec, size in sizes.items()}
        for codec in codecs:
            size = taken.get(codec.name, tensor.data.size)
            totals[codec.name] = totals.get(codec.name, header) + min(size, tensor.data.size)
    return {
        "peers": {name: 100 * total / measured for name, total in totals.items()},
        "missing": missing,
    }


def _first(tensors: list[models.Tensor], limit: int) -> list[models.Tensor]:
    chosen: list[models.Tensor] = []
    size = 0
    for tensor in tensors:
        if size + tensor.data.size <= limit:
            size += tensor.data.size
            chosen.append(tensor)
    return chosen


def _whole_file(path: Path, level: str) -> float:
    with tempfile.TemporaryDirectory() as scratch:
        packed, restored = Path(scratch) / "packed", Path(scratch) / "restored"
        neuzip_rs.safetensors.compress_file(path, packed, level=level)
        neuzip_rs.safetensors.decompress_file(packed, restored)
        if not filecmp.cmp(path, restored, shallow=False):
            message = f"{path}: {level} did not restore its input"
            raise AssertionError(message)
        return 100 * packed.stat().st_size / path.stat().st_size


def best_peer(row: dict[str, Any]) -> float | None:
    """Returns what the best of the other compressors makes of a file, in percent."""
    return min(row["peers"].values(), default=None)


def table(rows: Sequence[dict[str, Any]], names: dict[str, str]) -> list[str]:
    """Returns a table of all files.

    Args:
        rows: What was measured of each.
        names: The other compressors to show, and what to call them.

    Returns:
        Its lines.
    """
    heads = [*(f"**{level}**" for level in LEVELS), *names.values()]
    lines = [f"| file | MB | {' | '.join(heads)} |", f"|---|--:|{'--:|' * len(heads)}"]
    for row in rows:
        percents = [row["percent"][level] for level in LEVELS]
        percents += [row["peers"].get(name) for name in names]
        smallest = min(percent for percent in percents if percent is not None)
        cells = [_cell(percent, smallest) for percent in percents]
        lines.append(f"| {row['file']} | {row['file_bytes'] / 1e6:.1f} | {' | '.join(cells)} |")
    return lines


def _cell(percent: float | None, smallest: float) -> str:
    if percent is None:
        return "-"
    return f"**{percent:.2f}**" if percent == smallest else f"{percent:.2f}"


def verdict(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Says in how many files each level is below all others, one line a level."""
    lines = []
    for level in LEVELS:
        gaps = {
            row["file"]: row["percent"][level] - best
            for row in rows
            if (best := best_peer(row)) is not None
        }
        worst = max(gaps, key=lambda file: gaps[file], default=None)
        if worst is not None:
            below = sum(gap < 0 for gap in gaps.values())
            lines.append(
                f"`{level}` is below the best of the others on {below} of {len(gaps)} files; "
                f"worst: {gaps[worst]:+.2f} points on {worst}."
            )
    return lines


def page(rows: Sequence[dict[str, Any]], note: str) -> str:
    """Returns the whole page of results."""
    names = list(dict.fromkeys(name for row in rows for name in row["peers"]))
    missing = {name: reason for row in rows for name, reason in row["missing"].items()}
    lines = [
        "# Sizes",
        "",
        "Written by `make bench`. Percent of the whole file, header included, smallest in bold. "
        "neuzip compresses the file; the others get its tensors one at a time, and the header "
        "counts as it is. Every round trip asserted. Speeds: [speed.md](speed.md).",
        "",
        note,
        "",
        *table(rows, {name: name for name in names}),
        "",
        *(f"* {line}" for line in verdict(rows)),
        *(f"* {name}: {reason}." for name, reason in missing.items()),
    ]
    return "\n".join([*lines, ""])


def readme_table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the table for the README."""
    return "\n".join([*table(rows, SHOWN), "", *verdict(rows), ""])


def measured_before(out: Path) -> dict[str, dict[str, Any]]:
    """Returns what sizes.json has of the other compressors, by the name of the file."""
    rows = json.loads((out / "sizes.json").read_text(encoding="utf-8"))["files"]
    return {row["file"]: {name: row[name] for name in ("peers", "missing")} for row in rows}


def write(
    folder: Path | None, cache: Path, out: Path, *, quick: bool, keep_others: bool = False
) -> list[dict[str, Any]]:
    """Measures the sizes and writes sizes.md and sizes.json.

    Args:
        folder: A folder of .safetensors files, or None for the standard set.
        cache: The folder in which fetched things are kept.
        out: Where the results go.
        quick: The beginning of each file is enough for the others.
        keep_others: Take the figures of the others from sizes.json, where it has the file: they
            take most of the time, and do not change with the package.

    Returns:
        What was measured of each file.
    """
    kept = measured_before(out) if keep_others else {}

    def row(path: Path) -> dict[str, Any]:
        others = kept.get(path.name.removesuffix(".safetensors"))
        task = {"file": str(path), "quick": quick, "others": others}
        found: dict[str, Any] = child.run("benches.sizes", task)
        return found

    # A process for each core: sizes do not depend on time.
    with ThreadPoolExecutor(machine.cores()) as pool:
        rows = list(pool.map(row, corpus_files(folder, cache)))
    installed = ", ".join(f"{name} {version}" for name, version in peers.versions().items())
    note = f"{machine.describe()}; {installed}."
    if quick:
        mib = QUICK_LIMIT_BYTES >> 20
        note = f"**From a quick run: the others on {mib} MiB of each file.** {note}"
    (out / "sizes.md").write_text(page(rows, note), encoding="utf-8")
    text = json.dumps({"note": note, "files": rows}, indent=1) + "\n"
    (out / "sizes.json").write_text(text, encoding="utf-8")
    return rows
