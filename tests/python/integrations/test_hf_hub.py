"""Models to and from a hub: the real client against a server on loopback."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")

from neuzip_rs.directory import compress_directory
from neuzip_rs.hub import HubPath, download, upload
from tests.python import command
from tests.python.integrations.hub_server import Hub, running


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running() as hub:
        yield hub


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "model.safetensors").write_bytes(command.safetensors_bytes())
    (folder / "sub").mkdir()
    (folder / "sub" / "note.txt").write_text("a note")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def environment(hub: Hub, cache: Path) -> dict[str, str]:
    return command.environment(
        HF_ENDPOINT=hub.url, HF_HOME=str(cache), HF_HUB_DISABLE_TELEMETRY="1", HF_TOKEN="hf_test"
    )


def test_upload_and_download(hub: Hub, model: Path, tmp_path: Path) -> None:
    compressed = tmp_path / "model-nz"
    compress_directory(model, compressed)
    places = {"endpoint": hub.url, "token": "hf_test"}
    url = upload(compressed, "hf://org/model-nz", **places)
    assert url.startswith(f"{hub.url}/org/model-nz/commit/")
    assert hub.repositories["org/model-nz"] == contents(compressed)
    found = download("hf://org/model-nz", cache_dir=tmp_path / "cache", **places)
    assert contents(found) == contents(compressed)
    file = download("org/model-nz/sub/note.txt", cache_dir=tmp_path / "cache", **places)
    assert file.read_text() == "a note"
    with pytest.raises(OSError, match="no-such"):
        download("hf://org/no-such", cache_dir=tmp_path / "cache", **places)
    with pytest.raises(NotADirectoryError):
        upload(tmp_path / "nothing", "org/model", **places)


def test_compress_from_the_hub(hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.repositories["org/model"] = contents(model)
    options = {"env": environment(hub, tmp_path / "cache"), "cwd": tmp_path}
    done = command.neuzip("compress", "hf://org/model", "--json", **options)
    assert command.objects(done)[0]["output"] == "model-nz"
    command.neuzip("decompress", "model-nz", "-o", "restored", **options)
    assert contents(tmp_path / "restored") == contents(model)
    # Nothing was made in the cache of the hub.
    assert not list((tmp_path / "cache").rglob("*-nz*"))
    command.neuzip("compress", "hf://org/model", "-o", "named", **options)
    assert contents(tmp_path / "named") == contents(tmp_path / "model-nz")
    done = command.neuzip("compress", "hf://org/model", **options, expect=1)
    assert b"exists already" in done.stderr


def test_one_file_from_the_hub(hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.repositories["org/model"] = contents(model)
    options = {"env": environment(hub, tmp_path / "cache"), "cwd": tmp_path}
    command.neuzip("compress", "hf://org/model@main/model.safetensors", **options)
    command.neuzip("decompress", "model.nz.safetensors", "-o", "restored", **options)
    assert (tmp_path / "restored").read_bytes() == (model / "model.safetensors").read_bytes()


def test_decompress_from_the_hub(hub: Hub, model: Path, tmp_path: Path) -> None:
    compress_directory(model, tmp_path / "model-nz")
    hub.repositories["org/model-nz"] = contents(tmp_path / "model-nz")
    (tmp_path / "elsewhere").mkdir()
    options = {"env": environment(hub, tmp_path / "cache"), "cwd": tmp_path / "elsewhere"}
    command.neuzip("decompress", "hf://org/model-nz", **options)
    assert contents(tmp_path / "elsewhere" / "model") == contents(model)


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (["compress", "hf://org/no-such"], 1, b"no-such"),
        (["compress", "hf://org"], 2, b"hf://org/model"),
        (["compress", "hf://datasets/org/data"], 2, b"hf://org/model"),
        (["compress", "hf://org/model", "--rm"], 2, b"--rm"),
        (["compress", "hf://org/model@nothing"], 1, b"nothing"),
    ],
)
def test_errors(
    hub: Hub, model: Path, tmp_path: Path, arguments: list[str], status: int, expected: bytes
) -> None:
    hub.repositories["org/model"] = contents(model)
    done = command.neuzip(
        *arguments, expect=status, env=environment(hub, tmp_path / "cache"), cwd=tmp_path
    )
    assert expected in done.stderr
    assert not (tmp_path / "model-nz").exists()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("hf://org/model", ("org/model", None, None)),
        ("org/model", ("org/model", None, None)),
        ("hf://models/org/model@v1/a/b.json", ("org/model", "v1", "a/b.json")),
        ("hf://org/model@refs%2Fpr%2F1", ("org/model", "refs/pr/1", None)),
    ],
)
def test_addresses(address: str, expected: tuple[str, str | None, str | None]) -> None:
    assert HubPath.parse(address) == expected


def test_transformers_loads_from_and_pushes_to_the_hub(hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from tests.python.integrations.hf_models import make_folders

    _, compressed = make_folders(tmp_path, "llama")
    hub.repositories["org/model-nz"] = contents(compressed)
    program = tmp_path / "program.py"
    program.write_text(
        "import neuzip_rs.hf\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained('org/model-nz')\n"
        "model.push_to_hub('org/second-nz')\n"
        "model.save_pretrained('third-nz', push_to_hub=True, repo_id='org/third-nz')\n"
    )
    done = subprocess.run(
        [sys.executable, str(program)],
        env=environment(hub, tmp_path / "cache") | {"PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    weights = (compressed / "model.safetensors").read_bytes()
    for name in ("second-nz", "third-nz"):
        assert hub.repositories[f"org/{name}"]["model.safetensors"] == weights
        assert b"neuzip" in hub.repositories[f"org/{name}"]["config.json"]
