"""Decoding while transformers loads: what its converters get instead of compressed bytes.

Transformers collects, for every parameter, the tensors of the checkpoint that it is made from, as
futures; a converter then merges or splits them. A compressed file is a valid .safetensors file, so
without help each future would give the compressed bytes. The converters here are transformers' own
with one change: the future they collect is a decoding one. So weights are decoded by name, with
whatever they refer to (a repeated tensor, another file, a base), in the background and in the order
in which they are needed, and everything that transformers does with tensors stays its own.
"""

import math
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter

from neuzip_rs import _native
from neuzip_rs._arrays import Array
from neuzip_rs.hf.types import Converter, Dtype, Model, Pending, Tensor
from neuzip_rs.safetensors import safe_open

if TYPE_CHECKING:
    from neuzip_rs.hf.kept import Keeper

_FLOATS: Final[dict[str, Any]] = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_KEPT: Final = _FLOATS | {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}
_SUFFIX: Final = ".safetensors"
_BYTES_AT_ONCE: Final = 128 << 20
"""What is decoded in one call: enough for many cores, while what came before is taken."""
_ANY: Final = "neuzip"
"""Stands for the pattern of the converter that takes every tensor no other one wants."""


class Checkpoint:
    """The compressed tensors in the files of a checkpoint."""

    def __init__(self, files: Iterable[str], *, threads: int | None, verify: bool) -> None:
        """Opens the files that are compressed, and checks their headers.

        Args:
            files: Paths of checkpoint files, compressed or not.
            threads: How many threads may decode, by default all.
            verify: Check the hash of everything decoded.

        Raises:
            CorruptDataError: A header is damaged.
        """
        self._files: dict[str, safe_open] = {}
        self._error: BaseException | None = None
        self._waiting: deque[_Asked] = deque()
        for path in files:
            kind = _native.content_kind(path)
            # A header that is damaged makes a file one of another kind: opening it says how.
            if kind == "neuzip-safetensors" or (kind == "other" and path.endswith(_SUFFIX)):
                file = safe_open(path, "pt", threads=threads, verify=verify)
                self._files.update(dict.fromkeys(file.keys(), file))
        # One thread, which decodes many tensors at a time over all cores.
        self._decoder = ThreadPoolExecutor(1, "neuzip") if self._files else None

    def __contains__(self, name: str) -> bool:
        """Whether a tensor of this name is compressed."""
        return name in self._files

    def __bool__(self) -> bool:
        """Whether anything is compressed."""
        return bool(self._files)

    def __deepcopy__(self, memo: object) -> Self:
        """The same: transformers copies converters, one for each parameter."""
        return self

    def decode(self, name: str, dtype: Dtype = None) -> Array:
        """Decodes a tensor, and casts it if it is to have another type.

        Raises:
            NeuzipError: It cannot be decoded, or another one could not: the model is lost then,
                and what is waiting in the background need not be decoded.
        """
        self.raise_earlier()
        try:
            tensor = self._files[name].get_tensor(name)
        except Exception as error:
            self.fail(error)
            raise
        return _cast(tensor, dtype)

    def begin(self, name: str, dtype: Dtype = None) -> "Future[Array]":
        """Decodes a tensor in the background."""
        if self._decoder is None:
            message = "nothing in this checkpoint is compressed"
            raise ValueError(message)
        asked = _Asked(name, dtype, _Decoded(self))
        self._waiting.append(asked)
        # By a weak reference: a load that was given up is not carried on in the background.
        self._decoder.submit(_decode_waiting_of, weakref.ref(self))
        return asked.future

    def decode_waiting(self) -> None:
        """Decodes what has been asked for by now, or some of it, for there will be more calls.

        If anything fails, it fails for all of that: somebody waits for each tensor, and would do so
        for ever.
        """
        batch: list[_Asked] = []
        try:
            self.raise_earlier()
            batch_bytes = 0
            while self._waiting and batch_bytes < _BYTES_AT_ONCE:
                batch.append(self._waiting.popleft())
                name = batch[-1].name
                batch_bytes += self._files[name].nbytes(name)
            by_file: dict[int, list[_Asked]] = {}
            for asked in batch:
                by_file.setdefault(id(self._files[asked.name]), []).append(asked)
            for together in by_file.values():
                self._decode_together(together)
        except BaseException as error:  # raised again where the tensors are taken
            self.fail(error)
            while self._waiting:
                batch.append(self._waiting.popleft())
            for asked in batch:
                if not asked.future.done():
                    asked.future.set_exception(error)

    def _decode_together(self, batch: "list[_Asked]") -> None:
        """Decodes tensors of one file."""
        file = self._files[batch[0].name]
        tensors = file.get_tensors(asked.name for asked in batch)
        for asked in batch:
            # One that is asked for twice becomes two tensors.
            tensor = tensors.pop(asked.name, None)
            if tensor is None:
                tensor = file.get_tensor(asked.name)
            asked.future.set_result(_cast(tensor, asked.dtype))

    def raise_earlier(self) -> None:
        """Raises what went wrong with any tensor before."""
        if self._error is not None:
            raise self._error

    def fail(self, error: BaseException) -> None:
        """Gives up the whole model: nothing that is waiting is decoded after this."""
        if self._error is None:
            self._error = error

    def layout(self, name: str) -> tuple[Dtype, tuple[int, ...]]:
        """The type of a tensor, None if it is no float, and its shape."""
        part = self._files[name].get_slice(name)
        return _KEPT.get(part.get_dtype()), tuple(part.get_shape())

    def dtype(self) -> Dtype:
        """The type that transformers gives a model whose configuration names none.

        That of the first tensor, by name, of floats that a network can be made of.
        """
        for name, file in self._files.items():
            dtype = _FLOATS.get(file.get_slice(name).get_dtype())
            if dtype is not None:
                return dtype
        return None

    def close(self) -> None:
        """Gives up what has not been decoded, and closes the files."""
        if self._decoder is not None:
            self._decoder.shutdown(wait=True, cancel_futures=True)
            self._decoder = None
        while self._waiting:
            self._waiting.pop().future.cancel()
        for file in {id(file): file for file in self._files.values()}.values():
            file.__exit__(None, None, None)
        self._files = {}


class _Decoded(Future["Array"]):
    """A tensor that is decoded in the background."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self._checkpoint = weakref.ref(checkpoint)

    def result(self, timeout: float | None = None) -> Array:
        """The tensor; who is interrupted while waiting for it wants none of the others."""
        try:
            return super().result(timeout)
        except BaseException as error:
            checkpoint = self._checkpoint()
            if checkpoint is not None:
                checkpoint.fail(error)
            raise


def _decode_waiting_of(reference: weakref.ref[Checkpoint]) -> None:
    checkpoint = reference()
    if checkpoint is not None:
        checkpoint.decode_waiting()


class _Asked(NamedTuple):
    """A tensor that is to be decoded."""

    name: str
    dtype: Dtype
    future: "Future[Array]"


def _cast(tensor: Tensor, dtype: Dtype) -> Tensor:
    return tensor if dtype is None else tensor.to(dtype)


class _Collecting:
    """What both converters do differently: they collect decoded tensors."""

    checkpoint: Checkpoint
    keeper: "Keeper | None" = None
    wanted_dtype: Dtype = None

    def add_tensor(
        self, target_key: str, source_key: str, source_pattern: str, future: Pending
    ) -> None:
        """Collects a tensor of the checkpoint, decoded if it is compressed."""
        if self.keeper is not None:
            future = self.to_be_kept(source_key, future)
        elif source_key in self.checkpoint:
            if isinstance(future, Future):
                future = self.checkpoint.begin(source_key, self.wanted_dtype)
            else:
                # Without threads transformers calls for tensors one at a time.
                future = _Later(self.checkpoint.decode, source_key, self.wanted_dtype)
        super().add_tensor(target_key, source_key, source_pattern, future)  # type: ignore[misc]

    def to_be_kept(self, source_key: str, future: Pending) -> Pending:
        """What gives a tensor of which the parameter stays compressed.

        Not in the background: that would fill the memory with decoded tensors.
        """
        if source_key in self.checkpoint:
            return _Later(self.checkpoint.decode, source_key, self.wanted_dtype)
        return _Later(future.result) if isinstance(future, Future) else future

    def convert(self, layer_name: str, **more: Any) -> dict[str, Any]:
        """What the converter makes of the tensors, compressed again if weights stay so."""
        made: dict[str, Any] = super().convert(layer_name, **more)  # type: ignore[misc]
        if self.keeper is None:
            return made
        return {name: self.keeper.keep(_only(tensor)) for name, tensor in made.items()}


def _only(tensor: Tensor) -> Tensor:
    """Converters give tensors, or lists with one in it."""
    return tensor[0] if isinstance(tensor, list) else tensor


class _Later:
    """A call that is made when the tensor is needed."""

    def __init__(self, call: Callable[..., Array], *arguments: Any) -> None:
        self._call = call
        self._arguments = arguments

    def __call__(self) -> Array:
        return self._call(*self._arguments)


class _Keep(ConversionOps):
    """Nothing to do: a converter must have an operation."""

    def convert(self, input_dict: dict[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
        return input_dict

    @property
    def reverse_op(self) -> ConversionOps:
        return self


class AnyConverter(_Collecting, WeightConverter):
    """Takes every tensor that the model's own converters leave."""

    def __init__(self, checkpoint: Checkpoint, keeper: "Keeper | None") -> None:
        """Makes the converter, which is the last one in the list."""
        # The CPU decodes: bytes that went to another device would have to come back.
        super().__init__([_ANY], [""], [_Keep()], force_cpu=True)
        self.checkpoint = checkpoint
        self.keeper = keeper
        self._code_of: str | None = None

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        """Any name, and it stays."""
        self._was_used = True
        return source_key, _ANY

    def to_be_kept(self, source_key: str, future: Pending) -> Pending:
        """The bytes in the file, if they can become the parameter."""
        if self.keeper is not None and source_key in self.checkpoint:
            dtype, shape = self.checkpoint.layout(source_key)
            same = self.wanted_dtype in (None, dtype)
            if same and self.keeper.takes_code(dtype, math.prod(shape)):
                self._code_of = source_key
                return future
        return super().to_be_kept(source_key, future)

    def convert(self, layer_name: str, model: Model = None, **_: Any) -> dict[str, Any]:
        """The decoded tensor under its own name, or a parameter that stays compressed."""
        tensor = self.materialize_tensors()[_ANY][0]
        if self.keeper is None:
            return {layer_name: tensor}
        in_parameter = isinstance(model.get_parameter_or_buffer(layer_name), torch.nn.Parameter)
        if self._code_of is not None:
            _, shape = self.checkpoint.layout(self._code_of)
            parameter = self.keeper.from_code(tensor, shape) if in_parameter else None
            if parameter is not None:
                return {layer_name: parameter}
            tensor = self.checkpoint.decode(self._code_of)
        return {layer_name: self.keeper.keep(tensor) if in_parameter else tensor}


def collecting(converter: Converter, checkpoint: Checkpoint, keeper: "Keeper | None") -> Converter:
    """One of the model's own converters, collecting decoded tensors; all else is as it was."""
    kind = type(converter)
    made: Converter = object.__new__(type(kind.__name__, (_Collecting, kind), {}))
    for owner in kind.__mro__:
        for name in getattr(owner, "__slots__", ()):
            object.__setattr__(made, name, getattr(converter, name))
    own = getattr(converter, "__dict__", {})
    made.__dict__.update(own, checkpoint=checkpoint, keeper=keeper)
    return made


class DecodeAlone(ConversionOps):
    """Decodes a tensor that reached its parameter without any converter."""

    def __init__(self, checkpoint: Checkpoint, name: str, dtype: Dtype) -> None:
        """Begins decoding.

        Args:
            checkpoint: Where the tensor is.
            name: Its name.
            dtype: The type it is to have, if not its own.
        """
        self._checkpoint = checkpoint
        self._shape = checkpoint.layout(name)[1]
        self._decoded = checkpoint.begin(name, dtype)

    def convert(self, input_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        """The decoded tensor in place of its bytes.

        Transformers would turn an error into a line of a report: it is raised when the model is
        complete, which until then has something else here.
        """
        try:
            tensor = self._decoded.result()
        except Exception as error:
            self._checkpoint.fail(error)
            tensor = torch.empty(self._shape)
        return dict.fromkeys(input_dict, tensor)
