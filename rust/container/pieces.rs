//! Decoding streams of any size with a buffer of bounded size.
//!
//! Small streams share a piece, large ones are decoded piece by piece. Invariants: a piece ends at the
//! end of a chunk or of the stream, so every chunk is decoded once and its hash is checked; the buffer
//! takes [`PIECE_BYTES`], or the length of a chunk if that is more.
//!
//! Place in docs/format-files.md: none.

use crate::constants::CHUNK_LOG2;
use crate::error::{Error, Result, try_zeroed};
use crate::{DecompressOptions, Stream};

/// Original bytes decoded between two writes. Large enough to keep many threads at work on it and to
/// make the calls of the file system cheap.
pub(crate) const PIECE_BYTES: usize = 32 << 20;

/// Where a piece that begins at `position` of the stream's bytes should end.
pub(crate) fn piece_end(stream: &Stream<'_>, position: u64) -> u64 {
    // A stream without chunks says it is one chunk of any length, and may be cut anywhere.
    let chunk_bytes = stream.chunk_bytes();
    let cut_at_will = chunk_bytes > 1 << CHUNK_LOG2.end();
    // Both are powers of two, so a multiple of the larger is one of the chunk length.
    let step = if cut_at_will {
        PIECE_BYTES
    } else {
        chunk_bytes.max(PIECE_BYTES)
    } as u64;
    (position / step + 1)
        .saturating_mul(step)
        .min(stream.original_len())
}

/// Collects decoded bytes and hands them on in pieces.
pub(crate) struct Pieces<'a> {
    buffer: Vec<u8>,
    filled: usize,
    sink: &'a mut dyn FnMut(&[u8]) -> Result<()>,
}

impl<'a> Pieces<'a> {
    /// Hands pieces to `sink`; `total` bytes will come at most.
    pub(crate) fn new(total: u64, sink: &'a mut dyn FnMut(&[u8]) -> Result<()>) -> Result<Self> {
        let buffer = try_zeroed(total.min(PIECE_BYTES as u64) as usize)?;
        Ok(Self {
            buffer,
            filled: 0,
            sink,
        })
    }

    /// Adds bytes as they are.
    pub(crate) fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.filled == self.buffer.len() {
                self.flush()?;
            }
            let room = &mut self.buffer[self.filled..];
            let (now, later) = bytes.split_at(room.len().min(bytes.len()));
            if now.is_empty() {
                return Err(Error::corrupt("more bytes than the file should have"));
            }
            room[..now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
        }
        Ok(())
    }

    /// Adds the content of `stream`; `seen` is shown each part of it in order.
    pub(crate) fn decode(
        &mut self,
        stream: &Stream<'_>,
        options: &DecompressOptions,
        seen: &mut dyn FnMut(&[u8]),
    ) -> Result<()> {
        let mut position = 0;
        while position < stream.original_len() {
            let left = stream.original_len() - position;
            if left > (self.buffer.len() - self.filled) as u64 {
                self.flush()?;
            }
            // After a flush the whole buffer is free: the rest of the stream, or whole chunks.
            let take = left.min(piece_end(stream, position) - position) as usize;
            if take > self.buffer.len() {
                self.buffer = try_zeroed(take)?;
            }
            let part = &mut self.buffer[self.filled..self.filled + take];
            stream.decode_into(position, part, options)?;
            seen(part);
            self.filled += take;
            position += take as u64;
        }
        Ok(())
    }

    /// Hands on what is left.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        if self.filled > 0 {
            (self.sink)(&self.buffer[..self.filled])?;
            self.filled = 0;
        }
        Ok(())
    }
}
