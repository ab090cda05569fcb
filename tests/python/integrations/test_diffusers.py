"""Compressed models in diffusers."""

import os
import sys
from pathlib import Path

import pytest

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
torch = pytest.importorskip("torch")
pytest.importorskip("accelerate", reason="accelerate is not installed")

import neuzip_rs as nz  # noqa: E402
import neuzip_rs.diffusers  # noqa: E402
from neuzip_rs.directory import compress_directory  # noqa: E402
from tests.python import command  # noqa: E402
from tests.python.integrations.howto import follow  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def make(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if name == "unet":
        return diffusers.UNet2DModel(
            sample_size=16,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )
    return diffusers.AutoencoderKL(block_out_channels=(32,), latent_channels=4)


def folders(tmp_path: Path, name: str, size: str) -> tuple[Path, Path]:
    make(name).to(torch.bfloat16).save_pretrained(tmp_path / "model", max_shard_size=size)
    compress_directory(tmp_path / "model", tmp_path / "model-nz")
    return tmp_path / "model", tmp_path / "model-nz"


@pytest.mark.parametrize("size", ["10GB", "100KB"], ids=["one file", "shards"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["unet", "autoencoder"])
def test_loads_bit_exact(tmp_path: Path, name: str, dtype: torch.dtype | None, size: str) -> None:
    plain, compressed = folders(tmp_path, name, size)
    assert (len(list(compressed.glob("*.safetensors"))) > 1) == (size == "100KB")
    kind = type(make(name))
    expected = kind.from_pretrained(plain, torch_dtype=dtype)
    loaded = kind.from_pretrained(compressed, torch_dtype=dtype)
    theirs = expected.state_dict()
    assert loaded.state_dict().keys() == theirs.keys()
    for key, value in loaded.state_dict().items():
        assert value.dtype == theirs[key].dtype
        assert torch.equal(value.view(-1).view(torch.uint8), theirs[key].view(-1).view(torch.uint8))


def test_saved_again(tmp_path: Path) -> None:
    _, compressed = folders(tmp_path, "unet", "10GB")
    loaded = diffusers.UNet2DModel.from_pretrained(compressed)
    loaded.save_pretrained(tmp_path / "again")
    again = diffusers.UNet2DModel.from_pretrained(tmp_path / "again")
    assert all(map(torch.equal, again.state_dict().values(), loaded.state_dict().values()))


def test_damage_is_noticed(tmp_path: Path) -> None:
    _, compressed = folders(tmp_path, "unet", "10GB")
    file = next(compressed.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.unlink()
    file.write_bytes(data)
    with pytest.raises(nz.CorruptDataError):
        diffusers.UNet2DModel.from_pretrained(compressed)


def test_page_of_instructions(tmp_path: Path) -> None:
    make("unet").save_pretrained(tmp_path / "unet")
    paths = os.pathsep.join(path for path in sys.path if path)
    assert follow("diffusers.md", tmp_path, command.environment(PYTHONPATH=paths)) == 2
