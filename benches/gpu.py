"""How fast a GPU decodes and encodes: `python -m benches.gpu` on a machine that has one.

Buffers rotate beyond three times the second-level cache, times are CUDA events, figures medians.
Beside GB/s of BF16 stand the bytes that are read and written. Correctness comes first:
each tensor is compared before it is timed.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import neuzip_rs as nz

ROUNDS = 20
GB = 1e9


class Figure(NamedTuple):
    """One line of the table."""

    what: str
    original_bytes: int
    moved_bytes: int
    seconds: float

    def line(self) -> str:
        """As a row of a table."""
        rate, moved = self.original_bytes / self.seconds, self.moved_bytes / self.seconds
        return (
            f"| {self.what} | {self.original_bytes / 1e6:.0f} | {self.seconds * 1e6:.0f} "
            f"| {rate / GB:.0f} | {moved / GB:.0f} |"
        )


def timed(torch: Any, runs: Sequence[Callable[[], object]]) -> float:  # noqa: ANN401
    """Median seconds of one run, taking turns between runs that use different memory."""
    for run in runs:
        run()
    times: list[float] = []
    for number in range(ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        runs[number % len(runs)]()
        end.record()
        end.synchronize()
        times.append(float(begin.elapsed_time(end)) / 1e3)
    return statistics.median(times)


def weights(torch: Any, count: int, seed: int) -> Any:  # noqa: ANN401
    """Random BF16 weights on the device."""
    generator = torch.Generator("cuda").manual_seed(seed)
    x = torch.randn(count, generator=generator, device="cuda") * 0.02
    return x.to(torch.bfloat16)


def rotation(torch: Any, nbytes: int) -> int:  # noqa: ANN401
    """How many buffers of this size exceed three times the cache."""
    cache = int(torch.cuda.get_device_properties(0).L2_cache_size)
    return max(2, -(-3 * cache // nbytes))


def decoding(torch: Any, count: int, level: str, chunk_bytes: int | None) -> Figure:  # noqa: ANN401
    """Plain decode of tensors whose compressed bytes are on the device."""
    native = import_module("neuzip_rs._native")
    runs, moved = [], 0
    for seed in range(rotation(torch, 2 * count)):
        x = weights(torch, count, seed)
        data = x.cpu().view(torch.uint8).numpy()
        c = native.compress(data, "bfloat16", (count,), level=level, chunk_bytes=chunk_bytes)
        resident = nz.cuda.Resident([c], [torch.empty_like(x)])
        (out,) = resident.decode()
        nz.cuda.check()
        assert torch.equal(out.view(torch.int16), x.view(torch.int16))
        runs.append(resident.decode)
        moved = c.nbytes + 2 * count
    chunk = "" if chunk_bytes is None else f", chunks of {chunk_bytes >> 10} KiB"
    return Figure(f"decode, {level}{chunk}", 2 * count, moved, timed(torch, runs))


def encoding(torch: Any, count: int) -> Figure:  # noqa: ANN401
    """Encoding at the level fast, from device memory to compressed bytes on the host."""
    tensors = [weights(torch, count, seed) for seed in range(rotation(torch, 2 * count))]
    c = nz.compress(tensors[0], level="fast")
    assert c == nz.compress(tensors[0].cpu(), level="fast")
    runs = [partial(nz.compress, x, level="fast") for x in tensors]
    return Figure("encode, fast, to the host", 2 * count, 2 * count + c.nbytes, timed(torch, runs))


def loading(torch: Any, count: int) -> list[Figure]:  # noqa: ANN401
    """Host to device: compressed and decoded there, and plain."""
    x = weights(torch, count, 1)
    c = nz.compress(x.cpu())
    plain = x.cpu().pin_memory()
    compressed = timed(torch, [lambda: nz.cuda.decompress_many([c])])
    nz.cuda.check()
    copied = timed(torch, [lambda: plain.to("cuda", non_blocking=True)])
    return [
        Figure("upload and decode", 2 * count, c.nbytes, compressed),
        Figure("upload, plain, pinned", 2 * count, 2 * count, copied),
    ]


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=512, help="size of the large tensors")
    arguments = parser.parse_args()
    torch = import_module("torch")
    if not torch.cuda.is_available() or not nz.cuda.is_available():
        parser.exit(1, "there is no CUDA device, or no CuPy (neuzip_rs[cuda12] or [cuda13])\n")
    count = arguments.megabytes * 500_000 // 65536 * 65536
    print(f"{torch.cuda.get_device_name(0)}; neuzip_rs {nz.__version__}; medians of {ROUNDS}\n")
    print("| what | MB of BF16 | µs | GB/s of BF16 | GB/s read and written |")
    print("|---|--:|--:|--:|--:|")
    source = [weights(torch, count, seed) for seed in range(2)]
    copy = timed(torch, [x.clone for x in source])
    print(Figure("copy on the device", 2 * count, 4 * count, copy).line())
    for level in ("fast", "default"):
        print(decoding(torch, count, level, None).line())
    for chunk_bytes in (32 << 10, 64 << 10, 128 << 10):
        print(decoding(torch, 4096 * 4096, "fast", chunk_bytes).line())
    print(encoding(torch, count).line())
    for figure in loading(torch, count):
        print(figure.line())


if __name__ == "__main__":
    main()
