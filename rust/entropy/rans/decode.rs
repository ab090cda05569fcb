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

use super::spec::Spec;
use crate::constants::{LANES, STATE_LOW, STATES_BYTES};
use crate::error::{Error, Result};

/// Fills `indices` from `stream`.
///
/// # Errors
/// [`Error::Corrupt`] for states below 256, a stream too short or too long, or states that do not
/// end where the encoder began.
pub(crate) fn decode(
    spec: &Spec,
    states: &[u8; STATES_BYTES],
    stream: &[u8],
    indices: &mut [u8],
) -> Result<()> {
    let mut x: [u16; LANES] =
        std::array::from_fn(|lane| u16::from_le_bytes([states[lane], states[LANES + lane]]));
    if x.iter().any(|&state| state < STATE_LOW) {
        return Err(Error::corrupt("a coder state is out of range"));
    }
    let mut rest = stream;
    for group in indices.chunks_mut(LANES) {
        // Whole groups with bytes to spare need no check per symbol.
        if let Some((ahead, _)) = rest.split_first_chunk::<LANES>() {
            let mut used = 0;
            for (state, index) in x.iter_mut().zip(group) {
                let next = step(spec, *state, index);
                let refill = next < STATE_LOW;
                *state = if refill { next << 8 | u16::from(ahead[used]) } else { next };
                used += usize::from(refill);
            }
            rest = &rest[used..];
        } else {
            for (state, index) in x.iter_mut().zip(group) {
                *state = step(spec, *state, index);
                if *state < STATE_LOW {
                    let (&byte, after) = rest
                        .split_first()
                        .ok_or_else(|| Error::corrupt("a coded plane ends too early"))?;
                    *state = *state << 8 | u16::from(byte);
                    rest = after;
                }
            }
        }
    }
    if !rest.is_empty() {
        return Err(Error::corrupt("a coded plane has bytes left over"));
    }
    if x.iter().any(|&state| state != STATE_LOW) {
        return Err(Error::corrupt("a coder state did not return to its start"));
    }
    Ok(())
}

/// Decodes one symbol; the result is at most `255 * 255 + 254`, so that it fits.
#[inline]
fn step(spec: &Spec, state: u16, index: &mut u8) -> u16 {
    let slot = spec.slots[usize::from(state as u8)];
    *index = slot.index;
    u16::from(slot.frequency) * (state >> 8) + u16::from(slot.offset)
}
