"""How much memory the tensors of a module take, and would take without compression."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from neuzip_rs.nn.weight import CompressedWeight


@dataclass(frozen=True)
class TensorMemory:
    """A parameter or buffer.

    Attributes:
        names: All its names, those of ties included.
        shape: Its shape.
        dtype: Its type.
        held_bytes: Bytes in memory.
        plain_bytes: Bytes it has, or would have, without compression.
        compressed: Whether it is compressed.
        precision: How many bits of mantissa were kept; None if all.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    held_bytes: int
    plain_bytes: int
    compressed: bool
    precision: int | None


@dataclass(frozen=True)
class MemoryReport:
    """What `memory_report` counts; `print` shows it as a table.

    Attributes:
        held_bytes: Bytes that parameters and buffers hold, each storage counted once.
        plain_bytes: Bytes they would hold without compression.
        rows: Every tensor on its own, in the order of the module.
    """

    held_bytes: int
    plain_bytes: int
    rows: tuple[TensorMemory, ...]

    @property
    def ratio(self) -> float:
        """Held over plain bytes; 1.0 where there are none."""
        return self.held_bytes / self.plain_bytes if self.plain_bytes else 1.0

    def __str__(self) -> str:
        """A table."""
        lines = [f"{'held':>14} {'plain':>14}  ratio  tensor"]
        for row in self.rows:
            ratio = row.held_bytes / row.plain_bytes if row.plain_bytes else 1.0
            kind = str(row.dtype).removeprefix("torch.")
            shape = "x".join(map(str, row.shape)) or "scalar"
            note = "" if row.precision is None else f", precision {row.precision}"
            lines.append(
                f"{row.held_bytes:>14,} {row.plain_bytes:>14,}  {ratio:.3f}  "
                f"{' = '.join(row.names)} ({kind} {shape}{note})"
            )
        lines.append(f"{self.held_bytes:>14,} {self.plain_bytes:>14,}  {self.ratio:.3f}  in all")
        return "\n".join(lines)


def memory_report(module: nn.Module) -> MemoryReport:
    """Counts the bytes of a module's parameters and buffers.

    A storage that several tensors show counts once in the sums; a row has the bytes of its own
    tensor. Gradients, and the one decoded tensor that a thread may keep (`free_cache`), are not
    counted.

    Args:
        module: Any module.

    Returns:
        The sums, and a row for each tensor.
    """
    names: dict[int, list[str]] = {}
    tensors: dict[int, torch.Tensor] = {}
    for name, tensor in _named_tensors(module):
        names.setdefault(id(tensor), []).append(name)
        tensors[id(tensor)] = tensor
    held: dict[object, int] = {}
    plain: dict[object, int] = {}
    rows: list[TensorMemory] = []
    for key, tensor in tensors.items():
        weight = tensor if isinstance(tensor, CompressedWeight) else None
        stored = tensor if weight is None else weight.record.code
        size = stored.numel() * stored.itemsize
        decoded = tensor.numel() * tensor.itemsize
        storage = _storage(stored)
        held[storage] = max(held.get(storage, 0), _storage_bytes(stored))
        whole = _storage_bytes(stored) if weight is None else decoded
        plain[storage] = max(plain.get(storage, 0), whole)
        rounding = None if weight is None else weight.record.rounding
        rows.append(
            TensorMemory(
                tuple(names[key]),
                tuple(tensor.shape),
                tensor.dtype,
                size,
                decoded,
                weight is not None,
                None if rounding is None else rounding.precision,
            )
        )
    return MemoryReport(sum(held.values()), sum(plain.values()), tuple(rows))


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _storage(tensor: torch.Tensor) -> object:
    """What is the same for two tensors that share a storage."""
    try:
        pointer = tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return id(tensor)
    # Storages without bytes all have the same pointer, and no bytes to be counted twice.
    return (tensor.device, pointer) if pointer else id(tensor)


def _storage_bytes(tensor: torch.Tensor) -> int:
    try:
        return tensor.untyped_storage().nbytes()
    except (NotImplementedError, RuntimeError):
        return tensor.numel() * tensor.itemsize
