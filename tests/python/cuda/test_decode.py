"""cuda/decode.cu against the Rust codec, in the emulation: every mode, every size, damage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import neuzip_rs as nz
from neuzip_rs import _native
from tests.python import second_decoder as page
from tests.python import test_second_decoder as second
from tests.python.cuda.device import DeviceError, decode, decode_many
from tests.python.cuda.emulation import needs_compiler
from tests.python.samples import KINDS, NUMPY_DTYPES, contents
from tests.python.second_encoder import Plan, checksum, encode
from tests.python.test_delta import DTYPES, pair
from tests.python.test_records import blocks

pytestmark = needs_compiler
EXAMPLES = settings().max_examples


def compress(data: bytes, dtype: str, level: str, chunk_bytes: int = 4096) -> bytes:
    count = len(data) // nz_itemsize(dtype)
    return bytes(_native.compress(data, dtype, (count,), level=level, chunk_bytes=chunk_bytes))


def nz_itemsize(dtype: str) -> int:
    return page.ITEMSIZE[page.parse(bytes(_native.compress(b"", dtype, (0,)))).dtype]


# --- what the page allows ---------------------------------------------------------------------


@pytest.mark.parametrize("name", second.plans())
def test_legal_streams(name: str) -> None:
    assert decode(second.encoded(name)) == second.plans()[name].data


@settings(max_examples=EXAMPLES // 2)
@given(second.random_plans(), st.integers(0, 15), st.integers(0, 3))
def test_any_legal_stream(plan: Plan, shift: int, seed: int) -> None:
    assert decode(encode(plan), shift=shift, seed=seed) == plan.data


@pytest.mark.parametrize("name", second.CONTENTS)
def test_streams_of_the_package(name: str) -> None:
    original = second.CONTENTS[name][1].tobytes()
    for stream in {second.compressed(name, level) for level in second.LEVELS}:
        assert decode(stream) == original


@settings(max_examples=EXAMPLES // 2)
@given(
    st.sampled_from(NUMPY_DTYPES),
    st.sampled_from(KINDS),
    st.sampled_from(["fast", "default", "max"]),
    st.one_of(st.integers(0, 300), st.integers(0, 20_000)),
    st.integers(0, 99),
)
def test_all_dtypes_and_sizes(dtype: str, kind: str, level: str, count: int, seed: int) -> None:
    data = contents(kind, dtype, count, seed)
    assert decode(compress(data, dtype, level, 16384)) == data


def test_records() -> None:
    data = b"12345" + blocks(4000).tobytes() + b"6"
    stream = bytes(_native.compress(data, "uint8", (len(data),), level="max", chunk_bytes=1 << 15))
    assert page.parse(stream).features & page.RECORDS
    assert decode(stream) == data
    assert decode(stream, shift=1) == data


@settings(max_examples=EXAMPLES // 2)
@given(
    name=st.sampled_from(DTYPES),
    count=st.integers(0, 5000),
    step=st.sampled_from([0.0, 1e-4, 1e-2, 0.3, 10.0]),
    seed=st.integers(0, 1 << 32),
    level=st.sampled_from(["fast", "default", "max"]),
    shift=st.sampled_from([0, 0, 1, 4]),
)
def test_deltas(name: str, count: int, step: float, seed: int, level: str, shift: int) -> None:
    old, new = (array.tobytes() for array in pair(name, count, step, seed))
    itemsize = nz_itemsize(name)
    stream = bytes(
        _native.compress(
            new, name, (len(new) // itemsize,), level=level, chunk_bytes=8192, base=old
        )
    )
    assert decode(stream, old, shift=shift) == new


def test_a_launch_takes_many_tensors() -> None:
    names = list(second.CONTENTS)
    streams = [second.compressed(name, "default") for name in names]
    for grid in (1, 7, 200):
        found = decode_many(streams, grid=grid)
        assert found == [second.CONTENTS[name][1].tobytes() for name in names]


def test_what_has_no_data_of_its_own_is_refused() -> None:
    with pytest.raises(nz.BaseMismatchError, match="first"):
        decode(second.file_streams()["té"])
    stream = bytes(_native.compress(b"abcd" * 100, "float32", (100,), base=b"abcd" * 99 + b"abce"))
    if _native.CompressedTensor.from_bytes(stream).base_hash:
        with pytest.raises(nz.BaseMismatchError):
            decode(stream)


# --- what it forbids --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "base", "changes"),
    second.ILLEGAL,
    ids=[f"{rule}-{base}-{i}" for i, (rule, base, _) in enumerate(second.ILLEGAL)],
)
def test_illegal_streams(rule: str, base: str, changes: second.Broken) -> None:
    stream = second.broken(base, changes)
    with pytest.raises((DeviceError, nz.NeuzipError)):
        decode(stream, verify=False)


def test_chunk_hashes() -> None:
    for base in ("raw", "constant", "chunks", "coded"):
        stream = second.broken(base, {"chunk 0 hash": second.plus(1)})
        assert decode(stream, verify=False) == page.decode(stream, verify=False)
        with pytest.raises(DeviceError, match="error 2 in chunk 0 of tensor 0"):
            decode(stream)


@settings(max_examples=3 * EXAMPLES)
@given(st.data())
def test_damage_is_noticed_as_by_the_package(data: st.DataObject) -> None:
    stream = bytearray(data.draw(st.sampled_from(second.sound())))
    length = page.Reader(bytes(stream[4:])).varint()
    payload = st.integers(min(length, len(stream) - 1), len(stream) - 1)
    anywhere = st.integers(0, len(stream) - 1)
    for place in data.draw(st.lists(st.one_of(payload, anywhere), min_size=1, max_size=3)):
        stream[place] = data.draw(st.integers(0, 255))
    stream[length - 4 : length] = checksum(bytes(stream[: length - 4]))
    damaged = bytes(stream)
    try:
        if _native.stream_header(damaged)[2] >= 1 << 20:
            return
    except nz.NeuzipError:
        return
    expected = outcome(lambda: second.native(damaged, verify=False))
    assert outcome(lambda: decode(damaged, verify=False)) == expected


def outcome(decoded: second.Callable[[], bytes]) -> bytes | None:
    """What a decoder makes of a stream, if it takes it."""
    try:
        return decoded()
    except (DeviceError, nz.NeuzipError):
        return None


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_damaged_deltas(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["bfloat16", "float32", "int16"]))
    old, new = (array.tobytes() for array in pair(name, 3000, 1e-2, 1))
    shape = (len(new) // nz_itemsize(name),)
    stream = bytearray(_native.compress(new, name, shape, base=old, chunk_bytes=8192))
    length = page.Reader(bytes(stream[4:])).varint()
    for place in data.draw(st.lists(st.integers(length, len(stream) - 1), min_size=1, max_size=3)):
        stream[place] ^= data.draw(st.integers(1, 255))
    damaged = bytes(stream)
    out = bytearray(len(new))

    def native() -> bytes:
        _native.decompress_into(damaged, out, base=old, verify=False)
        return bytes(out)

    assert outcome(lambda: decode(damaged, old, verify=False)) == outcome(native)


@settings(max_examples=EXAMPLES)
@given(st.integers(0, 1 << 32))
def test_noise_is_refused(seed: int) -> None:
    rng = np.random.default_rng(seed)
    stream = bytearray(second.compressed("weights bfloat16", "default"))
    length = page.Reader(bytes(stream[4:])).varint()
    stream[length:] = rng.bytes(len(stream) - length)
    with pytest.raises((DeviceError, nz.NeuzipError)):
        decode(bytes(stream))
