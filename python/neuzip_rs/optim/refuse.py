"""What cannot be trained in backward, found out before the first step where possible."""

import inspect
from collections.abc import Callable

import torch
from torch import nn

from neuzip_rs.nn.compress import is_flattened
from neuzip_rs.nn.weight import CompressedWeight

Factory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""Makes an optimizer of a list of parameters."""


def check_model(model: object) -> nn.Module:
    """Returns the model if its gradients are there to be used one by one.

    Raises:
        TypeError: If it is no module, or wrapped in one that has its own way with gradients.
    """
    if not isinstance(model, nn.Module):
        message = f"model must be a torch.nn.Module, not {type(model).__qualname__}"
        raise TypeError(message)
    for name, part in model.named_modules():
        reason = _wrapper(part)
        if reason is not None:
            where = f"model.{name}" if name else "model"
            message = f"{where} is a {type(part).__qualname__}: {reason}"
            raise TypeError(message)
    return model


def check_parameter(name: str, parameter: torch.Tensor) -> None:
    """Raises an error if a parameter is not what it looks like.

    Raises:
        TypeError: If it is sharded, quantized or otherwise special.
        ValueError: If it is compressed with loss.
    """
    kind = type(parameter)
    if isinstance(parameter, CompressedWeight) and parameter.record.rounding is not None:
        message = (
            f"parameter {name!r} is rounded to {parameter.record.rounding.precision} bits of "
            "mantissa, which is for inference: small updates would be rounded away. Compress what "
            "is trained without precision=, or freeze it with requires_grad_(False)"
        )
        raise ValueError(message)
    if isinstance(parameter, CompressedWeight) or kind in {nn.Parameter, torch.Tensor}:
        return
    if kind.__name__ == "DTensor":
        message = (
            f"parameter {name!r} is a DTensor (FSDP2, tensor parallelism): InBackward does not "
            "work on shards; use the module as it is, with process_group= for data parallelism"
        )
        raise TypeError(message)
    message = f"parameter {name!r} is a {kind.__qualname__}, not a torch.nn.Parameter"
    raise TypeError(message)


def check_factory(factory: object) -> Factory:
    """Returns the factory if it can be called.

    Raises:
        TypeError: If it is an optimizer, or not callable.
    """
    if isinstance(factory, torch.optim.Optimizer):
        message = (
            "factory must be a function that makes an optimizer, not an optimizer: for example "
            "lambda params: torch.optim.AdamW(params, lr=1e-3)"
        )
        raise TypeError(message)
    if not callable(factory):
        message = f"factory must be callable, not {factory!r}"
        raise TypeError(message)
    return factory


def check_optimizer(optimizer: object) -> torch.optim.Optimizer:
    """Returns what a factory made if it can update one parameter without knowing the others.

    Raises:
        TypeError: If it is no optimizer, or one that needs all gradients at once.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        message = f"factory must return a torch.optim.Optimizer, not {optimizer!r}"
        raise TypeError(message)
    kind = type(optimizer).__qualname__
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if isinstance(optimizer, torch.optim.LBFGS) or (
        closure is not None and closure.default is inspect.Parameter.empty
    ):
        message = (
            f"{kind} needs all gradients at once (its step evaluates the loss again), and "
            "InBackward has one at a time: use an optimizer that treats parameters one by one, "
            "such as SGD, AdamW or Adafactor"
        )
        raise TypeError(message)
    if kind == "ZeroRedundancyOptimizer":
        message = f"{kind} shares parameters out among processes: pass the optimizer inside of it"
        raise TypeError(message)
    for group in optimizer.param_groups:
        if group.get("differentiable"):
            message = "differentiable=True needs the graph of the update, which InBackward frees"
            raise TypeError(message)
    return optimizer


def check_steps(accumulate_steps: object) -> int:
    """Returns the number of backward passes to a step.

    Raises:
        TypeError: If it is no int.
        ValueError: If it is less than one.
    """
    if isinstance(accumulate_steps, bool) or not isinstance(accumulate_steps, int):
        message = f"accumulate_steps must be an int, not {accumulate_steps!r}"
        raise TypeError(message)
    if accumulate_steps < 1:
        message = f"accumulate_steps must be at least 1, not {accumulate_steps}"
        raise ValueError(message)
    return accumulate_steps


def _wrapper(part: nn.Module) -> str | None:
    if isinstance(part, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        return (
            "it would average gradients after InBackward has used them. Give InBackward the module "
            "inside, model.module, and the processes: InBackward(model.module, factory, "
            "process_group=torch.distributed.group.WORLD) averages each gradient before it is used"
        )
    if is_flattened(part):
        return (
            "FSDP flattens and shards parameters, so that there is no gradient of one parameter. "
            "Give InBackward the module without it, with process_group= for data parallelism"
        )
    return None
