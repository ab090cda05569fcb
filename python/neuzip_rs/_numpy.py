"""Adapter for numpy arrays and scalars, with the types of ml_dtypes."""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from neuzip_rs._arrays import Array, Device, Source
from neuzip_rs._dtypes import ITEMSIZE, Dtype

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Through import_module, so that type checkers see Any and need no numpy.
_np: Final[Any] = import_module("numpy")
_ndarray: Final[type] = _np.ndarray
_uint8: Final[Any] = _np.dtype("uint8")
_empty: Final[Any] = _np.empty
_names: Final[dict[Any, str]] = {}
_dtypes: Final[dict[str, Any]] = {}


def describe(array: Array, /) -> Source:
    """Views an array as bytes, copying it only if it is not C-contiguous."""
    if type(array) is not _ndarray:
        array = _plain(array)
    dtype = array.dtype
    name = _names.get(dtype) or name_of(dtype)
    if not array.flags.c_contiguous:
        array = array.copy(order="C")
    return Source(array.reshape(-1).view(_uint8), name, array.shape, "numpy")


def check_device(device: Device, /) -> Device:
    """Arrays of numpy live on the CPU only."""
    if device is not None and str(device) != "cpu":
        message = (
            f"device must be None or 'cpu' for a numpy result, not {device!r}; "
            "ask for framework='torch'"
        )
        raise ValueError(message)


def allocate(dtype: str, shape: tuple[int, ...], /) -> tuple[Array, "Buffer"]:
    """Makes room for an array; types unknown to numpy become uint8 of shape + (itemsize,)."""
    native = _dtypes.get(dtype) or dtype_of(dtype)
    if native is None:
        native, shape = _uint8, (*shape, ITEMSIZE[dtype])
    result = _empty(shape, native)
    return result, result.reshape(-1).view(_uint8)


def finish(result: Array, device: Device, /) -> Array:  # noqa: ARG001 - one signature for all adapters
    """The array itself is the result."""
    return result


def writable(
    out: Array, dtype: str, shape: tuple[int, ...], /
) -> tuple["Buffer", Callable[[], object] | None]:
    """Views `out` as bytes to be written."""
    if not isinstance(out, _ndarray):
        message = f"out must be an array, not the scalar {out!r}"
        raise TypeError(message)
    if type(out) is not _ndarray:
        out = _plain(out)
    found = str(out.dtype) if not out.dtype.isnative else out.dtype.name
    if found != dtype:
        message = f"out must have dtype {dtype}, not {found}"
        raise ValueError(message)
    if out.shape != shape:
        message = f"out must have shape {shape}, not {out.shape}"
        raise ValueError(message)
    if not out.flags.c_contiguous:
        message = "out must be C-contiguous"
        raise ValueError(message)
    if not out.flags.writeable:
        message = "out must be writable, not read-only"
        raise ValueError(message)
    return out.reshape(-1).view(_uint8), None


def name_of(dtype: Dtype) -> str:
    """The name of a numpy dtype.

    Raises:
        TypeError: If arrays of that type cannot be compressed.
    """
    name: str = dtype.name
    if name not in ITEMSIZE or dtype.itemsize != ITEMSIZE[name] or dtype.fields is not None:
        message = f"arrays of dtype {dtype} cannot be compressed"
        raise TypeError(message)
    if not dtype.isnative:
        message = (
            f"arrays of dtype {dtype.str} are not in native byte order; "
            "convert with x.astype(x.dtype.newbyteorder('='))"
        )
        raise TypeError(message)
    _names[dtype] = name
    return name


def dtype_of(name: str) -> Dtype | None:
    """The numpy dtype of this name, None if it takes ml_dtypes, which cannot be imported."""
    found = _dtypes.get(name)
    if found is None:
        try:
            found = _np.dtype(name)
        except TypeError:
            try:
                found = _np.dtype(getattr(import_module("ml_dtypes"), name))
            except (ImportError, AttributeError):
                return None
        _dtypes[name] = found
    return found


def scalar_of(dtype: Dtype, data: bytes) -> Array:
    """The scalar with these bytes."""
    (scalar,) = _np.frombuffer(data, dtype)
    return scalar


def as_array(value: Array) -> Array:
    """The array of no dimensions for a scalar, which indexing may have given."""
    return _np.asarray(value)


def _plain(array: Array) -> Array:
    if isinstance(array, _np.ma.MaskedArray):
        message = "masked arrays cannot be compressed; pass x.data and x.mask separately"
        raise TypeError(message)
    if isinstance(array, _np.generic):
        return _np.asarray(array)
    return array.view(_ndarray)
