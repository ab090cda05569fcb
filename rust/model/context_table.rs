//! The frequency table of one context: neighbouring symbols, and how many of the 256 slots each takes.
//!
//! Symbols here may be as wide as an element, and a table is stored for every context, so that it is
//! written shorter than a [`super::frequency_table::FrequencyTable`]: a base, and one frequency for each
//! symbol from there on.
//!
//! Invariants of every [`ContextTable`], read or built:
//! 1. 1 to 63 listed symbols, no more than the width has;
//! 2. the frequencies and the escape's sum to 256, a symbol without slots has 0;
//! 3. the base is below `2^bits`.
//!
//! Wire form: docs/format.md, "Delta model".

use crate::constants::{ESCAPE, SLOTS};
use crate::error::{Error, Result};
use crate::planes::words::low_mask;
use crate::varint::{read_varint, write_varint};

/// See the module documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContextTable {
    /// Width of the symbols, 1 to 64.
    bits: u32,
    /// The symbol of index 0.
    base: u64,
    /// Slots of the symbols from the base on.
    frequencies: Vec<u16>,
    /// Slots of the escape, 0 without one.
    escape: u16,
}

const ESCAPE_FLAG: u8 = 0x80;

impl ContextTable {
    /// Checks the invariants.
    pub(crate) fn new(bits: u32, base: u64, frequencies: Vec<u16>, escape: u16) -> Result<Self> {
        let fail = |what: &str| Err(Error::corrupt(format!("context table: {what}")));
        if !(1..=64).contains(&bits) || base > low_mask(bits) {
            return fail("base or width out of range");
        }
        let fits = frequencies.len().saturating_sub(1) as u64 <= low_mask(bits);
        if frequencies.is_empty() || frequencies.len() > usize::from(ESCAPE) || !fits {
            return fail("1 to 63 symbols are possible");
        }
        let sum: usize = frequencies.iter().map(|&f| usize::from(f)).sum();
        if sum + usize::from(escape) != SLOTS {
            return fail("the frequencies do not sum to 256");
        }
        Ok(Self {
            bits,
            base,
            frequencies,
            escape,
        })
    }

    pub(crate) fn read_from(bytes: &[u8], position: &mut usize, bits: u32) -> Result<Self> {
        let cut = || Error::corrupt("context table: cut off");
        let zigzag = read_varint(bytes, position)?;
        let base = (zigzag >> 1) ^ (zigzag & 1).wrapping_neg();
        let mut take = |len: usize| {
            let taken = bytes.get(*position..*position + len).ok_or_else(cut)?;
            *position += len;
            Ok::<_, Error>(taken)
        };
        let head = take(1)?[0];
        let listed = take(usize::from(head & !ESCAPE_FLAG))?;
        let mut frequencies: Vec<u16> = listed.iter().map(|&f| u16::from(f)).collect();
        let escape = if head & ESCAPE_FLAG != 0 {
            let slots = u16::from(take(1)?[0]);
            if slots == 0 {
                return Err(Error::corrupt("context table: the escape has no slot"));
            }
            slots
        } else {
            if let [all @ 0] = frequencies.as_mut_slice() {
                *all = SLOTS as u16;
            }
            0
        };
        if bits < 64 && base.wrapping_add(1 << (bits - 1)) > low_mask(bits) {
            return Err(Error::corrupt("context table: the base is out of range"));
        }
        Self::new(bits, base & low_mask(bits), frequencies, escape)
    }

    pub(crate) fn write_to(&self, out: &mut Vec<u8>) {
        // Symbols are close to zero from either side: the base is written with its sign.
        let unused = 64 - self.bits;
        let base = (self.base << unused).cast_signed() >> unused;
        write_varint(out, ((base << 1) ^ (base >> 63)).cast_unsigned());
        let flag = if self.has_escape() { ESCAPE_FLAG } else { 0 };
        out.push(self.frequencies.len() as u8 | flag);
        // 256 is written as 0: only a table of one symbol has it.
        out.extend(self.frequencies.iter().map(|&f| f as u8));
        if self.has_escape() {
            out.push(self.escape as u8);
        }
    }

    /// The symbol of index 0.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    pub(crate) fn has_escape(&self) -> bool {
        self.escape > 0
    }

    /// Index and frequency of everything that has slots, in slot order: frequent symbols first, which
    /// lose the least precision there, equally frequent ones by index.
    pub(crate) fn slot_order(&self) -> Vec<(u8, u16)> {
        let listed = (0..).zip(self.frequencies.iter().copied());
        let mut entries: Vec<(u8, u16)> = listed.chain([(ESCAPE, self.escape)]).collect();
        entries.retain(|&(_, frequency)| frequency > 0);
        entries.sort_by_key(|&(index, frequency)| (std::cmp::Reverse(frequency), index));
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables() -> [ContextTable; 4] {
        [
            ContextTable::new(16, 0xfff0, vec![100, 0, 100], 56).unwrap(),
            ContextTable::new(64, u64::MAX, vec![256], 0).unwrap(),
            ContextTable::new(10, 300, vec![255], 1).unwrap(),
            ContextTable::new(1, 1, vec![200, 56], 0).unwrap(),
        ]
    }

    #[test]
    fn roundtrip_and_truncation() {
        for table in tables() {
            let mut bytes = Vec::new();
            table.write_to(&mut bytes);
            let mut position = 0;
            let back = ContextTable::read_from(&bytes, &mut position, table.bits).unwrap();
            assert_eq!((back, position), (table.clone(), bytes.len()));
            for cut in 0..bytes.len() {
                let short = ContextTable::read_from(&bytes[..cut], &mut 0, table.bits);
                assert!(short.is_err());
            }
        }
    }

    #[test]
    fn illegal_tables_are_rejected() {
        let illegal = [
            (0, 0, vec![256], 0),
            (65, 0, vec![256], 0),
            (4, 16, vec![256], 0),
            (4, 0, vec![], 256),
            (1, 0, vec![100, 100, 56], 0),
            (8, 0, vec![4; 64], 0),
            (8, 0, vec![255], 0),
            (8, 0, vec![255], 2),
        ];
        for (bits, base, frequencies, escape) in illegal {
            assert!(ContextTable::new(bits, base, frequencies, escape).is_err());
        }
    }

    #[test]
    fn a_base_has_one_spelling() {
        // 8 in four bits is -8.
        let read = |zigzag: u8| ContextTable::read_from(&[zigzag, 1, 0], &mut 0, 4);
        assert!(read(16).is_err());
        assert_eq!(read(15).unwrap().base(), 8);
    }

    #[test]
    fn frequent_symbols_come_first() {
        let order = tables()[0].slot_order();
        assert_eq!(order, [(0, 100), (2, 100), (63, 56)]);
    }
}
