//! What a caller can choose.

use std::num::NonZeroUsize;
use std::str::FromStr;

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::simd::SimdTier;

/// How hard the encoder looks for redundancy. Every level is decoded by the same decoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Level {
    /// Order-0 exponent coding, the cheapest search.
    Fast,
    /// Scale offsets, joint mantissa bits and signs where they pay.
    #[default]
    Default,
    /// A refined search on the whole tensor, second symbols, signs by row and column, classes of lines.
    Max,
}

impl FromStr for Level {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "fast" => Ok(Self::Fast),
            "default" => Ok(Self::Default),
            "max" => Ok(Self::Max),
            _ => Err(Error::InvalidArgument(format!(
                "level must be 'fast', 'default' or 'max', not {name:?}"
            ))),
        }
    }
}

/// How many threads may work at once. The output never depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Threads(Option<NonZeroUsize>);

impl Threads {
    /// `NEUZIP_NUM_THREADS` if it is set to a positive number, else every core.
    #[must_use]
    pub const fn auto() -> Self {
        Self(None)
    }

    /// Exactly `count` threads; one means the calling thread itself. Zero means [`Threads::auto`].
    #[must_use]
    pub const fn new(count: usize) -> Self {
        Self(NonZeroUsize::new(count))
    }

    /// The count asked for, if one was.
    pub(crate) const fn requested(self) -> Option<NonZeroUsize> {
        self.0
    }
}

/// Choices for compression.
#[derive(Clone, Debug, Default)]
pub struct CompressOptions {
    /// How hard to look for redundancy.
    pub level: Level,
    /// Original bytes per chunk, a power of two from 4 KiB to 64 MiB; `None`: 128 KiB, 256 KiB for
    /// tensors of 512 KiB and more of elements wider than a byte, at the level `max` up to 1 MiB. Plain
    /// bytes: 128 KiB.
    pub chunk_bytes: Option<usize>,
    /// Threads to work on chunks with.
    pub threads: Threads,
    /// For raw bytes: the element type they probably hold. Never needed to decode.
    pub hint: Option<Dtype>,
    /// The kernels to use; `None`: those that `NEUZIP_SIMD` names, else the fastest.
    pub simd: Option<SimdTier>,
}

/// Choices for decompression.
#[derive(Clone, Copy, Debug)]
pub struct DecompressOptions {
    /// Check the hash of every chunk that is touched. Structural checks are always made.
    pub verify: bool,
    /// Threads to work on chunks with.
    pub threads: Threads,
    /// The kernels to use; `None`: those that `NEUZIP_SIMD` names, else the fastest.
    pub simd: Option<SimdTier>,
}

impl Default for DecompressOptions {
    fn default() -> Self {
        Self {
            verify: true,
            threads: Threads::auto(),
            simd: None,
        }
    }
}
