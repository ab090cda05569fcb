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

# References to a storage that only this module holds: by the tensor, and by the storage object.
_OWN_REFERENCES: Final = 2


class _Scratch(threading.local):
    code: torch.Tensor | None = None
    version: int = -1
    start: int = 0
    stop: int = 0
    memory: torch.Tensor | None = None
    storage: torch.UntypedStorage | None = None

    def is_free(self) -> bool:
        """Whether nobody else sees the memory."""
        return (
            self.storage is not None
            and torch._C._storage_Use_Count(self.storage._cdata) == _OWN_REFERENCES
        )

    def clear(self) -> None:
        self.code = self.memory = self.storage = None


_scratch: Final = _Scratch()


def decode(code: torch.Tensor, start_bytes: int, nbytes: int) -> torch.Tensor:
    """Decoded bytes of a code, as uint8: to be read at once, not written.

    Raises:
        CorruptDataError: If the code is damaged.
    """
    own = _scratch
    version = _version(code)
    if (
        own.code is code
        and own.version == version
        and own.memory is not None
        and own.start <= start_bytes
        and start_bytes + nbytes <= own.stop
    ):
        return own.memory.narrow(0, start_bytes - own.start, nbytes)
    own.code = None
    memory = own.memory
    if (
        memory is None
        or memory.numel() < nbytes
        or memory.device != code.device
        or not own.is_free()
    ):
        memory = None
        # Freed before the next one is allocated, so that there are never two.
        own.clear()
        # A plain tensor also where gradients are off altogether: it may be used again where not.
        with torch.inference_mode(mode=False):
            memory = own.memory = torch.empty(nbytes, dtype=torch.uint8, device=code.device)
        own.storage = memory.untyped_storage()
    out = memory.narrow(0, 0, nbytes)
    codes.decode(code, out, start_bytes)
    own.code, own.version = code, version
    own.start, own.stop = start_bytes, start_bytes + nbytes
    return out


def take(code: torch.Tensor, nbytes: int) -> torch.Tensor:
    """All decoded bytes of a code, as uint8, for the caller to write into while it holds them."""
    out = decode(code, 0, nbytes)
    _scratch.code = None
    if torch._C._storage_Use_Count(out.untyped_storage()._cdata) > _OWN_REFERENCES + 1:
        # An operator's result still shows the memory.
        out = out.clone()
        _scratch.clear()
    return out


def settle() -> None:
    """Gives the memory up if anybody else still holds it, after an operator has returned."""
    if _scratch.storage is not None and not _scratch.is_free():
        _scratch.clear()


def _version(code: torch.Tensor) -> int:
    """How often torch has changed a code in place, which only its owner's user may do."""
    return 0 if code.is_inference() else code._version


def free_cache() -> None:
    """Frees the decoded tensor that the calling thread keeps for the next use."""
    _scratch.clear()
