//! Values of one or two symbols in contexts, a group of 64 at a time of one chunk or two.
//!
//! Both symbols of a chunk have states of their own, so that two chunks in turn are four chains of steps.
//! The first symbol is looked up as in `rans.rs`; where lanes have tables of different classes, in each of
//! them. The second one is found by halves ([`SecondTables`]), in tables of 64 to 256 bytes. They stay in
//! the first cache: registers are not enough. Scalar oracles: `entropy::rans::Decoder` and
//! `planes::symbols`.

use std::arch::x86_64::*;

use super::cut::Values;
use super::load;
use super::rans::{Lanes, STREAM_AHEAD, expand_from, indices_of};
use crate::entropy::rans::{FirstTables, SecondTables, Spec};
use crate::simd::cut::{CutRun, Source};

/// The classes of 64 elements.
#[derive(Clone, Copy)]
pub(super) enum Class {
    Uniform(usize),
    /// One in each byte.
    Mixed(__m512i),
}

/// The tables of all chunks.
pub(super) struct Tables<'a> {
    first: &'a FirstTables,
    second: Option<&'a SecondTables>,
    /// The index of the escape, or one that does not occur.
    escape: __m512i,
}

/// The state of a chunk.
pub(super) struct Symbols {
    first: Lanes,
    second: Lanes,
    /// Low and high bytes of the escaped values, then where the contexts of their second symbols begin.
    escapes: [*const u8; 3],
    count: usize,
    used: usize,
}

impl Values for Symbols {
    type Tables<'a> = Tables<'a>;
    const IN_CONTEXTS: bool = true;

    #[inline(always)]
    unsafe fn tables(source: Source<'_>) -> Option<Tables<'_>> {
        let Source::Symbols(first, second) = source else {
            return None;
        };
        let escape = if first.values.escape { 63 } else { -1 };
        // SAFETY: as the caller's.
        let escape = unsafe { _mm512_set1_epi8(escape) };
        Some(Tables {
            first,
            second,
            escape,
        })
    }

    #[inline(always)]
    unsafe fn new(run: &CutRun<'_, '_>) -> Self {
        let [values, contexts] = run.escapes;
        let [low, high] = values.padded();
        let [context, _] = contexts.padded();
        let second = run.second.as_deref().unwrap_or(run.decoder);
        // SAFETY: as the caller's.
        let (first, second) = unsafe { (Lanes::new(run.decoder), Lanes::new(second)) };
        Self {
            first,
            second,
            escapes: [low.as_ptr(), high.as_ptr(), context.as_ptr()],
            count: values.count(),
            used: run.decoder.used,
        }
    }

    #[inline(always)]
    unsafe fn step<const WIDE: bool, const K: usize>(
        chunks: &mut [&mut Self; K],
        tables: &Tables<'_>,
        classes: [Class; K],
    ) -> [[__m512i; 2]; K] {
        // SAFETY: passed on.
        unsafe {
            let zero = _mm512_setzero_si512();
            let (mut values, mut contexts) = ([[zero; 2]; K], [zero; K]);
            // No loop: the compiler would keep states in memory.
            [values[0][0], values[0][1], contexts[0]] = chunks[0].first_values(tables, classes[0]);
            if K > 1 {
                [values[K - 1][0], values[K - 1][1], contexts[K - 1]] =
                    chunks[K - 1].first_values(tables, classes[K - 1]);
            }
            let Some(second) = tables.second else {
                return values;
            };
            match (second.blocks, second.steps) {
                (1, 2) => Self::add_second::<1, 2, WIDE, K>(chunks, second, contexts, values),
                (1, 3) => Self::add_second::<1, 3, WIDE, K>(chunks, second, contexts, values),
                (1, _) => Self::add_second::<1, 4, WIDE, K>(chunks, second, contexts, values),
                (2, 3) => Self::add_second::<2, 3, WIDE, K>(chunks, second, contexts, values),
                (2, _) => Self::add_second::<2, 4, WIDE, K>(chunks, second, contexts, values),
                _ => Self::add_second::<4, 4, WIDE, K>(chunks, second, contexts, values),
            }
        }
    }

    #[inline(always)]
    unsafe fn write_back(&self, run: &mut CutRun<'_, '_>) {
        // SAFETY: as the caller's.
        unsafe {
            self.first.write_back(run.decoder);
            run.decoder.used = self.used;
            if let Some(second) = &mut run.second {
                self.second.write_back(second);
            }
        }
    }
}

impl Symbols {
    /// Decodes 64 first symbols: the bytes of their values, and where the contexts of the second ones
    /// begin.
    ///
    /// # Safety
    /// As [`Values::step`].
    #[inline(always)]
    unsafe fn first_values(&mut self, tables: &Tables<'_>, class: Class) -> [__m512i; 3] {
        // SAFETY: the CPU has the features; the stream has the bytes; `EscapedValues` has 64 bytes
        // from every position up to its count; fetches cannot fault.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(self.first.stream.wrapping_add(STREAM_AHEAD).cast());
            let index = self.first_indices(tables.first, class);
            let values = &tables.first.values;
            let mut low = _mm512_permutexvar_epi8(index, load(&values.low));
            let mut high = _mm512_permutexvar_epi8(index, load(&values.high));
            let mut context = _mm512_permutexvar_epi8(index, load(&values.context));
            let escaped = _mm512_cmpeq_epi8_mask(index, tables.escape);
            if escaped != 0 {
                let position = self.used.min(self.count);
                self.used += escaped.count_ones() as usize;
                low = expand_from(low, escaped, self.escapes[0].add(position));
                high = expand_from(high, escaped, self.escapes[1].add(position));
                context = expand_from(context, escaped, self.escapes[2].add(position));
            }
            [low, high, context]
        }
    }

    /// Decodes the indices of 64 first symbols.
    ///
    /// # Safety
    /// As [`Values::step`].
    #[inline(always)]
    unsafe fn first_indices(&mut self, tables: &FirstTables, class: Class) -> __m512i {
        // SAFETY: as the caller's.
        unsafe {
            let slot = self.first.low;
            // Lines may have classes that are other models': a plane with one table has no use for them.
            let class = if tables.classes.len() == 1 {
                Class::Uniform(0)
            } else {
                class
            };
            let classes = match class {
                Class::Uniform(class) => {
                    let last = tables.classes.len() - 1;
                    let spec = &tables.classes[class.min(last)];
                    let index = indices_of(slot, &slot_parts(spec));
                    let frequency = _mm512_permutexvar_epi8(index, load(&spec.frequency));
                    let start = _mm512_permutexvar_epi8(index, load(&spec.start));
                    self.first.advance(frequency, start);
                    return index;
                }
                Class::Mixed(classes) => classes,
            };
            let zero = _mm512_setzero_si512();
            let (mut index, mut frequency, mut start) = (zero, zero, zero);
            for (number, spec) in tables.classes.iter().enumerate() {
                let mine = _mm512_cmpeq_epi8_mask(classes, _mm512_set1_epi8(number as i8));
                let at = indices_of(slot, &slot_parts(spec));
                index = _mm512_mask_mov_epi8(index, mine, at);
                frequency =
                    _mm512_mask_permutexvar_epi8(frequency, mine, at, load(&spec.frequency));
                start = _mm512_mask_permutexvar_epi8(start, mine, at, load(&spec.start));
            }
            self.first.advance(frequency, start);
            index
        }
    }

    /// Decodes 64 second symbols of each chunk, whose contexts begin there, and puts them into values.
    ///
    /// # Safety
    /// As [`Values::step`].
    #[inline(always)]
    unsafe fn add_second<
        const BLOCKS: usize,
        const STEPS: usize,
        const WIDE: bool,
        const K: usize,
    >(
        chunks: &mut [&mut Self; K],
        tables: &SecondTables,
        contexts: [__m512i; K],
        mut values: [[__m512i; 2]; K],
    ) -> [[__m512i; 2]; K] {
        // SAFETY: the CPU has the features; the streams have the bytes; fetches cannot fault.
        unsafe {
            let mut places = contexts;
            let mut step = STEPS;
            while step > 0 {
                step -= 1;
                let half = _mm512_set1_epi8(1 << step);
                for k in 0..K {
                    let last_before = look_up::<BLOCKS>(&tables.last_before[step], places[k]);
                    let further = _mm512_cmpgt_epu8_mask(chunks[k].second.low, last_before);
                    places[k] = _mm512_mask_add_epi8(places[k], further, places[k], half);
                }
            }
            for k in 0..K {
                let lanes = &mut chunks[k].second;
                _mm_prefetch::<_MM_HINT_T0>(lanes.stream.wrapping_add(STREAM_AHEAD).cast());
                let frequency = look_up::<BLOCKS>(&tables.frequency, places[k]);
                let start = look_up::<BLOCKS>(&tables.start, places[k]);
                lanes.advance(frequency, start);
            }
            for k in 0..K {
                let low = look_up::<BLOCKS>(&tables.low, places[k]);
                values[k][0] = _mm512_or_si512(values[k][0], low);
                if WIDE {
                    let high = look_up::<BLOCKS>(&tables.high, places[k]);
                    values[k][1] = _mm512_or_si512(values[k][1], high);
                }
            }
            values
        }
    }
}

/// The indices of all slots.
///
/// # Safety
/// The CPU has the features of this tier (K1 of [`crate::simd`]).
#[inline(always)]
unsafe fn slot_parts(spec: &Spec) -> [__m512i; 4] {
    let parts = spec.slot_index.as_chunks::<64>().0;
    // SAFETY: as the caller's.
    unsafe {
        [
            load(&parts[0]),
            load(&parts[1]),
            load(&parts[2]),
            load(&parts[3]),
        ]
    }
}

/// Entries of the first `64 * BLOCKS` bytes of a table: 1, 2 or 4 blocks.
///
/// # Safety
/// The CPU has the features of this tier (K1 of [`crate::simd`]).
#[inline(always)]
unsafe fn look_up<const BLOCKS: usize>(table: &[u8; 256], at: __m512i) -> __m512i {
    let parts = table.as_chunks::<64>().0;
    // SAFETY: as the caller's.
    unsafe {
        match BLOCKS {
            1 => _mm512_permutexvar_epi8(at, load(&parts[0])),
            2 => _mm512_permutex2var_epi8(load(&parts[0]), at, load(&parts[1])),
            _ => {
                let parts = [
                    load(&parts[0]),
                    load(&parts[1]),
                    load(&parts[2]),
                    load(&parts[3]),
                ];
                indices_of(at, &parts)
            }
        }
    }
}
