"""The manifest of a compressed directory: what every file in it was, to restore and to check it.

`neuzip_manifest.json` is one JSON object:

    format       "neuzip-directory"
    version      1
    folders      the empty folders, by path
    files        path -> {
      kind           "safetensors": stored compressed;  "copy": stored as it was;
                     "nz": stored as a .nz file, because parts of it are tensors of other files;
                     "config" and "index": stored for loaders, restored from `original`
      size, sha256   of the original file
      stored_size    of the file in the compressed directory
      stored_sha256  of that file; for "config" and "index" only
      original       {"encoding": "utf-8" | "zlib+base64", "data": …}; for these two only
    }
    sha256       of the object without this key, in canonical form (see `_checksum`)

It holds no times, no machine names and no version of the program: equal models give equal bytes.
"""

import base64
import binascii
import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Final, Self

from neuzip_rs._errors import CorruptDataError, UnsupportedVersionError
from neuzip_rs.directory.tree import Tree

MANIFEST_NAME: Final = "neuzip_manifest.json"
FORMAT: Final = "neuzip-directory"
VERSION: Final = 1
# A larger original (the index of a very large model) is deflated: it is ten times smaller then.
_TEXT_LIMIT: Final = 64 << 10


class Kind(StrEnum):
    """How a file of the directory is stored."""

    SAFETENSORS = "safetensors"
    NZ = "nz"
    COPY = "copy"
    CONFIG = "config"
    INDEX = "index"

    @property
    def is_compressed(self) -> bool:
        """Whether the stored file is one that neuzip compressed."""
        return self in (Kind.SAFETENSORS, Kind.NZ)


_IN_MANIFEST: Final = frozenset({Kind.CONFIG, Kind.INDEX})


@dataclass(frozen=True, slots=True)
class Entry:
    """One file."""

    kind: Kind
    size: int
    sha256: str
    stored_size: int
    stored_sha256: str | None = None
    original: bytes | None = None

    def to_json(self) -> dict[str, Any]:
        """The JSON object of this file."""
        fields: dict[str, Any] = {
            "kind": self.kind.value,
            "size": self.size,
            "sha256": self.sha256,
            "stored_size": self.stored_size,
        }
        if self.stored_sha256 is not None:
            fields["stored_sha256"] = self.stored_sha256
        if self.original is not None:
            fields["original"] = _pack(self.original)
        return fields

    @classmethod
    def from_json(cls, name: str, fields: object) -> Self:
        """Checks and reads the JSON object of the file `name`."""
        try:
            return cls._from_fields(fields)
        except (KeyError, TypeError, ValueError, zlib.error) as error:
            message = f"{MANIFEST_NAME}: damaged entry of {name!r}: {error}"
            raise CorruptDataError(message) from error

    @classmethod
    def _from_fields(cls, fields: Any) -> Self:  # noqa: ANN401 - anything JSON can hold
        kind = Kind(fields["kind"])
        size = _size(fields["size"])
        original = None
        stored_sha256 = None
        if kind in _IN_MANIFEST:
            original = _unpack(fields["original"], size)
            stored_sha256 = _digest(fields["stored_sha256"])
        sha256 = _digest(fields["sha256"])
        stored_size = _size(fields["stored_size"])
        if original is not None and hashlib.sha256(original).hexdigest() != sha256:
            message = "the original bytes do not match their checksum"
            raise ValueError(message)
        return cls(kind, size, sha256, stored_size, stored_sha256, original)


@dataclass(frozen=True, slots=True)
class Manifest:
    """All files and empty folders of a compressed directory."""

    files: Mapping[str, Entry]
    folders: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """The manifest file."""
        body: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "folders": sorted(self.folders),
            "files": {name: self.files[name].to_json() for name in sorted(self.files)},
        }
        body["sha256"] = _checksum(body)
        return json.dumps(body, indent=1).encode("ascii") + b"\n"

    @classmethod
    def read_from(cls, directory: Path) -> Self:
        """Reads and checks the manifest of a compressed directory.

        Raises:
            CorruptDataError: There is none, it is damaged, or it names files outside the directory.
            UnsupportedVersionError: It was written by a newer release.
        """
        try:
            data = (directory / MANIFEST_NAME).read_bytes()
        except FileNotFoundError:
            message = f"{directory} is no compressed directory: it has no {MANIFEST_NAME}"
            raise CorruptDataError(message) from None
        try:
            body = json.loads(data)
        except (ValueError, RecursionError) as error:
            message = f"{MANIFEST_NAME}: no valid JSON: {error}"
            raise CorruptDataError(message) from error
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            message = f"{MANIFEST_NAME}: this is no manifest that neuzip wrote"
            raise CorruptDataError(message)
        stated = body.pop("sha256", None)
        if stated != _checksum(body):
            message = f"{MANIFEST_NAME}: damaged: it does not match its checksum"
            raise CorruptDataError(message)
        if body.get("version") != VERSION:
            message = f"{MANIFEST_NAME}: version {body.get('version')!r} needs a newer neuzip"
            raise UnsupportedVersionError(message)
        files, folders = body.get("files"), body.get("folders")
        if not isinstance(files, dict) or not isinstance(folders, list):
            message = f"{MANIFEST_NAME}: the list of files is missing"
            raise CorruptDataError(message)
        for name in [*files, *folders]:
            _check_name(name)
        entries = {name: Entry.from_json(name, fields) for name, fields in files.items()}
        return cls(entries, tuple(folders))

    def strangers(self, tree: Tree) -> list[str]:
        """Files of the compressed directory that are not from the original one."""
        return [
            file.name
            for file in tree.files
            if file.name != MANIFEST_NAME and file.name not in self.files
        ]


def _checksum(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _check_name(name: object) -> None:
    # A hostile manifest must not lead outside the directory.
    if not isinstance(name, str) or not name or "\0" in name:
        message = f"{MANIFEST_NAME}: {name!r} is no file name"
        raise CorruptDataError(message)
    path = PurePosixPath(name)
    outside = path.is_absolute() or ".." in path.parts or name == "." or str(path) != name
    if os.name == "nt":
        # A backslash or a colon means something there, and is part of a name elsewhere.
        local = PureWindowsPath(name)
        outside = outside or bool(local.anchor) or ".." in local.parts
    if outside:
        message = f"{MANIFEST_NAME}: {name!r} is outside the directory"
        raise CorruptDataError(message)
    if name == MANIFEST_NAME:
        message = f"{MANIFEST_NAME}: it lists itself"
        raise CorruptDataError(message)


def _size(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        message = f"{value!r} is no size"
        raise ValueError(message)
    return value


def _digest(value: object) -> str:
    if not isinstance(value, str) or len(binascii.unhexlify(value)) != hashlib.sha256().digest_size:
        message = f"{value!r} is no SHA-256"
        raise ValueError(message)
    return value


def _pack(data: bytes) -> dict[str, str]:
    if len(data) <= _TEXT_LIMIT:
        try:
            return {"encoding": "utf-8", "data": data.decode("utf-8")}
        except UnicodeDecodeError:
            pass
    packed = base64.b64encode(zlib.compress(data, 9)).decode("ascii")
    return {"encoding": "zlib+base64", "data": packed}


def _unpack(fields: Any, size: int) -> bytes:  # noqa: ANN401 - anything JSON can hold
    encoding, text = fields["encoding"], fields["data"]
    if not isinstance(text, str):
        message = f"{text!r} is no text"
        raise TypeError(message)
    if encoding == "utf-8":
        data = text.encode("utf-8")
    elif encoding == "zlib+base64":
        packed = base64.b64decode(text, validate=True)
        # One more byte than expected is enough to see that there are too many.
        data = zlib.decompressobj().decompress(packed, size + 1)
    else:
        message = f"unknown encoding {encoding!r}"
        raise ValueError(message)
    if len(data) != size:
        message = f"{len(data)} original bytes instead of {size}"
        raise ValueError(message)
    return data
