"""Restoring a model directory from its compressed copy."""

from pathlib import Path

from neuzip_rs import _native
from neuzip_rs._bases import base_in
from neuzip_rs._errors import CorruptDataError, OutputTooLargeError
from neuzip_rs.directory.content import Progress, file_pieces, sha256
from neuzip_rs.directory.manifest import MANIFEST_NAME, Entry, Manifest
from neuzip_rs.directory.places import check_places
from neuzip_rs.directory.transfer import (
    DirectoryResult,
    Meter,
    Note,
    copy_file,
    listed,
    write_file,
)
from neuzip_rs.directory.tree import folders_above, keep_attributes, scan
from neuzip_rs.directory.workspace import Workspace


def decompress_directory(
    source: Path,
    destination: Path,
    *,
    threads: int | None = None,
    overwrite: bool = False,
    max_output_size: int | None = None,
    base: Path | None = None,
    progress: Progress | None = None,
    note: Note | None = None,
) -> DirectoryResult:
    """Restores a model directory, every file byte for byte and checked against the manifest.

    Files that were added to the compressed directory are copied.

    Args:
        source: A directory written by `compress_directory`.
        destination: Where to write; appears only when it is complete.
        threads: How many threads may work, by default all.
        overwrite: Whether to replace `destination` if it is there.
        max_output_size: The most bytes that all files together may have.
        base: The model that the directory was compressed against, if it is not where it was.
        progress: Called with the bytes done and the bytes in all.
        note: Called with sentences the user should see.

    Returns:
        What was done.

    Raises:
        CorruptDataError: A file is missing or damaged.
        BaseMismatchError: A file cannot be restored without its base.
        OutputTooLargeError: There are more bytes than `max_output_size`.
        FileExistsError: `destination` is there, and not to be overwritten.
        PlaceError: One of the two directories is in the other.
    """
    note = note or (lambda _: None)
    manifest = Manifest.read_from(source)
    check_places(source, destination, overwrite=overwrite)
    added = manifest.strangers(scan(source))
    _check_complete(source, manifest)
    total = sum(entry.size for entry in manifest.files.values())
    total += sum((source / name).stat().st_size for name in added)
    if max_output_size is not None and total > max_output_size:
        message = f"{source}: would be {total} bytes, more than the limit of {max_output_size}"
        raise OutputTooLargeError(message)
    with Workspace(destination, {"verb": "decompress"}) as work:
        restorer = _Restorer(source, work, threads, Meter(progress, total), base)
        for name, entry in manifest.files.items():
            restorer.restore(name, entry)
        for name in added:
            restorer.copy(name)
        folders = {*manifest.folders} | folders_above([*manifest.files, *added, *manifest.folders])
        for name in folders:
            work.make_folder(name)
        # Hubs and archives drop empty folders: these take after the directory itself.
        like = {name: source / name if (source / name).is_dir() else source for name in folders}
        work.publish(like | {"": source}, overwrite=overwrite)
    if added:
        note(f"not from the original directory, copied as they are: {listed(added)}")
    if restorer.changed:
        note(f"changed after compressing, restored as they had been: {listed(restorer.changed)}")
    sizes = (
        (source / name).stat().st_size
        for name in (*manifest.files, *added, MANIFEST_NAME)
        if (source / name).is_file()
    )
    return DirectoryResult(
        files=len(manifest.files) + len(added),
        compressed_files=sum(entry.kind.is_compressed for entry in manifest.files.values()),
        original_bytes=total,
        stored_bytes=sum(sizes),
        changed=tuple(restorer.changed),
    )


def _check_complete(source: Path, manifest: Manifest) -> None:
    missing = [
        name
        for name, entry in manifest.files.items()
        # The others are restored from the manifest alone.
        if entry.original is None and not (source / name).is_file()
    ]
    if missing:
        message = f"{source}: missing: {listed(missing)}"
        raise CorruptDataError(message)


class _Restorer:
    def __init__(
        self, source: Path, work: Workspace, threads: int | None, meter: Meter, base: Path | None
    ) -> None:
        self.changed: list[str] = []
        self._source = source
        self._work = work
        self._threads = threads
        self._meter = meter
        self._base = base

    def restore(self, name: str, entry: Entry) -> None:
        """Writes one file of the original directory into the workspace, or finds it there."""
        stored = self._source / name
        target = self._work.target(name)
        if entry.original is not None:
            write_file(target, entry.original)
            self._meter.add(entry.size)
            if not stored.is_file() or sha256(file_pieces(stored))[0] != entry.stored_sha256:
                self.changed.append(name)
        elif self._is_finished(name, target, entry):
            self._meter.add(entry.size)
        else:
            self._write(name, entry, stored, target)
        keep_attributes(stored if stored.is_file() else self._source / MANIFEST_NAME, target)
        self._work.record(name, {})

    def copy(self, name: str) -> None:
        """Copies a file that the original directory did not have."""
        target = self._work.target(name)
        copy_file(self._source / name, target, self._meter)
        keep_attributes(self._source / name, target)
        self._work.record(name, {})

    def _is_finished(self, name: str, target: Path, entry: Entry) -> bool:
        if self._work.finished(name) is None or not target.is_file():
            return False
        return sha256(file_pieces(target)) == (entry.sha256, entry.size)

    def _write(self, name: str, entry: Entry, stored: Path, target: Path) -> None:
        if entry.kind.is_compressed:
            with self._meter.part(entry.size) as progress:
                _native.decompress_file(
                    str(stored),
                    str(target),
                    threads=self._threads,
                    overwrite=True,
                    max_output_size=entry.size,
                    progress=progress,
                    base=base_in(self._base, name),
                )
            # Read again from the file: this is what the source may be removed for.
            found = sha256(file_pieces(target))
        else:
            found = copy_file(stored, target, self._meter)
        if found != (entry.sha256, entry.size):
            message = f"{stored}: not what {MANIFEST_NAME} says that {name} was"
            raise CorruptDataError(message)
