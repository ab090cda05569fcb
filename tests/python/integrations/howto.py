"""Following a how-to page as it is written."""

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

DOCS = Path(__file__).resolve().parents[3] / "docs" / "howto"
_BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def follow(
    page: str,
    folder: Path,
    environment: dict[str, str],
    *,
    given: str = "",
    hosts: Mapping[str, str] | None = None,
) -> int:
    """Runs the `sh` and `python` blocks of a page, in their order, in a folder.

    `given` is a program for what the page takes for granted, such as a model; `hosts` are the
    servers here that stand for those on the page.

    The Python blocks are one program, with the commands in between run where they stand. Blocks
    marked otherwise (`console`) need what tests have not.

    Returns:
        How many blocks there were.
    """
    blocks = _BLOCK.findall((DOCS / page).read_text("utf-8"))
    program = ["import subprocess", given]
    for kind, text in blocks:
        for theirs, ours in (hosts or {}).items():
            assert theirs in "".join(block for _, block in blocks), theirs
            text = text.replace(theirs, ours)
        if kind == "sh":
            command = text.replace("neuzip ", f"{sys.executable} -m neuzip_rs ")
            program.append(f"subprocess.run({command!r}, shell=True, check=True)")
        else:
            program.append(text)
    script = folder / "page.py"
    script.write_text("\n".join(program))
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return len(blocks)
