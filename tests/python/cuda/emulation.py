"""Runs the kernels of a .cu file on the CPU: g++ builds it with tests/cuda_emulation.

`Emulated("decode")` builds cuda/decode.cu; `launch` takes what a CUDA launch does. Arrays passed to
`launch` are the device memory; `guarded` makes some that end at a forbidden page, so that an access
behind them ends the test.
"""

import ctypes
import functools
import hashlib
import mmap
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]
CUDA = ROOT / "cuda"
EMULATION = ROOT / "tests" / "cuda_emulation"
COMPILER = shutil.which("g++")

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="the emulation needs g++")

_KERNEL = re.compile(r'extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(')

_WRAPPER = """
extern "C" int emulate_{name}(const unsigned* launch, void** arguments) {{
  return emulation::launch({name}, *reinterpret_cast<const emulation::Launch*>(launch), arguments);
}}
"""


# What a kernel takes; ctypes has no public name for all of its simple types.
Argument: TypeAlias = Any
Bytes: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"


class DeadlockError(Exception):
    """Threads wait for each other for ever."""


def kernels(source: Path) -> list[str]:
    """The kernels that a .cu file defines itself."""
    return _KERNEL.findall(source.read_text())


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="cuda-emulation-")


@functools.cache
def _build(source: Path, flags: tuple[str, ...]) -> ctypes.CDLL:
    assert COMPILER
    program = f'#include "{source}"\n' + "".join(
        _WRAPPER.format(name=name) for name in kernels(source)
    )
    name = hashlib.sha256(f"{source}{flags}".encode()).hexdigest()[:16]
    main, library = (Path(_folder().name) / f"{name}{end}" for end in (".cpp", ".so"))
    main.write_text(program)
    subprocess.run(
        [
            *(COMPILER, "-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-DCUDA_EMULATION"),
            *("-U_FORTIFY_SOURCE", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror"),
            *("-Wno-unknown-pragmas", "-Wno-unused-function", "-Wno-clobbered", *flags),
            *(f"-I{CUDA}", f"-I{EMULATION}", str(main), "-o", str(library)),
        ],
        check=True,
    )
    return ctypes.CDLL(str(library))


class Emulated:
    """The kernels of one .cu file."""

    def __init__(self, source: str | Path, *flags: str) -> None:
        path = CUDA / f"{source}.cu" if isinstance(source, str) else source
        self._library = _build(path, flags)

    def launch(
        self,
        kernel: str,
        grid: int | tuple[int, ...],
        block: int | tuple[int, ...],
        *arguments: Argument,
        shared_bytes: int = 0,
        seed: int = 1,
    ) -> None:
        """Runs a kernel to its end.

        Arguments are numpy arrays (pointers to their first byte), `None` (a null pointer) and numpy
        or ctypes scalars and structures of the exact type of the parameter. Other seeds give
        threads their turn in another order; 0 is the order of their numbers.
        """
        launch = (ctypes.c_uint * 8)(*_three(grid), *_three(block), shared_bytes, seed)
        values = [_argument(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * max(len(values), 1))(
            *(ctypes.addressof(value) for value in values)
        )
        if getattr(self._library, f"emulate_{kernel}")(launch, pointers):
            raise DeadlockError(kernel)


def _three(sizes: int | tuple[int, ...]) -> tuple[int, ...]:
    sizes = (sizes,) if isinstance(sizes, int) else sizes
    return (*sizes, 1, 1)[:3]


def _argument(value: Argument) -> Argument:
    if value is None:
        return ctypes.c_void_p(0)
    if isinstance(value, np.ndarray):
        return ctypes.c_void_p(value.ctypes.data)
    if isinstance(value, np.generic):
        return (ctypes.c_char * value.nbytes).from_buffer_copy(value.tobytes())
    assert isinstance(value, (ctypes.Structure, ctypes._SimpleCData)), value
    return value


_libc = ctypes.CDLL(None, use_errno=True)


def guarded(content: bytes, align: int = 16) -> Bytes:
    """A copy of bytes that ends at a forbidden page, up to `align` bytes of which are padding."""
    data = np.frombuffer(content, np.uint8)
    room = -(-data.size // align) * align
    pages = -(-room // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, pages + mmap.PAGESIZE)
    base = np.frombuffer(memory, np.uint8)
    address = ctypes.c_void_p(base.ctypes.data + pages)
    assert _libc.mprotect(address, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    result = base[pages - room : pages]
    result[: data.size] = data
    return result[: data.size]
