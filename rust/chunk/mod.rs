//! One chunk: original bytes to payload and back. Chunks are independent of each other.
//!
//! A payload is the chunk itself (raw), a 16-byte pattern (constant), or the planes of a model; which
//! one it is stands in the index of the stream. Place in docs/format.md: "Chunk payload".

mod hash;
mod layout;

pub(crate) use hash::chunk_hash;

use crate::constants::{ALIGNMENT, STATES_BYTES, SUB_BLOCK};
use crate::error::{Error, Result};
use crate::model::{Model, PlaneMode};
use crate::planes::coded::{PlaneCoder, escape_bytes};
use crate::planes::scale::ScaleOffsets;
use crate::planes::{raw, words};
use layout::{ChunkShape, pad};

/// A model with its coders built, and the scale offsets of the stream if it uses them.
#[derive(Debug)]
pub(crate) struct ModelCoder<'a> {
    model: &'a Model,
    planes: Vec<PlaneCoder>,
    scale: Option<&'a ScaleOffsets>,
}

impl<'a> ModelCoder<'a> {
    pub(crate) fn new(model: &'a Model, scale: Option<&'a ScaleOffsets>) -> Self {
        let planes = model.tables().map(PlaneCoder::new).collect();
        Self { model, planes, scale: scale.filter(|_| model.scaled) }
    }

    /// Appends the payload of `chunk`, whose first element has number `first` in the tensor.
    ///
    /// Returns `false`, with `out` as it was, when the model cannot represent the chunk or gains nothing.
    pub(crate) fn encode(&self, chunk: &[u8], first: usize, out: &mut Vec<u8>) -> bool {
        let shape = ChunkShape { model: self.model, chunk_len: chunk.len() };
        let begin = out.len();
        let Some(planes) = self.split(shape, chunk, first) else { return false };
        let mut coded = Vec::new();
        for (coder, symbols) in self.planes.iter().zip(&planes.symbols) {
            let Some(plane) = coder.encode(symbols) else { return false };
            coded.push(plane);
        }
        for plane in &coded {
            out.extend_from_slice(&(plane.stream.len() as u32).to_le_bytes());
            out.extend_from_slice(&(plane.escapes.len() as u32).to_le_bytes());
        }
        out.extend_from_slice(&planes.zeros);
        let elements = shape.elements() * self.model.element_bytes;
        out.extend_from_slice(&chunk[..self.model.phase.min(chunk.len())]);
        out.extend_from_slice(&chunk[(self.model.phase + elements).min(chunk.len())..]);
        pad(out);
        coded.iter().for_each(|plane| out.extend_from_slice(&plane.states));
        for plane in &planes.raw {
            out.extend_from_slice(plane);
            pad(out);
        }
        for (plane, coder) in coded.iter().zip(&self.planes) {
            out.extend_from_slice(&plane.stream);
            pad(out);
            let escapes = escape_bytes(&plane.escapes, coder.table());
            for part in escapes.chunks_exact(plane.escapes.len().max(1)) {
                out.extend_from_slice(part);
                pad(out);
            }
        }
        let gains = out.len() - begin < chunk.len().next_multiple_of(ALIGNMENT);
        if !gains {
            out.truncate(begin);
        }
        gains
    }

    /// Takes the elements apart; `None` when a constant plane is not constant.
    fn split(&self, shape: ChunkShape<'_>, chunk: &[u8], first: usize) -> Option<SplitPlanes> {
        let (model, bits) = (self.model, self.model.element_bits());
        let mut planes = SplitPlanes::default();
        planes.symbols.resize_with(self.planes.len(), || Vec::with_capacity(shape.elements()));
        let raw_planes = model.planes.iter().filter(|plane| plane.mode == PlaneMode::Raw).count();
        planes.raw.resize_with(raw_planes, Vec::new);
        let mut buffer = [0_u64; SUB_BLOCK];
        let mut fields = [0_u64; SUB_BLOCK];
        for start in (0..shape.elements()).step_by(SUB_BLOCK) {
            let range = start..shape.elements().min(start + SUB_BLOCK);
            let count = range.len();
            let (elements, fields) = (&mut buffer[..count], &mut fields[..count]);
            let offset = model.phase + range.start * model.element_bytes;
            let bytes = &chunk[offset..offset + count * model.element_bytes];
            words::load(bytes, model.element_bytes, elements);
            if let Some(scale) = self.scale {
                scale.subtract(elements, bits, first + range.start);
            }
            words::lower_sign(elements, bits, model.sign_position);

            let (mut below, mut coded, mut raw_index) = (bits, 0, 0);
            for (index, plane) in model.planes.iter().enumerate() {
                below -= plane.bits;
                let field = |&word: &u64| word >> below & words::low_mask(plane.bits);
                match plane.mode {
                    PlaneMode::Constant(value) => {
                        if elements.iter().any(|word| field(word) != value) {
                            return None;
                        }
                    }
                    PlaneMode::Coded(_) => {
                        planes.symbols[coded].extend(elements.iter().map(|word| field(word) as u16));
                        coded += 1;
                    }
                    PlaneMode::Raw => {
                        fields.iter_mut().zip(&*elements).for_each(|(f, word)| *f = field(word));
                        let mut width = plane.bits;
                        if model.trailing_zeros && index + 1 == model.planes.len() {
                            let rule = shape.trailing_zeros();
                            let zeros = rule.count(fields);
                            rule.remove(fields, zeros);
                            planes.zeros.push(zeros as u8);
                            width -= zeros;
                        }
                        raw::pack(fields, width, &mut planes.raw[raw_index]);
                        raw_index += 1;
                    }
                }
            }
        }
        Some(planes)
    }

    /// Fills `chunk` from `payload`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the payload is not one this model can have written.
    pub(crate) fn decode(&self, payload: &[u8], first: usize, chunk: &mut [u8]) -> Result<()> {
        let shape = ChunkShape { model: self.model, chunk_len: chunk.len() };
        let layout = shape.layout(payload)?;
        let count = shape.elements();
        let mut symbols = Vec::with_capacity(self.planes.len());
        for (coder, part) in self.planes.iter().zip(&layout.coded) {
            let mut states = [0; STATES_BYTES];
            states.copy_from_slice(&payload[part.states.clone()]);
            let mut escapes = Vec::new();
            for range in &part.escapes {
                escapes.extend_from_slice(&payload[range.clone()]);
            }
            let mut plane = vec![0; count];
            coder.decode(&states, &payload[part.stream.clone()], &escapes, &mut plane)?;
            symbols.push(plane);
        }
        self.join(shape, &symbols, payload, &layout, first, chunk)
    }

    /// Puts the elements together again.
    fn join(
        &self,
        shape: ChunkShape<'_>,
        symbols: &[Vec<u16>],
        payload: &[u8],
        layout: &layout::PayloadLayout,
        first: usize,
        chunk: &mut [u8],
    ) -> Result<()> {
        let (model, bits) = (self.model, self.model.element_bits());
        let edges = &payload[layout.edges.clone()];
        let (head, tail) = edges.split_at(model.phase.min(chunk.len()));
        let (chunk_head, rest) = chunk.split_at_mut(head.len());
        let (body, chunk_tail) = rest.split_at_mut(shape.elements() * model.element_bytes);
        chunk_head.copy_from_slice(head);
        chunk_tail.copy_from_slice(tail);

        let mut raw_rest: Vec<&[u8]> = layout.raw.iter().map(|range| &payload[range.clone()]).collect();
        let mut buffer = [0_u64; SUB_BLOCK];
        let mut fields = [0_u64; SUB_BLOCK];
        for (block, bytes) in body.chunks_mut(SUB_BLOCK * model.element_bytes).enumerate() {
            let range = shape.sub_block(block);
            let (elements, fields) = (&mut buffer[..range.len()], &mut fields[..range.len()]);
            elements.fill(0);
            let (mut coded, mut raw_index) = (0, 0);
            for (index, plane) in model.planes.iter().enumerate() {
                let make_room = |word: u64| word.checked_shl(plane.bits).unwrap_or(0);
                match plane.mode {
                    PlaneMode::Constant(value) => {
                        elements.iter_mut().for_each(|word| *word = make_room(*word) | value);
                    }
                    PlaneMode::Coded(_) => {
                        for (word, &symbol) in elements.iter_mut().zip(&symbols[coded][range.clone()]) {
                            *word = make_room(*word) | u64::from(symbol);
                        }
                        coded += 1;
                    }
                    PlaneMode::Raw => {
                        let is_last = index + 1 == model.planes.len();
                        let zeros = if is_last && model.trailing_zeros {
                            u32::from(payload[layout.zeros.start + block])
                        } else {
                            0
                        };
                        let width = plane.bits - zeros;
                        let (now, later) =
                            raw_rest[raw_index].split_at(raw::raw_len(range.len(), width));
                        raw_rest[raw_index] = later;
                        raw::unpack(now, width, fields)?;
                        if zeros > 0 {
                            shape.trailing_zeros().restore(fields, zeros);
                        }
                        for (word, &field) in elements.iter_mut().zip(&*fields) {
                            *word = make_room(*word) | field;
                        }
                        raw_index += 1;
                    }
                }
            }
            words::raise_sign(elements, bits, model.sign_position);
            if let Some(scale) = self.scale {
                scale.add(elements, bits, first + range.start);
            }
            words::store(elements, model.element_bytes, bytes);
        }
        Ok(())
    }
}

#[derive(Default)]
struct SplitPlanes {
    symbols: Vec<Vec<u16>>,
    raw: Vec<Vec<u8>>,
    zeros: Vec<u8>,
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
    let pattern =
        payload.try_into().map_err(|_| Error::corrupt("a constant chunk is not 16 bytes long"))?;
    fill_pattern(pattern, chunk);
    Ok(())
}
