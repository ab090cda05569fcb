"""Parameters on a device: `nz.nn` and `nz.optim` with the kernels, on the emulated device.

torch has no device whose memory the emulation could have, so that the codec takes the place of the
CPU's, and the memory of torch's CPU tensors that of the device.
"""

import gc
from collections.abc import Callable

import pytest
import torch
from torch import nn

import neuzip_rs as nz
from neuzip_rs import _native
from neuzip_rs.cuda import _codec, _launch
from neuzip_rs.cuda._codec import DeviceCodec
from neuzip_rs.cuda._encode import encode
from neuzip_rs.cuda._encode_layout import Input, describe
from neuzip_rs.nn import codec as codecs
from neuzip_rs.nn import rounding as blocks
from neuzip_rs.nn.record import Record
from neuzip_rs.nn.weight import CompressedWeight
from tests.python.cuda.emulated import EmulatedDevice, current
from tests.python.cuda.emulation import needs_compiler
from tests.python.cuda.test_encode import SPREADS, scaled
from tests.python.samples import KINDS, contents, torch_tensor

pytestmark = needs_compiler
Use = Callable[[EmulatedDevice], DeviceCodec]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Makes a device the one that parameters are on."""

    def put(device: EmulatedDevice) -> DeviceCodec:
        codec = DeviceCodec(lambda _: current(device))
        monkeypatch.setitem(codecs.CODECS, "cpu", lambda: codec)
        return codec

    return put


def weights(count: int, dtype: str = "bfloat16", seed: int = 1) -> torch.Tensor:
    return torch_tensor(dtype, (count,), contents("weights", dtype, count, seed))


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    flat = [x.contiguous().view(-1).view(torch.uint8) for x in (one, other)]
    return torch.equal(*flat)


def on_the_cpu(code: torch.Tensor) -> bytes:
    """What the Rust codec makes of a code."""
    stream = code.numpy().tobytes()
    out = bytearray(_native.stream_header(stream)[2])
    _native.decompress_into(stream, out)
    return bytes(out)


@pytest.mark.parametrize("dtype", [str(dtype).removeprefix("torch.") for dtype in codecs.DTYPES])
@pytest.mark.parametrize("kind", KINDS)
def test_codes_decode_before_and_after_their_length_is_known(
    use: Use, dtype: str, kind: str
) -> None:
    device = EmulatedDevice(tells_late=True)
    codec = use(device)
    for count in (1, 1000, 4096, 70_003):
        x = torch_tensor(dtype, (count,), contents(kind, dtype, count, count))
        code = codec.encode(x)
        out = torch.empty(x.nbytes, dtype=torch.uint8)
        codec.decode(code, out, 0)
        assert same(out, x)
        codec.settle(code)
        codec.decode(code, out.zero_(), 0)
        assert same(out, x)
        assert code.numpy().tobytes() == bytes(nz.compress(x))
        header = codec.header(code)
        assert (header.dtype, header.shape) == (x.dtype, x.shape)
        # Another tensor with the same bytes is planned from its header.
        codec.decode(code.clone(), out.zero_(), 0)
        assert same(out, x)
    _launch.raise_errors(device)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float8_e4m3fn"])
@pytest.mark.parametrize(
    "shape", [(80, 60), (120, 136), (301, 259), (64, 32, 3, 3), (9000, 8), (8, 9000)], ids=str
)
def test_codes_have_the_bytes_of_the_cpu(use: Use, dtype: str, shape: tuple[int, ...]) -> None:
    """Checkpoints are the same, wherever they were made: scale offsets, plans for both kernels."""
    device = EmulatedDevice(tells_late=True)
    codec = use(device)
    for seed, spread in enumerate(SPREADS):
        x = torch_tensor(dtype, shape, scaled(shape, dtype, seed, spread))
        code = codec.encode(x)
        for _ in range(2):
            out = torch.zeros(x.nbytes, dtype=torch.uint8)
            codec.decode(code, out, 0)
            assert same(out, x)
            codec.settle(code)
        assert code.numpy().tobytes() == bytes(nz.compress(x))
    _launch.raise_errors(device)


@pytest.mark.parametrize("level", ["fast", "default", "max"])
def test_codes_of_the_cpu(use: Use, level: str) -> None:
    device = EmulatedDevice()
    codec = use(device)
    for kind in KINDS:
        x = torch_tensor("bfloat16", (300, 100), contents(kind, "bfloat16", 30_000, 3))
        stream = bytes(nz.compress(x, level=level))
        for shift in (0, 1, 16):
            room = torch.zeros(shift + len(stream), dtype=torch.uint8)
            room[shift:] = torch.frombuffer(bytearray(stream), dtype=torch.uint8)
            out = torch.empty(x.nbytes, dtype=torch.uint8)
            codec.decode(room[shift:], out, 0)
            assert same(out, x)
    _launch.raise_errors(device)


def test_parts(use: Use) -> None:
    codec = use(EmulatedDevice())
    x = weights(200_001)
    stream = _native.compress(
        x.view(torch.uint8).numpy(), "bfloat16", tuple(x.shape), chunk_bytes=8192
    )
    made = [codec.encode(x), torch.frombuffer(bytearray(stream), dtype=torch.uint8)]
    whole = x.view(torch.uint8)
    for code in made:
        for start, count in ((0, 8192), (8192, 16384), (5, 20_000), (400_000, 2), (3, 0)):
            out = torch.empty(count + 16, dtype=torch.uint8)[3 : 3 + count]
            codec.decode(code, out, start)
            assert torch.equal(out, whole[start : start + count])
        with pytest.raises(ValueError, match="outside"):
            codec.decode(code, torch.empty(9, dtype=torch.uint8), x.nbytes - 8)


def test_damage_is_told_when_asked(use: Use) -> None:
    device = EmulatedDevice()
    codec = use(device)
    code = codec.encode(weights(20_000))
    codec.settle(code)
    code[-300] ^= 1
    codec.decode(code, torch.empty(40_000, dtype=torch.uint8), 0)
    with pytest.raises(nz.CorruptDataError):
        _launch.raise_errors(device)
    header = codec.encode(weights(20_000))
    codec.settle(header)
    damaged = header.clone()
    damaged[9] ^= 1
    with pytest.raises(nz.CorruptDataError):
        codec.header(damaged)


def test_no_more_than_so_much_waits_for_its_length(
    use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_codec, "UNSETTLED_BYTES", 100_000)
    codec = use(EmulatedDevice(tells_late=True))
    kept = [codec.encode(weights(10_000, seed=i)) for i in range(20)]
    long = [code for code in kept if code.numel() >= 20_000]
    assert sum(code.numel() for code in long) <= 120_000
    # Those whose sizes have come are settled with the next one.
    codec = use(EmulatedDevice())
    kept = [codec.encode(weights(10_000, seed=i)) for i in range(5)]
    assert [code.numel() < 16_000 for code in kept] == [True] * 4 + [False]


def test_what_is_dropped_is_forgotten(use: Use) -> None:
    codec = use(EmulatedDevice(tells_late=True))
    for i in range(5):
        codec.encode(weights(5000, seed=i))
    gc.collect()
    assert len(codec._states) == 0
    codec.encode(weights(5000))
    assert len(codec._unsettled) == 1


# --- modules ------------------------------------------------------------------------------------


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Embedding(100, 64), nn.Linear(64, 96), nn.LayerNorm(96), nn.Linear(96, 100, bias=False)
    ).bfloat16()


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[torch.Tensor]:
    losses = []
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        tokens = torch.randint(100, (4, 9), generator=generator)
        logits = module(tokens[:, :-1]).float()
        loss = nn.functional.cross_entropy(logits.reshape(-1, 100), tokens[:, 1:].reshape(-1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return losses


@pytest.mark.parametrize("tells_late", [False, True])
def test_training_is_exact_and_no_element_visits_the_host(use: Use, tells_late: bool) -> None:
    plain = model()
    expected = train(plain, torch.optim.AdamW(plain.parameters(), lr=1e-2, foreach=False), 3)
    device = EmulatedDevice(tells_late=tells_late)
    use(device)
    compressed = nz.nn.compress_(model())
    optimizer = nz.optim.InBackward(
        compressed, lambda p: torch.optim.AdamW(p, lr=1e-2), compress_states=True
    )
    found = train(compressed, optimizer, 3)
    assert torch.equal(torch.stack(found), torch.stack(expected))
    # 232 bytes for a tensor and 64 for a chunk; these tensors have one chunk each, and up to 100
    # rows and 96 columns, with a byte for the offset of each. Three weights, and two states of each
    # after the first use: compressed once, and then in every step.
    assert device.downloaded <= (296 + 48 + 112 + 96) * (3 + 3 * 3 * 3)
    for (name, p), q in zip(plain.named_parameters(), compressed.parameters(), strict=True):
        assert isinstance(q, CompressedWeight) == (p.numel() >= 4096), name
        assert same(p.detach(), q.decoded() if isinstance(q, CompressedWeight) else q.detach())
    _launch.raise_errors(device)


def test_saving_and_loading(use: Use) -> None:
    device = EmulatedDevice(tells_late=True)
    use(device)
    before = model()
    module = nz.nn.compress_(model())
    state = module.state_dict()
    for name, value in before.state_dict().items():
        stored = state[name]
        if stored.dtype == torch.uint8:
            assert on_the_cpu(stored) == value.view(torch.uint8).numpy().tobytes()
    other = nz.nn.compress_(model(seed=5))
    other.load_state_dict(state)
    tokens = torch.arange(20)
    assert torch.equal(other(tokens), before(tokens))
    report = nz.nn.memory_report(other)
    assert report.held_bytes < 0.8 * report.plain_bytes
    copied = torch.nn.modules.module.Module.to(other, torch.float32)
    assert torch.equal(copied(tokens), before.float()(tokens))


def test_rounded_weights(use: Use) -> None:
    x = weights(100 * 64, "bfloat16").view(100, 64)
    quotients, scales = blocks.split(x.view(-1), blocks.Rounding(3, 512))
    blocks.join_(quotients, scales, 512, 0)
    device = EmulatedDevice(tells_late=True)
    use(device)
    record = Record.encode(x, blocks.Rounding(3, 512))
    for _ in range(2):
        assert same(record.decode(), quotients.view(100, 64))
    downloaded = device.downloaded
    assert same(record.decode_elements(600, 1000), quotients[600:1600])
    assert device.downloaded == downloaded
    assert record.code.numel() < 0.5 * x.nbytes
    loaded = Record.of_code(record.code.clone())
    assert loaded.rounding == blocks.Rounding(3, 512)
    assert same(loaded.decode(), quotients.view(100, 64))
    _launch.raise_errors(device)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match=r"neuzip_rs\[cuda12\]"):
        _codec.cuda_codec()
    with pytest.raises(NotImplementedError, match="'meta'"):
        codecs.codec_for(torch.device("meta"))


def test_waves_share_scratch_memory() -> None:
    x = weights(300_000)
    small = _native.compress(
        x.view(torch.uint8).numpy(), "bfloat16", (300_000,), level="fast", chunk_bytes=1 << 14
    )
    inputs = [Input(x.data_ptr(), x.nbytes, "bfloat16", 14)]
    described = describe(inputs, 100_000)
    assert len(described.waves) > 3
    assert described.scratch_bytes <= 100_000
    found = encode(EmulatedDevice(), inputs, [(300_000,)], wave_bytes=100_000)
    assert found == [bytes(small)]
