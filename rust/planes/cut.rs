//! The cut of nearly every tensor: constant bits or none, one or two coded planes, one raw plane.
//!
//! ```text
//! [constant] | first [| second] | raw      float32, joint bit, rotated:
//!                                          eeeeeeee m | mmmmmmm mmmmmmmm mmmmmms
//! value (8 or 16 bits)    | low bytes      eeeeeeee m-------, mmmmmmmm, mmmmmmms; packed bits: mmmmmmm
//! ```
//! The *value* is what the decoders of the coded planes give out: constant and symbols, with room below
//! for the `packed bits` of the raw plane that fill it up to whole bytes. Everything below are byte
//! planes. The loops are safe code, compiled for each tier by [`crate::simd::Kernels::run`].
//!
//! A second symbol is one of at most 16 values without an escape, whose contexts are the first symbols.
//! Place in docs/format.md: "From element to planes".

use std::ops::Range;

use super::coded::Placement;
use super::words::{Word, raise_sign, with_word};
use crate::constants::ESCAPE;
use crate::entropy::rans::Value;
use crate::model::contexts::{ContextSource, ContextTables};
use crate::model::frequency_table::FrequencyTable;
use crate::model::{Model, Plane, PlaneMode};

/// Byte planes below a value at most.
pub(crate) const MAX_LOW_BYTES: usize = 7;

/// Widest second symbol: all contexts together have 256 of them.
const MAX_SECOND_BITS: u32 = 4;

/// See the module documentation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    element_bits: u32,
    symbol_bits: u32,
    second_bits: u32,
    constant_bits: u32,
    constant: u64,
    pub(crate) raw_bits: u32,
    pub(crate) sign_position: u32,
}

/// The tables of the first symbol: one, or one for each class of lines.
#[derive(Clone, Copy)]
pub(crate) enum FirstTable<'a> {
    Single(&'a FrequencyTable),
    Classes(&'a ContextTables),
}

/// The coded planes of a cut.
#[derive(Clone, Copy)]
pub(crate) struct CutTables<'a> {
    pub(crate) first: FirstTable<'a>,
    /// The number of its plane.
    pub(crate) number: usize,
    pub(crate) second: Option<&'a ContextTables>,
}

impl<'a> CutTables<'a> {
    /// The tables of coded planes that follow each other, from plane `number` on.
    fn of(number: usize, first: &'a Plane, second: Option<&'a Plane>) -> Option<Self> {
        let first = match &first.mode {
            PlaneMode::Coded(table) => FirstTable::Single(table),
            PlaneMode::Contexts(tables) => FirstTable::Classes(tables),
            PlaneMode::Raw | PlaneMode::Constant(_) => return None,
        };
        let second = match second.map(|plane| &plane.mode) {
            None => None,
            Some(PlaneMode::Contexts(tables)) => Some(tables),
            Some(_) => return None,
        };
        let is_covered = |tables: &ContextTables| {
            let source = tables.source();
            let of_first = matches!(source, ContextSource::Plane { plane, .. } if usize::from(plane) == number);
            of_first && !tables.has_escape() && tables.bits() <= MAX_SECOND_BITS
        };
        second.is_none_or(is_covered).then_some(Self {
            first,
            number,
            second,
        })
    }
}

impl Cut {
    /// The cut of a model that has this form, and its tables.
    pub(crate) fn of(model: &Model) -> Option<(Self, CutTables<'_>)> {
        let (constant, rest) = match model.planes.split_first()? {
            (first, rest) if matches!(first.mode, PlaneMode::Constant(_)) => (Some(first), rest),
            _ => (None, model.planes.as_slice()),
        };
        let is_raw = |plane: &&Plane| plane.mode == PlaneMode::Raw;
        let raw_bits = rest.last().filter(is_raw).map_or(0, |raw| raw.bits);
        let (first, second) = match &rest[..rest.len() - usize::from(raw_bits > 0)] {
            [first] => (first, None),
            [first, second] => (first, Some(second)),
            _ => return None,
        };
        let tables = CutTables::of(model.planes.len() - rest.len(), first, second)?;
        let cut = Self {
            element_bits: model.element_bits(),
            symbol_bits: first.bits,
            second_bits: second.map_or(0, |plane| plane.bits),
            constant_bits: constant.map_or(0, |plane| plane.bits),
            constant: match constant.map(|plane| &plane.mode) {
                Some(&PlaneMode::Constant(value)) => value,
                _ => 0,
            },
            raw_bits,
            sign_position: model.sign_position,
        };
        (matches!(cut.value_bits(), 8 | 16) && model.phase == 0).then_some((cut, tables))
    }

    /// Bits of the raw plane that share bytes with the value.
    pub(crate) fn packed_bits(&self) -> u32 {
        self.raw_bits % 8
    }

    /// Bytes of the element below the value.
    pub(crate) fn low_bytes(&self) -> usize {
        (self.raw_bits / 8) as usize
    }

    fn value_bits(&self) -> u32 {
        self.element_bits - 8 * self.low_bytes() as u32
    }

    /// Whether there are constant bits.
    pub(crate) fn has_constant(&self) -> bool {
        self.constant_bits > 0
    }

    /// Whether values have 16 bits.
    pub(crate) fn is_wide(&self) -> bool {
        self.value_bits() == 16
    }

    /// Where the first symbol stands in the value.
    pub(crate) fn placement(&self) -> Placement {
        let shift = self.second_bits + self.packed_bits();
        let constant = self.constant << (self.symbol_bits + shift);
        Placement {
            shift,
            constant: constant as u16,
        }
    }

    /// Whether the sign is above the raw plane, or its lowest bit: where kernels can have it.
    pub(crate) fn has_simple_sign(&self) -> bool {
        self.is_rotated() || self.sign_position >= self.raw_bits
    }

    /// Whether the sign is the lowest bit of all.
    pub(crate) fn is_rotated(&self) -> bool {
        self.sign_position == 0
    }

    /// What the first symbol is of the two bytes of a value whose sign is where the element has it; with a
    /// rotated sign it is where it was.
    pub(crate) fn first_bytes(&self, symbol: u16) -> [u8; 2] {
        self.bytes_of_value(self.placement().place(symbol))
    }

    /// The same of the second symbol.
    pub(crate) fn second_bytes(&self, symbol: u16) -> [u8; 2] {
        self.bytes_of_value(symbol << self.packed_bits())
    }

    fn bytes_of_value(&self, value: u16) -> [u8; 2] {
        let shift = 8 * self.low_bytes() as u32;
        let mut word = [u64::from(value) << shift];
        if !self.is_rotated() {
            with_word!(self.element_bits as usize / 8, W => {
                let mut narrow = word.map(W::truncate);
                raise_sign(&mut narrow, self.sign_position);
                word = narrow.map(W::widen);
            });
        }
        ((word[0] >> shift) as u16).to_le_bytes()
    }

    /// Puts elements together from their values and raw bits.
    #[inline(always)]
    pub(crate) fn join<W: Word + From<u8> + FromValue<V>, V: Value>(
        &self,
        parts: &Parts<'_, V>,
        offsets: Offsets<'_>,
        out: &mut [u8],
    ) {
        match (offsets, self.sign_position) {
            (Offsets::None, 0) => self.join_low::<W, V, true>(parts, |_| W::default(), out),
            (Offsets::None, _) => self.join_low::<W, V, false>(parts, |_| W::default(), out),
            (Offsets::Row(row), 0) => {
                let row = W::truncate(row) << 1;
                self.join_low::<W, V, true>(parts, |_| row, out);
            }
            (Offsets::Row(row), _) => {
                let row = W::truncate(row);
                self.join_low::<W, V, false>(parts, |_| row, out);
            }
            (Offsets::Both(row, columns), 0) => {
                let row = W::truncate(row) << 1;
                let columns = &W::split(columns)[..parts.values.len()];
                let offset = |i: usize| row.wrapping_add(W::from_bytes(columns[i]) << 1);
                self.join_low::<W, V, true>(parts, offset, out);
            }
            (Offsets::Both(row, columns), _) => {
                let row = W::truncate(row);
                let columns = &W::split(columns)[..parts.values.len()];
                let offset = |i: usize| row.wrapping_add(W::from_bytes(columns[i]));
                self.join_low::<W, V, false>(parts, offset, out);
            }
        }
    }

    /// Takes elements apart whose scale offsets and sign have been dealt with; the inverse of
    /// [`Cut::join`] without those. Symbols become offsets from `base`, cut at 63.
    ///
    /// Returns whether the constant bits hold.
    #[inline(always)]
    pub(crate) fn split<W: Word>(
        &self,
        words: &[W],
        base: u16,
        offsets: &mut [u8],
        packed: &mut [u8],
        low: &mut [&mut [u8]],
    ) -> bool {
        let count = words.len();
        let symbol_mask = W::mask(self.symbol_bits);
        let (raw_bits, base) = (self.raw_bits, W::truncate(u64::from(base)));
        let last = W::truncate(u64::from(ESCAPE));
        let offsets = &mut offsets[..count];
        for i in 0..count {
            let offset = (words[i] >> raw_bits).wrapping_sub(base) & symbol_mask;
            offsets[i] = offset.smaller(last).low_byte();
        }
        for (byte, plane) in low.iter_mut().enumerate() {
            let plane = &mut plane[..count];
            for i in 0..count {
                plane[i] = (words[i] >> (8 * byte as u32)).low_byte();
            }
        }
        if self.packed_bits() > 0 {
            let (packed, shift) = (&mut packed[..count], 8 * self.low_bytes() as u32);
            for i in 0..count {
                packed[i] = (words[i] >> shift).low_byte();
            }
        }
        if self.constant_bits == 0 {
            return true;
        }
        let constant = W::truncate(self.constant << (W::BITS - self.constant_bits));
        let differing = words.iter().fold(W::default(), |differing, &word| {
            differing | (word ^ constant)
        });
        differing >> (W::BITS - self.constant_bits) == W::default()
    }

    #[inline(always)]
    fn join_low<W: Word + From<u8> + FromValue<V>, V: Value, const ROTATED: bool>(
        &self,
        parts: &Parts<'_, V>,
        offset: impl Fn(usize) -> W,
        out: &mut [u8],
    ) {
        // A value of one or two bytes leaves these counts of low bytes only.
        match parts.low.len() {
            0 => self.join_loop::<W, V, 0, ROTATED>(parts, offset, out),
            1 => self.join_loop::<W, V, 1, ROTATED>(parts, offset, out),
            2 => self.join_loop::<W, V, 2, ROTATED>(parts, offset, out),
            3 => self.join_loop::<W, V, 3, ROTATED>(parts, offset, out),
            6 => self.join_loop::<W, V, 6, ROTATED>(parts, offset, out),
            _ => self.join_loop::<W, V, 7, ROTATED>(parts, offset, out),
        }
    }

    #[inline(always)]
    fn join_loop<
        W: Word + From<u8> + FromValue<V>,
        V: Value,
        const LOW: usize,
        const ROTATED: bool,
    >(
        &self,
        parts: &Parts<'_, V>,
        offset: impl Fn(usize) -> W,
        out: &mut [u8],
    ) {
        if LOW >= W::BYTES || LOW + 1 + usize::from(V::WIDE) != W::BYTES {
            return;
        }
        let count = parts.values.len();
        let values = &parts.values[..count];
        let low: [&[u8]; LOW] = std::array::from_fn(|byte| &parts.low[byte][..count]);
        let out = &mut W::split_mut(out)[..count];
        let top = 8 * LOW as u32;
        let (mask, sign) = (W::mask(W::BITS - 1), self.sign_position);
        let below = W::mask(sign);
        let mut element = |i: usize, packed: W| {
            let mut word = (W::from_value(values[i]) | packed) << top;
            for (byte, plane) in low.iter().enumerate() {
                word = word | W::from(plane[i]) << (8 * byte as u32);
            }
            let word = if ROTATED {
                word.wrapping_add(offset(i)).rotate_right_one()
            } else {
                let sign = (word >> sign) << (W::BITS - 1);
                let magnitude = ((word >> 1) & !below) | (word & below);
                sign | (magnitude.wrapping_add(offset(i)) & mask)
            };
            out[i] = word.to_bytes();
        };
        if parts.packed.is_empty() {
            for i in 0..count {
                element(i, W::default());
            }
        } else {
            let packed = &parts.packed[..count];
            for (i, &packed) in packed.iter().enumerate() {
                element(i, W::from(packed));
            }
        }
    }
}

/// Widens a decoded value.
pub(crate) trait FromValue<V> {
    fn from_value(value: V) -> Self;
}

macro_rules! from_value {
    ($($value:ty => $($word:ty),*;)*) => { $($(
        impl FromValue<$value> for $word {
            #[inline(always)]
            fn from_value(value: $value) -> Self {
                value as $word
            }
        }
    )*)* };
}
from_value! { u8 => u8, u16, u32, u64; u16 => u8, u16, u32, u64; }

/// What a run of elements is made of, all of the same length.
pub(crate) struct Parts<'a, V> {
    pub(crate) values: &'a [V],
    /// The packed bits, one field a byte; empty if there are none.
    pub(crate) packed: &'a [u8],
    /// The byte planes, the lowest bits first.
    pub(crate) low: &'a [&'a [u8]],
}

impl<'a, V> Parts<'a, V> {
    /// The byte planes of some of the elements.
    #[inline(always)]
    pub(crate) fn low_planes(&self, range: &Range<usize>) -> [&'a [u8]; MAX_LOW_BYTES] {
        let plane = |byte: usize| match self.low.get(byte) {
            Some(plane) => &plane[range.clone()],
            None => &[],
        };
        std::array::from_fn(plane)
    }

    /// The parts of some of the elements, with their byte planes.
    #[inline(always)]
    pub(crate) fn part<'b>(&self, range: &Range<usize>, low: &'b [&'b [u8]]) -> Parts<'b, V>
    where
        'a: 'b,
    {
        Parts {
            values: &self.values[range.clone()],
            packed: if self.packed.is_empty() {
                self.packed
            } else {
                &self.packed[range.clone()]
            },
            low: &low[..self.low.len()],
        }
    }
}

/// Scale offsets of a run of elements in one row, in steps of the magnitude's lowest bit.
#[derive(Clone, Copy)]
pub(crate) enum Offsets<'a> {
    None,
    /// The same for all.
    Row(u64),
    /// That of the row and, as little-endian words, those of the columns.
    Both(u64, &'a [u8]),
}
