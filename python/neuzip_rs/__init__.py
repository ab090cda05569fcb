"""Lossless compression of neural network weights: one format for disk, memory and GPU.

    import neuzip_rs as nz

    c = nz.compress(tensor)         # torch, numpy, cupy, DLPack, bytes
    same = nz.decompress(c)         # every bit of it
    nz.explain(c).reasons           # where the bits go, and why

Importing neuzip_rs imports no array framework; `nz.cuda`, `nz.nn`, `nz.optim`, `nz.safetensors`,
`nz.save`, `nz.load` and `nz.zipnn` are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

from neuzip_rs._errors import (
    BaseMismatchError,
    CorruptDataError,
    NeuzipError,
    OutputTooLargeError,
    UnsupportedVersionError,
)
from neuzip_rs._native import CompressedTensor, __version__, simd_tier
from neuzip_rs._tensor import compress, decompress

if TYPE_CHECKING:
    import neuzip_rs.cuda as cuda
    import neuzip_rs.models as models
    import neuzip_rs.nn as nn
    import neuzip_rs.optim as optim
    import neuzip_rs.safetensors as safetensors
    import neuzip_rs.zipnn as zipnn
    from neuzip_rs._explain import estimate, explain
    from neuzip_rs.original import open  # noqa: A004 - as it is called: nz.open
    from neuzip_rs.state import load, save

__all__ = [
    "BaseMismatchError",
    "CompressedTensor",
    "CorruptDataError",
    "NeuzipError",
    "OutputTooLargeError",
    "UnsupportedVersionError",
    "__version__",
    "compress",
    "cuda",
    "decompress",
    "estimate",
    "explain",
    "load",
    "models",
    "nn",
    "open",
    "optim",
    "safetensors",
    "save",
    "simd_tier",
    "zipnn",
]

# Name -> (module, attribute of it; None for the module itself).
_LAZY: Final[dict[str, tuple[str, str | None]]] = {
    "cuda": ("neuzip_rs.cuda", None),
    "estimate": ("neuzip_rs._explain", "estimate"),
    "explain": ("neuzip_rs._explain", "explain"),
    "dcp": ("neuzip_rs.dcp", None),
    "fsdp": ("neuzip_rs.fsdp", None),
    "load": ("neuzip_rs.state", "load"),
    "models": ("neuzip_rs.models", None),
    "nn": ("neuzip_rs.nn", None),
    "open": ("neuzip_rs.original", "open"),
    "optim": ("neuzip_rs.optim", None),
    "safetensors": ("neuzip_rs.safetensors", None),
    "save": ("neuzip_rs.state", "save"),
    "state": ("neuzip_rs.state", None),
    "zipnn": ("neuzip_rs.zipnn", None),
}


def __getattr__(name: str) -> object:
    try:
        module_name, attribute = _LAZY[name]
    except KeyError:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message) from None
    module = import_module(module_name)
    value: object = module if attribute is None else getattr(module, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
