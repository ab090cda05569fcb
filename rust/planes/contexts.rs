//! Coded planes with several tables: the context of every element, then symbols to indices and back.
//!
//! Place in docs/format.md: "Context tables".

use super::coded::{IndexedPlane, NO_INDEX};
use super::scale::ScaleOffsets;
use super::words::{Word, low_mask};
use crate::constants::{ESCAPE, MAX_SYMBOLS};
use crate::entropy::rans::{ContextSpec, Decoder, ValueMap};
use crate::error::Result;
use crate::model::Plane;
use crate::model::contexts::{ContextSource, ContextTables};
use crate::simd::Kernels;

/// The tables of a plane ready to code with.
#[derive(Clone, Debug)]
pub(crate) struct ContextCoder {
    pub(crate) tables: ContextTables,
    pub(crate) spec: ContextSpec,
    pub(crate) map: ValueMap,
    source: Source,
}

/// How the context of an element is found.
#[derive(Clone, Copy, Debug)]
enum Source {
    Lines,
    /// From the bits of an earlier plane.
    Bits {
        first: u16,
        width: u32,
        /// Bits between that plane and this one.
        between: u32,
    },
}

/// Elements of a chunk: where they are in the tensor.
#[derive(Clone, Copy)]
pub(crate) struct Lines<'a> {
    pub(crate) scale: Option<&'a ScaleOffsets>,
    /// Number of the first element.
    pub(crate) first: usize,
}

impl ContextCoder {
    /// A coder for plane number `number` of `planes`, which a valid model has.
    pub(crate) fn new(tables: &ContextTables, planes: &[Plane], number: usize) -> Self {
        let mut map = ValueMap {
            low: [0; MAX_SYMBOLS],
            high: [0; MAX_SYMBOLS],
            escape: tables.has_escape(),
        };
        for index in 0..MAX_SYMBOLS as u8 {
            let place = usize::from(index);
            [map.low[place], map.high[place]] = tables.symbol(index).to_le_bytes();
        }
        let source = match tables.source() {
            ContextSource::Lines => Source::Lines,
            ContextSource::Plane { plane, first } => {
                let plane = usize::from(plane);
                let between = &planes[plane + 1..number];
                Source::Bits {
                    first,
                    width: planes[plane].bits,
                    between: between.iter().map(|plane| plane.bits).sum(),
                }
            }
        };
        Self {
            tables: tables.clone(),
            spec: ContextSpec::new(tables.slot_orders().map(Vec::into_iter)),
            map,
            source,
        }
    }

    /// The contexts of elements whose bits above this plane are those of `words` from bit `at` on.
    #[inline(always)]
    pub(crate) fn contexts<W: Word>(
        &self,
        words: &[W],
        at: u32,
        lines: Lines<'_>,
        contexts: &mut [u8],
    ) {
        let most = self.tables.contexts() as i16 - 1;
        match self.source {
            Source::Lines => match lines.scale {
                Some(scale) => scale.classes(lines.first, contexts),
                None => contexts.fill(0),
            },
            Source::Bits {
                first,
                width,
                between,
            } => {
                for (context, &word) in contexts.iter_mut().zip(words) {
                    let symbol = (word >> at >> between).widen() as u16;
                    *context = context_of(symbol, first, width, most);
                }
            }
        }
    }

    /// The context of every element whose symbol in the plane that contexts come from is this one.
    pub(crate) fn context_of(&self, symbol: u16) -> u8 {
        match self.source {
            Source::Lines => 0,
            Source::Bits { first, width, .. } => {
                context_of(symbol, first, width, self.tables.contexts() as i16 - 1)
            }
        }
    }

    /// Puts the next symbols below what `words` already hold.
    ///
    /// # Errors
    /// [`crate::Error::Corrupt`] when the stream is too short.
    #[inline(always)]
    pub(crate) fn append<W: Word>(
        &self,
        kernels: Kernels,
        decoder: &mut Decoder<'_>,
        (contexts, indices): (&[u8], &mut [u8]),
        words: &mut [W],
    ) -> Result<()> {
        decoder.fill_contexts(kernels, &self.spec, contexts, indices)?;
        let bits = self.tables.bits();
        if self.map.escape {
            for (word, &index) in words.iter_mut().zip(&*indices) {
                let symbol: u16 = decoder.value(&self.map, index);
                *word = word.make_room(bits) | W::truncate(symbol.into());
            }
        } else {
            let (base, mask) = (self.tables.symbol(0), low_mask(bits) as u16);
            for (word, &index) in words.iter_mut().zip(&*indices) {
                let symbol = base.wrapping_add(u16::from(index)) & mask;
                *word = word.make_room(bits) | W::truncate(symbol.into());
            }
        }
        Ok(())
    }
}

/// The context of a symbol of `width` bits; bits above do not count.
#[inline(always)]
fn context_of(symbol: u16, first: u16, width: u32, most: i16) -> u8 {
    let unused = u16::BITS - width;
    // Sign extended: what is below the first one is not far above it.
    let above = (symbol.wrapping_sub(first) << unused).cast_signed() >> unused;
    above.clamp(0, most) as u8
}

/// The index of every symbol in every context.
#[derive(Clone, Debug)]
pub(crate) struct ContextIndices {
    bits: u32,
    /// Index of symbol `s` in context `c`: at `c << bits | s`.
    indices: Vec<u8>,
}

impl ContextIndices {
    pub(crate) fn new(tables: &ContextTables) -> Self {
        let bits = tables.bits();
        let mut indices = Vec::with_capacity(tables.contexts() << bits);
        for table in tables.tables() {
            let table: Vec<(u8, u8)> = table.filter(|&(_, frequency)| frequency > 0).collect();
            let is_escape = |index: u8| tables.has_escape() && index == ESCAPE;
            let rare = if table.iter().any(|&(index, _)| is_escape(index)) {
                ESCAPE
            } else {
                NO_INDEX
            };
            let start = indices.len();
            indices.resize(start + (1 << bits), rare);
            for (index, _) in table.into_iter().filter(|&(index, _)| !is_escape(index)) {
                indices[start + usize::from(tables.symbol(index))] = index;
            }
        }
        Self { bits, indices }
    }

    /// Appends the symbols `field(word)` of elements with these contexts; `false` if one of them cannot
    /// be represented.
    #[inline(always)]
    pub(crate) fn extend<W: Word>(
        &self,
        words: &[W],
        field: impl Fn(W) -> W,
        contexts: &[u8],
        has_escape: bool,
        plane: &mut IndexedPlane,
    ) -> bool {
        let start = plane.indices.len();
        plane.indices.resize(start + words.len(), 0);
        let added = &mut plane.indices[start..];
        let symbol = |word: W| field(word).widen() as usize;
        let mut possible = true;
        for ((index, &word), &context) in added.iter_mut().zip(words).zip(contexts) {
            *index = self.indices[usize::from(context) << self.bits | symbol(word)];
            possible &= *index != NO_INDEX;
        }
        if has_escape {
            let escaped = words
                .iter()
                .zip(added)
                .filter(|(_, index)| **index == ESCAPE);
            let escaped = escaped.map(|(&word, _)| symbol(word) as u16);
            plane.escapes.extend(escaped);
        }
        plane.contexts.extend_from_slice(contexts);
        possible
    }
}
