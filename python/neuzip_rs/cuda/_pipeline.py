"""Streams on their way to a device: read, copied and decoded at the same time.

Compressed bytes pass through a ring of pinned memory in pieces. While one piece is read into the
ring by a few threads, those before it are copied on a stream of their own, and those that have
arrived are decoded on the current one. What is longer than a batch goes through two rooms on the
device in turn, so that a model needs little more memory than its tensors.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, Self

import numpy as np

from neuzip_rs import _native
from neuzip_rs._errors import CorruptDataError
from neuzip_rs.cuda import _launch
from neuzip_rs.cuda._device import Bytes, Device, Event, Memory, Stream, aligned

if TYPE_CHECKING:
    from typing_extensions import Buffer

PIECE_BYTES: Final = 16 << 20
"""What is copied before the first of it is decoded."""
BATCH_BYTES: Final = 256 << 20
"""Compressed bytes that are on the device at a time, of two batches."""
_SLOTS: Final = 4
_PART_BYTES: Final = 2 << 20
"""What a thread reads at a time."""
_MOST_READERS: Final = 8


class Source(Protocol):
    """Where bytes come from."""

    @property
    def nbytes(self) -> int:
        """How many there are."""

    def read_into(self, target: Bytes, start: int) -> None:
        """Reads bytes from `start` on until the target is full."""


class InMemory:
    """Bytes of a buffer."""

    def __init__(self, data: "Buffer") -> None:
        """Takes a contiguous buffer."""
        self._data = np.frombuffer(memoryview(data), np.uint8)
        self.nbytes = self._data.size

    def read_into(self, target: Bytes, start: int) -> None:
        """As `Source` says."""
        target[:] = self._data[start : start + target.size]


class InFile:
    """Bytes of an open file."""

    def __init__(self, file: int, offset: int, nbytes: int) -> None:
        """Takes the descriptor of a file."""
        self._file, self._offset, self.nbytes = file, offset, nbytes

    def read_into(self, target: Bytes, start: int) -> None:
        """As `Source` says.

        Raises:
            CorruptDataError: If the file has become shorter.
        """
        done = 0
        while done < target.size:
            count = os.preadv(self._file, [target[done:].data], self._offset + start + done)
            if not count:
                message = "the file ends within a tensor"
                raise CorruptDataError(message)
            done += count


class Item(NamedTuple):
    """A tensor on its way.

    Attributes:
        source: Its stream, or its bytes.
        stream: The stream again, for its header; None: the bytes are plain.
        outs: Where it is wanted: addresses on the device, one if it is plain.
        base: The address of its base, if it needs one.
    """

    source: Source
    stream: "_native.CompressedTensor | Buffer | None"
    outs: tuple[int, ...]
    base: int | None = None


class _Copy(NamedTuple):
    """A part of a source, and where it goes."""

    source: Source
    start: int
    nbytes: int
    target: int
    in_room: bool


def split(chunks: "np.ndarray[Any, Any]", ends: Sequence[int]) -> list[int]:
    """How many of the chunks, in the order of the plan, have arrived when each piece has.

    `chunks` are Chunk structs, `ends` the addresses behind the pieces.
    """
    last = np.maximum.accumulate(chunks["payload"] + chunks["payload_bytes"])
    return [int(np.searchsorted(last, end, side="right")) for end in ends]


def decode(
    device: Device, items: Sequence[Item], *, verify: bool = True, readers: int | None = None
) -> None:
    """Copies and decodes; nothing waits for the device but for a free place in the ring.

    Raises:
        CorruptDataError: If a header is damaged, or a file has become shorter.
        BaseMismatchError: If a stream needs a base, or another file, that is not given.
    """
    total = sum(item.source.nbytes for item in items)
    groups = list(_batches(items))
    rooms = _rooms(device, items, groups)
    main = device.stream
    copying = device.second_stream() if total > PIECE_BYTES else main
    # The memory may have been in use on the current stream until now.
    _wait(copying, main)
    ring = _Ring(device, min(total, PIECE_BYTES))
    used: list[Event | None] = [None, None]
    with _Readers(total, readers) as reading:
        for turn, group in enumerate(groups):
            room, free = rooms[turn % len(rooms)], used[turn % 2]
            if free is not None and copying is not main:
                copying.wait(free)
            batch = _Batch(device, items, group, room.address, verify=verify)
            for copies in _pieces(batch.copies):
                slot = ring.take()
                reading.fill(slot, copies)
                at = 0
                for copy in copies:
                    copying.upload(copy.target, slot[at : at + copy.nbytes])
                    at += copy.nbytes
                ring.give(slot, copying.record())
                _wait(main, copying)
                batch.launch(copies)
            batch.launch_rest()
            used[turn % 2] = main.record()
    device.hold(ring, rooms, copying, items)


def _wait(waiting: Stream, other: Stream) -> None:
    if waiting is not other:
        waiting.wait(other.record())


def _room_bytes(item: Item) -> int:
    return 0 if item.stream is None else aligned(item.source.nbytes)


def _batches(items: Sequence[Item]) -> Iterator[range]:
    start = nbytes = 0
    for number, item in enumerate(items):
        size = _room_bytes(item)
        if nbytes and nbytes + size > BATCH_BYTES:
            yield range(start, number)
            start, nbytes = number, 0
        nbytes += size
    if items:
        yield range(start, len(items))


def _rooms(device: Device, items: Sequence[Item], groups: Sequence[range]) -> list[Memory]:
    sizes = [sum(_room_bytes(items[number]) for number in group) for group in groups]
    return [device.empty(max(sizes[turn::2])) for turn in range(min(2, len(sizes)))]


class _Batch:
    """The tensors of a room: what is to be copied for them, and a plan."""

    def __init__(
        self, device: Device, items: Sequence[Item], group: range, room: int, *, verify: bool
    ) -> None:
        self._device = device
        self.copies: list[_Copy] = []
        placed, numbers, self._end = [], [], room
        for number in group:
            source, stream, outs, base = items[number]
            in_room = stream is not None
            target = self._end if in_room else outs[0]
            self.copies.append(_Copy(source, 0, source.nbytes, target, in_room))
            if stream is not None:
                placed += [(stream, target, out, base) for out in outs]
                numbers += [number] * len(outs)
                self._end += aligned(source.nbytes)
        content, self._cuts, self._others = _native.device_plan(placed, verify=verify)
        host = device.staging(len(content))
        host[:] = np.frombuffer(content, np.uint8)
        self._chunks = np.frombuffer(host, _launch.CHUNK, self._cuts + self._others)
        # Messages count the tensors of all batches.
        self._chunks["tensor"] = np.array(numbers or [0], np.uint32)[self._chunks["tensor"]]
        self._plan = device.empty(len(content))
        device.stream.upload(self._plan.address, host)
        device.hold(host, self._plan)
        self._done = [0, 0]

    def launch(self, copies: Sequence[_Copy]) -> None:
        """Decodes what has arrived with some copies."""
        ends = [copy.target + copy.nbytes for copy in copies if copy.in_room]
        if ends:
            cuts, others = self._chunks[: self._cuts], self._chunks[self._cuts :]
            self._launch([split(cuts, ends[-1:])[0], split(others, ends[-1:])[0]])

    def launch_rest(self) -> None:
        """Decodes what has no bytes of its own."""
        self._launch([self._cuts, self._others])

    def _launch(self, counts: list[int]) -> None:
        (cut, other), plan = self._done, self._plan.address
        _launch.decode_cut(self._device, plan, cut, counts[0] - cut)
        _launch.decode_any(self._device, plan, self._cuts + other, counts[1] - other)
        self._done = counts


def _pieces(copies: Iterable[_Copy]) -> Iterator[list[_Copy]]:
    """Copies, in pieces that fit into a slot of the ring."""
    piece: list[_Copy] = []
    free = PIECE_BYTES
    for copy in copies:
        done = 0
        while done < copy.nbytes:
            count = min(copy.nbytes - done, free)
            piece.append(copy._replace(start=done, nbytes=count, target=copy.target + done))
            done += count
            free -= count
            if not free:
                yield piece
                piece, free = [], PIECE_BYTES
    if piece:
        yield piece


class _Ring:
    """Pinned memory, taken in turn when the copy from it is done."""

    def __init__(self, device: Device, nbytes: int) -> None:
        self._device, self._nbytes = device, nbytes
        self._slots: list[tuple[Bytes, Event]] = []

    def take(self) -> Bytes:
        if len(self._slots) < _SLOTS and not (self._slots and self._slots[0][1].done):
            return self._device.staging(self._nbytes)
        slot, event = self._slots.pop(0)
        event.synchronize()
        return slot

    def give(self, slot: Bytes, event: Event) -> None:
        self._slots.append((slot, event))


class _Readers:
    """Threads that fill pinned memory; none for little."""

    def __init__(self, total: int, readers: int | None) -> None:
        most = min(_MOST_READERS, os.cpu_count() or 1) if readers is None else readers
        several = total > _PART_BYTES and most > 1
        self._pool = ThreadPoolExecutor(most) if several else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def fill(self, slot: Bytes, copies: Sequence[_Copy]) -> None:
        """Reads the bytes of copies, one after the other."""
        parts, at = [], 0
        for copy in copies:
            for start in range(0, copy.nbytes, _PART_BYTES):
                count = min(_PART_BYTES, copy.nbytes - start)
                target = slot[at + start : at + start + count]
                parts.append((copy.source, target, copy.start + start))
            at += copy.nbytes
        if self._pool is None:
            for source, target, start in parts:
                source.read_into(target, start)
        else:
            list(self._pool.map(lambda part: part[0].read_into(part[1], part[2]), parts))
