//! Decoding and putting elements together in one loop: nothing is stored but the elements.
//!
//! For elements of 1, 2 and 4 bytes. Several chunks take turns, as in `rans.rs`; streaming stores are
//! spread evenly among the steps, so that memory and core work at the same time.

use std::arch::x86_64::*;

use super::bits::SHUFFLES;
use super::load;
use super::rans::{STREAM_AHEAD, States, Tables};
use super::stream::Output;
use crate::chunk::{HASH_KEYS, HASH_STEPS};
use crate::simd::cut::{CutForm, CutRun, ScaleWords};

/// How far ahead of their use the raw planes are fetched, in bytes.
const RAW_AHEAD: usize = 1024;

/// Elements of one width: `64 / BYTES` in a register.
trait Element {
    const BYTES: usize;
    /// Adds element by element.
    unsafe fn add(a: __m512i, b: __m512i) -> __m512i;
    unsafe fn broadcast(value: u64) -> __m512i;
    /// The first elements, by mask, of `a`, the others of `b`.
    unsafe fn first_of(mask: u64, a: __m512i, b: __m512i) -> __m512i;
    /// Rotates right by one bit.
    unsafe fn rotate(word: __m512i) -> __m512i;
    /// Shifts right, shifts left.
    unsafe fn shift(word: __m512i, right: __m128i, left: __m128i) -> __m512i;
    /// Byte planes, the lowest first, to elements; registers from `BYTES` on are not used.
    unsafe fn interleave(planes: [__m512i; 4]) -> [__m512i; 4];
}

macro_rules! element {
    ($int:ty, $add:ident, $set:ident, $blend:ident, $mask:ty, $right:ident, $left:ident,
     $rotate:expr, $interleave:expr) => {
        impl Element for $int {
            const BYTES: usize = size_of::<$int>();
            #[inline(always)]
            unsafe fn add(a: __m512i, b: __m512i) -> __m512i {
                // SAFETY: as the caller's.
                unsafe { $add(a, b) }
            }
            #[inline(always)]
            unsafe fn broadcast(value: u64) -> __m512i {
                // SAFETY: as the caller's.
                unsafe { $set(value as $int as _) }
            }
            #[inline(always)]
            unsafe fn first_of(mask: u64, a: __m512i, b: __m512i) -> __m512i {
                // SAFETY: as the caller's.
                unsafe { $blend(mask as $mask, b, a) }
            }
            #[inline(always)]
            unsafe fn rotate(word: __m512i) -> __m512i {
                // SAFETY: as the caller's.
                unsafe { ($rotate)(word) }
            }
            #[inline(always)]
            unsafe fn shift(word: __m512i, right: __m128i, left: __m128i) -> __m512i {
                // SAFETY: as the caller's.
                unsafe { $left($right(word, right), left) }
            }
            #[allow(unused_unsafe, reason = "bytes need no shuffle")]
            #[inline(always)]
            unsafe fn interleave(planes: [__m512i; 4]) -> [__m512i; 4] {
                // SAFETY: as the caller's.
                unsafe { ($interleave)(planes) }
            }
        }
    };
}

element!(
    u16,
    _mm512_add_epi16,
    _mm512_set1_epi16,
    _mm512_mask_blend_epi16,
    u32,
    _mm512_srl_epi16,
    _mm512_sll_epi16,
    |word| _mm512_shrdi_epi16::<1>(word, word),
    |planes: [__m512i; 4]| {
        let [a, b] = interleave_bytes(planes[0], planes[1]);
        [a, b, planes[2], planes[3]]
    }
);
element!(
    u32,
    _mm512_add_epi32,
    _mm512_set1_epi32,
    _mm512_mask_blend_epi32,
    u16,
    _mm512_srl_epi32,
    _mm512_sll_epi32,
    |word| _mm512_ror_epi32::<1>(word),
    |planes: [__m512i; 4]| {
        let low = interleave_bytes(planes[0], planes[1]);
        let high = interleave_bytes(planes[2], planes[3]);
        let [a, b] = interleave_words(low[0], high[0]);
        let [c, d] = interleave_words(low[1], high[1]);
        [a, b, c, d]
    }
);
// Bytes have no shifts of their own: neighbours' bits are masked out.
element!(
    u8,
    _mm512_add_epi8,
    _mm512_set1_epi8,
    _mm512_mask_blend_epi8,
    u64,
    byte_shift_right,
    byte_shift_left,
    |word| {
        let right = _mm512_srli_epi16::<1>(word);
        let left = _mm512_slli_epi16::<7>(word);
        _mm512_ternarylogic_epi32::<0xE4>(right, left, _mm512_set1_epi8(0x7f))
    },
    |planes| planes
);

#[inline(always)]
unsafe fn byte_shift_right(word: __m512i, count: __m128i) -> __m512i {
    // SAFETY: as the caller's.
    unsafe {
        let mask = _mm512_srl_epi16(_mm512_set1_epi16(0xff), count);
        let mask = _mm512_broadcastb_epi8(_mm512_castsi512_si128(mask));
        _mm512_and_si512(_mm512_srl_epi16(word, count), mask)
    }
}

#[inline(always)]
unsafe fn byte_shift_left(word: __m512i, count: __m128i) -> __m512i {
    // SAFETY: as the caller's.
    unsafe {
        let mask = _mm512_sll_epi16(_mm512_set1_epi16(0xff), count);
        let mask = _mm512_broadcastb_epi8(_mm512_castsi512_si128(mask));
        _mm512_and_si512(_mm512_sll_epi16(word, count), mask)
    }
}

static BYTES_FIRST: [u8; 64] = interleave_indices(0);
static BYTES_LAST: [u8; 64] = interleave_indices(32);

const fn interleave_indices(first: u8) -> [u8; 64] {
    let mut bytes = [0; 64];
    let mut i = 0;
    while i < 64 {
        bytes[i] = first + i as u8 / 2 + 64 * (i as u8 & 1);
        i += 1;
    }
    bytes
}

/// The same for 16-bit words: their indices, in the low bytes of words.
static WORDS_FIRST: [u8; 64] = interleave_word_indices(0);
static WORDS_LAST: [u8; 64] = interleave_word_indices(16);

const fn interleave_word_indices(first: u8) -> [u8; 64] {
    let mut bytes = [0; 64];
    let mut i = 0;
    while i < 32 {
        bytes[2 * i] = first + i as u8 / 2 + 32 * (i as u8 & 1);
        i += 1;
    }
    bytes
}

#[inline(always)]
unsafe fn interleave_bytes(low: __m512i, high: __m512i) -> [__m512i; 2] {
    // SAFETY: as the caller's.
    unsafe {
        [
            _mm512_permutex2var_epi8(low, load(&BYTES_FIRST), high),
            _mm512_permutex2var_epi8(low, load(&BYTES_LAST), high),
        ]
    }
}

#[inline(always)]
unsafe fn interleave_words(low: __m512i, high: __m512i) -> [__m512i; 2] {
    // SAFETY: as the caller's.
    unsafe {
        [
            _mm512_permutex2var_epi16(low, load(&WORDS_FIRST), high),
            _mm512_permutex2var_epi16(low, load(&WORDS_LAST), high),
        ]
    }
}

/// Sign in the lowest bit, no scale offsets; with them; sign anywhere, with or without.
const ROTATED: u8 = 0;
const ROTATED_SCALED: u8 = 1;
const GENERAL: u8 = 2;

/// See [`crate::simd::Kernels::decode_cut`]; `false`, with nothing done, for elements of 8 bytes.
///
/// # Safety
/// The CPU has the features of this tier, and `form` covers every run.
pub(in crate::simd) unsafe fn decode_cut(
    form: &CutForm<'_>,
    runs: &mut [CutRun<'_, '_>],
    groups: usize,
) -> bool {
    // SAFETY: passed on.
    unsafe {
        match (form.element_bytes, form.wide) {
            (1, _) => by_mode::<u8, false>(form, runs, groups),
            (2, false) => by_mode::<u16, false>(form, runs, groups),
            (2, true) => by_mode::<u16, true>(form, runs, groups),
            (4, false) => by_mode::<u32, false>(form, runs, groups),
            (4, true) => by_mode::<u32, true>(form, runs, groups),
            _ => return false,
        }
    }
    true
}

/// # Safety
/// As [`decode_cut`].
unsafe fn by_mode<E: Element, const WIDE: bool>(
    form: &CutForm<'_>,
    mut runs: &mut [CutRun<'_, '_>],
    groups: usize,
) {
    let mode = match (form.sign_position, form.scale.is_some()) {
        (0, false) => ROTATED,
        (0, true) => ROTATED_SCALED,
        _ => GENERAL,
    };
    while let Some(k) = [4, 2, 1].into_iter().find(|&k| k <= runs.len()) {
        let (now, later) = runs.split_at_mut(k);
        // SAFETY: passed on.
        unsafe {
            match (k, mode) {
                (4, ROTATED) => decode::<4, E, WIDE, ROTATED>(form, now, groups),
                (4, ROTATED_SCALED) => decode::<4, E, WIDE, ROTATED_SCALED>(form, now, groups),
                (4, _) => decode::<4, E, WIDE, GENERAL>(form, now, groups),
                (2, ROTATED) => decode::<2, E, WIDE, ROTATED>(form, now, groups),
                (2, ROTATED_SCALED) => decode::<2, E, WIDE, ROTATED_SCALED>(form, now, groups),
                (2, _) => decode::<2, E, WIDE, GENERAL>(form, now, groups),
                (_, ROTATED) => decode::<1, E, WIDE, ROTATED>(form, now, groups),
                (_, ROTATED_SCALED) => decode::<1, E, WIDE, ROTATED_SCALED>(form, now, groups),
                _ => decode::<1, E, WIDE, GENERAL>(form, now, groups),
            }
        }
        runs = later;
    }
}

/// Where a chunk is in the matrix of its tensor.
#[derive(Clone, Copy)]
struct Place {
    row: usize,
    column: usize,
}

/// # Safety
/// As [`decode_cut`], with `K` runs and the mode that belongs to the form.
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2"
)]
unsafe fn decode<const K: usize, E: Element, const WIDE: bool, const MODE: u8>(
    form: &CutForm<'_>,
    runs: &mut [CutRun<'_, '_>],
    groups: usize,
) {
    let tables = Tables::new(form.spec, form.map);
    let mut states: States<K> = States::new(|c| &*runs[c].decoder);
    let planes = E::BYTES - 1 - usize::from(WIDE);
    let low: [[*const u8; 3]; K] =
        std::array::from_fn(|c| std::array::from_fn(|plane| runs[c].low[plane].as_ptr()));
    let mut packed: [*const u8; K] = std::array::from_fn(|c| runs[c].packed.as_ptr());

    let width = form.packed_bits as usize;
    let packed_lanes = u64::MAX.checked_shr(64 - 8 * form.packed_bits).unwrap_or(0);
    let shuffles = &SHUFFLES[width];
    let packed_mask = _mm512_set1_epi8(((1_u32 << width) - 1) as i8);

    // The offset of a row, in the form of its elements.
    let row_word = |scale: &ScaleWords<'_>, row: usize| {
        let offset = scale.rows.get(row).map_or(0, |&offset| i64::from(offset));
        // SAFETY: the features are this function's.
        unsafe { E::broadcast(offset.checked_shl(scale.shift).unwrap_or(0) as u64) }
    };
    let scale = form.scale.filter(|_| MODE != ROTATED);
    let zero = _mm512_setzero_si512();
    let mut places = [Place { row: 0, column: 0 }; K];
    let mut row_words = [zero; K];
    if let Some(scale) = &scale {
        for c in 0..K {
            let (row, column) = (runs[c].first / scale.columns, runs[c].first % scale.columns);
            places[c] = Place { row, column };
            row_words[c] = row_word(scale, row);
        }
    }
    let bits = 8 * E::BYTES as u32;
    let sign = form.sign_position;
    let count = |count: u32| _mm_cvtsi32_si128(count as i32);
    let (sign_right, top_left) = (count(sign), count(bits - 1));
    let (one, none) = (count(1), count(0));
    // SAFETY: the features are this function's.
    let (below, magnitude) = unsafe {
        let below = (1_u64 << sign) - 1;
        (E::broadcast(below), E::broadcast((1_u64 << (bits - 1)) - 1))
    };

    let first_word = runs[0].hash.words;
    let keys_of = |i: u32| {
        let key = |half: usize| {
            HASH_STEPS[half]
                .wrapping_mul(i)
                .wrapping_add(HASH_KEYS[half])
        };
        i64::from(key(0)) | i64::from(key(1)) << 32
    };
    let mut keys: [__m512i; 4] = std::array::from_fn(|part| {
        let at = |lane: u32| keys_of(first_word.wrapping_add(8 * part as u32 + lane));
        _mm512_setr_epi64(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7))
    });
    let step = |half: usize| HASH_STEPS[half].wrapping_mul(8 * E::BYTES as u32);
    let step = _mm512_set1_epi64(i64::from(step(0)) | i64::from(step(1)) << 32);
    let mut products = [zero; K];
    let mut sums = [zero; K];

    let mut outs: [Output; K] =
        std::array::from_fn(|c| Output::new(runs[c].out.as_mut_ptr(), form.past_cache));

    for group in 0..groups {
        for c in 0..K {
            // SAFETY: `form` covers the run, and this is one of its groups; fetches cannot fault.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(states.stream[c].wrapping_add(STREAM_AHEAD).cast());
                let [mut value, high_value] = states.step::<WIDE>(c, &tables);
                if width > 0 {
                    _mm_prefetch::<_MM_HINT_T0>(packed[c].wrapping_add(RAW_AHEAD).cast());
                    let bytes = _mm512_maskz_loadu_epi8(packed_lanes, packed[c].cast());
                    packed[c] = packed[c].wrapping_add(8 * width);
                    let bundles = _mm512_permutexvar_epi8(load(&shuffles.spread), bytes);
                    let fields = _mm512_multishift_epi64_epi8(load(&shuffles.shifts), bundles);
                    // 0xF8: the first operand, or both others together.
                    value = _mm512_ternarylogic_epi32::<0xF8>(value, fields, packed_mask);
                }
                let mut bytes = [zero; 4];
                for plane in 0..planes {
                    let from = low[c][plane].wrapping_add(64 * group);
                    _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(RAW_AHEAD).cast());
                    bytes[plane] = _mm512_loadu_si512(from.cast());
                }
                bytes[planes] = value;
                if WIDE {
                    bytes[planes + 1] = high_value;
                }
                let mut words = E::interleave(bytes);
                let words = &mut words[..E::BYTES];

                let mut offsets = [zero; 4];
                if let Some(scale) = &scale {
                    let place = &mut places[c];
                    let column = if scale.has_columns { place.column } else { 0 };
                    let from = scale.words.as_ptr().add(column * E::BYTES);
                    for (part, offset) in offsets[..E::BYTES].iter_mut().enumerate() {
                        *offset = _mm512_loadu_si512(from.add(64 * part).cast());
                    }
                    let left = scale.columns - place.column;
                    if left >= 64 {
                        for offset in &mut offsets[..E::BYTES] {
                            *offset = E::add(*offset, row_words[c]);
                        }
                    } else {
                        let next = row_word(scale, place.row + 1);
                        for (part, offset) in offsets[..E::BYTES].iter_mut().enumerate() {
                            let lanes = 64 / E::BYTES;
                            let mine = left.saturating_sub(part * lanes).min(lanes);
                            // Fewer than 64 are left of the row.
                            let mask = (1_u64 << mine) - 1;
                            *offset = E::add(*offset, E::first_of(mask, row_words[c], next));
                        }
                    }
                    place.column += 64;
                    if left <= 64 {
                        place.column -= scale.columns;
                        place.row += 1;
                        row_words[c] = row_word(scale, place.row);
                    }
                }
                for (word, offset) in words.iter_mut().zip(offsets) {
                    *word = match MODE {
                        ROTATED => E::rotate(*word),
                        ROTATED_SCALED => E::rotate(E::add(*word, offset)),
                        _ => {
                            let top = E::shift(*word, sign_right, top_left);
                            let halved = E::shift(*word, one, none);
                            let value = _mm512_ternarylogic_epi32::<0xE4>(*word, halved, below);
                            let value = E::add(value, offset);
                            _mm512_ternarylogic_epi32::<0xE4>(value, top, magnitude)
                        }
                    };
                }
                if form.hashed {
                    for (part, word) in words.iter().enumerate() {
                        let keyed = _mm512_add_epi32(*word, keys[part]);
                        let product = _mm512_mul_epu32(keyed, _mm512_srli_epi64::<32>(keyed));
                        products[c] = _mm512_add_epi64(products[c], product);
                        sums[c] = _mm512_add_epi64(sums[c], keyed);
                    }
                }
                for word in &*words {
                    outs[c].push(*word);
                }
            }
        }
        for key in &mut keys[..E::BYTES] {
            *key = _mm512_add_epi32(*key, step);
        }
    }

    for (c, run) in runs.iter_mut().enumerate() {
        states.write_back(c, run.decoder);
        // SAFETY: all `groups` groups have been pushed.
        unsafe { outs[c].finish() };
        if form.hashed {
            let words = (groups * 8 * E::BYTES) as u32;
            run.hash.words = run.hash.words.wrapping_add(words);
            let total = |sum| _mm512_reduce_add_epi64(sum) as u64;
            run.hash.products = run.hash.products.wrapping_add(total(products[c]));
            run.hash.sum = run.hash.sum.wrapping_add(total(sums[c]));
        }
    }
}
