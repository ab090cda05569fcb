//! Every tier writes the same bytes, gives the same data back, and refuses the same damage.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "generated data is cut to size on purpose, and a failed unwrap is a failed test"
)]

mod bounds;
mod damage;
mod equality;
#[path = "../../../rust/simd/tests/guard_page.rs"]
mod guard_page;
mod samples;

use neuzip_rs::{CompressOptions, DecompressOptions, Result, SimdTier, Stream, Threads};

/// The tiers this machine has, the portable one among them.
fn tiers() -> impl Iterator<Item = SimdTier> {
    SimdTier::ALL.into_iter().filter(|tier| tier.is_available())
}

/// `options` on one thread and one tier.
fn pinned(options: &CompressOptions, tier: SimdTier) -> CompressOptions {
    CompressOptions {
        threads: Threads::new(1),
        simd: Some(tier),
        ..options.clone()
    }
}

/// Decodes from byte `start` on until `out` is full.
fn decode(
    stream: &Stream<'_>,
    tier: SimdTier,
    verify: bool,
    start: usize,
    out: &mut [u8],
) -> Result<()> {
    let options = DecompressOptions {
        verify,
        threads: Threads::new(1),
        simd: Some(tier),
    };
    stream.decode_into(start as u64, out, &options)
}
