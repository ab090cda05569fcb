//! What must hold whatever the input: no panic, the right kind of error, and the same from every tier.

use neuzip_rs::{
    CompressOptions, DecompressOptions, Error, Result, SimdTier, Stream, Threads, content_hash,
};

use super::wire;

/// Streams may claim to be as long as they like; so much of them is decoded.
pub const MOST: u64 = 1 << 20;

pub fn tiers() -> impl Iterator<Item = SimdTier> {
    SimdTier::ALL.into_iter().filter(|tier| tier.is_available())
}

pub fn pinned(options: &CompressOptions, tier: SimdTier) -> CompressOptions {
    CompressOptions {
        threads: Threads::new(1),
        simd: Some(tier),
        ..options.clone()
    }
}

pub fn options(tier: SimdTier, verify: bool) -> DecompressOptions {
    DecompressOptions {
        verify,
        threads: Threads::new(1),
        simd: Some(tier),
    }
}

/// Only these may be said of input that is no good.
pub fn is_about_data(error: &Error) -> bool {
    matches!(
        error,
        Error::Corrupt(_) | Error::UnsupportedVersion(_) | Error::BaseMismatch(_)
    )
}

#[track_caller]
pub fn about_data<T>(result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            assert!(
                is_about_data(&error),
                "an error of the wrong kind: {error:?}"
            );
            None
        }
    }
}

/// What a tier makes of a range of a stream.
#[track_caller]
fn decoded(
    stream: &Stream<'_>,
    (start, end): (u64, u64),
    tier: SimdTier,
    verify: bool,
) -> Option<Vec<u8>> {
    let mut out = vec![0xa5; (end - start) as usize];
    about_data(stream.decode_into(start, &mut out, &options(tier, verify))).map(|()| out)
}

/// Parses and decodes a stream with every tier, and returns what comes out if the chunk hashes are
/// ignored; `base` is given to streams that ask for it.
///
/// # Panics
/// If tiers differ in what they accept or give out, a part differs from the whole, an error is not one
/// about data, or the right hashes are refused.
#[track_caller]
pub fn agree(bytes: &[u8], base: Option<&[u8]>) -> Option<Vec<u8>> {
    let mut stream = about_data(Stream::parse(bytes))?;
    if let Some(base) = base.filter(|base| stream.base_hash() == Some(content_hash(base))) {
        stream = about_data(stream.with_base(base))?;
    }
    let _ = stream.info();
    let whole = (0, stream.original_len().min(MOST));
    let mut unverified = None;
    for verify in [true, false] {
        let expected = decoded(&stream, whole, SimdTier::Scalar, verify);
        for tier in tiers() {
            let found = decoded(&stream, whole, tier, verify);
            assert!(
                found == expected,
                "{tier:?} differs, verify {verify}: it accepts {}, scalar {}",
                found.is_some(),
                expected.is_some()
            );
        }
        unverified = expected;
    }
    let unverified = unverified?;
    if whole.1 == stream.original_len() {
        let part = (whole.1 / 3, whole.1 - whole.1 / 5);
        for tier in tiers() {
            let found = decoded(&stream, part, tier, false);
            let expected = &unverified[part.0 as usize..part.1 as usize];
            assert!(found.as_deref() == Some(expected), "{tier:?}: a part");
        }
        let measured = stream.explain(Some(&options(SimdTier::Scalar, false)));
        about_data(measured);
        if let Some(right) = wire::with_hashes_of(bytes, &unverified) {
            let mut right = Stream::parse(&right).expect("only hashes have changed");
            if let (Some(base), true) = (base, right.base_hash().is_some()) {
                right = right.with_base(base).expect("the same base");
            }
            for tier in tiers() {
                let found = decoded(&right, whole, tier, true);
                assert!(found.as_ref() == Some(&unverified), "{tier:?}: hashes");
            }
        }
    }
    Some(unverified)
}
