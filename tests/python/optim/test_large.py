"""The same with more than a hundred million parameters: exactness, and the target of memory."""

from typing import Any

import pytest
import torch
from torch import nn

import neuzip_rs as nz
from examples.memory_meter import Meter
from tests.python.optim import language
from tests.python.optim.language import Factory, Trace, batches

pytestmark = pytest.mark.slow

STEPS = 100


def momentum(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 1e-3, momentum=0.9, foreach=False)


def adamw(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, 1e-4, foreach=False)


def large() -> language.Language:
    net = language.model(torch.bfloat16, width=768, layers=15, dropout=0.1)
    sizes = [parameter.numel() for parameter in net.parameters()]
    assert sum(sizes) >= 100_000_000
    assert max(sizes) <= 0.05 * sum(sizes)
    return net


def run(compress: bool, factory: Factory, steps: int, **options: Any) -> tuple[Trace, Meter]:
    net = large()
    optimizer: torch.optim.Optimizer
    if compress:
        nz.nn.compress_(net)
        optimizer = nz.optim.InBackward(net, factory, **options)
    else:
        optimizer = factory(list(net.parameters()))
    meter, trace = Meter(net), Trace()
    for i, batch in enumerate(batches(steps)):
        loss = net(batch)
        if i in {0, steps - 1}:
            with meter.watching():
                loss.backward()
                meter.sample()
        else:
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        trace.losses.append(loss.item())
    return language.finish(trace, net, optimizer), meter


def test_a_hundred_steps_are_the_same_in_less_than_half_of_the_memory() -> None:
    expected, plain = run(False, momentum, STEPS)
    assert expected.losses[-1] < expected.losses[0]
    nz.nn.free_cache()
    trace, meter = run(True, momentum, STEPS)
    assert trace == expected
    print(f"\nweights, gradients and decoding: {meter.peak / 1e6:.1f} MB of {plain.peak / 1e6:.1f}")
    assert meter.peak <= 0.47 * plain.peak
    largest = 2 * 768 * 4 * 768
    assert meter.peak <= 1.05 * (meter.weights + 3 * largest)


def test_compressed_states_of_a_large_model() -> None:
    expected, _ = run(False, adamw, 10)
    trace, _ = run(True, adamw, 10, compress_states=True)
    assert trace == expected
