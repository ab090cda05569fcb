"""`make bench-damage`: the same damage done to neuzip_rs and to the other compressors.

Every length that a stream can be cut off at, ten thousand changed bytes, parts of two streams put
together, chunks that have changed places, lengths that claim far too much, streams that stand for
much more than they are, references that go round in circles. Whoever decodes may notice, or give
the right bytes in spite of it; anything else is counted: silently wrong bytes, a crash, a hang,
memory that nothing has vouched for.

    python -m benches.damage [--share 0.05] [--only SUBJECT ...] [--update-docs]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benches import child, machine, peers, readme
from benches.damage_loops import loops
from benches.damage_subjects import makers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benches" / "results"
DOCS = ROOT / "docs" / "reliability.md"
COUNTER = ROOT / "benches" / "allocations.c"
MEMORY = Path("/dev/shm")
COLUMNS = ("trials", "detected", "same", "silent", "crash", "hang", "unearned")
HEADINGS = (
    "trials",
    "noticed",
    "same bytes",
    "**silent wrong**",
    "**crash**",
    "**hang**",
    "**memory**",
)
MIB = 1 << 20


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benches.damage", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--share", type=float, default=1.0, help="of all trials, 0.05 for a look")
    parser.add_argument("--only", nargs="+", metavar="SUBJECT", help="parts of names")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--update-docs", action="store_true", help="tables into docs/")
    return parser.parse_args(arguments)


def build_counter(folder: Path) -> dict[str, str]:
    """Compiles what counts allocations.

    Args:
        folder: Where to put it.

    Returns:
        The variables of a process that is counted.
    """
    library = folder / "allocations.so"
    command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(COUNTER), "-ldl"]
    subprocess.run(command, check=True)
    # Objects of Python come from the same allocator, and one thread counts like another.
    return {"LD_PRELOAD": str(library), "PYTHONMALLOC": "malloc"}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs all trials.

    Args:
        options: What the command line says.

    Returns:
        The results, for a JSON file.
    """
    file = options.out / "damage.json"
    # A run of some subjects leaves the results of the others.
    subjects: dict[str, Any] = {}
    if options.only and file.exists():
        subjects = json.loads(file.read_text(encoding="utf-8"))["subjects"]
    scratch_root = str(MEMORY) if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(dir=scratch_root) as scratch:
        environment = build_counter(Path(scratch))
        (Path(scratch) / "names").mkdir()
        for name in makers(Path(scratch) / "names"):
            if options.only and not any(word in name for word in options.only):
                continue
            began = time.monotonic()
            print(f"  {name}", file=sys.stderr)
            task = {"subject": name, "scratch": scratch, "share": options.share}
            subjects[name] = child.run("benches.damage_worker", task, environment)
            subjects[name]["seconds"] = round(time.monotonic() - began, 1)
        names = makers(Path(scratch) / "names")
        return {
            "machine": machine.describe(),
            "versions": peers.versions(),
            "share": options.share,
            "subjects": {name: subjects[name] for name in names if name in subjects},
            "loops": loops(Path(scratch)),
        }


def total(kinds: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Adds up the trials of all kinds."""
    summed = {name: sum(tally[name] for tally in kinds.values()) for name in COLUMNS}
    for name in ("peak_bytes", "intact_peak_bytes"):
        summed[name] = max(tally[name] for tally in kinds.values())
    return summed


def table(results: Mapping[str, Any]) -> str:
    """Returns the table of all trials, as Markdown."""
    lines = [
        "| | " + " | ".join(HEADINGS) + " | peak MiB | intact MiB |",
        "|---" + "|--:" * (len(HEADINGS) + 2) + "|",
    ]
    for name, found in results["subjects"].items():
        if "missing" in found:
            lines.append(f"| {name} | not installed" + " | " * (len(HEADINGS) + 2) + "|")
            continue
        summed = total(found["kinds"])
        cells = [f"{summed[column]:,}" for column in COLUMNS]
        peaks = [f"{summed[key] / MIB:.2f}" for key in ("peak_bytes", "intact_peak_bytes")]
        bold = "**" if name.startswith("neuzip") else ""
        lines.append(f"| {bold}{name}{bold} | " + " | ".join(cells + peaks) + " |")
    return "\n".join(lines) + "\n"


def kinds_table(results: Mapping[str, Any]) -> str:
    """Returns the table of bad outcomes by kind of damage, as Markdown."""
    found = {name: it["kinds"] for name, it in results["subjects"].items() if "kinds" in it}
    kinds = list(dict.fromkeys(kind for it in found.values() for kind in it))
    lines = ["| | " + " | ".join(kinds) + " |", "|---" + "|--:" * len(kinds) + "|"]
    for name, it in found.items():
        cells = []
        for kind in kinds:
            tally = it.get(kind)
            if tally is None:
                cells.append("")
                continue
            bad = [f"{tally[key]:,} {key}" for key in ("silent", "crash", "hang") if tally[key]]
            if tally["unearned"]:
                bad.append(f"{tally['unearned']:,} memory")
            cells.append((", ".join(bad) or "0") + f" of {tally['trials']:,}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def bombs_table(results: Mapping[str, Any]) -> str:
    """Returns the table of what stands for 256 MiB of zeros, as Markdown."""
    lines = ["| | bytes | with a limit of 1 MiB | peak MiB |", "|---|--:|---|--:|"]
    for name, found in results["subjects"].items():
        if "bomb" in found:
            it = found["bomb"]
            peak = f"{it['peak_bytes'] / MIB:.2f}" if "refused" in it["outcome"] else ""
            lines.append(f"| {name} | {it['packed_bytes']:,} | {it['outcome']} | {peak} |")
    return "\n".join(lines) + "\n"


def loops_table(results: Mapping[str, Any]) -> str:
    """Returns the table of references that go round in circles, as Markdown."""
    lines = ["| circle | what comes of it |", "|---|---|"]
    lines += [f"| {name} | {outcome} |" for name, outcome in results["loops"].items()]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the trials and writes the results; fails if anything of ours does."""
    options = parse_arguments(arguments)
    if sys.platform != "linux" or shutil.which("cc") is None:
        print("error: needs Linux and a C compiler", file=sys.stderr)
        return 2
    results = measure(options)
    tables = {
        "damage-table": table(results),
        "damage-kinds-table": kinds_table(results),
        "bombs-table": bombs_table(results),
        "loops-table": loops_table(results),
    }
    print("\n".join(tables.values()))
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1) + "\n"
    (options.out / "damage.json").write_text(text, encoding="utf-8")
    if options.update_docs:
        for name, block in tables.items():
            readme.replace_block(DOCS, name, block)
    bad = [
        name
        for name, found in results["subjects"].items()
        if name.startswith("neuzip")
        and any(total(found["kinds"])[key] for key in ("silent", "crash", "hang", "unearned"))
    ]
    bad += [name for name, outcome in results["loops"].items() if "Error" not in outcome]
    if bad:
        print(f"error: {', '.join(bad)}: see above", file=sys.stderr)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
