"""On a GPU: the kernels as they are launched, on real devices, streams and graphs."""

import pytest
import torch

import neuzip_rs as nz
from tests.python.samples import KINDS, TORCH_DTYPES, assert_same, bits, contents, torch_tensor
from tests.python.test_corruption import ORIGINALS, STREAMS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.fixture(autouse=True)
def _needs_cupy() -> None:
    pytest.importorskip("cupy")


def weights(count: int, dtype: str = "bfloat16") -> torch.Tensor:
    return torch_tensor(dtype, (count,), contents("weights", dtype, count, count))


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
@pytest.mark.parametrize("level", ["fast", "default", "max"])
def test_all_dtypes(dtype: str, level: str) -> None:
    for kind in KINDS:
        for count in (1, 63, 1000, 70_001, 1 << 18):
            x = torch_tensor(dtype, (count,), contents(kind, dtype, count, count))
            found = nz.decompress(nz.compress(x, level=level), device="cuda")
            assert found.is_cuda
            assert_same(found.cpu(), x)


def test_many_tensors_in_one_launch() -> None:
    tensors = [weights(1 + 4097 * i) for i in range(100)]
    found = nz.cuda.decompress_many([nz.compress(x) for x in tensors])
    nz.cuda.check()
    for after, before in zip(found, tensors, strict=True):
        assert_same(after.cpu(), before)


@pytest.mark.parametrize("gigabytes", [0.25, 1, 4])
def test_large_tensors(gigabytes: float) -> None:
    x = weights(1 << 24).repeat(int(gigabytes * 32))
    found = nz.decompress(nz.compress(x), device="cuda")
    assert torch.equal(found.view(torch.int16), x.cuda().view(torch.int16))


def test_streams_work_side_by_side() -> None:
    tensors = [weights(1 << 20), weights(3 << 20), weights(2 << 20)]
    compressed = [nz.compress(x) for x in tensors]
    found = []
    for c in compressed * 4:
        with torch.cuda.stream(torch.cuda.Stream()):
            found.append(nz.cuda.decompress_many([c])[0])
    nz.cuda.check()
    for i, after in enumerate(found):
        assert_same(after.cpu(), tensors[i % 3])


def test_graphs_decode_what_is_resident() -> None:
    tensors = [weights(1 << 20), weights(5000), weights(12_345, "float32")]
    outs = [torch.zeros_like(x, device="cuda") for x in tensors]
    resident = nz.cuda.Resident([nz.compress(x) for x in tensors], outs)
    resident.decode()
    nz.cuda.check()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        resident.decode()
    for out in outs:
        out.zero_()
    graph.replay()
    nz.cuda.check()
    for out, x in zip(outs, tensors, strict=True):
        assert_same(out.cpu(), x)


def test_deltas_next_to_a_base_on_the_device() -> None:
    old = weights(1 << 18)
    for new in (old.clone(), (old.float() * 1.001).bfloat16()):
        c = nz.compress(new, base=old)
        assert c.base_hash
        assert_same(nz.decompress(c, device="cuda", base=old.cuda()).cpu(), new)
        with pytest.raises(nz.NeuzipError):
            nz.decompress(c, device="cuda", base=(old + 1).cuda())


def test_damage_is_noticed_when_asked() -> None:
    for name, stream in STREAMS.items():
        original = ORIGINALS[name]
        found = nz.decompress(stream, device="cuda", framework="cupy") if original else None
        if found is not None:
            assert bits(found.get()) == original
        for at in range(len(stream) * 3 // 4, len(stream), 97):
            damaged = bytearray(stream)
            damaged[at] ^= 1
            try:
                found = nz.decompress(damaged, device="cuda", framework="cupy")
            except nz.NeuzipError:
                continue
            pytest.fail(f"damage at {at} of {name} was not noticed")
    # The flag was reset: what comes after is sound.
    (after,) = nz.cuda.decompress_many([nz.compress(weights(99))])
    nz.cuda.check()
    assert_same(after.cpu(), weights(99))
