"""Calling an operator from `__torch_dispatch__` as if it had been called with plain tensors.

An operator that is made of others (`bilinear`, the fused encoder layer) has its parts cast by
autocast. torch leaves autocast out of everything that `__torch_dispatch__` calls, so that the parts
would be computed in another precision than without compression.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import torch
from torch.overrides import enable_reentrant_dispatch

Result: TypeAlias = Any
"""What an operator returns."""

_KEYS: Final = (
    torch._C.DispatchKey.AutocastCPU,
    torch._C.DispatchKey.AutocastCUDA,
)
_is_excluded: Final = torch._C._dispatch_tls_is_dispatch_key_excluded
_set_excluded: Final = torch._C._dispatch_tls_set_dispatch_key_excluded


def call(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Result:
    """Calls `func`, under autocast where the caller of `__torch_dispatch__` was."""
    # Autocast is on where its key is not excluded, and it excludes the key in what it calls itself:
    # what counts is the state in which the operator was called.
    with enable_reentrant_dispatch():
        active = [key for key in _KEYS if not _is_excluded(key)]
    if not active:
        return func(*args, **kwargs)
    for key in active:
        _set_excluded(key, False)
    try:
        return func(*args, **kwargs)
    finally:
        for key in active:
            _set_excluded(key, True)
