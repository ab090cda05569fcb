"""The Trainer of transformers on models whose weights stay compressed."""

import inspect
import json.decoder
import math
from pathlib import Path
from typing import Any

import pytest

tf = pytest.importorskip("transformers", reason="transformers is not installed")
torch = pytest.importorskip("torch")
pytest.importorskip("accelerate", reason="accelerate is not installed")

import neuzip_rs as nz  # noqa: E402
import neuzip_rs.hf  # noqa: E402
from neuzip_rs.hf import NeuzipConfig  # noqa: E402
from neuzip_rs.nn import CompressedWeight  # noqa: E402
from tests.python.integrations.hf_models import Model, differences, make_folders  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning"),
    # Of torch, which accelerate asks to pin memory on a machine without a GPU.
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]
STEPS, LENGTH = 12, 64


def text() -> list[dict[str, list[int]]]:
    """Pieces of a Python program, by character."""
    codes = [min(ord(char), 159) for char in inspect.getsource(json.decoder)]
    starts = range(0, len(codes) - LENGTH, LENGTH)
    pieces = [codes[start : start + LENGTH] for start in starts]
    assert len(pieces) > STEPS * 4
    return [{"input_ids": piece, "labels": piece} for piece in pieces]


def train(model: Model, folder: Path, **options: Any) -> tuple[list[float], Model]:
    """Trains a model and returns the loss of every step."""
    settings = tf.TrainingArguments(
        output_dir=folder,
        max_steps=STEPS,
        per_device_train_batch_size=4,
        logging_steps=1,
        # Clipping needs all gradients at once; they are gone by then.
        max_grad_norm=0,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        seed=1,
        disable_tqdm=True,
    )
    optimizer = nz.optim.InBackward(model, factory)
    trainer = tf.Trainer(
        model, settings, train_dataset=text(), optimizers=(optimizer, None), **options
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    trainer.save_model(folder / "trained")
    return losses, model


def factory(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, foreach=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_numbers_are_those_of_plain_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    plain, compressed = make_folders(tmp_path, "llama", dtype)
    expected, one = train(tf.AutoModelForCausalLM.from_pretrained(plain), tmp_path / "one")
    kept = NeuzipConfig(keep_compressed=True, min_numel=256)
    model = tf.AutoModelForCausalLM.from_pretrained(compressed, quantization_config=kept)
    losses, two = train(model, tmp_path / "two")
    assert len(losses) == STEPS
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]
    assert losses == expected
    assert sum(isinstance(p, CompressedWeight) for p in two.parameters()) == 16
    # What the Trainer saved is compressed, and what was trained.
    saved = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "two" / "trained")
    assert nz.safetensors.verify_file(tmp_path / "two" / "trained" / "model.safetensors")
    nz.nn.decompress_(two)
    assert differences(two, one) == []
    assert differences(saved, one) == []


def test_decoded_models_train_as_any_other(tmp_path: Path) -> None:
    plain, compressed = make_folders(tmp_path, "llama")
    expected, one = train(tf.AutoModelForCausalLM.from_pretrained(plain), tmp_path / "one")
    losses, two = train(tf.AutoModelForCausalLM.from_pretrained(compressed), tmp_path / "two")
    assert losses == expected
    assert differences(two, one) == []
