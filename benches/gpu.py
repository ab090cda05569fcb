"""How fast a GPU decodes, encodes, loads and trains: `python -m benches.gpu` where there is one.

Buffers rotate beyond three times the second-level cache, times are CUDA events, figures medians.
Beside GB/s of BF16 stand the bytes that are read and written; encoding reads weights twice and
writes compressed bytes twice, samples not counted. Correctness comes first: each tensor is compared
before it is timed. nvCOMP's ANS, if its Python package is installed, codes
the bytes of the same tensors. Training and generation are those of the small Llama of
`benches.training`, with plain and with compressed weights.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import neuzip_rs as nz

ROUNDS = 20
GB = 1e9
# About a millisecond.
SLEEP_CYCLES = 2_000_000


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
        # The device waits while Python launches, so that its time is all that counts.
        torch.cuda._sleep(SLEEP_CYCLES)
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


def encoding(torch: Any, count: int, level: str) -> Figure:  # noqa: ANN401
    """Encoding into memory of the device, with the plan to decode it: all kernels of a tensor."""
    layout = import_module("neuzip_rs.cuda._encode_layout")
    launch = import_module("neuzip_rs.cuda._encode").launch
    native = import_module("neuzip_rs._native")
    cupy_device = import_module("neuzip_rs.cuda._device").cupy_device
    frame = import_module("neuzip_rs.cuda._torch")
    columns = 4096
    runs = []
    for seed in range(rotation(torch, 2 * count)):
        x = weights(torch, count, seed)
        log2 = native.chunk_log2("bfloat16", 2 * count, level=level)
        seen = layout.views("bfloat16", (count // columns, columns)) if level == "default" else ()
        one = layout.Input(x.data_ptr(), 2 * count, "bfloat16", log2, seen)
        out = torch.empty(2 * count, dtype=torch.uint8, device="cuda")

        def run(x: Any = x, one: Any = one, out: Any = out) -> Any:  # noqa: ANN401
            del x  # It is what `one` tells of.
            with cupy_device(*frame.place("cuda"), frame) as device:
                return launch(device, layout.describe([one]), out.data_ptr(), level=level)

        runs.append(run)
    matrix = weights(torch, count, 0).view(-1, columns)
    c = nz.compress(matrix, level=level)
    assert c == nz.compress(matrix.cpu(), level=level)
    moved = 4 * count + 2 * c.nbytes
    return Figure(f"encode, {level}", 2 * count, moved, timed(torch, runs))


def encoding_to_host(torch: Any, count: int) -> Figure:  # noqa: ANN401
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


def nvcomp(torch: Any, count: int) -> list[Figure]:  # noqa: ANN401
    """What nvCOMP makes of the same weights, if it is here."""
    if find_spec("nvidia") is None or find_spec("nvidia.nvcomp") is None:
        print("nvCOMP is not installed (nvidia-nvcomp-cu12 or -cu13)", file=sys.stderr)
        return []
    library = import_module("nvidia.nvcomp")
    codec = library.Codec(algorithm="ANS")
    plain = [weights(torch, count, seed).view(torch.uint8) for seed in range(2)]
    arrays = [library.as_array(x) for x in plain]
    coded = [codec.encode(array) for array in arrays]
    for x, array in zip(plain, coded, strict=True):
        assert torch.equal(torch.as_tensor(codec.decode(array), device="cuda").view(torch.uint8), x)
    size = int(coded[0].buffer_size)
    encoded = timed(torch, [partial(codec.encode, array) for array in arrays])
    decoded = timed(torch, [partial(codec.decode, array) for array in coded])
    return [
        Figure(
            f"nvCOMP ANS, encode, to {size / 2 / count:.3f}", 2 * count, 2 * count + size, encoded
        ),
        Figure("nvCOMP ANS, decode", 2 * count, 2 * count + size, decoded),
    ]


def files(torch: Any, count: int) -> list[Figure]:  # noqa: ANN401
    """From a file in the page cache to the device, compressed and plain; wall time."""
    safetensors = import_module("safetensors.torch")
    tensors = {f"w{i}": weights(torch, count // 16, i).cpu() for i in range(16)}
    nbytes = sum(x.nbytes for x in tensors.values())
    with tempfile.TemporaryDirectory() as folder:
        plain, compressed = Path(folder, "plain"), Path(folder, "compressed")
        safetensors.save_file(tensors, plain)
        nz.safetensors.save_file(tensors, compressed)
        found = nz.safetensors.load_file(compressed, device="cuda")
        assert all(torch.equal(found[name].cpu(), x) for name, x in tensors.items())
        del found
        times: dict[str, list[float]] = {"ours": [], "plain": []}
        for _ in range(7):
            for name, load in (
                ("ours", partial(nz.safetensors.load_file, compressed, device="cuda")),
                ("plain", partial(safetensors.load_file, plain, device="cuda")),
            ):
                torch.cuda.synchronize()
                begin = time.perf_counter()
                load()
                torch.cuda.synchronize()
                times[name].append(time.perf_counter() - begin)
        stored = compressed.stat().st_size
    return [
        Figure("load_file, compressed", nbytes, stored, statistics.median(times["ours"])),
        Figure("safetensors.load_file, plain", nbytes, nbytes, statistics.median(times["plain"])),
    ]


def small_llama(torch: Any) -> None:  # noqa: ANN401
    """Seconds of a training step and tokens a second, with plain and with compressed weights."""
    training = import_module("benches.training")
    layers, rounds, length = 14, 7, 32
    nets = [training.model(layers).cuda(), nz.nn.compress_(training.model(layers).cuda())]
    optimizers = [nz.optim.InBackward(net, training.adamw) for net in nets]
    print("\n| small Llama | ms a step | tokens a second | peak GB, a step |\n|---|--:|--:|--:|")
    losses = []
    for name, net, optimizer in zip(("plain", "compressed"), nets, optimizers, strict=True):
        pick = torch.Generator().manual_seed(1)
        steps, own = [], []
        torch.cuda.reset_peak_memory_stats()
        for _ in range(rounds):
            batch = torch.randint(training.VOCABULARY, (8, training.LENGTH), generator=pick).cuda()
            torch.cuda.synchronize()
            begin = time.perf_counter()
            logits = net(batch)[:, :-1].flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(logits.float(), batch[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            torch.cuda.synchronize()
            steps.append(time.perf_counter() - begin)
            own.append(float(loss))
        peak = torch.cuda.max_memory_allocated() / GB
        losses.append(own)
        with torch.no_grad():
            tokens = torch.zeros(1, 1, dtype=torch.long, device="cuda")
            begin = time.perf_counter()
            for _ in range(length):
                tokens = torch.cat((tokens, net(tokens)[:, -1:].argmax(-1)), 1)
            torch.cuda.synchronize()
            rate = length / (time.perf_counter() - begin)
        print(f"| {name} | {statistics.median(steps) * 1e3:.1f} | {rate:.0f} | {peak:.2f} |")
    nz.cuda.check()
    # The backward of attention may add in any order: tests/python/cuda/test_gpu.py trains without.
    same = "the same" if losses[0] == losses[1] else f"not the same: {losses}"
    print(f"\nLosses are {same}.")


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
    for level in ("fast", "default"):
        print(encoding(torch, count, level).line())
    print(encoding_to_host(torch, count).line())
    for figure in (*loading(torch, count), *files(torch, count)):
        print(figure.line())
    try:
        for figure in nvcomp(torch, count):
            print(figure.line())
    except Exception as error:
        # What another library does is no reason to end.
        print(f"nvCOMP: {error}", file=sys.stderr)
    small_llama(torch)


if __name__ == "__main__":
    main()
