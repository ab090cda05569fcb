"""Measures products of W12 weights next to torch's with BF16, on the GPU that is there.

    python -m benches.gpu_fused                 # Llama 8B's shapes, 1 to 16 rows, a Markdown table
    python -m benches.gpu_fused --tune          # every way to cut each product into blocks

Each product has copies of its weights of more than three times the second-level cache together,
so that all weights come from memory. A pass over all copies is a CUDA graph, so that the launches
of neither side wait for Python; what counts is the median over passes that take turns. Every
product is compared with the true one before it is timed.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import product
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from neuzip_rs.cuda._w12_plan import Plan
    from neuzip_rs.cuda.w12 import W12

Tensor: TypeAlias = Any
Torch: TypeAlias = Any

# Outputs and inputs of Llama-3 8B's products.
SHAPES = {
    "q and o": (4096, 4096),
    "k and v": (1024, 4096),
    "q, k, v": (6144, 4096),
    "gate": (14336, 4096),
    "gate and up": (28672, 4096),
    "down": (4096, 14336),
    "head": (128256, 4096),
}
ROWS = (1, 2, 4, 8, 16, 32)
PASSES = 40
# docs/gpu.md: times torch BF16, on 50 million weights and more.
TARGETS = {1: 1.22, 2: 1.15, 4: 1.15, 8: 1.15, 16: 1.15}
TARGET_WEIGHTS = 50_000_000
NEVER_BELOW = 0.97


@dataclass(frozen=True)
class Case:
    """One product with its rotating copies."""

    name: str
    plain: Sequence[Tensor]
    packed: Sequence[W12]

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.packed[0].shape


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, or the best plans."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tune", action="store_true", help="measure every plan")
    parser.add_argument("--only", action="append", choices=SHAPES, help="a part of the shapes")
    options = parser.parse_args(arguments)
    torch: Torch = import_module("torch")
    if not torch.cuda.is_available():
        message = "error: gpu_fused needs a CUDA device"
        raise SystemExit(message)
    properties = torch.cuda.get_device_properties(0)
    print(
        f"{properties.name}, {properties.multi_processor_count} multiprocessors, "
        f"{properties.L2_cache_size >> 20} MiB of second-level cache, torch {torch.__version__}\n"
    )
    names = options.only or list(SHAPES)
    with torch.no_grad():
        if options.tune:
            _tune(torch, names)
        else:
            _compare(torch, names)


def _case(torch: Torch, name: str) -> Case:
    from neuzip_rs.cuda import w12

    shape = SHAPES[name]
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    copies = max(3 * cache // (shape[0] * shape[1] * 3 // 2) + 1, 2)
    plain, packed = [], []
    for _ in range(copies):
        weight = torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_(0, 0.02)
        made = w12.pack(weight, min_weights=1)
        assert made is not None
        assert torch.equal(w12.unpack(made), weight)
        plain.append(weight)
        packed.append(made)
    return Case(name, plain, packed)


def _compare(torch: Torch, names: Sequence[str]) -> None:
    from neuzip_rs.cuda import w12

    print(
        "| product | outputs x inputs | rows | BF16 us | GB/s | W12 us | GB/s | faster | target |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for name in names:
        case = _case(torch, name)
        weights = case.shape[0] * case.shape[1]
        for rows in ROWS:
            x = torch.empty((rows, case.shape[1]), dtype=torch.bfloat16, device="cuda").normal_()
            _assert_close(w12.linear(x, case.packed[0]), x, case.plain[0])
            plain_us, packed_us = _times(
                torch,
                partial(_each, partial(torch.nn.functional.linear, x), case.plain),
                partial(_each, partial(w12.linear, x), case.packed),
            )
            plain_us, packed_us = plain_us / len(case.plain), packed_us / len(case.packed)
            faster = plain_us / packed_us
            large = weights >= TARGET_WEIGHTS and rows in TARGETS
            target = TARGETS[rows] if large else NEVER_BELOW
            print(
                f"| {name} | {case.shape[0]} x {case.shape[1]} | {rows} "
                f"| {plain_us:.1f} | {2e-3 * weights / plain_us:.0f} "
                f"| {packed_us:.1f} | {1e-3 * case.packed[0].nbytes / packed_us:.0f} "
                f"| {faster:.2f}x | {target:.2f}{'' if faster >= target else ', missed'} |",
                flush=True,
            )
        _print_conversions(torch, case)
        del case


def _print_conversions(torch: Torch, case: Case) -> None:
    from neuzip_rs.cuda import w12

    weights = case.shape[0] * case.shape[1]
    out = torch.empty(case.shape, dtype=torch.bfloat16, device="cuda")
    unpack_us, copy_us = _times(
        torch,
        partial(_each, lambda packed: w12._decode(packed, 0, out), case.packed),
        partial(_each, out.copy_, case.plain),
    )
    each = len(case.packed)
    print(
        f"| {case.name} | decoding to BF16 | | copy {copy_us / each:.1f} | "
        f"| {unpack_us / each:.1f} | {2e-3 * weights * each / unpack_us:.0f} of BF16 | | |"
    )


def _each(run: Callable[[Any], object], values: Sequence[Any]) -> list[object]:
    return [run(value) for value in values]


def _times(torch: Torch, *passes: Callable[[], object]) -> list[float]:
    """Median microseconds of each pass, recorded as a graph; passes take turns."""
    graphs = []
    for run in passes:
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            keep = run()
        graphs.append((graph, keep))
    times: list[list[float]] = [[] for _ in passes]
    for turn in range(PASSES + 3):
        for (graph, _), into in zip(graphs, times, strict=True):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            if turn >= 3:
                into.append(start.elapsed_time(end) * 1000)
    return [statistics.median(values) for values in times]


def _assert_close(y: Tensor, x: Tensor, weight: Tensor) -> None:
    exact = x.double() @ weight[:4096].double().T
    sums = x.double().abs() @ weight[:4096].double().abs().T
    bound = exact.abs() * 2.0**-8 + sums * (x.shape[1] + 20) * 2.0**-23
    assert bool(((y[:, :4096].double() - exact).abs() <= bound).all())


def _tune(torch: Torch, names: Sequence[str]) -> None:
    from neuzip_rs.cuda import _w12_plan, w12

    print("| product | rows | chosen us | best us | best: rows of tiles, slices | chosen |")
    print("|---|--:|--:|--:|---|---|")
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    for name in names:
        case = _case(torch, name)
        for rows in ROWS:
            x = torch.empty((rows, case.shape[1]), dtype=torch.bfloat16, device="cuda").normal_()
            y = torch.empty((rows, case.shape[0]), dtype=torch.bfloat16, device="cuda")

            def run(launch: Plan, case: Case = case, x: Tensor = x, y: Tensor = y) -> None:
                for matrix in case.packed:
                    w12._fused(torch, x, matrix, None, y, launch)

            chosen = _w12_plan.plan(*case.shape, rows, multiprocessors)
            launches = [chosen, *_launches(case.shape, rows)]
            times = _times(torch, *(partial(run, launch) for launch in launches))
            best = min(range(len(times)), key=times.__getitem__)
            print(
                f"| {name} | {rows} | {times[0] / len(case.packed):.1f} "
                f"| {times[best] / len(case.packed):.1f} "
                f"| {launches[best].row_warps}, {launches[best].slices} "
                f"| {chosen.row_warps}, {chosen.slices} |",
                flush=True,
            )


def _launches(shape: tuple[int, int], rows: int) -> list[Plan]:
    from neuzip_rs.cuda._w12_plan import INPUT_BYTES, Plan, kernel_for, tiles

    tile_rows, tile_columns = tiles(*shape)
    found = {}
    for log2, wanted in product(range(4), (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)):
        slice_tiles = -(-tile_columns // wanted)
        slices = -(-tile_columns // slice_tiles)
        shared = 128 * rows * slice_tiles
        if shared <= INPUT_BYTES:
            groups = -(-tile_rows // (1 << log2))
            found[log2, slices] = Plan(kernel_for(rows), groups, slices, log2, slice_tiles, shared)
    return list(found.values())


if __name__ == "__main__":
    main()
