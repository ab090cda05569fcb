"""The example for a Ray cluster, on a real one on this machine, with two workers."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray", reason="ray is not installed")
safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")

import neuzip_rs as nz  # noqa: E402 - after the reasons to skip

EXAMPLE = Path(__file__).parents[3] / "examples" / "many_models_ray.py"


def run_example(*arguments: object, code: int = 0) -> str:
    environment = {
        **os.environ,
        "RAY_USAGE_STATS_ENABLED": "0",
        # Workers are processes of their own, and import the package of this one.
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    result = subprocess.run(
        [sys.executable, str(EXAMPLE), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_two_workers(tmp_path: Path) -> None:
    root, output = tmp_path / "models", tmp_path / "out"
    for n in range(5):
        (root / f"m{n}").mkdir(parents=True)
        values = np.random.default_rng(n).normal(size=(400, 300)).astype(np.float32)
        (root / f"m{n}" / "model.safetensors").write_bytes(safetensors.save({"w": values}))
    # One that cannot be compressed does not keep the others from it.
    (root / "m3" / "dangling").symlink_to("nowhere")
    said = run_example(root, output, "--workers", 2, code=1)
    assert said.count("bytes (") == 4
    assert "leads nowhere" in said
    (root / "m3" / "dangling").unlink()
    before = {path: path.stat().st_ino for path in output.rglob("*.safetensors")}
    assert len(before) == 4
    run_example(root, output, "--workers", 2)
    records = nz.models.read(output)
    assert sorted(records) == [f"m{n}" for n in range(5)]
    assert (
        before.items()
        <= {path: path.stat().st_ino for path in output.rglob("*.safetensors")}.items()
    )
    for name in records:
        nz.models.decompress(output, tmp_path / "back", name)
        restored = tmp_path / "back" / name / "model.safetensors"
        assert restored.read_bytes() == (root / name / "model.safetensors").read_bytes()
