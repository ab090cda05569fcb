//! The chunk hash: a sum of products, eight words at a time.

use std::arch::x86_64::*;

use super::load;
use crate::chunk::{ChunkHash, HASH_KEYS, HASH_STEPS};

/// How far ahead of its use the input is fetched, in bytes.
const AHEAD: usize = 4096;

/// Adds whole groups of 16 words and returns how many bytes they were.
#[target_feature(enable = "avx512f,avx512dq")]
pub(in crate::simd) fn hash(hash: &mut ChunkHash, bytes: &[u8]) -> usize {
    let key = |i: u32, half: usize| {
        HASH_STEPS[half]
            .wrapping_mul(i)
            .wrapping_add(HASH_KEYS[half])
    };
    let keys = |i: u32| i64::from(key(i, 0)) | i64::from(key(i, 1)) << 32;
    let first = hash.words;
    let lanes = |start: u32| {
        let at = |lane| keys(first.wrapping_add(start + lane));
        _mm512_setr_epi64(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7))
    };
    let mut keys = [lanes(0), lanes(8)];
    let step = |half: usize| HASH_STEPS[half].wrapping_mul(16);
    let step = _mm512_set1_epi64(i64::from(step(0)) | i64::from(step(1)) << 32);
    let mut products = [_mm512_setzero_si512(); 2];
    let mut sums = [_mm512_setzero_si512(); 2];
    let (groups, _) = bytes.as_chunks::<128>();
    for group in groups {
        // The encoder's first look at the input: fetched ahead, as nothing else waits for it.
        let ahead = group.as_ptr().wrapping_add(AHEAD);
        _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
        _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64).cast());
        let (halves, _) = group.as_chunks::<64>();
        for (part, half) in halves.iter().enumerate() {
            let keyed = _mm512_add_epi32(load(half), keys[part]);
            keys[part] = _mm512_add_epi32(keys[part], step);
            let product = _mm512_mul_epu32(keyed, _mm512_srli_epi64::<32>(keyed));
            products[part] = _mm512_add_epi64(products[part], product);
            sums[part] = _mm512_add_epi64(sums[part], keyed);
        }
    }
    let total =
        |parts: [__m512i; 2]| _mm512_reduce_add_epi64(_mm512_add_epi64(parts[0], parts[1])) as u64;
    hash.words = hash.words.wrapping_add(16 * groups.len() as u32);
    hash.products = hash.products.wrapping_add(total(products));
    hash.sum = hash.sum.wrapping_add(total(sums));
    128 * groups.len()
}
