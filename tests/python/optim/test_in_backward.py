"""What `InBackward` promises besides exactness: the contract of an optimizer, memory, repair."""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import neuzip_rs as nz
from tests.python.optim import language
from tests.python.optim.language import Factory, batches, compressed, in_backward, train, vanilla

MAKERS = pytest.mark.parametrize("make", [in_backward, compressed])


def adamw(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, 1e-3, foreach=False)


def sgd(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 0.05, foreach=False)


def small(**options: Any) -> language.Language:
    return language.model(torch.bfloat16, **{"layers": 1, **options})


def loss_of(net: nn.Module, index: int = 0) -> torch.Tensor:
    (batch,) = batches(1, index)
    loss: torch.Tensor = net(batch)
    return loss


def backward(net: nn.Module, step: int, passes: int) -> None:
    for j in range(passes):
        loss_of(net, step * passes + j).backward()


def weights(net: nn.Module) -> dict[str, str]:
    return {name: language.digest(p) for name, p in net.named_parameters()}


def same_training(
    make: Callable[..., nz.optim.InBackward],
    factory: Factory,
    body: Callable[[nn.Module, torch.optim.Optimizer], None],
    **model: Any,
) -> None:
    """Compares what `body` makes of a model with vanilla training and in backward."""
    results = []
    for maker in (vanilla, make):
        net = small(**model)
        body(net, maker(net, factory))
        results.append(weights(net))
    assert results[0] == results[1]


# --- an optimizer as torch knows them -----------------------------------------------------------


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda i: 1 / (1 + i)),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 6),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 2e-3, total_steps=10),
    "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@MAKERS
def test_schedulers(make: Callable[..., nz.optim.InBackward], scheduler: str) -> None:
    rates: list[list[float]] = []

    def body(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        schedule = SCHEDULERS[scheduler](optimizer)
        rates.append([])
        for i in range(8):
            loss = loss_of(net, i)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step(*([1.0] if scheduler == "plateau" else []))
            rates[-1].append(optimizer.param_groups[0]["lr"])

    same_training(make, adamw, body)
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 2


def test_it_is_an_optimizer_of_the_parameters_of_the_model() -> None:
    net = small()
    optimizer = compressed(net, adamw)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0]["lr"] == 1e-3
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in net.parameters()]
    train(net, optimizer, 1)
    assert set(optimizer.state) == set(net.parameters())
    assert "AdamW" not in repr(optimizer.state_dict()["param_groups"])
    assert "lr: 0.001" in repr(optimizer)


@MAKERS
def test_parameters_with_other_options_are_in_other_groups(
    make: Callable[..., nz.optim.InBackward],
) -> None:
    def by_shape(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        matrices = [p for p in params if p.ndim >= 2]
        vectors = [p for p in params if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors}]
        return torch.optim.AdamW(groups, 1e-3, weight_decay=0.0, foreach=False)

    optimizers = []

    def body(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizers.append(optimizer)
        for i in range(4):
            loss_of(net, i).backward()
            optimizer.step()
            optimizer.zero_grad()
            optimizer.param_groups[0]["lr"] *= 0.5

    same_training(make, by_shape, body)
    assert [g["weight_decay"] for g in optimizers[1].param_groups] == [0.1, 0.0]


def test_a_closure_is_called() -> None:
    net = small()
    optimizer = compressed(net, sgd)
    before = weights(net)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(net)
        loss.backward()
        return loss

    assert isinstance(optimizer.step(closure), torch.Tensor)
    assert all(weights(net)[name] != before[name] for name in before)


def test_an_optimizer_that_states_something_when_it_is_made() -> None:
    def body(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        train(net, optimizer, 4)

    same_training(compressed, lambda p: torch.optim.Adagrad(p, 0.01, foreach=False), body)


@pytest.mark.parametrize(
    "kind", ["Adam", "NAdam", "RAdam", "Adamax", "Adadelta", "ASGD", "RMSprop", "Rprop"]
)
def test_the_other_optimizers_of_torch(kind: str) -> None:
    def body(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        train(net, optimizer, 3)

    same_training(compressed, lambda p: getattr(torch.optim, kind)(p, lr=1e-3), body)


def test_states_can_be_read_while_they_are_compressed() -> None:
    nets = [small(), small()]
    plain = vanilla(nets[0], adamw)
    trainer = compressed(nets[1], adamw, compress_states=True)
    for net, optimizer in zip(nets, (plain, trainer), strict=True):
        train(net, optimizer, 3)
    held = 0
    for one, other in zip(*(list(net.parameters()) for net in nets), strict=True):
        for key, value in plain.state[one].items():
            kept = trainer.state[other][key]
            assert torch.equal(kept, value)
            held += isinstance(kept, nz.nn.CompressedWeight)
    assert held >= 6


# --- what is trained ----------------------------------------------------------------------------


@MAKERS
def test_frozen_parameters_stay(make: Callable[..., nz.optim.InBackward]) -> None:
    net = small().float()
    net.blocks[0].up.requires_grad_(False)
    before = weights(net)
    optimizer = make(net, adamw)
    net.blocks[0].down.requires_grad_(False)
    train(net, optimizer, 2)
    unchanged = {name for name, its in weights(net).items() if its == before[name]}
    assert unchanged == {f"blocks.0.{x}.{y}" for x in ("up", "down") for y in ("weight", "bias")}


@MAKERS
def test_a_parameter_that_is_thawed_has_to_be_added(
    make: Callable[..., nz.optim.InBackward],
) -> None:
    def body(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        train(net, optimizer, 2)
        late.requires_grad_()
        if isinstance(optimizer, nz.optim.InBackward):
            loss_of(net, 2).backward()
            with pytest.raises(RuntimeError, match=r"blocks\.0\.up\.weight.*add_param_group"):
                optimizer.step()
            late.grad = None
        else:
            loss_of(net, 2).backward()
            late.grad = None
            optimizer.step()
            optimizer.zero_grad()
        optimizer.add_param_group({"params": [late], "lr": 5e-4})
        train(net, optimizer, 3, start=3)

    results = []
    for maker in (vanilla, make):
        net = small()
        late = net.blocks[0].up.weight
        late.requires_grad_(False)
        trained = [p for p in net.parameters() if p.requires_grad]
        body(net, adamw(trained) if maker is vanilla else make(net, adamw))
        results.append(weights(net))
    assert results[0] == results[1]


def test_what_gets_no_gradient_stays() -> None:
    net = nn.ModuleDict({"used": nn.Linear(64, 64), "unused": nn.Linear(64, 64)})
    nz.nn.compress_(net, min_numel=0)
    before = weights(net)
    optimizer = nz.optim.InBackward(net, lambda p: torch.optim.AdamW(p, weight_decay=1.0))
    net["used"](torch.ones(2, 64)).sum().backward()
    optimizer.step()
    after = weights(net)
    assert {name for name in before if before[name] != after[name]} == {"used.weight", "used.bias"}
    assert len(optimizer.state_dict()["state"]) == 2


def test_a_model_may_be_compressed_and_decompressed_in_between() -> None:
    def body(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        ours = isinstance(optimizer, nz.optim.InBackward)
        for i in range(6):
            if ours and i == 2:
                nz.nn.compress_(net, min_numel=256)
            if ours and i == 4:
                nz.nn.decompress_(net)
            train(net, optimizer, 1, start=i)

    same_training(in_backward, adamw, body)


# --- hooks --------------------------------------------------------------------------------------


@contextmanager
def swapping() -> Iterator[None]:
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


@MAKERS
def test_hooks_that_a_conversion_drops_are_repaired(
    make: Callable[..., nz.optim.InBackward],
) -> None:
    def body(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        train(net, optimizer, 2)
        with swapping():
            net.to(torch.float32)
            net.to(torch.bfloat16)
        loss_of(net, 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        loss_of(net, 3).backward()
        if isinstance(optimizer, nz.optim.InBackward):
            assert all("SpentGradient" in repr(p.grad) for p in net.parameters())
        optimizer.step()
        optimizer.zero_grad()

    same_training(make, adamw, body)


@MAKERS
def test_moving_a_model_keeps_it_trained(make: Callable[..., nz.optim.InBackward]) -> None:
    net = small()
    optimizer = make(net, sgd)
    net.to("cpu")
    before = weights(net)
    loss_of(net).backward()
    assert all(weights(net)[name] != before[name] for name in before)
    optimizer.step()


def test_gradients_without_a_hook_are_not_dropped_without_a_word() -> None:
    net = small()
    optimizer = in_backward(net, sgd)
    with swapping():
        net.to(torch.float32).to(torch.bfloat16)
    loss_of(net).backward()
    with pytest.warns(UserWarning, match="call step"):
        optimizer.zero_grad()
    before = weights(net)
    loss_of(net).backward()
    assert all(weights(net)[name] != before[name] for name in before)


@MAKERS
def test_an_optimizer_that_is_gone_trains_nothing(
    make: Callable[..., nz.optim.InBackward],
) -> None:
    net = small()
    optimizer = make(net, sgd)
    gone = weakref.ref(optimizer)
    before = weights(net)
    del optimizer
    gc.collect()
    assert gone() is None
    loss_of(net).backward()
    assert weights(net) == before
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_a_model_that_is_gone_is_freed() -> None:
    net = small()
    optimizer = compressed(net, adamw)
    train(net, optimizer, 1)
    parameters = [weakref.ref(p) for p in net.parameters()]
    del net, optimizer
    gc.collect()
    assert all(parameter() is None for parameter in parameters)


def test_the_last_optimizer_made_is_the_one() -> None:
    results = []
    for count in (1, 2):
        net = small()
        made = [compressed(net, sgd) for _ in range(count)]
        train(net, made[-1], 3)
        results.append(weights(net))
        if count == 2:
            with pytest.raises(RuntimeError, match="another InBackward"):
                made[0].step()
    assert results[0] == results[1]


def test_remove_gives_the_model_back() -> None:
    def body(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        train(net, optimizer, 2)
        state = optimizer.state_dict()
        if isinstance(optimizer, nz.optim.InBackward):
            optimizer.remove()
            nz.nn.decompress_(net)
        other = vanilla(net, adamw)
        other.load_state_dict(state)
        train(net, other, 2, start=2)

    same_training(compressed, adamw, body)


@MAKERS
def test_gradients_are_freed_before_backward_returns(
    make: Callable[..., nz.optim.InBackward],
) -> None:
    net = small()
    optimizer = make(net, sgd)
    loss_of(net).backward()
    for parameter in net.parameters():
        assert parameter.grad is not None
        assert parameter.grad.untyped_storage().nbytes() == 0
    optimizer.step()
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_failing_update_leaves_a_compressed_weight_as_it_was() -> None:
    class Failing(torch.optim.SGD):
        def step(self, closure: Callable[[], float] | None = None) -> None:
            super().step(closure)
            raise ArithmeticError

    net = nn.Linear(64, 64, bias=False)
    nz.nn.compress_(net, min_numel=0)
    before = weights(net)
    optimizer = nz.optim.InBackward(net, lambda params: Failing(params, 1.0))
    with pytest.raises(ArithmeticError):
        net(torch.ones(1, 64)).sum().backward()
    assert weights(net) == before
    optimizer.zero_grad()
    assert net(torch.ones(1, 64)).isfinite().all()


# --- clipping -----------------------------------------------------------------------------------


@MAKERS
@pytest.mark.parametrize("accumulate", [1, 2])
def test_clipping_by_value(make: Callable[..., nz.optim.InBackward], accumulate: int) -> None:
    results = []
    for maker in (vanilla, make):
        net = small()
        options = {} if maker is vanilla else {"accumulate_steps": accumulate}
        optimizer = maker(net, sgd, **options)
        if isinstance(optimizer, nz.optim.InBackward):
            optimizer.clip_grad_value_(0.01)
        for i in range(4):
            for j in range(accumulate):
                loss_of(net, i * accumulate + j).backward()
            if maker is vanilla:
                torch.nn.utils.clip_grad_value_(net.parameters(), 0.01)
            optimizer.step()
            optimizer.zero_grad()
        results.append(weights(net))
    assert results[0] == results[1]


@MAKERS
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("norm_type", [2.0, float("inf")])
def test_clipping_by_the_norm_of_all_gradients(
    make: Callable[..., nz.optim.InBackward], accumulate: int, norm_type: float
) -> None:
    results = []
    for maker in (vanilla, make):
        net = small(dropout=0.1)
        options = {} if maker is vanilla else {"accumulate_steps": accumulate}
        optimizer = maker(net, adamw, **options)
        norms = []

        for i in range(4):
            if isinstance(optimizer, nz.optim.InBackward):
                with (
                    torch.random.fork_rng(),
                    optimizer.clip_in_two_passes(0.5, norm_type) as measured,
                ):
                    backward(net, i, accumulate)
                norms.append(measured.total.item())
                backward(net, i, accumulate)
            else:
                backward(net, i, accumulate)
                total = torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5, norm_type)
                norms.append(total.item())
            optimizer.step()
            optimizer.zero_grad()
        results.append((norms, weights(net)))
    assert results[0] == results[1]
    assert max(results[0][0]) > 0.5, "something must be clipped"


def test_measuring_changes_nothing() -> None:
    net = small()
    optimizer = compressed(net, adamw)
    before = weights(net)
    with optimizer.clip_in_two_passes(1.0) as norm:
        loss_of(net).backward()
    assert norm.total > 0
    assert weights(net) == before
    assert not optimizer.state_dict()["state"]
    assert all(p.grad is None for p in net.parameters())


def test_a_norm_that_is_not_finite_can_be_refused() -> None:
    net = small()
    optimizer = compressed(net, adamw)
    with (
        pytest.raises(RuntimeError, match="Nothing has been updated"),
        optimizer.clip_in_two_passes(1.0, error_if_nonfinite=True),
    ):
        (loss_of(net) * float("inf")).backward()
    before = weights(net)
    loss_of(net).backward()
    optimizer.step()
    assert all(p.isfinite().all() for p in net.parameters())
    assert weights(net) != before
