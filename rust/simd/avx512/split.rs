//! Taking elements apart in one loop: hash, scale offsets, sign, byte planes, indices, escapes.
//!
//! For elements of 1, 2 and 4 bytes; the way back is `cut.rs`.

use std::arch::x86_64::*;

use super::bits::Packer;
use super::cut::{Element, Place, byte_shift_right, keys, pair, separate_bytes};
use super::load;
use crate::chunk::HASH_STEPS;
use crate::simd::cut::{SplitForm, SplitRun};

/// How far ahead of its use the input is fetched, in bytes.
const AHEAD: usize = 4096;
/// How far ahead of their use lines that are written are fetched: from the second cache or the third.
const WRITTEN_AHEAD: usize = 512;

/// See [`crate::simd::Kernels::split_cut`].
///
/// # Safety
/// The CPU has the features of this tier, `form` covers the run, elements have 1, 2 or 4 bytes.
pub(in crate::simd) unsafe fn split_cut(
    form: &SplitForm<'_>,
    run: SplitRun<'_>,
    groups: usize,
) -> usize {
    // SAFETY: passed on.
    unsafe {
        match (form.element_bytes, form.wide) {
            (1, _) => split::<u8, false>(form, run, groups),
            (2, false) => split::<u16, false>(form, run, groups),
            (2, true) => split::<u16, true>(form, run, groups),
            (_, false) => split::<u32, false>(form, run, groups),
            (_, true) => split::<u32, true>(form, run, groups),
        }
    }
}

/// # Safety
/// As [`split_cut`], for elements of this width.
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2"
)]
#[allow(
    clippy::too_many_lines,
    reason = "one loop, which must be compiled as one"
)]
unsafe fn split<E: Element, const WIDE: bool>(
    form: &SplitForm<'_>,
    run: SplitRun<'_>,
    groups: usize,
) -> usize {
    let bits = 8 * E::BYTES as u32;
    let (width, sign) = (form.packed_bits, form.sign_position);
    let planes = E::BYTES - 1 - usize::from(WIDE);
    let count = |count: u32| _mm_cvtsi32_si128(count as i32);
    let zero = _mm512_setzero_si512();
    // SAFETY: the features are this function's.
    let (below, sign_bit, magnitude, mut place) = unsafe {
        (
            E::broadcast((1_u64 << sign) - 1),
            E::broadcast(1_u64 << sign),
            E::broadcast((1_u64 << (bits - 1)) - 1),
            Place::new::<E>(form.scale.as_ref(), run.first),
        )
    };
    let symbol_bits = if WIDE { 16 } else { 8 } - width;
    let squeeze = (width > 0).then(|| Packer::new(width));
    let table = load(form.table);
    let mut keys = keys(run.hash.words);
    let step = _mm512_set1_epi64(pair(|half| HASH_STEPS[half].wrapping_mul(bits)));
    let (mut products, mut sums) = (zero, zero);

    let mut input = run.input.as_ptr();
    let mut indices = run.indices.as_mut_ptr();
    // The last place that a whole register has room at.
    let last_whole = (run.packed.as_ptr().addr() + run.packed.len()).saturating_sub(64);
    let mut packed = run.packed.as_mut_ptr();
    let mut low = run.low.map(<[u8]>::as_mut_ptr);
    let mut found = 0;
    for _ in 0..groups {
        // SAFETY: the form covers the run: every part has what a group takes, and is moved on by
        // just that; at most 64 symbols of a group are escaped. Fetches cannot fault.
        unsafe {
            let mut words = [zero; 4];
            for (word, key) in words.iter_mut().zip(&mut keys).take(E::BYTES) {
                _mm_prefetch::<_MM_HINT_T0>(input.wrapping_add(AHEAD).cast());
                *word = _mm512_loadu_si512(input.cast());
                input = input.add(64);
                let keyed = _mm512_add_epi32(*word, *key);
                let product = _mm512_mul_epu32(keyed, _mm512_srli_epi64::<32>(keyed));
                products = _mm512_add_epi64(products, product);
                sums = _mm512_add_epi64(sums, keyed);
                *key = _mm512_add_epi32(*key, step);
            }
            let offsets = place.offsets::<E>(form.scale.as_ref());
            for (word, offset) in words.iter_mut().zip(offsets).take(E::BYTES) {
                *word = if sign == 0 {
                    E::sub(E::rotate_left(*word), offset)
                } else {
                    // 0xE4: the first operand where the mask is set, else the second.
                    let value = E::sub(*word, offset);
                    let value = _mm512_ternarylogic_epi32::<0xE4>(value, *word, magnitude);
                    let doubled = E::shift(value, count(0), count(1));
                    let top = E::shift(*word, count(bits - 1), count(sign));
                    let moved = _mm512_ternarylogic_epi32::<0xE4>(value, doubled, below);
                    _mm512_ternarylogic_epi32::<0xE4>(top, moved, sign_bit)
                };
            }
            let bytes = E::planes(words);
            for (bytes, to) in bytes.iter().zip(&mut low).take(planes) {
                _mm_prefetch::<_MM_HINT_ET0>((*to).wrapping_add(WRITTEN_AHEAD).cast());
                _mm512_storeu_si512((*to).cast(), *bytes);
                *to = to.wrapping_add(64);
            }
            if let Some(squeeze) = &squeeze {
                // A masked store takes several times as long as a whole one, whose end is written over.
                if packed.addr() <= last_whole {
                    _mm512_storeu_si512(packed.cast(), squeeze.pack(bytes[planes]));
                } else {
                    squeeze.store(bytes[planes], packed);
                }
                packed = packed.wrapping_add(8 * width as usize);
            }
            let last = _mm512_set1_epi8(63);
            let (offset, symbols) = if WIDE {
                let symbols = E::tops(words).map(|top| _mm512_srl_epi16(top, count(width)));
                let base = _mm512_set1_epi16(form.base as i16);
                let mask = _mm512_set1_epi16(((1_u32 << symbol_bits) - 1) as i16);
                let offsets = symbols.map(|symbol| {
                    let offset = _mm512_and_si512(_mm512_sub_epi16(symbol, base), mask);
                    _mm512_min_epu16(offset, _mm512_set1_epi16(63))
                });
                (separate_bytes(offsets)[0], symbols)
            } else {
                let symbol = byte_shift_right(bytes[planes], count(width));
                let base = _mm512_set1_epi8(form.base as i8);
                let mask = _mm512_set1_epi8(((1_u32 << symbol_bits) - 1) as i8);
                let offset = _mm512_and_si512(_mm512_sub_epi8(symbol, base), mask);
                (_mm512_min_epu8(offset, last), [symbol; 2])
            };
            let index = _mm512_permutexvar_epi8(offset, table);
            _mm_prefetch::<_MM_HINT_ET0>(indices.wrapping_add(WRITTEN_AHEAD).cast());
            _mm512_storeu_si512(indices.cast(), index);
            indices = indices.add(64);
            // Eight without a branch: one that is wrong for every tenth group takes as long as all the rest.
            let rare = _mm512_cmpeq_epi8_mask(index, last);
            let to = run.escapes.as_mut_ptr().add(found);
            let count = rare.count_ones() as usize;
            found += count;
            if WIDE {
                let before = (rare as u32).count_ones() as usize;
                let parts = [(rare as u32, to), ((rare >> 32) as u32, to.add(before))];
                for (half, (mask, to)) in symbols.into_iter().zip(parts) {
                    let escaped = _mm512_maskz_compress_epi16(mask, half);
                    if count > 8 {
                        _mm512_storeu_si512(to.cast(), escaped);
                    } else {
                        _mm_storeu_si128(to.cast(), _mm512_castsi512_si128(escaped));
                    }
                }
            } else {
                let escaped = _mm512_maskz_compress_epi8(rare, symbols[0]);
                let first = _mm512_castsi512_si128(escaped);
                _mm_storeu_si128(to.cast(), _mm_cvtepu8_epi16(first));
                if count > 8 {
                    let first = _mm512_castsi512_si256(escaped);
                    let last = _mm512_extracti64x4_epi64::<1>(escaped);
                    _mm512_storeu_si512(to.cast(), _mm512_cvtepu8_epi16(first));
                    _mm512_storeu_si512(to.add(32).cast(), _mm512_cvtepu8_epi16(last));
                }
            }
        }
    }
    run.hash.words = run.hash.words.wrapping_add((groups * 8 * E::BYTES) as u32);
    run.hash.products = run
        .hash
        .products
        .wrapping_add(_mm512_reduce_add_epi64(products) as u64);
    run.hash.sum = run
        .hash
        .sum
        .wrapping_add(_mm512_reduce_add_epi64(sums) as u64);
    found
}
