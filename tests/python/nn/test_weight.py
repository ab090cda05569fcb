"""Compressed weights as tensors: reading, writing, views, casts, and the decoded tensor kept."""

import copy
import threading
from contextlib import AbstractContextManager
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import neuzip_rs as nz
from neuzip_rs import _native
from neuzip_rs.nn import CompressedWeight, rows, scratch
from neuzip_rs.nn.record import Record


def weight_of(*shape: int, dtype: torch.dtype = torch.float32) -> CompressedWeight:
    holder = nn.ParameterList([nn.Parameter(torch.randn(*shape).to(dtype))])
    nz.nn.compress_(holder, min_numel=1)
    weight = holder[0]
    assert isinstance(weight, CompressedWeight)
    return weight


WRITES = {
    "add_": lambda w: w.add_(1),
    "mul_": lambda w: w.mul_(2),
    "zero_": lambda w: w.zero_(),
    "normal_": lambda w: nn.init.normal_(w),
    "item": lambda w: w.__setitem__(0, 1.0),
    "view": lambda w: w.view(-1).fill_(1),
    "slice": lambda w: w[2:4].zero_(),
    "t": lambda w: w.t().add_(1),
    "detach": lambda w: w.detach().add_(1),
    "data": lambda w: w.data.add_(1),
    "view_copy": lambda w: w[0].copy_(torch.ones(8)),
    "out": lambda w: torch.add(torch.ones(8, 8), 1, out=w),
    "foreach": lambda w: torch._foreach_add_([torch.ones(2), w], 1.0),
    "clamp_": lambda w: w.clamp_(0, 1),
    "set_data": lambda w: setattr(w, "data", torch.zeros(8, 8)),
    "masked": lambda w: w.masked_fill_(torch.ones(8, 8, dtype=torch.bool), 0),
    "index_add": lambda w: w.index_add_(0, torch.tensor([1]), torch.ones(1, 8)),
    "resize": lambda w: w.detach().resize_(4, 4),
}


@pytest.mark.parametrize("name", WRITES)
def test_writing_in_place_is_refused(name: str) -> None:
    weight = weight_of(8, 8)
    before = weight.detach().clone()
    with torch.no_grad(), pytest.raises(RuntimeError, match="compressed weight"):
        WRITES[name](weight)
    assert torch.equal(weight, before)


def test_copying_into_a_whole_weight() -> None:
    weight = weight_of(8, 8, dtype=torch.bfloat16)
    view = weight[2]
    version = weight._version
    new = torch.randn(8, 8)
    with torch.no_grad():
        weight.copy_(new)
    assert torch.equal(weight, new.bfloat16())
    assert torch.equal(view, new[2].bfloat16())
    assert weight._version > version
    with torch.no_grad():
        weight.copy_(torch.ones(8))
    assert torch.equal(weight, torch.ones(8, 8).bfloat16())
    other = weight_of(8, 8, dtype=torch.bfloat16)
    with torch.no_grad():
        weight.copy_(other)
    assert torch.equal(weight, other)


def test_a_graph_notices_new_contents() -> None:
    weight = weight_of(8, 8)
    inputs = torch.randn(3, 8, requires_grad=True)
    loss = F.linear(inputs, weight).sum()
    weight.encode_from(torch.zeros(8, 8))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with pytest.raises(ValueError, match="shape"):
        weight.encode_from(torch.zeros(8, 9))
    with pytest.raises(ValueError, match="type"):
        weight.encode_from(torch.zeros(8, 8).double())


def test_casts_keep_what_they_were_made_from() -> None:
    weight = weight_of(8, 8)
    before = weight.detach().clone()
    half, double = weight.detach().bfloat16(), weight.detach().double()
    weight.encode_from(torch.zeros(8, 8))
    assert torch.equal(half, before.bfloat16())
    assert torch.equal(double, before.double())
    assert torch.equal(weight.detach(), torch.zeros(8, 8))


def test_changing_what_was_decoded_for_it() -> None:
    weight = weight_of(40, 40)
    expected = weight.detach().clone() + 1
    for step in range(3):
        decoded = weight.decode_to_change()
        decoded += 1
        weight.encode_from(decoded)
        del decoded
        assert torch.equal(weight.detach(), expected + step)


def test_results_never_show_memory_that_is_used_again() -> None:
    weight = weight_of(64, 64)
    other = weight_of(64, 64)
    expected = weight.detach().clone()
    results = [
        weight.clone(),
        torch.ops.aten._unsafe_view(weight.detach(), [4096]),
        torch.ops.aten._reshape_alias(weight.detach(), [4096], [1]),
        weight.detach().contiguous() + 0,
        weight.decoded(),
        weight.detach().reshape(32, 128) * 1,
        torch.ops.aten.lift_fresh(weight.detach()),
    ]
    for _ in range(3):
        other.sum()
        torch.mm(other.detach(), other.detach())
    for result in results:
        assert torch.equal(result.reshape(-1), expected.reshape(-1))
    results[1].zero_()
    assert torch.equal(weight, expected)


def test_one_decoded_tensor_is_kept() -> None:
    nz.nn.free_cache()
    first, second = weight_of(64, 64), weight_of(32, 64)
    first.sum()
    memory = scratch.kept()
    second.sum()
    first.sum()
    assert scratch.kept() is memory
    assert memory.numel() == 64 * 64 * 4
    nz.nn.free_cache()
    assert scratch.kept() is None
    assert torch.isfinite(first.sum())


def test_reading_without_operators() -> None:
    weight = weight_of(8, 8)
    plain = weight.detach().clone()
    with pytest.raises(RuntimeError, match="requires grad"):
        weight.numpy()
    array = weight.detach().numpy()
    assert np.array_equal(array, plain.numpy())
    array[:] = 0
    assert torch.equal(weight.detach(), plain)
    assert weight.tolist() == plain.tolist()
    assert np.array_equal(np.asarray(weight.detach()), plain.numpy())
    assert torch.equal(torch.from_dlpack(weight.detach()), plain)
    assert weight[3, 4].item() == plain[3, 4].item()
    assert [row.tolist() for row in weight] == plain.tolist()
    assert torch.equal(weight.view(torch.int32), plain.view(torch.int32))
    assert "CompressedWeight(parameter, shape=(8, 8), dtype=torch.float32" in repr(weight)
    assert torch.zeros_like(weight).shape == weight.shape
    assert type(torch.randn_like(weight.detach())) is torch.Tensor


def test_copies_of_views() -> None:
    weight = weight_of(8, 8)
    shown = copy.deepcopy(weight.detach()[2:4])
    assert torch.equal(shown, weight.detach()[2:4])
    with pytest.raises(RuntimeError, match="leaves"):
        copy.deepcopy(weight[2:4])


def test_parts_are_decoded_alone() -> None:
    weight = weight_of(16, 256, 256)
    plain = weight.detach().clone()
    nz.nn.free_cache()
    for index in (0, 7, 15):
        assert torch.equal(weight[index] * 1, plain[index])
        assert scratch.kept().numel() == plain[0].numel() * 4
    assert torch.equal(weight[:, 3] * 1, plain[:, 3])


MODES = [torch.inference_mode, torch.no_grad, torch.enable_grad]


@st.composite
def views(draw: st.DrawFn, dims: int) -> list[tuple[str, tuple[object, ...]]]:
    """Views, one of the other, of a tensor with so many dimensions."""
    steps: list[tuple[str, tuple[object, ...]]] = []
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(
            st.sampled_from(
                ["transpose", "select", "slice", "cast", "detach", "reshape", "contiguous"]
            )
        )
        if kind == "transpose" and dims > 1:
            pair = draw(st.permutations(range(dims)))[:2]
            steps.append(("transpose", tuple(pair)))
        elif kind == "select" and dims > 1:
            steps.append(("select", (draw(st.integers(0, dims - 1)), 0)))
            dims -= 1
        elif kind == "slice":
            steps.append(("narrow", (draw(st.integers(0, dims - 1)), 0, 1)))
        elif kind == "cast":
            steps.append(("to", (draw(st.sampled_from([torch.float32, torch.bfloat16])),)))
        elif kind == "reshape":
            steps.append(("reshape", (-1,)))
            dims = 1
        elif kind in {"detach", "contiguous"}:
            steps.append((kind, ()))
    return steps


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    precision=st.sampled_from([None, None, 2]),
    mode=st.sampled_from(MODES),
    data=st.data(),
)
def test_views_show_what_plain_ones_show(
    shape: list[int],
    dtype: torch.dtype,
    precision: int | None,
    mode: type[AbstractContextManager[None]],
    data: st.DataObject,
) -> None:
    layers = [nn.ParameterList([nn.Parameter(torch.randn(*shape).to(dtype))]) for _ in range(2)]
    for layer in layers:
        nz.nn.compress_(layer, min_numel=1, precision=precision)
    plain = [nz.nn.decompress_(copy.deepcopy(layer))[0] for layer in layers]
    with mode():
        kept = []
        for _ in range(4):
            which = data.draw(st.integers(0, 1))
            found, expected = layers[which][0], plain[which]
            for name, arguments in data.draw(views(len(shape))):
                found = getattr(found, name)(*arguments)
                expected = getattr(expected, name)(*arguments)
            assert found.shape == expected.shape
            assert found.stride() == expected.stride()
            kept.append((found + 0, expected + 0))
        # None of them has been written over by what was decoded later.
        for found, expected in kept:
            assert torch.equal(found, expected)


@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    tokens=st.integers(1, 5),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    mode=st.sampled_from(MODES),
    autocast=st.booleans(),
)
def test_linear_layers_of_all_sizes(
    sizes: list[int],
    tokens: int,
    bias: bool,  # drawn by name
    dtype: torch.dtype,
    mode: type[AbstractContextManager[None]],
    autocast: bool,
) -> None:
    layers = [nn.Linear(n, m, bias=bias) for n, m in pairwise(sizes)]
    plain = nn.Sequential(*layers).to(dtype)
    network = nz.nn.compress_(copy.deepcopy(plain), min_numel=1)
    inputs = torch.randn(tokens, 2, sizes[0]).to(dtype)
    with mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        expected, found = plain(inputs), network(inputs)
        again = network(inputs * 2)
        assert torch.equal(found, expected)
        assert torch.equal(again, plain(inputs * 2))
    if expected.requires_grad:
        expected.sum().backward()
        found.sum().backward()
        for one, other in zip(plain.parameters(), network.parameters(), strict=True):
            assert torch.equal(one.grad, other.grad)


def test_a_product_of_two_weights() -> None:
    first, second = weight_of(40, 40), weight_of(40, 40)
    plain = first.detach().clone(), second.detach().clone()
    for mode in MODES:
        with mode():
            assert torch.equal(torch.mm(first, second), torch.mm(*plain))
            assert torch.equal(F.linear(first, first), F.linear(plain[0], plain[0]))
            assert torch.equal(
                torch.addmm(first, second, first, beta=2), torch.addmm(*plain, plain[0], beta=2)
            )


def test_threads_share_a_network() -> None:
    plain = nn.Sequential(*[nn.Linear(64, 64) for _ in range(6)])
    network = nz.nn.compress_(copy.deepcopy(plain), min_numel=64)
    inputs = torch.randn(8, 64)
    results: list[torch.Tensor] = []
    with torch.no_grad():
        expected = plain(inputs)

    def work() -> None:
        with torch.no_grad():
            results.extend(network(inputs) for _ in range(30))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 120
    assert all(torch.equal(result, expected) for result in results)


def test_decoding_between_tensors() -> None:
    # More than what is written past the caches where nobody reads it at once.
    values = torch.randn(3 << 20)
    code = Record.encode(values).code
    raw = values.view(torch.uint8)
    out = torch.zeros_like(raw)
    damaged = code.clone()
    damaged[-100] ^= 1
    for threads in (None, 1, 2, 5):
        _native.decompress_to_use(code, out.zero_(), 0, raw.numel(), threads)
        assert torch.equal(out, raw)
        _native.decompress_to_use(code, out.zero_(), 1_000_003, 9_000_001, threads)
        assert torch.equal(out[:9_000_001], raw[1_000_003:10_000_004])
        assert not out[9_000_001:].any()
        with pytest.raises(nz.CorruptDataError):
            _native.decompress_to_use(damaged, out, 0, raw.numel(), threads)
    with pytest.raises(ValueError, match="too small"):
        _native.decompress_to_use(code, out, 0, raw.numel() + 1, 1)
    with pytest.raises(ValueError, match="outside"):
        _native.decompress_to_use(code, out, 1, raw.numel(), 1)
    with pytest.raises(ValueError, match="shares memory"):
        _native.decompress_to_use(code, code, 0, 100, 1)
    with pytest.raises(nz.CorruptDataError):
        _native.decompress_to_use(code[1:], out, 0, 100, 1)


class TestEmbedding:
    @pytest.fixture
    def table(self) -> nn.Embedding:
        torch.manual_seed(0)
        return nn.Embedding(20_000, 64, padding_idx=5)

    @pytest.mark.parametrize(
        "ids",
        [[3], [19_999, 0], [5, 5, 5], list(range(100, 164)), list(range(0, 20_000, 2))],
        ids=["one", "ends", "same", "range", "many"],
    )
    def test_rows(self, table: nn.Embedding, ids: list[int]) -> None:
        compressed = nz.nn.compress_(copy.deepcopy(table))
        wanted = torch.tensor(ids).view(1, -1)
        results = []
        for module in (table, compressed):
            out = module(wanted)
            out.sum().backward()
            results.append((out.detach(), module.weight.grad))
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])

    def test_few_rows_do_not_decode_the_table(self, table: nn.Embedding) -> None:
        record = Record.encode(table.weight)
        found = rows.decode_rows(record, torch.tensor([[7, 19_000], [7, 8]]))
        assert found is not None
        assert found[0].shape[0] < 10
        assert torch.equal(found[0][found[1]], table.weight[torch.tensor([[7, 19_000], [7, 8]])])
        assert rows.decode_rows(record, torch.arange(0, 20_000, 3)) is None

    def test_an_index_out_of_range(self, table: nn.Embedding) -> None:
        compressed = nz.nn.compress_(table)
        for bad in (20_000, -1):
            with pytest.raises(IndexError):
                compressed(torch.tensor([bad]))


@pytest.mark.parametrize("precision", [None, 3])
def test_damage_is_noticed(precision: int | None) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(128, 128, bias=False)
    nz.nn.compress_(layer, precision=precision)
    inputs = torch.randn(2, 128)
    layer(inputs)
    code = layer.state_dict()["weight"]
    for position in range(0, code.numel(), max(code.numel() // 97, 1)):
        code[position] ^= 0x10
        with pytest.raises(nz.NeuzipError):
            layer(inputs)
        code[position] ^= 0x10
    layer(inputs)
    layer.weight.record.code = code[:-5].clone()
    with pytest.raises(nz.CorruptDataError):
        layer(inputs)
    with pytest.raises(nz.CorruptDataError):
        nz.nn.decompress_(layer)
