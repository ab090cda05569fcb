"""What training holds: never more than one decoded weight and one gradient beside the codes."""

import gc

import pytest
import torch
from torch import nn

import neuzip_rs as nz
from examples.memory_meter import Meter, state_bytes
from tests.python.optim import language
from tests.python.optim.language import Factory, batches


def sgd(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 1e-3, foreach=False)


def adamw(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, 1e-3, foreach=False)


def peak(net: nn.Module, optimizer: torch.optim.Optimizer) -> Meter:
    nz.nn.free_cache()
    meter = Meter(net)
    for batch in batches(2):
        with meter.watching():
            net(batch).backward()
            meter.sample()
        optimizer.step()
        optimizer.zero_grad()
    return meter


@pytest.mark.parametrize("factory", [sgd, adamw])
@pytest.mark.parametrize("recompute", ["no", "yes"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_the_peak_of_weights_gradients_and_decoding(
    dtype: torch.dtype, recompute: str, factory: Factory
) -> None:
    net = language.model(dtype, width=128, layers=4, recompute=recompute)
    plain_bytes = sum(p.nbytes for p in net.parameters())
    largest = max(p.nbytes for p in net.parameters())
    nz.nn.compress_(net)
    new_code = max(p.record.code.numel() for p in net.parameters() if hasattr(p, "record"))
    meter = peak(net, nz.optim.InBackward(net, factory))
    assert meter.weights < 0.9 * plain_bytes
    assert meter.peak <= 1.05 * (meter.weights + 2 * largest + new_code)


def test_a_plain_model_holds_one_gradient_at_a_time() -> None:
    net = language.model(torch.bfloat16, width=128, layers=4)
    plain_bytes = sum(p.nbytes for p in net.parameters())
    largest = max(p.nbytes for p in net.parameters())
    meter = peak(net, nz.optim.InBackward(net, sgd))
    assert meter.peak <= plain_bytes + largest


def test_states_take_less_when_they_are_compressed() -> None:
    held: dict[bool, int] = {}
    for compress in (False, True):
        net = nz.nn.compress_(language.model(torch.bfloat16, width=128))
        optimizer = nz.optim.InBackward(net, adamw, compress_states=compress)
        peak(net, optimizer)
        held[compress] = state_bytes(optimizer)
    assert held[True] < 0.85 * held[False]


def test_nothing_grows_from_step_to_step() -> None:
    net = nz.nn.compress_(language.model(torch.float32, width=64))
    optimizer = nz.optim.InBackward(net, adamw, compress_states=True)
    tensors: list[int] = []
    for batch in batches(4):
        net(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        tensors.append(live_tensors())
    assert tensors[1] == tensors[2] == tensors[3]


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
