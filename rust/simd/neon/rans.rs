//! The r8 coder, a group of 64 symbols at a time, two chunks in turn.
//!
//! Scalar oracles: `entropy::rans::{Decoder, Encoder}`. Deviations from the pseudocode there:
//! 1. states are two byte planes; products have 16 bits, eight lanes to a register;
//! 2. the slot gives the index (four lookups of 64, of which one finds it), the index gives
//!    frequency, first slot and value;
//! 3. the encoder divides by a 24-bit reciprocal in two parts: with `r = 2^16 h + l`, the quotient
//!    `x r div 2^24` is the high byte of `x h + (x l div 2^16)`, which is below 2^16;
//! 4. emitted bytes are gathered at the end of 8 bytes and stored whole, the last ones first.

use std::arch::aarch64::*;

use super::{COMPRESS, Lanes, byte, counts_up_to, expand, load, load_eight, mask_of, store, table};
use crate::constants::{LANES, MAX_SYMBOLS};
use crate::entropy::rans::{Decoder, Encoder, Spec, Value, ValueMap};

/// See [`crate::simd::Kernels::decode_groups`].
///
/// # Safety
/// The CPU has NEON. Every stream has `64 * groups` bytes and every output room for `64 * groups` values; there are as
/// many outputs as decoders.
#[target_feature(enable = "neon")]
pub(in crate::simd) unsafe fn decode_groups<V: Value>(
    spec: &Spec,
    map: &ValueMap,
    decoders: &mut [Decoder<'_>],
    out: &mut [&mut [V]],
    groups: usize,
) {
    let tables = Tables::new(spec, map);
    for (decoders, out) in decoders.chunks_mut(2).zip(out.chunks_mut(2)) {
        // SAFETY: passed on.
        unsafe {
            match decoders.len() {
                2 => decode::<2, V>(&tables, decoders, out, groups),
                _ => decode::<1, V>(&tables, decoders, out, groups),
            }
        }
    }
}

/// The tables of the decoder.
struct Tables {
    slots: [uint8x16x4_t; 4],
    frequencies: uint8x16x4_t,
    starts: uint8x16x4_t,
    low_values: uint8x16x4_t,
    high_values: uint8x16x4_t,
    /// The index of the escape, or one that does not occur.
    escape: uint8x16_t,
}

impl Tables {
    #[target_feature(enable = "neon")]
    fn new(spec: &Spec, map: &ValueMap) -> Self {
        let (parts, _) = spec.slot_index.as_chunks::<64>();
        Self {
            slots: std::array::from_fn(|part| table(&parts[part])),
            frequencies: table(&spec.frequency),
            starts: table(&spec.start),
            low_values: table(&map.low),
            high_values: table(&map.high),
            escape: vdupq_n_u8(if map.escape { 63 } else { u8::MAX }),
        }
    }

    /// The index of 16 slots.
    #[target_feature(enable = "neon")]
    #[inline]
    fn index(&self, slot: uint8x16_t) -> uint8x16_t {
        let part = |part: u8| {
            let slot = vsubq_u8(slot, vdupq_n_u8(64 * part));
            vqtbl4q_u8(self.slots[usize::from(part)], slot)
        };
        vorrq_u8(vorrq_u8(part(0), part(1)), vorrq_u8(part(2), part(3)))
    }
}

/// The state of a decoder in registers, and where it reads.
struct State {
    low: Lanes,
    high: Lanes,
    stream: *const u8,
    escapes: [*const u8; 2],
    count: usize,
    used: usize,
}

impl State {
    #[target_feature(enable = "neon")]
    fn new(decoder: &Decoder<'_>) -> Self {
        Self {
            low: load(&decoder.low),
            high: load(&decoder.high),
            stream: decoder.stream.as_ptr(),
            escapes: decoder.escapes.padded().map(<[u8]>::as_ptr),
            count: decoder.escapes.count(),
            used: decoder.used,
        }
    }

    /// Decodes a group of 64 values: their low bytes, and if they are wide their high bytes.
    ///
    /// # Safety
    /// The CPU has NEON; the stream has 64 bytes left.
    #[inline(always)]
    unsafe fn step<const WIDE: bool>(&mut self, tables: &Tables) -> [Lanes; 2] {
        // SAFETY: the CPU has NEON; the stream has 64 bytes; `EscapedValues` has 64 bytes from every
        // position up to its count.
        unsafe {
            let index = self.low.map(|slot| tables.index(slot));
            let mut refills = self.low;
            for part in 0..4 {
                let (low, high) = (self.low[part], self.high[part]);
                let frequency = vqtbl4q_u8(tables.frequencies, index[part]);
                let offset = vsubq_u8(low, vqtbl4q_u8(tables.starts, index[part]));
                let first = vmlal_u8(
                    vmovl_u8(vget_low_u8(offset)),
                    vget_low_u8(frequency),
                    vget_low_u8(high),
                );
                let second = vmlal_high_u8(vmovl_high_u8(offset), frequency, high);
                let (first, second) = (vreinterpretq_u8_u16(first), vreinterpretq_u8_u16(second));
                let (next_low, next_high) = (vuzp1q_u8(first, second), vuzp2q_u8(first, second));
                let refill = vceqzq_u8(next_high);
                self.high[part] = vbslq_u8(refill, next_low, next_high);
                self.low[part] = next_low;
                refills[part] = refill;
            }
            let mask = mask_of(refills);
            let counts = counts_up_to(mask);
            self.low = expand(self.low, mask, counts, self.stream);
            self.stream = self.stream.add(usize::from(byte(counts, 7)));

            let mut values = [
                index.map(|index| vqtbl4q_u8(tables.low_values, index)),
                if WIDE {
                    index.map(|index| vqtbl4q_u8(tables.high_values, index))
                } else {
                    index
                },
            ];
            let escaped = index.map(|index| vceqq_u8(index, tables.escape));
            let any = vorrq_u8(
                vorrq_u8(escaped[0], escaped[1]),
                vorrq_u8(escaped[2], escaped[3]),
            );
            if vmaxvq_u8(any) != 0 {
                let mask = mask_of(escaped);
                let counts = counts_up_to(mask);
                let position = self.used.min(self.count);
                for part in 0..=usize::from(WIDE) {
                    let from = self.escapes[part].add(position);
                    values[part] = expand(values[part], mask, counts, from);
                }
                self.used += usize::from(byte(counts, 7));
            }
            values
        }
    }

    /// Stores states and positions.
    #[target_feature(enable = "neon")]
    fn write_back(&self, decoder: &mut Decoder<'_>) {
        store(self.low, &mut decoder.low);
        store(self.high, &mut decoder.high);
        let taken = self.stream.addr() - decoder.stream.as_ptr().addr();
        decoder.stream = &decoder.stream[taken..];
        decoder.used = self.used;
    }
}

/// # Safety
/// As [`decode_groups`], with `K` decoders and outputs.
#[target_feature(enable = "neon")]
unsafe fn decode<const K: usize, V: Value>(
    tables: &Tables,
    decoders: &mut [Decoder<'_>],
    outputs: &mut [&mut [V]],
    groups: usize,
) {
    let mut states: [State; K] = std::array::from_fn(|c| State::new(&decoders[c]));
    let mut out: [*mut u8; K] = std::array::from_fn(|c| outputs[c].as_mut_ptr().cast());
    for _ in 0..groups {
        for c in 0..K {
            // SAFETY: group `g` begins at most `64 g` bytes into a stream of `64 * groups`, and the
            // output has room for `64 * groups` values.
            unsafe {
                if V::WIDE {
                    let [low, high] = states[c].step::<true>(tables);
                    for part in 0..4 {
                        vst2q_u8(out[c].add(32 * part), uint8x16x2_t(low[part], high[part]));
                    }
                } else {
                    let [low, _] = states[c].step::<false>(tables);
                    for (part, low) in low.into_iter().enumerate() {
                        vst1q_u8(out[c].add(16 * part), low);
                    }
                }
                out[c] = out[c].add(LANES * size_of::<V>());
            }
        }
    }
    for (state, decoder) in states.iter().zip(decoders) {
        state.write_back(decoder);
    }
}

/// The tables of the encoder.
struct Divisors {
    frequencies: uint8x16x4_t,
    starts: uint8x16x4_t,
    /// The lowest, middle and highest byte of reciprocals; that of 1 is one too small.
    reciprocals: [uint8x16x4_t; 3],
}

impl Divisors {
    #[target_feature(enable = "neon")]
    fn new(spec: &Spec) -> Self {
        let mut bytes = [[0; MAX_SYMBOLS]; 3];
        for (index, symbol) in spec.symbols.iter().enumerate() {
            let reciprocal = symbol.reciprocal.min((1 << 24) - 1);
            for (byte, bytes) in bytes.iter_mut().enumerate() {
                bytes[index] = (reciprocal >> (8 * byte)) as u8;
            }
        }
        Self {
            frequencies: table(&spec.frequency),
            starts: table(&spec.start),
            reciprocals: [table(&bytes[0]), table(&bytes[1]), table(&bytes[2])],
        }
    }
}

/// See [`crate::simd::Kernels::encode_groups`].
///
/// # Safety
/// The CPU has NEON. All lists of indices have the same length, a multiple of 64, and every encoder has room for as many
/// bytes and 64 more.
#[target_feature(enable = "neon")]
pub(in crate::simd) unsafe fn encode_groups(
    spec: &Spec,
    encoders: &mut [Encoder],
    indices: &[&[u8]],
) {
    let divisors = Divisors::new(spec);
    for (encoders, indices) in encoders.chunks_mut(2).zip(indices.chunks(2)) {
        // SAFETY: passed on.
        unsafe {
            match encoders.len() {
                2 => encode::<2>(&divisors, encoders, indices),
                _ => encode::<1>(&divisors, encoders, indices),
            }
        }
    }
}

/// `x * reciprocal div 2^24` of eight lanes, in the high bytes.
#[target_feature(enable = "neon")]
#[inline]
fn divide(x: uint16x8_t, high: uint16x8_t, low: uint16x8_t) -> uint8x16_t {
    let first = vmull_u16(vget_low_u16(x), vget_low_u16(low));
    let second = vmull_high_u16(x, low);
    let upper = vuzp2q_u16(vreinterpretq_u16_u32(first), vreinterpretq_u16_u32(second));
    vreinterpretq_u8_u16(vmlaq_u16(upper, x, high))
}

/// # Safety
/// As [`encode_groups`], with `K` encoders.
#[target_feature(enable = "neon")]
unsafe fn encode<const K: usize>(divisors: &Divisors, encoders: &mut [Encoder], indices: &[&[u8]]) {
    let mut low: [Lanes; K] = std::array::from_fn(|c| load(&encoders[c].low));
    let mut high: [Lanes; K] = std::array::from_fn(|c| load(&encoders[c].high));
    let mut cursor: [*mut u8; K] = std::array::from_fn(|c| {
        let cursor = encoders[c].cursor;
        encoders[c].room[..cursor].as_mut_ptr_range().end
    });
    let ones = vdupq_n_u8(1);

    for group in (0..indices[0].len() / LANES).rev() {
        for c in 0..K {
            // SAFETY: the list has `64 * (group + 1)` indices at least.
            let index: Lanes = std::array::from_fn(|part| unsafe {
                vld1q_u8(indices[c].as_ptr().add(group * LANES + 16 * part))
            });
            let frequency = index.map(|index| vqtbl4q_u8(divisors.frequencies, index));
            let emits: Lanes = std::array::from_fn(|part| vcgeq_u8(high[c][part], frequency[part]));
            let mask = mask_of(emits);
            let counts = counts_up_to(mask);
            let total = byte(counts, 7);
            for part in (0..4).rev() {
                let (first, second) = (2 * part, 2 * part + 1);
                let shuffle = vcombine_u8(
                    load_eight(&COMPRESS[usize::from(byte(mask, first))]),
                    vadd_u8(
                        load_eight(&COMPRESS[usize::from(byte(mask, second))]),
                        vdup_n_u8(8),
                    ),
                );
                let bytes = vqtbl1q_u8(low[c][part], shuffle);
                // How far before the cursor the bytes of eight lanes end: 56 at most.
                let behind = |k: usize| usize::from(total - byte(counts, k));
                // SAFETY: stores reach at most 64 bytes before the cursor, and a group moves it by at
                // most 64, so that the room for `len` bytes and 64 more holds them. What a store puts
                // in front of its bytes is overwritten by the next.
                unsafe {
                    vst1_u8(cursor[c].sub(behind(second) + 8), vget_high_u8(bytes));
                    vst1_u8(cursor[c].sub(behind(first) + 8), vget_low_u8(bytes));
                }
            }
            // SAFETY: as above.
            cursor[c] = unsafe { cursor[c].sub(usize::from(total)) };

            for part in 0..4 {
                let (index, frequency, emit) = (index[part], frequency[part], emits[part]);
                let x_low = vbslq_u8(emit, high[c][part], low[c][part]);
                let x_high = vbicq_u8(high[c][part], emit);
                let [low_byte, middle_byte, high_byte] = divisors
                    .reciprocals
                    .map(|reciprocals| vqtbl4q_u8(reciprocals, index));
                let first = divide(
                    vreinterpretq_u16_u8(vzip1q_u8(x_low, x_high)),
                    vmovl_u8(vget_low_u8(high_byte)),
                    vreinterpretq_u16_u8(vzip1q_u8(low_byte, middle_byte)),
                );
                let second = divide(
                    vreinterpretq_u16_u8(vzip2q_u8(x_low, x_high)),
                    vmovl_high_u8(high_byte),
                    vreinterpretq_u16_u8(vzip2q_u8(low_byte, middle_byte)),
                );
                // Subtracts -1 where the frequency is 1, whose quotients are one too small.
                let quotient = vsubq_u8(vuzp2q_u8(first, second), vceqq_u8(frequency, ones));
                let start = vqtbl4q_u8(divisors.starts, index);
                // The low byte of `start + x - quotient * frequency`.
                low[c][part] = vmlsq_u8(vaddq_u8(x_low, start), quotient, frequency);
                high[c][part] = quotient;
            }
        }
    }

    for (c, encoder) in encoders.iter_mut().enumerate() {
        store(low[c], &mut encoder.low);
        store(high[c], &mut encoder.high);
        encoder.cursor = cursor[c].addr() - encoder.room.as_ptr().addr();
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn reciprocals_in_two_parts_are_exact() {
        for frequency in 1..=255_u32 {
            let reciprocal = ((1 << 24) / frequency + 1).min((1 << 24) - 1);
            let (high, low) = (reciprocal >> 16, reciprocal & 0xffff);
            for x in frequency..256 * frequency {
                let sum = x * high + (x * low >> 16);
                assert!(sum < 1 << 16);
                assert_eq!((sum >> 8) + u32::from(frequency == 1), x / frequency);
            }
        }
    }
}
