//! Scale offsets: what is subtracted from the magnitude bits of every row and column.
//!
//! The magnitude bits of a float, read as an integer, are a piecewise-linear log2 of it, so that
//! subtracting an integer divides by a scale. The subtraction is modulo `2^(element bits - 1)`:
//! a bijection, whatever the offsets. Element `i` is in row `i / columns`, column `i mod columns`.
//! Place in docs/format.md: "Scale offsets".
//!
//! Invariants of every [`ScaleOffsets`], read or built:
//! 1. `columns >= 1`;
//! 2. lists of rows are empty or have `ceil(elements / columns)` entries, those of columns `columns`;
//! 3. at least one list is not empty; 4. `shift < 64`;
//! 5. flips are 0 or 1, classes 0 to 15.
//!
//! Next to its offset a line may have a flip, which turns the signs of its elements, and a class, which
//! chooses the tables of planes with contexts.

use std::ops::Range;

use super::words::Word;
use crate::constants::MAX_CONTEXTS;
use crate::error::{Error, Result};
use crate::simd::Kernels;
use crate::varint::{read_varint, write_varint};

/// See the module documentation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ScaleOffsets {
    pub(crate) columns: usize,
    /// log2 of the unit of the offsets, in steps of the magnitude's lowest bit.
    pub(crate) shift: u32,
    pub(crate) rows: Vec<i8>,
    pub(crate) cols: Vec<i8>,
    pub(crate) row_flips: Vec<i8>,
    pub(crate) col_flips: Vec<i8>,
    pub(crate) row_classes: Vec<i8>,
    pub(crate) col_classes: Vec<i8>,
}

/// Largest entry of each list that is not of offsets: flips, then classes.
const LARGEST_ENTRY: [i8; 2] = [1, MAX_CONTEXTS as i8 - 1];
/// Offsets in a list of width 0, which takes up no input.
const MAX_UNIFORM: usize = 1 << 16;

impl ScaleOffsets {
    /// Subtracts the offsets from elements `first..first + words.len()`.
    #[inline(always)]
    pub(crate) fn subtract<W: Word>(&self, words: &mut [W], first: usize) {
        self.apply(words, first, W::wrapping_sub);
        if self.has_flips() {
            self.flip(words, first);
        }
    }

    /// The inverse of [`ScaleOffsets::subtract`].
    #[inline(always)]
    pub(crate) fn add<W: Word>(&self, words: &mut [W], first: usize) {
        self.apply(words, first, W::wrapping_add);
        if self.has_flips() {
            self.flip(words, first);
        }
    }

    /// Adds `steps` to the sum of both offsets of every element, as far as they can be stored.
    pub(crate) fn add_to_all(&mut self, steps: i8) {
        let axis = if self.rows.is_empty() {
            &mut self.cols
        } else {
            &mut self.rows
        };
        for offset in axis {
            *offset = offset.saturating_add(steps);
        }
    }

    #[inline(always)]
    fn apply<W: Word>(&self, mut words: &mut [W], first: usize, operation: impl Fn(W, W) -> W) {
        if !self.has_offsets() {
            return;
        }
        let magnitude = W::mask(W::BITS - 1);
        // Offsets are at most 254 in size: modulo the word they may be shifted after narrowing.
        let shift = self.shift.min(W::BITS - 1);
        let shift_one = |word: &mut W, offset: W| {
            let moved = operation(*word, offset << shift);
            *word = (*word & !magnitude) | (moved & magnitude);
        };
        let (mut row, mut column) = (first / self.columns, first % self.columns);
        while !words.is_empty() {
            let (line, rest) = words.split_at_mut(words.len().min(self.columns - column));
            let row_offset = self.rows.get(row).map_or(0, |&offset| i64::from(offset));
            let row_offset = W::truncate(row_offset as u64);
            if self.cols.is_empty() {
                for word in line {
                    shift_one(word, row_offset);
                }
            } else {
                for (word, &offset) in line.iter_mut().zip(&self.cols[column..]) {
                    let offset = W::truncate(i64::from(offset) as u64);
                    shift_one(word, row_offset.wrapping_add(offset));
                }
            }
            words = rest;
            (row, column) = (row + 1, 0);
        }
    }

    /// Whether anything is subtracted.
    pub(crate) fn has_offsets(&self) -> bool {
        !(self.rows.is_empty() && self.cols.is_empty())
    }

    /// Whether signs are turned.
    pub(crate) fn has_flips(&self) -> bool {
        !(self.row_flips.is_empty() && self.col_flips.is_empty())
    }

    /// The largest class of an element.
    pub(crate) fn largest_class(&self) -> usize {
        let largest = |classes: &[i8]| classes.iter().copied().max().unwrap_or(0) as usize;
        largest(&self.row_classes) + largest(&self.col_classes)
    }

    /// The classes of elements from `first` on.
    #[inline(always)]
    pub(crate) fn classes(&self, first: usize, mut classes: &mut [u8]) {
        let (mut row, mut column) = (first / self.columns, first % self.columns);
        while !classes.is_empty() {
            let (line, rest) = classes.split_at_mut(classes.len().min(self.columns - column));
            let of_row = self.row_classes.get(row).map_or(0, |&class| class as u8);
            line.fill(of_row);
            for (class, &of_column) in line
                .iter_mut()
                .zip(self.col_classes.get(column..).unwrap_or_default())
            {
                *class += of_column as u8;
            }
            classes = rest;
            (row, column) = (row + 1, 0);
        }
    }

    /// Turns the signs of elements `first..first + words.len()` that are to be turned.
    #[inline(always)]
    fn flip<W: Word>(&self, words: &mut [W], first: usize) {
        let turn = |word: &mut W, sign: W| *word = *word ^ sign;
        self.turn_signs(words, first, turn);
    }

    /// The same for elements as they are stored.
    #[inline(always)]
    pub(crate) fn flip_stored<W: Word>(&self, elements: &mut [W::Bytes], first: usize) {
        let turn =
            |bytes: &mut W::Bytes, sign: W| *bytes = (W::from_bytes(*bytes) ^ sign).to_bytes();
        self.turn_signs(elements, first, turn);
    }

    /// Calls `turn` with the sign bit or zero: for the row of every element and for its column.
    #[inline(always)]
    fn turn_signs<W: Word, T>(
        &self,
        mut elements: &mut [T],
        first: usize,
        turn: impl Fn(&mut T, W),
    ) {
        let (mut row, mut column) = (first / self.columns, first % self.columns);
        let top = W::BITS - 1;
        while !elements.is_empty() {
            let (line, rest) = elements.split_at_mut(elements.len().min(self.columns - column));
            let of_row = self.row_flips.get(row).map_or(0, |&flip| flip as u64);
            let of_row = W::truncate(of_row) << top;
            for element in line.iter_mut() {
                turn(element, of_row);
            }
            for (element, &flip) in line
                .iter_mut()
                .zip(self.col_flips.get(column..).unwrap_or_default())
            {
                turn(element, W::truncate(flip as u64) << top);
            }
            elements = rest;
            (row, column) = (row + 1, 0);
        }
    }

    /// The flips of all columns, each in bit `position` of a little-endian word.
    pub(crate) fn flip_words<W: Word>(&self, position: u32) -> Vec<u8> {
        let mut words = vec![0; self.col_flips.len() * W::BYTES];
        for (word, &flip) in W::split_mut(&mut words).iter_mut().zip(&self.col_flips) {
            *word = (W::truncate(flip as u64) << position).to_bytes();
        }
        words
    }

    /// The offsets of all columns, shifted to the left, as little-endian words.
    pub(crate) fn column_words<W: Word>(&self, shift: u32) -> Vec<u8> {
        let shift =
            |word: W| word << shift.min(W::BITS - 1) << shift.saturating_sub(W::BITS - 1).min(1);
        let mut words = vec![0; self.cols.len() * W::BYTES];
        for (word, &offset) in W::split_mut(&mut words).iter_mut().zip(&self.cols) {
            *word = shift(W::truncate(i64::from(offset) as u64)).to_bytes();
        }
        words
    }

    /// Cuts elements `first..first + count` at the ends of rows: calls `visit` with the range of each
    /// part, counted from `first`, its offset in steps of the magnitude's lowest bit, and its first
    /// column.
    #[inline(always)]
    pub(crate) fn for_each_row(
        &self,
        first: usize,
        count: usize,
        mut visit: impl FnMut(Range<usize>, u64, usize),
    ) {
        let (mut row, mut column) = (first / self.columns, first % self.columns);
        let mut start = 0;
        while start < count {
            let end = count.min(start + self.columns - column);
            let offset = self.rows.get(row).map_or(0, |&offset| i64::from(offset));
            visit(start..end, (offset << self.shift) as u64, column);
            (start, row, column) = (end, row + 1, 0);
        }
    }

    pub(crate) fn read_from(bytes: &[u8], position: &mut usize, elements: u64) -> Result<Self> {
        let fail = |what: &str| Error::corrupt(format!("scale offsets: {what}"));
        let columns = read_varint(bytes, position)?;
        if columns == 0 || columns > elements {
            return Err(fail("the number of columns is out of range"));
        }
        let head = bytes
            .get(*position..*position + 2)
            .ok_or_else(|| fail("cut off"))?;
        *position += 2;
        let (axes, shift) = (head[0], u32::from(head[1]));
        if axes == 0 || axes >> 6 != 0 || shift >= 64 {
            return Err(fail("axes or unit out of range"));
        }
        let mut scale = Self {
            columns: columns as usize,
            shift,
            ..Self::default()
        };
        for (number, list) in scale.lists_mut().into_iter().enumerate() {
            if axes >> number & 1 == 0 {
                continue;
            }
            let of_rows = number % 2 == 0;
            let count = if of_rows {
                elements.div_ceil(columns)
            } else {
                columns
            };
            *list = read_axis(bytes, position, count)?;
            if let Some(kind) = (number / 2).checked_sub(1) {
                let legal = 0..=LARGEST_ENTRY[kind];
                if !list.iter().all(|entry| legal.contains(entry)) {
                    return Err(fail("a flip or class is out of range"));
                }
            }
        }
        Ok(scale)
    }

    /// In stored order: offsets, flips and classes of rows and columns.
    fn lists(&self) -> [&[i8]; 6] {
        [
            &self.rows,
            &self.cols,
            &self.row_flips,
            &self.col_flips,
            &self.row_classes,
            &self.col_classes,
        ]
    }

    fn lists_mut(&mut self) -> [&mut Vec<i8>; 6] {
        [
            &mut self.rows,
            &mut self.cols,
            &mut self.row_flips,
            &mut self.col_flips,
            &mut self.row_classes,
            &mut self.col_classes,
        ]
    }

    pub(crate) fn write_to(&self, out: &mut Vec<u8>) {
        write_varint(out, self.columns as u64);
        let lists = self.lists().into_iter().enumerate();
        let bits = lists.map(|(number, list)| u8::from(!list.is_empty()) << number);
        out.push(bits.sum());
        out.push(self.shift as u8);
        for axis in self.lists() {
            if !axis.is_empty() {
                write_axis(axis, out);
            }
        }
    }

    /// Bytes [`ScaleOffsets::write_to`] appends.
    pub(crate) fn wire_len(&self) -> usize {
        let mut out = Vec::new();
        self.write_to(&mut out);
        out.len()
    }
}

/// `[8 bits] smallest offset, [8 bits] width`, then the offsets less the smallest as a
/// little-endian bit string.
fn write_axis(axis: &[i8], out: &mut Vec<u8>) {
    let low = axis.iter().copied().min().unwrap_or(0);
    let span = axis
        .iter()
        .map(|&offset| offset.wrapping_sub(low) as u8)
        .max()
        .unwrap_or(0);
    let least = u32::from(axis.len() > MAX_UNIFORM);
    let width = (u8::BITS - span.leading_zeros()).max(least);
    out.extend([low as u8, width as u8]);
    let fields: Vec<u8> = axis
        .iter()
        .map(|&offset| offset.wrapping_sub(low) as u8)
        .collect();
    super::raw::pack(Kernels::scalar(), &fields, width, out);
}

fn read_axis(bytes: &[u8], position: &mut usize, count: u64) -> Result<Vec<i8>> {
    let cut = || Error::corrupt("scale offsets: cut off");
    let head = bytes.get(*position..*position + 2).ok_or_else(cut)?;
    let (low, width) = (head[0], u32::from(head[1]));
    if width > 8 {
        return Err(Error::corrupt("scale offsets: a width is above 8 bits"));
    }
    let count = usize::try_from(count).map_err(|_| cut())?;
    // Every other list takes up input, which bounds the allocation.
    if width == 0 && count > MAX_UNIFORM {
        return Err(Error::corrupt(
            "scale offsets: a list of width 0 is too long",
        ));
    }
    let start = *position + 2;
    let len = (count / 8)
        .checked_mul(width as usize)
        .map(|groups| groups + super::raw::raw_len(count % 8, width))
        .ok_or_else(cut)?;
    let packed = start
        .checked_add(len)
        .and_then(|end| bytes.get(start..end))
        .ok_or_else(cut)?;
    *position = start + len;
    let mut fields = vec![0_u8; count];
    super::raw::unpack(Kernels::scalar(), packed, width, &mut fields)?;
    fields
        .into_iter()
        .map(|field| {
            let offset = i16::from(low as i8) + i16::from(field);
            i8::try_from(offset).map_err(|_| Error::corrupt("scale offsets: an offset overflows"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn roundtrip(
            elements in 1_u64..500, columns in 1_u64..40, seed: u64, axes in 1_u8..64,
        ) {
            let columns = columns.min(elements);
            let mut random = seed;
            let mut offsets = ScaleOffsets {
                columns: columns as usize,
                shift: (seed % 13) as u32,
                ..ScaleOffsets::default()
            };
            for (number, list) in offsets.lists_mut().into_iter().enumerate() {
                let count = if number % 2 == 0 { elements.div_ceil(columns) } else { columns };
                if axes >> number & 1 == 1 {
                    *list = (0..count).map(|_| {
                        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let any = (random >> 40) as i8 >> (seed % 8);
                        match number / 2 {
                            0 => any,
                            kind => any & LARGEST_ENTRY[kind - 1],
                        }
                    }).collect();
                }
            }
            let mut bytes = Vec::new();
            offsets.write_to(&mut bytes);
            prop_assert_eq!(bytes.len(), offsets.wire_len());
            let mut position = 0;
            let back = ScaleOffsets::read_from(&bytes, &mut position, elements).unwrap();
            prop_assert_eq!(&back, &offsets);
            prop_assert_eq!(position, bytes.len());
            for cut in 0..bytes.len() {
                prop_assert!(ScaleOffsets::read_from(&bytes[..cut], &mut 0, elements).is_err());
            }

            let words: Vec<u16> = (0..elements).map(|i| i.wrapping_mul(seed) as u16).collect();
            let mut changed = words.clone();
            let cut = (seed % elements) as usize;
            offsets.subtract(&mut changed[..cut], 0);
            offsets.subtract(&mut changed[cut..], cut);
            for (i, (&new, &old)) in changed.iter().zip(&words).enumerate() {
                let row = offsets.rows.get(i / offsets.columns).map_or(0, |&o| i64::from(o));
                let col = offsets.cols.get(i % offsets.columns).map_or(0, |&o| i64::from(o));
                let magnitude = i64::from(old & 0x7fff) - ((row + col) << offsets.shift);
                prop_assert_eq!(i64::from(new & 0x7fff), magnitude.rem_euclid(1 << 15));
                let flip = |list: &[i8], line: usize| list.get(line).map_or(0, |&flip| flip as u16);
                let row_flip = flip(&offsets.row_flips, i / offsets.columns);
                let col_flip = flip(&offsets.col_flips, i % offsets.columns);
                prop_assert_eq!(new >> 15, old >> 15 ^ row_flip ^ col_flip);
            }
            offsets.add(&mut changed, 0);
            prop_assert_eq!(changed, words);
        }
    }
}
