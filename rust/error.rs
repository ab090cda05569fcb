//! What can go wrong, in the caller's terms.

use std::io;

/// Result of every fallible function of the crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Every error the crate reports. Damaged input never panics: it becomes one of these.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The input is damaged, truncated, or was never written by this crate.
    #[error("corrupt data: {0}")]
    Corrupt(String),
    /// The input needs a newer format version or a feature this release does not have.
    #[error("unsupported: {0}")]
    UnsupportedVersion(String),
    /// The decoded data would exceed the limit the caller set.
    #[error("the decoded data has {needed} bytes, more than the limit of {limit}")]
    OutputTooLarge {
        /// Bytes the decoded data takes.
        needed: u64,
        /// Bytes the caller allowed.
        limit: u64,
    },
    /// The data refers to another tensor that is missing or different.
    #[error("base mismatch: {0}")]
    BaseMismatch(String),
    /// The caller's arguments contradict each other.
    #[error("{0}")]
    InvalidArgument(String),
    /// The file system said no.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The caller's progress function asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// Memory for the result could not be had.
    #[error("could not allocate {bytes} bytes")]
    AllocationFailed {
        /// Bytes asked for.
        bytes: u64,
    },
}

impl Error {
    /// Shorthand for [`Error::Corrupt`].
    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt(what.into())
    }

    /// Says where the damage is, in front of what it is, unless that is said already.
    #[must_use]
    pub fn within(self, place: &str) -> Self {
        let placed = |what: String| {
            let rest = what.strip_prefix(place);
            if rest.is_some_and(|rest| rest.starts_with(": ")) {
                what
            } else {
                format!("{place}: {what}")
            }
        };
        match self {
            Self::Corrupt(what) => Self::Corrupt(placed(what)),
            Self::UnsupportedVersion(what) => Self::UnsupportedVersion(placed(what)),
            Self::BaseMismatch(what) => Self::BaseMismatch(placed(what)),
            other => other,
        }
    }
}

/// Allocates a zeroed buffer, or says that it could not, instead of aborting.
pub(crate) fn try_zeroed(len: usize) -> Result<Vec<u8>> {
    let mut buffer = Vec::new();
    buffer
        .try_reserve_exact(len)
        .map_err(|_| Error::AllocationFailed { bytes: len as u64 })?;
    buffer.resize(len, 0);
    Ok(buffer)
}
