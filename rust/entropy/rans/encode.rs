//! Encoding a coded plane: the state of its 64 lanes, and the scalar steps, which are the oracle.
//!
//! ```text
//! for i in reversed(0..n):            # symbol i belongs to lane i mod 64
//!     x = state[i mod 64]; f, start = table[symbol[i]]
//!     if x >= 256 * f: emit x mod 256; x = x / 256
//!     state[i mod 64] = 256 * (x / f) + start + x mod f
//! the stream is the emitted bytes in reverse order
//! ```
//! Deviation: division by multiplying with a reciprocal that is exact for 16-bit states (`Spec`).

use super::spec::Spec;
use crate::constants::{LANES, STATE_LOW, STATES_BYTES};
use crate::simd::Kernels;

/// A coded plane being encoded from its end to its beginning.
///
/// Invariant: `cursor <= room.len()`; the stream so far is `room[cursor..]`.
#[derive(Debug)]
pub(crate) struct Encoder {
    /// Low bytes of the states.
    pub(crate) low: [u8; LANES],
    /// High bytes of the states.
    pub(crate) high: [u8; LANES],
    /// Filled from the back.
    pub(crate) room: Vec<u8>,
    pub(crate) cursor: usize,
    /// Address and length of what the caller reads next: kernels may fetch some of it with each group.
    /// Nothing is read through it.
    pub(crate) ahead: (usize, usize),
}

impl Default for Encoder {
    fn default() -> Self {
        Self {
            low: [0; LANES],
            high: [0; LANES],
            room: Vec::new(),
            cursor: 0,
            ahead: (0, 0),
        }
    }
}

impl Encoder {
    /// Encodes a plane with each encoder, all of the same length; every index has a slot in `spec`.
    pub(crate) fn encode(kernels: Kernels, spec: &Spec, encoders: &mut [Self], indices: &[&[u8]]) {
        let len = indices.first().map_or(0, |indices| indices.len());
        let whole = len / LANES * LANES;
        for (encoder, indices) in encoders.iter_mut().zip(indices) {
            encoder.begin(len);
            encoder.push(spec, &indices[whole..]);
        }
        let groups: Vec<&[u8]> = indices.iter().map(|indices| &indices[..whole]).collect();
        kernels.encode_groups(spec, encoders, &groups);
    }

    /// Makes room for `len` symbols, each of which emits at most one byte.
    pub(super) fn begin(&mut self, len: usize) {
        let needed = len + LANES;
        if self.room.len() < needed {
            self.room.resize(needed, 0);
        }
        self.cursor = self.room.len();
        let [low, high] = STATE_LOW.to_le_bytes();
        (self.low, self.high) = ([low; LANES], [high; LANES]);
    }

    /// Whether `len` more symbols fit, with the 64 bytes in front that kernels may write on.
    pub(crate) fn has_room(&self, len: usize) -> bool {
        self.cursor >= len + LANES && self.cursor <= self.room.len()
    }

    /// The stream.
    pub(crate) fn stream(&self) -> &[u8] {
        &self.room[self.cursor..]
    }

    /// The final states as they are stored.
    pub(crate) fn states(&self) -> [u8; STATES_BYTES] {
        std::array::from_fn(|i| {
            if i < LANES {
                self.low[i]
            } else {
                self.high[i - LANES]
            }
        })
    }

    /// The scalar kernel: symbols from the last to the first, which belongs to lane 0.
    pub(crate) fn push(&mut self, spec: &Spec, indices: &[u8]) {
        let mut states: [u16; LANES] =
            std::array::from_fn(|lane| u16::from_le_bytes([self.low[lane], self.high[lane]]));
        let (room, mut cursor) = (&mut self.room, self.cursor);
        let mut lane = indices.len() % LANES;
        for &index in indices.iter().rev() {
            lane = if lane == 0 { LANES - 1 } else { lane - 1 };
            let symbol = spec.symbols[usize::from(index)];
            debug_assert!(symbol.frequency > 0, "symbol {index} has no slot");
            let mut x = u32::from(states[lane]);
            let emit = x >= u32::from(symbol.frequency) << 8;
            // The byte is always written and only kept if it is needed.
            room[cursor - 1] = x as u8;
            cursor -= usize::from(emit);
            x >>= if emit { 8 } else { 0 };
            let quotient = ((u64::from(x) * u64::from(symbol.reciprocal)) >> 24) as u32;
            let remainder = x - quotient * u32::from(symbol.frequency);
            states[lane] = ((quotient << 8) + u32::from(symbol.start) + remainder) as u16;
        }
        self.cursor = cursor;
        for (lane, state) in states.iter().enumerate() {
            [self.low[lane], self.high[lane]] = state.to_le_bytes();
        }
    }
}
