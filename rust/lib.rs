//! Lossless compression of neural network weights.
//!
//! tensor bytes -> planes -> model -> entropy coder -> chunk -> container -> file; decoding is the same
//! list read backwards. The wire format is docs/format.md, the reasons are docs/design.md. After
//! ZipNN (arXiv 2411.05239) and NeuZip (arXiv 2410.20650).

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "bit fields are cut and widened on purpose; lengths are checked where they are read"
)]

mod chunk;
mod codec;
mod constants;
mod container;
mod dtype;
mod entropy;
mod error;
pub mod files;
mod headroom;
mod huge_pages;
mod little_endian;
mod model;
mod options;
mod parallel;
mod plan;
mod planes;
#[cfg(feature = "python")]
mod python;
pub mod safetensors;
mod simd;
mod varint;
pub mod zipnn;

pub use codec::{compress, compress_delta, compress_to, content_hash, write_reference};
pub use container::device::{
    DevicePlan, EncodedChunk, EncodedModel, EncodedScale, Placement, assemble as assemble_prelude,
    assemble_constant, plan as device_plan,
};
pub use container::explain::{Alternative, Explanation, FieldUse, ScaleUse, estimate};
pub use container::external::{Derivation, External};
pub use container::info::StreamInfo;
pub use container::stream::{Reference, Stream};
pub use dtype::{Dtype, FloatFields};
pub use error::{Error, Result};
pub use options::{CompressOptions, DecompressOptions, Level, Threads};
pub use simd::{SimdTier, simd_tier};
