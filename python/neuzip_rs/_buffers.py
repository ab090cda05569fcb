"""Adapter for bytes-like objects: bytes, bytearray, memoryview, mmap, array.array.

One-dimensional bytes are raw bytes and come back as `bytes`. A buffer that says it holds other
elements, or more dimensions, comes back as the numpy array it describes.
"""

import io
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from neuzip_rs._arrays import Array, Device, Source
from neuzip_rs._dtypes import ITEMSIZE, element_count
from neuzip_rs._native import check_memory

if TYPE_CHECKING:
    from typing_extensions import Buffer

_RAW_FORMATS: Final = ("B", "b", "c")
_FLOATS: Final = {"e": "float16", "f": "float32", "d": "float64"}
_COMPLEX: Final = {"Zf": "complex64", "Zd": "complex128"}
_SIGNED: Final = "bhilqn"
_UNSIGNED: Final = "BHILQNc"
_FOREIGN_ORDER: Final = (">", "!") if sys.byteorder == "little" else ("<",)


def describe(array: Array, /) -> Source:
    """Views a buffer as bytes."""
    if type(array) is bytes:
        return Source(array, "uint8", (len(array),), "bytes")
    view = memoryview(array)
    # An array.array says that it is an array, whatever its elements; other buffers of bytes do not.
    raw = is_raw(view) and type(array).__module__ != "array"
    dtype = "uint8" if raw else element_type(view)
    shape = (view.nbytes,) if raw else view.shape or ()
    return Source(_as_bytes(view), dtype, shape, "bytes" if raw else "numpy")


def check_device(device: Device, /) -> Device:
    """Bytes live on the CPU only."""
    if device is not None and str(device) != "cpu":
        message = f"device must be None or 'cpu' for framework='bytes', not {device!r}"
        raise ValueError(message)


def allocate(dtype: str, shape: tuple[int, ...], /) -> tuple[Array, "Buffer"]:
    """Makes room for a `bytes` object.

    BytesIO hands out a writable view of its bytes and, once that is released, those very bytes, so
    that the result is never copied; `bytes(n)` is zeroed lazily by the operating system.
    """
    nbytes = element_count(shape) * ITEMSIZE[dtype]
    check_memory(nbytes)
    room = io.BytesIO(bytes(nbytes))
    view = room.getbuffer()
    return (room, view), view


def finish(result: Array, device: Device, /) -> Array:  # noqa: ARG001 - one signature for all adapters
    """Takes the filled bytes out of their room."""
    room, view = result
    view.release()
    return room.getvalue()


def writable(
    out: Array, dtype: str, shape: tuple[int, ...], /
) -> tuple["Buffer", Callable[[], object] | None]:
    """Views `out` as bytes to be written.

    A buffer of bytes takes any tensor of its length; a typed one must match type and shape.
    """
    view = memoryview(out)
    if view.readonly:
        message = "out must be writable, not read-only"
        raise ValueError(message)
    if not view.c_contiguous:
        message = "out must be C-contiguous"
        raise ValueError(message)
    if is_raw(view):
        expected = element_count(shape) * ITEMSIZE[dtype]
        if view.nbytes != expected:
            message = f"out must have {expected} bytes, not {view.nbytes}"
            raise ValueError(message)
    else:
        found = element_type(view)
        if found != dtype:
            message = f"out must have dtype {dtype}, not {found}"
            raise ValueError(message)
        if view.shape != shape:
            message = f"out must have shape {shape}, not {view.shape}"
            raise ValueError(message)
    return _as_bytes(view), None


def is_raw(view: memoryview) -> bool:
    """Whether a buffer is plain bytes rather than an array."""
    return view.ndim == 1 and view.format in _RAW_FORMATS


def element_type(view: memoryview) -> str:
    """The name of a buffer's element type.

    Raises:
        TypeError: If the elements are no numbers of this machine.
    """
    code = view.format or "B"
    if code[0] in _FOREIGN_ORDER and view.itemsize > 1:
        message = f"buffer format {view.format!r} is not in native byte order; swap the bytes first"
        raise TypeError(message)
    code = code.lstrip("@=<>!")
    if code == "?":
        return "bool"
    if code in _FLOATS:
        return _FLOATS[code]
    if code in _COMPLEX:
        return _COMPLEX[code]
    if len(code) == 1 and code in _SIGNED:
        return f"int{8 * view.itemsize}"
    if len(code) == 1 and code in _UNSIGNED:
        return f"uint{8 * view.itemsize}"
    message = f"buffer format {view.format!r} does not describe numbers"
    raise TypeError(message)


def _as_bytes(view: memoryview) -> "Buffer":
    if not view.c_contiguous:
        return view.tobytes()
    if view.nbytes == 0:
        # memoryview.cast refuses shapes with a zero in them.
        return b"" if view.readonly else bytearray()
    return view.cast("B")
