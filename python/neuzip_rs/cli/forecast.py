"""What compressing files would give, as JSON objects like those of `neuzip info`."""

import base64
import json
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from neuzip_rs import _native
from neuzip_rs._explain import Explanation
from neuzip_rs._spelling import NAMES
from neuzip_rs.cli.contents import directory_facts, merged, tensor_facts
from neuzip_rs.cli.report import ratio
from neuzip_rs.directory.content import COMPRESSED_KINDS, Progress
from neuzip_rs.directory.doubles import catalog_for, catalog_of, in_order
from neuzip_rs.directory.transfer import Meter
from neuzip_rs.directory.tree import scan

# Of a .nz file (docs/format-files.md): original bytes in a frame, bytes around all frames, and the
# length of one.
_FRAME_BYTES: Final = 16 << 20
_AROUND_FRAMES: Final = 25
_FRAME_LENGTH: Final = 4


class Forecast:
    """Looks at files without writing any."""

    def __init__(self, level: str, threads: int | None, progress: Progress) -> None:
        """Prepares to look at files.

        Args:
            level: "fast", "default" or "max".
            threads: How many threads may work.
            progress: Called with the bytes done and the bytes in all.
        """
        self._level = level
        self._threads = threads
        self._progress = progress

    def directory(self, directory: Path) -> dict[str, Any]:
        """All files of a model directory: .safetensors files are compressed, others copied."""
        tree = scan(directory)
        meter = Meter(self._progress, sum(file.size for file in tree.files))
        kinds = {file.name: _native.content_kind(str(file.path)) for file in tree.files}
        shards = [file for file in tree.files if kinds[file.name] == "safetensors"]
        shards = in_order(shards, shards)
        catalog = catalog_of(directory, shards, [], self._threads, self._progress)
        files: list[dict[str, Any]] = []
        for file in tree.files:
            kind = kinds[file.name]
            with meter.part(file.size) as progress:
                if kind == "safetensors":
                    inner = Forecast(self._level, self._threads, progress)
                    known = catalog_for(file.name, catalog)
                    named = None if known is None else (known, file.name)
                    facts = inner.file(file.path, kind, named)
                else:
                    facts = {
                        "kind": kind,
                        "original_bytes": file.size,
                        "compressed_bytes": None,
                        "ratio": None,
                        "tensors": [],
                    }
            files.append({"path": file.name, **facts})
        return directory_facts(files)

    def file(
        self, path: Path, kind: str, catalog: tuple[_native.Catalog, str] | None = None
    ) -> dict[str, Any]:
        """A file and the tensors in it.

        Args:
            path: Where it is.
            kind: What `content_kind` says of it.
            catalog: What its directory has in common, and the name of the file there.

        Raises:
            ValueError: It is compressed already.
        """
        if kind in COMPRESSED_KINDS:
            message = f"{path} is already compressed; neuzip info says where its bits go"
            raise ValueError(message)
        original = path.stat().st_size
        if kind == "safetensors":
            compressed, tensors = self._safetensors(path, catalog)
        else:
            compressed, tensors = self._frames(path, original)
        return {
            "kind": kind,
            "original_bytes": original,
            "compressed_bytes": compressed,
            "ratio": ratio(compressed, original),
            "tensors": tensors,
        }

    def _safetensors(
        self, path: Path, catalog: tuple[_native.Catalog, str] | None
    ) -> tuple[int, list[dict[str, Any]]]:
        with closing(_native.SafetensorsFile(str(path))) as file:
            explained = file.estimate(
                catalog=catalog, level=self._level, threads=self._threads, progress=self._progress
            )
            tensors = [
                _tensor(name, NAMES.get(dtype, dtype), shape, Explanation.from_native(facts))
                for (name, dtype, shape, _), facts in zip(file.layouts(), explained, strict=True)
            ]
            streams = {tensor["name"]: tensor["compressed_bytes"] for tensor in tensors}
            head = _header_bytes(path, file.metadata, streams)
        return head + sum(streams.values()), tensors

    def _frames(self, path: Path, original: int) -> tuple[int, list[dict[str, Any]]]:
        frames: list[dict[str, Any]] = []
        # Not mapped: a map that another process cuts short would end this one.
        with path.open("rb") as file:
            for start in range(0, original, _FRAME_BYTES):
                frames.append(self._frame(file.read(min(_FRAME_BYTES, original - start))))
                self._progress(min(original, start + _FRAME_BYTES), original)
        compressed = _AROUND_FRAMES + sum(
            _FRAME_LENGTH + frame["compressed_bytes"] for frame in frames
        )
        return compressed, [merged(path.name, frames, original, compressed)]

    def _frame(self, data: bytes) -> dict[str, Any]:
        facts = _native.estimate(
            data, "uint8", (len(data),), level=self._level, threads=self._threads
        )
        explanation = Explanation.from_native(facts)
        return _tensor("", "uint8", (explanation.original_bytes,), explanation)


def _tensor(
    name: str, dtype: str, shape: tuple[int, ...], explanation: Explanation
) -> dict[str, Any]:
    info = {**explanation.to_json(), "modes": [explanation.modes]}
    coded = [field.table_bits for field in explanation.fields if field.table_bits is not None]
    info["entropy_bits"] = coded[0] if coded else None
    facts = tensor_facts(
        name, dtype, shape, explanation.original_bytes, explanation.stored_bytes, info
    )
    return {**facts, "exact": explanation.exact}


def _header_bytes(path: Path, metadata: dict[str, str] | None, streams: dict[str, int]) -> int:
    """About what the header of a compressed .safetensors file takes."""
    with path.open("rb") as file:
        original = file.read(int.from_bytes(file.read(8), "little"))
    embedded = base64.b64encode(bytes(12) + zlib.compress(original, wbits=-15)).decode("ascii")
    outer: dict[str, Any] = {"__metadata__": {**(metadata or {}), "neuzip.header": embedded}}
    position = 0
    for name, size in streams.items():
        offsets = [position, position + size]
        outer[name] = {"dtype": "U8", "shape": [size], "data_offsets": offsets}
        position += size
    return 8 + len(json.dumps(outer, separators=(",", ":"), ensure_ascii=False).encode("utf-8"))
