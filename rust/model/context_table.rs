//! The frequency table of one context: neighbouring symbols, and how many of the 256 slots each takes.
//!
//! Symbols here may be as wide as an element, and a table is stored for every context, so that it is
//! written shorter than a [`super::frequency_table::FrequencyTable`]: a base, and what each frequency from
//! there on adds to the one before, in a Golomb-Rice code. A table that is that of the context before takes
//! one byte: contexts whose symbols are scaled alike may well share it.
//!
//! Invariants of every [`ContextTable`], read or built:
//! 1. 1 to 63 listed symbols, no more than the width has;
//! 2. the frequencies and the escape's sum to 256, a symbol without slots has 0;
//! 3. the base is from `-2^(bits-1)` on and below `2^(bits-1)`.
//!
//! Wire form: docs/format.md, "Context table". Paper: R. F. Rice, "Some practical universal noiseless
//! coding techniques" (JPL 79-22, 1979).

use crate::constants::{ESCAPE, SLOTS};
use crate::error::{Error, Result};
use crate::planes::words::low_mask;
use crate::varint::{read_varint, write_varint};

/// See the module documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContextTable {
    /// Width of the symbols, 1 to 64.
    bits: u32,
    /// The symbol of index 0, modulo `2^bits`: symbols are close to zero from either side.
    base: i64,
    /// Slots of the symbols from the base on.
    frequencies: Vec<u16>,
    /// Slots of the escape, 0 without one.
    escape: u16,
}

const ESCAPE_FLAG: u8 = 0x80;
/// Bits of the Rice parameter.
const PARAMETER_BITS: u32 = 3;

/// A little-endian bit string of Golomb-Rice codes being written.
#[derive(Default)]
struct RiceWriter {
    bytes: Vec<u8>,
    /// Bits of the string.
    position: usize,
}

impl RiceWriter {
    /// Appends the low bits of a number.
    fn number(&mut self, number: u32, bits: u32) {
        for bit in 0..bits {
            if self.position.is_multiple_of(8) {
                self.bytes.push(0);
            }
            if let Some(last) = self.bytes.last_mut() {
                *last |= ((number >> bit & 1) as u8) << (self.position % 8);
            }
            self.position += 1;
        }
    }
}

/// The same being read.
struct RiceReader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl RiceReader<'_> {
    fn number(&mut self, bits: u32) -> Option<u32> {
        let mut number = 0;
        for bit in 0..bits {
            let byte = *self.bytes.get(self.position / 8)?;
            number |= u32::from(byte >> (self.position % 8) & 1) << bit;
            self.position += 1;
        }
        Some(number)
    }

    /// A number in the code of this parameter: how often `2^parameter` is in it as ones and a zero, then
    /// its low bits. None past the end, and for more than any frequency needs.
    fn rice(&mut self, parameter: u32) -> Option<u32> {
        let mut high = 0;
        while self.number(1)? == 1 {
            high += 1;
            if high > 2 * SLOTS as u32 {
                return None;
            }
        }
        Some(high << parameter | self.number(parameter)?)
    }

    /// Bytes of the string, whose unused bits must be zero.
    fn end(mut self) -> Result<usize> {
        let len = self.position.div_ceil(8);
        let unused = (len * 8 - self.position) as u32;
        match self.number(unused) {
            Some(0) => Ok(len),
            _ => Err(Error::corrupt("context table: bits after its end")),
        }
    }
}

impl ContextTable {
    /// Checks the invariants.
    pub(crate) fn new(bits: u32, base: i64, frequencies: Vec<u16>, escape: u16) -> Result<Self> {
        let fail = |what: &str| Err(Error::corrupt(format!("context table: {what}")));
        if !(1..=64).contains(&bits) || base << (64 - bits) >> (64 - bits) != base {
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

    /// The same table for symbols of another width.
    pub(crate) fn with_bits(&self, bits: u32) -> Result<Self> {
        Self::new(bits, self.base, self.frequencies.clone(), self.escape)
    }

    /// Reads a table; `before` is that of the context before.
    pub(crate) fn read_from(
        bytes: &[u8],
        position: &mut usize,
        bits: u32,
        before: Option<&Self>,
    ) -> Result<Self> {
        let cut = || Error::corrupt("context table: cut off");
        let head = *bytes.get(*position).ok_or_else(cut)?;
        *position += 1;
        if head == 0 {
            let first = || Error::corrupt("context table: there is none before");
            return before.ok_or_else(first)?.with_bits(bits);
        }
        let zigzag = read_varint(bytes, position)?;
        let base = ((zigzag >> 1) ^ (zigzag & 1).wrapping_neg()).cast_signed();
        let mut code = RiceReader {
            bytes: bytes.get(*position..).unwrap_or_default(),
            position: 0,
        };
        let parameter = code.number(PARAMETER_BITS).ok_or_else(cut)?;
        let (mut before, mut sum) = (0_i32, 0);
        let mut frequencies = Vec::new();
        for _ in 0..head & !ESCAPE_FLAG {
            let step = code.rice(parameter).ok_or_else(cut)?;
            before += (step >> 1).cast_signed() ^ -(step & 1).cast_signed();
            if !(0..=SLOTS as i32).contains(&before) {
                return Err(Error::corrupt("context table: a frequency is out of range"));
            }
            sum += before;
            frequencies.push(before as u16);
        }
        *position += code.end()?;
        let left = SLOTS as i32 - sum;
        let has_escape = head & ESCAPE_FLAG != 0;
        if left < 0 || has_escape != (left > 0) {
            return Err(Error::corrupt(
                "context table: the frequencies do not sum to 256",
            ));
        }
        Self::new(bits, base, frequencies, left as u16)
    }

    /// Writes what [`ContextTable::read_from`] reads.
    pub(crate) fn write_to(&self, out: &mut Vec<u8>, before: Option<&Self>) {
        let shared = before.and_then(|before| before.with_bits(self.bits).ok());
        if shared.as_ref() == Some(self) {
            out.push(0);
            return;
        }
        let flag = if self.has_escape() { ESCAPE_FLAG } else { 0 };
        out.push(self.frequencies.len() as u8 | flag);
        write_varint(out, ((self.base << 1) ^ (self.base >> 63)).cast_unsigned());
        let steps: Vec<u32> = std::iter::once(&0)
            .chain(&self.frequencies)
            .zip(&self.frequencies)
            .map(|(&before, &now)| i32::from(now) - i32::from(before))
            .map(|step| ((step << 1) ^ (step >> 31)).cast_unsigned())
            .collect();
        let size = |parameter: u32| {
            steps
                .iter()
                .map(|step| (step >> parameter) + 1 + parameter)
                .sum()
        };
        let parameter =
            (0..1 << PARAMETER_BITS).min_by_key(|&parameter| -> u32 { size(parameter) });
        let parameter = parameter.unwrap_or(0);
        let mut code = RiceWriter::default();
        code.number(parameter, PARAMETER_BITS);
        for step in steps {
            for _ in 0..step >> parameter {
                code.number(1, 1);
            }
            code.number(0, 1);
            code.number(step, parameter);
        }
        out.append(&mut code.bytes);
    }

    /// The symbol of index 0.
    pub(crate) fn base(&self) -> u64 {
        self.base.cast_unsigned() & low_mask(self.bits)
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
            ContextTable::new(16, -16, vec![100, 0, 100], 56).unwrap(),
            ContextTable::new(64, i64::MIN, vec![256], 0).unwrap(),
            ContextTable::new(10, 300, vec![255], 1).unwrap(),
            ContextTable::new(1, -1, vec![200, 56], 0).unwrap(),
        ]
    }

    #[test]
    fn roundtrip_and_truncation() {
        for table in tables() {
            let mut bytes = Vec::new();
            table.write_to(&mut bytes, None);
            let mut position = 0;
            let back = ContextTable::read_from(&bytes, &mut position, table.bits, None).unwrap();
            assert_eq!((back, position), (table.clone(), bytes.len()));
            for cut in 0..bytes.len() {
                let short = ContextTable::read_from(&bytes[..cut], &mut 0, table.bits, None);
                assert!(short.is_err());
            }
        }
    }

    #[test]
    fn illegal_tables_are_rejected() {
        let illegal = [
            (0, 0, vec![256], 0),
            (65, 0, vec![256], 0),
            (4, 8, vec![256], 0),
            (4, -9, vec![256], 0),
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
    fn the_table_before_takes_a_byte() {
        let [table, ..] = tables();
        let narrow = table.with_bits(5).unwrap();
        let mut bytes = Vec::new();
        narrow.write_to(&mut bytes, Some(&table));
        assert_eq!(bytes, [0]);
        let read = |before| ContextTable::read_from(&bytes, &mut 0, 5, before);
        assert_eq!(read(Some(&table)).unwrap(), narrow);
        assert!(read(None).is_err());
        assert!(table.with_bits(4).is_err());
        assert!(ContextTable::read_from(&bytes, &mut 0, 4, Some(&table)).is_err());
    }

    #[test]
    fn unused_bits_are_zero() {
        let mut bytes = Vec::new();
        tables()[1].write_to(&mut bytes, None);
        *bytes.last_mut().unwrap() |= 0x80;
        assert!(ContextTable::read_from(&bytes, &mut 0, 64, None).is_err());
    }

    #[test]
    fn frequent_symbols_come_first() {
        let order = tables()[0].slot_order();
        assert_eq!(order, [(0, 100), (2, 100), (63, 56)]);
    }
}
