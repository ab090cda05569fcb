"""Decoding on NVIDIA GPUs: compressed bytes go to the device, and tensors are made there.

    tensor = nz.decompress(c, device="cuda")           # one tensor, checked
    tensors = nz.cuda.decompress_many([c, d, ...])     # many in one launch, nothing waits
    nz.cuda.check()                                    # raises if any of them was damaged

Kernels are compiled by CuPy for the device at hand when they are first needed, and kept in CuPy's
cache. Everything runs on the current stream of torch or CuPy; only `check` waits for the device.

Needs CuPy: `pip install neuzip_rs[cuda12]` or `neuzip_rs[cuda13]`.
"""

from typing import TYPE_CHECKING, Final

from neuzip_rs.cuda._runtime import is_available

if TYPE_CHECKING:
    from neuzip_rs.cuda._decode import Resident, check, decompress_many

__all__ = ["Resident", "check", "decompress_many", "is_available"]

_LAZY: Final = ("Resident", "check", "decompress_many")


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    # CuPy is asked for only when something is to be done with it.
    from neuzip_rs.cuda import _decode

    return getattr(_decode, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
