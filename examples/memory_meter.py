"""How much memory weights, gradients and decoding take at most: used by the examples and tests.

Counted are the bytes of distinct storages: of the parameters (codes of compressed ones), gradients,
the tensor that is decoded, and new codes before they replace the old ones. It is counted whenever
one of these may be largest: when a tensor has been decoded or encoded, and in each update.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from neuzip_rs.nn import codec, scratch
from neuzip_rs.nn.weight import CompressedWeight
from neuzip_rs.optim.slot import Slot
from neuzip_rs.optim.spent import SpentGradient

if TYPE_CHECKING:
    from collections.abc import Iterator


class Meter:
    """Watches one model.

    Attributes:
        peak: The most bytes at once so far.
        weights: Of these, the bytes of the parameters (or their codes).
    """

    def __init__(self, model: torch.nn.Module) -> None:
        """Starts at nothing."""
        scratch.free_cache()
        self._parameters = list(model.parameters())
        self._gradient: torch.Tensor | None = None
        self.peak = 0
        self.weights = 0

    def sample(self, *others: torch.Tensor) -> None:
        """Counts what is there now, and `others`."""
        held = [p.record.code if isinstance(p, CompressedWeight) else p for p in self._parameters]
        weights = _bytes(held)
        held += [p.grad for p in self._parameters if p.grad is not None]
        if self._gradient is not None:
            held.append(self._gradient)
        kept = scratch.kept()
        if kept is not None:
            held.append(kept)
        peak = _bytes([*held, *others])
        if peak > self.peak:
            self.peak, self.weights = peak, weights

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Counts during the block, which runs much slower for it."""
        own, update = codec.codec_for(torch.device("cpu")), Slot.update
        encode, decode = own.encode, own.decode

        def counted_encode(tensor: torch.Tensor) -> torch.Tensor:
            code = encode(tensor)
            self.sample(tensor, code)
            return code

        def counted_decode(code: torch.Tensor, out: torch.Tensor, start_bytes: int) -> None:
            decode(code, out, start_bytes)
            self.sample(out)

        def counted_update(slot: Slot, gradient: torch.Tensor, **options: Any) -> None:
            self._gradient = gradient
            self.sample()
            update(slot, gradient, **options)
            self._gradient = None

        with (
            _changed(own, encode=counted_encode, decode=counted_decode),
            _changed(Slot, update=counted_update),
        ):
            yield


@contextlib.contextmanager
def _changed(target: object, **attributes: object) -> Iterator[None]:
    before = {name: vars(target).get(name) for name in attributes}
    for name, value in attributes.items():
        setattr(target, name, value)
    try:
        yield
    finally:
        for name, old in before.items():
            if old is None:
                delattr(target, name)
            else:
                setattr(target, name, old)


def _bytes(tensors: list[torch.Tensor]) -> int:
    storages = {}
    for tensor in tensors:
        if not isinstance(tensor, SpentGradient):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """The bytes of an optimizer's states, compressed or not."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    return _bytes([v.record.code if isinstance(v, CompressedWeight) else v for v in tensors])


def forget_process_peak() -> None:
    """Lets the most memory that the process has held count from now on, where Linux allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def process_bytes(field: str = "VmHWM") -> int:
    """The memory of this process as Linux counts it, at most (VmHWM) or now (VmRSS); else 0."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0
