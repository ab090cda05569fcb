"""Training with compressed weights computes the same, bit for bit, as training without."""

import copy
import io
from typing import Any, Final

import pytest
import torch
from torch import nn

from tests.python.optim import language
from tests.python.optim.language import Factory, Trace, compressed, in_backward, train, vanilla

STEPS: Final = 100

FACTORIES: Final[dict[str, Factory]] = {
    "sgd": lambda params: torch.optim.SGD(params, 0.05, foreach=False),
    "momentum": lambda params: torch.optim.SGD(
        params, 0.02, momentum=0.9, weight_decay=0.01, foreach=False
    ),
    "adamw": lambda params: torch.optim.AdamW(params, 1e-3, foreach=False),
    "adafactor": lambda params: torch.optim.Adafactor(params, 1e-2, foreach=False),
}
MAKERS: Final = {"vanilla": vanilla, "in backward": in_backward, "compressed": compressed}


def run(
    maker: str,
    optimizer: str,
    dtype: torch.dtype,
    steps: int,
    model: dict[str, Any] | None = None,
    loop: dict[str, Any] | None = None,
    **options: Any,
) -> Trace:
    net = language.model(dtype, **{"layers": 1, "dropout": 0.1, **(model or {})})
    trainer = MAKERS[maker](net, FACTORIES[optimizer], **options)
    return language.finish(train(net, trainer, steps, **(loop or {})), net, trainer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("optimizer", FACTORIES)
def test_losses_weights_and_states_are_the_same(optimizer: str, dtype: torch.dtype) -> None:
    expected = run("vanilla", optimizer, dtype, STEPS)
    assert expected.losses[-1] < 0.6 * expected.losses[0], "it must learn something"
    assert run("compressed", optimizer, dtype, STEPS) == expected


@pytest.mark.parametrize("optimizer", FACTORIES)
def test_plain_weights_in_backward(optimizer: str) -> None:
    expected = run("vanilla", optimizer, torch.bfloat16, 20)
    assert run("in backward", optimizer, torch.bfloat16, 20) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("optimizer", ["momentum", "adamw", "adafactor"])
def test_compressed_states(optimizer: str, dtype: torch.dtype) -> None:
    expected = run("vanilla", optimizer, dtype, 20)
    assert run("compressed", optimizer, dtype, 20, compress_states=True) == expected


@pytest.mark.parametrize("maker", ["in backward", "compressed"])
def test_accumulation(maker: str) -> None:
    loop = {"accumulate": 3}
    expected = run("vanilla", "adamw", torch.bfloat16, 20, loop=loop)
    assert run(maker, "adamw", torch.bfloat16, 20, loop=loop, accumulate_steps=3) == expected


def test_accumulation_that_is_not_declared_may_end_early() -> None:
    """The last step of an epoch often has fewer passes than the others."""
    loop = {"accumulate": 2}
    expected = run("vanilla", "momentum", torch.bfloat16, 10, loop=loop)
    assert run("compressed", "momentum", torch.bfloat16, 10, loop=loop, accumulate_steps=5) == (
        expected
    )


@pytest.mark.parametrize("maker", ["in backward", "compressed"])
def test_checkpointing(maker: str) -> None:
    model = {"layers": 2, "recompute": "yes"}
    expected = run("vanilla", "adamw", torch.bfloat16, 20, model)
    assert run("vanilla", "adamw", torch.bfloat16, 20, {"layers": 2}) == expected
    assert run(maker, "adamw", torch.bfloat16, 20, model) == expected


def test_reentrant_checkpointing_without_sharing() -> None:
    model = {"layers": 2, "recompute": "reentrant"}
    expected = run("vanilla", "adamw", torch.bfloat16, 10, model)
    assert run("compressed", "adamw", torch.bfloat16, 10, model) == expected


@pytest.mark.parametrize("recompute", ["no", "yes"])
def test_autocast(recompute: str) -> None:
    arguments: Any = ("adamw", torch.float32, 20, {"recompute": recompute}, {"autocast": True})
    assert run("compressed", *arguments) == run("vanilla", *arguments)


def saved(net: nn.Module, optimizer: torch.optim.Optimizer) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(
        {
            "model": net.state_dict(),
            "optimizer": optimizer.state_dict(),
            "random": torch.get_rng_state(),
        },
        file,
    )
    file.seek(0)
    return file


@pytest.mark.parametrize("options", [{}, {"compress_states": True}], ids=["states", "compressed"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("optimizer", ["momentum", "adamw", "adafactor"])
def test_resuming_half_way(optimizer: str, dtype: torch.dtype, options: dict[str, bool]) -> None:
    expected = run("vanilla", optimizer, dtype, 12)
    factory = FACTORIES[optimizer]

    net = language.model(dtype, layers=1, dropout=0.1)
    first = compressed(net, factory, **options)
    trace = train(net, first, 6)
    file = saved(net, first)

    other = language.model(dtype, seed=1, layers=1, dropout=0.1)
    second = compressed(other, factory, **options)
    state = torch.load(file, weights_only=True)
    other.load_state_dict(state["model"])
    second.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    train(other, second, 6, start=6, trace=trace)
    assert language.finish(trace, other, second) == expected


@pytest.mark.parametrize("options", [{}, {"compress_states": True}], ids=["states", "compressed"])
def test_states_go_to_and_from_the_optimizer_itself(options: dict[str, bool]) -> None:
    expected = run("vanilla", "adamw", torch.bfloat16, 12)
    makers = [(vanilla, {}), (compressed, options), (vanilla, {}), (in_backward, options)]
    net: nn.Module | None = None
    trainer: torch.optim.Optimizer | None = None
    trace = Trace()
    random = torch.get_rng_state()
    for part, (maker, its_options) in enumerate(makers):
        before, state = net, trainer
        net = language.model(torch.bfloat16, layers=1, dropout=0.1)
        random = random if before is not None else torch.get_rng_state()
        trainer = maker(net, FACTORIES["adamw"], **its_options)
        if before is not None and state is not None:
            net.load_state_dict({k: v.detach() for k, v in before.named_parameters()}, strict=False)
            trainer.load_state_dict(copy.deepcopy(state.state_dict()))
        torch.set_rng_state(random)
        train(net, trainer, 3, start=3 * part, trace=trace)
        random = torch.get_rng_state()
    assert net is not None
    assert trainer is not None
    assert language.finish(trace, net, trainer) == expected
