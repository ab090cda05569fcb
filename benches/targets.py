"""The speeds and sizes that neuzip_rs aims at, and whether the measurements reach them.

Each target names two things that were measured in the same rounds, or one figure and its limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benches.codecs import FRESH, OUT, UNVERIFIED
from benches.paired import COMPRESS, Spread, digits
from benches.speed import single_thread_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benches import command, paired

MEMCPY = ("memcpy", OUT)
ZIPNN_COMPRESS = ("zipnn", COMPRESS)
ZIPNN_DECOMPRESS = ("zipnn", FRESH)
# Threads keep their working memory; beyond the output a process may grow by so much for each.
WORKING_BYTES_PER_THREAD = 4 << 20


@dataclass(frozen=True)
class Verdict:
    """One row of the table of targets."""

    what: str
    target: str
    measured: str
    met: bool | None

    def cells(self) -> tuple[str, str, str, str]:
        """Returns its cells."""
        verdict = "not measured" if self.met is None else "met" if self.met else "**missed**"
        return (self.what, self.target, self.measured, verdict)

    @classmethod
    def at_least(cls, what: str, limit: float, of: str, spread: Spread | None) -> Verdict:
        """A ratio that should not be below a limit."""
        target = f">= {limit:g}x {of}"
        if spread is None:
            return cls(what, target, "-", None)
        return cls(what, target, spread.with_quartiles(), spread.median >= limit)


def speeds(results: Sequence[paired.Result], best: str) -> Iterator[Verdict]:
    """Yields the verdicts on what was measured from memory to memory.

    Args:
        results: All cases.
        best: The tier that this machine uses.
    """

    def ratio(
        key: tuple[str, str],
        reference: tuple[str, str],
        *,
        kind: str = "BF16",
        regime: str = "warm",
        tier: str = best,
    ) -> Spread | None:
        for result in results:
            case = (result.kind, result.regime, result.tier, result.threads)
            if case == (kind, regime, tier, 1):
                return result.ratio(key, reference)
        return None

    for level, memcpy in (("fast", 1.2), ("default", 1.0)):
        key = (f"neuzip {level}", OUT)
        what = f"BF16, `{level}`: decode into `out=`"
        yield Verdict.at_least(what, memcpy, "memcpy", ratio(key, MEMCPY))
    key = ("neuzip default", OUT)
    what = "BF16, `default`: decode into `out=`, warm heap"
    yield Verdict.at_least(what, 6, "zipnn", ratio(key, ZIPNN_DECOMPRESS))
    what = "BF16, `default`: decode into fresh memory, default allocator"
    key = ("neuzip default", FRESH)
    yield Verdict.at_least(what, 5, "zipnn", ratio(key, ZIPNN_DECOMPRESS, regime="default"))
    for level, memcpy in (("fast", 0.6), ("default", 0.45)):
        key = (f"neuzip {level}", COMPRESS)
        yield Verdict.at_least(f"BF16, `{level}`: encode", memcpy, "memcpy", ratio(key, MEMCPY))
    key = ("neuzip fast", COMPRESS)
    yield Verdict.at_least("BF16, `fast`: encode", 8, "zipnn", ratio(key, ZIPNN_COMPRESS))
    key = ("neuzip default", OUT)
    what = "BF16, `default`, AVX2 kernels: decode"
    yield Verdict.at_least(what, 2.5, "zipnn", ratio(key, ZIPNN_DECOMPRESS, tier="avx2"))
    key = ("neuzip default", COMPRESS)
    what = "BF16, `default`, AVX2 kernels: encode"
    yield Verdict.at_least(what, 3.5, "zipnn", ratio(key, ZIPNN_COMPRESS, tier="avx2"))
    for kind, level, limit in (("FP32", "default", 4), ("FP16", "default", 4), ("FP8", "fast", 8)):
        for action, reference, verb in (
            (COMPRESS, ZIPNN_COMPRESS, "encode"),
            (OUT, ZIPNN_DECOMPRESS, "decode"),
        ):
            spread = ratio((f"neuzip {level}", action), reference, kind=kind)
            yield Verdict.at_least(f"{kind}, `{level}`: {verb}", limit, "zipnn", spread)
    for level in ("fast", "default"):
        verified, unverified = (f"neuzip {level}", OUT), (f"neuzip {level}", OUT + UNVERIFIED)
        what = f"BF16, `{level}`: verified decode"
        yield Verdict.at_least(what, 0.8, "unverified", ratio(verified, unverified))
    yield from _scaling(results, best)


def _scaling(results: Sequence[paired.Result], best: str) -> Iterator[Verdict]:
    """All threads against one; a codec as fast as a parallel memcpy is at the memory's limit."""
    for result in results:
        chosen = (result.kind, result.regime, result.tier) == ("BF16", "warm", best)
        if not chosen or result.threads == 1:
            continue
        ceiling = (f"memcpy, {result.threads} threads", OUT)
        for level in ("fast", "default"):
            for action, verb in ((COMPRESS, "encode"), (OUT, "decode")):
                key, single = (f"neuzip {level}", action), (single_thread_name(level), action)
                scaled, bound = result.ratio(key, single), result.ratio(key, ceiling)
                if scaled is None or bound is None:
                    continue
                yield Verdict(
                    f"BF16, `{level}`: {verb} with {result.threads} threads",
                    ">= 1.7x 1 thread, or 1x memcpy on as many",
                    f"{scaled.with_quartiles()}; {bound}x memcpy",
                    scaled.median >= 1.7 or bound.median >= 1,
                )


def commands(result: command.Result | None) -> Iterator[Verdict]:
    """Yields the verdict on the whole command."""
    from benches.command import ZSTD

    spread = result.ratio("neuzip default", "compress") if result is not None else None
    size = f"{result.original_bytes / 1e9:.2f} GB" if result is not None else "1 GB"
    yield Verdict.at_least(f"`neuzip compress` of {size}", 2.5, f"`{ZSTD}`", spread)


def small_tensors(found: dict[str, Any] | None) -> Iterator[Verdict]:
    """Yields the verdicts on small tensors."""
    tiny = found["tiny_us"] if found is not None else {}
    for name, spread in tiny.items():
        met = spread.median <= 20
        measured = f"{spread.with_quartiles()} µs"
        yield Verdict(f"1 KiB from Python and back, {name}", "<= 20 µs", measured, met)
    many = found["many"] if found is not None else {}
    for name, spread in many.items():
        what = f"{found['count'] if found else 0:,} tensors of 8 KiB: {name}"
        target = "<= 2x the time of one large"
        yield Verdict(what, target, f"{spread.with_quartiles()}x", spread.median <= 2)


def memory(rows: Sequence[dict[str, Any]]) -> Iterator[Verdict]:
    """Yields the verdicts on peak memory."""
    for row in rows:
        if not row["codec"].startswith("neuzip"):
            continue
        outputs = {
            COMPRESS: row["compressed_bytes"],
            FRESH: row["original_bytes"],
            OUT: 0,
        }
        for action, output in outputs.items():
            allowed = output + row["threads"] * WORKING_BYTES_PER_THREAD
            peak = row["peaks"][action]
            verb = {COMPRESS: "encode", FRESH: "decode, fresh", OUT: "decode into `out=`"}[action]
            yield Verdict(
                f"peak memory of {row['codec']}, {row['threads']} thread(s): {verb}",
                f"<= output + 4 MiB per thread = {digits(allowed / 1e6)} MB",
                f"{digits(peak / 1e6)} MB",
                peak <= allowed,
            )
