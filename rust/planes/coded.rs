//! Coded planes: symbols to table indices and escapes, then through the entropy coder.
//!
//! A coded plane has three parts in a payload: the 64 states, the byte stream, and the escaped
//! values in element order (`super::escapes`). Place in docs/format.md: "Coded plane".

use super::words::Word;
use crate::constants::{ESCAPE, LANES, MAX_SYMBOLS, STATES_BYTES, SUB_BLOCK};
use crate::entropy::rans::{Decoder, EscapedValues, Spec, ValueMap};
use crate::error::{Error, Result};
use crate::model::frequency_table::FrequencyTable;
use crate::simd::Kernels;

/// Where a decoded symbol goes in a value of up to 16 bits: `symbol << shift | constant`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Placement {
    pub(crate) shift: u32,
    pub(crate) constant: u16,
}

impl Placement {
    pub(crate) fn place(self, symbol: u16) -> u16 {
        symbol << self.shift | self.constant
    }
}

/// A table ready to code with.
#[derive(Clone, Debug)]
pub(crate) struct PlaneCoder {
    pub(crate) table: FrequencyTable,
    pub(crate) spec: Spec,
    pub(crate) map: ValueMap,
    placement: Placement,
}

impl PlaneCoder {
    pub(crate) fn new(table: &FrequencyTable, placement: Placement) -> Self {
        let entries = table.entries().iter();
        let spec = Spec::new(entries.map(|entry| (entry.index, entry.frequency)));
        let mut map = ValueMap {
            low: [0; MAX_SYMBOLS],
            high: [0; MAX_SYMBOLS],
            escape: table.has_escape(),
        };
        for entry in table.entries() {
            let value = placement.place(table.symbol(entry.index));
            let index = usize::from(entry.index);
            [map.low[index], map.high[index]] = value.to_le_bytes();
        }
        Self {
            table: table.clone(),
            spec,
            map,
            placement,
        }
    }

    /// The values of escaped symbols.
    pub(crate) fn escaped_values(&self, symbols: &[u16]) -> EscapedValues {
        EscapedValues::new(symbols.iter().map(|&symbol| self.placement.place(symbol)))
    }

    /// Starts decoding a plane; `stream` may go on for `beyond` bytes that do not belong to it.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for impossible states.
    pub(crate) fn decoder<'a>(
        states: &[u8],
        stream: (&'a [u8], usize),
        escapes: &'a EscapedValues,
    ) -> Result<Decoder<'a>> {
        let states: &[u8; STATES_BYTES] = states
            .try_into()
            .map_err(|_| Error::corrupt("the coder states are cut off"))?;
        Decoder::new(states, stream, escapes)
    }

    /// What the encoder looks any symbol up in.
    pub(crate) fn index_table(&self) -> IndexTable {
        let rare = if self.table.has_escape() {
            ESCAPE
        } else {
            NO_INDEX
        };
        let mut indices = vec![rare; 1 << self.table.bits()];
        for entry in self.table.entries() {
            if !(self.table.has_escape() && entry.index == ESCAPE) {
                indices[usize::from(self.table.symbol(entry.index))] = entry.index;
            }
        }
        IndexTable {
            indices,
            escape: self.table.has_escape(),
            base: self.table.symbol(0),
            offsets: self.offset_table(),
        }
    }

    /// The index of every offset from the table's base below 63; 63 for those without a slot.
    ///
    /// `None` if index 63 is an ordinary symbol, which offsets cut at 63 cannot tell from others.
    pub(crate) fn offset_table(&self) -> Option<[u8; MAX_SYMBOLS]> {
        let mut indices = [ESCAPE; MAX_SYMBOLS];
        for entry in self.table.entries() {
            if entry.index != ESCAPE {
                indices[usize::from(entry.index)] = entry.index;
            } else if !self.table.has_escape() {
                return None;
            }
        }
        Some(indices)
    }
}

/// The index of every symbol of a plane; rare symbols have [`ESCAPE`], impossible ones [`NO_INDEX`].
#[derive(Clone, Debug)]
pub(crate) struct IndexTable {
    indices: Vec<u8>,
    escape: bool,
    /// The symbol of index 0, and [`PlaneCoder::offset_table`].
    base: u16,
    offsets: Option<[u8; MAX_SYMBOLS]>,
}

/// Marks a symbol that a table without an escape cannot represent.
pub(super) const NO_INDEX: u8 = 0xff;

/// Symbols of one plane of one chunk, on their way to the entropy coder.
#[derive(Debug, Default)]
pub(crate) struct IndexedPlane {
    pub(crate) indices: Vec<u8>,
    pub(crate) escapes: Vec<u16>,
    /// The context of each symbol, in planes that have contexts.
    pub(crate) contexts: Vec<u8>,
}

impl IndexedPlane {
    pub(crate) fn clear(&mut self) {
        self.indices.clear();
        self.escapes.clear();
        self.contexts.clear();
    }

    /// Appends the symbols `field(word)`; `false` if one of them cannot be represented.
    #[inline(always)]
    pub(crate) fn extend<W: Word>(
        &mut self,
        kernels: Kernels,
        words: &[W],
        field: impl Fn(W) -> W,
        table: &IndexTable,
    ) -> bool {
        let start = self.indices.len();
        let symbol = |word: W| field(word).widen() as usize;
        // The mask keeps the symbol inside the table, whose length is a power of two.
        let mask = table.indices.len() - 1;
        let Some(offsets) = &table.offsets else {
            self.indices
                .extend(words.iter().map(|&word| table.indices[symbol(word) & mask]));
            let added = &self.indices[start..];
            return added.iter().all(|&index| index != NO_INDEX);
        };
        // In the element's width, so that it vectorises; symbols without a slot become the last offset.
        self.indices.resize(start + words.len(), 0);
        let added = &mut self.indices[start..];
        let (base, mask) = (W::truncate(table.base.into()), W::truncate(mask as u64));
        let last = W::truncate(MAX_SYMBOLS as u64 - 1);
        for (index, &word) in added.iter_mut().zip(words) {
            *index = (field(word).wrapping_sub(base) & mask)
                .smaller(last)
                .low_byte();
        }
        let mut masks = [0_u64; SUB_BLOCK / LANES];
        let masks = &mut masks[..words.len().div_ceil(LANES)];
        kernels.index(offsets, added, masks);
        for (group, &rare) in words.chunks(LANES).zip(&*masks) {
            let mut left = rare;
            while left != 0 {
                let word = group[left.trailing_zeros() as usize];
                self.escapes.push(symbol(word) as u16);
                left &= left - 1;
            }
        }
        table.escape || masks.iter().all(|&rare| rare == 0)
    }
}
