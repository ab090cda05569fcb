//! A frequency table: which symbols a coded plane has, and how many of the 256 slots each takes.
//!
//! Invariants of every [`FrequencyTable`], read or built:
//! 1. 2 to 64 entries with distinct indices below 64 and frequencies of 1 to 255;
//! 2. the frequencies sum to 256;
//! 3. with an escape, index 63 is the escape and is present;
//! 4. `base < 2^bits`, and every other index is below `2^bits`.
//!
//! An index stands for the symbol `(base + index) mod 2^bits`; slots are given out in entry order.
//! Wire form: docs/format.md, "Frequency table". Paper: ZipNN (arXiv 2411.05239), section 3
//! (exponents are skewed); the 256-slot form is our own.

use crate::constants::{ESCAPE, MAX_CODED_BITS, MAX_SYMBOLS, SLOTS};
use crate::error::{Error, Result};
use crate::varint::{read_varint, write_varint};

/// One symbol of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Symbol relative to the table's base, or [`ESCAPE`].
    pub(crate) index: u8,
    /// Slots out of 256.
    pub(crate) frequency: u8,
}

/// See the module documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FrequencyTable {
    bits: u32,
    base: u16,
    escape: bool,
    entries: Vec<Entry>,
}

const ESCAPE_FLAG: u8 = 0x80;

impl FrequencyTable {
    /// Checks the invariants.
    pub(crate) fn new(bits: u32, base: u64, escape: bool, entries: Vec<Entry>) -> Result<Self> {
        let fail = |what: &str| Err(Error::corrupt(format!("frequency table: {what}")));
        if !(1..=MAX_CODED_BITS).contains(&bits) || base >> bits != 0 {
            return fail("base or width out of range");
        }
        if !(2..=MAX_SYMBOLS).contains(&entries.len()) {
            return fail("2 to 64 symbols are possible");
        }
        let mut seen = 0_u64;
        let mut sum = 0;
        for entry in &entries {
            let is_escape = escape && entry.index == ESCAPE;
            if entry.index as usize >= MAX_SYMBOLS
                || seen >> entry.index & 1 == 1
                || (!is_escape && u64::from(entry.index) >> bits != 0)
            {
                return fail("a symbol is out of range or listed twice");
            }
            if entry.frequency == 0 {
                return fail("a frequency is zero");
            }
            seen |= 1 << entry.index;
            sum += usize::from(entry.frequency);
        }
        if sum != SLOTS {
            return fail("the frequencies do not sum to 256");
        }
        if escape && seen >> ESCAPE & 1 == 0 {
            return fail("the escape has no slot");
        }
        Ok(Self {
            bits,
            base: base as u16,
            escape,
            entries,
        })
    }

    pub(crate) fn read_from(bytes: &[u8], position: &mut usize, bits: u32) -> Result<Self> {
        let base = read_varint(bytes, position)?;
        let cut = || Error::corrupt("frequency table: cut off");
        let head = *bytes.get(*position).ok_or_else(cut)?;
        let count = usize::from(head & !ESCAPE_FLAG);
        let start = *position + 1;
        let listed = bytes.get(start..start + 2 * count).ok_or_else(cut)?;
        *position = start + 2 * count;
        let entries = listed
            .chunks_exact(2)
            .map(|pair| Entry {
                index: pair[0],
                frequency: pair[1],
            })
            .collect();
        Self::new(bits, base, head & ESCAPE_FLAG != 0, entries)
    }

    pub(crate) fn write_to(&self, out: &mut Vec<u8>) {
        write_varint(out, u64::from(self.base));
        let flag = if self.escape { ESCAPE_FLAG } else { 0 };
        out.push(self.entries.len() as u8 | flag);
        out.extend(
            self.entries
                .iter()
                .flat_map(|entry| [entry.index, entry.frequency]),
        );
    }

    /// Width of the plane's symbols.
    pub(crate) fn bits(&self) -> u32 {
        self.bits
    }

    /// Whether rare symbols are coded as the escape, their values in a side stream.
    pub(crate) fn has_escape(&self) -> bool {
        self.escape
    }

    /// Symbols in slot order.
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The symbol an index stands for.
    pub(crate) fn symbol(&self, index: u8) -> u16 {
        (u32::from(self.base) + u32::from(index)) as u16 & self.mask()
    }

    fn mask(&self) -> u16 {
        (u32::MAX >> (32 - self.bits)) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(list: &[(u8, u8)]) -> Vec<Entry> {
        list.iter()
            .map(|&(index, frequency)| Entry { index, frequency })
            .collect()
    }

    #[test]
    fn roundtrip_and_truncation() {
        let table =
            FrequencyTable::new(9, 300, true, entries(&[(3, 200), (0, 50), (63, 6)])).unwrap();
        let mut bytes = Vec::new();
        table.write_to(&mut bytes);
        let mut position = 0;
        assert_eq!(
            FrequencyTable::read_from(&bytes, &mut position, 9).unwrap(),
            table
        );
        assert_eq!(position, bytes.len());
        for cut in 0..bytes.len() {
            assert!(FrequencyTable::read_from(&bytes[..cut], &mut 0, 9).is_err());
        }
    }

    #[test]
    fn illegal_tables_are_rejected() {
        type Case = (u32, u64, bool, &'static [(u8, u8)]);
        let illegal: [Case; 9] = [
            (8, 0, false, &[(0, 255)]),
            (8, 0, false, &[(0, 200), (1, 55)]),
            (8, 0, false, &[(0, 200), (0, 56)]),
            (8, 0, false, &[(0, 200), (1, 56), (2, 0)]),
            (8, 0, false, &[(64, 200), (1, 56)]),
            (8, 0, true, &[(0, 200), (1, 56)]),
            (8, 256, false, &[(0, 200), (1, 56)]),
            (2, 0, false, &[(4, 200), (1, 56)]),
            (17, 0, false, &[(4, 200), (1, 56)]),
        ];
        for (bits, base, escape, list) in illegal {
            assert!(
                FrequencyTable::new(bits, base, escape, entries(list)).is_err(),
                "{list:?}"
            );
        }
    }

    #[test]
    fn the_window_wraps() {
        let table = FrequencyTable::new(8, 250, false, entries(&[(0, 128), (10, 128)])).unwrap();
        assert_eq!(table.symbol(10), 4);
    }
}
