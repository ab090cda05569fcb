//! What the fuzz targets do, as functions of bytes.
//!
//! Each target is a function that panics on a finding. `fuzz_targets/` gives them to libFuzzer, and
//! `tests/rust/fuzz_corpus.rs` runs them over the corpus and all that was ever found, without libFuzzer and
//! with the tests. Everything here uses the public functions of the crate alone: streams that reach behind
//! the checksums are sealed by the code in [`wire`], which was written from docs/format.md.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::expect_used,
    clippy::panic,
    clippy::similar_names,
    clippy::too_many_lines,
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "bytes are cut to size on purpose, and a panic is a finding"
)]

pub mod content;
#[cfg(unix)]
pub mod gpu;
#[cfg(not(unix))]
#[path = "no_gpu.rs"]
pub mod gpu;
#[cfg(unix)]
#[path = "../../rust/simd/tests/guard_page.rs"]
mod guard_page;
pub mod legal;
pub mod mutate;
pub mod oracle;
pub mod targets;
pub mod wire;
pub mod zipnn;
