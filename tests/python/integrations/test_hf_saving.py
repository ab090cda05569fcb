"""`save_pretrained`: compressed shards under the original names."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

tf = pytest.importorskip("transformers", reason="transformers is not installed")
torch = pytest.importorskip("torch")

import neuzip_rs as nz  # noqa: E402
import neuzip_rs.hf  # noqa: E402
from neuzip_rs import _native  # noqa: E402
from neuzip_rs.hf import NeuzipConfig  # noqa: E402
from tests.python.command import neuzip  # noqa: E402
from tests.python.integrations.hf_models import (  # noqa: E402
    MODELS,
    differences,
    make,
    make_folders,
)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def kinds(folder: Path) -> set[str]:
    return {_native.content_kind(str(file)) for file in shards(folder)}


@pytest.mark.parametrize("size", ["60KB", "50GB"])
@pytest.mark.parametrize("name", MODELS)
def test_saves_what_transformers_would_save(tmp_path: Path, name: str, size: str) -> None:
    plain, compressed = make_folders(tmp_path, name)
    kind = type(make(name))
    kind.from_pretrained(plain).save_pretrained(tmp_path / "again", max_shard_size=size)
    loaded = kind.from_pretrained(compressed)
    loaded.save_pretrained(tmp_path / "again-nz", max_shard_size=size)
    assert kinds(tmp_path / "again-nz") == {"neuzip-safetensors"}
    names = [file.name for file in shards(tmp_path / "again")]
    assert names == [file.name for file in shards(tmp_path / "again-nz")]
    for file in names:
        nz.safetensors.decompress_file(tmp_path / "again-nz" / file, tmp_path / "restored")
        assert (tmp_path / "restored").read_bytes() == (tmp_path / "again" / file).read_bytes()
        (tmp_path / "restored").unlink()
    for index in (tmp_path / "again").glob("*.index.json"):
        assert json.loads((tmp_path / "again-nz" / index.name).read_text()) == json.loads(
            index.read_text()
        )
    config = json.loads((tmp_path / "again-nz" / "config.json").read_text())
    assert config.pop("quantization_config") == {"quant_method": "neuzip"}
    assert config == json.loads((tmp_path / "again" / "config.json").read_text())
    assert differences(kind.from_pretrained(tmp_path / "again-nz"), loaded) == []


def test_any_model_can_be_saved_compressed(tmp_path: Path) -> None:
    model = make("qwen2", torch.bfloat16)
    neuzip_rs.hf.save_pretrained(model, tmp_path / "model-nz", level="fast", max_shard_size="60KB")
    assert kinds(tmp_path / "model-nz") == {"neuzip-safetensors"}
    assert differences(tf.AutoModelForCausalLM.from_pretrained(tmp_path / "model-nz"), model) == []
    # The model itself stays one that saves itself plain.
    model.save_pretrained(tmp_path / "model")
    assert kinds(tmp_path / "model") == {"safetensors"}


def test_configuration_at_load_of_a_plain_model(tmp_path: Path) -> None:
    plain, _ = make_folders(tmp_path, "llama")
    loaded = tf.AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=NeuzipConfig(level="fast")
    )
    assert differences(loaded, tf.AutoModelForCausalLM.from_pretrained(plain)) == []
    loaded.save_pretrained(tmp_path / "out")
    assert kinds(tmp_path / "out") == {"neuzip-safetensors"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "neuzip", "level": "fast"}


def test_saving_over_another_model(tmp_path: Path) -> None:
    _, compressed = make_folders(tmp_path, "llama", max_shard_size="60KB")
    assert len(shards(compressed)) > 1
    model = tf.AutoModelForCausalLM.from_pretrained(compressed)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    model.save_pretrained(compressed, max_shard_size="80KB")
    assert differences(tf.AutoModelForCausalLM.from_pretrained(compressed), model) == []
    neuzip("verify", compressed)


def test_variant(tmp_path: Path) -> None:
    _, compressed = make_folders(tmp_path, "bert")
    model = tf.AutoModelForMaskedLM.from_pretrained(compressed)
    model.save_pretrained(tmp_path / "out", variant="v2", max_shard_size="60KB")
    assert kinds(tmp_path / "out") == {"neuzip-safetensors"}
    again = tf.AutoModelForMaskedLM.from_pretrained(tmp_path / "out", variant="v2")
    assert differences(again, model) == []


def test_copied_model_saves_itself(tmp_path: Path) -> None:
    _, compressed = make_folders(tmp_path, "gpt2")
    model = copy.deepcopy(tf.AutoModelForCausalLM.from_pretrained(compressed))
    with torch.no_grad():
        model.transformer.wte.weight.mul_(2)
    model.save_pretrained(tmp_path / "out")
    assert kinds(tmp_path / "out") == {"neuzip-safetensors"}
    assert differences(tf.AutoModelForCausalLM.from_pretrained(tmp_path / "out"), model) == []


def test_dequantize_makes_an_ordinary_model(tmp_path: Path) -> None:
    plain, compressed = make_folders(tmp_path, "mixtral")
    model = tf.AutoModelForCausalLM.from_pretrained(compressed).dequantize()
    model.save_pretrained(tmp_path / "out")
    assert kinds(tmp_path / "out") == {"safetensors"}
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert differences(model, tf.AutoModelForCausalLM.from_pretrained(plain)) == []


def test_casting_after_loading(tmp_path: Path) -> None:
    _, compressed = make_folders(tmp_path, "llama")
    model = tf.AutoModelForCausalLM.from_pretrained(compressed).half()
    model.save_pretrained(tmp_path / "out")
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.dtype == torch.float16
    assert differences(again, model) == []


def test_adapters_are_left_alone(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    _, compressed = make_folders(tmp_path, "llama")
    model = tf.AutoModelForCausalLM.from_pretrained(compressed)
    model.add_adapter(peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    assert kinds(tmp_path / "adapter") == {"safetensors"}
    again = tf.AutoModelForCausalLM.from_pretrained(compressed)
    again.load_adapter(str(tmp_path / "adapter"))
    assert differences(again, model) == []


def test_killed_save_can_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, compressed = make_folders(tmp_path, "llama")
    model = tf.AutoModelForCausalLM.from_pretrained(compressed)
    seen: list[str] = []
    compress = _native.compress_file

    def interrupted(source: str, *arguments: Any, **options: Any) -> tuple[int, int]:
        if seen:
            raise KeyboardInterrupt
        seen.append(source)
        return compress(source, *arguments, **options)

    monkeypatch.setattr("neuzip_rs.hf.saving._native.compress_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(tmp_path / "out", max_shard_size="60KB")
    monkeypatch.undo()
    assert kinds(tmp_path / "out") == {"safetensors", "neuzip-safetensors"}
    assert not list((tmp_path / "out").glob("*.partial"))
    assert differences(tf.AutoModelForCausalLM.from_pretrained(tmp_path / "out"), model) == []
