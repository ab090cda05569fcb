//! The chunk hash: a sum of products, eight words at a time.

use std::arch::aarch64::*;

use crate::chunk::{ChunkHash, HASH_KEYS, HASH_STEPS};

/// Adds whole groups of 8 words and returns how many bytes they were.
#[target_feature(enable = "neon")]
pub(in crate::simd) fn hash(hash: &mut ChunkHash, bytes: &[u8]) -> usize {
    let keys_from = |start: u32, half: usize| {
        let keys: [u32; 4] = std::array::from_fn(|lane| {
            let word = hash.words.wrapping_add(start + lane as u32);
            HASH_STEPS[half]
                .wrapping_mul(word)
                .wrapping_add(HASH_KEYS[half])
        });
        // SAFETY: the array has 16 bytes.
        unsafe { vld1q_u32(keys.as_ptr()) }
    };
    let mut keys = [0, 4].map(|start| [keys_from(start, 0), keys_from(start, 1)]);
    let steps = HASH_STEPS.map(|step| vdupq_n_u32(step.wrapping_mul(8)));
    let mut products = [vdupq_n_u64(0); 4];
    let mut low_sums = [vdupq_n_u64(0); 2];
    // Only their low half counts.
    let mut high_sums = [vdupq_n_u32(0); 2];
    let (groups, _) = bytes.as_chunks::<64>();
    for group in groups {
        for part in 0..2 {
            // SAFETY: twice 32 of the 64 bytes; the load needs no alignment.
            let halves = unsafe { vld2q_u32(group.as_ptr().add(32 * part).cast()) };
            let low = vaddq_u32(halves.0, keys[part][0]);
            let high = vaddq_u32(halves.1, keys[part][1]);
            for (key, step) in keys[part].iter_mut().zip(steps) {
                *key = vaddq_u32(*key, step);
            }
            let first = vmlal_u32(products[2 * part], vget_low_u32(low), vget_low_u32(high));
            products[2 * part] = first;
            products[2 * part + 1] = vmlal_high_u32(products[2 * part + 1], low, high);
            low_sums[part] = vpadalq_u32(low_sums[part], low);
            high_sums[part] = vaddq_u32(high_sums[part], high);
        }
    }
    let product = vaddq_u64(
        vaddq_u64(products[0], products[1]),
        vaddq_u64(products[2], products[3]),
    );
    let low_sum = vaddvq_u64(vaddq_u64(low_sums[0], low_sums[1]));
    let high_sum = vaddvq_u32(vaddq_u32(high_sums[0], high_sums[1]));
    let sum = low_sum.wrapping_add(u64::from(high_sum) << 32);
    hash.words = hash.words.wrapping_add(8 * groups.len() as u32);
    hash.products = hash.products.wrapping_add(vaddvq_u64(product));
    hash.sum = hash.sum.wrapping_add(sum);
    64 * groups.len()
}
