"""The package against a decoder and an encoder that were written from docs/format.md alone."""

import ast
import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
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
    Model,
    OffsetList,
    Plane,
    Records,
    ScaleOffsets,
    Stream,
    Table,
)
from tests.python.second_encoder import Change, Plan, encode, encode_body, invent, varint
from tests.python.second_plans import (
    coded,
    constant,
    in_contexts,
    legal_plans,
    offset_list,
    one,
    one_model,
    raw,
    scaled,
    scaled_plan,
)

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
    for dtype in ("bfloat16", "float16"):
        signs = np.sign(weights(150)) * np.sign(weights(64))[:, None]
        x = abs(weights(64, 150)) * np.where(rng.random((64, 150)) < 0.1, -signs, signs)
        found[f"signs of an outer product {dtype}"] = (dtype, astype(x, dtype), None)
        x = weights(120, 200)
        x[::3] = x[::3] ** 5 / 1e-7
        found[f"classes of rows {dtype}"] = (dtype, astype(x, dtype), None)
        x = weights(200, 120)
        x[:, ::3] = x[:, ::3] ** 5 / 1e-7
        found[f"classes of columns {dtype}"] = (dtype, astype(x, dtype), None)
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


# --- legal streams that the package need not write --------------------------------------------

plans = cache(legal_plans)


@cache
def encoded(name: str) -> bytes:
    return encode(plans()[name])


@pytest.mark.parametrize("name", plans())
def test_legal_streams(name: str) -> None:
    agree(encoded(name), plans()[name].data)


def test_an_escaped_value_may_be_in_the_table() -> None:
    table = Table(7, True, [(63, 10), (0, 246)])
    model = Model(0, [Plane(page.CODED, 8, table=table)], 7)
    data = b"\7\7\7\0\7\7\1" * 100
    sevens = data.replace(b"\0", b"\7")
    sevens_and_ones = sum(6 << 6 * i for i in range(100))  # 3 bits each, from 1 on
    changes = {
        "chunk 0 plane 0 smallest": b"\1\0",
        "chunk 0 plane 0 escape width": b"\3",
        "chunk 0 plane 0 escaped": sevens_and_ones.to_bytes(75, "little"),
        "chunk 0 hash": page.chunk_hash(sevens).to_bytes(8, "little"),
    }
    plan = Plan(data, models=[model], storages=[2])
    agree(encode(plan, changes), sevens)
    wider = sum(6 << 8 * i for i in range(100))  # the same in 4 bits each
    changes["chunk 0 plane 0 escape width"] = b"\4"
    changes["chunk 0 plane 0 escaped"] = wider.to_bytes(100, "little")
    with pytest.raises(page.CorruptError, match="as short as they can be"):
        page.decode(encode(plan, changes))
    with pytest.raises(nz.CorruptDataError):
        native(encode(plan, changes))


def test_bytes_beyond_a_constant_chunk_are_free() -> None:
    plan = Plan(b"abc", storages=[1])
    agree(encode(plan, {"chunk 0 constant": b"abc" + b"?" * 13}), b"abc")


@pytest.mark.parametrize("shape", [(), (0, 3), (5, 7)])
def test_constant_bodies(shape: tuple[int, ...]) -> None:
    stream = encode_body(page.CONSTANT_BODY, b"abcd", shape, dtype=11)
    agree(stream, b"abcd" * int(np.prod(shape)))


@pytest.mark.parametrize("name", ["", "layer.weight", "a\0b", "é" * 1000])
def test_reference_bodies(name: str) -> None:
    fields = writer.reference_fields(b"abc", name.encode())
    stream = encode_body(page.REFERENCE_BODY, fields, (3,), features=page.REFERENCE)
    assert page.parse(stream).name == name
    assert _native.CompressedTensor.from_bytes(stream).shape == (3,)
    with pytest.raises(nz.BaseMismatchError):
        native(stream)
    with pytest.raises(page.CorruptError):
        page.decode(stream)


@st.composite
def models(draw: st.DrawFn, log2_size: int, *, is_scaled: bool) -> Model:
    bits = 8 << log2_size
    cuts = sorted(draw(st.sets(st.integers(1, bits - 1), max_size=15)))
    planes: list[Plane] = []
    modes = [page.CODED, page.RAW, page.CONSTANT, page.IN_CONTEXTS, page.IN_CONTEXTS]
    for low, high in pairwise([0, *cuts, bits]):
        width, mode = high - low, draw(st.sampled_from(modes))
        value = draw(st.integers(0, (1 << width) - 1))
        above = [i for i, plane in enumerate(planes) if plane.mode >= page.CODED]
        if mode == page.IN_CONTEXTS and width <= 16 and above:
            source = draw(st.sampled_from(above))
            first = draw(st.integers(0, (1 << planes[source].width) - 1))
            listed = draw(st.integers(2, min(64, 1 + (1 << width))))
            escape = listed > 1 << width or draw(st.booleans())
            count = draw(st.integers(1, 16))
            shape = {"count": count, "listed": listed, "first": first, "escape": escape}
            planes.append(in_contexts(width, source + 1, **shape))
            modes.remove(mode)
        elif mode == page.CODED and width <= 16:
            planes.append(Plane(mode, width, table=Table(value, draw(st.booleans()), [])))
        elif mode == page.CONSTANT:
            planes.append(constant(width, value))
        else:
            planes.append(raw(width))
    sign = draw(st.integers(0, bits - 1))
    phase = 0 if is_scaled else draw(st.integers(0, (1 << log2_size) - 1))
    zeros = planes[-1].mode == page.RAW and draw(st.booleans())
    return Model(log2_size, planes, sign, phase, zeros, is_scaled)


@st.composite
def random_plans(draw: st.DrawFn) -> Plan:
    """Any legal stream of a few chunks."""
    dtype = draw(st.sampled_from([1, 3, 9, 10, 11, 12, 15]))
    log2_chunk = draw(st.integers(12, 14))
    count = draw(st.sampled_from([9000, 0, 500, 4096, 5000, 8192, 12288])) + draw(
        st.integers(0, 99)
    )
    nbytes = count // page.ITEMSIZE[dtype] * page.ITEMSIZE[dtype]
    scaled_size = draw(st.integers(0, 3))
    elements = nbytes >> scaled_size
    plan = Plan(dtype=dtype, log2_chunk=log2_chunk, most_zeros=draw(st.sampled_from([64, 3])))
    plan.models = [
        draw(models(scaled_size if is_scaled else draw(st.integers(0, 3)), is_scaled=is_scaled))
        for is_scaled in draw(
            st.lists(st.sampled_from([False, elements > 0]), min_size=1, max_size=3)
        )
    ]
    if any(model.scaled for model in plan.models):
        columns, axes = draw(st.integers(1, elements)), draw(st.integers(1, 15))
        plan.offsets = ScaleOffsets(columns, axes, draw(st.integers(0, 63)))
        if axes & page.ROW_FLIPS:
            plan.offsets.row_flips = offset_list(0, 1, -(-elements // columns))
        if axes & page.COLUMN_FLIPS:
            plan.offsets.column_flips = offset_list(0, 1, columns)
        widths, lowest = st.integers(0, 8), st.integers(-128, 127)
        if axes & page.ROWS:
            rows = -(-elements // columns)
            plan.offsets.by_row = offset_list(draw(lowest), draw(widths), rows)
        if axes & page.COLUMNS:
            plan.offsets.by_column = offset_list(draw(lowest), draw(widths), columns)
    of_models = [page.FIRST_MODEL + i for i in range(len(plan.models))]
    storage = st.sampled_from([*of_models * 3, page.RAW_CHUNK, page.CONSTANT_CHUNK])
    plan.storages = [draw(storage) for _ in range(-(-nbytes // (1 << log2_chunk)))]
    return invent(plan, nbytes, Random(draw(st.integers(0, 99))))


@given(random_plans())
def test_any_legal_stream(plan: Plan) -> None:
    agree(encode(plan), plan.data)


# --- nothing of the page is left out ----------------------------------------------------------


def model_traits(model: Model) -> set[str]:
    found = {f"{model.size} byte elements", f"phase {model.phase}"}
    found |= {"trailing zeros"} if model.trailing_zeros else {"no trailing zeros"}
    found |= {"scaled"} if model.scaled else {"not scaled"}
    place = {0: "bottom", 8 * model.size - 1: "top"}.get(model.sign, "middle")
    found |= {f"sign at the {place}"}
    for plane in model.planes:
        wide = "wide " if plane.width > 8 else ""
        modes = ("raw", "constant", "coded", "in contexts")
        found |= {f"{wide}{modes[plane.mode]} plane"}
        if plane.contexts:
            by_class = plane.contexts.source == page.CLASSES
            found |= {"contexts by class" if by_class else "contexts by symbol"}
            found |= {
                "contexts with escape" if plane.contexts.escape else "contexts without escape"
            }
        if plane.table:
            found |= {f"{wide}table {'with' if plane.table.escape else 'without'} escape"}
    return found


def traits(stream: Stream) -> set[str]:
    """What of the page this stream needs."""
    found = {f"body {stream.body}", f"{min(2, len(stream.storages))} chunks"}
    found |= {f"feature {bit}" for bit in range(7) if stream.features >> bit & 1}
    found |= {f"storage {('raw', 'constant', 'model')[min(2, s)]}" for s in stream.storages}
    found |= {"storages of 16 bits"} if len(stream.models) > 254 else set()
    found |= {"records"} if stream.records else set()
    if stream.offsets:
        found |= {f"list {bit}" for bit in range(6) if stream.offsets.axes >> bit & 1}
    for storage, payload in zip(stream.storages, stream.payloads, strict=True):
        if page.FIRST_MODEL <= storage < page.FIRST_MODEL + len(stream.models):
            model = stream.models[storage - page.FIRST_MODEL]
            found |= model_traits(model)
            for i, plane in enumerate(model.coded()):
                if any(payload[8 * i + 4 : 8 * i + 8]):
                    width = "wide" if model.planes[plane].width > 8 else "narrow"
                    found |= {f"escapes of {width} planes"}
    return found


OF_THE_PACKAGE = {
    *("body 0", "body 1", "body 2", "0 chunks", "1 chunks", "2 chunks"),
    *("feature 0", "feature 1", "feature 2", "feature 3"),
    *("storage raw", "storage constant", "storage model", "scaled", "not scaled"),
    *(f"list {bit}" for bit in range(6)),
    *("feature 5", "feature 6", "in contexts plane"),
    *("contexts by symbol", "contexts by class", "contexts without escape"),
    *("1 byte elements", "2 byte elements", "4 byte elements", "8 byte elements"),
    *("sign at the bottom", "sign at the middle", "sign at the top"),
    *("raw plane", "wide raw plane", "constant plane", "coded plane", "wide coded plane"),
    *("table with escape", "table without escape"),
    *("wide table with escape", "wide table without escape"),
    *("escapes of narrow planes", "escapes of wide planes"),
    *("trailing zeros", "no trailing zeros"),
    *("phase 0", "phase 1"),
}
EVERYTHING = OF_THE_PACKAGE | {
    *("records", "storages of 16 bits", "wide constant plane", "wide in contexts plane"),
    "contexts with escape",
    *(f"phase {phase}" for phase in range(8)),
}


def test_the_package_uses_nearly_everything() -> None:
    streams = {compressed(name, level) for name in CONTENTS for level in LEVELS}
    parsed = [page.parse(stream) for stream in [*streams, *file_streams().values()]]
    assert set().union(*map(traits, parsed)) >= OF_THE_PACKAGE


def test_the_legal_streams_use_everything() -> None:
    element = encode_body(page.CONSTANT_BODY, b"a", (1,))
    streams = [element, file_streams()["té"], *map(encoded, plans()), encode(bases()["records"])]
    assert set().union(*(traits(page.parse(stream)) for stream in streams)) == EVERYTHING


# --- illegal streams --------------------------------------------------------------------------


def records_plan(data: bytes, classes: Sequence[int], models: Sequence[int | None]) -> Plan:
    """Chunks of records; model 0 is coded, 1 raw."""
    table = writer.fit_table([byte >> 4 for byte in data] + [*range(16)], 4)
    half = Model(0, [Plane(page.CODED, 4, table=table), raw(4)], 7)
    plain = Model(1, [raw(16)], 0)
    chunks = -(-len(data) // 4096)
    return Plan(
        data,
        models=[half, plain],
        storages=[4] * chunks,
        records=[Records([*classes], [*models])],
    )


@cache
def bases() -> dict[str, Plan]:
    """Legal streams, each of which the illegal ones break one rule of."""
    rng = Random(3)
    plain = Model(1, [coded(8, escape=False), raw(8)], 0)
    half_escaped = Table(0, True, [(0, 128), (63, 128)])
    narrow = Model(0, [Plane(page.CODED, 4, table=half_escaped), raw(4)], 7)
    zeros = [Model(2, [coded(8), raw(24)], sign, trailing_zeros=True) for sign in (0, 31)]
    offsets = ScaleOffsets(7, 3, 4, offset_list(-5, 3, 43), offset_list(2, 3, 7))
    classes = ScaleOffsets(7, 60, 0)
    classes.row_flips, classes.column_flips = offset_list(0, 1, 43), offset_list(0, 1, 7)
    classes.row_classes, classes.column_classes = offset_list(0, 2, 43), offset_list(2, 0, 7)
    in_classes = [in_contexts(8, 0, count=6, listed=20), raw(4)]
    in_classes += [in_contexts(2, 1, count=3, listed=4), raw(2)]
    scaled_two = [scaled(1, [raw(16)]), scaled(2, [raw(32)])]
    return {
        "empty": Plan(),
        "raw": Plan(rng.randbytes(99), storages=[0]),
        "constant": Plan(b"a" * 99, storages=[1]),
        "chunks": Plan(bytes(4096) + rng.randbytes(4196), storages=[1, 0, 0]),
        "coded": one_model(Model(1, [one(1), coded(9, 500), raw(6)], 15), 1501),
        "plain": one_model(plain, 1500),
        "narrow": one_model(narrow, 1500),
        "short": one_model(plain, 80),
        "coded last": one_model(Model(1, [raw(7), coded(9)], 3), 1500),
        "constant last": one_model(Model(1, [raw(7), one(9)], 3), 1500),
        "phase": one_model(Model(1, [raw(16)], 3, 1), 1500),
        "bytes": one_model(Model(0, [raw(8)], 0), 1500),
        "zeros": one_model(zeros[0], 1500),
        "zeros, sign at the top": one_model(zeros[1], 1500),
        "scaled": scaled_plan(offsets, 600, scaled(1, [coded(8), raw(8)])),
        "contexts": one_model(
            Model(1, [coded(8, 90), in_contexts(2, 1, count=5, listed=4, first=95), raw(6)], 0),
            1500,
        ),
        "three contexts": one_model(
            Model(1, [coded(8), *[in_contexts(2, 1, count=2, listed=4)] * 3, raw(2)], 0), 1500
        ),
        "classes": scaled_plan(classes, 600, scaled(1, in_classes)),
        "two scaled sizes": Plan(
            b"abcd", models=scaled_two, storages=[0], offsets=ScaleOffsets(1, 1, 0, OffsetList())
        ),
        "scaled, empty": Plan(models=scaled_two[:1], offsets=ScaleOffsets(1, 1, 0, OffsetList())),
        "scaled, no offset bits": Plan(
            *(bytes(65537), 1, None, [scaled(0, [raw(8)])], [1]),
            *(ScaleOffsets(1, 1, 0, OffsetList()), 17),
        ),
        "records": records_plan(rng.randbytes(9000), [0, 0, *[1] * 7, 2, 1, 2], [1, 0, None]),
        "records of raw bytes": records_plan(rng.randbytes(300), [0, 1], [None, None]),
        "255 models": Plan(b"abc", models=[Model(0, [one(8)], 0)] * 255, storages=[0]),
    }


def longer(number: bytes) -> bytes:
    """A varint of one more byte than it need have."""
    return number[:-1] + bytes([number[-1] | 128, 0])


def plus(addend: int) -> Change:
    """A field, as a number, increased."""

    def add(value: bytes) -> bytes:
        return (int.from_bytes(value, "little") + addend).to_bytes(len(value), "little")

    return add


def with_end(end: bytes) -> Change:
    return lambda value: value + end


def so_many(count: int, width: int) -> Change:
    """A bit string with fewer or more fields, zeros if more."""

    def recount(value: bytes) -> bytes:
        bits = int.from_bytes(value, "little") & (1 << count * width) - 1
        return bits.to_bytes((count * width + 7) // 8, "little")

    return recount


def each_one_more(count: int, width: int) -> Change:
    """The fields of a bit string, each one more."""

    def increase(value: bytes) -> bytes:
        ones = sum(1 << i * width for i in range(count))
        return (int.from_bytes(value, "little") + ones).to_bytes(len(value), "little")

    return increase


def without_end(count: int) -> Change:
    return lambda value: value[:-count]


def named(file: bytes) -> Change:
    """The fields of an external body with another name of the file."""
    return lambda fields: fields[:20] + varint(len(file)) + file


def starting(start: bytes) -> Change:
    """The fields of an external body that begins at another byte."""
    return lambda fields: fields[:17] + start + fields[18:]


def excepted(exceptions: bytes) -> Change:
    """The fields of an external body with other exceptions, which come last."""
    return lambda fields: fields[:-1] + exceptions


def with_top_bit(value: bytes) -> bytes:
    assert value[-1] < 128
    return value[:-1] + bytes([value[-1] | 128])


def dirty(padding: bytes) -> bytes:
    assert padding
    return padding[:-1] + b"\1"


def at(place: int, byte: int) -> Change:
    """One byte of a field replaced."""

    def replace(value: bytes) -> bytes:
        assert place < len(value)
        return value[:place] + bytes([byte]) + value[place + 1 :]

    return replace


def table(*entries: int) -> dict[str, Change]:
    """The entries of the only coded plane, which has no escape, replaced."""
    plane = "model 0 plane 0 "
    return {plane + "table": bytes(entries), plane + "entries": bytes([len(entries) // 2])}


FIRST = "model 0 plane 0 "
SECOND = "model 0 plane 1 "
Broken = dict[str, Change]
# The rule, in the words of the second decoder; the stream that breaks it; what is changed.
ILLEGAL: list[tuple[str, str, Broken]] = [
    # Conventions.
    *[
        ("a varint is as short as it can be", base, Broken({name: longer}))
        for base, name in (
            *(("raw", "features"), ("raw", "shape"), ("raw", "models"), ("scaled", "columns")),
            *(("coded", SECOND + "base"), ("coded", FIRST + "value")),
        )
    ],
    (
        "a varint is as short as it can be",
        "raw",
        {"length": lambda value: bytes([value[0] + 1 | 128, 0])},
    ),
    ("a varint is below 2^64", "raw", {"shape": b"\xff" * 9 + b"\2"}),
    ("a varint is below 2^64", "raw", {"shape": b"\xff" * 10 + b"\1"}),
    ("unused bits are zero", "coded", {"chunk 0 plane 2 sub-block 0": with_top_bit}),
    ("unused bits are zero", "scaled", {"row offsets list": with_top_bit}),
    ("unused bits are zero", "scaled", {"column offsets list": with_top_bit}),
    # The stream.
    *[
        ("padding is zero", base, Broken({f"{name} padding": dirty}))
        for base, name in (
            *(("chunks", "prelude"), ("chunks", "chunk 2 original"), ("coded", "prelude")),
            *(("coded", "chunk 0 head"), ("coded", "chunk 0 plane 2")),
            *(("coded", "chunk 0 plane 1 stream"), ("coded", "chunk 0 plane 1 escaped")),
        )
    ],
    ("padding is zero", "coded", {"prelude padding": b""}),
    *[
        ("no bytes are left over", base, Broken({"end": bytes(count)}))
        for base in ("empty", "raw", "constant", "chunks", "coded", "constant body", "reference")
        for count in (1, 16)
    ],
    *[
        ("the input does not end early", base, Broken({"payloads": without_end(count)}))
        for base in ("raw", "constant", "chunks", "coded")
        for count in (1, 16)
    ],
    ("no bytes are left over", "raw", {"payloads": lambda value: bytes(16) + value}),
    ("no bytes are left over", "chunks", {"prelude padding": with_end(bytes(16))}),
    # The prelude.
    *[("the magic is there", "raw", Broken({"magic": at(i, 0)})) for i in range(3)],
    *[("the version is known", "raw", Broken({"version": bytes([i])})) for i in (0, 2, 255)],
    ("the version is known", "raw", {"version": b"\2", "checksum": bytes(4)}),
    ("the version is known", "raw", {"version": b"\2", "length": b"\xff" * 9 + b"\1"}),
    *[
        ("the prelude lies within the input", "raw", Broken({"length": varint(length)}))
        for length in (0, 1, 8, 1 << 14, (1 << 64) - 1)
    ],
    ("the checksum is right", "raw", {"length": plus(1)}),
    ("the checksum is right", "raw", {"length": plus(-1)}),
    ("the checksum is right", "raw", {"checksum": plus(1)}),
    ("the checksum is right", "raw", {"dtype": b"\xff", "checksum": bytes(4)}),
    *[
        ("no bytes are left over", base, Broken({name: with_end(b"\0")}))
        for base, name in (
            *(("raw", "chunk 0 hash"), ("chunks", "chunk 2 hash"), ("empty", "models")),
            *(("constant body", "fields"), ("reference", "fields")),
        )
    ],
    *[
        ("the input does not end early", base, Broken({name: without_end(1)}))
        for base, name in (
            *(("raw", "chunk 0 hash"), ("chunks", "chunk 2 hash"), ("empty", "models")),
            *(("constant body", "fields"), ("reference", "fields")),
        )
    ],
    *[("features are known", "raw", Broken({"features": varint(1 << i)})) for i in (9, 10, 63)],
    *[
        (
            "the features are those of what the stream uses",
            base,
            Broken({"features": varint(features)}),
        )
        for base, wrong in (
            *(
                ("raw", (1, 2, 4, 8, 16, 32, 64, 128)),
                ("coded", (0, 3, 6, 10)),
                ("zeros", (0, 5)),
                ("scaled", (0, 9)),
            ),
            *(("plain", (2,)), ("constant body", (1, 8)), ("reference", (0, 9)), ("empty", (1, 8))),
        )
        for features in wrong
    ],
    *[("the dtype is known", "raw", Broken({"dtype": bytes([code])})) for code in (35, 255)],
    *[
        ("the tensor has less than 2^63 bytes", base, Broken({"shape": varint(1 << bits)}))
        for base, bits in (("raw", 63), ("constant body", 61), ("constant body", 63))
    ],
    *[("the body is known", "raw", Broken({"body": bytes([body])})) for body in (6, 255)],
    *[
        ("the name is UTF-8", "reference", Broken({"fields": bytes(16) + b"\2" + name}))
        for name in (b"\xff\xfe", b"a\x80", b"\xc0\x80")
    ],
    ("the name is UTF-8", "reference", {"fields": bytes(16) + b"\3\xed\xa0\x80"}),
    ("the input does not end early", "reference", {"fields": bytes(16) + b"\4abc"}),
    # Records.
    *[
        ("records have 2 to 4096 bytes", "records", Broken({"records 0 length": varint(length)}))
        for length in (0, 1, 4097, (1 << 64) - 1)
    ],
    *[
        ("there are 1 to 16 classes", "records", Broken({"records 0 classes": varint(count)}))
        for count in (0, 17)
    ],
    *[
        (
            "classes have models that are not scaled, or none",
            "records",
            Broken({"records 0 models": bytes([2, number, 0])}),
        )
        for number in (3, 9)
    ],
    (
        "classes have models that are not scaled, or none",
        "scaled",
        {
            "features": lambda value: varint(value[0] | page.RECORDS),
            "columns": lambda value: b"\1\2\1\1\2\0" + value,
        },
    ),
    *[
        ("runs fill the record", "records", Broken({"records 0 runs": runs}))
        for runs in (b"\0\0", b"\x0d\0", b"\2\0\x0b\1")
    ],
    ("classes exist", "records", {"records 0 runs": b"\x0c\3"}),
    ("each class has a byte", "records", {"records 0 runs": b"\2\0\x0a\1"}),
    *[
        ("there are 1 to 4096 record layouts", "records", Broken({"record layouts": varint(n)}))
        for n in (0, 4097)
    ],
    *[
        (
            "payload lengths of classes are multiples of 16",
            "records",
            Broken({f"chunk 0 class {of} length": plus(8)}),
        )
        for of in (0, 2)
    ],
    *[
        (
            "a class is raw or has a model",
            "records",
            Broken({f"chunk 0 class {of} storage": bytes([storage])}),
        )
        for of, storage in ((0, 2), (1, 255), (2, 1))
    ],
    ("padding is zero", "records", {"chunk 0 head padding": dirty}),
    ("padding is zero", "records", {"chunk 0 class 2": dirty}),
    ("no bytes are left over", "records", {"chunk 0 class 1 length": plus(16)}),
    ("the input does not end early", "records", {"chunk 0 class 2 length": plus(1 << 16)}),
    # The external body.
    *[
        ("the derivation is known", "external", Broken({"fields": at(0, code)}))
        for code in (3, 255)
    ],
    *[
        ("the file is in the folder or below", "external", Broken({"fields": named(name)}))
        for name in (
            *(b"", b"..", b"../x", b"/x", b"x/", b"a//x", b"./x", b"a/..", b"c:x", b"a\\x"),
            *(b"a\0x", b"a\x7fx", "a\x85x".encode(), b"x" * 4097),
        )
    ],
    ("the range ends below 2^64", "external", {"fields": starting(varint((1 << 64) - 3))}),
    *[
        (
            "float16 or bfloat16 is derived, from the first byte on",
            base,
            Broken({"fields": starting(b"\1")}),
        )
        for base in ("rounded", "cut off")
    ],
    *[
        (
            "float16 or bfloat16 is derived, from the first byte on",
            base,
            Broken({"dtype": bytes([code])}),
        )
        for base, code in (("rounded", 3), ("rounded", 34), ("cut off", 9))
    ],
    ("exceptions are inside the tensor", "rounded", {"fields": excepted(b"\1\3ab")}),
    ("exceptions are inside the tensor", "cut off", {"fields": excepted(b"\2\1ab\1cd")}),
    ("the input does not end early", "rounded", {"fields": excepted(b"\1\0a")}),
    ("the name is UTF-8", "external", {"fields": named(b"\xff")}),
    ("no bytes are left over", "external", {"fields": with_end(b"\0")}),
    # The chunked body.
    *[
        ("the chunk size is 2^12 to 2^26", "raw", Broken({"log2 chunk": bytes([log2])}))
        for log2 in (0, 11, 27, 64, 255)
    ],
    ("there are at most 4096 models", "raw", {"models": varint(4097)}),
    *[
        ("models exist", base, Broken({"chunk 0 storage": storage}))
        for base, storage in (
            *(("raw", b"\2"), ("coded", b"\3"), ("255 models", b"\1\1"), ("chunks", b"\xff")),
            ("255 models", b"\xff\xff"),
        )
    ],
    (
        "payload lengths are multiples of 16",
        "chunks",
        {"chunk 1 length": plus(8), "chunk 2 length": plus(-8)},
    ),
    (
        "payload lengths are multiples of 16",
        "chunks",
        {"chunk 2 original padding": without_end(1)},
    ),
    ("the input does not end early", "chunks", {"chunk 2 length": plus(16)}),
    ("no bytes are left over", "chunks", {"chunk 2 length": plus(-16)}),
    ("the input does not end early", "chunks", {"chunk 1 length": plus(1 << 31)}),
    # Models.
    ("bit 7 is reserved", "plain", {"model 0 flags": plus(128)}),
    *[
        ("the phase is below the element size", base, Broken({"model 0 flags": plus(phase << 2)}))
        for base, phase in (("plain", 2), ("plain", 7), ("bytes", 1), ("phase", 1), ("zeros", 4))
    ],
    ("a scaled model has phase 0", "scaled", {"model 0 flags": plus(1 << 2)}),
    *[
        (
            "the sign position is below the element's bits",
            base,
            Broken({"model 0 sign": bytes([sign])}),
        )
        for base, sign in (("plain", 16), ("bytes", 8), ("zeros", 32), ("zeros", 255))
    ],
    *[
        ("there are 1 to 16 planes", "plain", Broken({"model 0 planes": bytes([count])}))
        for count in (0, 17, 255)
    ],
    *[
        ("plane modes are known", "plain", Broken({SECOND + "mode": bytes([mode])}))
        for mode in (4, 255)
    ],
    *[
        ("widths are in range", base, Broken({name + "width": bytes([width])}))
        for base, name, width in (
            *(("plain", FIRST, 0), ("plain", FIRST, 17), ("plain", SECOND, 0)),
            *(("plain", SECOND, 65), ("coded", FIRST, 0), ("coded", FIRST, 65)),
        )
    ],
    *[
        (
            "the widths sum to the bits of the element",
            "plain",
            Broken({SECOND + "width": bytes([width])}),
        )
        for width in (1, 7, 9, 64)
    ],
    ("the widths sum to the bits of the element", "phase", {"model 0 flags": plus(1)}),
    *[
        (
            "with trailing zeros the last plane is raw",
            base,
            Broken({"model 0 flags": plus(32), "features": bytes([features])}),
        )
        for base, features in (("coded last", 6), ("constant last", 4))
    ],
    ("the value is below 2^width", "coded", {FIRST + "value": b"\2"}),
    ("the value is below 2^width", "constant last", {SECOND + "value": varint(512)}),
    # Frequency tables.
    ("the base is below 2^width", "coded", {SECOND + "base": varint(512)}),
    ("the base is below 2^width", "plain", {FIRST + "base": varint(256)}),
    ("there are 2 to 64 entries", "plain", table()),
    ("there are 2 to 64 entries", "plain", table(0, 255)),
    ("there are 2 to 64 entries", "plain", table(*(x for i in range(65) for x in (i % 64, 1)))),
    ("indices are distinct", "plain", table(0, 128, 0, 128)),
    ("indices are distinct", "plain", table(0, 100, 1, 100, 0, 56)),
    ("indices are below 64", "plain", table(0, 128, 64, 128)),
    ("indices are below 64", "plain", table(0, 128, 255, 128)),
    ("an escape has index 63", "plain", {FIRST + "entries": plus(128)}),
    ("indices are below 2^width", "narrow", {FIRST + "entries": plus(-128)}),
    ("indices are below 2^width", "narrow", table(0, 128, 16, 128)),
    (
        "indices are below 2^width",
        "narrow",
        {FIRST + "table": bytes([63, 128, 62, 128]), FIRST + "entries": b"\x82"},
    ),
    ("frequencies are 1 to 255", "plain", table(0, 128, 1, 0, 2, 128)),
    ("frequencies are 1 to 255", "plain", table(0, 0, 1, 0)),
    *[
        ("frequencies sum to 256", "plain", table(0, 128, 1, frequency))
        for frequency in (1, 127, 129, 255)
    ],
    ("frequencies sum to 256", "plain", table(0, 255, 1, 255, 2, 2)),
    # Scale offsets.
    *[
        ("columns are 1 to the number of elements", "scaled", Broken({"columns": varint(columns)}))
        for columns in (0, 301, (1 << 64) - 1)
    ],
    ("columns are 1 to the number of elements", "scaled, empty", {}),
    *[
        (
            "there is a list, and none that is reserved",
            "scaled",
            Broken({"axes": bytes([axes])}),
        )
        for axes in (0, 64, 67, 131, 255)
    ],
    *[("the shift is below 64", "scaled", Broken({"shift": bytes([i])})) for i in (64, 255)],
    ("the width is 0 to 8", "scaled", {"row offsets width": b"\x09"}),
    ("the width is 0 to 8", "scaled", {"column offsets width": b"\x09"}),
    ("no entry exceeds 127", "scaled", {"row offsets lowest": b"\x7f"}),
    ("no entry exceeds 127", "scaled", {"column offsets lowest": b"\x7f"}),
    ("all scaled models have the same element size", "two scaled sizes", {}),
    ("a list of width 0 has at most 65536 entries", "scaled, no offset bits", {}),
    *[
        ("flips are 0 or 1 and classes 0 to 15", "classes", Broken({f"{name} lowest": lowest}))
        for name, lowest in (
            *(("row flips", b"\1"), ("row flips", b"\xff"), ("column flips", b"\1")),
            *(("row classes", b"\x0d"), ("row classes", b"\xff"), ("column classes", b"\xff")),
        )
    ],
    ("every class has a table", "classes", {"column classes lowest": b"\3"}),
    ("every class has a table", "classes", {"row classes lowest": b"\1"}),
    # Context tables.
    *[
        ("there are 1 to 16 contexts", "contexts", Broken({SECOND + "contexts": bytes([count])}))
        for count in (0, 17, 255)
    ],
    ("the base is below 2^width", "contexts", {SECOND + "base": b"\4"}),
    *[
        ("there are 2 to 64 indices", "contexts", Broken({SECOND + "indices": bytes([count])}))
        for count in (0, 1, 65, 128, 129, 255)
    ],
    *[
        ("no more indices than symbols", "contexts", Broken({SECOND + "indices": bytes([count])}))
        for count in (5, 64, 128 + 6)
    ],
    ("frequencies sum to 256", "contexts", {SECOND + "frequencies": at(0, 0)}),
    *[
        (
            "contexts come from a coded plane above",
            base,
            Broken({f"model 0 plane {plane} source": bytes([source])}),
        )
        for base, plane, source in (
            *(("contexts", 1, 2), ("contexts", 1, 3), ("contexts", 1, 255)),
            *(("classes", 2, 2), ("classes", 2, 3)),
        )
    ],
    ("the first symbol is one of its plane", "contexts", {SECOND + "first": varint(256)}),
    ("the first symbol is one of its plane", "contexts", {SECOND + "first": varint(1 << 16)}),
    (
        "models with classes are scaled",
        "contexts",
        {SECOND + "source": b"\0", SECOND + "first": b""},
    ),
    ("at most two planes are coded in contexts", "three contexts", {}),
    # Payloads.
    ("no bytes are left over", "chunks", {"chunk 1 end": bytes(16)}),
    ("no bytes are left over", "chunks", {"chunk 0 end": bytes(16)}),
    ("no bytes are left over", "constant", {"chunk 0 end": bytes(16)}),
    ("no bytes are left over", "plain", {"chunk 0 end": bytes(16)}),
    ("the input does not end early", "chunks", {"chunk 0 constant": b""}),
    ("the input does not end early", "chunks", {"chunk 1 original": without_end(16)}),
    ("the input does not end early", "plain", {"payloads": b""}),
    ("the input does not end early", "plain", {"chunk 0 plane 0 stream bytes": plus(1 << 31)}),
    ("the input does not end early", "coded", {"chunk 0 plane 1 escapes": plus(700)}),
    *[
        ("no more trailing zeros than bits", base, Broken({"chunk 0 zeros": bytes([zeros])}))
        for base, zeros in (
            *(("zeros", 24), ("zeros", 25), ("zeros", 255)),
            ("zeros, sign at the top", 25),
        )
    ],
    ("states are from 256 on", "plain", {"chunk 0 plane 0 states": at(64, 0)}),
    ("states are from 256 on", "short", {"chunk 0 plane 0 states": at(127, 0)}),
    ("all states end at 256", "short", {"chunk 0 plane 0 states": at(63, 1)}),
    ("all states end at 256", "short", {"chunk 0 plane 0 states": at(127, 2)}),
    (
        "no bytes are left over",
        "plain",
        {"chunk 0 plane 0 stream": with_end(b"\0"), "chunk 0 plane 0 stream bytes": plus(1)},
    ),
    (
        "the input does not end early",
        "plain",
        {"chunk 0 plane 0 stream": without_end(1), "chunk 0 plane 0 stream bytes": plus(-1)},
    ),
    (
        "there are enough escaped values",
        "coded",
        {
            "chunk 0 plane 1 escaped": so_many(18, 9),
            "chunk 0 plane 1 escapes": plus(-1),
        },
    ),
    (
        "all escaped values are used",
        "coded",
        {
            "chunk 0 plane 1 escaped": so_many(20, 9),
            "chunk 0 plane 1 escapes": plus(1),
        },
    ),
    (
        "all escaped values are used",
        "plain",
        {
            "chunk 0 plane 0 escaped padding": b"\0\0\1".ljust(16, b"\0"),
            "chunk 0 plane 0 escapes": plus(1),
        },
    ),
    (
        "there are no more escapes than elements",
        "coded",
        {"chunk 0 plane 1 escapes": plus(750 - 18)},
    ),
    ("escaped values are below 2^width", "coded", {"chunk 0 plane 1 smallest": plus(412)}),
    ("escaped values are below 2^width", "narrow", {"chunk 0 plane 0 smallest": plus(15)}),
    *[
        ("differences have 1 to width bits", "coded", {f"chunk 0 plane 1 escape {name}": change})
        for name, change in (("width", b"\0"), ("width", b"\12"), ("reserved", b"\1"))
    ],
    ("unused bits are zero", "coded", {"chunk 0 plane 1 escaped": with_top_bit}),
    (
        "differences are as short as they can be",
        "narrow",
        {"chunk 0 plane 0 smallest": plus(-1), "chunk 0 plane 0 escaped": each_one_more(1205, 4)},
    ),
]
DERIVATIONS = {"external": page.SAME, "rounded": page.ROUNDED, "cut off": page.CUT_OFF}
UNSUPPORTED = {
    "the version is known",
    "features are known",
    "the dtype is known",
    "the body is known",
    "the derivation is known",
    "plane modes are known",
}


def broken(base: str, changes: Broken) -> bytes:
    """The base with fields changed, and the checksum of what it then is."""
    if base in DERIVATIONS:
        fields = writer.external_fields(b"abc", "n", "f", derivation=DERIVATIONS[base])
        dtype = 1 if base == "external" else 10
        return encode_body(
            page.EXTERNAL_BODY, fields, (3,), dtype=dtype, features=page.EXTERNAL, changes=changes
        )
    if base == "constant body":
        return encode_body(page.CONSTANT_BODY, b"abcd", (5, 7), dtype=11, changes=changes)
    if base == "reference":
        fields, features = writer.reference_fields(b"abc", b"other"), page.REFERENCE
        return encode_body(page.REFERENCE_BODY, fields, (3,), features=features, changes=changes)
    return encode(bases()[base], changes)


@pytest.mark.parametrize(
    ("rule", "base", "changes"),
    ILLEGAL,
    ids=[f"{rule}-{base}-{i}" for i, (rule, base, _) in enumerate(ILLEGAL)],
)
def test_illegal_streams(rule: str, base: str, changes: Broken) -> None:
    stream = broken(base, changes)
    unsupported = rule in UNSUPPORTED
    with pytest.raises(page.UnsupportedError if unsupported else page.CorruptError) as second:
        page.decode(stream, verify=False)
    assert str(second.value) == rule
    with pytest.raises(nz.UnsupportedVersionError if unsupported else nz.CorruptDataError):
        native(stream, verify=False)


def test_the_streams_that_are_broken_are_legal() -> None:
    illegal = {base for _, base, changes in ILLEGAL if not changes}
    for name, plan in bases().items():
        if name not in illegal:
            agree(encode(plan), plan.data)


def test_chunk_hashes() -> None:
    for base in ("raw", "constant", "chunks", "coded"):
        stream = broken(base, {"chunk 0 hash": plus(1)})
        assert native(stream, verify=False) == page.decode(stream, verify=False)
        with pytest.raises(page.CorruptError, match="hashes"):
            page.decode(stream)
        with pytest.raises(nz.CorruptDataError):
            native(stream)


def test_every_rule_was_broken() -> None:
    rules = set()
    for node in ast.walk(ast.parse(Path(page.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require":
            assert isinstance(node.args[1], ast.Constant)
            rules.add(node.args[1].value)
    elsewhere = {"the chunk hashes are right", "the original bytes are in the stream"}
    assert rules == {rule for rule, _, _ in ILLEGAL} | elsewhere


# --- damage -----------------------------------------------------------------------------------


@cache
def sound() -> list[bytes]:
    """Small streams, by the package and not."""
    small = [compressed(name, "max") for name in CONTENTS]
    small += [encoded(name) for name, plan in plans().items() if len(plan.data) < 5000]
    small += [encode(plan) for name, plan in bases().items()]
    return [stream for stream in small if len(stream) < 5000]


def outcome(decoder: Callable[[bytes], bytes], stream: bytes) -> bytes | None:
    """What a decoder makes of a stream, if it takes it."""
    try:
        return decoder(stream)
    except (ValueError, nz.UnsupportedVersionError):
        return None


@settings(max_examples=6 * settings().max_examples)
@given(st.data())
def test_the_decoders_agree_about_damage(data: st.DataObject) -> None:
    stream = bytearray(data.draw(st.sampled_from(sound())))
    length = page.Reader(bytes(stream[4:])).varint()
    prelude, anywhere = st.integers(5, length - 5), st.integers(0, len(stream) - 1)
    for place in data.draw(st.lists(st.one_of(prelude, anywhere), min_size=1, max_size=3)):
        stream[place] = data.draw(st.integers(0, 255))
    stream[length - 4 : length] = writer.checksum(bytes(stream[: length - 4]))
    damaged = bytes(stream)
    try:
        small = page.parse(damaged).nbytes < 1 << 20
    except ValueError:
        small = True
    if small:
        second = outcome(lambda stream: page.decode(stream, verify=False), damaged)
        assert outcome(lambda stream: native(stream, verify=False), damaged) == second
