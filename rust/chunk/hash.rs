//! The hash of a chunk's decoded bytes: position-keyed and free of order.
//!
//! The chunk is read as little-endian 64-bit words, the last one padded with zero bytes. To the two
//! halves of word `i` its keys are added, each modulo 2^32, which gives `a_i` (low) and `b_i` (high):
//!
//! ```text
//! sum over i of a_i * b_i  +  P * (length + sum over i of (a_i + 2^32 * b_i))     mod 2^64
//! a_i = lo_i + K + i * G mod 2^32,  b_i = hi_i + K' + i * G' mod 2^32
//! ```
//!
//! A sum of products (NH, Black et al., CRYPTO 1999), so that SIMD lanes and GPU threads may add their
//! parts in any order. The second term makes every change within one aligned 32-bit half certain to be
//! seen: if `a_i` changes by `d`, the sum changes by `d * (b_i + P)`; the low half of `P` is odd and its
//! high half even, so that the second factor is not zero and has at most 32 trailing zeros, `d` at most
//! 31. If `b_i` changes by `d` the factor is `a_i + 2^32 * P`, and the same holds.
//! Not a cryptographic hash.
//! Place in docs/format.md: "Chunk hash".

use crate::simd::Kernels;

const KEY_LOW: u32 = 0x9e37_79b9;
const KEY_HIGH: u32 = 0x85eb_ca6b;
const STEP_LOW: u32 = 0xc2b2_ae35;
const STEP_HIGH: u32 = 0x27d4_eb2f;
const MULTIPLIER: u64 = 0x9fb2_1c64_1e98_df25;

/// What is added to the low and the high half of word 0, and how much more for each later word.
pub(crate) const HASH_KEYS: [u32; 2] = [KEY_LOW, KEY_HIGH];
pub(crate) const HASH_STEPS: [u32; 2] = [STEP_LOW, STEP_HIGH];

/// Hash of `bytes`.
pub(crate) fn chunk_hash(kernels: Kernels, bytes: &[u8]) -> u64 {
    let mut hash = ChunkHash::default();
    let words = bytes.len() / 8 * 8;
    kernels.hash(&mut hash, &bytes[..words]);
    hash.finish(&bytes[words..])
}

/// The hash of the words so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChunkHash {
    pub(crate) words: u32,
    pub(crate) products: u64,
    /// Of keyed words.
    pub(crate) sum: u64,
}

impl ChunkHash {
    /// Adds whole words: the scalar kernel.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        for word in bytes.as_chunks::<8>().0 {
            let word = u64::from_le_bytes(*word);
            let key = |half: usize| {
                HASH_KEYS[half].wrapping_add(self.words.wrapping_mul(HASH_STEPS[half]))
            };
            let low = (word as u32).wrapping_add(key(0));
            let high = ((word >> 32) as u32).wrapping_add(key(1));
            self.products = self.products.wrapping_add(u64::from(low) * u64::from(high));
            self.sum = self
                .sum
                .wrapping_add(u64::from(high) << 32 | u64::from(low));
            self.words = self.words.wrapping_add(1);
        }
    }

    /// Adds the bytes after the last whole word, fewer than 8.
    pub(crate) fn finish(mut self, tail: &[u8]) -> u64 {
        let len = 8 * u64::from(self.words) + tail.len() as u64;
        if !tail.is_empty() {
            let mut last = [0; 8];
            last[..tail.len()].copy_from_slice(tail);
            self.update(&last);
        }
        let plain = len.wrapping_add(self.sum);
        self.products.wrapping_add(plain.wrapping_mul(MULTIPLIER))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::SimdTier;
    use proptest::prelude::*;

    fn chunk_hash(bytes: &[u8]) -> u64 {
        super::chunk_hash(Kernels::new(SimdTier::Scalar).unwrap(), bytes)
    }

    #[test]
    fn the_multiplier_has_the_properties_the_proof_needs() {
        assert_eq!(MULTIPLIER & 1, 1);
        assert_eq!(MULTIPLIER >> 32 & 1, 0);
        assert_ne!(MULTIPLIER >> 32, 0);
        assert_eq!(
            (STEP_LOW & 1, STEP_HIGH & 1),
            (1, 1),
            "keys differ within 2^32 words"
        );
    }

    #[test]
    fn every_bit_flip_of_a_constant_chunk_is_seen() {
        for fill in [0, 0xff, 0x3c] {
            let mut bytes = vec![fill; 301];
            let hash = chunk_hash(&bytes);
            for bit in 0..bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(chunk_hash(&bytes), hash);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            assert_ne!(chunk_hash(&bytes[..300]), hash);
        }
    }

    proptest! {
        #[test]
        fn a_change_within_one_half_word_is_certain_to_be_seen(
            mut bytes in prop::collection::vec(any::<u8>(), 8..200),
            at: prop::sample::Index, change in 1_u32..,
        ) {
            let hash = chunk_hash(&bytes);
            let at = at.index(bytes.len() / 4) * 4;
            let half: &mut [u8; 4] = (&mut bytes[at..at + 4]).try_into().unwrap();
            *half = (u32::from_le_bytes(*half) ^ change).to_le_bytes();
            prop_assert_ne!(chunk_hash(&bytes), hash);
        }

        #[test]
        fn swapped_words_are_seen(words in prop::collection::vec(any::<u64>(), 2..40)) {
            let bytes = |words: &[u64]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>();
            let mut swapped = words.clone();
            swapped.swap(0, words.len() - 1);
            prop_assume!(swapped != words);
            prop_assert_ne!(chunk_hash(&bytes(&words)), chunk_hash(&bytes(&swapped)));
        }
    }
}
