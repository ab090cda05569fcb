"""FSDP2 training with parameters that are compressed between uses.

    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    neuzip_rs.fsdp.compress_shards(model)

After `fully_shard` every process holds one shard of each parameter, all the time; here it holds
that shard compressed. FSDP asks for it before a gather (`fsdp_pre_all_gather`), the optimizer reads
and writes it, `state_dict`, DTensor operations and torch.distributed.checkpoint do: each of them
sees the plain tensor for as long as it takes, and what it has written is compressed again. So
training gives the bits that it gives without this module. What travels between processes, gradients
and optimizer states are as they are.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map

import neuzip_rs as nz
from neuzip_rs._arguments import check_level, check_threads

__all__ = ["CompressedShard", "compress_shards", "decompress_shards", "shard_bytes"]

_MIN_BYTES: Final = 16 << 10
"""Smaller shards are left alone: a header takes what is saved."""
_aten: Final = torch.ops.aten
_SAME: Final = frozenset({_aten.detach.default, _aten.alias.default})
_RESHAPED: Final = frozenset({_aten.view.default, _aten._unsafe_view.default})


@dataclass(slots=True)
class _Holder:
    """The compressed elements, which several tensors may be views of."""

    compressed: nz.CompressedTensor
    level: str
    threads: int | None

    def decode(self, device: torch.device) -> torch.Tensor:
        return cast(
            "torch.Tensor",
            nz.decompress(self.compressed, framework="torch", device=device, threads=self.threads),
        )

    def encode(self, plain: torch.Tensor) -> None:
        self.compressed = nz.compress(plain, level=self.level, threads=self.threads)


class CompressedShard(torch.Tensor):
    """A tensor that is kept compressed and decoded for every operation.

    As views it has others of the first rows of the same elements, in any shape; whatever is written
    to one is seen in all.
    """

    _holder: _Holder

    @staticmethod
    def __new__(  # noqa: PYI034 - a static method, as torch wants it
        cls: "type[CompressedShard]", holder: _Holder, shape: Sequence[int], device: torch.device
    ) -> "CompressedShard":
        """Made by `compress_shards`."""
        dtype = getattr(torch, holder.compressed.dtype)
        make = torch.Tensor._make_wrapper_subclass
        shard = make(cls, tuple(shape), dtype=dtype, device=device)
        shard._holder = holder
        return shard

    def __init__(self, holder: _Holder, shape: Sequence[int], device: torch.device) -> None:
        """Nothing is left to do."""

    @classmethod
    def of(
        cls, plain: torch.Tensor, *, level: str = "fast", threads: int | None = None
    ) -> "CompressedShard":
        """Compresses a tensor."""
        compressed = nz.compress(plain.detach(), level=level, threads=threads)
        return cls(_Holder(compressed, level, threads), plain.shape, plain.device)

    @property
    def stored_nbytes(self) -> int:
        """Bytes that the elements take, those in padding included."""
        return self._holder.compressed.nbytes

    def plain(self) -> torch.Tensor:
        """The tensor, decoded."""
        return self._first(self._holder.decode(self.device))

    def untyped_storage(self) -> torch.UntypedStorage:
        """None of its own: who asks where the elements lie learns that they lie nowhere."""
        return torch.UntypedStorage(0)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        """Says what it is, without decoding it."""
        shape = tuple(self.shape)
        return f"CompressedShard({shape}, {self.dtype}, {self.stored_nbytes} bytes)"

    def fsdp_pre_all_gather(
        self,
        mesh: object,  # noqa: ARG002 - the signature is FSDP's
        outer_size: torch.Size,  # noqa: ARG002
        outer_stride: tuple[int, ...],  # noqa: ARG002
        module: nn.Module,  # noqa: ARG002
        mp_policy: Any,  # noqa: ANN401 - a MixedPrecisionPolicy
    ) -> tuple[tuple[torch.Tensor, ...], None]:
        """What FSDP gathers: all elements, padding included, in the type of the computation."""
        whole = self._holder.decode(self.device)
        if mp_policy is not None and mp_policy.param_dtype is not None:
            whole = whole.to(mp_policy.param_dtype)
        return (whole,), None

    def fsdp_post_all_gather(
        self,
        all_gather_outputs: tuple[torch.Tensor, ...],
        metadata: None,  # noqa: ARG002 - the signature is FSDP's
        param_dtype: torch.dtype,  # noqa: ARG002
        *,
        out: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]] | None:
        """What FSDP computes with: the gathered elements as they are."""
        (gathered,) = all_gather_outputs
        if out is not None:
            # It is a view of them already.
            return None
        return gathered, ()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,  # noqa: ANN401 - an operator
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - what the operator gives
        """Runs an operator on decoded tensors; views of first rows stay compressed."""
        kwargs = kwargs or {}
        view = cls._view(func, args)
        if view is not None:
            return view
        if func is _aten.new_zeros.default and isinstance(args[0], cls):
            return cls._new_zeros(func, args, kwargs)
        decoded: dict[int, tuple[_Holder, torch.Tensor]] = {}

        def decode(value: object) -> object:
            if not isinstance(value, cls):
                return value
            key = id(value._holder)
            if key not in decoded:
                decoded[key] = value._holder, value._holder.decode(value.device)
            return value._first(decoded[key][1])

        result = func(*tree_map(decode, args), **tree_map(decode, dict(kwargs)))
        written = list(_written(func, args, kwargs))
        for value in written:
            if isinstance(value, cls):
                holder, plain = decoded[id(value._holder)]
                holder.encode(plain)
        # An operator that writes returns what it was given.
        returns = func._schema.returns
        if written and len(returns) == 1 and returns[0].alias_info is not None:
            return written[0]
        return result

    @classmethod
    def _view(cls, func: Any, args: tuple[Any, ...]) -> "CompressedShard | None":  # noqa: ANN401
        shard = args[0] if args else None
        if not isinstance(shard, cls):
            return None
        if func in _SAME:
            return cls(shard._holder, shard.shape, shard.device)
        if func in _RESHAPED:
            # The shape, with -1 in it, as torch works it out.
            shape = torch.empty(shard.shape, device="meta").view(args[1]).shape
            return cls(shard._holder, shape, shard.device)
        if func is _aten.slice.Tensor:
            given = [*args, *(None, 0, None, None, 1)[len(args) :]]
            _, dim, start, end, step = given
            if (dim or 0) == 0 and not start and step == 1 and shard.dim():
                rows = len(range(shard.shape[0])[:end])
                return cls(shard._holder, (rows, *shard.shape[1:]), shard.device)
        return None

    @classmethod
    def _new_zeros(
        cls,
        func: Any,  # noqa: ANN401 - an operator
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> "CompressedShard":
        shard = args[0]
        like = torch.empty(0, dtype=shard.dtype, device=shard.device)
        return cls.of(
            func(like, *args[1:], **kwargs),
            level=shard._holder.level,
            threads=shard._holder.threads,
        )

    def _first(self, whole: torch.Tensor) -> torch.Tensor:
        return whole.view(-1)[: self.numel()].view(self.shape)


def compress_shards(
    model: nn.Module,
    *,
    level: str = "fast",
    min_bytes: int = _MIN_BYTES,
    threads: int | None = None,
) -> int:
    """Compresses the shards that this process holds of a model's parameters.

    Call it after `fully_shard` and before the optimizer is made, whose parameters are those that
    the model has afterwards.

    Args:
        model: A model on which `fully_shard` has been called.
        level: "fast", "default" or "max"; shards are compressed again in every step.
        min_bytes: Parameters whose largest shard is smaller stay as they are.
        threads: How many threads may work, by default `NEUZIP_NUM_THREADS` or every core.

    Returns:
        How many parameters are compressed now.

    Raises:
        ValueError: If no parameter is sharded.
    """
    check_level(level)
    check_threads(threads)
    sharded = 0
    done = 0
    replaced: dict[int, nn.Parameter] = {}
    for module, name, parameter in _parameters(model):
        local = parameter._local_tensor
        sharded += 1
        if isinstance(local, CompressedShard):
            continue
        # The same answer in every process, however many rows each one has.
        processes = parameter.device_mesh.size()
        largest = -(-parameter.numel() // processes) * parameter.element_size()
        if largest < min_bytes or not local.dtype.is_floating_point:
            continue
        new = replaced.get(id(parameter))
        if new is None:
            shard = CompressedShard.of(local, level=level, threads=threads)
            new = replaced[id(parameter)] = _with_local(parameter, shard)
            done += 1
        setattr(module, name, new)
    if not sharded:
        message = "the model has no sharded parameters: call fully_shard on it first"
        raise ValueError(message)
    return done


def decompress_shards(model: nn.Module) -> int:
    """Makes the shards of a model plain tensors again.

    Args:
        model: A model on which `compress_shards` has been called.

    Returns:
        How many parameters were compressed.
    """
    replaced: dict[int, nn.Parameter] = {}
    for module, name, parameter in _parameters(model):
        local = parameter._local_tensor
        if isinstance(local, CompressedShard):
            if id(parameter) not in replaced:
                replaced[id(parameter)] = _with_local(parameter, local.plain())
            setattr(module, name, replaced[id(parameter)])
    return len(replaced)


def shard_bytes(model: nn.Module) -> tuple[int, int]:
    """What the shards of a model take in this process.

    Returns:
        The bytes that are stored, and those that the plain shards would take.
    """
    stored = plain = 0
    seen: set[int] = set()
    for _, _, parameter in _parameters(model):
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        local = parameter._local_tensor
        nbytes = local.numel() * local.element_size()
        stored += local.stored_nbytes if isinstance(local, CompressedShard) else nbytes
        plain += nbytes
    return stored, plain


def _parameters(model: nn.Module) -> "Iterator[tuple[nn.Module, str, Any]]":
    for module in model.modules():
        parameters: list[tuple[str, Any]] = list(module._parameters.items())
        for name, parameter in parameters:
            if isinstance(parameter, DTensor):
                yield module, name, parameter


def _with_local(parameter: Any, local: torch.Tensor) -> nn.Parameter:  # noqa: ANN401 - a DTensor
    with torch.no_grad():
        made = DTensor.from_local(
            local,
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )
    return nn.Parameter(made, requires_grad=parameter.requires_grad)


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Any]:  # noqa: ANN401
    """The arguments that an operator writes to, tensors of lists one by one."""
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value: Any = args[index] if index < len(args) else kwargs.get(argument.name)
        if isinstance(value, (list, tuple)):
            yield from value
        elif value is not None:
            yield value
