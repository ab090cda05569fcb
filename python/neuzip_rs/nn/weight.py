"""`CompressedWeight`: a tensor without memory of its own that decodes itself for each operator.

It is a wrapper subclass: torch knows its shape, strides, type and autograd state, and asks
`__torch_dispatch__` for everything else. Views and casts stay wrappers over the same record, with
their own geometry; autograd saves them as it saves any tensor, so that a weight is decoded again in
backward and nothing decoded lives from forward to backward. Every other operator gets the decoded
elements and returns plain tensors.

Invariants:
1. An operator that writes into an argument never sees decoded elements: it raises, because what it
   wrote would be lost. The one exception is `copy_` into a whole weight, which encodes.
2. A view shows the record as it is now, like any view; a cast shows the contents it was made from.
3. A decoded tensor that an operator may have handed on is never decoded into again.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar, Final, Self, SupportsIndex, TypeAlias, cast

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from neuzip_rs.nn import autocast, operators, scratch
from neuzip_rs.nn.geometry import Geometry, Plan, plan
from neuzip_rs.nn.record import Layout, Record
from neuzip_rs.nn.rounding import Rounding

Operator: TypeAlias = Any
"""An overload of an operator, such as `torch.ops.aten.mm.default`."""
Result: TypeAlias = Any
"""What an operator returns: mostly tensors."""

_Context: TypeAlias = tuple[Layout, Rounding | None, Geometry]
"""What a compiler keeps of a weight beside its code."""

HOW_TO_WRITE: Final = (
    "a compressed weight cannot be written in place. Train it with nz.optim.InBackward, replace "
    "all of it with `with torch.no_grad(): weight.copy_(tensor)`, or nz.nn.decompress_ the module"
)
WHY_NOT_FLATTENED: Final = (
    "FSDP1 makes views of one flat parameter, which cannot be compressed one by one. "
    "Use fully_shard (FSDP2) with neuzip_rs.fsdp, or InBackward with process_group="
)


_Handler: TypeAlias = Callable[
    [Operator, "CompressedWeight", Sequence[Any], Mapping[str, Any]], Result
]
_handlers: Final[dict[Any, _Handler]] = {}


def handles(*operators: Operator) -> Callable[[_Handler], _Handler]:
    """Registers how operators work on a compressed first argument; "view" is for all views."""

    def register(handler: _Handler) -> _Handler:
        _handlers.update(dict.fromkeys(operators, handler))
        return handler

    return register


class CompressedWeight(torch.Tensor):
    """A parameter that is stored compressed, or a view or cast of one.

    `nz.nn.compress_` makes them; they behave as the plain parameter of the same type and shape,
    with two differences: they have no memory of their own, and they cannot be written in place.

    Attributes:
        record: What it is stored as; shared with its views.
        geometry: What of the record it shows.
    """

    record: Record
    geometry: Geometry

    # Without this, every torch function takes the slow path, and fused kernels are given up.
    __torch_function__: ClassVar[Any] = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(
        cls: type[Self],
        record: Record,
        geometry: Geometry | None = None,
        *,
        requires_grad: bool = False,
    ) -> Self:
        """Makes a tensor that shows `geometry` of `record`, by default all of it."""
        geometry = geometry or Geometry.whole(record.layout)
        weight: Self = torch.Tensor._make_wrapper_subclass(
            cls,
            geometry.size,
            strides=geometry.stride,
            storage_offset=geometry.offset,
            dtype=geometry.dtype,
            device=record.device,
            requires_grad=requires_grad,
            storage_size=0,
        )
        weight.record = record
        weight.geometry = geometry
        return weight

    @classmethod
    def parameter(cls, record: Record, *, requires_grad: bool) -> "CompressedWeight":
        """Makes a parameter that is all of a record: one autograd leaf."""
        weight = cls(record, requires_grad=requires_grad)
        weight._is_param = True
        return weight

    # --- what is in it ------------------------------------------------------------------------

    @property
    def is_whole(self) -> bool:
        """Whether it shows all of its record, as it is stored."""
        return self.geometry == Geometry.whole(self.record.layout)

    def decode(self) -> torch.Tensor:
        """Decodes it into a plain tensor, to be read at once: the memory is used again.

        Raises:
            CorruptDataError: If the code is damaged.
        """
        record, geometry = self.record, self.geometry
        wanted = plan(geometry, record.layout)
        if type(record.stored) is not torch.Tensor or torch.compiler.is_compiling():
            elements, first = self._traced(wanted).view(geometry.bits), 0
        else:
            start_bytes, nbytes = wanted.start_bytes, wanted.nbytes
            elements, first = record.decode_bytes(start_bytes, nbytes, geometry.bits)
        if geometry.cast is not None:
            # Before the view: a cast of overlapping elements would be laid out differently.
            count = wanted.nbytes // geometry.bits.itemsize
            elements, first = elements.narrow(0, first, count).to(geometry.cast), 0
        return elements.as_strided(geometry.size, geometry.stride, first + wanted.offset)

    def decoded(self) -> torch.Tensor:
        """Decodes it into a plain tensor in memory of its own."""
        with torch.no_grad():
            return self.decode().clone()

    def decode_to_change(self) -> torch.Tensor:
        """Decodes all of it for the caller to change in place, and then `encode_from`.

        Only for a weight that is whole. The memory belongs to the caller until then.
        """
        return self.record.decode_to_change()

    def encode_from(self, tensor: torch.Tensor) -> None:
        """Replaces the contents by a tensor of the same type and shape, everywhere they are shown.

        Autograd is told, as of any change in place: a graph that still needs the contents before
        raises in backward.

        Raises:
            ValueError: If type or shape differ.
        """
        self.record.encode_from(tensor)
        torch.autograd.graph.increment_version(self)

    def assign(self, record: Record) -> None:
        """Makes a parameter show another record, of any type, shape and device.

        Its hooks, its gradient and its place in a graph stay.
        """
        torch.Tensor.data.__set__(self, CompressedWeight(record))  # type: ignore[attr-defined]
        self.record = record
        self.geometry = Geometry.whole(record.layout)

    def _traced(self, wanted: Plan) -> torch.Tensor:
        record = self.record
        dtype = record.layout.dtype
        decoded = operators.decode(record.code, wanted.first, wanted.elements, dtype)
        return cast("torch.Tensor", decoded)

    # --- what torch asks for ------------------------------------------------------------------

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's is annotated as a function
        cls,
        func: Operator,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Result:
        """Runs an operator on decoded weights, or on their records where that is enough."""
        product = _products.get(func)
        if product is not None and not kwargs:
            result = product(*[_decode_one(arg) for arg in args])
            scratch.settle()
            return result
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, CompressedWeight):
            handler = _handlers.get(func)
            if handler is None and func.is_view:
                handler = _handlers["view"]
            if handler is not None:
                result = handler(func, first, args[1:], kwargs)
                if result is not NotImplemented:
                    return result
        _refuse_writes(func, args, kwargs)
        plain_args = [_decode_in(arg) for arg in args]
        plain_kwargs = {name: _decode_in(arg) for name, arg in kwargs.items()} if kwargs else kwargs
        result = autocast.call(func, plain_args, plain_kwargs)
        del plain_args, plain_kwargs
        scratch.settle()
        return result

    def __tensor_flatten__(self) -> tuple[list[str], _Context]:
        """The tensors inside, by the names of attributes, and the rest: for compilers."""
        return ["_code"], (self.record.layout, self.record.rounding, self.geometry)

    @staticmethod
    def __tensor_unflatten__(
        inner: Mapping[str, torch.Tensor],
        context: _Context,
        outer_size: object,
        outer_stride: object,
    ) -> "CompressedWeight":
        """The reverse of `__tensor_flatten__`."""
        layout, rounding, geometry = context
        return CompressedWeight(Record(inner["_code"], layout, rounding), geometry)

    def _stable_hash_for_caching(self) -> str:
        """What a compiled graph depends on: compilers keep graphs by it."""
        code = self.record.code
        _, context = self.__tensor_flatten__()
        return repr((context, tuple(code.shape), str(code.device)))

    @property
    def _code(self) -> torch.Tensor:
        return self.record.code

    # --- what reads memory without an operator -------------------------------------------------

    @property
    def data(self) -> torch.Tensor:
        """The same contents outside of autograd."""
        return cast("torch.Tensor", torch.Tensor.data.__get__(self))  # type: ignore[attr-defined]

    @data.setter
    def data(self, _: object) -> None:
        # FSDP1 is the one that puts views in place of parameters without being asked to.
        message = (
            f"{HOW_TO_WRITE}. If it is FullyShardedDataParallel that does: {WHY_NOT_FLATTENED}"
        )
        raise RuntimeError(message)

    def numpy(self, *, force: bool = False) -> Result:
        """The decoded elements as an array of its own."""
        if self.requires_grad and not force:
            message = "can't call numpy() on a weight that requires grad; use detach().numpy()"
            raise RuntimeError(message)
        return self.decoded().numpy(force=force)

    def tolist(self) -> Result:
        """The decoded elements as nested lists."""
        return self.decoded().tolist()

    def __dlpack__(self, **options: Any) -> Result:
        """Exports the decoded elements, in memory of their own."""
        return self.decoded().__dlpack__(**options)

    def share_memory_(self) -> Self:
        """Moves the code into memory that processes share."""
        self.record.code.share_memory_()
        return self

    def is_shared(self) -> bool:
        """Whether the code is in memory that processes share."""
        return bool(self.record.code.is_shared())

    def __repr__(self, *, tensor_contents: Result = None) -> str:  # type: ignore[override]
        """Says what it is without decoding it."""
        kind = "parameter" if isinstance(self, nn.Parameter) else "tensor"
        return (
            f"CompressedWeight({kind}, shape={tuple(self.shape)}, dtype={self.dtype}, "
            f"device={str(self.device)!r}, {self.record.code.numel()} bytes for "
            f"{self.record.layout.nbytes})"
        )

    # --- copies -------------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> "CompressedWeight":
        """Copies the code, not the decoded elements."""
        done = memo.get(id(self))
        if done is None:
            if not self.is_leaf:
                message = "only leaves of the graph can be deep-copied: call detach() before"
                raise RuntimeError(message)
            record = memo.get(id(self.record))
            if record is None:
                record = self.record.copy()
                record.code = record.code.clone()
                memo[id(self.record)] = record
            done = _rebuild(
                CompressedWeight, record, self.geometry, self.requires_grad, self._attributes(memo)
            )
            memo[id(self)] = done
        return cast("CompressedWeight", done)

    def __reduce_ex__(self, _: SupportsIndex) -> tuple[object, ...]:
        """Pickles the code."""
        return _rebuild, (
            type(self),
            self.record,
            self.geometry,
            self.requires_grad,
            self._attributes(None),
        )

    def _attributes(self, memo: dict[int, Any] | None) -> dict[str, Any]:
        others = {k: v for k, v in self.__dict__.items() if k not in {"record", "geometry"}}
        return others if memo is None else deepcopy(others, memo)


def _rebuild(
    kind: type[CompressedWeight],
    record: Record,
    geometry: Geometry,
    requires_grad: bool,  # positional in pickles
    attributes: dict[str, Any],
) -> CompressedWeight:
    weight = kind(record, geometry, requires_grad=requires_grad)
    weight.__dict__.update(attributes)
    return weight


_products: Final[dict[Operator, Callable[..., torch.Tensor]]] = {
    torch.ops.aten.linear.default: torch._C._nn.linear,
    torch.ops.aten.mm.default: torch.mm,
    torch.ops.aten.addmm.default: torch.addmm,
}
"""What linear layers call, and the quickest way to the same operators.

They take nothing but tensors, write into none, and autocast has dealt with them before."""


def _decode_one(argument: torch.Tensor | None) -> torch.Tensor | None:
    return argument.decode() if isinstance(argument, CompressedWeight) else argument


def _decode_in(argument: Any) -> Any:  # noqa: ANN401  # whatever operators take
    """The argument with decoded weights in it."""
    if isinstance(argument, CompressedWeight):
        return argument.decode()
    if isinstance(argument, (list, tuple)):
        return tree_map_only(CompressedWeight, CompressedWeight.decode, argument)
    return argument


_written: Final[dict[Operator, tuple[tuple[int, str], ...]]] = {}
"""The places and names of the arguments that an operator writes into."""


def _refuse_writes(func: Operator, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    written = _written.get(func)
    if written is None:
        written = _written[func] = tuple(
            (place, argument.name)
            for place, argument in enumerate(func._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        )
    for place, name in written:
        value = args[place] if place < len(args) else kwargs.get(name)
        values = value if isinstance(value, (list, tuple)) else (value,)
        if any(isinstance(one, CompressedWeight) for one in values):
            message = f"{func}: {HOW_TO_WRITE}"
            raise RuntimeError(message)
