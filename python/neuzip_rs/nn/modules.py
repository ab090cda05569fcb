"""What a module with compressed parameters does differently from one without.

Modules keep their type; three things are attached to the instance:

* `_apply`, which `to()`, `half()` and the like go through. torch's own would exchange the parameter
  for another one, and take the hooks of an optimizer away without a word.
* A hook by which `state_dict` gives codes, under the original names.
* A hook by which `load_state_dict` takes codes as well as plain tensors.
"""

import weakref
from collections.abc import Callable
from typing import Any, Final, cast

import torch
from torch import nn

from neuzip_rs._errors import NeuzipError
from neuzip_rs.nn.record import Record
from neuzip_rs.nn.weight import CompressedWeight

_HOOKS: Final = "_neuzip_hooks"


class _Apply:
    """`module._apply`, without a reference that would keep the module alive."""

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)

    def __call__(
        self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> nn.Module:
        return apply(self._alive(), fn, recurse=recurse)

    def __reduce__(self) -> tuple[object, ...]:
        return _Apply, (self._alive(),)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Apply":
        module = self._alive()
        return _Apply(memo.get(id(module), module))

    def _alive(self) -> nn.Module:
        module = self._module()
        if module is None:
            message = "the module that this belongs to is gone"
            raise ReferenceError(message)
        return module


def compressed_parameters(module: nn.Module) -> dict[str, CompressedWeight]:
    """The compressed parameters that a module has as its own, by name."""
    own = cast("dict[str, object]", module._parameters)
    return {name: p for name, p in own.items() if isinstance(p, CompressedWeight)}


def attach(module: nn.Module) -> None:
    """Prepares a module for compressed parameters; again, if need be."""
    if _HOOKS in module.__dict__:
        return
    apply_hook = _Apply(module)
    handles = (
        module._register_state_dict_hook(_give_codes),
        module.register_load_state_dict_pre_hook(_take_codes),
    )
    module.__dict__["_apply"] = apply_hook
    module.__dict__[_HOOKS] = handles


def detach(module: nn.Module) -> None:
    """Undoes `attach`."""
    handles = module.__dict__.pop(_HOOKS, None)
    if handles is not None:
        for handle in handles:
            handle.remove()
        del module.__dict__["_apply"]


def refresh(module: nn.Module) -> None:
    """Lets a recurrent module look at its parameters again: it keeps a list of them."""
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()


def release(module: nn.Module) -> None:
    """Lets go of weak references to parameters, which could not be exchanged otherwise."""
    if isinstance(module, nn.RNNBase):
        module._flat_weight_refs = []


def exchange(parameter: nn.Parameter, other: nn.Parameter) -> None:
    """Makes a parameter what another one is, for whoever holds it, and keeps its hooks.

    Raises:
        RuntimeError: If something holds the tensor behind the parameter.
    """
    hooks = parameter._backward_hooks, parameter._post_accumulate_grad_hooks
    gradient, parameter.grad = parameter.grad, None
    try:
        torch.utils.swap_tensors(parameter, other)
    except RuntimeError as error:
        message = (
            "a parameter is in use, so that it cannot be exchanged for its compressed or plain "
            "form: drop results of earlier forward passes whose graph is still alive, and weak "
            f"references to parameters ({error})"
        )
        raise RuntimeError(message) from error
    finally:
        parameter.grad = gradient
    parameter._backward_hooks, parameter._post_accumulate_grad_hooks = hooks


def apply(
    module: nn.Module, fn: Callable[[torch.Tensor], torch.Tensor], *, recurse: bool = True
) -> nn.Module:
    """`nn.Module._apply` for a module with compressed parameters.

    Plain tensors and submodules are torch's business. Compressed parameters get new records, and
    stay the same objects with the same hooks and the same place in a graph.
    """
    compressed = compressed_parameters(module)
    for name in compressed:
        module._parameters[name] = None
    try:
        type(module)._apply(module, fn, recurse)
    finally:
        module._parameters.update(cast("dict[str, nn.Parameter | None]", compressed))
        refresh(module)
    for parameter in compressed.values():
        _convert(parameter, fn)
    return module


def _convert(parameter: CompressedWeight, fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with torch.no_grad():
        converted = fn(parameter)
        if converted is not parameter:
            if isinstance(converted, CompressedWeight) and converted.is_whole:
                record = converted.record
            else:
                plain = converted.decode() if isinstance(converted, CompressedWeight) else converted
                record = Record.encode(plain, parameter.record.rounding)
            parameter.assign(record)
        if parameter.grad is not None:
            parameter.grad.data = fn(parameter.grad)


def _give_codes(module: nn.Module, state: dict[str, Any], prefix: str, _: object) -> None:
    for name, parameter in compressed_parameters(module).items():
        value = state.get(prefix + name)
        # With keep_vars=True, whoever asks wants the parameters themselves.
        if value is not None and value is not parameter:
            state[prefix + name] = parameter.record.row_major_code()


def _take_codes(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Wraps codes, so that torch sees tensors of the right shape; nothing is decoded here."""
    for name in compressed_parameters(module):
        value: object = state.get(prefix + name)
        if (
            isinstance(value, torch.Tensor)
            and not isinstance(value, CompressedWeight)
            and value.dtype == torch.uint8
            and value.dim() == 1
        ):
            try:
                state[prefix + name] = CompressedWeight(Record.of_code(value.detach()))
            except (NeuzipError, TypeError) as error:
                error.add_note(f"This is what the state has for {prefix + name!r}.")
                raise
