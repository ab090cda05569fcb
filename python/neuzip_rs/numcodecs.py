"""A codec for numcodecs, and so for Zarr 2 arrays, kerchunk and whatever else takes its codecs.

    import numcodecs
    codec = numcodecs.get_codec({"id": "neuzip", "level": "default"})

Installed, the package announces it through the entry point group `numcodecs.codecs`; nothing has
to be imported. What it encodes is one tensor stream (docs/format.md).
"""

from typing import TYPE_CHECKING, Any, Final

import numpy
from numcodecs.abc import Codec
from numcodecs.compat import ensure_contiguous_ndarray

import neuzip_rs as nz
from neuzip_rs._arguments import check_level
from neuzip_rs._dtypes import ITEMSIZE, parse_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["NeuzipCodec"]

_BYTES: Final = numpy.dtype("uint8")


class NeuzipCodec(Codec):
    """Compresses arrays of weights, and any others, without losing a bit."""

    codec_id = "neuzip"

    def __init__(self, level: str = "default", dtype: str | None = None) -> None:
        """Makes a codec.

        Args:
            level: "fast", "default" or "max".
            dtype: What the elements are, where the array does not say: "bfloat16" for bfloat16
                numbers in a uint16 array, or for plain bytes. By default the array's own type.
        """
        check_level(level)
        self.level = level
        self.dtype = None if dtype is None else parse_dtype(dtype)

    def encode(self, buf: Any) -> nz.CompressedTensor:  # noqa: ANN401 - any buffer
        """Compresses an array, or any buffer."""
        return nz.compress(_described(buf, self.dtype), level=self.level)

    def decode(self, buf: Any, out: Any = None) -> "NDArray[Any]":  # noqa: ANN401 - any buffer
        """Restores the bytes that were compressed.

        Args:
            buf: What `encode` returned, or its bytes.
            out: A buffer to fill, of the size of the original.

        Returns:
            `out`, or the bytes.

        Raises:
            CorruptDataError: If the bytes are damaged.
        """
        data = ensure_contiguous_ndarray(buf).view(_BYTES)
        if out is None:
            decoded = nz.decompress(data, framework="bytes")
            return numpy.frombuffer(decoded, dtype=_BYTES)
        nz.decompress(data, out=memoryview(ensure_contiguous_ndarray(out).view(_BYTES)))
        restored: NDArray[Any] = out
        return restored


def _described(buf: Any, dtype: str | None) -> Any:  # noqa: ANN401 - an array, or a buffer
    """The array, its elements as what they are; as bytes where the format has no such elements."""
    array = buf if isinstance(buf, numpy.ndarray) else ensure_contiguous_ndarray(buf)
    if array.dtype.hasobject:
        message = "arrays of Python objects cannot be compressed"
        raise TypeError(message)
    if array.ndim and not (array.flags.c_contiguous or array.flags.f_contiguous):
        array = numpy.ascontiguousarray(array)
    if array.flags.f_contiguous and not array.flags.c_contiguous:
        # Chunks in Fortran order are decoded in that order: what counts is the order in memory.
        array = array.T
    name = array.dtype.name if array.dtype.isnative else None
    if dtype is None:
        return array if name in ITEMSIZE else array.reshape(-1).view(_BYTES)
    wanted = nz_dtype(dtype)
    if wanted.itemsize == array.dtype.itemsize:
        return array.view(wanted)
    flat = array.reshape(-1).view(_BYTES)
    return flat.view(wanted) if flat.size % wanted.itemsize == 0 else flat


def nz_dtype(name: str) -> "numpy.dtype[Any]":
    """The numpy type of this name, of numpy itself or of ml_dtypes."""
    try:
        return numpy.dtype(name)
    except TypeError:
        import ml_dtypes

        native: numpy.dtype[Any] = numpy.dtype(getattr(ml_dtypes, name))
        return native
