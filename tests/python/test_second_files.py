"""The package's files against a reader that was written from docs/format-files.md alone."""

import base64
import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import xxhash

import neuzip_rs as nz
from neuzip_rs import _native
from tests.python import second_decoder as page
from tests.python import second_encoder as writer
from tests.python import second_files as files
from tests.python.samples import contents
from tests.python.second_decoder import CorruptError, UnsupportedError
from tests.python.second_encoder import Plan, encode, encode_body, varint
from tests.python.second_files import KEY, TYPES, MismatchError

FORMAT = Path(__file__).parents[2] / "docs" / "format-files.md"
ERRORS: dict[type[ValueError], type[Exception]] = {
    CorruptError: nz.CorruptDataError,
    UnsupportedError: nz.UnsupportedVersionError,
    MismatchError: nz.BaseMismatchError,
}


def native(tmp_path: Path, file: bytes) -> bytes:
    """What the package makes of a compressed file, or its error."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(file)
    target.unlink(missing_ok=True)
    _native.decompress_file(str(source), str(target))
    _native.verify_file(str(source))
    return target.read_bytes()


def compress(tmp_path: Path, file: bytes) -> bytes:
    source, target = tmp_path / "plain", tmp_path / "compressed"
    source.write_bytes(file)
    _native.compress_file(str(source), str(target), overwrite=True)
    return target.read_bytes()


def kind(tmp_path: Path, file: bytes) -> str:
    """What the package takes the file for."""
    path = tmp_path / "any"
    path.write_bytes(file)
    return _native.content_kind(str(path))


def agree(tmp_path: Path, file: bytes, original: bytes) -> None:
    assert files.restore(file) == original
    assert native(tmp_path, file) == original
    assert files.kind(file) == kind(tmp_path, file)


def both_reject(tmp_path: Path, file: bytes, error: type[ValueError], rule: str) -> None:
    with pytest.raises(error) as second:
        files.restore(file)
    assert str(second.value) == rule
    with pytest.raises(ERRORS[error]):
        native(tmp_path, file)


# --- hand-made files --------------------------------------------------------------------------


def plain_file(header: str | bytes, data: bytes = b"") -> bytes:
    text = header.encode() if isinstance(header, str) else header
    return len(text).to_bytes(8, "little") + text + data


def listed(parts: dict[str, tuple[str, list[int], int]]) -> dict[str, Any]:
    """The members of a header: type, shape and length of each tensor, in data order."""
    found, at = {}, 0
    for name, (dtype, shape, length) in parts.items():
        found[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + length]}
        at += length
    return found


def deflated(header: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-15)
    return deflate.compress(header) + deflate.flush()


def embedded(header: bytes, *, length: bytes | None = None, rest: bytes | None = None) -> str:
    """The embedded header, its checksum that of what is written."""
    body = (varint(len(header)) if length is None else length) + (rest or deflated(header))
    return base64.b64encode(xxhash.xxh3_64_digest(body)[::-1] + body).decode()


def compressed_file(
    header: bytes,
    streams: dict[str, bytes],
    *,
    metadata: dict[str, str] | None = None,
    key: str | None = None,
    change: Callable[[dict[str, Any]], object] = dict,
) -> bytes:
    """A compressed .safetensors file; `change` may alter its outer header."""
    outer = listed({name: ("U8", [len(s)], len(s)) for name, s in streams.items()})
    key = embedded(header) if key is None else key
    outer["__metadata__"] = (metadata or {}) | {KEY: key}
    change(outer)
    return plain_file(json.dumps(outer), b"".join(streams.values()))


BF16, X = "BF16", contents("weights", "bfloat16", 600, 1)
STREAM = bytes(_native.compress(X, "bfloat16", (20, 30), level="max"))
OTHER = bytes(_native.compress(X[::-1], "bfloat16", (20, 30)))
REFERENCE = encode_body(
    page.REFERENCE_BODY,
    writer.reference_fields(X, b"a"),
    (20, 30),
    dtype=10,
    features=page.REFERENCE,
)
ONE = json.dumps(listed({"a": (BF16, [20, 30], 1200)})).encode()
TWO = json.dumps(listed({"a": (BF16, [20, 30], 1200), "b": (BF16, [20, 30], 1200)})).encode()


BUNDLE = bytes(_native.compress(X + X[::-1], "bfloat16", (40, 30)))


def bundled(
    shape: list[int] | None = None,
    *,
    stream: bytes = BUNDLE,
    types: tuple[str, str] = (BF16, BF16),
    form: tuple[list[int], int] = ([20, 30], 1200),
) -> bytes:
    """A file with two tensors in one stream; `shape` is what the second one's entry says."""
    header = json.dumps(
        listed({name: (dtype, *form) for name, dtype in zip("ab", types, strict=True)})
    )

    def change(outer: dict[str, Any]) -> None:
        outer["b"]["shape"] = [0, 0, form[1]] if shape is None else shape

    return compressed_file(header.encode(), {"a": stream, "b": b""}, change=change)


def three(third: bytes, shape: list[int] | None = None) -> bytes:
    """A file with two tensors in one stream, and a third one."""
    header = json.dumps(listed({name: (BF16, [20, 30], 1200) for name in "abc"}))

    def change(outer: dict[str, Any]) -> None:
        outer["b"]["shape"] = [0, 0, 1200]
        outer["c"]["shape"] = shape or outer["c"]["shape"]

    streams = {"a": BUNDLE, "b": b"", "c": third}
    return compressed_file(header.encode(), streams, change=change)


def reference_to(name: bytes, digest: bytes, dtype: int = 10) -> bytes:
    fields = writer.reference_fields(digest, name)
    return encode_body(page.REFERENCE_BODY, fields, (20, 30), dtype=dtype, features=page.REFERENCE)


def nz_file(frames: list[bytes], *, version: int = 1, end: bytes | None = None) -> bytes:
    found = files.NZ_MAGIC + bytes([version])
    total, checksums = 0, b""
    for frame in frames:
        found += varint(len(frame)) + frame
        length = page.Reader(frame[4:]).varint()
        checksums += frame[length - 4 : length]
        total += int(np.prod(page.parse(frame).shape))
    if end is None:
        end = b"\0" + total.to_bytes(8, "little") + xxhash.xxh3_64_digest(checksums)[::-1]
    return found + end


# --- legal files ------------------------------------------------------------------------------


def test_the_worked_examples(tmp_path: Path) -> None:
    text = FORMAT.read_text(encoding="utf-8")
    blocks = [bytes.fromhex(block) for block in re.findall(r"```hex\n(.*?)```", text, re.DOTALL)]
    header = (
        '{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},'
        '"b":{"dtype":"BF16","shape":[0],"data_offsets":[4,4]}}   '
    )
    plain = plain_file(header, bytes.fromhex("803f0040"))
    assert len(blocks) == 2
    agree(tmp_path, blocks[0], b"neuzip\n")
    agree(tmp_path, blocks[1], plain)


def test_element_types() -> None:
    text = FORMAT.read_text(encoding="utf-8")
    rows = re.findall(r"\| ([A-Z]\w+) \| (\d+) \| (\S+) (?=\|)", text)
    assert {name: int(bits) for name, bits, _ in rows} == {n: b for n, (b, _) in TYPES.items()}
    streams = {name: stream for name, _, stream in rows}
    for name, (bits, code) in TYPES.items():
        if code is None:
            assert (streams[name], bits % 8 > 0) == ("\N{EN DASH}", True)
            continue
        written = _native.compress(bytes(bits // 8), streams[name], (1,))
        assert page.parse(bytes(written)).dtype == code


def test_compressed_safetensors_of_every_type(tmp_path: Path) -> None:
    parts = {}
    for i, (name, (bits, _)) in enumerate(TYPES.items()):
        parts[f"t.{name}"] = (name, [4, 60 + 4 * i], (240 + 16 * i) * bits // 8)
    parts["empty"] = ("F32", [0, 7], 0)
    parts["scalar"] = ("F64", [], 8)
    members = listed(parts)
    shuffled = {name: members[name] for name in Random(1).sample(list(members), len(members))}
    shuffled["t.U8"]["note"] = [1.5, {"a": None}]
    header = json.dumps({"__metadata__": {"é": "x\ny", "format": "pt"}} | shuffled, indent=1)
    length = sum(length for _, _, length in parts.values())
    plain = plain_file(
        header + " \n\t", contents("weights", "bfloat16", length // 2 + 1, 1)[:length]
    )
    file = compress(tmp_path, plain)
    assert files.kind(plain) == kind(tmp_path, plain) == "safetensors"
    agree(tmp_path, file, plain)


def test_compressed_safetensors_with_repeated_tensors(tmp_path: Path) -> None:
    parts = {name: (BF16, [20, 30], 1200) for name in ("é/1", "b", "c")}
    plain = plain_file(json.dumps(listed(parts)), X + X[::-1] + X)
    file = compress(tmp_path, plain)
    agree(tmp_path, file, plain)
    outer, data = files.read_plain(file)
    third = outer.tensors[2]
    stream = page.parse(data[third.begin : third.end])
    assert (stream.body, stream.name) == (page.REFERENCE_BODY, "é/1")


def test_the_smallest_safetensors(tmp_path: Path) -> None:
    for header in ("{}", '{"__metadata__":{}}', "{} \t\r\n"):
        agree(tmp_path, compress(tmp_path, plain_file(header)), plain_file(header))


@pytest.mark.parametrize("length", [0, 1, 7, 5000, 20000])
def test_nz_files(tmp_path: Path, length: int) -> None:
    original = contents("weights", "float32", length // 4 + 1, 1)[:length]
    file = compress(tmp_path, original)
    assert files.kind(original) == kind(tmp_path, original) == "other"
    agree(tmp_path, file, original)


def test_frames_of_long_files(tmp_path: Path) -> None:
    file = compress(tmp_path, bytes(2 * (1 << 24) + 5))
    lengths = [page.parse(frame).nbytes for frame in files.frames_of(file)]
    assert lengths == [1 << 24, 1 << 24, 5]


def test_bare_streams(tmp_path: Path) -> None:
    agree(tmp_path, STREAM, X)


def test_outer_headers_may_look_different(tmp_path: Path) -> None:
    def change(outer: dict[str, Any]) -> None:
        for name in ("a", "__metadata__"):
            outer[name] = outer.pop(name)
        outer["b"] = dict(reversed(outer["b"].items())) | {"more": [None, 1e3]}

    file = compressed_file(TWO, {"a": STREAM, "b": OTHER}, change=change)
    agree(tmp_path, file, plain_file(TWO, X + X[::-1]))


def small_model(shapes: list[list[int]], seed: int = 1) -> bytes:
    """A plain file of small tensors of two types, of a constant one and a repeated one."""
    parts, data = {}, b""
    for number, shape in enumerate(shapes):
        dtype, size = ("F32", 4) if number % 5 == 4 else (BF16, 2)
        length = size * int(np.prod(shape))
        kind = "float32" if size == 4 else "bfloat16"
        parts[f"layer.{number}"] = (dtype, shape, length)
        data += contents("weights", kind, length // size, seed + number)[:length]
    parts["ones"] = (BF16, [64], 128)
    parts["again"] = (BF16, shapes[0], len(data[: 2 * int(np.prod(shapes[0]))]))
    data += b"\x80\x3f" * 64 + data[: 2 * int(np.prod(shapes[0]))]
    return plain_file(json.dumps(listed(parts)), data)


SHAPES = [[12, 64], [64], [9, 64], [], [3, 3, 8], [7], [5, 64], [1, 64], [100, 64], [2, 3, 8], [0]]


def test_small_tensors_share_streams(tmp_path: Path) -> None:
    plain = small_model(SHAPES)
    file = compress(tmp_path, plain)
    agree(tmp_path, file, plain)
    outer, _ = files.read_plain(file)
    shapes = {tensor.name: tensor.shape for tensor in outer.tensors}
    # Rows of 64 in one stream, what has no rows in another one.
    assert shapes["layer.2"] == [0, 0, 12 * 64 * 2]
    assert shapes["layer.3"] == [0, 1, 64 * 2]
    assert shapes["layer.9"] == [0, 4, 3 * 3 * 8 * 4]
    assert len(shapes["ones"]) == len(shapes["again"]) == 1


def test_bundles_are_not_too_large(tmp_path: Path) -> None:
    plain = small_model([[256, 64], [256, 64], [256, 64], [256, 64], [1, 64], [300, 64]])
    file = compress(tmp_path, plain)
    agree(tmp_path, file, plain)
    outer, _ = files.read_plain(file)
    shapes = [tensor.shape for tensor in outer.tensors]
    # 32 KiB each: besides the smallest one 64 KiB are allowed, so that the fourth begins another.
    assert shapes[1:3] == [[0, 0, 1 << 15], [0, 0, 1 << 16]]
    assert [len(shape) for shape in shapes[3:6]] == [1, 1, 3]
    assert shapes[5] == [0, 3, 1 << 15]


def test_bundles_by_hand(tmp_path: Path) -> None:
    plain = plain_file(TWO, X + X[::-1])
    agree(tmp_path, bundled(), plain)
    # Any shape of the right length.
    agree(tmp_path, bundled(stream=bytes_stream(X + X[::-1], (1200,), 10)), plain)
    constant = encode_body(page.CONSTANT_BODY, b"ab", (40, 30), dtype=10)
    agree(tmp_path, bundled(stream=constant), plain_file(TWO, b"ab" * 1200))
    header = json.dumps(listed({"a": ("U8", [3, 400], 1200), "b": ("U8", [3, 400], 1200)}))
    complex128 = bytes_stream(X + X[::-1], (150,), 15)
    file = bundled(stream=complex128, types=("U8", "U8"), form=([3, 400], 1200))
    agree(tmp_path, file, plain_file(header, X + X[::-1]))


def test_repeats_of_bundled_tensors(tmp_path: Path) -> None:
    header = json.dumps(listed({name: (BF16, [20, 30], 1200) for name in "abc"}))
    for name, content in ((b"a", X), (b"b", X[::-1])):
        plain = plain_file(header, X + X[::-1] + content)
        agree(tmp_path, three(reference_to(name, content)), plain)


def test_references_may_come_first(tmp_path: Path) -> None:
    fields = writer.reference_fields(X, b"b")
    reference = encode_body(
        page.REFERENCE_BODY, fields, (20, 30), dtype=10, features=page.REFERENCE
    )
    agree(tmp_path, compressed_file(TWO, {"a": reference, "b": STREAM}), plain_file(TWO, X + X))


def test_bytes_may_have_streams_of_any_form(tmp_path: Path) -> None:
    header = json.dumps(listed({"a": ("U8", [3, 400], 1200)})).encode()
    for stream in (STREAM, bytes_stream(X, (3, 400)), bytes_stream(X, (75, 1), 15)):
        agree(tmp_path, compressed_file(header, {"a": stream}), plain_file(header, X))


def test_metadata_that_stays(tmp_path: Path) -> None:
    header = b'{"__metadata__":{"format":"pt","":"12:"},' + ONE[1:]
    metadata = {"": "12:", "format": "pt"}
    file = compressed_file(header, {"a": STREAM}, metadata=metadata)
    agree(tmp_path, file, plain_file(header, X))


def test_stored_deflate(tmp_path: Path) -> None:
    stored = b"\1" + len(ONE).to_bytes(2, "little") + (len(ONE) ^ 0xFFFF).to_bytes(2, "little")
    file = compressed_file(ONE, {"a": STREAM}, key=embedded(ONE, rest=stored + ONE))
    agree(tmp_path, file, plain_file(ONE, X))


def test_frames_of_any_length(tmp_path: Path) -> None:
    parts = [b"a", b"bc" * 3000, X, b"\7" * 5000, bytes(1 << 24)]
    frames = [encode(Plan(part, storages=[0, 0][: 1 + (len(part) > 4096)])) for part in parts[:4]]
    frames.append(encode_body(page.CONSTANT_BODY, b"\0", (1 << 24,)))
    agree(tmp_path, nz_file(frames), b"".join(parts))


# --- what is what -----------------------------------------------------------------------------

TENSOR = '{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
EMPTY = '{"dtype":"F32","shape":SHAPE,"data_offsets":[0,0]}'


def one_tensor(tensor: str, name: str = "a", data: bytes = b"x") -> bytes:
    return plain_file(f'{{"{name}":{tensor}}}', data)


def with_tensor(old: str, new: str) -> bytes:
    assert old in TENSOR
    return one_tensor(TENSOR.replace(old, new, 1))


def with_ignored(value: str) -> bytes:
    return with_tensor("{", f'{{"other":{value},')


def with_shape(shape: str) -> bytes:
    return one_tensor(EMPTY.replace("SHAPE", shape), data=b"")


KINDS: list[tuple[str, bytes]] = [
    *[("safetensors", plain_file(text)) for text in ("{}", "{}  \n", '{"__metadata__":{}}')],
    ("safetensors", with_tensor("[1]", "[]")),
    ("safetensors", with_tensor("[1]", f"[{'1,' * 254}1]")),
    ("safetensors", with_tensor('"U8","shape":[1]', '"F4","shape":[2]')),
    *[("safetensors", with_ignored(value)) for value in ("1e999", "-0.5E+3", "null", '{"a":[]}')],
    ("safetensors", with_ignored('1,"other":2')),
    ("safetensors", with_ignored("[" * 127 + "]" * 127)),
    *[
        ("safetensors", with_shape(shape))
        for shape in (f"[0,{1 << 32},{1 << 32}]", f"[{(1 << 64) - 1},0]")
    ],
    ("safetensors", one_tensor(TENSOR, "\\ud83d\\ude00")),
    ("safetensors", plain_file('{"__metadata__":{"a":"12:"}}')),
    *[
        ("other", plain_file(text))
        for text in (
            *("", " {}", "[]", "{}x", "{}\0", "\ufeff{}", '{"a":1}', "{", '{"a":{}}'),
            *('{"__metadata__":null}', '{"__metadata__":{"a":1}}', '{"__metadata__":[]}'),
            *('{"__metadata__":{"a":"b","a":"b"}}', '{"__metadata__":{},"__metadata__":{}}'),
            *('{"__metadata__":{"a":"\\udfff"}}', '{"__metadata__":{"a":"\n"}}'),
        )
    ],
    ("other", plain_file("{}", b"x")),
    ("other", plain_file("{}")[:-1]),
    ("other", b""),
    ("other", b"1234567"),
    ("other", plain_file(b'{"\xff":%s}' % TENSOR.encode(), b"x")),
    ("other", one_tensor(TENSOR, "\\ud800")),
    ("other", plain_file(f'{{"a":{TENSOR},"\\u0061":{TENSOR}}}', b"x")),
    *[
        ("other", with_tensor(old, new))
        for old, new in (
            *(("{", '{"dtype":"U8",'), ('"U8"', '"U9"'), ('"U8"', "8"), ("[1]", "[2]")),
            *(("[1]", "1"), ("[1]", "[1.0]"), ("[1]", "[01]"), ("[1]", "[-1]")),
            *(("[1]", f"[{'1,' * 255}1]"), ("[0,1]", "[1,2]"), ("[0,1]", "[-0,1]")),
            *(("[0,1]", "[0,1e0]"), ("[0,1]", "[0,1,1]"), ("[0,1]", "[0]"), ("[0,1]", "[1,0]")),
            *(('"shape":[1],', ""), ('"U8","shape":[1]', '"F4","shape":[1]')),
            ('"U8","shape":[1]', '"F6_E2M3","shape":[1]'),
        )
    ],
    *[("other", with_ignored(value)) for value in ("NaN", "tru", "[1,]", "01", '"\t"', "1.")],
    ("other", with_ignored("[" * 128 + "]" * 128)),
    *[
        ("other", with_shape(shape))
        for shape in (f"[{1 << 64},0]", f"[{1 << 32},{1 << 32},0]", "[1]")
    ],
    ("neuzip-file", files.NZ_MAGIC),
    ("other", files.NZ_MAGIC[:6]),
    *[("neuzip-tensor", page.MAGIC + bytes([version])) for version in (0, 1, 0x1F)],
    *[("other", page.MAGIC + end) for end in (b"", b"\x20", b"\xff")],
    ("neuzip-safetensors", plain_file('{"__metadata__":{"neuzip.header":"x"}}')),
    ("neuzip-safetensors", compressed_file(ONE, {"a": STREAM})),
    ("neuzip-safetensors", plain_file(json.dumps({"__metadata__": {"x": embedded(ONE)}}))),
    ("safetensors", plain_file(json.dumps({"__metadata__": {"x": embedded(ONE)[:-2]}}))),
]


@pytest.mark.parametrize(("expected", "file"), KINDS, ids=range(len(KINDS)))
def test_kinds(tmp_path: Path, expected: str, file: bytes) -> None:
    assert files.kind(file) == expected
    assert kind(tmp_path, file) == expected


# --- illegal files ----------------------------------------------------------------------------

Illegal = list[tuple[str, type[ValueError], Callable[[], bytes]]]


def key_of(key: str) -> bytes:
    return compressed_file(ONE, {"a": STREAM}, key=key)


def outer_of(path: list[str], value: object) -> bytes:
    """A compressed file with one member of its outer header changed."""

    def change(outer: dict[str, Any]) -> None:
        for step in path[:-1]:
            outer = outer[step]
        outer[path[-1]] = value

    return compressed_file(ONE, {"a": STREAM}, change=change)


def referring(target: bytes, *, name: str = "a", digest: bytes = X, other: str = BF16) -> bytes:
    """A file whose second tensor is a reference."""
    header = json.dumps(listed({"a": (other, [20, 30], 1200), "b": (BF16, [20, 30], 1200)}))
    fields = writer.reference_fields(digest, name.encode())
    reference = encode_body(
        page.REFERENCE_BODY, fields, (20, 30), dtype=10, features=page.REFERENCE
    )
    return compressed_file(header.encode(), {"a": target, "b": reference})


def bytes_stream(data: bytes, shape: tuple[int, ...], dtype: int = 1) -> bytes:
    return encode(Plan(data, dtype, shape, storages=[0]))


BAD_PAD = base64.b64encode(b"\0" * 10).decode()[:-3] + "B=="
END = b"\0" + bytes(8) + xxhash.xxh3_64_digest(b"")[::-1]
FRAME = bytes_stream(b"abc", (3,))
FRAMES_END = nz_file([FRAME])[-17:]
ILLEGAL: Illegal = [
    # The embedded header.
    *[
        ("the embedded header is base64", CorruptError, lambda key=key: key_of(key))
        for key in (
            *("?", embedded(ONE).rstrip("=") + "=====", embedded(ONE) + "\n", BAD_PAD, "é"),
            *(embedded(ONE).replace("/", "_").replace("+", "-") + "-", " " + embedded(ONE)),
        )
    ],
    ("the input does not end early", CorruptError, lambda: key_of("")),
    *[
        ("the container version is known", UnsupportedError, lambda key=key: key_of(key))
        for key in ("2:" + embedded(ONE), "0:", "123:x")
    ],
    ("the header's checksum is right", CorruptError, lambda: key_of("A" + embedded(ONE)[1:])),
    (
        "a varint is as short as it can be",
        CorruptError,
        lambda: key_of(embedded(ONE, length=bytes([len(ONE) | 128, 0]))),
    ),
    *[
        (
            "the header has its length",
            CorruptError,
            lambda n=n: key_of(embedded(ONE, length=varint(len(ONE) + n))),
        )
        for n in (1, 5)
    ],
    (
        "the deflate stream ends with the blob",
        CorruptError,
        lambda: key_of(embedded(ONE, rest=deflated(ONE) + b"\0")),
    ),
    (
        "the deflate stream ends with the blob",
        CorruptError,
        lambda: key_of(embedded(ONE, rest=deflated(ONE)[:-1])),
    ),
    ("the header is deflated", CorruptError, lambda: key_of(embedded(ONE, rest=b"\xff" * 9))),
    (
        "the header is not too long",
        CorruptError,
        lambda: key_of(embedded(ONE, length=varint(100_000_001))),
    ),
    ("the first byte is {", CorruptError, lambda: key_of(embedded(b" " + ONE))),
    ("the header is JSON", CorruptError, lambda: key_of(embedded(ONE + b"x"))),
    (
        "each begins where the one before ends",
        CorruptError,
        lambda: key_of(embedded(ONE.replace(b"[0, 1200]", b"[1, 1201]"))),
    ),
    # The outer header against it.
    (
        "the embedded header is under its key",
        CorruptError,
        lambda: outer_of(["__metadata__"], {"neuzip.headex": embedded(ONE)}),
    ),
    *[
        (
            "the metadata are those of the original",
            CorruptError,
            lambda metadata=metadata, header=header: compressed_file(
                header, {"a": STREAM}, metadata=metadata
            ),
        )
        for header, metadata in (
            (ONE, {"a": "b"}),
            (b'{"__metadata__":{"a":"b"},' + ONE[1:], {}),
            (b'{"__metadata__":{"a":"b"},' + ONE[1:], {"a": "c"}),
            (b'{"__metadata__":{"a":"b"},' + ONE[1:], {"a": "b", "c": "d"}),
        )
    ],
    *[
        (
            "the names are the original's",
            CorruptError,
            lambda streams=streams: compressed_file(TWO, streams),
        )
        for streams in (
            *({"a": STREAM}, {"b": STREAM, "a": OTHER}, {"a": STREAM, "c": OTHER}),
            {"a": STREAM, "b": STREAM, "c": OTHER},
        )
    ],
    ("outer tensors are bytes", CorruptError, lambda: outer_of(["a", "dtype"], "I8")),
    *[
        (
            "an outer tensor has one dimension, or three and no bytes",
            CorruptError,
            lambda shape=shape: outer_of(["a", "shape"], shape),
        )
        for shape in ([len(STREAM), 1], [1, len(STREAM)], [1, 1, len(STREAM)])
    ],
    *[
        (
            "the stream has the tensor's length",
            CorruptError,
            lambda stream=stream: compressed_file(ONE, {"a": stream}),
        )
        for stream in (
            bytes_stream(X[:-2], (599,), 10),
            bytes_stream(X + X, (40, 30), 10),
        )
    ],
    *[
        (
            "the stream has the tensor's form",
            CorruptError,
            lambda stream=stream: compressed_file(ONE, {"a": stream}),
        )
        for stream in (
            bytes_stream(X, (600,), 10),
            bytes_stream(X, (20, 30), 9),
            bytes_stream(X, (1200,)),
        )
    ],
    (
        "the stream has the tensor's form",
        CorruptError,
        lambda: compressed_file(
            json.dumps(listed({"a": ("F4", [20, 30], 300)})).encode(),
            {"a": bytes_stream(X[:300], (20, 15))},
        ),
    ),
    (
        "the stream has the tensor's form",
        CorruptError,
        lambda: compressed_file(
            json.dumps(listed({"a": ("U8", [3, 400], 1200)})).encode(),
            {"a": bytes_stream(X, (1200,))},
        ),
    ),
    (
        "no bytes are left over",
        CorruptError,
        lambda: compressed_file(ONE, {"a": STREAM + bytes(16)}),
    ),
    (
        "the version is known",
        UnsupportedError,
        lambda: compressed_file(ONE, {"a": STREAM[:3] + b"\2" + STREAM[4:]}),
    ),
    # References.
    ("the tensor named is in the file", MismatchError, lambda: referring(STREAM, name="c")),
    ("a reference is not to a reference", MismatchError, lambda: referring(STREAM, name="b")),
    ("a reference is not to a reference", MismatchError, lambda: referring(REFERENCE)),
    ("the hash of a reference is right", MismatchError, lambda: referring(STREAM, digest=X[1:])),
    ("the hash of a reference is right", MismatchError, lambda: referring(OTHER)),
    (
        "dtype and shape of a reference are the same",
        MismatchError,
        lambda: referring(bytes_stream(X, (20, 30), 9), other="F16"),
    ),
    # Bundles.
    *[
        (
            "an outer tensor has one dimension, or three and no bytes",
            CorruptError,
            lambda shape=shape: bundled(shape),
        )
        for shape in ([0, 0], [0, 0, 1200, 0], [1, 0, 1200], [1200, 0, 0], [0, 0, 0, 1200])
    ],
    *[
        (
            "the first one of a bundle comes before",
            CorruptError,
            lambda number=number: bundled([0, number, 1200]),
        )
        for number in (1, 2, (1 << 64) - 1)
    ],
    (
        "the first one of a bundle has the stream",
        CorruptError,
        lambda: three(b"", [0, 1, 1200]),
    ),
    *[
        (
            "the tensors of a bundle have no gaps between them",
            CorruptError,
            lambda start=start: bundled([0, 0, start]),
        )
        for start in (0, 1199, 1201, 1 << 32, (1 << 64) - 1)
    ],
    (
        "the tensors of a bundle have no gaps between them",
        CorruptError,
        lambda: three(b"", [0, 0, 1200]),
    ),
    (
        "the tensors of a bundle have the same type",
        CorruptError,
        lambda: bundled(types=(BF16, "F16")),
    ),
    *[
        (
            "a bundle is not too large",
            CorruptError,
            lambda n=n: bundled(
                stream=encode_body(page.CONSTANT_BODY, b"a", (2 * n,)),
                types=("U8", "U8"),
                form=([n], n),
            ),
        )
        for n in (65537, 1 << 40, 1 << 62)
    ],
    *[
        (
            "the bundle has the tensors' length",
            CorruptError,
            lambda stream=stream: bundled(stream=stream),
        )
        for stream in (STREAM, bytes_stream(X + X + X, (60, 30), 10))
    ],
    ("the bundle has the tensors' length", CorruptError, lambda: three(b"", [0, 0, 2400])),
    *[
        (
            "the bundle has the tensors' type",
            CorruptError,
            lambda stream=stream: bundled(stream=stream),
        )
        for stream in (bytes_stream(X + X, (40, 30), 9), bytes_stream(X + X, (2400,)))
    ],
    (
        "the bundle has the tensors' type",
        CorruptError,
        lambda: bundled(
            stream=bytes_stream(X[:600], (600,)), types=("F4", "F4"), form=([20, 30], 300)
        ),
    ),
    (
        "a bundle is stored itself",
        CorruptError,
        lambda: bundled(
            stream=encode_body(
                page.REFERENCE_BODY,
                writer.reference_fields(X, b"a"),
                (40, 30),
                dtype=10,
                features=page.REFERENCE,
            )
        ),
    ),
    *[
        (
            "the hash of a reference is right",
            MismatchError,
            lambda name=name: three(reference_to(name, X + X)),
        )
        for name in (b"a", b"b")
    ],
    # Frames.
    *[
        (
            "the container version is known",
            UnsupportedError,
            lambda n=n: nz_file([FRAME], version=n),
        )
        for n in (0, 2, 255)
    ],
    *[
        ("the input does not end early", CorruptError, lambda end=end: nz_file([FRAME], end=end))
        for end in (b"", FRAMES_END[:-1], FRAMES_END[:9], b"\0", b"\5\1")
    ],
    ("no bytes are left over", CorruptError, lambda: nz_file([FRAME]) + b"\0"),
    ("a varint is as short as it can be", CorruptError, lambda: nz_file([], end=b"\x80" + END)),
    (
        "the length is the sum of the frames'",
        CorruptError,
        lambda: nz_file([FRAME], end=b"\0\2" + FRAMES_END[2:]),
    ),
    ("the end's hash is right", CorruptError, lambda: nz_file([FRAME], end=FRAMES_END[:-1] + b"?")),
    ("the length is the sum of the frames'", CorruptError, lambda: nz_file([FRAME], end=END)),
    (
        "a stream has at most 2^25 bytes",
        CorruptError,
        lambda: nz_file([], end=varint((1 << 25) + 1) + bytes(1 << 10)),
    ),
    *[
        ("a frame holds 1 to 2^24 bytes", CorruptError, lambda frame=frame: nz_file([frame]))
        for frame in (
            *(bytes_stream(b"abc", (3, 1)), bytes_stream(b"a", ()), bytes_stream(b"abc", (3,), 2)),
            *(encode(Plan()), bytes_stream(b"abcd", (1,), 11)),
            encode_body(page.CONSTANT_BODY, b"a", ((1 << 24) + 1,)),
        )
    ],
    (
        "a frame is not a reference",
        CorruptError,
        lambda: nz_file(
            [
                encode_body(
                    page.REFERENCE_BODY, writer.reference_fields(b"abc", b"a"), (3,), features=8
                )
            ]
        ),
    ),
    (
        "the checksum is right",
        CorruptError,
        lambda: nz_file([FRAME]).replace(page.MAGIC + b"\1\x19", page.MAGIC + b"\1\x18"),
    ),
]


@pytest.mark.parametrize(
    ("rule", "error", "make"),
    ILLEGAL,
    ids=[f"{rule}-{i}" for i, (rule, _, _) in enumerate(ILLEGAL)],
)
def test_illegal_files(
    tmp_path: Path, rule: str, error: type[ValueError], make: Callable[[], bytes]
) -> None:
    both_reject(tmp_path, make(), error, rule)


def unpacked(file: bytes, piece: int) -> bytes:
    """What the package makes of a .nz file that comes through a pipe."""
    unpack = _native.StreamDecompressor()
    pieces = [unpack.feed(file[at : at + piece]) for at in range(0, len(file), piece)]
    unpack.finish()
    return b"".join(pieces)


def test_frames_in_a_pipe() -> None:
    file = nz_file([FRAME, bytes_stream(X, (1200,))])
    assert unpacked(file, 13) == unpacked(file, len(file)) == b"abc" + X
    broken = [(make(), error) for _, error, make in ILLEGAL]
    for illegal, error in broken:
        if illegal[:7] == files.NZ_MAGIC:
            with pytest.raises(ERRORS[error]):
                unpacked(illegal, 100)


# --- damage -----------------------------------------------------------------------------------


def outcome(read: Callable[[bytes], bytes], file: bytes) -> bytes | None:
    """What a reader makes of a file, if it takes it."""
    try:
        return read(file)
    except (ValueError, nz.NeuzipError):
        return None


def test_the_readers_agree_about_damage(tmp_path: Path) -> None:
    rng = Random(1)
    sound = [
        *(file for _, file in KINDS if 0 < len(file) < 2000),
        *(compressed_file(ONE, {"a": STREAM}), referring(STREAM), nz_file([FRAME, FRAME])),
    ]
    spare = b'{}[]",:0123456789 \\aeu\xff\0'
    for _ in range(600):
        file = bytearray(rng.choice(sound))
        for _ in range(rng.randint(1, 2)):
            at = min(rng.randrange(len(file)), rng.randrange(400))
            file[at : at + rng.randint(0, 1)] = bytes([rng.choice(spare)]) * rng.randint(0, 1)
        damaged = bytes(file)
        if len(damaged) > 8 and rng.random() < 0.7 and damaged[8:9] == b"{":
            data = min(len(damaged) - 8, rng.choice((0, 1, len(STREAM))))
            damaged = (len(damaged) - 8 - data).to_bytes(8, "little") + damaged[8:]
        found = files.kind(damaged)
        assert found == kind(tmp_path, damaged), damaged
        if found.startswith("neuzip"):
            second = outcome(files.restore, damaged)
            assert outcome(lambda file: native(tmp_path, file), damaged) == second, damaged
