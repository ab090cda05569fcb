"""A second decoder of the tensor stream, written from docs/format.md alone.

It shares no code with the package and takes no shortcuts, so that the tests can tell whether the
page is complete and the package does what it says. It says why it rejects a stream, and is slow.
"""

import math
from dataclasses import dataclass, field
from typing import Final

import xxhash

MAGIC, VERSION = b"\x89NZ", 1
# Features:
SCALE_OFFSETS, WIDE_SYMBOLS, TRAILING_ZEROS, REFERENCE = (1 << bit for bit in range(4))
BASE, CONTEXTS, SIGN_FLIPS, EXTERNAL, RECORDS = (1 << bit for bit in range(4, 9))
# Bytes per element, by dtype code: bool and integers, floats, what has one byte, bcomplex32.
ITEMSIZE: Final = (1, 1, 1, 2, 2, 4, 4, 8, 8, 2, 2, 4, 8, 4, 8, 16, *(1,) * 18, 4)
CHUNKED_BODY, CONSTANT_BODY, REFERENCE_BODY, DELTA_BODY, BASE_BODY, EXTERNAL_BODY = range(6)
SAME, ROUNDED, CUT_OFF = range(3)  # derivations
RAW_CHUNK, CONSTANT_CHUNK, FIRST_MODEL = range(3)  # storages
RAW, CONSTANT, CODED, IN_CONTEXTS = range(4)  # plane modes
CLASSES = 0  # source of contexts
ROWS, COLUMNS, ROW_FLIPS, COLUMN_FLIPS, ROW_CLASSES, COLUMN_CLASSES = (1 << i for i in range(6))
SUB_BLOCK, LANES, ESCAPE = 4096, 64, 63


class CorruptError(ValueError):
    """The stream breaks a rule of the page."""


class UnsupportedError(ValueError):
    """The stream uses what the page says is unsupported."""


def require(legal: bool, rule: str, error: type[ValueError] = CorruptError) -> None:
    if not legal:
        raise error(rule)


class Reader:
    """Takes fields off the front of some bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        require(count <= len(self.data) - self.at, "the input does not end early")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, nbytes: int) -> int:
        return int.from_bytes(self.take(nbytes), "little")

    def varint(self) -> int:
        groups = [self.number(1)]
        while groups[-1] >= 128:
            require(len(groups) < 10, "a varint is below 2^64")
            groups.append(self.number(1))
        require(len(groups) == 1 or groups[-1] > 0, "a varint is as short as it can be")
        value = sum((group & 127) << 7 * i for i, group in enumerate(groups))
        require(value < 1 << 64, "a varint is below 2^64")
        return value

    def sub_block(self, count: int, width: int) -> list[int]:
        """Fields of a raw plane: byte planes, then a bit string of what is left of each field."""
        byte_planes = [self.take(count) for _ in range(width // 8)]
        low, rest = width // 8 * 8, width % 8
        bits = self.number((count * rest + 7) // 8)
        require(bits >> count * rest == 0, "unused bits are zero")
        fields = [(bits >> i * rest & (1 << rest) - 1) << low for i in range(count)]
        for b, byte_plane in enumerate(byte_planes):
            fields = [x | byte << 8 * b for x, byte in zip(fields, byte_plane, strict=True)]
        return fields

    def escaped_values(self, count: int, width: int) -> list[int]:
        """The smallest value, bits per difference, then a bit string of differences."""
        smallest, v, reserved = self.number(2), self.number(1), self.number(1)
        require(1 <= v <= width and reserved == 0, "differences have 1 to width bits")
        bits = self.number((count * v + 7) // 8)
        require(bits >> count * v == 0, "unused bits are zero")
        differences = [bits >> i * v & (1 << v) - 1 for i in range(count)]
        needed = max(max(differences).bit_length(), 1)
        require(min(differences) == 0 and needed == v, "differences are as short as they can be")
        return [smallest + difference for difference in differences]

    def align(self) -> None:
        """Skips zero bytes up to a multiple of 16."""
        require(not any(self.take(-self.at % 16)), "padding is zero")

    def finish(self) -> None:
        require(self.at == len(self.data), "no bytes are left over")


@dataclass
class Table:
    """Frequencies of the symbols of a coded plane; index 63 is the escape if there is one."""

    base: int
    escape: bool
    entries: list[tuple[int, int]]


@dataclass
class Contexts:
    """Tables of a plane coded in contexts: the frequencies of each index, the escape last."""

    source: int
    first: int
    base: int
    escape: bool
    frequencies: list[list[int]]

    def tables(self) -> list[Table]:
        """Tables whose entries are in the order of their slots."""
        found = []
        for table in self.frequencies:
            order = sorted(range(len(table)), key=lambda j: (-table[j], j))
            last = len(table) - 1 if self.escape else -1
            entries = [(ESCAPE if j == last else j, table[j]) for j in order if table[j]]
            found.append(Table(self.base, self.escape, entries))
        return found

    def of_symbol(self, x: int, width: int) -> int:
        """The context that the symbol of another plane, of that width, makes."""
        above = (x - self.first) % (1 << width)
        above -= 1 << width if above >> width - 1 else 0
        return min(max(above, 0), len(self.frequencies) - 1)


@dataclass
class Plane:
    mode: int
    width: int
    value: int = 0
    table: Table | None = None
    contexts: Contexts | None = None


@dataclass
class Model:
    """How the elements of a chunk are taken apart."""

    log2_size: int
    planes: list[Plane]
    sign: int
    phase: int = 0
    trailing_zeros: bool = False
    scaled: bool = False

    @property
    def size(self) -> int:
        return 1 << self.log2_size

    def of_mode(self, *modes: int) -> list[int]:
        return [i for i, plane in enumerate(self.planes) if plane.mode in modes]

    def coded(self) -> list[int]:
        return self.of_mode(CODED, IN_CONTEXTS)


@dataclass
class Records:
    """The class of each byte of a record, and the model of each class, if it has one."""

    classes: list[int]
    models: list[int | None]


@dataclass
class OffsetList:
    """Offsets, flips or classes: the lowest one, and by how much each exceeds it."""

    lowest: int = 0
    width: int = 0
    excess: list[int] = field(default_factory=list)

    def __getitem__(self, i: int) -> int:
        return self.lowest + (self.excess[i] if self.excess else 0)


@dataclass
class ScaleOffsets:
    """By which powers of two the rows and columns differ, whose signs are turned, their classes."""

    columns: int
    axes: int
    shift: int
    by_row: OffsetList = field(default_factory=OffsetList)
    by_column: OffsetList = field(default_factory=OffsetList)
    row_flips: OffsetList = field(default_factory=OffsetList)
    column_flips: OffsetList = field(default_factory=OffsetList)
    row_classes: OffsetList = field(default_factory=OffsetList)
    column_classes: OffsetList = field(default_factory=OffsetList)

    def of_element(self, i: int) -> int:
        """What was subtracted from the magnitude of element `i` of the tensor."""
        row, column = divmod(i, self.columns)
        return (self.by_row[row] + self.by_column[column]) << self.shift

    def flip(self, i: int) -> int:
        """Whether the sign of element `i` was turned."""
        row, column = divmod(i, self.columns)
        return self.row_flips[row] ^ self.column_flips[column]

    def class_of(self, i: int) -> int:
        row, column = divmod(i, self.columns)
        return self.row_classes[row] + self.column_classes[column]

    def largest_class(self) -> int:
        lists = (self.row_classes, self.column_classes)
        return sum(entries.lowest + max(entries.excess, default=0) for entries in lists)


@dataclass
class Stream:
    """A tensor stream whose chunks are not yet decoded."""

    features: int
    dtype: int
    shape: list[int]
    body: int
    element: bytes = b""
    original_hash: int = 0
    name: str = ""
    file: str = ""
    derivation: int = 0
    start: int = 0
    exceptions: dict[int, bytes] = field(default_factory=dict)
    chunk_bytes: int = 0
    models: list[Model] = field(default_factory=list)
    records: list[Records] = field(default_factory=list)
    delta: object = None
    offsets: ScaleOffsets | None = None
    storages: list[int] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return ITEMSIZE[self.dtype] * math.prod(self.shape)


def read_table(reader: Reader, width: int) -> Table:
    base, head = reader.varint(), reader.number(1)
    require(base < 1 << width, "the base is below 2^width")
    require(2 <= head & 127 <= 64, "there are 2 to 64 entries")
    entries = [(reader.number(1), reader.number(1)) for _ in range(head & 127)]
    table = Table(base, head >= 128, entries)
    indices = {index for index, _ in table.entries}
    require(len(indices) == len(table.entries), "indices are distinct")
    require(max(indices) < 64, "indices are below 64")
    require(ESCAPE in indices or not table.escape, "an escape has index 63")
    ordinary = indices - {ESCAPE} if table.escape else indices
    require(max(ordinary) < 1 << width, "indices are below 2^width")
    require(all(f > 0 for _, f in table.entries), "frequencies are 1 to 255")
    require(sum(f for _, f in table.entries) == 256, "frequencies sum to 256")
    return table


def read_contexts(reader: Reader, width: int, above: list[Plane]) -> Contexts:
    source = reader.number(1)
    first = reader.varint() if source != CLASSES else 0
    count, base, head = reader.number(1), reader.varint(), reader.number(1)
    require(1 <= count <= 16, "there are 1 to 16 contexts")
    require(base < 1 << width, "the base is below 2^width")
    require(2 <= head & 127 <= 64, "there are 2 to 64 indices")
    ordinary = (head & 127) - (head >> 7)
    require(ordinary <= 1 << width, "no more indices than symbols")
    frequencies = [list(reader.take(head & 127)) for _ in range(count)]
    require(all(sum(table) == 256 for table in frequencies), "frequencies sum to 256")
    if source != CLASSES:
        is_coded = source <= len(above) and above[source - 1].mode in (CODED, IN_CONTEXTS)
        require(is_coded, "contexts come from a coded plane above")
        require(first < 1 << above[source - 1].width, "the first symbol is one of its plane")
    return Contexts(source, first, base, head >= 128, frequencies)


def read_model(reader: Reader) -> Model:
    flags, sign, count = reader.number(1), reader.number(1), reader.number(1)
    require(flags < 128, "bit 7 is reserved")
    model = Model(flags & 3, [], sign, flags >> 2 & 7, bool(flags & 32), bool(flags & 64))
    require(model.phase < model.size, "the phase is below the element size")
    require(model.phase == 0 or not model.scaled, "a scaled model has phase 0")
    require(sign < 8 * model.size, "the sign position is below the element's bits")
    require(1 <= count <= 16, "there are 1 to 16 planes")
    for _ in range(count):
        plane = Plane(reader.number(1), reader.number(1))
        require(plane.mode <= IN_CONTEXTS, "plane modes are known", UnsupportedError)
        require(1 <= plane.width <= (16 if plane.mode >= CODED else 64), "widths are in range")
        if plane.mode == CONSTANT:
            plane.value = reader.varint()
            require(plane.value < 1 << plane.width, "the value is below 2^width")
        elif plane.mode == CODED:
            plane.table = read_table(reader, plane.width)
        elif plane.mode == IN_CONTEXTS:
            plane.contexts = read_contexts(reader, plane.width, model.planes)
            by_class = plane.contexts.source == CLASSES
            require(model.scaled or not by_class, "models with classes are scaled")
        model.planes.append(plane)
    require(len(model.of_mode(IN_CONTEXTS)) <= 2, "at most two planes are coded in contexts")
    bits = sum(plane.width for plane in model.planes)
    require(bits == 8 * model.size, "the widths sum to the bits of the element")
    zeros_fit = not model.trailing_zeros or model.planes[-1].mode == RAW
    require(zeros_fit, "with trailing zeros the last plane is raw")
    return model


def read_scale_offsets(reader: Reader, elements: int) -> ScaleOffsets:
    columns, axes, shift = reader.varint(), reader.number(1), reader.number(1)
    require(1 <= columns <= elements, "columns are 1 to the number of elements")
    require(1 <= axes <= 63, "there is a list, and none that is reserved")
    require(shift < 64, "the shift is below 64")
    lists = []
    for bit, largest in enumerate((127, 127, 1, 1, 15, 15)):
        count = columns if bit % 2 else -(-elements // columns)
        if not axes >> bit & 1:
            lists.append(OffsetList())
            continue
        lowest, width = int.from_bytes(reader.take(1), signed=True), reader.number(1)
        require(width <= 8, "the width is 0 to 8")
        require(width > 0 or count <= 65536, "a list of width 0 has at most 65536 entries")
        excess = reader.sub_block(count, width)
        require(lowest + max(excess) <= 127, "no entry exceeds 127")
        in_range = bit < 2 or 0 <= lowest + min(excess) <= lowest + max(excess) <= largest
        require(in_range, "flips are 0 or 1 and classes 0 to 15")
        lists.append(OffsetList(lowest, width, excess))
    return ScaleOffsets(columns, axes, shift, *lists)


def read_records(reader: Reader, models: list[Model]) -> Records:
    length, count = reader.varint(), reader.varint()
    require(2 <= length <= 4096, "records have 2 to 4096 bytes")
    require(1 <= count <= 16, "there are 1 to 16 classes")
    numbers = [reader.varint() for _ in range(count)]
    usable = [i for i, model in enumerate(models, 1) if not model.scaled]
    require({*numbers} <= {0, *usable}, "classes have models that are not scaled, or none")
    classes: list[int] = []
    while len(classes) < length:
        run, of = reader.varint(), reader.varint()
        require(1 <= run <= length - len(classes), "runs fill the record")
        require(of < count, "classes exist")
        classes += [of] * run
    require({*classes} == {*range(count)}, "each class has a byte")
    return Records(classes, [number - 1 if number else None for number in numbers])


def read_chunked_body(reader: Reader, stream: Stream) -> list[int]:
    """Returns the payload lengths, none if there is one chunk."""
    log2_chunk, count = reader.number(1), reader.varint()
    require(12 <= log2_chunk <= 26, "the chunk size is 2^12 to 2^26")
    stream.chunk_bytes = 1 << log2_chunk
    require(count <= 4096, "there are at most 4096 models")
    stream.models = [read_model(reader) for _ in range(count)]
    if stream.features & RECORDS:
        found = reader.varint()
        require(1 <= found <= 4096, "there are 1 to 4096 record layouts")
        stream.records = [read_records(reader, stream.models) for _ in range(found)]
        count += found
    scaled = {model.size for model in stream.models if model.scaled}
    require(len(scaled) <= 1, "all scaled models have the same element size")
    for size in scaled:
        stream.offsets = read_scale_offsets(reader, stream.nbytes // size)
        contexts = [plane.contexts for model in stream.models for plane in model.planes]
        by_class = [len(c.frequencies) for c in contexts if c and c.source == CLASSES]
        enough = stream.offsets.largest_class() < min(by_class, default=99)
        require(enough, "every class has a table")
    chunks = -(-stream.nbytes // stream.chunk_bytes)
    lengths = [reader.number(4) for _ in range(chunks if chunks > 1 else 0)]
    require(all(length % 16 == 0 for length in lengths), "payload lengths are multiples of 16")
    stream.storages = [reader.number(2 if count > 254 else 1) for _ in range(chunks)]
    require(all(s < FIRST_MODEL + count for s in stream.storages), "models exist")
    stream.hashes = [reader.number(8) for _ in range(chunks)]
    return lengths


def read_name(reader: Reader) -> str:
    name = reader.take(reader.varint())
    require(name.decode(errors="replace").encode() == name, "the name is UTF-8")
    return name.decode()


def read_external_body(reader: Reader, stream: Stream) -> None:
    stream.derivation = reader.number(1)
    require(stream.derivation <= CUT_OFF, "the derivation is known", UnsupportedError)
    stream.original_hash, stream.start = reader.number(16), reader.varint()
    stream.name, stream.file = read_name(reader), read_name(reader)
    parts, control = stream.file.split("/"), [*range(32), *range(127, 160)]
    inside = not {"", ".", ".."} & {*parts} and not {":", "\\"} & {*stream.file}
    inside &= len(stream.file.encode()) <= 4096 and not {*control} & {*map(ord, stream.file)}
    require(inside, "the file is in the folder or below")
    require(stream.start + stream.nbytes < 1 << 64, "the range ends below 2^64")
    if stream.derivation == SAME:
        return
    narrow = stream.dtype in ((9, 10) if stream.derivation == ROUNDED else (10,))
    require(narrow and stream.start == 0, "float16 or bfloat16 is derived, from the first byte on")
    at = 0
    for _ in range(reader.varint()):
        at += reader.varint()
        require(at < stream.nbytes // 2, "exceptions are inside the tensor")
        stream.exceptions[at] = reader.take(2)
        at += 1


def parse(data: bytes) -> Stream:
    """Takes a stream apart without decoding its chunks."""
    whole = Reader(data)
    require(whole.take(3) == MAGIC, "the magic is there")
    require(whole.number(1) == VERSION, "the version is known", UnsupportedError)
    length = whole.varint()
    require(whole.at + 4 <= length <= len(data), "the prelude lies within the input")
    reader = Reader(data[: length - 4])
    checksum = xxhash.xxh3_64_intdigest(reader.data) % (1 << 32)
    require(
        checksum == int.from_bytes(data[length - 4 : length], "little"), "the checksum is right"
    )

    reader.at, whole.at = whole.at, length
    features, dtype = reader.varint(), reader.number(1)
    require(features < 2 * RECORDS, "features are known", UnsupportedError)
    require(dtype < len(ITEMSIZE), "the dtype is known", UnsupportedError)
    shape = [reader.varint() for _ in range(reader.number(1))]
    stream = Stream(features, dtype, shape, reader.number(1))
    require(stream.nbytes < 1 << 63, "the tensor has less than 2^63 bytes")
    require(stream.body <= EXTERNAL_BODY, "the body is known", UnsupportedError)
    lengths = read_chunked_body(reader, stream) if stream.body == CHUNKED_BODY else []
    if stream.body == CONSTANT_BODY:
        stream.element = reader.take(ITEMSIZE[dtype])
    elif stream.body in (DELTA_BODY, BASE_BODY):
        from tests.python.second_delta import read_delta_body

        stream.original_hash = reader.number(16)
        lengths = read_delta_body(reader, stream) if stream.body == DELTA_BODY else []
    elif stream.body == REFERENCE_BODY:
        stream.original_hash = reader.number(16)
        stream.name = read_name(reader)
    elif stream.body == EXTERNAL_BODY:
        read_external_body(reader, stream)
    reader.finish()

    wide = any(p.mode >= CODED and p.width > 8 for m in stream.models for p in m.planes)
    flips = stream.offsets is not None and stream.offsets.axes & (ROW_FLIPS | COLUMN_FLIPS)
    used = SCALE_OFFSETS * (stream.offsets is not None) + WIDE_SYMBOLS * wide
    used += TRAILING_ZEROS * any(model.trailing_zeros for model in stream.models)
    used += REFERENCE * (stream.body == REFERENCE_BODY)
    used += CONTEXTS * any(model.of_mode(IN_CONTEXTS) for model in stream.models)
    used += SIGN_FLIPS * bool(flips)
    used += BASE * (stream.body in (DELTA_BODY, BASE_BODY))
    used += RECORDS * bool(stream.records) + EXTERNAL * (stream.body == EXTERNAL_BODY)
    require(features == used, "the features are those of what the stream uses")
    modelled = any(s >= FIRST_MODEL for s in stream.storages) and stream.body == CHUNKED_BODY
    if len(stream.storages) > 1 or modelled:
        whole.align()
    if len(stream.storages) == 1:
        lengths = [len(data) - whole.at]
    stream.payloads = [whole.take(n) for n in lengths]
    whole.finish()
    return stream


def decode_plane(
    width: int,
    tables: list[Table],
    contexts: list[int],
    states: list[int],
    code: Reader,
    escaped: list[int],
) -> list[int]:
    """The symbols, each with the table of its context."""
    slots: list[list[tuple[int, int, int]]] = []
    for table in tables:
        slots.append([])
        for index, frequency in table.entries:
            slots[-1] += [(index, frequency, len(slots[-1]))] * frequency
    base, symbols = tables[0].base, []
    escape = ESCAPE if tables[0].escape else -1
    require(max(escaped, default=0) < 1 << width, "escaped values are below 2^width")
    for i, context in enumerate(contexts):
        x = states[i % LANES]
        index, frequency, first = slots[context][x % 256]
        x = frequency * (x // 256) + x % 256 - first
        if x < 256:
            x = 256 * x + code.number(1)
        states[i % LANES] = x
        require(index != escape or len(escaped) > 0, "there are enough escaped values")
        symbols.append(escaped.pop(0) if index == escape else (base + index) % (1 << width))
    code.finish()
    require(not escaped, "all escaped values are used")
    require(states == [256] * LANES, "all states end at 256")
    return symbols


def contexts_of(
    plane: Plane, model: Model, columns: dict[int, list[int]], classes: list[int]
) -> list[int]:
    """The context of each element, given the symbols of the planes above."""
    if not plane.contexts:
        return [0] * len(classes)
    source = plane.contexts.source - 1
    if source < 0:
        return classes
    width = model.planes[source].width
    return [plane.contexts.of_symbol(x, width) for x in columns[source]]


def decode_records_chunk(stream: Stream, records: Records, chunk: int, length: int) -> bytes:
    reader, size = Reader(stream.payloads[chunk]), len(records.classes)
    lengths = [reader.number(4) for _ in records.models]
    storages = [reader.number(1) for _ in records.models]
    first = min(length, -chunk * stream.chunk_bytes % size)
    n = (length - first) // size
    before, after = reader.take(first), reader.take(length - first - n * size)
    reader.align()
    body = bytearray(n * size)
    for of, (model, stored, storage) in enumerate(
        zip(records.models, lengths, storages, strict=True)
    ):
        places = [k for k, other in enumerate(records.classes) if other == of]
        at = [record * size + k for record in range(n) for k in places]
        require(stored % 16 == 0, "payload lengths of classes are multiples of 16")
        require(storage <= (model is not None), "a class is raw or has a model")
        part = reader.take(stored)
        if storage and model is not None:
            original = decode_model_payload(stream, stream.models[model], 0, part, len(at))
        else:
            raw = Reader(part)
            original = raw.take(len(at))
            raw.align()
            raw.finish()
        for place, byte in zip(at, original, strict=True):
            body[place] = byte
    reader.finish()
    return before + bytes(body) + after


def decode_model_chunk(stream: Stream, model: Model, chunk: int, length: int) -> bytes:
    first = chunk * stream.chunk_bytes // model.size
    return decode_model_payload(stream, model, first, stream.payloads[chunk], length)


def decode_model_payload(
    stream: Stream, model: Model, first: int, payload: bytes, length: int
) -> bytes:
    reader = Reader(payload)
    n = max(0, length - model.phase) // model.size
    counts = [min(SUB_BLOCK, n - at) for at in range(0, n, SUB_BLOCK)]
    offsets = stream.offsets if model.scaled else None
    classes = [offsets.class_of(first + i) if offsets else 0 for i in range(n)]
    coded, last = model.coded(), len(model.planes) - 1
    sizes = [(reader.number(4), reader.number(4)) for _ in coded]
    zeros = reader.take(len(counts)) if model.trailing_zeros else bytes(len(counts))
    before = reader.take(min(length, model.phase))
    after = reader.take(length - len(before) - n * model.size)
    reader.align()
    low_and_high = [(reader.take(LANES), reader.take(LANES)) for _ in coded]
    columns = {i: [model.planes[i].value] * n for i in model.of_mode(CONSTANT)}
    for i in model.of_mode(RAW):
        columns[i], width = [], model.planes[i].width
        for count, z in zip(counts, zeros if i == last else bytes(len(zeros)), strict=True):
            kept = 1 if z and model.sign == 0 else 0  # the sign, below the zeros
            require(z + kept <= width, "no more trailing zeros than bits")
            for stored in reader.sub_block(count, width - z):
                columns[i].append(stored >> kept << z + kept | stored & kept)
        reader.align()
    for i, (stream_bytes, escapes), (low, high) in zip(coded, sizes, low_and_high, strict=True):
        states = [a | b << 8 for a, b in zip(low, high, strict=True)]
        require(min(states) >= 256, "states are from 256 on")
        code = Reader(reader.take(stream_bytes))
        reader.align()
        plane = model.planes[i]
        require(escapes <= n, "there are no more escapes than elements")
        escaped = reader.escaped_values(escapes, plane.width) if escapes else []
        reader.align()
        tables = plane.contexts.tables() if plane.contexts else [plane.table or Table(0, False, [])]
        contexts = contexts_of(plane, model, columns, classes)
        columns[i] = decode_plane(plane.width, tables, contexts, states, code, escaped)
    reader.finish()

    joined = [0] * n
    for i, plane in enumerate(model.planes):
        joined = [y << plane.width | x for y, x in zip(joined, columns[i], strict=True)]
    p, top, elements = model.sign, 8 * model.size - 1, bytearray()
    for i, y in enumerate(joined):
        v = y >> p + 1 << p | y & (1 << p) - 1
        s = y >> p & 1
        if offsets:
            v = (v + offsets.of_element(first + i)) % (1 << top)
            s ^= offsets.flip(first + i)
        elements += (s << top | v).to_bytes(model.size, "little")
    return before + bytes(elements) + after


def decode_chunk(stream: Stream, chunk: int) -> bytes:
    """The original bytes of a chunk, their hash not yet looked at."""
    storage = stream.storages[chunk]
    length = min(stream.chunk_bytes, stream.nbytes - chunk * stream.chunk_bytes)
    if storage >= FIRST_MODEL + len(stream.models):
        records = stream.records[storage - FIRST_MODEL - len(stream.models)]
        return decode_records_chunk(stream, records, chunk, length)
    if storage >= FIRST_MODEL:
        return decode_model_chunk(stream, stream.models[storage - FIRST_MODEL], chunk, length)
    return decode_plain_chunk(stream, chunk)


def decode_plain_chunk(stream: Stream, chunk: int) -> bytes:
    """The original bytes of a raw or constant chunk."""
    storage, reader = stream.storages[chunk], Reader(stream.payloads[chunk])
    length = min(stream.chunk_bytes, stream.nbytes - chunk * stream.chunk_bytes)
    original = reader.take(16 if storage == CONSTANT_CHUNK else length)
    if len(stream.storages) > 1:
        reader.align()
    reader.finish()
    return original if storage == RAW_CHUNK else (original * (length // 16 + 1))[:length]


def chunk_hash(original: bytes) -> int:
    """The hash that guards the original bytes of a chunk."""
    products, total = 0, len(original)
    for i in range(-(-len(original) // 8)):
        w = int.from_bytes(original[8 * i : 8 * i + 8], "little")
        a = (w % (1 << 32) + 0x9E3779B9 + i * 0xC2B2AE35) % (1 << 32)
        b = ((w >> 32) + 0x85EBCA6B + i * 0x27D4EB2F) % (1 << 32)
        products += a * b
        total += a + (b << 32)
    return (products + 0x9FB21C641E98DF25 * total) % (1 << 64)


def decode(data: bytes, *, verify: bool = True) -> bytes:
    """The original bytes of a stream that needs no other tensor."""
    stream = parse(data)
    is_whole = stream.body in (CHUNKED_BODY, CONSTANT_BODY)
    require(is_whole, "the original bytes are in the stream")
    if stream.body == CONSTANT_BODY:
        return stream.element * (stream.nbytes // len(stream.element))
    chunks = [decode_chunk(stream, i) for i in range(len(stream.storages))]
    hashes = [chunk_hash(original) for original in chunks] if verify else stream.hashes
    require(hashes == stream.hashes, "the chunk hashes are right")
    return b"".join(chunks)
