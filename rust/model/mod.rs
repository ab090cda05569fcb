//! How the elements of a chunk are taken apart: the model a stream stores once and chunks refer to.
//!
//! A model first moves the sign bit of every element (and subtracts scale offsets, if the stream has
//! them), then cuts the element from the top into planes, each of them raw, constant or coded.
//!
//! Invariants of every [`Model`], read or built:
//! 1. elements of 1, 2, 4 or 8 bytes, `phase < element_bytes`, `sign_position < element bits`;
//! 2. 1 to 16 planes whose widths sum to the element's, raw and constant ones of 1 to 64 bits;
//! 3. with trailing zeros the last plane is raw;
//! 4. scaled models have phase 0.
//!
//! Wire form: docs/format.md, "Model". Papers: ZipNN (arXiv 2411.05239) section 3 splits floats into
//! fields; NeuZip (arXiv 2410.20650) section 3 codes the exponents.

#![allow(
    clippy::inline_always,
    reason = "what a task calls is compiled for a tier only where it is inlined"
)]

mod classes;
pub(crate) mod context_table;
pub(crate) mod contexts;
pub(crate) mod delta;
pub(crate) mod delta_fit;
mod fixed_point;
mod flips;
mod float_cut;
pub(crate) mod frequency_table;
pub(crate) mod histogram;
mod line_runs;
mod lines;
mod log2;
mod normalize;
pub(crate) mod records;
mod refine;
mod sample;
mod scale_fit;
mod scale_probe;
mod second;
pub(crate) mod select;
pub(crate) mod select_bytes;
pub(crate) mod select_records;
mod thorough;

use crate::constants::{MAX_CONTEXT_PLANES, MAX_PLANES};
use crate::error::{Error, Result};
use crate::varint::{read_varint, write_varint};
use contexts::{ContextSource, ContextTables};
use frequency_table::FrequencyTable;

/// What is done with the bits of one plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PlaneMode {
    /// Stored as they are.
    Raw,
    /// The same in every element of the chunk.
    Constant(u64),
    /// Entropy coded.
    Coded(FrequencyTable),
    /// Entropy coded with a table for every context.
    Contexts(ContextTables),
}

/// Neighbouring bits of every element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plane {
    pub(crate) bits: u32,
    pub(crate) mode: PlaneMode,
}

impl Plane {
    pub(crate) const fn raw(bits: u32) -> Self {
        Self {
            bits,
            mode: PlaneMode::Raw,
        }
    }

    pub(crate) const fn constant(bits: u32, value: u64) -> Self {
        Self {
            bits,
            mode: PlaneMode::Constant(value),
        }
    }

    pub(crate) fn coded(table: FrequencyTable) -> Self {
        Self {
            bits: table.bits(),
            mode: PlaneMode::Coded(table),
        }
    }

    pub(crate) fn contexts(tables: ContextTables) -> Self {
        Self {
            bits: tables.bits(),
            mode: PlaneMode::Contexts(tables),
        }
    }

    /// Whether the plane is entropy coded.
    pub(crate) fn is_coded(&self) -> bool {
        matches!(self.mode, PlaneMode::Coded(_) | PlaneMode::Contexts(_))
    }

    /// Whether rare symbols of a coded plane are escaped.
    pub(crate) fn has_escape(&self) -> bool {
        match &self.mode {
            PlaneMode::Coded(table) => table.has_escape(),
            PlaneMode::Contexts(tables) => tables.has_escape(),
            PlaneMode::Raw | PlaneMode::Constant(_) => false,
        }
    }
}

/// See the module documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    /// Bytes of one element.
    pub(crate) element_bytes: usize,
    /// Bytes of the chunk before its first element (only in streams of raw bytes).
    pub(crate) phase: usize,
    /// Where the top bit of the element goes: 0 is a rotation, `element bits - 1` leaves it.
    pub(crate) sign_position: u32,
    /// Whether trailing zeros of the last plane are counted per sub-block and left out.
    pub(crate) trailing_zeros: bool,
    /// Whether the scale offsets of the stream are subtracted.
    pub(crate) scaled: bool,
    /// From the top bits down.
    pub(crate) planes: Vec<Plane>,
}

const TRAILING_ZEROS: u8 = 1 << 5;
const SCALED: u8 = 1 << 6;
const RAW: u8 = 0;
const CONSTANT: u8 = 1;
const CODED: u8 = 2;
const CONTEXTS: u8 = 3;

impl Model {
    /// Bits of one element.
    pub(crate) fn element_bits(&self) -> u32 {
        self.element_bytes as u32 * 8
    }

    /// Whole elements in a chunk of `chunk_len` bytes.
    pub(crate) fn elements(&self, chunk_len: usize) -> usize {
        chunk_len.saturating_sub(self.phase) / self.element_bytes
    }

    /// The coded planes, from the top.
    pub(crate) fn coded_planes(&self) -> impl Iterator<Item = &Plane> {
        self.planes.iter().filter(|plane| plane.is_coded())
    }

    /// Classes of lines that every plane with such contexts has tables for.
    pub(crate) fn line_contexts(&self) -> usize {
        let contexts = self.planes.iter().filter_map(|plane| match &plane.mode {
            PlaneMode::Contexts(tables) if tables.source() == ContextSource::Lines => {
                Some(tables.contexts())
            }
            _ => None,
        });
        contexts.min().unwrap_or(usize::MAX)
    }

    /// The tables of planes with only one, from the top.
    pub(crate) fn tables(&self) -> impl Iterator<Item = &FrequencyTable> {
        self.planes.iter().filter_map(|plane| match &plane.mode {
            PlaneMode::Coded(table) => Some(table),
            _ => None,
        })
    }

    /// Whether the lowest bit of the last plane is the sign rather than the end of the mantissa.
    pub(crate) fn sign_is_last(&self) -> bool {
        self.sign_position == 0
    }

    /// Checks the invariants.
    pub(crate) fn validated(self) -> Result<Self> {
        let fail = |what: &str| Err(Error::corrupt(format!("model: {what}")));
        let bits = self.element_bits();
        if self.phase >= self.element_bytes || self.sign_position >= bits {
            return fail("the phase or the sign position is out of range");
        }
        if !(1..=MAX_PLANES).contains(&self.planes.len()) {
            return fail("1 to 16 planes are possible");
        }
        for plane in &self.planes {
            match plane.mode {
                _ if !(1..=64).contains(&plane.bits) => {
                    return fail("a plane has no possible width");
                }
                PlaneMode::Constant(value) if plane.bits < 64 && value >> plane.bits != 0 => {
                    return fail("a constant is wider than its plane");
                }
                _ => {}
            }
        }
        let in_contexts = |plane: &&Plane| matches!(plane.mode, PlaneMode::Contexts(_));
        if self.planes.iter().filter(in_contexts).count() > MAX_CONTEXT_PLANES {
            return fail("too many planes are coded in contexts");
        }
        for (number, plane) in self.planes.iter().enumerate() {
            let PlaneMode::Contexts(tables) = &plane.mode else {
                continue;
            };
            match tables.source() {
                ContextSource::Lines if !self.scaled => {
                    return fail("classes of lines need a scaled model");
                }
                ContextSource::Plane { plane, first } => {
                    let source = self.planes[..number].get(usize::from(plane));
                    let source = source.filter(|source| source.is_coded());
                    if source.is_none_or(|source| u32::from(first) >> source.bits != 0) {
                        return fail("contexts come from a coded plane above");
                    }
                }
                ContextSource::Lines => {}
            }
        }
        if self.planes.iter().map(|plane| plane.bits).sum::<u32>() != bits {
            return fail("the planes do not fill the element");
        }
        let last_is_raw = self
            .planes
            .last()
            .is_some_and(|plane| plane.mode == PlaneMode::Raw);
        if self.trailing_zeros && !last_is_raw {
            return fail("trailing zeros need a raw last plane");
        }
        if self.scaled && self.phase != 0 {
            return fail("scale offsets need aligned elements");
        }
        Ok(self)
    }

    pub(crate) fn read_from(bytes: &[u8], position: &mut usize) -> Result<Self> {
        let byte = |position: &mut usize| {
            let byte = bytes.get(*position).copied();
            *position += 1;
            byte.ok_or_else(|| Error::corrupt("model: cut off"))
        };
        let head = byte(position)?;
        if head & 0x80 != 0 {
            return Err(Error::corrupt("model: a reserved bit is set"));
        }
        let sign_position = u32::from(byte(position)?);
        let count = usize::from(byte(position)?);
        let mut planes = Vec::with_capacity(count.min(MAX_PLANES));
        for _ in 0..count.min(MAX_PLANES + 1) {
            let mode = byte(position)?;
            let bits = u32::from(byte(position)?);
            let mode = match mode {
                RAW => PlaneMode::Raw,
                CONSTANT => PlaneMode::Constant(read_varint(bytes, position)?),
                CODED => PlaneMode::Coded(FrequencyTable::read_from(bytes, position, bits)?),
                CONTEXTS => PlaneMode::Contexts(ContextTables::read_from(bytes, position, bits)?),
                other => {
                    return Err(Error::UnsupportedVersion(format!("plane mode {other}")));
                }
            };
            planes.push(Plane { bits, mode });
        }
        Self {
            element_bytes: 1 << (head & 3),
            phase: usize::from(head >> 2 & 7),
            sign_position,
            trailing_zeros: head & TRAILING_ZEROS != 0,
            scaled: head & SCALED != 0,
            planes,
        }
        .validated()
    }

    pub(crate) fn write_to(&self, out: &mut Vec<u8>) {
        let mut head = self.element_bytes.trailing_zeros() as u8 | (self.phase as u8) << 2;
        head |= if self.trailing_zeros {
            TRAILING_ZEROS
        } else {
            0
        };
        head |= if self.scaled { SCALED } else { 0 };
        out.extend([head, self.sign_position as u8, self.planes.len() as u8]);
        for plane in &self.planes {
            let mode = match &plane.mode {
                PlaneMode::Raw => RAW,
                PlaneMode::Constant(_) => CONSTANT,
                PlaneMode::Coded(_) => CODED,
                PlaneMode::Contexts(_) => CONTEXTS,
            };
            out.extend([mode, plane.bits as u8]);
            match &plane.mode {
                PlaneMode::Raw => {}
                PlaneMode::Constant(value) => write_varint(out, *value),
                PlaneMode::Coded(table) => table.write_to(out),
                PlaneMode::Contexts(tables) => tables.write_to(out),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use frequency_table::Entry;

    fn bfloat16() -> Model {
        let entries = [(0, 200), (5, 56)].map(|(index, frequency)| Entry { index, frequency });
        let table = FrequencyTable::new(8, 120, false, entries.to_vec()).unwrap();
        Model {
            element_bytes: 2,
            phase: 0,
            sign_position: 0,
            trailing_zeros: true,
            scaled: true,
            planes: vec![Plane::coded(table), Plane::raw(8)],
        }
    }

    #[test]
    fn roundtrip_and_truncation() {
        let model = bfloat16();
        let mut bytes = Vec::new();
        model.write_to(&mut bytes);
        let mut position = 0;
        assert_eq!(Model::read_from(&bytes, &mut position).unwrap(), model);
        assert_eq!(position, bytes.len());
        for cut in 0..bytes.len() {
            assert!(Model::read_from(&bytes[..cut], &mut 0).is_err());
        }
    }

    #[test]
    fn illegal_models_are_rejected() {
        let change = |edit: fn(&mut Model)| {
            let mut model = bfloat16();
            edit(&mut model);
            model.validated()
        };
        assert!(change(|_| {}).is_ok());
        assert!(change(|m| m.phase = 2).is_err());
        assert!(change(|m| m.phase = 1).is_err());
        assert!(change(|m| m.sign_position = 16).is_err());
        assert!(change(|m| m.planes.clear()).is_err());
        assert!(change(|m| m.planes[1].bits = 7).is_err());
        assert!(change(|m| m.planes[1] = Plane::constant(8, 256)).is_err());
        assert!(
            change(|m| m.planes[1] = Plane::constant(8, 255)).is_err(),
            "trailing zeros"
        );
    }
}
