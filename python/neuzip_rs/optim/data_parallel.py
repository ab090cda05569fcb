"""Averaging gradients over processes, one parameter at a time, while backward goes on.

Processes must take part in the same order, and the order in which gradients arrive may differ from
one process to the next. Invariants:

1. Every process handles the parameters of a step in one order, the same for all; a gradient that
   arrives before its turn waits.
2. For each parameter in turn all processes add their gradients up, who has none adds zeros. Only
   if the sum is zero, which all of them see, they ask each other whether anybody has had one: if
   not, the parameter is left alone, as an optimizer leaves it that finds no gradient.

The order is the reverse of the model's at first, and then the one in which gradients arrived in the
first process, so that next to none has to wait.
"""

from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
from torch import distributed, nn

from neuzip_rs.nn.weight import CompressedWeight
from neuzip_rs.optim.slot import Slot

ProcessGroup: TypeAlias = Any
"""A `torch.distributed.ProcessGroup`; not every build of torch has them."""


class DataParallel:
    """The processes of a group, each with a copy of the model and inputs of its own."""

    def __init__(self, group: ProcessGroup) -> None:
        """Joins a group.

        Raises:
            TypeError: If it is no process group of which this process is a member.
        """
        is_member = distributed.is_available() and distributed.is_initialized()
        if not is_member or not isinstance(group, distributed.ProcessGroup):
            message = (
                "process_group must be a torch.distributed process group of which this process is "
                "a member, such as torch.distributed.group.WORLD after init_process_group(), not "
                f"{group!r}"
            )
            raise TypeError(message)
        self._group = group
        self._size = distributed.get_world_size(group)
        self._first = distributed.get_global_rank(group, 0)
        self._order: list[Slot] = []
        self._waiting: set[Slot] = set()
        self._turn = 0
        self._arrived: list[Slot] | None = None

    def add(self, slots: list[Slot]) -> None:
        """Takes parameters in, in the order of the model."""
        self._order[:0] = reversed(slots)
        self._arrived = []

    def share(self, model: nn.Module) -> None:
        """Gives every process the parameters and buffers of the first one."""
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                if isinstance(tensor, CompressedWeight):
                    tensor.record.code = self._shared_code(tensor.record.code)
                else:
                    distributed.broadcast(tensor.detach(), self._first, group=self._group)

    def _shared_code(self, code: torch.Tensor) -> torch.Tensor:
        length = torch.tensor([code.numel()], device=code.device)
        distributed.broadcast(length, self._first, group=self._group)
        if int(length) != code.numel():
            code = torch.empty(int(length), dtype=torch.uint8, device=code.device)
        elif distributed.get_rank(self._group) != 0:
            # Codes are never changed in place.
            code = torch.empty_like(code)
        distributed.broadcast(code, self._first, group=self._group)
        return code

    def ready(self, slot: Slot) -> Iterator[Slot]:
        """Notes that a gradient is there; gives the parameters whose turn has come."""
        self._waiting.add(slot)
        if self._arrived is not None:
            self._arrived.append(slot)
        while self._turn < len(self._order) and self._order[self._turn] in self._waiting:
            self._turn += 1
            self._waiting.discard(self._order[self._turn - 1])
            yield self._order[self._turn - 1]

    def rest(self) -> Iterator[Slot]:
        """Gives the parameters that have not had their turn in this step, and ends it."""
        while self._turn < len(self._order):
            self._turn += 1
            yield self._order[self._turn - 1]
        self.reset()

    def reset(self) -> None:
        """Starts a new step."""
        self._turn = 0
        self._waiting.clear()
        if self._arrived:
            self._learn(self._arrived)
            self._arrived = None

    def average(self, slot: Slot, gradient: torch.Tensor | None) -> torch.Tensor | None:
        """Averages a gradient, in place where that is possible; None if no process has one.

        Raises:
            TypeError: If it is sparse.
        """
        leaf, is_there = slot.leaf, gradient is not None
        if gradient is not None and gradient.layout is not torch.strided:
            message = (
                f"the gradient of {slot.name!r} is sparse, which process_group= cannot average"
            )
            raise TypeError(message)
        if gradient is None or gradient.stride() != leaf.stride():
            # The same order in memory everywhere.
            room = torch.empty_strided(
                leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device
            )
            gradient = room.zero_() if gradient is None else room.copy_(gradient)
        gradient.div_(self._size)
        distributed.all_reduce(gradient, group=self._group)
        return gradient if _has_nonzero(gradient) or self._any(is_there, leaf.device) else None

    def _any(self, is_there: bool, device: torch.device) -> bool:
        flag = torch.tensor([is_there], dtype=torch.int32, device=device)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX, group=self._group)
        return bool(flag)

    def _learn(self, arrived: list[Slot]) -> None:
        places = {slot: place for place, slot in enumerate(self._order)}
        order = [places[slot] for slot in dict.fromkeys(arrived)]
        seen = set(order)
        order += [place for place in range(len(self._order)) if place not in seen]
        shared = torch.tensor(order, device=self._order[0].leaf.device)
        distributed.broadcast(shared, self._first, group=self._group)
        self._order = [self._order[place] for place in shared.tolist()]


def _has_nonzero(tensor: torch.Tensor) -> bool:
    # Mostly the first element says it.
    return bool(tensor[(0,) * tensor.dim()]) or bool(tensor.any()) if tensor.numel() else False
