//! `.nz` files: any bytes, as frames that are tensor streams of bytes.
//!
//! ```text
//! [8 bytes] 89 4E 5A 46 0D 0A 1A 01
//! frame     [varint] length of the stream, above 0; [stream] dtype uint8, shape (n,), 1 <= n <= 16 MiB
//! end       [varint] 0; [8 bytes] original length; [8 bytes] xxh3-64 of all frames' prelude checksums
//! ```
//!
//! Invariants: a frame holds at most 16 MiB, so that reading needs bounded memory whatever a file
//! claims; the end record is required and nothing follows it, so that a truncated file never passes for
//! a shorter one, nor one with frames left out or swapped.
//!
//! Place in docs/format-files.md: ".nz files".

use std::io::Write;

use xxhash_rust::xxh3::Xxh3;

use super::varint::{read_varint, write_varint};
use crate::error::{Error, Result, try_zeroed};
use crate::{CompressOptions, DecompressOptions, Dtype, Stream, compress};

/// First bytes of a `.nz` file; the last one is the version. The line ends and the DOS end-of-file
/// character in front of it show transfers that treat the file as text.
pub(crate) const FILE_MAGIC: [u8; 8] = [0x89, b'N', b'Z', b'F', 0x0D, 0x0A, 0x1A, 0x01];
/// Original bytes of every frame but the last.
pub(crate) const FRAME_BYTES: usize = 16 << 20;
/// Longest stream of a frame. Incompressible bytes take little more than themselves.
const MAX_STREAM_BYTES: usize = 2 * FRAME_BYTES;
/// Width of the end record after its zero.
const END_BYTES: usize = 16;
/// Longest number, in bytes.
const MAX_VARINT_BYTES: usize = 10;

/// Whether `bytes` begin as a `.nz` file of any version.
pub(crate) fn has_file_magic(bytes: &[u8]) -> bool {
    bytes.starts_with(&FILE_MAGIC[..7])
}

/// What the end record says: kept while frames are written or read.
#[derive(Default)]
struct Totals {
    original: u64,
    checksums: Xxh3,
}

impl Totals {
    fn add(&mut self, stream: &Stream<'_>) -> Result<()> {
        self.original = self
            .original
            .checked_add(stream.original_len())
            .ok_or_else(|| Error::corrupt("the frames exceed 2^64 bytes"))?;
        self.checksums
            .update(&stream.prelude_checksum().to_le_bytes());
        Ok(())
    }

    fn end_record(&self) -> [u8; END_BYTES] {
        let mut record = [0; END_BYTES];
        record[..8].copy_from_slice(&self.original.to_le_bytes());
        record[8..].copy_from_slice(&self.checksums.digest().to_le_bytes());
        record
    }

    fn check_end(&self, record: &[u8]) -> Result<()> {
        if record == self.end_record() {
            return Ok(());
        }
        Err(Error::corrupt(
            "the end record does not fit the frames in front of it",
        ))
    }
}

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

/// Checks that a stream may be a frame.
fn check_frame(stream: &Stream<'_>) -> Result<()> {
    let length = stream.original_len();
    let fits = stream.dtype() == Dtype::Uint8
        && stream.shape() == [length]
        && (1..=FRAME_BYTES as u64).contains(&length)
        && stream.reference().is_none();
    if fits {
        Ok(())
    } else {
        Err(Error::corrupt("the stream is not one of a frame"))
    }
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

fn append(buffer: &mut Vec<u8>, data: &[u8]) -> Result<()> {
    buffer
        .try_reserve(data.len())
        .map_err(|_| Error::AllocationFailed {
            bytes: data.len() as u64,
        })?;
    buffer.extend_from_slice(data);
    Ok(())
}

/// What stands next in a `.nz` file.
enum Item<'a> {
    Frame(Box<Stream<'a>>),
    End,
    /// The bytes at hand do not hold the next item whole.
    Incomplete,
}

/// Reads the items of a file one after the other, from bytes that may not all be there yet.
#[derive(Default)]
struct ItemReader {
    totals: Totals,
    /// Bytes of the file in front of the next item; 0 before the magic was read.
    offset: u64,
    frames: u64,
    ended: bool,
}

impl ItemReader {
    /// Reads one item at `*position` and moves past it.
    fn next<'a>(&mut self, bytes: &'a [u8], position: &mut usize) -> Result<Item<'a>> {
        let start = *position;
        let item = self.read(bytes, position).map_err(|error| {
            error.within(&format!("frame {} at byte {}", self.frames, self.offset))
        })?;
        if !matches!(item, Item::Incomplete) {
            self.offset += (*position - start) as u64;
        }
        Ok(item)
    }

    fn read<'a>(&mut self, bytes: &'a [u8], position: &mut usize) -> Result<Item<'a>> {
        let start = *position;
        let mut at = start;
        if self.offset == 0 {
            let magic = &bytes[start..bytes.len().min(start + FILE_MAGIC.len())];
            check_magic(magic)?;
            if magic.len() < FILE_MAGIC.len() {
                return Ok(Item::Incomplete);
            }
            at += magic.len();
        }
        let rest = &bytes[at..];
        let number = &rest[..rest.len().min(MAX_VARINT_BYTES)];
        if number.len() < MAX_VARINT_BYTES && number.iter().all(|&byte| byte >= 0x80) {
            return Ok(Item::Incomplete);
        }
        let length = read_varint(bytes, &mut at)?;
        if length == 0 {
            let Some(record) = bytes.get(at..at + END_BYTES) else {
                return Ok(Item::Incomplete);
            };
            self.totals.check_end(record)?;
            self.ended = true;
            *position = at + END_BYTES;
            return Ok(Item::End);
        }
        if length > MAX_STREAM_BYTES as u64 {
            return Err(Error::corrupt("a frame is longer than frames are"));
        }
        let end = at + length as usize;
        let Some(stream) = bytes.get(at..end) else {
            return Ok(Item::Incomplete);
        };
        let stream = Stream::parse(stream)?;
        check_frame(&stream)?;
        self.totals.add(&stream)?;
        self.frames += 1;
        *position = end;
        Ok(Item::Frame(Box::new(stream)))
    }
}

/// Checks as much of the magic as there is.
fn check_magic(bytes: &[u8]) -> Result<()> {
    if FILE_MAGIC.starts_with(bytes) {
        return Ok(());
    }
    if has_file_magic(bytes) {
        return Err(Error::UnsupportedVersion(format!(
            ".nz file of version {}",
            bytes[7]
        )));
    }
    Err(Error::corrupt("not a .nz file"))
}

/// Calls `visit` with every frame of a whole file.
fn for_each_frame(
    file: &[u8],
    visit: &mut dyn FnMut(&Stream<'_>, usize) -> Result<()>,
) -> Result<u64> {
    let (mut reader, mut position) = (ItemReader::default(), 0);
    loop {
        match reader.next(file, &mut position)? {
            Item::Frame(stream) => visit(&stream, position).map_err(|error| {
                error.within(&format!(
                    "frame {} before byte {position}",
                    reader.frames - 1
                ))
            })?,
            Item::End if position == file.len() => return Ok(reader.totals.original),
            Item::End => return Err(Error::corrupt("bytes follow the end of the file")),
            Item::Incomplete => return Err(Error::corrupt("the file is cut off")),
        }
    }
}

/// Checks the structure of a whole file without decoding it; returns its original length.
pub(crate) fn scan_frames(file: &[u8]) -> Result<u64> {
    for_each_frame(file, &mut |_, _| Ok(()))
}

/// Decodes a whole file; gives `sink` each frame's bytes, and where in the file they end.
pub(crate) fn decode_frames(
    file: &[u8],
    options: &DecompressOptions,
    sink: &mut dyn FnMut(&[u8], usize) -> Result<()>,
) -> Result<()> {
    let mut buffer = Vec::new();
    for_each_frame(file, &mut |stream, end| {
        let length = stream.original_len() as usize;
        if buffer.len() < length {
            buffer = try_zeroed(length)?;
        }
        stream.decode_into(0, &mut buffer[..length], options)?;
        sink(&buffer[..length], end)
    })?;
    Ok(())
}

/// Restores the original from a `.nz` file that arrives piece by piece.
pub struct StreamDecompressor {
    options: DecompressOptions,
    limit: Option<u64>,
    reader: ItemReader,
    /// Bytes that do not make an item yet.
    waiting: Vec<u8>,
    failed: bool,
}

impl StreamDecompressor {
    /// A decompressor that will give out `limit` bytes at most, if one is set.
    #[must_use]
    pub fn new(options: DecompressOptions, limit: Option<u64>) -> Self {
        let reader = ItemReader::default();
        Self {
            options,
            limit,
            reader,
            waiting: Vec::new(),
            failed: false,
        }
    }

    /// Takes the next bytes of the file; returns the next bytes of the original, if any are ready.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for damage, [`Error::OutputTooLarge`] at the frame that exceeds the limit.
    pub fn feed(&mut self, data: &[u8]) -> Result<Vec<u8>> {
        if self.failed {
            return Err(Error::InvalidArgument(
                "the decompressor has failed before".into(),
            ));
        }
        self.failed = true;
        append(&mut self.waiting, data)?;
        let waiting = std::mem::take(&mut self.waiting);
        let (mut out, mut position) = (Vec::new(), 0);
        while !self.reader.ended {
            match self.reader.next(&waiting, &mut position)? {
                Item::Frame(stream) => self.decode(&stream, &mut out)?,
                Item::End => {}
                Item::Incomplete => break,
            }
        }
        if self.reader.ended && position < waiting.len() {
            return Err(Error::corrupt("bytes follow the end of the file"));
        }
        self.waiting = waiting;
        self.waiting.drain(..position);
        self.failed = false;
        Ok(out)
    }

    fn decode(&self, stream: &Stream<'_>, out: &mut Vec<u8>) -> Result<()> {
        let needed = self.reader.totals.original;
        if let Some(limit) = self.limit.filter(|&limit| needed > limit) {
            return Err(Error::OutputTooLarge { needed, limit });
        }
        // At most FRAME_BYTES.
        let (start, length) = (out.len(), stream.original_len() as usize);
        out.try_reserve(length)
            .map_err(|_| Error::AllocationFailed {
                bytes: length as u64,
            })?;
        out.resize(start + length, 0);
        stream
            .decode_into(0, &mut out[start..], &self.options)
            .map_err(|error| error.within(&format!("frame {}", self.reader.frames - 1)))
    }

    /// Says that the file ends here.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it should not.
    pub fn finish(&mut self) -> Result<()> {
        if self.reader.ended && !self.failed {
            return Ok(());
        }
        let offset = self.reader.offset + self.waiting.len() as u64;
        Err(Error::corrupt(format!(
            "the input stops at byte {offset}, before its end record"
        )))
    }
}
