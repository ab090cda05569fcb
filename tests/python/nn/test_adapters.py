"""Low-rank adapters on a compressed base that is not trained."""

import copy

import pytest
import torch
from torch import nn

import neuzip_rs as nz
from neuzip_rs.nn import CompressedWeight
from tests.python.nn.networks import make, token_ids

# peft uses what transformers deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


class Adapted(nn.Module):
    """A linear layer with a low-rank update next to it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, 4, bias=False)
        self.up = nn.Linear(4, base.out_features, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.base(inputs) + self.up(self.down(inputs))


def train(network: nn.Module) -> list[torch.Tensor]:
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    seen = []
    for step in range(4):
        torch.manual_seed(step)
        loss = network(token_ids(step))
        loss.backward()
        seen += [loss.detach(), *(p.grad.clone() for p in trained)]
        optimizer.step()
        optimizer.zero_grad()
    return seen + [p.detach().clone() for p in trained]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_by_hand(dtype: torch.dtype) -> None:
    plain = make("llama", dtype)
    plain.requires_grad_(False)
    for layer in plain.model.model.layers:
        layer.self_attn.q_proj = Adapted(layer.self_attn.q_proj).to(dtype)
    compressed = nz.nn.compress_(copy.deepcopy(plain), exclude=["down", "up"], min_numel=64)
    assert isinstance(
        compressed.model.model.layers[0].self_attn.q_proj.base.weight, CompressedWeight
    )
    for one, other in zip(train(plain), train(compressed), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["llama_tied", "gpt2"])
def test_peft(name: str) -> None:
    peft = pytest.importorskip("peft")
    target = ["q_proj", "v_proj", "gate_proj"] if name == "llama_tied" else ["c_attn"]
    options = {"r": 4, "target_modules": target, "init_lora_weights": False}
    options["fan_in_fan_out"] = name == "gpt2"
    plain = make(name)
    compressed = nz.nn.compress_(copy.deepcopy(plain), min_numel=64)
    for network in (plain, compressed):
        torch.manual_seed(7)
        network.model = peft.get_peft_model(network.model, peft.LoraConfig(**options))
    kinds = {type(m).__name__ for m in compressed.modules()}
    assert kinds == {type(m).__name__ for m in plain.modules()}
    assert any(isinstance(p, CompressedWeight) for p in compressed.parameters())
    for one, other in zip(train(plain), train(compressed), strict=True):
        assert torch.equal(one, other)
    adapters = peft.get_peft_model_state_dict(compressed.model)
    expected = peft.get_peft_model_state_dict(plain.model)
    assert list(adapters) == list(expected)
    assert all(torch.equal(adapters[key], expected[key]) for key in expected)
    with pytest.raises(RuntimeError, match="decompress_"):
        compressed.model.merge_and_unload()
    nz.nn.decompress_(compressed)
    merged, expected_merged = compressed.model.merge_and_unload(), plain.model.merge_and_unload()
    for one, other in zip(merged.parameters(), expected_merged.parameters(), strict=True):
        assert torch.equal(one, other)
