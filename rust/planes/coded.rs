//! Coded planes: symbols to table indices and escapes, then through the entropy coder.
//!
//! A coded plane has three parts in a payload: the 64 states, the byte stream, and the escaped
//! values in element order, low bytes first and, for symbols of more than 8 bits, the high bytes
//! after them. Place in docs/format.md: "Coded plane" and "Escapes".

use crate::constants::{ESCAPE, STATES_BYTES};
use crate::entropy::rans::{self, Spec};
use crate::error::{Error, Result};
use crate::model::frequency_table::FrequencyTable;

/// A table ready to encode and decode with.
#[derive(Clone, Debug)]
pub(crate) struct PlaneCoder {
    table: FrequencyTable,
    spec: Spec,
    /// Index of each symbol, [`ESCAPE`] for those without a slot; [`NO_INDEX`] when there is none.
    index_of: Vec<u8>,
    symbol_of: [u16; 64],
}

/// Marks a symbol that a table without an escape cannot represent.
const NO_INDEX: u8 = 0xff;

/// One coded plane of one chunk.
pub(crate) struct CodedPlane {
    pub(crate) states: [u8; STATES_BYTES],
    pub(crate) stream: Vec<u8>,
    pub(crate) escapes: Vec<u16>,
}

impl PlaneCoder {
    pub(crate) fn new(table: &FrequencyTable) -> Self {
        let rare = if table.has_escape() { ESCAPE } else { NO_INDEX };
        let mut listed = 0_u64;
        for entry in table.entries() {
            listed |= 1 << entry.index;
        }
        let index_of = (0..1_u32 << table.bits())
            .map(|symbol| match table.index(symbol as u16) {
                Some(index) if listed >> index & 1 == 1 => index,
                _ => rare,
            })
            .collect();
        Self {
            spec: Spec::new(table.entries().iter().map(|entry| (entry.index, entry.frequency))),
            index_of,
            symbol_of: std::array::from_fn(|index| table.symbol(index as u8)),
            table: table.clone(),
        }
    }

    pub(crate) fn table(&self) -> &FrequencyTable {
        &self.table
    }

    /// Encodes a plane, or returns `None` when it has a symbol that the table cannot represent.
    pub(crate) fn encode(&self, symbols: &[u16]) -> Option<CodedPlane> {
        let mut escapes = Vec::new();
        let mut indices = Vec::with_capacity(symbols.len());
        for &symbol in symbols {
            let index = self.index_of[usize::from(symbol)];
            if index == NO_INDEX {
                return None;
            }
            if index == ESCAPE && self.table.has_escape() {
                escapes.push(symbol);
            }
            indices.push(index);
        }
        let mut stream = Vec::new();
        let states = rans::encode(&self.spec, &indices, &mut stream);
        Some(CodedPlane { states, stream, escapes })
    }

    /// Decodes a plane into `symbols`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when states, stream and escapes do not describe exactly that many symbols.
    pub(crate) fn decode(
        &self,
        states: &[u8; STATES_BYTES],
        stream: &[u8],
        escapes: &[u8],
        symbols: &mut [u16],
    ) -> Result<()> {
        let mut indices = vec![0; symbols.len()];
        rans::decode(&self.spec, states, stream, &mut indices)?;
        for (symbol, &index) in symbols.iter_mut().zip(&indices) {
            *symbol = self.symbol_of[usize::from(index)];
        }
        if self.table.has_escape() { self.restore_escapes(&indices, escapes, symbols) } else { Ok(()) }
    }

    fn restore_escapes(&self, indices: &[u8], escapes: &[u8], symbols: &mut [u16]) -> Result<()> {
        let count = escapes.len() / self.table.escape_bytes();
        let (low, high) = escapes.split_at(count);
        let mut used = 0;
        for (symbol, &index) in symbols.iter_mut().zip(indices) {
            if index == ESCAPE {
                let low = *low.get(used).ok_or_else(|| Error::corrupt("too few escapes"))?;
                *symbol = u16::from_le_bytes([low, high.get(used).copied().unwrap_or(0)]);
                if u32::from(*symbol) >> self.table.bits() != 0 {
                    return Err(Error::corrupt("an escaped symbol is out of range"));
                }
                used += 1;
            }
        }
        if used == count { Ok(()) } else { Err(Error::corrupt("too many escapes")) }
    }
}

/// The wire bytes of escaped values.
pub(crate) fn escape_bytes(escapes: &[u16], table: &FrequencyTable) -> Vec<u8> {
    (0..table.escape_bytes())
        .flat_map(|byte| escapes.iter().map(move |escape| escape.to_le_bytes()[byte]))
        .collect()
}
