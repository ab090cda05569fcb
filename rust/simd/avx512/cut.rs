//! Decoding and putting elements together in one loop: nothing is stored but the elements.
//!
//! For elements of 1, 2 and 4 bytes. Several chunks take turns, as in `rans.rs`; streaming stores are
//! spread evenly among the steps, so that memory and core work at the same time.

use std::arch::x86_64::*;

use super::bits::{SHUFFLES, Shuffles};
use super::load;
use super::rans::{STREAM_AHEAD, State, Tables};
use super::stream::{Output, Ring, Way};
use super::symbols::{Class, Symbols};
use crate::chunk::{HASH_KEYS, HASH_STEPS};
use crate::constants::{LANES, SUB_BLOCK};
use crate::simd::cut::{CutForm, CutRun, ScaleWords, Source};

/// How far ahead of their use the raw planes are fetched, in bytes.
const RAW_AHEAD: usize = 1024;

/// Elements of one width: `64 / BYTES` in a register.
///
/// # Safety
/// All functions compute in registers and need the features of this tier (K1 of [`crate::simd`]).
pub(super) trait Element {
    const BYTES: usize;
    /// Adds element by element.
    unsafe fn add(a: __m512i, b: __m512i) -> __m512i;
    /// Subtracts element by element.
    unsafe fn sub(a: __m512i, b: __m512i) -> __m512i;
    unsafe fn broadcast(value: u64) -> __m512i;
    /// The first elements, by mask, of `a`, the others of `b`.
    unsafe fn first_of(mask: u64, a: __m512i, b: __m512i) -> __m512i;
    /// Rotates right by one bit.
    unsafe fn rotate(word: __m512i) -> __m512i;
    /// Rotates left by one bit.
    unsafe fn rotate_left(word: __m512i) -> __m512i;
    /// Shifts right, shifts left.
    unsafe fn shift(word: __m512i, right: __m128i, left: __m128i) -> __m512i;
    /// Byte planes, the lowest first, to elements; registers from `BYTES` on are not used.
    unsafe fn interleave(planes: [__m512i; 4]) -> [__m512i; 4];
    /// Elements to byte planes: the inverse of `interleave`.
    unsafe fn planes(words: [__m512i; 4]) -> [__m512i; 4];
    /// The top 16 bits of 64 elements, in two registers; not for bytes.
    unsafe fn tops(words: [__m512i; 4]) -> [__m512i; 2];
}

// The last arguments look like closures and are none: those would not be compiled for the tier.
macro_rules! element {
    ($int:ty, $add:ident, $sub:ident, $set:ident, $blend:ident, $mask:ty, $right:ident, $left:ident,
     |$r:ident| $rotate:expr, |$l:ident| $rotate_left:expr, |$i:ident| $interleave:expr,
     |$p:ident| $planes:expr, |$t:ident| $tops:expr) => {
        impl Element for $int {
            const BYTES: usize = size_of::<$int>();
            #[inline(always)]
            unsafe fn add(a: __m512i, b: __m512i) -> __m512i {
                // SAFETY: as the caller's.
                unsafe { $add(a, b) }
            }
            #[inline(always)]
            unsafe fn sub(a: __m512i, b: __m512i) -> __m512i {
                // SAFETY: as the caller's.
                unsafe { $sub(a, b) }
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
            unsafe fn rotate($r: __m512i) -> __m512i {
                // SAFETY: as the caller's.
                unsafe { $rotate }
            }
            #[inline(always)]
            unsafe fn rotate_left($l: __m512i) -> __m512i {
                // SAFETY: as the caller's.
                unsafe { $rotate_left }
            }
            #[allow(unused_unsafe, reason = "bytes need no shuffle")]
            #[inline(always)]
            unsafe fn planes($p: [__m512i; 4]) -> [__m512i; 4] {
                // SAFETY: as the caller's.
                unsafe { $planes }
            }
            #[allow(unused_unsafe, reason = "words are there already")]
            #[inline(always)]
            unsafe fn tops($t: [__m512i; 4]) -> [__m512i; 2] {
                // SAFETY: as the caller's.
                unsafe { $tops }
            }
            #[inline(always)]
            unsafe fn shift(word: __m512i, right: __m128i, left: __m128i) -> __m512i {
                // SAFETY: as the caller's.
                unsafe { $left($right(word, right), left) }
            }
            #[allow(unused_unsafe, reason = "bytes need no shuffle")]
            #[inline(always)]
            unsafe fn interleave($i: [__m512i; 4]) -> [__m512i; 4] {
                // SAFETY: as the caller's.
                unsafe { $interleave }
            }
        }
    };
}

element!(
    u16,
    _mm512_add_epi16,
    _mm512_sub_epi16,
    _mm512_set1_epi16,
    _mm512_mask_blend_epi16,
    u32,
    _mm512_srl_epi16,
    _mm512_sll_epi16,
    |word| _mm512_shrdi_epi16::<1>(word, word),
    |word| _mm512_shldi_epi16::<1>(word, word),
    |planes| {
        let [a, b] = interleave_bytes(planes[0], planes[1]);
        [a, b, planes[2], planes[3]]
    },
    |words| {
        let [a, b] = separate_bytes([words[0], words[1]]);
        [a, b, words[2], words[3]]
    },
    |words| [words[0], words[1]]
);
element!(
    u32,
    _mm512_add_epi32,
    _mm512_sub_epi32,
    _mm512_set1_epi32,
    _mm512_mask_blend_epi32,
    u16,
    _mm512_srl_epi32,
    _mm512_sll_epi32,
    |word| _mm512_ror_epi32::<1>(word),
    |word| _mm512_rol_epi32::<1>(word),
    |planes| {
        let low = interleave_bytes(planes[0], planes[1]);
        let high = interleave_bytes(planes[2], planes[3]);
        let [a, b] = interleave_words(low[0], high[0]);
        let [c, d] = interleave_words(low[1], high[1]);
        [a, b, c, d]
    },
    |words| {
        let ([a, b], [c, d]) = (
            separate_words([words[0], words[1]]),
            separate_words([words[2], words[3]]),
        );
        let (low, high) = (separate_bytes([a, c]), separate_bytes([b, d]));
        [low[0], low[1], high[0], high[1]]
    },
    |words| {
        let first = separate_words([words[0], words[1]]);
        [first[1], separate_words([words[2], words[3]])[1]]
    }
);
// Bytes have no shifts of their own: neighbours' bits are masked out.
element!(
    u8,
    _mm512_add_epi8,
    _mm512_sub_epi8,
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
    |word| {
        let left = _mm512_slli_epi16::<1>(word);
        let right = _mm512_srli_epi16::<7>(word);
        _mm512_ternarylogic_epi32::<0xE4>(right, left, _mm512_set1_epi8(1))
    },
    |planes| planes,
    |words| words,
    |words| [words[0], words[1]]
);

/// # Safety
/// The CPU has the features of this tier (K1 of [`crate::simd`]).
#[inline(always)]
pub(super) unsafe fn byte_shift_right(word: __m512i, count: __m128i) -> __m512i {
    // SAFETY: as the caller's.
    unsafe {
        let mask = _mm512_srl_epi16(_mm512_set1_epi16(0xff), count);
        let mask = _mm512_broadcastb_epi8(_mm512_castsi512_si128(mask));
        _mm512_and_si512(_mm512_srl_epi16(word, count), mask)
    }
}

/// # Safety
/// The CPU has the features of this tier (K1 of [`crate::simd`]).
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

/// # Safety
/// The CPU has the features of this tier (K1 of [`crate::simd`]).
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

/// # Safety
/// The CPU has the features of this tier (K1 of [`crate::simd`]).
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

/// Every second byte, from the first or the second on.
static BYTES_EVEN: [u8; 64] = every_second_byte(0);
static BYTES_ODD: [u8; 64] = every_second_byte(1);

const fn every_second_byte(first: u8) -> [u8; 64] {
    let mut bytes = [0; 64];
    let mut i = 0;
    while i < 64 {
        bytes[i] = 2 * i as u8 + first;
        i += 1;
    }
    bytes
}

/// The same for 16-bit words.
static WORDS_EVEN: [u8; 64] = every_second_word(0);
static WORDS_ODD: [u8; 64] = every_second_word(1);

const fn every_second_word(first: u8) -> [u8; 64] {
    let mut bytes = [0; 64];
    let mut i = 0;
    while i < 32 {
        bytes[2 * i] = 2 * i as u8 + first;
        i += 1;
    }
    bytes
}

/// Low and high bytes of 64 words.
///
/// # Safety
/// The CPU has the features of this tier (K1 of [`crate::simd`]).
#[inline(always)]
pub(super) unsafe fn separate_bytes([first, last]: [__m512i; 2]) -> [__m512i; 2] {
    // SAFETY: as the caller's.
    unsafe {
        [
            _mm512_permutex2var_epi8(first, load(&BYTES_EVEN), last),
            _mm512_permutex2var_epi8(first, load(&BYTES_ODD), last),
        ]
    }
}

/// Low and high halves of 32 double words.
///
/// # Safety
/// The CPU has the features of this tier (K1 of [`crate::simd`]).
#[inline(always)]
unsafe fn separate_words([first, last]: [__m512i; 2]) -> [__m512i; 2] {
    // SAFETY: as the caller's.
    unsafe {
        [
            _mm512_permutex2var_epi16(first, load(&WORDS_EVEN), last),
            _mm512_permutex2var_epi16(first, load(&WORDS_ODD), last),
        ]
    }
}

/// Sign in the lowest bit, no scale offsets; with them; sign anywhere, with or without.
const ROTATED: u8 = 0;
const ROTATED_SCALED: u8 = 1;
const GENERAL: u8 = 2;
/// Sign in the lowest bit, or in the highest; both with or without scale offsets and flips.
const ROTATED_FLIPPED: u8 = 3;
const FLIPPED: u8 = 4;

/// What the values of a chunk are decoded with.
///
/// # Safety
/// All functions need the features of this tier (K1 of [`crate::simd`]) and a run that the form covers (K6).
pub(super) trait Values: Sized {
    /// What all chunks share.
    type Tables<'a>;
    /// Whether there are classes of lines, and flips.
    const IN_CONTEXTS: bool;

    /// The tables in registers, if this is how the source is decoded.
    unsafe fn tables(source: Source<'_>) -> Option<Self::Tables<'_>>;
    unsafe fn new(run: &CutRun<'_, '_>) -> Self;
    /// Decodes 64 values of each chunk: their low bytes, and if they are wide their high bytes.
    ///
    /// # Safety
    /// The CPU has the features of this tier, and the streams have 64 bytes left.
    unsafe fn step<const WIDE: bool, const K: usize>(
        chunks: &mut [&mut Self; K],
        tables: &Self::Tables<'_>,
        classes: [Class; K],
    ) -> [[__m512i; 2]; K];
    /// Stores states and positions.
    unsafe fn write_back(&self, run: &mut CutRun<'_, '_>);
}

impl Values for State {
    type Tables<'a> = Tables;
    const IN_CONTEXTS: bool = false;

    #[inline(always)]
    unsafe fn tables(source: Source<'_>) -> Option<Tables> {
        match source {
            // SAFETY: as the caller's.
            Source::Plain(spec, map) => Some(unsafe { Tables::new(spec, map) }),
            Source::Symbols(..) => None,
        }
    }

    #[inline(always)]
    unsafe fn new(run: &CutRun<'_, '_>) -> Self {
        // SAFETY: as the caller's.
        unsafe { State::new(run.decoder) }
    }

    #[inline(always)]
    unsafe fn step<const WIDE: bool, const K: usize>(
        chunks: &mut [&mut Self; K],
        tables: &Tables,
        _: [Class; K],
    ) -> [[__m512i; 2]; K] {
        // SAFETY: as the caller's; fetches cannot fault.
        unsafe {
            let mut values = [[_mm512_setzero_si512(); 2]; K];
            for (values, state) in values.iter_mut().zip(chunks) {
                _mm_prefetch::<_MM_HINT_T0>(state.lanes.stream.wrapping_add(STREAM_AHEAD).cast());
                *values = state.step_lanes::<WIDE>(tables);
            }
            values
        }
    }

    #[inline(always)]
    unsafe fn write_back(&self, run: &mut CutRun<'_, '_>) {
        // SAFETY: as the caller's.
        unsafe { State::write_back(self, run.decoder) };
    }
}

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
    if let Source::Symbols(..) = form.source {
        while !runs.is_empty() {
            let k = runs.len().min(2);
            let (now, later) = runs.split_at_mut(k);
            // SAFETY: passed on.
            unsafe {
                match (k, form.sign_position) {
                    (2, 0) => decode::<2, E, WIDE, ROTATED_FLIPPED, Symbols>(form, now, groups),
                    (2, _) => decode::<2, E, WIDE, FLIPPED, Symbols>(form, now, groups),
                    (_, 0) => decode::<1, E, WIDE, ROTATED_FLIPPED, Symbols>(form, now, groups),
                    _ => decode::<1, E, WIDE, FLIPPED, Symbols>(form, now, groups),
                }
            }
            runs = later;
        }
        return;
    }
    let mode = match (form.sign_position, form.scale.is_some()) {
        (0, false) => ROTATED,
        (0, true) => ROTATED_SCALED,
        _ => GENERAL,
    };
    // Three chunks of wide values would not have their states in registers: `k` is 3 for bytes only.
    let most = if WIDE { 2 } else { 3 };
    while !runs.is_empty() {
        let k = runs.len().min(most);
        let (now, later) = runs.split_at_mut(k);
        // SAFETY: passed on.
        unsafe {
            match (k, mode) {
                (3, ROTATED) => decode::<3, E, false, ROTATED, State>(form, now, groups),
                (3, ROTATED_SCALED) => {
                    decode::<3, E, false, ROTATED_SCALED, State>(form, now, groups);
                }
                (3, _) => decode::<3, E, false, GENERAL, State>(form, now, groups),
                (2, ROTATED) => decode::<2, E, WIDE, ROTATED, State>(form, now, groups),
                (2, ROTATED_SCALED) => {
                    decode::<2, E, WIDE, ROTATED_SCALED, State>(form, now, groups);
                }
                (2, _) => decode::<2, E, WIDE, GENERAL, State>(form, now, groups),
                (_, ROTATED) => decode::<1, E, WIDE, ROTATED, State>(form, now, groups),
                (_, ROTATED_SCALED) => {
                    decode::<1, E, WIDE, ROTATED_SCALED, State>(form, now, groups);
                }
                _ => decode::<1, E, WIDE, GENERAL, State>(form, now, groups),
            }
        }
        runs = later;
    }
}

/// What all chunks share.
struct Shared<'a, V: Values> {
    tables: V::Tables<'a>,
    shuffles: &'a Shuffles,
    /// Bytes of the packed bits of a group, and as a mask.
    packed_bytes: usize,
    packed_lanes: u64,
    packed_mask: __m512i,
    scale: Option<ScaleWords<'a>>,
    sign_right: __m128i,
    top_left: __m128i,
    below: __m512i,
    magnitude: __m512i,
    hashed: bool,
    way: Way,
}

/// One chunk.
struct Chunk<V> {
    values: V,
    raw: *const u8,
    place: Place,
    products: __m512i,
    sums: __m512i,
    out: Output,
}

/// Where the next group is, the same in all chunks.
#[derive(Clone, Copy)]
struct Position {
    /// In the raw plane.
    low: [usize; 3],
    packed: usize,
    /// Bytes of output before it.
    out: usize,
    /// How far ahead of their use low bytes and packed bits are fetched.
    low_ahead: usize,
    packed_ahead: usize,
}

/// The offset of a row in every element.
///
/// # Safety
/// The CPU has the features of this tier (K1 of [`crate::simd`]).
#[inline(always)]
unsafe fn row_word<E: Element>(scale: &ScaleWords<'_>, row: usize) -> __m512i {
    let offset = scale.rows.get(row).map_or(0, |&offset| i64::from(offset));
    // SAFETY: as the caller's.
    unsafe { E::broadcast(offset.checked_shl(scale.shift).unwrap_or(0) as u64) }
}

/// The flip of a row in every element.
///
/// # Safety
/// The CPU has the features of this tier (K1 of [`crate::simd`]).
#[inline(always)]
unsafe fn row_flip<E: Element>(scale: &ScaleWords<'_>, row: usize, sign: u64) -> __m512i {
    let is_flipped = scale.row_flips.get(row).is_some_and(|&flip| flip != 0);
    // SAFETY: as the caller's.
    unsafe { E::broadcast(if is_flipped { sign } else { 0 }) }
}

/// Where a run is in the matrix of its tensor, and the offset of that row.
pub(super) struct Place {
    row: usize,
    column: usize,
    row_word: __m512i,
}

impl Place {
    /// # Safety
    /// The CPU has the features of this tier (K1 of [`crate::simd`]).
    #[inline(always)]
    pub(super) unsafe fn new<E: Element>(scale: Option<&ScaleWords<'_>>, first: usize) -> Self {
        let columns = scale.map_or(1, |scale| scale.columns);
        let (row, column) = (first / columns, first % columns);
        // SAFETY: as the caller's.
        let row_word =
            unsafe { scale.map_or(_mm512_setzero_si512(), |scale| row_word::<E>(scale, row)) };
        Self {
            row,
            column,
            row_word,
        }
    }

    /// The classes of the next 64 elements.
    ///
    /// # Safety
    /// As [`decode_cut`]: K1, and the form covers the run (K6).
    #[inline(always)]
    unsafe fn class(&self, scale: Option<&ScaleWords<'_>>) -> Class {
        let Some(scale) = scale else {
            return Class::Uniform(0);
        };
        let of_row = |row: usize| scale.row_classes.get(row).copied().unwrap_or(0);
        let left = scale.columns - self.column;
        let (mine, next) = (
            of_row(self.row),
            of_row(self.row + usize::from(left < LANES)),
        );
        if scale.classes.is_empty() && mine == next {
            return Class::Uniform(mine as usize);
        }
        let first = u64::MAX >> (LANES - left.min(LANES));
        // SAFETY: as the caller's; `classes` has 64 from every column on.
        unsafe {
            let (mine, next) = (_mm512_set1_epi8(mine), _mm512_set1_epi8(next));
            let of_rows = _mm512_mask_mov_epi8(next, first, mine);
            if scale.classes.is_empty() {
                return Class::Mixed(of_rows);
            }
            let of_columns = _mm512_loadu_si512(scale.classes.as_ptr().add(self.column).cast());
            Class::Mixed(_mm512_add_epi8(of_rows, of_columns))
        }
    }

    /// The flips of the next 64 elements: `sign` in those that are turned.
    ///
    /// # Safety
    /// As [`decode_cut`]: K1, and the form covers the run (K6).
    #[inline(always)]
    unsafe fn flips<E: Element>(&self, scale: Option<&ScaleWords<'_>>, sign: u64) -> [__m512i; 4] {
        // SAFETY: as the caller's; `flips` has 64 from every column on.
        unsafe {
            let mut flips = [_mm512_setzero_si512(); 4];
            let Some(scale) = scale else {
                return flips;
            };
            if !scale.row_flips.is_empty() {
                let of_row = row_flip::<E>(scale, self.row, sign);
                flips = [of_row; 4];
                let left = scale.columns - self.column;
                if left < LANES {
                    let next = row_flip::<E>(scale, self.row + 1, sign);
                    let lanes = 64 / E::BYTES;
                    for (part, flip) in flips.iter_mut().take(E::BYTES).enumerate() {
                        let mine = left.saturating_sub(part * lanes).min(lanes);
                        if mine < lanes {
                            *flip = E::first_of((1_u64 << mine) - 1, of_row, next);
                        }
                    }
                }
            }
            if !scale.flips.is_empty() {
                let from = scale.flips.as_ptr().add(self.column * E::BYTES);
                for (part, flip) in flips.iter_mut().take(E::BYTES).enumerate() {
                    let of_columns = _mm512_loadu_si512(from.add(64 * part).cast());
                    *flip = _mm512_xor_si512(*flip, of_columns);
                }
            }
            flips
        }
    }

    /// The scale offsets of the next 64 elements.
    ///
    /// # Safety
    /// As [`super::decode_cut`] and [`super::split_cut`]: K1, and the form covers the run (K6).
    #[inline(always)]
    pub(super) unsafe fn offsets<E: Element>(
        &mut self,
        scale: Option<&ScaleWords<'_>>,
    ) -> [__m512i; 4] {
        // SAFETY: as the caller's; `words` has 64 from every column on.
        unsafe {
            let mut offsets = [_mm512_setzero_si512(); 4];
            let Some(scale) = scale else {
                return offsets;
            };
            let column = if scale.has_columns { self.column } else { 0 };
            let from = scale.words.as_ptr().add(column * E::BYTES);
            let left = scale.columns - self.column;
            for (part, offset) in offsets.iter_mut().take(E::BYTES).enumerate() {
                let column = _mm512_loadu_si512(from.add(64 * part).cast());
                *offset = E::add(column, self.row_word);
            }
            self.column += 64;
            if left <= 64 {
                // The row ends here or among these elements.
                self.column -= scale.columns;
                self.row += 1;
                let next = row_word::<E>(scale, self.row);
                let lanes = 64 / E::BYTES;
                for (part, offset) in offsets.iter_mut().take(E::BYTES).enumerate() {
                    let mine = left.saturating_sub(part * lanes).min(lanes);
                    if mine < lanes {
                        let column = _mm512_loadu_si512(from.add(64 * part).cast());
                        let mask = (1_u64 << mine) - 1;
                        *offset = E::first_of(mask, *offset, E::add(column, next));
                    }
                }
                self.row_word = next;
            }
            offsets
        }
    }
}

impl Position {
    /// Sets what is fetched ahead from group `first` of a sub-block on; returns for how many groups.
    #[inline(always)]
    fn aim<E: Element>(&mut self, form: &CutForm<'_>, first: usize) -> usize {
        const GROUPS: usize = SUB_BLOCK / LANES;
        const LAST: usize = GROUPS - RAW_AHEAD / LANES;
        (self.low_ahead, self.packed_ahead) = (RAW_AHEAD, RAW_AHEAD);
        if first < LAST {
            return LAST - first;
        }
        // Low bytes and packed bits of the next sub-block.
        self.low_ahead = RAW_AHEAD
            .wrapping_add(form.block_bytes())
            .wrapping_sub(SUB_BLOCK);
        self.packed_ahead += form.low_bytes * SUB_BLOCK;
        GROUPS - first
    }

    #[inline(always)]
    fn step<E: Element>(&mut self, packed_bytes: usize) {
        for low in &mut self.low[..E::BYTES - 1] {
            *low += LANES;
        }
        self.packed += packed_bytes;
        self.out += LANES * E::BYTES;
    }

    /// From the end of a sub-block to the begin of the next.
    #[inline(always)]
    fn next_block(&mut self, form: &CutForm<'_>) {
        for low in &mut self.low {
            *low = low.wrapping_add(form.block_bytes()).wrapping_sub(SUB_BLOCK);
        }
        self.packed += form.low_bytes * SUB_BLOCK;
    }
}

impl<V: Values> Chunk<V> {
    /// # Safety
    /// As [`decode_cut`]: K1, and the form covers the run (K6).
    #[inline(always)]
    unsafe fn new<E: Element>(
        run: &mut CutRun<'_, '_>,
        shared: &Shared<'_, V>,
        ring: &mut Ring,
    ) -> Self {
        // SAFETY: as the caller's.
        unsafe {
            let zero = _mm512_setzero_si512();
            Self {
                values: V::new(run),
                raw: run.raw.as_ptr(),
                place: Place::new::<E>(shared.scale.as_ref(), run.first),
                products: zero,
                sums: zero,
                out: Output::new(run.out.as_mut_ptr(), ring),
            }
        }
    }

    /// Makes elements of 64 values and stores them.
    ///
    /// # Safety
    /// The CPU has the features of this tier; the form covers the run, which has a group left.
    #[inline(always)]
    unsafe fn group<E: Element, const WIDE: bool, const MODE: u8, const HASHED: bool>(
        &mut self,
        shared: &Shared<'_, V>,
        [mut value, high_value]: [__m512i; 2],
        keys: &[__m512i; 4],
        position: &Position,
    ) {
        // SAFETY: every part of the run has what a group needs, and is moved on by just that; fetches
        // cannot fault.
        unsafe {
            let scale = shared.scale.as_ref();
            if shared.packed_bytes > 0 {
                let packed = self.raw.wrapping_add(position.packed);
                _mm_prefetch::<_MM_HINT_T0>(packed.wrapping_add(position.packed_ahead).cast());
                let bytes = _mm512_maskz_loadu_epi8(shared.packed_lanes, packed.cast());
                let bundles = _mm512_permutexvar_epi8(load(&shared.shuffles.spread), bytes);
                let fields = _mm512_multishift_epi64_epi8(load(&shared.shuffles.shifts), bundles);
                // 0xF8: the first operand, or both others together.
                value = _mm512_ternarylogic_epi32::<0xF8>(value, fields, shared.packed_mask);
            }
            let mut bytes = [_mm512_setzero_si512(); 4];
            let planes = E::BYTES - 1 - usize::from(WIDE);
            for (bytes, low) in bytes.iter_mut().zip(position.low).take(planes) {
                let from = self.raw.wrapping_add(low);
                _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(position.low_ahead).cast());
                *bytes = _mm512_loadu_si512(from.cast());
            }
            bytes[planes] = value;
            if WIDE {
                bytes[planes + 1] = high_value;
            }
            let words = E::interleave(bytes);
            let flips = match MODE {
                ROTATED_FLIPPED => self.place.flips::<E>(scale, 1),
                FLIPPED => self.place.flips::<E>(scale, 1 << (8 * E::BYTES - 1)),
                _ => [_mm512_setzero_si512(); 4],
            };
            let offsets = if MODE == ROTATED {
                [_mm512_setzero_si512(); 4]
            } else {
                self.place.offsets::<E>(scale)
            };
            let mut elements = [_mm512_setzero_si512(); 4];
            for part in 0..E::BYTES {
                let (word, offset) = (words[part], offsets[part]);
                let word = match MODE {
                    ROTATED => E::rotate(word),
                    ROTATED_SCALED => E::rotate(E::add(word, offset)),
                    ROTATED_FLIPPED => {
                        E::rotate(_mm512_xor_si512(E::add(word, offset), flips[part]))
                    }
                    FLIPPED => {
                        // 0xE4: the first operand where the mask is set, else the second.
                        let sum = E::add(word, offset);
                        let word = _mm512_ternarylogic_epi32::<0xE4>(sum, word, shared.magnitude);
                        _mm512_xor_si512(word, flips[part])
                    }
                    _ => {
                        let top = E::shift(word, shared.sign_right, shared.top_left);
                        let one = _mm_cvtsi32_si128(1);
                        let halved = E::shift(word, one, _mm_setzero_si128());
                        // 0xE4: the first operand where the mask is set, else the second.
                        let value = _mm512_ternarylogic_epi32::<0xE4>(word, halved, shared.below);
                        let value = E::add(value, offset);
                        _mm512_ternarylogic_epi32::<0xE4>(value, top, shared.magnitude)
                    }
                };
                if HASHED {
                    let keyed = _mm512_add_epi32(word, keys[part]);
                    let product = _mm512_mul_epu32(keyed, _mm512_srli_epi64::<32>(keyed));
                    self.products = _mm512_add_epi64(self.products, product);
                    self.sums = _mm512_add_epi64(self.sums, keyed);
                }
                elements[part] = word;
            }
            self.out
                .push(position.out, &elements[..E::BYTES], shared.way);
        }
    }
}

/// # Safety
/// As [`decode_cut`], with `K` runs (1 to 3), and values and mode that belong to the form.
#[allow(clippy::too_many_lines, reason = "the loop over chunks in one place")]
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2"
)]
unsafe fn decode<const K: usize, E: Element, const WIDE: bool, const MODE: u8, V: Values>(
    form: &CutForm<'_>,
    runs: &mut [CutRun<'_, '_>],
    groups: usize,
) {
    let bits = 8 * E::BYTES as u32;
    let sign = form.sign_position;
    let way = Way::of(runs[0].out.as_ptr(), form.past_cache);
    // SAFETY: the features are this function's.
    let Some(tables) = (unsafe { V::tables(form.source) }) else {
        return;
    };
    // SAFETY: the features are this function's.
    let shared = unsafe {
        Shared::<V> {
            tables,
            shuffles: &SHUFFLES[form.packed_bits as usize],
            packed_bytes: 8 * form.packed_bits as usize,
            packed_lanes: u64::MAX.checked_shr(64 - 8 * form.packed_bits).unwrap_or(0),
            packed_mask: _mm512_set1_epi8(((1_u32 << form.packed_bits) - 1) as i8),
            scale: form.scale,
            sign_right: _mm_cvtsi32_si128(sign as i32),
            top_left: _mm_cvtsi32_si128(bits as i32 - 1),
            below: E::broadcast((1_u64 << sign) - 1),
            magnitude: E::broadcast((1_u64 << (bits - 1)) - 1),
            hashed: form.hashed,
            way,
        }
    };
    let mut keys = keys(runs[0].hash.words);
    let step = pair(|half| HASH_STEPS[half].wrapping_mul(bits));
    let step = _mm512_set1_epi64(step);

    let block_len = runs[0].block_len;
    let (low, packed) = form.places(runs[0].start, block_len);
    let mut position = Position {
        low,
        packed,
        out: 0,
        low_ahead: RAW_AHEAD,
        packed_ahead: RAW_AHEAD,
    };
    let mut rings = [const { Ring::new() }; 3];
    let mut rings = rings.iter_mut();
    let mut first = runs[0].start % SUB_BLOCK / LANES;
    let mut left = groups;

    // Written out, so that every chunk's state is in registers of its own.
    let mut runs = runs.iter_mut();
    let tables = &shared.tables;
    // SAFETY: passed on; there are `K` runs of `groups` groups.
    unsafe {
        let mut chunk = || {
            let (run, ring) = (runs.next()?, rings.next()?);
            Some((Chunk::<V>::new::<E>(run, &shared, ring), run))
        };
        macro_rules! run {
            ($($chunk:ident),*) => {
                if let ($(Some(mut $chunk),)*) = ($({ let $chunk = chunk(); $chunk },)*) {
                    while left > 0 {
                        let now = left.min(position.aim::<E>(form, first));
                        if V::IN_CONTEXTS {
                            // All chunks' steps side by side: they are too long to wait for one after
                            // the other. Hashing is so little next to them that it is not left out.
                            for _ in 0..now {
                                let scale = shared.scale.as_ref();
                                let classes = [$($chunk.0.place.class(scale)),*];
                                let mut chunks = [$(&mut $chunk.0.values),*];
                                let values = V::step::<WIDE, _>(&mut chunks, tables, classes);
                                let mut number = 0;
                                $(
                                    $chunk.0.group::<E, WIDE, MODE, true>(
                                        &shared, values[number], &keys, &position,
                                    );
                                    number += 1;
                                )*
                                let _ = number;
                                for key in &mut keys[..E::BYTES] {
                                    *key = _mm512_add_epi32(*key, step);
                                }
                                position.step::<E>(shared.packed_bytes);
                            }
                        } else if form.hashed {
                            for _ in 0..now {
                                $(
                                    let mut chunks = [&mut $chunk.0.values];
                                    let classes = [Class::Uniform(0)];
                                    let [values] = V::step::<WIDE, _>(&mut chunks, tables, classes);
                                    $chunk.0.group::<E, WIDE, MODE, true>(
                                        &shared, values, &keys, &position,
                                    );
                                )*
                                for key in &mut keys[..E::BYTES] {
                                    *key = _mm512_add_epi32(*key, step);
                                }
                                position.step::<E>(shared.packed_bytes);
                            }
                        } else {
                            for _ in 0..now {
                                $(
                                    let mut chunks = [&mut $chunk.0.values];
                                    let classes = [Class::Uniform(0)];
                                    let [values] = V::step::<WIDE, _>(&mut chunks, tables, classes);
                                    $chunk.0.group::<E, WIDE, MODE, false>(
                                        &shared, values, &keys, &position,
                                    );
                                )*
                                position.step::<E>(shared.packed_bytes);
                            }
                        }
                        left -= now;
                        first += now;
                        if first == SUB_BLOCK / LANES {
                            position.next_block(form);
                            first = 0;
                        }
                    }
                    $($chunk.0.finish::<E>($chunk.1, &shared, groups);)*
                }
            };
        }
        match K {
            3 => run!(a, b, c),
            2 => run!(a, b),
            _ => run!(a),
        }
    }
}

impl<V: Values> Chunk<V> {
    /// Stores what is left and writes decoder and hash back.
    ///
    /// # Safety
    /// As [`decode_cut`]: K1, and the form covers the run (K6).
    #[inline(always)]
    unsafe fn finish<E: Element>(
        self,
        run: &mut CutRun<'_, '_>,
        shared: &Shared<'_, V>,
        groups: usize,
    ) {
        // SAFETY: as the caller's.
        unsafe {
            self.out.finish(64 * E::BYTES * groups, shared.way);
            self.values.write_back(run);
            if shared.hashed {
                let words = (groups * 8 * E::BYTES) as u32;
                run.hash.words = run.hash.words.wrapping_add(words);
                let products = _mm512_reduce_add_epi64(self.products) as u64;
                run.hash.products = run.hash.products.wrapping_add(products);
                let sums = _mm512_reduce_add_epi64(self.sums) as u64;
                run.hash.sum = run.hash.sum.wrapping_add(sums);
            }
        }
    }
}

/// A number for the low and one for the high half of a word.
pub(super) fn pair(half: impl Fn(usize) -> u32) -> i64 {
    (u64::from(half(0)) | u64::from(half(1)) << 32) as i64
}

/// The keys of 32 words from `first` on, 8 to a register.
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
pub(super) fn keys(first: u32) -> [__m512i; 4] {
    let lanes = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    let steps = _mm512_set1_epi64(pair(|half| HASH_STEPS[half]));
    let base = _mm512_set1_epi64(pair(|half| HASH_KEYS[half]));
    let mut number = _mm512_add_epi32(lanes, _mm512_set1_epi32(first as i32));
    let mut keys = [base; 4];
    for key in &mut keys {
        *key = _mm512_add_epi32(*key, _mm512_mullo_epi32(number, steps));
        number = _mm512_add_epi32(number, _mm512_set1_epi32(8));
    }
    keys
}
