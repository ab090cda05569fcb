"""Writes tensor streams by hand, as docs/format.md describes them or with chosen fields changed."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from random import Random
from typing import Final, TypeAlias

import xxhash

from tests.python import second_decoder as page
from tests.python.second_decoder import (
    Contexts,
    Model,
    OffsetList,
    Plane,
    Records,
    ScaleOffsets,
    Table,
)

Change: TypeAlias = bytes | Callable[[bytes], bytes]
"""The bytes of a field, or what makes them of those it would have had."""
Changes: TypeAlias = Mapping[str, Change]
NO_CHANGES: Final[Changes] = {}
NO_EXCEPTIONS: Final[Mapping[int, bytes]] = {}


@dataclass
class Plan:
    """What `encode` is to write.

    A storage is raw, constant, 2 + the number of a model, or that of records, which follow.
    """

    data: bytes = b""
    dtype: int = 1
    shape: tuple[int, ...] | None = None
    models: Sequence[Model] = ()
    storages: Sequence[int] = ()
    offsets: ScaleOffsets | None = None
    log2_chunk: int = 12
    most_zeros: int = 64
    records: Sequence[Records] = ()


@dataclass
class Fields:
    """Fields in storage order; `changes` replaces some of them, by name, as they are written."""

    changes: dict[str, Change]
    written: bytearray = field(default_factory=bytearray)

    def put(self, name: str, value: bytes) -> None:
        change = self.changes.pop(name, value)
        self.written += change(value) if callable(change) else change

    def number(self, name: str, value: int, nbytes: int = 1) -> None:
        self.put(name, value.to_bytes(nbytes, "little"))

    def align(self, name: str) -> None:
        self.put(f"{name} padding", bytes(-len(self.written) % 16))


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 128:
        encoded.append(value % 128 + 128)
        value //= 128
    encoded.append(value)
    return bytes(encoded)


def checksum(prelude: bytes) -> bytes:
    return (xxhash.xxh3_64_intdigest(prelude) % (1 << 32)).to_bytes(4, "little")


def fit_table(symbols: Sequence[int], width: int, base: int = 0, *, escape: bool = False) -> Table:
    """A table for these symbols, rarest first; those too far above the base are escaped."""
    counts = Counter((x - base) % (1 << width) for x in symbols)
    limit = 63 if escape else 64
    kept = {i: n for i, n in counts.items() if i < limit}
    escaped = counts.total() - sum(kept.values())
    assert escape or not escaped
    if escape:
        kept[page.ESCAPE] = escaped
    for spare in (0, 1):  # there are at least two entries
        if len(kept) < 2:
            kept.setdefault(spare, 0)
    total = max(1, counts.total())
    shares = {i: 1 + n * (256 - len(kept)) // total for i, n in kept.items()}
    rising = sorted(shares.items(), key=lambda entry: (entry[1], -entry[0]))
    index, frequency = rising.pop()
    return Table(base, escape, [*rising, (index, frequency + 256 - sum(shares.values()))])


def fit_contexts(plane: Plane, symbols: Sequence[int], contexts: Sequence[int]) -> Contexts:
    """Tables for these symbols in these contexts, over as many indices as the plane's own list."""
    assert plane.contexts
    fitted = plane.contexts
    listed = len(fitted.frequencies[0])
    ordinary = listed - fitted.escape
    counts = [[0] * listed for _ in fitted.frequencies]
    for x, context in zip(symbols, contexts, strict=True):
        index = (x - fitted.base) % (1 << plane.width)
        assert index < ordinary or fitted.escape
        counts[context][min(index, listed - 1)] += 1
    fitted.frequencies = []
    for table in counts:
        used = [j for j in range(listed) if table[j]]
        used = (used + [j for j in range(listed) if j not in used])[: max(2, len(used))]
        shares = [0] * listed
        for j in used:
            shares[j] = 1 + table[j] * (256 - len(used)) // max(1, sum(table))
        shares[used[0]] += 256 - sum(shares)
        if shares[used[0]] > 255:  # only with two indices
            shares[used[0]], shares[used[1]] = 255, 1
        fitted.frequencies.append(shares)
    return fitted


def take_apart(model: Model, x: int, offset: int, flip: int) -> int:
    """The element with its offset gone and its sign turned and moved."""
    top, p = 8 * model.size - 1, model.sign
    s, v = x >> top ^ flip, (x - offset) % (1 << top)
    return (v >> p << p + 1) + (s << p) + v % (1 << p)


def put_together(model: Model, y: int, offset: int, flip: int) -> int:
    """What `take_apart` made `y` of."""
    top, p = 8 * model.size - 1, model.sign
    v = (y >> p + 1 << p) + y % (1 << p)
    return ((y >> p) % 2 ^ flip) << top | (v + offset) % (1 << top)


def elements_of(model: Model, chunk: bytes) -> list[int]:
    """The chunk's elements, without its edge bytes."""
    n, size = max(0, len(chunk) - model.phase) // model.size, model.size
    starts = range(model.phase, model.phase + n * size, size)
    return [int.from_bytes(chunk[at : at + size], "little") for at in starts]


def line_of(plan: Plan, model: Model, element: int) -> tuple[int, int]:
    """Offset and flip of an element of the tensor."""
    if model.scaled and plan.offsets:
        return plan.offsets.of_element(element), plan.offsets.flip(element)
    return 0, 0


def contexts_of(
    plan: Plan, model: Model, chunk: int, number: int, columns: Sequence[Sequence[int]]
) -> list[int]:
    """The context of each element of the chunk, for a plane of the model."""
    contexts = model.planes[number].contexts
    if not contexts:
        return [0] * len(columns[0])
    if contexts.source != page.CLASSES:
        width = model.planes[contexts.source - 1].width
        return [contexts.of_symbol(x, width) for x in columns[contexts.source - 1]]
    first = (chunk << plan.log2_chunk) // model.size
    assert plan.offsets
    return [plan.offsets.class_of(first + i) for i in range(len(columns[0]))]


def fields_of(plan: Plan, model: Model, chunk: int) -> list[list[int]]:
    """The fields of the chunk's elements, plane by plane."""
    chunk_bytes = 1 << plan.log2_chunk
    start = chunk * chunk_bytes
    joined = []
    for i, x in enumerate(elements_of(model, plan.data[start : start + chunk_bytes])):
        joined.append(take_apart(model, x, *line_of(plan, model, start // model.size + i)))
    columns, low = [], 8 * model.size
    for plane in model.planes:
        low -= plane.width
        columns.append([(y >> low) % (1 << plane.width) for y in joined])
    return columns


def sub_block(values: Sequence[int], width: int) -> bytes:
    """Fields of a raw plane: whole byte planes, then a bit string."""
    packed = b"".join(bytes(x >> 8 * b & 255 for x in values) for b in range(width // 8))
    rest = width % 8
    bits = sum((x >> width - rest) << i * rest for i, x in enumerate(values))
    return packed + bits.to_bytes((len(values) * rest + 7) // 8, "little")


def trailing_zeros(values: Sequence[int], width: int, most: int, *, sign_is_last: bool) -> int:
    """How many bits above the sign, if that is the last, are zero in all of these fields."""
    union, skip = 0, int(sign_is_last)
    for x in values:
        union |= x >> skip
    free = width - skip
    return min(most, free if union == 0 else (union & -union).bit_length() - 1)


def code(
    symbols: Sequence[int], tables: Sequence[Table], contexts: Sequence[int], width: int
) -> tuple[bytes, bytes, list[int]]:
    """The states, the stream and the escaped values of a coded plane."""
    slots: list[dict[int, tuple[int, int]]] = []
    for table in tables:
        slots.append({})
        first = 0
        for index, frequency in table.entries:
            is_escape = table.escape and index == page.ESCAPE
            symbol = -1 if is_escape else (table.base + index) % (1 << width)
            slots[-1][symbol] = (frequency, first)
            first += frequency
    states, backwards = [256] * page.LANES, bytearray()
    for i in reversed(range(len(symbols))):
        table_slots = slots[contexts[i]]
        frequency, first = table_slots[symbols[i] if symbols[i] in table_slots else -1]
        x = states[i % page.LANES]
        if x >= 256 * frequency:
            backwards.append(x % 256)
            x //= 256
        states[i % page.LANES] = x // frequency * 256 + first + x % frequency
    escaped = [x for x, c in zip(symbols, contexts, strict=True) if x not in slots[c]]
    stored = bytes(x % 256 for x in states) + bytes(x // 256 for x in states)
    return stored, bytes(reversed(backwards)), escaped


def model_payload(plan: Plan, model: Model, chunk: int, out: Fields) -> None:
    where = f"chunk {chunk}"
    columns = fields_of(plan, model, chunk)
    chunk_bytes = 1 << plan.log2_chunk
    original = plan.data[chunk * chunk_bytes : (chunk + 1) * chunk_bytes]
    coded = {}
    for i in model.coded():
        plane = model.planes[i]
        tables = plane.contexts.tables() if plane.contexts else [plane.table or Table(0, False, [])]
        contexts = contexts_of(plan, model, chunk, i, columns)
        states, stream, escaped = code(columns[i], tables, contexts, plane.width)
        coded[i] = (states, stream, escaped)
        out.number(f"{where} plane {i} stream bytes", len(stream), 4)
        out.number(f"{where} plane {i} escapes", len(escaped), 4)
    n, last = len(columns[0]), len(model.planes) - 1
    starts = range(0, n, page.SUB_BLOCK)
    zeros = [0] * len(starts)
    if model.trailing_zeros:
        for b, at in enumerate(starts):
            block, width = columns[last][at : at + page.SUB_BLOCK], model.planes[last].width
            most, sign_is_last = plan.most_zeros, model.sign == 0
            z = trailing_zeros(block, width, most, sign_is_last=sign_is_last)
            zeros[b] = z
            kept = [x >> z + 1 << 1 | x & 1 if sign_is_last else x >> z for x in block]
            columns[last][at : at + page.SUB_BLOCK] = kept
        out.put(f"{where} zeros", bytes(zeros))
    inside = slice(model.phase, model.phase + n * model.size)
    out.put(f"{where} edge bytes", original[: inside.start] + original[inside.stop :])
    out.align(f"{where} head")
    for i, (states, _, _) in coded.items():
        out.put(f"{where} plane {i} states", states)
    for i in model.of_mode(page.RAW):
        for b, at in enumerate(starts):
            width = model.planes[i].width - (zeros[b] if i == last else 0)
            packed = sub_block(columns[i][at : at + page.SUB_BLOCK], width)
            out.put(f"{where} plane {i} sub-block {b}", packed)
        out.align(f"{where} plane {i}")
    for i, (_, stream, escaped) in coded.items():
        out.put(f"{where} plane {i} stream", stream)
        out.align(f"{where} plane {i} stream")
        if escaped:
            smallest = min(escaped)
            v = max((max(escaped) - smallest).bit_length(), 1)
            out.number(f"{where} plane {i} smallest", smallest, 2)
            out.number(f"{where} plane {i} escape width", v, 1)
            out.number(f"{where} plane {i} escape reserved", 0, 1)
            bits = sum(x - smallest << j * v for j, x in enumerate(escaped))
            differences = bits.to_bytes((len(escaped) * v + 7) // 8, "little")
            out.put(f"{where} plane {i} escaped", differences)
        out.align(f"{where} plane {i} escaped")


def records_payload(plan: Plan, records: Records, chunk: int, original: bytes, out: Fields) -> None:
    size, where = len(records.classes), f"chunk {chunk}"
    first = min(len(original), -(chunk << plan.log2_chunk) % size)
    last = len(original) - (len(original) - first) % size
    parts = []
    for of, model in enumerate(records.models):
        places = [k for k in range(size) if records.classes[k] == of]
        whole = range(first, last, size)
        data = bytes(original[at + k] for at in whole for k in places)
        storage = page.RAW_CHUNK if model is None else page.FIRST_MODEL + model
        inner = Plan(data, models=plan.models, storages=[storage], log2_chunk=26)
        part = payload(inner, 0, {})
        parts.append(part + bytes(-len(part) % 16))
    for of, part in enumerate(parts):
        out.number(f"{where} class {of} length", len(part), 4)
    for of, model in enumerate(records.models):
        out.number(f"{where} class {of} storage", model is not None)
    out.put(f"{where} edges", original[:first] + original[last:])
    out.align(f"{where} head")
    for of, part in enumerate(parts):
        out.put(f"{where} class {of}", part)


def payload(plan: Plan, chunk: int, changes: dict[str, Change]) -> bytes:
    out = Fields(changes)
    where, storage = f"chunk {chunk}", plan.storages[chunk]
    original = plan.data[chunk << plan.log2_chunk : (chunk + 1) << plan.log2_chunk]
    if storage == page.RAW_CHUNK:
        out.put(f"{where} original", original)
        if len(plan.storages) > 1:
            out.align(f"{where} original")
    elif storage == page.CONSTANT_CHUNK:
        assert original == (original[:16] * len(original))[: len(original)]
        out.put(f"{where} constant", original[:16].ljust(16, b"\0"))
    elif storage < page.FIRST_MODEL + len(plan.models):
        model_payload(plan, plan.models[storage - page.FIRST_MODEL], chunk, out)
    else:
        records = plan.records[storage - page.FIRST_MODEL - len(plan.models)]
        records_payload(plan, records, chunk, original, out)
    out.put(f"{where} end", b"")
    return bytes(out.written)


def put_model(out: Fields, model: Model, name: str) -> None:
    flags = model.log2_size | model.phase << 2 | model.trailing_zeros << 5 | model.scaled << 6
    out.number(f"{name} flags", flags)
    out.number(f"{name} sign", model.sign)
    out.number(f"{name} planes", len(model.planes))
    for i, plane in enumerate(model.planes):
        where = f"{name} plane {i}"
        out.number(f"{where} mode", plane.mode)
        out.number(f"{where} width", plane.width)
        if plane.mode == page.CONSTANT:
            out.put(f"{where} value", varint(plane.value))
        if plane.table:
            out.put(f"{where} base", varint(plane.table.base))
            out.number(f"{where} entries", len(plane.table.entries) | plane.table.escape << 7)
            out.put(f"{where} table", bytes(b for entry in plane.table.entries for b in entry))
        if plane.contexts:
            tables = plane.contexts.frequencies
            out.number(f"{where} source", plane.contexts.source)
            if plane.contexts.source != page.CLASSES:
                out.put(f"{where} first", varint(plane.contexts.first))
            out.number(f"{where} contexts", len(tables))
            out.put(f"{where} base", varint(plane.contexts.base))
            out.number(f"{where} indices", len(tables[0]) | plane.contexts.escape << 7)
            out.put(f"{where} frequencies", bytes(f for table in tables for f in table))


def put_offset_list(out: Fields, offsets: OffsetList, name: str) -> None:
    out.number(f"{name} lowest", offsets.lowest % 256)
    out.number(f"{name} width", offsets.width)
    out.put(f"{name} list", sub_block(offsets.excess, offsets.width))


def put_records(out: Fields, records: Records, name: str) -> None:
    out.put(f"{name} length", varint(len(records.classes)))
    out.put(f"{name} classes", varint(len(records.models)))
    numbers = [0 if model is None else model + 1 for model in records.models]
    out.put(f"{name} models", b"".join(map(varint, numbers)))
    runs = [(of, len([*run])) for of, run in groupby(records.classes)]
    out.put(f"{name} runs", b"".join(varint(length) + varint(of) for of, length in runs))


def put_chunked_body(out: Fields, plan: Plan, payloads: Sequence[bytes]) -> None:
    out.number("log2 chunk", plan.log2_chunk)
    out.put("models", varint(len(plan.models)))
    for i, model in enumerate(plan.models):
        put_model(out, model, f"model {i}")
    if plan.records:
        out.put("record layouts", varint(len(plan.records)))
    for i, records in enumerate(plan.records):
        put_records(out, records, f"records {i}")
    if plan.offsets:
        out.put("columns", varint(plan.offsets.columns))
        out.number("axes", plan.offsets.axes)
        out.number("shift", plan.offsets.shift)
        lists = {
            "row offsets": plan.offsets.by_row,
            "column offsets": plan.offsets.by_column,
            "row flips": plan.offsets.row_flips,
            "column flips": plan.offsets.column_flips,
            "row classes": plan.offsets.row_classes,
            "column classes": plan.offsets.column_classes,
        }
        for bit, (name, entries) in enumerate(lists.items()):
            if plan.offsets.axes >> bit & 1:
                put_offset_list(out, entries, name)
    if len(payloads) != 1:
        for i, stored in enumerate(payloads):
            out.number(f"chunk {i} length", len(stored), 4)
    for i, storage in enumerate(plan.storages):
        out.number(
            f"chunk {i} storage", storage, 2 if len(plan.models) + len(plan.records) > 254 else 1
        )
    chunk_bytes = 1 << plan.log2_chunk
    for i in range(len(payloads)):
        original = plan.data[i * chunk_bytes : (i + 1) * chunk_bytes]
        out.number(f"chunk {i} hash", page.chunk_hash(original), 8)


def features_of(plan: Plan) -> int:
    planes = [plane for model in plan.models for plane in model.planes]
    wide = any(plane.mode >= page.CODED and plane.width > 8 for plane in planes)
    flips = page.ROW_FLIPS | page.COLUMN_FLIPS
    zeros = any(model.trailing_zeros for model in plan.models)
    return (
        (page.SCALE_OFFSETS if plan.offsets else 0)
        | (page.WIDE_SYMBOLS if wide else 0)
        | (page.TRAILING_ZEROS if zeros else 0)
        | (page.CONTEXTS if any(plane.contexts for plane in planes) else 0)
        | (page.SIGN_FLIPS if plan.offsets and plan.offsets.axes & flips else 0)
        | (page.RECORDS if plan.records else 0)
    )


def put_head(out: Fields, features: int, dtype: int, shape: Sequence[int], body: int) -> None:
    out.put("features", varint(features))
    out.number("dtype", dtype)
    out.number("dimensions", len(shape))
    out.put("shape", b"".join(map(varint, shape)))
    out.number("body", body)


def prelude(rest: Fields) -> bytes:
    """The prelude, given the fields from the features on."""
    start = Fields(rest.changes)
    start.put("magic", page.MAGIC)
    start.number("version", page.VERSION)
    fixed = len(start.written) + len(rest.written) + 4
    length = next(n for n in range(fixed + 1, fixed + 11) if n == fixed + len(varint(n)))
    start.put("length", varint(length))
    start.put("rest", bytes(rest.written))
    start.put("checksum", checksum(bytes(start.written)))
    return bytes(start.written)


def encode(plan: Plan, changes: Changes = NO_CHANGES) -> bytes:
    """A stream with a chunked body; the checksum is that of what is written."""
    pending = dict(changes)
    shape = plan.shape
    if shape is None:
        shape = (len(plan.data) // page.ITEMSIZE[plan.dtype],)
    payloads = [payload(plan, i, pending) for i in range(len(plan.storages))]
    rest = Fields(pending)
    put_head(rest, features_of(plan), plan.dtype, shape, page.CHUNKED_BODY)
    put_chunked_body(rest, plan, payloads)
    out = Fields(pending, bytearray(prelude(rest)))
    if len(payloads) > 1 or any(s >= page.FIRST_MODEL for s in plan.storages):
        out.align("prelude")
    out.put("payloads", b"".join(payloads))
    out.put("end", b"")
    assert not pending, f"no such fields: {sorted(pending)}"
    return bytes(out.written)


def encode_body(
    body: int,
    fields: bytes,
    shape: Sequence[int],
    *,
    dtype: int = 1,
    features: int = 0,
    changes: Changes = NO_CHANGES,
) -> bytes:
    """A stream with a constant or reference body of these fields."""
    rest = Fields(dict(changes))
    put_head(rest, features, dtype, shape, body)
    rest.put("fields", fields)
    out = Fields(rest.changes, bytearray(prelude(rest)))
    out.put("end", b"")
    assert not rest.changes, f"no such fields: {sorted(rest.changes)}"
    return bytes(out.written)


def reference_fields(original: bytes, name: bytes) -> bytes:
    """The fields of a reference body."""
    return xxhash.xxh3_128_intdigest(original).to_bytes(16, "little") + varint(len(name)) + name


def external_fields(
    original: bytes,
    name: str,
    file: str,
    *,
    derivation: int = page.SAME,
    start: int = 0,
    exceptions: Mapping[int, bytes] = NO_EXCEPTIONS,
) -> bytes:
    """The fields of an external body."""
    fields = bytes([derivation]) + xxhash.xxh3_128_intdigest(original).to_bytes(16, "little")
    fields += varint(start)
    for text in (name.encode(), file.encode()):
        fields += varint(len(text)) + text
    if derivation != page.SAME:
        fields += varint(len(exceptions))
        at = 0
        for index in sorted(exceptions):
            fields += varint(index - at) + exceptions[index]
            at = index + 1
    return fields


def invent_field(plane: Plane, rng: Random) -> int:
    """A value that the plane can store; of a coded one near the base, or escaped."""
    if plane.mode == page.CONSTANT:
        return plane.value
    if plane.contexts:
        if plane.contexts.escape and rng.random() < 0.02:
            return rng.getrandbits(plane.width)
        index = rng.randrange(len(plane.contexts.frequencies[0]) - plane.contexts.escape)
        return (plane.contexts.base + index) % (1 << plane.width)
    if plane.table is None or (plane.table.escape and rng.random() < 0.02):
        return rng.getrandbits(plane.width)
    return (plane.table.base + min(62, int(rng.expovariate(0.2)))) % (1 << plane.width)


def invent_chunk(plan: Plan, model: Model, start: int, length: int, rng: Random) -> bytes:
    """Bytes that the model can store, with trailing zeros if it has them."""
    n = max(0, length - model.phase) // model.size
    chunk = bytearray(rng.randbytes(min(length, model.phase)))
    last, kept = model.planes[-1].width, int(model.sign == 0)
    for i in range(n):
        y = 0
        for plane in model.planes:
            y = y << plane.width | invent_field(plane, rng)
        if i % page.SUB_BLOCK == 0:
            z = rng.randrange(last - kept + 1) if model.trailing_zeros else 0
        y &= ~(((1 << z) - 1) << kept)
        line = line_of(plan, model, start // model.size + i)
        chunk += put_together(model, y, *line).to_bytes(model.size, "little")
    return bytes(chunk) + rng.randbytes(length - len(chunk))


def invent(plan: Plan, nbytes: int, rng: Random) -> Plan:
    """Fills in data for the plan's storages, and entries for tables that have none."""
    data, chunk_bytes = bytearray(), 1 << plan.log2_chunk
    for storage in plan.storages:
        length = min(chunk_bytes, nbytes - len(data))
        if storage == page.RAW_CHUNK:
            data += rng.randbytes(length)
        elif storage == page.CONSTANT_CHUNK:
            data += (rng.randbytes(16) * (length // 16 + 1))[:length]
        else:
            model = plan.models[storage - page.FIRST_MODEL]
            data += invent_chunk(plan, model, len(data), length, rng)
    assert len(data) == nbytes
    plan.data = bytes(data)
    for m, model in enumerate(plan.models):
        used = [i for i, s in enumerate(plan.storages) if s == page.FIRST_MODEL + m]
        columns = [fields_of(plan, model, chunk) for chunk in used]
        for i, plane in enumerate(model.planes):
            if plane.table and not plane.table.entries:
                symbols = [x for column in columns for x in column[i]]
                base, escape = plane.table.base, plane.table.escape
                plane.table = fit_table(symbols, plane.width, base, escape=escape)
            if plane.contexts and not any(plane.contexts.frequencies[0]):
                symbols = [x for column in columns for x in column[i]]
                chunks = zip(used, columns, strict=True)
                contexts = [
                    x for c, column in chunks for x in contexts_of(plan, model, c, i, column)
                ]
                plane.contexts = fit_contexts(plane, symbols, contexts)
    return plan
