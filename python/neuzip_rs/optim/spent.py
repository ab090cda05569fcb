"""What is left in `parameter.grad` after a gradient has been used: nothing, and it says so.

`None` would be wrong: code that goes through the gradients before `step()`, to clip, unscale or log
them, would find none and do nothing, without a word. And a second backward pass before `step()`
would be a second update where one of the sum was meant.

The one thing that may be asked is a norm. It is not known any more, but programs that clip nothing
ask for it all the same, to log it (transformers' Trainer with `max_grad_norm=0`): they get NaN.
"""

import math
from collections.abc import Iterable
from typing import Any, ClassVar, Final, Self

import torch
from torch.utils._pytree import tree_map_only

from neuzip_rs.nn.weight import Operator, Result

_aten: Final = torch.ops.aten


class SpentGradient(torch.Tensor):
    """A gradient without memory that raises on any use but asking for its norm."""

    name_of_parameter: str

    __torch_function__: ClassVar[Any] = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls: type[Self], parameter: torch.Tensor, name: str) -> Self:
        """Makes what takes the place of a parameter's gradient."""
        spent: Self = torch.Tensor._make_wrapper_subclass(
            cls,
            parameter.shape,
            strides=parameter.stride(),
            dtype=parameter.dtype,
            device=parameter.device,
            storage_size=0,
        )
        spent.name_of_parameter = name
        return spent

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's is annotated as a function
        cls,
        func: Operator,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Result:
        """Raises an error that says where the gradient has gone.

        Raises:
            RuntimeError: Unless a norm is asked for, or nothing is changed.
        """
        first = args[0] if args else None
        if isinstance(first, SpentGradient):
            if func is _aten.linalg_vector_norm.default:
                dtype = (kwargs or {}).get("dtype") or first.dtype
                return UnknownNorm(torch.empty((), dtype=dtype, device=first.device))
            if func is _aten.mul_.Tensor and isinstance(args[1], torch.Tensor):
                factor = args[1]
                if factor.numel() == 1 and factor.item() == 1:
                    return first
        found = [a for a in _flat(args) if isinstance(a, SpentGradient)]
        name = repr(found[0].name_of_parameter) if found else "a parameter"
        raise RuntimeError(_MESSAGE.format(func=func, name=name))

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        """Says what it is."""
        return f"SpentGradient({self.name_of_parameter!r}, shape={tuple(self.shape)})"


class UnknownNorm(torch.Tensor):
    """The norm of a spent gradient: NaN, except that nothing can be clipped by it."""

    __torch_function__: ClassVar[Any] = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls: type[Self], like: torch.Tensor) -> Self:
        """Makes norms of the shape of a tensor."""
        norm: Self = torch.Tensor._make_wrapper_subclass(
            cls, like.shape, dtype=like.dtype, device=like.device
        )
        return norm

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's is annotated as a function
        cls,
        func: Operator,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Result:
        """Computes with NaN, and follows the norm to where gradients are scaled by it.

        Raises:
            RuntimeError: If a largest norm is divided by it.
        """
        others = [a for a in args if not isinstance(a, UnknownNorm)]
        plain_args, plain_kwargs = tree_map_only(
            UnknownNorm, UnknownNorm._nan, (tuple(args), dict(kwargs or {}))
        )
        result = func(*plain_args, **plain_kwargs)
        if func in _SCALING:
            if not (others and _is_infinite(others[0])):
                raise RuntimeError(_MESSAGE.format(func=func, name="a parameter"))
            # No norm is larger than that: gradients stay as they are.
            return torch.ones_like(result)
        return UnknownNorm(result) if func in _STILL_NORMS else result

    def _nan(self) -> torch.Tensor:
        return torch.full(self.shape, math.nan, dtype=self.dtype, device=self.device)

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        """Says what it is."""
        return f"UnknownNorm(shape={tuple(self.shape)})"


_STILL_NORMS: Final = {
    _aten.linalg_vector_norm.default,
    _aten.stack.default,
    _aten.cat.default,
    _aten._to_copy.default,
    _aten.detach.default,
    _aten.add.Tensor,
    _aten.reciprocal.default,
}
_SCALING: Final = {_aten.mul.Tensor, _aten.div.Tensor}


def _is_infinite(value: object) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 and math.isinf(value.item())
    return isinstance(value, (int, float)) and math.isinf(value)


def _flat(values: Iterable[object]) -> Iterable[object]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from value
        else:
            yield value


_MESSAGE: Final = (
    "{func}: nz.optim.InBackward has already used and freed the gradient of {name}: the parameter "
    "was updated during backward. Nothing can be done to gradients between backward() and step(). "
    "Two backward passes per step need InBackward(..., accumulate_steps=2); retaining a graph for "
    "a second pass does not work. Reentrant checkpointing with shared weights does not either: use "
    "use_reentrant=False. Clip by norm with InBackward.clip_in_two_passes, by value with "
    "InBackward.clip_grad_value_, not with clip_grad_norm_ (in transformers: max_grad_norm=0). "
    "GradScaler cannot be used, and has scaled this update: train in BF16 or FP32, which need no "
    "scaling."
)
