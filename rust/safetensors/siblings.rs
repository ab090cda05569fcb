//! Tensors that other files refer to, found beside or below the file that refers to them.
//!
//! Invariants: only a file in the same folder or below is opened, by a name that was checked when it was
//! read; the tensor referred to holds its bytes itself, so that references cannot go round in circles;
//! whatever is there, the result has the hash that the reference names, or is an error.
//!
//! Place in docs/format-files.md: "References to other files".

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::SafetensorsFile;
use super::casts::cast;
use super::dtype::ElementType;
use crate::container::external::External;
use crate::container::mapped::Mapped;
use crate::container::pieces::PIECE_BYTES;
use crate::error::{Error, Result, try_zeroed};
use crate::{DecompressOptions, Dtype, Stream, content_hash};

/// Bytes that are converted in one go.
const STEP_BYTES: usize = 4 << 20;

/// The files around a file, opened when they are needed.
pub(crate) struct Siblings {
    folder: PathBuf,
    /// Whether this process fills the files in while they are read.
    are_filled_in: bool,
    open: Mutex<HashMap<String, Arc<SafetensorsFile>>>,
}

/// Bytes that were found in another file.
pub(crate) struct Elsewhere {
    file: Arc<SafetensorsFile>,
    index: usize,
    dtype: Dtype,
    /// Bytes in all.
    len: u64,
    external: External,
}

impl Siblings {
    /// Those of the file at `path`.
    pub(crate) fn of(path: &Path) -> Self {
        Self {
            folder: path.parent().map(Path::to_path_buf).unwrap_or_default(),
            are_filled_in: false,
            open: Mutex::default(),
        }
    }

    /// Those of a mapped file.
    pub(super) fn of_map(map: &Mapped) -> Self {
        Self {
            are_filled_in: map.is_filled_in(),
            ..Self::of(map.path())
        }
    }

    /// Finds what a stream with an external body refers to.
    ///
    /// # Errors
    /// [`Error::BaseMismatch`] if it is not there or not what the stream says.
    pub(crate) fn find(&self, stream: &Stream<'_>, external: &External) -> Result<Elsewhere> {
        let mismatch = |what: String| {
            Error::BaseMismatch(format!(
                "it refers to {:?} of {:?}, {what}",
                external.name, external.file
            ))
        };
        let file = self
            .file(&external.file)
            .map_err(|error| mismatch(format!("which cannot be read: {error}")))?;
        let header = file.header();
        let index = header
            .find(&external.name)
            .ok_or_else(|| mismatch("which that file has not".to_owned()))?;
        if !file.holds(index)? {
            return Err(mismatch("which is a reference itself".to_owned()));
        }
        let bytes = header.tensor_bytes(index);
        let fits = if external.derivation.is_cast() {
            header.element(index) == ElementType::F32 && bytes == 2 * stream.original_len()
        } else {
            external.start + stream.original_len() <= bytes
        };
        if !fits {
            return Err(mismatch("which has another type or length".to_owned()));
        }
        Ok(Elsewhere {
            file,
            index,
            dtype: stream.dtype(),
            len: stream.original_len(),
            external: external.clone(),
        })
    }

    /// Decodes a whole stream, wherever its bytes are.
    ///
    /// # Errors
    /// As [`Stream::decode_into`] and [`Siblings::find`].
    pub(crate) fn decode(
        &self,
        stream: &Stream<'_>,
        out: &mut [u8],
        options: &DecompressOptions,
    ) -> Result<()> {
        let Some(external) = stream.external() else {
            return stream.decode_into(0, out, options);
        };
        let decoded = self.find(stream, external).and_then(|found| {
            found.read(0, out, options)?;
            if options.verify && content_hash(out) != external.content_hash {
                return Err(Error::BaseMismatch(format!(
                    "{:?} of {:?} is not what it was",
                    external.name, external.file
                )));
            }
            Ok(())
        });
        self.settle(decoded, options.verify)
    }

    /// See [`SafetensorsFile::settle`].
    pub(super) fn settle<T>(&self, result: Result<T>, is_vouched_for: bool) -> Result<T> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.values().fold(result, |result, file| {
            file.settle_with(result, is_vouched_for)
        })
    }

    fn file(&self, name: &str) -> Result<Arc<SafetensorsFile>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(name) {
            return Ok(file.clone());
        }
        let path = self.folder.join(name);
        let file = Arc::new(if self.are_filled_in {
            SafetensorsFile::open_filled_in(&path, None)?
        } else {
            SafetensorsFile::open(&path)?
        });
        open.insert(name.to_owned(), file.clone());
        Ok(file)
    }
}

impl Elsewhere {
    /// The hash that all bytes together must have.
    pub(crate) fn content_hash(&self) -> u128 {
        self.external.content_hash
    }

    /// Where a piece that begins at `position` should end: with a chunk of the other tensor, if chunks
    /// are no longer than pieces.
    pub(crate) fn piece_end(&self, position: u64) -> u64 {
        let in_other = self.external.start + position;
        let step = PIECE_BYTES as u64;
        let end = (in_other / step + 1) * step - self.external.start;
        end.min(self.len)
    }

    /// Fills `out` with the bytes from `start` on.
    pub(crate) fn read(
        &self,
        start: u64,
        out: &mut [u8],
        options: &DecompressOptions,
    ) -> Result<()> {
        let place = |error: Error| error.within(&self.external.file);
        let own = |start: u64, out: &mut [u8]| {
            let read = self.file.read_held(self.index, start, out, options);
            read.map_err(place)
        };
        if !self.external.derivation.is_cast() {
            return own(self.external.start + start, out);
        }
        // Whole elements, whatever was asked for.
        let (begin, end) = (start & !1, (start + out.len() as u64).next_multiple_of(2));
        let mut position = begin;
        let mut wide = try_zeroed(2 * STEP_BYTES.min((end - begin) as usize))?;
        let mut narrow = try_zeroed(wide.len() / 2)?;
        while position < end {
            let len = narrow.len().min((end - position) as usize);
            let (wide, narrow) = (&mut wide[..2 * len], &mut narrow[..len]);
            own(2 * position, wide)?;
            cast(self.external.derivation, self.dtype, wide, narrow);
            self.correct(position, narrow);
            let from = start.saturating_sub(position) as usize;
            let to = len.min((start + out.len() as u64 - position) as usize);
            let at = (position + from as u64 - start) as usize;
            out[at..at + to - from].copy_from_slice(&narrow[from..to]);
            position += len as u64;
        }
        Ok(())
    }

    /// Puts the exceptions in, into the elements from byte `position` on.
    fn correct(&self, position: u64, narrow: &mut [u8]) {
        let exceptions = &self.external.exceptions;
        let elements = narrow.as_chunks_mut::<2>().0;
        let begin = exceptions.partition_point(|&(index, _)| index < position / 2);
        for &(index, bits) in &exceptions[begin..] {
            match elements.get_mut((index - position / 2) as usize) {
                Some(element) => *element = bits.to_le_bytes(),
                None => break,
            }
        }
    }
}
