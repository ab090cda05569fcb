"""A small transformer, and real text for it: what the tests of training share."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import neuzip_rs as nz

VOCABULARY = 128
LENGTH = 16
BATCH = 4

Factory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class Block(nn.Module):
    """Attention and a perceptron."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.before = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, dropout=dropout, batch_first=True)
        self.between = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        y = self.before(x)
        x = x + self.attention(y, y, y, attn_mask=mask, need_weights=False, is_causal=True)[0]
        return x + self.dropout(self.down(nn.functional.gelu(self.up(self.between(x)))))


class Language(nn.Module):
    """Predicts the next character; the head is the embedding."""

    def __init__(
        self, width: int = 32, layers: int = 2, dropout: float = 0.0, recompute: str = "no"
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.position = nn.Parameter(torch.randn(LENGTH, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(layers))
        self.last = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight
        self.recompute = recompute

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        x = self.embedding(text) + self.position
        for block in self.blocks:
            if self.recompute == "no":
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=self.recompute == "reentrant")
        logits = self.head(self.last(x)).flatten(0, 1)[:-1].float()
        return nn.functional.cross_entropy(logits, text.flatten()[1:])


def model(dtype: torch.dtype, seed: int = 0, **options: Any) -> Language:
    torch.manual_seed(seed)
    return Language(**options).to(dtype)


def batches(count: int, start: int = 0) -> Iterator[torch.Tensor]:
    """Batches of the documentation of Python, one after the other."""
    text = "".join(topics[key] for key in sorted(topics)).encode("ascii", "replace")
    codes = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    size = BATCH * LENGTH
    for i in range(start, start + count):
        yield codes[i * size : (i + 1) * size].view(BATCH, LENGTH)


def digest(tensor: torch.Tensor) -> str:
    """Every bit of a tensor, as a short string."""
    plain = tensor.detach().clone().contiguous()
    data = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{plain.dtype} {tuple(plain.shape)} {hashlib.sha256(data).hexdigest()}"


@dataclass
class Trace:
    """All that a run has computed."""

    losses: list[float] = field(default_factory=list)
    weights: dict[str, str] = field(default_factory=dict)
    states: dict[int, dict[str, object]] = field(default_factory=dict)
    random: str = ""


def finish(trace: Trace, net: nn.Module, optimizer: torch.optim.Optimizer) -> Trace:
    for name, parameter in net.named_parameters():
        trace.weights[name] = digest(parameter)
    for index, state in optimizer.state_dict()["state"].items():
        trace.states[index] = {
            key: digest(value) if isinstance(value, torch.Tensor) else value
            for key, value in state.items()
        }
    trace.random = digest(torch.get_rng_state())
    return trace


def vanilla(net: nn.Module, factory: Factory) -> torch.optim.Optimizer:
    return factory(list(net.parameters()))


def in_backward(net: nn.Module, factory: Factory, **options: Any) -> nz.optim.InBackward:
    return nz.optim.InBackward(net, factory, **options)


def compressed(net: nn.Module, factory: Factory, **options: Any) -> nz.optim.InBackward:
    nz.nn.compress_(net, min_numel=256)
    return nz.optim.InBackward(net, factory, **options)


def train(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    start: int = 0,
    accumulate: int = 1,
    autocast: bool = False,
    trace: Trace | None = None,
) -> Trace:
    """The usual loop."""
    trace = trace or Trace()
    for i in range(start, start + steps):
        for batch in batches(accumulate, i * accumulate):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = net(batch) / accumulate
            loss.backward()
            trace.losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return trace
