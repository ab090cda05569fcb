"""A second reader of the file containers, written from docs/format-files.md alone.

Like the second decoder it shares no code with the package, says which rule a file breaks, and
prefers being plain to being fast.
"""

import base64
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, NoReturn

import xxhash

from tests.python import second_decoder as page
from tests.python.second_decoder import CorruptError, Reader, Stream, UnsupportedError, require
from tests.python.second_delta import decode_delta

NZ_MAGIC: Final = bytes.fromhex("894E5A460D0A1A")
KEY: Final = "neuzip.header"
BASE_KEY: Final = "neuzip.base"
BASE_ENTRY: Final = re.compile(r"[0-9a-f]{32}( .+)?", re.DOTALL)
NOTHING: Final[Mapping[str, bytes]] = {}
MOST_HEADER: Final = 100_000_000
# Element types of .safetensors files: bits, and the dtype code of the stream; none: as bytes.
_TYPES: Final = """
    BOOL/8/0 F4/4/ F6_E2M3/6/ F6_E3M2/6/ U8/8/1 I8/8/2 F8_E5M2/8/18 F8_E4M3/8/16 F8_E8M0/8/20
    F8_E4M3FNUZ/8/17 F8_E5M2FNUZ/8/19 I16/16/4 U16/16/3 F16/16/9 BF16/16/10 I32/32/6 U32/32/5
    F32/32/11 C64/64/14 F64/64/12 I64/64/8 U64/64/7
"""
TYPES: Final = {
    name: (int(bits), int(code) if code else None)
    for name, bits, code in (entry.split("/") for entry in _TYPES.split())
}


class MismatchError(ValueError):
    """A reference does not fit what it refers to."""


@dataclass
class Tensor:
    """A tensor of a plain header."""

    name: str
    dtype: str
    shape: list[int]
    begin: int
    end: int


@dataclass
class Header:
    """A plain header; the tensors are in data order."""

    text: bytes
    tensors: list[Tensor]
    metadata: dict[str, str]


@dataclass
class Repeated:
    """A JSON object whose keys may be repeated."""

    members: list[tuple[str, Any]]

    def only(self, key: str) -> Any:  # noqa: ANN401
        """The value of a key that is there once."""
        values = [value for name, value in self.members if name == key]
        require(len(values) == 1, "what a tensor needs is there once")
        return values[0]


def _no_constant(name: str) -> NoReturn:
    raise CorruptError(f"JSON has no {name}")


def _whole(text: object) -> int:
    """A number that JSON spells with digits only."""
    legal = isinstance(text, Digits) and str(text).isdigit() and int(str(text)) < 1 << 64
    require(legal, "numbers are whole and below 2^64")
    return int(str(text))


class Digits(str):
    """The spelling of a JSON number."""

    __slots__ = ()


def _depth(value: object) -> int:
    if isinstance(value, Repeated):
        return 1 + max((_depth(inner) for _, inner in value.members), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0


def _tensor(name: str, value: object) -> Tensor:
    require(isinstance(value, Repeated), "a tensor is an object")
    assert isinstance(value, Repeated)
    for key, other in value.members:
        ignored = key not in {"dtype", "shape", "data_offsets"}
        require(not ignored or _depth(other) <= 127, "ignored values are at most 127 deep")
    dtype, shape, offsets = (value.only(key) for key in ("dtype", "shape", "data_offsets"))
    require(type(dtype) is str and dtype in TYPES, "the element type is known")
    require(isinstance(shape, list) and len(shape) <= 255, "a shape has at most 255 dimensions")
    require(isinstance(offsets, list) and len(offsets) == 2, "there are two offsets")
    return Tensor(name, dtype, list(map(_whole, shape)), *map(_whole, offsets))


def read_header(text: bytes) -> Header:
    """A plain header, apart from whether it fits its file."""
    require(text[:1] == b"{", "the first byte is {")
    try:
        parsed: Repeated = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=Repeated,
            parse_int=Digits,
            parse_float=Digits,
            parse_constant=_no_constant,
        )
        json.dumps(parsed, default=vars, ensure_ascii=False).encode("utf-8")
    except (UnicodeError, json.JSONDecodeError) as error:
        raise CorruptError("the header is JSON") from error
    names = [name for name, _ in parsed.members]
    require(len({*names}) == len(names), "names are not repeated")
    metadata: dict[str, str] = {}
    tensors = []
    for name, value in parsed.members:
        if name != "__metadata__":
            tensors.append(_tensor(name, value))
            continue
        require(isinstance(value, Repeated), "the metadata is an object")
        metadata = dict(value.members)
        require(len(metadata) == len(value.members), "metadata keys are not repeated")
        require(all(type(x) is str for x in metadata.values()), "the metadata are strings")
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    at = 0
    for tensor in tensors:
        require(tensor.begin == at <= tensor.end, "each begins where the one before ends")
        at = tensor.end
        product = 1
        for dimension in tensor.shape:
            product *= dimension
            require(product < 1 << 64, "products stay below 2^64")
        bits = product * TYPES[tensor.dtype][0]
        require(8 * (tensor.end - tensor.begin) == bits, "the length is that of the shape")
    return Header(text, tensors, metadata)


def data_length(header: Header) -> int:
    return header.tensors[-1].end if header.tensors else 0


def read_plain(file: bytes) -> tuple[Header, bytes]:
    """The header and the data of a plain .safetensors file."""
    reader = Reader(file)
    length = reader.number(8)
    require(length <= MOST_HEADER, "the header is not too long")
    header = read_header(reader.take(length))
    data = file[reader.at :]
    require(len(data) == data_length(header), "the last tensor ends with the file")
    return header, data


def read_embedded(value: str) -> Header:
    """The original header."""
    number, colon, _ = value.partition(":")
    reserved = colon == ":" and number.isascii() and number.isdigit()
    require(not reserved, "the container version is known", UnsupportedError)
    try:
        blob = base64.b64decode(value, validate=True)
    except ValueError as error:
        raise CorruptError("the embedded header is base64") from error
    require(base64.b64encode(blob).decode() == value, "the embedded header is base64")
    reader = Reader(blob)
    checksum = reader.number(8)
    require(xxhash.xxh3_64_intdigest(blob[8:]) == checksum, "the header's checksum is right")
    length = reader.varint()
    require(length <= MOST_HEADER, "the header is not too long")
    inflate = zlib.decompressobj(wbits=-15)
    try:
        text = inflate.decompress(blob[reader.at :], length + 1)
    except zlib.error as error:
        raise CorruptError("the header is deflated") from error
    require(inflate.eof and not inflate.unused_data, "the deflate stream ends with the blob")
    require(len(text) == length, "the header has its length")
    return read_header(text)


def intact(value: str) -> bool:
    """Whether a metadata value is an embedded header."""
    try:
        read_embedded(value)
    except ValueError:
        return False
    return True


def kind(file: bytes) -> str:
    """What a file is, by the names of `content_kind`."""
    if file[:7] == NZ_MAGIC:
        return "neuzip-file"
    if file[:3] == page.MAGIC and len(file) > 3 and file[3] < 0x20:
        return "neuzip-tensor"
    try:
        header, _ = read_plain(file)
    except ValueError:
        return "other"
    if KEY in header.metadata or any(map(intact, header.metadata.values())):
        return "neuzip-safetensors"
    return "safetensors"


def check_form(tensor: Tensor, stream: Stream) -> None:
    """The stream must have the tensor's stream form, or for U8 hold another dtype."""
    nbytes = tensor.end - tensor.begin
    require(stream.nbytes == nbytes, "the stream has the tensor's length")
    if tensor.dtype != "U8" or stream.dtype == 1:
        code, shape = TYPES[tensor.dtype][1], tensor.shape
        form = (1, [nbytes]) if code is None else (code, shape)
        require((stream.dtype, stream.shape) == form, "the stream has the tensor's form")


class Streams:
    """The streams of a compressed file, by the names of the tensors in them."""

    def __init__(self, outer: Header, original: Header, data: bytes) -> None:
        self.by_name: dict[str, bytes] = {}
        self.places: dict[str, tuple[str, int, int]] = {}
        """Of tensors in bundles: who has the stream, where they begin and end."""
        self.bundles: dict[str, list[int]] = {}
        for listed, tensor in zip(outer.tensors, original.tensors, strict=True):
            if len(listed.shape) == 1:
                self.by_name[listed.name] = data[listed.begin : listed.end]
            else:
                self.add(listed, tensor, outer, original)

    def add(self, listed: Tensor, tensor: Tensor, outer: Header, original: Header) -> None:
        form = len(listed.shape) == 3 and listed.shape[0] == 0
        require(form, "an outer tensor has one dimension, or three and no bytes")
        _, number, start = listed.shape
        index = [other.name for other in original.tensors].index(tensor.name)
        require(number < index, "the first one of a bundle comes before")
        require(len(outer.tensors[number].shape) == 1, "the first one of a bundle has the stream")
        first = original.tensors[number]
        require(first.dtype == tensor.dtype, "the tensors of a bundle have the same type")
        sizes = self.bundles.setdefault(first.name, [first.end - first.begin])
        require(start == sum(sizes), "the tensors of a bundle have no gaps between them")
        self.places[first.name] = (first.name, 0, sizes[0])
        sizes.append(tensor.end - tensor.begin)
        require(sum(sizes) - min(sizes) <= 65536, "a bundle is not too large")
        self.places[tensor.name] = (first.name, start, sum(sizes))

    def check_form(self, tensor: Tensor) -> None:
        """The stream must be one that the tensor can be in."""
        if tensor.name not in self.places:
            check_form(tensor, page.parse(self.by_name[tensor.name]))
            return
        owner, _, _ = self.places[tensor.name]
        stream = page.parse(self.by_name[owner])
        code = TYPES[tensor.dtype][1]
        require(stream.nbytes == sum(self.bundles[owner]), "the bundle has the tensors' length")
        require(code is not None and code in (1, stream.dtype), "the bundle has the tensors' type")
        whole = stream.body in (page.CHUNKED_BODY, page.CONSTANT_BODY)
        require(whole, "a bundle is stored itself")

    def bundled(self, name: str) -> bytes:
        """The original bytes of a tensor in a bundle."""
        owner, start, end = self.places[name]
        return page.decode(self.by_name[owner])[start:end]


Base = dict[str, tuple[Tensor, bytes]]


def decoded(tensor: Tensor, stream: bytes, base: Base) -> bytes:
    """The original bytes of a tensor that has a stream of its own."""
    if page.parse(stream).body not in (page.DELTA_BODY, page.BASE_BODY):
        return page.decode(stream)
    require(tensor.name in base, "the base has the tensor", MismatchError)
    other, data = base[tensor.name]
    same = (other.dtype, other.shape) == (tensor.dtype, tensor.shape)
    require(same, "dtype and shape of the base are the same", MismatchError)
    return decode_delta(stream, data)


def narrow(wide: int, exponent_bits: int) -> int:
    """A float32 rounded to 16 bits."""
    mantissa_bits, bias = 15 - exponent_bits, 2 ** (exponent_bits - 1) - 1
    sign, exponent, mantissa = wide >> 31 << 15, wide >> 23 & 255, wide % (1 << 23)
    infinity = (1 << exponent_bits) - 1 << mantissa_bits
    if exponent == 255 and mantissa:
        return sign | infinity | 1 << mantissa_bits - 1 | mantissa >> 23 - mantissa_bits
    if exponent == 255:
        return sign | infinity
    # The value is whole * 2^(power - 23), and the unit of the result 2^(scale - mantissa_bits).
    whole, power = mantissa + (1 << 23 if exponent else 0), max(exponent, 1) - 127
    scale = max(power, 1 - bias)
    quotient = round(Fraction(whole * 2**mantissa_bits, 2 ** (23 + scale - power)))
    return sign | min(infinity, (scale + bias - 1 << mantissa_bits) + quotient)


def derived(stream: Stream, original: bytes) -> bytes:
    """The elements that an external body makes of the other tensor's original bytes."""
    if stream.derivation == page.SAME:
        inside = stream.start + stream.nbytes <= len(original)
        require(inside, "the range is inside the other tensor", MismatchError)
        return original[stream.start : stream.start + stream.nbytes]
    require(len(original) == 2 * stream.nbytes, "the lengths fit", MismatchError)
    elements = []
    for i in range(stream.nbytes // 2):
        wide = int.from_bytes(original[4 * i : 4 * i + 4], "little")
        rounded = narrow(wide, 5 if stream.dtype == 9 else 8)
        element = rounded if stream.derivation == page.ROUNDED else wide >> 16
        elements.append(stream.exceptions.get(i, element.to_bytes(2, "little")))
    return b"".join(elements)


def tensor_of(file: bytes, name: str) -> tuple[str, bytes]:
    """The element type and the original bytes of a tensor that its file holds itself."""
    header, data = read_plain(file)
    places = {tensor.name: tensor for tensor in header.tensors}
    require(name in places, "the tensor is in the file", MismatchError)
    if kind(file) == "safetensors":
        return places[name].dtype, data[places[name].begin : places[name].end]
    embedded = read_embedded(header.metadata[KEY])
    (original,) = [tensor for tensor in embedded.tensors if tensor.name == name]
    streams = Streams(header, embedded, data)
    if name in streams.places:
        streams.check_form(original)
        return original.dtype, streams.bundled(name)
    stored = streams.by_name[name]
    is_whole = page.parse(stored).body in (page.CHUNKED_BODY, page.CONSTANT_BODY)
    require(is_whole, "the tensor is stored itself", MismatchError)
    return original.dtype, page.decode(stored)


def external(stream: Stream, beside: Mapping[str, bytes]) -> bytes:
    """The original bytes of a stream with an external body."""
    require(stream.file in beside, "the file is there", MismatchError)
    dtype, other = tensor_of(beside[stream.file], stream.name)
    is_wide = stream.derivation == page.SAME or dtype == "F32"
    require(is_wide, "float32 is what is rounded", MismatchError)
    original = derived(stream, other)
    digest = xxhash.xxh3_128_intdigest(original)
    require(digest == stream.original_hash, "the hash of a reference is right", MismatchError)
    return original


def original_of(
    tensor: Tensor,
    streams: Streams,
    base: Base,
    original: Header,
    beside: Mapping[str, bytes] = NOTHING,
) -> bytes:
    """The original bytes of a tensor, looking a reference up."""
    if tensor.name in streams.places:
        return streams.bundled(tensor.name)
    stored = streams.by_name[tensor.name]
    stream = page.parse(stored)
    if stream.body == page.EXTERNAL_BODY:
        return external(stream, beside)
    if stream.body != page.REFERENCE_BODY:
        return decoded(tensor, stored, base)
    if stream.name in streams.places:
        content = streams.bundled(stream.name)
        owner, _, _ = streams.places[stream.name]
        same = page.parse(streams.by_name[owner]).dtype == stream.dtype
        require(same, "dtype of a reference is the same", MismatchError)
        require(len(content) == stream.nbytes, "a reference is as long", MismatchError)
        digest = xxhash.xxh3_128_intdigest(content)
        require(digest == stream.original_hash, "the hash of a reference is right", MismatchError)
        return content
    require(stream.name in streams.by_name, "the tensor named is in the file", MismatchError)
    target = page.parse(streams.by_name[stream.name])
    direct = target.body not in (page.REFERENCE_BODY, page.EXTERNAL_BODY)
    require(direct, "a reference is not to a reference", MismatchError)
    same = (target.dtype, target.shape) == (stream.dtype, stream.shape)
    require(same, "dtype and shape of a reference are the same", MismatchError)
    first = next(other for other in original.tensors if other.name == stream.name)
    content = decoded(first, streams.by_name[stream.name], base)
    digest = xxhash.xxh3_128_intdigest(content)
    require(digest == stream.original_hash, "the hash of a reference is right", MismatchError)
    return content


def model(file: bytes, base: bytes = b"") -> Base:
    """The tensors of a file, plain or compressed, which may have a base itself."""
    if kind(file) == "neuzip-safetensors":
        file = restore_safetensors(file, base)
    header, data = read_plain(file)
    return {tensor.name: (tensor, data[tensor.begin : tensor.end]) for tensor in header.tensors}


def identity(tensors: Base) -> str:
    """What the entry of a base begins with."""
    listed = b""
    for name in sorted(tensors, key=str.encode):
        spelled = name.encode()
        length = len(spelled)
        while length >= 128:
            listed += bytes([length % 128 + 128])
            length //= 128
        content = xxhash.xxh3_128_intdigest(tensors[name][1])
        listed += bytes([length]) + spelled + content.to_bytes(16, "little")
    return f"{xxhash.xxh3_128_intdigest(listed):032x}"


def base_entry(file: bytes) -> str | None:
    """What a compressed file says of its base."""
    outer, _ = read_plain(file)
    own = BASE_KEY in read_embedded(outer.metadata[KEY]).metadata
    return None if own else outer.metadata.get(BASE_KEY)


def restore_safetensors(
    file: bytes, base: bytes = b"", beside: Mapping[str, bytes] = NOTHING
) -> bytes:
    """The file that a compressed .safetensors file was made from; its base is a plain file."""
    outer, data = read_plain(file)
    metadata = dict(outer.metadata)
    require(KEY in metadata, "the embedded header is under its key")
    original = read_embedded(metadata.pop(KEY))
    if BASE_KEY not in original.metadata and BASE_KEY in metadata:
        entry = metadata.pop(BASE_KEY)
        require(BASE_ENTRY.fullmatch(entry) is not None, "the entry of the base is one")
    require(metadata == original.metadata, "the metadata are those of the original")
    names = [tensor.name for tensor in outer.tensors]
    require(names == [tensor.name for tensor in original.tensors], "the names are the original's")
    require(all(tensor.dtype == "U8" for tensor in outer.tensors), "outer tensors are bytes")
    streams = Streams(outer, original, data)
    for tensor in original.tensors:
        streams.check_form(tensor)
    restored = len(original.text).to_bytes(8, "little") + original.text
    tensors = model(base) if base else {}
    originals = [original_of(t, streams, tensors, original, beside) for t in original.tensors]
    return restored + b"".join(originals)


def frames_of(file: bytes) -> list[bytes]:
    """The streams of a .nz file, its structure checked."""
    reader = Reader(file)
    require(reader.take(7) == NZ_MAGIC, "the magic is there")
    require(reader.number(1) == 1, "the container version is known", UnsupportedError)
    frames, total, checksums = [], 0, b""
    while length := reader.varint():
        require(length <= 1 << 25, "a stream has at most 2^25 bytes")
        frame = reader.take(length)
        stream = page.parse(frame)
        form = stream.dtype == 1 and len(stream.shape) == 1 and 1 <= stream.nbytes <= 1 << 24
        require(form, "a frame holds 1 to 2^24 bytes")
        bodies = (page.CHUNKED_BODY, page.CONSTANT_BODY, page.EXTERNAL_BODY)
        require(stream.body in bodies, "a frame is not a reference")
        prelude = Reader(frame[4:]).varint()
        checksums += frame[prelude - 4 : prelude]
        total += stream.nbytes
        frames.append(frame)
    require(reader.number(8) == total, "the length is the sum of the frames'")
    require(reader.number(8) == xxhash.xxh3_64_intdigest(checksums), "the end's hash is right")
    reader.finish()
    return frames


def restore(file: bytes, beside: Mapping[str, bytes] = NOTHING) -> bytes:
    """The original of a compressed file of any kind; `beside` are the files in its folder."""
    found = kind(file)
    if found == "neuzip-file":
        streams = [(page.parse(frame), frame) for frame in frames_of(file)]
        return b"".join(
            external(stream, beside) if stream.body == page.EXTERNAL_BODY else page.decode(frame)
            for stream, frame in streams
        )
    if found == "neuzip-tensor":
        return page.decode(file)
    require(found == "neuzip-safetensors", "the file is compressed")
    return restore_safetensors(file, beside=beside)
