"""What the host does for a GPU: sources, extras, and which chunks have arrived with a piece."""

import re
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import neuzip_rs
from neuzip_rs.cuda import _runtime
from neuzip_rs.cuda._launch import CHUNK
from neuzip_rs.cuda._pipeline import split
from tests.python.conftest import RunPython
from tests.python.cuda.emulation import CUDA, kernels
from tests.python.cuda.nvrtc import compiled, needs_nvrtc


def test_the_package_carries_the_sources() -> None:
    inside = Path(neuzip_rs.__file__).parent / "cuda" / "sources"
    for path in [*CUDA.glob("*.cu"), *CUDA.glob("*.cuh")]:
        assert (inside / path.name).read_bytes() == path.read_bytes()


@needs_nvrtc
def test_sources_are_whole(tmp_path: Path) -> None:
    for path in CUDA.glob("*.cu"):
        text = _runtime.source(path.stem)
        assert not re.search(r"#include \"(?!cuda_emulation)", text)
        whole = tmp_path / path.name
        whole.write_text(text)
        assert sorted(compiled(whole, 90).kernels) == sorted(kernels(path))


def test_nothing_is_imported_before_it_is_needed(run_python: RunPython) -> None:
    program = """
import sys
import neuzip_rs as nz
import neuzip_rs.cuda
assert not {"cupy", "torch", "numpy"} & set(sys.modules), "imported too early"
print(sorted(neuzip_rs.cuda.__all__))
"""
    assert "decompress_many" in run_python(program)


def test_the_error_names_the_extras(run_python: RunPython) -> None:
    program = """
import sys
sys.modules["cupy"] = None
import neuzip_rs as nz
assert not nz.cuda.is_available()
try:
    nz.cuda.decompress_many([])
except ImportError as error:
    print(error)
"""
    message = run_python(program)
    assert "neuzip_rs[cuda12]" in message
    assert "neuzip_rs[cuda13]" in message


@given(st.lists(st.integers(0, 100), max_size=50), st.lists(st.integers(0, 3000), min_size=1))
def test_pieces_hold_the_chunks_that_have_arrived(lengths: list[int], ends: list[int]) -> None:
    chunks = np.zeros(len(lengths), CHUNK)
    chunks["payload_bytes"] = lengths
    chunks["payload"] = np.cumsum([0, *lengths])[:-1]
    for end, count in zip(ends, split(chunks, ends), strict=True):
        assert all(chunks["payload"][:count] + chunks["payload_bytes"][:count] <= end)
        assert count == len(lengths) or sum(lengths[: count + 1]) > end
