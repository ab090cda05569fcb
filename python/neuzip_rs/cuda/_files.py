"""Whole files on their way to a device: read, copied and decoded at the same time."""

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from neuzip_rs import _native
from neuzip_rs._errors import BaseMismatchError
from neuzip_rs.cuda import _launch, _pipeline, _torch
from neuzip_rs.cuda._device import Bytes, Device, cupy_device

if TYPE_CHECKING:
    from typing_extensions import Buffer

Array: TypeAlias = Any
Fallback: TypeAlias = Callable[[str, "Buffer"], None]
"""Decodes a tensor by its name on the host, into a buffer."""

Place: TypeAlias = tuple[str, int, int, str, int, bytes]
"""As `SafetensorsFile.places` has them."""


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

    def decode(name: str, out: "Buffer") -> None:
        file.read_into(name, out, verify=verify, threads=threads, fresh=True)

    places = file.places()
    numbers = {name: number for number, (name, *_) in enumerate(places)}
    # By the number of the tensor that holds the bytes, in the order of the file.
    outs: dict[int, list[Wanted]] = {}
    for one in wanted:
        _, _, _, _, holder, _ = places[numbers[one.name]]
        outs.setdefault(holder, []).append(one)
    items, names = [], []
    descriptor = os.open(path, os.O_RDONLY)
    try:
        mapped = _map(path)
        for number in sorted(outs):
            name, start, nbytes, form, _, _ = places[number]
            addresses = tuple(one.address for one in outs[number])
            source: _pipeline.Source = _pipeline.InFile(descriptor, start, nbytes)
            stream = None
            if form == "stream":
                stream = mapped[start : start + nbytes].data
            elif form == "elsewhere":
                source = _Decoded(name, outs[number][0].nbytes, decode)
            items.append(_pipeline.Item(source, stream, addresses))
            names.append(name)
        _pipeline.decode(device, items, verify=verify, readers=threads)
    finally:
        os.close(descriptor)
    _launch.raise_errors(device, names)
    if verify:
        _check_repeats(device, [(places[numbers[one.name]], one) for one in wanted])


def _map(path: str) -> Bytes:
    """The bytes of a file, of which the headers of streams are looked at."""
    if Path(path).stat().st_size == 0:
        return np.zeros(0, np.uint8)
    mapped: Bytes = np.memmap(path, np.uint8, "r")
    return mapped


def _check_repeats(device: Device, wanted: Sequence[tuple[Place, Wanted]]) -> None:
    """Compares the hashes of what is stored as a repeat of another tensor."""
    for number, ((_, _, _, form, _, expected), one) in enumerate(wanted):
        if form != "repeat":
            continue
        if one.nbytes > _launch.SHORT_BYTES:
            _launch.check_content(device, one.address, one.nbytes, expected, number)
            continue
        host = device.staging(one.nbytes)
        device.stream.download(host, one.address)
        device.stream.record().synchronize()
        if _native.content_hash(host.data) != expected:
            message = f"tensor {one.name!r}: it repeats a tensor that has other bytes"
            raise BaseMismatchError(message)
    _launch.raise_errors(device, [one.name for _, one in wanted])
