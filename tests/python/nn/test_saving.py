"""State dicts of codes, and what may be loaded."""

import copy
import io
from pathlib import Path

import pytest
import torch
from torch import nn

import neuzip_rs as nz
from neuzip_rs.nn import CompressedWeight
from tests.python.nn.networks import NETWORKS, make, token_ids


def through_torch(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_state_dicts(name: str) -> None:
    plain = make(name, torch.bfloat16).eval()
    network = nz.nn.compress_(copy.deepcopy(plain), min_numel=64)
    state = network.state_dict()
    assert list(state) == list(plain.state_dict())
    shapes = {key: value.shape for key, value in plain.state_dict().items()}
    for key, value in state.items():
        assert type(value) is torch.Tensor
        assert (value.dtype == torch.uint8 and value.dim() == 1) or value.shape == shapes[key]
    assert any(value.dtype == torch.uint8 for value in state.values())
    ids = token_ids()
    expected = plain(ids)
    for saved in (state, through_torch(state), plain.state_dict()):
        other = nz.nn.compress_(make(name, torch.bfloat16, seed=1), min_numel=64).eval()
        result = other.load_state_dict(saved)
        assert not result.missing_keys
        assert not result.unexpected_keys
        assert torch.equal(other(ids), expected)
        assigned = nz.nn.compress_(make(name, torch.bfloat16, seed=1), min_numel=64).eval()
        assigned.load_state_dict(saved, assign=True)
        assert torch.equal(assigned(ids), expected)


def test_tied_keys_share_memory() -> None:
    network = nz.nn.compress_(make("llama_tied"), min_numel=64)
    state = network.state_dict()
    one, other = state["model.lm_head.weight"], state["model.model.embed_tokens.weight"]
    assert one.data_ptr() == other.data_ptr()
    once = through_torch({"a": one})
    twice = through_torch({"a": one, "b": other})
    assert twice["a"].data_ptr() == twice["b"].data_ptr()
    assert torch.equal(once["a"], twice["b"])


def test_keep_vars_gives_parameters() -> None:
    layer = nz.nn.compress_(nn.Linear(64, 64))
    assert layer.state_dict(keep_vars=True)["weight"] is layer.weight


def test_safetensors(tmp_path: Path) -> None:
    network = nz.nn.compress_(make("llama", torch.bfloat16), min_numel=64).eval()
    path = tmp_path / "model.safetensors"
    nz.safetensors.save_file(network.state_dict(), path)
    other = nz.nn.compress_(make("llama", torch.bfloat16, seed=1), min_numel=64).eval()
    other.load_state_dict(nz.safetensors.load_file(path))
    assert torch.equal(other(token_ids()), network(token_ids()))
    codes = sum(value.numel() * value.itemsize for value in network.state_dict().values())
    assert path.stat().st_size < 1.25 * codes


def test_saved_state(tmp_path: Path) -> None:
    network = nz.nn.compress_(make("lstm"), min_numel=64)
    nz.save(network.state_dict(), tmp_path / "state")
    for key, value in nz.load(tmp_path / "state").items():
        assert torch.equal(value, network.state_dict()[key])


def test_codes_are_tensor_streams() -> None:
    layer = nn.Linear(64, 64).bfloat16()
    weight = layer.weight.detach().clone()
    code = nz.nn.compress_(layer).state_dict()["weight"]
    assert torch.equal(nz.decompress(code, framework="torch"), weight)
    # And streams that come from elsewhere are codes.
    other = nz.nn.compress_(nn.Linear(64, 64).bfloat16())
    stream = torch.frombuffer(bytearray(bytes(nz.compress(weight, level="max"))), dtype=torch.uint8)
    other.load_state_dict({"weight": stream, "bias": layer.bias})
    assert torch.equal(other.weight, weight)


def test_other_types_and_shapes() -> None:
    exact = nn.Linear(64, 64)
    state = nz.nn.compress_(copy.deepcopy(exact)).state_dict()
    half = nz.nn.compress_(nn.Linear(64, 64).bfloat16())
    half.load_state_dict(state)
    assert torch.equal(half.weight, exact.weight.bfloat16())
    with pytest.raises(RuntimeError, match="size mismatch"):
        nz.nn.compress_(nn.Linear(64, 65)).load_state_dict(state)
    with pytest.raises(RuntimeError, match="size mismatch"):
        nn.Linear(64, 64).load_state_dict(state)


def test_rounded_codes() -> None:
    torch.manual_seed(0)
    rounded = nz.nn.compress_(nn.Linear(64, 64).bfloat16(), precision=2)
    for other in (
        nz.nn.compress_(nn.Linear(64, 64).bfloat16()),
        nz.nn.compress_(nn.Linear(64, 64).bfloat16(), precision=5),
    ):
        other.load_state_dict(through_torch(rounded.state_dict()))
        assert torch.equal(other.weight, rounded.weight)
        assert other.weight.record.rounding == rounded.weight.record.rounding
        assert nz.nn.memory_report(other).rows[0].precision == 2


@pytest.mark.parametrize("precision", [None, 1])
def test_damaged_states(precision: int | None) -> None:
    layer = nz.nn.compress_(nn.Linear(128, 128), precision=precision)
    code = layer.state_dict()["weight"].clone()
    for bad in (code[:20], code[:3], torch.zeros(100, dtype=torch.uint8), code[1:]):
        before = layer.weight.detach().clone()
        with pytest.raises(nz.NeuzipError, match=r".*") as caught:
            layer.load_state_dict({"weight": bad, "bias": layer.bias})
        assert "weight" in "".join(caught.value.__notes__)
        assert torch.equal(layer.weight, before)


def test_loading_does_not_touch_the_state() -> None:
    layer = nz.nn.compress_(nn.Linear(64, 64))
    state = layer.state_dict()
    copies = {key: value.clone() for key, value in state.items()}
    nz.nn.compress_(nn.Linear(64, 64)).load_state_dict(state)
    for key, value in state.items():
        assert torch.equal(value, copies[key])
        assert not isinstance(value, CompressedWeight)
