"""What a compressed parameter is stored as: a code, and how its elements lie in memory.

Tensors that share memory share a record: a parameter, its detached selves and its views. A code is
never changed in place; new contents are a new code.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch

from neuzip_rs.nn import codes, scratch
from neuzip_rs.nn.codec import DTYPES, codec_for
from neuzip_rs.nn.rounding import Rounding, effective


class Layout(NamedTuple):
    """Type, shape and strides of a tensor whose elements fill a piece of memory without gaps.

    Strides are kept because kernels choose by them: a convolution whose weights are channels_last
    adds in another order.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Self:
        """The layout of a tensor.

        Raises:
            ValueError: If its elements overlap or have gaps between them.
        """
        layout = cls(tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()))
        if not layout._is_dense():
            message = f"a tensor with strides {layout.stride} for shape {layout.shape} has gaps"
            raise ValueError(message)
        return layout

    @property
    def numel(self) -> int:
        """Elements."""
        return _product(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes when decoded."""
        return self.numel * self.dtype.itemsize

    def is_row_major(self) -> bool:
        """Whether memory has the elements in the order of the indices."""
        order = self.memory_order()
        return order == sorted(order)

    def memory_order(self) -> list[int]:
        """The dimensions, the one with the largest strides first; those of size 1 do not matter."""
        dims = range(len(self.shape))
        large = sorted((d for d in dims if self.shape[d] != 1), key=lambda d: -self.stride[d])
        if large == sorted(large):
            return list(dims)
        return large + [d for d in dims if self.shape[d] == 1]

    def _is_dense(self) -> bool:
        expected = 1
        for d in reversed(self.memory_order()):
            if self.shape[d] != 1:
                if self.stride[d] != expected:
                    return False
                expected *= self.shape[d]
        return True


class Record:
    """A code on some device, and the layout of what is in it.

    Attributes:
        stored: The code, to be decoded; `code` is for everything else.
        layout: How the elements lie in memory.
        rounding: How they are rounded; None if the code is a tensor stream.
    """

    __slots__ = ("layout", "rounding", "stored")

    stored: torch.Tensor
    layout: Layout
    rounding: Rounding | None

    def __init__(
        self, code: torch.Tensor, layout: Layout, rounding: Rounding | None = None
    ) -> None:
        """Takes a code of a tensor of this layout, as it is."""
        self.stored = code
        self.layout = layout
        self.rounding = rounding

    @property
    def code(self) -> torch.Tensor:
        """The code, in full: a device that has just made it is waited for."""
        codes.settle(self.stored)
        return self.stored

    @code.setter
    def code(self, code: torch.Tensor) -> None:
        self.stored = code

    @property
    def device(self) -> torch.device:
        """Where the code is."""
        return self.stored.device

    @classmethod
    def encode(cls, tensor: torch.Tensor, rounding: Rounding | None = None) -> Self:
        """Compresses a tensor, rounded if so asked.

        Raises:
            TypeError: If parameters of its type cannot be compressed.
            ValueError: If its elements have gaps between them.
            NotImplementedError: If there is no codec for its device.
        """
        layout = Layout.of(tensor)
        rounding = effective(rounding, layout.dtype)
        return cls(_encode(tensor, layout, rounding), layout, rounding)

    @classmethod
    def of_code(cls, code: torch.Tensor) -> Self:
        """Takes a code of a row-major tensor, as `state_dict` has it.

        Raises:
            CorruptDataError: If that is no code, or its header is damaged.
        """
        header = codes.header(code)
        layout = Layout(header.dtype, header.shape, contiguous_stride(header.shape))
        return cls(code, layout, header.rounding)

    def decode(self) -> torch.Tensor:
        """The tensor, to be read at once and not written: its memory is used again.

        Raises:
            CorruptDataError: If the code is damaged.
        """
        flat = self.decode_elements(0, self.layout.numel)
        return flat.as_strided(self.layout.shape, self.layout.stride)

    def decode_elements(self, start: int, count: int) -> torch.Tensor:
        """Elements in the order of memory, as `decode` gives them."""
        dtype = self.layout.dtype
        start_bytes, nbytes = start * dtype.itemsize, count * dtype.itemsize
        elements, first = self.decode_bytes(start_bytes, nbytes, dtype)
        return elements.narrow(0, first, count)

    def decode_bytes(
        self, start_bytes: int, nbytes: int, dtype: torch.dtype
    ) -> tuple[torch.Tensor, int]:
        """Decodes bytes, in the order of memory, as elements of a type; see `scratch.decode`."""
        is_stream = self.rounding is None
        return scratch.decode(self.stored, start_bytes, nbytes, dtype, is_stream=is_stream)

    def decode_to_change(self) -> torch.Tensor:
        """The tensor, for the caller to change; `encode_from` stores what has become of it."""
        layout, is_stream = self.layout, self.rounding is None
        flat = scratch.take(self.stored, layout.nbytes, layout.dtype, is_stream=is_stream)
        return flat.as_strided(self.layout.shape, self.layout.stride)

    def encode_from(self, tensor: torch.Tensor) -> None:
        """Replaces the contents; type, shape and device are those of the record."""
        if tensor.dtype != self.layout.dtype or tuple(tensor.shape) != self.layout.shape:
            message = (
                f"the parameter has shape {self.layout.shape} and type {self.layout.dtype}, "
                f"not {tuple(tensor.shape)} and {tensor.dtype}"
            )
            raise ValueError(message)
        if tuple(tensor.stride()) != self.layout.stride or tensor.device != self.device:
            room = torch.empty_strided(
                self.layout.shape,
                self.layout.stride,
                dtype=self.layout.dtype,
                device=self.device,
            )
            tensor = room.copy_(tensor)
        self.stored = _encode(tensor, self.layout, self.rounding)

    def row_major_code(self) -> torch.Tensor:
        """The code as `state_dict` has it: of the elements in the order of the indices."""
        if self.layout.is_row_major():
            return self.code
        return Record.encode(self.decode().contiguous(), self.rounding).code

    def copy(self) -> "Record":
        """A record with the same contents that later changes of this one do not reach.

        It costs no memory until then.
        """
        return Record(self.stored, self.layout, self.rounding)

    def to(self, device: torch.device) -> "Record":
        """The same contents on another device, whose codec must be there."""
        codec_for(device)
        return Record(self.code.to(device), self.layout, self.rounding)

    def __getstate__(self) -> tuple[torch.Tensor, Layout, Rounding | None]:
        """What pickle keeps."""
        return self.code, self.layout, self.rounding

    def __setstate__(self, state: tuple[torch.Tensor, Layout, Rounding | None]) -> None:
        """Restores what `__getstate__` gave."""
        self.stored, self.layout, self.rounding = state


def contiguous_stride(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides that torch gives to new tensors."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _encode(tensor: torch.Tensor, layout: Layout, rounding: Rounding | None) -> torch.Tensor:
    if tensor.dtype not in DTYPES:
        names = ", ".join(DTYPES.values())
        message = f"parameters of type {tensor.dtype} cannot be compressed, only {names}"
        raise TypeError(message)
    # Codes outlive the call, and may be compared by their version counters in any mode.
    with torch.inference_mode(mode=False), torch.no_grad():
        ordered = tensor.detach().permute(layout.memory_order())
        # The same memory; strides of dimensions of size 1 are put straight.
        flat = ordered.as_strided(ordered.shape, contiguous_stride(ordered.shape))
        return codes.encode(flat, rounding)


def _product(sizes: Sequence[int]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product
