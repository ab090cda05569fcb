//! What every tier must compute, symbol by symbol as docs/format.md says it.

use crate::constants::{ESCAPE, LANES, STATE_LOW};

/// A frequency table as it is stored: indices and frequencies in the order of their slots.
pub(super) type Entries = Vec<(u8, u8)>;

/// Frequency and first slot of an index.
fn slots_of(entries: &[(u8, u8)], index: u8) -> (u32, u32) {
    let mut first = 0;
    for &(other, frequency) in entries {
        if other == index {
            return (u32::from(frequency), first);
        }
        first += u32::from(frequency);
    }
    panic!("index {index} has no slot");
}

/// The index of each of the 256 slots.
fn slot_indices(entries: &[(u8, u8)]) -> Vec<u8> {
    let slots = |&(index, frequency)| std::iter::repeat_n(index, usize::from(frequency));
    entries.iter().flat_map(slots).collect()
}

/// Decodes `count` indices; returns them and the number of bytes taken from the stream.
pub(super) fn decode(
    entries: &[(u8, u8)],
    states: &mut [u16; LANES],
    stream: &[u8],
    count: usize,
) -> (Vec<u8>, usize) {
    let slots = slot_indices(entries);
    let mut used = 0;
    let indices = (0..count)
        .map(|i| {
            let state = &mut states[i % LANES];
            let slot = u32::from(*state % 256);
            let index = slots[slot as usize];
            let (frequency, first) = slots_of(entries, index);
            let mut next = frequency * u32::from(*state / 256) + slot - first;
            if next < u32::from(STATE_LOW) {
                next = 256 * next + u32::from(stream[used]);
                used += 1;
            }
            *state = u16::try_from(next).unwrap();
            index
        })
        .collect();
    (indices, used)
}

/// The values of indices; escapes take the escaped values in turn and 0 when there are no more.
pub(super) fn values(
    indices: &[u8],
    values: &[u16; 64],
    escape: bool,
    escaped: &[u16],
    used: &mut usize,
) -> Vec<u16> {
    let mut value = |&index: &u8| {
        if escape && index == ESCAPE {
            *used += 1;
            escaped.get(*used - 1).copied().unwrap_or(0)
        } else {
            values[usize::from(index)]
        }
    };
    indices.iter().map(&mut value).collect()
}

/// Encodes indices, whose first one belongs to lane 0; returns the bytes in the order of the stream.
pub(super) fn encode(entries: &[(u8, u8)], states: &mut [u16; LANES], indices: &[u8]) -> Vec<u8> {
    let mut emitted = Vec::new();
    for (i, &index) in indices.iter().enumerate().rev() {
        let state = &mut states[i % LANES];
        let (frequency, first) = slots_of(entries, index);
        let mut x = u32::from(*state);
        if x >= 256 * frequency {
            emitted.push((x % 256) as u8);
            x /= 256;
        }
        *state = u16::try_from(256 * (x / frequency) + first + x % frequency).unwrap();
    }
    emitted.reverse();
    emitted
}

/// Fields of `width` bits of a little-endian bit string.
pub(super) fn unpack(packed: &[u8], width: u32, count: usize) -> Vec<u8> {
    let bit = |at: usize| packed[at / 8] >> (at % 8) & 1;
    let width = width as usize;
    (0..count)
        .map(|i| (0..width).fold(0, |field, j| field | bit(i * width + j) << j))
        .collect()
}

/// The bit string of the low `width` bits of every field.
pub(super) fn pack(fields: &[u8], width: u32) -> Vec<u8> {
    let width = width as usize;
    let mut packed = vec![0; (fields.len() * width).div_ceil(8)];
    for (i, field) in fields.iter().enumerate() {
        for j in 0..width {
            let at = i * width + j;
            packed[at / 8] |= (field >> j & 1) << (at % 8);
        }
    }
    packed
}

/// The chunk hash.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let (mut products, mut sum) = (0_u64, bytes.len() as u64);
    for (i, word) in bytes.chunks(8).enumerate() {
        let mut padded = [0; 8];
        padded[..word.len()].copy_from_slice(word);
        let (word, i) = (u64::from_le_bytes(padded), i as u64);
        let modulo = |sum: u64| sum & 0xffff_ffff;
        let a = modulo((word & 0xffff_ffff) + 0x9e37_79b9 + modulo(i * 0xc2b2_ae35));
        let b = modulo((word >> 32) + 0x85eb_ca6b + modulo(i * 0x27d4_eb2f));
        products = products.wrapping_add(a * b);
        sum = sum.wrapping_add(a).wrapping_add(b << 32);
    }
    products.wrapping_add(sum.wrapping_mul(0x9fb2_1c64_1e98_df25))
}
