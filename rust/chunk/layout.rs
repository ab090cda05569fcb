//! Where the parts of a coded chunk lie in its payload.
//!
//! ```text
//! per coded plane: [32 bits] stream bytes, [32 bits] escapes
//! with trailing zeros: [8 bits] per sub-block
//! the bytes before the first element and after the last one            | zero padding to 16
//! per coded plane: [128 bytes] states
//! per raw plane: its sub-blocks                                        | zero padding to 16
//! per coded plane: stream | padding; escapes if there are any | padding
//! ```
//! Place in docs/format.md: "Chunk payload". The encoder fills a payload from front to back; the
//! decoder computes every position from the head before it reads anything else.

use std::ops::Range;

use crate::constants::{ALIGNMENT, STATES_BYTES, SUB_BLOCK};
use crate::error::{Error, Result};
use crate::little_endian::number;
use crate::model::{Model, PlaneMode};
use crate::planes::escapes;
use crate::planes::raw::{TrailingZeros, raw_len};

/// A model together with the length of the chunk it is applied to.
#[derive(Clone, Copy)]
pub(crate) struct ChunkShape<'a> {
    pub(crate) model: &'a Model,
    pub(crate) chunk_len: usize,
}

/// Positions of the parts of one payload; all ranges lie inside it.
pub(crate) struct PayloadLayout {
    pub(crate) zeros: Range<usize>,
    pub(crate) edges: Range<usize>,
    pub(crate) coded: Vec<CodedLayout>,
    pub(crate) raw: Vec<Range<usize>>,
}

/// Positions of one coded plane.
pub(crate) struct CodedLayout {
    pub(crate) states: Range<usize>,
    pub(crate) stream: Range<usize>,
    escapes: Range<usize>,
    escape_count: usize,
    /// Width of the plane's symbols.
    bits: u32,
}

impl CodedLayout {
    /// Reads the escaped symbols.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for one that is wider than the plane.
    pub(crate) fn escapes(&self, payload: &[u8]) -> Result<Vec<u16>> {
        escapes::read(self.bits, &payload[self.escapes.clone()], self.escape_count)
    }
}

/// Bytes in the head of a payload for each coded plane.
pub(crate) const HEAD_BYTES: usize = 8;

impl ChunkShape<'_> {
    pub(crate) fn elements(self) -> usize {
        self.model.elements(self.chunk_len)
    }

    /// Bytes of the chunk that belong to no whole element.
    pub(crate) fn edge_bytes(self) -> usize {
        self.chunk_len - self.elements() * self.model.element_bytes
    }

    /// Sub-blocks that carry a count of trailing zeros.
    pub(crate) fn zero_counts(self) -> usize {
        if self.model.trailing_zeros {
            self.elements().div_ceil(SUB_BLOCK)
        } else {
            0
        }
    }

    /// The rule for trailing zeros of the last plane.
    pub(crate) fn trailing_zeros(self) -> TrailingZeros {
        let bits = self.model.planes.last().map_or(1, |plane| plane.bits);
        TrailingZeros {
            bits,
            sign_is_last: self.model.sign_is_last(),
        }
    }

    /// Elements of sub-block `index`.
    pub(crate) fn sub_block(self, index: usize) -> Range<usize> {
        index * SUB_BLOCK..self.elements().min((index + 1) * SUB_BLOCK)
    }

    /// Bytes of a raw plane without trailing zeros.
    pub(crate) fn raw_len(self, bits: u32) -> usize {
        self.raw_plane_len(bits, None)
    }

    /// Bytes of a raw plane; `zeros` are the counts of the sub-blocks if they apply to it.
    fn raw_plane_len(self, bits: u32, zeros: Option<&[u8]>) -> usize {
        (0..self.elements().div_ceil(SUB_BLOCK))
            .map(|index| {
                let taken = zeros.map_or(0, |zeros| u32::from(zeros[index]));
                raw_len(self.sub_block(index).len(), bits - taken)
            })
            .sum()
    }

    /// Computes the layout that the head of `payload` describes.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the parts do not fill the payload exactly, a count of trailing zeros
    /// is out of range, or padding is not zero.
    pub(crate) fn layout(self, payload: &[u8]) -> Result<PayloadLayout> {
        let cut = || Error::corrupt("a chunk is too short for its parts");
        let mut cursor = Cursor {
            payload,
            position: 0,
        };
        let mut sizes = Vec::new();
        for _ in self.model.coded_planes() {
            let head = cursor
                .take(HEAD_BYTES)
                .and_then(|at| payload.get(at))
                .ok_or_else(cut)?;
            let (stream, escapes) = head.split_at(4);
            sizes.push((number(stream) as usize, number(escapes) as usize));
        }
        let zeros = cursor.take(self.zero_counts()).ok_or_else(cut)?;
        let edges = cursor.take(self.edge_bytes()).ok_or_else(cut)?;
        cursor.align()?;
        let limit = self.trailing_zeros().limit();
        if payload[zeros.clone()]
            .iter()
            .any(|&count| u32::from(count) > limit)
        {
            return Err(Error::corrupt("a count of trailing zeros is out of range"));
        }

        let mut states = Vec::new();
        for _ in &sizes {
            states.push(cursor.take(STATES_BYTES).ok_or_else(cut)?);
        }
        let mut raw = Vec::new();
        for (index, plane) in self.model.planes.iter().enumerate() {
            if plane.mode == PlaneMode::Raw {
                let is_last = index + 1 == self.model.planes.len();
                let zeros = (is_last && self.model.trailing_zeros).then(|| &payload[zeros.clone()]);
                raw.push(
                    cursor
                        .take(self.raw_plane_len(plane.bits, zeros))
                        .ok_or_else(cut)?,
                );
                cursor.align()?;
            }
        }
        let mut coded = Vec::new();
        for ((states, (stream, escape_count)), plane) in
            states.into_iter().zip(sizes).zip(self.model.coded_planes())
        {
            let stream = cursor.take(stream).ok_or_else(cut)?;
            cursor.align()?;
            if escape_count > 0 && !plane.has_escape() {
                return Err(Error::corrupt("a plane without an escape has escapes"));
            }
            if escape_count > self.elements() {
                return Err(Error::corrupt("a plane has more escapes than elements"));
            }
            let len = match escape_count {
                0 => 0,
                _ => escapes::len(&payload[cursor.position..], escape_count).ok_or_else(cut)?,
            };
            let escapes = cursor.take(len).ok_or_else(cut)?;
            cursor.align()?;
            coded.push(CodedLayout {
                states,
                stream,
                escapes,
                escape_count,
                bits: plane.bits,
            });
        }
        if cursor.position != payload.len() {
            return Err(Error::corrupt("a chunk is longer than its parts"));
        }
        Ok(PayloadLayout {
            zeros,
            edges,
            coded,
            raw,
        })
    }
}

/// Bytes of one plane in a payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlaneBytes {
    /// Raw bits, or the stream and its escapes.
    pub(crate) content: usize,
    /// Head and states of a coded plane.
    pub(crate) overhead: usize,
}

/// What each plane of `model` takes in the payload of a chunk.
///
/// # Errors
/// [`Error::Corrupt`] when the payload is not one of the model.
pub(crate) fn plane_bytes(
    model: &Model,
    chunk_len: usize,
    payload: &[u8],
) -> Result<Vec<PlaneBytes>> {
    let layout = ChunkShape { model, chunk_len }.layout(payload)?;
    let (mut coded, mut raw) = (layout.coded.iter(), layout.raw.iter());
    let planes = model.planes.iter().map(|plane| {
        let (content, overhead) = match plane.mode {
            PlaneMode::Constant(_) => (0, 0),
            PlaneMode::Raw => (raw.next().map_or(0, Range::len), 0),
            PlaneMode::Coded(_) | PlaneMode::Contexts(_) => coded.next().map_or((0, 0), |part| {
                let content = part.stream.len() + part.escapes.len();
                (content, HEAD_BYTES + STATES_BYTES)
            }),
        };
        PlaneBytes { content, overhead }
    });
    Ok(planes.collect())
}

struct Cursor<'a> {
    payload: &'a [u8],
    position: usize,
}

impl Cursor<'_> {
    fn take(&mut self, len: usize) -> Option<Range<usize>> {
        let end = self
            .position
            .checked_add(len)
            .filter(|&end| end <= self.payload.len())?;
        Some(std::mem::replace(&mut self.position, end)..end)
    }

    fn align(&mut self) -> Result<()> {
        let end = self.position.next_multiple_of(ALIGNMENT);
        let padding = self.payload.get(self.position..end);
        if padding.is_none_or(|bytes| bytes.iter().any(|&byte| byte != 0)) {
            return Err(Error::corrupt(
                "padding inside a chunk is missing or not zero",
            ));
        }
        self.position = end;
        Ok(())
    }
}
