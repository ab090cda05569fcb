"""On a GPU: the kernels as they are launched, on real devices, streams and graphs."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import neuzip_rs as nz
from neuzip_rs.cuda._encode_layout import EXPONENT_BITS
from neuzip_rs.nn.codec import codec_for
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


@pytest.mark.parametrize("dtype", [name for name in TORCH_DTYPES if name in EXPONENT_BITS])
@pytest.mark.parametrize("level", ["fast", "default"])
def test_the_bytes_of_the_cpu(dtype: str, level: str) -> None:
    for kind in KINDS:
        for shape in ((), (1,), (63,), (0, 3), (70_001,), (512, 384), (64, 32, 3, 3)):
            count = math.prod(shape)
            x = torch_tensor(dtype, shape, contents(kind, dtype, count, count))
            expected = bytes(nz.compress(x, level=level))
            assert bytes(nz.compress(x.cuda(), level=level)) == expected
            if x.dim() == 2:
                turned = bytes(nz.compress(x.T, level=level))
                assert bytes(nz.compress(x.cuda().T, level=level)) == turned
    x = torch.randn(300, 40, dtype=torch.complex64)
    assert bytes(nz.compress(x.cuda().conj())) == bytes(nz.compress(x.conj()))


def test_cupy_arrays() -> None:
    import cupy

    x = cupy.random.default_rng(1).standard_normal((700, 90)).astype(cupy.float32)
    for array in (x, x.T, x[::3, 1:], cupy.arange(70_000)):
        c = nz.compress(array)
        assert bytes(c) == bytes(nz.compress(array.get()))
        found = nz.decompress(c, device="cuda")
        assert isinstance(found, cupy.ndarray)
        assert bool((found == array).all())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float8_e4m3fn"])
def test_codes_have_the_bytes_of_the_cpu(dtype: str) -> None:
    """Checkpoints are the same, wherever they were made."""
    for shape in ((70_001,), (512, 384), (301, 259)):
        x = torch_tensor(dtype, shape, contents("weights", dtype, math.prod(shape), 1))
        codes = []
        for device in ("cuda", "cpu"):
            codec = codec_for(torch.device(device))
            code = codec.encode(x.to(device))
            out = torch.empty(x.nbytes, dtype=torch.uint8, device=device)
            codec.decode(code, out, 0)
            assert bits(out.cpu()) == bits(x)
            codec.settle(code)
            codec.decode(code, out.zero_(), 0)
            assert bits(out.cpu()) == bits(x)
            codes.append(bits(code.cpu()))
        assert codes[0] == codes[1]
    nz.cuda.check()


def test_many_tensors_in_one_launch() -> None:
    tensors = [weights(1 + 4097 * i) for i in range(100)]
    found = nz.cuda.decompress_many([nz.compress(x) for x in tensors])
    nz.cuda.check()
    for after, before in zip(found, tensors, strict=True):
        assert_same(after.cpu(), before)


@pytest.mark.parametrize("gigabytes", [0.25, 1, 4])
def test_large_tensors(gigabytes: float) -> None:
    x = weights(1 << 24).repeat(int(gigabytes * 32))
    c = nz.compress(x)
    found = nz.decompress(c, device="cuda")
    x = x.cuda()
    assert torch.equal(found.view(torch.int16), x.view(torch.int16))
    del found
    assert nz.compress(x) == c


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


def test_files_are_decoded_on_the_device(tmp_path: Path) -> None:
    tensors = {f"w{i}": weights((1 << 20) + 999 * i) for i in range(40)}
    tensors["tied"] = tensors["w3"].clone()
    tensors["scalar"] = torch.tensor(2.5)
    nz.safetensors.save_file(tensors, tmp_path / "a")
    nz.safetensors.decompress_file(tmp_path / "a", tmp_path / "plain")
    for name in ("a", "plain"):
        found = nz.safetensors.load_file(tmp_path / name, device="cuda")
        for key, x in tensors.items():
            assert found[key].is_cuda
            assert_same(found[key].cpu(), x)
    with nz.safetensors.safe_open(tmp_path / "a", "pt", device="cuda") as file:
        assert_same(file.get_tensor("tied").cpu(), tensors["tied"])


def test_training_is_exact(tmp_path: Path) -> None:
    def train(compressed: bool) -> tuple[list[float], dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256)).bfloat16().cuda()
        generator = torch.Generator("cuda").manual_seed(1)
        if compressed:
            nz.nn.compress_(model)
            optimizer: torch.optim.Optimizer = nz.optim.InBackward(
                model,
                lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=False),
                compress_states=True,
            )
        else:
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False)
        losses = []
        for _ in range(5):
            x = torch.randn(64, 256, generator=generator, device="cuda", dtype=torch.bfloat16)
            loss = (model(x) - x).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        if compressed:
            state = model.state_dict()
            torch.save(state, tmp_path / "state.pt")
            model.load_state_dict(torch.load(tmp_path / "state.pt"))
            nz.nn.decompress_(model)
        return [float(loss) for loss in losses], {
            k: p.detach() for k, p in model.named_parameters()
        }

    (losses, weights_before), (found, weights_after) = train(False), train(True)
    nz.cuda.check()
    assert found == losses
    for name, x in weights_before.items():
        assert_same(weights_after[name].cpu(), x.cpu())


def test_compressed_modules_move_between_devices() -> None:
    torch.manual_seed(0)
    model = nn.Linear(300, 200).bfloat16()
    before = model.weight.detach().clone()
    nz.nn.compress_(model)
    for device in ("cuda", "cpu", "cuda"):
        model.to(device)
        assert model.weight.device.type == device
        assert_same(model.weight.detach().clone().cpu(), before)
    nz.nn.compress_(model, precision=3)
    x = torch.randn(4, 300, dtype=torch.bfloat16)
    on_device = model(x.cuda()).cpu()
    assert torch.allclose(on_device, model.cpu()(x), rtol=0.02, atol=0.02)
    nz.cuda.check()


def test_bases_are_compared_on_the_device() -> None:
    for count in (5, 100, 1 << 20):
        old = weights(count)
        c = nz.compress(old.clone(), base=old)
        if c.base_hash:
            found = nz.decompress(c, device="cuda", base=old.cuda())
            assert_same(found.cpu(), old)
            with pytest.raises(nz.BaseMismatchError):
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
