"""Starting programs of several processes as people do, with torchrun."""

import os
import subprocess
import sys
from pathlib import Path

# As many processes as there are cores, or more: one thread each.
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "NEUZIP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
}
ROOT = Path(__file__).parents[3]


def launch(
    script: Path | str, processes: int, *arguments: object, timeout: float = 300
) -> tuple[str, str]:
    """Runs a script, or a module by its dotted name, in processes that all have to succeed.

    Returns:
        What they have written to stdout and to stderr.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    # A port of its own, chosen by the system, on this machine only.
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    program = [str(script)] if isinstance(script, Path) else ["-m", script]
    result = subprocess.run(
        [*command, *program, *map(str, arguments)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout, result.stderr
