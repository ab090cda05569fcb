"""Starting programs of several processes as people do, with torchrun."""

import os
import subprocess
import sys
from pathlib import Path

# As many processes as there are cores, or more: one thread each.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "NEUZIP_NUM_THREADS": "1"}


def launch(script: Path, processes: int, *arguments: object, timeout: float = 300) -> None:
    """Runs a script in that many processes, all of which have to succeed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    # A port of its own, chosen by the system, on this machine only.
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    result = subprocess.run(
        [*command, str(script), *map(str, arguments)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
