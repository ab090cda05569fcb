"""Counts what the main loops of cuda/w12*.cu execute, from the disassembly.

    python -m tests.python.cuda.w12_instructions   # the table of docs/gpu.md

Counted is the way through the loop of a tile without escapes: branches around stores to shared
memory, which are the patching, are taken, all others are not. With escapes, 1 to 32 in the tile,
none is taken, which counts cases of an escape that exclude each other. Integer operations are
those of the integer and logic pipes, `IMAD` among them; uniform ones, which a warp executes once,
and plain moves count as other instructions.
"""

import re
from dataclasses import dataclass

from tests.python.cuda.nvrtc import ARCHITECTURES, compiled

WEIGHTS_OF_A_LANE = 32  # in a tile

_INTEGER = re.compile(
    r"(IMAD(?!\.MOV)|IADD|LOP3|SHF|PRMT|ISETP|LEA|VIADD|SEL|VIMNMX|IMNMX|FLO|POPC|BREV|LOP|SHL|SHR)"
)


@dataclass(frozen=True)
class Count:
    """Instructions of a lane for one weight."""

    integer: float
    other: float

    @property
    def all(self) -> float:
        """Issue slots."""
        return self.integer + self.other


def _name(line: str) -> str:
    return re.sub(r"^@!?U?P\d+\s+", "", line).split(" ")[0]


def _target(line: str) -> str | None:
    found = re.search(r"\bBRA(?:\.U)?\s.*?`\((\.L_\w+)\)", line)
    return found[1] if found else None


def _loop(listing: list[str], mark: str) -> tuple[int, int]:
    """First and last line of the smallest loop that holds all instructions named `mark`."""
    labels = {line[:-1]: i for i, line in enumerate(listing) if line.endswith(":")}
    marks = [i for i, line in enumerate(listing) if _name(line).startswith(mark)]
    loops = [
        (labels[target], i)
        for i, line in enumerate(listing)
        if (target := _target(line)) and labels[target] < i
    ]
    around = [(a, b) for a, b in loops if a < marks[0] and marks[-1] < b]
    return min(around, key=lambda loop: loop[1] - loop[0])


def count(
    source: str, kernel: str, architecture: int, mark: str, tiles: int, *, patched: bool = False
) -> Count:
    """Instructions for a weight in the main loop of a kernel.

    Args:
        source: Name of the .cu file.
        kernel: The kernel.
        architecture: As 90.
        mark: What all instructions begin with that tell the loop from others.
        tiles: How many tiles a turn of the loop takes.
        patched: Whether all tiles have escapes.
    """
    listing = compiled(source, architecture).disassembly()[kernel]
    labels = {line[:-1]: i for i, line in enumerate(listing) if line.endswith(":")}
    i, end = _loop(listing, mark)
    integer = other = 0
    while i <= end:
        line = listing[i]
        i += 1
        if line.endswith(":") or line.startswith("NOP"):
            continue
        if _INTEGER.match(_name(line)):
            integer += 1
        else:
            other += 1
        target = _target(line)
        if target and not patched and i < labels[target] <= end:
            skipped = listing[i : labels[target]]
            if any(_name(s).startswith("STS") for s in skipped) and not any(
                _name(s).startswith(mark) for s in skipped
            ):
                i = labels[target]
    weights = tiles * WEIGHTS_OF_A_LANE
    return Count(integer / weights, other / weights)


def fused(kernel: str, architecture: int, *, patched: bool = False) -> Count:
    """A product: three tiles in a turn."""
    return count("w12_linear", kernel, architecture, "HMMA", 3, patched=patched)


def unpacking(architecture: int) -> Count:
    """Decoding to BF16."""
    return count("w12_pack", "w12_unpack", architecture, "STG.E.128", 1)


def _table() -> None:
    print("| kernel | sm | registers | shared bytes | spills | integer | other | with escapes |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for source in ("w12_linear", "w12_pack"):
        for kernel in sorted(compiled(source, ARCHITECTURES[0]).kernels):
            for architecture in ARCHITECTURES:
                made = compiled(source, architecture).kernels[kernel]
                figures = " | | "
                if source == "w12_linear":
                    counted = fused(kernel, architecture)
                    patched = fused(kernel, architecture, patched=True)
                    figures = f"{counted.integer:.2f} | {counted.other:.2f} | {patched.all:.2f}"
                elif kernel == "w12_unpack":
                    counted = unpacking(architecture)
                    figures = f"{counted.integer:.2f} | {counted.other:.2f} |"
                print(
                    f"| `{kernel}` | {architecture} | {made.registers} | {made.shared_bytes} "
                    f"| {made.spill_bytes} | {figures} |"
                )


if __name__ == "__main__":
    _table()
