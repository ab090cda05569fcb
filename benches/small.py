"""Measures what small tensors cost: one of 1 KiB, and a model of 10,000 of 8 KiB.

The model is compared per byte with the same weights as one tensor: called from Python tensor by
tensor on one thread, and as .safetensors files in memory with every core.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benches import child
from benches.paired import Spread

if TYPE_CHECKING:
    from collections.abc import Callable

TINY_BYTES = 1024
SMALL_BYTES = 8192
COUNT = 10_000


def measure(file: Path, scratch: Path, *, rounds: int, count: int = COUNT) -> dict[str, Any]:
    """Measures small tensors in a process of its own.

    Args:
        file: A buffer of BF16 weights.
        scratch: A folder for files.
        rounds: How often many small tensors and the large one take turns.
        count: How many small tensors.

    Returns:
        `tiny_us`: microseconds for compressing and restoring 1 KiB, by framework; `many`: how many
        times as long many small tensors take as one large, by what is done.
    """
    task = {"file": str(file), "scratch": str(scratch), "rounds": rounds, "count": count}
    found: dict[str, Any] = child.run("benches.small", task)
    for group in ("tiny_us", "many"):
        found[group] = {name: Spread.of(values) for name, values in found[group].items()}
    return found


def work(task: dict[str, Any]) -> dict[str, Any]:
    """Measures in this process."""
    import numpy as np

    from benches.codecs import typed

    data = np.load(task["file"], mmap_mode="r")[: SMALL_BYTES * task["count"]]
    shape = (SMALL_BYTES // 2 // 64, 64)
    large = typed(np.array(data), "bfloat16", (-1, 64))
    parts = [
        typed(np.array(data[start : start + SMALL_BYTES]), "bfloat16", shape)
        for start in range(0, data.size, SMALL_BYTES)
    ]
    tiny = typed(np.array(data[:TINY_BYTES]), "bfloat16", (8, 64))
    return {
        "original_bytes": data.size,
        "count": len(parts),
        "tiny_us": _tiny(tiny),
        "many": {
            **_in_memory(parts, large, task["rounds"]),
            **_files(parts, large, Path(task["scratch"]), task["rounds"]),
        },
    }


def _tiny(array: Any) -> dict[str, list[float]]:  # noqa: ANN401
    """Microseconds of one round trip, in groups of 200."""
    import numpy as np

    import neuzip_rs

    inputs = {"numpy": array}
    try:
        import torch
    except ImportError:
        pass
    else:
        words = torch.from_numpy(array.view(np.int16).copy())
        inputs["torch"] = words.view(torch.bfloat16)
    result = {}
    for name, value in inputs.items():
        groups = []
        for _ in range(21):
            started = time.perf_counter()
            for _ in range(200):
                restored = neuzip_rs.decompress(neuzip_rs.compress(value))
            groups.append((time.perf_counter() - started) / 200 * 1e6)
        if bytes(memoryview(_words(restored))) != bytes(memoryview(_words(value))):
            message = f"{name}: 1 KiB did not come back"
            raise AssertionError(message)
        result[name] = groups[1:]
    return result


def _words(value: Any) -> Any:  # noqa: ANN401
    """The elements as integers, which have a buffer."""
    import numpy as np

    if isinstance(value, np.ndarray):
        return value.view(np.int16)
    import torch

    return value.view(torch.int16).numpy()


def _in_memory(parts: list[Any], large: Any, rounds: int) -> dict[str, list[float]]:  # noqa: ANN401
    import neuzip_rs

    def compress(arrays: list[Any]) -> list[neuzip_rs.CompressedTensor]:
        return [neuzip_rs.compress(array, threads=1) for array in arrays]

    def decompress(tensors: list[neuzip_rs.CompressedTensor]) -> None:
        for tensor in tensors:
            neuzip_rs.decompress(tensor, threads=1)

    packed, one = compress(parts), compress([large])
    return {
        "compress, from Python, 1 thread": _turns(
            partial(compress, parts), partial(compress, [large]), rounds
        ),
        "decompress, from Python, 1 thread": _turns(
            partial(decompress, packed), partial(decompress, one), rounds
        ),
    }


def _files(
    parts: list[Any],
    large: Any,  # noqa: ANN401
    scratch: Path,
    rounds: int,
) -> dict[str, list[float]]:
    import neuzip_rs.safetensors as nst
    from benches.models import Tensor, write_tensors
    from neuzip_rs._spelling import NAMES

    (spelling,) = [short for short, name in NAMES.items() if name == "bfloat16"]
    names = {"many": parts, "one": [large]}
    plain: dict[str, Path] = {}
    packed: dict[str, Path] = {}
    created: list[Path] = []
    try:
        for name, arrays in names.items():
            plain[name] = scratch / f"neuzip-bench-{os.getpid()}-{name}.safetensors"
            packed[name] = plain[name].with_suffix(".nz")
            created += [plain[name], packed[name], plain[name].with_suffix(".back")]
            tensors = [
                Tensor(f"t{index}", spelling, array.shape, array.reshape(-1).view("u1"))
                for index, array in enumerate(arrays)
            ]
            write_tensors(plain[name], None, tensors)

        def compress(name: str) -> None:
            packed[name].unlink(missing_ok=True)
            nst.compress_file(plain[name], packed[name])

        def decompress(name: str) -> None:
            back = plain[name].with_suffix(".back")
            back.unlink(missing_ok=True)
            nst.decompress_file(packed[name], back)

        return {
            f"{action.__name__}, files, every core": _turns(
                partial(action, "many"), partial(action, "one"), rounds
            )
            for action in (compress, decompress)
        }
    finally:
        for path in created:
            path.unlink(missing_ok=True)


def _turns(many: Callable[[], object], one: Callable[[], object], rounds: int) -> list[float]:
    """How many times as long the first takes as the second, in every round but a first one."""
    ratios = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        many()
        middle = time.perf_counter()
        one()
        ratios.append((middle - started) / (time.perf_counter() - middle))
    return ratios[1:]
