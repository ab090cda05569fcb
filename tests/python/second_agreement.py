"""What the second reader decodes from one compressed file is what was compressed.

    python -m tests.python.second_agreement PLAIN PACKED BASE CHUNKS SEED

prints how much of each kind was read, as JSON, or why the readers do not agree. BASE may be empty.
It needs xxhash, not neuzip_rs, and so any Python runs it.
"""

import json
import random
import sys
from collections import Counter
from pathlib import Path

from tests.python import second_decoder as page
from tests.python import second_files as files
from tests.python.second_delta import decode_delta

# Differences are decoded tensor by tensor: of longer ones none, unless all is decoded.
MOST_DELTA_BYTES = 1 << 17


class Disagreement(AssertionError):
    """The two readers see different bytes."""


def check(plain: bytes, packed: bytes, base: bytes, count: int, rng: random.Random) -> Counter[str]:
    """Compares one compressed file with what it was made from."""
    header, data = files.read_plain(plain)
    outer, stored = files.read_plain(packed)
    original = files.read_embedded(outer.metadata[files.KEY])
    if original.text != header.text:
        raise Disagreement("the header is another one")
    streams = files.Streams(outer, original, stored)
    seen: Counter[str] = Counter(tensors=len(original.tensors))
    expected: dict[str, bytes] = {}
    for tensor in original.tensors:
        streams.check_form(tensor)
        # Tensors that share a stream lie in it one after the other.
        owner = streams.places.get(tensor.name, (tensor.name,))[0]
        seen["bundled"] += owner != tensor.name
        expected[owner] = expected.get(owner, b"") + data[tensor.begin : tensor.end]
    chunks: list[tuple[str, int]] = []
    parsed: dict[str, page.Stream] = {}
    deltas = []
    for name, content in expected.items():
        stream = parsed[name] = page.parse(streams.by_name[name])
        if stream.body == page.CONSTANT_BODY:
            if stream.element * (stream.nbytes // len(stream.element)) != content:
                raise Disagreement(f"{name}: constant")
            seen["constants"] += 1
        elif stream.body == page.CHUNKED_BODY:
            chunks += [(name, number) for number in range(len(stream.storages))]
        elif stream.body == page.REFERENCE_BODY:
            first = next(t for t in original.tensors if t.name == stream.name)
            if data[first.begin : first.end] != content:
                raise Disagreement(f"{name}: reference")
            seen["references"] += 1
        else:
            deltas.append(name)
    seen["chunks"] = len(chunks)
    chosen = chunks if count == 0 else rng.sample(chunks, min(count, len(chunks)))
    if chunks and count:
        chosen += [chunks[0], chunks[-1]]
    for name, number in chosen:
        stream = parsed[name]
        begin = number * stream.chunk_bytes
        found = page.decode_chunk(stream, number)
        same = found == expected[name][begin : begin + stream.chunk_bytes]
        if not same or page.chunk_hash(found) != stream.hashes[number]:
            raise Disagreement(f"{name}: chunk {number}")
        seen["decoded"] += 1
    if count:
        small = [name for name in deltas if len(expected[name]) <= MOST_DELTA_BYTES]
        deltas = rng.sample(small, min(count, len(small)))
    bases = files.model(base) if deltas else {}
    for name in deltas:
        if decode_delta(streams.by_name[name], bases[name][1]) != expected[name]:
            raise Disagreement(f"{name}: delta")
        seen["deltas"] += 1
    return seen


def main() -> None:
    plain, packed, base, count, seed = sys.argv[1:]
    content = [Path(path).read_bytes() if path else b"" for path in (plain, packed, base)]
    print(json.dumps(check(*content, int(count), random.Random(seed))))


if __name__ == "__main__":
    main()
