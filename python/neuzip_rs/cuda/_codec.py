"""Codes of parameters in the memory of a GPU: what `neuzip_rs.nn` sees of the kernels.

A code is a stream as on the CPU. Beside it, as long as it lives, stays a plan on the device:
decoding is launching kernels. Encoding makes code and plan on the device, and nothing waits: how
long a code is, is known there only. It is first made in room for the worst case, can be decoded at
once, and is `settled` when its sizes have come to the host by themselves: moved to memory of its
length, behind the header that the host makes of them. Elements never leave the device.

Invariants:
1. A plan holds for the payloads of its code, wherever they are: addresses in it count from there.
2. Codes that are not settled have at most `UNSETTLED_BYTES` more than they need, together.
"""

import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import torch
from torch.utils.weak import WeakTensorKeyDictionary

from neuzip_rs import _native
from neuzip_rs.cuda import _encode, _launch, _runtime, _torch
from neuzip_rs.cuda._device import ALIGNMENT, Bytes, Device, Event, aligned, cupy_device
from neuzip_rs.cuda._encode_layout import (
    Input,
    Structs,
    describe,
    plan_bytes,
    scale_room,
    views,
)
from neuzip_rs.directory.content import read_varint
from neuzip_rs.nn.codec import DTYPES, Codec, Header, named_dtype

UNSETTLED_BYTES: Final = 512 << 20
_LEVEL: Final = "default"
# Enough for the lengths of most headers, and for the whole of the header of a small tensor.
_FIRST_BYTES: Final = 4096
_MAGIC_BYTES: Final = 4

Open: TypeAlias = Callable[[torch.device], AbstractContextManager[Device]]


class _Sizes(NamedTuple):
    """What is on its way from the device.

    Attributes:
        tensors: What the kernels say of the tensor.
        chunks: What they say of its chunks.
        views: What the host has told them of its views.
        lists: The part of the plan with the scale offsets.
        arrived: The place in the stream behind these.
    """

    tensors: Structs
    chunks: Structs
    views: Structs
    lists: Bytes
    arrived: Event


@dataclass
class _State:
    """What is known of a code.

    Attributes:
        header: Type and shape of what is in it.
        nbytes: Bytes when decoded.
        plan: On the device: chunks in their order, and what they refer to.
        chunks: How many there are.
        chunk_bytes: Decoded bytes of each but the last.
        payloads: Where in the code the addresses in the plan count from.
        sizes: What it takes to settle it; None if it is.
        has_cuts: Whether there are chunks for the fast kernel, as far as is known.
        has_others: Whether there are others.
    """

    header: Header
    nbytes: int
    plan: torch.Tensor
    chunks: int
    chunk_bytes: int
    payloads: int = 0
    sizes: _Sizes | None = None
    has_cuts: bool = True
    has_others: bool = True


class DeviceCodec(Codec):
    """Compression by the kernels."""

    works_by_itself = True

    def __init__(self, open_device: Open) -> None:
        """Takes what makes a torch device the current one."""
        self._open = open_device
        self._states = WeakTensorKeyDictionary()
        self._unsettled: deque[tuple[weakref.ref[torch.Tensor], int, Event]] = deque()
        # Backward has threads of its own.
        self._lock = threading.RLock()

    # --- what neuzip_rs.nn asks for --------------------------------------------------------------

    def encode(self, tensor: torch.Tensor) -> torch.Tensor:
        """As `Codec` says; the length of the code is not known before it is settled."""
        with self._lock, self._open(tensor.device) as device:
            self._settle_arrived(device)
            return self._encode(device, tensor)

    def decode(self, code: torch.Tensor, out: torch.Tensor, start_bytes: int) -> None:
        """As `Codec` says, but that damage of payloads is told by `neuzip_rs.cuda.check`."""
        with self._lock, self._open(code.device) as device:
            state = self._state(code)
            if start_bytes < 0 or start_bytes + out.numel() > state.nbytes:
                message = f"the range {start_bytes}..+{out.numel()} is outside the tensor"
                raise ValueError(message)
            if out.numel():
                self._decode(device, state, code, out, start_bytes)

    def header(self, code: torch.Tensor) -> Header:
        """As `Codec` says."""
        with self._lock:
            return self._state(code).header

    def settle(self, code: torch.Tensor) -> None:
        """As `Codec` says: waits for the device unless the sizes are there."""
        with self._lock:
            state = self._states.get(code)
            if state is not None and state.sizes is not None:
                with self._open(code.device) as device:
                    _settle(device, code, state)

    # --- encoding --------------------------------------------------------------------------------

    def _encode(self, device: Device, tensor: torch.Tensor) -> torch.Tensor:
        name, nbytes = DTYPES[tensor.dtype], tensor.numel() * tensor.itemsize
        header = Header(tensor.dtype, tuple(tensor.shape))
        chunk_log2 = _native.chunk_log2(name, nbytes, level=_LEVEL)
        one = Input(tensor.data_ptr(), nbytes, name, chunk_log2, views(name, tensor.shape))
        described = describe([one])
        chunks = len(described.chunks)
        code = _room(described.out_bytes, tensor.device)
        offsets_at, offsets = plan_bytes(chunks), scale_room(one)
        plan = _room(offsets_at + offsets.nbytes, tensor.device)
        described.tensors["plan"] = plan.data_ptr()
        on_device = _encode.launch(device, described, code.data_ptr(), level=_LEVEL)
        structs = _encode.download_structs(device, described, on_device)
        lists = device.staging(offsets.lists)
        device.stream.download(lists, plan.data_ptr() + offsets_at)
        sizes = _Sizes(*structs, described.views, lists, device.stream.record())
        self._states[code] = _State(header, nbytes, plan, chunks, 1 << chunk_log2, sizes=sizes)
        self._unsettled.append((weakref.ref(code), code.numel(), sizes.arrived))
        return code

    def _settle_arrived(self, device: Device) -> None:
        """Settles codes whose sizes have come, and more if there are many that wait."""
        waiting = sum(nbytes for _, nbytes, _ in self._unsettled)
        while self._unsettled:
            reference, nbytes, arrived = self._unsettled[0]
            code = reference()
            if code is not None and not arrived.done and waiting <= UNSETTLED_BYTES:
                return
            self._unsettled.popleft()
            waiting -= nbytes
            state = None if code is None else self._states.get(code)
            if code is not None and state is not None and state.sizes is not None:
                _settle(device, code, state)

    # --- decoding --------------------------------------------------------------------------------

    def _state(self, code: torch.Tensor) -> _State:
        state: _State | None = self._states.get(code)
        if state is None:
            state = self._states[code] = _read(code)
        return state

    def _decode(
        self, device: Device, state: _State, code: torch.Tensor, out: torch.Tensor, start: int
    ) -> None:
        first, stop = start // state.chunk_bytes, -(-(start + out.numel()) // state.chunk_bytes)
        begin, end = first * state.chunk_bytes, min(stop * state.chunk_bytes, state.nbytes)
        whole = (begin, end) == (start, start + out.numel())
        # The fast kernel stores 16 bytes at a time.
        fits = whole and out.data_ptr() % ALIGNMENT == 0
        target = out if fits else _room(end - begin, out.device)
        where = (state.plan.data_ptr(), first, stop - first)
        payloads, origin = code.data_ptr() + state.payloads, target.data_ptr() - begin
        if state.has_cuts:
            _launch.decode_cut(device, *where, payloads, origin)
        if state.has_others:
            _launch.decode_any(device, *where, payloads, origin)
        if not fits:
            out.copy_(target[start - begin :][: out.numel()])


def cuda_codec() -> DeviceCodec:
    """The codec of CUDA devices.

    Raises:
        ImportError: If CuPy is not installed; the message names the extra.
    """
    _runtime.cupy()

    def open_device(device: torch.device) -> AbstractContextManager[Device]:
        return cupy_device(*_torch.place(device), _torch)

    return DeviceCodec(open_device)


def _room(nbytes: int, device: torch.device) -> torch.Tensor:
    # A plain tensor in any mode: it may be used in another one.
    with torch.inference_mode(mode=False):
        return torch.empty(max(nbytes, 1), dtype=torch.uint8, device=device)[:nbytes].detach()


def _settle(device: Device, code: torch.Tensor, state: _State) -> None:
    """Gives a code its header and its length."""
    sizes = state.sizes
    assert sizes is not None
    sizes.arrived.synchronize()
    tensor, chunks = sizes.tensors[0], sizes.chunks
    name = DTYPES[state.header.dtype]
    offsets = _encode.offsets(tensor, sizes.views)
    scale = None if offsets is None else _encode.published(offsets, sizes.lists)
    head = _encode.prelude(tensor, chunks, name, state.header.shape, scale)
    payload_bytes = int(tensor["payload_bytes"])
    with torch.inference_mode(mode=False), torch.no_grad():
        exact = _room(len(head) + payload_bytes, code.device)
        host = device.staging(len(head))
        host[:] = np.frombuffer(head, np.uint8)
        device.stream.upload(exact.data_ptr(), host)
        device.hold(host)
        exact[len(head) :] = code[:payload_bytes]
        if code.is_cuda:
            # This may be another stream than the one that the memory was taken on.
            code.record_stream(torch.cuda.current_stream(code.device))
        # The same tensor, so that whoever holds it sees its new memory.
        code.data = exact
        if offsets is None and sizes.lists.size:
            state.plan = _kept(state.plan, plan_bytes(len(chunks)))
    state.payloads, state.sizes = len(head), None
    cuts = _encode.is_cut(tensor, chunks, offsets)
    state.has_cuts, state.has_others = bool(cuts.any()), not cuts.all()


def _kept(memory: torch.Tensor, nbytes: int) -> torch.Tensor:
    """The first bytes of memory, the rest of which may be used again in the order of streams."""
    if memory.is_cuda:
        memory.record_stream(torch.cuda.current_stream(memory.device))
    kept = _room(nbytes, memory.device)
    return kept.copy_(memory[:nbytes])


def _read(code: torch.Tensor) -> _State:
    """Plans decoding a code that was made elsewhere; only its header comes to the host."""
    stream = _outline(code)
    name, shape, nbytes = _native.stream_header(stream.data)
    header = Header(named_dtype(name), tuple(shape))
    misplaced = code.data_ptr() % ALIGNMENT
    content, cuts, others = _native.device_plan([(stream.data, misplaced, 0, None)])
    plan = np.frombuffer(content, np.uint8).copy()
    chunks = plan[: (cuts + others) * _launch.CHUNK.itemsize].view(_launch.CHUNK)
    # Parts are asked for by number; the kernels tell their chunks by the flag.
    raw = chunks.view(f"V{_launch.CHUNK.itemsize}")
    raw[:] = raw[np.argsort(chunks["number"], kind="stable")]
    chunk_bytes = int(chunks["bytes"][0]) if len(chunks) else 1
    return _State(
        header,
        nbytes,
        torch.from_numpy(plan).to(code.device) if plan.size else _room(0, code.device),
        cuts + others,
        chunk_bytes,
        payloads=-misplaced,
        has_cuts=cuts > 0,
        has_others=others > 0,
    )


def _outline(code: torch.Tensor) -> Bytes:
    """A stream with the header of a code, and zeros for its payloads.

    The zeros are pages that nobody has touched: they take no memory.
    """
    first = _host_bytes(code, _FIRST_BYTES)
    length, _ = read_varint(first.tobytes(), _MAGIC_BYTES)
    stream: Bytes = np.zeros(code.numel(), np.uint8)
    head = first if length <= first.size else _host_bytes(code, min(length, code.numel()))
    # What follows the header is not looked at, but for zeros up to a multiple of 16.
    kept = min(aligned(length), code.numel())
    stream[: head.size] = head
    if kept > head.size:
        stream[:kept] = _host_bytes(code, kept)
    return stream


def _host_bytes(code: torch.Tensor, count: int) -> Bytes:
    host: Bytes = code[:count].cpu().numpy()
    return host
