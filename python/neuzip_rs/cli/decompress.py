"""`neuzip decompress`."""

from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from neuzip_rs import _native, zipnn
from neuzip_rs._bases import check_base
from neuzip_rs._errors import CorruptDataError
from neuzip_rs.cli import options
from neuzip_rs.cli.fetched import fetch, is_hub_path
from neuzip_rs.cli.outcome import report
from neuzip_rs.cli.places import Places, SourceKind, is_device, located, original_name, source_kind
from neuzip_rs.cli.removal import check_not_needed, check_restorable, remove_source
from neuzip_rs.cli.session import Session, UsageError
from neuzip_rs.cli.staging import Staging, staged_places
from neuzip_rs.cli.streams import decompress_stream, decompress_to_stream, open_source, open_target
from neuzip_rs.directory.content import COMPRESSED_KINDS
from neuzip_rs.directory.manifest import Manifest
from neuzip_rs.directory.restore import decompress_directory
from neuzip_rs.directory.tree import keep_attributes
from neuzip_rs.models import MODELS_NAME, read
from neuzip_rs.models import decompress as decompress_model
from neuzip_rs.remote import Places as RemotePlaces
from neuzip_rs.remote import download, is_url
from neuzip_rs.remote.download import original_pieces


def decompress(
    paths: options.Paths,
    output: options.Output = None,
    force: options.Force = False,
    remove: options.Remove = False,
    max_output_size: options.MaxOutputSize = None,
    threads: options.Threads = 0,
    base: options.Base = None,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Restore files and model directories, byte for byte.

    X.nz.safetensors becomes X.safetensors, Y.nz becomes Y, and DIR-nz becomes DIR; other names
    need -o. The source is kept unless --rm is given. A PATH may be on a hub: hf://org/model-nz.
    Files of zipnn are read too: X.znn becomes X, and X.znn.safetensors becomes X.safetensors.
    What was compressed as the difference from another model needs that: it is looked for where it
    was, or named with --base.

    --json prints: path, output (null: standard output), kind, compressed_bytes, original_bytes,
    ratio (compressed / original), seconds; for a directory also files and compressed_files; after
    an error only path and error.
    """
    session = Session(quiet=quiet, as_json=as_json, bar=not no_progress)
    count = options.thread_count(threads)
    with Staging(session) as staging:
        try:
            places = staged_places(staging, paths, output, force, remove=remove)
            places.check(paths, remove=remove, as_json=as_json)
            limit = options.size_limit(max_output_size)
        except UsageError as error:
            session.refuse(str(error))
        work = _Decompression(session, places, count, remove, limit, base, staging)

        def path(path: str) -> None:
            if is_url(path) and not is_hub_path(path) and not staging.is_folder(path):
                work.url(path)
                staging.send(overwrite=force)
            else:
                staging.run(path, work.path, overwrite=force)

        session.run(paths, path)


@dataclass(frozen=True, slots=True)
class _Decompression:
    session: Session
    places: Places
    threads: int | None
    remove: bool
    limit: int | None
    named_base: str | None
    staging: Staging

    @property
    def base(self) -> str | None:
        """The path here of the base, if one was named."""
        return None if self.named_base is None else self.staging.source(self.named_base)

    def url(self, path: str) -> None:
        """Restores a file at a URL, while it comes."""
        self._check_base()
        source = self.staging.place(path)
        target = self.places.target(str(source), self._name(source.name, SourceKind.FILE))
        started = perf_counter()
        with self.session.progress("decompressing", source) as progress:
            if target is None or is_device(target):
                pieces = original_pieces(
                    path, threads=self.threads, max_output_size=self.limit, base=self.base
                )
                with open_target(target, overwrite=True) as write:
                    given = 0
                    for piece in pieces:
                        write(piece)
                        given += len(piece)
                        progress(given, 0)
                sizes = RemotePlaces(path).size(), given
            else:
                sizes = download(
                    path,
                    target,
                    threads=self.threads,
                    overwrite=self.places.force,
                    max_output_size=self.limit,
                    progress=progress,
                    base=self.base,
                )
        self._report(path, target, "file", sizes, started, {})

    def _check_base(self) -> None:
        # A wrong name is a mistake also where no base is needed.
        if self.base is not None:
            check_base(self.base)

    def path(self, path: str) -> None:
        """Restores one PATH."""
        self._check_base()
        if is_hub_path(path):
            found = fetch(path, self.session, remove=self.remove)
            work = replace(self, places=self.places.of_fetched())
            restore = work._folder if found.local.is_dir() else work._file
            restore(path, found.local, found.name)
            return
        kind = source_kind(path)
        if kind is SourceKind.FOLDER:
            self._folder(path, located(path), located(path).name)
        elif kind is SourceKind.FILE:
            self._file(path, Path(path), Path(path).name)
        else:
            self._stream(path)

    def _models(self, path: str, source: Path, name: str) -> None:
        target = self.places.folder_target(str(source), self._name(name, SourceKind.FOLDER))
        started = perf_counter()
        records = read(source)
        compressed = original = 0
        for model in records:
            if self.remove:
                message = f"{path}: --rm is for one model, not for a folder of them"
                raise UsageError(message)
            with self.session.progress("decompressing", model) as progress:
                sizes = decompress_model(
                    source,
                    target,
                    model,
                    threads=self.threads,
                    overwrite=self.places.force,
                    max_output_size=self.limit,
                    progress=progress,
                    note=self.session.note,
                )
            compressed, original = compressed + sizes[0], original + sizes[1]
        counts = {"models": len(records), "files": sum(r.files for r in records.values())}
        self._report(path, target, "models", (compressed, original), started, counts)

    def _folder(self, path: str, source: Path, name: str) -> None:
        if (source / MODELS_NAME).is_file():
            self._models(path, source, name)
            return
        # What is wrong with the folder counts for more than what is wrong with its name.
        Manifest.read_from(source)
        target = self.places.folder_target(str(source), self._name(name, SourceKind.FOLDER))
        started = perf_counter()
        with (
            self.session.resumable(target),
            self.session.progress("decompressing", path) as progress,
        ):
            result = decompress_directory(
                source,
                target,
                threads=self.threads,
                overwrite=self.places.force,
                max_output_size=self.limit,
                base=None if self.base is None else Path(self.base),
                progress=progress,
                note=self.session.note,
            )
        if self.remove:
            if result.changed:
                message = f"{path}: not removed, because files in it were changed"
                raise CorruptDataError(message)
            # Every restored file has been read again and had the hash of the original.
            remove_source(source)
        sizes = result.stored_bytes, result.original_bytes
        counts = {"files": result.files, "compressed_files": result.compressed_files}
        self._report(path, target, "directory", sizes, started, counts)

    def _file(self, path: str, source: Path, name: str) -> None:
        content = _native.content_kind(str(source))
        if content not in COMPRESSED_KINDS and zipnn.is_compressed(source):
            self._zipnn(path, source, name)
            return
        if content not in COMPRESSED_KINDS:
            message = f"{path}: this is no file that neuzip compressed"
            raise CorruptDataError(message)
        if self.remove:
            check_not_needed(source)
        target = self.places.target(str(source), self._name(name, SourceKind.FILE))
        started = perf_counter()
        with self.session.progress("decompressing", path) as progress:
            if target is None or is_device(target):
                with open_target(target, overwrite=True) as write:
                    sizes = decompress_to_stream(
                        source,
                        write,
                        threads=self.threads,
                        max_output_size=self.limit,
                        progress=progress,
                        base=self.base,
                    )
            else:
                sizes = _native.decompress_file(
                    str(source),
                    str(target),
                    threads=self.threads,
                    overwrite=self.places.force,
                    max_output_size=self.limit,
                    progress=progress,
                    base=self.base,
                )
                keep_attributes(source, target)
        if self.remove and target is not None:
            with self.session.progress("checking", target) as progress:
                check_restorable(source, target, self.threads, progress, self.base)
            remove_source(source)
        self._report(path, target, content, sizes, started, {})

    def _zipnn(self, path: str, source: Path, name: str) -> None:
        """Restores a file that zipnn has compressed."""
        if self.remove:
            message = (
                f"{path}: --rm is not for files of zipnn, which have no checksums to tell whether "
                "what came out is what went in"
            )
            raise UsageError(message)
        target = self.places.target(str(source), self._name(name, SourceKind.FILE))
        if target is None or is_device(target):
            message = f"{path}: what zipnn compressed goes to a file; name one with -o"
            raise UsageError(message)
        started = perf_counter()
        with self.session.progress("decompressing", path) as progress:
            sizes = zipnn.decompress_file(
                source,
                target,
                threads=self.threads,
                overwrite=self.places.force,
                max_output_size=self.limit,
                progress=progress,
            )
            keep_attributes(source, target)
        self._report(path, target, "zipnn", sizes, started, {})

    def _stream(self, path: str) -> None:
        if self.remove:
            message = f"{path}: --rm needs files: streams cannot be read again"
            raise UsageError(message)
        target = self.places.target(path, None)
        started = perf_counter()
        with (
            open_source(path) as source,
            open_target(target, overwrite=self.places.force) as write,
            self.session.progress("decompressing", path) as progress,
        ):
            sizes = decompress_stream(
                source,
                write,
                threads=self.threads,
                max_output_size=self.limit,
                progress=progress,
                base=self.base,
            )
        self._report(path, target, "stream", sizes, started, {})

    def _name(self, name: str, kind: SourceKind) -> str | None:
        """The name of the result, None if -o names it."""
        output = self.places.output
        named = output is not None and (output == "-" or not Path(output).is_dir())
        if named or (kind is SourceKind.FOLDER and output is not None and not self.places.several):
            return None
        return original_name(name, kind)

    def _report(
        self,
        path: str,
        target: Path | None,
        kind: str,
        sizes: tuple[int, int],
        started: float,
        more: dict[str, Any],
    ) -> None:
        compressed, original = sizes
        report(
            self.session,
            path,
            target,
            kind,
            original=original,
            compressed=compressed,
            restored=True,
            started=started,
            more=more,
        )
