"""Operators that need no decoded elements, or few of them.

Importing this module teaches them to `CompressedWeight`. A handler gets the weight, the other
arguments and the keywords, and returns NotImplemented where decoding is needed after all.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

import torch
from torch.utils._pytree import tree_map_only

from neuzip_rs.nn import rows
from neuzip_rs.nn.geometry import Geometry
from neuzip_rs.nn.record import Record
from neuzip_rs.nn.weight import HOW_TO_WRITE, CompressedWeight, Operator, Result, handles

_aten: Final = torch.ops.aten

_Others = Sequence[Any]
_Keywords = Mapping[str, Any]

_views: Final[dict[Any, Geometry]] = {}
"""Geometries of views by operator, geometry before and arguments: a model has few of them."""
_MOST_VIEWS: Final = 4096


def _like(weight: CompressedWeight, record: Record, geometry: Geometry) -> CompressedWeight:
    """A tensor made from `weight`, which is an inference tensor only if that is one."""
    if torch.is_inference_mode_enabled() and not weight.is_inference():
        with torch.inference_mode(mode=False), torch.no_grad():
            return CompressedWeight(record, geometry)
    return CompressedWeight(record, geometry)


@handles(_aten.detach.default, _aten.alias.default)
def _alias(_: Operator, weight: CompressedWeight, *__: object) -> Result:
    return _like(weight, weight.record, weight.geometry)


@handles(_aten.t.default)
def _transpose(_: Operator, weight: CompressedWeight, *__: object) -> Result:
    # What every linear layer asks for.
    return _like(weight, weight.record, weight.geometry.transposed())


@cache
def _is_made_of_others(func: Operator) -> bool:
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return bool(func.has_kernel_for_dispatch_key(key))


@handles("view")
def _view(func: Operator, weight: CompressedWeight, others: _Others, keywords: _Keywords) -> Result:
    """Asks a tensor of the same geometry, without elements either, what the view looks like."""
    if _is_made_of_others(func):
        # Such as `to` and `reshape` in inference mode, whose results may be copies.
        return func.decompose(weight, *others, **keywords)
    old = weight.geometry
    if func is _aten.view.dtype and old.cast is not None:
        # The bits of a cast are nowhere but in its decoded elements.
        return weight.decoded().view(others[0])
    key = None
    if not keywords and type(weight.record.stored) is torch.Tensor:
        key = (func, old, tuple(tuple(a) if isinstance(a, list) else a for a in others))
        known = _views.get(key)
        if known is not None:
            return _like(weight, weight.record, known)
    room = torch.empty(old.offset + old.span(), dtype=weight.dtype, device="meta")
    viewed = func(room.as_strided(old.size, old.stride, old.offset), *others, **keywords)

    def geometry(view: torch.Tensor) -> Geometry:
        shown = old._replace(
            size=tuple(view.shape), stride=tuple(view.stride()), offset=int(view.storage_offset())
        )
        return shown if view.dtype == weight.dtype else shown._replace(bits=view.dtype)

    if key is not None and isinstance(viewed, torch.Tensor):
        if len(_views) >= _MOST_VIEWS:
            _views.clear()
        _views[key] = geometry(viewed)
    return tree_map_only(
        torch.Tensor, lambda view: _like(weight, weight.record, geometry(view)), viewed
    )


@handles(
    _aten.empty_like.default,
    _aten.zeros_like.default,
    _aten.ones_like.default,
    _aten.full_like.default,
    _aten.new_empty.default,
    _aten.new_empty_strided.default,
    _aten.new_zeros.default,
    _aten.new_ones.default,
    _aten.new_full.default,
)
def _make_like(
    func: Operator, weight: CompressedWeight, others: _Others, keywords: _Keywords
) -> Result:
    """New tensors of the same shape: the elements do not matter."""
    twin = torch.empty_strided(
        weight.geometry.size, weight.geometry.stride, dtype=weight.dtype, device=weight.device
    )
    return func(twin, *others, **keywords)


@handles(_aten._to_copy.default)
def _to_copy(
    func: Operator, weight: CompressedWeight, others: _Others, keywords: _Keywords
) -> Result:
    """Casts and moves without decoding, where the result is as dense as the record."""
    dtype = keywords.get("dtype") or weight.dtype
    device = torch.device(keywords.get("device") or weight.device)
    if device.type == "meta":
        twin = torch.empty_strided(weight.shape, weight.stride(), dtype=weight.dtype, device="meta")
        return func(twin, *others, **keywords)
    keeps_format = keywords.get("memory_format") in {None, torch.preserve_format}
    if not weight.is_whole or not keeps_format:
        return NotImplemented
    if device != weight.device:
        if dtype != weight.dtype:
            return NotImplemented
        return CompressedWeight(weight.record.to(device))
    if dtype == weight.dtype or not dtype.is_floating_point:
        return NotImplemented
    # Autocast keeps casts from forward to backward: they must not keep decoded elements alive.
    return _like(weight, weight.record.copy(), weight.geometry._replace(cast=dtype))


@handles(_aten.copy_.default)
def _copy(_: Operator, weight: CompressedWeight, others: _Others, __: _Keywords) -> Result:
    """The one way to write: all of a weight at once."""
    if not weight.is_whole:
        raise RuntimeError(HOW_TO_WRITE)
    source, record = others[0], weight.record
    if isinstance(source, CompressedWeight):
        if source.is_whole and source.record.layout == record.layout:
            record.code = source.record.code.to(weight.device)
            record.rounding = source.record.rounding
            return weight
        source = source.decoded()
    record.encode_from(source.detach().to(weight.dtype).expand(weight.shape))
    return weight


@handles(_aten.embedding.default)
def _embedding(
    func: Operator, weight: CompressedWeight, others: _Others, keywords: _Keywords
) -> Result:
    """Looks rows up without decoding the others, where few are asked for."""
    if not weight.is_whole or type(weight.record.stored) is not torch.Tensor:
        return NotImplemented
    found = rows.decode_rows(weight.record, others[0])
    if found is None:
        return NotImplemented
    table, indices = found
    return func(table, indices, *others[1:], **keywords)
