//! AVX2 kernels: 64 lanes are two registers of low bytes and two of high bytes.
//!
//! A byte shuffle looks up in tables of 16 only, within each half of a register. Tables of 64 are taken
//! in blocks of 16, and only in those that are used; the 256 slots go through [`Buckets`].

#![allow(
    clippy::wildcard_imports,
    clippy::needless_range_loop,
    clippy::too_many_lines,
    reason = "intrinsics are many; loops over registers are unrolled by number"
)]

mod bits;
mod buckets;
mod contexts;
mod cut;
mod decode;
mod encode;
mod hash;
mod stream;

pub(super) use bits::{index, pack_bits, unpack_bits};
pub(crate) use buckets::Buckets;
pub(super) use contexts::decode_contexts;
pub(super) use cut::decode_cut;
pub(super) use decode::decode_groups;
pub(super) use encode::encode_groups;
pub(super) use hash::hash;
pub(super) use stream::{copy_past_cache, fence};

use super::Task;
use std::arch::x86_64::*;

/// Whether the CPU has what every function of this module needs.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("popcnt")
        && is_x86_feature_detected!("lzcnt")
}

/// Runs a task compiled for this tier.
#[target_feature(enable = "avx2,bmi1,bmi2,popcnt,lzcnt")]
pub(super) fn run<T: Task>(task: T) -> T::Output {
    task.run()
}

#[target_feature(enable = "avx2")]
#[inline]
fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the reference is to 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn store(register: __m256i, bytes: &mut [u8; 32]) {
    // SAFETY: the reference is to 32 writable bytes; the store needs no alignment.
    unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), register) }
}

/// The same 16 bytes in both halves.
#[target_feature(enable = "avx2")]
#[inline]
fn load_twice(bytes: &[u8; 16]) -> __m256i {
    // SAFETY: the reference is to 16 readable bytes; the load needs no alignment.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

/// 16 bytes from each of two places.
///
/// # Safety
/// They can be read, and the CPU has AVX2.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn load_two(first: *const u8, second: *const u8) -> __m256i {
    // SAFETY: passed on.
    unsafe {
        _mm256_inserti128_si256::<1>(
            _mm256_castsi128_si256(_mm_loadu_si128(first.cast())),
            _mm_loadu_si128(second.cast()),
        )
    }
}

/// The sum of the four 64-bit numbers of a register.
#[target_feature(enable = "avx2")]
#[inline]
fn sum_of_words(register: __m256i) -> u64 {
    let mut bytes = [0; 32];
    store(register, &mut bytes);
    let words = bytes.as_chunks::<8>().0.iter();
    words.fold(0, |sum, &word| sum.wrapping_add(u64::from_le_bytes(word)))
}

/// 64 bytes in two registers.
#[target_feature(enable = "avx2")]
#[inline]
fn load_lanes(bytes: &[u8; 64]) -> [__m256i; 2] {
    // SAFETY: the reference is to 64 readable bytes.
    unsafe {
        [
            _mm256_loadu_si256(bytes.as_ptr().cast()),
            _mm256_loadu_si256(bytes.as_ptr().add(32).cast()),
        ]
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn store_lanes(registers: [__m256i; 2], bytes: &mut [u8; 64]) {
    let (halves, _) = bytes.as_chunks_mut::<32>();
    for (register, half) in registers.into_iter().zip(halves) {
        store(register, half);
    }
}

/// Blocks of 16 of a table of 64.
#[derive(Clone, Copy)]
struct Table<const BLOCKS: usize>([__m256i; BLOCKS]);

impl<const BLOCKS: usize> Table<BLOCKS> {
    /// The blocks of these numbers.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn new(bytes: &[u8; 64], numbers: [u8; BLOCKS]) -> Self {
        let (blocks, _) = bytes.as_chunks::<16>();
        Self(numbers.map(|number| load_twice(&blocks[usize::from(number)])))
    }

    /// The entries of these positions; each register of `at` has the top bit set where the position is
    /// in another block, so that the shuffle gives 0.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn look_up(&self, at: &[__m256i; BLOCKS]) -> __m256i {
        let mut entries = _mm256_shuffle_epi8(self.0[0], at[0]);
        for block in 1..BLOCKS {
            let more = _mm256_shuffle_epi8(self.0[block], at[block]);
            entries = _mm256_or_si256(entries, more);
        }
        entries
    }

    /// [`Table::look_up`] for several registers.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn look_up_each<const U: usize>(&self, at: &[[__m256i; BLOCKS]; U]) -> [__m256i; U] {
        let mut entries = [_mm256_setzero_si256(); U];
        for (entries, at) in entries.iter_mut().zip(at) {
            *entries = self.look_up(at);
        }
        entries
    }
}

/// Positions below 64 as [`Table::look_up`] takes them.
#[target_feature(enable = "avx2")]
#[inline]
fn positions<const BLOCKS: usize>(
    position: __m256i,
    starts: &[__m256i; BLOCKS],
) -> [__m256i; BLOCKS] {
    if BLOCKS == 1 {
        // The shuffle looks at the low four bits and the top bit, which is clear.
        return [position; BLOCKS];
    }
    let beyond = _mm256_set1_epi8(0x70);
    let mut at = [position; BLOCKS];
    for block in 0..BLOCKS {
        // Where the block is the right one its number is cancelled and the sum stays below 0x80.
        let place = _mm256_xor_si256(position, starts[block]);
        at[block] = _mm256_adds_epu8(place, beyond);
    }
    at
}

/// What [`positions`] needs of the numbers of blocks.
#[target_feature(enable = "avx2")]
#[inline]
fn block_starts<const BLOCKS: usize>(numbers: [u8; BLOCKS]) -> [__m256i; BLOCKS] {
    numbers.map(|number| _mm256_set1_epi8((16 * number) as i8))
}
