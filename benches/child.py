"""Runs one measurement in a process of its own.

What is measured depends on settings of a process (the allocator, the tier of kernels, what is in
its memory already). `run` starts one that imports a module of this package, calls its
`work(task)` and hands back what that returns; task and result travel as JSON.

    python -m benches.child MODULE RESULT-FILE TASK
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parent.parent


def run(module: str, task: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Any:  # noqa: ANN401 - any JSON
    """Returns what `work(task)` of a module returns in a process of its own.

    Args:
        module: Its name, "benches.speed".
        task: The argument.
        environment: Variables to set besides those of this process.

    Returns:
        Any JSON value.

    Raises:
        subprocess.CalledProcessError: The process failed and has printed why.
    """
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result.json"
        command = [sys.executable, "-m", "benches.child", module, str(result), json.dumps(task)]
        # The warnings are those of what the peers import.
        settings = {**os.environ, "PYTHONWARNINGS": "ignore", **(environment or {})}
        subprocess.run(command, check=True, cwd=ROOT, env=settings)
        return json.loads(result.read_text(encoding="utf-8"))


def main() -> int:
    """Does what `run` asks for."""
    module, result, task = sys.argv[1:]
    answer = importlib.import_module(module).work(json.loads(task))
    Path(result).write_text(json.dumps(answer), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
