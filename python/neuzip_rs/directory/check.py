"""Checking a compressed directory, and comparing it with the one it was made from."""

from pathlib import Path

from neuzip_rs import _native
from neuzip_rs._bases import base_in
from neuzip_rs._errors import CorruptDataError, NeuzipError
from neuzip_rs.directory.content import (
    COMPRESSED_KINDS,
    Progress,
    file_pieces,
    original_pieces,
    sha256,
)
from neuzip_rs.directory.manifest import MANIFEST_NAME, Entry, Manifest
from neuzip_rs.directory.pack import result_of
from neuzip_rs.directory.transfer import DirectoryResult, Meter, Note, listed
from neuzip_rs.directory.tree import Tree, scan


def verify_directory(
    directory: Path,
    *,
    original: Path | None = None,
    threads: int | None = None,
    base: Path | None = None,
    progress: Progress | None = None,
    note: Note | None = None,
) -> DirectoryResult:
    """Checks every file of a compressed directory, decoding everything and writing nothing.

    Args:
        directory: A directory written by `compress_directory`, or any with compressed files in it.
        original: The directory it was made from, to compare with as well.
        threads: How many threads may decode, by default all.
        base: The model that the directory was compressed against, if it is not where it was.
        progress: Called with the bytes done and the bytes in all.
        note: Called with sentences the user should see.

    Returns:
        What was checked.

    Raises:
        CorruptDataError: A file is missing, damaged or changed; the message names such files.
    """
    tree = scan(directory)
    if original is None and not (directory / MANIFEST_NAME).is_file():
        return _verify_loose_files(tree, threads, base, progress)
    manifest = Manifest.read_from(directory)
    total = sum(entry.size for entry in manifest.files.values())
    meter = Meter(progress, total if original is None else 2 * total)
    problems: list[str] = []
    for name, entry in manifest.files.items():
        problem = _problem_with(directory / name, entry, threads, base_in(base, name))
        if problem is not None:
            problems.append(f"{name}: {problem}")
        meter.add(entry.size)
    if original is not None:
        problems += _differences(original, manifest, meter)
    if problems:
        message = f"{directory}: {listed(problems, '; ')}"
        raise CorruptDataError(message)
    added = manifest.strangers(tree)
    if added and note is not None:
        note(f"not from the original directory, not checked: {listed(added)}")
    return result_of(manifest.files, (directory / MANIFEST_NAME).stat().st_size)


def _problem_with(stored: Path, entry: Entry, threads: int | None, base: str | None) -> str | None:
    if not stored.is_file():
        return "missing"
    if entry.kind.is_compressed:
        try:
            digest, _ = sha256(original_pieces(stored, threads=threads, base=base))
        except NeuzipError as error:
            return str(error)
        return None if digest == entry.sha256 else "decompresses to something else"
    digest, _ = sha256(file_pieces(stored))
    expected = entry.sha256 if entry.stored_sha256 is None else entry.stored_sha256
    return None if digest == expected else "changed"


def _differences(original: Path, manifest: Manifest, meter: Meter) -> list[str]:
    tree = scan(original)
    expected = {*manifest.files, *manifest.folders}
    found = {*(file.name for file in tree.files), *tree.empty_folders()}
    problems = [f"{name}: came or went meanwhile" for name in sorted(expected ^ found)]
    for file in tree.files:
        entry = manifest.files.get(file.name)
        if entry is not None and sha256(file_pieces(file.path)) != (entry.sha256, entry.size):
            problems.append(f"{file.name}: changed meanwhile")
        meter.add(file.size)
    return problems


def _verify_loose_files(
    tree: Tree, threads: int | None, base: Path | None, progress: Progress | None
) -> DirectoryResult:
    files = [
        file for file in tree.files if _native.content_kind(str(file.path)) in COMPRESSED_KINDS
    ]
    if not files:
        message = f"{tree.root}: no compressed file in it"
        raise CorruptDataError(message)
    meter = Meter(progress, sum(file.size for file in files))
    sizes: list[int] = []
    for file in files:
        with meter.part(file.size) as report:
            sizes.append(
                _native.verify_file(
                    str(file.path),
                    threads=threads,
                    progress=report,
                    base=base_in(base, file.name),
                )[1]
            )
    return DirectoryResult(
        files=len(files),
        compressed_files=len(files),
        original_bytes=sum(sizes),
        stored_bytes=sum(file.size for file in files),
    )
