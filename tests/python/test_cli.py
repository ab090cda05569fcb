"""The `neuzip` command on files and streams, run as a process."""

import os
import pty
import resource
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import neuzip_rs as nz
from neuzip_rs._errors import CorruptDataError, NeuzipError
from neuzip_rs.cli.options import size_limit
from neuzip_rs.cli.removal import check_restorable
from neuzip_rs.cli.report import printable, size
from neuzip_rs.cli.session import UsageError
from neuzip_rs.directory.content import original_pieces
from tests.python.command import (
    OTHER_FILES,
    PROGRAM,
    environment,
    flipped,
    neuzip,
    objects,
    safetensors_bytes,
    weights,
)

MODEL = safetensors_bytes()
ANY_FILES = {"model.safetensors": MODEL, "model.bin": MODEL, **OTHER_FILES}
COMPRESSED_NAMES = {
    "model.safetensors": "model.nz.safetensors",
    "model.bin": "model.bin.nz",
    **{name: f"{name}.nz" for name in OTHER_FILES},
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(MODEL)
    return path


@pytest.fixture
def compressed(tmp_path: Path, model: Path) -> Path:
    neuzip("compress", "-q", model)
    return tmp_path / "model.nz.safetensors"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Content of the compressed files, by the name of the original."""
    folder = tmp_path_factory.mktemp("packed")
    for name, data in ANY_FILES.items():
        (folder / name).write_bytes(data)
    neuzip("compress", "-q", *(folder / name for name in ANY_FILES))
    return {name: (folder / COMPRESSED_NAMES[name]).read_bytes() for name in ANY_FILES}


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- names, bytes, modes and times --------------------------------------------------------------


def test_every_kind_of_file_comes_back(tmp_path: Path) -> None:
    for name, data in ANY_FILES.items():
        (tmp_path / name).write_bytes(data)
    neuzip("compress", *ANY_FILES, cwd=tmp_path)
    assert names_in(tmp_path) == {*ANY_FILES, *COMPRESSED_NAMES.values()}
    for name in ANY_FILES:
        (tmp_path / name).unlink()
    neuzip("verify", *COMPRESSED_NAMES.values(), cwd=tmp_path)
    neuzip("decompress", *COMPRESSED_NAMES.values(), cwd=tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in ANY_FILES} == ANY_FILES


def test_compressed_files_are_smaller_or_hardly_larger(packed: dict[str, bytes]) -> None:
    assert len(packed["model.safetensors"]) < 0.55 * len(MODEL)
    for name in ("model.gguf", "checkpoint.pt", "weights.npz"):
        assert len(packed[name]) < 0.97 * len(ANY_FILES[name])
    noise = ANY_FILES["noise.bin"]
    assert len(packed["noise.bin"]) <= 1.001 * len(noise) + 128


def test_name_that_says_nothing_needs_an_output_name(tmp_path: Path, compressed: Path) -> None:
    odd = compressed.rename(tmp_path / "weights")
    assert b"-o" in neuzip("decompress", odd, expect=2).stderr
    neuzip("decompress", odd, "-o", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == MODEL


def test_mode_and_time_are_kept_both_ways(tmp_path: Path, model: Path) -> None:
    model.chmod(0o640)
    os.utime(model, ns=(1_500_000_000_000_000_000, 1_400_000_000_123_456_789))
    neuzip("compress", model)
    neuzip("decompress", tmp_path / "model.nz.safetensors", "-o", tmp_path / "back")
    for name in ("model.nz.safetensors", "back"):
        status = (tmp_path / name).stat()
        assert stat.S_IMODE(status.st_mode) == 0o640
        assert status.st_mtime_ns == 1_400_000_000_123_456_789


def test_output_depends_on_neither_threads_nor_name(tmp_path: Path, model: Path) -> None:
    (tmp_path / "other").write_bytes(MODEL)
    neuzip("compress", "-T", "1", model, "-o", tmp_path / "one")
    neuzip("compress", "-T", "3", tmp_path / "other", "-o", tmp_path / "three")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "three").read_bytes()


@pytest.mark.parametrize("level", ["fast", "default", "max"])
def test_levels(tmp_path: Path, model: Path, level: str) -> None:
    neuzip("compress", "--level", level, model, "-o", tmp_path / "out")
    neuzip("decompress", tmp_path / "out", "-o", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == MODEL


def test_results_of_several_files_go_into_a_folder(tmp_path: Path, model: Path) -> None:
    (tmp_path / "noise").write_bytes(OTHER_FILES["noise.bin"])
    (tmp_path / "out").mkdir()
    neuzip("compress", model, tmp_path / "noise", "-o", tmp_path / "out")
    assert names_in(tmp_path / "out") == {"model.nz.safetensors", "noise.nz"}
    (tmp_path / "back").mkdir()
    neuzip("decompress", tmp_path / "out/noise.nz", "-o", tmp_path / "back")
    assert (tmp_path / "back/noise").read_bytes() == OTHER_FILES["noise.bin"]


def test_two_results_never_share_a_name(tmp_path: Path) -> None:
    for folder in ("a", "b", "out"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a/x").write_bytes(b"first")
    (tmp_path / "b/x").write_bytes(b"second")
    neuzip("compress", "-f", "a/x", "b/x", "-o", "out", cwd=tmp_path, expect=1)
    neuzip("decompress", "out/x.nz", cwd=tmp_path)
    assert (tmp_path / "out/x").read_bytes() == b"first"


def test_names_beyond_ascii_and_utf8(tmp_path: Path) -> None:
    names = [os.fsencode("gewürz 模型.bin"), b"caf\xe9.bin", b"a\x1b[31m.bin"]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(MODEL)
        said = subprocess.run(
            [*PROGRAM, "compress", "--rm", name],
            cwd=tmp_path,
            env=environment(PYTHONIOENCODING="ascii"),
            capture_output=True,
            check=False,
        )
        assert said.returncode == 0, said.stderr
        assert b"\x1b" not in said.stdout + said.stderr
        neuzip("decompress", os.fsdecode(name + b".nz"), cwd=tmp_path)
        assert (tmp_path / os.fsdecode(name)).read_bytes() == MODEL


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("explode", "x"),
        ("compress",),
        ("compress", "x", "--level", "huge"),
        ("compress", "x", "-T", "-1"),
        ("compress", "x", "-T", "many"),
        ("compress", "x", "--frobnicate"),
        ("compress", "x", "x", "-o", "nowhere"),
        ("compress", "x", "-o", "nowhere/"),
        ("compress", "x", "-o", "x"),
        ("compress", "-f", "x", "-o", "x"),
        ("compress", "x", "--rm", "-o", "-"),
        ("compress", "x", "--json", "-o", "-"),
        ("compress", "-", "-"),
        ("compress", "-", "--rm"),
        ("compress", ".", "-o", "-"),
        ("decompress", "x", "--max-output-size", "lots"),
        ("decompress", "x", "--max-output-size", "-5"),
        ("bench", "-"),
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "x").write_bytes(b"data")
    done = neuzip(*arguments, cwd=tmp_path, stdin=b"", expect=2)
    assert done.stderr or not arguments
    assert names_in(tmp_path) == {"x"}


def test_existing_output_is_refused_without_force(tmp_path: Path, model: Path) -> None:
    target = tmp_path / "model.nz.safetensors"
    target.write_bytes(b"precious")
    neuzip("compress", "-", "-o", target, stdin=b"data", expect=1)
    assert b"-f" in neuzip("compress", model, expect=1).stderr
    assert target.read_bytes() == b"precious"
    neuzip("compress", "-f", model)
    changed = tmp_path / "model.safetensors"
    changed.write_bytes(b"precious")
    neuzip("decompress", target, expect=1)
    assert changed.read_bytes() == b"precious"
    neuzip("decompress", "--force", target)
    assert changed.read_bytes() == MODEL


def test_output_that_is_a_folder_or_in_none(tmp_path: Path, model: Path) -> None:
    (tmp_path / "model.nz.safetensors").mkdir()
    neuzip("compress", "-f", model, expect=1)
    neuzip("compress", model, "-o", tmp_path / "no/such/folder", expect=1)
    assert names_in(tmp_path) == {"model.safetensors", "model.nz.safetensors"}


@pytest.mark.parametrize("name", ["model.safetensors", "noise.bin"])
def test_already_compressed(tmp_path: Path, packed: dict[str, bytes], name: str) -> None:
    (tmp_path / "x").write_bytes(packed[name])
    assert b"already compressed" in neuzip("compress", tmp_path / "x", expect=1).stderr
    done = neuzip("compress", "-", stdin=packed[name], expect=1)
    assert b"already compressed" in done.stderr
    assert names_in(tmp_path) == {"x"}


def test_decompressing_what_is_not_compressed(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.nz" for name in ANY_FILES]
    for path in paths:
        path.write_bytes(ANY_FILES[path.stem])
    for verb in ("decompress", "verify"):
        done = neuzip(verb, *paths, expect=1)
        assert len(done.stderr.splitlines()) == len(paths)
    assert names_in(tmp_path) == {path.name for path in paths}


def test_one_bad_path_does_not_stop_the_others(tmp_path: Path, model: Path) -> None:
    done = neuzip("compress", "-q", tmp_path / "missing", model, tmp_path / "gone", expect=1)
    assert (tmp_path / "model.nz.safetensors").exists()
    assert done.stderr.count(b"\n") == 2
    assert b"missing: No such file" in done.stderr
    assert not done.stdout


def test_devices_are_written_to_and_never_replaced(model: Path) -> None:
    neuzip("compress", "-f", model, "-o", "/dev/null")
    assert Path("/dev/null").is_char_device()
    done = neuzip("compress", model, "-o", "/dev/stdout")
    assert Path("/dev/stdout").is_symlink()
    assert neuzip("decompress", "-", stdin=done.stdout).stdout == MODEL


def test_base_is_accepted_and_must_exist(tmp_path: Path, model: Path) -> None:
    neuzip("compress", model, "--base", model)
    neuzip("decompress", "-f", tmp_path / "model.nz.safetensors", "--base", model)
    neuzip("compress", "-f", model, "--base", tmp_path / "missing", expect=1)


# --- damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "noise.bin", "empty"])
def test_damaged_files(tmp_path: Path, packed: dict[str, bytes], name: str) -> None:
    data = packed[name]
    length = len(data)
    for where in sorted({0, 5, 9, length // 3, length // 2, length - 20, length - 1}):
        (tmp_path / f"cut{where}.nz").write_bytes(data[:where])
        (tmp_path / f"flipped{where}.nz").write_bytes(flipped(data, where, 1 << (where % 8)))
    (tmp_path / "longer.nz").write_bytes(data + b"\0")
    paths = sorted(tmp_path.iterdir())
    for verb in ("verify", "decompress"):
        done = neuzip(verb, *paths, expect=1)
        # One sentence for each, naming it.
        assert len(done.stderr.splitlines()) == len(paths)
        assert all(path.name.encode() in done.stderr for path in paths)
    assert sorted(tmp_path.iterdir()) == paths


def test_damage_arriving_through_a_pipe(packed: dict[str, bytes]) -> None:
    for name in ("model.safetensors", "noise.bin"):
        data = packed[name]
        for damaged in (data[: len(data) // 2], flipped(data, len(data) // 2), data + b"x"):
            neuzip("decompress", "-", stdin=damaged, expect=1)
    neuzip("verify", "-", stdin=flipped(data, len(data) // 3), expect=1)
    neuzip("decompress", "-", stdin=b"", expect=1)


def test_no_byte_of_a_compressed_file_is_idle(tmp_path: Path) -> None:
    """What --rm and directories rely on, beside the native functions: every flip is an error."""
    originals = (safetensors_bytes(count=400), b"hello" * 200, b"")
    (tmp_path / "original").touch()
    for original in originals:
        (tmp_path / "original").write_bytes(original)
        done = neuzip("compress", "-f", tmp_path / "original", "-o", tmp_path / "written")
        assert done.returncode == 0
        data = (tmp_path / "written").read_bytes()
        assert b"".join(map(bytes, original_pieces(tmp_path / "written"))) == original
        for position in range(0, len(data), 3):
            (tmp_path / "written").write_bytes(flipped(data, position, 1 << (position % 8)))
            with pytest.raises(NeuzipError):
                list(original_pieces(tmp_path / "written"))


def test_output_limit(tmp_path: Path, packed: dict[str, bytes]) -> None:
    for name in ("model.safetensors", "noise.bin"):
        path = tmp_path / f"{name}.nz"
        path.write_bytes(packed[name])
        limit = str(len(ANY_FILES[name]) - 1)
        for source, stdin in ((str(path), None), ("-", packed[name])):
            done = neuzip("decompress", source, "--max-output-size", limit, stdin=stdin, expect=1)
            assert limit.encode() in done.stderr
        neuzip("decompress", path, "-o", "-", "--max-output-size", limit, expect=1)
        assert names_in(tmp_path) == {path.name}
        neuzip("decompress", path, "--max-output-size", "1G")
        (tmp_path / name).unlink()
        path.unlink()


def test_sizes() -> None:
    wanted = {"0": 0, "7": 7, "2K": 2048, "3m": 3 << 20, "1GiB": 1 << 30, "1gb": 1 << 30}
    assert {text: size_limit(text) for text in wanted} == wanted
    for wrong in ("", "K", "1.5G", "1X", "٣", "1 G", "-1"):
        with pytest.raises(UsageError):
            size_limit(wrong)


# --- pipes and terminals ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "noise.bin", "empty"])
def test_pipes_and_files_give_the_same_bytes(
    tmp_path: Path, packed: dict[str, bytes], name: str
) -> None:
    (tmp_path / name).write_bytes(ANY_FILES[name])
    through_pipes = neuzip("compress", "-", stdin=ANY_FILES[name])
    assert through_pipes.stdout == packed[name]
    assert through_pipes.stderr == b""
    assert neuzip("compress", tmp_path / name, "-o", "-").stdout == packed[name]
    assert neuzip("decompress", "-", stdin=packed[name]).stdout == ANY_FILES[name]
    neuzip("verify", "-", stdin=packed[name])
    neuzip("compress", "-", "-o", "out", stdin=ANY_FILES[name], cwd=tmp_path)
    assert (tmp_path / "out").read_bytes() == packed[name]
    assert neuzip("decompress", "out", "-o", "-", cwd=tmp_path).stdout == ANY_FILES[name]
    neuzip("decompress", "-", "-f", "-o", "out", stdin=packed[name], cwd=tmp_path)
    assert (tmp_path / "out").read_bytes() == ANY_FILES[name]
    assert names_in(tmp_path) == {name, "out"}


def test_a_stream_of_many_frames() -> None:
    data = weights(12_000_000)
    done = neuzip("compress", "-", stdin=data)
    assert len(done.stdout) < 0.8 * len(data)
    assert neuzip("decompress", "-", stdin=done.stdout).stdout == data


def test_named_pipes(tmp_path: Path, packed: dict[str, bytes]) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = subprocess.Popen(
        [*PROGRAM, "compress", str(fifo), "-o", str(tmp_path / "out")], stderr=subprocess.PIPE
    )
    fifo.write_bytes(ANY_FILES["noise.bin"])
    _, said = reader.communicate(timeout=30)
    assert reader.returncode == 0, said
    assert (tmp_path / "out").read_bytes() == packed["noise.bin"]


class Terminal:
    """A terminal for a process: what it writes there can be read here."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()

    def read(self) -> bytes:
        os.close(self.slave)
        data = b""
        while select.select([self.master], [], [], 5)[0]:
            try:
                data += os.read(self.master, 1 << 16)
            except OSError:  # the other end is closed
                break
        os.close(self.master)
        return data


def test_no_binary_data_to_or_from_a_terminal(tmp_path: Path, compressed: Path) -> None:
    for arguments in (("compress", "-"), ("decompress", str(compressed), "-o", "-")):
        terminal = Terminal()
        done = neuzip(*arguments, stdin=b"data", stdout=terminal.slave, expect=2)
        assert b"terminal" in done.stderr
        assert terminal.read() == b""
    terminal = Terminal()
    done = subprocess.run(
        [*PROGRAM, "compress", "-", "-o", str(tmp_path / "out")],
        stdin=terminal.slave,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "variables", "expected"),
    [
        ((), {}, True),
        (("-q",), {}, False),
        (("--no-progress",), {}, False),
        ((), {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}, False),
        ((), {"HF_HUB_DISABLE_PROGRESS_BARS": "0"}, True),
    ],
)
def test_progress_bar_on_terminals_only(
    tmp_path: Path, options: tuple[str, ...], variables: dict[str, str], expected: bool
) -> None:
    (tmp_path / "x").write_bytes(weights(2_000_000))
    terminal = Terminal()
    subprocess.run(
        [*PROGRAM, "compress", "x", *options],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=terminal.slave,
        env=environment(TERM="xterm", **variables),
        timeout=30,
        check=True,
    )
    shown = terminal.read()
    assert (b"compressing x" in shown) == expected
    assert bool(shown) == expected


def test_a_pipe_sees_no_progress_bar(compressed: Path) -> None:
    assert neuzip("verify", compressed).stderr == b""


def test_a_reader_that_goes_away(tmp_path: Path, compressed: Path) -> None:
    (tmp_path / "big").write_bytes(weights(2_000_000))
    for arguments in (("compress", str(tmp_path / "big"), "-o", "-"), ("info", str(compressed))):
        read, write = os.pipe()
        os.close(read)
        done = neuzip(*arguments, stdout=write, expect=1)
        os.close(write)
        assert done.stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_standard_output_that_is_full(compressed: Path) -> None:
    for arguments in (("info", str(compressed)), ("decompress", str(compressed), "-o", "-")):
        with Path("/dev/full").open("wb") as full:
            done = neuzip(*arguments, stdout=full, expect=1)
        assert b"No space left" in done.stderr


# --- --rm ---------------------------------------------------------------------------------------


def test_rm(tmp_path: Path) -> None:
    for name, data in ANY_FILES.items():
        (tmp_path / name).write_bytes(data)
    neuzip("compress", "--rm", *ANY_FILES, cwd=tmp_path)
    assert names_in(tmp_path) == {*COMPRESSED_NAMES.values()}
    neuzip("decompress", "--rm", *COMPRESSED_NAMES.values(), cwd=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == ANY_FILES


def test_rm_keeps_the_source_when_anything_fails(tmp_path: Path, model: Path) -> None:
    (tmp_path / "model.nz.safetensors").write_bytes(b"precious")
    neuzip("compress", "--rm", model, expect=1)
    assert model.read_bytes() == MODEL


def test_rm_of_a_link_keeps_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(MODEL)
    (tmp_path / "model.safetensors").symlink_to("blob")
    neuzip("compress", "--rm", "model.safetensors", cwd=tmp_path)
    assert names_in(tmp_path) == {"blob", "model.nz.safetensors"}


@pytest.mark.parametrize("name", ["model.safetensors", "noise.bin", "empty"])
def test_comparison_before_removal(tmp_path: Path, packed: dict[str, bytes], name: str) -> None:
    original, written = tmp_path / "original", tmp_path / "written"
    written.write_bytes(packed[name])
    data = ANY_FILES[name]
    original.write_bytes(data)
    check_restorable(written, original, None, lambda *_: None)
    changes = [data + b"\0", data[:-1] or b"x", flipped(data or b"x", 0), flipped(data or b"x", -1)]
    for changed in changes:
        original.write_bytes(changed)
        with pytest.raises(CorruptDataError):
            check_restorable(written, original, None, lambda *_: None)


# --- being stopped ------------------------------------------------------------------------------


def running(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Starts the command and waits until it has begun to write something new."""
    before = names_in(folder)
    process = subprocess.Popen(
        [*PROGRAM, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    for _ in range(3000):
        if names_in(folder) - before or process.poll() is not None:
            break
        time.sleep(0.002)
    return process


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(weights(16_000_000) * 2)
    return path


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_removes_the_partial_file(
    tmp_path: Path, big: Path, number: signal.Signals, code: int
) -> None:
    process = running(tmp_path, "compress", "-T", "1", "big")
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code, said
    assert b"Traceback" not in said
    assert names_in(tmp_path) == {"big"}


def test_killed_process_leaves_the_old_file(tmp_path: Path, big: Path) -> None:
    (tmp_path / "big.nz").write_bytes(b"old")
    process = running(tmp_path, "compress", "-f", "-T", "1", "big")
    process.kill()
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / "big.nz").read_bytes() == b"old"
    neuzip("compress", "-f", "big", cwd=tmp_path)
    neuzip("decompress", "-f", "big.nz", "-o", "back", cwd=tmp_path)
    assert (tmp_path / "back").read_bytes() == big.read_bytes()


def small_files_only(limit: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


@pytest.mark.parametrize("name", ["model.safetensors", "noise.bin"])
def test_full_disk(tmp_path: Path, packed: dict[str, bytes], name: str) -> None:
    """A limit for the size of files stands in for a full disk: writing fails in the same place."""
    (tmp_path / name).write_bytes(ANY_FILES[name])
    target = tmp_path / COMPRESSED_NAMES[name]
    target.write_bytes(b"old")
    limit = small_files_only(20_000)
    neuzip("compress", "-f", name, cwd=tmp_path, expect=1, preexec_fn=limit)
    neuzip("compress", "-", "-f", "-o", target, stdin=MODEL, expect=1, preexec_fn=limit)
    assert target.read_bytes() == b"old"
    target.write_bytes(packed[name])
    neuzip("decompress", "-f", target, cwd=tmp_path, expect=1, preexec_fn=limit)
    assert (tmp_path / name).read_bytes() == ANY_FILES[name]
    assert names_in(tmp_path) == {name, target.name}


# --- what it says -------------------------------------------------------------------------------


def test_version_is_quick_and_needs_no_parser(run_python: Callable[..., str]) -> None:
    done = run_python(
        "import sys\n"
        "from neuzip_rs.cli import main\n"
        "sys.argv = ['neuzip', '--version']\n"
        "assert main() == 0\n"
        "print(sorted({'typer', 'rich', 'numpy', 'torch'} & sys.modules.keys()))\n"
    )
    assert done == f"neuzip {nz.__version__}\n[]"
    # Processor time, as a busy machine takes its time; Windows does not tell that of children.
    clock = time.perf_counter if os.name == "nt" else lambda: sum(os.times()[2:4])
    seconds = []
    for _ in range(5):
        started = clock()
        assert neuzip("--version").stdout.split() == [b"neuzip", nz.__version__.encode()]
        seconds.append(clock() - started)
    assert min(seconds) <= 0.15


def test_installed_command() -> None:
    script = Path(sys.executable).with_name("neuzip")
    if not script.exists():
        pytest.skip("the package is not installed as such")
    done = subprocess.run([script, "--version"], capture_output=True, check=True)
    assert done.stdout.split()[1] == nz.__version__.encode()


def test_help() -> None:
    done = neuzip("--help")
    assert b"Usage: neuzip" in done.stdout
    for verb in (b"compress", b"decompress", b"verify", b"info", b"bench"):
        assert verb in done.stdout
    assert b"--max-output-size" in neuzip("decompress", "-h").stdout
    assert neuzip(expect=2).stdout == done.stdout


def test_quiet_says_nothing_but_errors(tmp_path: Path, model: Path) -> None:
    base = tmp_path / "base.safetensors"
    base.write_bytes(MODEL)
    done = neuzip("compress", "-q", model, "--base", base)
    assert done.stdout + done.stderr == b""
    compressed = tmp_path / "model.nz.safetensors"
    done = neuzip("verify", "-q", compressed)
    assert done.stdout + done.stderr == b""
    compressed.write_bytes(flipped(compressed.read_bytes(), -1))
    assert b"model.nz.safetensors" in neuzip("verify", "-q", compressed, expect=1).stderr


def test_a_sentence_for_each_file(model: Path) -> None:
    done = neuzip("compress", model)
    assert done.stdout.startswith(f"{model} -> {model.parent}/model.nz.safetensors: 1".encode())
    assert b" %)" in done.stdout
    assert neuzip("verify", model.with_name("model.nz.safetensors")).stdout.count(b"OK") == 1


def test_json_of_compress_decompress_and_verify(tmp_path: Path, model: Path) -> None:
    (tmp_path / "noise").write_bytes(OTHER_FILES["noise.bin"])
    run = neuzip("compress", "--json", model, tmp_path / "gone", tmp_path / "noise", expect=1)
    first, second, third = objects(run)
    assert first["output"] == str(tmp_path / "model.nz.safetensors")
    assert first["original_bytes"] == len(MODEL)
    assert first["compressed_bytes"] == Path(first["output"]).stat().st_size
    assert first["ratio"] == pytest.approx(first["compressed_bytes"] / len(MODEL), abs=1e-6)
    assert (first["kind"], third["kind"]) == ("safetensors", "other")
    assert set(second) == {"path", "error"}
    (restored,) = objects(neuzip("decompress", "-f", "--json", first["output"]))
    assert restored["output"] == str(model)
    assert restored["original_bytes"] == len(MODEL)
    assert restored["compressed_bytes"] == first["compressed_bytes"]
    (verified,) = objects(neuzip("verify", "--json", first["output"]))
    assert verified["ok"] is True
    assert verified["original_bytes"] == len(MODEL)


def test_info_of_safetensors(model: Path, compressed: Path) -> None:
    plain, packed = objects(neuzip("info", "--json", model, compressed))
    assert plain["kind"] == "safetensors"
    assert packed["kind"] == "neuzip-safetensors"
    assert plain["compressed_bytes"] is None
    assert packed["compressed_bytes"] == compressed.stat().st_size
    assert packed["metadata"] == plain["metadata"] == {"format": "pt", "note": "äöü"}
    for facts in (plain, packed):
        assert facts["original_bytes"] == len(MODEL)
        described = [(t["name"], t["dtype"], t["shape"]) for t in facts["tensors"]]
        assert described[0] == ("layer.weight", "bfloat16", [5000, 8])
        assert len(described) == 6
    first = packed["tensors"][0]
    assert first["original_bytes"] == 80_000
    assert first["chunks"] == 1
    assert 2 < first["entropy_bits"] < 4
    assert "rans" in " ".join(first["modes"])
    assert packed["tensors"][1]["compressed_bytes"] < 200
    table = neuzip("info", compressed).stdout.decode()
    assert "layer.weight" in table
    assert "5000 x 8" in table


def test_info_of_everything_else(tmp_path: Path, packed: dict[str, bytes]) -> None:
    (tmp_path / "noise.bin.nz").write_bytes(packed["noise.bin"])
    (tmp_path / "empty.nz").write_bytes(packed["empty"])
    tensor = nz.compress(weights(5000), dtype="bfloat16")
    (tmp_path / "tensor").write_bytes(bytes(tensor))
    names = ["noise.bin.nz", "empty.nz", "tensor", "plain"]
    (tmp_path / "plain").write_bytes(b"text")
    noise, empty, raw, plain = objects(neuzip("info", "--json", *names, cwd=tmp_path))
    assert (noise["kind"], noise["frames"]) == ("neuzip-file", 1)
    assert noise["original_bytes"] == len(OTHER_FILES["noise.bin"])
    assert noise["tensors"][0]["name"] == "noise.bin"
    assert (empty["frames"], empty["original_bytes"]) == (0, 0)
    assert raw["kind"] == "neuzip-tensor"
    assert raw["tensors"][0]["dtype"] == "bfloat16"
    assert (plain["kind"], plain["tensors"]) == ("other", [])
    assert objects(neuzip("info", "--json", "-", stdin=packed["noise.bin"]))[0]["frames"] == 1
    table = neuzip("info", *names, cwd=tmp_path).stdout.decode()
    assert "not compressed" in table
    (tmp_path / "cut.nz").write_bytes(packed["noise.bin"][:-30])
    neuzip("info", tmp_path / "cut.nz", expect=1)


def test_a_tensor_stream_in_a_file(tmp_path: Path) -> None:
    data = weights(100_000)
    (tmp_path / "tensor.nz").write_bytes(bytes(nz.compress(data, dtype="bfloat16")))
    neuzip("verify", "tensor.nz", cwd=tmp_path)
    neuzip("decompress", "--rm", "tensor.nz", cwd=tmp_path)
    assert (tmp_path / "tensor").read_bytes() == data
    assert names_in(tmp_path) == {"tensor"}


def test_bench(tmp_path: Path, model: Path, compressed: Path) -> None:
    (tmp_path / "x").write_bytes(OTHER_FILES["model.gguf"])
    run = neuzip("bench", "--json", "-T", "2", model, compressed, tmp_path / "x")
    plain, packed, other = objects(run)
    assert plain["tensors"] == packed["tensors"] == 6
    assert plain["bytes"] == packed["bytes"]
    for facts in (plain, packed, other):
        assert facts["memcpy_gbps"] > 0
        assert [row["threads"] for row in facts["rows"]][:2] == [1, 2]
        assert facts["memcpy_fresh_gbps"] > 0
        assert facts["rounds"] >= 3
        for row in facts["rows"]:
            if "missing" in row:
                continue
            assert row["runs"] == facts["rounds"]
            ours = row["name"].startswith("neuzip")
            assert (row["unverified_gbps"] is None) == (not ours)
            for action in ("compress", "decompress", "fresh"):
                assert row[f"{action}_gbps"] > 0
                assert row[f"{action}_x_memcpy"] > 0
    assert plain["rows"][0]["ratio"] < 0.65
    assert b"memcpy" in neuzip("bench", model).stdout
    (tmp_path / "empty").touch()
    neuzip("bench", tmp_path / "empty", expect=1)


def test_words() -> None:
    assert [size(n) for n in (0, 999, 1000, 12_345, 999_999, 5 * 10**9)] == [
        *("0 B", "999 B", "1.00 KB", "12.3 KB", "1.00 MB", "5.00 GB")
    ]
    assert printable("a\x1b[2Jb\u202e") == "a\\x1b[2Jb\\u202e"
