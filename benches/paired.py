"""Paired timing: in every round each codec has its turn, and ratios are taken within a round.

A machine that is slower for a while is slower for all codecs of a round, so the ratio to memcpy,
or to a peer, of the same round tells them apart better than two speeds measured at different
times. What is reported is the median of these ratios over the rounds, with their quartiles. The
order rotates, so that nobody always follows the same neighbour. Clocks: CPU time of the process
for one thread, wall time for several.
"""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benches.codecs import Codec, Sample

COMPRESS = "compress"


@dataclass(frozen=True)
class Timing:
    """One action of one codec in one round."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Spread:
    """The median over the rounds, and the quartiles."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Returns the spread of at least one value."""
        middle = statistics.median(values)
        if len(values) < 2:
            return cls(middle, middle, middle, len(values))
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high, len(values))

    def __str__(self) -> str:
        """The median with two or three digits."""
        return digits(self.median)

    def with_quartiles(self) -> str:
        """The median, and the quartiles in parentheses."""
        return f"{self} ({digits(self.low)} to {digits(self.high)})"


def digits(value: float) -> str:
    """Returns a figure with as many digits as it deserves."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


# (codec, action) -> what it took.
Round = dict[tuple[str, str], Timing]


@dataclass
class Result:
    """All rounds of the codecs on one buffer in one process."""

    kind: str
    dtype: str
    regime: str
    tier: str
    threads: int
    original_bytes: int
    sizes: dict[str, int]
    missing: dict[str, str]
    rounds: list[Round]
    # What other programs used meanwhile, in cores; None if the system does not say.
    others: float | None = None

    @property
    def clock(self) -> str:
        """Which clock counts."""
        return "cpu" if self.threads == 1 else "wall"

    def _seconds(self, timing: Timing) -> float:
        return timing.cpu if self.clock == "cpu" else timing.wall

    def actions(self) -> list[tuple[str, str]]:
        """Returns what was measured, each codec by itself, in the order of the codecs."""
        seen = {key for entries in self.rounds for key in entries}
        order = list(self.sizes)
        return sorted(seen, key=lambda key: (order.index(key[0]), key[1] != COMPRESS, key[1]))

    def speed(self, codec: str, action: str) -> Spread | None:
        """Returns GB of original bytes per second, None if it was not measured."""
        return self._spread(
            [
                self.original_bytes / self._seconds(entries[codec, action]) / 1e9
                for entries in self.rounds
                if (codec, action) in entries
            ]
        )

    def ratio(self, key: tuple[str, str], reference: tuple[str, str]) -> Spread | None:
        """Returns how many times as fast as a reference something is, None if unknown."""
        return self._spread(
            [
                self._seconds(entries[reference]) / self._seconds(entries[key])
                for entries in self.rounds
                if key in entries and reference in entries
            ]
        )

    @staticmethod
    def _spread(values: list[float]) -> Spread | None:
        return Spread.of(values) if values else None

    def to_json(self) -> dict[str, Any]:
        """Returns it as a JSON object, with every single time in seconds."""
        times: dict[str, dict[str, dict[str, list[float]]]] = {}
        for codec, action in self.actions():
            measured = [r[codec, action] for r in self.rounds if (codec, action) in r]
            times.setdefault(codec, {})[action] = {
                "wall": [round(timing.wall, 6) for timing in measured],
                "cpu": [round(timing.cpu, 6) for timing in measured],
                "round": [n for n, r in enumerate(self.rounds) if (codec, action) in r],
            }
        return {
            "kind": self.kind,
            "dtype": self.dtype,
            "regime": self.regime,
            "tier": self.tier,
            "threads": self.threads,
            "clock": self.clock,
            "original_bytes": self.original_bytes,
            "compressed_bytes": self.sizes,
            "missing": self.missing,
            "others": self.others,
            "seconds": times,
        }

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Result:
        """Restores what `to_json` returned."""
        rounds: dict[int, Round] = {}
        for codec, actions in entry["seconds"].items():
            for action, times in actions.items():
                for number, wall, cpu in zip(
                    times["round"], times["wall"], times["cpu"], strict=True
                ):
                    rounds.setdefault(number, {})[codec, action] = Timing(wall, cpu)
        return cls(
            kind=entry["kind"],
            dtype=entry["dtype"],
            regime=entry["regime"],
            tier=entry["tier"],
            threads=entry["threads"],
            original_bytes=entry["original_bytes"],
            sizes=entry["compressed_bytes"],
            missing=entry["missing"],
            rounds=[rounds[number] for number in sorted(rounds)],
            others=entry["others"],
        )


def run_rounds(
    codecs: Sequence[Codec], sample: Sample, *, rounds: int, enough: int, seconds: float
) -> list[Round]:
    """Gives every codec its turn, round after round.

    Args:
        codecs: All of them have been proved to restore the sample.
        sample: What they compress.
        rounds: How many rounds at most.
        enough: How many rounds at least.
        seconds: After so long no further round begins.

    Returns:
        The times.
    """
    done: list[Round] = []
    started = time.perf_counter()
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            if number >= enough and time.perf_counter() - started > seconds:
                break
            first = number % len(codecs)
            entries: Round = {}
            for codec in (*codecs[first:], *codecs[:first]):
                if number % codec.every == 0:
                    _turn(codec, sample, entries)
            done.append(entries)
    finally:
        gc.enable()
    return done


def _turn(codec: Codec, sample: Sample, entries: Round) -> None:
    watch = _Watch()
    packed = codec.compress(sample)
    entries[codec.name, COMPRESS] = watch.stop()
    if codec.scratches_input:
        sample.restore()
    for action, decode in codec.decoders().items():
        watch = _Watch()
        restored = decode(packed, sample)
        entries[codec.name, action] = watch.stop()
        # Freeing a large output is not part of the next measurement.
        del restored


class _Watch:
    def __init__(self) -> None:
        self._cpu = time.process_time()
        self._wall = time.perf_counter()

    def stop(self) -> Timing:
        wall = time.perf_counter() - self._wall
        return Timing(wall, time.process_time() - self._cpu)
