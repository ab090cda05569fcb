"""A device that runs the kernels of cuda/w12*.cu on the CPU, for tensors that are there."""

from typing import Any, TypeAlias

import numpy as np
import pytest

from tests.python.cuda.emulation import Emulated, guarded

torch = pytest.importorskip("torch")

Tensor: TypeAlias = Any  # torch's


class EmulatedDevice:
    """What neuzip_rs.cuda.w12 asks of a GPU. `seed` shuffles the threads."""

    multiprocessors = 2
    capability = (0, 0)
    l2_bytes = 1 << 16

    def __init__(self) -> None:
        self.seed = 1
        self.launched: list[str] = []
        self._tickets = guarded(bytes(1 << 12), 4).view(np.int32)

    def launch(
        self,
        source: str,
        kernel: str,
        grid: int | tuple[int, int],
        block: int,
        *arguments: Any,
        shared_bytes: int = 0,
    ) -> None:
        self.launched.append(kernel)
        Emulated(source).launch(
            kernel, grid, block, *arguments, shared_bytes=shared_bytes, seed=self.seed
        )
        assert not self._tickets.any()

    def workspace(self, partial_sums: int, tickets: int) -> tuple[Tensor, Tensor]:
        partial = guarded(np.full(partial_sums, np.nan, np.float32).tobytes(), 4)
        end = len(self._tickets) - tickets
        return torch.from_numpy(partial), torch.from_numpy(self._tickets[end:])
