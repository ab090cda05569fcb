"""The page of speeds: what was measured, as markdown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benches import targets
from benches.codecs import FRESH, OUT, UNVERIFIED
from benches.paired import COMPRESS, Result, Spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from benches import command

# Other programs that use more than this disturb, above all measurements with every core.
QUIET_CORES = 0.1
REGIME_NAMES = {
    "warm": "Warm heap: freed memory is used again (`MALLOC_MMAP_MAX_=0`)",
    "default": "Default allocator: large outputs are mapped afresh",
}
PEERS_NOTE = (
    "Every ratio is the median of the ratios of the rounds, in which the codecs take turns in one "
    "process; each codec's round trip was asserted before. Sizes are percent of the original. "
    "GB/s count original bytes (10^9). *Decode*: `out=` fills memory that was written before, "
    "*fresh* allocates its result. Hashes and checksums are on unless a row says *unverified* "
    "(zipnn and blosc2 have none). zipnn overwrites its input, which is restored before every run, "
    "outside the timing. One thread: CPU time of the process; several: wall time."
)


@dataclass
class Measurements:
    """Everything one run of the benchmark found."""

    date: str
    quick: bool
    machine: dict[str, str]
    versions: dict[str, str]
    tiers: dict[str, str]
    best: str
    results: list[Result]
    command: command.Result | None
    small: dict[str, Any] | None
    memory: list[dict[str, Any]]

    def case(self, kind: str, regime: str, *, threads: int) -> Result | None:
        """Returns the result of a type with the best tier, one thread or several."""
        for result in self.results:
            same = (result.kind, result.regime, result.tier) == (kind, regime, self.best)
            if same and (result.threads == 1) == (threads == 1):
                return result
        return None

    def verdicts(self) -> list[targets.Verdict]:
        """Returns all targets."""
        return [
            *targets.speeds(self.results, self.best),
            *targets.commands(self.command),
            *targets.small_tensors(self.small),
            *targets.memory(self.memory),
        ]


def page(found: Measurements) -> str:
    """Returns the whole page."""
    return "\n".join([*_lines(found), ""])


def disturbance(found: Measurements) -> str:
    """Returns a warning if other programs were busy, else nothing."""
    busiest = max((result.others or 0.0 for result in found.results), default=0.0)
    if busiest <= QUIET_CORES:
        return ""
    return (
        f"The machine was not quiet: other programs used up to {busiest:.2f} cores, and figures "
        "with several threads mean little."
    )


def readme_table(found: Measurements) -> str:
    """Returns plot and short table for the README; nothing if BF16 was not measured."""
    result = found.case("BF16", "warm", threads=1)
    if result is None:
        return ""
    lines = table(
        ("codec", "size %", "encode, x memcpy", "decode, x memcpy", "encode GB/s", "decode GB/s"),
        (
            (
                f"**{codec}**" if codec.startswith("neuzip") else codec,
                percent(result, codec),
                _cell(result.ratio((codec, COMPRESS), targets.MEMCPY)),
                _cell(result.ratio((codec, decoder), targets.MEMCPY)),
                _cell(result.speed(codec, COMPRESS)),
                _cell(result.speed(codec, decoder)),
            )
            for codec, decoder in best_decoders(result)
        ),
    )
    note = (
        f"{result.original_bytes / 1e6:.0f} MB of BF16 weights, one thread, checks on, "
        f"{found.best} kernels, memory to memory, medians of paired rounds. "
        f"{found.machine['CPU']}, {found.date}."
    )
    plot = "![size against speed of the codecs](benches/results/speed.svg)"
    return "\n".join([plot, "", *lines, "", note, ""])


def best_decoders(result: Result) -> list[tuple[str, str]]:
    """Returns each codec with its way to decode that suits it best: into `out=` if it can."""
    actions = set(result.actions())
    return [(codec, OUT if (codec, OUT) in actions else FRESH) for codec in result.sizes]


def percent(result: Result, codec: str) -> str:
    """Returns the size of the compressed buffer in percent."""
    return f"{100 * result.sizes[codec] / result.original_bytes:.2f}"


def table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, text: Sequence[int] = (0,)
) -> list[str]:
    """Returns the lines of a markdown table; the columns named hold text, the others figures."""
    return [
        "| " + " | ".join(headings) + " |",
        "|" + "".join("---|" if index in text else "--:|" for index in range(len(headings))),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def _lines(found: Measurements) -> Iterator[str]:
    yield "# Speed"
    yield ""
    if found.quick:
        yield "**From a quick run with small buffers: it shows that the benchmark works, no more.**"
        yield ""
    noise = disturbance(found)
    if noise:
        yield f"**{noise}**"
        yield ""
    yield f"Written by `make bench` on {found.date}; all times: [speed.json](speed.json)."
    yield ""
    yield from table(("", "measured on"), found.machine.items(), text=(0, 1))
    peers = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    yield f"| peers | {peers} |"
    tiers = ", ".join(f"{name}: {state}" for name, state in found.tiers.items())
    yield f"| kernels | {tiers} |"
    yield ""
    yield PEERS_NOTE
    yield ""
    yield "![size and speed of the codecs](speed.svg)"
    yield ""
    yield "## Targets"
    yield ""
    yield "BF16 unless said, one thread, warm heap unless said; median (quartiles)."
    yield ""
    yield from table(
        ("what", "target", "measured", ""),
        (verdict.cells() for verdict in found.verdicts()),
        text=(0, 1, 2, 3),
    )
    yield ""
    yield from _speeds(found)
    yield from _command(found.command)
    yield from _small(found.small)
    yield from _memory(found.memory)


def _speeds(found: Measurements) -> Iterator[str]:
    ordered = sorted(found.results, key=lambda result: result.tier != found.best)
    for heading, several in (("One thread", False), ("All threads", True)):
        chosen = [result for result in ordered if (result.threads > 1) == several]
        if not chosen:
            continue
        yield f"## {heading}"
        yield ""
        for result in chosen:
            size = f"{result.original_bytes / 1e6:.0f} MB of {result.kind}"
            threads = f", {result.threads} threads" if several else ""
            yield f"### {size}{threads}, {result.tier} kernels, {result.regime} allocator"
            yield ""
            yield f"{REGIME_NAMES[result.regime]}; {len(result.rounds)} rounds{_others(result)}."
            yield ""
            yield from _result(result)
            yield ""


def _others(result: Result) -> str:
    return "" if result.others is None else f", other programs used {result.others:.2f} cores"


def _result(result: Result) -> Iterator[str]:
    reference = "zipnn"
    headings = (
        "codec",
        "size %",
        "encode GB/s",
        "x memcpy",
        f"x {reference}",
        "decode",
        "GB/s",
        "x memcpy",
        f"x {reference}",
    )
    rows: list[tuple[str, ...]] = []
    for codec in result.sizes:
        decoders = [action for name, action in result.actions() if name == codec]
        decoders = [action for action in decoders if action not in {COMPRESS, FRESH + UNVERIFIED}]
        for index, decoder in enumerate(sorted(decoders, key=_decoder_order)):
            first = index == 0
            encode = (codec, COMPRESS)
            rows.append(
                (
                    codec if first else "",
                    percent(result, codec) if first else "",
                    _cell(result.speed(*encode)) if first else "",
                    _cell(result.ratio(encode, targets.MEMCPY)) if first else "",
                    _cell(result.ratio(encode, targets.ZIPNN_COMPRESS)) if first else "",
                    decoder,
                    _cell(result.speed(codec, decoder)),
                    _cell(result.ratio((codec, decoder), targets.MEMCPY)),
                    _cell(result.ratio((codec, decoder), targets.ZIPNN_DECOMPRESS)),
                )
            )
    rows += [(name, reason, *[""] * 7) for name, reason in result.missing.items()]
    yield from table(headings, rows, text=(0, 5))


def _decoder_order(action: str) -> tuple[bool, str]:
    return action.startswith(FRESH), action


def _command(result: command.Result | None) -> Iterator[str]:
    if result is None:
        return
    from benches.command import ACTIONS, ZSTD

    yield "## The command"
    yield ""
    yield (
        f"One .safetensors file of {result.original_bytes / 1e9:.2f} GB (BF16), in the page cache, "
        f"written {result.where} and synced; wall time with the start of the process, every core; "
        "peak memory counts resident pages, those of mapped files included."
    )
    yield ""
    rows = []
    for program in result.seconds:
        row = [program, f"{100 * result.sizes[program] / result.original_bytes:.2f}"]
        for action in ACTIONS:
            row += [
                _cell(result.speed(program, action)),
                _cell(result.ratio(program, action)),
                f"{result.peak_bytes[program][action] / 1e6:.0f}",
            ]
        rows.append(row)
    rows += [[name, reason, *[""] * 6] for name, reason in result.missing.items()]
    yield from table(
        (
            "program",
            "size %",
            "compress GB/s",
            f"x {ZSTD}",
            "peak MB",
            "decompress GB/s",
            f"x {ZSTD}",
            "peak MB",
        ),
        rows,
    )
    yield ""


def _small(found: dict[str, Any] | None) -> Iterator[str]:
    if found is None:
        return
    yield "## Small tensors"
    yield ""
    size = found["original_bytes"] / 1e6
    yield (
        f"1 KiB of BF16 compressed and restored, called from Python; then {found['count']:,} "
        f"tensors of 8 KiB ({size:.0f} MB) against the same weights as one tensor."
    )
    yield ""
    rows = [
        (f"1 KiB and back, {name}", f"{spread.with_quartiles()} µs")
        for name, spread in found["tiny_us"].items()
    ]
    rows += [
        (name, f"{spread.with_quartiles()}x the time of one large")
        for name, spread in found["many"].items()
    ]
    yield from table(("what", "time"), rows)
    yield ""


def _memory(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    if not rows:
        return
    yield "## Peak memory"
    yield ""
    yield "MB by which one action raises the peak of a process that holds its input."
    yield ""
    yield from table(
        ("codec", "threads", "tensor", "compressed", COMPRESS, "decompress", "into `out=`"),
        (
            (
                row["codec"],
                str(row["threads"]),
                f"{row['original_bytes'] / 1e6:.1f}",
                f"{row['compressed_bytes'] / 1e6:.1f}",
                *(
                    f"{row['peaks'][action] / 1e6:.1f}" if action in row["peaks"] else "-"
                    for action in (COMPRESS, FRESH, OUT)
                ),
            )
            for row in rows
        ),
    )
    yield ""


def _cell(spread: Spread | None) -> str:
    return "-" if spread is None else str(spread)
