"""Processes that fork or spawn, threads that share pools, and Ctrl-C in the middle of long work."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from neuzip_rs import safetensors
from tests.python.conftest import RunPython
from tests.python.second_decoder import CONSTANT_BODY
from tests.python.second_encoder import encode_body

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

FORK_PROGRAM = """
import os, threading, warnings
import neuzip_rs as nz

# Python 3.12 and later say that forking with threads may deadlock, which is what is tested here.
warnings.simplefilter("ignore", DeprecationWarning)
data = bytes(range(256)) * 4096
stopped = False

def work():
    while not stopped:
        assert nz.decompress(nz.compress(data, threads=2), threads=2) == data

threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(12):
    child = os.fork()
    if child == 0:
        same = all(
            nz.decompress(nz.compress(data, threads=count), threads=count) == data
            for count in (2, 3, 2)
        )
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
stopped = True
for thread in threads:
    thread.join()
print("done")
"""


@needs_fork
def test_fork_while_threads_work(run_python: RunPython) -> None:
    assert run_python(FORK_PROGRAM) == "done"


FORK_WHILE_IMPORTING_PROGRAM = """
import importlib.abc, os, sys, threading, time, warnings
import neuzip_rs as nz

warnings.simplefilter("ignore", DeprecationWarning)
importing = threading.Event()

class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "neuzip_rs._buffers":
            importing.set()
            time.sleep(0.3)

sys.meta_path.insert(0, Slow())
thread = threading.Thread(target=nz.compress, args=(b"first",))
thread.start()
assert importing.wait(60)
child = os.fork()
if child == 0:
    os._exit(0 if nz.decompress(nz.compress(b"same")) == b"same" else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
thread.join()
assert nz.decompress(nz.compress(b"same")) == b"same"
print("done")
"""


@needs_fork
def test_fork_while_a_thread_imports_what_its_array_needs(run_python: RunPython) -> None:
    assert run_python(FORK_WHILE_IMPORTING_PROGRAM) == "done"


POOL_PROGRAM = """
import multiprocessing, warnings
import neuzip_rs as nz

warnings.simplefilter("ignore", DeprecationWarning)

def round_trip(number):
    data = number.to_bytes(4, "little") * 200_000
    c = nz.compress(data, dtype="float32", threads=2)
    return nz.decompress(c, threads=2) == data, hash(c)

if __name__ == "__main__":
    expected = [round_trip(number) for number in range(6)]
    with multiprocessing.get_context("{method}").Pool(2) as pool:
        assert pool.map(round_trip, range(6)) == expected
    print(all(same for same, _ in expected))
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(run_python: RunPython, method: str) -> None:
    if method == "fork" and not hasattr(os, "fork"):
        pytest.skip("needs fork")
    assert run_python(POOL_PROGRAM.replace("{method}", method)) == "True"


LOADER_PROGRAM = """
import warnings
import torch
import neuzip_rs as nz

warnings.simplefilter("ignore", DeprecationWarning)
x = torch.arange(400_000, dtype=torch.float32)
c = nz.compress(x, threads=2)
assert torch.equal(nz.decompress(c, threads=2), x)

class Compressed(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return nz.decompress(c, threads=2)[index::6]

loader = torch.utils.data.DataLoader(
    Compressed(), batch_size=None, num_workers=2, multiprocessing_context="fork"
)
for _ in range(2):
    for index, part in enumerate(loader):
        assert torch.equal(part, x[index::6])
    assert torch.equal(nz.decompress(c, threads=2), x)
print("done")
"""


@needs_fork
def test_workers_of_a_data_loader(run_python: RunPython) -> None:
    assert run_python(LOADER_PROGRAM) == "done"


SHARED_PROGRAM = """
import contextlib
import os, random, threading
from pathlib import Path
import neuzip_rs as nz

random.seed(0)
data = random.randbytes(1 << 20) * 2
start = threading.Barrier(8)
seen = set()

def work():
    start.wait()
    for _ in range(4):
        c = nz.compress(data, dtype="bfloat16", threads=2)
        assert nz.decompress(c, threads=2) == data
        seen.add(hash(c))

threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
names = []
for task in Path("/proc/self/task").iterdir():
    # A thread that was joined may be listed, and gone when it is looked at.
    with contextlib.suppress(OSError):
        names.append((task / "comm").read_text())
print(len(seen), sum(name.startswith("neuzip-") for name in names))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_threads_that_call_at_once_share_a_pool(run_python: RunPython) -> None:
    assert run_python(SHARED_PROGRAM).split() == ["1", "1"]


def mixed_tensors() -> dict[str, np.ndarray]:
    """Tensors below, around and far above what one thread works on at once."""
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {
        "empty": np.empty((0, 3), np.float32),
        "scalar": np.float32(1.5).reshape(()),
        "zeros": np.zeros(1000, np.float32),
        "zeros_again": np.zeros(1000, np.float32),
        "large": (rng.standard_normal((1100, 1000)) * 0.02).astype(np.float32),
        "just_above": rng.standard_normal((1 << 19) + 1).astype(np.float32),
        "just_below": rng.standard_normal(1 << 19).astype(np.float32),
        "bytes": rng.integers(0, 9, 3_000_000).astype(np.uint8),
    }
    for number in range(300):
        size = int(rng.integers(1, 9000))
        tensors[f"small.{number:03}"] = (rng.standard_normal(size) * 0.1).astype(np.float16)
    tensors["tied_large"] = tensors["large"].copy()
    tensors["tied_small"] = tensors["small.007"].copy()
    return tensors


def test_files_do_not_depend_on_threads(tmp_path: Path) -> None:
    tensors = mixed_tensors()
    names = {}
    for threads in (1, 2, 5):
        names[threads] = saved = tmp_path / f"saved{threads}"
        safetensors.save_file(tensors, saved, threads=threads)
        restored = tmp_path / f"restored{threads}"
        safetensors.decompress_file(saved, restored, threads=threads)
        again = tmp_path / f"again{threads}"
        safetensors.compress_file(restored, again, threads=threads)
        assert again.read_bytes() == saved.read_bytes()
        safetensors.verify_file(saved, threads=threads)
        for source in (saved, restored):
            for framework in ("np", "pt"):
                loaded = safetensors.load_file(source, framework=framework, threads=threads)
                assert sorted(loaded) == sorted(tensors)
                for name, x in tensors.items():
                    y = loaded[name] if framework == "np" else loaded[name].numpy()
                    assert y.dtype == x.dtype
                    assert np.array_equal(y, x), name
                    assert y.shape == x.shape
    assert len({path.read_bytes() for path in names.values()}) == 1
    assert len({(tmp_path / f"restored{threads}").read_bytes() for threads in names}) == 1


def test_byte_files_do_not_depend_on_threads(tmp_path: Path) -> None:
    source = tmp_path / "source"
    rng = np.random.default_rng(0)
    source.write_bytes(rng.integers(0, 50, (33 << 20) + 5).astype(np.uint8).tobytes())
    compressed = set()
    for threads in (1, 2, 5):
        packed, restored = tmp_path / f"packed{threads}", tmp_path / f"restored{threads}"
        safetensors.compress_file(source, packed, threads=threads)
        safetensors.decompress_file(packed, restored, threads=threads)
        assert restored.read_bytes() == source.read_bytes()
        compressed.add(packed.read_bytes())
    assert len(compressed) == 1


def test_damage_is_found_whatever_the_threads(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    safetensors.save_file(mixed_tensors(), saved)
    intact = saved.read_bytes()
    for place in (len(intact) // 3, len(intact) // 2, len(intact) - 9):
        damaged = bytearray(intact)
        damaged[place] ^= 4
        saved.write_bytes(damaged)
        messages = set()
        for threads in (1, 2, 5):
            for read in (safetensors.load_file, safetensors.verify_file):
                with pytest.raises(ValueError, match="corrupt data") as caught:
                    read(saved, threads=threads)
                messages.add(str(caught.value))
            target = tmp_path / "target"
            with pytest.raises(ValueError, match="corrupt data") as caught:
                safetensors.decompress_file(saved, target, threads=threads)
            assert not target.exists()
            messages.add(str(caught.value))
        assert len(messages) == 1


SIGNALS_PROGRAM = """
import mmap, signal
import neuzip_rs as nz

# 0x4000 is MAP_NORESERVE, which Python names from 3.13 on.
memory = mmap.mmap(-1, 1 << 32, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
memory[:4] = b"1234"
seen = 0

def handler(number, frame):
    global seen
    seen += 1

signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
nz.compress(memory, dtype="bfloat16", level="fast", threads={threads})
signal.setitimer(signal.ITIMER_REAL, 0)
print(seen)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs unreserved memory")
@pytest.mark.parametrize("threads", [1, 2])
def test_signals_are_seen_while_compressing(run_python: RunPython, threads: int) -> None:
    # Without a look at signals the handler runs once, after the call.
    assert int(run_python(SIGNALS_PROGRAM.replace("{threads}", str(threads)))) >= 2


# Work that would go on for long: sparse files of 32 GB, memory that was never written to, and a
# stream of some bytes that stands for a constant tensor of 2^38.
INTERRUPTED_PROGRAM = """
import mmap, sys
import neuzip_rs as nz

def memory(size_log2):
    # MAP_NORESERVE, which Python names from 3.13 on.
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000
    memory = mmap.mmap(-1, 1 << size_log2, flags=private)
    # Not constant, which would be seen first.
    memory[:4] = b"1234"
    return memory

st = nz.safetensors
work = {
    "decompress": (lambda out: nz.decompress(open("tensor", "rb").read(), out=out), 38),
    "compress_file": (lambda _: st.compress_file("model.safetensors", "out"), 12),
    "compress bytes": (lambda _: st.compress_file("bytes", "out"), 12),
    "decompress_file": (lambda _: st.decompress_file("tensor", "out"), 12),
    "verify_file": (lambda _: st.verify_file("tensor"), 12),
}
act, size_log2 = work[sys.argv[1]]
prepared = memory(size_log2)
print("begin", flush=True)
try:
    act(prepared)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs sparse files and unreserved memory")
@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize(
    "work",
    [
        "decompress",
        "compress_file",
        "compress bytes",
        "decompress_file",
        "verify_file",
    ],
)
def test_ctrl_c(tmp_path: Path, work: str, threads: str) -> None:
    tensor_bytes = 64 << 20
    tensors = {
        f"{number}": {
            "dtype": "BF16",
            "shape": [tensor_bytes // 2],
            "data_offsets": [number * tensor_bytes, (number + 1) * tensor_bytes],
        }
        for number in range(500)
    }
    text = json.dumps(tensors).encode()
    size = 8 + len(text) + 500 * tensor_bytes
    for name, head in (("model.safetensors", text), ("bytes", b"not a header")):
        with (tmp_path / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + head)
            file.truncate(size)
    (tmp_path / "tensor").write_bytes(encode_body(CONSTANT_BODY, b"x", (1 << 38,)))
    (tmp_path / "program.py").write_text(INTERRUPTED_PROGRAM)
    before = sorted(tmp_path.iterdir())
    with subprocess.Popen(
        [sys.executable, "program.py", work],
        cwd=tmp_path,
        env=os.environ | {"NEUZIP_NUM_THREADS": threads},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begin\n"
        time.sleep(0.3)
        assert process.poll() is None
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        # A tenth of a second and one item of work; the rest is for machines that are busy.
        assert time.monotonic() - sent < 3
    assert process.returncode == 0
    assert sorted(tmp_path.iterdir()) == before
