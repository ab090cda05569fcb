//! Slots in 16 buckets of 16: how AVX2 finds the entry of a slot.
//!
//! Entries are numbered in slot order. The entry of a slot is the first one of its bucket, plus one for
//! each *cut* of the bucket at or below the slot: a compare and a subtraction for each cut that a bucket
//! may have. Buckets with more cuts than that are *dense*: one shuffle and one blend each.
//!
//! Encoders give the low slots to large frequencies, so that all but the last two or three buckets
//! have a cut or two. Any other legal table is looked up block by block, 16 shuffles for each slot.

use crate::constants::{MAX_SYMBOLS, SLOTS};

/// Marks a bucket as dense, in a table that is looked up by bucket.
const DENSE: u8 = 0x80;
/// A cut that no slot reaches.
const NO_CUT: u8 = 0x7f;

/// How many cuts and dense buckets a table has, and its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Two cuts, one dense bucket, 16 entries with frequencies below 128.
    Small,
    /// One cut, two dense buckets, 32 entries with frequencies below 128.
    Medium,
    /// Two cuts, three dense buckets, 64 entries.
    Large,
    /// Everything else.
    Any,
}

/// The lookups of one table of slots.
#[derive(Clone, Debug)]
#[repr(align(16))]
pub(crate) struct Buckets {
    pub(super) shape: Shape,
    pub(super) entries: usize,
    /// Index, frequency and first slot of each entry.
    pub(super) index: [u8; MAX_SYMBOLS],
    pub(super) frequency: [u8; MAX_SYMBOLS],
    pub(super) start: [u8; MAX_SYMBOLS],
    /// First entry of each bucket; [`DENSE`] sends to `dense[0]`.
    pub(super) first: [u8; 16],
    /// One less than the place of the bucket's cuts within it, or [`NO_CUT`]; [`DENSE`] in `cuts[i]`
    /// sends to `dense[i + 1]`.
    pub(super) cuts: [[u8; 16]; 2],
    pub(super) dense: [[u8; 16]; 3],
}

impl Buckets {
    /// The buckets of a table of slots, each run of which belongs to an index of its own.
    pub(crate) fn new(slot_index: &[u8; SLOTS], frequency: &[u8; MAX_SYMBOLS]) -> Self {
        let mut buckets = Self {
            shape: Shape::Any,
            entries: 0,
            index: [0; MAX_SYMBOLS],
            frequency: [0; MAX_SYMBOLS],
            start: [0; MAX_SYMBOLS],
            first: [0; 16],
            cuts: [[NO_CUT; 16]; 2],
            dense: [[0; 16]; 3],
        };
        let mut slot_entry = [0; SLOTS];
        let mut counts = [0_u8; 16];
        let (mut start, mut entries) = (0, 0);
        while start < SLOTS && entries < MAX_SYMBOLS {
            let index = slot_index[start];
            let frequency = frequency[usize::from(index)];
            buckets.index[entries] = index;
            buckets.frequency[entries] = frequency;
            buckets.start[entries] = start as u8;
            let end = SLOTS.min(start + usize::from(frequency.max(1)));
            slot_entry[start..end].fill(entries as u8);
            let (bucket, place) = (start / 16, start % 16);
            if place > 0 {
                if let Some(cuts) = buckets.cuts.get_mut(usize::from(counts[bucket])) {
                    cuts[bucket] = place as u8 - 1;
                }
                counts[bucket] += 1;
            }
            (start, entries) = (end, entries + 1);
        }
        buckets.entries = entries;
        let dense = |cuts| counts.iter().filter(|&&count| count > cuts).count();
        let flat = frequency.iter().all(|&frequency| frequency < 128);
        buckets.shape = match (entries, dense(1), dense(2)) {
            (..=16, _, ..=1) if flat => Shape::Small,
            (..=32, ..=2, _) if flat => Shape::Medium,
            (_, _, ..=3) => Shape::Large,
            _ => return buckets,
        };
        let cuts = if buckets.shape == Shape::Medium { 1 } else { 2 };
        let mut number = 0;
        for (bucket, slots) in slot_entry.as_chunks::<16>().0.iter().enumerate() {
            buckets.first[bucket] = slots[0];
            if counts[bucket] > cuts {
                buckets.dense[number] = *slots;
                match number {
                    0 => buckets.first[bucket] |= DENSE,
                    _ => buckets.cuts[number - 1][bucket] |= DENSE,
                }
                number += 1;
            }
        }
        buckets
    }
}
