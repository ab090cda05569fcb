"""32 threads on shared objects without a wrong byte, and memory that stays flat."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.python.conftest import RunPython

THREADS_PROGRAM = """
import os, random, sys, threading, time
import numpy as np
import neuzip_rs as nz
from neuzip_rs import safetensors as st

folder, seconds = sys.argv[1], float(sys.argv[2])
os.chdir(folder)
rng = np.random.default_rng(0)
kinds = {"float32": 300_001, "float16": 70_000, "float64": 9_000, "uint8": 600_000, "int16": 3}
arrays = [rng.standard_normal(count).astype(dtype) for dtype, count in kinds.items()]
near = arrays[0] + np.float32(1e-4)
levels = ("fast", "default")
packed = {(n, level): nz.compress(x, level=level) for n, x in enumerate(arrays) for level in levels}
streams = {key: bytes(c) for key, c in packed.items()}
delta = nz.compress(near, base=arrays[0])
tensors = {f"t{n}": x for n, x in enumerate(arrays)}
st.save_file(tensors, "shared")
shared = st.safe_open("shared", framework="np").__enter__()
outs = threading.local()
end = time.monotonic() + seconds
counts = [0] * 32
wrong = []

def one(random, number):
    n = random.randrange(len(arrays))
    level = random.choice(levels)
    threads = random.choice((1, 1, 2, 3))
    x, c = arrays[n], packed[n, level]
    act = random.randrange(8)
    if act == 0:
        return bytes(nz.compress(x, level=level, threads=threads)) == streams[n, level]
    if act == 1:
        return np.array_equal(nz.decompress(c, framework="numpy", threads=threads), x)
    if act == 2:
        out = np.empty_like(x)
        nz.decompress(c, out=out, threads=threads)
        return np.array_equal(out, x)
    if act == 3:
        a = random.randrange(len(x))
        return np.array_equal(c[a : a + 5000], x[a : a + 5000])
    if act == 4:
        return np.array_equal(shared.get_tensor(f"t{n}"), x)
    if act == 5:
        return np.array_equal(nz.decompress(delta, base=arrays[0], threads=threads), near)
    if act == 6:
        name = f"own{number}"
        st.save_file({"x": x}, name)
        return np.array_equal(st.load_file(name, framework="np")["x"], x)
    broken = bytearray(streams[n, level])
    broken[random.randrange(len(broken))] ^= 1 << random.randrange(8)
    try:
        nz.decompress(broken, framework="bytes")
    except nz.NeuzipError:
        return True
    return False

def work(number):
    chosen = random.Random(number)
    while time.monotonic() < end or counts[number] < 8:
        if not one(chosen, number):
            wrong.append(number)
        counts[number] += 1

workers = [threading.Thread(target=work, args=(number,)) for number in range(32)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
assert not wrong, wrong
assert min(counts) >= 8, counts
print(sum(counts), getattr(sys, "_is_gil_enabled", lambda: True)())
"""


def shared_objects(folder: Path, seconds: float) -> int:
    """Runs 32 threads for so long and returns how much they did."""
    done = subprocess.run(
        [sys.executable, "-c", THREADS_PROGRAM, str(folder), str(seconds)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=600 + 3 * seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    count, gil = done.stdout.split()
    print(f"{count} operations of 32 threads, GIL {gil}")
    return int(count)


def test_threads_share_objects(tmp_path: Path) -> None:
    assert shared_objects(tmp_path, 3) >= 8 * 32


@pytest.mark.slow
def test_threads_share_objects_for_minutes(tmp_path: Path) -> None:
    assert shared_objects(tmp_path, 180) > 10_000


FLAT_PROGRAM = """
import ctypes, gc, os, sys
import numpy as np
import neuzip_rs as nz
from neuzip_rs import safetensors as st

x = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
near = x + np.float32(1e-3)
st.save_file({"x": x, "y": x}, "m")
nz.save({"x": x, "list": [1, 2.5, "text"]}, "state")
broken = bytearray(bytes(nz.compress(x)))
broken[100] ^= 1
large = np.zeros(1_000_000, np.float32)
large[::3] = 1

def call(number):
    c = nz.compress(x, level=("fast", "default")[number % 2])
    assert nz.decompress(c).shape == x.shape
    assert c[10:20].shape == (10,)
    nz.decompress(nz.compress(near, base=x), base=x)
    try:
        nz.decompress(broken)
    except nz.NeuzipError:
        pass
    if number % 4 == 0:
        st.load_file("m", framework="np")
        with st.safe_open("m", framework="np") as file:
            file.get_slice("x")[5:7]
    if number % 100 == 0:
        nz.load("state")
        st.verify_file("m")
        nz.decompress(nz.compress(large, threads=2), threads=2)

def resident():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")

for number in range(1000):
    call(number)
before = resident()
for number in range(10_000):
    call(number)
print(resident() - before, len(os.listdir("/proc/self/fd")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat_over_ten_thousand_calls(
    run_python: RunPython, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    grown, descriptors = map(int, run_python(FLAT_PROGRAM).split())
    assert grown < 2 << 20
    assert descriptors < 20
