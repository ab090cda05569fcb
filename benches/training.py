"""What it costs to keep weights compressed in training: seconds of a step, in paired rounds.

    python -m benches.training                        # 2048 tokens a step
    python -m benches.training --layers 14            # more than a hundred million parameters

Two copies of a model are trained in backward in turn, one with plain and one with compressed
weights, with the same batches and the same result. Printed are medians over the rounds of the
seconds that pass and that the CPU works, and of the ratio within a round: other programs may run
at the same time, and then only the seconds of the CPU say something.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn

import neuzip_rs as nz
from benches import machine

VOCABULARY = 4096
WIDTH = 768
INNER = 2048
LENGTH = 256


class Block(nn.Module):
    """A layer as in Llama, without the rotation."""

    def __init__(self) -> None:
        """Draws the weights."""
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(WIDTH) for _ in range(2))
        self.qkvo = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.gate = nn.Linear(WIDTH, INNER, bias=False)
        self.up = nn.Linear(WIDTH, INNER, bias=False)
        self.down = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attends, then thinks."""
        y = self.norms[0](x)
        q, k, v = (m(y).unflatten(-1, (-1, 64)).transpose(1, 2) for m in self.qkvo[:3])
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.qkvo[3](attended.transpose(1, 2).flatten(-2))
        y = self.norms[1](x)
        result: torch.Tensor = x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))
        return result


def model(layers: int) -> nn.Module:
    """Returns the model, the same every time."""
    torch.manual_seed(0)
    body = [Block() for _ in range(layers)]
    net = nn.Sequential(
        nn.Embedding(VOCABULARY, WIDTH),
        *body,
        nn.RMSNorm(WIDTH),
        nn.Linear(WIDTH, VOCABULARY, bias=False),
    )
    return net.to(torch.bfloat16)


def adamw(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of both."""
    return torch.optim.AdamW(params, 1e-4, foreach=False)


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compress-states", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    nets = [model(options.layers), nz.nn.compress_(model(options.layers))]
    optimizers = [
        nz.optim.InBackward(nets[0], adamw),
        nz.optim.InBackward(nets[1], adamw, compress_states=options.compress_states),
    ]
    pick = torch.Generator().manual_seed(1)
    times: list[list[tuple[float, float]]] = [[], []]
    for i in range(options.rounds + 1):
        batch = torch.randint(VOCABULARY, (options.tokens // LENGTH, LENGTH), generator=pick)
        losses = []
        for which in (0, 1) if i % 2 else (1, 0):
            wall, cpu = time.perf_counter(), time.process_time()
            logits = nets[which](batch)[:, :-1].flatten(0, 1)
            loss = nn.functional.cross_entropy(logits.float(), batch[:, 1:].flatten())
            loss.backward()
            optimizers[which].step()
            optimizers[which].zero_grad()
            if i:  # the first one sets things up
                times[which].append((time.perf_counter() - wall, time.process_time() - cpu))
            losses.append(loss.item())
        if losses[0] != losses[1]:
            message = f"losses differ: {losses}"
            raise SystemExit(message)

    count = sum(parameter.numel() for parameter in nets[0].parameters())
    print(f"{count / 1e6:.1f} M parameters, BF16, AdamW, {options.tokens} tokens a step,")
    print(f"{options.threads} threads, {options.rounds} rounds; {machine.describe()}\n")
    print("| seconds a step | plain | compressed | ratio |\n|---|--:|--:|--:|")
    for place, name in enumerate(("that pass", "of the CPU")):
        plain, ours = ([pair[place] for pair in which] for which in times)
        ratio = statistics.median(b / a for a, b in zip(plain, ours, strict=True))
        medians = f"{statistics.median(plain):.3f} | {statistics.median(ours):.3f}"
        print(f"| {name} | {medians} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
