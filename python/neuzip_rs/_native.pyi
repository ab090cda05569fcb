# The Rust core, as Python sees it. Private: the public names are in `neuzip_rs`.

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self, SupportsIndex, TypeAlias, final

from typing_extensions import Buffer

__all__ = [
    "Catalog",
    "CompressedTensor",
    "SafetensorsFile",
    "StreamCompressor",
    "StreamDecompressor",
    "__version__",
    "assemble_constant",
    "assemble_prelude",
    "check_memory",
    "chunk_log2",
    "compress",
    "compress_file",
    "content_hash",
    "content_kind",
    "decompress_file",
    "decompress_into",
    "decompress_to_use",
    "device_plan",
    "estimate",
    "references",
    "simd_tier",
    "stream_header",
    "verify_file",
    "write_safetensors",
    "zipnn_decompress",
    "zipnn_decompress_file",
    "zipnn_header",
]

_Any: TypeAlias = Any  # an index of any framework, and what comes of it

__version__: Final[str]

class _Buffer:
    # Not in CompressedTensor itself: Python shows the method from 3.12 on only.
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class CompressedTensor(_Buffer):
    @property
    def framework(self) -> str | None: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def base_hash(self) -> bytes | None: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def original_nbytes(self) -> int: ...
    @property
    def ratio(self) -> float: ...
    @staticmethod
    def from_bytes(data: Buffer, /, *, framework: str | None = None) -> CompressedTensor: ...
    def info(self) -> dict[str, Any]: ...
    def explain(self, *, measure: bool = False) -> dict[str, Any]: ...
    def __bytes__(self) -> bytes: ...
    def __getitem__(self, key: _Any, /) -> _Any: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __copy__(self) -> Self: ...
    def __deepcopy__(self, memo: _Any, /) -> Self: ...
    def __reduce__(self) -> tuple[Any, ...]: ...

def compress(
    data: Buffer,
    dtype: str,
    shape: Sequence[SupportsIndex],
    *,
    level: str = "default",
    chunk_bytes: int | None = None,
    threads: int | None = None,
    framework: str | None = None,
    hint: str | None = None,
    base: Buffer | None = None,
) -> CompressedTensor: ...
def estimate(
    data: Buffer,
    dtype: str,
    shape: Sequence[SupportsIndex],
    *,
    level: str = "default",
    threads: int | None = None,
    hint: str | None = None,
) -> dict[str, Any]: ...
def decompress_into(
    source: Buffer | CompressedTensor,
    out: Buffer,
    *,
    start: int = 0,
    verify: bool = True,
    threads: int | None = None,
    fresh: bool = False,
    base: Buffer | None = None,
) -> None: ...
def decompress_to_use(
    source: _Any, out: _Any, start: int, nbytes: int, threads: int | None, /
) -> None: ...
def assemble_constant(dtype: str, shape: Sequence[int], element: bytes) -> bytes: ...
def assemble_prelude(
    dtype: str,
    shape: Sequence[int],
    chunk_log2: int,
    model: tuple[int, int, bool, int, bool, Sequence[tuple[int, int]]] | None,
    scale: tuple[int, int, bytes, bytes] | None,
    chunks: Sequence[tuple[int, int, int]],
) -> bytes: ...
def chunk_log2(dtype: str, nbytes: int, *, level: str = "default") -> int: ...
def device_plan(
    streams: Sequence[tuple[Buffer | CompressedTensor, int, int, int | None]],
    *,
    verify: bool = True,
) -> tuple[bytes, int, int]: ...
def stream_header(data: Buffer) -> tuple[str, tuple[int, ...], int]: ...
def simd_tier() -> str: ...
def check_memory(nbytes: int) -> None: ...
def content_hash(data: Buffer) -> bytes: ...
def content_kind(path: str) -> str: ...
def compress_file(
    src: str,
    dst: str,
    *,
    level: str = "default",
    threads: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], object] | None = None,
    base: str | None = None,
    base_path: str | None = None,
) -> tuple[int, int]: ...
def decompress_file(
    src: str,
    dst: str,
    *,
    threads: int | None = None,
    overwrite: bool = False,
    verify: bool = True,
    max_output_size: int | None = None,
    progress: Callable[[int, int], object] | None = None,
    base: str | None = None,
) -> tuple[int, int]: ...
def references(src: str, *, check: bool = False) -> list[str]: ...
def verify_file(
    src: str,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
    base: str | None = None,
) -> tuple[int, int]: ...

@final
class StreamCompressor:
    def __new__(cls, *, level: str = "default", threads: int | None = None) -> Self: ...
    def feed(self, data: Buffer) -> bytes: ...
    def finish(self) -> bytes: ...

@final
class StreamDecompressor:
    def __new__(
        cls,
        *,
        threads: int | None = None,
        verify: bool = True,
        max_output_size: int | None = None,
        beside: str | None = None,
    ) -> Self: ...
    def feed(self, data: Buffer) -> bytes: ...
    def finish(self) -> None: ...

@final
class Catalog:
    def __new__(
        cls,
        root: str,
        names: Sequence[str],
        *,
        threads: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Self: ...
    def compress_file(
        self,
        name: str,
        src: str,
        dst: str,
        *,
        level: str = "default",
        threads: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> tuple[int, int]: ...
    def compress_ranges(
        self,
        name: str,
        src: str,
        dst: str,
        ranges: Sequence[tuple[int, int]],
        *,
        level: str = "default",
        threads: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> tuple[int, int] | None: ...

@final
class SafetensorsFile:
    def __new__(cls, path: str, *, base: str | None = None, filled_in: bool = False) -> Self: ...
    @property
    def base(self) -> str | None: ...
    def base_files(self) -> list[Path]: ...
    def check_base(self, *, threads: int | None = None) -> None: ...
    @property
    def compressed(self) -> bool: ...
    @property
    def metadata(self) -> dict[str, str] | None: ...
    def keys(self) -> list[str]: ...
    def dtype(self, name: str) -> str: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def nbytes(self, name: str) -> int: ...
    def stored_nbytes(self, name: str) -> int: ...
    def bundle(self, name: str) -> str | None: ...
    def places(self) -> list[tuple[str, int, int, str, int, bytes, int, int]]: ...
    def info(self, name: str) -> dict[str, Any] | None: ...
    def explain(self, name: str, *, measure: bool = False) -> dict[str, Any]: ...
    def estimate(
        self,
        *,
        catalog: tuple[Catalog, str] | None = None,
        level: str = "default",
        threads: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> list[dict[str, Any]]: ...
    def read_into(
        self,
        name: str,
        out: Buffer,
        *,
        start: int = 0,
        verify: bool = True,
        threads: int | None = None,
        fresh: bool = False,
    ) -> None: ...
    def layouts(self) -> list[tuple[str, str, tuple[int, ...], int]]: ...
    def read_many(
        self,
        numbers: Sequence[int],
        outs: Sequence[Buffer | _Any],
        *,
        verify: bool = True,
        threads: int | None = None,
    ) -> None: ...
    def close(self) -> None: ...

def write_safetensors(
    dst: str | None,
    tensors: Sequence[tuple[str, str, Sequence[int], Buffer, str]],
    metadata: dict[str, str] | None,
    *,
    level: str = "default",
    threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
    base: str | None = None,
    base_path: str | None = None,
) -> bytes | None: ...
def zipnn_decompress_file(
    src: str,
    dst: str,
    *,
    threads: int | None = None,
    overwrite: bool = False,
    max_output_size: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[int, int]: ...
def zipnn_decompress(
    data: Buffer, *, threads: int | None = None, max_output_size: int | None = None
) -> bytes: ...
def zipnn_header(data: Buffer) -> tuple[str, list[int] | None, int]: ...
