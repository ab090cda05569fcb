"""Measures neuzip_rs against zipnn, zstd, lz4 and blosc2 on real weights.

Sizes and speeds from memory to memory on one thread. All codecs get the same tensors, one at a
time: those of the type that makes up most of a file. Each codec's round trip is asserted before
anything is timed; then the codecs take turns, and the median CPU time of the
rounds counts, which a busy machine disturbs least. All of it is done twice, in a process each:
with the default allocator, where every large output pays for page faults, and with a warm heap
(MALLOC_MMAP_MAX_=0), where memory that was freed is used again.

    python -m benches.peers [--corpus DIR] [--rounds N] [--out DIR]

Writes DIR/peers.md and DIR/peers.json, by default in benches/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import neuzip_rs
import neuzip_rs.safetensors
from benches import machine, models

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benches.codecs import Codec, Sample

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".demo"
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
# One name, and what the environment of its process adds. Without the trim threshold glibc would
# give the top of the heap back after every free.
REGIMES = {
    "default": {},
    "warm": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)},
}
# More shows nothing new: this is beyond every cache.
LIMIT_BYTES = 96 << 20


@dataclass(frozen=True)
class Measurement:
    """One codec on one buffer under one allocator."""

    regime: str
    file: str
    dtype: str
    original_bytes: int
    codec: str
    compressed_bytes: int
    compress_seconds: float
    decompress_seconds: float

    @property
    def compress_speed(self) -> float:
        """GB of original bytes per second."""
        return self.original_bytes / self.compress_seconds / 1e9

    @property
    def decompress_speed(self) -> float:
        """GB of original bytes per second."""
        return self.original_bytes / self.decompress_seconds / 1e9


def corpus_files(folder: Path | None) -> list[Path]:
    """Finds the files to measure, and makes them if they are not there.

    Args:
        folder: A folder of .safetensors files, or None for the standard set.

    Returns:
        Paths of .safetensors files.
    """
    if folder is not None:
        return sorted(folder.glob("*.safetensors"))
    CACHE.mkdir(exist_ok=True)
    if not CORPUS_SCRIPT.exists():
        return list(models.demo_models(CACHE))
    corpus = CACHE / "corpus"
    command = [sys.executable, str(CORPUS_SCRIPT), "--out", str(corpus), "--only", *CORPUS_MODELS]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return [corpus / f"{stem}.safetensors" for stem in CORPUS_FILES]


def main_tensors(path: Path) -> list[models.Tensor]:
    """Chooses the tensors of the type that makes up most of a file.

    Args:
        path: A .safetensors file.

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
        if tensor.dtype == dtype and tensor.data.size and size + tensor.data.size <= LIMIT_BYTES:
            size += tensor.data.size
            chosen.append(tensor)
    if not chosen:
        message = f"{path}: no float tensors"
        raise ValueError(message)
    return chosen


def prove(codec: Codec, samples: Sequence[Sample]) -> int:
    """Asserts that a codec restores its input, and returns the size of its output."""
    size = 0
    for index, sample in enumerate(samples):
        packed = codec.compress(sample)
        sample.restore()
        restored = codec.decompress(packed, index)
        if hasattr(restored, "tobytes"):
            restored = restored.tobytes()
        if restored != sample.pristine:
            message = f"{codec.name} did not restore its input"
            raise AssertionError(message)
        size += memoryview(packed).nbytes
    return size


def measure(path: Path, regime: str, rounds: int) -> list[Measurement]:
    """Measures all codecs on one file.

    Args:
        path: A .safetensors file.
        regime: The allocator this process runs with, for the record.
        rounds: How often each codec has its turn.

    Returns:
        The medians, in the order of the codecs.
    """
    # The peers: only the process that measures loads them.
    from benches.codecs import DTYPES as NAMES
    from benches.codecs import Sample, codecs_for

    tensors = main_tensors(path)
    samples = [Sample(tensor) for tensor in tensors]
    dtype = NAMES[tensors[0].dtype]
    codecs = codecs_for(dtype, samples)
    sizes = [prove(codec, samples) for codec in codecs]
    compress: list[list[float]] = [[] for _ in codecs]
    decompress: list[list[float]] = [[] for _ in codecs]
    for _ in range(rounds):
        for index, codec in enumerate(codecs):
            started = time.process_time()
            packed = [codec.compress(sample) for sample in samples]
            compress[index].append(time.process_time() - started)
            if codec.scratches_input:
                for sample in samples:
                    sample.restore()
            started = time.process_time()
            # Kept until the end, as the tensors of a model are when it is loaded.
            restored = [codec.decompress(item, number) for number, item in enumerate(packed)]
            decompress[index].append(time.process_time() - started)
            del packed, restored
    return [
        Measurement(
            regime=regime,
            file=path.name.removesuffix(".safetensors"),
            dtype=dtype,
            original_bytes=sum(len(sample.pristine) for sample in samples),
            codec=codec.name,
            compressed_bytes=size,
            compress_seconds=statistics.median(compress[index]),
            decompress_seconds=statistics.median(decompress[index]),
        )
        for index, (codec, size) in enumerate(zip(codecs, sizes, strict=True))
    ]


def in_own_process(path: Path, regime: str, rounds: int) -> list[Measurement]:
    """Has a process of its own measure a file under one allocator."""
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result.json"
        command = [sys.executable, "-m", "benches.peers", "--rounds", str(rounds)]
        command += ["--worker", regime, str(path), str(result)]
        # The warnings are those of what the peers import.
        environment = {**os.environ, **REGIMES[regime], "PYTHONWARNINGS": "ignore"}
        subprocess.run(command, check=True, cwd=ROOT, env=environment)
        return [Measurement(**entry) for entry in json.loads(result.read_text(encoding="utf-8"))]


def whole_file_percent(path: Path) -> float:
    """Returns the size of a compressed file, header and all, in percent of the original."""
    with tempfile.TemporaryDirectory() as scratch:
        packed = Path(scratch) / path.name
        neuzip_rs.safetensors.compress_file(path, packed)
        return 100 * packed.stat().st_size / path.stat().st_size


def speeds_table(measurements: Sequence[Measurement]) -> list[str]:
    """Returns the lines of the table of sizes and speeds."""
    lines = [
        "| tensors | MB | codec | size % | compress | decompress | compress, warm "
        "| decompress, warm |",
        "|---|--:|---|--:|--:|--:|--:|--:|",
    ]
    warm = {(m.file, m.codec): m for m in measurements if m.regime == "warm"}
    last = None
    for cold in measurements:
        if cold.regime != "default":
            continue
        hot = warm[cold.file, cold.codec]
        head = ("", "") if cold.file == last else (cold.file, f"{cold.original_bytes / 1e6:.1f}")
        last = cold.file
        cells = (
            *head,
            cold.codec,
            f"{100 * cold.compressed_bytes / cold.original_bytes:.2f}",
            f"{cold.compress_speed:.2f}",
            f"{cold.decompress_speed:.2f}",
            f"{hot.compress_speed:.2f}",
            f"{hot.decompress_speed:.2f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def report(measurements: Sequence[Measurement], files: dict[str, float], note: str) -> str:
    """Returns the whole page of results."""
    sizes = ["| file | neuzip default % |", "|---|--:|"]
    sizes += [f"| {name} | {percent:.2f} |" for name, percent in files.items()]
    lines = [
        "# Against the peers",
        "",
        "Written by `make bench`. GB/s of original bytes, CPU time, one thread, from memory to "
        "memory; all codecs get the same tensors of one model, one at a time. *Warm*: freed "
        "memory is used again instead of being mapped anew (`MALLOC_MMAP_MAX_=0`).",
        "",
        note,
        "",
        *speeds_table(measurements),
        "",
        "Whole files, header included:",
        "",
        *sizes,
        "",
    ]
    return "\n".join(lines)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benches.peers", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="a folder of .safetensors files")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--out", type=Path, default=ROOT / "benches" / "results", metavar="DIR")
    parser.add_argument(
        "--worker", nargs=3, metavar=("REGIME", "FILE", "RESULT"), help=argparse.SUPPRESS
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark, or one file of it in a worker process.

    Args:
        arguments: The command line, by default the real one.

    Returns:
        The exit code.
    """
    options = parse_arguments(arguments)
    if options.worker:
        regime, file, result = options.worker
        entries = [asdict(entry) for entry in measure(Path(file), regime, options.rounds)]
        Path(result).write_text(json.dumps(entries), encoding="utf-8")
        return 0

    paths = corpus_files(options.corpus)
    measurements: list[Measurement] = []
    for path in paths:
        for regime in REGIMES:
            print(f"{path.stem}: {regime} allocator ...", flush=True)
            measurements += in_own_process(path, regime, options.rounds)
    files = {path.stem: whole_file_percent(path) for path in paths}
    note = f"Medians of {options.rounds} rounds. {machine.describe()}."
    page = report(measurements, files, note)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "peers.md").write_text(page, encoding="utf-8")
    record = {
        "machine": machine.describe(),
        "rounds": options.rounds,
        "measurements": [asdict(entry) for entry in measurements],
        "file_percent": files,
    }
    (options.out / "peers.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print("\n" + page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
