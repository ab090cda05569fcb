//! Decoding a coded plane: the state of its 64 lanes, and the scalar steps, which are the oracle.
//!
//! ```text
//! for i in 0..n:                      # symbol i belongs to lane i mod 64
//!     x = state[i mod 64]; s, f, offset = slots[x mod 256]; symbol[i] = s
//!     x = f * (x / 256) + offset
//!     if x < 256: x = 256 * x + next byte of the stream
//!     state[i mod 64] = x
//! ```
//! The stream must be used up exactly and every state must end at 256, where it began.
//!
//! Deviation: values come out instead of symbols ([`ValueMap`]), escapes already replaced.

use super::spec::{Slot, Spec};
use super::values::{EscapedValues, Value, ValueMap};
use crate::constants::{LANES, SLOTS, STATE_LOW, STATES_BYTES};
use crate::error::{Error, Result};
use crate::simd::Kernels;

/// Decoders that are filled together at most.
pub(crate) const MAX_DECODERS: usize = 4;
/// Groups that are decoded from padded copies where a stream is about to end.
pub(crate) const PADDED_GROUPS: usize = 4;

/// A coded plane being decoded, piece by piece.
#[derive(Clone, Debug)]
pub(crate) struct Decoder<'a> {
    /// Low bytes of the states.
    pub(crate) low: [u8; LANES],
    /// High bytes of the states.
    pub(crate) high: [u8; LANES],
    /// What is left of the stream, and the bytes that follow it in memory: kernels may read on, and
    /// whoever took more than the stream had is found out at the end.
    pub(crate) stream: &'a [u8],
    /// How many of these bytes follow the stream.
    pub(crate) beyond: usize,
    pub(crate) escapes: &'a EscapedValues,
    /// Escapes met so far, which may be more than there are values.
    pub(crate) used: usize,
    /// What the caller reads next: kernels may fetch a line of it with each group.
    pub(crate) ahead: &'a [u8],
}

impl Default for Decoder<'_> {
    fn default() -> Self {
        static NONE: EscapedValues = EscapedValues::none();
        Self {
            low: [0; LANES],
            high: [1; LANES],
            stream: &[],
            beyond: 0,
            escapes: &NONE,
            used: 0,
            ahead: &[],
        }
    }
}

impl<'a> Decoder<'a> {
    /// `stream` may go on for `beyond` bytes that do not belong to the plane.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a state below 256.
    pub(crate) fn new(
        states: &[u8; STATES_BYTES],
        (stream, beyond): (&'a [u8], usize),
        escapes: &'a EscapedValues,
    ) -> Result<Self> {
        let part = |start: usize| std::array::from_fn(|lane| states[start + lane]);
        let (low, high): ([u8; LANES], [u8; LANES]) = (part(0), part(LANES));
        if high.contains(&0) {
            return Err(Error::corrupt("a coder state is out of range"));
        }
        Ok(Self {
            low,
            high,
            stream,
            beyond,
            escapes,
            ..Self::default()
        })
    }

    /// How many groups of 64 values can be decoded whatever bytes they take.
    pub(crate) fn safe_groups(&self) -> usize {
        self.stream.len() / LANES
    }

    /// Decodes the next values of every decoder, at most [`MAX_DECODERS`] of them and as many values
    /// from each; all calls but the last take a multiple of 64.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when a stream is too short.
    pub(crate) fn fill<V: Value>(
        kernels: Kernels,
        (spec, map): (&Spec, &ValueMap),
        decoders: &mut [Self],
        out: &mut [&mut [V]],
    ) -> Result<()> {
        let len = out.first().map_or(0, |out| out.len());
        let groups = len / LANES;
        let mut done = 0;
        while done < groups {
            // A group takes at most 64 bytes: so many need no check.
            let safe = decoders
                .iter()
                .map(Self::safe_groups)
                .min()
                .map_or(0, |safe| safe.min(groups - done));
            let count = if safe > 0 {
                safe
            } else {
                PADDED_GROUPS.min(groups - done)
            };
            let range = done * LANES..(done + count) * LANES;
            let mut now = out.iter_mut().map(|out| &mut out[range.clone()]);
            let mut now: [&mut [V]; MAX_DECODERS] =
                std::array::from_fn(|_| now.next().unwrap_or_default());
            let now = &mut now[..decoders.len()];
            if safe > 0 {
                kernels.decode_groups(spec, map, decoders, now, count);
            } else {
                Self::decode_padded(kernels, (spec, map), decoders, now, count)?;
            }
            done += count;
        }
        decoders.iter_mut().zip(out).try_for_each(|(decoder, out)| {
            decoder.decode_carefully(spec, map, &mut out[groups * LANES..])
        })
    }

    /// Groups that may take more bytes than there are: from padded copies of what is left.
    fn decode_padded<V: Value>(
        kernels: Kernels,
        tables: (&Spec, &ValueMap),
        decoders: &mut [Self],
        out: &mut [&mut [V]],
        groups: usize,
    ) -> Result<()> {
        const PADDED: usize = PADDED_GROUPS * LANES;
        let mut padded = [[0; PADDED]; MAX_DECODERS];
        let mut copies: [Decoder<'_>; MAX_DECODERS] = Default::default();
        for ((copy, padded), decoder) in copies.iter_mut().zip(&mut padded).zip(&*decoders) {
            let left = decoder.stream.len().min(PADDED);
            padded[..left].copy_from_slice(&decoder.stream[..left]);
            *copy = Decoder {
                stream: padded,
                ..*decoder
            };
        }
        let copies = &mut copies[..decoders.len()];
        kernels.decode_groups(tables.0, tables.1, copies, out, groups);
        for (decoder, copy) in decoders.iter_mut().zip(copies) {
            (decoder.low, decoder.high, decoder.used) = (copy.low, copy.high, copy.used);
            decoder.stream = decoder
                .stream
                .get(PADDED - copy.stream.len()..)
                .ok_or_else(|| Error::corrupt("a coded plane ends too early"))?;
        }
        Ok(())
    }

    /// The scalar kernel: whole groups, with bytes to spare in the stream.
    pub(crate) fn decode_groups<V: Value>(&mut self, spec: &Spec, map: &ValueMap, out: &mut [V]) {
        let mut states: [u16; LANES] =
            std::array::from_fn(|lane| u16::from_le_bytes([self.low[lane], self.high[lane]]));
        let mut indices = [0; LANES];
        for group in out.chunks_exact_mut(LANES) {
            let Some(ahead) = self.stream.first_chunk() else {
                break;
            };
            let used = step_group(&spec.slots, &mut states, ahead, &mut indices);
            self.stream = &self.stream[used..];
            for (value, &index) in group.iter_mut().zip(&indices) {
                *value = self.value(map, index);
            }
        }
        for (lane, state) in states.iter().enumerate() {
            [self.low[lane], self.high[lane]] = state.to_le_bytes();
        }
    }

    /// Fewer than 64 values, each step checked.
    fn decode_carefully<V: Value>(
        &mut self,
        spec: &Spec,
        map: &ValueMap,
        out: &mut [V],
    ) -> Result<()> {
        for (lane, value) in out.iter_mut().enumerate() {
            let state = u16::from_le_bytes([self.low[lane], self.high[lane]]);
            let mut index = 0;
            let mut state = step(&spec.slots, state, &mut index);
            if state < STATE_LOW {
                let (&byte, after) = self
                    .stream
                    .split_first()
                    .ok_or_else(|| Error::corrupt("a coded plane ends too early"))?;
                state = state << 8 | u16::from(byte);
                self.stream = after;
            }
            [self.low[lane], self.high[lane]] = state.to_le_bytes();
            *value = self.value(map, index);
        }
        Ok(())
    }

    #[inline]
    fn value<V: Value>(&mut self, map: &ValueMap, index: u8) -> V {
        let [low, high] = if map.is_escape(index) {
            self.used += 1;
            self.escapes.get(self.used - 1)
        } else {
            map.value(index)
        };
        V::from_bytes(low, high)
    }

    /// Checks that everything has been used and every state is back where it began.
    ///
    /// # Errors
    /// [`Error::Corrupt`] otherwise.
    pub(crate) fn finish(&self) -> Result<()> {
        if self.used != self.escapes.count() {
            return Err(Error::corrupt("too few or too many escapes"));
        }
        if self.stream.len() != self.beyond {
            return Err(Error::corrupt("a coded plane does not use its bytes up"));
        }
        let [first_low, first_high] = STATE_LOW.to_le_bytes();
        if self.low != [first_low; LANES] || self.high != [first_high; LANES] {
            return Err(Error::corrupt("a coder state did not return to its start"));
        }
        Ok(())
    }
}

/// One symbol per lane; returns the bytes used of `ahead`.
#[inline]
fn step_group(
    slots: &[Slot; SLOTS],
    states: &mut [u16; LANES],
    ahead: &[u8; LANES],
    group: &mut [u8; LANES],
) -> usize {
    let mut used = 0;
    for (state, index) in states.iter_mut().zip(group) {
        let next = step(slots, *state, index);
        let refill = u16::from(next < STATE_LOW);
        // Branches would be mispredicted every third time. `used` grows at most once per lane; the
        // mask tells the compiler that it stays inside.
        let byte = u16::from(ahead[used & (LANES - 1)]) & refill.wrapping_neg();
        *state = next << (8 * refill) | byte;
        used += usize::from(refill);
    }
    used
}

/// Decodes one symbol; the result is at most `255 * 255 + 254`, so that it fits.
#[inline]
fn step(slots: &[Slot; SLOTS], state: u16, index: &mut u8) -> u16 {
    let slot = slots[usize::from(state as u8)];
    *index = slot.index;
    u16::from(slot.frequency) * (state >> 8) + u16::from(slot.offset)
}
