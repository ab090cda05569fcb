"""What the kernels take, from the disassembly: the table of docs/gpu.md.

    python -m tests.python.cuda.count

Integer operations are counted over the loop of a tile of 512 elements, in which each thread has 16,
escapes left out: without and with the refill of the ring, which about every third tile needs.
"""

import re
import tempfile
from collections import Counter
from pathlib import Path

from tests.python.cuda.emulation import CUDA
from tests.python.cuda.nvrtc import ARCHITECTURES, compiled

# Variants of decode_cut_chunk, and what they are for.
VARIANTS = {
    "2, 8, false": "BF16, exponent coded",
    "2, 7, false": "BF16, joint bit",
    "2, 8, true": "BF16, exponent coded, scale offsets",
    "2, 7, true": "BF16, joint bit, scale offsets",
}
PER_THREAD = 16
_MEMORY = {"LDS", "STS", "LDG", "STG", "LD", "ST", "SHFL", "LDC", "ULDC"}
_CONTROL = {"BRA", "BSSY", "BSYNC", "WARPSYNC", "CALL", "RET", "NOP", "EXIT", "YIELD", "BREAK"}
_MOVES = {"MOV", "UMOV", "CS2R", "S2R", "S2UR", "P2R", "R2P", "R2UR"}


def variant(arguments: str) -> Path:
    """A source with one variant of the fast kernel alone, so that its loop is easy to find."""
    text = (CUDA / "decode.cu").read_text()
    begin, end = text.index("        const Error error ="), text.index("        report(status")
    call = f"        const Error error = decode_cut_chunk<{arguments}>(plan, model, chunk, room);\n"
    text = text[:begin] + call + text[end : text.index("// Every chunk that")]
    path = Path(tempfile.mkdtemp()) / f"{re.sub(r'[^a-z0-9]+', '_', arguments)}.cu"
    path.write_text(text)
    return path


def tile_loop(listing: list[str]) -> list[str]:
    """The smallest loop with the sixteen ballots of a tile."""
    labels = {line[:-1]: at for at, line in enumerate(listing) if line.startswith(".L")}
    loops = []
    for at, line in enumerate(listing):
        jump = re.search(r"BRA.*\((\.L\w+)\)", line)
        if jump and labels.get(jump[1], at) < at:
            loop = listing[labels[jump[1]] : at + 1]
            ballots = sum("VOTE" in line for line in loop)
            if ballots >= PER_THREAD and any("STG" in line for line in loop):
                loops.append(loop)
    return min(loops, key=len)


def operations(loop: list[str]) -> Counter[str]:
    """Instructions by their name, without labels."""
    names: Counter[str] = Counter()
    for line in loop:
        if not line.startswith(".L"):
            names[re.split(r"[. ;]", re.sub(r"^@!?U?P\w+ ", "", line))[0]] += 1
    return names


def refill(loop: list[str]) -> list[str]:
    """The part of a loop that is jumped over unless the next page of the stream is needed."""
    labels = {line[:-1]: at for at, line in enumerate(loop) if line.startswith(".L")}
    parts = []
    for at, line in enumerate(loop):
        jump = re.search(r"BRA.*\((\.L\w+)\)", line)
        if jump and labels.get(jump[1], at) > at:
            part = loop[at + 1 : labels[jump[1]]]
            if any("STS.128" in line for line in part):
                parts.append(part)
    return min(parts, key=len)


def integers(lines: list[str]) -> int:
    """Integer operations among instructions."""
    other = _MEMORY | _CONTROL | _MOVES
    return sum(count for name, count in operations(lines).items() if name not in other)


def integer_operations(arguments: str, architecture: int) -> tuple[float, float]:
    """Integer operations per element of a variant, without and with the refill."""
    loop = tile_loop(compiled(variant(arguments), architecture).disassembly()["decode_cut"])
    whole = integers(loop)
    return (whole - integers(refill(loop))) / PER_THREAD, whole / PER_THREAD


def main() -> None:
    """Prints the tables."""
    print("| kernel | " + " | ".join(f"sm_{a}" for a in ARCHITECTURES) + " |")
    print("|---|" + "--:|" * len(ARCHITECTURES))
    for source in ("content_hash", "decode", "encode", "encode_choose", "encode_plan"):
        for name in sorted(compiled(source, 80).kernels):
            made = [compiled(source, architecture).kernels[name] for architecture in ARCHITECTURES]
            cells = (f"{kernel.registers} / {kernel.shared_bytes}" for kernel in made)
            assert not any(kernel.spill_bytes for kernel in made)
            print(f"| `{name}` | " + " | ".join(cells) + " |")
    print()
    print("| form | " + " | ".join(f"sm_{a}" for a in ARCHITECTURES) + " |")
    print("|---|" + "--:|" * len(ARCHITECTURES))
    for arguments, what in VARIANTS.items():
        found = [integer_operations(arguments, architecture) for architecture in ARCHITECTURES]
        cells = (f"{without:.1f} to {whole:.1f}" for without, whole in found)
        print(f"| {what} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
