"""Files that change or become shorter while they are read: an error, and no bus error."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import neuzip_rs as nz
import neuzip_rs.directory
from neuzip_rs import safetensors
from tests.python.command import environment

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="files that are mapped cannot be changed there"
)

Tensors = dict[str, np.ndarray]


def tensors(change: float = 0) -> Tensors:
    rng = np.random.default_rng(0)
    found = {f"t{n}": rng.standard_normal(200_000).astype(np.float32) for n in range(4)}
    return {name: value + np.float32(change) for name, value in found.items()}


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "m.nz.safetensors"
    safetensors.save_file(tensors(), path)
    return path


@pytest.fixture
def plain(tmp_path: Path, packed: Path) -> Path:
    path = tmp_path / "m.safetensors"
    safetensors.decompress_file(packed, path)
    return path


def later(path: Path) -> None:
    """Makes sure that the time of the file is another one."""
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1_000_000_000))


@pytest.mark.parametrize("kept", [0, 1, 5000, 1_000_000])
@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_a_file_that_is_cut_short_after_it_was_opened(
    request: pytest.FixtureRequest, kind: str, kept: int
) -> None:
    path: Path = request.getfixturevalue(kind)
    with safetensors.safe_open(path, framework="np") as file:
        first = file.get_tensor("t0")
        os.truncate(path, kept)
        for read in (
            lambda: file.get_tensor("t3"),
            lambda: file.get_slice("t3")[100_000:],
            file.get_tensors,
        ):
            with pytest.raises(
                OSError, match=r"m\.(nz\.)?safetensors.*cut short while it was read"
            ):
                read()
    assert np.array_equal(first, tensors()["t0"])


@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_a_file_that_changes_after_it_was_opened(request: pytest.FixtureRequest, kind: str) -> None:
    path: Path = request.getfixturevalue(kind)
    data = bytearray(path.read_bytes())
    with safetensors.safe_open(path, framework="np") as file:
        data[-100:] = bytes(100)
        with path.open("r+b") as writer:
            writer.write(data)
        later(path)
        # What hashes vouch for is what it was.
        if kind == "packed":
            assert np.array_equal(file.get_tensor("t0"), tensors()["t0"])
        with pytest.raises(OSError, match="changed while it was read"):
            file.get_tensor("t3")


def test_a_base_that_changes_after_it_was_opened(tmp_path: Path, plain: Path) -> None:
    delta = tmp_path / "delta"
    safetensors.save_file(tensors(0.001), delta, base=plain)
    for kept in (0, 100_000, 2_000_000):
        data = plain.read_bytes()
        with safetensors.safe_open(delta, framework="np") as file:
            os.truncate(plain, kept)
            with pytest.raises(OSError, match=r"m\.safetensors.*cut short"):
                file.get_tensor("t3")
        plain.write_bytes(data)
    assert np.array_equal(safetensors.load_file(delta, framework="np")["t1"], tensors(0.001)["t1"])


def test_a_file_that_others_refer_to(tmp_path: Path, plain: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("a.safetensors", "b.safetensors"):
        (model / name).write_bytes(plain.read_bytes())
    neuzip_rs.directory.compress_directory(model, tmp_path / "model-nz")
    with safetensors.safe_open(tmp_path / "model-nz" / "b.safetensors", framework="np") as file:
        assert np.array_equal(file.get_tensor("t0"), tensors()["t0"])
        os.truncate(tmp_path / "model-nz" / "a.safetensors", 5000)
        with pytest.raises(OSError, match=r"a\.safetensors.*cut short"):
            file.get_tensor("t3")


# Files are written anew and cut off while something reads them. With faulthandler, whose handler of
# SIGBUS was there before ours, and is installed anew in between.
RACE_PROGRAM = """
import faulthandler, os, random, sys, threading, time
import numpy as np
import neuzip_rs as nz
from neuzip_rs import safetensors as st

faulthandler.enable()
folder, rounds = sys.argv[1], int(sys.argv[2])
os.chdir(folder)
plain = open("m.safetensors", "rb").read()
packed = open("m.nz.safetensors", "rb").read()
st.save_file(st.load_file("m.safetensors", framework="np"), "state")
nz.save(st.load_file("m.safetensors", framework="np"), "state")
state = open("state", "rb").read()
open("bytes", "wb").write(b"x" + plain)
st.compress_file("bytes", "bytes.nz")
frames = open("bytes.nz", "rb").read()
actions = {
    "compress": (plain, lambda: st.compress_file("x", "out", overwrite=True)),
    "compress bytes": (b"x" + plain, lambda: st.compress_file("x", "out", overwrite=True)),
    "decompress": (packed, lambda: st.decompress_file("x", "out", overwrite=True)),
    "decompress bytes": (frames, lambda: st.decompress_file("x", "out", overwrite=True)),
    "verify": (packed, lambda: st.verify_file("x")),
    "load": (packed, lambda: st.load_file("x", framework="np")),
    "load plain": (plain, lambda: st.load_file("x", framework="np")),
    "load state": (state, lambda: nz.load("x")),
    "delta": (plain, lambda: st.save_file({"t0": np.ones(200_000, "f4")}, "out", base="x")),
}
random.seed(0)
noticed = 0
for number in range(rounds):
    for name, (data, act) in actions.items():
        if number % 5 == 4:
            faulthandler.disable()
            faulthandler.enable()
        with open("x", "wb") as file:
            file.write(data)
        began = time.perf_counter()
        if number == 0:
            act()
            took = time.perf_counter() - began
            actions[name] = (data, act)
            globals().setdefault("times", {})[name] = took
            continue
        def cut():
            time.sleep(random.random() * times[name])
            os.truncate("x", random.randrange(len(data)))
        thread = threading.Thread(target=cut)
        thread.start()
        try:
            act()
        except (OSError, ValueError, nz.NeuzipError) as error:  # a base may be cut before a look
            noticed += 1
            if isinstance(error, OSError):
                assert "while it was read" in str(error), error
        thread.join()
print("noticed", noticed)
"""


def race(folder: Path, rounds: int) -> int:
    done = subprocess.run(
        [sys.executable, "-c", RACE_PROGRAM, str(folder), str(rounds)],
        env=environment(PYTHONPATH=os.pathsep.join(sys.path)),
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout.split()[-1])


@pytest.mark.usefixtures("plain")
def test_files_that_are_cut_short_while_they_are_read(tmp_path: Path) -> None:
    assert race(tmp_path, 6) > 0


@pytest.mark.slow
@pytest.mark.usefixtures("plain")
def test_many_files_that_are_cut_short_while_they_are_read(tmp_path: Path) -> None:
    noticed = race(tmp_path, 200)
    print(f"{noticed} of {199 * 9} cuts came while the file was read")
    assert noticed > 100


# A bus error that has nothing to do with our maps still ends the process, as before.
FOREIGN_PROGRAM = """
import faulthandler, mmap, os, signal, sys
from neuzip_rs import safetensors as st
if sys.argv[2] == "before":
    faulthandler.enable()
os.chdir(sys.argv[1])
st.verify_file("m.nz.safetensors")
if sys.argv[2] == "after":
    faulthandler.enable()
    st.verify_file("m.nz.safetensors")
if sys.argv[3] == "sent":
    os.kill(os.getpid(), signal.SIGBUS)
with open("theirs", "wb+") as file:
    file.truncate(100_000)
    mapped = mmap.mmap(file.fileno(), 0)
    file.truncate(0)
    print(mapped[50_000])
"""


@pytest.mark.parametrize("how", ["fault", "sent"])
@pytest.mark.parametrize("handler", ["before", "after", "none"])
def test_other_bus_errors_are_what_they_were(packed: Path, handler: str, how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN_PROGRAM, str(packed.parent), handler, how],
        env=environment(PYTHONPATH=os.pathsep.join(sys.path)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -7, done.stderr
    assert done.stdout == ""
    assert ("Fatal Python error: Bus error" in done.stderr) == (handler != "none")


def test_programs_that_handle_bus_errors_themselves(packed: Path) -> None:
    program = f"""
import os, signal
from neuzip_rs import safetensors as st
seen = []
signal.signal(signal.SIGBUS, lambda *_: seen.append(1))
st.verify_file({str(packed)!r})
os.kill(os.getpid(), signal.SIGBUS)
print(len(seen))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(PYTHONPATH=os.pathsep.join(sys.path)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip() == "1", done.stderr


def test_memory_that_the_caller_has_mapped_is_the_callers(packed: Path) -> None:
    # Nothing of it is kept, so that it may be closed.
    data = np.memmap(packed, mode="r")
    compressed = nz.compress(np.asarray(data))
    assert nz.decompress(compressed, framework="bytes") == packed.read_bytes()
