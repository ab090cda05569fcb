"""Clipping by the norm of all gradients, which are never there at once: a pass to measure first.

The same numbers in the same order as `torch.nn.utils.clip_grad_norm_`, so that the result is the
same bit for bit.
"""

from collections.abc import Iterable

import torch
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype

# As in torch.nn.utils.clip_grad_norm_.
_EPSILON = 1e-6


class GradientNorm:
    """The norm of all gradients of a backward pass, measured one gradient at a time.

    Attributes:
        total: The norm over all parameters; there once the pass is over.
        factor: What gradients are multiplied by in the pass that follows.
    """

    total: torch.Tensor
    factor: torch.Tensor

    def __init__(self, max_norm: float, norm_type: float) -> None:
        """Starts with no gradients."""
        self.max_norm = float(max_norm)
        self.norm_type = float(norm_type)
        self._norms: dict[str, torch.Tensor] = {}

    def add(self, name: str, gradient: torch.Tensor) -> None:
        """Measures one gradient."""
        self._norms[name] = torch.linalg.vector_norm(gradient, self.norm_type)

    def finish(self, names: Iterable[str], *, error_if_nonfinite: bool) -> None:
        """Computes the norm of the norms, in the order of the parameters.

        Raises:
            RuntimeError: If it is not finite, and that was asked for.
        """
        norms = [self._norms[name] for name in names if name in self._norms]
        if not norms:
            self.total = torch.tensor(0.0)
        else:
            # torch goes type by type, and norms have the types of their gradients.
            groups = _group_tensors_by_device_and_dtype([list[torch.Tensor | None](norms)])
            in_order = [
                norm.to(norms[0].device)
                for ([group], _) in groups.values()
                for norm in group
                if norm is not None
            ]
            self.total = torch.linalg.vector_norm(torch.stack(in_order), self.norm_type)
        if error_if_nonfinite and not bool(torch.isfinite(self.total)):
            message = (
                f"the total norm of order {self.norm_type} of the gradients is {self.total}: they "
                "cannot be clipped. Nothing has been updated"
            )
            raise RuntimeError(message)
        self.factor = torch.clamp(self.max_norm / (self.total + _EPSILON), max=1.0)

    def clip_(self, gradient: torch.Tensor) -> None:
        """Scales a gradient of the second pass."""
        gradient.mul_(self.factor.to(gradient.device))
