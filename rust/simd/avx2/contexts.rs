//! Symbols in contexts, where no context has more than 16 of them: second symbols.
//!
//! A shuffle looks 16 contexts up. The slot of a lane is compared with the last slot before each place of
//! its context but the first; the nearest ones on both sides give offset and frequency without a table.
//! Scalar oracle: `entropy::rans::Decoder::fill_contexts`.

use std::arch::x86_64::*;

use super::decode::Refilling;
use super::{load_lanes, load_twice, store_lanes};
use crate::constants::LANES;
use crate::entropy::rans::{Decoder, FewSymbols};

/// See [`crate::simd::Kernels::decode_contexts`].
///
/// # Safety
/// The CPU has the features of this tier. The stream has `64 * groups` bytes; there are `64 * groups`
/// contexts and as much room for indices.
pub(in crate::simd) unsafe fn decode_contexts(
    tables: &FewSymbols,
    decoder: &mut Decoder<'_>,
    contexts: &[u8],
    indices: &mut [u8],
    groups: usize,
) {
    // SAFETY: passed on.
    unsafe {
        match tables.places {
            ..=4 => decode::<3>(tables, decoder, contexts, indices, groups),
            5..=8 => decode::<7>(tables, decoder, contexts, indices, groups),
            _ => decode::<15>(tables, decoder, contexts, indices, groups),
        }
    }
}

/// # Safety
/// As [`decode_contexts`], with at most `CUTS + 1` places.
#[target_feature(enable = "avx2,bmi1,bmi2,popcnt,lzcnt")]
unsafe fn decode<const CUTS: usize>(
    tables: &FewSymbols,
    decoder: &mut Decoder<'_>,
    contexts: &[u8],
    indices: &mut [u8],
    groups: usize,
) {
    let (zero, ones) = (_mm256_setzero_si256(), _mm256_set1_epi8(1));
    let (all, low_bytes) = (_mm256_set1_epi8(-1), _mm256_set1_epi16(0xff));
    let refilling = Refilling::new();
    let first = load_twice(&tables.first);
    let mut low = load_lanes(&decoder.low);
    let mut high = load_lanes(&decoder.high);
    let mut stream = [decoder.stream.as_ptr(); 2];
    for group in 0..groups {
        let mut refill = [zero; 2];
        for u in 0..2 {
            let at = LANES * group + 32 * u;
            // SAFETY: the group's contexts are there.
            let context = unsafe { _mm256_loadu_si256(contexts.as_ptr().add(at).cast()) };
            let slot = low[u];
            let before_slot = _mm256_sub_epi8(slot, ones);
            let mut index = _mm256_shuffle_epi8(first, context);
            // Slots from the first one of the symbol on, and after this one up to its last.
            let (mut offset, mut left) = (slot, _mm256_xor_si256(slot, all));
            for cut in 0..CUTS {
                let last = load_twice(&tables.last_before[cut]);
                let last = _mm256_shuffle_epi8(last, context);
                let step = _mm256_shuffle_epi8(load_twice(&tables.step[cut]), context);
                let not_after = _mm256_cmpeq_epi8(_mm256_max_epu8(slot, last), last);
                index = _mm256_add_epi8(index, _mm256_andnot_si256(not_after, step));
                // Those on the other side of the slot wrap to larger numbers than any on this one.
                offset = _mm256_min_epu8(offset, _mm256_sub_epi8(before_slot, last));
                left = _mm256_min_epu8(left, _mm256_sub_epi8(last, slot));
            }
            // SAFETY: the group's room for indices is there.
            unsafe { _mm256_storeu_si256(indices.as_mut_ptr().add(at).cast(), index) };
            let frequency = _mm256_add_epi8(_mm256_add_epi8(offset, left), ones);
            let even = _mm256_mullo_epi16(
                _mm256_and_si256(frequency, low_bytes),
                _mm256_and_si256(high[u], low_bytes),
            );
            let odd = _mm256_mullo_epi16(
                _mm256_srli_epi16::<8>(frequency),
                _mm256_srli_epi16::<8>(high[u]),
            );
            let even = _mm256_add_epi16(even, _mm256_and_si256(offset, low_bytes));
            let odd = _mm256_add_epi16(odd, _mm256_srli_epi16::<8>(offset));
            low[u] = _mm256_blendv_epi8(_mm256_slli_epi16::<8>(odd), even, low_bytes);
            high[u] = _mm256_blendv_epi8(odd, _mm256_srli_epi16::<8>(even), low_bytes);
            refill[u] = _mm256_cmpeq_epi8(high[u], zero);
        }
        // SAFETY: group `g` begins at most `64 g` bytes into a stream of `64 * groups`.
        unsafe { refilling.apply(&refill, &mut low, &mut high, &mut stream) };
    }
    store_lanes(low, &mut decoder.low);
    store_lanes(high, &mut decoder.high);
    let taken = stream[0].addr() - decoder.stream.as_ptr().addr();
    decoder.stream = &decoder.stream[taken..];
}
