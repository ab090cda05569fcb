//! Writing `.nz` files.
//!
//! Invariants: how the original arrives, whole or in pieces of any length, makes no difference to the
//! file; all frames but the last are full.
//!
//! Place in docs/format-files.md: ".nz files".

use std::io::Write;

use super::{FILE_MAGIC, FRAME_BYTES, MAX_VARINT_BYTES, Totals, append};
use crate::error::{Error, Result};
use crate::varint::write_varint;
use crate::{CompressOptions, Dtype, Stream, compress};

/// Appends one frame.
fn write_frame(
    out: &mut Vec<u8>,
    data: &[u8],
    totals: &mut Totals,
    options: &CompressOptions,
) -> Result<()> {
    let stream = compress(data, Dtype::Uint8, &[data.len() as u64], options)?;
    totals.add(&Stream::parse(&stream)?)?;
    out.try_reserve(MAX_VARINT_BYTES + stream.len())
        .map_err(|_| Error::AllocationFailed {
            bytes: stream.len() as u64,
        })?;
    write_varint(out, stream.len() as u64);
    out.extend_from_slice(&stream);
    Ok(())
}

/// Compresses `data` to `out`; `progress` is told the original bytes that are done. Returns the bytes
/// written.
pub(crate) fn compress_frames<W: Write>(
    out: &mut W,
    data: &[u8],
    options: &CompressOptions,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<u64> {
    let mut compressor = StreamCompressor::new(options.clone());
    let (mut written, mut done) = (0, 0);
    for frame in data.chunks(FRAME_BYTES) {
        let bytes = compressor.feed(frame)?;
        out.write_all(&bytes)?;
        written += bytes.len() as u64;
        done += frame.len() as u64;
        progress(done)?;
    }
    let end = compressor.finish()?;
    out.write_all(&end)?;
    Ok(written + end.len() as u64)
}

/// Makes a `.nz` file of bytes that arrive piece by piece.
pub struct StreamCompressor {
    options: CompressOptions,
    totals: Totals,
    /// Bytes that do not fill a frame yet.
    waiting: Vec<u8>,
    state: WriterState,
}

#[derive(PartialEq, Eq)]
enum WriterState {
    Fresh,
    Started,
    Finished,
}

impl StreamCompressor {
    /// A compressor that has seen nothing.
    #[must_use]
    pub fn new(options: CompressOptions) -> Self {
        Self {
            options,
            totals: Totals::default(),
            waiting: Vec::new(),
            state: WriterState::Fresh,
        }
    }

    /// Takes the next bytes of the original; returns the next bytes of the file, if any are ready.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] after [`StreamCompressor::finish`] or an error.
    pub fn feed(&mut self, data: &[u8]) -> Result<Vec<u8>> {
        let out = self.begin()?;
        let fed = self.add(data, out);
        if fed.is_err() {
            self.state = WriterState::Finished;
        }
        fed
    }

    fn add(&mut self, mut data: &[u8], mut out: Vec<u8>) -> Result<Vec<u8>> {
        if !self.waiting.is_empty() {
            let missing = FRAME_BYTES - self.waiting.len();
            let (now, later) = data.split_at(missing.min(data.len()));
            append(&mut self.waiting, now)?;
            data = later;
            if self.waiting.len() < FRAME_BYTES {
                return Ok(out);
            }
            write_frame(&mut out, &self.waiting, &mut self.totals, &self.options)?;
            self.waiting.clear();
        }
        let mut frames = data.chunks_exact(FRAME_BYTES);
        for frame in &mut frames {
            write_frame(&mut out, frame, &mut self.totals, &self.options)?;
        }
        append(&mut self.waiting, frames.remainder())?;
        Ok(out)
    }

    /// Ends the file: the last bytes of it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] the second time, or after an error.
    pub fn finish(&mut self) -> Result<Vec<u8>> {
        let mut out = self.begin()?;
        self.state = WriterState::Finished;
        let last = std::mem::take(&mut self.waiting);
        if !last.is_empty() {
            write_frame(&mut out, &last, &mut self.totals, &self.options)?;
        }
        write_varint(&mut out, 0);
        out.extend_from_slice(&self.totals.end_record());
        Ok(out)
    }

    fn begin(&mut self) -> Result<Vec<u8>> {
        match self.state {
            WriterState::Fresh => {
                self.state = WriterState::Started;
                Ok(FILE_MAGIC.to_vec())
            }
            WriterState::Started => Ok(Vec::new()),
            WriterState::Finished => Err(Error::InvalidArgument(
                "the compressor has finished or failed".into(),
            )),
        }
    }
}
