//! A frame of zipnn: its header and the index of its chunks.
//!
//! ```text
//! 0   "ZN"                          14  log2 of the chunk size in original bytes
//! 2   version: three numbers        15  element type
//! 5   grouping of bytes             16  [64 bits] original bytes
//! 6   order of bits                 24  [64 bits] bytes of the frame
//! 7   method, which nothing reads   32  of a tensor: [8 bits] dimensions, and each dimension:
//! 8   1 bytes, 2 torch, 3 numpy             [8 bits] 1, 2, 4 or 8, its bytes   [those] the dimension
//! 9   differences from another      per plane and chunk: [8 bits] 0 raw, 1 Huffman coded
//! 10  lossy                         per plane and chunk: [64 bits] where the chunk ends in its plane
//! 13  top bit: one of several       the planes, chunk by chunk
//! ```

use super::chunk::{Chunk, Part};
use crate::Dtype;
use crate::error::{Error, Result};
use crate::little_endian::number;

const HEADER_BYTES: usize = 32;
/// The most bytes a plane of a chunk can have when it is Huffman coded.
const HUFFMAN_BLOCK_BYTES: usize = 128 << 10;
/// Chunk sizes that are read: the writer takes any power of two.
const CHUNK_LOG2: std::ops::RangeInclusive<u8> = 2..=40;
const TWO_PLANES: u8 = 10;
const FOUR_PLANES: u8 = 220;
/// Element types by their numbers, with what their elements are split into.
const TYPES: [(u8, Dtype, u8); 7] = [
    (1, Dtype::Float32, FOUR_PLANES),
    (2, Dtype::Float32, FOUR_PLANES),
    (4, Dtype::Float16, TWO_PLANES),
    (5, Dtype::Float16, TWO_PLANES),
    (6, Dtype::Bfloat16, TWO_PLANES),
    (29, Dtype::Float8E4m3fn, TWO_PLANES),
    (30, Dtype::Float8E5m2, TWO_PLANES),
];

/// How the bytes of a chunk are taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of an element, each in a plane of its own.
    pub planes: usize,
    /// Whether the exponent of BF16 or FP32 was moved into the top byte, above the sign.
    pub exponent_first: bool,
    chunk_bytes: u64,
}

/// What the header of a frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The version of zipnn that wrote it.
    pub version: [u8; 3],
    /// The element type that the bytes were taken for.
    pub dtype: Dtype,
    /// The shape, if a tensor was compressed and not bytes.
    pub shape: Option<Vec<u64>>,
    /// Length of what was compressed.
    pub original_bytes: u64,
    /// Whether frames follow each other until the end of the file.
    pub streaming: bool,
    /// How chunks are stored.
    pub layout: Layout,
}

/// A frame whose structure has been checked.
pub(super) struct Frame<'a> {
    pub(super) header: Header,
    /// Length, from the magic on.
    pub(super) bytes: usize,
    kinds: &'a [u8],
    ends: &'a [u8],
    planes: Vec<&'a [u8]>,
}

/// Takes bytes off the front.
fn take<'a>(data: &mut &'a [u8], count: usize) -> Result<&'a [u8]> {
    let (taken, rest) = data
        .split_at_checked(count)
        .ok_or_else(|| Error::corrupt("it ends early"))?;
    *data = rest;
    Ok(taken)
}

fn unsupported(what: impl Into<String>) -> Error {
    Error::UnsupportedVersion(format!("{}; zipnn itself may read it", what.into()))
}

impl Header {
    fn parse(fixed: &[u8], rest: &mut &[u8]) -> Result<Self> {
        let version = [fixed[2], fixed[3], fixed[4]];
        if version[0] != 0 || !(3..=5).contains(&version[1]) {
            let [major, minor, tiny] = version;
            return Err(unsupported(format!(
                "written by zipnn {major}.{minor}.{tiny}, and 0.3 to 0.5 are read"
            )));
        }
        if fixed[9] != 0 {
            return Err(unsupported(
                "zipnn stored the differences from another file",
            ));
        }
        if fixed[10] != 0 {
            return Err(unsupported("zipnn compressed it with loss"));
        }
        let &(code, dtype, grouping) = TYPES
            .iter()
            .find(|(code, _, _)| *code == fixed[15])
            .ok_or_else(|| unsupported(format!("zipnn's element type {}", fixed[15])))?;
        if fixed[5] != grouping {
            return Err(unsupported(format!("zipnn's grouping {}", fixed[5])));
        }
        let planes = dtype.itemsize();
        let moved = fixed[6];
        if moved > 1 {
            return Err(unsupported(format!("zipnn's order of bits {moved}")));
        }
        if moved == 1 && matches!(code, 4 | 5) {
            return Err(unsupported("FP16 with its exponent moved"));
        }
        if !CHUNK_LOG2.contains(&fixed[14]) {
            return Err(Error::corrupt(format!("chunks of 2^{} bytes", fixed[14])));
        }
        let chunk_bytes = 1_u64 << fixed[14];
        let (chunk_bytes, exponent_first) = match planes {
            // The writer cuts single planes so that every one can be Huffman coded.
            1 => (chunk_bytes.min(HUFFMAN_BLOCK_BYTES as u64), false),
            _ => (chunk_bytes, moved == 1),
        };
        let shape = match fixed[8] {
            1 => None,
            2 | 3 => Some(shape(rest)?),
            other => return Err(unsupported(format!("zipnn's input format {other}"))),
        };
        let original_bytes = number(&fixed[16..24]);
        if original_bytes >> 63 > 0 {
            return Err(Error::corrupt("it claims 2^63 bytes or more"));
        }
        if let Some(shape) = &shape {
            let bytes = shape
                .iter()
                .try_fold(planes as u64, |n, &d| n.checked_mul(d));
            if bytes != Some(original_bytes) && !shape.contains(&0) {
                return Err(Error::corrupt("the shape does not fit the length"));
            }
        }
        Ok(Self {
            version,
            dtype,
            shape,
            original_bytes,
            streaming: fixed[13] >= 128,
            layout: Layout {
                planes,
                exponent_first,
                chunk_bytes,
            },
        })
    }
}

fn shape(rest: &mut &[u8]) -> Result<Vec<u64>> {
    let dimensions = take(rest, 1)?[0];
    (0..dimensions)
        .map(|_| match take(rest, 1)?[0] {
            width @ (1 | 2 | 4 | 8) => Ok(number(take(rest, width.into())?)),
            other => Err(Error::corrupt(format!("a dimension of {other} bytes"))),
        })
        .collect()
}

impl Layout {
    fn chunks(self, original_bytes: u64) -> u64 {
        original_bytes.div_ceil(self.chunk_bytes)
    }

    /// Original bytes of chunk number `i`.
    fn chunk_len(self, original_bytes: u64, i: usize) -> u64 {
        (original_bytes - i as u64 * self.chunk_bytes).min(self.chunk_bytes)
    }

    /// Bytes of a plane of a chunk of `len` bytes: the first planes have what does not divide.
    fn plane_len(self, len: u64, plane: usize) -> u64 {
        let (quotient, rest) = (len / self.planes as u64, len % self.planes as u64);
        quotient + u64::from((plane as u64) < rest)
    }
}

impl<'a> Frame<'a> {
    /// Reads the frame that `data` begins with.
    pub(super) fn parse(data: &'a [u8]) -> Result<Self> {
        let fixed = data
            .get(..HEADER_BYTES)
            .filter(|fixed| fixed.starts_with(b"ZN"))
            .ok_or_else(|| Error::corrupt("no zipnn header"))?;
        let bytes = usize::try_from(number(&fixed[24..32]))
            .ok()
            .filter(|bytes| (HEADER_BYTES..=data.len()).contains(bytes))
            .ok_or_else(|| Error::corrupt("the frame does not lie within the input"))?;
        let mut rest = &data[HEADER_BYTES..bytes];
        let header = Header::parse(fixed, &mut rest)?;
        let layout = header.layout;
        // Nine bytes of index for each plane of a chunk, which are there before anything is allocated.
        let parts = layout
            .chunks(header.original_bytes)
            .checked_mul(layout.planes as u64)
            .and_then(|parts| usize::try_from(parts).ok())
            .filter(|&parts| parts <= rest.len() / 9)
            .ok_or_else(|| Error::corrupt("the index does not lie within the frame"))?;
        let kinds = take(&mut rest, parts)?;
        let ends = take(&mut rest, 8 * parts)?;
        let mut frame = Self {
            header,
            bytes,
            kinds,
            ends,
            planes: Vec::with_capacity(layout.planes),
        };
        for plane in 0..layout.planes {
            let len = frame.check_plane(plane, rest.len())?;
            frame.planes.push(take(&mut rest, len)?);
        }
        if !rest.is_empty() {
            return Err(Error::corrupt("bytes belong to no plane"));
        }
        Ok(frame)
    }

    fn chunk_count(&self) -> usize {
        self.kinds.len() / self.header.layout.planes
    }

    /// Where chunk `i` ends in the plane.
    fn end(&self, plane: usize, i: usize) -> u64 {
        let at = 8 * (plane * self.chunk_count() + i);
        number(&self.ends[at..at + 8])
    }

    /// Checks the index of a plane that has at most `room` bytes; returns how many it has.
    fn check_plane(&self, plane: usize, room: usize) -> Result<usize> {
        let mut start = 0;
        for i in 0..self.chunk_count() {
            let end = self.end(plane, i);
            let original = self.original_len(plane, i);
            let legal = start <= end && end <= room as u64 && {
                let stored = end - start;
                match self.kinds[plane * self.chunk_count() + i] {
                    0 => stored == original,
                    // As many bytes as the original: they are the original.
                    1 => {
                        (1..=original.min(HUFFMAN_BLOCK_BYTES as u64)).contains(&stored)
                            && original <= HUFFMAN_BLOCK_BYTES as u64
                    }
                    kind => return Err(unsupported(format!("zipnn's kind of chunk {kind}"))),
                }
            };
            if !legal {
                return Err(Error::corrupt(format!(
                    "chunk {i} of plane {plane} has an impossible length"
                )));
            }
            start = end;
        }
        Ok(start as usize)
    }

    /// Original bytes of a plane of chunk `i`.
    fn original_len(&self, plane: usize, i: usize) -> u64 {
        let layout = self.header.layout;
        layout.plane_len(layout.chunk_len(self.header.original_bytes, i), plane)
    }

    /// The chunks, in order.
    pub(super) fn chunks(self) -> impl Iterator<Item = Result<Chunk<'a>>> {
        (0..self.chunk_count()).map(move |i| {
            let part = |(plane, bytes): (usize, &&'a [u8])| {
                let start = if i == 0 { 0 } else { self.end(plane, i - 1) };
                let stored = bytes.get(start as usize..self.end(plane, i) as usize);
                Ok(Part {
                    // `check_plane` has seen to it, unless the file changed since.
                    stored: stored.ok_or_else(|| Error::corrupt("the file changed"))?,
                    coded: self.kinds[plane * self.chunk_count() + i] == 1,
                    original_bytes: self.original_len(plane, i) as usize,
                })
            };
            let parts = self.planes.iter().enumerate().map(part);
            Ok(Chunk {
                parts: parts.collect::<Result<_>>()?,
                exponent_first: self.header.layout.exponent_first,
            })
        })
    }
}
