"""`from_pretrained` of compressed directories: every architecture, every bit."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

tf = pytest.importorskip("transformers", reason="transformers is not installed")
torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402
from transformers.quantizers import auto  # noqa: E402

import neuzip_rs as nz  # noqa: E402
import neuzip_rs.hf  # noqa: E402
from benches import models  # noqa: E402
from neuzip_rs.directory import compress_directory  # noqa: E402
from neuzip_rs.hf import NeuzipConfig, load_state_dict  # noqa: E402
from tests.python.integrations.hf_models import (  # noqa: E402
    MODELS,
    differences,
    make,
    make_folders,
    same_bits,
)
from tests.python.integrations.torchrun import launch  # noqa: E402

CACHE = Path(__file__).resolve().parents[3] / ".demo"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("name", MODELS)
def test_loads_bit_exact(tmp_path: Path, name: str) -> None:
    plain, compressed = make_folders(tmp_path, name, torch.bfloat16, max_shard_size="60KB")
    kind = type(make(name))
    expected, expected_info = kind.from_pretrained(plain, output_loading_info=True)
    loaded, info = kind.from_pretrained(compressed, output_loading_info=True)
    assert differences(loaded, expected) == []
    buffers = dict(expected.named_buffers())
    assert all(same_bits(buffer, buffers[key]) for key, buffer in loaded.named_buffers())
    assert info == expected_info
    assert all(type(p) is torch.nn.Parameter and p.requires_grad for p in loaded.parameters())
    assert loaded.dtype == torch.bfloat16
    assert not loaded.is_quantized


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("wanted", [None, *DTYPES], ids=str)
def test_casts_as_plain_checkpoints_are(
    tmp_path: Path, dtype: torch.dtype, wanted: torch.dtype | None
) -> None:
    plain, compressed = make_folders(tmp_path, "llama", dtype)
    options = {} if wanted is None else {"dtype": wanted}
    expected = tf.AutoModelForCausalLM.from_pretrained(plain, **options)
    loaded = tf.AutoModelForCausalLM.from_pretrained(compressed, **options)
    assert differences(loaded, expected) == []
    assert loaded.dtype == (wanted or dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_type_comes_from_the_weights_if_the_configuration_names_none(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    plain, _ = make_folders(tmp_path, "bert", dtype)
    config = json.loads((plain / "config.json").read_text())
    del config["dtype"]
    (plain / "config.json").write_text(json.dumps(config))
    compressed = tmp_path / "untyped-nz"
    compress_directory(plain, compressed)
    expected = tf.AutoModelForMaskedLM.from_pretrained(plain)
    loaded = tf.AutoModelForMaskedLM.from_pretrained(compressed)
    assert differences(loaded, expected) == []
    assert loaded.config.dtype == expected.config.dtype == dtype


def test_base_model_of_a_model_with_a_head_and_back(tmp_path: Path) -> None:
    plain, compressed = make_folders(tmp_path, "bert")
    assert not differences(
        tf.BertModel.from_pretrained(compressed, add_pooling_layer=False),
        tf.BertModel.from_pretrained(plain, add_pooling_layer=False),
    )
    tf.AutoModel.from_pretrained(plain).save_pretrained(tmp_path / "base")
    compress_directory(tmp_path / "base", tmp_path / "base-nz")
    _, expected = tf.BertForMaskedLM.from_pretrained(tmp_path / "base", output_loading_info=True)
    _, info = tf.BertForMaskedLM.from_pretrained(tmp_path / "base-nz", output_loading_info=True)
    assert info == expected
    assert info["missing_keys"]


def test_key_mapping(tmp_path: Path) -> None:
    plain, _ = make_folders(tmp_path, "mixtral")
    weights = {
        name.replace("model.layers", "blocks"): tensor
        for name, tensor in load_state_dict(plain).items()
    }
    save_file(weights, plain / "model.safetensors", {"format": "pt"})
    compress_directory(plain, tmp_path / "renamed-nz")
    mapping = {r"^blocks": "model.layers"}
    expected = tf.AutoModelForCausalLM.from_pretrained(plain, key_mapping=mapping)
    loaded, info = tf.AutoModelForCausalLM.from_pretrained(
        tmp_path / "renamed-nz", key_mapping=mapping, output_loading_info=True
    )
    assert not any(info.values())
    assert differences(loaded, expected) == []


def test_same_outputs(tmp_path: Path) -> None:
    plain, compressed = make_folders(tmp_path, "mixtral")
    tokens = torch.arange(12).reshape(2, 6)
    # Copied: transformers leaves plain weights where the file has them, at odd addresses, and
    # matrix products add up differently there.
    expected = copy.deepcopy(tf.AutoModelForCausalLM.from_pretrained(plain))
    loaded = tf.AutoModelForCausalLM.from_pretrained(compressed)
    assert same_bits(loaded(tokens).logits, expected(tokens).logits)
    generate = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(loaded.generate(tokens, **generate), expected.generate(tokens, **generate))


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_without_threads(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, compressed = make_folders(tmp_path, name, max_shard_size="60KB")
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
    loaded = tf.AutoModelForCausalLM.from_pretrained(compressed)
    assert differences(loaded, tf.AutoModelForCausalLM.from_pretrained(plain)) == []


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_device_map_with_offloading_to_disk(tmp_path: Path, name: str) -> None:
    pytest.importorskip("accelerate")
    plain, compressed = make_folders(tmp_path, name)
    where = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    where |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    tokens = torch.arange(12).reshape(2, 6)
    outputs = [
        tf.AutoModelForCausalLM.from_pretrained(
            folder, device_map=where, offload_folder=tmp_path / f"offload{index}"
        )(tokens).logits
        for index, folder in enumerate((plain, compressed))
    ]
    assert same_bits(*outputs)


def test_directory_of_plain_and_compressed_shards(tmp_path: Path) -> None:
    plain, compressed = make_folders(tmp_path, "mixtral", max_shard_size="60KB")
    shards = sorted(plain.glob("model-*.safetensors"))
    assert len(shards) > 3
    for shard in shards[::2]:
        shutil.copy(shard, compressed / shard.name)
    loaded = tf.AutoModelForCausalLM.from_pretrained(compressed)
    assert differences(loaded, tf.AutoModelForCausalLM.from_pretrained(plain)) == []


def test_directory_compressed_against_a_base(tmp_path: Path) -> None:
    from neuzip_rs._bases import Base

    plain, _ = make_folders(tmp_path, "llama", torch.bfloat16)
    tuned = tf.AutoModelForCausalLM.from_pretrained(plain)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.mul_(1.01)
    tuned.save_pretrained(tmp_path / "tuned")
    compress_directory(tmp_path / "tuned", tmp_path / "tuned-nz", base=Base.at(plain))
    assert nz.safetensors.safe_open(tmp_path / "tuned-nz" / "model.safetensors", "pt")._file.base, (
        "no differences were stored"
    )
    loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "tuned-nz")
    assert differences(loaded, tuned) == []
    shutil.rmtree(plain)
    shutil.rmtree(tmp_path / "model-nz")
    with pytest.raises(nz.BaseMismatchError):
        tf.AutoModelForCausalLM.from_pretrained(tmp_path / "tuned-nz")


def test_repeated_tensors(tmp_path: Path) -> None:
    model = make("llama")
    with torch.no_grad():
        model.model.layers[1].load_state_dict(model.model.layers[0].state_dict())
    model.save_pretrained(tmp_path / "model")
    compress_directory(tmp_path / "model", tmp_path / "model-nz")
    sizes = [
        (tmp_path / name / "model.safetensors").stat().st_size for name in ("model", "model-nz")
    ]
    assert sizes[1] < 0.75 * sizes[0]
    assert differences(tf.AutoModel.from_pretrained(tmp_path / "model-nz"), model.model) == []


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_damage_is_noticed(tmp_path: Path, name: str) -> None:
    _, compressed = make_folders(tmp_path, name)
    file = compressed / "model.safetensors"
    good = file.read_bytes()
    header = int.from_bytes(good[:8], "little") + 8
    for place in range(header, len(good), (len(good) - header) // 5):
        # Replaced, not written to: transformers maps files and may still be at it.
        file.unlink()
        file.write_bytes(good[:place] + bytes([good[place] ^ 16]) + good[place + 1 :])
        with pytest.raises(nz.CorruptDataError):
            tf.AutoModelForCausalLM.from_pretrained(compressed)
    file.unlink()
    file.write_bytes(good)
    tf.AutoModelForCausalLM.from_pretrained(compressed)


def test_settings_at_load(tmp_path: Path) -> None:
    plain, compressed = make_folders(tmp_path, "llama")
    with pytest.warns(UserWarning, match="loading attributes"):
        loaded = tf.AutoModelForCausalLM.from_pretrained(
            compressed, quantization_config=NeuzipConfig(level="fast", threads=1)
        )
    settings = loaded.config.quantization_config
    assert (settings.level, settings.threads) == ("fast", 1)
    assert settings.to_dict() == {"quant_method": "neuzip", "level": "fast"}
    assert differences(loaded, tf.AutoModelForCausalLM.from_pretrained(plain)) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"level": "slow"}, "level"),
        ({"threads": 0}, "threads"),
        ({"quant_method": "gptq"}, "quant_method"),
        ({"precision": 3}, "keep_compressed"),
    ],
)
def test_settings_are_checked(arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        NeuzipConfig(**arguments)


def test_registered_once(tmp_path: Path) -> None:
    registered = auto.LOADING_ATTRIBUTES_CONFIG_TYPES
    neuzip_rs.hf.config.register()
    neuzip_rs.hf.quantizer.register()
    assert registered == auto.LOADING_ATTRIBUTES_CONFIG_TYPES
    assert registered.count(NeuzipConfig) == 1


def test_published_encoder(tmp_path: Path) -> None:
    try:
        source = models.fetch_model(CACHE)
    except models.FetchError as error:
        pytest.skip(f"no real weights: {error}")
    config = tf.BertConfig(
        hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12
    ).to_dict() | {"architectures": ["BertModel"]}
    # As it is published: from before configurations named a type.
    config = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
    for kind in ("fp32", "bf16", "fp16"):
        plain, compressed = tmp_path / kind, tmp_path / f"{kind}-nz"
        plain.mkdir()
        (plain / "config.json").write_text(json.dumps(config))
        if kind == "fp32":
            shutil.copy(source, plain / "model.safetensors")
        else:
            models.cast_file(source, plain / "model.safetensors", kind)
        compress_directory(plain, compressed)
        expected = tf.AutoModel.from_pretrained(plain)
        loaded = tf.AutoModel.from_pretrained(compressed)
        assert differences(loaded, expected) == []
        tokens = torch.arange(1000, 1024).reshape(2, 12)
        aligned = copy.deepcopy(expected)
        assert same_bits(loaded(tokens).pooler_output, aligned(tokens).pooler_output)
        loaded.save_pretrained(tmp_path / "again")
        weights = load_state_dict(tmp_path / "again")
        original = load_state_dict(plain)
        # Plain checkpoints lose this buffer when they are saved again, too.
        assert original.keys() - weights.keys() == {"embeddings.position_ids"}
        assert all(same_bits(weights[key], original[key]) for key in weights)


def test_tensor_parallelism_is_refused(tmp_path: Path) -> None:
    _, compressed = make_folders(tmp_path, "llama")
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "import torch\n"
        "import neuzip_rs.hf\n"
        "from transformers import AutoModelForCausalLM\n"
        "from transformers.distributed import DistributedConfig\n"
        "try:\n"
        "    AutoModelForCausalLM.from_pretrained(\n"
        "        sys.argv[1], distributed_config=DistributedConfig(tp_size=2, tp_plan='auto')\n"
        "    )\n"
        "except ValueError as error:\n"
        "    print(f'refused: {error}', flush=True)\n"
        "torch.distributed.destroy_process_group()\n"
    )
    output, _ = launch(program, 2, compressed)
    assert output.count("refused: compressed checkpoints cannot be loaded with tensor") == 2


@pytest.mark.parametrize("name", ["llama", "mixtral", "whisper"])
def test_load_state_dict(tmp_path: Path, name: str) -> None:
    plain, compressed = make_folders(tmp_path, name, max_shard_size="60KB")
    weights = load_state_dict(compressed)
    expected = load_state_dict(plain)
    assert weights.keys() == expected.keys()
    assert all(same_bits(weights[key], expected[key]) for key in expected)
    assert load_state_dict(compressed / "model.safetensors.index.json").keys() == weights.keys()
    kind = type(make(name))
    config = tf.AutoConfig.from_pretrained(compressed)
    loaded = kind.from_pretrained(None, config=config, state_dict=weights)
    assert differences(loaded, kind.from_pretrained(plain)) == []


def test_load_state_dict_of_one_file(tmp_path: Path) -> None:
    plain, compressed = make_folders(tmp_path, "bert", variant="fp16")
    weights = load_state_dict(compressed, variant="fp16")
    file = compressed / "model.fp16.safetensors"
    assert weights.keys() == load_state_dict(file).keys() == load_state_dict(str(file)).keys()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_state_dict(plain)
