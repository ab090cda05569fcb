//! Coded planes: symbols to table indices and escapes, then through the entropy coder.
//!
//! A coded plane has three parts in a payload: the 64 states, the byte stream, and the escaped
//! values in element order, low bytes first and, for symbols of more than 8 bits, the high bytes
//! after them. Place in docs/format.md: "Coded plane".

use super::words::Word;
use crate::constants::{ESCAPE, STATES_BYTES, SUB_BLOCK};
use crate::entropy::rans::{self, Decoder, Spec};
use crate::error::{Error, Result};
use crate::model::frequency_table::FrequencyTable;

/// A table ready to decode with.
#[derive(Clone, Debug)]
pub(crate) struct PlaneCoder {
    table: FrequencyTable,
    spec: Spec,
}

impl PlaneCoder {
    pub(crate) fn new(table: &FrequencyTable) -> Self {
        Self {
            spec: Spec::new(
                table
                    .entries()
                    .iter()
                    .map(|entry| (entry.index, entry.frequency)),
            ),
            table: table.clone(),
        }
    }

    pub(crate) fn table(&self) -> &FrequencyTable {
        &self.table
    }

    /// What the encoder looks symbols up in.
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
        }
    }

    /// Appends the byte stream of `indices` to `out` and returns the states.
    pub(crate) fn encode(&self, indices: &[u8], out: &mut Vec<u8>) -> [u8; STATES_BYTES] {
        rans::encode(&self.spec, indices, out)
    }

    /// Starts decoding a plane; `escapes` are the parts of the escaped values, low bytes first.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for impossible states.
    pub(crate) fn decoder<'a>(
        &'a self,
        states: &[u8; STATES_BYTES],
        stream: &'a [u8],
        escapes: [&'a [u8]; 2],
    ) -> Result<PlaneDecoder<'a>> {
        let decoder = Decoder::new(&self.spec, states, stream)?;
        Ok(PlaneDecoder {
            coder: self,
            decoder,
            escapes,
            used: 0,
        })
    }
}

/// The index of every symbol of a plane; rare symbols have [`ESCAPE`], impossible ones [`NO_INDEX`].
#[derive(Clone, Debug)]
pub(crate) struct IndexTable {
    indices: Vec<u8>,
    escape: bool,
}

/// Marks a symbol that a table without an escape cannot represent.
const NO_INDEX: u8 = 0xff;

/// Symbols of one plane of one chunk, on their way to the entropy coder.
#[derive(Debug, Default)]
pub(crate) struct IndexedPlane {
    pub(crate) indices: Vec<u8>,
    pub(crate) escapes: Vec<u16>,
}

impl IndexedPlane {
    pub(crate) fn clear(&mut self) {
        self.indices.clear();
        self.escapes.clear();
    }

    /// Appends the symbols `field(word)`; `false` if one of them cannot be represented.
    pub(crate) fn extend<W: Word>(
        &mut self,
        words: &[W],
        field: impl Fn(W) -> W,
        table: &IndexTable,
    ) -> bool {
        let start = self.indices.len();
        let symbol = |word: W| field(word).widen() as usize;
        // The mask keeps the symbol inside the table, whose length is a power of two.
        let mask = table.indices.len() - 1;
        self.indices
            .extend(words.iter().map(|&word| table.indices[symbol(word) & mask]));
        let added = &self.indices[start..];
        if !table.escape {
            return added.iter().all(|&index| index != NO_INDEX);
        }
        let escaped = words
            .iter()
            .zip(added)
            .filter(|&(_, &index)| index == ESCAPE);
        self.escapes
            .extend(escaped.map(|(&word, _)| symbol(word) as u16));
        true
    }
}

/// A coded plane being decoded, sub-block by sub-block.
pub(crate) struct PlaneDecoder<'a> {
    coder: &'a PlaneCoder,
    decoder: Decoder<'a>,
    escapes: [&'a [u8]; 2],
    used: usize,
}

impl PlaneDecoder<'_> {
    /// Puts the next symbols below what `words` already hold.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when stream or escapes run out, or an escaped value is out of range.
    pub(crate) fn append<W: Word>(&mut self, words: &mut [W]) -> Result<()> {
        let mut buffer = [0; SUB_BLOCK];
        let indices = &mut buffer[..words.len()];
        self.decoder.fill(indices)?;
        let bits = self.coder.table.bits();
        let (base, mask) = (
            W::truncate(u64::from(self.coder.table.symbol(0))),
            W::mask(bits),
        );
        for (word, &index) in words.iter_mut().zip(&*indices) {
            let symbol = base.wrapping_add(W::truncate(u64::from(index))) & mask;
            *word = word.make_room(bits) | symbol;
        }
        if self.coder.table.has_escape() {
            for (word, _) in words
                .iter_mut()
                .zip(indices)
                .filter(|(_, index)| **index == ESCAPE)
            {
                let symbol = self.next_escape()?;
                *word = (*word & !mask) | W::truncate(u64::from(symbol));
            }
        }
        Ok(())
    }

    fn next_escape(&mut self) -> Result<u16> {
        let [low, high] = self.escapes;
        let low = *low
            .get(self.used)
            .ok_or_else(|| Error::corrupt("too few escapes"))?;
        let high = high.get(self.used).copied().unwrap_or(0);
        self.used += 1;
        let symbol = u16::from_le_bytes([low, high]);
        if u32::from(symbol) >> self.coder.table.bits() == 0 {
            Ok(symbol)
        } else {
            Err(Error::corrupt("an escaped symbol is out of range"))
        }
    }

    /// Checks that all parts of the plane have been used up.
    ///
    /// # Errors
    /// [`Error::Corrupt`] otherwise.
    pub(crate) fn finish(self) -> Result<()> {
        if self.used < self.escapes[0].len() {
            return Err(Error::corrupt("too many escapes"));
        }
        self.decoder.finish()
    }
}
