"""Small networks of many kinds, and what it takes to run one of them."""

from collections.abc import Callable
from typing import Any, Final

import pytest
import torch
import torch.nn.functional as F
from torch import nn

VOCABULARY: Final = 96
WIDTH: Final = 32


def token_ids(seed: int = 1) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(seed))


class Around(nn.Module):
    """An embedding, a body, and a head that gives a loss."""

    def __init__(self, body: nn.Module, *, tied: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.body = body
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(ids)
        hidden = hidden + self.body(hidden)
        logits = self.head(self.norm(hidden)).flatten(0, 1).float()
        return F.cross_entropy(logits, ids.roll(-1, 1).flatten())


class Function(nn.Module):
    """Modules with a function that uses them."""

    def __init__(
        self, run: Callable[[nn.ModuleDict, torch.Tensor], torch.Tensor], **parts: nn.Module
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.run = run

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.run(self.parts, hidden)


def _mlp(m: nn.ModuleDict, h: torch.Tensor) -> torch.Tensor:
    return m["b"](F.gelu(m["a"](h)))


def _conv1d(m: nn.ModuleDict, h: torch.Tensor) -> torch.Tensor:
    return m["b"](F.gelu(m["a"](h.transpose(1, 2)))).transpose(1, 2)


def _conv23d(m: nn.ModuleDict, h: torch.Tensor) -> torch.Tensor:
    x = m["a"](h.unsqueeze(1))
    x = x + m["b"](x.unsqueeze(2)).squeeze(2)
    return m["c"](F.gelu(x)).squeeze(1)


def _first(m: nn.ModuleDict, h: torch.Tensor) -> torch.Tensor:
    return m["a"](h)[0]


def _first_twice(m: nn.ModuleDict, h: torch.Tensor) -> torch.Tensor:
    return m["a"](m["a"](h)[0])[0]


def _shared(m: nn.ModuleDict, h: torch.Tensor) -> torch.Tensor:
    for _ in range(3):
        h = torch.tanh(m["a"](h))
    return torch.tanh(F.linear(h, m["a"].weight))


def _attention(m: nn.ModuleDict, h: torch.Tensor) -> torch.Tensor:
    return m["a"](h, h, h, need_weights=False)[0]


def _both(m: nn.ModuleDict, h: torch.Tensor) -> torch.Tensor:
    return m["a"](h, h)


def _decoder(m: nn.ModuleDict, h: torch.Tensor) -> torch.Tensor:
    return m["a"](h, h.flip(1))


class Experts(nn.Module):
    """Matrices of several experts stacked in one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 4, bias=False)
        self.up = nn.Parameter(torch.randn(4, WIDTH, 2 * WIDTH) * 0.1)
        self.down = nn.Parameter(torch.randn(4, 2 * WIDTH, WIDTH) * 0.1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        shares = self.gate(hidden).softmax(-1)
        outputs = [F.gelu(hidden @ self.up[e]) @ self.down[e] for e in range(4)]
        return sum(shares[..., e : e + 1] * out for e, out in enumerate(outputs))


class HuggingFace(nn.Module):
    """A language model of transformers, with a loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids, labels=ids).loss


def _hf(kind: str, **options: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "num_hidden_layers": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = getattr(transformers, f"{kind}Config")
    if kind == "GPT2":
        gpt2 = {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 64}
        model = transformers.GPT2LMHeadModel(
            config(vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, use_cache=False, **gpt2)
        )
    elif kind in {"Bert", "Albert"}:
        model = getattr(transformers, f"{kind}ForMaskedLM")(config(**common, **options))
    else:
        model = getattr(transformers, f"{kind}ForCausalLM")(
            config(**common, num_key_value_heads=2, use_cache=False, **options)
        )
    return HuggingFace(model)


NETWORKS: Final[dict[str, Callable[[], nn.Module]]] = {
    "linear": lambda: Around(
        Function(_mlp, a=nn.Linear(WIDTH, 4 * WIDTH), b=nn.Linear(4 * WIDTH, WIDTH))
    ),
    "tied": lambda: Around(nn.Linear(WIDTH, WIDTH), tied=True),
    "shared": lambda: Around(Function(_shared, a=nn.Linear(WIDTH, WIDTH))),
    "conv1d": lambda: Around(
        Function(
            _conv1d,
            a=nn.Conv1d(WIDTH, 2 * WIDTH, 3, padding=1),
            b=nn.Conv1d(2 * WIDTH, WIDTH, 3, padding=1),
        )
    ),
    "conv23d": lambda: Around(
        Function(
            _conv23d,
            a=nn.Conv2d(1, 8, (5, 9), padding=(2, 4)),
            b=nn.Conv3d(8, 8, 3, padding=1),
            c=nn.ConvTranspose2d(8, 1, (5, 9), padding=(2, 4)),
        )
    ),
    "gru": lambda: Around(Function(_first_twice, a=nn.GRU(WIDTH, WIDTH, batch_first=True))),
    "lstm": lambda: Around(
        Function(
            _first,
            a=nn.LSTM(WIDTH, WIDTH // 2, 2, batch_first=True, bidirectional=True, dropout=0.1),
        )
    ),
    "attention": lambda: Around(
        Function(_attention, a=nn.MultiheadAttention(WIDTH, 4, dropout=0.1, batch_first=True))
    ),
    "encoder": lambda: Around(
        nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 4, 64, batch_first=True), 2)
    ),
    "decoder": lambda: Around(
        Function(_decoder, a=nn.TransformerDecoderLayer(WIDTH, 4, 64, batch_first=True))
    ),
    "experts": lambda: Around(Experts()),
    "bilinear": lambda: Around(Function(_both, a=nn.Bilinear(WIDTH, WIDTH, WIDTH))),
    "weight_norm": lambda: Around(nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))),
    "llama": lambda: _hf("Llama", tie_word_embeddings=False),
    "llama_tied": lambda: _hf("Llama", tie_word_embeddings=True),
    "mixtral": lambda: _hf("Mixtral", num_local_experts=4),
    "gpt2": lambda: _hf("GPT2"),
    "bert": lambda: _hf("Bert"),
    "albert": lambda: _hf("Albert", embedding_size=16),
}


def make(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return NETWORKS[name]().to(dtype)
