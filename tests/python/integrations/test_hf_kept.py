"""`NeuzipConfig(keep_compressed=True)`: models whose weights stay compressed."""

import copy
from pathlib import Path
from typing import Any

import pytest

tf = pytest.importorskip("transformers", reason="transformers is not installed")
torch = pytest.importorskip("torch")

import neuzip_rs as nz  # noqa: E402
import neuzip_rs.hf  # noqa: E402
from neuzip_rs import _native  # noqa: E402
from neuzip_rs.directory import compress_directory  # noqa: E402
from neuzip_rs.hf import NeuzipConfig  # noqa: E402
from neuzip_rs.nn import CompressedWeight  # noqa: E402
from tests.python.integrations.hf_models import (  # noqa: E402
    MODELS,
    Model,
    differences,
    make,
    make_folders,
    same_bits,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning"),
    # Of peft, which asks transformers under an old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]
KEEP = {"min_numel": 256, "keep_compressed": True}


def load(folder: Path, name: str, **settings: Any) -> Model:
    kind = type(make(name))
    return kind.from_pretrained(folder, quantization_config=NeuzipConfig(**KEEP | settings))


def from_plain(folder: Path, name: str) -> Model:
    # Copied: transformers leaves plain weights where the file has them, at odd addresses, and
    # matrix products add up differently there.
    return copy.deepcopy(type(make(name)).from_pretrained(folder))


def compressed_names(model: Model) -> set[str]:
    return {name for name, p in model.named_parameters() if isinstance(p, CompressedWeight)}


def held_bytes(model: Model) -> int:
    """Bytes of memory behind a model's parameters, each piece once."""
    pieces = {}
    for parameter in model.parameters():
        tensor = parameter.record.code if isinstance(parameter, CompressedWeight) else parameter
        storage = tensor.untyped_storage()
        pieces[storage.data_ptr()] = storage.nbytes()
    return sum(pieces.values())


def outputs(model: Model, name: str) -> torch.Tensor:
    with torch.no_grad():
        if name == "vit":
            return model(torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)).logits
        if name == "whisper":
            sound = torch.linspace(-1, 1, 16 * 100).reshape(1, 16, 100)
            return model(sound, decoder_input_ids=torch.arange(4).reshape(1, 4)).logits
        return model(torch.arange(12).reshape(2, 6)).logits


@pytest.mark.parametrize("source", ["compressed", "plain"])
@pytest.mark.parametrize("name", ["llama", "llama tied", "mixtral", "qwen3", "bert", "gpt2"])
def test_weights_stay_compressed_and_outputs_are_the_same(
    tmp_path: Path, name: str, source: str
) -> None:
    plain, compressed = make_folders(tmp_path, name, torch.bfloat16, max_shard_size="60KB")
    expected = from_plain(plain, name)
    loaded = load(plain if source == "plain" else compressed, name)
    large = {key for key, p in expected.named_parameters() if p.numel() >= 256}
    assert compressed_names(loaded) == large
    assert held_bytes(loaded) < 0.85 * held_bytes(expected)
    assert same_bits(outputs(loaded, name), outputs(expected, name))
    shapes = {key: (p.shape, p.dtype, p.requires_grad) for key, p in loaded.named_parameters()}
    assert shapes == {
        key: (p.shape, p.dtype, p.requires_grad) for key, p in expected.named_parameters()
    }
    nz.nn.decompress_(loaded)
    assert differences(loaded, expected) == []


@pytest.mark.parametrize("name", ["whisper", "vit"])
def test_other_kinds_of_models(tmp_path: Path, name: str) -> None:
    plain, compressed = make_folders(tmp_path, name)
    expected = from_plain(plain, name)
    loaded = load(compressed, name)
    assert compressed_names(loaded)
    assert same_bits(outputs(loaded, name), outputs(expected, name))


@pytest.mark.parametrize("name", MODELS)
def test_saves_what_was_loaded(tmp_path: Path, name: str) -> None:
    plain, compressed = make_folders(tmp_path, name, torch.bfloat16)
    loaded = load(compressed, name)
    loaded.save_pretrained(tmp_path / "again")
    file = tmp_path / "again" / "model.safetensors"
    assert _native.content_kind(str(file)) == "neuzip-safetensors"
    kind = type(make(name))
    kind.from_pretrained(plain).save_pretrained(tmp_path / "expected")
    nz.safetensors.decompress_file(file, tmp_path / "restored")
    original = (tmp_path / "expected" / "model.safetensors").read_bytes()
    assert (tmp_path / "restored").read_bytes() == original
    # What is loaded next knows nothing of how this model was kept.
    assert compressed_names(kind.from_pretrained(tmp_path / "again")) == set()


def test_choice_by_name(tmp_path: Path) -> None:
    _, compressed = make_folders(tmp_path, "llama")
    loaded = load(compressed, "llama", exclude=["lm_head", "embed_tokens"])
    names = compressed_names(loaded)
    assert names
    assert not any("lm_head" in name or "embed" in name for name in names)
    loaded = load(compressed, "llama", include="q_proj")
    assert {name.rsplit(".", 2)[1] for name in compressed_names(loaded)} == {"q_proj"}


def test_cast_at_load(tmp_path: Path) -> None:
    plain, compressed = make_folders(tmp_path, "llama", torch.float32)
    options = {"dtype": torch.bfloat16}
    expected = tf.AutoModelForCausalLM.from_pretrained(plain, **options)
    loaded = tf.AutoModelForCausalLM.from_pretrained(
        compressed, quantization_config=NeuzipConfig(**KEEP), **options
    )
    assert compressed_names(loaded)
    assert differences(loaded.dequantize(), expected) == []


def test_repeated_tensors_and_bases(tmp_path: Path) -> None:
    from neuzip_rs._bases import Base

    model = make("llama", torch.bfloat16)
    model.model.layers[1].load_state_dict(model.model.layers[0].state_dict())
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    model.save_pretrained(tmp_path / "tuned")
    compress_directory(tmp_path / "base", tmp_path / "base-nz")
    compress_directory(tmp_path / "tuned", tmp_path / "tuned-nz", base=Base.at(tmp_path / "base"))
    for folder in ("base", "tuned"):
        loaded = load(tmp_path / f"{folder}-nz", "llama")
        assert len(compressed_names(loaded)) == 16
        expected = tf.AutoModelForCausalLM.from_pretrained(tmp_path / folder)
        assert differences(loaded.dequantize(), expected) == []


def test_adapter_on_compressed_weights(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    plain, compressed = make_folders(tmp_path, "llama")
    gradients = []
    for folder, settings in ((plain, None), (compressed, NeuzipConfig(**KEEP))):
        model = tf.AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings)
        model = copy.deepcopy(model)
        torch.manual_seed(0)
        adapter = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = peft.get_peft_model(model, adapter)
        tokens = torch.arange(12).reshape(2, 6)
        model(tokens, labels=tokens).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == 8
    assert all(same_bits(*pair) for pair in zip(*gradients, strict=True))


def test_precision(tmp_path: Path) -> None:
    plain, compressed = make_folders(tmp_path, "llama", torch.bfloat16)
    expected = from_plain(plain, "llama")
    nz.nn.compress_(expected, precision=3, min_numel=256)
    for folder in (plain, compressed):
        loaded = load(folder, "llama", precision=3)
        assert compressed_names(loaded)
        assert held_bytes(loaded) < 0.6 * held_bytes(from_plain(plain, "llama"))
        assert same_bits(outputs(loaded, "llama"), outputs(expected, "llama"))
