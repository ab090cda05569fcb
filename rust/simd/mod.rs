//! Which instruction set the kernels use.
//!
//! This release has the portable tier alone: the oracle that faster tiers will be tested against.

use crate::error::{Error, Result};

/// Environment variable that pins a tier.
const SIMD_VARIABLE: &str = "NEUZIP_SIMD";

/// A set of kernels. Every tier writes and reads the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimdTier {
    /// Portable Rust.
    Scalar,
}

impl SimdTier {
    /// The name `NEUZIP_SIMD` knows the tier by.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
        }
    }
}

/// The tier in use: the one `NEUZIP_SIMD` names, else the fastest this machine has.
///
/// # Errors
/// [`Error::InvalidArgument`] when the variable names a tier that is unknown or not available.
pub fn simd_tier() -> Result<SimdTier> {
    match std::env::var(SIMD_VARIABLE) {
        Ok(name) if !name.is_empty() && name != SimdTier::Scalar.name() => {
            Err(Error::InvalidArgument(format!(
                "{SIMD_VARIABLE}={name:?} is not available here; available: scalar"
            )))
        }
        _ => Ok(SimdTier::Scalar),
    }
}
