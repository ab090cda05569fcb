"""The second reader on real files: what it decodes is what was compressed.

    python -m tests.python.second_corpus FOLDER [--chunks N] [--levels fast default max]
        [--jobs N] [--reader PYTHON]

Every `.safetensors` file in a folder is compressed, and next to another file of the same tensors,
where there is one, as differences. Of each result the containers, all headers and all models are
read, and N chunks of a file (0: all of them) are decoded, hashed and compared with the original
bytes: the first and last ones, and others at random. CPython takes about a fifth of a second for
each; another Python that reads, such as PyPy, needs xxhash.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from neuzip_rs import safetensors

ROOT = Path(__file__).parents[2]
# Of larger files the slow level is left out, unless all is decoded.
MOST_SLOW_BYTES = 50_000_000


class Task(NamedTuple):
    """One file, compressed in one way."""

    title: str
    path: Path
    level: str
    base: Path | None


def tasks(folder: Path, levels: list[str], count: int) -> Iterator[Task]:
    """What there is to compare."""
    for path in sorted(folder.glob("*.safetensors")):
        for level in levels:
            if level == "max" and path.stat().st_size > MOST_SLOW_BYTES and count:
                continue
            yield Task(f"{path.name} {level}", path, level, None)
        step = path.with_name(f"tinylm_s500.{path.name.partition('.')[2]}")
        if path.name.startswith("tinylm_s5") and step != path and step.exists():
            yield Task(f"{path.name} next to {step.name}", path, "default", step)


def compare(task: Task, count: int, reader: str) -> Counter[str]:
    """Compresses a file and has the second reader read it."""
    with tempfile.TemporaryDirectory() as scratch:
        packed = Path(scratch) / "packed"
        safetensors.compress_file(task.path, packed, level=task.level, base=task.base)
        files = [str(path.resolve()) for path in (task.path, packed)]
        files.append(str(task.base.resolve()) if task.base else "")
        command = [reader, "-m", "tests.python.second_agreement", *files, str(count), task.title]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{task.title}: {done.stderr}")
    seen: Counter[str] = Counter(json.loads(done.stdout))
    print(f"{task.title}: {dict(seen)}", flush=True)
    return seen


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--levels", nargs="*", default=["fast", "default", "max"])
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--reader", default=sys.executable)
    options = parser.parse_args()
    began = time.monotonic()
    todo = list(tasks(options.folder, options.levels, options.chunks))
    assert todo, "no .safetensors files there"
    with ThreadPoolExecutor(options.jobs) as pool:
        waiting = [pool.submit(compare, task, options.chunks, options.reader) for task in todo]
        try:
            total = sum((one.result() for one in waiting), Counter[str]())
        finally:
            pool.shutdown(cancel_futures=True)
    count, seconds = len({task.path for task in todo}), time.monotonic() - began
    print(f"{count} files, {dict(total)}, no disagreement, {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
