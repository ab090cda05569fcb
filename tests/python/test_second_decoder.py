"""The package against a decoder and an encoder that were written from docs/format.md alone."""

import ast
import json
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from random import Random

import ml_dtypes
import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

import neuzip_rs as nz
from neuzip_rs import _native
from tests.python import second_decoder as page
from tests.python import second_encoder as writer
from tests.python.samples import Sample, contents, numpy_dtype
from tests.python.second_decoder import (
    CODED,
    CONSTANT,
    RAW,
    CorruptError,
    Model,
    OffsetList,
    Plane,
    ScaleOffsets,
    Stream,
    Table,
    UnsupportedError,
)
from tests.python.second_encoder import Change, Plan, encode, encode_body, fit_table, invent, varint

FORMAT = Path(__file__).parents[2] / "docs" / "format.md"
Content = tuple[str, Sample, str | None]  # dtype, array, hint


def native(stream: bytes, *, verify: bool = True, start: int = 0, stop: int | None = None) -> bytes:
    """What the package decodes, or its error."""
    opened = _native.CompressedTensor.from_bytes(stream)
    out = bytearray((opened.original_nbytes if stop is None else stop) - start)
    _native.decompress_into(stream, out, start=start, verify=verify, threads=2)
    return bytes(out)


def agree(stream: bytes, original: bytes) -> None:
    """Both decoders make the original of the stream, the package in pieces too."""
    assert page.decode(stream) == original
    assert native(stream) == original
    start, stop = len(original) // 3, len(original) - len(original) // 7
    assert native(stream, start=start, stop=stop) == original[start:stop]


# --- the page itself --------------------------------------------------------------------------


def test_the_worked_example() -> None:
    text = FORMAT.read_text(encoding="utf-8")
    block = re.search(r"```hex\n(.*?)```", text, re.DOTALL)
    assert block
    stream = bytes.fromhex(block[1])
    i = np.arange(512)
    original = np.where(i % 16 == 3, 200, np.where(i % 7 == 0, 5, 2)).astype(np.int64).tobytes()
    agree(stream, original)
    assert page.parse(stream).shape == [32, 16]


def test_dtype_codes() -> None:
    text = FORMAT.read_text(encoding="utf-8")
    rows = re.findall(r"\| (\d+) \| (\w+) \| (\d+) (?=\|)", text)
    assert [int(code) for code, _, _ in sorted(rows, key=lambda row: int(row[0]))] == [*range(35)]
    for code, name, itemsize in rows:
        element = bytes(range(1, int(itemsize) + 1))
        stream = encode_body(page.CONSTANT_BODY, element, (3, 5), dtype=int(code))
        agree(stream, element * 15)
        opened = _native.CompressedTensor.from_bytes(stream)
        assert (opened.dtype, opened.shape) == (name, (3, 5))
        written = _native.compress(element, name, ())
        assert page.parse(bytes(written)).dtype == int(code)


# --- streams of the package -------------------------------------------------------------------


def _floats() -> dict[str, Content]:
    rng = np.random.default_rng(1)

    def weights(*shape: int) -> Sample:
        return rng.standard_normal(shape) * 0.02

    def astype(x: Sample, dtype: str) -> Sample:
        return x.astype(numpy_dtype(dtype))

    found: dict[str, Content] = {}
    for dtype in ("bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"):
        x = weights(20, 101)
        found[f"weights {dtype}"] = (dtype, astype(x, dtype), None)
        found[f"positive {dtype}"] = (dtype, astype(abs(x), dtype), None)
        found[f"sparse {dtype}"] = (dtype, astype(x * (rng.random(x.shape) < 0.1), dtype), None)
        special = contents("special", dtype, 1501, 2)
        found[f"special {dtype}"] = (dtype, np.frombuffer(special, numpy_dtype(dtype)), None)
    size = 2.0 ** rng.integers(-6, 7, 64)
    for dtype in ("bfloat16", "float32"):
        x = weights(70, 64) * size * (2.0 ** rng.integers(-6, 7, 70))[:, None]
        found[f"scaled {dtype}"] = (dtype, astype(x, dtype), None)
    for narrow, wide in (("bfloat16", "float32"), ("float16", "float32"), ("float32", "float64")):
        x = astype(astype(weights(2500), narrow), wide)
        found[f"{wide} from {narrow}"] = (wide, x, None)
        found[f"positive {wide} from {narrow}"] = (wide, abs(x), None)
    for dtype in ("float32", "float64"):
        behind = np.frombuffer(b"abcde" + astype(weights(1500), dtype).tobytes(), np.uint8)
        found[f"{dtype} at an odd place"] = ("uint8", behind, dtype)
    behind = np.frombuffer(b"abc" + astype(weights(3000), "bfloat16").tobytes(), np.uint8)
    found["bfloat16 at an odd place"] = ("uint8", behind, "bfloat16")
    found["complex64"] = ("complex64", astype(weights(2000), "float32").view(np.complex64), None)
    found["complex128"] = ("complex128", weights(1500).view(np.complex128), None)
    bits = astype(weights(2000), "float32").view(np.uint32)
    nans = bits | np.where(rng.random(2000) < 0.2, 0x7FC00000, 0).astype(np.uint32)
    found["NaN patterns"] = ("float32", nans.view(np.float32), None)
    return found


def _others() -> dict[str, Content]:
    rng = np.random.default_rng(2)
    mixed = b"".join(
        [
            *(bytes(4096), rng.bytes(4096), b"\x01\x02" * 2048),
            (rng.standard_normal(4000) * 0.02).astype(ml_dtypes.bfloat16).tobytes(),
            b"xyz",
        ]
    )
    return {
        "int8": ("int8", (rng.standard_normal(5000) * 6).round().astype(np.int8), None),
        "int8, wide": ("int8", (rng.standard_normal(5000) * 30).round().astype(np.int8), None),
        "int32": ("int32", rng.integers(0, 70000, 2000).astype(np.int32), None),
        "int64": ("int64", rng.integers(0, 1000, 900), None),
        "int64, both signs": ("int64", rng.integers(-50, 50, 900), None),
        "bool": ("bool", rng.random(5000) < 0.05, None),
        "random": ("uint8", rng.integers(0, 256, 5001).astype(np.uint8), None),
        "one raw chunk": ("uint8", rng.integers(0, 256, 99).astype(np.uint8), None),
        "mixed": ("uint8", np.frombuffer(mixed, np.uint8), None),
        "constant": ("float32", np.full((50, 50), 1.5, np.float32), None),
        "constant bytes": ("uint8", np.tile(np.arange(4, dtype=np.uint8), 1500), None),
        "empty": ("float32", np.zeros((0, 3), np.float32), None),
        "scalar": ("float64", np.array(0.1), None),
        "three elements": ("bfloat16", np.array([1, -2, 3]).astype(ml_dtypes.bfloat16), None),
    }


CONTENTS = _floats() | _others()
LEVELS = ("fast", "default", "max")


@cache
def compressed(name: str, level: str) -> bytes:
    dtype, x, hint = CONTENTS[name]
    stream = _native.compress(
        x.tobytes(), dtype, x.shape, level=level, chunk_bytes=4096, threads=2, hint=hint
    )
    return bytes(stream)


@pytest.mark.parametrize("name", CONTENTS)
def test_streams_of_the_package(name: str) -> None:
    original = CONTENTS[name][1].tobytes()
    for stream in {compressed(name, level) for level in LEVELS}:
        assert page.decode(stream) == original


@cache
def file_streams() -> dict[str, bytes]:
    """The streams of a file with a tied tensor."""
    x = contents("weights", "float32", 3000, 1)
    tensors = [(name, "F32", (30, 100), x, "float32") for name in ("first", "té")]
    file = _native.write_safetensors(None, tensors, None)
    assert file
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:end])
    places = {name: header[name]["data_offsets"] for name, *_ in tensors}
    return {name: file[end + start : end + stop] for name, (start, stop) in places.items()}


def test_references_of_the_package() -> None:
    streams = file_streams()
    original = page.decode(streams["first"])
    reference = page.parse(streams["té"])
    assert (reference.body, reference.name) == (page.REFERENCE_BODY, "first")
    assert reference.original_hash == xxhash.xxh3_128_intdigest(original)
    fields = writer.reference_fields(original, b"first")
    made = encode_body(page.REFERENCE_BODY, fields, (30, 100), dtype=11, features=page.REFERENCE)
    assert made == streams["té"]


