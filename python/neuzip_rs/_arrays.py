"""Where arrays of any framework become bytes, and bytes become arrays again.

The native module only ever sees contiguous bytes, the name of an element type and a shape: torch's
bfloat16 has neither a buffer nor a numpy counterpart, and ml_dtypes arrays refuse both memoryview
and DLPack, so a view as bytes is the one thing every framework can give. An `Adapter` per
framework makes that view; this module finds the adapter for an object or a name.

No framework is imported until one of its objects, or its name, is handed over.
"""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from threading import RLock
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias, cast

from neuzip_rs._errors import OutputTooLargeError

if TYPE_CHECKING:
    from typing_extensions import Buffer

Array: TypeAlias = Any
"""An array of a framework that is known only at run time, or a buffer."""
Device: TypeAlias = Any
"""What a framework takes for a device: a name, a number, an object of its own; None by default."""


Room: TypeAlias = Callable[[str, tuple[int, ...]], tuple[Array, Array]]
"""Makes an array of a type and shape, and what the native module fills it through."""


class Source(NamedTuple):
    """An array as the native module takes it.

    `data` keeps the memory alive; it is the array's own where that is contiguous and on the CPU.
    """

    data: "Buffer"
    dtype: str
    shape: tuple[int, ...]
    framework: str
    hint: str | None = None


class Importer(Protocol):
    """What it takes to read arrays of a kind, and to write into them."""

    def describe(self, array: Array, /) -> Source:
        """Views an array as bytes; TypeError if it has none to give."""

    def writable(
        self, out: Array, dtype: str, shape: tuple[int, ...], /
    ) -> tuple["Buffer", Callable[[], object] | None]:
        """Views `out` as bytes to be written, and says what to call afterwards, if anything.

        Raises:
            ValueError: If its type, shape or layout is not the one asked for.
        """


class Adapter(Importer, Protocol):
    """What it takes to make arrays of a framework as well."""

    def check_device(self, device: Device, /) -> Device:
        """Turns a `device=` argument into what `finish` takes; None stays None."""

    def allocate(self, dtype: str, shape: tuple[int, ...], /) -> tuple[Array, "Buffer"]:
        """Makes uninitialised room for a result on the CPU and a writable view of its bytes.

        Raises:
            KeyError: If the framework has no such type.
        """

    def finish(self, result: Array, device: Device, /) -> Array:
        """Turns the filled room into the array to hand out."""


_MODULES: Final = {
    "numpy": "_numpy",
    "torch": "_torch",
    "cupy": "_cupy",
    "jax": "_jax",
    "bytes": "_buffers",
}
_adapters: Final[dict[str, Adapter]] = {}
_exact_types: Final[dict[type, Importer]] = {}
# Forking waits for the end of an import here: the child has no thread that would end it, and would
# wait for it forever when it needs the adapter itself.
_importing: Final = RLock()
if sys.platform != "win32":
    os.register_at_fork(
        before=_importing.acquire,
        after_in_parent=_importing.release,
        after_in_child=_importing.release,
    )


def adapter_for(framework: str) -> Adapter:
    """The adapter of a framework, by its name.

    Raises:
        ValueError: If there is no such framework.
        ImportError: If it is not installed.
    """
    adapter = _adapters.get(framework)
    if adapter is None:
        if framework not in _MODULES:
            names = "'torch', 'numpy', 'cupy', 'jax' or 'bytes'"
            message = f"framework must be {names}, not {framework!r}"
            raise ValueError(message)
        try:
            module = _import(_MODULES[framework])
        except ImportError as error:
            message = (
                f"this needs {framework}, which cannot be imported; "
                "ask for another framework, such as framework='bytes'"
            )
            raise ImportError(message) from error
        adapter = _adapters[framework] = cast("Adapter", module)
    return adapter


def adapter_of(value: Array) -> Importer:
    """The adapter that understands `value`.

    Raises:
        TypeError: If `value` is no array, DLPack object or buffer.
    """
    kind = type(value)
    adapter = _exact_types.get(kind)
    if adapter is None:
        adapter = _classify(value)
        # Only types that are sure to live on anyway: the table must not keep a user's class alive.
        if kind.__module__ in {"builtins", "numpy", "torch", "torch.nn.parameter"}:
            _exact_types[kind] = adapter
    return adapter


def describe(value: Array) -> Source:
    """Views any supported object as bytes, with its element type, shape and framework.

    Raises:
        TypeError: If `value` is not supported; the message says why.
    """
    return adapter_of(value).describe(value)


def decoded(
    adapter: Adapter,
    dtype: str,
    shape: tuple[int, ...],
    read: Callable[["Buffer"], object],
    device: Device = None,
) -> Array:
    """Makes an array of a framework, which `read` fills through a view of its bytes.

    Raises:
        ValueError: If the framework has no such type.
        OutputTooLargeError: If the framework cannot have that much memory or such a shape.
    """
    result, buffer = make_room(adapter.allocate, dtype, shape)
    try:
        read(buffer)
    except BaseException:
        abandon(buffer)
        raise
    return adapter.finish(result, device)


def abandon(buffer: "Buffer") -> None:
    """Lets go of room that could not be filled.

    The traceback of the error holds it. If the room of bytes is collected while it still has a
    view, CPython reports that as an exception which nobody can catch, or (3.12.1) crashes.
    """
    if type(buffer) is memoryview:
        buffer.release()


def make_room(make: Room, dtype: str, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Makes room for a result in some way; errors as those of `decoded`."""
    try:
        return make(dtype, shape)
    except KeyError:
        message = f"the framework has no dtype {dtype}; ask for framework='numpy', or dtype='uint8'"
        raise ValueError(message) from None
    # torch reports sizes beyond 64 bits as TypeError and exhausted memory as RuntimeError.
    except (MemoryError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        message = f"cannot allocate an array of dtype {dtype} and shape {shape}: {reason}"
        raise OutputTooLargeError(message) from error


def _import(name: str) -> ModuleType:
    with _importing:
        return import_module(f"neuzip_rs.{name}")


def _classify(value: Array) -> Importer:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return adapter_for("torch")
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)):
        return adapter_for("numpy")
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(value, cupy.ndarray):
        return adapter_for("cupy")
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(value, jax.Array):
        return adapter_for("jax")
    if hasattr(value, "__dlpack__"):
        return cast("Importer", _import("_dlpack"))
    try:
        memoryview(value).release()
    except (TypeError, BufferError, ValueError):
        message = (
            "expected a torch, numpy or cupy array, or an object with DLPack or the buffer "
            f"protocol, not {type(value).__module__}.{type(value).__qualname__}"
        )
        raise TypeError(message) from None
    return adapter_for("bytes")
