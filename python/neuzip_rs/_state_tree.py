"""The structure of nested state as JSON, with numbered tensors in it.

Plain JSON stands for what it looks like: null, true, strings, lists, integers of up to 64 bits and
finite floats. Everything else is an object with one key, which says what it is:

    {"dict": {...}}          a dict whose keys are all str
    {"items": [[k, v]...]}   a dict with any other keys
    {"ordered": [[k, v]...]} an OrderedDict
    {"tuple": [...]}, {"set": [...]}, {"frozenset": [...]}
    {"int": "-0x1f"}         a longer integer
    {"float": hex}           the 8 bytes of a nan or an infinity
    {"complex": hex}         the 16 bytes of a complex
    {"bytes": base64}        bytes, {"bytearray": node} a bytearray of those bytes
    {"scalar": [dtype, hex]} a numpy scalar
    {"size": [...]}          a torch.Size, {"dtype": "bfloat16"} a torch.dtype
    {"tensor": n}            the array that record n describes

A record says what array to make of the bytes stored under a name. Records with one name share
their memory, places with one record hold the same object.
"""

import base64
import math
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from neuzip_rs._arrays import Array, Source, describe
from neuzip_rs._dtypes import ITEMSIZE

Node: TypeAlias = Any
"""A JSON value."""
State: TypeAlias = Any
"""Any of the types that can be saved."""

MAX_DEPTH: Final = 128
"""The deepest nesting, well below what the JSON parser and Python's stack allow."""

# Longer bytes are stored, and compressed, like tensors.
_INLINE_BYTES: Final = 1024
_PLAIN_INTS: Final = range(-(2**63), 2**63)


@dataclass(slots=True)
class Record:
    """One array object: the name its bytes are stored under, and what it looks like."""

    name: str
    framework: str
    dtype: str
    shape: tuple[int, ...]
    parameter: bool = False
    requires_grad: bool = False


class StateWriter:
    """Turns state into JSON and sets the tensors in it aside."""

    def __init__(self, reserved: frozenset[str]) -> None:
        """Starts without tensors; none will get a `reserved` name."""
        self.records: list[Record] = []
        self.sources: dict[str, Source] = {}
        self._reserved = reserved
        self._path: list[State] = []
        self._ancestors: set[int] = set()
        self._in_key = False
        self._record_of_object: dict[int, int] = {}
        self._name_of_memory: dict[Hashable, str] = {}

    def node(self, value: State) -> Node:
        """The JSON of a value.

        Raises:
            TypeError: If it, or something in it, is of a type that cannot be saved.
            ValueError: If it contains itself or is nested too deeply.
        """
        kind = type(value)
        if kind is str or kind is bool or value is None:
            return value
        if kind is int:
            return value if value in _PLAIN_INTS else {"int": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"float": struct.pack("<d", value).hex()}
        if kind is complex:
            return {"complex": struct.pack("<dd", value.real, value.imag).hex()}
        if kind is bytes:
            return self._bytes(value)
        if kind is bytearray:
            return {"bytearray": self._bytes(bytes(value))}
        write = _CONTAINERS.get(kind)
        return self._foreign(value) if write is None else self._nested(write, value)

    def _nested(self, write: "_Write", value: State) -> Node:
        if id(value) in self._ancestors:
            message = f"{self._place()} contains itself"
            raise ValueError(message)
        if len(self._ancestors) == MAX_DEPTH:
            message = f"{self._place()} is nested more than {MAX_DEPTH} deep"
            raise ValueError(message)
        self._ancestors.add(id(value))
        node = write(self, value)
        self._ancestors.remove(id(value))
        return node

    def _list(self, value: Iterable[State]) -> list[Node]:
        nodes = []
        self._path.append(None)
        for index, item in enumerate(value):
            self._path[-1] = index
            nodes.append(self.node(item))
        self._path.pop()
        return nodes

    def _set(self, value: Iterable[State]) -> list[Node]:
        # The order of a set changes from run to run; the file should not.
        return sorted(map(self._key, value), key=repr)

    def _dict(self, value: Mapping[State, State]) -> Node:
        if any(type(key) is not str for key in value):
            return {"items": self._items(value)}
        nodes = {}
        self._path.append(None)
        for key, item in value.items():
            self._path[-1] = key
            nodes[key] = self.node(item)
        self._path.pop()
        return {"dict": nodes}

    def _items(self, value: Mapping[State, State]) -> list[list[Node]]:
        nodes = []
        self._path.append(None)
        for key, item in value.items():
            self._path[-1] = key
            nodes.append([self._key(key), self.node(item)])
        self._path.pop()
        return nodes

    def _key(self, value: State) -> Node:
        outer, self._in_key = self._in_key, True
        node = self.node(value)
        self._in_key = outer
        return node

    def _bytes(self, value: bytes) -> Node:
        if len(value) <= _INLINE_BYTES or self._in_key:
            return {"bytes": base64.b64encode(value).decode()}
        name = self._unused_name()
        self.sources[name] = Source(value, "uint8", (len(value),), "bytes")
        return self._new_record(Record(name, "bytes", "uint8", (len(value),)))

    def _foreign(self, value: State) -> Node:
        torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
        if torch is not None:
            if isinstance(value, torch.Tensor):
                parameter = isinstance(value, torch.nn.Parameter)
                return self._array(value, _torch_memory(value), parameter=parameter)
            if type(value) is torch.dtype:
                return {"dtype": str(value).removeprefix("torch.")}
            if type(value) is torch.Size:
                return {"size": self._list(value)}
        if numpy is not None:
            if isinstance(value, numpy.ndarray):
                return self._array(value, _numpy_memory(value))
            if isinstance(value, numpy.generic):
                source = self._describe(value)
                return {"scalar": [source.dtype, bytes(source.data).hex()]}
        cupy = sys.modules.get("cupy")
        if cupy is not None and isinstance(value, cupy.ndarray):
            return self._array(value, None)
        kind = type(value)
        hint = ""
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            hint = "; save a namedtuple as tuple(x) or x._asdict()"
        message = (
            f"{self._place()} is a {kind.__module__}.{kind.__qualname__}, which is neither a "
            f"tensor nor one of the built-in types that can be saved{hint}"
        )
        raise TypeError(message)

    def _array(self, array: Array, memory: Hashable, *, parameter: bool = False) -> Node:
        if self._in_key:
            # It would hash by identity, so that nothing loaded could ever be found under it.
            message = f"{self._place()} has a tensor as a key or in a set"
            raise TypeError(message)
        known = self._record_of_object.get(id(array))
        if known is not None:
            return {"tensor": known}
        source = self._describe(array)
        name = None if memory is None else self._name_of_memory.get(memory)
        if name is None:
            name = self._unused_name()
            self.sources[name] = source
            if memory is not None:
                self._name_of_memory[memory] = name
        self._record_of_object[id(array)] = len(self.records)
        return self._new_record(
            Record(
                name,
                source.framework,
                source.dtype,
                tuple(source.shape),
                parameter=parameter,
                requires_grad=bool(getattr(array, "requires_grad", False)),
            )
        )

    def _new_record(self, record: Record) -> Node:
        self.records.append(record)
        return {"tensor": len(self.records) - 1}

    def _describe(self, array: Array) -> Source:
        try:
            return describe(array)
        except TypeError as error:
            message = f"{self._place()}: {error}"
            raise TypeError(message) from error

    def _unused_name(self) -> str:
        """The path to the current value, made unique, as files and tools show it."""
        path = ".".join(map(_text, self._path)) or "value"
        # Text that is no valid Unicode cannot be a name in a file.
        path = path.encode(errors="backslashreplace").decode()
        name, number = path, 2
        while name in self.sources or name in self._reserved:
            name, number = f"{path}#{number}", number + 1
        return name

    def _place(self) -> str:
        return "state" + "".join(
            f"[{part!r}]" if type(part) is str else f"[{_text(part)}]" for part in self._path
        )


def _text(key: State) -> str:
    """A key in words."""
    try:
        return str(key)
    except ValueError:
        # Python writes out no integers of thousands of digits.
        return type(key).__name__


_Write: TypeAlias = Callable[[StateWriter, State], Node]
_CONTAINERS: Final[dict[type, _Write]] = {
    list: lambda writer, value: writer._list(value),
    tuple: lambda writer, value: {"tuple": writer._list(value)},
    dict: lambda writer, value: writer._dict(value),
    OrderedDict: lambda writer, value: {"ordered": writer._items(value)},
    set: lambda writer, value: {"set": writer._set(value)},
    frozenset: lambda writer, value: {"frozenset": writer._set(value)},
}


def _torch_memory(tensor: Array) -> Hashable:
    """Equal for tensors that see the same memory in the same way."""
    if tensor.layout is not sys.modules["torch"].strided or not tensor.numel():
        return None
    return (
        "torch",
        tensor.device,
        tensor.dtype,
        tensor.data_ptr(),
        tensor.shape,
        tensor.stride(),
        tensor.is_conj(),
        tensor.is_neg(),
    )


def _numpy_memory(array: Array) -> Hashable:
    if not array.size:
        return None
    return ("numpy", array.dtype, array.ctypes.data, array.shape, array.strides)


class StateReader:
    """Turns JSON back into state."""

    def __init__(self, array: Callable[[int], Array]) -> None:
        """Reads arrays through `array`, which takes the number of a record."""
        self._array = array

    def value(self, node: Node) -> State:
        """The value a node stands for.

        Raises:
            LookupError, TypeError, ValueError: If the node stands for nothing.
        """
        if isinstance(node, list):
            return self._list(node)
        if not isinstance(node, dict):
            return node
        ((tag, content),) = node.items()
        return _READERS[tag](self, content)

    def _list(self, nodes: list[Node]) -> list[State]:
        return [self.value(node) for node in nodes]

    def _pairs(self, nodes: list[list[Node]]) -> Iterable[tuple[State, State]]:
        return ((self.value(key), self.value(item)) for key, item in nodes)


def _read_scalar(content: Node) -> State:
    from neuzip_rs import _numpy

    name, digits = content
    dtype = _numpy.dtype_of(name) if name in ITEMSIZE else None
    if dtype is None:
        message = f"the state has a scalar of type {name!r}, which takes ml_dtypes"
        raise ImportError(message)
    return _numpy.scalar_of(dtype, bytes.fromhex(digits))


def _torch_object(kind: str, content: Node) -> State:
    from neuzip_rs import _torch

    return _torch.size_of(content) if kind == "size" else _torch.any_dtype(content)


_READERS: Final[dict[str, Callable[[StateReader, Node], State]]] = {
    "dict": lambda reader, content: {key: reader.value(node) for key, node in content.items()},
    "items": lambda reader, content: dict(reader._pairs(content)),
    "ordered": lambda reader, content: OrderedDict(reader._pairs(content)),
    "tuple": lambda reader, content: tuple(reader._list(content)),
    "set": lambda reader, content: set(reader._list(content)),
    "frozenset": lambda reader, content: frozenset(reader._list(content)),
    "int": lambda _, content: int(content, 16),
    "float": lambda _, content: struct.unpack("<d", bytes.fromhex(content))[0],
    "complex": lambda _, content: complex(*struct.unpack("<dd", bytes.fromhex(content))),
    "bytes": lambda _, content: base64.b64decode(content, validate=True),
    "bytearray": lambda reader, content: bytearray(reader.value(content)),
    "scalar": lambda _, content: _read_scalar(content),
    "size": lambda _, content: _torch_object("size", content),
    "dtype": lambda _, content: _torch_object("dtype", content),
    "tensor": lambda reader, content: reader._array(content),
}
