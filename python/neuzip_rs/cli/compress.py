"""`neuzip compress`."""

from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from neuzip_rs import _native
from neuzip_rs._bases import Base, base_arguments, check_base, in_order
from neuzip_rs.cli import options
from neuzip_rs.cli.fetched import fetch, is_hub_path
from neuzip_rs.cli.outcome import report
from neuzip_rs.cli.places import (
    Places,
    SourceKind,
    compressed_name,
    is_device,
    located,
    source_kind,
)
from neuzip_rs.cli.removal import check_restorable, check_stands_without, remove_source
from neuzip_rs.cli.report import percent
from neuzip_rs.cli.session import Session, UsageError
from neuzip_rs.cli.staging import Staging, staged_places
from neuzip_rs.cli.streams import compress_stream, compress_to_stream, open_source, open_target
from neuzip_rs.directory.check import verify_directory
from neuzip_rs.directory.content import COMPRESSED_KINDS
from neuzip_rs.directory.pack import compress_directory
from neuzip_rs.directory.places import check_places
from neuzip_rs.directory.transfer import DirectoryResult
from neuzip_rs.directory.tree import keep_attributes
from neuzip_rs.models import compress as compress_model
from neuzip_rs.models import done, find, read, write
from neuzip_rs.remote import is_url


def compress(
    paths: options.Paths,
    output: options.Output = None,
    force: options.Force = False,
    remove: options.Remove = False,
    level: options.LevelOption = options.Level.DEFAULT,
    threads: options.Threads = 0,
    base: options.Base = None,
    keyframe_every: options.KeyframeEvery = None,
    models: options.Models = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Compress files and model directories; what a file is, is decided by its content.

    X.safetensors becomes X.nz.safetensors, any other Y becomes Y.nz, and DIR becomes DIR-nz, in
    which all files have the names they had. The source is kept unless --rm is given. A PATH may
    be on a hub: hf://org/model is downloaded, and becomes model-nz in the folder you are in.

    With --base the tensors of .safetensors files are stored as differences from those of the same
    name in another model, where that is smaller. With --keyframe-every N the PATHs are checkpoints,
    or one PATH is a directory with checkpoints in it: each is stored as its difference from the one
    before, in the order of the numbers in their names, and every Nth stands alone, so that at
    most N have to be read to restore one. Files say where their base is; keep them together.

    With --models each PATH is a folder with any number of models below it: every one is compressed
    into the same place below DIR-nz (or -o), and appears there when it is complete. What is done is
    recorded in neuzip_models.json; the same command again goes on, and takes what has changed.

    --json prints: path, output (null: standard output), kind, original_bytes, compressed_bytes,
    ratio (compressed / original), seconds; for a directory also files and compressed_files; after
    an error only path and error.
    """
    session = Session(quiet=quiet, as_json=as_json, bar=not no_progress)
    count = options.thread_count(threads)
    with Staging(session) as staging:
        try:
            places = staged_places(staging, paths, output, force, remove=remove)
            places.check(paths, remove=remove, as_json=as_json)
            if models:
                _check_models(base, keyframe_every, remove)
            chain = _chain(staging, paths, output, base, keyframe_every)
        except UsageError as error:
            session.refuse(str(error))
        if chain is not None:
            paths = in_order(paths)
        work = _Compression(
            *(session, places, level.value, count, remove, base, chain, keyframe_every, staging)
        )
        do = work.models if models else work.path
        session.run(paths, lambda path: staging.run(path, do, overwrite=force or models))


def _check_models(base: str | None, keyframe_every: int | None, remove: bool) -> None:
    if base is not None or keyframe_every is not None or remove:
        message = "--models goes with neither --base nor --keyframe-every nor --rm"
        raise UsageError(message)


@dataclass(slots=True)
class _Chain:
    """Checkpoints that are compressed one after the other."""

    keyframe_every: int
    _before: Base | None = None
    _since_keyframe: int = 0

    def base(self) -> Base | None:
        """What the next checkpoint is stored as the difference from."""
        return self._before if self._since_keyframe else None

    def add(self, source: Path, target: Path) -> None:
        """Goes on after a checkpoint."""
        self._before = Base(source if source.exists() else target, target)
        self._since_keyframe = (self._since_keyframe + 1) % self.keyframe_every


def _chain(
    staging: Staging,
    paths: list[str],
    output: str | None,
    base: str | None,
    keyframe_every: int | None,
) -> _Chain | None:
    """The chain that several PATHs make; one PATH is a directory with a chain in it."""
    if keyframe_every is None:
        return None
    if base is not None:
        message = "--base names one base, and --keyframe-every takes each from the one before"
        raise UsageError(message)
    if "-" in (*paths, output):
        message = "--keyframe-every needs files or directories, which find each other by name"
        raise UsageError(message)
    if len(paths) > 1:
        return _Chain(keyframe_every)
    if not staging.is_folder(paths[0]):
        message = f"{paths[0]}: --keyframe-every needs several checkpoints, or a directory of them"
        raise UsageError(message)
    return None


@dataclass(frozen=True, slots=True)
class _Compression:
    session: Session
    places: Places
    level: str
    threads: int | None
    remove: bool
    named_base: str | None
    chain: _Chain | None
    keyframe_every: int | None
    staging: Staging

    def path(self, path: str) -> None:
        """Compresses one PATH."""
        if is_hub_path(path):
            found = fetch(path, self.session, remove=self.remove)
            work = replace(self, places=self.places.of_fetched())
            compress = work._folder if found.local.is_dir() else work._file
            compress(path, found.local, found.name)
            return
        kind = source_kind(path)
        if kind is SourceKind.FOLDER:
            self._folder(path, located(path), located(path).name)
        elif kind is SourceKind.FILE:
            self._file(path, Path(path), Path(path).name)
        else:
            self._stream(path)

    def models(self, path: str) -> None:
        """Compresses all models below one PATH."""
        root = located(path)
        if not root.is_dir():
            message = f"{path}: --models needs a folder with models in it"
            raise UsageError(message)
        name = compressed_name(root.name, SourceKind.FOLDER, "")
        target = self.places.folder_target(path, name)
        check_places(root, target, overwrite=True)
        started = perf_counter()
        names = find(root)
        if not names:
            message = f"{path}: no models in it"
            raise ValueError(message)
        records = read(target)
        for model in names:
            before = done(root, target, model, level=self.level)
            if before is not None:
                records[model] = before
                self.session.note(f"{model}: done before")
                continue
            with self.session.progress("compressing", model) as progress:
                record = compress_model(
                    root,
                    target,
                    model,
                    level=self.level,
                    threads=self.threads,
                    progress=progress,
                    note=self.session.note,
                )
            records[model] = record
            share = percent(record.stored_bytes, record.original_bytes)
            self.session.note(f"{model}: {share}")
        write(target, records.values())
        found = [records[model] for model in names]
        sizes = sum(r.original_bytes for r in found), sum(r.stored_bytes for r in found)
        more = {"models": len(found), "files": sum(r.files for r in found)}
        self._report(path, target, "models", sizes, started, more)

    def _base(self, target: Path | None) -> Base | None:
        if self.chain is not None:
            return self.chain.base()
        if self.named_base is None:
            return None
        named = self.staging.source(self.named_base)
        check_base(named)
        # Of two different places neither has a path to the other.
        alike = is_url(self.named_base) == self.staging.is_inside(target)
        return Base(Path(named), Path(named) if alike else None)

    def _done(self, source: Path, target: Path | None) -> None:
        if self.chain is not None and target is not None:
            self.chain.add(source, target)

    def _folder(self, path: str, source: Path, name: str) -> None:
        name = compressed_name(name, SourceKind.FOLDER, "")
        target = self.places.folder_target(str(source), name)
        started = perf_counter()
        with (
            self.session.resumable(target),
            self.session.progress("compressing", path) as progress,
        ):
            result = compress_directory(
                source,
                target,
                level=self.level,
                threads=self.threads,
                overwrite=self.places.force,
                base=self._base(target),
                keyframe_every=None if self.chain else self.keyframe_every,
                progress=progress,
                note=self.session.note,
            )
        if self.remove:
            with self.session.progress("checking", target) as progress:
                verify_directory(target, original=source, threads=self.threads, progress=progress)
            check_stands_without(target, source)
            remove_source(source)
        self._done(source, target)
        self._report(path, target, "directory", _sizes(result), started, _counts(result))

    def _file(self, path: str, source: Path, name: str) -> None:
        content = _native.content_kind(str(source))
        if content in COMPRESSED_KINDS:
            message = f"{path} is already compressed"
            raise ValueError(message)
        target = self.places.target(str(source), compressed_name(name, SourceKind.FILE, content))
        base = self._base(target)
        if base is not None and content != "safetensors":
            self.session.note(f"{path}: differences are taken of .safetensors files only")
            base = None
        started = perf_counter()
        with self.session.progress("compressing", path) as progress:
            if target is None or is_device(target):
                with open_target(target, overwrite=True) as write:
                    sizes = compress_to_stream(
                        source,
                        write,
                        level=self.level,
                        threads=self.threads,
                        progress=progress,
                        base=base,
                    )
            else:
                sizes = _native.compress_file(
                    str(source),
                    str(target),
                    level=self.level,
                    threads=self.threads,
                    overwrite=self.places.force,
                    progress=progress,
                    **base_arguments(base, target),
                )
                keep_attributes(source, target)
        if self.remove and target is not None:
            with self.session.progress("checking", target) as progress:
                named = None if base is None else str(base.path)
                check_restorable(target, source, self.threads, progress, named)
            check_stands_without(target, source)
            remove_source(source)
        if content == "safetensors":
            self._done(source, target)
        self._report(path, target, content, sizes, started, {})

    def _stream(self, path: str) -> None:
        if self.remove:
            message = f"{path}: --rm needs files: streams cannot be read again"
            raise UsageError(message)
        target = self.places.target(path, None)
        started = perf_counter()
        with (
            open_source(path) as source,
            open_target(target, overwrite=self.places.force) as write,
            self.session.progress("compressing", path) as progress,
        ):
            sizes = compress_stream(
                source,
                write,
                level=self.level,
                threads=self.threads,
                progress=progress,
                base=self._base(target),
            )
        self._report(path, target, "stream", sizes, started, {})

    def _report(
        self,
        path: str,
        target: Path | None,
        kind: str,
        sizes: tuple[int, int],
        started: float,
        more: dict[str, Any],
    ) -> None:
        original, compressed = sizes
        report(
            self.session,
            path,
            target,
            kind,
            original=original,
            compressed=compressed,
            restored=False,
            started=started,
            more=more,
        )


def _sizes(result: DirectoryResult) -> tuple[int, int]:
    return result.original_bytes, result.stored_bytes


def _counts(result: DirectoryResult) -> dict[str, Any]:
    return {"files": result.files, "compressed_files": result.compressed_files}
