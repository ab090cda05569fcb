"""The one decoded tensor that a thread keeps.

An operator's input is decoded, used and forgotten. What was decoded last stays until the thread
decodes something else: a weight that is used several times in a row is decoded once, and the memory
is used again, because fresh memory takes longer to get than a weight takes to decode.

Invariants:
1. The memory is written only while nobody but this module holds it, which its reference count says.
2. What is handed out is read only. Whoever may have passed an alias of it on calls `settle`.
3. A hit needs the very code tensor, unchanged since (its version counter tells).
"""

import threading
from typing import Final

import torch

from neuzip_rs.nn import codes

# References to a storage that only this module holds: by the tensor of bytes, by that of elements,
# and by the storage object.
_OWN_REFERENCES: Final = 3
# Memory is a multiple of this, so that it can be seen as elements of any type.
_WIDEST: Final = 16

_use_count: Final = torch._C._storage_Use_Count


class _Scratch:
    """What one thread keeps.

    Attributes:
        code: What was decoded, None if that is not to be relied on.
        version: The version of the code then.
        start: The first decoded byte that is in the memory.
        stop: The byte after the last one.
        memory: The memory as bytes.
        elements: The memory as elements, of the type asked for last.
        storage: The memory as torch counts references to it.
        pointer: Its address in torch.
    """

    __slots__ = (
        "code",
        "elements",
        "memory",
        "pointer",
        "start",
        "stop",
        "storage",
        "version",
    )

    code: torch.Tensor | None
    memory: torch.Tensor | None
    elements: torch.Tensor | None
    storage: torch.UntypedStorage | None

    def __init__(self) -> None:
        self.clear()
        self.version = self.start = self.stop = self.pointer = 0

    def is_free(self) -> bool:
        """Whether nobody else sees the memory."""
        return self.storage is not None and _use_count(self.pointer) == _OWN_REFERENCES

    def clear(self) -> None:
        self.code = self.memory = self.elements = self.storage = None

    def fill(
        self,
        code: torch.Tensor,
        version: int,
        start: int,
        nbytes: int,
        dtype: torch.dtype,
        *,
        is_stream: bool,
    ) -> torch.Tensor:
        """Decodes bytes into the memory, which is exchanged if it does not do; its elements."""
        self.code = None
        memory, elements = self.memory, self.elements
        if (
            memory is None
            or elements is None
            or memory.numel() < nbytes
            or memory.device != code.device
            or not self.is_free()
        ):
            # Freed before the next one is allocated, so that there are never two.
            memory = elements = None
            self.clear()
            memory, elements = self._allocate(nbytes, dtype, code.device)
        elif elements.dtype != dtype:
            elements = self._see_as(memory, dtype)
        out = memory if memory.numel() == nbytes else memory.narrow(0, 0, nbytes)
        codes.decode(code, out, start, is_stream=is_stream)
        self.code, self.version = code, version
        self.start, self.stop = start, start + nbytes
        return elements

    def _allocate(
        self, nbytes: int, dtype: torch.dtype, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        room = -(-nbytes // _WIDEST) * _WIDEST
        # A plain tensor also where gradients are off altogether: it may be used again where not.
        with torch.inference_mode(mode=False):
            memory = self.memory = torch.empty(room, dtype=torch.uint8, device=device)
        self.storage = memory.untyped_storage()
        self.pointer = self.storage._cdata
        return memory, self._see_as(memory, dtype)

    def _see_as(self, memory: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        with torch.inference_mode(mode=False), torch.no_grad():
            self.elements = memory.view(dtype)
        return self.elements


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.own = _Scratch()


_threads: Final = _PerThread()


def decode(
    code: torch.Tensor,
    start_bytes: int,
    nbytes: int,
    dtype: torch.dtype,
    *,
    is_stream: bool,
) -> tuple[torch.Tensor, int]:
    """Decodes bytes of a code, to be read at once, not written.

    Args:
        code: The code.
        start_bytes: The first byte; a whole number of elements.
        nbytes: How many bytes.
        dtype: The type to see them as.
        is_stream: Whether the code is known to be one that is not rounded.

    Returns:
        A flat tensor that starts where its memory starts, and at which of its elements the bytes
        begin. It is for making views of, and not to be handed on itself.

    Raises:
        CorruptDataError: If the code is damaged.
    """
    own = _threads.own
    # How often torch has changed the code in place, which only its owner's user may do.
    version = 0 if code.is_inference() else code._version
    elements = own.elements
    if (
        own.code is not code
        or own.version != version
        or start_bytes < own.start
        or start_bytes + nbytes > own.stop
        or elements is None
        or own.memory is None
    ):
        # Or it would keep the old memory alive while new one is allocated.
        del elements
        elements = own.fill(code, version, start_bytes, nbytes, dtype, is_stream=is_stream)
        return elements, 0
    if elements.dtype != dtype:
        del elements
        elements = own._see_as(own.memory, dtype)
    return elements, (start_bytes - own.start) // dtype.itemsize


def take(code: torch.Tensor, nbytes: int, dtype: torch.dtype, *, is_stream: bool) -> torch.Tensor:
    """All decoded bytes of a code, for the caller to write into while it holds them."""
    elements, first = decode(code, 0, nbytes, dtype, is_stream=is_stream)
    own = _threads.own
    own.code = None
    out = elements.narrow(0, first, nbytes // dtype.itemsize)
    del elements
    if _use_count(own.pointer) > _OWN_REFERENCES + 1:
        # An operator's result still shows the memory.
        out = out.clone()
        own.clear()
    return out


def settle() -> None:
    """Gives the memory up if anybody else still holds it, after an operator has returned."""
    own = _threads.own
    if own.storage is not None and _use_count(own.pointer) != _OWN_REFERENCES:
        own.clear()


def kept() -> torch.Tensor | None:
    """The memory of what the calling thread keeps, if it keeps anything."""
    return _threads.own.memory


def free_cache() -> None:
    """Frees the decoded tensor that the calling thread keeps for the next use."""
    _threads.own.clear()
