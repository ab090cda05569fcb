"""Measures speeds from memory to memory: each case in a process of its own.

A case is a type, an allocator regime, a tier of kernels and a number of threads. Regimes: with the
default allocator every large new output is mapped afresh and pays for page faults; with a *warm*
heap (MALLOC_MMAP_MAX_=0) memory that was freed is used again. The tier is pinned by NEUZIP_SIMD.
Both are settings of a process, hence the processes; all codecs of a case run in one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benches import child, machine, paired

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from benches.codecs import Codec

# One name, and what the environment of its process adds. Without the trim threshold glibc would
# give the top of the heap back after every free.
REGIMES = {
    "warm": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)},
    "default": {},
}
TIERS = ("scalar", "avx2", "avx512", "neon")


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int
    enough: int
    seconds: float
    # Bytes of each buffer, None for all.
    limit: int | None = None


FULL = Effort(rounds=18, enough=6, seconds=16)
QUICK = Effort(rounds=3, enough=2, seconds=3, limit=16 << 20)


@dataclass(frozen=True)
class Case:
    """What one process measures."""

    kind: str
    regime: str
    tier: str
    threads: int
    # Whether all peers run, or only zipnn.
    peers: bool = True

    def __str__(self) -> str:
        """What is printed while it runs."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.kind}, {threads}, {self.regime} allocator, {self.tier} kernels"


def best_tier() -> str:
    """Returns the tier that this machine uses unless told otherwise."""
    return _tier(None)


def tier_problem(tier: str) -> str | None:
    """Returns why a tier cannot be used here, None if it can."""
    try:
        _tier(tier)
    except subprocess.CalledProcessError as error:
        return str(error.stderr).strip().splitlines()[-1]
    return None


def _tier(pinned: str | None) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "NEUZIP_SIMD"}
    if pinned is not None:
        environment["NEUZIP_SIMD"] = pinned
    command = [sys.executable, "-c", "import neuzip_rs; print(neuzip_rs.simd_tier())"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return done.stdout.strip()


def cases(kinds: Iterable[str], tiers: Iterable[str], best: str, threads: int) -> Iterator[Case]:
    """Yields what to measure.

    Args:
        kinds: The types.
        tiers: The tiers, all of them usable.
        best: The tier that gets all peers and both numbers of threads.
        threads: What "all threads" means here.

    Yields:
        The cases: first everything with the best tier, then the other tiers next to zipnn.
    """
    kinds = list(kinds)
    for kind in kinds:
        for count in (1, threads) if threads > 1 else (1,):
            for regime in REGIMES:
                yield Case(kind, regime, best, count)
    for tier in tiers:
        if tier != best:
            for kind in kinds:
                yield Case(kind, "warm", tier, 1, peers=False)


def measure(case: Case, file: Path, effort: Effort) -> paired.Result:
    """Measures a case in a process of its own.

    Args:
        case: What to measure.
        file: The buffer.
        effort: How long.

    Returns:
        The times of all codecs.
    """
    # Nothing in the libraries may decide on more threads than the case has.
    environment = {
        **REGIMES[case.regime],
        "NEUZIP_SIMD": case.tier,
        "NEUZIP_NUM_THREADS": str(case.threads),
        "OMP_NUM_THREADS": str(case.threads),
    }
    task = {"case": vars(case), "file": str(file), "effort": vars(effort)}
    return paired.Result.from_json(child.run("benches.speed", task, environment))


def work(task: dict[str, Any]) -> dict[str, Any]:
    """Measures the case of a task in this process."""
    case, effort = Case(**task["case"]), Effort(**task["effort"])
    return _measure_here(case, Path(task["file"]), effort).to_json()


def _measure_here(case: Case, file: Path, effort: Effort) -> paired.Result:
    # Only the process that measures loads the peers.
    import numpy as np

    import neuzip_rs
    from benches import codecs, peers, weights

    if neuzip_rs.simd_tier() != case.tier:
        message = f"asked for {case.tier} kernels, got {neuzip_rs.simd_tier()}"
        raise AssertionError(message)
    kind = weights.KINDS[case.kind]
    data = np.load(file, mmap_mode="r")
    if effort.limit is not None:
        data = data[: effort.limit]
    shape = (data.size // (kind.itemsize * weights.COLUMNS), weights.COLUMNS)
    sample = codecs.Sample(kind.dtype, data, shape)
    own, (others, missing) = _own_codecs(case), peers.available(kind.dtype, case.threads)
    if not case.peers:
        others = [codec for codec in others if codec.name == "zipnn"]
    sizes = {codec.name: codec.prove(sample) for codec in own}
    proved, failed = peers.proved(others, sample)
    sizes |= {codec.name: size for codec, size in proved.items()}
    started, busy, own_cpu = time.perf_counter(), machine.busy_seconds(), time.process_time()
    rounds = paired.run_rounds(
        [*own, *proved],
        sample,
        rounds=effort.rounds,
        enough=effort.enough,
        seconds=effort.seconds,
    )
    return paired.Result(
        kind=case.kind,
        dtype=kind.dtype,
        regime=case.regime,
        tier=case.tier,
        threads=case.threads,
        original_bytes=data.size,
        sizes=sizes,
        missing={**missing, **failed},
        rounds=rounds,
        others=_used_by_others(started, busy, own_cpu),
    )


def _used_by_others(started: float, busy: float | None, own_cpu: float) -> float | None:
    """How many cores other programs have used since then."""
    now = machine.busy_seconds()
    if busy is None or now is None:
        return None
    foreign = now - busy - (time.process_time() - own_cpu)
    return round(max(foreign, 0.0) / (time.perf_counter() - started), 3)


def single_thread_name(level: str) -> str:
    """Returns the name of neuzip on one thread next to itself on several."""
    return f"neuzip {level}, 1 thread"


def _own_codecs(case: Case) -> list[Codec]:
    from benches import codecs

    levels = codecs.LEVELS if case.peers else codecs.LEVELS[:2]
    chosen: list[Codec] = [codecs.Neuzip(level, case.threads) for level in levels]
    if case.threads > 1:
        chosen += [
            codecs.Neuzip(level, 1, name=single_thread_name(level)) for level in codecs.LEVELS[:2]
        ]
        chosen.append(codecs.Copy(case.threads))
    return [*chosen, codecs.Copy(1)]
