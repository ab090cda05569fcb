//! Decoding and putting elements together, a few groups at a time: values go through the first cache.
//!
//! For elements of 1, 2 and 4 bytes. One loop reads values and raw bits, adds scale offsets, moves the
//! sign, hashes and stores: past the caches, where the output is aligned for it.

use std::arch::x86_64::*;

use super::bits::{STEPS, Steps};
use super::decode::{MOST, Plane, Tables, decode_planes};
use super::{load_twice, load_two, sum_of_words};
use crate::chunk::{ChunkHash, HASH_KEYS, HASH_STEPS};
use crate::constants::{LANES, SUB_BLOCK};
use crate::entropy::rans::Value;
use crate::simd::cut::{CutForm, CutRun, ScaleWords, Source};

/// Groups that are decoded before their elements are put together.
const BLOCK: usize = 16;

/// How far ahead of their use the raw planes are fetched, in bytes: about a block.
const RAW_AHEAD: usize = 1024;

/// Bytes that are read beyond the packed bits of a group.
const SLACK: usize = 16;

/// Sign in the lowest bit, no scale offsets; with them; sign anywhere, with or without.
const ROTATED: u8 = 0;
const ROTATED_SCALED: u8 = 1;
const GENERAL: u8 = 2;

/// Elements of one width.
trait Element {
    const BYTES: usize;
    /// Adds element by element.
    unsafe fn add(a: __m256i, b: __m256i) -> __m256i;
    unsafe fn broadcast(value: u64) -> __m256i;
    unsafe fn shift_right(word: __m256i, count: __m128i) -> __m256i;
    unsafe fn shift_left(word: __m256i, count: __m128i) -> __m256i;
}

macro_rules! element {
    ($int:ty, $add:ident, $set:ident, $right:ident, $left:ident) => {
        impl Element for $int {
            const BYTES: usize = size_of::<$int>();
            #[inline(always)]
            unsafe fn add(a: __m256i, b: __m256i) -> __m256i {
                // SAFETY: as the caller's.
                unsafe { $add(a, b) }
            }
            #[inline(always)]
            unsafe fn broadcast(value: u64) -> __m256i {
                // SAFETY: as the caller's.
                unsafe { $set(value as $int as _) }
            }
            #[inline(always)]
            unsafe fn shift_right(word: __m256i, count: __m128i) -> __m256i {
                // SAFETY: as the caller's.
                unsafe { $right(word, count) }
            }
            #[inline(always)]
            unsafe fn shift_left(word: __m256i, count: __m128i) -> __m256i {
                // SAFETY: as the caller's.
                unsafe { $left(word, count) }
            }
        }
    };
}

element!(
    u8,
    _mm256_add_epi8,
    _mm256_set1_epi8,
    bytes_right,
    bytes_left
);
element!(
    u16,
    _mm256_add_epi16,
    _mm256_set1_epi16,
    _mm256_srl_epi16,
    _mm256_sll_epi16
);
element!(
    u32,
    _mm256_add_epi32,
    _mm256_set1_epi32,
    _mm256_srl_epi32,
    _mm256_sll_epi32
);

// Bytes have no shifts of their own: neighbours' bits are masked out.
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn bytes_right(word: __m256i, count: __m128i) -> __m256i {
    // SAFETY: as the caller's.
    unsafe {
        let mask = _mm256_srl_epi16(_mm256_set1_epi16(0xff), count);
        let mask = _mm256_broadcastb_epi8(_mm256_castsi256_si128(mask));
        _mm256_and_si256(_mm256_srl_epi16(word, count), mask)
    }
}

/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn bytes_left(word: __m256i, count: __m128i) -> __m256i {
    // SAFETY: as the caller's.
    unsafe {
        let mask = _mm256_sll_epi16(_mm256_set1_epi16(0xff), count);
        let mask = _mm256_broadcastb_epi8(_mm256_castsi256_si128(mask));
        _mm256_and_si256(_mm256_sll_epi16(word, count), mask)
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
    if let Source::Symbols(..) = form.source {
        return false;
    }
    // SAFETY: passed on.
    unsafe {
        match (form.element_bytes, form.wide) {
            (1, _) => by_mode::<u8, u8>(form, runs, groups),
            (2, false) => by_mode::<u16, u8>(form, runs, groups),
            (2, true) => by_mode::<u16, u16>(form, runs, groups),
            (4, false) => by_mode::<u32, u8>(form, runs, groups),
            (4, true) => by_mode::<u32, u16>(form, runs, groups),
            _ => return false,
        }
    }
    true
}

/// # Safety
/// As [`decode_cut`].
unsafe fn by_mode<E: Element, V: Value>(
    form: &CutForm<'_>,
    runs: &mut [CutRun<'_, '_>],
    groups: usize,
) {
    // SAFETY: passed on.
    unsafe {
        match (form.sign_position, form.scale.is_some(), form.hashed) {
            (0, false, true) => decode::<E, V, ROTATED, true>(form, runs, groups),
            (0, false, false) => decode::<E, V, ROTATED, false>(form, runs, groups),
            (0, true, true) => decode::<E, V, ROTATED_SCALED, true>(form, runs, groups),
            (0, true, false) => decode::<E, V, ROTATED_SCALED, false>(form, runs, groups),
            (_, _, true) => decode::<E, V, GENERAL, true>(form, runs, groups),
            (_, _, false) => decode::<E, V, GENERAL, false>(form, runs, groups),
        }
    }
}

#[repr(align(64))]
struct Aligned<T>(T);

/// # Safety
/// As [`decode_cut`].
unsafe fn decode<E: Element, V: Value, const MODE: u8, const HASHED: bool>(
    form: &CutForm<'_>,
    runs: &mut [CutRun<'_, '_>],
    groups: usize,
) {
    let Source::Plain(spec, map) = form.source else {
        return;
    };
    let tables = Tables::new(spec, map);
    let mut values = Aligned([[V::default(); BLOCK * LANES]; MOST]);
    for runs in runs.chunks_mut(MOST) {
        // SAFETY: passed on; a tile has room for a block.
        unsafe {
            let shared = Shared::new::<E>(form);
            let mut tiles = values
                .0
                .each_mut()
                .map(|tile| tile.as_mut_ptr())
                .into_iter();
            let mut tile = || tiles.next().unwrap_or(std::ptr::null_mut());
            let mut parts = runs.iter();
            let mut planes: [Plane<'_, V>; MOST] = std::array::from_fn(|_| match parts.next() {
                Some(run) => Plane::new(run.decoder, tile()),
                None => Plane::none(),
            });
            let mut parts = runs.iter_mut();
            let mut chunks: [Option<Chunk>; MOST] = std::array::from_fn(|_| {
                let run = parts.next()?;
                let mut chunk = Chunk::new::<E>(run, &shared);
                chunk.place(form, run, run.start);
                Some(chunk)
            });
            let planes = &mut planes[..runs.len()];
            let mut element = runs[0].start;
            let end = element + groups * LANES;
            while element < end {
                let left = SUB_BLOCK - element % SUB_BLOCK;
                let count = BLOCK.min(left.min(end - element) / LANES);
                decode_planes(&tables, planes, count);
                for (chunk, tile) in chunks.iter_mut().flatten().zip(&values.0) {
                    chunk.join::<E, V, MODE, HASHED>(&shared, tile.as_ptr(), count);
                }
                element += count * LANES;
                if element < end && element.is_multiple_of(SUB_BLOCK) {
                    for (chunk, run) in chunks.iter_mut().flatten().zip(&*runs) {
                        chunk.place(form, run, element);
                    }
                }
            }
            for ((run, plane), chunk) in runs.iter_mut().zip(planes).zip(chunks.iter().flatten()) {
                plane.write_back(run.decoder);
                if HASHED {
                    chunk.add_to(run.hash);
                }
            }
        }
    }
}

/// What all chunks share.
struct Shared<'a> {
    steps: &'a Steps,
    packed_bits: usize,
    scale: Option<ScaleWords<'a>>,
    past_cache: bool,
    sign_right: __m128i,
    top_left: __m128i,
    below: __m256i,
    magnitude: __m256i,
    hash_step: __m256i,
}

impl<'a> Shared<'a> {
    #[target_feature(enable = "avx2")]
    fn new<E: Element>(form: &CutForm<'a>) -> Self {
        let (bits, sign) = (8 * E::BYTES as u32, form.sign_position);
        let pair = |half: usize| u64::from(HASH_STEPS[half].wrapping_mul(4));
        // SAFETY: the features are this function's.
        let broadcast = |value| unsafe { E::broadcast(value) };
        Self {
            steps: &STEPS[form.packed_bits as usize],
            packed_bits: form.packed_bits as usize,
            scale: form.scale,
            past_cache: form.past_cache,
            sign_right: _mm_cvtsi32_si128(sign as i32),
            top_left: _mm_cvtsi32_si128(bits as i32 - 1),
            below: broadcast((1_u64 << sign) - 1),
            magnitude: broadcast((1_u64 << (bits - 1)) - 1),
            hash_step: _mm256_set1_epi64x((pair(0) | pair(1) << 32) as i64),
        }
    }
}

/// How an output is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Through the caches.
    Plain,
    /// Streaming stores of 32 bytes.
    Whole,
    /// Streaming stores of 16 bytes.
    Halves,
}

/// One chunk, without its decoder.
struct Chunk {
    low: [*const u8; 3],
    packed: *const u8,
    /// Bytes of the raw plane from there on.
    packed_left: usize,
    out: *mut u8,
    way: Way,
    row: usize,
    column: usize,
    /// The offset of its row for each of the next 64 elements, and room for 64 more.
    rows: Aligned<[u8; 2 * 4 * LANES]>,
    /// Words hashed so far, in all runs.
    words: u32,
    key: __m256i,
    products: __m256i,
    sums: __m256i,
}

impl Chunk {
    #[target_feature(enable = "avx2")]
    fn new<E: Element>(run: &mut CutRun<'_, '_>, shared: &Shared<'_>) -> Self {
        let columns = shared.scale.map_or(1, |scale| scale.columns);
        let out = run.out.as_mut_ptr();
        let way = match out.addr() % 32 {
            0 if shared.past_cache => Way::Whole,
            16 if shared.past_cache => Way::Halves,
            _ => Way::Plain,
        };
        let key = |i: u32| {
            let word = run.hash.words.wrapping_add(i);
            let half = |half: usize| {
                u64::from(
                    HASH_STEPS[half]
                        .wrapping_mul(word)
                        .wrapping_add(HASH_KEYS[half]),
                )
            };
            (half(0) | half(1) << 32) as i64
        };
        let mut chunk = Self {
            low: [run.raw.as_ptr(); 3],
            packed: run.raw.as_ptr(),
            packed_left: 0,
            out,
            way,
            row: run.first / columns,
            column: run.first % columns,
            rows: Aligned([0; 2 * 4 * LANES]),
            words: 0,
            key: _mm256_setr_epi64x(key(0), key(1), key(2), key(3)),
            products: _mm256_setzero_si256(),
            sums: _mm256_setzero_si256(),
        };
        if let Some(scale) = &shared.scale {
            chunk.begin_row::<E>(scale, 0);
        }
        chunk
    }

    /// Goes on with the raw bits of an element of the run.
    fn place(&mut self, form: &CutForm<'_>, run: &CutRun<'_, '_>, element: usize) {
        let (low, packed) = form.places(element, run.block_len);
        self.low = low.map(|at| run.raw.as_ptr().wrapping_add(at));
        self.packed = run.raw.as_ptr().wrapping_add(packed);
        self.packed_left = run.raw.len().saturating_sub(packed);
    }

    /// Sets the offset of 64 elements from number `lane` on, below 64, to that of the row.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn begin_row<E: Element>(&mut self, scale: &ScaleWords<'_>, lane: usize) {
        let offset = scale
            .rows
            .get(self.row)
            .map_or(0, |&offset| i64::from(offset));
        let offset = offset.checked_shl(scale.shift).unwrap_or(0) as u64;
        let rows = &mut self.rows.0[lane * E::BYTES..][..LANES * E::BYTES];
        // SAFETY: the features are this function's; the slices have 32 bytes.
        unsafe {
            let offsets = E::broadcast(offset);
            for part in rows.chunks_exact_mut(32) {
                _mm256_storeu_si256(part.as_mut_ptr().cast(), offsets);
            }
        }
    }

    /// Puts so many groups of elements together.
    ///
    /// # Safety
    /// The CPU has the features of this tier; the form covers the run, which has the groups left, and
    /// `values` are those of the groups. `MODE` and `HASHED` belong to the form.
    #[target_feature(enable = "avx2,bmi1,bmi2,popcnt,lzcnt")]
    unsafe fn join<E: Element, V: Value, const MODE: u8, const HASHED: bool>(
        &mut self,
        shared: &Shared<'_>,
        mut values: *const V,
        groups: usize,
    ) {
        let low_bytes = E::BYTES - size_of::<V>();
        let (mut key, mut products, mut sums) = (self.key, self.products, self.sums);
        let none: *const u8 = [0_u8; 32].as_ptr();
        let mut last = [0; 8 * 7 + SLACK];
        for _ in 0..groups {
            for low in &self.low[..low_bytes] {
                _mm_prefetch::<_MM_HINT_T0>(low.wrapping_add(RAW_AHEAD).cast());
            }
            let packed_bytes = 8 * shared.packed_bits;
            let mut packed = self.packed;
            if packed_bytes > 0 {
                _mm_prefetch::<_MM_HINT_T0>(packed.wrapping_add(RAW_AHEAD).cast());
                if self.packed_left < packed_bytes + SLACK {
                    // SAFETY: the run has the packed bits of the group.
                    unsafe { packed.copy_to_nonoverlapping(last.as_mut_ptr(), packed_bytes) };
                    packed = last.as_ptr();
                }
            }
            let mut columns = none;
            let left = shared
                .scale
                .map_or(usize::MAX, |scale| scale.columns - self.column);
            if MODE != ROTATED
                && let Some(scale) = &shared.scale
            {
                let column = if scale.has_columns { self.column } else { 0 };
                columns = scale.words.as_ptr().wrapping_add(column * E::BYTES);
                if left < LANES {
                    self.row += 1;
                    self.begin_row::<E>(scale, left);
                }
            }
            for half in 0..2 {
                // SAFETY: values and raw bits are there for 64 elements; `packed` has `SLACK` more bytes.
                let words = unsafe { self.words::<E, V>(shared, packed, values, half) };
                for (part, &word) in words[..E::BYTES].iter().enumerate() {
                    let at = 32 * (half * E::BYTES + part);
                    // SAFETY: `words` of the scale has 64 words from every column on, `rows` has 64; the
                    // output has room for 64 elements and is aligned as the way needs it.
                    unsafe {
                        let mut word = word;
                        let mut offset = _mm256_setzero_si256();
                        if MODE != ROTATED && shared.scale.is_some() {
                            let rows = self.rows.0.as_ptr().add(at).cast();
                            offset = E::add(
                                _mm256_loadu_si256(columns.add(at).cast()),
                                _mm256_loadu_si256(rows),
                            );
                        }
                        word = place_sign::<E, MODE>(shared, word, offset);
                        if HASHED {
                            let keyed = _mm256_add_epi32(word, key);
                            key = _mm256_add_epi32(key, shared.hash_step);
                            let product = _mm256_mul_epu32(keyed, _mm256_srli_epi64::<32>(keyed));
                            products = _mm256_add_epi64(products, product);
                            sums = _mm256_add_epi64(sums, keyed);
                        }
                        store_by(self.way, self.out.add(at), word);
                    }
                }
            }
            self.out = self.out.wrapping_add(LANES * E::BYTES);
            values = values.wrapping_add(LANES);
            for low in &mut self.low[..low_bytes] {
                *low = low.wrapping_add(LANES);
            }
            if packed_bytes > 0 {
                self.packed = self.packed.wrapping_add(packed_bytes);
                self.packed_left -= packed_bytes;
            }
            if MODE != ROTATED
                && let Some(scale) = &shared.scale
            {
                self.column += LANES;
                if left <= LANES {
                    self.column -= scale.columns;
                    self.row += usize::from(left == LANES);
                    self.begin_row::<E>(scale, 0);
                }
            }
        }
        (self.key, self.products, self.sums) = (key, products, sums);
        self.words = self.words.wrapping_add((groups * 8 * E::BYTES) as u32);
    }

    /// 32 elements as they are before offsets and sign; registers from `BYTES` on are not used.
    ///
    /// # Safety
    /// As [`Chunk::join`]; 16 bytes can be read from each bundle of packed bits on.
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn words<E: Element, V: Value>(
        &self,
        shared: &Shared<'_>,
        packed: *const u8,
        values: *const V,
        half: usize,
    ) -> [__m256i; 4] {
        let zero = _mm256_setzero_si256();
        // SAFETY: as the caller's.
        unsafe {
            let low = |plane: usize| _mm256_loadu_si256(self.low[plane].add(32 * half).cast());
            let packed = packed.add(4 * half * shared.packed_bits);
            if V::WIDE {
                let values: *const u16 = values.cast::<u16>().add(32 * half);
                // 8 values from each of two numbers on, with their packed bits.
                let wide = |first: usize, second: usize| {
                    let words = load_two(values.add(first).cast(), values.add(second).cast());
                    if shared.packed_bits == 0 {
                        return words;
                    }
                    let bundle = |first: usize| packed.add(first / 8 * shared.packed_bits);
                    let bytes = load_two(bundle(first), bundle(second));
                    _mm256_or_si256(words, fields(shared.steps, bytes))
                };
                if E::BYTES == 2 {
                    return [wide(0, 8), wide(16, 24), zero, zero];
                }
                let (first, second) = (low(0), low(1));
                return interleave_words(
                    [
                        _mm256_unpacklo_epi8(first, second),
                        _mm256_unpackhi_epi8(first, second),
                    ],
                    [wide(0, 16), wide(8, 24)],
                );
            }
            let mut value = _mm256_loadu_si256(values.add(32 * half).cast());
            if shared.packed_bits > 0 {
                let bytes = load_two(packed, packed.add(2 * shared.packed_bits));
                let next = _mm256_set1_epi8(shared.packed_bits as i8);
                let packed = _mm256_packus_epi16(
                    fields(shared.steps, bytes),
                    fields_from(shared.steps, bytes, next),
                );
                value = _mm256_or_si256(value, packed);
            }
            match E::BYTES {
                1 => [value, zero, zero, zero],
                2 => {
                    let first = _mm256_unpacklo_epi8(low(0), value);
                    let last = _mm256_unpackhi_epi8(low(0), value);
                    [
                        _mm256_permute2x128_si256::<0x20>(first, last),
                        _mm256_permute2x128_si256::<0x31>(first, last),
                        zero,
                        zero,
                    ]
                }
                _ => interleave_words(
                    [
                        _mm256_unpacklo_epi8(low(0), low(1)),
                        _mm256_unpackhi_epi8(low(0), low(1)),
                    ],
                    [
                        _mm256_unpacklo_epi8(low(2), value),
                        _mm256_unpackhi_epi8(low(2), value),
                    ],
                ),
            }
        }
    }

    #[target_feature(enable = "avx2")]
    fn add_to(&self, hash: &mut ChunkHash) {
        hash.words = hash.words.wrapping_add(self.words);
        hash.products = hash.products.wrapping_add(sum_of_words(self.products));
        hash.sum = hash.sum.wrapping_add(sum_of_words(self.sums));
    }
}

/// Adds the scale offset and moves the sign up.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn place_sign<E: Element, const MODE: u8>(
    shared: &Shared<'_>,
    word: __m256i,
    offset: __m256i,
) -> __m256i {
    // SAFETY: as the caller's.
    unsafe {
        let one = _mm_cvtsi32_si128(1);
        if MODE == GENERAL {
            let top = E::shift_left(E::shift_right(word, shared.sign_right), shared.top_left);
            let above = _mm256_andnot_si256(shared.below, E::shift_right(word, one));
            let value = _mm256_or_si256(above, _mm256_and_si256(word, shared.below));
            let value = _mm256_and_si256(E::add(value, offset), shared.magnitude);
            return _mm256_or_si256(value, top);
        }
        let word = if MODE == ROTATED {
            word
        } else {
            E::add(word, offset)
        };
        let sign = E::shift_left(word, shared.top_left);
        _mm256_or_si256(E::shift_right(word, one), sign)
    }
}

/// # Safety
/// There is room for 32 bytes, and alignment for the way.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn store_by(way: Way, to: *mut u8, word: __m256i) {
    // SAFETY: as the caller's.
    unsafe {
        match way {
            Way::Plain => _mm256_storeu_si256(to.cast(), word),
            Way::Whole => _mm256_stream_si256(to.cast(), word),
            Way::Halves => {
                _mm_stream_si128(to.cast(), _mm256_castsi256_si128(word));
                _mm_stream_si128(to.add(16).cast(), _mm256_extracti128_si256::<1>(word));
            }
        }
    }
}

/// Eight fields of packed bits in each half, as words.
#[target_feature(enable = "avx2")]
#[inline]
fn fields(steps: &Steps, bytes: __m256i) -> __m256i {
    fields_from(steps, bytes, _mm256_setzero_si256())
}

/// The same from byte `first` of each half on.
#[target_feature(enable = "avx2")]
#[inline]
fn fields_from(steps: &Steps, bytes: __m256i, first: __m256i) -> __m256i {
    let spread = _mm256_add_epi8(load_twice(&steps.spread), first);
    let lifted = _mm256_mullo_epi16(_mm256_shuffle_epi8(bytes, spread), steps.lifts());
    _mm256_srl_epi16(lifted, steps.drop())
}

/// Low and high words of 32 elements, 8 of the first and of the second 16 in each register, to
/// elements in order.
#[target_feature(enable = "avx2")]
#[inline]
fn interleave_words(low: [__m256i; 2], high: [__m256i; 2]) -> [__m256i; 4] {
    let a = _mm256_unpacklo_epi16(low[0], high[0]);
    let b = _mm256_unpackhi_epi16(low[0], high[0]);
    let c = _mm256_unpacklo_epi16(low[1], high[1]);
    let d = _mm256_unpackhi_epi16(low[1], high[1]);
    [
        _mm256_permute2x128_si256::<0x20>(a, b),
        _mm256_permute2x128_si256::<0x20>(c, d),
        _mm256_permute2x128_si256::<0x31>(a, b),
        _mm256_permute2x128_si256::<0x31>(c, d),
    ]
}
