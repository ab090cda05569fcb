//! Contracts of deltas: every bit comes back, nothing without the right base, damage is an error.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::unwrap_used,
    reason = "generated data is cut to size on purpose, and a failed unwrap is a failed test"
)]

use std::ops::Range;

use neuzip_rs::{
    CompressOptions, DecompressOptions, Dtype, Error, Level, Result, SimdTier, Stream, Threads,
    compress, compress_delta, content_hash,
};
use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

/// A fixed sequence of numbers that look random.
fn noise(seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    })
}

/// Weights of about the same scale, and how they are after steps of about `step` times that.
fn weights(count: usize, step: f32, seed: u64) -> (Vec<f32>, Vec<f32>) {
    let mut noise = noise(seed);
    let mut normal = || {
        let sum: f32 = (0..6)
            .map(|_| (noise.next().unwrap() >> 40) as f32 / 1e7)
            .sum();
        (sum - 5.03) * 0.03
    };
    let old: Vec<f32> = (0..count).map(|_| normal()).collect();
    let new = old.iter().map(|old| old + step * normal()).collect();
    (old, new)
}

fn bytes_of(values: &[f32], dtype: Dtype) -> Vec<u8> {
    let cut = |value: &f32| match dtype {
        Dtype::Bfloat16 => value.to_le_bytes()[2..].to_vec(),
        Dtype::Float64 => f64::from(*value).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    };
    values.iter().flat_map(cut).collect()
}

fn options(chunk_bytes: usize, threads: usize) -> CompressOptions {
    CompressOptions {
        chunk_bytes: Some(chunk_bytes),
        threads: Threads::new(threads),
        ..CompressOptions::default()
    }
}

fn decode(stream: &[u8], base: &[u8], range: Range<usize>) -> Result<Vec<u8>> {
    let stream = Stream::parse(stream)?.with_base(base)?;
    let mut out = vec![0xa5; range.len()];
    stream.decode_into(range.start as u64, &mut out, &DecompressOptions::default())?;
    Ok(out)
}

/// Compresses, decodes whole and in part, and returns the stream.
fn roundtrip(new: &[u8], old: &[u8], dtype: Dtype, options: &CompressOptions) -> Vec<u8> {
    let shape = [(new.len() / dtype.itemsize()) as u64];
    let stream = compress_delta(new, old, dtype, &shape, options).unwrap();
    assert!(decode(&stream, old, 0..new.len()).unwrap() == new);
    let part = new.len() / 3..new.len() - new.len() / 5;
    assert!(decode(&stream, old, part.clone()).unwrap() == new[part]);
    stream
}

const DTYPES: [Dtype; 8] = [
    Dtype::Bfloat16,
    Dtype::Float32,
    Dtype::Float64,
    Dtype::Int8,
    Dtype::Int64,
    Dtype::Uint16,
    Dtype::Float8E4m3fn,
    Dtype::Complex128,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn whatever_the_bits(
        dtype in prop::sample::select(Dtype::ALL.to_vec()),
        pieces in prop::collection::vec((any::<u64>(), 0_u32..64, 0_u64..9), 1..40),
        count in 1_usize..6000,
        chunk_log2 in 12_u32..15,
    ) {
        // Runs of like numbers, among them infinities, NaNs and subnormals, moved by a little or a lot.
        let mut noise = noise(pieces[0].0);
        let (mut old, mut new) = (Vec::new(), Vec::new());
        let bytes = dtype.itemsize().min(8);
        for i in 0..count * dtype.itemsize() / bytes {
            let (number, shift, spread) = pieces[i * pieces.len() / (count * 2)];
            let before = number.wrapping_add(noise.next().unwrap() >> (63 - shift % 64));
            let step = noise.next().unwrap() % (1 << (spread * spread % 60));
            let after = before.wrapping_add(step).wrapping_sub(spread);
            old.extend_from_slice(&before.to_le_bytes()[8 - bytes..]);
            new.extend_from_slice(&after.to_le_bytes()[8 - bytes..]);
        }
        let options = options(1 << chunk_log2, 1);
        roundtrip(&new, &old, dtype, &options);
        roundtrip(&new, &noise.take(new.len()).map(|x| x as u8).collect::<Vec<_>>(), dtype, &options);
    }

    #[test]
    fn weights_after_a_step(
        dtype in prop::sample::select(DTYPES.to_vec()),
        count in 1_usize..40_000, step_log2 in -16_i32..4, seed: u64,
        fast: bool,
    ) {
        let (old, new) = weights(count, (step_log2 as f32).exp2(), seed);
        let [mut old, mut new] = [old, new].map(|values| bytes_of(&values, dtype));
        let whole = new.len() / dtype.itemsize() * dtype.itemsize();
        old.truncate(whole);
        new.truncate(whole);
        let level = if fast { Level::Fast } else { Level::Max };
        let stream = roundtrip(&new, &old, dtype, &CompressOptions { level, ..options(1 << 14, 1) });
        let plain = compress(&new, dtype, &[(new.len() / dtype.itemsize()) as u64], &CompressOptions {
            level, ..options(1 << 14, 1)
        });
        prop_assert!(stream.len() <= plain.unwrap().len() + new.len() / 50 + 64);
    }
}

#[test]
fn a_step_is_small_and_threads_do_not_matter() {
    for (dtype, most) in [(Dtype::Bfloat16, 25), (Dtype::Float32, 62)] {
        let (old, new) = weights(300_000, 0.004, 1);
        let [old, new] = [old, new].map(|values| bytes_of(&values, dtype));
        let stream = roundtrip(&new, &old, dtype, &options(1 << 16, 1));
        assert!(
            stream.len() * 100 < new.len() * most,
            "{dtype:?} {}",
            stream.len()
        );
        assert_eq!(
            Stream::parse(&stream).unwrap().base_hash(),
            Some(content_hash(&old))
        );
        assert!(roundtrip(&new, &old, dtype, &options(1 << 16, 4)) == stream);
    }
}

#[test]
fn every_tier_writes_and_reads_the_same() {
    let (old, new) = weights(70_001, 0.02, 6);
    for dtype in DTYPES {
        let [mut old, mut new] = [&old, &new].map(|values| bytes_of(values, dtype));
        let whole = new.len() / dtype.itemsize() * dtype.itemsize();
        old.truncate(whole);
        new.truncate(whole);
        let tiers = SimdTier::ALL.into_iter().filter(|tier| tier.is_available());
        let mut streams = tiers.map(|tier| {
            let simd = Some(tier);
            let stream = roundtrip(
                &new,
                &old,
                dtype,
                &CompressOptions {
                    simd,
                    ..options(1 << 14, 1)
                },
            );
            let mut out = vec![0; new.len()];
            let parsed = Stream::parse(&stream).unwrap().with_base(&old[..]).unwrap();
            let options = DecompressOptions {
                simd,
                ..DecompressOptions::default()
            };
            parsed.decode_into(0, &mut out, &options).unwrap();
            assert!(out == new);
            stream
        });
        let first = streams.next().unwrap();
        assert!(streams.all(|stream| stream == first));
    }
}

#[test]
fn dropped_bits_do_not_cost() {
    let (old, new) = weights(100_000, 0.01, 5);
    let upcast = |values: Vec<f32>| -> Vec<u8> {
        let cut = |value: f32| f32::from_bits(value.to_bits() & 0xffff_0000);
        bytes_of(
            &values.into_iter().map(cut).collect::<Vec<_>>(),
            Dtype::Float32,
        )
    };
    let (old, new) = (upcast(old), upcast(new));
    let stream = roundtrip(&new, &old, Dtype::Float32, &options(1 << 16, 1));
    assert!(stream.len() * 100 < new.len() * 17, "{}", stream.len());
}

#[test]
fn a_copy_of_the_base_is_a_header() {
    let (old, _) = weights(5000, 0.0, 2);
    let old = bytes_of(&old, Dtype::Bfloat16);
    let stream = roundtrip(&old, &old, Dtype::Bfloat16, &options(1 << 14, 1));
    assert!(stream.len() < 48);
}

#[test]
fn an_unrelated_base_is_not_used() {
    let [(old, _), (new, _)] = [1, 2].map(|seed| weights(100_000, 0.0, seed));
    let [old, new] = [old, new].map(|values| bytes_of(&values, Dtype::Bfloat16));
    let stream = roundtrip(&new, &old, Dtype::Bfloat16, &options(1 << 16, 1));
    assert_eq!(Stream::parse(&stream).unwrap().base_hash(), None);
    let plain = compress(&new, Dtype::Bfloat16, &[100_000], &options(1 << 16, 1)).unwrap();
    assert!(stream == plain);
}

#[test]
fn without_the_base_nothing_is_decoded() {
    let (old, new) = weights(20_000, 0.01, 3);
    let [old, new] = [old, new].map(|values| bytes_of(&values, Dtype::Bfloat16));
    for new in [&new, &old] {
        let stream = roundtrip(new, &old, Dtype::Bfloat16, &options(1 << 14, 1));
        let mut out = vec![0xa5; new.len()];
        let parsed = Stream::parse(&stream).unwrap();
        let options = DecompressOptions::default();
        let error = parsed.decode_into(0, &mut out, &options).unwrap_err();
        assert!(matches!(error, Error::BaseMismatch(_)), "{error}");
        assert!(out.iter().all(|&byte| byte == 0xa5));
        for other in [&old[1..], &old[..old.len() - 2], &[], &vec![0; 40_000]] {
            let error = Stream::parse(&stream)
                .unwrap()
                .with_base(other)
                .unwrap_err();
            assert!(matches!(error, Error::BaseMismatch(_)), "{error}");
        }
    }
    let error = compress_delta(
        &new,
        &old[2..],
        Dtype::Bfloat16,
        &[20_000],
        &options(1 << 14, 1),
    );
    assert!(matches!(error, Err(Error::InvalidArgument(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// With a forged checksum other data may come out, but nothing may panic or run away.
    #[test]
    fn forged_models_never_panic(
        dtype in prop::sample::select(DTYPES.to_vec()),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        verify: bool,
    ) {
        let (old, new) = weights(1100, 0.02, 7);
        let [old, new] = [old, new].map(|values| {
            let mut bytes = bytes_of(&values, dtype);
            bytes.truncate(bytes.len() / 16 * 16);
            bytes
        });
        let shape = [(new.len() / dtype.itemsize()) as u64];
        let mut stream = compress_delta(&new, &old, dtype, &shape, &options(1 << 12, 1)).unwrap();
        let hash = content_hash(&old).to_le_bytes();
        let Some(at) = stream.windows(16).position(|bytes| bytes == hash) else {
            return Ok(());
        };
        // The length of the prelude is a varint behind the magic.
        let len = usize::from(stream[4] & 0x7f) | usize::from(stream[5]) << 7;
        let len = if stream[4] < 0x80 { usize::from(stream[4]) } else { len };
        let (from, to) = (at + 16, stream.len().min(len + 200));
        for (index, value) in edits {
            stream[from + index.index(to - from)] = value;
        }
        let checksum = xxh3_64(&stream[..len - 4]) as u32;
        stream[len - 4..len].copy_from_slice(&checksum.to_le_bytes());
        if let Ok(parsed) = Stream::parse(&stream) {
            let parsed = parsed.with_base(&old[..]).unwrap();
            let decoded = |tier| {
                let mut out = vec![0; new.len()];
                let simd = Some(tier);
                let options = DecompressOptions { verify, simd, ..DecompressOptions::default() };
                parsed.decode_into(0, &mut out, &options).ok().map(|()| out)
            };
            let scalar = decoded(SimdTier::Scalar);
            for tier in SimdTier::ALL.into_iter().filter(|tier| tier.is_available()) {
                prop_assert!(decoded(tier) == scalar, "{:?}", tier);
            }
            let _ = parsed.info();
        }
    }
}

/// Every bit of a stream flipped, and every length.
#[test]
fn damage_is_noticed() {
    for (dtype, count, chunk_bytes) in [
        (Dtype::Bfloat16, 2500, 1 << 12),
        (Dtype::Float32, 800, 1 << 14),
    ] {
        let (old, new) = weights(count, 0.02, 4);
        let [old, new] = [old, new].map(|values| bytes_of(&values, dtype));
        let stream = roundtrip(&new, &old, dtype, &options(chunk_bytes, 1));
        assert!(Stream::parse(&stream).unwrap().base_hash().is_some());
        for bit in 0..stream.len() * 8 {
            let mut damaged = stream.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let decoded = decode(&damaged, &old, 0..new.len());
            assert!(decoded.is_err(), "bit {bit} of {} {dtype:?}", stream.len());
        }
        for len in 0..stream.len() {
            assert!(decode(&stream[..len], &old, 0..new.len()).is_err());
        }
        assert!(decode(&[&stream[..], &[0]].concat(), &old, 0..new.len()).is_err());
    }
}
