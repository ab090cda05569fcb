"""A codec and the bfloat16 type for Zarr 3 arrays.

    import zarr
    zarr.create_array(store, shape=..., dtype="float16", compressors=[{"name": "neuzip"}])

Installed, the package announces both through entry points (`zarr.codecs`, `zarr.data_type`), so
that reading an array needs nothing imported; but zarr 3.1 never looks at those of types: for arrays
of bfloat16 import this module first. The codec takes bytes and gives bytes, and learns the type and
the shape of the chunk from the array: what it stores is one tensor stream.
"""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import ml_dtypes
import numpy
from zarr.abc.codec import BytesBytesCodec
from zarr.core.common import parse_named_configuration
from zarr.core.dtype import data_type_registry
from zarr.core.dtype.npy.float import BaseFloat
from zarr.registry import register_codec

import neuzip_rs as nz
from neuzip_rs._arguments import check_level
from neuzip_rs._dtypes import ITEMSIZE, element_count, parse_dtype
from neuzip_rs._errors import CorruptDataError

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer
    from zarr.core.common import JSON

__all__ = ["BFloat16", "NeuzipCodec"]

_NATIVE: Final = numpy.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class NeuzipCodec(BytesBytesCodec):
    """Compresses the chunks of arrays of weights, and of any others, without losing a bit."""

    is_fixed_size = False

    level: str = "default"
    dtype: str | None = None

    def __init__(self, *, level: str = "default", dtype: str | None = None) -> None:
        """Makes a codec.

        Args:
            level: "fast", "default" or "max".
            dtype: What the elements are, where the array does not say: "bfloat16" for bfloat16
                numbers in a uint16 array. By default the array's own type.
        """
        check_level(level)
        object.__setattr__(self, "level", level)
        object.__setattr__(self, "dtype", None if dtype is None else parse_dtype(dtype))

    @classmethod
    def from_dict(cls, data: "dict[str, JSON]") -> Self:
        """The codec that an array's metadata names."""
        _, options = parse_named_configuration(data, "neuzip", require_configuration=False)
        return cls(**(options or {}))

    def to_dict(self) -> "dict[str, JSON]":
        """The codec as an array's metadata name it."""
        options: dict[str, JSON] = {"level": self.level}
        if self.dtype is not None:
            options["dtype"] = self.dtype
        return {"name": "neuzip", "configuration": options}

    def compute_encoded_size(self, _input_byte_length: int, _chunk_spec: "ArraySpec") -> int:
        """Nobody knows before."""
        raise NotImplementedError

    def _encode_sync(self, chunk_bytes: "Buffer", chunk_spec: "ArraySpec") -> "Buffer":
        data = _bytes_of(chunk_bytes)
        dtype, shape = self._elements(data.nbytes, chunk_spec)
        compressed = nz._native.compress(data, dtype, shape, level=self.level)
        return chunk_spec.prototype.buffer.from_bytes(bytes(compressed))

    def _decode_sync(self, chunk_bytes: "Buffer", chunk_spec: "ArraySpec") -> "Buffer":
        data = _bytes_of(chunk_bytes)
        # A few bytes may stand for a huge array: never more than a chunk can be.
        native = chunk_spec.dtype.to_native_dtype()
        limit = element_count(chunk_spec.shape) * native.itemsize
        try:
            decoded = nz.decompress(data, framework="bytes", max_output_size=_room(limit))
        except nz.OutputTooLargeError as error:
            message = f"a chunk of {limit} bytes is stored as another one: {error}"
            raise CorruptDataError(message) from error
        return chunk_spec.prototype.buffer.from_bytes(decoded)

    async def _encode_single(self, chunk_data: "Buffer", chunk_spec: "ArraySpec") -> "Buffer":
        return await asyncio.to_thread(self._encode_sync, chunk_data, chunk_spec)

    async def _decode_single(self, chunk_data: "Buffer", chunk_spec: "ArraySpec") -> "Buffer":
        return await asyncio.to_thread(self._decode_sync, chunk_data, chunk_spec)

    def _elements(self, nbytes: int, chunk_spec: "ArraySpec") -> tuple[str, tuple[int, ...]]:
        """The type and shape of a chunk; bytes, if codecs before this one have changed it."""
        dtype = self.dtype or chunk_spec.dtype.to_native_dtype().name
        width = ITEMSIZE.get(dtype)
        if width is None or nbytes % width:
            return "uint8", (nbytes,)
        shape = tuple(int(extent) for extent in chunk_spec.shape)
        if element_count(shape) * width != nbytes:
            shape = (nbytes // width,)
        return dtype, shape


def _bytes_of(buffer: "Buffer") -> memoryview:
    data: Any = numpy.ascontiguousarray(buffer.as_numpy_array())
    return memoryview(data).cast("B")


def _room(limit: int) -> int:
    # Codecs before this one may add something, such as checksums and the index of a shard.
    return 2 * limit + (1 << 20)


@dataclass(frozen=True, kw_only=True)
class BFloat16(BaseFloat[Any, Any]):
    """bfloat16 numbers, `ml_dtypes.bfloat16` in memory and "bfloat16" in metadata."""

    dtype_cls = type(_NATIVE)
    _zarr_v3_name = "bfloat16"
    _zarr_v2_names: ClassVar[tuple[str, ...]] = ("bfloat16",)

    @classmethod
    def from_native_dtype(cls, dtype: Any) -> Self:  # noqa: ANN401 - any numpy type
        """The type of arrays of this numpy type."""
        if dtype != _NATIVE:
            from zarr.core.dtype.common import DataTypeValidationError

            message = f"Invalid data type: {dtype}. Expected bfloat16"
            raise DataTypeValidationError(message)
        return cls()

    def to_native_dtype(self) -> Any:  # noqa: ANN401 - ml_dtypes has no types
        """The numpy type."""
        return _NATIVE

    def to_json(self, zarr_format: Any) -> Any:  # noqa: ANN401 - as declared there
        """The type as an array's metadata name it."""
        if zarr_format == 2:
            return {"name": "bfloat16", "object_codec_id": None}
        return "bfloat16"

    @property
    def item_size(self) -> int:
        """Bytes of an element."""
        return int(_NATIVE.itemsize)


register_codec("neuzip", NeuzipCodec)
data_type_registry.register("bfloat16", BFloat16)
