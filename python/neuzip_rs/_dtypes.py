"""Element types, by the names numpy and ml_dtypes give them.

These names are what `CompressedTensor.dtype` says and what the wire format's type codes stand for;
framework adapters translate to and from them at the border.
"""

import sys
from typing import Any, Final, TypeAlias

Dtype: TypeAlias = Any
"""A framework's own object for an element type."""

ITEMSIZE: Final[dict[str, int]] = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "uint16": 2,
    "int16": 2,
    "uint32": 4,
    "int32": 4,
    "uint64": 8,
    "int64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex32": 4,
    "complex64": 8,
    "complex128": 16,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "float8_e4m3": 1,
    "float8_e4m3b11fnuz": 1,
    "float8_e3m4": 1,
    "float4_e2m1fn": 1,
    "float4_e2m1fn_x2": 1,
    "float6_e2m3fn": 1,
    "float6_e3m2fn": 1,
    "int4": 1,
    "uint4": 1,
    "int2": 1,
    "uint2": 1,
    "int1": 1,
    "uint1": 1,
    "bcomplex32": 4,
}
"""Bytes per element of every type the format knows."""


def parse_dtype(spec: object) -> str:
    """Names the element type that a `dtype=` argument asks for.

    Args:
        spec: A name ("bfloat16"), a `torch.dtype`, a `numpy.dtype`, or a scalar type such as
            `numpy.float32` or `ml_dtypes.bfloat16`.

    Returns:
        The numpy / ml_dtypes name.

    Raises:
        TypeError: If `spec` is not a way to name a type.
        ValueError: If it names a type the format does not know.
    """
    if isinstance(spec, str):
        name = spec
    else:
        # Whoever passes a framework's type has imported the framework, so nothing is imported here.
        torch = sys.modules.get("torch")
        numpy = sys.modules.get("numpy")
        if torch is not None and isinstance(spec, torch.dtype):
            name = str(spec).removeprefix("torch.")
        elif numpy is not None and isinstance(spec, (numpy.dtype, type)):
            described = numpy.dtype(spec)
            if not described.isnative:
                message = f"dtype must be in native byte order, not {described!r}"
                raise ValueError(message)
            name = described.name
        else:
            message = f"dtype must be a name or a torch or numpy dtype, not {spec!r}"
            raise TypeError(message)
    if name not in ITEMSIZE:
        message = f"dtype must be one of {', '.join(ITEMSIZE)}, not {name!r}"
        raise ValueError(message)
    return name


def element_count(shape: tuple[int, ...]) -> int:
    """The number of elements in an array of this shape."""
    count = 1
    for size in shape:
        count *= size
    return count
