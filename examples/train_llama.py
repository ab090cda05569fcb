"""Trains a small Llama three ways: as usual, in backward, and with weights that stay compressed.

    python examples/train_llama.py                    # about three minutes on two cores
    python examples/train_llama.py --steps 10         # a look
    python examples/train_llama.py --hidden 768 --intermediate 2048 --layers 14 --vocabulary 4096

It prints what each way computed, took and held, and draws the losses and the memory into
`train_llama.svg`. The losses are the same bit for bit, and so are the weights at the end. The text
is the documentation that comes with Python. Each way runs in a process of its own.

Needs: pip install neuzip_rs[torch] transformers matplotlib
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING, Any

import torch
from memory_meter import Meter, forget_process_peak, process_bytes, state_bytes
from transformers import LlamaConfig, LlamaForCausalLM

import neuzip_rs as nz

if TYPE_CHECKING:
    from collections.abc import Iterator

WAYS = ("vanilla", "in backward", "compressed", "compressed, states too")
COLUMNS = ("weights", "weights and gradients", "states", "process", "seconds")


def main() -> None:
    """Runs every way, compares them, and shows the result."""
    options = _arguments().parse_args()
    if options.only:
        print(json.dumps(train(options.only, options)))
        return
    results = {}
    for way in WAYS:
        print(f"training: {way} ...", file=sys.stderr, flush=True)
        command = [sys.executable, *sys.argv, "--only", way]
        output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
        results[way] = json.loads(output)
    for way, result in results.items():
        for key in ("losses", "digest"):
            if result[key] != results["vanilla"][key]:
                message = f"{way}: {key} differ from vanilla training"
                raise SystemExit(message)
    print(table(results))
    draw(results, options.out)
    print(f"{options.out}: losses and memory")


def train(way: str, options: argparse.Namespace) -> dict[str, Any]:
    """Trains in one of the ways."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=options.intermediate,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=options.hidden // 64,
        max_position_embeddings=options.length,
        attention_dropout=0.1,
        use_cache=False,
    )
    before = process_bytes("VmRSS")
    model = LlamaForCausalLM(config).to(torch.bfloat16).train()
    parameters = sum(parameter.numel() for parameter in model.parameters())

    def adamw(params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, lr=options.lr, foreach=False)

    optimizer: torch.optim.Optimizer
    if way == "vanilla":
        optimizer = adamw(list(model.parameters()))
    elif way == "in backward":
        optimizer = nz.optim.InBackward(model, adamw)
    else:
        nz.nn.compress_(model)
        optimizer = nz.optim.InBackward(model, adamw, compress_states=way.endswith("too"))

    meter = Meter(model)
    losses, seconds = [], []
    for step, batch in enumerate(batches(options)):
        start = time.perf_counter()
        loss = model(input_ids=batch, labels=batch).loss
        if step == options.steps // 2:
            with meter.watching():
                loss.backward()
                meter.sample()
        else:
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
        if step == 0:
            # Building the model took more, and states are there from the first step on.
            forget_process_peak()
    process = process_bytes() - before
    states = state_bytes(optimizer)
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().clone().view(torch.uint8).numpy().tobytes())
    if options.save and way == "compressed":
        nz.nn.decompress_(model)
        model.save_pretrained(options.save)
    return {
        "parameters": parameters,
        "losses": losses,
        "digest": digest.hexdigest(),
        "weights": meter.weights,
        "weights and gradients": meter.peak,
        "states": states,
        "process": process,
        "seconds": sorted(seconds)[len(seconds) // 2],
    }


def batches(options: argparse.Namespace) -> Iterator[torch.Tensor]:
    """Pieces of Python's documentation as bytes, the same ones in the same order every time."""
    text = "\n".join(topics[key] for key in sorted(topics)).encode()
    codes = torch.frombuffer(bytearray(text), dtype=torch.uint8).long() % options.vocabulary
    pick = torch.Generator().manual_seed(1)
    for _ in range(options.steps):
        starts = torch.randint(len(codes) - options.length, (options.batch,), generator=pick)
        yield torch.stack([codes[s : s + options.length] for s in starts.tolist()])


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results in Markdown."""
    first = results["vanilla"]
    lines = [
        "| | last loss | weights MB | + gradients, decoding MB | of vanilla | states MB "
        "| process MB | s/step |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for way, result in results.items():
        weights, peak, states, process = (result[key] / 1e6 for key in COLUMNS[:4])
        part = result[COLUMNS[1]] / first[COLUMNS[1]]
        lines.append(
            f"| {way} | {result['losses'][-1]:.6f} | {weights:.1f} | {peak:.1f} | {part:.2f}x "
            f"| {states:.1f} | {process:.0f} | {result['seconds']:.2f} |"
        )
    return "\n".join(lines)


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Draws the losses, which lie on each other, and the memory."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "neuzip", "font.size": 10})
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for width, (way, result) in zip((7, 5, 3, 1), results.items(), strict=True):
        left.plot(result["losses"], linewidth=width, label=way)
    left.set(xlabel="step", ylabel="loss", title="the same losses, bit for bit")
    left.legend()

    places = range(len(results))
    bottom = [0.0] * len(results)
    for label, values in (
        ("weights", [r["weights"] for r in results.values()]),
        ("gradients, decoding", [r[COLUMNS[1]] - r["weights"] for r in results.values()]),
        ("optimizer states", [r["states"] for r in results.values()]),
    ):
        heights = [value / 1e6 for value in values]
        right.bar(places, heights, bottom=bottom, label=label)
        bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
    right.set_xticks(list(places), [way.replace(", ", ",\n") for way in results])
    right.set(ylabel="MB at most", title=f"{results['vanilla']['parameters'] / 1e6:.1f} M, BF16")
    right.legend()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    sizes = {
        "steps": 80,
        "hidden": 256,
        "intermediate": 768,
        "layers": 4,
        "vocabulary": 256,
        "length": 256,
        "batch": 4,
    }
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, default=Path("train_llama.svg"), help="the picture")
    parser.add_argument("--save", type=Path, help="a folder for the trained model")
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
