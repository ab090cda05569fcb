//! A chunk of zipnn: planes of bytes, and the order that the bits had before.
//!
//! Byte `b` of each element is in plane `b`; bytes that are left over at the end of a chunk are in the
//! first planes. With the exponent first, an element was `exponent, sign, mantissa` when it was cut; the
//! writer turned whole words of four bytes only, so that the last elements of a file may be as they were.

use ruzstd::decoding::FrameDecoder;

use super::huffman;
use crate::container::pieces::room;
use crate::error::{Error, Result};

/// A plane of a chunk, as it is stored.
pub(super) struct Part<'a> {
    pub(super) stored: &'a [u8],
    pub(super) coded: bool,
    pub(super) original_bytes: usize,
}

/// A chunk, as it is stored.
pub(super) struct Chunk<'a> {
    pub(super) parts: Vec<Part<'a>>,
    pub(super) exponent_first: bool,
}

impl Chunk<'_> {
    pub(super) fn original_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.original_bytes).sum()
    }
}

/// What is used again from chunk to chunk.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) out: Vec<u8>,
    plane: Vec<u8>,
    frame: Vec<u8>,
    decoder: Option<FrameDecoder>,
}

/// Decodes a chunk into `scratch.out`.
pub(super) fn decode(chunk: &Chunk<'_>, scratch: &mut Scratch) -> Result<()> {
    let (len, step) = (chunk.original_bytes(), chunk.parts.len());
    let out = &mut scratch.out;
    out.clear();
    out.try_reserve_exact(len)
        .map_err(|_| Error::AllocationFailed { bytes: len as u64 })?;
    out.resize(len, 0);
    for (first, part) in chunk.parts.iter().enumerate() {
        let bytes = if part.coded && part.stored.len() < part.original_bytes {
            let plane = room(&mut scratch.plane, part.original_bytes)?;
            let decoder = scratch.decoder.get_or_insert_default();
            huffman::decode(part.stored, plane, &mut scratch.frame, decoder)?;
            &*plane
        } else {
            part.stored
        };
        // A chunk that is shorter than an element has no place for the planes that are empty.
        let places = out.get_mut(first..).unwrap_or_default();
        for (place, &byte) in places.iter_mut().step_by(step).zip(bytes) {
            *place = byte;
        }
    }
    if chunk.exponent_first {
        put_signs_back(out, step);
    }
    Ok(())
}

/// Moves the sign back to the top of each element.
fn put_signs_back(chunk: &mut [u8], itemsize: usize) {
    for word in chunk.as_chunks_mut::<4>().0 {
        let moved = u32::from_le_bytes(*word);
        let (sign, exponent, mantissa) = if itemsize == 2 {
            (0x8000_8000, 0x7F80_7F80, 0x007F_007F)
        } else {
            (0x8000_0000, 0x7F80_0000, 0x007F_FFFF)
        };
        let restored = moved << 8 & sign | moved >> 1 & exponent | moved & mantissa;
        *word = restored.to_le_bytes();
    }
}
