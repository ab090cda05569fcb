"""The kernels that encode in the emulation, launched as on a GPU, between forbidden pages."""

import functools
from collections.abc import Sequence

from neuzip_rs._dtypes import ITEMSIZE
from neuzip_rs.cuda._device import Memory, Scalar
from neuzip_rs.cuda._encode import encode
from neuzip_rs.cuda._encode_layout import WAVE_BYTES, Input, views
from tests.python.cuda.emulated import EmulatedDevice
from tests.python.cuda.emulation import Emulated, guarded


@functools.cache
def _kernels(source: str) -> Emulated:
    return Emulated(source)


class GuardedDevice(EmulatedDevice):
    """A device whose memory ends at forbidden pages, and holds garbage at first."""

    def __init__(self, *, processors: int = 2, seed: int = 1) -> None:
        """Makes a device whose threads take turns in an order that `seed` gives."""
        super().__init__(processors=processors)
        self._seed = seed

    def empty(self, nbytes: int) -> Memory:
        memory = guarded(b"\xe5" * nbytes)
        return Memory(memory.ctypes.data, memory)

    def launch(
        self, source: str, kernel: str, blocks: int, threads: int, *arguments: Scalar
    ) -> None:
        kernels, seed = _kernels(source), self._seed
        self.stream.add(lambda: kernels.launch(kernel, blocks, threads, *arguments, seed=seed))


def encode_many(
    tensors: Sequence[tuple[bytes, str, tuple[int, ...]]],
    chunk_log2: int,
    *,
    processors: int = 1,
    seed: int = 1,
    wave_bytes: int = WAVE_BYTES,
    level: str = "fast",
) -> list[bytes]:
    """The streams of tensors (bytes, dtype, shape)."""
    memory = [guarded(data) for data, _, _ in tensors]
    inputs = [
        Input(
            at.ctypes.data,
            len(data),
            dtype,
            chunk_log2,
            views(dtype, shape) if level == "default" else (),
        )
        for at, (data, dtype, shape) in zip(memory, tensors, strict=True)
    ]
    assert all(len(data) % ITEMSIZE[dtype] == 0 for data, dtype, _ in tensors)
    device = GuardedDevice(processors=processors, seed=seed)
    shapes = [shape for _, _, shape in tensors]
    return encode(device, inputs, shapes, level=level, wave_bytes=wave_bytes)
