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


def streams_of(packed: bytes) -> tuple[files.Header, dict[str, bytes]]:
    outer, data = files.read_plain(packed)
    original = files.read_embedded(outer.metadata[files.KEY])
    assert [t.name for t in outer.tensors] == [t.name for t in original.tensors]
    return original, {t.name: data[t.begin : t.end] for t in outer.tensors}


def check(plain: bytes, packed: bytes, base: bytes, count: int, rng: random.Random) -> Counter[str]:
    """Compares one compressed file with what it was made from."""
    header, data = files.read_plain(plain)
    original, streams = streams_of(packed)
    if original.text != header.text:
        raise Disagreement("the header is another one")
    seen: Counter[str] = Counter(tensors=len(original.tensors))
    chunks: list[tuple[files.Tensor, int]] = []
    parsed: dict[str, page.Stream] = {}
    deltas = []
    for tensor in original.tensors:
        stream = page.parse(streams[tensor.name])
        files.check_form(tensor, stream)
        expected = data[tensor.begin : tensor.end]
        parsed[tensor.name] = stream
        if stream.body == page.CONSTANT_BODY:
            if stream.element * (stream.nbytes // len(stream.element)) != expected:
                raise Disagreement(f"{tensor.name}: constant")
            seen["constants"] += 1
        elif stream.body == page.CHUNKED_BODY:
            chunks += [(tensor, number) for number in range(len(stream.storages))]
        elif stream.body == page.REFERENCE_BODY:
            first = next(t for t in original.tensors if t.name == stream.name)
            if data[first.begin : first.end] != expected:
                raise Disagreement(f"{tensor.name}: reference")
            seen["references"] += 1
        else:
            deltas.append(tensor)
    seen["chunks"] = len(chunks)
    chosen = chunks if count == 0 else rng.sample(chunks, min(count, len(chunks)))
    if chunks and count:
        chosen += [chunks[0], chunks[-1]]
    for tensor, number in chosen:
        stream = parsed[tensor.name]
        begin = tensor.begin + number * stream.chunk_bytes
        expected = data[begin : min(begin + stream.chunk_bytes, tensor.end)]
        found = page.decode_chunk(stream, number)
        if found != expected or page.chunk_hash(found) != stream.hashes[number]:
            raise Disagreement(f"{tensor.name}: chunk {number}")
        seen["decoded"] += 1
    small = [t for t in deltas if t.end - t.begin <= MOST_DELTA_BYTES]
    bases = files.model(base) if deltas else {}
    for tensor in small if count == 0 else rng.sample(small, min(count, len(small))):
        found = decode_delta(streams[tensor.name], bases[tensor.name][1])
        if found != data[tensor.begin : tensor.end]:
            raise Disagreement(f"{tensor.name}: delta")
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
