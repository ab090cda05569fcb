"""Adapter for torch tensors.

torch has no buffer protocol, so a tensor is seen through its uint8 view: numpy's when numpy is
installed, ctypes otherwise. Tensors on other devices pass through the CPU.
"""

import ctypes
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from neuzip_rs._arrays import Array, Device, Source
from neuzip_rs._dtypes import ITEMSIZE, Dtype, element_count

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Through import_module, so that type checkers see Any and need no torch.
_torch: Final[Any] = import_module("torch")
_uint8: Final[Any] = _torch.uint8
_strided: Final[Any] = _torch.strided
_empty: Final[Any] = _torch.empty
_dispatch: Final[Any] = _torch.Tensor.__torch_dispatch__
_integers: Final[dict[int, Any]] = {
    1: _torch.uint8,
    2: _torch.int16,
    4: _torch.int32,
    8: _torch.int64,
}
_storage: Final[Any] = _torch.UntypedStorage
_HUGE_PAGE_BYTES: Final = 2 << 20
_LARGE_BYTES: Final = 2 * _HUGE_PAGE_BYTES
"""From here on memory is taken in huge pages: the system clears them in a fifth of the time."""
_WARNING_TYPES: Final = ("bcomplex32", "complex32")
_plain_types: Final = frozenset({_torch.Tensor, _torch.nn.Parameter})
_dtypes: Final[dict[str, Any]] = {
    name: getattr(_torch, name) for name in ITEMSIZE if hasattr(_torch, name)
}
# torch has names, but no tensors, for some of numpy's small integers.
for _name in ("int1", "uint1", "int2", "uint2", "int4", "uint4"):
    _dtypes.pop(_name, None)
_names: Final[dict[Any, str]] = {dtype: name for name, dtype in _dtypes.items()}


def describe(array: Array, /) -> Source:
    """Views a tensor as bytes, copying it only if it is not contiguous on the CPU."""
    name = _names.get(array.dtype)
    if (
        name is None
        or array.layout is not _strided
        or array.is_nested
        or array.is_meta
        or type(array) not in _plain_types
    ):
        array = _plain(array)
        name = _names[array.dtype]
    shape = array.shape
    if array.requires_grad:
        array = array.detach()
    if not array.is_cpu:
        array = array.cpu()
    if array.is_conj():
        array = array.resolve_conj()
    if array.is_neg():
        array = array.resolve_neg()
    if not array.is_contiguous():
        # Copied as integers: some types have no copy of their own, or one that warns.
        array = array.view(_integers.get(array.itemsize, array.dtype)).contiguous()
    return Source(_bytes_of(array), name, shape, "torch")


def check_device(device: Device, /) -> Device:
    """The `torch.device` that was asked for, tried out before anything is decoded."""
    if device is None:
        return None
    try:
        checked = _torch.device(device)
    except (RuntimeError, TypeError) as error:
        message = f"device must be a torch device, not {device!r}"
        raise ValueError(message) from error
    if checked.type == "cpu":
        return None
    _empty(0, device=checked)
    return checked


def allocate(dtype: str, shape: tuple[int, ...], /) -> tuple[Array, "Buffer"]:
    """Makes room for a tensor on the CPU, whatever torch's default device is."""
    native = _dtypes[dtype]
    if dtype in _WARNING_TYPES:
        # Made directly, it warns that little can be done with it.
        flat = _empty(element_count(shape) * 4, dtype=_uint8, device="cpu")
        return flat.view(native).view(shape), _bytes_of(flat)
    result = _empty(shape, dtype=native, device="cpu")
    return result, _bytes_of(result)


def room(dtype: str, shape: tuple[int, ...], /) -> tuple[Array, Array]:
    """Makes room for a tensor as `allocate` does, for what fills tensors as they are."""
    if dtype in _WARNING_TYPES:
        return allocate(dtype, shape)
    native = _dtypes[dtype]
    nbytes = element_count(shape) * native.itemsize
    if nbytes < _LARGE_BYTES:
        result = _empty(shape, dtype=native, device="cpu")
        return result, result
    # Whole huge pages from its first byte on; what is left over is never touched.
    memory = _storage(nbytes + _HUGE_PAGE_BYTES, device="cpu")
    begin = -memory.data_ptr() % _HUGE_PAGE_BYTES
    flat = _empty(0, dtype=native, device="cpu")
    result = flat.set_(
        memory[begin : begin + nbytes], 0, shape, _empty(shape, device="meta").stride()
    )
    return result, result


def finish(result: Array, device: Device, /) -> Array:
    """Moves the tensor to where it was asked for."""
    return result if device is None else result.to(device)


def writable(
    out: Array, dtype: str, shape: tuple[int, ...], /
) -> tuple["Buffer", Callable[[], object] | None]:
    """Views `out` as bytes to be written; a tensor on another device is filled by a copy."""
    out = _plain(out).detach()
    found = _names[out.dtype]
    if found != dtype:
        message = f"out must have dtype {dtype}, not {found}"
        raise ValueError(message)
    if tuple(out.shape) != shape:
        message = f"out must have shape {shape}, not {tuple(out.shape)}"
        raise ValueError(message)
    if not out.is_contiguous() or out.is_conj() or out.is_neg():
        message = "out must be contiguous, without lazy conjugation or negation"
        raise ValueError(message)
    if out.is_cpu:
        return _bytes_of(out), None
    room, buffer = allocate(dtype, shape)
    return buffer, lambda: out.copy_(room)


def any_dtype(name: str) -> Dtype:
    """The `torch.dtype` of this name, compressible or not.

    Raises:
        ValueError: If torch has none.
    """
    dtype = getattr(_torch, name, None)
    if type(dtype) is not _torch.dtype:
        message = f"torch has no dtype {name!r}"
        raise ValueError(message)
    return dtype


def size_of(sizes: list[int]) -> Array:
    """A `torch.Size`."""
    return _torch.Size(sizes)


def parameter(tensor: Array, *, requires_grad: bool) -> Array:
    """A parameter on the memory of a tensor."""
    return _torch.nn.Parameter(tensor, requires_grad)


def sharing_memory(tensors: Mapping[str, Array]) -> list[set[str]]:
    """The names of tensors that overlap in memory, in groups; tensors without data share none."""
    storages: dict[tuple[Device, int], list[tuple[int, int, str]]] = {}
    for name, tensor in tensors.items():
        if tensor.is_meta or type(tensor).__torch_dispatch__ is not _dispatch:
            continue
        start = tensor.data_ptr()
        if tensor.numel() and start:
            last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
            area = (start, start + (last + 1) * tensor.itemsize, name)
            storage = tensor.untyped_storage().data_ptr()
            storages.setdefault((tensor.device, storage), []).append(area)
    groups: list[set[str]] = []
    for areas in storages.values():
        end = 0
        for start, stop, name in sorted(areas):
            if start >= end:
                groups.append(set())
            groups[-1].add(name)
            end = max(end, stop)
    return [group for group in groups if len(group) > 1]


def flip_rows(array: Array) -> Array:
    """The tensor with its first dimension reversed, which torch cannot index for.

    By way of bytes, since not every type has a flip.
    """
    return array.unsqueeze(-1).view(_uint8).flip(0).view(array.dtype).squeeze(-1)


def _plain(array: Array) -> Array:
    """The tensor as a plain, dense one, or a TypeError that says why it is none."""
    if array.layout is not _strided:
        message = f"{array.layout} tensors cannot be compressed; convert with x.to_dense()"
        raise TypeError(message)
    if array.is_nested:
        message = "nested tensors cannot be compressed; compress x.unbind() one by one"
        raise TypeError(message)
    if array.is_quantized:
        message = "quantized tensors cannot be compressed; compress x.int_repr()"
        raise TypeError(message)
    if array.is_meta:
        message = "meta tensors have no data to compress"
        raise TypeError(message)
    if array.dtype not in _names:
        message = f"tensors of dtype {array.dtype} cannot be compressed"
        raise TypeError(message)
    kind = type(array)
    if kind in _plain_types:
        return array
    # A class that dispatches for itself (DTensor, FakeTensor, ...) may hold its data elsewhere.
    if kind.__torch_dispatch__ is not _dispatch:
        message = (
            f"tensors of the class {kind.__module__}.{kind.__qualname__} cannot be compressed; "
            "pass the plain tensor inside (for a DTensor, x.to_local())"
        )
        raise TypeError(message)
    return array.as_subclass(_torch.Tensor)


def _bytes_of(array: Array) -> "Buffer":
    """A view of the bytes of a contiguous CPU tensor."""
    # Not view(-1): a tensor of one element or none is contiguous with any stride, and keeps it.
    flat = array.as_strided((array.numel(),), (1,)).view(_uint8)
    try:
        view: Buffer = flat.numpy()
    except RuntimeError:
        return _bytes_without_numpy(flat)
    return view


def _bytes_without_numpy(flat: Array) -> "Buffer":
    if flat._is_zerotensor():
        # Zeros that autograd has not given any memory yet.
        return bytes(flat.numel())
    if flat.numel() == 0:
        return bytearray()
    view = (ctypes.c_ubyte * flat.numel()).from_address(flat.data_ptr())
    # from_address borrows the memory; the attribute keeps its owner alive.
    view.owner = flat
    return memoryview(view).cast("B")
