//! The r8 encoder, a group of 64 symbols at a time, several chunks in turn.
//!
//! Scalar oracle: `entropy::rans::Encoder`. Deviations from the pseudocode there:
//! 1. states are two byte planes; 16-bit arithmetic is done on even and odd lanes in turn;
//! 2. the quotient by a 16-bit reciprocal is at most one too small, which the remainder tells;
//! 3. bytes leave 8 lanes at a time, through a shuffle that packs them at the top of 8 bytes.

use std::arch::x86_64::*;

use super::{Table, block_starts, load_lanes, positions, store_lanes};
use crate::constants::{LANES, MAX_SYMBOLS};
use crate::entropy::rans::{Encoder, Spec};

/// For each set of 8 lanes: their numbers, packed at the top.
static PACK_TOP: [[u8; 8]; 256] = {
    let mut table = [[0x80; 8]; 256];
    let mut set = 0;
    while set < 256_usize {
        let (mut to, mut lane) = (8, 8);
        while lane > 0 {
            lane -= 1;
            if set >> lane & 1 == 1 {
                to -= 1;
                table[set][to] = lane as u8;
            }
        }
        set += 1;
    }
    table
};

/// See [`crate::simd::Kernels::encode_groups`].
///
/// # Safety
/// The CPU has the features of this tier. All lists of indices have the same length, a multiple of
/// 64, and every encoder has room for as many bytes and 64 more.
pub(in crate::simd) unsafe fn encode_groups(
    spec: &Spec,
    mut encoders: &mut [Encoder],
    mut indices: &[&[u8]],
) {
    let mut blocks = [0; 4];
    let mut count = 0;
    for (number, frequencies) in spec.frequency.as_chunks::<16>().0.iter().enumerate() {
        if *frequencies != [0; 16] {
            blocks[count] = number as u8;
            count += 1;
        }
    }
    let [first, second, _, _] = blocks;
    while !encoders.is_empty() {
        let k = encoders.len().min(2);
        let (now, later) = encoders.split_at_mut(k);
        let (now_indices, later_indices) = indices.split_at(k);
        // SAFETY: passed on.
        unsafe {
            match (k, count) {
                (2, 1) => encode::<2, 1>(spec, [first], now, now_indices),
                (2, 2) => encode::<2, 2>(spec, [first, second], now, now_indices),
                (2, _) => encode::<2, 4>(spec, [0, 1, 2, 3], now, now_indices),
                (_, 1) => encode::<1, 1>(spec, [first], now, now_indices),
                (_, 2) => encode::<1, 2>(spec, [first, second], now, now_indices),
                (_, _) => encode::<1, 4>(spec, [0, 1, 2, 3], now, now_indices),
            }
        }
        (encoders, indices) = (later, later_indices);
    }
}

/// # Safety
/// As [`encode_groups`], with `K` encoders; the indices in use are in these blocks of 16.
#[target_feature(enable = "avx2,bmi1,bmi2,popcnt,lzcnt")]
unsafe fn encode<const K: usize, const BLOCKS: usize>(
    spec: &Spec,
    blocks: [u8; BLOCKS],
    encoders: &mut [Encoder],
    indices: &[&[u8]],
) {
    let (mut reciprocal_low, mut reciprocal_high) = ([0; MAX_SYMBOLS], [0; MAX_SYMBOLS]);
    for (index, &frequency) in spec.frequency.iter().enumerate() {
        let reciprocal = match frequency {
            0 => 0,
            // One too small for 1, and its quotient too: the remainder tells.
            1 => u16::MAX,
            _ => (65536 / u32::from(frequency)) as u16,
        };
        [reciprocal_low[index], reciprocal_high[index]] = reciprocal.to_le_bytes();
    }
    let starts = block_starts(blocks);
    let frequencies = Table::new(&spec.frequency, blocks);
    let first_slots = Table::new(&spec.start, blocks);
    let reciprocals = [
        Table::new(&reciprocal_low, blocks),
        Table::new(&reciprocal_high, blocks),
    ];
    let low_bytes = _mm256_set1_epi16(0xff);
    let ones = _mm256_set1_epi8(1);
    // Byte planes as the 16-bit numbers of even and odd lanes, and back.
    let even = |low, high| _mm256_blendv_epi8(_mm256_slli_epi16::<8>(high), low, low_bytes);
    let odd = |low, high| _mm256_blendv_epi8(high, _mm256_srli_epi16::<8>(low), low_bytes);

    let mut low: [[__m256i; 2]; K] = std::array::from_fn(|c| load_lanes(&encoders[c].low));
    let mut high: [[__m256i; 2]; K] = std::array::from_fn(|c| load_lanes(&encoders[c].high));
    let mut cursor: [*mut u8; K] = std::array::from_fn(|c| {
        let cursor = encoders[c].cursor;
        encoders[c].room[..cursor].as_mut_ptr_range().end
    });

    for group in (0..indices[0].len() / LANES).rev() {
        for c in 0..K {
            for half in [1, 0] {
                // SAFETY: the list has `64 * (group + 1)` indices at least.
                let index = unsafe {
                    let from = indices[c].as_ptr().add(group * LANES + 32 * half);
                    _mm256_loadu_si256(from.cast())
                };
                let at = positions(index, &starts);
                let frequency = frequencies.look_up(&at);

                let emit =
                    _mm256_cmpeq_epi8(_mm256_max_epu8(high[c][half], frequency), high[c][half]);
                let emitting = _mm256_movemask_epi8(emit) as u32;
                let sets = emitting.to_le_bytes().map(usize::from);
                // SAFETY: 32 lanes emit at most 32 bytes, and a store begins at most 8 bytes before
                // the last byte that is kept: the room for `len` bytes and 64 more holds it.
                unsafe {
                    let bytes = [
                        _mm256_castsi256_si128(low[c][half]),
                        _mm256_extracti128_si256::<1>(low[c][half]),
                    ];
                    for quarter in [1, 0] {
                        let [first, second] = [sets[2 * quarter], sets[2 * quarter + 1]];
                        let order = _mm_unpacklo_epi64(
                            _mm_loadl_epi64(PACK_TOP[first].as_ptr().cast()),
                            _mm_loadl_epi64(PACK_TOP[second].as_ptr().cast()),
                        );
                        let order = _mm_add_epi8(order, _mm_set_epi64x(0x0808_0808_0808_0808, 0));
                        let packed = _mm_shuffle_epi8(bytes[quarter], order);
                        _mm_storeh_pd(cursor[c].sub(8).cast(), _mm_castsi128_pd(packed));
                        cursor[c] = cursor[c].sub(second.count_ones() as usize);
                        _mm_storel_epi64(cursor[c].sub(8).cast(), packed);
                        cursor[c] = cursor[c].sub(first.count_ones() as usize);
                    }
                }
                let x_low = _mm256_blendv_epi8(low[c][half], high[c][half], emit);
                let x_high = _mm256_andnot_si256(emit, high[c][half]);

                let reciprocal_low = reciprocals[0].look_up(&at);
                let reciprocal_high = reciprocals[1].look_up(&at);
                // Quotient and remainder, and whether the remainder is one.
                let divide = |x, reciprocal, frequency| {
                    let quotient = _mm256_mulhi_epu16(x, reciprocal);
                    let product = _mm256_mullo_epi16(quotient, frequency);
                    let remainder = _mm256_sub_epi16(x, product);
                    let is_one = _mm256_cmpgt_epi16(frequency, remainder);
                    (quotient, remainder, is_one)
                };
                let even_frequency = _mm256_and_si256(frequency, low_bytes);
                let odd_frequency = _mm256_srli_epi16::<8>(frequency);
                let (even_quotient, even_remainder, even_is_one) = divide(
                    even(x_low, x_high),
                    even(reciprocal_low, reciprocal_high),
                    even_frequency,
                );
                let (odd_quotient, odd_remainder, odd_is_one) = divide(
                    odd(x_low, x_high),
                    odd(reciprocal_low, reciprocal_high),
                    odd_frequency,
                );
                let quotient = _mm256_or_si256(even_quotient, _mm256_slli_epi16::<8>(odd_quotient));
                let remainder = even(even_remainder, odd_remainder);
                let is_one = _mm256_blendv_epi8(odd_is_one, even_is_one, low_bytes);
                let excess = _mm256_andnot_si256(is_one, frequency);
                let start = first_slots.look_up(&at);
                low[c][half] = _mm256_add_epi8(start, _mm256_sub_epi8(remainder, excess));
                high[c][half] = _mm256_add_epi8(quotient, _mm256_add_epi8(is_one, ones));
            }
        }
    }

    for (c, encoder) in encoders.iter_mut().enumerate() {
        store_lanes(low[c], &mut encoder.low);
        store_lanes(high[c], &mut encoder.high);
        // SAFETY: both point into the same room.
        encoder.cursor = unsafe { cursor[c].offset_from(encoder.room.as_ptr()) } as usize;
    }
}
