"""Sizes and times of torch.distributed.checkpoint: plain, with its ZStandard extension, with ours.

    python -m benches.dcp MODEL.safetensors [--rounds 5] [--folder DIR]

The writers take turns in rounds, in one process, and every load is compared with what was saved.
Printed are medians, and those of the ratios to the plain writer within a round.
"""

import argparse
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, TypeAlias

import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint._extension import ZStandard
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

import neuzip_rs.dcp

Pair: TypeAlias = tuple[Callable[[Path], Any], Callable[[Path], Any]]

PAIRS: dict[str, Pair] = {
    "plain": (FileSystemWriter, FileSystemReader),
    "neuzip fast": (lambda p: neuzip_rs.dcp.writer(p, level="fast"), neuzip_rs.dcp.reader),
    "neuzip default": (neuzip_rs.dcp.writer, neuzip_rs.dcp.reader),
    "ZStandard": (lambda p: FileSystemWriter(p, _extensions=[ZStandard()]), FileSystemReader),
}


def _round(state: dict[str, torch.Tensor], pair: Pair, path: Path) -> tuple[float, float, int]:
    shutil.rmtree(path, ignore_errors=True)
    started = perf_counter()
    save(state, storage_writer=pair[0](path), no_dist=True)
    saved = perf_counter() - started
    # Touched: the first write to new memory is not what is measured.
    loaded = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    started = perf_counter()
    load(loaded, storage_reader=pair[1](path), no_dist=True)
    seconds = perf_counter() - started
    for name, tensor in state.items():
        mine, theirs = (x.contiguous().view(-1).view(torch.uint8) for x in (loaded[name], tensor))
        if not torch.equal(mine, theirs):
            message = f"{name} did not come back"
            raise AssertionError(message)
    return saved, seconds, sum(file.stat().st_size for file in path.iterdir())


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="a .safetensors file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where to write, by default the temporary folder")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    state = load_file(options.model)
    results: dict[str, list[tuple[float, float, int]]] = {name: [] for name in PAIRS}
    with tempfile.TemporaryDirectory(prefix="neuzip-", dir=options.folder) as folder:
        for _ in range(options.rounds):
            for name, pair in PAIRS.items():
                results[name].append(_round(state, pair, Path(folder) / "checkpoint"))
    size = sum(tensor.nbytes for tensor in state.values())
    print(f"{options.model.name}: {size / 1e6:.1f} MB in {len(state)} tensors\n")
    print("| writer | MB | % | save s | x plain | load s | x plain |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, rounds in results.items():
        stored = rounds[0][2]
        cells = [name, f"{stored / 1e6:.1f}", f"{100 * stored / results['plain'][0][2]:.1f}"]
        for index in (0, 1):
            times = [float(values[index]) for values in rounds]
            plain = [float(values[index]) for values in results["plain"]]
            ratio = median(mine / other for mine, other in zip(times, plain, strict=True))
            cells += [f"{median(times):.2f}", f"{ratio:.2f}"]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
