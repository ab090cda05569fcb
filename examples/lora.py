"""Fine-tunes adapters on a base model whose frozen weights stay compressed.

    python examples/lora.py                                  # about a minute
    python examples/train_llama.py --save tiny-llama         # or on a trained model:
    python examples/lora.py --base tiny-llama

A LoRA adapter (peft) is trained on Python source, once with a plain base and once with a compressed
one: the losses and the adapters are the same bit for bit. The adapter is then saved without the
base, as usual, and merged after `decompress_`.

Needs: pip install neuzip_rs[torch] transformers peft
"""

from __future__ import annotations

import argparse
import inspect
import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import peft
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import neuzip_rs as nz

if TYPE_CHECKING:
    from collections.abc import Iterator


def main() -> None:
    """Trains with both bases and compares."""
    options = _arguments().parse_args()
    results = {}
    for way in ("plain", "compressed"):
        model = load_base(options.base)
        if way == "compressed":
            nz.nn.compress_(model)
        adapted = add_adapter(model)
        report = nz.nn.memory_report(adapted)
        losses = train(adapted, options)
        adapter = peft.get_peft_model_state_dict(adapted)
        results[way] = losses, adapter
        print(
            f"{way:>10}: base and adapter {report.held_bytes / 1e6:.2f} MB, "
            f"loss {losses[0]:.4f} -> {losses[-1]:.4f}"
        )
    (losses, adapter), (its_losses, its_adapter) = results.values()
    same = losses == its_losses and all(torch.equal(adapter[k], its_adapter[k]) for k in adapter)
    if not same:
        message = "the compressed base has given other numbers"
        raise SystemExit(message)
    print("losses and adapters: the same, bit for bit")

    with tempfile.TemporaryDirectory() as folder:
        adapted.save_pretrained(folder)
        files = sorted(path for path in Path(folder).iterdir() if path.suffix == ".safetensors")
        print(f"saved: {files[0].name}, {files[0].stat().st_size / 1e6:.2f} MB")
    merged = nz.nn.decompress_(adapted).merge_and_unload()
    print(f"merged into {sum(p.numel() for p in merged.parameters()):,} plain weights")


def load_base(folder: Path | None) -> torch.nn.Module:
    """The model of a folder, or a small Llama with random weights."""
    if folder is not None:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        use_cache=False,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


def add_adapter(model: torch.nn.Module) -> peft.PeftModel:
    """Freezes the model and adds an adapter to its attention."""
    torch.manual_seed(1)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "o_proj"])
    return peft.get_peft_model(model, config)


def train(model: torch.nn.Module, options: argparse.Namespace) -> list[float]:
    """Trains the adapter with an ordinary optimizer; returns the losses."""
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.lr)
    losses = []
    for batch in batches(options):
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def batches(options: argparse.Namespace) -> Iterator[torch.Tensor]:
    """Pieces of the source of Python's modules as bytes, always the same ones."""
    source = "".join(inspect.getsource(module) for module in (argparse, inspect, textwrap))
    codes = torch.tensor(list(source.encode("ascii", "replace")))
    pick = torch.Generator().manual_seed(2)
    for _ in range(options.steps):
        starts = torch.randint(len(codes) - 128, (8,), generator=pick)
        yield torch.stack([codes[s : s + 128] for s in starts.tolist()])


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", type=Path, help="the folder of a causal language model")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--lr", type=float, default=5e-3)
    return parser


if __name__ == "__main__":
    main()
