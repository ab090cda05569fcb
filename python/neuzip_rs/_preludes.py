"""The first fields of a tensor stream, for what has to be known before all of it is at hand.

Nothing here is checked against the stream's checksum: the native reader does that when it decodes.
"""

from dataclasses import dataclass
from typing import Final

from neuzip_rs._errors import CorruptDataError
from neuzip_rs.directory.content import read_varint

_MAGIC: Final = b"\x89NZ\x01"
_REFERENCE, _EXTERNAL = 2, 5


@dataclass(frozen=True, slots=True)
class Prelude:
    """What a stream says of itself (docs/format.md)."""

    shape: tuple[int, ...]
    tensor: str | None
    """Name of the tensor that holds the bytes instead, None if the stream does."""
    file: str | None
    """The file that that tensor is in, relative to this one's folder; None for the same file."""

    @classmethod
    def read_from(cls, data: bytes) -> "Prelude":
        """Reads the fields.

        Args:
            data: The beginning of the stream.

        Raises:
            CorruptDataError: It is none, or more of it would be needed.
        """
        if not data.startswith(_MAGIC):
            message = "no tensor stream of this format"
            raise CorruptDataError(message)
        try:
            _, place = read_varint(data, len(_MAGIC))
            _, place = read_varint(data, place)
            dimensions, place = data[place + 1], place + 2
            shape = []
            for _ in range(dimensions):
                extent, place = read_varint(data, place)
                shape.append(extent)
            body, place = data[place], place + 1
            tensor = file = None
            if body == _REFERENCE:
                tensor, place = _text(data, place + 16)
            elif body == _EXTERNAL:
                _, place = read_varint(data, place + 17)
                tensor, place = _text(data, place)
                file, place = _text(data, place)
        except (IndexError, UnicodeDecodeError) as error:
            message = f"damaged beginning of a tensor stream: {error}"
            raise CorruptDataError(message) from error
        return cls(tuple(shape), tensor, file)


def _text(data: bytes, start: int) -> tuple[str, int]:
    length, start = read_varint(data, start)
    return data[start : start + length].decode(), start + length
