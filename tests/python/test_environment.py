"""Threads, processes, SIMD tiers, and memory that is limited."""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import neuzip_rs as nz
from tests.python.conftest import RunPython
from tests.python.samples import Sample, assert_same


def test_simd_tier() -> None:
    assert nz.simd_tier() in {"scalar", "avx2", "avx512", "neon"}


def test_simd_tier_from_the_environment(run_python: RunPython) -> None:
    program = """
import sys
import neuzip_rs as nz
data = bytes(range(256)) * 600
print(nz.simd_tier(), bytes(nz.compress(data, dtype="bfloat16")).hex())
"""
    tier, stream = run_python(program, NEUZIP_SIMD="scalar").split()
    assert tier == "scalar"
    assert run_python(program).split()[1] == stream


@pytest.mark.parametrize(
    "tier", ["avx1024", "avx2" if platform.machine() in {"aarch64", "arm64"} else "neon"]
)
def test_unavailable_simd_tier(run_python: RunPython, tier: str) -> None:
    program = """
import neuzip_rs as nz
for action in (nz.simd_tier, lambda: nz.compress(b"1234" * 1000, dtype="float32")):
    try:
        action()
    except ValueError as error:
        print("NEUZIP_SIMD" in str(error))
"""
    assert run_python(program, NEUZIP_SIMD=tier).split() == ["True", "True"]


THREADS_PROGRAM = """
import os, random
import neuzip_rs as nz
random.seed(0)
data = random.randbytes(1 << 20) * 4
c = nz.compress(data, dtype="bfloat16"{argument})
assert nz.decompress(c{argument}) == data
print(len(os.listdir("/proc/self/task")), hash(c))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_number_of_threads(run_python: RunPython) -> None:
    program = THREADS_PROGRAM.format(argument="")
    one, first = run_python(program, NEUZIP_NUM_THREADS="1").split()
    assert one == "1"
    three, second = run_python(program, NEUZIP_NUM_THREADS="3").split()
    assert 1 < int(three) <= 4
    assert first == second
    program = THREADS_PROGRAM.format(argument=", threads=1")
    assert run_python(program, NEUZIP_NUM_THREADS="3").split() == ["1", first]


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_number_of_threads_that_is_none(run_python: RunPython, value: str) -> None:
    program = """
import neuzip_rs as nz
data = bytes(range(256)) * 4096
c = nz.compress(data, threads=2)
for action in (lambda: nz.compress(data), lambda: nz.decompress(c)):
    try:
        action()
    except ValueError as error:
        print("NEUZIP_NUM_THREADS" in str(error))
assert nz.decompress(c, threads=1) == data
"""
    assert run_python(program, NEUZIP_NUM_THREADS=value).split() == ["True", "True"]


GIL_PROGRAM = """
import threading, time
import numpy as np
import neuzip_rs as nz

x = np.tile((np.random.default_rng(0).standard_normal(1 << 19) * 0.02).astype(np.float32), 64)
out = np.empty_like(x)
c = nz.compress(x)

def ticks_during(work):
    thread = threading.Thread(target=work)
    ticks = 0
    thread.start()
    while thread.is_alive():
        time.sleep(0.0005)
        ticks += 1
    return ticks

print(ticks_during(lambda: nz.compress(x, threads=1)))
print(ticks_during(lambda: nz.decompress(c, out=out, threads=1)))
"""


def test_gil_is_released(run_python: RunPython) -> None:
    # A call that held the GIL would let the loop go round once or twice.
    compressing, decompressing = map(int, run_python(GIL_PROGRAM).split())
    assert compressing >= 8
    assert decompressing >= 8


def test_threads_of_python() -> None:
    def round_trip(x: torch.Tensor) -> Sample:
        return nz.decompress(nz.compress(x))

    arrays = [torch.randn(50_000 + n).bfloat16() for n in range(24)]
    with ThreadPoolExecutor(8) as pool:
        for x, y in zip(arrays, pool.map(round_trip, arrays), strict=True):
            assert_same(y, x)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_keeps_working(run_python: RunPython) -> None:
    program = """
import os
import neuzip_rs as nz
data = bytes(range(256)) * 4096
c = nz.compress(data)
child = os.fork()
if child == 0:
    os._exit(0 if nz.decompress(nz.compress(data)) == data else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run_python(program) == "0"


HUGE_PROGRAM = """
import mmap, resource
import neuzip_rs as nz

with mmap.mmap(-1, 1 << 30) as zeros:
    c = nz.compress(zeros)
assert c.nbytes < 4096, c.nbytes
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    nz.decompress(c, max_output_size=1 << 20)
except nz.OutputTooLargeError as error:
    print(error)
assert c[123456789:123456799] == bytes(10)
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096
resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
try:
    nz.decompress(c)
except nz.OutputTooLargeError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory")
def test_huge_output(run_python: RunPython) -> None:
    limited, unallocated = run_python(HUGE_PROGRAM).splitlines()
    assert "max_output_size=1048576" in limited
    assert "cannot allocate" in unallocated


MEMORY_PROGRAM = """
import random
import neuzip_rs as nz

def status(line):
    with open("/proc/self/status") as file:
        return int(file.read().split(line)[1].split()[0]) >> 10

def extra(work, result):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = status("VmRSS:")
    kept = work()
    return status("VmHWM:") - before - result

random.seed(0)
data = random.randbytes(1 << 20) * 64
c = nz.compress(data, dtype="bfloat16", threads=2)
stream = bytearray(c)
out = bytearray(len(data))
print(
    extra(lambda: nz.compress(data, dtype="bfloat16", threads=2), c.nbytes >> 20),
    extra(lambda: nz.decompress(c, threads=2), 64),
    extra(lambda: nz.decompress(stream, framework="bytes", threads=2), 64),
    extra(lambda: nz.decompress(stream, out=out, threads=2), 0),
)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory in /proc")
def test_peak_memory(run_python: RunPython) -> None:
    # 4 MiB per thread beyond input and output.
    assert all(int(above) <= 10 for above in run_python(MEMORY_PROGRAM).split())
