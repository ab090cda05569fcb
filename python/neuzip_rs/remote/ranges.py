"""A remote file of which ranges are fetched, as they are asked for or from one end to the other."""

from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from types import TracebackType
from typing import Any, Final, Self

BLOCK_BYTES: Final = 4 << 20
"""What one request brings when everything is wanted."""
_REQUESTS: Final = 4
"""Requests under way at the same time, so that latency is paid once and not per block."""
_AHEAD: Final = 16
"""Blocks that may have arrived before somebody takes them."""


class RangedFile:
    """A remote file, read in ranges; any thread may read."""

    def __init__(self, fs: Any, path: str, url: str, size: int) -> None:  # noqa: ANN401 - fsspec has no types
        """Opens nothing: every read is a request of its own.

        Args:
            fs: The file system of fsspec.
            path: The file's path in it.
            url: What people call it.
            size: Bytes in it.
        """
        self.url = url
        self.size = size
        self._fs = fs
        self._path = path
        self._pool: ThreadPoolExecutor | None = None
        self._blocks: list[Future[bytes]] = []
        self._lock = Lock()

    def read(self, start: int, end: int) -> bytes:
        """The bytes of a range.

        Raises:
            OSError: The server gives others.
        """
        if start >= end:
            return b""
        data: bytes = self._fs.cat_file(self._path, start=start, end=end)
        if len(data) == self.size != end - start:
            # A server that knows no ranges sends everything.
            data = data[start:end]
        if len(data) != end - start:
            message = f"{self.url}: {len(data)} bytes came for the {end - start} from {start} on"
            raise OSError(message)
        return data

    def start(self) -> None:
        """Begins to fetch everything, block by block, while the caller goes on."""
        self._pool = ThreadPoolExecutor(_REQUESTS, thread_name_prefix="neuzip-fetch")
        self._next_block()

    def blocks(self) -> Iterator[tuple[int, bytes]]:
        """All blocks in their order, each as soon as it is there, with its position."""
        count = -(-self.size // BLOCK_BYTES)
        for index in range(count):
            while len(self._blocks) < min(count, index + _AHEAD):
                self._next_block()
            block = self._blocks[index]
            yield index * BLOCK_BYTES, block.result()
            # Taken: not kept in memory.
            self._blocks[index] = _TAKEN

    def _next_block(self) -> None:
        start = len(self._blocks) * BLOCK_BYTES
        if self._pool is not None and start < self.size:
            end = min(self.size, start + BLOCK_BYTES)
            self._blocks.append(self._pool.submit(self.read, start, end))

    def close(self) -> None:
        """Gives up what is under way."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def __enter__(self) -> Self:
        """Returns the file."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Gives up what is under way."""
        self.close()


_TAKEN: Final[Future[bytes]] = Future()


class Ranges:
    """Which bytes are there already: sorted ranges that neither overlap nor touch."""

    def __init__(self) -> None:
        """Starts with none."""
        self._starts: list[int] = []
        self._ends: list[int] = []

    def missing(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of a range that are not there."""
        gaps: list[tuple[int, int]] = []
        index = max(0, bisect_right(self._starts, start) - 1)
        while start < end:
            if index < len(self._starts) and self._starts[index] <= start:
                start = max(start, self._ends[index])
                index += 1
                continue
            stop = min(end, self._starts[index]) if index < len(self._starts) else end
            gaps.append((start, stop))
            start = stop
        return gaps

    def add(self, start: int, end: int) -> None:
        """Says that a range is there."""
        if start >= end:
            return
        pairs = sorted([*zip(self._starts, self._ends, strict=True), (start, end)])
        self._starts, self._ends = [], []
        for first, last in pairs:
            if self._ends and first <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], last)
            else:
                self._starts.append(first)
                self._ends.append(last)
