"""The second reader on real files: what it decodes is what was compressed.

    python -m tests.python.second_corpus FOLDER [--chunks N] [--levels fast default max]

Every `.safetensors` file in a folder is compressed, and next to another file of the same tensors,
where there is one, as differences. Of each result the containers, all headers and all models are
read, and N chunks of a file (0: all of them) are decoded, hashed and compared with the original
bytes: the first and last ones, and others at random. Pure Python takes about a second for each.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from neuzip_rs import safetensors
from tests.python import second_decoder as page
from tests.python import second_files as files
from tests.python.second_delta import decode_delta

# Differences are decoded tensor by tensor.
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
    small = [name for name in deltas if len(expected[name]) <= MOST_DELTA_BYTES]
    bases = files.model(base) if deltas else {}
    for name in small if count == 0 else rng.sample(small, min(count, len(small))):
        if decode_delta(streams.by_name[name], bases[name][1]) != expected[name]:
            raise Disagreement(f"{name}: delta")
        seen["deltas"] += 1
    return seen


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--levels", nargs="+", default=["fast", "default", "max"])
    options = parser.parse_args()
    total: Counter[str] = Counter()
    began = time.monotonic()
    paths = sorted(options.folder.glob("*.safetensors"))
    assert paths, "no .safetensors files there"
    with tempfile.TemporaryDirectory() as scratch:
        packed = Path(scratch) / "packed"
        for path in paths:
            plain = path.read_bytes()
            for level in options.levels:
                # Of large files the slow level is left out, unless all is decoded.
                if level == "max" and len(plain) > 50_000_000 and options.chunks:
                    continue
                safetensors.compress_file(path, packed, level=level, overwrite=True)
                rng = random.Random(f"{path.name} {level}")
                seen = check(plain, packed.read_bytes(), b"", options.chunks, rng)
                total += seen
                print(f"{path.name} {level}: {dict(seen)}", flush=True)
            kind = path.name.partition(".")[2]
            step = path.with_name(f"tinylm_s500.{kind}")
            if path.name.startswith("tinylm_s5") and step != path and step.exists():
                safetensors.compress_file(path, packed, base=step, overwrite=True)
                rng = random.Random(path.name)
                base = step.read_bytes()
                seen = check(plain, packed.read_bytes(), base, options.chunks, rng)
                total += seen
                print(f"{path.name} next to {step.name}: {dict(seen)}", flush=True)
    seconds = time.monotonic() - began
    print(f"{len(paths)} files, {dict(total)}, no disagreement, {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
