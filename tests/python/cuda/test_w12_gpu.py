"""W12 on a GPU: `pytest -m gpu`. The kernels themselves are proven on the CPU in test_w12.py."""

from typing import Any, TypeAlias

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("cupy")

from neuzip_rs.cuda import w12  # noqa: E402  after torch is known to be there
from neuzip_rs.cuda._w12_plan import MAX_BATCH  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

Tensor: TypeAlias = Any  # torch's
SHAPES = [(1, 1), (17, 72), (16, 64), (1000, 1001), (1024, 4096), (4096, 14336), (128256, 4096)]


def normal(*shape: int, scale: float = 0.02) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(sum(shape))
    values = torch.empty(shape, dtype=torch.bfloat16, device="cuda")
    return values.normal_(0, scale, generator=generator)


def packed(weight: Tensor) -> w12.W12:
    result = w12.pack(weight, max_escapes=0.5, min_weights=1)
    assert result is not None
    return result


def same_bits(a: Tensor, b: Tensor) -> bool:
    return bool(torch.equal(a.view(torch.int16), b.view(torch.int16)))


def close(y: Tensor, x: Tensor, weight: Tensor) -> bool:
    """Whether a product is within what additions in FP32 and a BF16 result may differ."""
    exact = x.double() @ weight.double().T
    sums = x.double().abs() @ weight.double().abs().T
    bound = exact.abs() * 2.0**-8 + sums * (x.shape[1] + 20) * 2.0**-23 + 1e-30
    return bool(((y.double() - exact).abs() <= bound).all())


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_come_back(shape: tuple[int, int]) -> None:
    weight = normal(*shape)
    assert same_bits(w12.unpack(packed(weight)), weight)


def test_all_patterns_come_back() -> None:
    patterns = torch.arange(1 << 16, device="cuda").to(torch.int16).view(256, 256)
    weight = torch.cat([patterns, normal(4096, 256).view(torch.int16)]).view(torch.bfloat16)
    weight[(weight.abs() > 2.0**100) & weight.isfinite()] = 0
    assert same_bits(w12.unpack(packed(weight)), weight)


@pytest.mark.parametrize("batch", [*range(1, MAX_BATCH + 1), 33, 100])
@pytest.mark.parametrize("shape", SHAPES[:-1])
def test_products_are_close(shape: tuple[int, int], batch: int) -> None:
    weight, x = normal(*shape), normal(batch, shape[1], scale=1.0)
    weight.view(-1)[::997] = 1e-20
    matrix = packed(weight)
    y = w12.linear(x, matrix)
    assert close(y, x, weight)
    assert same_bits(y, w12.linear(x, matrix))


def test_a_vocabulary() -> None:
    weight, x = normal(*SHAPES[-1]), normal(4, SHAPES[-1][1], scale=1.0)
    assert close(w12.linear(x, packed(weight)), x, weight)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_exact_is_what_torch_says(batch: int) -> None:
    weight, x, bias = normal(4096, 1024), normal(batch, 1024, scale=1.0), normal(4096)
    y = w12.linear(x, packed(weight), bias, exact=True, piece_bytes=weight.numel() * 2)
    assert same_bits(y, torch.addmm(bias, x, weight.t()))


def test_streams_do_not_disturb_each_other() -> None:
    cases = [(normal(1024 + 16 * i, 4096), normal(8, 4096, scale=1.0)) for i in range(4)]
    matrices = [packed(weight) for weight, _ in cases]
    alone = [w12.linear(x, m) for m, (_, x) in zip(matrices, cases, strict=True)]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in cases]
    results: list[list[Tensor]] = [[] for _ in cases]
    for _ in range(50):
        for stream, matrix, (_, x), into in zip(streams, matrices, cases, results, strict=True):
            with torch.cuda.stream(stream):
                into.append(w12.linear(x, matrix))
    torch.cuda.synchronize()
    for wanted, found in zip(alone, results, strict=True):
        assert all(same_bits(y, wanted) for y in found)


def test_a_graph_is_replayed() -> None:
    weight, x = normal(4096, 4096), normal(8, 4096, scale=1.0)
    matrix = packed(weight)
    w12.linear(x, matrix)  # kernels are loaded before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = w12.linear(x, matrix)
    for seed in range(5):
        x.copy_(normal(8, 4096, scale=1.0 + seed))
        graph.replay()
        torch.cuda.synchronize()
        assert same_bits(y, w12.linear(x, matrix))
