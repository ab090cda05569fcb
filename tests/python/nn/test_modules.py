"""Compressing in place, undoing it, and what modules do in between."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

import neuzip_rs as nz
from neuzip_rs.nn import CompressedWeight
from tests.python.nn.networks import NETWORKS, make, token_ids


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(torch.uint8)


@pytest.mark.parametrize("name", NETWORKS)
def test_decompress_undoes_compress(name: str) -> None:
    plain = make(name, torch.bfloat16)
    network = copy.deepcopy(plain)
    before = dict(network.named_parameters(remove_duplicate=False))
    kinds = [type(m) for m in network.modules()]
    assert nz.nn.compress_(network, min_numel=64) is network
    assert [type(m) for m in network.modules()] == kinds
    assert nz.nn.decompress_(network) is network
    for key, parameter in network.named_parameters(remove_duplicate=False):
        assert parameter is before[key]
        assert type(parameter) is nn.Parameter
    expected = dict(plain.named_parameters(remove_duplicate=False))
    for key, parameter in network.named_parameters(remove_duplicate=False):
        assert torch.equal(bits(parameter), bits(expected[key]))
        assert parameter.requires_grad == expected[key].requires_grad
    assert not any("_apply" in m.__dict__ for m in network.modules())
    assert torch.equal(plain.eval()(token_ids()), network.eval()(token_ids()))


def test_every_bit_pattern_comes_back() -> None:
    patterns = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        holder = nn.ParameterList([nn.Parameter(patterns.view(dtype).view(256, 256))])
        nz.nn.compress_(holder)
        assert torch.equal(holder[0].view(torch.int16), patterns.view(256, 256))
        nz.nn.decompress_(holder)
        assert torch.equal(holder[0].view(torch.int16), patterns.view(256, 256))


def test_parameters_stay_the_same_leaves() -> None:
    layer = nn.Linear(64, 64)
    layer.bias.requires_grad_(False)
    layer.weight.mark = "mine"
    layer.weight.grad = torch.ones(64, 64)
    weight = layer.weight
    seen: list[torch.Tensor] = []
    weight.register_post_accumulate_grad_hook(seen.append)
    nz.nn.compress_(layer, min_numel=1)
    assert layer.weight is weight
    assert isinstance(weight, nn.Parameter)
    assert isinstance(weight, CompressedWeight)
    assert weight.is_leaf
    assert weight.requires_grad
    assert not layer.bias.requires_grad
    assert weight.mark == "mine"
    assert torch.equal(weight.grad, torch.ones(64, 64))
    assert weight.untyped_storage().nbytes() == 0
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    layer(torch.randn(2, 64)).sum().backward()
    assert seen == [weight]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="InBackward"):
        optimizer.step()


def test_ties_stay() -> None:
    network = make("llama_tied")
    nz.nn.compress_(network, min_numel=64)
    model = network.model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert len(list(network.parameters())) == len(set(network.parameters()))
    again = copy.deepcopy(network)
    assert again.model.lm_head.weight is again.model.model.embed_tokens.weight
    nz.nn.decompress_(network)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_parameters_that_share_memory_stay_plain() -> None:
    first = nn.Linear(64, 64, bias=False)
    second = nn.Linear(64, 64, bias=False)
    second.weight = nn.Parameter(first.weight.detach().t())
    network = nn.Sequential(first, second, nn.Linear(64, 64, bias=False))
    nz.nn.compress_(network, min_numel=1)
    kinds = [isinstance(p, CompressedWeight) for p in network.parameters()]
    assert kinds == [False, False, True]


def test_which_parameters() -> None:
    def compressed(**options: object) -> set[str]:
        network = make("llama")
        nz.nn.compress_(network, **{"min_numel": 64, **options})
        named = network.named_parameters()
        return {name for name, p in named if isinstance(p, CompressedWeight)}

    everything = compressed()
    assert "model.lm_head.weight" in everything
    assert not any("norm" in name for name in everything)
    assert compressed(exclude="lm_head") == everything - {"model.lm_head.weight"}
    assert compressed(exclude=["lm_head", "embed_*"]) == everything - {
        "model.lm_head.weight",
        "model.model.embed_tokens.weight",
    }
    queries = {name for name in everything if "q_proj" in name}
    assert compressed(include="q_proj") == queries
    assert compressed(include=["*.q_proj.weight"]) == queries
    assert compressed(include=lambda name, _: "q_proj" in name) == queries
    assert compressed(include="layers.1", exclude="mlp") == {
        name for name in everything if "layers.1.self_attn" in name
    }
    assert compressed(min_numel=10**9) == set()
    with pytest.raises(ValueError, match="no_such_name"):
        compressed(exclude="no_such_name")
    with pytest.raises(TypeError, match="include"):
        compressed(include=[3])


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (ValueError, {"precision": -1}),
        (ValueError, {"precision": 24}),
        (ValueError, {"precision": 8}),
        (TypeError, {"precision": 3.0}),
        (TypeError, {"precision": True}),
        (ValueError, {"precision": 3, "block_size": 0}),
        (TypeError, {"precision": 3, "block_size": 5.5}),
        (ValueError, {"min_numel": -1}),
        (TypeError, {"min_numel": 1.5}),
    ],
)
def test_bad_arguments(error: type[Exception], options: dict[str, object]) -> None:
    layer = nn.Linear(64, 64).bfloat16()
    with pytest.raises(error):
        nz.nn.compress_(layer, **options)
    assert type(layer.weight) is nn.Parameter


def test_parameters_that_cannot_be_compressed() -> None:
    with pytest.raises(TypeError, match="module"):
        nz.nn.compress_(torch.zeros(9000))
    for dtype in (torch.float64, torch.complex64, torch.int8):
        holder = nn.ModuleDict({"fine": nn.Linear(64, 64), "odd": nn.ParameterList()})
        holder["odd"].append(nn.Parameter(torch.zeros(5000, dtype=dtype), requires_grad=False))
        with pytest.raises(TypeError, match=r"odd\.0.*exclude"):
            nz.nn.compress_(holder)
        # Nothing is done by halves.
        assert type(holder["fine"].weight) is nn.Parameter
        nz.nn.compress_(holder, exclude="odd", min_numel=1)
        assert isinstance(holder["fine"].weight, CompressedWeight)
    with pytest.raises(ValueError, match="meta"):
        nz.nn.compress_(nn.Linear(64, 64, device="meta"), min_numel=1)
    with pytest.raises(ValueError, match="no shape yet"):
        nz.nn.compress_(nn.LazyLinear(64), min_numel=1)
    fp8 = nn.Parameter(torch.zeros(5000).to(torch.float8_e5m2), requires_grad=False)
    with pytest.raises(TypeError, match="precision"):
        nz.nn.compress_(nn.ParameterList([fp8]), precision=1)


def test_a_parameter_in_use() -> None:
    layer = nn.Linear(64, 64)
    alive = [layer(torch.randn(2, 64)), weakref.ref(layer.weight)]
    with pytest.raises(RuntimeError, match="in use"):
        nz.nn.compress_(layer, min_numel=1)
    assert type(layer.weight) is nn.Parameter
    assert torch.isfinite(layer(torch.ones(1, 64))).all()
    del alive
    nz.nn.compress_(layer, min_numel=1)


def test_compressing_twice() -> None:
    layer = nn.Linear(64, 64).bfloat16()
    nz.nn.compress_(layer, min_numel=1)
    record = layer.weight.record
    nz.nn.compress_(layer, min_numel=1)
    assert layer.weight.record is record
    exact = layer.weight.detach().clone()
    nz.nn.compress_(layer, precision=2)
    assert layer.weight.record.rounding.precision == 2
    assert not torch.equal(layer.weight, exact)
    nz.nn.decompress_(layer)
    nz.nn.decompress_(layer)


@pytest.mark.parametrize("name", ["llama_tied", "gru", "encoder", "conv23d"])
def test_conversions(name: str) -> None:
    plain = make(name)
    compressed = nz.nn.compress_(copy.deepcopy(plain), min_numel=64)
    before = list(compressed.parameters())
    seen: list[torch.Tensor] = []
    for parameter in before:
        parameter.register_post_accumulate_grad_hook(seen.append)
    ids = token_ids()
    for convert in (
        lambda m: m.to("cpu"),
        lambda m: m.bfloat16(),
        lambda m: m.to(torch.float32),
        lambda m: m.float(),
        lambda m: m.half().float(),
        lambda m: m.requires_grad_(True),
        lambda m: m.share_memory(),
        lambda m: m.to(dtype=torch.bfloat16),
    ):
        convert(plain)
        convert(compressed)
        assert [id(p) for p in compressed.parameters()] == [id(p) for p in before]
        for one, other in zip(plain.parameters(), compressed.parameters(), strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
        assert torch.equal(plain.eval()(ids), compressed.eval()(ids))
    compressed(ids).backward()
    assert len(seen) == len([p for p in before if p.grad is not None])
    compressed.float()
    assert all(p.grad.dtype == torch.float32 for p in before if p.grad is not None)


def test_shared_memory() -> None:
    layer = nz.nn.compress_(nn.Linear(64, 64), min_numel=1)
    assert not layer.weight.is_shared()
    layer.share_memory()
    assert layer.weight.is_shared()
    assert layer.weight.record.code.is_shared()


def test_moving_to_meta_and_unknown_devices() -> None:
    layer = nz.nn.compress_(nn.Linear(64, 64), min_numel=1)
    assert layer.weight.to("meta").is_meta
    with pytest.raises(NotImplementedError, match="codec"):
        layer.weight.record.to(torch.device("xpu"))


@pytest.mark.parametrize("name", ["llama_tied", "lstm", "attention", "conv1d"])
def test_copies_and_pickles(name: str) -> None:
    network = nz.nn.compress_(make(name), min_numel=64)
    network.eval()
    ids = token_ids()
    expected = network(ids)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(other(ids), expected)
        kinds = [isinstance(p, CompressedWeight) for p in other.parameters()]
        assert kinds == [isinstance(p, CompressedWeight) for p in network.parameters()]
        # A copy is on its own: what happens to it does not reach the original, nor the reverse.
        other.bfloat16()
        nz.nn.decompress_(other)
        assert all(p.dtype == torch.bfloat16 for p in other.parameters())
        assert torch.equal(network(ids), expected)


def test_a_module_dies_with_its_last_reference() -> None:
    network = nz.nn.compress_(make("lstm"), min_numel=64)
    alive = weakref.ref(network)
    gc.collect()
    gc.disable()
    try:
        del network
        assert alive() is None
    finally:
        gc.enable()


def test_memory_report() -> None:
    network = make("llama_tied", torch.bfloat16)
    network.register_buffer("table", torch.zeros(100))
    before = nz.nn.memory_report(network)
    assert before.held_bytes == before.plain_bytes
    assert not any(row.compressed for row in before.rows)
    nz.nn.compress_(network, min_numel=64)
    report = nz.nn.memory_report(network)
    assert report.plain_bytes == before.plain_bytes
    assert report.held_bytes < before.held_bytes
    tied = next(row for row in report.rows if len(row.names) == 2)
    assert tied.names == ("model.model.embed_tokens.weight", "model.lm_head.weight")
    assert tied.compressed
    held = sum(row.held_bytes for row in report.rows)
    assert held == report.held_bytes
    codes = {
        p.record.code.data_ptr(): p.record.code.untyped_storage().nbytes()
        for p in network.parameters()
        if isinstance(p, CompressedWeight)
    }
    plain = sum(p.numel() * 2 for p in network.parameters() if not isinstance(p, CompressedWeight))
    buffers = sum(b.numel() * b.itemsize for b in network.buffers())
    assert report.held_bytes == sum(codes.values()) + plain + buffers
    assert "in all" in str(report)
    assert nz.nn.memory_report(nn.Module()).ratio == 1.0


def test_importing_neuzip_imports_no_torch(run_python: object) -> None:
    program = "import sys, neuzip_rs; print('torch' in sys.modules, neuzip_rs.nn.__name__)"
    assert run_python(program) == "False neuzip_rs.nn"  # type: ignore[operator]
