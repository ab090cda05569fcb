//! Writing `.nz` files.
//!
//! Invariants: how the original arrives, whole or in pieces of any length, makes no difference to the
//! file; all frames are full but the last one, and those that end where a range that stands in another
//! file begins or ends.
//!
//! Place in docs/format-files.md: ".nz files".

use std::io::{Cursor, Write};

use super::{FILE_MAGIC, FRAME_BYTES, MAX_VARINT_BYTES, Totals, append};
use crate::codec::write_external;
use crate::container::external::{Derivation, External};
use crate::error::{Error, Result};
use crate::headroom::{self, WORKER_BYTES};
use crate::parallel::{Ahead, in_order};
use crate::safetensors::catalog::RangePlan;
use crate::varint::write_varint;
use crate::{CompressOptions, Dtype, Stream, compress_to, content_hash};

/// Two frames at once, whatever the number of threads, which share the chunks of both: while one is
/// written they work on the other.
const FRAMES_AHEAD: Ahead = Ahead {
    per_thread: 0,
    besides: 2,
};

/// Compresses the bytes of one frame.
fn compress_frame(out: &mut Vec<u8>, data: &[u8], options: &CompressOptions) -> Result<()> {
    out.clear();
    let shape = [data.len() as u64];
    compress_to(
        &mut Cursor::new(out),
        data,
        Dtype::Uint8,
        &shape,
        options,
        &mut |_| Ok(()),
    )?;
    Ok(())
}

/// Gives `write` a frame, in two parts.
fn write_frame(
    stream: &[u8],
    totals: &mut Totals,
    mut write: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    totals.add(&Stream::parse(stream)?)?;
    let mut length = Vec::with_capacity(MAX_VARINT_BYTES);
    write_varint(&mut length, stream.len() as u64);
    write(&length)?;
    write(stream)
}

/// Gives `write` the end of a file.
fn write_end(totals: &Totals, mut write: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    write(&[0])?;
    write(&totals.end_record())
}

/// The bytes of one frame, and the tensor that they are a part of.
type Frame<'a> = (&'a [u8], Option<(&'a str, &'a str, u64)>);

/// Cuts `data` into frames, also where ranges of `plan` begin and end.
fn frames<'a>(data: &'a [u8], plan: &'a RangePlan) -> impl Iterator<Item = Frame<'a>> {
    let mut parts = Vec::new();
    let mut end = 0;
    for (range, tensor, file) in &plan.ranges {
        parts.push((end..range.start, None));
        parts.push((range.clone(), Some((tensor.as_str(), file.as_str()))));
        end = range.end;
    }
    parts.push((end..data.len(), None));
    parts.into_iter().flat_map(move |(range, place)| {
        let frames = data[range]
            .chunks(FRAME_BYTES)
            .zip((0..).step_by(FRAME_BYTES));
        frames.map(move |(frame, start)| (frame, place.map(|(tensor, file)| (tensor, file, start))))
    })
}

/// Makes the stream of a frame.
fn write_stream(out: &mut Vec<u8>, frame: Frame<'_>, options: &CompressOptions) -> Result<()> {
    let (data, Some((tensor, file, start))) = frame else {
        return compress_frame(out, frame.0, options);
    };
    let external = External {
        derivation: Derivation::Same,
        content_hash: content_hash(data),
        start,
        name: tensor.to_owned(),
        file: file.to_owned(),
        exceptions: Vec::new(),
    };
    *out = write_external(Dtype::Uint8, &[data.len() as u64], external)?;
    Ok(())
}

/// Compresses `data` to `out`, but for what `plan` finds in other files; `progress` is told the original
/// bytes that are done. Returns the bytes written.
pub(crate) fn compress_frames<W: Write>(
    out: &mut W,
    data: &[u8],
    plan: &RangePlan,
    options: &CompressOptions,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<u64> {
    let (mut written, mut done) = (0, 0);
    let mut totals = Totals::default();
    let mut write = |bytes: &[u8]| {
        out.write_all(bytes)?;
        written += bytes.len() as u64;
        Ok(())
    };
    write(&FILE_MAGIC)?;
    // A frame is read where it lies; its stream grows by doubling.
    let frame = 3 * data.len().min(FRAME_BYTES);
    headroom::check(FRAMES_AHEAD.besides * frame + WORKER_BYTES)?;
    in_order(
        options.threads,
        FRAMES_AHEAD,
        &mut Vec::new(),
        frames(data, plan).map(|frame| Ok((1, frame))),
        |frame, stream: &mut Vec<u8>| {
            write_stream(stream, frame, options)?;
            Ok(frame.0.len())
        },
        |frame_bytes, stream| {
            write_frame(stream, &mut totals, &mut write)?;
            done += frame_bytes as u64;
            progress(done)
        },
    )?;
    write_end(&totals, &mut write)?;
    Ok(written)
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
            let mut frame = std::mem::take(&mut self.waiting);
            self.add_frame(&frame, &mut out)?;
            frame.clear();
            self.waiting = frame;
        }
        let mut frames = data.chunks_exact(FRAME_BYTES);
        for frame in &mut frames {
            self.add_frame(frame, &mut out)?;
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
            self.add_frame(&last, &mut out)?;
        }
        write_end(&self.totals, |bytes| append(&mut out, bytes))?;
        Ok(out)
    }

    fn add_frame(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let mut stream = Vec::new();
        compress_frame(&mut stream, data, &self.options)?;
        write_frame(&stream, &mut self.totals, |bytes| append(out, bytes))
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
