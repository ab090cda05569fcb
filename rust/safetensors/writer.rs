//! Writing compressed `.safetensors`, from a plain file or from tensors in memory.
//!
//! ```text
//! [8 bytes] length of the outer header
//! [JSON]    outer header: every tensor U8, 1-D; metadata plus `neuzip.header`; padded with spaces
//! [streams] one tensor stream after the other, in the order of the original data
//! ```
//!
//! The outer header names lengths that are known only when the streams are written. So room for the
//! longest header they could give is left free first, the streams follow, and the header is written
//! last; memory stays bounded whatever the size of the model. Invariants: the data section begins at a
//! multiple of 16 bytes; the result depends on the tensors, the header and the level only.
//!
//! Place in docs/format-files.md: "Compressed .safetensors".

use std::io::{Seek, SeekFrom, Write};

use super::dtype::ElementType;
use super::embedded::{HEADER_KEY, write_embedded};
use super::header::{Described, Header, LENGTH_BYTES, MAX_HEADER_BYTES, write_json};
use super::repeats::{Repeat, find_repeats};
use crate::constants::ALIGNMENT;
use crate::error::{Error, Result};
use crate::{CompressOptions, Dtype, compress, compress_to, write_reference};

/// Tensors below this size are compressed in memory and written together.
const SMALL_TENSOR_BYTES: usize = 256 << 10;
/// Streams of small tensors that may wait for one write.
const PENDING_BYTES: usize = 4 << 20;

/// One original tensor and the form of its stream.
pub(crate) struct Source<'a> {
    pub(crate) element: ElementType,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<u64>,
    pub(crate) data: &'a [u8],
}

impl<'a> Source<'a> {
    /// The tensor at `index` of a header, whose bytes are `data`.
    pub(crate) fn of_header(header: &Header, index: usize, data: &'a [u8]) -> Self {
        let element = header.element(index);
        let (dtype, shape) = stream_form(element, &header.shape(index), data.len() as u64);
        Self {
            element,
            dtype,
            shape,
            data,
        }
    }
}

/// The dtype and shape of the stream of a tensor: its own, or bytes for packed types.
pub(super) fn stream_form(element: ElementType, shape: &[u64], bytes: u64) -> (Dtype, Vec<u64>) {
    match element.stream_dtype() {
        Some(dtype) => (dtype, shape.to_vec()),
        None => (Dtype::Uint8, vec![bytes]),
    }
}

/// Writes the compressed form of a plain file at the beginning of `out`: `json` is its header with
/// the padding, `header` the same parsed, `sources` its tensors in the order of their data.
///
/// `progress` is told the original bytes that are done. Returns the length of the file.
///
/// # Errors
/// [`Error::InvalidArgument`] if the outer header would exceed what the safetensors package reads, and
/// whatever `out` and `progress` return.
pub(crate) fn write_compressed<W: Write + Seek>(
    out: &mut W,
    json: &[u8],
    header: &Header,
    sources: &[Source<'_>],
    options: &CompressOptions,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<u64> {
    let outer = OuterHeader {
        header,
        embedded: write_embedded(json)?,
    };
    let longest: Vec<u64> = sources.iter().map(longest_stream).collect();
    let reserved = reserved_bytes(outer.json(&longest)?.len())?;
    let data_at = (LENGTH_BYTES + reserved) as u64;
    out.seek(SeekFrom::Start(data_at))?;
    let mut streams = StreamWriter {
        out,
        options,
        pending: Vec::new(),
    };
    let repeats = find_repeats(sources);
    let mut lengths: Vec<u64> = Vec::with_capacity(sources.len());
    let mut done = 0;
    for (index, source) in sources.iter().enumerate() {
        let length = match reference(header, source, repeats[index])? {
            Some((stream, first)) if (stream.len() as u64) < lengths[first] => {
                streams.append(&stream)?
            }
            _ => streams.compress(source, &mut |in_stream| progress(done + in_stream))?,
        };
        lengths.push(length);
        done += source.data.len() as u64;
        progress(done)?;
    }
    streams.flush()?;
    let mut head = outer.json(&lengths)?;
    if head.len() > reserved {
        return Err(Error::Io(std::io::Error::other(
            "a stream is longer than it can be",
        )));
    }
    head.resize(reserved, b' ');
    out.seek(SeekFrom::Start(0))?;
    head.splice(0..0, (reserved as u64).to_le_bytes());
    out.write_all(&head)?;
    Ok(data_at + lengths.iter().sum::<u64>())
}

/// The stream that leads to the tensor `source` repeats, and the index of that tensor.
fn reference(
    header: &Header,
    source: &Source<'_>,
    repeat: Option<Repeat>,
) -> Result<Option<(Vec<u8>, usize)>> {
    let Some(Repeat {
        first,
        content_hash,
    }) = repeat
    else {
        return Ok(None);
    };
    let stream = write_reference(
        source.dtype,
        &source.shape,
        header.name(first),
        content_hash,
    )?;
    Ok(Some((stream, first)))
}

/// An upper bound for the stream of a tensor, for the width of the numbers in the outer header.
fn longest_stream(source: &Source<'_>) -> u64 {
    // Incompressible tensors grow by 0.1 % and 64 bytes; a dimension takes at most ten more. The
    // rest is slack that costs a digit at most.
    let bytes = source.data.len() as u64;
    bytes + bytes / 128 + 512 + 10 * source.shape.len() as u64
}

/// Rounds the length of the outer header up to where the data section is aligned.
fn reserved_bytes(json_bytes: usize) -> Result<usize> {
    let reserved = (LENGTH_BYTES + json_bytes).next_multiple_of(ALIGNMENT) - LENGTH_BYTES;
    if reserved > MAX_HEADER_BYTES {
        return Err(Error::InvalidArgument(format!(
            "the compressed file's header would take {reserved} bytes, more than a .safetensors \
             file may have ({MAX_HEADER_BYTES})"
        )));
    }
    Ok(reserved)
}

/// What the outer header says besides the lengths.
struct OuterHeader<'a> {
    header: &'a Header,
    embedded: String,
}

impl OuterHeader<'_> {
    fn json(&self, lengths: &[u64]) -> Result<Vec<u8>> {
        let mut metadata: Vec<_> = self.header.metadata().collect();
        metadata.push((HEADER_KEY, &self.embedded));
        let shapes = lengths.iter().map(std::slice::from_ref).enumerate();
        let tensors = shapes.map(|(index, shape)| Described {
            name: self.header.name(index),
            element: ElementType::U8,
            shape,
            bytes: shape[0],
        });
        write_json(Some(&metadata), tensors)
    }
}

/// Appends tensor streams, the small ones many at a time.
struct StreamWriter<'a, W> {
    out: &'a mut W,
    options: &'a CompressOptions,
    pending: Vec<u8>,
}

impl<W: Write + Seek> StreamWriter<'_, W> {
    fn compress(
        &mut self,
        source: &Source<'_>,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<u64> {
        let Source {
            dtype, shape, data, ..
        } = source;
        if data.len() < SMALL_TENSOR_BYTES {
            let stream = compress(data, *dtype, shape, self.options)?;
            return self.append(&stream);
        }
        self.flush()?;
        compress_to(self.out, data, *dtype, shape, self.options, progress)
    }

    fn append(&mut self, stream: &[u8]) -> Result<u64> {
        self.pending.extend_from_slice(stream);
        if self.pending.len() >= PENDING_BYTES {
            self.flush()?;
        }
        Ok(stream.len() as u64)
    }

    fn flush(&mut self) -> Result<()> {
        self.out.write_all(&self.pending)?;
        self.pending.clear();
        Ok(())
    }
}
