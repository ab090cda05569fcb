//! How the elements of a tensor are taken apart next to those of a base tensor.
//!
//! Each element falls into a class by the magnitude of the base's element. A class says how the new
//! element is seen ([`Relation`]), how many of the low bits of that are stored as they are, and which
//! table codes the rest. So the elements that moved by a few units, those that moved by a good part of
//! themselves, and those that have little to do with the base any more share one stream.
//!
//! Invariants of every [`DeltaModel`], read or built:
//! 1. elements of 1, 2, 4 or 8 bytes, of which at least two bits are not dropped;
//! 2. 1 to 16 classes whose first keys rise from 0;
//! 3. raw bits leave the symbol at least one bit ([`Relation::Context`]: two) and are at most 56;
//! 4. the relation is [`Relation::Integer`] for all classes or for none;
//! 5. the table of a class is as wide as its symbols.
//!
//! Wire form: docs/format.md, "Delta model". Papers: ZipNN (arXiv 2411.05239) section 5 compresses
//! differences of checkpoints; contexts for an adaptive Golomb code are those of LOCO-I (Weinberger et
//! al., 2000), here known beforehand.

use super::context_table::ContextTable;
use crate::constants::{MAX_CONTEXTS, MAX_DELTA_RAW_BITS};
use crate::error::{Error, Result};

/// How the new element is seen, before it is cut into symbol and raw bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    /// As it is, but for its sign, which is compared with the base's and stands above the raw bits.
    Context,
    /// The magnitude less the base's; a magnitude of the other sign counts as below zero.
    Difference,
    /// The difference of two integers.
    Integer,
}

/// Elements whose base elements are alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeltaClass {
    /// The class has the keys from here up to the next class's.
    pub(crate) first_key: u8,
    pub(crate) relation: Relation,
    pub(crate) raw_bits: u32,
    pub(crate) table: ContextTable,
}

/// See the module documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeltaModel {
    /// Bytes of one element.
    pub(crate) element_bytes: usize,
    /// Low bits that are zero in every element.
    pub(crate) dropped_bits: u32,
    /// Bits of the base's magnitude below its key.
    pub(crate) key_shift: u32,
    pub(crate) classes: Vec<DeltaClass>,
}

const RELATION_SHIFT: u32 = 6;

impl DeltaModel {
    /// Bits of an element that are not dropped.
    pub(crate) fn kept_bits(&self) -> u32 {
        self.element_bytes as u32 * 8 - self.dropped_bits
    }

    /// The fewest raw bits of a class.
    pub(crate) fn least_raw_bits(&self) -> u32 {
        let raw_bits = self.classes.iter().map(|class| class.raw_bits);
        raw_bits.min().unwrap_or(0)
    }

    /// Bytes of an element's raw bits that every class has: they are stored as planes.
    pub(crate) fn low_bytes(&self) -> usize {
        (self.least_raw_bits() / 8) as usize
    }

    /// Bytes that one escaped symbol takes.
    pub(crate) fn escape_bytes(&self) -> usize {
        (self.kept_bits() - self.least_raw_bits()).div_ceil(8) as usize
    }

    /// Checks the invariants.
    pub(crate) fn validated(self) -> Result<Self> {
        let fail = |what: &str| Err(Error::corrupt(format!("delta model: {what}")));
        if self.dropped_bits + 2 > self.element_bytes as u32 * 8 {
            return fail("too many bits are dropped");
        }
        if self.key_shift >= self.kept_bits() {
            return fail("the key is out of range");
        }
        if !(1..=MAX_CONTEXTS).contains(&self.classes.len()) {
            return fail("1 to 16 classes are possible");
        }
        let keys = self.classes.iter().map(|class| class.first_key);
        if self.classes[0].first_key != 0 || !keys.is_sorted_by(|a, b| a < b) {
            return fail("the keys do not rise from 0");
        }
        let integers = |class: &DeltaClass| class.relation == Relation::Integer;
        if self.classes.iter().any(integers) && !self.classes.iter().all(integers) {
            return fail("integers and floats are mixed");
        }
        for class in &self.classes {
            let least = 1 + u32::from(class.relation == Relation::Context);
            if class.raw_bits + least > self.kept_bits() || class.raw_bits > MAX_DELTA_RAW_BITS {
                return fail("too many raw bits");
            }
        }
        Ok(self)
    }

    pub(crate) fn read_from(bytes: &[u8], position: &mut usize) -> Result<Self> {
        let fail = |what: &str| Error::corrupt(format!("delta model: {what}"));
        let byte = |position: &mut usize| {
            let byte = bytes.get(*position).copied();
            *position += 1;
            byte.ok_or_else(|| fail("cut off"))
        };
        let element_log2 = byte(position)?;
        if element_log2 > 3 {
            return Err(fail("a reserved bit is set"));
        }
        let element_bytes = 1 << element_log2;
        let dropped_bits = u32::from(byte(position)?);
        let key_shift = u32::from(byte(position)?);
        let count = usize::from(byte(position)?);
        let kept_bits = (element_bytes as u32 * 8)
            .checked_sub(dropped_bits)
            .ok_or_else(|| fail("too many bits are dropped"))?;
        let mut classes = Vec::new();
        for _ in 0..count.min(MAX_CONTEXTS + 1) {
            let first_key = byte(position)?;
            let form = byte(position)?;
            let relation = match form >> RELATION_SHIFT {
                0 => Relation::Context,
                1 => Relation::Difference,
                2 => Relation::Integer,
                _ => return Err(Error::UnsupportedVersion("delta relation 3".to_owned())),
            };
            let raw_bits = u32::from(form) & ((1 << RELATION_SHIFT) - 1);
            let symbol_bits = kept_bits
                .checked_sub(raw_bits)
                .ok_or_else(|| fail("too many raw bits"))?;
            let before = classes.last().map(|class: &DeltaClass| &class.table);
            let table = ContextTable::read_from(bytes, position, symbol_bits, before)?;
            classes.push(DeltaClass {
                first_key,
                relation,
                raw_bits,
                table,
            });
        }
        Self {
            element_bytes,
            dropped_bits,
            key_shift,
            classes,
        }
        .validated()
    }

    pub(crate) fn write_to(&self, out: &mut Vec<u8>) {
        out.extend([
            self.element_bytes.trailing_zeros() as u8,
            self.dropped_bits as u8,
            self.key_shift as u8,
            self.classes.len() as u8,
        ]);
        let mut before = None;
        for class in &self.classes {
            let relation = match class.relation {
                Relation::Context => 0,
                Relation::Difference => 1,
                Relation::Integer => 2,
            };
            out.extend([
                class.first_key,
                relation << RELATION_SHIFT | class.raw_bits as u8,
            ]);
            class.table.write_to(out, before);
            before = Some(&class.table);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bfloat16() -> DeltaModel {
        let class = |first_key, relation, raw_bits, base| DeltaClass {
            first_key,
            relation,
            raw_bits,
            table: ContextTable::new(16 - raw_bits, base, vec![100, 100], 56).unwrap(),
        };
        DeltaModel {
            element_bytes: 2,
            dropped_bits: 0,
            key_shift: 6,
            classes: vec![
                class(0, Relation::Context, 7, 200),
                class(250, Relation::Difference, 0, -1),
            ],
        }
    }

    #[test]
    fn roundtrip_and_truncation() {
        let model = bfloat16();
        let mut bytes = Vec::new();
        model.write_to(&mut bytes);
        let mut position = 0;
        assert_eq!(DeltaModel::read_from(&bytes, &mut position).unwrap(), model);
        assert_eq!(position, bytes.len());
        for cut in 0..bytes.len() {
            assert!(DeltaModel::read_from(&bytes[..cut], &mut 0).is_err());
        }
    }

    #[test]
    fn illegal_models_are_rejected() {
        let change = |edit: fn(&mut DeltaModel)| {
            let mut model = bfloat16();
            edit(&mut model);
            model.validated()
        };
        assert!(change(|_| {}).is_ok());
        assert!(change(|m| m.dropped_bits = 15).is_err());
        assert!(change(|m| m.key_shift = 16).is_err());
        assert!(change(|m| m.classes.clear()).is_err());
        assert!(change(|m| m.classes[0].first_key = 1).is_err());
        assert!(change(|m| m.classes[1].first_key = 0).is_err());
        assert!(change(|m| m.classes[0].relation = Relation::Integer).is_err());
        assert!(change(|m| m.classes[0].raw_bits = 15).is_err());
        assert!(change(|m| m.classes[1].raw_bits = 16).is_err());
    }
}
