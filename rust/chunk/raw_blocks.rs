//! The raw plane of a chunk for the fast way, which knows sub-blocks without trailing zeros only.
//!
//! The decoder restores a sub-block that lacks bits before it is read, in memory that stays in the first
//! caches; the encoder takes the bits out of one that has just been written.

use super::layout::ChunkShape;
use crate::constants::SUB_BLOCK;
use crate::error::Result;
use crate::planes::raw::{TrailingZeros, raw_len};
use crate::simd::Kernels;

/// The raw plane of a chunk, at one of its sub-blocks.
pub(super) struct RawBlocks<'a> {
    /// The raw plane from the sub-block on.
    rest: &'a [u8],
    /// Trailing zeros of all sub-blocks; empty if none has any.
    zeros: &'a [u8],
    rule: TrailingZeros,
    elements: usize,
    /// Bits of a field: those of the rule, or none without a raw plane.
    bits: u32,
    block: usize,
    /// The sub-block, if it lacked bits.
    restored: Vec<u8>,
}

impl<'a> RawBlocks<'a> {
    /// At the first sub-block. The parts are as long as the layout says.
    pub(super) fn new(
        shape: ChunkShape<'_>,
        kernels: Kernels,
        plane: Option<&'a [u8]>,
        zeros: &'a [u8],
    ) -> Result<Self> {
        let rule = shape.trailing_zeros();
        let has_zeros = zeros.iter().any(|&count| count > 0);
        let mut blocks = Self {
            rest: plane.unwrap_or_default(),
            zeros: if has_zeros { zeros } else { &[] },
            rule,
            elements: shape.elements(),
            bits: plane.map_or(0, |_| rule.bits),
            block: 0,
            restored: Vec::new(),
        };
        blocks.restore(kernels)?;
        Ok(blocks)
    }

    /// Bits that fields of sub-block `number` lack.
    fn zeros_of(&self, number: usize) -> u32 {
        self.zeros.get(number).map_or(0, |&zeros| u32::from(zeros))
    }

    /// Elements of sub-block `number`.
    fn len_of(&self, number: usize) -> usize {
        SUB_BLOCK.min(self.elements.saturating_sub(number * SUB_BLOCK))
    }

    /// Bytes of sub-block `number` as it is stored.
    fn stored_len(&self, number: usize) -> usize {
        raw_len(self.len_of(number), self.bits - self.zeros_of(number))
    }

    fn restore(&mut self, kernels: Kernels) -> Result<()> {
        let (count, zeros) = (self.len_of(self.block), self.zeros_of(self.block));
        if zeros == 0 || count == 0 {
            return Ok(());
        }
        self.restored.resize(raw_len(count, self.bits), 0);
        let stored = (&self.rest[..self.stored_len(self.block)], zeros);
        self.rule
            .restore_block(kernels, stored, count, &mut self.restored)
    }

    /// Goes on to sub-block `number`, which is not before the one at hand.
    ///
    /// # Errors
    /// [`crate::Error::Corrupt`] when it lacks bits and those after its last field are not zero.
    pub(super) fn go_on(&mut self, kernels: Kernels, number: usize) -> Result<()> {
        if number == self.block {
            return Ok(());
        }
        let skipped: usize = (self.block..number)
            .map(|number| self.stored_len(number))
            .sum();
        (self.rest, self.block) = (&self.rest[skipped..], number);
        self.restore(kernels)
    }

    /// The first sub-block from the one at hand on that [`RawBlocks::bytes`] does not go up to.
    pub(super) fn end(&self) -> usize {
        let zeros = self.zeros.get(self.block..).unwrap_or_default();
        let whole = zeros.iter().position(|&zeros| zeros > 0);
        whole.map_or(usize::MAX, |whole| self.block + whole.max(1))
    }

    /// Sub-blocks without trailing zeros, from the one at hand on.
    pub(super) fn bytes(&self) -> &[u8] {
        if self.zeros_of(self.block) > 0 {
            &self.restored
        } else {
            self.rest
        }
    }

    /// What is stored after the first `len` of those bytes.
    pub(super) fn ahead(&self, len: usize) -> &'a [u8] {
        let stored = if self.zeros_of(self.block) > 0 {
            self.stored_len(self.block)
        } else {
            len
        };
        &self.rest[stored.min(self.rest.len())..]
    }
}

/// The raw plane of a chunk while it is written.
pub(super) struct RawWriter<'a> {
    rule: TrailingZeros,
    elements: usize,
    bits: u32,
    /// Room for all sub-blocks without trailing zeros.
    room: &'a mut [u8],
    /// Where the sub-block at hand begins.
    begin: usize,
    block: usize,
    /// The counts, to be filled in; empty if the model has none.
    zeros: &'a mut [u8],
    copy: Vec<u8>,
}

impl<'a> RawWriter<'a> {
    /// Fields have `bits` bits; `room` and `zeros` are as long as the shape says.
    pub(super) fn new(
        shape: ChunkShape<'_>,
        bits: u32,
        room: &'a mut [u8],
        zeros: &'a mut [u8],
    ) -> Self {
        Self {
            rule: shape.trailing_zeros(),
            elements: shape.elements(),
            bits,
            room,
            begin: 0,
            block: 0,
            zeros,
            copy: Vec::new(),
        }
    }

    /// The sub-block at hand, and room behind it.
    pub(super) fn block(&mut self) -> &mut [u8] {
        &mut self.room[self.begin..]
    }

    /// Says that the elements before `end` are written; the last one of a sub-block completes it.
    pub(super) fn written(&mut self, kernels: Kernels, end: usize) {
        if !end.is_multiple_of(SUB_BLOCK) && end < self.elements {
            return;
        }
        let count = end - self.block * SUB_BLOCK;
        let mut len = raw_len(count, self.bits);
        if let Some(zeros) = self.zeros.get_mut(self.block) {
            let block = &mut self.room[self.begin..self.begin + len];
            let found = self.rule.count_block(kernels, block, count);
            *zeros = found as u8;
            let copy = &mut self.copy;
            len = self.rule.remove_block(kernels, (block, found), count, copy);
        }
        self.begin += len;
        self.block += 1;
    }

    /// Bytes at the end of the room that trailing zeros have left over.
    pub(super) fn unused(&self) -> usize {
        self.room.len() - self.begin
    }
}
