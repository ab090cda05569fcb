//! The tables of the "r8" coder, built once from a validated frequency table.
//!
//! rANS with 256 slots, 16-bit states in `[256, 65536)` and byte renormalisation: a symbol moves
//! at most one byte, so that 64 lanes can share one byte stream. Place in docs/format.md: "Coded
//! plane". After J. Duda (arXiv 1311.2540) and F. Giesen's interleaved rANS (arXiv 1402.3392).
//!
//! Invariants, which the kernels rely on:
//! 1. every entry of `slot_index` is below 64 and has a frequency;
//! 2. frequencies are 1 to 255, or 0 for an index without a slot, and sum to 256;
//! 3. slot `s` of index `i` satisfies `start[i] <= s < start[i] + frequency[i]`.

use crate::constants::{MAX_SYMBOLS, SLOTS};

/// What the scalar decoder looks up for a slot.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(4))]
pub(crate) struct Slot {
    pub(crate) index: u8,
    pub(crate) frequency: u8,
    /// Slot number less the first slot of the symbol.
    pub(crate) offset: u8,
}

/// What the scalar encoder looks up for an index.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Symbol {
    /// Slots of the symbol, 0 if it has none.
    pub(crate) frequency: u16,
    /// First slot of the symbol.
    pub(crate) start: u16,
    /// `floor(2^24 / frequency) + 1`: `x * reciprocal >> 24` is `x / frequency` for all 16-bit `x`.
    pub(crate) reciprocal: u32,
}

/// The tables of encoder and decoder, in the forms that scalar code and vectors look them up in.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(crate) struct Spec {
    pub(crate) slot_index: [u8; SLOTS],
    pub(crate) frequency: [u8; MAX_SYMBOLS],
    pub(crate) start: [u8; MAX_SYMBOLS],
    pub(crate) slots: [Slot; SLOTS],
    pub(crate) symbols: [Symbol; MAX_SYMBOLS],
    /// What AVX2 makes of them when it first needs it.
    #[cfg(target_arch = "x86_64")]
    buckets: std::sync::OnceLock<crate::simd::Buckets>,
}

impl Spec {
    /// Gives out slots in the order of `entries`.
    ///
    /// The caller guarantees distinct indices below 64 and frequencies of 1 to 255 that sum to 256
    /// (`FrequencyTable`, invariants 1 and 2).
    pub(crate) fn new(entries: impl Iterator<Item = (u8, u8)>) -> Self {
        let mut spec = Self {
            slot_index: [0; SLOTS],
            frequency: [0; MAX_SYMBOLS],
            start: [0; MAX_SYMBOLS],
            slots: [Slot::default(); SLOTS],
            symbols: [Symbol::default(); MAX_SYMBOLS],
            #[cfg(target_arch = "x86_64")]
            buckets: std::sync::OnceLock::new(),
        };
        let mut start = 0_usize;
        for (index, frequency) in entries {
            let end = start + usize::from(frequency);
            for (offset, slot) in spec.slots[start..end].iter_mut().enumerate() {
                *slot = Slot {
                    index,
                    frequency,
                    offset: offset as u8,
                };
            }
            spec.slot_index[start..end].fill(index);
            let symbol = usize::from(index);
            spec.frequency[symbol] = frequency;
            spec.start[symbol] = start as u8;
            spec.symbols[symbol] = Symbol {
                frequency: u16::from(frequency),
                start: start as u16,
                reciprocal: (1 << 24) / u32::from(frequency) + 1,
            };
            start = end;
        }
        debug_assert_eq!(start, SLOTS);
        spec
    }

    /// Slots in buckets, made by the first call.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn buckets(&self) -> &crate::simd::Buckets {
        self.buckets
            .get_or_init(|| crate::simd::Buckets::new(&self.slot_index, &self.frequency))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn reciprocals_are_exact() {
        for frequency in 1..=255_u64 {
            let reciprocal = (1 << 24) / frequency + 1;
            for x in 0..1 << 16_u64 {
                assert_eq!((x * reciprocal) >> 24, x / frequency);
            }
        }
    }
}
