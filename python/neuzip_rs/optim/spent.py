"""What is left in `parameter.grad` after a gradient has been used: nothing, and it says so.

`None` would be wrong: code that goes through the gradients before `step()`, to clip, unscale or log
them, would find none and do nothing, without a word. And a second backward pass before `step()`
would be a second update where one of the sum was meant.
"""

from collections.abc import Iterable
from typing import Any, ClassVar, NoReturn, Self

import torch

from neuzip_rs.nn.weight import Operator


class SpentGradient(torch.Tensor):
    """A gradient without memory that raises on any use."""

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
    ) -> NoReturn:
        """Raises an error that says where the gradient has gone.

        Raises:
            RuntimeError: Always.
        """
        found = [a for a in _flat(args) if isinstance(a, SpentGradient)]
        name = repr(found[0].name_of_parameter) if found else "a parameter"
        raise RuntimeError(_MESSAGE.format(func=func, name=name))

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        """Says what it is."""
        return f"SpentGradient({self.name_of_parameter!r}, shape={tuple(self.shape)})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "SpentGradient":
        """Another one, for the copy of a model."""
        spent = SpentGradient(self, self.name_of_parameter)
        memo[id(self)] = spent
        return spent


def _flat(values: Iterable[object]) -> Iterable[object]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from value
        else:
            yield value


_MESSAGE = (
    "{func}: nz.optim.InBackward has already used and freed the gradient of {name}: the parameter "
    "was updated during backward. Nothing can be done to gradients between backward() and step(). "
    "Two backward passes per step need InBackward(..., accumulate_steps=2); retaining a graph for "
    "a second pass does not work. Reentrant checkpointing with shared weights does not either: use "
    "use_reentrant=False. Clip by norm with InBackward.clip_in_two_passes, by value with "
    "InBackward.clip_grad_value_, not with clip_grad_norm_ (in transformers: max_grad_norm=0). "
    "GradScaler cannot be used, and has scaled this update: train in BF16 or FP32, which need no "
    "scaling."
)
