//! Reading `.nz` files, whole or as they arrive.
//!
//! Invariants: one routine reads the items for both; nothing is decoded before its checksum was
//! verified; memory is bounded by the length of a frame.
//!
//! Place in docs/format-files.md: ".nz files".

use std::collections::BTreeSet;
use std::path::Path;

use super::{
    END_BYTES, FILE_MAGIC, FRAME_BYTES, MAX_STREAM_BYTES, MAX_VARINT_BYTES, Totals, append,
    has_file_magic,
};
use crate::container::pieces::decode_streams;
use crate::error::{Error, Result, try_zeroed};
use crate::safetensors::siblings::Siblings;
use crate::varint::read_varint;
use crate::{DecompressOptions, Dtype, Stream};

/// Checks that a stream may be a frame.
fn check_frame(stream: &Stream<'_>) -> Result<()> {
    let length = stream.original_len();
    let fits = stream.dtype() == Dtype::Uint8
        && stream.shape() == [length]
        && (1..=FRAME_BYTES as u64).contains(&length)
        && stream.reference().is_none()
        && stream.base_hash().is_none();
    if fits {
        Ok(())
    } else {
        Err(Error::corrupt("the stream is not one of a frame"))
    }
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

/// A frame's number and where in the file it ends.
struct Place {
    frame: u64,
    end: usize,
}

impl Place {
    fn named(&self, error: Error) -> Error {
        error.within(&format!("frame {} before byte {}", self.frame, self.end))
    }
}

/// The frames of a whole file, one after the other.
struct Frames<'a> {
    file: &'a [u8],
    reader: ItemReader,
    position: usize,
}

impl<'a> Frames<'a> {
    fn new(file: &'a [u8]) -> Self {
        Self {
            file,
            reader: ItemReader::default(),
            position: 0,
        }
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<(Stream<'a>, Place)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.reader.ended {
            return None;
        }
        let wrong = |what| Some(Err(Error::corrupt(what)));
        match self.reader.next(self.file, &mut self.position) {
            Ok(Item::Frame(stream)) => {
                let place = Place {
                    frame: self.reader.frames - 1,
                    end: self.position,
                };
                Some(Ok((*stream, place)))
            }
            Ok(Item::End) if self.position == self.file.len() => None,
            Ok(Item::End) => wrong("bytes follow the end of the file"),
            Ok(Item::Incomplete) => wrong("the file is cut off"),
            Err(error) => Some(Err(error)),
        }
    }
}

/// Checks the structure of a whole file without decoding it; returns its original length.
pub(crate) fn scan_frames(file: &[u8]) -> Result<u64> {
    let mut frames = Frames::new(file);
    frames.try_for_each(|frame| frame.map(drop))?;
    Ok(frames.reader.totals.original)
}

/// The other files that frames refer to; each tensor referred to is looked for if `siblings` are given.
///
/// # Errors
/// [`Error::Corrupt`] for a damaged file, [`Error::BaseMismatch`] if a frame refers to nothing.
pub(crate) fn frame_references(
    file: &[u8],
    siblings: Option<&Siblings>,
) -> Result<BTreeSet<String>> {
    let mut files = BTreeSet::new();
    for frame in Frames::new(file) {
        let (stream, place) = frame?;
        if let Some(external) = stream.external() {
            if let Some(siblings) = siblings {
                let found = siblings.find(&stream, external);
                found.map_err(|error| place.named(error))?;
            }
            files.insert(external.file.clone());
        }
    }
    Ok(files)
}

/// Decodes a whole file; gives `sink` its bytes in order, and where in the file their frame ends.
pub(crate) fn decode_frames(
    file: &[u8],
    siblings: &Siblings,
    options: &DecompressOptions,
    sink: &mut dyn FnMut(&[u8], usize) -> Result<()>,
) -> Result<()> {
    let mut frames = Frames::new(file).peekable();
    let is_external = |frame: &Result<(Stream<'_>, Place)>| matches!(frame, Ok((stream, _)) if stream.external().is_some());
    while frames.peek().is_some() {
        let own = std::iter::from_fn(|| frames.next_if(|frame| !is_external(frame)));
        decode_streams(own, options, Place::named, |bytes, place| {
            sink(bytes, place.end)
        })?;
        if let Some(frame) = frames.next_if(is_external) {
            let (stream, place) = frame?;
            // At most FRAME_BYTES.
            let mut bytes = try_zeroed(stream.original_len() as usize)?;
            let decoded = siblings.decode(&stream, &mut bytes, options);
            decoded.map_err(|error| place.named(error))?;
            sink(&bytes, place.end)?;
        }
    }
    Ok(())
}

/// Restores the original from a `.nz` file that arrives piece by piece.
pub struct StreamDecompressor {
    options: DecompressOptions,
    limit: Option<u64>,
    siblings: Option<Siblings>,
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
            siblings: None,
            reader,
            waiting: Vec::new(),
            failed: false,
        }
    }

    /// Says which file the bytes come from, beside which are the files that it may refer to.
    #[must_use]
    pub fn beside(mut self, path: &Path) -> Self {
        self.siblings = Some(Siblings::of(path));
        self
    }

    /// Takes the next bytes of the file; returns the next bytes of the original, if any are ready.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for damage, [`Error::BaseMismatch`] for what stands in another file and is not
    /// found, [`Error::OutputTooLarge`] at the frame that exceeds the limit.
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
        let decoded = match &self.siblings {
            Some(siblings) => siblings.decode(stream, &mut out[start..], &self.options),
            None => stream.decode_into(0, &mut out[start..], &self.options),
        };
        decoded.map_err(|error| error.within(&format!("frame {}", self.reader.frames - 1)))
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
