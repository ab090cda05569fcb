"""Compressing the parameters of a module in place, and undoing it."""

import sys
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Final, TypeAlias, TypeVar, cast

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from neuzip_rs.nn import modules
from neuzip_rs.nn.codec import DTYPES, codec_for
from neuzip_rs.nn.record import Layout, Record
from neuzip_rs.nn.rounding import Rounding, check_rounding, effective
from neuzip_rs.nn.weight import WHY_NOT_FLATTENED, CompressedWeight

_Module = TypeVar("_Module", bound=nn.Module)

Names: TypeAlias = str | Iterable[str] | Callable[[str, nn.Parameter], bool]
"""Which parameters: patterns, or a function of name and parameter."""

_PLAIN_TYPES: Final = (torch.Tensor, nn.Parameter)


def compress_(
    module: _Module,
    *,
    precision: int | None = None,
    block_size: int = 512,
    include: Names | None = None,
    exclude: Names | None = None,
    min_numel: int = 4096,
) -> _Module:
    """Compresses the parameters of a module in place.

    With `precision`, for inference only, elements are rounded before, in blocks that are scaled so
    that the error is smallest; see `neuzip_rs.nn.rounding`. Everything else is lossless.

    Args:
        module: Any module; it keeps its type, and its parameters stay the same objects, so that
            optimizers and ties see what has become of them.
        precision: How many bits of the mantissa to keep, by default all of them: 0 to 7 for
            bfloat16, to 10 for float16, to 23 for float32. With 3, 1 and 0 bits, bfloat16 takes
            about 0.41, 0.29 and 0.23 of its size.
        block_size: How many elements share a scale, where elements are rounded.
        include: Which parameters to compress, by default all. Patterns (`*`, `?`, `[ab]`) are
            compared with whole parts of a name: "lm_head", "weight", "layers.0" and "*.q_proj" all
            match inside of longer names. A function gets the name and the parameter.
        exclude: Which to leave as they are, of those.
        min_numel: Parameters with fewer elements are left as they are.

    Returns:
        The module.

    Raises:
        TypeError: If a parameter has a type that cannot be compressed; `exclude` it. If the module
            is sharded by FullyShardedDataParallel.
        ValueError: If an argument has a value it cannot have, or a pattern matches nothing.
        NotImplementedError: If a parameter is on a device without a codec.
        RuntimeError: If a parameter is in use by a graph.
    """
    _check_arguments(module, min_numel)
    rounding = check_rounding(precision, block_size)
    names = _names(module)
    chosen = _choose(names, include, exclude)
    overlapping = _overlapping(list(names))
    to_compress = [
        parameter
        for parameter in chosen
        if _is_to_change(parameter, rounding)
        and _numel(parameter) >= max(min_numel, 1)
        and id(parameter) not in overlapping
    ]
    for parameter in to_compress:
        _check_parameter(names[parameter][0], parameter, rounding)
    holders = _holders(module)
    for parameter in to_compress:
        if isinstance(parameter, CompressedWeight):
            parameter.assign(Record.encode(parameter.decoded(), rounding))
            continue
        record = Record.encode(parameter, rounding)
        compressed = CompressedWeight.parameter(record, requires_grad=parameter.requires_grad)
        _exchange(parameter, cast("nn.Parameter", compressed), holders[parameter])
        for holder in holders[parameter]:
            modules.attach(holder)
    return module


def decompress_(module: _Module) -> _Module:
    """Gives a module plain parameters again, with the very bits that were compressed.

    Ties, gradients and `requires_grad` stay as they are.

    Args:
        module: Any module.

    Returns:
        The module.

    Raises:
        CorruptDataError: If a code is damaged.
        RuntimeError: If a parameter is in use by a graph.
    """
    for parameter, holders in _holders(module).items():
        if isinstance(parameter, CompressedWeight):
            plain = nn.Parameter(parameter.decoded(), requires_grad=parameter.requires_grad)
            _exchange(parameter, plain, holders)
    for part in module.modules():
        modules.detach(part)
    return module


def _exchange(parameter: nn.Parameter, other: nn.Parameter, holders: list[nn.Module]) -> None:
    """Makes a parameter what `other` is; attributes that users have put on it stay."""
    own = {"record", "geometry", "_is_param"}
    other.__dict__.update({k: v for k, v in parameter.__dict__.items() if k not in own})
    for holder in holders:
        modules.release(holder)
    try:
        modules.exchange(parameter, other)
    finally:
        for holder in holders:
            modules.refresh(holder)


def _check_arguments(module: object, min_numel: object) -> None:
    if not isinstance(module, nn.Module):
        message = f"module must be a torch.nn.Module, not {type(module).__qualname__}"
        raise TypeError(message)
    if isinstance(min_numel, bool) or not isinstance(min_numel, int):
        message = f"min_numel must be an int, not {min_numel!r}"
        raise TypeError(message)
    if min_numel < 0:
        message = f"min_numel must not be negative, not {min_numel}"
        raise ValueError(message)
    for name, part in module.named_modules():
        if is_flattened(part):
            where = f"module.{name}" if name else "module"
            message = f"{where} is a FullyShardedDataParallel: {WHY_NOT_FLATTENED}"
            raise TypeError(message)


def is_flattened(part: nn.Module) -> bool:
    """Whether a module is the first kind of FSDP, which keeps views of one flat parameter."""
    where = "torch.distributed.fsdp.fully_sharded_data_parallel"
    return any(base.__module__ == where for base in type(part).__mro__)


def _numel(parameter: torch.Tensor) -> int:
    """How many elements; one that has no shape yet has more than any limit."""
    return sys.maxsize if is_lazy(parameter) else parameter.numel()


def _is_to_change(parameter: torch.Tensor, rounding: Rounding | None) -> bool:
    """Whether compressing would change a parameter: also a compressed one that is to be rounded."""
    if not isinstance(parameter, CompressedWeight):
        return True
    wanted = rounding is not None and effective(rounding, parameter.dtype)
    return wanted not in {False, None, parameter.record.rounding}


def _check_parameter(name: str, parameter: torch.Tensor, rounding: Rounding | None) -> None:
    """Raises an error that names the parameter if it cannot be compressed."""
    if isinstance(parameter, CompressedWeight):
        return
    if is_lazy(parameter):
        message = f"parameter {name!r} has no shape yet: run the module once before"
        raise ValueError(message)
    if type(parameter) not in _PLAIN_TYPES:
        message = (
            f"parameter {name!r} is a {type(parameter).__module__}.{type(parameter).__qualname__}; "
            "only plain parameters can be compressed. Compress before sharding or quantizing, or "
            f"pass exclude=[{name!r}]"
        )
        raise TypeError(message)
    if parameter.dtype not in DTYPES:
        message = (
            f"parameter {name!r} has type {parameter.dtype}; only {', '.join(DTYPES.values())} can "
            f"be compressed: pass exclude=[{name!r}] to leave it as it is"
        )
        raise TypeError(message)
    if parameter.is_meta:
        message = f"parameter {name!r} is on the meta device: it has no elements to compress"
        raise ValueError(message)
    if parameter.layout is not torch.strided:
        message = f"parameter {name!r} is {parameter.layout}; only dense ones can be compressed"
        raise TypeError(message)
    Layout.of(parameter)
    codec_for(parameter.device)
    try:
        effective(rounding, parameter.dtype)
    except (TypeError, ValueError) as error:
        error.add_note(f"This is parameter {name!r}.")
        raise


def _names(module: nn.Module) -> dict[nn.Parameter, list[str]]:
    """All names of every parameter, in the order of the module."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return names


def _holders(module: nn.Module) -> dict[nn.Parameter, list[nn.Module]]:
    """The modules that have a parameter as their own, for each parameter."""
    holders: dict[nn.Parameter, list[nn.Module]] = {}
    for part in module.modules():
        for parameter in part._parameters.values():
            if parameter is not None:
                holders.setdefault(parameter, []).append(part)
    return holders


def _choose(
    names: dict[nn.Parameter, list[str]], include: Names | None, exclude: Names | None
) -> list[nn.Parameter]:
    included = _matching(names, include, "include") if include is not None else set(names)
    excluded = _matching(names, exclude, "exclude") if exclude is not None else set()
    return [parameter for parameter in names if parameter in included - excluded]


def _matching(
    names: dict[nn.Parameter, list[str]], which: Names, argument: str
) -> set[nn.Parameter]:
    """The parameters one of whose names is meant."""
    if callable(which):
        return {p for p, its in names.items() if any(which(name, p) for name in its)}
    patterns: list[object] = [which] if isinstance(which, str) else list(which)
    found: set[nn.Parameter] = set()
    for pattern in patterns:
        if not isinstance(pattern, str):
            message = f"{argument} must be patterns or a function, not {pattern!r}"
            raise TypeError(message)
        matched = {
            parameter
            for parameter, its in names.items()
            if any(fnmatchcase(part, pattern) for name in its for part in _parts(name))
        }
        if not matched:
            message = f"{argument}: no parameter has a name with {pattern!r} in it"
            raise ValueError(message)
        found |= matched
    return found


def _parts(name: str) -> Iterator[str]:
    """The parts of a dotted name: "a.b.c" has a, b, c, a.b, b.c and a.b.c."""
    words = name.split(".")
    for start in range(len(words)):
        for stop in range(start + 1, len(words) + 1):
            yield ".".join(words[start:stop])


def _overlapping(parameters: list[nn.Parameter]) -> set[int]:
    """Parameters that share elements with another one, without being the same.

    They see each other's changes, which would end if they were compressed: they stay plain.
    """
    areas = []
    for parameter in parameters:
        if type(parameter) in _PLAIN_TYPES and parameter.device.type != "meta":
            start = parameter.data_ptr()
            steps = zip(parameter.shape, parameter.stride(), strict=True)
            length = sum((n - 1) * step for n, step in steps) + 1
            if start and parameter.numel():
                areas.append((start, start + length * parameter.itemsize, id(parameter)))
    found: set[int] = set()
    end, last = 0, 0
    for start, stop, key in sorted(areas):
        if start < end:
            found |= {key, last}
        if stop > end:
            end, last = stop, key
    return found
