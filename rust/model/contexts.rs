//! A coded plane with several tables: which one an element takes depends on what is known before its
//! symbol is, the context.
//!
//! All tables of a plane list the same symbols, so that an index means the same in every context and
//! only slots differ. Invariants of every [`ContextTables`], read or built:
//! 1. 1 to [`MAX_CONTEXTS`] tables of the same 2 to 64 indices, at most 63 and the escape if there is one;
//! 2. the frequencies of a table are at most 255 and sum to 256, so that two of them are not 0;
//! 3. `base < 2^bits`, and every index but the escape's is below `2^bits`.
//!
//! That a source is an earlier coded plane is checked by the model. Wire form: docs/format.md, "Context
//! tables".

use crate::constants::{ESCAPE, MAX_CODED_BITS, MAX_CONTEXTS, MAX_SYMBOLS, SLOTS};
use crate::error::{Error, Result};
use crate::varint::{read_varint, write_varint};

/// Where the contexts of a plane come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContextSource {
    /// The classes of the element's row and column, added.
    Lines,
    /// The symbol of an earlier coded plane: how far it is above `first`, cut to the contexts there are.
    Plane { plane: u8, first: u16 },
}

/// See the module documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContextTables {
    bits: u32,
    base: u16,
    escape: bool,
    source: ContextSource,
    /// One table per context: slots of index 0 and so on, the escape's at the end.
    frequencies: Vec<Vec<u8>>,
}

const LINES: u8 = 0;
const FIRST_PLANE: u8 = 1;
const ESCAPE_FLAG: u8 = 0x80;

impl ContextTables {
    /// Checks the invariants.
    pub(crate) fn new(
        (bits, base, escape): (u32, u64, bool),
        source: ContextSource,
        frequencies: Vec<Vec<u8>>,
    ) -> Result<Self> {
        let fail = |what: &str| Err(Error::corrupt(format!("context tables: {what}")));
        if !(1..=MAX_CODED_BITS).contains(&bits) || base >> bits != 0 {
            return fail("base or width out of range");
        }
        let listed = frequencies.first().map_or(0, Vec::len);
        if !(1..=MAX_CONTEXTS).contains(&frequencies.len()) {
            return fail("1 to 16 contexts are possible");
        }
        let ordinary = listed - usize::from(escape && listed > 0);
        if !(2..=MAX_SYMBOLS).contains(&listed) || ordinary > 1 << bits {
            return fail("2 to 64 symbols are possible");
        }
        for table in &frequencies {
            let sum: usize = table.iter().map(|&f| usize::from(f)).sum();
            if table.len() != listed || sum != SLOTS {
                return fail("the frequencies do not sum to 256");
            }
        }
        Ok(Self {
            bits,
            base: base as u16,
            escape,
            source,
            frequencies,
        })
    }

    pub(crate) fn read_from(bytes: &[u8], position: &mut usize, bits: u32) -> Result<Self> {
        let cut = || Error::corrupt("context tables: cut off");
        let byte = |position: &mut usize| {
            let byte = bytes.get(*position).copied();
            *position += 1;
            byte.ok_or_else(cut)
        };
        let source = match byte(position)? {
            LINES => ContextSource::Lines,
            plane => {
                let first = read_varint(bytes, position)?;
                ContextSource::Plane {
                    plane: plane - FIRST_PLANE,
                    first: u16::try_from(first)
                        .map_err(|_| Error::corrupt("context tables: out of range"))?,
                }
            }
        };
        let count = usize::from(byte(position)?);
        let base = read_varint(bytes, position)?;
        let head = byte(position)?;
        let listed = usize::from(head & !ESCAPE_FLAG);
        let end = *position + count * listed;
        let tables = bytes.get(*position..end).ok_or_else(cut)?;
        *position = end;
        let frequencies = tables.chunks_exact(listed.max(1)).map(<[u8]>::to_vec);
        let escape = head & ESCAPE_FLAG != 0;
        Self::new((bits, base, escape), source, frequencies.collect())
    }

    pub(crate) fn write_to(&self, out: &mut Vec<u8>) {
        match self.source {
            ContextSource::Lines => out.push(LINES),
            ContextSource::Plane { plane, first } => {
                out.push(plane + FIRST_PLANE);
                write_varint(out, u64::from(first));
            }
        }
        out.push(self.frequencies.len() as u8);
        write_varint(out, u64::from(self.base));
        let flag = if self.escape { ESCAPE_FLAG } else { 0 };
        out.push(self.frequencies[0].len() as u8 | flag);
        self.frequencies
            .iter()
            .for_each(|table| out.extend_from_slice(table));
    }

    /// Width of the plane's symbols.
    pub(crate) fn bits(&self) -> u32 {
        self.bits
    }

    /// Whether symbols that are not listed are coded as the escape, their values in a side stream.
    pub(crate) fn has_escape(&self) -> bool {
        self.escape
    }

    pub(crate) fn source(&self) -> ContextSource {
        self.source
    }

    /// Number of contexts.
    pub(crate) fn contexts(&self) -> usize {
        self.frequencies.len()
    }

    /// The symbol an index stands for.
    pub(crate) fn symbol(&self, index: u8) -> u16 {
        self.base.wrapping_add(u16::from(index)) & self.mask()
    }

    /// The bits of a symbol.
    pub(crate) fn mask(&self) -> u16 {
        (u32::MAX >> (32 - self.bits)) as u16
    }

    /// The indices of every table, and their slots; 0 for what the context cannot represent.
    pub(crate) fn tables(&self) -> impl Iterator<Item = impl Iterator<Item = (u8, u8)>> {
        self.frequencies.iter().map(move |table| {
            let last = table.len() - 1;
            table.iter().enumerate().map(move |(index, &frequency)| {
                let is_escape = self.escape && index == last;
                (if is_escape { ESCAPE } else { index as u8 }, frequency)
            })
        })
    }

    /// Index and slots of everything in the table of one context, in slot order: frequent symbols first,
    /// which lose the least precision there, equally frequent ones by index.
    pub(crate) fn slot_orders(&self) -> impl Iterator<Item = Vec<(u8, u16)>> {
        self.tables().map(|table| {
            let mut entries: Vec<(u8, u16)> = table
                .filter(|&(_, frequency)| frequency > 0)
                .map(|(index, frequency)| (index, u16::from(frequency)))
                .collect();
            entries.sort_by_key(|&(index, frequency)| (std::cmp::Reverse(frequency), index));
            entries
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables() -> [ContextTables; 3] {
        let source = ContextSource::Plane {
            plane: 0,
            first: 120,
        };
        let even = vec![64; 4];
        [
            ContextTables::new(
                (2, 0, false),
                source,
                vec![even.clone(), vec![255, 0, 0, 1]],
            )
            .unwrap(),
            ContextTables::new(
                (8, 250, true),
                ContextSource::Lines,
                vec![vec![100, 100, 56]; 16],
            )
            .unwrap(),
            ContextTables::new((2, 3, true), source, vec![vec![50, 50, 50, 50, 56]]).unwrap(),
        ]
    }

    #[test]
    fn roundtrip_and_truncation() {
        for table in tables() {
            let mut bytes = Vec::new();
            table.write_to(&mut bytes);
            let mut position = 0;
            let back = ContextTables::read_from(&bytes, &mut position, table.bits).unwrap();
            assert_eq!((back, position), (table.clone(), bytes.len()));
            for cut in 0..bytes.len() {
                assert!(ContextTables::read_from(&bytes[..cut], &mut 0, table.bits).is_err());
            }
        }
    }

    #[test]
    fn illegal_tables_are_rejected() {
        let new = |bits, base, escape, frequencies| {
            ContextTables::new((bits, base, escape), ContextSource::Lines, frequencies)
        };
        let half = || vec![128, 128];
        assert!(new(1, 0, false, vec![half()]).is_ok());
        assert!(new(0, 0, false, vec![half()]).is_err());
        assert!(new(17, 0, false, vec![half()]).is_err());
        assert!(new(1, 2, false, vec![half()]).is_err());
        assert!(new(1, 0, false, vec![]).is_err());
        assert!(new(1, 0, false, vec![half(); 17]).is_err());
        assert!(new(1, 0, false, vec![vec![100, 100, 56]]).is_err());
        assert!(new(1, 0, true, vec![vec![100, 100, 56]]).is_ok());
        assert!(new(8, 0, false, vec![vec![4; 64]]).is_ok());
        assert!(new(8, 0, false, vec![vec![]]).is_err());
        assert!(new(8, 0, false, vec![vec![255]]).is_err());
        assert!(new(8, 0, false, vec![half(), vec![128, 64, 64]]).is_err());
        assert!(new(8, 0, false, vec![half(), vec![128, 127]]).is_err());
    }

    #[test]
    fn frequent_symbols_come_first() {
        let orders: Vec<_> = tables()[1].slot_orders().take(1).collect();
        assert_eq!(orders[0], [(0, 100), (1, 100), (63, 56)]);
    }
}
