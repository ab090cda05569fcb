"""What `safetensors.save_file` takes, and what it refuses as the safetensors package does."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from neuzip_rs._arrays import Array, describe
from neuzip_rs._spelling import spell

if TYPE_CHECKING:
    from typing_extensions import Buffer

Entry: TypeAlias = tuple[str, str, tuple[int, ...], "Buffer", str]
"""Name, type and shape as the header has them, data, and type of the elements."""


def check_text(tensors: object, metadata: object) -> None:
    """Raises unless tensors come by name and names and metadata are text."""
    if not isinstance(tensors, Mapping):
        message = f"tensors must be a dict of tensors by name, not {type(tensors).__qualname__}"
        raise ValueError(message)  # noqa: TRY004 - as the safetensors package has it
    for name in tensors:
        if not isinstance(name, str):
            message = f"the names of tensors must be str, not {name!r}"
            raise TypeError(message)
        if name == "__metadata__":
            message = "no tensor can be called '__metadata__': headers keep their text there"
            raise ValueError(message)
    if metadata is None:
        return
    if not isinstance(metadata, Mapping):
        message = f"metadata must be a dict of str by str, not {type(metadata).__qualname__}"
        raise TypeError(message)
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            message = f"metadata must be str by str, not {key!r}: {value!r}"
            raise TypeError(message)


def check_layouts(tensors: Mapping[str, Array]) -> None:
    """Refuses what the safetensors package refuses: other memory layouts than a file has.

    Raises:
        RuntimeError: If torch tensors share memory.
        ValueError: If a torch tensor is sparse or not contiguous.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return
    from neuzip_rs._torch import sharing_memory

    mine = {name: x for name, x in tensors.items() if isinstance(x, torch.Tensor)}
    sparse = [name for name, x in mine.items() if x.layout is not torch.strided]
    if sparse:
        message = f"tensors {sparse} are sparse; convert them with .to_dense() first"
        raise ValueError(message)
    shared = [sorted(names) for names in sharing_memory(mine)]
    if shared:
        message = (
            f"some tensors share memory, and would be stored twice and loaded apart: {shared}; "
            "keep one of each, or save clones"
        )
        raise RuntimeError(message)
    for name, x in mine.items():
        if not x.is_contiguous():
            message = f"tensor {name!r} is not contiguous; pack it with .contiguous() first"
            raise ValueError(message)


def entry(name: str, tensor: Array) -> Entry:
    """A tensor as the native writer takes it.

    Raises:
        ValueError: If it is no tensor, or one that no .safetensors file can hold.
    """
    try:
        source = describe(tensor)
    except TypeError as error:
        message = f"tensor {name!r}: {error}"
        raise ValueError(message) from error
    if source.framework == "bytes":
        message = f"tensor {name!r} is raw bytes, not an array; see numpy.frombuffer"
        raise ValueError(message)
    spelled = spell(source.dtype, tuple(source.shape))
    if spelled is None:
        message = f"tensor {name!r}: .safetensors files cannot hold dtype {source.dtype}"
        raise ValueError(message)
    spelling, shape, dtype = spelled
    return name, spelling, shape, source.data, dtype
