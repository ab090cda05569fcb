"""`nz.load` of files that `nz.save` did not write, or that were damaged since."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import neuzip_rs as nz
from tests.python.conftest import RunPython
from tests.python.samples import Sample


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state.nz"


def write_structure(file: Path, structure: Sample, version: str = "1", **tensors: Sample) -> None:
    """A file as `save` writes it, with any structure at all."""
    text = structure if isinstance(structure, str) else json.dumps(structure)
    stored = {"neuzip.state": np.frombuffer(text.encode(), np.uint8), **tensors}
    nz.safetensors.save_file(stored, file, {"neuzip.state": version})


def test_other_files(file: Path) -> None:
    for data in (b"", b"text", bytes(1000)):
        file.write_bytes(data)
        with pytest.raises(nz.CorruptDataError):
            nz.load(file)
    safetensors.torch.save_file({"x": torch.ones(2)}, file)
    with pytest.raises(nz.CorruptDataError, match="load_file"):
        nz.load(file)
    nz.safetensors.save_file({"x": torch.ones(2)}, file)
    with pytest.raises(nz.CorruptDataError, match="load_file"):
        nz.load(file)


def test_a_newer_version(file: Path) -> None:
    write_structure(file, {"records": [], "root": 1}, version="2")
    with pytest.raises(nz.UnsupportedVersionError, match="'2'"):
        nz.load(file)


X = ["x", "numpy", "float32", [2], False, False]
STRUCTURES: list[Sample] = [
    "",
    "{",
    "[]",
    "3",
    "\x80",
    "[" * 100_000,
    '{"records":[],"root":' + '{"tuple":[' * 50_000 + "]}" * 50_000 + "}",
    {"records": []},
    {"root": 1},
    {"records": {}, "root": {"tensor": 0}},
    {"records": [], "root": {"tensor": 0}},
    {"records": [X], "root": {"tensor": 1}},
    {"records": [X], "root": {"tensor": "0"}},
    {"records": [X], "root": {"tensor": None}},
    {"records": [X], "root": {"what": 0}},
    {"records": [X], "root": {}},
    {"records": [X], "root": {"tuple": 1, "list": 2}},
    {"records": [X], "root": {"int": "hello"}},
    {"records": [X], "root": {"int": 3}},
    {"records": [X], "root": {"float": "00"}},
    {"records": [X], "root": {"complex": "zz"}},
    {"records": [X], "root": {"bytes": "?"}},
    {"records": [X], "root": {"set": [[]]}},
    {"records": [X], "root": {"items": [[[], 1]]}},
    {"records": [X], "root": {"items": [1]}},
    {"records": [X], "root": {"scalar": ["float32", "00"]}},
    {"records": [X], "root": {"scalar": ["float32", "0000000000000000"]}},
    {"records": [X], "root": {"scalar": 1}},
    {"records": [X], "root": {"size": ["a"]}},
    {"records": [X], "root": {"dtype": "Tensor"}},
    {"records": [X], "root": {"dtype": 3}},
    {"records": [["y", *X[1:]]], "root": 1},
    {"records": [["x", "tensorflow", *X[2:]]], "root": 1},
    {"records": [["x", "numpy", "float31", *X[3:]]], "root": 1},
    {"records": [["x", "numpy", "float32", [3], False, False]], "root": 1},
    {"records": [["x", "numpy", "float32", [-2], False, False]], "root": 1},
    {"records": [["x", "numpy", "float32", [2.0], False, False]], "root": 1},
    {"records": [["x", "numpy", "float32", 2, False, False]], "root": 1},
    {"records": [X[:-1]], "root": 1},
    {"records": [[*X, 1]], "root": 1},
    {"records": [3], "root": 1},
]


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda s: str(s)[:40])
def test_structures_that_save_never_writes(structure: Sample, file: Path) -> None:
    write_structure(file, structure, x=np.ones(2, np.float32))
    with pytest.raises(nz.CorruptDataError):
        nz.load(file)


def test_a_bit_flip_in_every_byte(file: Path) -> None:
    nz.save({"x": torch.arange(30, dtype=torch.int16), "y": [1, 2.5, "text"]}, file)
    data = file.read_bytes()
    with file.open("r+b", buffering=0) as opened:
        for position, byte in enumerate(data):
            opened.seek(position)
            opened.write(bytes([byte ^ 1 << position % 8]))
            with pytest.raises(nz.NeuzipError):
                nz.load(file)
            opened.seek(position)
            opened.write(bytes([byte]))
    assert file.read_bytes() == data


def test_nothing_is_pickled(run_python: RunPython, file: Path) -> None:
    program = f"""
import sys
import neuzip_rs as nz
nz.save({{"a": [1, b"x" * 3000]}}, {str(file)!r})
assert nz.load({str(file)!r}) == {{"a": [1, b"x" * 3000]}}
print("pickle" in sys.modules, "numpy" in sys.modules)
"""
    assert run_python(program) == "False False"
    assert sys.modules["pickle"]
