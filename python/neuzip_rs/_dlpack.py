"""Adapter for objects of other frameworks that export DLPack; they come back as numpy arrays.

numpy imports what it has types for, torch the rest (bfloat16, float8) and other devices.
"""

from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from neuzip_rs._arrays import Array, Source, adapter_for

if TYPE_CHECKING:
    from collections.abc import Callable


def describe(array: Array, /) -> Source:
    """Views the object's memory as bytes, through whichever framework can import it."""
    reasons = []
    for framework in ("numpy", "torch", "cupy"):
        try:
            from_dlpack: Callable[[Array], Array] = import_module(framework).from_dlpack
        except (ImportError, AttributeError):
            continue
        try:
            imported = from_dlpack(array)
        # The producer may raise anything it likes.
        except Exception as error:
            reasons.append(f"{framework}: {str(error).partition(chr(10))[0]}")
            continue
        source = adapter_for(framework).describe(imported)
        return source._replace(framework="cupy" if framework == "cupy" else "numpy")
    message = (
        f"cannot import {type(array).__module__}.{type(array).__qualname__} through DLPack "
        f"({'; '.join(reasons) or 'numpy or torch must be installed for that'})"
    )
    raise TypeError(message)


def writable(out: Array, dtype: str, shape: tuple[int, ...], /) -> NoReturn:  # noqa: ARG001
    """DLPack says nothing about who else reads the memory, so it is never written through."""
    kind = type(out).__qualname__
    message = f"out must be a torch, numpy or cupy array or a writable buffer, not {kind}"
    raise TypeError(message)
