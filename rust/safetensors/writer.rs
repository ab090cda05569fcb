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

use std::borrow::Cow;
use std::io::{Cursor, Seek, SeekFrom, Write};
use std::ops::Range;

use super::base::{BASE_KEY, BaseChoice};
use super::bundles::Plan as Bundling;
use super::dtype::ElementType;
use super::embedded::{HEADER_KEY, write_embedded};
use super::header::{Described, Header, LENGTH_BYTES, MAX_HEADER_BYTES, write_json};
use super::repeats::{Repeat, find_repeats};
use crate::codec::{Tensor, write_external};
use crate::constants::ALIGNMENT;
use crate::container::external::External;
use crate::container::pieces::{AHEAD, PIECE_BYTES};
use crate::container::writer::Spare;
use crate::error::{Error, Result};
use crate::headroom::{self, WORKER_BYTES};
use crate::parallel::in_order;
use crate::{CompressOptions, DecompressOptions, Dtype, Threads, write_reference};

/// What handling a tensor costs, as bytes that are compressed in the same time: a group of tiny
/// tensors should not take longer than others.
const TENSOR_WEIGHT: usize = 4 << 10;

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

impl Source<'_> {
    fn tensor<'a>(&'a self, base: Option<&'a [u8]>) -> Tensor<'a> {
        Tensor {
            data: self.data,
            base,
            dtype: self.dtype,
            shape: &self.shape,
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

/// A plain file that is to be compressed.
pub(crate) struct Plain<'a> {
    /// Its header with the padding.
    pub(crate) json: &'a [u8],
    /// The same parsed.
    pub(crate) header: &'a Header,
    /// Its tensors in the order of their data.
    pub(crate) sources: &'a [Source<'a>],
    /// What deltas are taken from.
    pub(crate) base: Option<BaseChoice<'a>>,
    /// What some of them are stored as; empty if none.
    pub(crate) externals: Vec<Option<External>>,
}

/// Writes the compressed form of a plain file at the beginning of `out`.
///
/// `progress` is told the original bytes that are done. Returns the length of the file.
///
/// # Errors
/// [`Error::InvalidArgument`] if the outer header would exceed what the safetensors package reads, and
/// whatever `out` and `progress` return.
pub(crate) fn write_compressed<W: Write + Seek>(
    out: &mut W,
    plain: &Plain<'_>,
    options: &CompressOptions,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<u64> {
    let Plain {
        json,
        header,
        sources,
        base,
        ..
    } = *plain;
    let base_options = DecompressOptions {
        threads: options.threads,
        ..DecompressOptions::default()
    };
    let outer = OuterHeader {
        header,
        embedded: write_embedded(json)?,
        // An entry of that name in the original stays what it is.
        base: match base.filter(|_| header.metadata_value(BASE_KEY).is_none()) {
            Some(base) => Some(base.entry(&base_options, &mut || progress(0))?),
            None => None,
        },
    };
    headroom::check(WORKER_BYTES)?;
    let mut repeats = find_repeats(sources, options.threads, &mut || progress(0))?;
    let externals = (0..sources.len()).map(|index| plain.externals.get(index).cloned().flatten());
    let externals: Vec<Option<External>> = externals.collect();
    let bundles = if base.is_some() {
        // Every tensor has a base of its own.
        Bundling::default()
    } else {
        Bundling::new(sources, header, &mut repeats, &externals)?
    };
    let longest: Vec<u64> = (0..sources.len())
        .map(|index| longest_stream(sources, &bundles, index))
        .collect();
    let reserved = reserved_bytes(outer.json(&longest, &bundles)?.len())?;
    let data_at = (LENGTH_BYTES + reserved) as u64;
    out.seek(SeekFrom::Start(data_at))?;
    let mut streams = Streams {
        is_external: externals.iter().map(Option::is_some).collect(),
        externals,
        out,
        header,
        sources,
        base,
        repeats,
        bundles: &bundles,
        options,
        lengths: Vec::with_capacity(sources.len()),
        done: 0,
        spare: Spare::default(),
        small: Vec::new(),
        progress,
    };
    while let Some(next) = sources.get(streams.lengths.len()) {
        if next.data.len() > PIECE_BYTES {
            streams.write_large(next)?;
        } else {
            streams.write_small()?;
        }
    }
    let lengths = streams.lengths;
    let mut head = outer.json(&lengths, &bundles)?;
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

/// An upper bound for the stream at a tensor, for the width of the numbers in the outer header.
fn longest_stream(sources: &[Source<'_>], bundles: &Bundling, index: usize) -> u64 {
    if bundles.place(index).is_some() {
        return 0;
    }
    // Incompressible tensors grow by 0.1 % and 64 bytes; a dimension takes at most ten more. The
    // rest is slack that costs a digit at most.
    let bytes = bundles.stream_bytes(sources, index) as u64;
    bytes + bytes / 128 + 512 + 10 * sources[index].shape.len() as u64
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
    base: Option<String>,
}

impl OuterHeader<'_> {
    fn json(&self, lengths: &[u64], bundles: &Bundling) -> Result<Vec<u8>> {
        let mut metadata: Vec<_> = self.header.metadata().collect();
        metadata.push((HEADER_KEY, &self.embedded));
        metadata.extend(self.base.as_deref().map(|base| (BASE_KEY, base)));
        let shapes: Vec<[u64; 3]> = (0..)
            .zip(lengths)
            .map(|(index, &length)| match bundles.place(index) {
                Some((owner, start)) => [0, owner as u64, start],
                None => [length, 0, 0],
            })
            .collect();
        let tensors = (0..).zip(&shapes).map(|(index, shape)| Described {
            name: self.header.name(index),
            element: ElementType::U8,
            shape: &shape[..if bundles.place(index).is_some() { 3 } else { 1 }],
            bytes: shape[0],
        });
        write_json(Some(&metadata), tensors)
    }
}

/// The streams of a group of small tensors, one after the other.
#[derive(Default)]
struct SmallBuffer {
    streams: Vec<u8>,
    spare: Spare,
}

impl SmallBuffer {
    /// Compresses a tensor behind the streams that are there.
    fn append(&mut self, tensor: &Tensor<'_>, options: &CompressOptions) -> Result<()> {
        let mut out = Cursor::new(&mut self.streams);
        out.seek(SeekFrom::End(0))?;
        let (spare, progress) = (&mut self.spare, &mut |_| Ok(()));
        tensor.compress_to(spare, &mut out, options, progress)?;
        Ok(())
    }
}

/// The streams of a file while they are written.
struct Streams<'a, W> {
    out: &'a mut W,
    header: &'a Header,
    sources: &'a [Source<'a>],
    base: Option<BaseChoice<'a>>,
    repeats: Vec<Option<Repeat>>,
    externals: Vec<Option<External>>,
    is_external: Vec<bool>,
    bundles: &'a Bundling,
    options: &'a CompressOptions,
    /// Of the streams that were written.
    lengths: Vec<u64>,
    /// Original bytes of them.
    done: u64,
    /// Buffers for chunks of large tensors, and for groups of small ones.
    spare: Spare,
    small: Vec<SmallBuffer>,
    progress: &'a mut dyn FnMut(u64) -> Result<()>,
}

impl<W: Write + Seek> Streams<'_, W> {
    /// Writes the next tensor, whose chunks are compressed over threads.
    fn write_large(&mut self, source: &Source<'_>) -> Result<()> {
        if !self.write_reference()? {
            let (done, progress) = (self.done, &mut self.progress);
            let named = (self.header, self.lengths.len());
            let base = base_of(self.base, named, source, self.options)?;
            let length = source.tensor(base.as_deref()).compress_to(
                &mut self.spare,
                self.out,
                self.options,
                &mut |in_stream| progress(done + in_stream),
            )?;
            self.lengths.push(length);
        }
        self.done += source.data.len() as u64;
        (self.progress)(self.done)
    }

    /// Writes the next tensors up to a large one: threads compress a group of tensors each.
    fn write_small(&mut self) -> Result<()> {
        let first = self.lengths.len();
        let (sources, header, base) = (self.sources, self.header, self.base);
        let bundles = self.bundles;
        // Repeats are left to the calling thread, which knows what they would refer to.
        let stored = self.repeats.iter().zip(&self.externals);
        let repeated: Vec<bool> = stored
            .map(|(repeat, external)| repeat.is_some() || external.is_some())
            .collect();
        let options = CompressOptions {
            threads: Threads::new(1),
            ..self.options.clone()
        };
        let mut small = std::mem::take(&mut self.small);
        in_order(
            self.options.threads,
            AHEAD,
            &mut small,
            groups(sources, bundles, first).map(Ok),
            |group, buffer: &mut SmallBuffer| {
                buffer.streams.clear();
                let mut ends = Vec::with_capacity(group.len());
                for index in group.clone() {
                    if let Some(bundle) = bundles.gather(sources, index) {
                        buffer.append(&bundle.tensor(), &options)?;
                    } else if !repeated[index] && bundles.place(index).is_none() {
                        let source = &sources[index];
                        let base = base_of(base, (header, index), source, &options)?;
                        buffer.append(&source.tensor(base.as_deref()), &options)?;
                    }
                    ends.push(buffer.streams.len());
                }
                Ok((group, ends))
            },
            |(group, ends), buffer| {
                // Streams without a repeat between them are written together.
                let (mut begin, mut written) = (0, 0);
                for (index, end) in group.zip(ends) {
                    if repeated[index] {
                        self.out.write_all(&buffer.streams[written..end])?;
                        written = end;
                        if !self.write_reference()? {
                            let mut repeated = SmallBuffer::default();
                            repeated.append(&sources[index].tensor(None), &options)?;
                            self.append(&repeated.streams)?;
                        }
                    } else {
                        self.lengths.push((end - begin) as u64);
                    }
                    begin = end;
                    self.done += sources[index].data.len() as u64;
                }
                self.out.write_all(&buffer.streams[written..])?;
                (self.progress)(self.done)
            },
        )?;
        self.small = small;
        Ok(())
    }

    fn append(&mut self, stream: &[u8]) -> Result<()> {
        self.out.write_all(stream)?;
        self.lengths.push(stream.len() as u64);
        Ok(())
    }

    /// Writes the next tensor as a reference, if it repeats one and that is shorter than it.
    fn write_reference(&mut self) -> Result<bool> {
        let index = self.lengths.len();
        if let Some(external) = self.externals[index].take() {
            let Source { dtype, shape, .. } = &self.sources[index];
            self.append(&write_external(*dtype, shape, external)?)?;
            return Ok(true);
        }
        let Some(Repeat {
            first,
            content_hash,
        }) = self.repeats[index]
        else {
            return Ok(false);
        };
        if self.is_external[first] {
            return Ok(false);
        }
        let source = &self.sources[index];
        let name = self.header.name(first);
        let stream = write_reference(source.dtype, &source.shape, name, content_hash)?;
        let shorter = self.bundles.is_bundled(first) || (stream.len() as u64) < self.lengths[first];
        if shorter {
            self.append(&stream)?;
        }
        Ok(shorter)
    }
}

/// The small tensors from `first` on, cut into groups of about a piece, each with its weight.
fn groups<'a>(
    sources: &'a [Source<'_>],
    bundles: &'a Bundling,
    first: usize,
) -> impl Iterator<Item = (usize, Range<usize>)> + 'a {
    let mut begin = first;
    std::iter::from_fn(move || {
        let (mut weight, mut end) = (0, begin);
        while let Some(source) = sources.get(end)
            && source.data.len() <= PIECE_BYTES
        {
            let bytes = match bundles.stream_bytes(sources, end) {
                0 => 0,
                bytes => bytes + TENSOR_WEIGHT,
            };
            if end > begin && weight + bytes > PIECE_BYTES {
                break;
            }
            weight += bytes;
            end += 1;
        }
        let group = begin..end;
        begin = end;
        (!group.is_empty()).then_some((weight, group))
    })
}

/// The base tensor of a tensor, which has its name in the header.
fn base_of<'a>(
    base: Option<BaseChoice<'a>>,
    (header, index): (&Header, usize),
    source: &Source<'_>,
    options: &CompressOptions,
) -> Result<Option<Cow<'a, [u8]>>> {
    let Some(base) = base else {
        return Ok(None);
    };
    let options = DecompressOptions {
        threads: options.threads,
        ..DecompressOptions::default()
    };
    let shape = header.shape(index);
    base.model
        .tensor(header.name(index), source.element, &shape, &options)
}
