"""`save` and `load` for nested Python state, such as a whole training checkpoint, without pickle.

    nz.save({"model": model.state_dict(), "step": 1000}, "checkpoint.nz")
    state = nz.load("checkpoint.nz")

The file is a compressed .safetensors file: every tensor under the path that leads to it, compressed
as what it is, and the structure around them as JSON in a tensor of its own. So every tool for
.safetensors files shows what is inside, and nothing in it is ever executed.
"""

import json
import os
import struct
from collections.abc import Callable, Container, Hashable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import astuple
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from neuzip_rs import _native
from neuzip_rs._arguments import check_level, check_limit, check_threads
from neuzip_rs._arrays import Array, Device, adapter_for, decoded
from neuzip_rs._dtypes import ITEMSIZE, element_count
from neuzip_rs._errors import CorruptDataError, OutputTooLargeError, UnsupportedVersionError
from neuzip_rs._spelling import spell
from neuzip_rs._state_tree import Node, Record, State, StateReader, StateWriter
from neuzip_rs.remote.places import sent
from neuzip_rs.safetensors import open_tensors

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["load", "save"]

_STRUCTURE: Final = "neuzip.state"
"""Name of the tensor with the structure, and of the metadata entry with its version."""
_VERSION: Final = "1"
_WRONG: Final = (
    AttributeError,
    LookupError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)
_FRAMEWORKS: Final = frozenset({"bytes", "cupy", "jax", "numpy", "torch"})
_RESERVED: Final = frozenset({_STRUCTURE, "__metadata__"})


def save(
    state: State,
    filename: str | os.PathLike[str],
    *,
    level: str = "default",
    threads: int | None = None,
) -> None:
    """Writes nested state to a file, replacing one that is there.

    State is made of dicts (with any keys), lists, tuples, sets, None, bool, int, float, complex,
    str, bytes, OrderedDict, torch and numpy arrays, numpy scalars, `torch.Size` and `torch.dtype`,
    and comes back bit for bit. Tensors that are one object, or see the same memory in the same way
    (tied weights), are stored once and are shared again after loading; other views are stored on
    their own. Tensors on other devices come back on the CPU.

    Args:
        state: What to save.
        filename: The file to write.
        level: "fast", "default" or "max".
        threads: How many threads may work, by default `NEUZIP_NUM_THREADS` or every core.

    Raises:
        TypeError: If something in the state has another type; the message says where it is.
        ValueError: If the state contains itself or is nested too deeply.
    """
    check_level(level)
    check_threads(threads)
    writer = StateWriter(_RESERVED)
    root = writer.node(state)
    document = {"records": [astuple(record) for record in writer.records], "root": root}
    structure = json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
    entries: list[Any] = [(_STRUCTURE, "U8", (len(structure),), structure, "uint8")]
    for name, source in writer.sources.items():
        shape = tuple(source.shape)
        # What a header cannot spell goes in as bytes; the record knows what they are.
        nbytes = element_count(shape) * ITEMSIZE[source.dtype]
        spelled = spell(source.dtype, shape) or ("U8", (nbytes,), source.dtype)
        spelling, shape, dtype = spelled
        entries.append((name, spelling, shape, source.data, dtype))
    with sent(filename) as target:
        _native.write_safetensors(
            target, entries, {_STRUCTURE: _VERSION}, level=level, threads=threads
        )


def load(
    filename: str | os.PathLike[str],
    *,
    device: Device = None,
    framework: str | None = None,
    threads: int | None = None,
    verify: bool = True,
    max_output_size: int | None = None,
) -> State:
    """Reads what `save` wrote.

    Args:
        filename: The file to read.
        device: Where to put torch tensors, by default the CPU.
        framework: "torch" or "numpy" to have all arrays of one kind; by default each as it was.
        threads: How many threads may work, by default `NEUZIP_NUM_THREADS` or every core.
        verify: Check the hash of everything decoded.
        max_output_size: The most bytes all tensors together may have.

    Returns:
        The state.

    Raises:
        CorruptDataError: If the file is damaged or was not written by `save`.
        UnsupportedVersionError: If a newer release wrote it.
        OutputTooLargeError: If the tensors exceed `max_output_size` or the memory there is.
    """
    check_threads(threads)
    check_limit(max_output_size)
    if framework is not None:
        adapter_for(framework).check_device(device)
    file = open_tensors(filename)
    with closing(file):
        names = file.keys()
        sizes = {name: file.nbytes(name) for name in names}
        _check_version(file.metadata, sizes)
        total = sum(sizes.values())
        if max_output_size is not None and total > max_output_size:
            message = f"the state has {total} bytes, more than max_output_size={max_output_size}"
            raise OutputTooLargeError(message)
        read = partial(file.read_into, verify=verify, threads=threads)
        read_structure = partial(read, _STRUCTURE)
        structure = decoded(adapter_for("bytes"), "uint8", (sizes[_STRUCTURE],), read_structure)
        with _corrupt_if_wrong(filename):
            document = json.loads(structure)
            root = document["root"]
            records = [_record(fields, sizes) for fields in document["records"]]
        arrays = _read_arrays(records, read, device, framework)
    with _corrupt_if_wrong(filename):
        return StateReader(arrays.__getitem__).value(root)


def _check_version(metadata: dict[str, str] | None, names: Container[str]) -> None:
    version = (metadata or {}).get(_STRUCTURE)
    if version is None or _STRUCTURE not in names:
        message = (
            "the file holds no state that neuzip_rs.save wrote; "
            "read files of tensors with neuzip_rs.safetensors.load_file"
        )
        raise CorruptDataError(message)
    if version != _VERSION:
        message = f"the state has version {version!r}, this release reads {_VERSION!r}"
        raise UnsupportedVersionError(message)


@contextmanager
def _corrupt_if_wrong(filename: object) -> Iterator[None]:
    """Whatever a structure nobody wrote can provoke becomes a CorruptDataError."""
    try:
        yield
    except _WRONG as error:
        message = f"{filename}: the structure of the state is damaged: {error!r}"
        raise CorruptDataError(message) from error


def _record(fields: Node, sizes: Mapping[str, int]) -> Record:
    name, framework, dtype, shape, parameter, requires_grad = fields
    if framework not in _FRAMEWORKS or any(type(n) is not int or n < 0 for n in shape):
        message = f"no such array: {fields!r}"
        raise ValueError(message)
    record = Record(name, framework, dtype, tuple(shape), bool(parameter), bool(requires_grad))
    if element_count(record.shape) * ITEMSIZE[dtype] != sizes[name]:
        message = f"{sizes[name]} bytes cannot be {fields!r}"
        raise ValueError(message)
    return record


def _read_arrays(
    records: list[Record], read: Callable[[str, "Buffer"], None], device: Device, wanted: str | None
) -> list[Array]:
    """Makes the array of every record; records of the same bytes share them."""
    arrays: list[Array] = []
    originals: dict[Hashable, Array] = {}
    for record in records:
        framework = record.framework
        if wanted is not None and framework != "bytes":
            framework = wanted
        look = (record.name, framework, record.dtype, record.shape)
        array = originals.get(look)
        if array is None:
            adapter = adapter_for(framework)
            # Other frameworks' arrays stay where they are.
            place = adapter.check_device(device) if framework == "torch" else None
            array = originals[look] = decoded(
                adapter, record.dtype, record.shape, partial(read, record.name), place
            )
        elif framework != "bytes":
            array = array.detach() if framework == "torch" else array.view()
        if framework == "torch":
            array = _as_saved(array, record)
        arrays.append(array)
    return arrays


def _as_saved(tensor: Array, record: Record) -> Array:
    from neuzip_rs import _torch

    if record.parameter:
        return _torch.parameter(tensor, requires_grad=record.requires_grad)
    return tensor.requires_grad_() if record.requires_grad else tensor
