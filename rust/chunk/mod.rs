//! One chunk: original bytes to payload and back. Chunks are independent of each other.
//!
//! A payload is the chunk itself (raw), a 16-byte pattern (constant), or the planes of a model; which
//! one it is stands in the index of the stream. Place in docs/format.md: "Chunk payload".

mod hash;
mod layout;

pub(crate) use hash::chunk_hash;

use std::cell::RefCell;

use crate::constants::{ALIGNMENT, STATES_BYTES, SUB_BLOCK};
use crate::error::{Error, Result};
use crate::model::{Model, Plane, PlaneMode};
use crate::planes::coded::{IndexTable, IndexedPlane, PlaneCoder};
use crate::planes::raw;
use crate::planes::scale::ScaleOffsets;
use crate::planes::words::{Word, lower_sign, raise_sign, with_word};
use layout::{ChunkShape, PayloadLayout, pad};

/// A model with its tables built, and the scale offsets of the stream if it uses them.
#[derive(Debug)]
pub(crate) struct ModelCoder<'a> {
    model: &'a Model,
    planes: Vec<PlaneCoder>,
    scale: Option<&'a ScaleOffsets>,
}

impl<'a> ModelCoder<'a> {
    pub(crate) fn new(model: &'a Model, scale: Option<&'a ScaleOffsets>) -> Self {
        let planes = model.tables().map(PlaneCoder::new).collect();
        Self {
            model,
            planes,
            scale: scale.filter(|_| model.scaled),
        }
    }

    fn shape(&self, chunk_len: usize) -> ChunkShape<'a> {
        ChunkShape {
            model: self.model,
            chunk_len,
        }
    }
}

/// A [`ModelCoder`] with what only encoding needs.
#[derive(Debug)]
pub(crate) struct ModelEncoder<'a> {
    coder: ModelCoder<'a>,
    tables: Vec<IndexTable>,
}

/// Planes of the chunk at hand. Kept between chunks: fresh memory is slower than the coder.
#[derive(Debug, Default)]
struct Scratch {
    coded: Vec<IndexedPlane>,
    raw: Vec<Vec<u8>>,
    zeros: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl<'a> ModelEncoder<'a> {
    pub(crate) fn new(model: &'a Model, scale: Option<&'a ScaleOffsets>) -> Self {
        let coder = ModelCoder::new(model, scale);
        let tables = coder.planes.iter().map(PlaneCoder::index_table).collect();
        Self { coder, tables }
    }

    /// Appends the payload of `chunk`, whose first element has number `first` in the tensor.
    ///
    /// Returns `false`, with `out` as it was, when the model cannot represent the chunk or gains nothing.
    pub(crate) fn encode(&self, chunk: &[u8], first: usize, out: &mut Vec<u8>) -> bool {
        SCRATCH.with_borrow_mut(|scratch| {
            let begin = out.len();
            let model = self.coder.model;
            let possible =
                with_word!(model.element_bytes, W => self.split::<W>(chunk, first, scratch));
            if possible {
                self.write_payload(chunk, scratch, out);
            }
            let gains = possible && out.len() - begin < chunk.len().next_multiple_of(ALIGNMENT);
            if !gains {
                out.truncate(begin);
            }
            gains
        })
    }

    /// Takes the elements apart; `false` when a plane cannot be represented.
    fn split<W: Word>(&self, chunk: &[u8], first: usize, scratch: &mut Scratch) -> bool {
        let model = self.coder.model;
        let shape = self.coder.shape(chunk.len());
        scratch.clear();
        let mut buffer = [W::default(); SUB_BLOCK];
        let mut field_buffer = [W::default(); SUB_BLOCK];
        for start in (0..shape.elements()).step_by(SUB_BLOCK) {
            let count = SUB_BLOCK.min(shape.elements() - start);
            let (words, fields) = (&mut buffer[..count], &mut field_buffer[..count]);
            let offset = model.phase + start * W::BYTES;
            W::load(&chunk[offset..offset + count * W::BYTES], words);
            if let Some(scale) = self.coder.scale {
                scale.subtract(words, first + start);
            }
            lower_sign(words, model.sign_position);

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
                    PlaneMode::Coded(_) => {
                        if !scratch
                            .coded(coded)
                            .extend(words, field, &self.tables[coded])
                        {
                            return false;
                        }
                        coded += 1;
                    }
                    PlaneMode::Raw => {
                        fields
                            .iter_mut()
                            .zip(&*words)
                            .for_each(|(f, &word)| *f = field(word));
                        let mut width = plane.bits;
                        if model.trailing_zeros && index + 1 == model.planes.len() {
                            let rule = shape.trailing_zeros();
                            let zeros = rule.count(fields);
                            rule.remove(fields, zeros);
                            scratch.zeros.push(zeros as u8);
                            width -= zeros;
                        }
                        raw::pack(fields, width, scratch.raw(raw_index));
                        raw_index += 1;
                    }
                }
            }
        }
        true
    }

    fn write_payload(&self, chunk: &[u8], scratch: &mut Scratch, out: &mut Vec<u8>) {
        let model = self.coder.model;
        let shape = self.coder.shape(chunk.len());
        let planes = self.coder.planes.len();
        let is_raw = |plane: &&Plane| plane.mode == PlaneMode::Raw;
        let raw_planes = model.planes.iter().filter(is_raw).count();
        out.reserve(chunk.len() + chunk.len() / 8);
        let head = out.len();
        out.resize(head + planes * layout::HEAD_BYTES, 0);
        out.extend_from_slice(&scratch.zeros);
        let body = model.phase + shape.elements() * model.element_bytes;
        out.extend_from_slice(&chunk[..model.phase.min(chunk.len())]);
        out.extend_from_slice(&chunk[body.min(chunk.len())..]);
        pad(out, head);
        let states = out.len();
        out.resize(states + planes * STATES_BYTES, 0);
        for plane in 0..raw_planes {
            out.extend_from_slice(scratch.raw(plane));
            pad(out, head);
        }
        for (index, coder) in self.coder.planes.iter().enumerate() {
            let plane = scratch.coded(index);
            let begin = out.len();
            let final_states = coder.encode(&plane.indices, out);
            let (stream, escapes) = ((out.len() - begin) as u32, plane.escapes.len() as u32);
            pad(out, head);
            for byte in 0..coder.table().escape_bytes() {
                out.extend(
                    plane
                        .escapes
                        .iter()
                        .map(|escape| escape.to_le_bytes()[byte]),
                );
                pad(out, head);
            }
            let head = head + index * layout::HEAD_BYTES;
            out[head..head + 4].copy_from_slice(&stream.to_le_bytes());
            out[head + 4..head + 8].copy_from_slice(&escapes.to_le_bytes());
            let states = states + index * STATES_BYTES;
            out[states..states + STATES_BYTES].copy_from_slice(&final_states);
        }
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
    /// Fills `chunk`, whose first element has number `first` in the tensor, from `payload`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the payload is not one this model can have written.
    pub(crate) fn decode(&self, payload: &[u8], first: usize, chunk: &mut [u8]) -> Result<()> {
        let layout = self.shape(chunk.len()).layout(payload)?;
        with_word!(self.model.element_bytes, W => self.join::<W>(payload, &layout, first, chunk))
    }

    /// Decodes the planes and puts the elements together, sub-block by sub-block.
    fn join<W: Word>(
        &self,
        payload: &[u8],
        layout: &PayloadLayout,
        first: usize,
        chunk: &mut [u8],
    ) -> Result<()> {
        let model = self.model;
        let shape = self.shape(chunk.len());
        let edges = &payload[layout.edges.clone()];
        let (head, tail) = edges.split_at(model.phase.min(chunk.len()));
        let (chunk_head, rest) = chunk.split_at_mut(head.len());
        let (body, chunk_tail) = rest.split_at_mut(shape.elements() * W::BYTES);
        chunk_head.copy_from_slice(head);
        chunk_tail.copy_from_slice(tail);

        let mut coded = Vec::with_capacity(self.planes.len());
        for (coder, part) in self.planes.iter().zip(&layout.coded) {
            let mut states = [0; STATES_BYTES];
            states.copy_from_slice(&payload[part.states.clone()]);
            let escapes = [
                &payload[part.escapes[0].clone()],
                &payload[part.escapes[1].clone()],
            ];
            coded.push(coder.decoder(&states, &payload[part.stream.clone()], escapes)?);
        }
        let mut raw: Vec<&[u8]> = layout
            .raw
            .iter()
            .map(|range| &payload[range.clone()])
            .collect();
        let zeros = &payload[layout.zeros.clone()];
        let mut buffer = [W::default(); SUB_BLOCK];
        let mut field_buffer = [W::default(); SUB_BLOCK];
        for (block, bytes) in body.chunks_mut(SUB_BLOCK * W::BYTES).enumerate() {
            let count = bytes.len() / W::BYTES;
            let (words, fields) = (&mut buffer[..count], &mut field_buffer[..count]);
            words.fill(W::default());
            let (mut coded, mut raw) = (coded.iter_mut(), raw.iter_mut());
            for (index, plane) in model.planes.iter().enumerate() {
                match plane.mode {
                    PlaneMode::Constant(value) => {
                        let value = W::truncate(value);
                        for word in words.iter_mut() {
                            *word = word.make_room(plane.bits) | value;
                        }
                    }
                    PlaneMode::Coded(_) => {
                        coded.next().map_or(Ok(()), |plane| plane.append(words))?;
                    }
                    PlaneMode::Raw => {
                        let is_last = index + 1 == model.planes.len();
                        let zeros = zeros.get(block).filter(|_| is_last).copied().unwrap_or(0);
                        let width = plane.bits - u32::from(zeros);
                        if let Some(rest) = raw.next() {
                            let (now, later) = rest.split_at(raw::raw_len(count, width));
                            *rest = later;
                            raw::unpack(now, width, fields)?;
                        }
                        shape.trailing_zeros().restore(fields, u32::from(zeros));
                        for (word, &field) in words.iter_mut().zip(&*fields) {
                            *word = word.make_room(plane.bits) | field;
                        }
                    }
                }
            }
            raise_sign(words, model.sign_position);
            if let Some(scale) = self.scale {
                scale.add(words, first + block * SUB_BLOCK);
            }
            W::store(words, bytes);
        }
        coded
            .into_iter()
            .try_for_each(crate::planes::coded::PlaneDecoder::finish)
    }
}

/// The 16 bytes whose repetition is `chunk`, if there are such bytes.
pub(crate) fn constant_pattern(chunk: &[u8]) -> Option<[u8; ALIGNMENT]> {
    let pattern = *chunk.first_chunk::<ALIGNMENT>()?;
    let (groups, tail) = chunk.as_chunks::<ALIGNMENT>();
    let constant = groups.iter().all(|group| *group == pattern) && pattern.starts_with(tail);
    constant.then_some(pattern)
}

/// Fills `chunk` with repetitions of the pattern.
pub(crate) fn fill_pattern(pattern: &[u8; ALIGNMENT], chunk: &mut [u8]) {
    for group in chunk.chunks_mut(ALIGNMENT) {
        group.copy_from_slice(&pattern[..group.len()]);
    }
}

/// Copies a raw payload, whose padding must be zero.
pub(crate) fn decode_raw(payload: &[u8], chunk: &mut [u8]) -> Result<()> {
    let (bytes, padding) = payload
        .split_at_checked(chunk.len())
        .ok_or_else(|| Error::corrupt("a raw chunk is too short"))?;
    if padding.len() >= ALIGNMENT || padding.iter().any(|&byte| byte != 0) {
        return Err(Error::corrupt("a raw chunk has bytes left over"));
    }
    chunk.copy_from_slice(bytes);
    Ok(())
}

/// Reads a constant payload.
pub(crate) fn decode_constant(payload: &[u8], chunk: &mut [u8]) -> Result<()> {
    let pattern = payload
        .try_into()
        .map_err(|_| Error::corrupt("a constant chunk is not 16 bytes long"))?;
    fill_pattern(pattern, chunk);
    Ok(())
}
