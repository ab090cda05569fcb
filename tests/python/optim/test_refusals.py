"""What cannot be trained in backward says so."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import torch
from torch import nn

import neuzip_rs as nz
from tests.python.optim import language
from tests.python.optim.language import batches, compressed, in_backward

Make = Callable[..., nz.optim.InBackward]
Wrong: TypeAlias = Any

BOTH = pytest.mark.parametrize("make", [in_backward, compressed])


def sgd(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 0.05)


def small(**options: Any) -> language.Language:
    return language.model(torch.float32, **{"layers": 2, **options})


def backward(net: nn.Module) -> None:
    (batch,) = batches(1)
    net(batch).backward()


@BOTH
def test_clipping_in_one_pass(make: Make) -> None:
    net = small()
    optimizer = make(net, sgd)
    backward(net)
    with pytest.raises(RuntimeError, match=r"clip_in_two_passes.*max_grad_norm=0"):
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    with pytest.raises(RuntimeError, match="clip_grad_value_"):
        torch.nn.utils.clip_grad_value_(net.parameters(), 1.0)
    optimizer.step()
    backward(net)


@BOTH
def test_a_norm_that_is_only_logged_is_unknown(make: Make) -> None:
    """Transformers' Trainer asks for it even where nothing is to be clipped."""
    net = small()
    optimizer = make(net, sgd)
    backward(net)
    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), float("inf"))
    assert math.isnan(norm.item())
    assert math.isnan(torch.nn.utils.get_total_norm([p.grad for p in net.parameters()]).item())
    assert "UnknownNorm" in repr(norm)
    optimizer.step()
    backward(net)


@BOTH
def test_grad_scaler(make: Make) -> None:
    net = small()
    optimizer = make(net, sgd)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    (batch,) = batches(1)
    scaler.scale(net(batch)).backward()
    with pytest.raises(RuntimeError, match="GradScaler cannot be used"):
        scaler.step(optimizer)


def test_grad_scaler_that_does_nothing() -> None:
    net = small()
    optimizer = compressed(net, sgd)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    (batch,) = batches(1)
    scaler.scale(net(batch)).backward()
    scaler.step(optimizer)
    scaler.update()


@BOTH
def test_passes_that_were_not_declared(make: Make) -> None:
    net = small()
    optimizer = make(net, sgd)
    backward(net)
    with pytest.raises(RuntimeError, match="accumulate_steps=2"):
        backward(net)
    optimizer.zero_grad()
    backward(net)


@BOTH
def test_a_second_pass_through_a_graph(make: Make) -> None:
    net = small()
    optimizer = make(net, sgd)
    (batch,) = batches(1)
    loss = net(batch)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError):
        loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@BOTH
def test_an_update_between_forward_and_backward(make: Make) -> None:
    net = small()
    optimizer = make(net, sgd)
    (batch,) = batches(1)
    early = net(batch)
    net(batch).backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        early.backward()


class Shared(nn.Module):
    """One block used twice, each time in a checkpoint of its own."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.first = nn.Linear(32, 32)
        self.linear = nn.Linear(32, 32)
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for _ in range(2):
            x = torch.utils.checkpoint.checkpoint(
                lambda y: self.linear(y).tanh(), x, use_reentrant=self.reentrant
            )
        return x.sum()


@BOTH
def test_reentrant_checkpointing_with_shared_weights(make: Make) -> None:
    net = Shared(reentrant=True)
    optimizer = make(net, sgd)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        net(torch.ones(2, 32)).backward()
    optimizer.zero_grad()
    net.reentrant = False
    net(torch.ones(2, 32)).backward()


class NeedsClosure(torch.optim.SGD):
    def step(self, closure: Wrong) -> Wrong:  # type: ignore[override]
        return super().step(closure)


class SharesValues(torch.optim.SGD):
    """Like Prodigy or schedule-free optimizers: what one parameter does matters to the others."""

    def step(self, closure: Wrong = None) -> Wrong:  # type: ignore[override]
        super().step(closure)
        self.param_groups[0]["lr"] *= 0.5


@pytest.mark.parametrize("optimizer", [torch.optim.LBFGS, NeedsClosure])
def test_optimizers_that_need_all_gradients_at_once(optimizer: Wrong) -> None:
    with pytest.raises(TypeError, match="needs all gradients at once"):
        nz.optim.InBackward(small(), optimizer)


@BOTH
def test_optimizers_that_share_values_among_parameters(make: Make) -> None:
    net = small()
    optimizer = make(net, lambda params: SharesValues(params, 0.1))
    with pytest.raises(TypeError, match=r"SharesValues changes 'lr' .* all gradients at once"):
        backward(net)
    optimizer.zero_grad()


def test_differentiable_updates() -> None:
    with pytest.raises(TypeError, match="differentiable"):
        nz.optim.InBackward(small(), lambda p: torch.optim.SGD(p, 0.1, differentiable=True))


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1), "not an optimizer"),
        (None, "callable"),
        (lambda params: None, "must return a torch.optim.Optimizer"),
    ],
)
def test_factories_that_are_none(factory: Wrong, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        nz.optim.InBackward(small(), factory)


def test_a_factory_of_other_parameters() -> None:
    net = small()
    with pytest.raises(ValueError, match="a list of one"):
        nz.optim.InBackward(net, lambda params: torch.optim.SGD(net.parameters(), 0.1))


@pytest.mark.parametrize("steps", [0, -1])
def test_too_few_steps(steps: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        nz.optim.InBackward(small(), sgd, accumulate_steps=steps)


@pytest.mark.parametrize("steps", [True, 1.0, "1"])
def test_steps_that_are_no_number(steps: Wrong) -> None:
    with pytest.raises(TypeError, match="accumulate_steps"):
        nz.optim.InBackward(small(), sgd, accumulate_steps=steps)


def test_nothing_to_train() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        nz.optim.InBackward(small().requires_grad_(False), sgd)
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        nz.optim.InBackward([nn.Parameter(torch.ones(1))], sgd)  # type: ignore[arg-type]


def test_weights_that_are_compressed_with_loss() -> None:
    net = nz.nn.compress_(small(), precision=3, include="up")
    with pytest.raises(ValueError, match=r"rounded to 3 bits.*requires_grad_\(False\)"):
        nz.optim.InBackward(net, sgd)
    for block in net.blocks:
        block.up.requires_grad_(False)
    nz.optim.InBackward(net, sgd)
    backward(net)


def test_a_process_group_that_is_none() -> None:
    with pytest.raises(TypeError, match="process group"):
        nz.optim.InBackward(small(), sgd, process_group=object())


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_clipping_by_nothing(value: float) -> None:
    with pytest.raises(ValueError, match="clip_value"):
        in_backward(small(), sgd).clip_grad_value_(value)


def test_measuring_in_the_midst_of_a_step() -> None:
    net = small()
    optimizer = in_backward(net, sgd, accumulate_steps=2)
    backward(net)
    with (
        pytest.raises(RuntimeError, match="under way"),
        optimizer.clip_in_two_passes(1.0),
    ):
        pass


def test_a_data_parallel_wrapper() -> None:
    with pytest.raises(TypeError, match=r"DataParallel.*process_group"):
        nz.optim.InBackward(nn.DataParallel(small()), sgd)


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copies(copier: Wrong) -> None:
    with pytest.raises(TypeError, match="state_dict"):
        copier(in_backward(small(), sgd))


def test_states_of_another_model() -> None:
    optimizer = in_backward(small(), sgd)
    other = in_backward(nn.Linear(4, 4), sgd)
    with pytest.raises(ValueError, match="parameter group"):
        optimizer.load_state_dict(other.state_dict())


def test_parameters_that_cannot_be_added() -> None:
    net = small()
    optimizer = in_backward(net, sgd)
    with pytest.raises(ValueError, match="not in the model"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [net.position]})
    with pytest.raises(TypeError, match="must be parameters"):
        optimizer.add_param_group({"params": torch.ones(2)})


def test_a_parameter_that_was_exchanged() -> None:
    net = small()
    optimizer = in_backward(net, sgd)
    net.blocks[0].up.weight = nn.Parameter(net.blocks[0].up.weight.detach().clone())
    backward(net)
    with pytest.raises(RuntimeError, match=r"'blocks\.0\.up\.weight' has a gradient"):
        optimizer.step()
