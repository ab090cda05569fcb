"""Hypothesis profiles and what several test files share."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

# Examples that do not change from run to run, few enough for every commit; `thorough` is for
# looking for trouble: HYPOTHESIS_PROFILE=thorough pytest tests/python.
hypothesis.settings.register_profile(
    "ci",
    max_examples=150,
    derandomize=True,
    deadline=None,
    print_blob=True,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.function_scoped_fixture,
    ],
)
hypothesis.settings.register_profile(
    "thorough", hypothesis.settings.get_profile("ci"), max_examples=3000, derandomize=False
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# A test run started in the background ignores Ctrl-C, and so would the commands that it interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

RunPython = Callable[..., str]


@pytest.fixture
def run_python(tmp_path: Path) -> RunPython:
    """Runs a program in a fresh interpreter and returns what it printed."""

    def run(program: str, **environment: str) -> str:
        plain = {name: value for name, value in os.environ.items() if "NEUZIP" not in name}
        script = tmp_path / "program.py"
        script.write_text(program)
        finished = subprocess.run(
            [sys.executable, "-W", "error", str(script)],
            env=plain | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        return finished.stdout.strip()

    return run
