"""Adapter for JAX arrays, which are seen, and come back, through numpy and ml_dtypes."""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NoReturn

from neuzip_rs import _numpy
from neuzip_rs._arrays import Array, Device, Source

if TYPE_CHECKING:
    from typing_extensions import Buffer

_jax: Final[Any] = import_module("jax")
_asarray: Final[Callable[[Array], Array]] = import_module("numpy").asarray


def describe(array: Array, /) -> Source:
    """Views an array as bytes, on the CPU without a copy."""
    if not isinstance(array, _jax.Array) or isinstance(array, _jax.core.Tracer):
        message = f"expected a JAX array with a value, not {type(array).__qualname__}"
        raise TypeError(message)
    return _numpy.describe(_asarray(array))._replace(framework="jax")


def writable(
    out: Array, dtype: str, shape: tuple[int, ...], /
) -> tuple["Buffer", Callable[[], object] | None]:
    """JAX arrays never change."""
    _refuse(out, dtype, shape)


def _refuse(out: Array, _dtype: str, _shape: tuple[int, ...]) -> NoReturn:
    message = f"out must be a torch, numpy or cupy array or a buffer, not {type(out).__qualname__}"
    raise TypeError(message)


def check_device(device: Device, /) -> Device:
    """The device, by its name ("cpu", "gpu:1") or as JAX's own object."""
    if device is None or not isinstance(device, str):
        return device
    platform, _, index = device.partition(":")
    try:
        found = _jax.devices(platform)[int(index or 0)]
    except (RuntimeError, IndexError, ValueError) as error:
        message = f"device must be one of JAX's, not {device!r}"
        raise ValueError(message) from error
    return found


def allocate(dtype: str, shape: tuple[int, ...], /) -> tuple[Array, "Buffer"]:
    """Makes room for a result as a numpy array."""
    room, buffer = _numpy.allocate(dtype, shape)
    if _jax.dtypes.canonicalize_dtype(room.dtype) != room.dtype or room.dtype.name != dtype:
        message = f"JAX has no {dtype} as it is set up here; see jax_enable_x64"
        raise KeyError(message)
    return room, buffer


def finish(result: Array, device: Device, /) -> Array:
    """Turns the filled room into a JAX array."""
    return _jax.device_put(result, device)
