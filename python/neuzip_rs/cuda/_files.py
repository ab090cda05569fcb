"""Whole files on their way to a device: read, copied and decoded at the same time."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np

from neuzip_rs import _native
from neuzip_rs._errors import BaseMismatchError, CorruptDataError
from neuzip_rs.cuda import _launch, _pipeline, _torch
from neuzip_rs.cuda._device import Bytes, Device, aligned, cupy_device

if TYPE_CHECKING:
    from typing_extensions import Buffer

BASE_BYTES: Final = 1 << 30
"""Bytes of tensors that deltas are next to, on the device at a time."""

Array: TypeAlias = Any
Fallback: TypeAlias = Callable[[str, "Buffer"], None]
"""Decodes a tensor by its name on the host, into a buffer."""


class Place(NamedTuple):
    """Where a tensor is stored, as `SafetensorsFile.places` says.

    Attributes:
        name: Its name.
        offset: Its first byte in the file.
        nbytes: Its bytes there.
        form: "plain", "stream", "repeat" (with the hash of its bytes), "bundled" or "elsewhere".
        holder: The number of the tensor that has the stream.
        content_hash: Of a repeat.
        start: Where it begins in a bundle.
        total: Bytes of the bundle when decoded; 0: it is in none.
    """

    name: str
    offset: int
    nbytes: int
    form: str
    holder: int
    content_hash: bytes
    start: int
    total: int


class Wanted(NamedTuple):
    """A tensor to be read: its name, where it goes on the device, and how many bytes it has."""

    name: str
    address: int
    nbytes: int


class _Decoded:
    """A source that the host decodes, when a part of it is asked for."""

    def __init__(self, name: str, nbytes: int, decode: Fallback) -> None:
        self._name, self.nbytes, self._decode = name, nbytes, decode
        self._data: Bytes | None = None
        self._left = nbytes
        # Parts are asked for by several threads.
        self._lock = threading.Lock()

    def read_into(self, target: Bytes, start: int) -> None:
        with self._lock:
            if self._data is None:
                self._data = np.empty(self.nbytes, np.uint8)
                self._decode(self._name, self._data.data)
            target[:] = self._data[start : start + target.size]
            self._left -= target.size
            if not self._left:
                self._data = None


def load_tensors(
    file: "_native.SafetensorsFile",
    path: str,
    make: Callable[[], dict[str, Array]],
    device: object,
    *,
    verify: bool,
    threads: int | None,
) -> dict[str, Array]:
    """Reads tensors of a file into torch tensors on a CUDA device, and checks them.

    Args:
        file: The open file.
        path: Where it is.
        make: Makes the tensors, contiguous and on the device.
        device: The device.
        verify: Compare all hashes.
        threads: How many threads read, and decode what only the host can decode.

    Raises:
        CorruptDataError: If the file is damaged.
        BaseMismatchError: If it needs another file, and that is another one or missing.
    """
    number, stream = _torch.place(device)
    with cupy_device(number, stream, _torch) as current:
        tensors = make()
        wanted = [Wanted(name, int(x.data_ptr()), int(x.nbytes)) for name, x in tensors.items()]
        load(current, file, path, wanted, verify=verify, threads=threads)
    return tensors


def load(
    device: Device,
    file: "_native.SafetensorsFile",
    path: str,
    wanted: Sequence[Wanted],
    *,
    verify: bool,
    threads: int | None,
) -> None:
    """Reads tensors of a file into the memory of a device, and waits until they are there."""
    places = [Place(*place) for place in file.places()]
    by_name = {place.name: place for place in places}
    base = _Base.of(file)
    deltas = [] if base is None else [x for x in wanted if base.takes(file, by_name[x.name], x)]
    names = {one.name for one in deltas}
    wanted = [one for one in wanted if one.name not in names]

    def decode(name: str, out: "Buffer") -> None:
        file.read_into(name, out, verify=verify, threads=threads, fresh=True)

    # By the number of the tensor that holds the bytes, in the order of the file.
    outs: dict[int, list[Wanted]] = {}
    for one in wanted:
        outs.setdefault(by_name[one.name].holder, []).append(one)
    bundles = _Bundles(device, {n: by_name[outs[n][0].name].total for n in sorted(outs)})
    items, owners = [], []
    descriptor = os.open(path, os.O_RDONLY)
    try:
        mapped = _map(path)
        for number in sorted(outs):
            name, start, nbytes, form, *_ = places[number]
            addresses = tuple(one.address for one in outs[number])
            source: _pipeline.Source = _pipeline.InFile(descriptor, start, nbytes)
            stream = None
            if form in {"stream", "bundled"}:
                stream = mapped[start : start + nbytes].data
            elif form == "elsewhere":
                source = _Decoded(name, outs[number][0].nbytes, decode)
            if number in bundles.rooms:
                addresses = (bundles.rooms[number],)
            items.append(_pipeline.Item(source, stream, addresses))
            owners.append(name)
        _pipeline.decode(device, items, verify=verify, readers=threads)
    finally:
        os.close(descriptor)
    bundles.take_apart((by_name[one.name], one) for one in wanted)
    _launch.raise_errors(device, owners)
    if verify:
        _check_repeats(device, [(by_name[one.name], one) for one in wanted])
    if base is not None:
        for group in _groups(deltas):
            members = [(by_name[one.name], one) for one in group]
            _load_deltas(device, base, path, members, verify=verify, threads=threads)


class _Base(NamedTuple):
    """The file that deltas are next to."""

    file: "_native.SafetensorsFile"
    path: str

    @classmethod
    def of(cls, file: "_native.SafetensorsFile") -> "_Base | None":
        """The base of a file, if it is one file, and there."""
        files = file.base_files()
        if not files:
            return None
        *others, path = files
        base = cls(_native.SafetensorsFile(str(path)), str(path))
        # Those of a directory of several are in no chain.
        return base if base.file.base_files() == others else None

    def takes(self, file: "_native.SafetensorsFile", place: Place, one: Wanted) -> bool:
        """Whether a tensor is a delta from one of this file, long enough for the device."""
        if place.form != "elsewhere" or one.nbytes <= _launch.SHORT_BYTES:
            return False
        info = file.info(one.name)
        if info is None or info["body"] not in {"delta", "base"}:
            return False
        try:
            mine = self.file.dtype(one.name), self.file.shape(one.name)
        except KeyError:
            return False
        return mine == (file.dtype(one.name), file.shape(one.name))


def _groups(deltas: Sequence[Wanted]) -> Iterator[list[Wanted]]:
    """Tensors whose bases have room on the device at the same time."""
    group: list[Wanted] = []
    for one in deltas:
        if group and sum(x.nbytes for x in group) + one.nbytes > BASE_BYTES:
            yield group
            group = []
        group.append(one)
    if group:
        yield group


def _load_deltas(
    device: Device,
    base: _Base,
    path: str,
    group: Sequence[tuple[Place, Wanted]],
    *,
    verify: bool,
    threads: int | None,
) -> None:
    """Reads tensors next to those of another file, which are read first."""
    starts = np.cumsum([0, *(aligned(one.nbytes) for _, one in group)]).tolist()
    room = device.empty(starts[-1])
    addresses = [room.address + start for start in starts[:-1]]
    bases = [
        Wanted(one.name, at, one.nbytes) for at, (_, one) in zip(addresses, group, strict=True)
    ]
    try:
        load(device, base.file, base.path, bases, verify=verify, threads=threads)
    except CorruptDataError as error:
        message = f"base mismatch: the base is damaged: {error}"
        raise BaseMismatchError(message) from error
    mapped, items = _map(path), []
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for number, ((place, one), at) in enumerate(zip(group, addresses, strict=True)):
            stream = mapped[place.offset : place.offset + place.nbytes].data
            expected = _native.CompressedTensor.from_bytes(stream).base_hash
            assert expected is not None
            _launch.check_content(device, at, one.nbytes, expected, number)
            source = _pipeline.InFile(descriptor, place.offset, place.nbytes)
            items.append(_pipeline.Item(source, stream, (one.address,), at))
        _pipeline.decode(device, items, verify=verify, readers=threads)
    finally:
        os.close(descriptor)
    _launch.raise_errors(device, [one.name for _, one in group])
    device.hold(room)


class _Bundles:
    """Room on the device for streams that small tensors share, each of which is decoded once."""

    def __init__(self, device: Device, totals: dict[int, int]) -> None:
        self._device = device
        self.rooms: dict[int, int] = {}
        end = 0
        for number, total in totals.items():
            if total:
                self.rooms[number] = end
                end += aligned(total)
        self._memory = device.empty(end)
        self.rooms = {number: at + self._memory.address for number, at in self.rooms.items()}

    def take_apart(self, members: Iterable[tuple[Place, Wanted]]) -> None:
        """Copies tensors to where they are wanted."""
        parts = [
            (self.rooms[place.holder] + place.start, one.address, one.nbytes)
            for place, one in members
            if place.holder in self.rooms
        ]
        _launch.copy(self._device, parts)
        self._device.hold(self._memory)


def _map(path: str) -> Bytes:
    """The bytes of a file, of which the headers of streams are looked at."""
    if Path(path).stat().st_size == 0:
        return np.zeros(0, np.uint8)
    mapped: Bytes = np.memmap(path, np.uint8, "r")
    return mapped


def _check_repeats(device: Device, wanted: Sequence[tuple[Place, Wanted]]) -> None:
    """Compares the hashes of what is stored as a repeat of another tensor."""
    for number, (place, one) in enumerate(wanted):
        if place.form != "repeat":
            continue
        if one.nbytes > _launch.SHORT_BYTES:
            _launch.check_content(device, one.address, one.nbytes, place.content_hash, number)
            continue
        host = device.staging(one.nbytes)
        device.stream.download(host, one.address)
        device.stream.record().synchronize()
        if _native.content_hash(host.data) != place.content_hash:
            message = f"tensor {one.name!r}: it repeats a tensor that has other bytes"
            raise BaseMismatchError(message)
    _launch.raise_errors(device, [one.name for _, one in wanted])
