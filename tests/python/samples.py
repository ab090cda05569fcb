"""What the tests compress: element types, contents, and a way to compare bits."""

from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import torch

from neuzip_rs._dtypes import ITEMSIZE

Sample: TypeAlias = Any
"""An array of some framework, or what is tested in its place."""

FLOATS = (
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
)
NUMPY_DTYPES = tuple(
    name for name in ITEMSIZE if hasattr(np, name) or hasattr(ml_dtypes, name) or name == "bool"
)
TORCH_DTYPES = tuple(
    name
    for name in ITEMSIZE
    if hasattr(torch, name) and name not in {"int1", "uint1", "int2", "uint2", "int4", "uint4"}
)
KINDS = ("constant", "zeros", "random", "skewed", "ramp", "weights", "special")


def contents(kind: str, dtype: str, count: int, seed: int) -> bytes:
    """The bytes of `count` elements: `kind` says what they look like."""
    rng = np.random.default_rng(seed)
    width = ITEMSIZE[dtype]
    nbytes = count * width
    if kind == "zeros":
        return bytes(nbytes)
    if kind == "constant":
        return rng.bytes(width) * count
    if kind == "random":
        return rng.bytes(nbytes)
    if kind == "skewed":
        return rng.geometric(0.2, nbytes).clip(0, 255).astype(np.uint8).tobytes()
    if kind == "ramp":
        return np.arange(nbytes).astype(np.uint8).tobytes()
    values = rng.standard_normal(count) * 0.02
    if kind == "special":
        # Infinities, NaNs, zeros of both signs and subnormals among ordinary values.
        special = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-45, -6e-8, 3e-320])
        values = np.where(rng.random(count) < 0.3, rng.choice(special, count), values)
    if dtype in FLOATS:
        with np.errstate(all="ignore"):
            return values.astype(numpy_dtype(dtype)).tobytes()
    return np.resize(values.astype(np.float32).view(np.uint8), nbytes).tobytes()


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy or ml_dtypes dtype of this name."""
    return np.dtype(getattr(ml_dtypes, name, name))


def numpy_array(dtype: str, shape: tuple[int, ...], data: bytes) -> np.ndarray[Any, Any]:
    """A writable array of these bytes."""
    if dtype == "bool":
        data = (np.frombuffer(data, np.uint8) & 1).tobytes()
    return np.frombuffer(bytearray(data), numpy_dtype(dtype)).reshape(shape)


def torch_tensor(dtype: str, shape: tuple[int, ...], data: bytes) -> torch.Tensor:
    """A tensor of these bytes."""
    if dtype == "bool":
        data = (np.frombuffer(data, np.uint8) & 1).tobytes()
    flat = torch.from_numpy(np.frombuffer(bytearray(data), np.uint8))
    return flat.view(getattr(torch, dtype)).reshape(shape)


def bits(array: object) -> bytes:
    """The bytes of an array or buffer, in C order."""
    if isinstance(array, torch.Tensor):
        plain = array.detach().resolve_conj().resolve_neg().contiguous()
        # Not reshape(-1): a tensor of one element or none may have any stride, and keeps it.
        flat = plain.as_strided((plain.numel(),), (1,))
        return flat.view(torch.uint8).numpy().tobytes()
    if isinstance(array, (np.ndarray, np.generic)):
        return array.tobytes()
    return bytes(memoryview(array))  # type: ignore[arg-type]


def assert_same(found: object, expected: object) -> None:
    """Fails unless both are the same in type, element type, shape and every bit."""
    assert type(found) is type(expected)
    if isinstance(expected, (torch.Tensor, np.ndarray)):
        assert found.dtype == expected.dtype  # type: ignore[attr-defined]
        assert tuple(found.shape) == tuple(expected.shape)  # type: ignore[attr-defined]
    assert bits(found) == bits(expected)


WEIGHTS = torch_tensor("bfloat16", (40, 50), contents("weights", "bfloat16", 2000, 0))
