"""`neuzip verify`."""

from pathlib import Path
from time import perf_counter

from neuzip_rs import _native
from neuzip_rs._bases import check_base
from neuzip_rs.cli import options
from neuzip_rs.cli.places import SourceKind, located, source_kind
from neuzip_rs.cli.report import percent, ratio, size
from neuzip_rs.cli.session import Session
from neuzip_rs.cli.staging import Staging
from neuzip_rs.cli.streams import decompress_stream, open_source
from neuzip_rs.directory.check import verify_directory
from neuzip_rs.remote import download, is_url


def verify(
    paths: options.Paths,
    threads: options.Threads = 0,
    base: options.Base = None,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Check compressed files and directories: decode everything, write nothing.

    --json prints: path, ok (true), compressed_bytes, original_bytes, ratio (compressed /
    original), seconds; for a directory also files and compressed_files; after an error path and
    error.
    """
    session = Session(quiet=quiet, as_json=as_json, bar=not no_progress)
    count = options.thread_count(threads)
    with Staging(session) as staging:
        session.run(paths, lambda path: _verify(session, staging, path, count, base))


def _verify(
    session: Session, staging: Staging, path: str, threads: int | None, base: str | None
) -> None:
    started = perf_counter()
    counts: dict[str, int] = {}
    if base is not None:
        base = staging.source(base)
        check_base(base)
    at_url = is_url(path) and not staging.is_folder(path)
    local = path if at_url else staging.source(path)
    kind = SourceKind.FILE if at_url else source_kind(local)
    with session.progress("verifying", path) as progress:
        if at_url:
            compressed, original = download(
                path, None, threads=threads, progress=progress, base=base
            )
        elif kind is SourceKind.FOLDER:
            result = verify_directory(
                located(local),
                threads=threads,
                base=None if base is None else Path(base),
                progress=progress,
                note=session.note,
            )
            compressed, original = result.stored_bytes, result.original_bytes
            counts = {"files": result.files, "compressed_files": result.compressed_files}
        elif kind is SourceKind.FILE:
            compressed, original = _native.verify_file(
                str(Path(local)), threads=threads, progress=progress, base=base
            )
        else:
            with open_source(local) as source:
                compressed, original = decompress_stream(
                    source,
                    lambda _: None,
                    threads=threads,
                    max_output_size=None,
                    progress=progress,
                    base=base,
                )
    seconds = perf_counter() - started
    facts = {
        "path": path,
        "ok": True,
        "compressed_bytes": compressed,
        "original_bytes": original,
        "ratio": ratio(compressed, original),
        "seconds": round(seconds, 6),
    }
    share = percent(compressed, original)
    session.result(facts | counts, f"{path}: OK, {size(compressed)} of {size(original)} ({share})")
