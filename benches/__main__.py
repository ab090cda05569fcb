"""`make bench`: measures speeds and sizes next to other compressors and writes benches/results/.

Speeds go to speed.md, speed.json and speed.svg, sizes to sizes.md and sizes.json. A quick run uses
small buffers and few rounds and writes to .demo/bench-quick/ instead, because its figures are not
worth keeping.

    python -m benches [--quick] [--only PART ...] [--tiers NAMES] [--out DIR] [--scratch DIR]
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benches import (
    command,
    machine,
    memory,
    peers,
    plot,
    readme,
    sizes,
    small,
    speed,
    speed_page,
    weights,
)
from benches.demo import scratch_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".demo"
RESULTS = ROOT / "benches" / "results"
QUICK_RESULTS = CACHE / "bench-quick"
PARTS = ("speed", "command", "small", "memory", "sizes")
SPEED_PARTS = PARTS[:4]
README_BLOCK = "speed-table"
SIZES_BLOCK = "sizes-table"


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benches", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="small buffers, few rounds")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=str(PARTS)
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=list(weights.KINDS),
        default=list(weights.KINDS),
        metavar="TYPE",
        help=f"types for the speeds: {tuple(weights.KINDS)}",
    )
    parser.add_argument(
        "--tiers",
        type=lambda text: text.split(","),
        default=list(speed.TIERS),
        metavar="NAMES",
        help="kernels to measure, separated by commas; unavailable ones are reported as such",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds per case")
    parser.add_argument(
        "--keep-others",
        action="store_true",
        help="sizes of the other compressors as sizes.json has them",
    )
    parser.add_argument("--corpus", type=Path, metavar="DIR", help=".safetensors files for sizes")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the results go")
    parser.add_argument(
        "--scratch", type=Path, metavar="DIR", help="for files; by default in memory if it fits"
    )
    parser.add_argument(
        "--update-readme", action="store_true", help="put the short table into README.md"
    )
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.tiers) - set(speed.TIERS))
    if unknown:
        parser.error(f"unknown tiers {unknown}; known: {', '.join(speed.TIERS)}")
    if options.out is None:
        options.out = QUICK_RESULTS if options.quick else RESULTS
    return options


def measure(options: argparse.Namespace) -> speed_page.Measurements:
    """Measures the speeds that were asked for."""
    best = speed.best_tier()
    tiers = {best: "best"}
    usable = []
    for tier in options.tiers:
        problem = speed.tier_problem(tier)
        if problem is None:
            usable.append(tier)
            tiers.setdefault(tier, "measured")
        else:
            tiers[tier] = "not available"
    effort = speed.QUICK if options.quick else speed.FULL
    if options.rounds is not None:
        effort = speed.Effort(options.rounds, options.rounds, 0.0, effort.limit)
    found = speed_page.Measurements(
        date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        quick=options.quick,
        machine=machine.facts(),
        versions=peers.versions(),
        tiers=tiers,
        best=best,
        results=[],
        command=None,
        small=None,
        memory=[],
    )
    if "speed" in options.only:
        for case in speed.cases(options.kinds, usable, best, machine.cores()):
            say(str(case))
            file = weights.buffer_file(CACHE, weights.KINDS[case.kind])
            found.results.append(speed.measure(case, file, effort))
    bf16 = weights.KINDS["BF16"]
    folder, where = options.scratch, "to the folder given"
    if folder is None:
        folder, where = scratch_folder(2 << 30)
    if "command" in options.only:
        say("the command, next to zstd and cp")
        file = weights.large_file(CACHE, 1 if options.quick else len(weights.FILE_SCALES))
        found.command = command.measure(file, folder, where, 2 if options.quick else 5)
    if "small" in options.only:
        say("small tensors")
        with tempfile.TemporaryDirectory(dir=folder, prefix="neuzip-bench-") as scratch:
            found.small = small.measure(
                weights.buffer_file(CACHE, bf16),
                Path(scratch),
                rounds=2 if options.quick else 5,
                count=1000 if options.quick else small.COUNT,
            )
    if "memory" in options.only:
        say("peak memory")
        file = weights.buffer_file(CACHE, bf16)
        found.memory = memory.measure("BF16", file, effort.limit, machine.cores())
    return found


def record(found: speed_page.Measurements) -> dict[str, Any]:
    """Returns everything that was measured as a JSON object."""
    return {
        "date": found.date,
        "quick": found.quick,
        "machine": found.machine,
        "versions": found.versions,
        "tiers": found.tiers,
        "targets": [asdict(verdict) for verdict in found.verdicts()],
        "speed": [result.to_json() for result in found.results],
        "command": asdict(found.command) if found.command else None,
        "small": _plain(found.small),
        "memory": found.memory,
    }


def _plain(small_tensors: dict[str, Any] | None) -> dict[str, Any] | None:
    if small_tensors is None:
        return None
    spreads = ("tiny_us", "many")
    return {
        **small_tensors,
        **{
            group: {name: asdict(spread) for name, spread in small_tensors[group].items()}
            for group in spreads
        },
    }


def say(text: str) -> None:
    """Prints what is measured now."""
    print(f"{time.strftime('%H:%M:%S')} {text} ...", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, and writes the results.

    Args:
        arguments: The command line, by default the real one.

    Returns:
        The exit code.
    """
    options = parse_arguments(arguments)
    started = time.monotonic()
    CACHE.mkdir(exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    if set(options.only) & set(SPEED_PARTS):
        found = measure(options)
        page = speed_page.page(found)
        (options.out / "speed.md").write_text(page, encoding="utf-8")
        text = json.dumps(record(found), indent=1) + "\n"
        (options.out / "speed.json").write_text(text, encoding="utf-8")
        shown = found.case("BF16", "warm", threads=1)
        if shown is not None:
            size = f"{shown.original_bytes / 1e6:.0f} MB of BF16 weights, one thread, checks on"
            note = f"{size}; {found.machine['CPU']}; {found.best} kernels; {found.date}"
            plot.draw(shown, note, options.out / "speed.svg")
            if options.update_readme:
                table = speed_page.readme_table(found)
                readme.replace_block(ROOT / "README.md", README_BLOCK, table)
        for verdict in found.verdicts():
            print("  ".join(verdict.cells()))
        print(speed_page.disturbance(found) or "The machine was quiet.")
    if "sizes" in options.only:
        say("sizes per file")
        rows = sizes.write(
            options.corpus,
            CACHE,
            options.out,
            quick=options.quick,
            keep_others=options.keep_others,
        )
        for line in sizes.verdict(rows):
            print(line)
        if options.update_readme:
            readme.replace_block(ROOT / "README.md", SIZES_BLOCK, sizes.readme_table(rows))
    minutes = (time.monotonic() - started) / 60
    print(f"{minutes:.1f} minutes; results in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
