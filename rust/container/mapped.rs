//! Files mapped into memory for reading: the one place that maps, and the errors that say which file.
//!
//! Invariants: a map is only ever read; nothing parsed from it is believed before it was copied out or
//! is bounds-checked where it is used, so a file that changes underneath gives an error or other bytes,
//! never a read outside the map; what was read while the file changed is reported, see [`Mapped::settle`].
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

#[cfg(unix)]
use super::lost_pages::Guard;
#[cfg(target_os = "linux")]
use super::read_ahead::is_in_memory;
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
    // Dropped before the map it watches over.
    #[cfg(unix)]
    guard: Option<Guard>,
    // An empty file has no map: most systems refuse to map nothing.
    map: Option<Mmap>,
    file: File,
    path: PathBuf,
    opened_as: Fingerprint,
    /// Whether this process fills in the file while it is read, which is no change then.
    is_filled_in: bool,
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
            // place. Pages that vanish are replaced by zeros, see `lost_pages`. `settle` reports both;
            // we never write to a file in place ourselves (outputs are renamed over their names, which
            // leaves a mapped inode whole).
            Some(unsafe { Mmap::map(&file) }.map_err(at(path))?)
        };
        Ok(Self {
            #[cfg(unix)]
            guard: map.as_deref().map(Guard::new),
            map,
            file,
            path: path.to_path_buf(),
            opened_as,
            is_filled_in: false,
        })
    }

    /// Maps a file of which parts are written, by this process, before they are read.
    pub(crate) fn open_filled_in(path: &Path) -> Result<Self> {
        let mut map = Self::open(path)?;
        map.is_filled_in = true;
        Ok(map)
    }

    /// Whether the file is filled in while it is read.
    pub(crate) fn is_filled_in(&self) -> bool {
        self.is_filled_in
    }

    /// The content of the file.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }

    /// The name it was opened by.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Says if the file was written to since it was opened, as far as its length and time tell, or if a
    /// part of it could not be read.
    pub(crate) fn unchanged(&self) -> Result<()> {
        let metadata = self.file.metadata().map_err(at(&self.path))?;
        let what = if metadata.len() < self.opened_as.0 {
            "the file was cut short while it was read"
        } else if fingerprint(&metadata) != self.opened_as && !self.is_filled_in {
            "the file changed while it was read"
        } else if self.has_lost_pages() {
            "a part of the file could not be read"
        } else {
            return Ok(());
        };
        Err(at(&self.path)(io::Error::other(what)))
    }

    /// What reading the file came to: if it changed meanwhile, damage that was found is due to that. A
    /// result that hashes vouch for stands, unless zeros took the place of a part of the file.
    pub(crate) fn settle<T>(&self, result: Result<T>, is_vouched_for: bool) -> Result<T> {
        match &result {
            Ok(_) if is_vouched_for && !self.has_lost_pages() => {}
            Ok(_)
            | Err(Error::Corrupt(_) | Error::BaseMismatch(_) | Error::UnsupportedVersion(_)) => {
                self.unchanged()?;
            }
            Err(_) => {}
        }
        result
    }

    #[cfg(unix)]
    fn has_lost_pages(&self) -> bool {
        self.guard.as_ref().is_some_and(Guard::has_lost_pages)
    }

    /// The system does not let go of mapped pages.
    #[cfg(not(unix))]
    #[allow(clippy::unused_self, reason = "as the other one")]
    fn has_lost_pages(&self) -> bool {
        false
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

impl Mapped {
    /// Tells the system that bytes will be read soon, unless they are in memory already.
    #[cfg(target_os = "linux")]
    pub(super) fn will_need(&self, range: Range<usize>) {
        let (Some(map), Some(bytes)) = (&self.map, self.bytes().get(range.clone())) else {
            return;
        };
        if !is_in_memory(bytes) {
            let advised = map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
            // A system that does not take the advice only reads later.
            drop(advised);
        }
    }

    #[cfg(not(target_os = "linux"))]
    #[allow(clippy::unused_self, reason = "as the other one")]
    pub(super) fn will_need(&self, _range: Range<usize>) {}
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
        // What is filled in changes, but does not become shorter.
        let mapped = Mapped::open_filled_in(&path).unwrap();
        fs::write(&path, b"once more").unwrap();
        mapped.unchanged().unwrap();
        fs::write(&path, b"short").unwrap();
        assert!(matches!(mapped.unchanged(), Err(Error::Io(_))));
    }

    #[cfg(unix)]
    #[test]
    fn pages_that_are_lost_read_as_zeros_and_are_reported() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let bytes = vec![7; 3_000_001];
        for kept in [0, 1, 4096, 100_000] {
            fs::write(&path, &bytes).unwrap();
            let mapped = Mapped::open(&path).unwrap();
            let other = Mapped::open(&path).unwrap();
            let writer = File::options().write(true).open(&path).unwrap();
            writer.set_len(kept).unwrap();
            assert!(
                mapped.bytes()[..kept as usize]
                    .iter()
                    .all(|&byte| byte == 7)
            );
            // The last page that is left is filled up with zeros.
            assert!(
                mapped.bytes()[kept as usize..]
                    .iter()
                    .all(|&byte| byte == 0)
            );
            for vouched in [false, true] {
                let Err(Error::Io(error)) = mapped.settle(Ok(()), vouched) else {
                    panic!("not reported")
                };
                assert!(error.to_string().ends_with("cut short while it was read"));
            }
            // Nothing of it was touched.
            assert!(other.settle(Ok(()), true).is_ok());
            assert!(other.settle(Ok(()), false).is_err());
        }
    }

    #[cfg(unix)]
    #[test]
    fn threads_that_lose_the_same_pages() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..8 {
            let path = folder.path().join(round.to_string());
            fs::write(&path, vec![7; 500_000]).unwrap();
            let maps = [(); 4].map(|()| Mapped::open(&path).unwrap());
            std::thread::scope(|scope| {
                for number in 0..8 {
                    let map = &maps[number % 4];
                    scope.spawn(move || {
                        for _ in 0..3 {
                            let others = map.bytes().iter().filter(|&&byte| byte != 7);
                            assert!(others.copied().all(|byte| byte == 0));
                        }
                    });
                }
                let writer = File::options().write(true).open(&path).unwrap();
                writer.set_len(60_000 * round).unwrap();
            });
        }
    }
}
