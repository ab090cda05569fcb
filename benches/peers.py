"""The other compressors, one class each, as their own documentation has them run.

With their default checks: zipnn and blosc2 have none, the others have checksums. Modules are
imported when a codec is made, so that a package that is missing costs one row and no more.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from benches.codecs import FRESH, OUT, Codec, Sample
from neuzip_rs._dtypes import ITEMSIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

# The package of each, for the list of versions.
PACKAGES = ("zipnn", "zstandard", "lz4", "blosc2", "openzl", "lmzip", "z4ai")


class Zipnn(Codec):
    """zipnn as its own documentation uses it on bytes; it overwrites its input."""

    name = "zipnn"
    scratches_input = True
    every = 1

    def __init__(self, dtype: str, threads: int) -> None:
        """Makes the coder for one type."""
        zipnn = importlib.import_module("zipnn")
        self.coder = zipnn.ZipNN(input_format="byte", bytearray_dtype=dtype, threads=threads)

    def compress(self, sample: Sample) -> Any:  # noqa: ANN401
        """Compresses."""
        return self.coder.compress(sample.data.data)

    def decoders(self) -> dict[str, Callable[[Any, Sample], Any]]:
        """It allocates its output."""
        return {FRESH: lambda packed, _: self.coder.decompress(packed)}


class Zstd(Codec):
    """The zstandard package, with content checksums; it decompresses with one thread."""

    def __init__(self, level: int, threads: int) -> None:
        """Makes the coders for one level."""
        zstandard = importlib.import_module("zstandard")
        self.name = f"zstd -{level}"
        # Zero is its own single-threaded mode, one would start a worker thread.
        workers = threads if threads > 1 else 0
        self.coder = zstandard.ZstdCompressor(level, threads=workers, write_checksum=True)
        self.decoder = zstandard.ZstdDecompressor()

    def compress(self, sample: Sample) -> Any:  # noqa: ANN401
        """Compresses."""
        return self.coder.compress(sample.data)

    def decoders(self) -> dict[str, Callable[[Any, Sample], Any]]:
        """The package allocates the output."""
        return {FRESH: lambda packed, _: self.decoder.decompress(packed)}


class ZstdPlanes(Zstd):
    """zstd on byte planes: all first bytes of the elements, then all second bytes, and so on."""

    def __init__(self, level: int, dtype: str) -> None:
        """Makes the coders for one level and type."""
        super().__init__(level, 1)
        self.name = f"byte planes, zstd -{level}"
        self.width = ITEMSIZE[dtype]

    def compress(self, sample: Sample) -> Any:  # noqa: ANN401
        """Compresses."""
        planes = np.ascontiguousarray(sample.data.reshape(-1, self.width).T)
        return self.coder.compress(planes.reshape(-1))

    def decoders(self) -> dict[str, Callable[[Any, Sample], Any]]:
        """The package allocates the output, and joining the planes takes another."""
        return {FRESH: self._decode}

    def _decode(self, packed: bytes, _sample: Sample) -> NDArray[np.uint8]:
        planes = np.frombuffer(self.decoder.decompress(packed), np.uint8)
        return np.ascontiguousarray(planes.reshape(self.width, -1).T).reshape(-1)


class Lz4(Codec):
    """lz4 frames with content checksums, on one thread."""

    name = "lz4"

    def __init__(self) -> None:
        """Finds the package."""
        self.frame = importlib.import_module("lz4.frame")

    def compress(self, sample: Sample) -> Any:  # noqa: ANN401
        """Compresses."""
        return self.frame.compress(sample.data, content_checksum=True)

    def decoders(self) -> dict[str, Callable[[Any, Sample], Any]]:
        """The package allocates the output."""
        return {FRESH: lambda packed, _: self.frame.decompress(packed)}


class Blosc2(Codec):
    """blosc2: bytes or bits transposed, then a general coder.

    Tried on BF16, FP32, FP16 and FP8 weights at levels 1 and 5: bytes + zstd at level 1 is smallest
    of all but for tenths of a point, bits + lz4 decodes fastest of those that save anything.
    """

    def __init__(self, coder: str, shuffle: str, dtype: str, threads: int) -> None:
        """Remembers the parameters for one type."""
        self.blosc2 = importlib.import_module("blosc2")
        self.name = f"blosc2 {shuffle}+{coder}"
        self.threads = threads
        self.parameters = {
            "codec": getattr(self.blosc2.Codec, coder.upper()),
            "clevel": 1,
            "typesize": ITEMSIZE[dtype],
            "filters": [getattr(self.blosc2.Filter, shuffle.upper())],
            "filters_meta": [0],
            "nthreads": threads,
        }

    def compress(self, sample: Sample) -> Any:  # noqa: ANN401
        """Compresses."""
        return self.blosc2.compress2(sample.data, **self.parameters)

    def decoders(self) -> dict[str, Callable[[Any, Sample], Any]]:
        """It fills the caller's memory."""
        return {OUT: self._decode}

    def _decode(self, packed: Any, sample: Sample) -> NDArray[np.uint8]:  # noqa: ANN401
        self.blosc2.decompress2(packed, dst=sample.output, nthreads=self.threads)
        return sample.output


class OpenZl(Codec):
    """OpenZL: float fields apart, then its entropy coder; its Python binding has one thread.

    The mantissas of BF16 are stored, as nothing can be gained there; those of wider types go byte
    by byte through the same coder.
    """

    name = "openzl"
    # Float types that it can take apart; of others it codes the bytes.
    NODES: ClassVar = {
        "bfloat16": "BFloat16Deconstruct",
        "float16": "Float16Deconstruct",
        "float32": "Float32Deconstruct",
    }

    def __init__(self, dtype: str) -> None:
        """Builds the graph for one type."""
        self.zl = importlib.import_module("openzl.ext")
        nodes, graphs = self.zl.nodes, self.zl.graphs
        self.compressor = self.zl.Compressor()
        self.compressor.set_parameter(self.zl.CParam.FormatVersion, self.zl.MAX_FORMAT_VERSION)
        entropy = graphs.Entropy()(self.compressor)
        self.element: type[np.generic] = np.uint8
        self.kind = self.zl.Type.Serial
        graph = entropy
        if dtype in self.NODES:
            if dtype == "bfloat16":
                mantissa = graphs.Store()(self.compressor)
            else:
                mantissa = nodes.TransposeSplit()(self.compressor, entropy)
            node = getattr(nodes, self.NODES[dtype])()
            graph = node(self.compressor, sign_frac=mantissa, exponent=entropy)
            self.element = np.uint32 if dtype == "float32" else np.uint16
            self.kind = self.zl.Type.Numeric
        self.compressor.select_starting_graph(graph)

    def compress(self, sample: Sample) -> Any:  # noqa: ANN401
        """Compresses."""
        context = self.zl.CCtx()
        context.ref_compressor(self.compressor)
        return context.compress([self.zl.Input(self.kind, sample.data.view(self.element))])

    def decoders(self) -> dict[str, Callable[[Any, Sample], Any]]:
        """It allocates its output."""
        return {FRESH: self._decode}

    def _decode(self, packed: bytes, _sample: Sample) -> Any:  # noqa: ANN401
        (output,) = self.zl.DCtx().decompress(packed)
        return output.content.as_nparray()


class Lmz(Codec):
    """lmzip: the coder of its archives on pieces of their size, on one thread."""

    name = "lmzip"
    every = 6
    PIECE_BYTES = 8 << 20

    def __init__(self, dtype: str) -> None:
        """Remembers how its planner would describe one type."""
        self.codec = importlib.import_module("lmz.codec")
        self.width = ITEMSIZE[dtype]
        bf16 = dtype == "bfloat16"
        self.kind = self.codec.KIND_BF16 if bf16 else self.codec.KIND_BYTES

    def compress(self, sample: Sample) -> list[tuple[bytes, int, int, int, int]]:
        """Compresses each piece, and joins the parts of each as its archives do."""
        packed = []
        data = sample.data.data
        for start in range(0, len(data), self.PIECE_BYTES):
            piece = data[start : start + self.PIECE_BYTES]
            parts, codec, flags, crc = self.codec.encode_chunk(piece, self.width, kind=self.kind)
            payload = b"".join(parts) if isinstance(parts, list) else bytes(parts)
            packed.append((payload, codec, flags, len(piece), crc))
        return packed

    def decoders(self) -> dict[str, Callable[[Any, Sample], Any]]:
        """Its pieces end up in one place."""
        return {OUT: self._decode}

    def _decode(self, packed: Any, sample: Sample) -> NDArray[np.uint8]:  # noqa: ANN401
        position = 0
        target = sample.output.data
        for payload, codec, flags, length, crc in packed:
            piece = self.codec.decode_chunk(
                memoryview(payload), codec, self.width, flags, length, crc
            )
            target[position : position + length] = piece
            position += length
        return sample.output

    def size(self, packed: Any) -> int:  # noqa: ANN401
        """The payloads without the archive's index."""
        return sum(len(payload) for payload, *_ in packed)


class Z4ai(Codec):
    """z4ai: its default codec, which tries several and keeps the smallest; on one thread."""

    name = "z4ai"
    # What it calls the types that it takes apart; others are bytes to it.
    NAMES: ClassVar = {
        "bfloat16": "bf16",
        "float16": "fp16",
        "float32": "fp32",
        "float64": "fp64",
        "float8_e4m3fn": "fp8_e4m3",
        "float8_e5m2": "fp8_e5m2",
    }

    def __init__(self, dtype: str) -> None:
        """Finds the package."""
        self.z4ai = importlib.import_module("z4ai")
        self.dtype = self.NAMES.get(dtype)

    def compress(self, sample: Sample) -> Any:  # noqa: ANN401
        """Compresses."""
        return self.z4ai.compress(sample.data.data, dtype=self.dtype, threads=1)

    def decoders(self) -> dict[str, Callable[[Any, Sample], Any]]:
        """It allocates its output."""
        return {FRESH: lambda packed, _: self.z4ai.decompress(packed)}


def for_size(dtype: str) -> tuple[list[Codec], dict[str, str]]:
    """Returns the other codecs for a type where only size counts.

    Args:
        dtype: The numpy spelling of the type.

    Returns:
        The codecs, and of those that are missing the reason by name.
    """
    return _made(
        {
            "zipnn": lambda: Zipnn(dtype, 1),
            "lmzip": lambda: Lmz(dtype),
            "openzl": lambda: OpenZl(dtype),
            "z4ai": lambda: Z4ai(dtype),
            "zstd -19": lambda: Zstd(19, 1),
            "byte planes, zstd -19": lambda: ZstdPlanes(19, dtype),
        }
    )


def available(dtype: str, threads: int) -> tuple[list[Codec], dict[str, str]]:
    """Returns the other codecs for a type.

    Args:
        dtype: The numpy spelling of the type.
        threads: How many threads each may use; more than one leaves out those that have only one.

    Returns:
        The codecs, and of those that are missing the reason by name.
    """
    makers: dict[str, Callable[[], Codec]] = {
        "zipnn": lambda: Zipnn(dtype, threads),
        "zstd -1": lambda: Zstd(1, threads),
        "zstd -3": lambda: Zstd(3, threads),
        "blosc2 shuffle+zstd": lambda: Blosc2("zstd", "shuffle", dtype, threads),
        "blosc2 bitshuffle+lz4": lambda: Blosc2("lz4", "bitshuffle", dtype, threads),
    }
    if threads == 1:
        makers["lz4"] = Lz4
        makers["openzl"] = lambda: OpenZl(dtype)
        makers["lmzip"] = lambda: Lmz(dtype)
    return _made(makers)


def _made(makers: Mapping[str, Callable[[], Codec]]) -> tuple[list[Codec], dict[str, str]]:
    found: list[Codec] = []
    missing: dict[str, str] = {}
    for name, make in makers.items():
        try:
            found.append(make())
        except ImportError as error:
            missing[name] = f"not installed ({error})"
    return found, missing


def proved(codecs: list[Codec], sample: Sample) -> tuple[dict[Codec, int], dict[str, str]]:
    """Has every codec restore a tensor; one that cannot is left out, with its reason.

    Args:
        codecs: The other compressors.
        sample: The tensor.

    Returns:
        The compressed size by codec, and of those that failed the reason by name.
    """
    sizes: dict[Codec, int] = {}
    failed: dict[str, str] = {}
    for codec in codecs:
        try:
            sizes[codec] = codec.prove(sample)
        except Exception as error:  # whatever another project raises
            (reason, *_) = str(error).strip().splitlines() or [type(error).__name__]
            failed[codec.name] = f"failed: {reason}"
            sample.restore()
    return sizes, failed


def versions() -> dict[str, str]:
    """Returns the versions of the peers that are installed."""
    result = {}
    for package in PACKAGES:
        try:
            result[package] = version(package)
        except PackageNotFoundError:
            result[package] = "not installed"
    return result
