"""Tiny random models of many architectures, and comparisons of models bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
import transformers as tf

from neuzip_rs.directory import compress_directory

Model: TypeAlias = Any
_TEXT: Final = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_DECODER: Final = _TEXT | {"intermediate_size": 96, "num_key_value_heads": 2, "vocab_size": 160}
_EXPERTS: Final = {"num_experts_per_tok": 2, "bos_token_id": 0, "eos_token_id": 1}
_TOKENS: Final = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}

MODELS: Final[dict[str, Callable[[], Model]]] = {
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_DECODER)),
    "llama tied": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_DECODER, tie_word_embeddings=True)),
    "mixtral": lambda: tf.MixtralForCausalLM(
        tf.MixtralConfig(**_DECODER, **_EXPERTS, num_local_experts=4)
    ),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**_DECODER)),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**_DECODER, head_dim=16)),
    "qwen3 experts": lambda: tf.Qwen3MoeForCausalLM(
        tf.Qwen3MoeConfig(
            **_DECODER, **_EXPERTS, num_experts=4, moe_intermediate_size=32, head_dim=16
        )
    ),
    "bert": lambda: tf.BertForMaskedLM(
        tf.BertConfig(**_TEXT, intermediate_size=96, vocab_size=160)
    ),
    "gpt2": lambda: tf.GPT2LMHeadModel(
        tf.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=160, n_positions=64)
    ),
    "whisper": lambda: tf.WhisperForConditionalGeneration(
        tf.WhisperConfig(
            d_model=64,
            vocab_size=160,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=96,
            decoder_ffn_dim=96,
            num_mel_bins=16,
            max_source_positions=50,
            max_target_positions=32,
            decoder_start_token_id=2,
            **_TOKENS,
        )
    ),
    "vit": lambda: tf.ViTForImageClassification(
        tf.ViTConfig(**_TEXT, intermediate_size=96, image_size=32, patch_size=8, num_labels=5)
    ),
    "t5": lambda: tf.T5ForConditionalGeneration(
        tf.T5Config(d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, vocab_size=160)
    ),
    "albert": lambda: tf.AlbertModel(
        tf.AlbertConfig(**_TEXT, embedding_size=32, intermediate_size=96, vocab_size=160)
    ),
    "convnext": lambda: tf.ConvNextModel(
        tf.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], image_size=32)
    ),
    "resnet": lambda: tf.ResNetModel(
        tf.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1])
    ),
    "wav2vec2": lambda: tf.Wav2Vec2Model(
        tf.Wav2Vec2Config(
            **_TEXT,
            intermediate_size=96,
            conv_dim=(16, 16),
            conv_stride=(5, 2),
            conv_kernel=(10, 3),
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
        )
    ),
    "clip": lambda: tf.CLIPModel(
        tf.CLIPConfig(
            text_config=_TEXT | {"intermediate_size": 96, "vocab_size": 160},
            vision_config=_TEXT | {"intermediate_size": 96, "image_size": 32, "patch_size": 8},
            projection_dim=32,
        )
    ),
}


def make(name: str, dtype: torch.dtype = torch.float32) -> Model:
    """A model with weights as trained ones have them: no two alike, nothing zero."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model.to(dtype)


def make_folders(
    folder: Path, name: str, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[Path, Path]:
    """A model directory as transformers writes it, and its compressed copy."""
    plain, compressed = folder / "model", folder / "model-nz"
    make(name, dtype).save_pretrained(plain, **options)
    compress_directory(plain, compressed)
    return plain, compressed


def same_bits(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether two tensors agree in type, shape and every bit."""
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return False
    flat = [tensor.detach().contiguous().flatten().view(torch.uint8) for tensor in (ours, theirs)]
    return torch.equal(*flat)


def differences(ours: Model, theirs: Model) -> list[str]:
    """The names of what differs in the state of two models."""
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine, "a model without weights proves nothing"
    common = mine.keys() & other.keys()
    changed = {key for key in common if not same_bits(mine[key], other[key])}
    return sorted(changed | (mine.keys() ^ other.keys()))
