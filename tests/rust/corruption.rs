//! Damaged streams of every mode: an error, never a panic, never other data.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::unwrap_used,
    reason = "generated data is cut to size on purpose, and a failed unwrap is a failed test"
)]

use std::sync::LazyLock;

use neuzip_rs::{
    CompressOptions, DecompressOptions, Dtype, Error, Level, Result, Stream, compress,
    write_reference,
};
use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

fn decode(stream: &[u8], limit: u64) -> Result<Vec<u8>> {
    let stream = Stream::parse(stream)?;
    if stream.original_len() > limit {
        return Err(Error::OutputTooLarge {
            needed: stream.original_len(),
            limit,
        });
    }
    let mut out = vec![0; stream.original_len() as usize];
    stream.decode_into(0, &mut out, &DecompressOptions::default())?;
    Ok(out)
}

fn noise(i: usize) -> u64 {
    (i as u64 + 1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(31)
        .wrapping_mul(0xd1b5_4a32)
}

/// Four uniform numbers added: enough like weights.
fn weight(i: usize) -> f32 {
    let parts = (0..4).map(|part| ((noise(4 * i + part) >> 20) % 1000) as f32 / 1000.0 - 0.5);
    parts.sum::<f32>() * 0.05
}

struct Case {
    name: &'static str,
    feature: Option<&'static str>,
    stream: Vec<u8>,
    original: Vec<u8>,
}

fn case(
    name: &'static str,
    feature: Option<&'static str>,
    dtype: Dtype,
    shape: &[u64],
    original: Vec<u8>,
) -> Case {
    case_at(Level::Default, name, feature, dtype, shape, original)
}

fn case_at(
    level: Level,
    name: &'static str,
    feature: Option<&'static str>,
    dtype: Dtype,
    shape: &[u64],
    original: Vec<u8>,
) -> Case {
    let options = CompressOptions {
        level,
        chunk_bytes: Some(if level == Level::Max { 8192 } else { 4096 }),
        ..CompressOptions::default()
    };
    let stream = compress(&original, dtype, shape, &options).unwrap();
    if let Some(feature) = feature {
        let info = Stream::parse(&stream).unwrap().info();
        let listed = info.features.contains(&feature) || info.modes.iter().any(|m| m == feature);
        assert!(listed, "{name} was meant to use {feature}: {info:?}");
    }
    Case {
        name,
        feature,
        stream,
        original,
    }
}

fn bfloat16(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values
        .flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes())
        .collect()
}

static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    let mut all = cases();
    all.extend(max_cases());
    all
});

/// What only the level `max` writes.
fn max_cases() -> Vec<Case> {
    let line_sign = |line: usize| if line * 7919 % 13 < 6 { -1.0 } else { 1.0 };
    let signs = |i: usize| weight(i).abs() * line_sign(i / 64) * line_sign(i % 64);
    // Every third row has few values.
    let classes = |i: usize| {
        let all = (weight(i) * 400.0) as i8;
        if (i / 96).is_multiple_of(3) {
            0x38
        } else {
            all.cast_unsigned()
        }
    };
    vec![
        case_at(
            Level::Max,
            "two symbols",
            Some("contexts"),
            Dtype::Bfloat16,
            &[3000],
            bfloat16((0..3000).map(|i| 1.0 + weight(i))),
        ),
        case_at(
            Level::Max,
            "turned signs",
            Some("sign-flips"),
            Dtype::Bfloat16,
            &[65, 64],
            bfloat16((0..4160).map(signs)),
        ),
        case_at(
            Level::Max,
            "classes",
            Some("contexts"),
            Dtype::Float8E4m3fn,
            &[44, 96],
            (0..4224).map(classes).collect(),
        ),
    ]
}

fn cases() -> Vec<Case> {
    let scaled = |i: usize| weight(i) * 2_f32.powi((i / 64 % 9) as i32 - (i % 64 % 7) as i32);
    let mixed: Vec<u8> = (0..12_000)
        .map(|i| {
            if i < 4096 {
                noise(i) as u8
            } else if i < 8192 {
                9
            } else {
                (i % 3) as u8
            }
        })
        .collect();
    let upcast = |i: usize| f32::from_bits(weight(i).to_bits() & !0xffff);
    vec![
        case("empty", None, Dtype::Float32, &[0, 3], Vec::new()),
        case(
            "packed raw",
            Some("raw"),
            Dtype::Uint8,
            &[40],
            (0..40).map(|i| noise(i) as u8).collect(),
        ),
        case(
            "constant",
            Some("constant"),
            Dtype::Float32,
            &[40, 2],
            [1, 2, 3, 4].repeat(80),
        ),
        case(
            "bfloat16",
            None,
            Dtype::Bfloat16,
            &[3000],
            bfloat16((0..3000).map(weight)),
        ),
        case(
            "scaled",
            Some("scale-offsets"),
            Dtype::Bfloat16,
            &[80, 64],
            bfloat16((0..5120).map(scaled)),
        ),
        case(
            "upcast",
            Some("trailing-zeros"),
            Dtype::Float32,
            &[1500],
            (0..1500).flat_map(|i| upcast(i).to_le_bytes()).collect(),
        ),
        case(
            "float64",
            Some("wide-symbols"),
            Dtype::Float64,
            &[700],
            (0..700)
                .flat_map(|i| f64::from(weight(i)).to_le_bytes())
                .collect(),
        ),
        case(
            "mixed bytes",
            Some("constant"),
            Dtype::Uint8,
            &[12_000],
            mixed,
        ),
        case(
            "integers",
            None,
            Dtype::Int64,
            &[600],
            (0..600_i64)
                .flat_map(|i| (i % 7 - 3).to_le_bytes())
                .collect(),
        ),
    ]
}

#[test]
fn every_truncation_is_an_error() {
    for case in &*CASES {
        assert!(
            decode(&case.stream, 1 << 20).unwrap() == case.original,
            "{}",
            case.name
        );
        for cut in 0..case.stream.len() {
            assert!(
                decode(&case.stream[..cut], 1 << 20).is_err(),
                "{} cut at {cut}",
                case.name
            );
        }
    }
}

#[test]
fn every_bit_flip_is_an_error() {
    for case in &*CASES {
        let mut stream = case.stream.clone();
        for bit in 0..stream.len() * 8 {
            stream[bit / 8] ^= 1 << (bit % 8);
            assert!(
                decode(&stream, 1 << 20).is_err(),
                "{} ({:?}) bit {bit}",
                case.name,
                case.feature
            );
            stream[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn anything_appended_is_an_error() {
    for case in &*CASES {
        for extra in [&[0][..], &[0; 16], &[0xff; 16], &case.stream[..]] {
            let stream = [&case.stream[..], extra].concat();
            assert!(decode(&stream, 1 << 20).is_err(), "{}", case.name);
        }
    }
}

#[test]
fn references_need_their_file() {
    let stream = write_reference(Dtype::Int8, &[3], "other", 17).unwrap();
    let parsed = Stream::parse(&stream).unwrap();
    let reference = parsed.reference().unwrap();
    assert_eq!((reference.name, reference.content_hash), ("other", 17));
    assert!(matches!(decode(&stream, 99), Err(Error::BaseMismatch(_))));
    for cut in 0..stream.len() {
        assert!(matches!(decode(&stream[..cut], 99), Err(Error::Corrupt(_))));
    }
}

#[test]
fn later_versions_are_told_apart_from_damage() {
    let mut stream = CASES[1].stream.clone();
    stream[3] = 2;
    assert!(matches!(
        decode(&stream, 99),
        Err(Error::UnsupportedVersion(_))
    ));
}

/// Puts a valid checksum on a prelude that has been tampered with, as an attacker would.
fn reseal(stream: &mut [u8]) -> Option<()> {
    let (mut len, mut shift) = (0_usize, 0);
    for &byte in stream.get(4..)? {
        len |= ((byte & 0x7f) as usize).checked_shl(shift)?;
        shift += 7;
        if byte < 0x80 {
            break;
        }
    }
    let covered = len.checked_sub(4)?;
    let checksum = xxh3_64(stream.get(..covered)?) as u32;
    stream
        .get_mut(covered..len)?
        .copy_from_slice(&checksum.to_le_bytes());
    Some(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// With a forged checksum other data may come out, but nothing may panic or run away.
    #[test]
    fn forged_headers_never_panic(
        which in 0_usize..9,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        verify: bool,
    ) {
        let mut stream = CASES[which].stream.clone();
        let head = stream.len().min(200);
        for (at, value) in edits {
            let at = at.index(head);
            stream[at] = value;
        }
        reseal(&mut stream);
        if let Ok(parsed) = Stream::parse(&stream) {
            let len = parsed.original_len().min(1 << 20) as usize;
            let mut out = vec![0; len];
            let options = DecompressOptions { verify, ..DecompressOptions::default() };
            let _ = parsed.decode_into(0, &mut out, &options);
            let _ = parsed.info();
        }
    }

    #[test]
    fn foreign_bytes_are_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(decode(&bytes, 1 << 20).is_err());
    }
}
