"""Processes that are killed at random moments while they write leave the old or the new."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.python.faults.kill_job import JOBS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks and kills")

JOB = Path(__file__).with_name("kill_job.py")
# One run of all of them is what docs/reliability.md records.
MANY = int(os.environ.get("NEUZIP_KILLS", "40"))


def kill(kind: str, kills: int, folder: Path) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(JOB), kind, str(kills), str(folder)],
        capture_output=True,
        text=True,
        timeout=60 + 60 * kills,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counts: dict[str, int] = json.loads(done.stdout)
    assert counts["old"] + counts["new"] == kills
    return counts


@pytest.mark.parametrize("kind", [kind for kind in JOBS if kind != "checkpoint"])
def test_a_few_kills(tmp_path: Path, kind: str) -> None:
    kill(kind, 3, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", JOBS)
def test_many_kills(tmp_path: Path, kind: str) -> None:
    counts = kill(kind, MANY, tmp_path)
    # Both sides of the moment at which the new takes the place of the old have been hit.
    print(f"{kind}: {counts}")
    assert counts["old"] > 0
