"""How .safetensors headers spell element types and shapes."""

from typing import Final

F4_PAIR: Final = "float4_e2m1fn_x2"
"""The type of two 4-bit floats in a byte, which headers spell F4 and count one by one."""

NAMES: Final = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
"""Types of whole bytes, by their spelling in headers."""

_SPELLINGS: Final = {name: spelling for spelling, name in NAMES.items()}


def spell(dtype: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...], str] | None:
    """How an array goes into a file.

    Returns:
        Type and shape as a header has them, and the element type of the compressed stream; None
        if no header can spell that type.
    """
    spelling = _SPELLINGS.get(dtype)
    if spelling is not None:
        return spelling, shape, dtype
    if dtype == F4_PAIR and shape:
        # Packed values are bytes to the stream.
        return "F4", (*shape[:-1], shape[-1] * 2), "uint8"
    return None
