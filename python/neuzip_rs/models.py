"""Many models at once: a folder of model directories becomes a folder of compressed ones.

    for name in nz.models.find("hub/"):
        nz.models.compress("hub/", "hub-nz/", name)

`neuzip compress --models hub/` is the same loop. Every model is compressed on its own and appears
in the output when it is complete, so that any number of processes on any number of machines may
take models from one list (examples/many_models_ray.py). What is done is recorded next to each
model's own manifest, and in one manifest of all, `neuzip_models.json`; a second run goes on where
the first one stopped, and takes models again that have changed since.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from neuzip_rs import _native
from neuzip_rs._arguments import check_level, check_threads
from neuzip_rs._errors import CorruptDataError, UnsupportedVersionError
from neuzip_rs._new_file import new_file
from neuzip_rs.directory.content import Progress
from neuzip_rs.directory.manifest import MANIFEST_NAME
from neuzip_rs.directory.pack import compress_directory
from neuzip_rs.directory.restore import decompress_directory
from neuzip_rs.directory.transfer import Note
from neuzip_rs.directory.tree import TreeFile, keep_attributes, scan

__all__ = ["MODELS_NAME", "Record", "compress", "decompress", "done", "find", "read", "write"]

MODELS_NAME: Final = "neuzip_models.json"
"""The manifest of all models, at the top of the output."""
_FORMAT: Final = "neuzip-models"
_VERSION: Final = 1
_SUFFIX: Final = ".safetensors"
_CONFIGS: Final = ("config.json", "model_index.json")
_JOURNAL: Final = ".neuzip-models"
"""The folder of the output in which each model's record lies until all are in the manifest."""


@dataclass(frozen=True, slots=True)
class Record:
    """What was done with a model."""

    name: str
    """Path of the model relative to the folder of all: a directory, or a single file."""
    stored: str
    """Path of the compressed one relative to the output."""
    files: int
    original_bytes: int
    stored_bytes: int
    level: str
    source: str
    """Names, sizes and times of the model's files, hashed: tells whether it has changed since."""


def find(root: str | os.PathLike[str]) -> list[str]:
    """The models below a folder, which is none itself.

    A model is a directory that has a configuration or .safetensors files directly in it, and
    .safetensors files there or below; of two, one in the other, the outer one counts. A
    .safetensors file outside of any is a model of its own.

    Args:
        root: The folder.

    Returns:
        Their paths relative to the folder, in order.
    """
    top = Path(root)
    return sorted(_models_in(top, top))


def done(
    root: str | os.PathLike[str],
    output: str | os.PathLike[str],
    name: str,
    *,
    level: str = "default",
) -> Record | None:
    """What has been done with a model, if that is what `compress` would do now; None otherwise."""
    known = _known(Path(output), name)
    if known is None or (known.level, known.source) != (level, _fingerprint(Path(root) / name)):
        return None
    return known if _is_complete(Path(output) / known.stored, known) else None


def compress(
    root: str | os.PathLike[str],
    output: str | os.PathLike[str],
    name: str,
    *,
    level: str = "default",
    threads: int | None = None,
    overwrite: bool = True,
    progress: Progress | None = None,
    note: Note | None = None,
) -> Record:
    """Compresses one of the models that `find` has named, unless that has been done.

    Args:
        root: The folder of all models.
        output: The folder of the compressed ones, which is made if need be.
        name: Which model.
        level: "fast", "default" or "max".
        threads: How many threads may work, by default `NEUZIP_NUM_THREADS` or every core.
        overwrite: Whether to replace a compressed model whose original has changed.
        progress: Called with the bytes done and the bytes in all.
        note: Called with sentences the user should see.

    Returns:
        What was done, now or before.

    Raises:
        FileExistsError: There is a compressed model of another original, or something else.
    """
    check_level(level)
    check_threads(threads)
    source, top = Path(root) / name, Path(output)
    single = source.is_file()
    stored = name[: -len(_SUFFIX)] + ".nz" + _SUFFIX if single else name
    target = top / stored
    known = done(root, output, name, level=level)
    if known is not None:
        return known
    wanted = (level, _fingerprint(source))
    target.parent.mkdir(parents=True, exist_ok=True)
    if single:
        sizes = _native.compress_file(
            str(source),
            str(target),
            level=level,
            threads=threads,
            overwrite=overwrite,
            progress=progress,
        )
        keep_attributes(source, target)
        record = Record(name, stored, 1, *sizes, *wanted)
    else:
        result = compress_directory(
            source,
            target,
            level=level,
            threads=threads,
            overwrite=overwrite,
            progress=progress,
            note=note,
        )
        sizes = result.original_bytes, result.stored_bytes
        record = Record(name, stored, result.files, *sizes, *wanted)
    _write_json(_journal(top, name), asdict(record))
    return record


def write(output: str | os.PathLike[str], records: Iterable[Record]) -> None:
    """Writes the manifest of all models; their separate records are removed.

    Args:
        output: The folder of the compressed models.
        records: What `compress` has returned for each.
    """
    top = Path(output)
    models = {record.name: asdict(record) for record in records}
    body = {"format": _FORMAT, "version": _VERSION, "models": dict(sorted(models.items()))}
    _write_json(top / MODELS_NAME, body)
    for name in models:
        _journal(top, name).unlink(missing_ok=True)
    folder = top / _JOURNAL
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def read(output: str | os.PathLike[str]) -> dict[str, Record]:
    """The records in the manifest of all models; none if there is no manifest.

    Raises:
        CorruptDataError: It is damaged.
        UnsupportedVersionError: A newer release wrote it.
    """
    path = Path(output) / MODELS_NAME
    try:
        body = json.loads(path.read_bytes())
        if body["format"] != _FORMAT:
            message = f"{path}: this is no manifest that neuzip wrote"
            raise CorruptDataError(message)
        if body["version"] != _VERSION:
            message = f"{path}: version {body['version']!r} needs a newer neuzip"
            raise UnsupportedVersionError(message)
        return {name: _record(fields) for name, fields in body["models"].items()}
    except FileNotFoundError:
        return {}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, CorruptDataError):
            raise
        message = f"{path}: damaged: {error!r}"
        raise CorruptDataError(message) from error


def decompress(
    root: str | os.PathLike[str],
    output: str | os.PathLike[str],
    name: str,
    *,
    threads: int | None = None,
    overwrite: bool = False,
    max_output_size: int | None = None,
    progress: Progress | None = None,
    note: Note | None = None,
) -> tuple[int, int]:
    """Restores one of the models that `read` has named.

    Args:
        root: The folder of the compressed models.
        output: The folder of the originals, which is made if need be.
        name: Which model.
        threads: How many threads may work, by default `NEUZIP_NUM_THREADS` or every core.
        overwrite: Whether to replace a model that is there.
        max_output_size: The most bytes that the model may have.
        progress: Called with the bytes done and the bytes in all.
        note: Called with sentences the user should see.

    Returns:
        The sizes of the compressed and the restored model.

    Raises:
        KeyError: There is no such model.
        CorruptDataError: A file is missing or damaged.
    """
    check_threads(threads)
    record = read(root)[name]
    source, target = Path(root) / record.stored, Path(output) / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        result = decompress_directory(
            source,
            target,
            threads=threads,
            overwrite=overwrite,
            max_output_size=max_output_size,
            progress=progress,
            note=note,
        )
        return result.stored_bytes, result.original_bytes
    sizes = _native.decompress_file(
        str(source),
        str(target),
        threads=threads,
        overwrite=overwrite,
        max_output_size=max_output_size,
        progress=progress,
    )
    keep_attributes(source, target)
    return sizes


def _models_in(top: Path, folder: Path) -> Iterator[str]:
    entries = sorted(folder.iterdir())
    for path in entries:
        name = path.relative_to(top).as_posix()
        # Half of a model, or another program's.
        if path.name.endswith(".partial") or path.name in (_JOURNAL, ".git"):
            continue
        if path.is_dir():
            if _is_model(path):
                yield name
            else:
                yield from _models_in(top, path)
        elif path.name.endswith(_SUFFIX) and _native.content_kind(str(path)) == "safetensors":
            yield name


def _is_model(folder: Path) -> bool:
    if (folder / MANIFEST_NAME).exists():
        # Compressed already.
        return False
    named = any((folder / name).is_file() for name in _CONFIGS) or _has_tensors(folder.iterdir())
    return named and _has_tensors(folder.rglob("*" + _SUFFIX))


def _has_tensors(paths: Iterable[Path]) -> bool:
    return any(
        path.name.endswith(_SUFFIX)
        and path.is_file()
        and _native.content_kind(str(path)) == "safetensors"
        for path in paths
    )


def _fingerprint(source: Path) -> str:
    files: Iterable[TreeFile]
    if source.is_dir():
        files = scan(source).files
    else:
        status = source.stat()
        files = [TreeFile(source.name, source, status.st_size, status.st_mtime_ns, 0)]
    lines = [[file.name, file.size, file.mtime_ns] for file in files]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def _known(top: Path, name: str) -> Record | None:
    """What an earlier run has recorded of a model."""
    try:
        return _record(json.loads(_journal(top, name).read_bytes()))
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        pass
    try:
        return read(top).get(name)
    except CorruptDataError:
        return None


def _is_complete(target: Path, record: Record) -> bool:
    """Whether a compressed model is there, as long as it was."""
    if target.is_dir():
        files = scan(target).files
        whole = any(file.name == MANIFEST_NAME for file in files)
        return whole and sum(file.size for file in files) == record.stored_bytes
    return target.is_file() and target.stat().st_size == record.stored_bytes


def _journal(top: Path, name: str) -> Path:
    return top / _JOURNAL / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"


def _record(fields: Mapping[str, Any]) -> Record:
    record = Record(**fields)
    parts = Path(record.name).parts + Path(record.stored).parts
    if ".." in parts or Path(record.name).is_absolute() or Path(record.stored).is_absolute():
        message = f"{record.name!r} is outside of the folder"
        raise ValueError(message)
    return record


def _write_json(path: Path, body: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path, overwrite=True) as file:
        file.write(json.dumps(body, indent=1).encode() + b"\n")
