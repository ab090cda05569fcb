//! The same bytes and the same data from every tier.

use neuzip_rs::{CompressOptions, Dtype, Level, SimdTier, Stream, compress};
use proptest::prelude::*;

use crate::samples::{CONTENTS, Content, DTYPES, Random, content, tensor};
use crate::{decode, pinned, tiers};

/// What stands around every output and must stay.
const CANARY: u8 = 0xa5;

/// Compresses and decompresses on every tier, to odd addresses, whole and in part.
fn check(data: &[u8], dtype: Dtype, shape: &[u64], options: &CompressOptions, seed: u64) {
    let compressed =
        |tier| compress(data, dtype, shape, &pinned(options, tier)).expect("valid arguments");
    let stream = compressed(SimdTier::Scalar);
    for tier in tiers() {
        assert!(compressed(tier) == stream, "{tier:?} writes other bytes");
    }
    let parsed = Stream::parse(&stream).unwrap();
    let mut random = Random::new(seed);
    for tier in tiers() {
        for verify in [true, false] {
            let start = if verify {
                0
            } else {
                random.below(data.len() + 1)
            };
            let len = if verify {
                data.len()
            } else {
                random.below(data.len() - start + 1)
            };
            let skip = random.below(65);
            let mut out = vec![CANARY; skip + len + 64];
            decode(&parsed, tier, verify, start, &mut out[skip..skip + len]).unwrap();
            assert!(
                out[skip..skip + len] == data[start..start + len],
                "{tier:?} decodes other data in {start}..+{len}"
            );
            out[skip..skip + len].fill(CANARY);
            assert!(out.iter().all(|&byte| byte == CANARY));
        }
    }
}

fn level() -> impl Strategy<Value = Level> {
    prop::sample::select(vec![Level::Fast, Level::Default, Level::Max])
}

fn columns() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![1, 3, 63, 64, 65, 100, 384])
}

proptest! {
    #[test]
    fn tensors(
        dtype in prop::sample::select(&DTYPES[..]),
        content in content(),
        level in level(),
        columns in columns(),
        count in 0_usize..20_000,
        chunk_log2 in prop::option::of(12_u32..=15),
        seed: u64,
    ) {
        let rows = count / columns;
        let data = tensor(dtype, content, rows * columns, columns, seed);
        let chunk_bytes = chunk_log2.map(|log2| 1 << log2);
        let options = CompressOptions { level, chunk_bytes, ..CompressOptions::default() };
        check(&data, dtype, &[rows as u64, columns as u64], &options, seed);
    }

    #[test]
    fn bytes_of_any_length(
        dtype in prop::sample::select(&DTYPES[..]),
        hinted: bool,
        content in content(),
        level in level(),
        offset in 0_usize..8,
        length in 0_usize..60_000,
        chunk_log2 in prop::option::of(12_u32..=15),
        seed: u64,
    ) {
        let mut data = vec![7; offset];
        data.extend(tensor(dtype, content, length / dtype.itemsize() + 1, 100, seed));
        data.truncate(length);
        let options = CompressOptions {
            level,
            chunk_bytes: chunk_log2.map(|log2| 1 << log2),
            hint: hinted.then_some(dtype),
            ..CompressOptions::default()
        };
        check(&data, Dtype::Uint8, &[data.len() as u64], &options, seed);
    }

    /// Sub-blocks with and without trailing zeros in the same chunks, which take turns.
    #[test]
    fn trailing_zeros(
        dtype in prop::sample::select(vec![Dtype::Float32, Dtype::Float64]),
        level in level(),
        columns in columns(),
        count in 0_usize..60_000,
        chunk_log2 in 15_u32..=17,
        seed: u64,
    ) {
        let rows = count / columns;
        let data = tensor(dtype, Content::Precisions, rows * columns, columns, seed);
        let chunk_bytes = Some(1 << chunk_log2);
        let options = CompressOptions { level, chunk_bytes, ..CompressOptions::default() };
        check(&data, dtype, &[rows as u64, columns as u64], &options, seed);
    }

    /// Lengths around the 64 lanes, where the last group and the last tile are short.
    #[test]
    fn tails(
        dtype in prop::sample::select(&DTYPES[..]),
        content in content(),
        tiles in 1_usize..=4,
        more in 0_usize..130,
        seed: u64,
    ) {
        let count = 1024 * tiles + more;
        let data = tensor(dtype, content, count, 64, seed);
        let options = CompressOptions { chunk_bytes: Some(4096), ..CompressOptions::default() };
        check(&data, dtype, &[count as u64], &options, seed);
    }
}

/// Every type with every content and level, in chunks of the usual size.
#[test]
fn every_combination() {
    for dtype in DTYPES {
        for (number, content) in CONTENTS.into_iter().enumerate() {
            let columns = [65, 100, 384][number % 3];
            let rows = 200_000 / dtype.itemsize() / columns;
            let data = tensor(dtype, content, rows * columns, columns, 3);
            for level in [Level::Fast, Level::Default, Level::Max] {
                let options = CompressOptions {
                    level,
                    ..CompressOptions::default()
                };
                check(&data, dtype, &[rows as u64, columns as u64], &options, 9);
            }
        }
    }
}

/// Outputs so large that they are written past the caches.
#[test]
fn outputs_larger_than_the_caches() {
    for (dtype, content, columns) in [
        (Dtype::Bfloat16, Content::Scales, 1000),
        (Dtype::Float32, Content::Rare, 333),
        (Dtype::Float8E4m3fn, Content::Weights, 65),
        (Dtype::Float32, Content::Precisions, 1000),
        (Dtype::Float64, Content::Weights, 4097),
    ] {
        let rows = (9 << 20) / dtype.itemsize() / columns;
        let data = tensor(dtype, content, rows * columns, columns, 8);
        assert!(data.len() >= 8 << 20);
        let shape = [rows as u64, columns as u64];
        check(&data, dtype, &shape, &CompressOptions::default(), 5);
    }
}
