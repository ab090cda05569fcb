//! Files mapped into memory for reading: the one place that maps, and the errors that say which file.
//!
//! Invariants: a map is only ever read; nothing parsed from it is believed before it was copied out or
//! is bounds-checked where it is used, so a file that changes underneath gives an error or other bytes,
//! never a read outside the map.
//!
//! Place in docs/format-files.md: none.

#![allow(
    unsafe_code,
    reason = "mapping a file and dropping its resident pages have no safe form"
)]

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// A file system error and the file it concerns, carried inside an [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", .path.display())]
pub(crate) struct PathError {
    pub(crate) path: PathBuf,
    pub(crate) source: io::Error,
}

/// Names the file in a file system error.
pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| {
        let kind = source.kind();
        Error::Io(io::Error::new(
            kind,
            PathError {
                path: path.to_path_buf(),
                source,
            },
        ))
    }
}

/// Names the file in `error` if it is a file system error that names none yet.
pub(crate) fn name_file(error: Error, path: &Path) -> Error {
    match error {
        Error::Io(source) if path_of(&source).is_none() => at(path)(source),
        other => other,
    }
}

/// The file that a file system error names.
pub(crate) fn path_of(error: &io::Error) -> Option<&PathError> {
    error.get_ref()?.downcast_ref()
}

/// What tells one state of a file from a later one.
type Fingerprint = (u64, Option<SystemTime>);

fn fingerprint(metadata: &fs::Metadata) -> Fingerprint {
    (metadata.len(), metadata.modified().ok())
}

/// A whole file, mapped read-only.
pub(crate) struct Mapped {
    // An empty file has no map: most systems refuse to map nothing.
    map: Option<Mmap>,
    file: File,
    path: PathBuf,
    opened_as: Fingerprint,
}

impl Mapped {
    /// Maps the regular file at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let named = fs::metadata(path).map_err(at(path))?;
        if !named.is_file() {
            // Asked before opening, because opening a pipe would wait for its writer.
            let kind = if named.is_dir() {
                io::ErrorKind::IsADirectory.into()
            } else {
                io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")
            };
            return Err(at(path)(kind));
        }
        let file = File::open(path).map_err(at(path))?;
        let opened_as = fingerprint(&file.metadata().map_err(at(path))?);
        let map = if opened_as.0 == 0 {
            None
        } else {
            // SAFETY: the bytes of a map may change or vanish when another process writes to or
            // truncates the file. A change can only make the codec read other bytes: every value is
            // copied or bounds-checked where it is used, and no `str` or enum is ever viewed in
            // place. A truncation makes touching the lost pages raise SIGBUS, which ends the
            // process; no reader of maps can prevent that. It is kept rare: the map lives no longer
            // than one call (or one open reader), we never write to a file in place (outputs are
            // renamed over their names, which leaves a mapped inode whole), and `unchanged` reports
            // a source that was written to while it was read.
            Some(unsafe { Mmap::map(&file) }.map_err(at(path))?)
        };
        Ok(Self {
            map,
            file,
            path: path.to_path_buf(),
            opened_as,
        })
    }

    /// The content of the file.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }

    /// The name it was opened by.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Says if the file was written to since it was opened, as far as its length and time tell.
    pub(crate) fn unchanged(&self) -> Result<()> {
        let metadata = self.file.metadata().map_err(at(&self.path))?;
        if fingerprint(&metadata) == self.opened_as {
            return Ok(());
        }
        Err(at(&self.path)(io::Error::other(
            "the file changed while it was read",
        )))
    }

    /// Starts reading the file from front to back.
    pub(crate) fn sweep(&self) -> Sweep<'_> {
        Sweep {
            map: self,
            released: 0,
        }
    }
}

/// A reader that goes through a map once and lets go of the pages behind it, so that a large file does
/// not pile up as resident memory. They stay readable.
pub(crate) struct Sweep<'a> {
    map: &'a Mapped,
    released: usize,
}

impl Sweep<'_> {
    /// Bytes between two requests to the system; a multiple of every page size in use.
    const STEP: usize = 8 << 20;

    /// Tells that the bytes in front of `end` will probably not be read again.
    pub(crate) fn passed(&mut self, end: usize) {
        let end = end.min(self.map.bytes().len()) / Self::STEP * Self::STEP;
        if end > self.released {
            self.map.release(self.released..end);
            self.released = end;
        }
    }
}

impl Mapped {
    #[cfg(unix)]
    fn release(&self, range: Range<usize>) {
        if let Some(map) = &self.map {
            // SAFETY: the map is never written and backed by a file, so the pages that are dropped
            // are read from the file again when touched: no byte changes.
            let advised = unsafe {
                map.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    range.start,
                    range.len(),
                )
            };
            // A system that does not take the advice only keeps more pages resident.
            drop(advised);
        }
    }

    #[cfg(not(unix))]
    fn release(&self, _range: Range<usize>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_pages_read_the_same_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let bytes: Vec<u8> = (0..20_000_000_u32).map(|i| (i >> 3) as u8).collect();
        fs::write(&path, &bytes).unwrap();
        let mapped = Mapped::open(&path).unwrap();
        assert!(mapped.bytes() == bytes);
        let mut sweep = mapped.sweep();
        for end in [0, 5, 9_000_000, 8_000_000, usize::MAX] {
            sweep.passed(end);
        }
        assert!(mapped.bytes() == bytes);
        mapped.unchanged().unwrap();
    }

    #[test]
    fn empty_files_folders_and_missing_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("empty");
        File::create(&path).unwrap();
        assert!(Mapped::open(&path).unwrap().bytes().is_empty());
        for (path, kind) in [
            (folder.path().to_path_buf(), io::ErrorKind::IsADirectory),
            (folder.path().join("missing"), io::ErrorKind::NotFound),
        ] {
            let Err(Error::Io(error)) = Mapped::open(&path) else {
                panic!("opened {path:?}")
            };
            assert_eq!(error.kind(), kind);
            assert_eq!(path_of(&error).unwrap().path, path);
        }
    }

    #[test]
    fn a_change_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        fs::write(&path, b"before").unwrap();
        let mapped = Mapped::open(&path).unwrap();
        fs::write(&path, b"after it").unwrap();
        assert!(matches!(mapped.unchanged(), Err(Error::Io(_))));
    }
}
