//! Scalar encoder: the oracle for every other tier.
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

/// Appends the byte stream of `indices` to `out` and returns the final states.
///
/// Every index must have a slot in `spec`.
pub(crate) fn encode(spec: &Spec, indices: &[u8], out: &mut Vec<u8>) -> [u8; STATES_BYTES] {
    let mut states = [STATE_LOW; LANES];
    let begin = out.len();
    // A symbol emits at most one byte: fill from the back of that much room. The byte is always
    // written and only kept if it is needed, hence one byte more.
    out.resize(begin + indices.len() + 1, 0);
    let room = &mut out[begin..];
    let mut cursor = room.len();
    let mut lane = indices.len() % LANES;
    for &index in indices.iter().rev() {
        lane = if lane == 0 { LANES - 1 } else { lane - 1 };
        let symbol = spec.symbols[usize::from(index)];
        debug_assert!(symbol.frequency > 0, "symbol {index} has no slot");
        let mut x = u32::from(states[lane]);
        let emit = x >= u32::from(symbol.frequency) << 8;
        room[cursor - 1] = x as u8;
        cursor -= usize::from(emit);
        x >>= if emit { 8 } else { 0 };
        let quotient = ((u64::from(x) * u64::from(symbol.reciprocal)) >> 24) as u32;
        let remainder = x - quotient * u32::from(symbol.frequency);
        states[lane] = ((quotient << 8) + u32::from(symbol.start) + remainder) as u16;
    }
    room.copy_within(cursor.., 0);
    out.truncate(out.len() - cursor);

    let mut bytes = [0; STATES_BYTES];
    for (lane, state) in states.iter().enumerate() {
        [bytes[lane], bytes[LANES + lane]] = state.to_le_bytes();
    }
    bytes
}
