"""What gets damaged: neuzip_rs as a stream, a file, a directory and a delta, and the peers.

A subject packs bytes of BF16 weights into members, which are files or one stream in memory, and
restores them. All peers are taken as `peers.py` has them, plus zstd without its checksum.
"""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

import neuzip_rs
import neuzip_rs.directory
import neuzip_rs.safetensors
from benches import peers
from benches.codecs import LEVELS, Codec, Sample
from benches.models import Tensor, write_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

DTYPE = "bfloat16"
COLUMNS = 64

Members = dict[str, bytes]


class Subject(ABC):
    """Something that packs weights and restores them."""

    name: str
    # Every exception but these is a crash; of the peers anything that is raised counts as noticed.
    raises: tuple[type[BaseException], ...] = (Exception,)
    # Whether headers can be changed and their checksums made anew.
    is_ours = False

    @abstractmethod
    def pack(self, data: NDArray[np.uint8]) -> Members:
        """Packs bytes of BF16 weights."""

    @abstractmethod
    def restore(self, members: Mapping[str, bytes], size: int) -> bytes:
        """Restores what was packed, which had `size` bytes."""

    def restore_limited(self, members: Mapping[str, bytes], limit: int) -> None:
        """Restores what must not have more bytes than the limit, in the peer's own way.

        Raises:
            NotImplementedError: It has no such way.
        """
        raise NotImplementedError


class Ours(Subject):
    """What all of ours have in common."""

    is_ours = True
    raises = (neuzip_rs.NeuzipError, OSError, MemoryError)


class Stream(Ours):
    """A tensor in memory."""

    def __init__(self, level: str) -> None:
        """Remembers the level."""
        self.name = f"neuzip stream, {level}"
        self.level = level

    def base(self, size: int) -> Any:  # noqa: ANN401, ARG002 - an array or nothing
        """What differences are taken from."""
        return None

    def pack(self, data: NDArray[np.uint8]) -> Members:
        """Compresses a matrix."""
        sample = Sample(DTYPE, data, (-1, COLUMNS))
        base = self.base(data.size)
        packed = neuzip_rs.compress(sample.array, level=self.level, base=base, threads=1)
        return {"": bytes(packed)}

    def restore(self, members: Mapping[str, bytes], size: int) -> bytes:
        """Decompresses to bytes."""
        base = self.base(size)
        return bytes(neuzip_rs.decompress(members[""], framework="bytes", base=base, threads=1))

    def restore_limited(self, members: Mapping[str, bytes], limit: int) -> None:
        """By `max_output_size`."""
        neuzip_rs.decompress(members[""], framework="bytes", max_output_size=limit)


class DeltaStream(Stream):
    """A tensor as its differences from another one."""

    def __init__(self) -> None:
        """Takes the default level."""
        super().__init__("default")
        self.name = "neuzip stream, delta"
        self.bases: dict[int, Any] = {}

    def base(self, size: int) -> Any:  # noqa: ANN401
        """A matrix that the weights of the trials are near to."""
        if size not in self.bases:
            data = weights(size, 1, 0.0)
            self.bases[size] = Sample(DTYPE, data, (-1, COLUMNS)).array
        return self.bases[size]


class Files(Ours):
    """What reads and writes files, in a folder in memory."""

    def __init__(self, scratch: Path) -> None:
        """Makes the folder."""
        self.folder = scratch / "files"
        self.folder.mkdir()
        self.level = "default"

    def write(self, members: Mapping[str, bytes]) -> None:
        """Writes the members."""
        for name, content in members.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


class File(Files):
    """Bytes as a `.nz` file."""

    name = "neuzip .nz file"

    def pack(self, data: NDArray[np.uint8]) -> Members:
        """Compresses a file."""
        source, target = self.folder / "weights.bin", self.folder / "weights.bin.nz"
        source.write_bytes(data.tobytes())
        neuzip_rs.safetensors.compress_file(source, target, overwrite=True)
        return {target.name: target.read_bytes()}

    def restore(self, members: Mapping[str, bytes], size: int) -> bytes:  # noqa: ARG002
        """Restores the file."""
        (name,) = members
        self.write(members)
        return self.restored(self.folder / name)

    def restored(self, packed: Path, limit: int | None = None) -> bytes:
        """Restores one file."""
        target = self.folder / "restored"
        target.unlink(missing_ok=True)
        neuzip_rs.safetensors.decompress_file(packed, target, threads=1, max_output_size=limit)
        return target.read_bytes()

    def restore_limited(self, members: Mapping[str, bytes], limit: int) -> None:
        """By `max_output_size`."""
        (name,) = members
        self.write(members)
        self.restored(self.folder / name, limit)


def plain_file(path: Path, data: NDArray[np.uint8], first: float = 1) -> None:
    """Writes a `.safetensors` file with the weights, one tensor of them twice, and some others."""
    rows = data.size // 2 // COLUMNS
    half = data[: data.size // 2 // 128 * 128]
    bias = np.frombuffer(np.arange(60, dtype="<f4") + np.float32(first), np.uint8)
    write_tensors(
        path,
        None,
        [
            Tensor("layer.weight", "BF16", (rows, COLUMNS), data),
            Tensor("layer.half", "BF16", (half.size // 2,), half),
            Tensor("layer.tied", "BF16", (half.size // 2,), half),
            Tensor("layer.bias", "F32", (60,), bias),
            Tensor("layer.zeros", "F32", (100,), np.zeros(400, np.uint8)),
            Tensor("layer.none", "F32", (0, 4), np.zeros(0, np.uint8)),
        ],
    )


class SafetensorsFile(File):
    """A compressed `.safetensors` file."""

    name = "neuzip .nz.safetensors"

    def pack(self, data: NDArray[np.uint8]) -> Members:
        """Compresses a file."""
        source, target = self.folder / "m.safetensors", self.folder / "m.nz.safetensors"
        plain_file(source, data)
        neuzip_rs.safetensors.compress_file(source, target, overwrite=True)
        return {target.name: target.read_bytes()}


class DeltaFile(File):
    """A compressed `.safetensors` file of differences; the base beside it stays whole."""

    name = "neuzip .nz.safetensors, delta"

    def pack(self, data: NDArray[np.uint8]) -> Members:
        """Compresses a file next to its base."""
        base = self.folder / f"b{data.size}.safetensors"
        plain_file(base, weights(data.size, 1, 0.0), 2)
        source, target = self.folder / "d.safetensors", self.folder / "d.nz.safetensors"
        plain_file(source, data)
        neuzip_rs.safetensors.compress_file(source, target, base=base, overwrite=True)
        return {target.name: target.read_bytes()}


class Directory(Files):
    """A model directory: shards, index, configuration and other files."""

    name = "neuzip directory"

    def pack(self, data: NDArray[np.uint8]) -> Members:
        """Compresses a directory."""
        model = self.folder / "model"
        packed = self.folder / "model-nz"
        for path in (model, packed):
            shutil.rmtree(path, ignore_errors=True)
        (model / "extra").mkdir(parents=True)
        plain_file(model / "a.safetensors", data)
        # The same in another file: stored as references.
        shutil.copy(model / "a.safetensors", model / "extra" / "copy.safetensors")
        (model / "config.json").write_text('{"model_type": "tiny", "torch_dtype": "bfloat16"}\n')
        (model / "words.txt").write_text("some words\n" * 20)
        neuzip_rs.directory.compress_directory(model, packed)
        files = [path for path in sorted(packed.rglob("*")) if path.is_file()]
        return {str(path.relative_to(packed)): path.read_bytes() for path in files}

    def restore(self, members: Mapping[str, bytes], size: int) -> bytes:  # noqa: ARG002
        """Restores the directory."""
        packed, restored = self.folder / "damaged-nz", self.folder / "restored"
        for path in (packed, restored):
            shutil.rmtree(path, ignore_errors=True)
        self.write({f"damaged-nz/{name}": content for name, content in members.items()})
        neuzip_rs.directory.decompress_directory(packed, restored, threads=1)
        files = [path for path in sorted(restored.rglob("*")) if path.is_file()]
        return b"".join(
            str(path.relative_to(restored)).encode() + path.read_bytes() for path in files
        )

    def restore_limited(self, members: Mapping[str, bytes], limit: int) -> None:
        """By `max_output_size`."""
        packed, restored = self.folder / "damaged-nz", self.folder / "restored"
        for path in (packed, restored):
            shutil.rmtree(path, ignore_errors=True)
        self.write({f"damaged-nz/{name}": content for name, content in members.items()})
        neuzip_rs.directory.decompress_directory(packed, restored, max_output_size=limit)


class Peer(Subject):
    """One of `peers.py`."""

    def __init__(self, codec: Codec, name: str | None = None) -> None:
        """Takes the codec."""
        self.codec = codec
        self.name = name or codec.name
        self.samples: dict[int, Sample] = {}

    def sample(self, size: int) -> Sample:
        """Memory to decode into."""
        if size not in self.samples:
            self.samples[size] = Sample(DTYPE, np.zeros(size, np.uint8), (-1, COLUMNS))
        return self.samples[size]

    def pack(self, data: NDArray[np.uint8]) -> Members:
        """Compresses bytes."""
        packed = self.codec.compress(Sample(DTYPE, data, (-1, COLUMNS)))
        if isinstance(packed, list):
            # lmzip: what its archive knows of a piece stands in the name, which is not damaged.
            return {
                json.dumps([at, *about]): payload for at, (payload, *about) in enumerate(packed)
            }
        return {"": bytes(packed)}

    def restore(self, members: Mapping[str, bytes], size: int) -> bytes:
        """Decompresses bytes."""
        sample = self.sample(size)
        # What the trial before has left must not pass for a result.
        sample.output.fill(0xA5)
        packed: Any = members.get("")
        if packed is None:
            pieces = [(content, *json.loads(about)) for about, content in members.items()]
            packed = [(content, *about) for content, _, *about in pieces]
        (decode, *_) = self.codec.decoders().values()
        return bytes(memoryview(decode(packed, sample)).cast("B"))


class ZstdPeer(Peer):
    """zstd, whose package has a limit."""

    def restore_limited(self, members: Mapping[str, bytes], limit: int) -> None:
        """By the size that the frame states."""
        zstandard = __import__("zstandard")
        if zstandard.frame_content_size(members[""]) > limit:
            message = "too large"
            raise ValueError(message)


def weights(size: int, seed: int, change: float) -> NDArray[np.uint8]:
    """Returns bytes of BF16 weights: a matrix, moved by so much of its scale from its base."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(size // 2).astype(np.float32) * np.float32(0.02)
    if change:
        near = np.random.default_rng(1).standard_normal(size // 2).astype(np.float32)
        values = near * np.float32(0.02) + values * np.float32(change)
    return (values.view(np.uint32) >> 16).astype("<u2").view(np.uint8)


def makers(scratch: Path) -> dict[str, Callable[[], Subject]]:
    """Returns what makes each subject, by name, in the order of the table."""
    found: dict[str, Callable[[], Subject]] = {
        f"neuzip stream, {level}": lambda level=level: Stream(level)  # type: ignore[misc]
        for level in LEVELS
    }
    found["neuzip stream, delta"] = DeltaStream
    for kind in (File, SafetensorsFile, DeltaFile, Directory):
        found[kind.name] = lambda kind=kind: kind(scratch)  # type: ignore[misc]
    found["zstd -3, checksum"] = lambda: ZstdPeer(peers.Zstd(3, 1), "zstd -3, checksum")
    found["zstd -3, no checksum"] = lambda: _zstd_without_checksum()
    found["lz4 frame, checksum"] = lambda: Peer(peers.Lz4(), "lz4 frame, checksum")
    found["blosc2 shuffle+zstd"] = lambda: Peer(peers.Blosc2("zstd", "shuffle", DTYPE, 1))
    found["openzl"] = lambda: Peer(peers.OpenZl(DTYPE))
    found["lmzip"] = lambda: Peer(peers.Lmz(DTYPE))
    found["z4ai"] = lambda: Peer(peers.Z4ai(DTYPE))
    found["zipnn"] = lambda: Peer(peers.Zipnn(DTYPE, 1))
    return found


def _zstd_without_checksum() -> Subject:
    codec = peers.Zstd(3, 1)
    codec.coder = __import__("zstandard").ZstdCompressor(3)
    return ZstdPeer(codec, "zstd -3, no checksum")
