//! The usual cut of floats, tile by tile, several chunks in turn: the fast way.
//!
//! ```text
//! decode:  entropy coder -> values | raw plane -> packed bits   } a tile of each, in the first
//!          join, scale offsets, sign -> elements -> hash        } cache, then the next tile
//! encode:  hash, scale offsets, sign, split -> indices, raw plane, for the whole chunk;
//!          then the entropy coder, from the end to the beginning
//! ```
//! One pass over the memory in both directions. The plain way (`planes.rs`) is the oracle.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use super::hash::ChunkHash;
use super::layout::PayloadLayout;
use super::payload::{write_coded, write_front, write_zeros};
use super::raw_blocks::{RawBlocks, RawWriter};
use super::{DecodeJob, EncodeJob, ModelCoder, keep_if_shorter};
use crate::constants::{LANES, MAX_SYMBOLS, SUB_BLOCK};
use crate::entropy::rans::{Decoder, Encoder, EscapedValues, MAX_DECODERS, PADDED_GROUPS, Value};
use crate::error::Result;
use crate::model::Model;
use crate::planes::coded::PlaneCoder;
use crate::planes::contexts::Lines;
use crate::planes::cut::{Cut, FirstTable, FromValue, MAX_LOW_BYTES, Offsets, Parts};
use crate::planes::raw::{check_tail, raw_len};
use crate::planes::scale::ScaleOffsets;
use crate::planes::symbols::{EscapedSymbols, SymbolCoder};
use crate::planes::words::{Word, low_mask, lower_sign, with_word};
use crate::simd::cut::{CutForm, CutRun, ScaleWords, Source, SplitForm, SplitRun};
use crate::simd::{Kernels, Task};

/// Elements of a tile: small enough that the tiles of all chunks in turn stay in the first cache.
const TILE: usize = 1024;

/// A cut with its tables.
#[derive(Debug)]
pub(super) struct CutCoder {
    cut: Cut,
    coder: Coder,
    /// The offsets of all columns, as words of the element's width.
    columns: Vec<u8>,
    /// What fused kernels read of the columns.
    rings: Rings,
}

/// The decoder of values.
#[derive(Debug)]
enum Coder {
    /// One coded plane with one table, and no flips.
    Plain {
        plane: Box<PlaneCoder>,
        /// What the encoder looks offsets from the table's base up in.
        indices: Option<[u8; MAX_SYMBOLS]>,
    },
    Symbols(Box<SymbolCoder>),
}

/// Lists of columns as fused kernels read them: 64 from any column on, so that the first ones stand again
/// at the end.
#[derive(Debug, Default)]
struct Rings {
    /// Offsets as words, one bit up where the sign is the lowest bit; zeros if there are none.
    offsets: Vec<u8>,
    /// Flips as words, in the bit of the sign; empty if there are none.
    flips: Vec<u8>,
    /// Classes as bytes; empty if there are none.
    classes: Vec<u8>,
}

impl Rings {
    fn new(element_bytes: usize, rotated: bool, scale: &ScaleOffsets) -> Self {
        let sign = if rotated {
            0
        } else {
            8 * element_bytes as u32 - 1
        };
        let (offsets, flips) = with_word!(element_bytes, W => (
            scale.column_words::<W>(scale.shift + u32::from(rotated)),
            scale.flip_words::<W>(sign),
        ));
        let ring = |mut list: Vec<u8>, width: usize| {
            list.extend_from_within(..list.len().min(LANES * width));
            list
        };
        let mut offsets = ring(offsets, element_bytes);
        offsets.resize(offsets.len().max(LANES * element_bytes), 0);
        let classes = scale.col_classes.iter().map(|&class| class as u8);
        Self {
            offsets,
            flips: ring(flips, element_bytes),
            classes: ring(classes.collect(), 1),
        }
    }
}

/// On a cache line of its own, as wide loads like it.
#[repr(align(64))]
struct Aligned<T>(T);

impl CutCoder {
    /// A coder for models of this form.
    pub(super) fn new(model: &Model, scale: Option<&ScaleOffsets>) -> Option<Self> {
        let (cut, tables) = Cut::of(model)?;
        let has_flips = scale.is_some_and(ScaleOffsets::has_flips);
        let coder = match (tables.first, tables.second) {
            (FirstTable::Single(table), None) if !has_flips => {
                let plane = Box::new(PlaneCoder::new(table, cut.placement()));
                let indices = plane.offset_table();
                Coder::Plain { plane, indices }
            }
            _ => Coder::Symbols(Box::new(SymbolCoder::new(model, cut, tables))),
        };
        let columns = scale.map_or(
            Vec::new(),
            |scale| with_word!(model.element_bytes, W => scale.column_words::<W>(scale.shift)),
        );
        let rings = scale.map_or(Rings::default(), |scale| {
            Rings::new(model.element_bytes, cut.is_rotated(), scale)
        });
        Some(Self {
            cut,
            coder,
            columns,
            rings,
        })
    }

    /// Whether this is faster than plane by plane: without a kernel tiles of wide elements in contexts are
    /// not, as measured with AVX2.
    pub(super) fn is_faster(&self, kernels: Kernels, element_bytes: usize) -> bool {
        match self.coder {
            Coder::Plain { .. } => true,
            Coder::Symbols(_) => kernels.has_decode_symbols(element_bytes) || element_bytes < 4,
        }
    }

    /// Chunks that are best decoded in one call.
    pub(super) fn decode_interleave(&self, kernels: Kernels) -> usize {
        match self.coder {
            Coder::Plain { .. } => kernels.decode_interleave(self.cut.is_wide()),
            Coder::Symbols(_) => kernels.symbols_interleave(),
        }
    }

    /// Decodes chunks of the same length and checks their hashes.
    ///
    /// `false`, with nothing decoded, for more chunks than there can be in turn.
    pub(super) fn decode(
        &self,
        coder: &ModelCoder<'_>,
        jobs: &mut [DecodeJob<'_>],
        past_cache: bool,
    ) -> Result<bool> {
        let layouts = jobs
            .iter()
            .map(|job| coder.shape(job.out.len()).layout(job.payload))
            .collect::<Result<Vec<_>>>()?;
        if jobs.len() > MAX_DECODERS {
            return Ok(false);
        }
        with_word!(coder.model.element_bytes, W => if self.cut.is_wide() {
            self.decode_words::<W, u16>(coder, jobs, &layouts, past_cache)
        } else {
            self.decode_words::<W, u8>(coder, jobs, &layouts, past_cache)
        })?;
        Ok(true)
    }

    #[allow(clippy::too_many_lines, reason = "the pipeline in one place")]
    fn decode_words<'a, W, V>(
        &self,
        coder: &ModelCoder<'_>,
        jobs: &mut [DecodeJob<'a>],
        layouts: &[PayloadLayout],
        past_cache: bool,
    ) -> Result<()>
    where
        W: Word + From<u8> + FromValue<V>,
        V: Value,
    {
        let kernels = coder.kernels;
        let elements = coder
            .model
            .elements(jobs.first().map_or(0, |job| job.out.len()));
        let verified = jobs.iter().any(|job| job.hash.is_some());
        let fused = self.form(coder, verified, past_cache);
        let mut escapes: [EscapedSymbols; MAX_DECODERS] = Default::default();
        for ((job, layout), escapes) in jobs.iter_mut().zip(layouts).zip(&mut escapes) {
            let found = layout.coded[0].escapes(job.payload)?;
            match &self.coder {
                Coder::Plain { plane, .. } => escapes.symbols = plane.escaped_values(&found),
                Coder::Symbols(symbols) => *escapes = symbols.escaped(&found),
            }
            job.out[elements * W::BYTES..].copy_from_slice(&job.payload[layout.edges.clone()]);
        }
        let none = EscapedValues::none();
        let mut decoders = Vec::with_capacity(jobs.len());
        let mut seconds = Vec::new();
        for ((job, layout), escapes) in jobs.iter().zip(layouts).zip(&escapes) {
            for (number, part) in layout.coded.iter().enumerate() {
                let stream = &job.readable[part.stream.start..];
                let (plane, escapes) = match number {
                    0 => (&mut decoders, &escapes.symbols),
                    _ => (&mut seconds, &none),
                };
                plane.push(PlaneCoder::decoder(
                    &job.payload[part.states.clone()],
                    (stream, job.readable.len() - part.stream.end),
                    escapes,
                )?);
            }
        }

        let raw = |(job, layout): (&DecodeJob<'a>, &PayloadLayout)| {
            let plane = layout.raw.first().map(|range| &job.payload[range.clone()]);
            let zeros = &job.payload[layout.zeros.clone()];
            RawBlocks::new(coder.shape(job.out.len()), kernels, plane, zeros)
        };
        let mut raws = jobs
            .iter()
            .zip(layouts)
            .map(raw)
            .collect::<Result<Vec<_>>>()?;
        let mut values = Aligned([[V::default(); TILE]; MAX_DECODERS]);
        let mut packed = Aligned([0; TILE]);
        let mut staging = Aligned([W::default().to_bytes(); TILE]);
        let mut hashes = [ChunkHash::default(); MAX_DECODERS];
        let mut start = 0;
        while start < elements {
            let block = start / SUB_BLOCK;
            let block_end = elements.min((block + 1) * SUB_BLOCK);
            for raw in &mut raws {
                raw.go_on(kernels, block)?;
            }
            let mut end = block_end.min(start + TILE);
            if let Some(form) = &fused {
                // The last group is left to the tiles, which know about ends; a last sub-block that
                // is shorter than others is a run of its own, and so is one with trailing zeros.
                let even = raws.iter().map(RawBlocks::end).min();
                let even = even.unwrap_or(block).min(elements / SUB_BLOCK);
                let whole = even * SUB_BLOCK;
                let stop = if start < whole { whole } else { elements };
                let groups = (stop.min(elements - 1) - start) / LANES;
                let safe = decoders.iter().chain(&seconds).map(Decoder::safe_groups);
                let groups = groups.min(safe.min().unwrap_or(0));
                if groups > 0 {
                    let end = start + groups * LANES;
                    let mut parts = Vec::with_capacity(jobs.len());
                    let mut seconds = seconds.iter_mut();
                    let all = jobs.iter_mut().zip(&raws).zip(&mut decoders).zip(&escapes);
                    for ((((job, raw), decoder), escapes), hash) in all.zip(&mut hashes) {
                        parts.push(CutRun {
                            decoder,
                            second: seconds.next(),
                            escapes: [&escapes.values, &escapes.contexts],
                            raw: raw.bytes(),
                            start: start % SUB_BLOCK,
                            block_len: SUB_BLOCK.min(elements - block * SUB_BLOCK),
                            out: &mut job.out[start * W::BYTES..end * W::BYTES],
                            hash,
                            first: job.first + start,
                        });
                    }
                    kernels.decode_cut(form, &mut parts, groups);
                    start = end;
                    continue;
                }
                end = end.min(start + PADDED_GROUPS * LANES);
            }
            let tile = RawTile::new(&self.cut, elements, start, end);
            for (decoder, raw) in decoders.iter_mut().zip(&raws) {
                // While the tile is decoded, the raw bits that follow its own are fetched.
                decoder.ahead = raw.ahead(tile.packed().end);
            }
            let mut tiles = values.0.each_mut().map(|tile| &mut tile[..end - start]);
            let now = &mut tiles[..jobs.len()];
            match &self.coder {
                Coder::Plain { plane, .. } => {
                    Decoder::fill(kernels, (&plane.spec, &plane.map), &mut decoders, now)?;
                }
                Coder::Symbols(symbols) => {
                    let lines = |job: &DecodeJob<'_>| Lines {
                        scale: coder.scale,
                        first: job.first + start,
                    };
                    let lines: Vec<_> = jobs.iter().map(lines).collect();
                    let decoders = (&mut decoders[..], &mut seconds[..]);
                    symbols.fill::<V, TILE>(kernels, decoders, &lines, now)?;
                }
            }
            for (number, job) in jobs.iter_mut().enumerate() {
                let raw = raws[number].bytes();
                let packed = &mut packed.0[..tile.packed_fields()];
                tile.unpack(coder, raw, packed)?;
                let low: [&[u8]; MAX_LOW_BYTES] =
                    std::array::from_fn(|byte| tile.low_plane(raw, byte));
                let parts = Parts {
                    values: &tiles[number][..],
                    packed,
                    low: &low[..self.cut.low_bytes()],
                };
                let (begin, last) = (start * W::BYTES, end == elements);
                let staged = past_cache && !last;
                let target = if staged {
                    &mut W::as_bytes_mut(&mut staging.0)[..(end - start) * W::BYTES]
                } else {
                    // The last tile is hashed together with what follows it.
                    let stop = if last { job.out.len() } else { end * W::BYTES };
                    &mut job.out[begin..stop]
                };
                kernels.run(Join::<W, V> {
                    cut: self,
                    scale: coder.scale,
                    parts,
                    first: job.first + start,
                    out: &mut *target,
                    word: PhantomData,
                });
                if job.hash.is_some() {
                    kernels.hash(&mut hashes[number], &target[..target.len() / 8 * 8]);
                }
                if staged {
                    let target = &W::as_bytes_mut(&mut staging.0)[..(end - start) * W::BYTES];
                    let out = &mut job.out[begin..end * W::BYTES];
                    kernels.copy_past_cache(target, out);
                }
            }
            start = end;
        }
        if past_cache {
            kernels.fence();
        }
        let mut all = decoders.iter().chain(&seconds);
        all.try_for_each(Decoder::finish)?;
        for (job, mut hash) in jobs.iter().zip(hashes) {
            if elements == 0 {
                hash.update(&job.out[..job.out.len() / 8 * 8]);
            }
            job.check(hash.finish(&job.out[job.out.len() / 8 * 8..]))?;
        }
        Ok(())
    }
}

impl CutCoder {
    /// The scale offsets for fused kernels.
    fn scale_words<'a>(&'a self, coder: &ModelCoder<'a>) -> Option<ScaleWords<'a>> {
        coder.scale.map(|scale| ScaleWords {
            columns: scale.columns,
            rows: &scale.rows,
            shift: scale.shift + u32::from(self.cut.sign_position == 0),
            words: &self.rings.offsets,
            has_columns: !scale.cols.is_empty(),
            row_flips: &scale.row_flips,
            flips: &self.rings.flips,
            row_classes: &scale.row_classes,
            classes: &self.rings.classes,
        })
    }

    /// Whether fused kernels can have the scale offsets: those of rows of at least a group.
    fn has_long_rows(coder: &ModelCoder<'_>) -> bool {
        coder.scale.is_none_or(|scale| scale.columns >= LANES)
    }

    /// What the fused encoder is told, if the tier has one for this cut.
    fn split_form<'a>(
        &'a self,
        coder: &ModelCoder<'a>,
        (plane, table): (&PlaneCoder, &'a [u8; MAX_SYMBOLS]),
    ) -> Option<SplitForm<'a>> {
        let element_bytes = coder.model.element_bytes;
        let covered = coder.kernels.has_split_cut(element_bytes) && !self.cut.has_constant();
        (covered && Self::has_long_rows(coder)).then(|| SplitForm {
            table,
            base: plane.table.symbol(0),
            element_bytes,
            wide: self.cut.is_wide(),
            low_bytes: self.cut.low_bytes(),
            packed_bits: self.cut.packed_bits(),
            sign_position: self.cut.sign_position,
            scale: self.scale_words(coder),
        })
    }

    /// What the fused kernel is told, if the tier has one for these elements.
    fn form<'a>(
        &'a self,
        coder: &ModelCoder<'a>,
        hashed: bool,
        past_cache: bool,
    ) -> Option<CutForm<'a>> {
        let element_bytes = coder.model.element_bytes;
        let covered = match &self.coder {
            Coder::Plain { .. } => coder.kernels.has_decode_cut(element_bytes),
            Coder::Symbols(_) => {
                let has_kernel = coder.kernels.has_decode_symbols(element_bytes);
                has_kernel && self.cut.has_simple_sign()
            }
        };
        let source = match &self.coder {
            Coder::Plain { plane, .. } => Source::Plain(&plane.spec, &plane.map),
            Coder::Symbols(symbols) => {
                Source::Symbols(&symbols.first_tables, symbols.second_tables.as_deref())
            }
        };
        (covered && Self::has_long_rows(coder)).then(|| CutForm {
            source,
            element_bytes,
            wide: self.cut.is_wide(),
            low_bytes: self.cut.low_bytes(),
            packed_bits: self.cut.packed_bits(),
            sign_position: self.cut.sign_position,
            scale: self.scale_words(coder),
            hashed,
            past_cache,
        })
    }
}

/// Puts a tile together, row by row if there are scale offsets.
struct Join<'a, W, V> {
    cut: &'a CutCoder,
    scale: Option<&'a ScaleOffsets>,
    parts: Parts<'a, V>,
    /// Number of the tile's first element in the tensor.
    first: usize,
    /// Elements, and after those of the last tile the bytes that follow them.
    out: &'a mut [u8],
    word: PhantomData<W>,
}

impl<W, V> Task for Join<'_, W, V>
where
    W: Word + From<u8> + FromValue<V>,
    V: Value,
{
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self {
            cut, parts, out, ..
        } = self;
        match self.scale {
            None => cut.cut.join::<W, V>(&parts, Offsets::None, out),
            Some(scale) => {
                scale.for_each_row(self.first, parts.values.len(), |range, row, column| {
                    let offsets = if cut.columns.is_empty() {
                        Offsets::Row(row)
                    } else {
                        Offsets::Both(row, &cut.columns[column * W::BYTES..])
                    };
                    let out = &mut out[range.start * W::BYTES..range.end * W::BYTES];
                    let low = parts.low_planes(&range);
                    let run = parts.part(&range, &low);
                    cut.cut.join::<W, V>(&run, offsets, out);
                });
                if scale.has_flips() {
                    let elements = &mut W::split_mut(out)[..parts.values.len()];
                    scale.flip_stored::<W>(elements, self.first);
                }
            }
        }
    }
}

/// Where the raw bits of elements `start..end` lie in their sub-block of the raw plane.
struct RawTile {
    /// Elements of the sub-block.
    block_len: usize,
    /// First element within the sub-block.
    first: usize,
    count: usize,
    low_bytes: usize,
    packed_bits: u32,
}

impl RawTile {
    fn new(cut: &Cut, elements: usize, start: usize, end: usize) -> Self {
        Self {
            block_len: SUB_BLOCK.min(elements - start / SUB_BLOCK * SUB_BLOCK),
            first: start % SUB_BLOCK,
            count: end - start,
            low_bytes: cut.low_bytes(),
            packed_bits: cut.packed_bits(),
        }
    }

    /// Fields in the tile of packed bits.
    fn packed_fields(&self) -> usize {
        if self.packed_bits > 0 { self.count } else { 0 }
    }

    fn low_plane<'r>(&self, raw: &'r [u8], byte: usize) -> &'r [u8] {
        if byte >= self.low_bytes {
            return &[];
        }
        let begin = byte * self.block_len + self.first;
        &raw[begin..begin + self.count]
    }

    /// Byte range of the packed bits.
    fn packed(&self) -> Range<usize> {
        let begin = self.low_bytes * self.block_len + raw_len(self.first, self.packed_bits);
        begin..begin + raw_len(self.count, self.packed_bits)
    }

    /// The byte planes and the packed bits, to write on.
    fn parts_mut<'r>(&self, raw: &'r mut [u8]) -> ([&'r mut [u8]; MAX_LOW_BYTES], &'r mut [u8]) {
        let packed = self.packed();
        let (planes, rest) = raw.split_at_mut(self.low_bytes * self.block_len);
        let mut planes = planes.chunks_mut(self.block_len);
        let low = std::array::from_fn(|_| {
            let plane = planes.next().unwrap_or_default();
            let range = self.first.min(plane.len())..(self.first + self.count).min(plane.len());
            &mut plane[range]
        });
        let begin = packed.start - self.low_bytes * self.block_len;
        (low, &mut rest[begin..begin + packed.len()])
    }

    fn unpack(&self, coder: &ModelCoder<'_>, raw: &[u8], fields: &mut [u8]) -> Result<()> {
        if self.packed_bits == 0 {
            return Ok(());
        }
        let packed = &raw[self.packed()];
        coder.kernels.unpack_bits(packed, self.packed_bits, fields);
        check_tail(packed, self.count, self.packed_bits)
    }
}

/// What the encoder keeps between chunks: fresh memory is slower than the coder.
#[derive(Default)]
struct Scratch {
    encoders: Vec<Encoder>,
    indices: Vec<Vec<u8>>,
    escapes: Vec<Vec<u16>>,
    zeros: Vec<u8>,
    /// Escapes of one run of the fused kernel.
    stray: Vec<u16>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl CutCoder {
    /// Encodes chunks of the same length, with their hashes.
    ///
    /// `false`, with nothing done, for a form that is left to the plain way.
    pub(super) fn encode(&self, coder: &ModelCoder<'_>, jobs: &mut [EncodeJob<'_>]) -> bool {
        let Coder::Plain {
            plane,
            indices: Some(table),
        } = &self.coder
        else {
            return false;
        };
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.encoders.resize_with(jobs.len(), Encoder::default);
            scratch.indices.resize_with(jobs.len(), Vec::new);
            scratch.escapes.resize_with(jobs.len(), Vec::new);
            with_word!(coder.model.element_bytes, W => {
                self.encode_words::<W>(coder, (plane, table), jobs, scratch);
            });
        });
        true
    }

    fn encode_words<W: Word>(
        &self,
        coder: &ModelCoder<'_>,
        (plane, table): (&PlaneCoder, &[u8; MAX_SYMBOLS]),
        jobs: &mut [EncodeJob<'_>],
        scratch: &mut Scratch,
    ) {
        let elements = coder
            .model
            .elements(jobs.first().map_or(0, |job| job.chunk.len()));
        let mut states = Vec::with_capacity(jobs.len());
        let mut possible = true;
        for (number, job) in jobs.iter_mut().enumerate() {
            let shape = coder.shape(job.chunk.len());
            job.payload.clear();
            scratch.zeros.clear();
            scratch.zeros.resize(shape.zero_counts(), 0);
            let zeros = &mut scratch.zeros;
            states.push(write_front(shape, job.chunk, zeros, &mut job.payload));
            let indices = &mut scratch.indices[number];
            indices.resize(elements, 0);
            let escapes = &mut scratch.escapes[number];
            escapes.clear();
            let stray = &mut scratch.stray;
            let found = (&mut indices[..elements], escapes, &mut zeros[..], stray);
            if !self.split::<W>(coder, (plane, table), job, found) {
                // Without an exact histogram this is a rare chunk: it is stored raw.
                job.payload.clear();
                possible = false;
            }
        }
        let indices = scratch.indices.iter().map(|indices| &indices[..elements]);
        let indices: Vec<&[u8]> = indices.collect();
        for (encoder, job) in scratch.encoders.iter_mut().zip(&*jobs) {
            encoder.ahead = (job.next.as_ptr().addr(), job.next.len());
        }
        let run = |encoders: &mut [Encoder], indices: &[&[u8]]| {
            Encoder::encode(coder.kernels, &plane.spec, encoders, indices);
        };
        if possible {
            run(&mut scratch.encoders, &indices);
        }
        for (number, job) in jobs.iter_mut().enumerate() {
            if job.payload.is_empty() {
                continue;
            }
            let encoder = &mut scratch.encoders[number];
            if !possible {
                run(std::slice::from_mut(encoder), &indices[number..=number]);
            }
            let escapes = &scratch.escapes[number];
            write_coded(0, states[number], encoder, escapes, &mut job.payload);
            keep_if_shorter(job.chunk, &mut job.payload);
        }
    }

    /// Writes the raw plane of a chunk and its counts of trailing zeros, and gathers its indices and
    /// escapes; `false` if the model cannot represent the chunk.
    #[allow(clippy::too_many_lines, reason = "the pipeline in one place")]
    fn split<W: Word>(
        &self,
        coder: &ModelCoder<'_>,
        (coder_of_plane, table): (&PlaneCoder, &[u8; MAX_SYMBOLS]),
        job: &mut EncodeJob<'_>,
        (indices, escapes, zeros, stray): (&mut [u8], &mut Vec<u16>, &mut [u8], &mut Vec<u16>),
    ) -> bool {
        let (kernels, elements) = (coder.kernels, indices.len());
        let plane = &coder_of_plane.table;
        let (cut, base) = (&self.cut, plane.symbol(0));
        let mut words = Aligned([W::default(); TILE]);
        let mut packed = Aligned([0; TILE]);
        let mut masks = [0_u64; TILE / LANES];
        let mut hash = ChunkHash::default();
        let shape = coder.shape(job.chunk.len());
        let room = job.payload.extend_stale(shape.raw_len(cut.raw_bits));
        let mut raw = RawWriter::new(shape, cut.raw_bits, room, zeros);
        let last = elements.saturating_sub(1) / TILE * TILE;
        let fused = self.split_form(coder, (coder_of_plane, table));
        if fused.is_some() {
            stray.resize(SUB_BLOCK + LANES, 0);
        }
        let mut start = 0;
        while start < elements {
            if let Some(form) = &fused
                && start < last
            {
                // The last tile is left to the tiles, which know about ends.
                let end = last.min((start / SUB_BLOCK + 1) * SUB_BLOCK);
                let tile = RawTile::new(cut, elements, start, end);
                let (low, bits) = tile.parts_mut(raw.block());
                let run = SplitRun {
                    input: &job.chunk[start * W::BYTES..end * W::BYTES],
                    hash: &mut hash,
                    first: job.first + start,
                    indices: &mut indices[start..end],
                    low,
                    packed: bits,
                    escapes: stray,
                };
                let found = kernels.split_cut(form, run, (end - start) / LANES);
                if found > 0 && !plane.has_escape() {
                    return Self::leave(coder, job);
                }
                escapes.extend_from_slice(&stray[..found]);
                raw.written(kernels, end);
                start = end;
                continue;
            }
            let end = elements.min(start + TILE);
            let tile = RawTile::new(cut, elements, start, end);
            let words = &mut words.0[..end - start];
            let packed = &mut packed.0[..tile.packed_fields()];
            let indices = &mut indices[start..end];
            let bytes = &job.chunk[start * W::BYTES..end * W::BYTES];
            let holds = {
                let (mut low, _) = tile.parts_mut(raw.block());
                if end < elements {
                    kernels.hash(&mut hash, bytes);
                }
                kernels.run(Split {
                    cut,
                    base,
                    scale: coder.scale,
                    bytes,
                    first: job.first + start,
                    words: &mut *words,
                    indices: &mut *indices,
                    packed: &mut *packed,
                    low: &mut low[..tile.low_bytes],
                })
            };
            if !holds {
                return Self::leave(coder, job);
            }
            if tile.packed_bits > 0 {
                let to = &mut raw.block()[tile.packed()];
                kernels.pack_bits(packed, tile.packed_bits, to);
            }
            let masks = &mut masks[..indices.len().div_ceil(LANES)];
            kernels.index(table, indices, masks);
            if masks.iter().any(|&mask| mask != 0) && !plane.has_escape() {
                return Self::leave(coder, job);
            }
            for (group, &mask) in masks.iter().enumerate() {
                let mut left = mask;
                while left != 0 {
                    let word = words[group * LANES + left.trailing_zeros() as usize];
                    let symbol = (word >> cut.raw_bits).widen() & low_mask(plane.bits());
                    escapes.push(symbol as u16);
                    left &= left - 1;
                }
            }
            raw.written(kernels, end);
            start = end;
        }
        let unused = raw.unused();
        job.payload.shorten(unused);
        write_zeros(shape, zeros, &mut job.payload);
        job.payload.pad();
        let rest = &job.chunk[last * W::BYTES..];
        let whole = rest.len() / 8 * 8;
        kernels.hash(&mut hash, &rest[..whole]);
        job.hash = hash.finish(&rest[whole..]);
        true
    }

    /// Gives a chunk up that the model does not fit; it still needs its hash.
    fn leave(coder: &ModelCoder<'_>, job: &mut EncodeJob<'_>) -> bool {
        job.hash = super::chunk_hash(coder.kernels, job.chunk);
        false
    }
}

/// Takes a tile apart; returns whether the constant bits hold.
struct Split<'a, W> {
    cut: &'a Cut,
    base: u16,
    scale: Option<&'a ScaleOffsets>,
    bytes: &'a [u8],
    /// Number of the tile's first element in the tensor.
    first: usize,
    words: &'a mut [W],
    indices: &'a mut [u8],
    packed: &'a mut [u8],
    low: &'a mut [&'a mut [u8]],
}

impl<W: Word> Task for Split<'_, W> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        W::load(self.bytes, self.words);
        if let Some(scale) = self.scale {
            scale.subtract(self.words, self.first);
        }
        lower_sign(self.words, self.cut.sign_position);
        self.cut
            .split(self.words, self.base, self.indices, self.packed, self.low)
    }
}
