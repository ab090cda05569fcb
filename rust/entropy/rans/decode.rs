//! Scalar decoder: the oracle for every other tier.
//!
//! ```text
//! for i in 0..n:                      # symbol i belongs to lane i mod 64
//!     x = state[i mod 64]; s, f, offset = slots[x mod 256]; symbol[i] = s
//!     x = f * (x / 256) + offset
//!     if x < 256: x = 256 * x + next byte of the stream
//!     state[i mod 64] = x
//! ```
//! The stream must be used up exactly and every state must end at 256, where it began.

use super::spec::{Slot, Spec};
use crate::constants::{LANES, SLOTS, STATE_LOW, STATES_BYTES};
use crate::error::{Error, Result};

/// A coded plane being decoded, piece by piece.
pub(crate) struct Decoder<'a> {
    slots: &'a [Slot; SLOTS],
    states: [u16; LANES],
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// # Errors
    /// [`Error::Corrupt`] for a state below 256.
    pub(crate) fn new(
        spec: &'a Spec,
        states: &[u8; STATES_BYTES],
        stream: &'a [u8],
    ) -> Result<Self> {
        let states =
            std::array::from_fn(|lane| u16::from_le_bytes([states[lane], states[LANES + lane]]));
        if states.iter().any(|&state| state < STATE_LOW) {
            return Err(Error::corrupt("a coder state is out of range"));
        }
        Ok(Self {
            slots: &spec.slots,
            states,
            rest: stream,
        })
    }

    /// Decodes the next symbols; all calls but the last take a multiple of 64.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the stream is too short.
    pub(crate) fn fill(&mut self, indices: &mut [u8]) -> Result<()> {
        for group in indices.chunks_mut(LANES) {
            // Whole groups with bytes to spare need no check per symbol.
            match (
                self.rest.first_chunk::<LANES>(),
                group.first_chunk_mut::<LANES>(),
            ) {
                (Some(ahead), Some(group)) => {
                    let used = step_group(self.slots, &mut self.states, ahead, group);
                    self.rest = &self.rest[used..];
                }
                _ => self.fill_carefully(group)?,
            }
        }
        Ok(())
    }

    fn fill_carefully(&mut self, group: &mut [u8]) -> Result<()> {
        for (state, index) in self.states.iter_mut().zip(group) {
            *state = step(self.slots, *state, index);
            if *state < STATE_LOW {
                let (&byte, after) = self
                    .rest
                    .split_first()
                    .ok_or_else(|| Error::corrupt("a coded plane ends too early"))?;
                *state = *state << 8 | u16::from(byte);
                self.rest = after;
            }
        }
        Ok(())
    }

    /// Checks that everything has been used and every state is back where it began.
    ///
    /// # Errors
    /// [`Error::Corrupt`] otherwise.
    pub(crate) fn finish(self) -> Result<()> {
        if !self.rest.is_empty() {
            return Err(Error::corrupt("a coded plane has bytes left over"));
        }
        if self.states.iter().any(|&state| state != STATE_LOW) {
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
