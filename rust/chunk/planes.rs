//! Any model, plane by plane and sub-block by sub-block: the plain way, and the oracle of the others.

use std::cell::RefCell;
use std::marker::PhantomData;

use super::layout::{ChunkShape, PayloadLayout};
use super::payload::{Payload, write_coded, write_front};
use super::{AnyCoder, DecodeJob, EncodeJob, ModelCoder, keep_if_shorter};
use crate::constants::SUB_BLOCK;
use crate::entropy::rans::{Decoder, Encoder, EscapedValues, Value};
use crate::error::Result;
use crate::model::{Plane, PlaneMode};
use crate::planes::coded::{IndexTable, IndexedPlane, PlaneCoder};
use crate::planes::contexts::{ContextIndices, Lines};
use crate::planes::raw;
use crate::planes::words::{Word, lower_sign, raise_sign, with_word};
use crate::simd::{Kernels, Task};

/// What the encoder looks symbols up in, for each coded plane.
#[derive(Debug)]
pub(super) struct PlanesEncoder {
    tables: Vec<AnyIndices>,
}

/// The indices of a plane with one table or several.
#[derive(Debug)]
enum AnyIndices {
    Table(IndexTable),
    Contexts(ContextIndices),
}

/// Planes of the chunk at hand. Kept between chunks: fresh memory is slower than the coder.
#[derive(Debug, Default)]
struct Scratch {
    coded: Vec<IndexedPlane>,
    raw: Vec<Vec<u8>>,
    zeros: Vec<u8>,
    encoder: Encoder,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl PlanesEncoder {
    pub(super) fn new(coder: &ModelCoder<'_>) -> Self {
        let indices = |plane: &AnyCoder| match plane {
            AnyCoder::Table(plane) => AnyIndices::Table(plane.index_table()),
            AnyCoder::Contexts(plane) => AnyIndices::Contexts(ContextIndices::new(&plane.tables)),
        };
        Self {
            tables: coder.planes().iter().map(indices).collect(),
        }
    }

    /// Encodes a chunk; leaves the payload empty if the model cannot represent it or gains nothing.
    pub(super) fn encode(&self, coder: &ModelCoder<'_>, job: &mut EncodeJob<'_>) {
        job.payload.clear();
        SCRATCH.with_borrow_mut(|scratch| {
            let model = coder.model;
            let possible = with_word!(model.element_bytes, W => {
                let (chunk, first) = (job.chunk, job.first);
                coder.kernels.run(Split::<W> { encoder: self, coder, chunk, first, scratch, word: PhantomData })
            });
            if possible {
                write_payload(coder, job.chunk, scratch, &mut job.payload);
                keep_if_shorter(job.chunk, &mut job.payload);
            }
        });
    }
}

/// Takes the elements apart; `false` when a plane cannot be represented.
struct Split<'a, W> {
    encoder: &'a PlanesEncoder,
    coder: &'a ModelCoder<'a>,
    chunk: &'a [u8],
    first: usize,
    scratch: &'a mut Scratch,
    word: PhantomData<W>,
}

impl<W: Word> Task for Split<'_, W> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        let Self {
            encoder,
            coder,
            chunk,
            first,
            scratch,
            ..
        } = self;
        let model = coder.model;
        let shape = coder.shape(chunk.len());
        scratch.clear();
        let mut buffer = [W::default(); SUB_BLOCK];
        let mut field_buffer = [W::default(); SUB_BLOCK];
        let mut context_buffer = [0; SUB_BLOCK];
        for start in (0..shape.elements()).step_by(SUB_BLOCK) {
            let count = SUB_BLOCK.min(shape.elements() - start);
            let (words, fields) = (&mut buffer[..count], &mut field_buffer[..count]);
            let offset = model.phase + start * W::BYTES;
            W::load(&chunk[offset..offset + count * W::BYTES], words);
            if let Some(scale) = coder.scale {
                scale.subtract(words, first + start);
            }
            lower_sign(words, model.sign_position);

            let lines = Lines {
                scale: coder.scale,
                first: first + start,
            };
            let (mut below, mut coded, mut raw_index) = (W::BITS, 0, 0);
            for (index, plane) in model.planes.iter().enumerate() {
                below -= plane.bits;
                let mask = W::mask(plane.bits);
                let field = |word: W| (word >> below) & mask;
                match plane.mode {
                    PlaneMode::Constant(value) => {
                        let value = W::truncate(value);
                        if words.iter().any(|&word| field(word) != value) {
                            return false;
                        }
                    }
                    PlaneMode::Coded(_) | PlaneMode::Contexts(_) => {
                        let indexed = scratch.coded(coded);
                        let possible = match (&encoder.tables[coded], &coder.planes()[coded]) {
                            (AnyIndices::Contexts(indices), AnyCoder::Contexts(symbols)) => {
                                let contexts = &mut context_buffer[..count];
                                symbols.contexts(words, below + plane.bits, lines, contexts);
                                let has_escape = plane.has_escape();
                                indices.extend(words, field, contexts, has_escape, indexed)
                            }
                            (AnyIndices::Table(table), _) => {
                                indexed.extend(coder.kernels, words, field, table)
                            }
                            (AnyIndices::Contexts(_), AnyCoder::Table(_)) => false,
                        };
                        if !possible {
                            return false;
                        }
                        coded += 1;
                    }
                    PlaneMode::Raw => {
                        for (to, &word) in fields.iter_mut().zip(&*words) {
                            *to = field(word);
                        }
                        let mut width = plane.bits;
                        if model.trailing_zeros && index + 1 == model.planes.len() {
                            let rule = shape.trailing_zeros();
                            let zeros = rule.count(fields);
                            rule.remove(fields, zeros);
                            scratch.zeros.push(zeros as u8);
                            width -= zeros;
                        }
                        raw::pack(coder.kernels, fields, width, scratch.raw(raw_index));
                        raw_index += 1;
                    }
                }
            }
        }
        true
    }
}

fn write_payload(
    coder: &ModelCoder<'_>,
    chunk: &[u8],
    scratch: &mut Scratch,
    payload: &mut Payload,
) {
    let states = write_front(coder.shape(chunk.len()), chunk, &scratch.zeros, payload);
    let is_raw = |plane: &&Plane| plane.mode == PlaneMode::Raw;
    for plane in 0..coder.model.planes.iter().filter(is_raw).count() {
        payload.extend_from_slice(scratch.raw(plane));
        payload.pad();
    }
    for (index, plane) in coder.planes().iter().enumerate() {
        let Scratch { coded, encoder, .. } = &mut *scratch;
        let IndexedPlane {
            indices,
            escapes,
            contexts,
        } = &coded[index];
        match plane {
            AnyCoder::Table(plane) => {
                let encoders = std::slice::from_mut(encoder);
                Encoder::encode(coder.kernels, &plane.spec, encoders, &[indices]);
            }
            AnyCoder::Contexts(plane) => {
                encoder.encode_contexts(coder.kernels, &plane.spec, contexts, indices);
            }
        }
        write_coded(index, states, encoder, escapes, payload);
    }
}

impl Scratch {
    fn clear(&mut self) {
        self.coded.iter_mut().for_each(IndexedPlane::clear);
        self.raw.iter_mut().for_each(Vec::clear);
        self.zeros.clear();
    }

    fn coded(&mut self, index: usize) -> &mut IndexedPlane {
        if index >= self.coded.len() {
            self.coded.resize_with(index + 1, IndexedPlane::default);
        }
        &mut self.coded[index]
    }

    fn raw(&mut self, index: usize) -> &mut Vec<u8> {
        if index >= self.raw.len() {
            self.raw.resize_with(index + 1, Vec::new);
        }
        &mut self.raw[index]
    }
}

impl ModelCoder<'_> {
    /// Decodes a chunk without looking at its hash.
    pub(super) fn decode_planes(&self, job: &mut DecodeJob<'_>) -> Result<()> {
        let layout = self.shape(job.out.len()).layout(job.payload)?;
        with_word!(self.model.element_bytes, W => {
            self.kernels.run(Join::<W> { coder: self, job, layout: &layout, word: PhantomData })
        })
    }
}

/// Decodes the planes and puts the elements together, sub-block by sub-block.
struct Join<'a, 'j, W> {
    coder: &'a ModelCoder<'a>,
    job: &'a mut DecodeJob<'j>,
    layout: &'a PayloadLayout,
    word: PhantomData<W>,
}

impl<W: Word> Task for Join<'_, '_, W> {
    type Output = Result<()>;

    #[inline(always)]
    fn run(self) -> Result<()> {
        let Self {
            coder, job, layout, ..
        } = self;
        let model = coder.model;
        let (payload, chunk) = (job.payload, &mut *job.out);
        let shape = coder.shape(chunk.len());
        let body = copy_edges(shape, &payload[layout.edges.clone()], chunk);

        let mut escapes = Vec::with_capacity(layout.coded.len());
        for (plane, part) in coder.planes().iter().zip(&layout.coded) {
            let symbols = part.escapes(payload)?;
            escapes.push(match plane {
                AnyCoder::Table(plane) => plane.escaped_values(&symbols),
                AnyCoder::Contexts(_) => EscapedValues::new(symbols.iter().copied()),
            });
        }
        let mut coded = Vec::with_capacity(layout.coded.len());
        for (part, escapes) in layout.coded.iter().zip(&escapes) {
            let stream = (&payload[part.stream.clone()], 0);
            coded.push(PlaneCoder::decoder(
                &payload[part.states.clone()],
                stream,
                escapes,
            )?);
        }
        let mut raw: Vec<&[u8]> = layout
            .raw
            .iter()
            .map(|range| &payload[range.clone()])
            .collect();
        let zeros = &payload[layout.zeros.clone()];
        let mut buffer = [W::default(); SUB_BLOCK];
        let mut field_buffer = [W::default(); SUB_BLOCK];
        let (mut context_buffer, mut index_buffer) = ([0; SUB_BLOCK], [0; SUB_BLOCK]);
        for (block, bytes) in body.chunks_mut(SUB_BLOCK * W::BYTES).enumerate() {
            let count = bytes.len() / W::BYTES;
            let (words, fields) = (&mut buffer[..count], &mut field_buffer[..count]);
            words.fill(W::default());
            let (mut coded, mut raw) = (coder.planes().iter().zip(&mut coded), raw.iter_mut());
            for (index, plane) in model.planes.iter().enumerate() {
                match plane.mode {
                    PlaneMode::Constant(value) => {
                        let value = W::truncate(value);
                        for word in words.iter_mut() {
                            *word = word.make_room(plane.bits) | value;
                        }
                    }
                    PlaneMode::Coded(_) | PlaneMode::Contexts(_) => match coded.next() {
                        Some((AnyCoder::Contexts(plane), decoder)) => {
                            let lines = Lines {
                                scale: coder.scale,
                                first: job.first + block * SUB_BLOCK,
                            };
                            let contexts = &mut context_buffer[..count];
                            plane.contexts(words, 0, lines, contexts);
                            let indices = &mut index_buffer[..count];
                            plane.append(coder.kernels, decoder, (contexts, indices), words)?;
                        }
                        Some((AnyCoder::Table(table), decoder)) if plane.bits > 8 => {
                            append::<W, u16>(coder.kernels, table, decoder, words)?;
                        }
                        Some((AnyCoder::Table(table), decoder)) => {
                            append::<W, u8>(coder.kernels, table, decoder, words)?;
                        }
                        None => {}
                    },
                    PlaneMode::Raw => {
                        let is_last = index + 1 == model.planes.len();
                        let zeros = zeros.get(block).filter(|_| is_last).copied().unwrap_or(0);
                        let width = plane.bits - u32::from(zeros);
                        if let Some(rest) = raw.next() {
                            let (now, later) = rest.split_at(raw::raw_len(count, width));
                            *rest = later;
                            raw::unpack(coder.kernels, now, width, fields)?;
                        }
                        shape.trailing_zeros().restore(fields, u32::from(zeros));
                        for (word, &field) in words.iter_mut().zip(&*fields) {
                            *word = word.make_room(plane.bits) | field;
                        }
                    }
                }
            }
            raise_sign(words, model.sign_position);
            if let Some(scale) = coder.scale {
                scale.add(words, job.first + block * SUB_BLOCK);
            }
            W::store(words, bytes);
        }
        coded.iter().try_for_each(Decoder::finish)
    }
}

/// Puts the next symbols of a plane below what `words` already hold.
#[inline(always)]
fn append<W: Word, V: Value + Into<u64>>(
    kernels: Kernels,
    coder: &PlaneCoder,
    decoder: &mut Decoder<'_>,
    words: &mut [W],
) -> Result<()> {
    let mut buffer = [V::default(); SUB_BLOCK];
    let values = &mut buffer[..words.len()];
    Decoder::fill(
        kernels,
        (&coder.spec, &coder.map),
        std::slice::from_mut(decoder),
        &mut [&mut *values],
    )?;
    let bits = coder.table.bits();
    for (word, &value) in words.iter_mut().zip(&*values) {
        *word = word.make_room(bits) | W::truncate(value.into());
    }
    Ok(())
}

/// Copies the bytes that belong to no whole element and returns where the elements go.
pub(super) fn copy_edges<'c>(
    shape: ChunkShape<'_>,
    edges: &[u8],
    chunk: &'c mut [u8],
) -> &'c mut [u8] {
    let (head, tail) = edges.split_at(shape.model.phase.min(chunk.len()));
    let (chunk_head, rest) = chunk.split_at_mut(head.len());
    let (body, chunk_tail) = rest.split_at_mut(shape.elements() * shape.model.element_bytes);
    chunk_head.copy_from_slice(head);
    chunk_tail.copy_from_slice(tail);
    body
}
