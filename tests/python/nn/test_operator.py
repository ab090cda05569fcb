"""Decoding inside of compiled graphs."""

import copy
import warnings

import pytest
import torch
from torch import nn

import neuzip_rs as nz
from neuzip_rs.nn.record import Record
from neuzip_rs.nn.rounding import Rounding
from tests.python.nn.networks import make, token_ids

# The compiler itself uses what it deprecates, and starts threads it does not join.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("rounding", [None, Rounding(2, 100)])
def test_opcheck(rounding: Rounding | None) -> None:
    values = torch.randn(64, 100).bfloat16()
    code = Record.encode(values, rounding).code
    expected = Record(code, Record.encode(values).layout, rounding).decode().clone()
    decode = torch.ops.neuzip.decode.default
    for start, count in ((0, 6400), (5, 100), (6399, 1), (0, 0)):
        torch.library.opcheck(decode, (code, start, count, torch.bfloat16))
        found = decode(code, start, count, torch.bfloat16)
        assert torch.equal(found, expected.view(-1)[start : start + count])
    with pytest.raises(nz.CorruptDataError):
        decode(code[:-9], 0, 6400, torch.bfloat16)
    with pytest.raises(ValueError, match=r".*"):
        decode(code, 6000, 6400, torch.bfloat16)


def compiled(network: nn.Module, ids: torch.Tensor, backend: str) -> torch.Tensor:
    torch._dynamo.reset()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.compile(network, fullgraph=True, backend=backend)(ids)


@pytest.mark.parametrize("name", ["tied", "attention", "encoder", "conv23d", "experts", "llama"])
def test_traced_graphs(name: str) -> None:
    plain = make(name, torch.bfloat16).eval()
    network = nz.nn.compress_(copy.deepcopy(plain), min_numel=64)
    ids = token_ids()
    expected = compiled(plain, ids, "aot_eager")
    assert torch.equal(compiled(network, ids, "aot_eager"), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "llama_tied", "conv1d"])
@pytest.mark.parametrize("freezing", [False, True])
def test_compiled_graphs(name: str, freezing: bool) -> None:
    import torch._inductor.config as inductor

    plain = make(name, torch.bfloat16).eval()
    network = nz.nn.compress_(copy.deepcopy(plain), min_numel=64)
    ids = token_ids()
    # Freezing lays constants out anew for other kernels; decoded weights must not be among them.
    expected = compiled(plain, ids, "inductor")
    with inductor.patch(freezing=freezing):
        assert torch.equal(compiled(network, ids, "inductor"), expected)


def test_graphs_decode_and_hold_no_weight() -> None:
    network = nz.nn.compress_(nn.Linear(64, 64).bfloat16(), min_numel=64).requires_grad_(False)
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    backend = torch._dynamo.backends.common.aot_autograd(fw_compiler=keep)
    inputs = torch.randn(3, 64).bfloat16()
    with torch.no_grad():
        run = torch.compile(network, fullgraph=True, backend=backend)
        assert torch.equal(run(inputs), network(inputs))
    (graph,) = graphs
    targets = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert targets.count(torch.ops.neuzip.decode.default) == 2
    assert not [node for node in graph.graph.nodes if node.op == "get_attr"]


def test_new_contents_reach_a_compiled_graph() -> None:
    network = nz.nn.compress_(nn.Linear(64, 64, bias=False))
    inputs = torch.randn(3, 64)
    torch._dynamo.reset()
    with torch.no_grad():
        run = torch.compile(network, backend="aot_eager")
        assert torch.equal(run(inputs), network(inputs))
        network.weight.copy_(torch.randn(64, 64) * 1e-3)
        assert torch.equal(run(inputs), network(inputs))
