"""Compressed networks compute the very numbers of plain ones."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import neuzip_rs as nz
from tests.python.nn.networks import NETWORKS, WIDTH, make, token_ids

DTYPES = [torch.float32, torch.bfloat16]


def pair(name: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    plain = make(name, dtype)
    compressed = nz.nn.compress_(copy.deepcopy(plain), min_numel=64)
    assert any(isinstance(p, nz.nn.CompressedWeight) for p in compressed.parameters())
    return plain, compressed


def run(network: nn.Module, ids: torch.Tensor) -> list[torch.Tensor | None]:
    torch.manual_seed(3)
    loss = network(ids)
    loss.backward()
    gradients = [p.grad for p in network.parameters()]
    network.zero_grad()
    return [loss.detach(), *gradients]


def assert_same(plain: list[torch.Tensor | None], compressed: list[torch.Tensor | None]) -> None:
    assert len(plain) == len(compressed)
    for one, other in zip(plain, compressed, strict=True):
        assert (one is None) == (other is None)
        assert one is None or (type(other) is torch.Tensor and torch.equal(one, other))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_losses_and_gradients(name: str, dtype: torch.dtype) -> None:
    plain, compressed = pair(name, dtype)
    ids = token_ids()
    for mode in (True, False):
        plain.train(mode)
        compressed.train(mode)
        assert_same(run(plain, ids), run(compressed, ids))


@pytest.mark.parametrize("name", NETWORKS)
def test_without_gradients(name: str) -> None:
    plain, compressed = pair(name, torch.float32)
    plain.eval()
    compressed.eval()
    ids = token_ids()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(plain(ids), compressed(ids))
    # What inference mode has seen must still be good for training.
    assert_same(run(plain, ids), run(compressed, ids))


@pytest.mark.parametrize("name", NETWORKS)
def test_autocast(name: str) -> None:
    plain, compressed = pair(name, torch.float32)
    plain.eval()
    compressed.eval()
    ids = token_ids()
    results = []
    for network in (plain, compressed):
        # Not in one region: torch remembers casts that were made without gradients there.
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            first = network(ids)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = network(ids)
        loss.backward()
        results.append([first, loss.detach(), *(p.grad for p in network.parameters())])
    assert_same(*results)


@pytest.mark.parametrize("name", ["llama_tied", "encoder", "gru"])
def test_activation_checkpointing(name: str) -> None:
    from torch.utils.checkpoint import checkpoint

    plain, compressed = pair(name, torch.bfloat16)
    ids = token_ids()
    results = []
    for network in (plain, compressed):
        for cast in (False, True):
            torch.manual_seed(3)
            with torch.autocast("cpu", enabled=cast):
                loss = checkpoint(network, ids, use_reentrant=False)
            loss.backward()
            results.append([loss.detach(), *(p.grad for p in network.parameters())])
            network.zero_grad()
    assert_same(results[0], results[2])
    assert_same(results[1], results[3])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8), (2, 2, 3, 8), (0, 8), (1, 8)], ids=str)
def test_linear_with_inputs_of_any_shape(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(8, 6, bias=bias)
    compressed = nz.nn.compress_(copy.deepcopy(plain), min_numel=1)
    inputs = torch.randn(shape)
    for some in (inputs, inputs.flip(0), inputs.movedim(-1, 0).contiguous().movedim(0, -1)):
        results = []
        for layer in (plain, compressed):
            needed = some.detach().requires_grad_()
            out = layer(needed)
            out.square().sum().backward()
            results.append([out.detach(), needed.grad, *(p.grad for p in layer.parameters())])
            layer.zero_grad()
        assert_same(*results)


FUNCTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "matmul": lambda w, x: x @ w,
    "einsum": lambda w, x: torch.einsum("bti,oi->bto", x, w),
    "einsum_both": lambda w, x: torch.einsum("bti,oi,oj->btj", x, w, w),
    "chunk": lambda w, x: sum(F.linear(x, part) for part in w.chunk(4)),
    "split_columns": lambda w, x: F.linear(x, torch.cat(w.split(8, 1), 1)),
    "index": lambda w, x: F.linear(x, w[torch.tensor([3, 1, 3])]),
    "slice": lambda w, x: F.linear(x[..., 4:20], w[2:9, 4:20]),
    "stride": lambda w, x: F.linear(x, w[::3]),
    "reshape": lambda w, x: F.linear(x.reshape(-1, 64), w.reshape(-1, 64)),
    "mT": lambda w, x: x @ w.mT.mT,
    "expand": lambda w, x: torch.bmm(x, w.expand(4, -1, -1)),
    "add": lambda w, x: F.linear(x, w + 0.5 * w.T),
    "norm": lambda w, x: x * w.norm() + w.sum() + w.abs().max(),
    "flip": lambda w, x: F.linear(x, w.flip(1)),
    "diagonal": lambda w, x: x * w.diagonal(),
    "where": lambda w, x: F.linear(x, torch.where(w > 0, w, 0.0)),
    "double": lambda w, x: F.linear(x.double(), w.double()).float(),
    "half": lambda w, x: F.linear(x.bfloat16(), w.bfloat16()).float(),
    "unbind": lambda w, x: x * torch.stack(w.unbind()[:3]).sum(),
    "squeeze": lambda w, x: F.linear(x, w.unsqueeze(0).squeeze(0)),
    "baddbmm": lambda w, x: torch.baddbmm(w[:12].expand(4, 12, 32), x, w.expand(4, -1, -1)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_a_weight(name: str) -> None:
    function = FUNCTIONS[name]
    torch.manual_seed(0)
    plain = nn.Parameter(torch.randn(WIDTH, WIDTH))
    inputs = torch.randn(4, 12, WIDTH)
    holder = nn.ParameterList([plain.detach().clone()])
    nz.nn.compress_(holder, min_numel=1)
    compressed = holder[0]
    assert type(compressed) is nz.nn.CompressedWeight
    results = []
    for weight in (plain, compressed):
        some = inputs.clone().requires_grad_()
        out = function(weight, some)
        out.square().mean().backward()
        results.append([out.detach(), some.grad, weight.grad])
    assert_same(*results)


def test_channels_last_convolutions() -> None:
    torch.manual_seed(0)
    for kernel in (1, 3):
        plain = nn.Conv2d(8, 16, kernel).to(memory_format=torch.channels_last)
        compressed = nz.nn.compress_(copy.deepcopy(plain), min_numel=1)
        assert compressed.weight.stride() == plain.weight.stride()
        inputs = torch.randn(2, 8, 9, 9).contiguous(memory_format=torch.channels_last)
        assert torch.equal(plain(inputs), compressed(inputs))
        later = nz.nn.compress_(nn.Conv2d(8, 16, kernel), min_numel=1)
        later.load_state_dict(compressed.state_dict())
        later.to(memory_format=torch.channels_last)
        assert later.weight.stride() == plain.weight.stride()
        assert torch.equal(plain(inputs), later(inputs))


def test_functional_transforms() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(8, 8)
    compressed = nz.nn.compress_(copy.deepcopy(plain), min_numel=1)
    inputs = torch.randn(5, 8)

    def gradients(layer: nn.Module) -> dict[str, torch.Tensor]:
        parameters = dict(layer.named_parameters())

        def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
            return torch.func.functional_call(layer, parameters, (inputs,)).square().sum()

        return torch.func.grad(loss)(parameters)

    expected, found = gradients(plain), gradients(compressed)
    for name, gradient in expected.items():
        assert torch.equal(gradient, found[name])


def test_fp8_weights() -> None:
    torch.manual_seed(0)
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        holder = nn.ParameterList(
            [nn.Parameter(torch.randn(64, 64).to(dtype), requires_grad=False)]
        )
        plain = holder[0].detach().clone()
        nz.nn.compress_(holder)
        inputs = torch.randn(3, 64)
        assert torch.equal(holder[0].float(), plain.float())
        assert torch.equal(F.linear(inputs, holder[0].float()), F.linear(inputs, plain.float()))
        nz.nn.decompress_(holder)
        assert torch.equal(holder[0].view(torch.uint8), plain.view(torch.uint8))


def test_generation() -> None:
    pytest.importorskip("transformers")
    plain, compressed = pair("llama_tied", torch.bfloat16)
    ids = token_ids()[:1]
    results = [
        network.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            do_sample=False,
            pad_token_id=0,
            use_cache=True,
        )
        for network in (plain, compressed)
    ]
    assert torch.equal(*results)
