//! Damage with a valid checksum: every tier gives out the same bytes or the same kind of error.

use std::mem::Discriminant;
use std::sync::LazyLock;

use neuzip_rs::{CompressOptions, Dtype, Error, Level, SimdTier, Stream, compress};
use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use crate::guard_page::{Edge, Guarded};
use crate::samples::{Content, tensor};
use crate::{decode, pinned, tiers};

struct Case {
    name: &'static str,
    stream: Vec<u8>,
    /// Bytes of the prelude.
    head: usize,
}

/// Streams of a few chunks, so that tiers decode several at a time; the last column must be in use.
static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    use Content::{
        Classes, FewValues, Mixed, NearOne, Octaves, Positive, Precisions, Rare, Scales, Signs,
        Upcast, Weights,
    };
    use Dtype::{Bfloat16, Float8E4m3fn, Float16, Float32, Float64, Int64, Uint8};
    use Level::{Default, Fast, Max};
    [
        ("bfloat16", Bfloat16, Weights, Fast, 10_300, 1, "rans8+raw8"),
        ("escapes", Bfloat16, Rare, Default, 10_300, 1, "rans9+raw7"),
        (
            "joint bit",
            Bfloat16,
            NearOne,
            Default,
            10_300,
            1,
            "wide-symbols",
        ),
        (
            "scaled",
            Bfloat16,
            Scales,
            Default,
            10_240,
            64,
            "scale-offsets",
        ),
        ("float16", Float16, Rare, Default, 6_200, 1, "rans"),
        ("float32", Float32, Weights, Fast, 5_150, 1, "rans8+raw24"),
        (
            "upcast",
            Float32,
            Upcast,
            Default,
            5_150,
            1,
            "trailing-zeros",
        ),
        (
            "precisions",
            Float32,
            Precisions,
            Default,
            17_000,
            1,
            "trailing-zeros",
        ),
        (
            "one sign",
            Float32,
            Positive,
            Default,
            4_200,
            1,
            "const1+rans",
        ),
        ("float64", Float64, Rare, Default, 2_100, 1, "wide-symbols"),
        ("float8", Float8E4m3fn, Weights, Max, 20_500, 1, "rans"),
        ("signs", Bfloat16, Signs, Max, 10_240, 64, "sign-flips"),
        ("classes", Float16, Classes, Max, 10_240, 64, "contexts"),
        ("two symbols", Bfloat16, Octaves, Max, 34_000, 1, "contexts"),
        ("integers", Int64, Positive, Default, 2_100, 1, "const"),
        (
            "few values",
            Bfloat16,
            FewValues,
            Default,
            10_300,
            1,
            "rans",
        ),
        ("mixed chunks", Bfloat16, Mixed, Default, 20_480, 1, "raw"),
        ("packed", Uint8, Weights, Default, 50, 1, "raw"),
    ]
    .into_iter()
    .map(|(name, dtype, content, level, count, columns, feature)| {
        let data = tensor(dtype, content, count, columns, 11);
        // A second symbol does not pay for its states in small chunks.
        let chunk_bytes = if content == Octaves { 1 << 15 } else { 1 << 12 };
        let options = CompressOptions {
            level,
            chunk_bytes: Some(chunk_bytes),
            ..CompressOptions::default()
        };
        let shape = [(count / columns) as u64, columns as u64];
        let options = pinned(&options, SimdTier::Scalar);
        let stream = compress(&data, dtype, &shape, &options).unwrap();
        let info = format!("{:?}", Stream::parse(&stream).unwrap().info());
        assert!(info.contains(feature), "{name}: {info}");
        let head = prelude_len(&stream).unwrap();
        Case { name, stream, head }
    })
    .collect()
});

/// The length that a prelude says it has.
fn prelude_len(stream: &[u8]) -> Option<usize> {
    let (mut len, mut shift) = (0_usize, 0);
    for &byte in stream.get(4..)? {
        len |= ((byte & 0x7f) as usize).checked_shl(shift)?;
        shift += 7;
        if byte < 0x80 {
            break;
        }
    }
    Some(len)
}

/// Puts a valid checksum on a prelude that has been tampered with, as an attacker would.
fn reseal(stream: &mut [u8]) -> Option<()> {
    let len = prelude_len(stream)?;
    let covered = len.checked_sub(4)?;
    let checksum = xxh3_64(stream.get(..covered)?) as u32;
    stream
        .get_mut(covered..len)?
        .copy_from_slice(&checksum.to_le_bytes());
    Some(())
}

/// The decoded bytes, or which kind of error.
fn outcome(stream: &[u8], tier: SimdTier, verify: bool) -> Result<Vec<u8>, Discriminant<Error>> {
    let parsed = Stream::parse(stream).map_err(|error| std::mem::discriminant(&error))?;
    // A forged constant may be of any size, and the memory of the tests is limited.
    let mut out = vec![0; parsed.original_len().min(1 << 17) as usize];
    decode(&parsed, tier, verify, 0, &mut out)
        .map(|()| out)
        .map_err(|error| std::mem::discriminant(&error))
}

/// Returns whether the damage went unnoticed without the hashes.
fn check(name: &str, what: &dyn std::fmt::Debug, stream: &[u8]) -> bool {
    let mut unnoticed = false;
    for verify in [true, false] {
        let expected = outcome(stream, SimdTier::Scalar, verify);
        for tier in tiers().filter(|&tier| tier != SimdTier::Scalar) {
            assert!(
                outcome(stream, tier, verify) == expected,
                "{name}, {what:?}: {tier:?} differs, verify {verify}, scalar ok {}",
                expected.is_ok()
            );
        }
        unnoticed = !verify && expected.is_ok();
    }
    unnoticed
}

#[test]
fn truncations() {
    for case in &*CASES {
        let mut buffer = Guarded::copy_of(&case.stream, Edge::End);
        // All lengths of short streams, and a sample of those of others.
        let step = case.stream.len() / 20_000 + 1;
        for cut in (0..case.stream.len()).step_by(step) {
            let end = &mut buffer[case.stream.len() - cut..];
            end.copy_from_slice(&case.stream[..cut]);
            reseal(end);
            check(case.name, &cut, end);
        }
    }
}

/// Every bit of the prelude and the first bytes of the payload, and a sample of the others.
#[test]
fn bit_flips() {
    for case in &*CASES {
        let mut stream = Guarded::copy_of(&case.stream, Edge::End);
        let (dense, bits) = (8 * (case.head + 64), 8 * stream.len());
        let sample = (dense..bits).step_by((bits / 4000).max(1) | 1);
        let mut unnoticed = 0;
        for bit in (0..dense.min(bits)).chain(sample) {
            stream[bit / 8] ^= 1 << (bit % 8);
            reseal(&mut stream);
            unnoticed += usize::from(check(case.name, &bit, &stream));
            stream.copy_from_slice(&case.stream);
        }
        assert!(
            unnoticed > 0,
            "{}: no damage got past the checks",
            case.name
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Bytes are replaced, or one loses what another gains: slots of a table, lengths of parts.
    #[test]
    fn edits(
        which: prop::sample::Index,
        edits in prop::collection::vec(
            (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0_u8..3, any::<u8>()), 1..4,
        ),
        in_head: bool,
    ) {
        let case = which.get(&CASES);
        let mut stream = Guarded::copy_of(&case.stream, Edge::End);
        let range = if in_head { stream.len().min(case.head + 32) } else { stream.len() };
        for (from, to, kind, value) in &edits {
            let (from, to) = (from.index(range), to.index(range));
            let moved = [0, 1, 16][usize::from(*kind)];
            if moved == 0 {
                stream[from] = *value;
            } else {
                stream[from] = stream[from].wrapping_sub(moved);
                stream[to] = stream[to].wrapping_add(moved);
            }
        }
        reseal(&mut stream);
        check(case.name, &edits, &stream);
    }
}
