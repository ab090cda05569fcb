"""Damaged input is an error: never a wrong tensor, a crash, a hang or an unearned allocation."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest

import neuzip_rs as nz
from neuzip_rs import _native
from tests.python.conftest import RunPython
from tests.python.samples import contents, numpy_array


def _stream(dtype: str, shape: tuple[int, ...], data: bytes, level: str = "default") -> bytes:
    # Small chunks, so that small streams have several.
    return bytes(_native.compress(data, dtype, shape, level=level, chunk_bytes=4096))


def _row_scaled(dtype: str, rows: int, columns: int) -> bytes:
    """Weights whose rows have very different sizes."""
    x = numpy_array("float32", (rows, columns), contents("weights", "float32", rows * columns, 1))
    x *= 2.0 ** (np.arange(rows) % 7)[:, None]
    return x.astype(numpy_array(dtype, (0,), b"").dtype).tobytes()


def _near_one(rows: int, columns: int) -> bytes:
    """Numbers whose leading mantissa bits follow from their exponents."""
    x = numpy_array("float32", (rows, columns), contents("weights", "float32", rows * columns, 1))
    return (1 + x).astype(np.float16).tobytes()


def _signs(rows: int, columns: int) -> bytes:
    """Weights with the signs of an outer product."""
    x = numpy_array("float32", (rows, columns), contents("weights", "float32", rows * columns, 1))
    x = np.abs(x) * np.outer(np.arange(rows) * 7 % 5 - 2.5, np.arange(columns) * 11 % 7 - 3.5)
    return x.astype(numpy_array("bfloat16", (0,), b"").dtype).tobytes()


def _streams() -> dict[str, bytes]:
    mixed = (
        contents("random", "uint8", 4096, 2) + bytes(4096) + contents("weights", "bfloat16", 99, 2)
    )
    narrow = numpy_array("bfloat16", (1600,), contents("weights", "bfloat16", 1600, 1))
    widened = narrow.astype(np.float32).tobytes()
    return {
        "empty": _stream("float32", (0, 3), b""),
        "scalar": _stream("float32", (), b"\x01\x02\x03\x04"),
        "short": _stream("bfloat16", (9,), contents("weights", "bfloat16", 9, 1)),
        "constant": _stream("float32", (500, 500), b"abcd" * 250_000),
        "raw": _stream("uint8", (300,), contents("random", "uint8", 300, 1)),
        "mixed": _stream("uint8", (len(mixed),), mixed),
        "bfloat16": _stream("bfloat16", (45, 50), contents("weights", "bfloat16", 2250, 1), "fast"),
        "scaled": _stream("bfloat16", (70, 64), _row_scaled("bfloat16", 70, 64), "max"),
        "two symbols": _stream("float16", (48, 96), _near_one(48, 96), "max"),
        "signs": _stream("bfloat16", (70, 64), _signs(70, 64), "max"),
        "float16": _stream("float16", (1500,), contents("special", "float16", 1500, 1)),
        "float32": _stream("float32", (1100,), contents("weights", "float32", 1100, 1)),
        "trailing zeros": _stream("float32", (32, 50), widened),
        "float64": _stream("float64", (300,), contents("weights", "float64", 300, 1)),
        "float8": _stream("float8_e4m3fn", (2500,), contents("weights", "float8_e4m3fn", 2500, 1)),
        "integers": _stream("int32", (700,), np.arange(700, dtype=np.int32).tobytes()),
        "bool": _stream("bool", (3000,), contents("skewed", "uint8", 3000, 1)),
        "complex": _stream("complex64", (300,), contents("weights", "complex64", 300, 1)),
    }


STREAMS = _streams()
ORIGINALS = {name: nz.decompress(stream, framework="bytes") for name, stream in STREAMS.items()}


def damaged(stream: bytes | bytearray) -> None:
    """Fails unless decoding raises one of the errors that say so."""
    try:
        found = nz.decompress(stream, framework="bytes", threads=1, max_output_size=1 << 30)
    except nz.NeuzipError:
        return
    pytest.fail(f"decoded {len(found)} bytes from a damaged stream")


def test_the_streams_cover_the_format() -> None:
    infos = [nz.CompressedTensor.from_bytes(stream).info() for stream in STREAMS.values()]
    assert {info["body"] for info in infos} == {"chunked", "constant"}
    features = {feature for info in infos for feature in info["features"]}
    assert features >= {"scale-offsets", "trailing-zeros", "wide-symbols"}
    assert features >= {"contexts", "sign-flips"}
    modes = {mode for info in infos for mode in info["modes"]}
    assert modes >= {"raw", "constant"}
    assert any("rans" in mode for mode in modes)
    assert any(info["chunks"] > 1 for info in infos)


@pytest.mark.parametrize("name", STREAMS)
def test_every_bit_flip(name: str) -> None:
    stream = bytearray(STREAMS[name])
    for position in range(len(stream)):
        for bit in range(8):
            stream[position] ^= 1 << bit
            damaged(stream)
            stream[position] ^= 1 << bit
    assert nz.decompress(stream, framework="bytes") == ORIGINALS[name]


@pytest.mark.parametrize("name", STREAMS)
def test_every_truncation(name: str) -> None:
    stream = STREAMS[name]
    for length in range(len(stream)):
        damaged(stream[:length])


@pytest.mark.parametrize("name", STREAMS)
def test_anything_appended(name: str) -> None:
    for tail in (b"\0", b"\xff", bytes(16), bytes(1000), STREAMS[name]):
        damaged(STREAMS[name] + tail)
        damaged(tail + STREAMS[name])


@pytest.mark.parametrize("name", ["mixed", "bfloat16", "scaled", "trailing zeros", "float8"])
def test_rows_are_right_or_an_error(name: str) -> None:
    stream = bytearray(STREAMS[name])
    expected = nz.CompressedTensor.from_bytes(STREAMS[name])[1:3].tobytes()
    noticed = 0
    for position in range(len(stream)):
        flip = 1 << position % 8
        stream[position] ^= flip
        try:
            found = nz.CompressedTensor.from_bytes(stream)[1:3]
        except nz.NeuzipError:
            noticed += 1
        else:
            assert found.tobytes() == expected
        stream[position] ^= flip
    assert noticed > 0


@pytest.mark.parametrize("name", ["mixed", "bfloat16", "float32"])
def test_without_verification_nothing_crashes(name: str) -> None:
    stream = bytearray(STREAMS[name])
    for position in range(len(stream)):
        flip = 1 << position % 8
        stream[position] ^= flip
        try:
            found = nz.decompress(stream, framework="bytes", verify=False)
        except nz.NeuzipError:
            pass
        else:
            assert len(found) == len(ORIGINALS[name])
        stream[position] ^= flip


def _spoil(stream: bytes, rng: random.Random) -> bytes:
    """One of the ways in which storage and transport damage data."""
    data = bytearray(stream)
    at = rng.randrange(len(data))
    some = min(rng.choice([1, 2, 4, 16, 100, 1000]), len(data) - at)
    way = rng.randrange(8)
    if way == 0:
        for _ in range(rng.choice([1, 2, 3, 8, 50])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif way == 1:
        data[at : at + some] = rng.randbytes(some)
    elif way == 2:
        data[at : at + some] = bytes(some)
    elif way == 3:
        del data[at : at + some]
    elif way == 4:
        data[at:at] = rng.randbytes(some)
    elif way == 5:
        del data[at:]
    elif way == 6:
        data[at : at + some] = b"\xff" * some
    else:
        other = rng.randrange(len(data) - some + 1)
        data[at : at + some] = data[other : other + some]
    return bytes(data)


def test_ten_thousand_random_corruptions() -> None:
    rng = random.Random(0)
    whole = list(STREAMS.values())
    big = nz.compress(contents("weights", "bfloat16", 300_000, 3), dtype="bfloat16")
    whole.append(bytes(big))
    done = 0
    while done < 10_000:
        stream = rng.choice(whole)
        spoiled = _spoil(stream, rng)
        if spoiled != stream:
            damaged(spoiled)
            done += 1


def test_parts_of_other_streams() -> None:
    # Every part is intact, the whole is not.
    names = ["bfloat16", "float16", "float32", "integers"]
    for first in names:
        for second in names:
            a, b = STREAMS[first], STREAMS[second]
            for cut in range(4, min(len(a), len(b)), 37):
                if a[:cut] + b[cut:] not in (a, b):
                    damaged(a[:cut] + b[cut:])


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(nz.CorruptDataError, match=r"\w{4}"):
        nz.decompress(b"not a stream at all, just text")
    with pytest.raises(nz.CorruptDataError, match=r"\w{4}"):
        nz.decompress(STREAMS["bfloat16"][:-1])


def test_out_is_never_written_for_a_damaged_header() -> None:
    stream = bytearray(STREAMS["bfloat16"])
    stream[10] ^= 1
    out = bytearray(4500)
    with pytest.raises(nz.NeuzipError):
        nz.decompress(stream, out=out)
    assert out == bytes(4500)


HOSTILE_PROGRAM = """
import random, resource
import neuzip_rs as nz

small = bytes(nz.compress(bytes(range(100)), dtype="uint8"))
magic = small[:4]
rng = random.Random(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
refused = 0
for attempt in range(20000):
    kind = attempt % 4
    if kind == 0:
        data = magic + rng.randbytes(rng.randrange(60))
    elif kind == 1:
        data = magic + b"\\xff" * rng.randrange(60)
    elif kind == 2:
        data = small[: rng.randrange(30)] + b"\\xff" * 9 + b"\\x01" + small[rng.randrange(30) :]
    else:
        data = small[: rng.randrange(4, 30)] + b"\\x80" * 8 + b"\\x7f" + rng.randbytes(20)
    try:
        nz.decompress(data)
    except nz.NeuzipError:
        refused += 1
print(refused, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory")
def test_hostile_sizes_allocate_nothing(run_python: RunPython) -> None:
    refused, kibibytes = map(int, run_python(HOSTILE_PROGRAM).split())
    assert refused == 20_000
    assert kibibytes < 2048


COLLECTED_PROGRAM = """
import gc, os, pathlib, sys
import neuzip_rs as nz

plain = bytes(range(256)) * 400
broken = bytearray(bytes(nz.compress(plain)))
broken[-1] ^= 1
file = os.environ["STATE_FILE"]
nz.save({"a": plain}, file)
saved = bytearray(pathlib.Path(file).read_bytes())
saved[-1] ^= 1
pathlib.Path(file).write_bytes(saved)
seen = []
sys.unraisablehook = seen.append
gc.disable()
for decode in (
    lambda: nz.decompress(broken, framework="bytes"),
    lambda: nz.CompressedTensor.from_bytes(broken, framework="bytes")[-9:],
    lambda: nz.load(file),
):
    try:
        decode()
    except nz.CorruptDataError as error:
        error.__notes__ = [error]
    else:
        sys.exit("the damage was not noticed")
    gc.collect()
assert not seen, seen
"""


def test_nothing_is_reported_when_an_error_is_collected(
    run_python: RunPython, tmp_path: Path
) -> None:
    """Until Python 3.13 only the development mode says what goes wrong in a collection."""
    run_python(COLLECTED_PROGRAM, PYTHONDEVMODE="1", STATE_FILE=str(tmp_path / "state.nz"))
