"""Model directories: names, configuration, manifest, interruptions, damage."""

import hashlib
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors

from neuzip_rs._errors import CorruptDataError, NeuzipError, UnsupportedVersionError
from neuzip_rs.directory import (
    MANIFEST_NAME,
    Kind,
    Manifest,
    compress_directory,
    decompress_directory,
    verify_directory,
    workspace,
)
from neuzip_rs.directory.workspace import Workspace
from tests.python.command import (
    PROGRAM,
    files_below,
    flipped,
    neuzip,
    objects,
    safetensors_bytes,
    weights,
)

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
CONFIG = {"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16", "eps": 1e-05}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for number, name in enumerate(SHARDS):
        (folder / name).write_bytes(safetensors_bytes(seed=number, names=f"layers.{number}"))
    shard_of = {f"layers.{n}.weight": name for n, name in enumerate(SHARDS)}
    index = {"metadata": {"total_size": 12345}, "weight_map": shard_of}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    (folder / "config.json").write_bytes(json.dumps(CONFIG, indent=4).encode() + b"\r\n")
    (folder / "tokenizer.json").write_bytes(b'{"\xc3\xa4": 1}' * 1000)
    (folder / ".hidden").write_bytes(b"hidden")
    (folder / "nested/deep").mkdir(parents=True)
    (folder / "nested/deep/extra").write_bytes(safetensors_bytes(count=800, seed=9))
    (folder / "nested/empty").mkdir()
    (folder / "run.sh").write_bytes(b"#!/bin/sh\n")
    (folder / "run.sh").chmod(0o750)
    return folder


@pytest.fixture
def packed(tmp_path: Path, model: Path) -> Path:
    compress_directory(model, tmp_path / "model-nz")
    return tmp_path / "model-nz"


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def edit_manifest(folder: Path, **changes: Any) -> None:
    """Changes a manifest and makes its checksum right again."""
    path = folder / MANIFEST_NAME
    body = json.loads(path.read_bytes()) | changes
    body.pop("sha256")
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    path.write_text(json.dumps(body | {"sha256": hashlib.sha256(canonical).hexdigest()}))


# --- there and back -----------------------------------------------------------------------------


def test_every_byte_comes_back(tmp_path: Path, model: Path) -> None:
    before = files_below(model)
    neuzip("compress", "model", cwd=tmp_path)
    assert files_below(model) == before
    packed = tmp_path / "model-nz"
    assert files_below(packed).keys() == before.keys() | {MANIFEST_NAME}
    for name in SHARDS:
        assert (packed / name).stat().st_size < 0.55 * len(before[name])
    neuzip("verify", "model-nz", cwd=tmp_path)
    shutil.rmtree(model)
    neuzip("decompress", "model-nz/", cwd=tmp_path)
    assert files_below(model) == before
    assert (model / "nested/empty").is_dir()
    assert names_in(tmp_path) == {"model", "model-nz"}


def test_modes_and_times(tmp_path: Path, model: Path) -> None:
    (model / SHARDS[0]).chmod(0o400)
    model.chmod(0o750)
    paths = ["", "run.sh", SHARDS[0], "config.json", "nested", "nested/empty", "nested/deep/extra"]
    for number, name in enumerate(reversed(paths)):
        os.utime(model / name, ns=(0, 10**18 + number))
    (model / "nested").chmod(0o555)
    neuzip("compress", model)
    neuzip("decompress", tmp_path / "model-nz", "-o", tmp_path / "back")
    for name in paths:
        expected = (model / name).stat()
        for folder in ("model-nz", "back"):
            status = (tmp_path / folder / name).stat()
            assert status.st_mode == expected.st_mode, name
            assert status.st_mtime_ns == expected.st_mtime_ns, name
    assert stat.S_IMODE((tmp_path / "model-nz").stat().st_mode) == 0o750


def test_loaders_find_what_they_look_for(model: Path, packed: Path) -> None:
    assert (packed / INDEX).read_bytes() == (model / INDEX).read_bytes()
    config = json.loads((packed / "config.json").read_bytes())
    assert config == {**CONFIG, "quantization_config": {"quant_method": "neuzip"}}
    for name, shard in json.loads((packed / INDEX).read_bytes())["weight_map"].items():
        with safetensors.safe_open(packed / shard, "np") as file:
            assert name in set(file.keys())


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        (b'{"quantization_config": {"quant_method": "fp8"}}', False),
        (b'{"quantization_config": null}', True),
        (b"[1, 2]", False),
        (b"no JSON \xff", False),
        (b"", False),
        (b"\xef\xbb\xbf{}", True),
        ('{"name": "\\ud800 ä", "big": 1e400, "n": NaN}'.encode(), True),
    ],
)
def test_odd_configurations(tmp_path: Path, model: Path, text: bytes, marked: bool) -> None:
    (model / "config.json").write_bytes(text)
    notes: list[str] = []
    compress_directory(model, tmp_path / "out", note=notes.append)
    stored = (tmp_path / "out/config.json").read_bytes()
    assert (b'"neuzip"' in stored) == marked
    assert (stored == text) == (not marked)
    assert bool(notes) == (not marked)
    decompress_directory(tmp_path / "out", tmp_path / "back")
    assert (tmp_path / "back/config.json").read_bytes() == text


def test_hub_cache_of_links(tmp_path: Path, model: Path) -> None:
    before = files_below(model)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, (name, data) in enumerate(before.items()):
        (blobs / str(number)).write_bytes(data)
        (model / name).unlink()
        (model / name).symlink_to(f"{blobs}/{number}")
    neuzip("compress", "--rm", model)
    assert len(names_in(blobs)) == len(before)
    assert not model.exists()
    assert not any(path.is_symlink() for path in (tmp_path / "model-nz").rglob("*"))
    neuzip("decompress", "--rm", tmp_path / "model-nz")
    assert files_below(model) == before
    assert not (tmp_path / "model-nz").exists()


def test_equal_models_give_equal_bytes(tmp_path: Path, model: Path) -> None:
    shutil.copytree(model, tmp_path / "copy/of")
    compress_directory(model, tmp_path / "one", threads=1)
    compress_directory(tmp_path / "copy/of", tmp_path / "two", threads=2)
    assert files_below(tmp_path / "one") == files_below(tmp_path / "two")


def test_names_of_the_output(tmp_path: Path, model: Path) -> None:
    neuzip("compress", ".", cwd=model)
    assert (tmp_path / "model-nz" / SHARDS[0]).exists()
    neuzip("compress", "../model/", "-o", "../there/", cwd=model)
    neuzip("decompress", "../there", cwd=model, expect=2)
    (tmp_path / "empty").mkdir()
    neuzip("decompress", "../there", "-o", "../empty", cwd=model)
    assert files_below(tmp_path / "empty") == files_below(model)
    (tmp_path / "several").mkdir()
    (tmp_path / "x").write_bytes(b"x")
    neuzip("compress", "model", "x", "-o", "several", cwd=tmp_path)
    assert names_in(tmp_path / "several") == {"model-nz", "x.nz"}


def test_odd_file_names(tmp_path: Path, model: Path) -> None:
    for name in (b"caf\xe9", b"a:b", b"back\\slash", "模型".encode(), b"new\nline", b"..."):
        (model / os.fsdecode(name)).write_bytes(name)
    neuzip("compress", model)
    neuzip("verify", tmp_path / "model-nz")
    neuzip("decompress", tmp_path / "model-nz", "-o", tmp_path / "back")
    assert files_below(tmp_path / "back") == files_below(model)


def test_git_objects_stay_what_they_are(tmp_path: Path, model: Path) -> None:
    (model / ".git/lfs").mkdir(parents=True)
    (model / ".git/lfs/object").write_bytes(safetensors_bytes(seed=7))
    compress_directory(model, tmp_path / "out")
    stored = (tmp_path / "out/.git/lfs/object").read_bytes()
    assert stored == safetensors_bytes(seed=7)


def test_results_say_what_happened(tmp_path: Path, model: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(weights(600_000))
    done = neuzip("compress", "--json", model)
    assert b"pytorch_model.bin" in done.stderr
    (facts,) = objects(done)
    total = sum(map(len, files_below(model).values()))
    stored = sum(map(len, files_below(tmp_path / "model-nz").values()))
    assert facts["kind"] == "directory"
    assert (facts["original_bytes"], facts["compressed_bytes"]) == (total, stored)
    assert (facts["files"], facts["compressed_files"]) == (9, 3)
    (facts,) = objects(neuzip("verify", "--json", tmp_path / "model-nz"))
    assert (facts["ok"], facts["original_bytes"], facts["compressed_bytes"]) == (
        *(True, total, stored),
    )
    (facts,) = objects(neuzip("info", "--json", tmp_path / "model-nz"))
    names = [file["path"] for file in facts["files"]]
    assert names == sorted(names)
    shard = facts["files"][names.index(SHARDS[0])]
    assert shard["kind"] == "neuzip-safetensors"
    assert shard["tensors"][0]["name"] == "layers.0.weight"
    assert SHARDS[1].encode() in neuzip("info", tmp_path / "model-nz").stdout
    (facts,) = objects(neuzip("decompress", "--json", "-f", tmp_path / "model-nz"))
    assert (facts["original_bytes"], facts["files"]) == (total, 9)


# --- what is refused ----------------------------------------------------------------------------


def test_no_model_directory(tmp_path: Path, packed: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a").write_bytes(b"a")
    assert b"safetensors" in neuzip("compress", tmp_path / "text", expect=1).stderr
    assert b"manifest" in neuzip("decompress", tmp_path / "text", "-o", "x", expect=1).stderr
    neuzip("verify", tmp_path / "text", expect=1)
    assert b"already compressed" in neuzip("compress", packed, expect=1).stderr
    (packed / MANIFEST_NAME).unlink()
    assert b"already compressed" in neuzip("compress", packed, expect=1).stderr
    # Without a manifest it is still something that can be checked.
    neuzip("verify", packed)
    assert names_in(tmp_path) == {"model", "model-nz", "text"}


def test_places_that_would_destroy_something(tmp_path: Path, model: Path) -> None:
    before = files_below(tmp_path)
    for arguments in (
        ("model", "-o", "model/out"),
        ("model", "-o", "model"),
        ("model", "-f", "-o", "model"),
        ("model", "-f", "-o", "."),
        ("model/nested", "-f", "-o", "model"),
    ):
        neuzip("compress", *arguments, cwd=tmp_path, expect=2)
    neuzip("compress", "model", "-o", "no/such", cwd=tmp_path, expect=1)
    assert files_below(tmp_path) == before


def test_existing_output(tmp_path: Path, model: Path) -> None:
    target = tmp_path / "model-nz"
    target.mkdir()
    (target / "precious").write_bytes(b"precious")
    assert b"-f" in neuzip("compress", model, expect=1).stderr
    assert files_below(target) == {"precious": b"precious"}
    neuzip("compress", "-f", model)
    assert "precious" not in names_in(target)
    neuzip("compress", model, expect=1)
    before = files_below(model)
    (model / "new").write_bytes(b"new")
    neuzip("decompress", target, expect=1)
    neuzip("decompress", "-f", target)
    assert files_below(model) == before
    assert names_in(tmp_path) == {"model", "model-nz"}
    (tmp_path / "file").write_bytes(b"precious")
    neuzip("compress", "-f", model, "-o", tmp_path / "file", expect=1)
    assert (tmp_path / "file").read_bytes() == b"precious"


def test_replacing_in_two_steps_where_names_cannot_be_exchanged(
    model: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_below(packed)
    (packed / "old").touch()
    monkeypatch.setattr(workspace, "_rename_exchange", lambda *_: False)
    compress_directory(model, packed, overwrite=True)
    assert files_below(packed) == before
    assert names_in(packed.parent) == {"model", "model-nz"}
    # A run that was killed between the two steps: the next one begins by going back.
    partial = packed.with_name("model-nz.partial")
    partial.mkdir()
    (partial / "journal.jsonl").touch()
    packed.rename(partial / "replaced")
    with pytest.raises(OSError, match="not empty"):
        compress_directory(model, packed)
    assert files_below(packed) == before


def test_output_through_a_link(tmp_path: Path, model: Path, packed: Path) -> None:
    (tmp_path / "link").symlink_to("model-nz")
    before = files_below(packed)
    neuzip("compress", "model", "-o", "link", cwd=tmp_path, expect=1)
    neuzip("compress", "-f", "model", "-o", "link", cwd=tmp_path)
    assert files_below(packed) == files_below(tmp_path / "link") == before
    assert not (tmp_path / "link").is_symlink()


def test_failed_replacement_leaves_the_old_directory(tmp_path: Path, model: Path) -> None:
    target = tmp_path / "model-nz"
    target.mkdir()
    (target / "precious").write_bytes(b"precious")
    (model / "fifo").symlink_to("nowhere")
    neuzip("compress", "-f", model, expect=1)
    assert files_below(target) == {"precious": b"precious"}


def test_things_that_cannot_be_restored(tmp_path: Path, model: Path) -> None:
    (model / "loop").symlink_to(".")
    assert b"loop" in neuzip("compress", model, expect=1).stderr
    (model / "loop").unlink()
    os.mkfifo(model / "fifo")
    assert b"fifo" in neuzip("compress", model, expect=1).stderr
    assert names_in(tmp_path) == {"model"}


def test_somebody_elses_folder_is_left_alone(tmp_path: Path, model: Path) -> None:
    (tmp_path / "model-nz.partial").mkdir()
    (tmp_path / "model-nz.partial/mine").write_bytes(b"mine")
    neuzip("compress", "-f", model, expect=1)
    assert files_below(tmp_path / "model-nz.partial") == {"mine": b"mine"}


def test_two_runs_do_not_meet(tmp_path: Path, model: Path) -> None:
    with Workspace(tmp_path / "model-nz", {}):
        assert b"another" in neuzip("compress", model, expect=1).stderr
    neuzip("compress", model)


# --- --rm ---------------------------------------------------------------------------------------


def test_rm_compares_with_the_source_as_it_is_now(model: Path, packed: Path) -> None:
    verify_directory(packed, original=model)
    data = (model / SHARDS[0]).read_bytes()
    (model / SHARDS[0]).write_bytes(flipped(data, -1))
    with pytest.raises(CorruptDataError, match=SHARDS[0]):
        verify_directory(packed, original=model)
    (model / SHARDS[0]).write_bytes(data)
    (model / "late").write_bytes(b"late")
    with pytest.raises(CorruptDataError, match="late"):
        verify_directory(packed, original=model)
    (model / "late").unlink()
    (model / "nested/empty").rmdir()
    with pytest.raises(CorruptDataError, match="empty"):
        verify_directory(packed, original=model)


def test_rm_keeps_a_directory_with_changes(tmp_path: Path, packed: Path) -> None:
    (packed / "config.json").write_bytes(b"{}")
    neuzip("decompress", "--rm", packed, "-o", tmp_path / "back", expect=1)
    assert (packed / "config.json").read_bytes() == b"{}"


# --- damage -------------------------------------------------------------------------------------


def test_every_damaged_file_is_noticed(tmp_path: Path, model: Path, packed: Path) -> None:
    originals = files_below(model)
    for name, data in files_below(packed).items():
        for damaged in (flipped(data, len(data) // 2), data[:-2], data + b"x"):
            (packed / name).write_bytes(damaged)
            with pytest.raises(NeuzipError, match=r"manifest" if name == MANIFEST_NAME else name):
                verify_directory(packed)
            try:
                decompress_directory(packed, tmp_path / "back", overwrite=True)
            except NeuzipError:
                assert not (tmp_path / "back").exists()
            else:
                # The originals of these are in the manifest.
                assert name in ("config.json", INDEX)
                assert files_below(tmp_path / "back") == originals
                shutil.rmtree(tmp_path / "back")
        (packed / name).write_bytes(data)
    assert names_in(tmp_path) == {"model", "model-nz"}
    neuzip("verify", packed)


def test_damage_from_the_command_line(tmp_path: Path, packed: Path) -> None:
    shard = packed / SHARDS[1]
    shard.write_bytes(flipped(shard.read_bytes(), -5))
    (packed / SHARDS[0]).unlink()
    done = neuzip("verify", packed, expect=1)
    assert all(name.encode() in done.stderr for name in SHARDS)
    neuzip("decompress", packed, "-o", tmp_path / "back", expect=1)
    assert names_in(tmp_path) == {"model", "model-nz"}


def test_every_byte_of_the_manifest_counts(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/x.safetensors").write_bytes(safetensors_bytes(count=8))
    (tmp_path / "m/config.json").write_bytes('{"a": "ü"}'.encode())
    compress_directory(tmp_path / "m", tmp_path / "out")
    path = tmp_path / "out" / MANIFEST_NAME
    data = path.read_bytes()
    expected = Manifest.read_from(tmp_path / "out")
    for position in range(len(data)):
        path.write_bytes(flipped(data, position, 1 << (position % 8)))
        try:
            found = Manifest.read_from(tmp_path / "out")
        except (CorruptDataError, UnsupportedVersionError):
            continue
        # Upper and lower case in an escape of JSON mean the same.
        assert found == expected
    for length in range(0, len(data) - 1, 7):
        path.write_bytes(data[:length])
        with pytest.raises(CorruptDataError):
            Manifest.read_from(tmp_path / "out")


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "", ".", "a//b", "\0"])
def test_hostile_names(tmp_path: Path, packed: Path, name: str) -> None:
    files = json.loads((packed / MANIFEST_NAME).read_bytes())["files"]
    edit_manifest(packed, files={**files, name: files["run.sh"]})
    neuzip("decompress", packed, "-o", tmp_path / "back", expect=1)
    edit_manifest(packed, files=files, folders=[name])
    neuzip("decompress", packed, "-o", tmp_path / "back", expect=1)
    assert names_in(tmp_path) == {"model", "model-nz"}


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "magic"},
        {"size": -1},
        {"size": 1.5},
        {"size": "9"},
        {"sha256": "00"},
        {"sha256": None},
        {"stored_size": None},
        {"original": {"encoding": "zlib+base64", "data": "eJw="}},
        {"original": {"encoding": "rot13", "data": "x"}},
        {"original": {"encoding": "utf-8", "data": 5}},
        {"original": {"encoding": "utf-8", "data": "{}"}},
        {"original": {"encoding": "utf-8", "data": "\ud800"}},
        {"original": None},
    ],
)
def test_hostile_entries(packed: Path, change: dict[str, Any]) -> None:
    files = json.loads((packed / MANIFEST_NAME).read_bytes())["files"]
    files["config.json"] |= change
    edit_manifest(packed, files=files)
    with pytest.raises(CorruptDataError, match=r"config\.json"):
        Manifest.read_from(packed)


def test_manifest_of_the_future(packed: Path) -> None:
    edit_manifest(packed, version=2)
    with pytest.raises(UnsupportedVersionError):
        Manifest.read_from(packed)


def test_entries_that_contradict_the_files(tmp_path: Path, packed: Path) -> None:
    files = json.loads((packed / MANIFEST_NAME).read_bytes())["files"]
    files["run.sh/inside"] = files["run.sh"]
    edit_manifest(packed, files=files)
    neuzip("decompress", packed, "-o", tmp_path / "back", expect=1)
    files = json.loads((packed / MANIFEST_NAME).read_bytes())["files"]
    del files["run.sh/inside"]
    files["run.sh"]["kind"] = Kind.SAFETENSORS.value
    edit_manifest(packed, files=files)
    neuzip("decompress", packed, "-o", tmp_path / "back", expect=1)
    assert names_in(tmp_path) == {"model", "model-nz"}


def test_large_originals_are_deflated(tmp_path: Path, model: Path) -> None:
    index = json.dumps({"weight_map": {f"layer.{n}": SHARDS[0] for n in range(9000)}})
    (model / INDEX).write_text(index)
    compress_directory(model, tmp_path / "out")
    assert (tmp_path / "out" / MANIFEST_NAME).stat().st_size < 0.3 * len(index)
    (tmp_path / "out" / INDEX).unlink()
    decompress_directory(tmp_path / "out", tmp_path / "back")
    assert (tmp_path / "back" / INDEX).read_text() == index


def test_output_limit(tmp_path: Path, model: Path, packed: Path) -> None:
    total = sum(map(len, files_below(model).values()))
    limit = ("--max-output-size", str(total - 1))
    neuzip("decompress", packed, "-o", tmp_path / "back", *limit, expect=1)
    assert names_in(tmp_path) == {"model", "model-nz"}
    neuzip("decompress", packed, "-o", tmp_path / "back", "--max-output-size", str(total))


def test_files_added_to_the_compressed_directory(tmp_path: Path, model: Path, packed: Path) -> None:
    (packed / ".cache").mkdir()
    (packed / ".cache/download").write_bytes(b"lock")
    assert b"download" in neuzip("verify", packed).stderr
    done = neuzip("decompress", packed, "-o", tmp_path / "back")
    assert b"download" in done.stderr
    expected = files_below(model) | {".cache/download": b"lock"}
    assert files_below(tmp_path / "back") == expected


def test_changed_configuration_is_restored_with_a_note(tmp_path: Path, packed: Path) -> None:
    (packed / "config.json").write_bytes(b"{}")
    done = neuzip("decompress", packed, "-o", tmp_path / "back")
    assert b"config.json" in done.stderr
    assert json.loads((tmp_path / "back/config.json").read_bytes()) == CONFIG


# --- interruptions ------------------------------------------------------------------------------


def interrupt_after(count: int) -> Any:  # noqa: ANN401
    """A progress function that is Ctrl-C when so many bytes are done."""

    def progress(done: int, _total: int) -> None:
        if done > count:
            raise KeyboardInterrupt

    return progress


def test_next_run_goes_on_with_finished_files(tmp_path: Path, model: Path) -> None:
    target = tmp_path / "model-nz"
    shard_bytes = (model / SHARDS[0]).stat().st_size
    # Files in deeper folders come first.
    before = (model / "nested/deep/extra").stat().st_size
    with pytest.raises(KeyboardInterrupt):
        compress_directory(model, target, progress=interrupt_after(before + shard_bytes + 10_000))
    assert not target.exists()
    finished = tmp_path / "model-nz.partial/content" / SHARDS[0]
    inode = finished.stat().st_ino
    compress_directory(model, target)
    assert (target / SHARDS[0]).stat().st_ino == inode
    compress_directory(model, tmp_path / "fresh")
    assert files_below(target) == files_below(tmp_path / "fresh")
    assert names_in(tmp_path) == {"model", "model-nz", "fresh"}

    shutil.move(model, tmp_path / "before")
    with pytest.raises(KeyboardInterrupt):
        decompress_directory(target, model, progress=interrupt_after(shard_bytes + 10_000))
    inode = (tmp_path / "model.partial/content" / SHARDS[0]).stat().st_ino
    decompress_directory(target, model)
    assert (model / SHARDS[0]).stat().st_ino == inode
    assert files_below(model) == files_below(tmp_path / "before")


def test_nothing_stale_is_taken_over(tmp_path: Path, model: Path) -> None:
    target = tmp_path / "model-nz"
    first = (model / "nested/deep/extra", model / SHARDS[0])
    done = sum(path.stat().st_size for path in first)

    def interrupted() -> Path:
        with pytest.raises(KeyboardInterrupt):
            compress_directory(model, target, progress=interrupt_after(done + 10_000))
        return tmp_path / "model-nz.partial/content"

    # A damaged file, one that the source has no more, a torn journal, other content.
    content = interrupted()
    shard = content / SHARDS[0]
    shard.write_bytes(flipped(shard.read_bytes(), -1))
    (content / ".hidden").write_bytes(b"hiddeX")
    (content / "stale/folder").mkdir(parents=True)
    (content / "stale/.model.tmp").write_bytes(b"x")
    with (content.parent / "journal.jsonl").open("a") as journal:
        journal.write('{"file": "x", "fac')
    (model / "run.sh").unlink()
    compress_directory(model, target)
    compress_directory(model, tmp_path / "fresh")
    assert files_below(target) == files_below(tmp_path / "fresh")
    shutil.rmtree(target)

    # The source changed, with the size it had.
    interrupted()
    data = (model / SHARDS[0]).read_bytes()
    (model / SHARDS[0]).write_bytes(flipped(data, -1))
    compress_directory(model, target)
    verify_directory(target, original=model)
    shutil.rmtree(target)

    # Another level.
    interrupted()
    compress_directory(model, target, level="fast")
    compress_directory(model, tmp_path / "fast", level="fast")
    assert files_below(target) == files_below(tmp_path / "fast")


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name
)
def test_stopped_process(tmp_path: Path, number: signal.Signals) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for shard in range(4):
        header = b'{"x":{"dtype":"BF16","shape":[6000000],"data_offsets":[0,12000000]}} '
        data = weights(6_000_000, seed=shard)
        file = model / f"{shard}.safetensors"
        file.write_bytes(len(header).to_bytes(8, "little") + header + data)
    process = subprocess.Popen(
        [*PROGRAM, "compress", "-T", "1", str(model)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    journal = tmp_path / "model-nz.partial/journal.jsonl"
    for _ in range(5000):
        if journal.exists() and journal.read_text().count("\n") >= 2:
            break
        time.sleep(0.002)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    expected = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
    assert process.returncode == expected[number], said
    assert b"Traceback" not in said
    assert names_in(tmp_path) == {"model", "model-nz.partial"}
    if number != signal.SIGKILL:
        assert b"model-nz.partial" in said
    neuzip("compress", "--rm", model)
    assert names_in(tmp_path) == {"model-nz"}
    neuzip("verify", tmp_path / "model-nz")


def test_full_disk(tmp_path: Path, model: Path, packed: Path) -> None:
    """A limit for the size of files stands in for a full disk: writing fails in the same place."""
    before = files_below(packed)

    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    neuzip("compress", "-f", model, expect=1, preexec_fn=small_files_only)
    neuzip("decompress", packed, "-o", tmp_path / "x", expect=1, preexec_fn=small_files_only)
    assert files_below(packed) == before
    assert names_in(tmp_path) == {"model", "model-nz"}
