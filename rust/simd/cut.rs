//! What the fused kernels are told: decoder, raw bits, scale offsets, sign, hash and store in one loop;
//! and the way back up to the indices.

#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "only x86-64 has fused kernels so far")
)]

use crate::chunk::ChunkHash;
use crate::constants::SUB_BLOCK;
use crate::entropy::rans::{Decoder, EscapedValues, FirstTables, SecondTables, Spec, ValueMap};
use crate::planes::cut::MAX_LOW_BYTES;

/// Groups of 64 elements of one chunk.
pub(crate) struct CutRun<'a, 'd> {
    pub(crate) decoder: &'a mut Decoder<'d>,
    /// The decoder of second symbols, if there are any.
    pub(crate) second: Option<&'a mut Decoder<'d>>,
    /// With [`Source::Symbols`] bytes of the values of escaped symbols, and where their contexts begin.
    pub(crate) escapes: [&'a EscapedValues; 2],
    /// The raw plane of the chunk.
    pub(crate) raw: &'a [u8],
    /// Number of the run's first element in the chunk, a multiple of 64.
    pub(crate) start: usize,
    /// Elements of each sub-block: as always, or those of the last one, which the run is then in.
    pub(crate) block_len: usize,
    pub(crate) out: &'a mut [u8],
    pub(crate) hash: &'a mut ChunkHash,
    /// Number of the run's first element in the tensor.
    pub(crate) first: usize,
}

/// How elements are put together, the same for all chunks of a model.
#[derive(Clone, Copy)]
pub(crate) struct CutForm<'a> {
    pub(crate) source: Source<'a>,
    pub(crate) element_bytes: usize,
    /// Whether values have 16 bits.
    pub(crate) wide: bool,
    pub(crate) low_bytes: usize,
    pub(crate) packed_bits: u32,
    pub(crate) sign_position: u32,
    pub(crate) scale: Option<ScaleWords<'a>>,
    pub(crate) hashed: bool,
    pub(crate) past_cache: bool,
}

/// What values are decoded with.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// One table.
    Plain(&'a Spec, &'a ValueMap),
    /// Several tables, or flips; the sign is the lowest bit of values and raw bits together, or their
    /// highest.
    Symbols(&'a FirstTables, Option<&'a SecondTables>),
}

/// Scale offsets as words of the element's width, one bit up where the sign is the lowest bit; and for
/// [`Source::Symbols`] the flips and classes of lines.
#[derive(Clone, Copy)]
pub(crate) struct ScaleWords<'a> {
    /// Columns of the matrix, 64 at least.
    pub(crate) columns: usize,
    pub(crate) rows: &'a [i8],
    /// By how much the offset of a row is shifted.
    pub(crate) shift: u32,
    /// The columns' words and the first 63 of them again; or 64 zeros.
    pub(crate) words: &'a [u8],
    /// Whether `words` are those of the columns.
    pub(crate) has_columns: bool,
    pub(crate) row_flips: &'a [i8],
    /// The flips of columns as words, in the bit of the sign, and the first 63 again; or none.
    pub(crate) flips: &'a [u8],
    pub(crate) row_classes: &'a [i8],
    /// The classes of columns, and the first 63 again; or none.
    pub(crate) classes: &'a [u8],
}

impl ScaleWords<'_> {
    /// Whether 64 words can be read from every column on.
    fn covers(&self, element_bytes: usize) -> bool {
        let words = if self.has_columns {
            self.columns + 63
        } else {
            64
        };
        let ring = self.columns + 63;
        self.columns >= 64
            && self.words.len() >= words * element_bytes
            && (self.flips.is_empty() || self.flips.len() >= ring * element_bytes)
            && (self.classes.is_empty() || self.classes.len() >= ring)
    }
}

impl CutForm<'_> {
    /// Bytes of a whole sub-block of the raw plane.
    pub(super) fn block_bytes(&self) -> usize {
        self.low_bytes * SUB_BLOCK + SUB_BLOCK / 8 * self.packed_bits as usize
    }

    /// Where the low bytes of an element are in the raw plane, and where its packed bits are.
    pub(super) fn places(&self, element: usize, block_len: usize) -> ([usize; 3], usize) {
        let (block, within) = (element / SUB_BLOCK, element % SUB_BLOCK);
        let begin = block * self.block_bytes();
        let packed = begin + self.low_bytes * block_len + within / 8 * self.packed_bits as usize;
        (
            std::array::from_fn(|plane| begin + plane * block_len + within),
            packed,
        )
    }

    /// Whether the raw plane has what `groups` groups need.
    fn covers_raw(&self, run: &CutRun<'_, '_>, groups: usize) -> bool {
        let Some(last) = (64 * groups).checked_sub(64) else {
            return true;
        };
        let last = run.start + last;
        let whole = run.block_len == SUB_BLOCK || run.start / SUB_BLOCK == last / SUB_BLOCK;
        // The packed bits of a sub-block come after its low bytes.
        let (_, packed) = self.places(last, run.block_len);
        run.start.is_multiple_of(64)
            && run.block_len <= SUB_BLOCK
            && last % SUB_BLOCK + 64 <= run.block_len
            && whole
            && run.raw.len() >= packed + 8 * self.packed_bits as usize
    }

    /// Whether every part of the run has what `groups` groups need.
    pub(super) fn covers(&self, run: &CutRun<'_, '_>, groups: usize) -> bool {
        let elements = 64 * groups;
        let scaled = self
            .scale
            .is_none_or(|scale| scale.covers(self.element_bytes));
        let second = match (self.source, &run.second) {
            (Source::Symbols(_, Some(_)), Some(second)) => second.safe_groups() >= groups,
            (Source::Symbols(_, Some(_)), None) => false,
            _ => true,
        };
        let classes = match self.source {
            Source::Plain(..) => true,
            Source::Symbols(first, _) => !first.classes.is_empty(),
        };
        run.decoder.safe_groups() >= groups
            && second
            && classes
            && self.covers_raw(run, groups)
            && run.out.len() >= elements * self.element_bytes
            && self.low_bytes + 1 + usize::from(self.wide) == self.element_bytes
            && self.packed_bits < 8
            && scaled
    }
}

/// Groups of 64 elements of one chunk that are to be taken apart.
pub(crate) struct SplitRun<'a> {
    pub(crate) input: &'a [u8],
    pub(crate) hash: &'a mut ChunkHash,
    /// Number of the run's first element in the tensor.
    pub(crate) first: usize,
    pub(crate) indices: &'a mut [u8],
    pub(crate) low: [&'a mut [u8]; MAX_LOW_BYTES],
    pub(crate) packed: &'a mut [u8],
    /// Where escaped symbols go: as many as there are elements, and 64 more.
    pub(crate) escapes: &'a mut [u16],
}

/// How elements are taken apart.
#[derive(Clone, Copy)]
pub(crate) struct SplitForm<'a> {
    /// The index of every offset from `base`; 63 for those without a slot.
    pub(crate) table: &'a [u8; 64],
    pub(crate) base: u16,
    pub(crate) element_bytes: usize,
    /// Whether symbol and packed bits take 16 bits.
    pub(crate) wide: bool,
    pub(crate) low_bytes: usize,
    pub(crate) packed_bits: u32,
    pub(crate) sign_position: u32,
    pub(crate) scale: Option<ScaleWords<'a>>,
}

impl SplitForm<'_> {
    /// Whether every part of the run has what `groups` groups need.
    pub(super) fn covers(&self, run: &SplitRun<'_>, groups: usize) -> bool {
        let elements = 64 * groups;
        let low = &run.low[..self.low_bytes];
        run.input.len() >= elements * self.element_bytes
            && run.indices.len() >= elements
            && low.iter().all(|plane| plane.len() >= elements)
            && run.packed.len() >= elements / 8 * self.packed_bits as usize
            && run.escapes.len() >= elements + 64
            && self.low_bytes + 1 + usize::from(self.wide) == self.element_bytes
            && self.packed_bits < 8
            && self
                .scale
                .is_none_or(|scale| scale.covers(self.element_bytes))
    }
}
