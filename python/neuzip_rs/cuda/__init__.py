"""Decoding and encoding on NVIDIA GPUs: only compressed bytes pass between host and device.

    tensor = nz.decompress(c, device="cuda")           # one tensor, checked
    c = nz.compress(tensor, level="fast")              # where the tensor is, the bytes of the CPU
    tensors = nz.cuda.decompress_many([c, d, ...])     # many in one launch, nothing waits
    nz.cuda.check()                                    # raises if any of them was damaged

Kernels are compiled by CuPy for the device at hand when they are first needed, and kept in CuPy's
cache. Everything runs on the current stream of torch or CuPy; only `check` waits for the device.

Needs CuPy: `pip install neuzip_rs[cuda12]` or `neuzip_rs[cuda13]`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

from neuzip_rs.cuda._runtime import is_available

if TYPE_CHECKING:
    from neuzip_rs.cuda._decode import Resident, check, decompress_many
    from neuzip_rs.cuda._encode import compress_many

__all__ = ["Resident", "check", "compress_many", "decompress_many", "is_available"]

_LAZY: Final = {
    "Resident": "_decode",
    "check": "_decode",
    "compress_many": "_encode",
    "decompress_many": "_decode",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    # CuPy is asked for only when something is to be done with it.
    value: object = getattr(import_module(f"neuzip_rs.cuda.{_LAZY[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
