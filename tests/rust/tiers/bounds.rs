//! Nothing outside the buffers is touched: they lie between pages that may not be.

use neuzip_rs::{CompressOptions, Dtype, Stream, compress};
use proptest::prelude::*;

use crate::guard_page::{Edge, Guarded};
use crate::samples::{DTYPES, Random, content, tensor};
use crate::{decode, pinned, tiers};

proptest! {
    #[test]
    fn buffers_between_forbidden_pages(
        dtype in prop::sample::select(&DTYPES[..]),
        raw_bytes: bool,
        content in content(),
        count in 0_usize..9000,
        columns in 1_usize..200,
        chunk_log2 in prop::option::of(12_u32..=14),
        at_end: bool,
        seed: u64,
    ) {
        let mut data = tensor(dtype, content, count, columns, seed);
        let mut options = CompressOptions {
            chunk_bytes: chunk_log2.map(|log2| 1 << log2),
            ..CompressOptions::default()
        };
        let (mut dtype, mut shape) = (dtype, vec![count as u64]);
        if raw_bytes {
            options.hint = Some(dtype);
            data.truncate(data.len().saturating_sub(seed as usize % 8));
            (dtype, shape) = (Dtype::Uint8, vec![data.len() as u64]);
        } else if count.is_multiple_of(columns) {
            shape = vec![(count / columns) as u64, columns as u64];
        }
        let edge = if at_end { Edge::End } else { Edge::Start };
        let data = Guarded::copy_of(&data, edge);
        let mut random = Random::new(seed);
        for tier in tiers() {
            let stream = compress(&data, dtype, &shape, &pinned(&options, tier)).unwrap();
            let stream = Guarded::copy_of(&stream, edge);
            let parsed = Stream::parse(&stream).unwrap();
            for whole in [true, false] {
                let start = if whole { 0 } else { random.below(data.len() + 1) };
                let end = if whole { data.len() } else { start + random.below(data.len() - start + 1) };
                let mut out = Guarded::zeroed(end - start, edge);
                decode(&parsed, tier, whole, start, &mut out).unwrap();
                prop_assert!(out[..] == data[start..end], "{:?}", tier);
            }
        }
    }
}

/// Output of the size that is written past the caches, ending where its page does.
#[test]
fn a_large_output_between_forbidden_pages() {
    let count = (8 << 20) / 2 + 77;
    let data = tensor(
        Dtype::Bfloat16,
        crate::samples::Content::Weights,
        count,
        64,
        4,
    );
    let options = CompressOptions::default();
    for tier in tiers() {
        let stream = compress(
            &data,
            Dtype::Bfloat16,
            &[count as u64],
            &pinned(&options, tier),
        );
        let stream = Guarded::copy_of(&stream.unwrap(), Edge::End);
        for edge in [Edge::Start, Edge::End] {
            let mut out = Guarded::zeroed(data.len(), edge);
            decode(&Stream::parse(&stream).unwrap(), tier, true, 0, &mut out).unwrap();
            assert!(out[..] == data);
        }
    }
}
