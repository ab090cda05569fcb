"""Compiles .cu files without a GPU, as CuPy does with one, and says what came out of it.

`compiled("decode", 90)` gives the registers, the shared memory and the spills of each kernel, and
its instructions where nvdisasm is at hand. Needs the nvidia-cuda-nvrtc package, which CUDA builds
of torch bring along, and for the instructions nvidia-cuda-nvdisasm.
"""

import ctypes
import functools
import re
import shutil
import site
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.python.cuda.emulation import CUDA

ARCHITECTURES = (80, 86, 89, 90, 100, 120)


def _installed(pattern: str) -> Path | None:
    folders = [*site.getsitepackages(), *sys.path]
    found = (path for folder in folders for path in sorted(Path(folder, "nvidia").glob(pattern)))
    return next(found, None)


NVRTC = _installed("**/libnvrtc.so.1[23]")
NVDISASM = _installed("**/bin/nvdisasm") or (shutil.which("nvdisasm") and Path("nvdisasm"))

needs_nvrtc = pytest.mark.skipif(NVRTC is None, reason="needs the nvidia-cuda-nvrtc package")
needs_nvdisasm = pytest.mark.skipif(
    NVRTC is None or not NVDISASM, reason="needs the nvidia-cuda-nvdisasm package"
)


class CompileError(Exception):
    """What the compiler says."""


@dataclass
class Kernel:
    """What ptxas made of a kernel."""

    registers: int = 0
    shared_bytes: int = 0
    stack_bytes: int = 0
    spill_bytes: int = 0


@dataclass
class Compiled:
    """A .cu file for one architecture."""

    cubin: bytes
    log: str
    kernels: dict[str, Kernel] = field(default_factory=dict)

    def disassembly(self) -> dict[str, list[str]]:
        """The instructions of each kernel, in order, without their addresses."""
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.cubin)
            file.flush()
            text = subprocess.run(
                [str(NVDISASM), "-c", file.name], capture_output=True, text=True, check=True
            ).stdout
        return dict(_functions(text))


def _functions(text: str) -> Iterator[tuple[str, list[str]]]:
    for section in re.split(r"^\s*\.section\s+", text, flags=re.MULTILINE)[1:]:
        if named := re.match(r"\.text\.(\w+)", section):
            listed = re.findall(r"^(\.L_\w+:)|^\s*/\*[0-9a-f]+\*/\s*(.*;)", section, re.MULTILINE)
            yield named[1], [label or instruction for label, instruction in listed]


@functools.cache
def compiled(source: str | Path, architecture: int) -> Compiled:
    """Compiles cuda/NAME.cu, alone, with no definitions, as it is done at run time."""
    path = CUDA / f"{source}.cu" if isinstance(source, str) else source
    library = ctypes.CDLL(str(NVRTC))
    program = ctypes.c_void_p()
    options = [f"-arch=sm_{architecture}", "-std=c++17", f"-I{CUDA}", "--ptxas-options=-v"]
    encoded = [option.encode() for option in options]
    text = path.read_bytes()
    assert not library.nvrtcCreateProgram(
        ctypes.byref(program), text, path.name.encode(), 0, None, None
    )
    try:
        arguments = (ctypes.c_char_p * len(encoded))(*encoded)
        failed = library.nvrtcCompileProgram(program, len(encoded), arguments)
        log = _get(library, program, "ProgramLog").rstrip(b"\0").decode()
        if failed:
            raise CompileError(log)
        result = Compiled(_get(library, program, "CUBIN"), log)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))
    result.kernels.update(_kernels(log))
    return result


def _get(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    assert not getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    room = ctypes.create_string_buffer(size.value)
    assert not getattr(library, f"nvrtcGet{what}")(program, room)
    return room.raw


def _kernels(log: str) -> Iterator[tuple[str, Kernel]]:
    for part in log.split("Compiling entry function '")[1:]:

        def number(pattern: str, part: str = part) -> int:
            return sum(map(int, re.findall(pattern, part)))

        yield (
            part.split("'")[0],
            Kernel(
                registers=number(r"Used (\d+) registers"),
                shared_bytes=number(r"(\d+) bytes smem"),
                stack_bytes=number(r"(\d+) bytes stack frame"),
                spill_bytes=number(r"(\d+) bytes spill"),
            ),
        )
