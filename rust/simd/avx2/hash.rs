//! The chunk hash: a sum of products, four words at a time.

use std::arch::x86_64::*;

use super::{load, sum_of_words};
use crate::chunk::{ChunkHash, HASH_KEYS, HASH_STEPS};

/// Adds whole groups of 8 words and returns how many bytes they were.
#[target_feature(enable = "avx2")]
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
        _mm256_setr_epi64x(at(0), at(1), at(2), at(3))
    };
    let mut keys = [lanes(0), lanes(4)];
    let step = |half: usize| HASH_STEPS[half].wrapping_mul(8);
    let step = _mm256_set1_epi64x(i64::from(step(0)) | i64::from(step(1)) << 32);
    let mut products = [_mm256_setzero_si256(); 2];
    let mut sums = [_mm256_setzero_si256(); 2];
    let (groups, _) = bytes.as_chunks::<64>();
    for group in groups {
        let (halves, _) = group.as_chunks::<32>();
        for (part, half) in halves.iter().enumerate() {
            let keyed = _mm256_add_epi32(load(half), keys[part]);
            keys[part] = _mm256_add_epi32(keys[part], step);
            let product = _mm256_mul_epu32(keyed, _mm256_srli_epi64::<32>(keyed));
            products[part] = _mm256_add_epi64(products[part], product);
            sums[part] = _mm256_add_epi64(sums[part], keyed);
        }
    }
    let total = |parts: [__m256i; 2]| sum_of_words(_mm256_add_epi64(parts[0], parts[1]));
    hash.words = hash.words.wrapping_add(8 * groups.len() as u32);
    hash.products = hash.products.wrapping_add(total(products));
    hash.sum = hash.sum.wrapping_add(total(sums));
    64 * groups.len()
}
