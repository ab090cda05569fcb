"""Places that cannot be written to, odd names, links, and two processes on one target."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import neuzip_rs as nz
import neuzip_rs.directory
from neuzip_rs import safetensors
from tests.python.command import PROGRAM, environment, files_below, neuzip, safetensors_bytes

MODEL = safetensors_bytes(count=1_600_000)
SMALL = safetensors_bytes()


def run(folder: Path, program: str, *prefix: str) -> str:
    """Runs a program in a folder and returns what it printed."""
    done = subprocess.run(
        [*prefix, sys.executable, "-c", program],
        cwd=folder,
        env=environment(PYTHONPATH=os.pathsep.join(sys.path)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root may mount")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine does not let root mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk(tmp_path: Path, tiny_disk: Path) -> None:
    source, packed = tmp_path / "m.safetensors", tmp_path / "m.nz.safetensors"
    source.write_bytes(MODEL)
    other = tmp_path / "bytes"
    other.write_bytes(b"x" + MODEL)
    safetensors.compress_file(source, packed)
    old = tiny_disk / "out"
    old.write_bytes(b"old")
    loaded = safetensors.load_file(packed, framework="np")
    writes = {
        "compress": lambda: safetensors.compress_file(source, old, overwrite=True),
        "compress bytes": lambda: safetensors.compress_file(other, old, overwrite=True),
        "decompress": lambda: safetensors.decompress_file(packed, old, overwrite=True),
        "save": lambda: safetensors.save_file(loaded, old),
        "state": lambda: nz.save(loaded, old),
    }
    for name, write in writes.items():
        with pytest.raises(OSError, match=r"[Nn]o space|ull") as caught:
            write()
        assert "out" in str(caught.value), name
        assert files_below(tiny_disk) == {"out": b"old"}, name
    # The command too, and what it reads from a pipe.
    for arguments, stdin in (((source,), None), (("-",), MODEL)):
        done = neuzip("compress", "-f", *arguments, "-o", old, stdin=stdin, expect=1)
        assert b"o space" in done.stderr
        assert files_below(tiny_disk) == {"out": b"old"}


def test_full_disk_under_a_directory(tmp_path: Path, tiny_disk: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "m.safetensors").write_bytes(MODEL)
    with pytest.raises(OSError, match=r"[Nn]o space"):
        neuzip_rs.directory.compress_directory(model, tiny_disk / "model-nz")
    assert files_below(tiny_disk) == {}
    # What fits is written there, and there is room again.
    (model / "m.safetensors").write_bytes(SMALL)
    neuzip_rs.directory.compress_directory(model, tiny_disk / "model-nz")
    neuzip_rs.directory.decompress_directory(tiny_disk / "model-nz", tmp_path / "back")
    assert files_below(tmp_path / "back") == files_below(model)


READ_ONLY_PROGRAM = """
from neuzip_rs import safetensors as st
import neuzip_rs as nz, neuzip_rs.directory as directory
from pathlib import Path
import numpy as np

calls = {
    "compress": lambda: st.compress_file("m.safetensors", "closed/out"),
    "replace": lambda: st.compress_file("m.safetensors", "closed/old", overwrite=True),
    "save": lambda: st.save_file({"x": np.ones(3)}, "closed/out"),
    "state": lambda: nz.save([1], "closed/out"),
    "decompress": lambda: st.decompress_file("m.nz.safetensors", "closed/out"),
    "directory": lambda: directory.compress_directory(Path("model"), Path("closed/model-nz")),
    "unreadable": lambda: st.compress_file("secret", "out"),
    "unreadable load": lambda: st.load_file("secret", framework="np"),
    "unreadable folder": lambda: st.load_file("locked/m.safetensors", framework="np"),
}
for name, call in calls.items():
    try:
        call()
    except PermissionError as error:
        # The folder in which nothing can be made, or what cannot be read.
        assert "closed" in str(error) or "secret" in str(error) or "locked" in str(error), error
    else:
        raise AssertionError(name)
assert [path.name for path in Path("closed").iterdir()] == ["old"]
assert Path("closed/old").read_bytes() == b"old"
print("done")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are others there")
def test_no_permission(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(SMALL)
    safetensors.compress_file(tmp_path / "m.safetensors", tmp_path / "m.nz.safetensors")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "m.safetensors").write_bytes(SMALL)
    closed, locked, secret = (tmp_path / name for name in ("closed", "locked", "secret"))
    for folder in (closed, locked):
        folder.mkdir()
    (closed / "old").write_bytes(b"old")
    (locked / "m.safetensors").write_bytes(SMALL)
    secret.write_bytes(SMALL)
    # Root may do everything, unless it gives that up.
    prefix = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
    if os.geteuid() != 0:
        prefix = ()
    elif subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("root cannot give up its privileges here")
    for path, mode in ((closed, 0o555), (locked, 0), (secret, 0)):
        path.chmod(mode)
    try:
        assert run(tmp_path, READ_ONLY_PROGRAM, *prefix) == "done"
    finally:
        for path in (closed, locked):
            path.chmod(0o755)


def test_read_only_file_system(tmp_path: Path, tiny_disk: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    source = model / "m.safetensors"
    source.write_bytes(SMALL)
    (tiny_disk / "old").write_bytes(b"old")
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    for name in ("old", "new"):
        with pytest.raises(OSError, match=r"[Rr]ead-only") as caught:
            safetensors.compress_file(source, tiny_disk / name, overwrite=True)
        assert name in str(caught.value)
    with pytest.raises(OSError, match=r"[Rr]ead-only"):
        neuzip_rs.directory.compress_directory(model, tiny_disk / "model-nz")
    assert files_below(tiny_disk) == {"old": b"old"}


NAMES = [
    "-rf",
    "--help",
    "-",
    "two\nlines",
    "tab\tand 'quotes\" $HOME `x` *",
    " spaces ",
    "grüße 重み 🏋",
    "e\u0301 and \u00e9",
    "[bold]name",
    "%s %d {x}",
    ".hidden",
    "n" * 230,
    os.fsdecode(b"not utf-8 \xff\xfe"),
]


def can_be_named(folder: Path, name: str) -> bool:
    try:
        (folder / name).write_bytes(b"")
        (folder / name).unlink()
    except (OSError, ValueError):
        return False
    return True


@pytest.fixture
def names(tmp_path: Path) -> list[str]:
    """The names that this file system has."""
    return [name for name in NAMES if can_be_named(tmp_path, name)]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:25])
def test_odd_names(tmp_path: Path, name: str) -> None:
    if not can_be_named(tmp_path, name):
        pytest.skip("no such name on this file system")
    source = tmp_path / f"{name}.safetensors"
    source.write_bytes(SMALL)
    packed, back = tmp_path / name, tmp_path / f"{name}.back"
    safetensors.compress_file(source, packed)
    safetensors.decompress_file(packed, back)
    assert back.read_bytes() == SMALL
    assert len(safetensors.load_file(packed, framework="np")) == 6


def test_odd_names_on_the_command_line(tmp_path: Path, names: list[str]) -> None:
    sources = {f"{name}.safetensors": safetensors_bytes(seed=n) for n, name in enumerate(names)}
    for name, content in sources.items():
        (tmp_path / name).write_bytes(content)
    neuzip("compress", "-q", "--rm", "--", *sources, cwd=tmp_path)
    packed = [f"{name}.nz.safetensors" for name in names]
    assert files_below(tmp_path).keys() == set(packed)
    for verb in ("verify", "info"):
        neuzip(verb, "--", *packed, cwd=tmp_path)
    neuzip("decompress", "-q", "--rm", "--", *packed, cwd=tmp_path)
    assert files_below(tmp_path) == sources


def test_odd_names_in_a_directory(tmp_path: Path, names: list[str]) -> None:
    model = tmp_path / f"m {names[3]}"
    for name in names:
        (model / name).mkdir(parents=True)
        (model / name / f"{name}.safetensors").write_bytes(SMALL)
        (model / name / name).write_bytes(b"text")
    packed = tmp_path / f"{model.name}-nz"
    neuzip_rs.directory.compress_directory(model, packed)
    assert neuzip_rs.directory.verify_directory(packed)
    neuzip_rs.directory.decompress_directory(packed, tmp_path / "back")
    assert files_below(tmp_path / "back") == files_below(model)


def test_names_that_are_too_long(tmp_path: Path) -> None:
    source = tmp_path / ("n" * 243 + ".safetensors")
    source.write_bytes(SMALL)
    # The name of what it would become has 258 bytes.
    done = neuzip("compress", source.name, cwd=tmp_path, expect=1)
    assert b"too long" in done.stderr
    assert files_below(tmp_path) == {source.name: SMALL}
    neuzip("compress", "-q", source.name, "-o", "n" * 255, cwd=tmp_path)
    neuzip("decompress", "-q", "n" * 255, "-o", "b" * 255, cwd=tmp_path)
    assert (tmp_path / ("b" * 255)).read_bytes() == SMALL


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_links(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "blob").write_bytes(SMALL)
    link = tmp_path / "m.safetensors"
    link.symlink_to("store/blob")
    # A source is read through its link, and only the link is removed.
    neuzip("compress", "-q", "--rm", link)
    assert not link.is_symlink()
    assert (store / "blob").read_bytes() == SMALL
    # A target that is a link is replaced: what it points to belongs to someone else.
    target = tmp_path / "target"
    target.symlink_to("store/blob")
    packed = tmp_path / "m.nz.safetensors"
    with pytest.raises(FileExistsError):
        safetensors.decompress_file(packed, target)
    safetensors.decompress_file(packed, target, overwrite=True)
    assert not target.is_symlink()
    assert (store / "blob").read_bytes() == SMALL
    # Links that lead nowhere or in circles.
    for name, to in (("nowhere", "gone"), ("circle", "circle")):
        (tmp_path / name).symlink_to(to)
        with pytest.raises(OSError, match=name):
            safetensors.compress_file(tmp_path / name, tmp_path / "out")
        with pytest.raises(OSError, match=name):
            safetensors.load_file(tmp_path / name, framework="np")
        with pytest.raises(FileExistsError):
            safetensors.decompress_file(packed, tmp_path / name)
    # A folder that is a link.
    (tmp_path / "folder").symlink_to("store")
    safetensors.decompress_file(packed, tmp_path / "folder" / "back")
    assert (store / "back").read_bytes() == SMALL


def start(folder: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [*PROGRAM, *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(*processes: "subprocess.Popen[bytes]") -> list[tuple[int, bytes]]:
    ended = [(process.communicate(timeout=120)[1], process.returncode) for process in processes]
    return [(status, said) for said, status in ended]


def test_two_processes_on_one_file(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"m{number}.safetensors").write_bytes(safetensors_bytes(seed=number))
    for overwrite in (True, False):
        target = tmp_path / f"out{overwrite}"
        force = ["-f"] * overwrite
        ended = finish(
            *(
                start(tmp_path, "compress", *force, f"m{number}.safetensors", "-o", target.name)
                for number in range(2)
            )
        )
        statuses = sorted(status for status, _ in ended)
        assert statuses == ([0, 0] if overwrite else [0, 1]), ended
        safetensors.decompress_file(target, tmp_path / "back", overwrite=True)
        originals = [safetensors_bytes(seed=number) for number in range(2)]
        assert (tmp_path / "back").read_bytes() in originals
    assert not list(tmp_path.glob(".neuzip-*"))


def test_two_processes_on_one_directory(tmp_path: Path) -> None:
    for number in range(2):
        model = tmp_path / f"model{number}"
        model.mkdir()
        for shard in range(3):
            content = safetensors_bytes(seed=10 * number + shard)
            (model / f"{shard}.safetensors").write_bytes(content)
    ended = finish(
        *(start(tmp_path, "compress", "-f", f"model{number}", "-o", "out") for number in range(2))
    )
    for status, said in ended:
        assert status == 0 or b"another neuzip process" in said, said
    assert 0 in [status for status, _ in ended]
    neuzip("decompress", "-q", "out", "-o", "back", cwd=tmp_path)
    models = [files_below(tmp_path / f"model{number}") for number in range(2)]
    assert files_below(tmp_path / "back") in models
    assert not list(tmp_path.glob("*.partial"))


def test_a_reader_keeps_what_it_opened_while_it_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "m"
    old, new = ({"x": np.full(300_000, value, np.float32)} for value in (1, 2))
    safetensors.save_file(old, target)
    with safetensors.safe_open(target, framework="np") as file:
        safetensors.save_file(new, target)
        assert np.array_equal(file.get_tensor("x"), old["x"])
    assert np.array_equal(safetensors.load_file(target, framework="np")["x"], new["x"])
