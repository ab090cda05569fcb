//! Symbols in up to 16 contexts of 64 symbols, and what elements of a delta have from their classes.
//!
//! Tables of 16 contexts do not fit registers: slots are gathered from the first cache. Scalar oracles:
//! `entropy::rans::Decoder::fill_contexts`, `planes::delta`, `chunk::delta`.

use std::arch::x86_64::*;

use super::cut::separate_bytes;
use super::rans::expand_from;
use super::{load, store};
use crate::constants::LANES;
use crate::entropy::rans::{ContextSpec, Decoder};
use crate::planes::words::Word;

/// Every second 16-bit word of two registers, and every second byte.
static LOW_WORDS: [u16; 32] = every_second(0);
static HIGH_WORDS: [u16; 32] = every_second(1);

const fn every_second(first: u16) -> [u16; 32] {
    let mut words = [0; 32];
    let mut i = 0;
    while i < 32 {
        words[i] = 2 * i as u16 + first;
        i += 1;
    }
    words
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load_indices(words: &[u16; 32]) -> __m512i {
    // SAFETY: the reference is to 64 readable bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

/// See [`crate::simd::Kernels::decode_contexts`].
///
/// # Safety
/// The CPU has the features of this tier. The stream has `64 * groups` bytes; there are `64 * groups`
/// contexts and as much room for indices.
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2"
)]
pub(in crate::simd) unsafe fn decode_contexts(
    spec: &ContextSpec,
    decoder: &mut Decoder<'_>,
    contexts: &[u8],
    indices: &mut [u8],
    groups: usize,
) {
    let slots: *const i32 = spec.slot_words().as_ptr().cast();
    let (low_bytes, low_byte) = (_mm512_set1_epi16(0xff), _mm512_set1_epi32(0xff));
    let last_entry = _mm512_set1_epi32(spec.slot_words().len() as i32 - 1);
    let (low_words, high_words) = (load_indices(&LOW_WORDS), load_indices(&HIGH_WORDS));
    let begin = _mm512_set1_epi16(256);
    let mut stream = decoder.stream.as_ptr();
    let mut states = [_mm512_setzero_si512(); 2];
    for (half, state) in states.iter_mut().enumerate() {
        let lanes = 32 * half..32 * half + 32;
        let mut words = [0_u16; 32];
        let bytes = decoder.low[lanes.clone()].iter().zip(&decoder.high[lanes]);
        for (word, (&low, &high)) in words.iter_mut().zip(bytes) {
            *word = u16::from_le_bytes([low, high]);
        }
        *state = load_indices(&words);
    }
    for group in 0..groups {
        // SAFETY: the group's contexts and its room for indices are there; entries are cut to those of
        // the slots; group `g` begins at most `64 g` bytes into a stream of `64 * groups`.
        unsafe {
            let mut of_halves = [_mm512_setzero_si512(); 2];
            let mut refills = [0; 2];
            for (half, state) in states.iter_mut().enumerate() {
                let at = LANES * group + 32 * half;
                let mut slots_of_lanes = [_mm512_setzero_si512(); 2];
                for (part, slot) in slots_of_lanes.iter_mut().enumerate() {
                    let context = _mm_loadu_si128(contexts.as_ptr().add(at + 16 * part).cast());
                    let context = _mm512_slli_epi32::<8>(_mm512_cvtepu8_epi32(context));
                    let state = if part == 0 {
                        _mm512_castsi512_si256(*state)
                    } else {
                        _mm512_extracti64x4_epi64::<1>(*state)
                    };
                    let state = _mm512_and_si512(_mm512_cvtepu16_epi32(state), low_byte);
                    let entry = _mm512_and_si512(_mm512_or_si512(context, state), last_entry);
                    *slot = _mm512_i32gather_epi32::<4>(entry, slots);
                }
                let [first, second] = slots_of_lanes;
                let frequency = _mm512_permutex2var_epi16(first, low_words, second);
                let others = _mm512_permutex2var_epi16(first, high_words, second);
                let product = _mm512_mullo_epi16(frequency, _mm512_srli_epi16::<8>(*state));
                *state = _mm512_add_epi16(product, _mm512_and_si512(others, low_bytes));
                refills[half] = u64::from(_mm512_cmplt_epu16_mask(*state, begin));
                of_halves[half] = others;
            }
            let [_, index] = separate_bytes(of_halves);
            _mm512_storeu_si512(indices.as_mut_ptr().add(LANES * group).cast(), index);
            let refill = refills[0] | refills[1] << 32;
            let bytes = expand_from(_mm512_setzero_si512(), refill, stream);
            stream = stream.add(refill.count_ones() as usize);
            let halves = [
                _mm512_castsi512_si256(bytes),
                _mm512_extracti64x4_epi64::<1>(bytes),
            ];
            for (half, state) in states.iter_mut().enumerate() {
                let mask = refills[half] as u32;
                let moved = _mm512_mask_slli_epi16::<8>(*state, mask, *state);
                *state = _mm512_or_si512(moved, _mm512_cvtepu8_epi16(halves[half]));
            }
        }
    }
    // SAFETY: the features are this function's.
    let [low, high] = unsafe { separate_bytes(states) };
    store(low, &mut decoder.low);
    store(high, &mut decoder.high);
    let taken = stream.addr() - decoder.stream.as_ptr().addr();
    decoder.stream = &decoder.stream[taken..];
}

/// Looks bytes up in two tables at once; returns how many, a multiple of 64.
///
/// # Safety
/// The CPU has the features of this tier, and both outputs have room for as many bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(in crate::simd) unsafe fn look_up_bytes(
    tables: [&[u8; 256]; 2],
    at: &[u8],
    mut out: [&mut [u8]; 2],
) -> usize {
    let mut parts = [[_mm512_setzero_si512(); 4]; 2];
    for (parts, table) in parts.iter_mut().zip(tables) {
        for (part, bytes) in parts.iter_mut().zip(table.as_chunks::<64>().0) {
            *part = load(bytes);
        }
    }
    let whole = at.as_chunks::<64>().0;
    for (number, at) in whole.iter().enumerate() {
        let at = load(at);
        let upper = _mm512_movepi8_mask(at);
        for (parts, out) in parts.iter().zip(&mut out) {
            let first = _mm512_permutex2var_epi8(parts[0], at, parts[1]);
            let last = _mm512_permutex2var_epi8(parts[2], at, parts[3]);
            let found = _mm512_mask_mov_epi8(first, upper, last);
            // SAFETY: the output has room for as many bytes as are looked up.
            unsafe {
                _mm512_storeu_si512(out.as_mut_ptr().add(64 * number).cast(), found);
            }
        }
    }
    64 * whole.len()
}

/// Looks words up in a table of 16; returns how many, a multiple of 64.
///
/// # Safety
/// The CPU has the features of this tier, and the output has room for as many words.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(in crate::simd) unsafe fn look_up_words<W: Word>(
    table: &[W; 16],
    at: &[u8],
    out: &mut [W],
) -> usize {
    let whole = at.len() / 64;
    let (mut from, mut to) = (at.as_ptr(), out.as_mut_ptr().cast::<u8>());
    // SAFETY: the table has 16 words; `at` has 64 bytes for each round, and the output 64 words.
    unsafe {
        let table: *const u8 = table.as_ptr().cast();
        match W::BYTES {
            1 => {
                let table = _mm512_castsi128_si512(_mm_loadu_si128(table.cast()));
                for _ in 0..whole {
                    let at = _mm512_loadu_si512(from.cast());
                    _mm512_storeu_si512(to.cast(), _mm512_permutexvar_epi8(at, table));
                    (from, to) = (from.add(64), to.add(64));
                }
            }
            2 => {
                let table = _mm512_castsi256_si512(_mm256_loadu_si256(table.cast()));
                for _ in 0..2 * whole {
                    let at = _mm512_cvtepu8_epi16(_mm256_loadu_si256(from.cast()));
                    _mm512_storeu_si512(to.cast(), _mm512_permutexvar_epi16(at, table));
                    (from, to) = (from.add(32), to.add(64));
                }
            }
            4 => {
                let table = _mm512_loadu_si512(table.cast());
                for _ in 0..4 * whole {
                    let at = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
                    _mm512_storeu_si512(to.cast(), _mm512_permutexvar_epi32(at, table));
                    (from, to) = (from.add(16), to.add(64));
                }
            }
            _ => {
                let first = _mm512_loadu_si512(table.cast());
                let last = _mm512_loadu_si512(table.add(64).cast());
                for _ in 0..8 * whole {
                    let at = _mm512_cvtepu8_epi64(_mm_loadl_epi64(from.cast()));
                    let found = _mm512_permutex2var_epi64(first, at, last);
                    _mm512_storeu_si512(to.cast(), found);
                    (from, to) = (from.add(8), to.add(64));
                }
            }
        }
    }
    64 * whole
}

/// Four bytes from the place in the lowest one of each 32 bits.
static FOUR_BYTES: [u8; 64] = {
    let mut bytes = [0; 64];
    let mut i = 0;
    while i < 64 {
        bytes[i] = (i % 16) as u8 & !3;
        i += 1;
    }
    bytes
};

/// See [`crate::simd::Kernels::unpack_fields`]; returns how many fields have been read, and the bit
/// after them.
///
/// # Safety
/// The CPU has the features of this tier; there are as many outputs as widths, of 1, 2 or 4 bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
pub(in crate::simd) unsafe fn unpack_fields<W: Word>(
    bytes: &[u8],
    mut position: usize,
    (widths, low_bits): (&[u8], u32),
    out: &mut [W],
) -> (usize, usize) {
    let lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let four = load(&FOUR_BYTES);
    let following = _mm512_set1_epi32(0x0302_0100);
    let (ones, seven) = (_mm512_set1_epi32(1), _mm512_set1_epi32(7));
    let less = _mm512_set1_epi32(low_bits as i32);
    let up = _mm_cvtsi32_si128(low_bits as i32);
    let mut done = 0;
    while done + 16 <= widths.len() && bytes.len() >= position / 8 + 64 {
        // SAFETY: there are 16 widths and outputs more, and 64 bytes from the position on.
        unsafe {
            let width = _mm_loadu_si128(widths.as_ptr().add(done).cast());
            let width = _mm512_sub_epi32(_mm512_cvtepu8_epi32(width), less);
            // The sum of the widths up to each lane, from those of 1, 2, 4 and 8 lanes.
            let mut sum = width;
            macro_rules! add_lanes_before {
                ($($step:literal: $mask:literal),*) => { $(
                    let from = _mm512_sub_epi32(lane, _mm512_set1_epi32($step));
                    let before = _mm512_maskz_permutexvar_epi32($mask, from, sum);
                    sum = _mm512_add_epi32(sum, before);
                )* };
            }
            add_lanes_before!(1: 0xfffe, 2: 0xfffc, 4: 0xfff0, 8: 0xff00);
            let within = _mm512_set1_epi32((position % 8) as i32);
            let begin = _mm512_add_epi32(_mm512_sub_epi32(sum, width), within);
            let data = _mm512_loadu_si512(bytes.as_ptr().add(position / 8).cast());
            let place = _mm512_shuffle_epi8(_mm512_srli_epi32::<3>(begin), four);
            let place = _mm512_add_epi8(place, following);
            let window = _mm512_permutexvar_epi8(place, data);
            let field = _mm512_srlv_epi32(window, _mm512_and_si512(begin, seven));
            let mask = _mm512_sub_epi32(_mm512_sllv_epi32(ones, width), ones);
            let field = _mm512_sll_epi32(_mm512_and_si512(field, mask), up);
            let to = out.as_mut_ptr().add(done);
            match W::BYTES {
                1 => _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(field)),
                2 => _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(field)),
                _ => _mm512_storeu_si512(to.cast(), field),
            }
            let last = _mm_extract_epi32::<3>(_mm512_extracti32x4_epi32::<3>(sum));
            position += last as usize;
        }
        done += 16;
    }
    (done, position)
}
