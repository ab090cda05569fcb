//! The r8 coder, a group of 64 symbols at a time, several chunks in turn.
//!
//! A step depends on the one before it for about 30 cycles and takes about 12: chunks that take turns
//! fill the wait. Scalar oracles: `entropy::rans::{Decoder, Encoder}`.
//!
//! Deviations from the pseudocode there:
//! 1. states are two byte planes; 16-bit arithmetic is done on even and odd lanes in turn;
//! 2. the slot gives the index (two lookups of 128 and a blend), the index gives frequency, first
//!    slot and value (one lookup of 64 each);
//! 3. the encoder divides by a 16-bit reciprocal and a shift, and takes the new low byte as
//!    `low + start - quotient * frequency` modulo 256, which needs no 16-bit sums;
//! 4. bytes leave the encoder through a register whose top is filled, so that stores are whole.

use std::arch::x86_64::*;

use super::{load, load_words, store};
use crate::constants::LANES;
use crate::entropy::rans::{Decoder, Encoder, Spec, Value, ValueMap};

/// `2 i`-th and `2 i + 1`-th byte: low bytes of one register with those of another.
static INTERLEAVE_FIRST: [u8; 64] = interleave(0);
static INTERLEAVE_LAST: [u8; 64] = interleave(32);

const fn interleave(first: u8) -> [u8; 64] {
    let mut bytes = [0; 64];
    let mut i = 0;
    while i < 64 {
        bytes[i] = first + i as u8 / 2 + 64 * (i as u8 & 1);
        i += 1;
    }
    bytes
}

/// 0 to 63 twice: 64 bytes from `n` on rotate a register by `n`.
static ROTATIONS: [u8; 128] = {
    let mut bytes = [0; 128];
    let mut i = 0;
    while i < 128 {
        bytes[i] = i as u8 & 63;
        i += 1;
    }
    bytes
};

/// How `x / f` is computed for `x < 256 f`: `(x + increment) * reciprocal >> 16 >> shift`.
///
/// For `f = 1` the quotient comes out one too small, which the kernel adds.
#[derive(Clone, Copy)]
struct Division {
    reciprocal: u16,
    shift: u16,
    increment: bool,
}

static DIVISIONS: [Division; 256] = divisions();

const fn divisions() -> [Division; 256] {
    let mut table = [Division {
        reciprocal: u16::MAX,
        shift: 0,
        increment: false,
    }; 256];
    let mut frequency = 2_u32;
    while frequency < 256 {
        // Rounded up where the error stays below one quotient for all 16-bit numbers below
        // 256 f, else rounded down with an increment (Robison 2005); the tests try every number.
        let log = frequency.ilog2();
        let shift = if frequency.is_power_of_two() {
            log - 1
        } else {
            log
        };
        let power = 1_u32 << (16 + shift);
        let up = power.div_ceil(frequency);
        let excess = up * frequency - power;
        // x * excess < power / f for the last x decides; 255 is its quotient.
        let exact = 256 * frequency as u64 * excess as u64 <= power as u64;
        table[frequency as usize] = Division {
            reciprocal: if exact { up } else { power / frequency } as u16,
            shift: shift as u16,
            increment: !exact,
        };
        frequency += 1;
    }
    table
}

/// Replaces the bytes of `register` that the mask names by the next ones from memory.
///
/// Written as assembly because the compiler would make load and expansion one instruction, which takes
/// ten times as long as the two, and would move it to where it needs the result.
///
/// # Safety
/// 64 bytes from `from` on can be read, and the CPU has AVX-512 VBMI2.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2")]
#[inline]
pub(super) unsafe fn expand_from(register: __m512i, mask: __mmask64, from: *const u8) -> __m512i {
    let mut register = register;
    // The type tells the assembler how wide the register is.
    let ahead: __m512i;
    // SAFETY: the instructions read the 64 bytes that the caller vouches for and nothing else.
    unsafe {
        std::arch::asm!(
            "vmovdqu64 {ahead}, [{from}]",
            "vpexpandb {register} {{{mask}}}, {ahead}",
            ahead = out(zmm_reg) ahead,
            from = in(reg) from,
            mask = in(kreg) mask,
            register = inout(zmm_reg) register,
            options(readonly, nostack, preserves_flags),
        );
    }
    let _: __m512i = ahead;
    register
}

/// How far ahead of its use the stream is fetched, in bytes.
pub(super) const STREAM_AHEAD: usize = 512;

/// See [`crate::simd::Kernels::decode_groups`].
///
/// # Safety
/// The CPU has the features of this tier. Every stream has `64 * groups` bytes and every output
/// room for `64 * groups` values; there are as many outputs as decoders.
pub(in crate::simd) unsafe fn decode_groups<V: Value>(
    spec: &Spec,
    map: &ValueMap,
    mut decoders: &mut [Decoder<'_>],
    mut out: &mut [&mut [V]],
    groups: usize,
) {
    while let Some(k) = [4, 2, 1].into_iter().find(|&k| k <= decoders.len()) {
        let (now, later) = decoders.split_at_mut(k);
        let (now_out, later_out) = out.split_at_mut(k);
        // SAFETY: passed on.
        unsafe {
            match k {
                4 => decode::<4, V>(spec, map, now, now_out, groups),
                2 => decode::<2, V>(spec, map, now, now_out, groups),
                _ => decode::<1, V>(spec, map, now, now_out, groups),
            }
        }
        (decoders, out) = (later, later_out);
    }
}

/// The tables of the decoder in registers.
pub(super) struct Tables {
    slots: [__m512i; 4],
    frequencies: __m512i,
    starts: __m512i,
    low_values: __m512i,
    high_values: __m512i,
    /// The index of the escape, or one that does not occur.
    escape: __m512i,
}

impl Tables {
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    pub(super) fn new(spec: &Spec, map: &ValueMap) -> Self {
        let (parts, _) = spec.slot_index.as_chunks::<64>();
        Self {
            slots: [
                load(&parts[0]),
                load(&parts[1]),
                load(&parts[2]),
                load(&parts[3]),
            ],
            frequencies: load(&spec.frequency),
            starts: load(&spec.start),
            low_values: load(&map.low),
            high_values: load(&map.high),
            escape: _mm512_set1_epi8(if map.escape { 63 } else { -1 }),
        }
    }
}

/// The states of the lanes in registers, and where they read.
pub(super) struct Lanes {
    pub(super) low: __m512i,
    high: __m512i,
    pub(super) stream: *const u8,
}

impl Lanes {
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn new(decoder: &Decoder<'_>) -> Self {
        Self {
            low: load(&decoder.low),
            high: load(&decoder.high),
            stream: decoder.stream.as_ptr(),
        }
    }

    /// The states after symbols with these frequencies, which begin with these slots.
    ///
    /// # Safety
    /// The CPU has the features of this tier, and the stream has 64 bytes left.
    #[inline(always)]
    pub(super) unsafe fn advance(&mut self, frequency: __m512i, start: __m512i) {
        // SAFETY: the CPU has the features; the stream has the bytes.
        unsafe {
            let low_bytes = _mm512_set1_epi16(0xff);
            let (low, high) = (self.low, self.high);
            let offset = _mm512_sub_epi8(low, start);
            let even = _mm512_add_epi16(
                _mm512_mullo_epi16(
                    _mm512_and_si512(frequency, low_bytes),
                    _mm512_and_si512(high, low_bytes),
                ),
                _mm512_and_si512(offset, low_bytes),
            );
            let odd = _mm512_add_epi16(
                // High bytes times high bytes: both factors are 256 times too large.
                _mm512_mulhi_epu16(
                    _mm512_andnot_si512(low_bytes, frequency),
                    _mm512_andnot_si512(low_bytes, high),
                ),
                _mm512_srli_epi16::<8>(offset),
            );
            // 0xE4: the first operand where the mask is set, else the second.
            let next_low =
                _mm512_ternarylogic_epi32::<0xE4>(even, _mm512_slli_epi16::<8>(odd), low_bytes);
            let next_high =
                _mm512_ternarylogic_epi32::<0xE4>(_mm512_srli_epi16::<8>(even), odd, low_bytes);
            let refill = _mm512_testn_epi8_mask(next_high, next_high);
            self.high = _mm512_mask_mov_epi8(next_high, refill, next_low);
            self.low = expand_from(next_low, refill, self.stream);
            self.stream = self.stream.add(refill.count_ones() as usize);
        }
    }

    /// Stores states and position.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn write_back(&self, decoder: &mut Decoder<'_>) {
        store(self.low, &mut decoder.low);
        store(self.high, &mut decoder.high);
        let taken = self.stream.addr() - decoder.stream.as_ptr().addr();
        decoder.stream = &decoder.stream[taken..];
    }
}

/// The indices of slots.
///
/// # Safety
/// The CPU has the features of this tier.
#[inline(always)]
pub(super) unsafe fn indices_of(slot: __m512i, parts: &[__m512i; 4]) -> __m512i {
    // SAFETY: as the caller's.
    unsafe {
        let upper_half = _mm512_movepi8_mask(slot);
        _mm512_mask_blend_epi8(
            upper_half,
            _mm512_permutex2var_epi8(parts[0], slot, parts[1]),
            _mm512_permutex2var_epi8(parts[2], slot, parts[3]),
        )
    }
}

/// The state of a decoder in registers, and where it reads.
pub(super) struct State {
    pub(super) lanes: Lanes,
    escapes: [*const u8; 2],
    count: usize,
    used: usize,
}

impl State {
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn new(decoder: &Decoder<'_>) -> Self {
        Self {
            lanes: Lanes::new(decoder),
            escapes: decoder.escapes.padded().map(<[u8]>::as_ptr),
            count: decoder.escapes.count(),
            used: decoder.used,
        }
    }

    /// Decodes a group of 64 values: their low bytes, and if they are wide their high bytes.
    ///
    /// # Safety
    /// The CPU has the features of this tier, and the stream has 64 bytes left.
    #[inline(always)]
    pub(super) unsafe fn step_lanes<const WIDE: bool>(&mut self, tables: &Tables) -> [__m512i; 2] {
        // SAFETY: the CPU has the features; the stream has the bytes; `EscapedValues` has 64 bytes
        // from every position up to its count.
        unsafe {
            let index = indices_of(self.lanes.low, &tables.slots);
            let frequency = _mm512_permutexvar_epi8(index, tables.frequencies);
            let start = _mm512_permutexvar_epi8(index, tables.starts);
            self.lanes.advance(frequency, start);

            let escaped = _mm512_cmpeq_epi8_mask(index, tables.escape);
            let position = self.used.min(self.count);
            self.used += escaped.count_ones() as usize;
            let value = |values, part: usize| {
                let value = _mm512_permutexvar_epi8(index, values);
                expand_from(value, escaped, self.escapes[part].add(position))
            };
            [
                value(tables.low_values, 0),
                if WIDE {
                    value(tables.high_values, 1)
                } else {
                    _mm512_setzero_si512()
                },
            ]
        }
    }

    /// Stores states and positions.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn write_back(&self, decoder: &mut Decoder<'_>) {
        self.lanes.write_back(decoder);
        decoder.used = self.used;
    }
}

/// # Safety
/// As [`decode_groups`], with `K` decoders and outputs.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
unsafe fn decode<const K: usize, V: Value>(
    spec: &Spec,
    map: &ValueMap,
    decoders: &mut [Decoder<'_>],
    outputs: &mut [&mut [V]],
    groups: usize,
) {
    let tables = Tables::new(spec, map);
    let (first, last) = (load(&INTERLEAVE_FIRST), load(&INTERLEAVE_LAST));
    let mut parts = decoders.iter_mut().zip(outputs);
    let mut next = || {
        let (decoder, out) = parts.next()?;
        Some((State::new(decoder), out.as_mut_ptr().cast::<u8>(), decoder))
    };
    // Written out, so that every decoder's state is in registers of its own.
    macro_rules! run {
        ($($plane:ident),*) => {
            if let ($(Some(mut $plane),)*) = ($({ let $plane = next(); $plane },)*) {
                for _ in 0..groups {
                    // SAFETY: group `g` begins at most `64 g` bytes into a stream of `64 * groups`,
                    // and the output has room for `64 * groups` values.
                    $(unsafe {
                        if V::WIDE {
                            let [low, high] = $plane.0.step_lanes::<true>(&tables);
                            let head = _mm512_permutex2var_epi8(low, first, high);
                            let tail = _mm512_permutex2var_epi8(low, last, high);
                            _mm512_storeu_si512($plane.1.cast(), head);
                            _mm512_storeu_si512($plane.1.add(64).cast(), tail);
                        } else {
                            let [low, _] = $plane.0.step_lanes::<false>(&tables);
                            _mm512_storeu_si512($plane.1.cast(), low);
                        }
                        $plane.1 = $plane.1.add(64 * size_of::<V>());
                    })*
                }
                $($plane.0.write_back($plane.2);)*
            }
        };
    }
    match K {
        4 => run!(a, b, c, d),
        2 => run!(a, b),
        _ => run!(a),
    }
}

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
    let increments = spec
        .frequency
        .iter()
        .any(|&frequency| DIVISIONS[usize::from(frequency)].increment);
    while let Some(k) = [3, 2, 1].into_iter().find(|&k| k <= encoders.len()) {
        let (now, later) = encoders.split_at_mut(k);
        let (now_indices, later_indices) = indices.split_at(k);
        // SAFETY: passed on.
        unsafe {
            match (k, increments) {
                (3, true) => encode::<3, true>(spec, now, now_indices),
                (3, false) => encode::<3, false>(spec, now, now_indices),
                (2, true) => encode::<2, true>(spec, now, now_indices),
                (2, false) => encode::<2, false>(spec, now, now_indices),
                (_, true) => encode::<1, true>(spec, now, now_indices),
                (_, false) => encode::<1, false>(spec, now, now_indices),
            }
        }
        (encoders, indices) = (later, later_indices);
    }
}

/// # Safety
/// As [`encode_groups`], with `K` encoders; `INCREMENT` if a division needs it.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
unsafe fn encode<const K: usize, const INCREMENT: bool>(
    spec: &Spec,
    encoders: &mut [Encoder],
    indices: &[&[u8]],
) {
    let division = |index: usize| DIVISIONS[usize::from(spec.frequency[index])];
    let reciprocals = load_words(&std::array::from_fn(|index| division(index).reciprocal));
    let shifts = load_words(&std::array::from_fn(|index| division(index).shift));
    let increments = load(&std::array::from_fn(|index| {
        u8::from(division(index).increment)
    }));
    let (frequencies, starts) = (load(&spec.frequency), load(&spec.start));
    let low_bytes = _mm512_set1_epi16(0xff);
    let ones = _mm512_set1_epi8(1);

    let mut low: [__m512i; K] = std::array::from_fn(|c| load(&encoders[c].low));
    let mut high: [__m512i; K] = std::array::from_fn(|c| load(&encoders[c].high));
    let mut cursor: [*mut u8; K] = std::array::from_fn(|c| {
        let cursor = encoders[c].cursor;
        encoders[c].room[..cursor].as_mut_ptr_range().end
    });

    let groups = indices[0].len() / LANES;
    let lines: [usize; K] = std::array::from_fn(|c| {
        encoders[c]
            .ahead
            .1
            .div_ceil(64)
            .div_ceil(groups.max(1))
            .min(4)
    });
    let mut ahead: [*const i8; K] =
        std::array::from_fn(|c| std::ptr::without_provenance(encoders[c].ahead.0));
    for group in (0..groups).rev() {
        for c in 0..K {
            for _ in 0..lines[c] {
                _mm_prefetch::<_MM_HINT_T1>(ahead[c]);
                ahead[c] = ahead[c].wrapping_add(64);
            }
            // SAFETY: the list has `64 * (group + 1)` indices at least.
            let index =
                unsafe { _mm512_loadu_si512(indices[c].as_ptr().add(group * LANES).cast()) };
            let frequency = _mm512_permutexvar_epi8(index, frequencies);

            let emit = _mm512_cmpge_epu8_mask(high[c], frequency);
            let count = emit.count_ones() as usize;
            // SAFETY: a group emits at most 64 bytes, so that the room for `len` bytes and 64 more
            // holds the whole store; `ROTATIONS` has 64 bytes from every number up to 64.
            unsafe {
                let rotation = _mm512_loadu_si512(ROTATIONS.as_ptr().add(count).cast());
                let bytes = _mm512_maskz_compress_epi8(emit, low[c]);
                let top = _mm512_permutexvar_epi8(rotation, bytes);
                _mm512_storeu_si512(cursor[c].sub(LANES).cast(), top);
                cursor[c] = cursor[c].sub(count);
            }
            let x_low = _mm512_mask_mov_epi8(low[c], emit, high[c]);
            let x_high = _mm512_maskz_mov_epi8(!emit, high[c]);

            let mut even =
                _mm512_ternarylogic_epi32::<0xE4>(x_low, _mm512_slli_epi16::<8>(x_high), low_bytes);
            let mut odd =
                _mm512_ternarylogic_epi32::<0xE4>(_mm512_srli_epi16::<8>(x_low), x_high, low_bytes);
            if INCREMENT {
                let increment = _mm512_permutexvar_epi8(index, increments);
                even = _mm512_add_epi16(even, _mm512_and_si512(increment, low_bytes));
                odd = _mm512_add_epi16(odd, _mm512_srli_epi16::<8>(increment));
            }
            let odd_index = _mm512_srli_epi16::<8>(index);
            let even_quotient = _mm512_srlv_epi16(
                _mm512_mulhi_epu16(
                    even,
                    _mm512_permutex2var_epi16(reciprocals[0], index, reciprocals[1]),
                ),
                _mm512_permutex2var_epi16(shifts[0], index, shifts[1]),
            );
            let odd_quotient = _mm512_srlv_epi16(
                _mm512_mulhi_epu16(
                    odd,
                    _mm512_permutex2var_epi16(reciprocals[0], odd_index, reciprocals[1]),
                ),
                _mm512_permutex2var_epi16(shifts[0], odd_index, shifts[1]),
            );
            // A frequency of 1 has a quotient one too small. It is below 256, as all are.
            let single = _mm512_cmpeq_epi8_mask(frequency, ones);
            let quotient = _mm512_or_si512(even_quotient, _mm512_slli_epi16::<8>(odd_quotient));
            let quotient = _mm512_mask_add_epi8(quotient, single, quotient, ones);
            // Low bytes of the products; the even one needs no mask, its high byte is not used.
            let product = _mm512_ternarylogic_epi32::<0xE4>(
                _mm512_mullo_epi16(quotient, frequency),
                _mm512_mullo_epi16(
                    _mm512_srli_epi16::<8>(quotient),
                    _mm512_andnot_si512(low_bytes, frequency),
                ),
                low_bytes,
            );
            let start = _mm512_permutexvar_epi8(index, starts);
            low[c] = _mm512_sub_epi8(_mm512_add_epi8(x_low, start), product);
            high[c] = quotient;
        }
    }

    for (c, encoder) in encoders.iter_mut().enumerate() {
        store(low[c], &mut encoder.low);
        store(high[c], &mut encoder.high);
        // SAFETY: both point into the same room.
        encoder.cursor = unsafe { cursor[c].offset_from(encoder.room.as_ptr()) } as usize;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divisions_are_exact() {
        for frequency in 1..=255_u32 {
            let division = DIVISIONS[frequency as usize];
            for x in frequency..256 * frequency {
                let sum = x + u32::from(division.increment);
                let quotient = (sum * u32::from(division.reciprocal)) >> 16 >> division.shift;
                assert_eq!(
                    quotient + u32::from(frequency == 1),
                    x / frequency,
                    "{x} / {frequency}"
                );
            }
        }
    }
}
