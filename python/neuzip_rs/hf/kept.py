"""Models whose weights stay compressed: parameters that are made of what is in the file."""

from typing import Any, Final

import torch

from neuzip_rs import _native, nn
from neuzip_rs.hf.config import NeuzipConfig
from neuzip_rs.hf.types import Dtype, Model, Tensor
from neuzip_rs.nn import CompressedWeight, modules
from neuzip_rs.nn.codec import DTYPES
from neuzip_rs.nn.record import Record

_WHOLE: Final = ("chunked", "constant")
"""The bodies of streams (docs/format.md) that hold all of a tensor."""


class Keeper:
    """Decides which parameters stay compressed, and makes them."""

    def __init__(self, settings: NeuzipConfig) -> None:
        """Takes what the user asked for.

        A choice by name is made when the model is complete, and so is rounding: then a weight is
        plain for a while.
        """
        self._settings = settings
        lossless = settings.precision is None
        self._at_once = lossless and settings.include is None and settings.exclude is None

    def takes_code(self, dtype: Dtype, numel: int) -> bool:
        """Whether a tensor of a file can become a parameter as it is stored."""
        return self._at_once and dtype in DTYPES and numel >= max(self._settings.min_numel, 1)

    def from_code(self, code: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        """A parameter made of the bytes in a file.

        None if they say where its contents are, or are those of several tensors, or of none: small
        ones share a stream.
        """
        if not code.numel():
            return None
        stream = _native.CompressedTensor.from_bytes(code.numpy())
        if stream.info()["body"] not in _WHOLE or stream.shape != shape:
            return None
        return CompressedWeight.parameter(Record.of_code(code), requires_grad=True)

    def keep(self, tensor: Tensor) -> Tensor:
        """A parameter made of a decoded tensor, or the tensor if it is to be a plain one."""
        if not self.takes_code(tensor.dtype, tensor.numel()):
            return tensor
        return CompressedWeight.parameter(Record.encode(tensor), requires_grad=True)

    def complete(self, model: Model) -> None:
        """Compresses what is left of a model that is loaded."""
        settings = self._settings
        more: dict[str, Any] = {}
        if settings.precision is not None:
            more = {"precision": settings.precision, "block_size": settings.block_size}
        for module in model.modules():
            if any(isinstance(p, CompressedWeight) for p in module._parameters.values()):
                modules.attach(module)
        nn.compress_(
            model,
            include=settings.include,
            exclude=settings.exclude,
            min_numel=settings.min_numel,
            **more,
        )


def decoded_state(model: Model) -> dict[str, torch.Tensor] | None:
    """The state of a model with plain tensors; None if it has no compressed ones."""
    state: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    if not any(isinstance(value, CompressedWeight) for value in state.values()):
        return None
    # Ties stay ties: transformers saves one of them.
    plain: dict[int, torch.Tensor] = {}
    for value in state.values():
        if id(value) not in plain:
            if isinstance(value, CompressedWeight):
                plain[id(value)] = value.decoded()
            else:
                plain[id(value)] = value.detach()
    return {name: plain[id(value)] for name, value in state.items()}
