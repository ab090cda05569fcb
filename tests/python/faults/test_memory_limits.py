"""Memory that cannot be had is an exception, and sizes that nothing vouches for take none."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import neuzip_rs as nz
from neuzip_rs import safetensors
from tests.python.command import environment
from tests.python.second_decoder import CONSTANT_BODY
from tests.python.second_encoder import encode_body

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")

# Each call in children with more and more memory, until it works: it works, or says why not.
LIMITS_PROGRAM = """
import os, resource, sys
import numpy as np
import neuzip_rs as nz
from neuzip_rs import safetensors as st

os.chdir(sys.argv[1])
threads = int(sys.argv[2])
x = (np.random.default_rng(0).standard_normal(2 << 20) * 0.02).astype(np.float32)
st.save_file({"a": x, **{f"s{i}": x[i * 1000 : i * 1000 + 900] for i in range(200)}}, "m.nz")
st.decompress_file("m.nz", "m")
open("bytes", "wb").write(x.tobytes())
st.compress_file("bytes", "b.nz")
packed = bytes(nz.compress(x))
y, part = x + np.float32(1e-4), x[: 1 << 18]
delta = nz.compress(y, base=x)
calls = {
    "compress": lambda: nz.compress(x, threads=threads),
    "compress max": lambda: nz.compress(part, level="max", threads=threads),
    "compress delta": lambda: nz.compress(y, base=x, threads=threads),
    "decompress": lambda: nz.decompress(packed, framework="bytes", threads=threads),
    "decompress delta": lambda: nz.decompress(delta, base=x, threads=threads),
    "load": lambda: st.load_file("m.nz", framework="np", threads=threads),
    "save": lambda: st.save_file({"x": x}, "out", threads=threads),
    "compress file": lambda: st.compress_file("m", "out", overwrite=True, threads=threads),
    "decompress file": lambda: st.decompress_file("m.nz", "out", overwrite=True, threads=threads),
    "compress bytes": lambda: st.compress_file("bytes", "out", overwrite=True, threads=threads),
    "decompress bytes": lambda: st.decompress_file("b.nz", "out", overwrite=True, threads=threads),
}
page = resource.getpagesize()

def limited(call, mib):
    child = os.fork()
    if child == 0:
        used = int(open("/proc/self/statm").read().split()[0]) * page
        limit = used + int(mib * (1 << 20))
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        status = 1
        try:
            call()
            status = 0
        except (MemoryError, nz.OutputTooLargeError):
            status = 2
        except OSError as error:
            # The system did not map the input.
            status = 2 if error.errno == 12 else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

refused = 0
for name, call in calls.items():
    mib, status = 0.125, 2
    while status == 2 and mib < 4096:
        status = limited(call, mib)
        refused += status == 2
        assert status in (0, 2), (name, mib, status)
        mib = mib * 1.4 + 0.3
    assert status == 0, name
print(refused)
"""


@pytest.mark.parametrize("threads", ["1", "2"])
def test_calls_without_memory(tmp_path: Path, threads: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITS_PROGRAM, str(tmp_path), threads],
        env=environment(PYTHONPATH=os.pathsep.join(sys.path), MALLOC_ARENA_MAX="1"),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert int(done.stdout) > 20


def test_a_result_that_no_memory_is_there_for(tmp_path: Path) -> None:
    huge = encode_body(CONSTANT_BODY, b"x", (1 << 46,))
    with pytest.raises(nz.OutputTooLargeError, match="cannot allocate"):
        nz.decompress(huge, framework="bytes")
    with pytest.raises(nz.OutputTooLargeError):
        nz.decompress(huge, framework="bytes", max_output_size=(1 << 46) - 1)
    base = nz.CompressedTensor.from_bytes(huge)
    with pytest.raises(nz.OutputTooLargeError, match="cannot allocate"):
        nz.compress(b"x", base=base)
    with pytest.raises(nz.OutputTooLargeError, match="cannot allocate"):
        base[1:]
    path = tmp_path / "huge"
    path.write_bytes(huge)
    with pytest.raises(nz.OutputTooLargeError):
        safetensors.decompress_file(path, tmp_path / "out", max_output_size=1 << 20)
    assert list(tmp_path.iterdir()) == [path]


def test_limits_are_exact(tmp_path: Path) -> None:
    x = np.zeros(1000, np.float32)
    packed = nz.compress(x)
    assert nz.decompress(packed, max_output_size=4000).shape == (1000,)
    with pytest.raises(nz.OutputTooLargeError):
        nz.decompress(packed, max_output_size=3999)
    source, target = tmp_path / "bytes", tmp_path / "bytes.nz"
    source.write_bytes(bytes(100_000))
    safetensors.compress_file(source, target)
    safetensors.decompress_file(target, tmp_path / "back", max_output_size=100_000)
    with pytest.raises(nz.OutputTooLargeError):
        safetensors.decompress_file(target, tmp_path / "no", max_output_size=99_999)
    assert not (tmp_path / "no").exists()
