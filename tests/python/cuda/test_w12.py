"""W12: packing is exact for every pattern, products are what they should be, run on the CPU."""

import itertools
import sys
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.python.cuda import w12_oracle as oracle
from tests.python.cuda.emulation import Emulated, guarded, needs_compiler
from tests.python.cuda.w12_device import EmulatedDevice

torch = pytest.importorskip("torch")

from neuzip_rs.cuda import _w12_device, w12  # noqa: E402  after torch is known to be there
from neuzip_rs.cuda._w12_plan import (  # noqa: E402
    MAX_BATCH,
    THREADS,
    Plan,
    Window,
    choose_window,
    kernel_for,
    plan,
    tiles,
)

pytestmark = needs_compiler

Array: TypeAlias = np.ndarray[Any, Any]
Tensor: TypeAlias = Any  # torch's
SPECIAL = [0x0000, 0x8000, 0x0001, 0x807F, 0x7F80, 0xFF80, 0x7FC1, 0xFFFF, 0x0080, 0x3F80]


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> EmulatedDevice:
    device = EmulatedDevice()
    monkeypatch.setitem(_w12_device.devices, torch.device("cpu"), device)
    return device


def tensor(patterns: Array) -> Tensor:
    return torch.from_numpy(patterns.view(np.int16).copy()).view(torch.bfloat16)


def patterns_of(tensor: Tensor) -> Array:
    result: Array = tensor.contiguous().view(torch.int16).numpy().view(np.uint16)
    return result


def normal(rng: np.random.Generator, *shape: int, scale: float = 0.02) -> Array:
    return patterns_of(torch.from_numpy(rng.normal(0, scale, shape)).to(torch.bfloat16)).copy()


def weights(rng: np.random.Generator, rows: int, columns: int, share: float) -> Array:
    """Weights of which a share is anything at all."""
    patterns = normal(rng, rows, columns)
    anything = rng.integers(0, 1 << 16, patterns.shape, np.uint16)
    special = rng.choice(np.array(SPECIAL, np.uint16), patterns.shape)
    pick = rng.random(patterns.shape)
    patterns[pick < share] = anything[pick < share]
    patterns[pick < share / 2] = special[pick < share / 2]
    return patterns


def pack_any(patterns: Array, base: int | None = None) -> w12.W12:
    """Packs whatever it is, also what `pack` leaves alone."""
    counts = np.bincount((patterns >> 7 & 255).ravel(), minlength=256)
    window = choose_window(counts.tolist())
    if base is not None:
        window = Window(base, int(counts.sum() - counts[base : base + 16].sum()), True)
    return w12._pack(torch, tensor(patterns), window)


def equal(got: Tensor, wanted: Array) -> bool:
    """Whether patterns are the same, any NaN for any other."""
    found = patterns_of(got)
    both = np.isnan(oracle.values(found)) & np.isnan(oracle.values(wanted))
    return bool(np.all((found == wanted) | both))


SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 200))
SEEDS = st.integers(0, 1 << 20)
SHARES = st.sampled_from([0.0, 0.002, 0.03, 0.3, 1.0])


@given(SHAPES, SEEDS, SHARES, st.integers(0, 224) | st.none())
def test_packing_is_as_described_and_exact(
    shape: tuple[int, int], seed: int, share: float, base: int | None
) -> None:
    patterns = weights(np.random.default_rng(seed), *shape, share)
    packed = pack_any(patterns, base)
    tiles, starts, escapes = oracle.packed(patterns, packed.base)
    assert np.array_equal(packed.tiles.numpy(), tiles)
    assert np.array_equal(packed.starts.numpy(), starts)
    assert np.array_equal(packed.escapes.numpy().view(np.uint32), escapes)
    assert np.array_equal(patterns_of(w12.unpack(packed)), patterns)


@pytest.mark.parametrize("base", [0, 1, 15, 107, 112, 224])
def test_all_patterns_come_back(base: int) -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    packed = pack_any(patterns, base)
    assert packed.escapes.numel() == 240 * 256
    assert np.array_equal(patterns_of(w12.unpack(packed)), patterns)


@given(st.integers(0, 3000), st.integers(0, 7), SEEDS)
def test_exponents_are_counted(count: int, offset: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    room = np.frombuffer(guarded(bytes(2 * (count + offset)), 2), np.uint16).copy()
    room[:] = rng.integers(0, 1 << 16, room.size, np.uint16)
    ends_at_a_page = guarded(room.tobytes(), 2).view(np.uint16)[offset:]
    counts = np.ones(256, np.uint64)  # what is there is added to
    Emulated("w12_pack").launch(
        "w12_histogram", 2, THREADS, ends_at_a_page, np.uint64(count), counts, seed=seed
    )
    assert np.array_equal(counts - 1, np.bincount(ends_at_a_page >> 7 & 255, minlength=256))


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(1, 5)), max_size=40))
def test_the_window_holds_most(filled: list[tuple[int, int]]) -> None:
    counts = [0] * 256
    for exponent, count in filled:
        counts[exponent] += count
    window = choose_window(counts)
    held = {base: sum(counts[base : base + 16]) for base in range(225)}
    assert held[window.base] == max(held.values())
    assert window.base == min(b for b, h in held.items() if h == held[window.base])
    assert window.escapes == sum(counts) - held[window.base]
    lift = -window.base % 16
    outside = [e for e in range(255) if counts[e] and not 0 <= e - window.base < 16]
    assert window.multiplies == all(e + lift < 255 for e in outside)


@given(SHAPES, st.integers(1, MAX_BATCH), st.integers(1, 200))
def test_plans_cover_the_product(shape: tuple[int, int], batch: int, multiprocessors: int) -> None:
    rows, columns = shape[0] * 97, shape[1] * 101
    launch = plan(rows, columns, batch, multiprocessors)
    tile_rows, tile_columns = tiles(rows, columns)
    assert (launch.groups - 1) * launch.row_warps < tile_rows <= launch.groups * launch.row_warps
    assert (launch.slices - 1) * launch.slice_tiles < tile_columns
    assert tile_columns <= launch.slices * launch.slice_tiles
    assert launch.shared_bytes == launch.slice_tiles * 128 * batch <= 32 << 10


def plans(rows: int, columns: int, batch: int) -> Iterator[Plan]:
    tile_rows, tile_columns = tiles(rows, columns)
    for log2, slice_tiles in itertools.product(range(4), range(1, tile_columns + 1)):
        groups, slices = -(-tile_rows // (1 << log2)), -(-tile_columns // slice_tiles)
        shared = 128 * batch * slice_tiles
        if shared <= 32 << 10:
            yield Plan(kernel_for(batch), groups, slices, log2, slice_tiles, shared)


@given(st.data(), SEEDS, SHARES)
def test_products_add_in_their_order(data: st.DataObject, seed: int, share: float) -> None:
    rows, columns = data.draw(SHAPES)
    batch = data.draw(st.integers(1, MAX_BATCH))
    launch = data.draw(st.sampled_from(list(plans(rows, columns, batch))))
    rng = np.random.default_rng(seed)
    packed = pack_any(patterns := weights(rng, rows, columns, share))
    x = normal(rng, batch, columns, scale=1.0)
    if data.draw(st.booleans()):
        pick = rng.random(x.shape) < 0.01
        x[pick] = rng.choice(np.array(SPECIAL, np.uint16), int(pick.sum()))
    bias = normal(rng, rows) if data.draw(st.booleans()) else None
    y = torch.empty((batch, rows), dtype=torch.bfloat16)
    device = _w12_device.devices[torch.device("cpu")]
    assert isinstance(device, EmulatedDevice)
    device.seed = seed
    w12._fused(torch, tensor(x), packed, None if bias is None else tensor(bias), y, launch)
    lift = -packed.base % 16
    lost = (patterns >> 7 & 255) + lift >= 255
    if not (lost & ((patterns >> 7 & 255) < 255)).any():
        assert equal(y, oracle.product(patterns, packed.base, x, bias, launch))
    device.seed = seed + 1
    again = torch.empty_like(y)
    w12._fused(torch, tensor(x), packed, None if bias is None else tensor(bias), again, launch)
    assert equal(again, patterns_of(y))


@given(SHAPES, st.integers(1, 70), SEEDS, st.booleans())
def test_linear_is_close_to_the_true_product(
    shape: tuple[int, int], batch: int, seed: int, biased: bool
) -> None:
    rng = np.random.default_rng(seed)
    weight = tensor(normal(rng, *shape))
    x = tensor(normal(rng, batch, shape[1], scale=1.0))
    bias = tensor(normal(rng, shape[0])) if biased else None
    packed = w12.pack(weight, max_escapes=0.2, min_weights=1)
    assert packed is not None
    y = w12.linear(x, packed, bias)
    exact = x.double() @ weight.double().T
    if bias is not None:
        exact += bias.double()
    sums = x.double().abs() @ weight.double().abs().T
    # BF16 rounds to 2^-9; each of the additions in FP32 to 2^-24 of what it adds.
    bound = exact.abs() * 2.0**-8 + sums * (shape[1] + 20) * 2.0**-24 + 1e-30
    assert bool(((y.double() - exact).abs() <= bound).all())


def test_subnormal_escapes_are_multiplied_exactly() -> None:
    subnormals = np.arange(0x80, dtype=np.uint16)
    patterns = normal(np.random.default_rng(1), 16, 128)
    patterns[3] = subnormals
    patterns[5] = subnormals | 0x8000
    x = np.zeros((1, 128), np.uint16)
    for base in range(97, 113):
        packed = pack_any(patterns, base)
        for column in (1, 2, 63, 64, 127):
            x[:] = 0
            x[0, column] = 0x7680  # 2^110
            y = oracle.values(patterns_of(w12.linear(tensor(x), packed)))
            wanted = oracle.values(patterns[:, column]).astype(np.float64) * 2.0**110
            assert np.array_equal(y[0].astype(np.float64), wanted)


def test_infinities_and_nan_reach_their_rows() -> None:
    patterns = normal(np.random.default_rng(2), 20, 70)
    patterns[1, 5], patterns[2, 69], patterns[19, 0] = 0x7F80, 0xFF80, 0x7FC0
    packed = pack_any(patterns)
    y = oracle.values(patterns_of(w12.linear(tensor(np.full((1, 70), 0x3F80, np.uint16)), packed)))
    assert y[0, 1] == np.inf
    assert y[0, 2] == -np.inf
    assert np.isnan(y[0, 19])
    assert np.isfinite(np.delete(y[0], [1, 2, 19])).all()


def test_inputs_lie_anywhere(device: EmulatedDevice) -> None:
    rng = np.random.default_rng(3)
    packed = pack_any(weights(rng, 24, 136, 0.01) & 0xBFFF)
    x = tensor(normal(rng, 2 * 3 * 4, 136, scale=1.0)).view(2, 3, 4, 136)
    y = w12.linear(x, packed)
    assert y.shape == (2, 3, 4, 24)
    wide = torch.zeros(24, 150, dtype=torch.bfloat16)
    for offset in (0, 1, 8):
        wide[:, offset : offset + 136] = x.view(24, 136)
        assert torch.equal(w12.linear(wide[:, offset : offset + 136], packed), y.view(24, 24))
    assert torch.equal(w12.linear(x.view(24, 136).t().contiguous().t(), packed), y.view(24, 24))
    assert w12.linear(x[:0], packed).shape == (0, 3, 4, 24)
    assert torch.equal(w12.linear(x[0, 0, 0], packed), y[0, 0, 0])


def test_weights_lie_anywhere() -> None:
    rng = np.random.default_rng(9)
    wide = tensor(weights(rng, 40, 136, 0.01) & 0xBFFF)
    for part in (wide[:, 8:], wide[:, 3:67], wide[1:].view(-1)[1:-135].view(38, 136), wide.t()):
        packed = w12.pack(part, max_escapes=0.5, min_weights=1)
        assert packed is not None
        assert np.array_equal(patterns_of(w12.unpack(packed)), patterns_of(part))


def test_few_rows_are_fused_and_many_decoded(device: EmulatedDevice) -> None:
    rng = np.random.default_rng(4)
    packed = pack_any(normal(rng, 48, 64))
    x = tensor(normal(rng, 65, 64, scale=1.0))
    for batch, kernel in ((1, 8), (8, 8), (9, 16), (16, 16), (17, 32), (32, 32)):
        device.launched.clear()
        w12.linear(x[:batch], packed)
        assert device.launched == [f"w12_linear_{kernel}"]
    device.launched.clear()
    y = w12.linear(x[:33], packed)
    assert device.launched == ["w12_linear_32", "w12_linear_16"]
    assert torch.equal(y[17:], w12.linear(x[17:33], packed))
    device.launched.clear()
    w12.linear(x, packed, piece_bytes=0)
    assert device.launched == ["w12_unpack"] * 3


@pytest.mark.parametrize("piece_bytes", [None, 0, 2 * 70 * 32, 1 << 20])
@pytest.mark.parametrize("biased", [False, True])
def test_exact_is_what_torch_says_of_the_pieces(piece_bytes: int | None, biased: bool) -> None:
    rng = np.random.default_rng(5)
    weight = tensor(normal(rng, 90, 70))
    x, bias = tensor(normal(rng, 3, 70, scale=1.0)), tensor(normal(rng, 90)) if biased else None
    packed = w12.pack(weight, max_escapes=1, min_weights=1)
    assert packed is not None
    y = w12.linear(x, packed, bias, exact=True, piece_bytes=piece_bytes)
    step = {None: 224, 0: 16, 2 * 70 * 32: 32, 1 << 20: 7488}[piece_bytes]
    for first in range(0, 90, step):
        piece = weight[first : first + step]
        wanted = (
            x @ piece.T if bias is None else torch.addmm(bias[first : first + step], x, piece.T)
        )
        assert torch.equal(y[:, first : first + step], wanted)


def test_pack_leaves_alone_what_does_not_pay() -> None:
    rng = np.random.default_rng(6)
    patterns = normal(rng, 64, 64)
    assert w12.pack(tensor(patterns)) is None
    assert w12.pack(tensor(patterns), min_weights=64 * 64) is not None
    assert w12.pack(torch.empty(0, 64, dtype=torch.bfloat16), min_weights=0) is None
    spread = patterns.copy()
    spread.reshape(-1)[: 64 * 64 // 200 + 1] = 0x0123
    assert w12.pack(tensor(spread), min_weights=1) is None
    spread.reshape(-1)[10:21] = patterns.reshape(-1)[10:21]
    assert w12.pack(tensor(spread), min_weights=1) is not None
    huge = patterns.copy()
    huge[0, 0] = 0x7F7F
    assert w12.pack(tensor(huge), min_weights=1) is None
    x = tensor(normal(rng, 3, 64, scale=1.0))
    assert torch.equal(w12.linear(x, tensor(huge)), x @ tensor(huge).T)
    packed = w12.pack(tensor(patterns), min_weights=1)
    assert packed is not None
    assert 12 < packed.bits_per_weight < 12.2
    assert packed.shape == (64, 64)


def test_wrong_arguments_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack_any(normal(np.random.default_rng(7), 16, 64))
    x = torch.zeros(2, 64, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"BF16 tensors, not torch\.float32"):
        w12.pack(torch.zeros(4, 4))
    with pytest.raises(ValueError, match=r"matrices, not tensors of shape \(4,\)"):
        w12.pack(torch.zeros(4, dtype=torch.bfloat16))
    with pytest.raises(TypeError, match=r"x is torch\.float16, not BF16"):
        w12.linear(x.half(), packed)
    with pytest.raises(ValueError, match=r"x of shape \(2, 63\) does not fit"):
        w12.linear(x[:, 1:], packed)
    with pytest.raises(ValueError, match=r"bias of shape \(15,\) does not fit"):
        w12.linear(x, packed, torch.zeros(15, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="x is on meta"):
        w12.linear(x.to("meta"), packed)
    with pytest.raises(ValueError, match=r"use torch\.no_grad"):
        w12.linear(x.requires_grad_(), packed)
    with torch.no_grad():
        assert w12.linear(x, packed).shape == (2, 16)
    monkeypatch.delitem(_w12_device.devices, torch.device("cpu"))
    with pytest.raises(ValueError, match="on a GPU, not on cpu"):
        w12.unpack(packed)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match=r"install neuzip_rs\[cuda12\] or neuzip_rs\[cuda13\]"):
        _w12_device._Gpu(torch.device("cuda:0"))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"install neuzip_rs\[torch\]"):
        w12.pack(torch.zeros(4, 4, dtype=torch.bfloat16))


def test_nothing_outside_is_read_or_written() -> None:
    rng = np.random.default_rng(8)
    for rows, columns, batch in ((17, 72, 3), (32, 64, 16), (5, 136, 32), (16, 328, 2)):
        patterns = weights(rng, rows, columns, 0.02) & 0xBFFF
        base = pack_any(patterns).base
        parts = [guarded(part.tobytes(), 4) for part in oracle.packed(patterns, base)]
        x = guarded(normal(rng, batch, columns, scale=1.0).tobytes())
        y = guarded(bytes(2 * batch * rows), 2)
        packed = w12.W12(rows, columns, base, *map(torch.from_numpy, parts))
        xs = torch.from_numpy(x).view(torch.bfloat16).view(batch, columns)
        ys = torch.from_numpy(y).view(torch.bfloat16).view(batch, rows)
        for launch in plans(rows, columns, batch):
            w12._fused(torch, xs, packed, None, ys, launch)
        out = torch.from_numpy(guarded(bytes(2 * rows * columns), 2)).view(torch.bfloat16)
        w12._decode(packed, 0, out.view(rows, columns))
        assert np.array_equal(patterns_of(out), patterns.reshape(-1))


def test_packing_stays_inside() -> None:
    rng = np.random.default_rng(10)
    emulated = Emulated("w12_pack")
    for rows, columns in ((17, 72), (32, 64), (5, 135)):
        patterns = weights(rng, rows, columns, 0.02)
        source = guarded(patterns.tobytes(), 2)
        matrix = source, np.uint32(rows), np.uint32(columns), np.uint32(105)
        wanted = oracle.packed(patterns, 105)
        counts = guarded(bytes(4 * (len(wanted[1]) - 1)), 4)
        emulated.launch("w12_count", 1, THREADS, *matrix, counts)
        assert np.array_equal(np.cumsum(counts.view(np.uint32)), wanted[1][1:])
        starts = guarded(wanted[1].tobytes(), 4)
        made, escapes = guarded(bytes(wanted[0].nbytes)), guarded(bytes(wanted[2].nbytes), 4)
        emulated.launch("w12_pack", 2, THREADS, *matrix, starts, made, escapes)
        assert np.array_equal(made, wanted[0])
        assert np.array_equal(escapes.view(np.uint32), wanted[2])
