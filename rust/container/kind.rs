//! What a file is, by its content; names never matter.
//!
//! Place in docs/format-files.md: "Telling files apart".

use std::path::Path;

use super::file::has_file_magic;
use super::mapped::Mapped;
use crate::constants::STREAM_MAGIC;
use crate::error::Result;
use crate::safetensors::{Header, embedded::is_compressed};

/// Versions of a tensor stream are below the characters that other formats have in that place.
const VERSION_LIMIT: u8 = 0x20;

/// The kinds of files that are treated differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentKind {
    /// A valid `.safetensors` file that is not compressed.
    Safetensors,
    /// A compressed `.safetensors` file.
    NeuzipSafetensors,
    /// A `.nz` file.
    NeuzipFile,
    /// A bare tensor stream.
    NeuzipTensor,
    /// Anything else, an empty file too.
    Other,
}

impl ContentKind {
    /// Classifies the content of a whole file.
    ///
    /// A kind of this crate says what the file claims to be; only reading it tells whether it is sound.
    #[must_use]
    pub fn of(file: &[u8]) -> Self {
        if has_file_magic(file) {
            return Self::NeuzipFile;
        }
        if file.starts_with(&STREAM_MAGIC) && file.get(3).is_some_and(|&v| v < VERSION_LIMIT) {
            return Self::NeuzipTensor;
        }
        match Header::of_file(file) {
            Ok((header, _)) if is_compressed(&header) => Self::NeuzipSafetensors,
            Ok(_) => Self::Safetensors,
            Err(_) => Self::Other,
        }
    }

    /// Whether this crate wrote the file.
    #[must_use]
    pub const fn is_compressed(self) -> bool {
        matches!(
            self,
            Self::NeuzipSafetensors | Self::NeuzipFile | Self::NeuzipTensor
        )
    }

    /// A word for the kind.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::NeuzipSafetensors => "neuzip-safetensors",
            Self::NeuzipFile => "neuzip-file",
            Self::NeuzipTensor => "neuzip-tensor",
            Self::Other => "other",
        }
    }
}

/// Classifies the file at `path`.
///
/// # Errors
/// [`crate::Error::Io`] naming the file.
pub fn content_kind(path: &Path) -> Result<ContentKind> {
    let map = Mapped::open(path)?;
    map.settle(Ok(ContentKind::of(map.bytes())), true)
}
