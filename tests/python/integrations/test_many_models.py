"""`neuzip compress --models`: a folder of models, done one by one, resumable."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import neuzip_rs as nz
from tests.python import command
from tests.python.integrations.howto import follow

safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")

MODELS = ["alone.safetensors", "org/bert", "org/llama", "pipelines/image"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "hub"
    weights = {"w": np.random.default_rng(0).normal(size=(300, 200)).astype(np.float32)}

    def put(name: str, data: bytes | str = "") -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)

    model = safetensors.save(weights)
    put("alone.safetensors", model)
    put("org/README.md", "of nobody")
    put("org/bert/model.safetensors", model)
    put("org/bert/config.json", '{"model_type": "bert"}')
    put("org/llama/model-1-of-2.safetensors", model)
    put("org/llama/model-2-of-2.safetensors", safetensors.save({"x": weights["w"] * 2}))
    put("pipelines/image/model_index.json", "{}")
    put("pipelines/image/unet/config.json", "{}")
    put("pipelines/image/unet/diffusion.safetensors", model)
    put("empty/config.json", "{}")
    return root


def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "neuzip_rs", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    return result


def content(root: Path) -> dict[str, bytes]:
    paths = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def test_finds_models(tree: Path) -> None:
    assert nz.models.find(tree) == MODELS


def test_round_trip(tree: Path, tmp_path: Path) -> None:
    facts = json.loads(run("compress", "--models", "--json", tree).stdout)
    output = tmp_path / "hub-nz"
    assert facts["models"] == len(MODELS)
    assert facts["output"] == str(output)
    records = nz.models.read(output)
    assert list(records) == MODELS
    assert sum(record.stored_bytes for record in records.values()) == facts["compressed_bytes"]
    # Each is a compressed model directory of its own, for loaders as well.
    config = json.loads((output / "org/bert/config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "neuzip"}
    assert (output / "org/bert/neuzip_manifest.json").is_file()
    assert not (output / ".neuzip-models").exists()
    run("verify", output)
    run("decompress", output, "-o", tmp_path / "back")
    expected = content(tree)
    # What is in no model is left out.
    for name in ("org/README.md", "empty/config.json"):
        del expected[name]
    assert content(tmp_path / "back") == expected


def test_second_run_takes_what_has_changed(tree: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run("compress", "--models", tree, "-o", output)
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}
    stamps = {path: path.stat().st_ino for path in times}
    (tree / "org/bert/config.json").write_text('{"model_type": "other"}')
    (tree / "org/new").mkdir()
    (tree / "org/new/m.safetensors").write_bytes(safetensors.save({"n": np.ones(9)}))
    (output / "org/llama/model-1-of-2.safetensors").unlink()
    said = run("compress", "--models", tree, "-o", output).stderr
    assert said.count("done before") == 2
    again = {path: path.stat().st_ino for path in output.rglob("*.safetensors")}
    kept = {path for path in again if stamps.get(path) == again[path]}
    assert {path.relative_to(output).as_posix() for path in kept} == {
        "alone.nz.safetensors",
        "pipelines/image/unet/diffusion.safetensors",
    }
    assert set(nz.models.read(output)) == {*MODELS, "org/new"}
    # Another level is another result.
    said = run("compress", "--models", tree, "-o", output, "--level", "fast").stderr
    assert "done before" not in said


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_killed_run_goes_on(tmp_path: Path) -> None:
    root, output = tmp_path / "hub", tmp_path / "out"
    values = np.random.default_rng(0).normal(size=(1200, 1000)).astype(np.float32)
    for n in range(6):
        (root / f"m{n}").mkdir(parents=True)
        (root / f"m{n}" / "x.safetensors").write_bytes(safetensors.save({"w": values + n}))
    command = [sys.executable, "-m", "neuzip_rs", "compress", "--models", "--level", "max", "-T1"]
    with subprocess.Popen([*command, root, "-o", output], stderr=subprocess.DEVNULL) as process:
        limit = time.monotonic() + 60
        while not (output / "m1").exists() and time.monotonic() < limit:
            time.sleep(0.005)
        process.kill()
    whole = [path.name for path in output.iterdir() if path.name in {f"m{n}" for n in range(6)}]
    assert {"m0", "m1"} <= set(whole) != {f"m{n}" for n in range(6)}
    for name in whole:
        # Whatever has its name is whole.
        run("verify", "-q", output / name)
    said = run("compress", "--models", "--level", "max", root, "-o", output).stderr
    assert said.count("done before") >= len(whole) - 1
    run("verify", "-q", output)
    run("decompress", output, "-o", tmp_path / "back")
    assert content(tmp_path / "back") == content(root)


def test_wrong_usage(tree: Path, tmp_path: Path) -> None:
    assert "--models" in run("compress", "--models", "--rm", tree, code=2).stderr
    assert (
        "needs a folder" in run("compress", "--models", tree / "alone.safetensors", code=2).stderr
    )
    (tmp_path / "nothing").mkdir()
    assert "no models" in run("compress", "--models", tmp_path / "nothing", code=1).stderr
    assert "is in" in run("compress", "--models", tree, "-o", tree / "out", code=2).stderr


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "x"}', '{"format": "neuzip-models"}'])
def test_damaged_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / nz.models.MODELS_NAME).write_text(text)
    with pytest.raises(nz.CorruptDataError):
        nz.models.read(tmp_path)


def test_manifest_that_leads_outside(tmp_path: Path) -> None:
    record = nz.models.Record("../../x", "../../x", 1, 1, 1, "fast", "")
    nz.models.write(tmp_path, [record])
    with pytest.raises(nz.CorruptDataError, match="outside"):
        nz.models.read(tmp_path)
    (tmp_path / nz.models.MODELS_NAME).write_text(
        json.dumps({"format": "neuzip-models", "version": 2, "models": {}})
    )
    with pytest.raises(nz.UnsupportedVersionError):
        nz.models.read(tmp_path)
    assert os.listdir(tmp_path) == [nz.models.MODELS_NAME]  # noqa: PTH208 - names are enough


def test_page_of_instructions(tree: Path, tmp_path: Path) -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    assert follow("many-models.md", tmp_path, command.environment(PYTHONPATH=paths)) == 2
    listed = json.loads((tmp_path / "hub-nz" / "neuzip_models.json").read_text())
    assert sorted(listed["models"]) == sorted(MODELS)
    again = tmp_path / "hub-again" / "org" / "bert" / "model.safetensors"
    assert again.read_bytes() == (tree / "org" / "bert" / "model.safetensors").read_bytes()
