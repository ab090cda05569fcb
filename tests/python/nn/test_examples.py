"""The examples run as they stand, on models small enough for every commit."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).parents[3] / "examples"
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def language_model(folder: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def sentence_encoder(folder: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "of", "is", "class", "."]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_lora(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft")
    base = language_model(tmp_path / "base")
    monkeypatch.setattr(sys, "argv", ["lora.py", "--base", str(base), "--steps", "3"])
    example("lora").main()
    assert "the same, bit for bit" in capsys.readouterr().out


def test_lossy_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--encoder", str(sentence_encoder(tmp_path / "encoder"))]
    arguments += ["--language-model", str(language_model(tmp_path / "language"))]
    arguments += ["--sentences", "12", "--windows", "4"]
    monkeypatch.setattr(sys, "argv", ["lossy_sweep.py", *arguments])
    example("lossy_sweep").main()
    lines = capsys.readouterr().out.strip().splitlines()
    lossless = next(line for line in lines if "lossless" in line)
    assert "1.000000 | 1.000000 | 100.0% | 100.0%" in lossless
    assert "(+0.00%)" in lossless
    assert len(lines) == 3 + 8
