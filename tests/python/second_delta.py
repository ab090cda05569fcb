"""Deltas for the second decoder, from docs/format.md alone."""

import math
from dataclasses import dataclass, field

import xxhash

from tests.python.second_decoder import (
    ESCAPE,
    FIRST_MODEL,
    ITEMSIZE,
    LANES,
    Reader,
    Stream,
    UnsupportedError,
    chunk_hash,
    decode_plain_chunk,
    parse,
    require,
)

DELTA_BODY, BASE_BODY = 3, 4
CONTEXT, DIFFERENCE, INTEGER = range(3)  # relations
MOST_ONES = 512


class BaseMismatch(ValueError):
    """The base is not the one that the stream was made from."""


@dataclass
class Class:
    """Elements whose base elements are alike."""

    first_key: int
    relation: int
    raw_bits: int
    b: int = 0
    frequencies: list[int] = field(default_factory=list)
    escape: int = 0

    def slots(self) -> list[tuple[int, int, int]]:
        """Index, frequency and first slot of the entry that each slot belongs to."""
        entries = [*enumerate(self.frequencies), (ESCAPE, self.escape)]
        entries.sort(key=lambda entry: (-entry[1], entry[0]))
        slots: list[tuple[int, int, int]] = []
        for index, frequency in entries:
            slots += [(index, frequency, len(slots))] * frequency
        return slots


@dataclass
class DeltaModel:
    """How elements are taken apart next to those of the base."""

    size: int
    dropped: int
    key_shift: int
    classes: list[Class] = field(default_factory=list)

    @property
    def kept(self) -> int:
        return 8 * self.size - self.dropped

    @property
    def least_raw_bits(self) -> int:
        return min(c.raw_bits for c in self.classes)

    def class_of(self, o: int) -> Class:
        key = (o % (1 << self.kept - 1) >> self.key_shift) % 256
        return [c for c in self.classes if c.first_key <= key][-1]


class Bits:
    """A little-endian bit string."""

    def __init__(self, reader: Reader) -> None:
        self.reader, self.left, self.count = reader, 0, 0

    def take(self, count: int) -> int:
        while self.count < count:
            self.left |= self.reader.number(1) << self.count
            self.count += 8
        value = self.left % (1 << count)
        self.left, self.count = self.left >> count, self.count - count
        return value

    def finish(self) -> None:
        require(self.left == 0, "unused bits are zero")


def read_context_table(reader: Reader, c: Class, width: int, before: Class | None) -> None:
    head = reader.number(1)
    if head == 0:
        require(before is not None, "the first table is not that of the class before")
        assert before
        c.b, c.frequencies, c.escape = before.b, before.frequencies, before.escape
    else:
        read_own_table(reader, c, head)
    require(-(1 << width - 1) <= c.b < 1 << width - 1, "the base is in range")
    require(len(c.frequencies) <= 1 << width, "there are no more symbols than the width has")


def read_own_table(reader: Reader, c: Class, head: int) -> None:
    zigzag = reader.varint()
    c.b = -(zigzag + 1) // 2 if zigzag % 2 else zigzag // 2
    bits, before = Bits(reader), 0
    parameter = bits.take(3)
    for _ in range(head % 128):
        ones = 0
        while bits.take(1):
            ones += 1
            require(ones <= MOST_ONES, "steps are no longer than they can be")
        number = ones << parameter | bits.take(parameter)
        before += -(number + 1) // 2 if number % 2 else number // 2
        require(0 <= before <= 256, "frequencies are 0 to 256")
        c.frequencies.append(before)
    bits.finish()
    require(1 <= head % 128 <= 63, "there are 1 to 63 symbols")
    c.escape = 256 - sum(c.frequencies)
    require(c.escape >= 0 and (c.escape > 0) == (head >= 128), "frequencies sum to 256")


def read_delta_model(reader: Reader, itemsize: int) -> DeltaModel:
    log2_size = reader.number(1)
    require(log2_size <= 3, "elements have 1 to 8 bytes")
    model = DeltaModel(1 << log2_size, reader.number(1), reader.number(1))
    require(itemsize % model.size == 0, "the element size divides the itemsize")
    require(model.kept >= 2, "two bits are kept")
    require(model.key_shift < model.kept, "the key shift is below the kept bits")
    count = reader.number(1)
    require(1 <= count <= 16, "there are 1 to 16 classes")
    for _ in range(count):
        first_key, form = reader.number(1), reader.number(1)
        require(form >> 6 <= INTEGER, "relations are known", UnsupportedError)
        c = Class(first_key, form >> 6, form % 64)
        least = 2 if c.relation == CONTEXT else 1
        require(c.raw_bits <= min(56, model.kept - least), "raw bits leave a symbol")
        before = model.classes[-1] if model.classes else None
        read_context_table(reader, c, model.kept - c.raw_bits, before)
        model.classes.append(c)
    keys = [c.first_key for c in model.classes]
    require(keys[0] == 0 and keys == sorted(set(keys)), "first keys rise from 0")
    integers = {c.relation == INTEGER for c in model.classes}
    require(len(integers) == 1, "all relations are integer, or none")
    return model


def read_delta_body(reader: Reader, stream: Stream) -> list[int]:
    """Returns the payload lengths, none if there is one chunk."""
    log2_chunk = reader.number(1)
    require(12 <= log2_chunk <= 26, "the chunk size is 2^12 to 2^26")
    stream.chunk_bytes = 1 << log2_chunk
    stream.delta = read_delta_model(reader, ITEMSIZE[stream.dtype])
    chunks = -(-stream.nbytes // stream.chunk_bytes)
    lengths = [reader.number(4) for _ in range(chunks if chunks > 1 else 0)]
    require(all(length % 16 == 0 for length in lengths), "payload lengths are multiples of 16")
    stream.storages = [reader.number(1) for _ in range(chunks)]
    require(all(s <= FIRST_MODEL for s in stream.storages), "models exist")
    stream.hashes = [reader.number(8) for _ in range(chunks)]
    return lengths


def element(model: DeltaModel, c: Class, symbol: int, raw: int, o: int) -> int:
    """The element with this symbol and these raw bits, next to the base's element."""
    k, r = model.kept, c.raw_bits
    y, top = symbol << r | raw, 1 << k - 1
    if c.relation == INTEGER:
        return (y + o) % (1 << k)
    if c.relation == CONTEXT:
        t, v = symbol % 2, symbol // 2 << r | raw
    else:
        y = (y + o % top) % (1 << k)
        t = y // top
        v = (1 << k) - 1 - y if t else y
    return (t ^ o // top) * top | v


def decode_delta_chunk(model: DeltaModel, payload: bytes, base: bytes, *, several: bool) -> bytes:
    reader, n = Reader(payload), len(base) // model.size
    low_and_high = reader.take(LANES), reader.take(LANES)
    stream_bytes, escapes = reader.number(4), reader.number(4)
    states = [a | b << 8 for a, b in zip(*low_and_high, strict=True)]
    require(min(states) >= 256, "states are from 256 on")
    olds = [int.from_bytes(base[i * model.size :][: model.size], "little") for i in range(n)]
    olds = [old >> model.dropped for old in olds]
    classes = [model.class_of(old) for old in olds]
    low_bytes = model.least_raw_bits // 8
    planes = [reader.take(n) for _ in range(low_bytes)]
    raws = [sum(plane[i] << 8 * b for b, plane in enumerate(planes)) for i in range(n)]
    bits = Bits(reader)
    for i, c in enumerate(classes):
        raws[i] |= bits.take(c.raw_bits - 8 * low_bytes) << 8 * low_bytes
    bits.finish()
    code = Reader(reader.take(stream_bytes))
    wide = -(-(model.kept - model.least_raw_bits) // 8)
    parts = [reader.take(escapes) for _ in range(wide)]
    escaped = [sum(part[i] << 8 * b for b, part in enumerate(parts)) for i in range(escapes)]
    if several:
        reader.align()
    reader.finish()

    slots = {c.first_key: c.slots() for c in model.classes}
    original = bytearray()
    for i, c in enumerate(classes):
        x = states[i % LANES]
        index, frequency, first = slots[c.first_key][x % 256]
        x = frequency * (x // 256) + x % 256 - first
        if x < 256:
            x = 256 * x + code.number(1)
        states[i % LANES] = x
        width = model.kept - c.raw_bits
        symbol = (c.b + index) % (1 << width)
        if index == ESCAPE:
            require(len(escaped) > 0, "there are enough escaped values")
            symbol = escaped.pop(0)
            require(symbol < 1 << width, "escaped symbols are below 2^width")
        new = element(model, c, symbol, raws[i], olds[i]) << model.dropped
        original += new.to_bytes(model.size, "little")
    code.finish()
    require(not escaped, "all escaped values are used")
    require(states == [256] * LANES, "all states end at 256")
    return bytes(original)


def decode_delta(data: bytes, base: bytes) -> bytes:
    """The original bytes of a stream with a delta or base body."""
    stream = parse(data)
    if len(base) != stream.nbytes or xxhash.xxh3_128_intdigest(base) != stream.original_hash:
        raise BaseMismatch
    if stream.body == BASE_BODY:
        return base
    assert stream.body == DELTA_BODY
    assert isinstance(stream.delta, DeltaModel)
    chunks = []
    for i, storage in enumerate(stream.storages):
        part = base[i * stream.chunk_bytes : (i + 1) * stream.chunk_bytes]
        if storage == FIRST_MODEL:
            several = len(stream.storages) > 1
            chunks.append(
                decode_delta_chunk(stream.delta, stream.payloads[i], part, several=several)
            )
        else:
            chunks.append(decode_plain_chunk(stream, i))
    require([chunk_hash(chunk) for chunk in chunks] == stream.hashes, "the chunk hashes are right")
    assert len(b"".join(chunks)) == ITEMSIZE[stream.dtype] * math.prod(stream.shape)
    return b"".join(chunks)
