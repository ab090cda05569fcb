"""Compressing a model directory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from neuzip_rs import _native
from neuzip_rs._bases import Base, BaseArguments, base_arguments, chains
from neuzip_rs._errors import NeuzipError
from neuzip_rs.directory.config import loader_kind, mark_config
from neuzip_rs.directory.content import Progress, file_pieces, sha256
from neuzip_rs.directory.doubles import catalog_for, catalog_of, in_order, is_zip, stored_members
from neuzip_rs.directory.manifest import MANIFEST_NAME, Entry, Kind, Manifest
from neuzip_rs.directory.places import check_apart, check_places
from neuzip_rs.directory.transfer import (
    DirectoryResult,
    Meter,
    Note,
    copy_file,
    hash_meanwhile,
    listed,
    write_file,
)
from neuzip_rs.directory.tree import Tree, TreeFile, keep_attributes, scan, stamp_of
from neuzip_rs.directory.workspace import Workspace

# Weights in other formats stay as large as they are, which nobody expects: they are named.
_WEIGHT_SUFFIXES: Final = (
    *(".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".npy", ".npz"),
    *(".onnx", ".pt", ".pth", ".safetensors"),
)
_NOTED_BYTES: Final = 1 << 20


def compress_directory(
    source: Path,
    destination: Path,
    *,
    level: str = "default",
    threads: int | None = None,
    overwrite: bool = False,
    base: Base | None = None,
    keyframe_every: int | None = None,
    progress: Progress | None = None,
    note: Note | None = None,
) -> DirectoryResult:
    """Writes a compressed copy of a model directory, all names kept.

    Args:
        source: The model directory.
        destination: Where to write; appears only when it is complete.
        level: "fast", "default" or "max".
        threads: How many threads may work, by default all.
        overwrite: Whether to replace `destination` if it is there.
        base: A model to store the differences from, matched by the names of files and tensors.
        keyframe_every: The directory holds checkpoints: each is stored as its difference from the
            one before, and every so many stand alone.
        progress: Called with the bytes done and the bytes in all.
        note: Called with sentences the user should see.

    Returns:
        What was done.

    Raises:
        NeuzipError: There are no .safetensors files in it, or it is compressed already.
        FileExistsError: `destination` is there, and not to be overwritten.
        PlaceError: One of the two directories is in the other, or the base is in what is replaced.
    """
    check_places(source, destination, overwrite=overwrite)
    if base is not None and destination.exists():
        check_apart(base.path, destination)
    tree = scan(source)
    kinds = _kinds(tree)
    bases = _Bases(source, destination, base)
    settings = {"verb": "compress", "level": level}
    if base is not None:
        settings["base"] = str(base.path)
    if keyframe_every is not None:
        settings["keyframe_every"] = str(keyframe_every)
        models = [name for name, kind in kinds.items() if kind is Kind.SAFETENSORS]
        bases.chains = chains(models, keyframe_every)
    with Workspace(destination, settings) as work:
        # Files with a base are stored as differences, which no other file may refer to.
        alone = [
            file
            for file in tree.files
            if kinds[file.name] is Kind.SAFETENSORS and not bases.arguments(file.name)
        ]
        files = in_order(tree.files, alone)
        others = [file for file in tree.files if kinds[file.name] is Kind.COPY]
        catalog = catalog_of(source, files[: len(alone)], others, threads, progress)
        meter = Meter(progress, _total(tree))
        packer = _Packer(work, level, threads, meter, note, bases, catalog)
        entries = {file.name: packer.pack(file, kinds[file.name]) for file in files}
        packer.name_large_copies(entries)
        manifest = Manifest(entries, tuple(tree.empty_folders())).to_bytes()
        write_file(work.target(MANIFEST_NAME), manifest)
        work.record(MANIFEST_NAME, {})
        for name in tree.folders:
            work.make_folder(name)
        work.publish({name: source / name for name in ("", *tree.folders)}, overwrite=overwrite)
    return result_of(entries, len(manifest))


def result_of(entries: Mapping[str, Entry], manifest_bytes: int) -> DirectoryResult:
    """The result for these files."""
    return DirectoryResult(
        files=len(entries),
        compressed_files=sum(entry.kind.is_compressed for entry in entries.values()),
        original_bytes=sum(entry.size for entry in entries.values()),
        stored_bytes=sum(entry.stored_size for entry in entries.values()) + manifest_bytes,
    )


def _total(tree: Tree) -> int:
    return sum(file.size for file in tree.files)


def _kinds(tree: Tree) -> dict[str, Kind]:
    if any(file.name == MANIFEST_NAME for file in tree.files):
        message = f"{tree.root} is already compressed: it has a {MANIFEST_NAME}"
        raise NeuzipError(message)
    kinds: dict[str, Kind] = {}
    already = None
    for file in tree.files:
        found = "other" if _in_repository(file.name) else _native.content_kind(str(file.path))
        if found == "safetensors":
            kinds[file.name] = Kind.SAFETENSORS
        else:
            kinds[file.name] = loader_kind(file.name, file.size) or Kind.COPY
            already = already or (file.name if found == "neuzip-safetensors" else None)
    if Kind.SAFETENSORS not in kinds.values():
        if already is not None:
            message = f"{tree.root / already} is already compressed"
            raise NeuzipError(message)
        message = (
            f"{tree.root}: no .safetensors file in it, so this is no model directory; "
            "other files are compressed one by one"
        )
        raise NeuzipError(message)
    return kinds


def _in_repository(name: str) -> bool:
    # The objects of a git repository are known by their hash, and must stay what they are.
    return ".git" in name.split("/")


@dataclass(slots=True)
class _Bases:
    """What each file is compressed against."""

    source: Path
    destination: Path
    base: Base | None
    chains: Mapping[str, str] = field(default_factory=dict)

    def arguments(self, name: str) -> BaseArguments:
        before = self.chains.get(name)
        if before is not None:
            base: Base | None = Base(self.source / before, self.destination / before)
        else:
            base = None if self.base is None else self.base.of(name)
        return base_arguments(base, self.destination / name)


class _Packer:
    def __init__(
        self,
        work: Workspace,
        level: str,
        threads: int | None,
        meter: Meter,
        note: Note | None,
        bases: _Bases,
        catalog: _native.Catalog | None,
    ) -> None:
        self._work = work
        self._level = level
        self._threads = threads
        self._meter = meter
        self._note = note or (lambda _: None)
        self._bases = bases
        self._catalog = catalog

    def pack(self, file: TreeFile, kind: Kind) -> Entry:
        """Writes one file into the workspace, or finds it finished there."""
        entry = self._reuse(file, kind)
        if entry is None:
            if kind is Kind.SAFETENSORS:
                entry = self._compress(file)
            elif kind is Kind.COPY:
                entry = self._refer(file) or self._copy(file)
            else:
                entry = self._write_for_loaders(file, kind)
            if stamp_of(file.path) != file.stamp:
                message = f"{file.path} changed while it was read"
                raise NeuzipError(message)
            keep_attributes(file.path, self._work.target(file.name))
        self._work.record(file.name, {"stamp": list(file.stamp), "entry": entry.to_json()})
        return entry

    def name_large_copies(self, entries: Mapping[str, Entry]) -> None:
        """Tells the user which weights were not compressed."""
        names = [
            name
            for name, entry in entries.items()
            if entry.kind is Kind.COPY
            and entry.size >= _NOTED_BYTES
            and name.lower().endswith(_WEIGHT_SUFFIXES)
            and not _in_repository(name)
        ]
        if names:
            self._note(f"copied as they are, being no plain .safetensors files: {listed(names)}")

    def _compress(self, file: TreeFile) -> Entry:
        target = self._work.target(file.name)
        with (
            hash_meanwhile(file.path, self._threads) as digest,
            self._meter.part(file.size) as progress,
        ):
            arguments = self._bases.arguments(file.name)
            catalog = None if arguments else catalog_for(file.name, self._catalog)
            if catalog is None:
                size, stored_size = _native.compress_file(
                    str(file.path),
                    str(target),
                    level=self._level,
                    threads=self._threads,
                    overwrite=True,
                    progress=progress,
                    **arguments,
                )
            else:
                size, stored_size = catalog.compress_file(
                    file.name,
                    str(file.path),
                    str(target),
                    level=self._level,
                    threads=self._threads,
                    progress=progress,
                )
            return Entry(Kind.SAFETENSORS, size, digest(), stored_size)

    def _refer(self, file: TreeFile) -> Entry | None:
        """Stores a checkpoint as what it shares with .safetensors files and the rest."""
        catalog = catalog_for(file.name, self._catalog)
        if catalog is None or _in_repository(file.name) or not is_zip(file.path):
            return None
        target = self._work.target(file.name)
        # No progress: how many bytes are done is told by who takes the file in the end.
        sizes = catalog.compress_ranges(
            file.name,
            str(file.path),
            str(target),
            stored_members(file.path),
            level=self._level,
            threads=self._threads,
            progress=lambda *_: None,
        )
        if sizes is None:
            return None
        digest, size = sha256(file_pieces(file.path))
        self._meter.add(size)
        return Entry(Kind.NZ, size, digest, sizes[1])

    def _copy(self, file: TreeFile) -> Entry:
        digest, size = copy_file(file.path, self._work.target(file.name), self._meter)
        return Entry(Kind.COPY, size, digest, size)

    def _write_for_loaders(self, file: TreeFile, kind: Kind) -> Entry:
        original = file.path.read_bytes()
        stored, remark = mark_config(original) if kind is Kind.CONFIG else (original, None)
        if remark is not None:
            self._note(remark)
        write_file(self._work.target(file.name), stored)
        self._meter.add(len(original))
        digest, size = sha256([memoryview(original)])
        stored_digest, stored_size = sha256([memoryview(stored)])
        return Entry(kind, size, digest, stored_size, stored_digest, original)

    def _reuse(self, file: TreeFile, kind: Kind) -> Entry | None:
        facts: dict[str, Any] | None = self._work.finished(file.name)
        if facts is None or kind in (Kind.CONFIG, Kind.INDEX):
            return None
        target = self._work.target(file.name)
        if facts["stamp"] != list(file.stamp) or not target.is_file():
            return None
        entry = Entry.from_json(file.name, facts["entry"])
        fits = entry.kind is kind or (kind is Kind.COPY and entry.kind is Kind.NZ)
        if not fits or target.stat().st_size != entry.stored_size:
            return None
        if entry.kind is Kind.COPY:
            sound = sha256(file_pieces(target))[0] == entry.sha256
        else:
            sound = self._is_sound(target)
        if not sound:
            return None
        self._meter.add(file.size)
        return entry

    def _is_sound(self, target: Path) -> bool:
        try:
            _native.verify_file(str(target), threads=self._threads, progress=lambda *_: None)
        except NeuzipError:
            return False
        return True
