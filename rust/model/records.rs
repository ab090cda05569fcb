//! Records: bytes that repeat a layout, such as the blocks of quantised models.
//!
//! ```text
//! record        d d q q q q q q q q q q q q q q q q     each byte has a class
//! classes       0: d d   1: q q q q ...                  all of a class are elements of one model
//! ```
//! Invariants of every [`Records`], read or built:
//! 1. records have 2 to 4096 bytes, and the first begins with the tensor;
//! 2. there are 1 to 16 classes, each with a byte of the record at least;
//! 3. a class is raw or has a model of the stream that is not scaled.
//!
//! Place in docs/format.md: "Records". The idea is that of `OpenZL`'s split of structures into fields.

use std::ops::Range;

use super::Model;
use crate::error::{Error, Result};
use crate::varint::{read_varint, write_varint};

/// Bytes of a record, and classes of its bytes.
pub(crate) const RECORD_BYTES: std::ops::RangeInclusive<usize> = 2..=4096;
pub(crate) const MAX_CLASSES: usize = 16;

/// log2 of the longest copy, and the records that are copied from or to at a time.
const LONGEST_PIECE_LOG2: u32 = 6;
const BLOCK_RECORDS: usize = 64;

/// See the module documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Records {
    /// The class of each byte of a record.
    pub(crate) class_of: Vec<u8>,
    /// The model of each class, `None` if its bytes are stored raw.
    pub(crate) models: Vec<Option<usize>>,
}

/// Where the records of a chunk lie in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Bytes in front of the first whole record.
    pub(crate) before: usize,
    /// Whole records.
    pub(crate) records: usize,
}

impl Records {
    /// Bytes of a record.
    pub(crate) fn record_bytes(&self) -> usize {
        self.class_of.len()
    }

    /// Records of the `len` bytes from byte `start` of the tensor on.
    pub(crate) fn span(&self, start: usize, len: usize) -> Span {
        let record = self.record_bytes();
        let before = (start.next_multiple_of(record) - start).min(len);
        Span {
            before,
            records: (len - before) / record,
        }
    }

    /// Bytes of a record that have a class.
    pub(crate) fn class_bytes(&self, class: usize) -> usize {
        self.class_of
            .iter()
            .filter(|&&of| usize::from(of) == class)
            .count()
    }

    /// Neighbouring bytes of a record that have a class.
    fn runs(&self, class: usize) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for (at, _) in self
            .class_of
            .iter()
            .enumerate()
            .filter(|&(_, &of)| usize::from(of) == class)
        {
            match runs.last_mut().filter(|run| run.end == at) {
                Some(run) => run.end += 1,
                None => runs.push(at..at + 1),
            }
        }
        runs
    }

    /// Parts of those runs, of 1, 2, 4 .. 64 bytes: a copy of a length known beforehand needs no call.
    fn pieces(&self, class: usize) -> Vec<Range<usize>> {
        let mut pieces = Vec::new();
        for mut run in self.runs(class) {
            while !run.is_empty() {
                let len = 1 << run.len().ilog2().min(LONGEST_PIECE_LOG2);
                pieces.push(run.start..run.start + len);
                run.start += len;
            }
        }
        pieces
    }

    /// Appends the bytes of a class in whole records.
    pub(crate) fn gather(&self, class: usize, records: &[u8], out: &mut Vec<u8>) {
        let (record, part) = (self.record_bytes(), self.class_bytes(class));
        let begin = out.len();
        out.resize(begin + records.len() / record * part, 0);
        let pieces = self.pieces(class);
        // Some records at a time, which stay in the first cache.
        let blocks = records.chunks(BLOCK_RECORDS * record);
        for (from, to) in blocks.zip(out[begin..].chunks_mut(BLOCK_RECORDS * part)) {
            let mut at = 0;
            for piece in &pieces {
                copy_piece(
                    piece.len(),
                    (&from[piece.start..], record),
                    (&mut to[at..], part),
                );
                at += piece.len();
            }
        }
    }

    /// The inverse of [`Records::gather`].
    pub(crate) fn scatter(&self, class: usize, bytes: &[u8], records: &mut [u8]) {
        let (record, part) = (self.record_bytes(), self.class_bytes(class));
        let pieces = self.pieces(class);
        let blocks = records.chunks_mut(BLOCK_RECORDS * record);
        for (to, from) in blocks.zip(bytes.chunks(BLOCK_RECORDS * part)) {
            let mut at = 0;
            for piece in &pieces {
                copy_piece(
                    piece.len(),
                    (&from[at..], part),
                    (&mut to[piece.start..], record),
                );
                at += piece.len();
            }
        }
    }

    pub(crate) fn read_from(bytes: &[u8], position: &mut usize, models: &[Model]) -> Result<Self> {
        let fail = |what: &str| Err(Error::corrupt(format!("records: {what}")));
        let mut number = || {
            let number = read_varint(bytes, position)?;
            Ok::<usize, Error>(usize::try_from(number).unwrap_or(usize::MAX))
        };
        let record_bytes = number()?;
        if !RECORD_BYTES.contains(&record_bytes) {
            return fail("the length is out of range");
        }
        let classes = number()?;
        if !(1..=MAX_CLASSES).contains(&classes) {
            return fail("1 to 16 classes are possible");
        }
        let mut class_models = Vec::with_capacity(classes);
        for _ in 0..classes {
            let model = number()?.checked_sub(1);
            if model.is_some_and(|model| models.get(model).is_none_or(|model| model.scaled)) {
                return fail("a class has no possible model");
            }
            class_models.push(model);
        }
        let mut class_of = Vec::with_capacity(record_bytes);
        while class_of.len() < record_bytes {
            let (run, class) = (number()?, number()?);
            if run == 0 || run > record_bytes - class_of.len() || class >= classes {
                return fail("a run of bytes is out of range");
            }
            class_of.resize(class_of.len() + run, class as u8);
        }
        let records = Self {
            class_of,
            models: class_models,
        };
        if (0..classes).any(|class| records.class_bytes(class) == 0) {
            return fail("a class is empty");
        }
        Ok(records)
    }

    pub(crate) fn write_to(&self, out: &mut Vec<u8>) {
        write_varint(out, self.record_bytes() as u64);
        write_varint(out, self.models.len() as u64);
        for model in &self.models {
            write_varint(out, model.map_or(0, |model| model as u64 + 1));
        }
        for run in self.class_of.chunk_by(|a, b| a == b) {
            write_varint(out, run.len() as u64);
            out.push(run[0]);
        }
    }
}

/// Copies the first `len` bytes of every step of `from` to every step of `to`.
fn copy_piece(len: usize, from: (&[u8], usize), to: (&mut [u8], usize)) {
    fn copy<const LEN: usize>((from, step): (&[u8], usize), (to, to_step): (&mut [u8], usize)) {
        for (from, to) in from.chunks(step).zip(to.chunks_mut(to_step)) {
            if let (Some(from), Some(to)) = (from.first_chunk::<LEN>(), to.first_chunk_mut()) {
                *to = *from;
            }
        }
    }
    match len {
        1 => copy::<1>(from, to),
        2 => copy::<2>(from, to),
        4 => copy::<4>(from, to),
        8 => copy::<8>(from, to),
        16 => copy::<16>(from, to),
        32 => copy::<32>(from, to),
        _ => copy::<64>(from, to),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Plane;
    use proptest::prelude::*;

    fn raw_model() -> Model {
        Model {
            element_bytes: 1,
            phase: 0,
            sign_position: 7,
            trailing_zeros: false,
            scaled: false,
            planes: vec![Plane::raw(8)],
        }
    }

    proptest! {
        #[test]
        fn roundtrip_and_truncation(
            class_of in prop::collection::vec(0_u8..5, 2..300), data in prop::collection::vec(any::<u8>(), 0..2000),
            start in 0_usize..5000,
        ) {
            // Classes that occur, numbered from 0 without gaps.
            let mut used: Vec<u8> = class_of.clone();
            used.sort_unstable();
            used.dedup();
            let number = |class: &u8| used.binary_search(class).unwrap() as u8;
            let records = Records {
                class_of: class_of.iter().map(number).collect(),
                models: (0..used.len()).map(|class| (class % 2 == 1).then_some(class / 2)).collect(),
            };
            let models = vec![raw_model(); 3];
            let mut bytes = Vec::new();
            records.write_to(&mut bytes);
            let mut position = 0;
            prop_assert_eq!(&Records::read_from(&bytes, &mut position, &models).unwrap(), &records);
            prop_assert_eq!(position, bytes.len());
            for cut in 0..bytes.len() {
                prop_assert!(Records::read_from(&bytes[..cut], &mut 0, &models).is_err());
            }

            let span = records.span(start, data.len());
            prop_assert!(span.before < records.record_bytes());
            prop_assert!(span.records == 0 || (start + span.before).is_multiple_of(records.record_bytes()));
            let whole = &data[span.before..span.before + span.records * records.record_bytes()];
            let mut back = vec![0; whole.len()];
            for class in 0..records.models.len() {
                let mut of_class = Vec::new();
                records.gather(class, whole, &mut of_class);
                prop_assert_eq!(of_class.len(), span.records * records.class_bytes(class));
                records.scatter(class, &of_class, &mut back);
            }
            prop_assert_eq!(back, whole);
        }
    }

    #[test]
    fn illegal_records_are_rejected() {
        let scaled = Model {
            scaled: true,
            ..raw_model()
        };
        let models = [raw_model(), scaled];
        let read = |bytes: &[u8]| Records::read_from(bytes, &mut 0, &models);
        assert!(read(&[4, 2, 0, 1, 1, 0, 3, 1]).is_ok());
        for bytes in [
            &[1, 1, 0, 1, 0][..],               // one byte
            &[0x81, 0x20, 1, 0, 0x81, 0x20, 0], // 4097 bytes
            &[4, 0, 4, 0],                      // no class
            &[4, 1, 3, 4, 0],                   // no such model
            &[4, 1, 2, 4, 0],                   // a scaled model
            &[4, 2, 0, 1, 4, 0],                // an empty class
            &[4, 1, 0, 0, 0, 4, 0],             // an empty run
            &[4, 1, 0, 5, 0],                   // a run that is too long
            &[4, 1, 0, 4, 1],                   // no such class
        ] {
            assert!(read(bytes).is_err(), "{bytes:?}");
        }
    }
}
