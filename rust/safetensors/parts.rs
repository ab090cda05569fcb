//! Reading many tensors at once: cut into parts of about a piece, decoded over threads, in order.
//!
//! Small tensors share a group, large ones are cut at the ends of chunks, so that a model of ten thousand
//! small tensors keeps every thread as busy as one large tensor does. Invariants: the parts of a tensor
//! follow each other and cover it; a tensor that is stored as a repeat is checked against the hash of
//! the whole, unless the caller wants nothing verified.
//!
//! Place in docs/format-files.md: "Compressed .safetensors" and "Repeated tensors".

use std::iter::Peekable;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use super::reader::SafetensorsFile;
use super::siblings::Elsewhere;
use crate::container::pieces::{AHEAD, PIECE_BYTES, on_this_thread, piece_end, room, trim};
use crate::container::read_ahead::ReadAhead;
use crate::error::{Error, Result};
use crate::parallel::in_order;
use crate::{DecompressOptions, Stream, content_hash};

/// What handling a tensor costs, as bytes that are decoded in the same time: a group of tiny tensors
/// should not take longer than others.
const TENSOR_WEIGHT: usize = 1 << 10;

/// Where the bytes of a tensor come from.
pub(super) enum Content<'a> {
    /// They stand in the file.
    Plain(&'a [u8]),
    /// They are a stream's; the hash is there if that is another tensor's.
    Stream(Box<Stream<'a>>, Option<u128>),
    /// They come from a tensor of another file.
    Elsewhere(Box<Elsewhere>),
    /// They stand in a decoded bundle; the hash is there if they are another tensor's.
    Bundled {
        bytes: Arc<Vec<u8>>,
        start: usize,
        repeated_hash: Option<u128>,
    },
}

impl Content<'_> {
    fn piece_end(&self, position: u64) -> u64 {
        match self {
            Self::Plain(bytes) => (position + PIECE_BYTES as u64).min(bytes.len() as u64),
            Self::Stream(stream, _) => piece_end(stream, position),
            Self::Elsewhere(found) => found.piece_end(position),
            // Less than a piece.
            Self::Bundled { .. } => u64::MAX,
        }
    }

    /// The hash that the bytes must have besides those of the chunks.
    pub(super) fn repeated_hash(&self) -> Option<u128> {
        match self {
            Self::Plain(_) => None,
            Self::Stream(_, hash) => *hash,
            Self::Elsewhere(found) => Some(found.content_hash()),
            Self::Bundled { repeated_hash, .. } => *repeated_hash,
        }
    }

    /// Fills `out` with the bytes from `start` on, which are there.
    pub(super) fn read(
        &self,
        start: u64,
        out: &mut [u8],
        options: &DecompressOptions,
    ) -> Result<()> {
        match self {
            Self::Plain(bytes) => {
                let start = start as usize;
                out.copy_from_slice(&bytes[start..start + out.len()]);
                Ok(())
            }
            Self::Stream(stream, _) => stream.decode_into(start, out, options),
            Self::Elsewhere(found) => found.read(start, out, options),
            Self::Bundled {
                bytes, start: from, ..
            } => {
                let start = from + start as usize;
                out.copy_from_slice(&bytes[start..start + out.len()]);
                Ok(())
            }
        }
    }
}

/// A part of a tensor, or the whole of it.
struct Part<'a> {
    index: usize,
    start: u64,
    bytes: usize,
    /// Of a large tensor; a small one is looked at by the thread that decodes it.
    content: Option<Arc<Content<'a>>>,
}

impl<'a> Part<'a> {
    fn decode(
        &self,
        file: &'a SafetensorsFile,
        out: &mut [u8],
        options: &DecompressOptions,
    ) -> Result<()> {
        let place = |error| file.named(self.index, error);
        if let Some(content) = &self.content {
            return content.read(self.start, out, options).map_err(place);
        }
        let content = file.content(self.index, options)?;
        content.read(0, out, options).map_err(place)?;
        match content.repeated_hash() {
            Some(hash) if options.verify && content_hash(out) != hash => {
                Err(place(other_content()))
            }
            _ => Ok(()),
        }
    }
}

/// Parts that one thread decodes in one go.
type Group<'a> = Vec<Part<'a>>;

/// Cuts tensors into groups of parts.
struct Groups<'a, I: Iterator<Item = usize>> {
    file: &'a SafetensorsFile,
    indices: Peekable<I>,
    /// The tensor that is being cut, and where its next part begins.
    large: Option<(Part<'a>, Arc<Content<'a>>)>,
    options: DecompressOptions,
}

impl<'a, I: Iterator<Item = usize>> Groups<'a, I> {
    fn new(file: &'a SafetensorsFile, indices: I, options: &DecompressOptions) -> Self {
        Self {
            file,
            options: *options,
            indices: indices.peekable(),
            large: None,
        }
    }

    /// The next part of the large tensor.
    fn cut(&mut self) -> Option<(usize, Group<'a>)> {
        let (rest, content) = self.large.take()?;
        let end = content.piece_end(rest.start);
        let bytes = (end - rest.start) as usize;
        let part = Part {
            bytes,
            content: Some(content.clone()),
            ..rest
        };
        if bytes < rest.bytes {
            let later = Part {
                index: part.index,
                start: end,
                bytes: rest.bytes - bytes,
                content: None,
            };
            self.large = Some((later, content));
        }
        Some((bytes, vec![part]))
    }
}

impl<'a, I: Iterator<Item = usize>> Iterator for Groups<'a, I> {
    /// A group and its weight.
    type Item = Result<(usize, Group<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(part) = self.cut() {
            return Some(Ok(part));
        }
        let (mut group, mut weight) = (Vec::new(), 0);
        while let Some(&index) = self.indices.peek() {
            // The lengths of a header fit a file or a buffer that is there.
            let bytes = self.file.header().tensor_bytes(index) as usize;
            let full = weight + bytes + TENSOR_WEIGHT > PIECE_BYTES;
            if full && !group.is_empty() {
                break;
            }
            self.indices.next();
            if bytes > PIECE_BYTES {
                return Some(self.file.content(index, &self.options).and_then(|content| {
                    let whole = Part {
                        index,
                        start: 0,
                        bytes,
                        content: None,
                    };
                    self.large = Some((whole, Arc::new(content)));
                    self.cut().ok_or(Error::Interrupted)
                }));
            }
            weight += bytes + TENSOR_WEIGHT;
            group.push(Part {
                index,
                start: 0,
                bytes,
                content: None,
            });
        }
        (!group.is_empty()).then_some(Ok((weight, group)))
    }
}

/// Groups of the tensors `indices`, of which the bytes are asked for before a thread needs them.
fn groups_ahead<'a>(
    file: &'a SafetensorsFile,
    indices: impl Iterator<Item = usize> + Clone,
    options: &DecompressOptions,
) -> impl Iterator<Item = Result<(usize, Group<'a>)>> {
    let stored = |index| file.stored_range(index);
    let total = indices.clone().map(stored).map(|it| it.end - it.start);
    let mut reader = ReadAhead::new(file.map(), total.sum());
    Groups::new(file, indices, options).inspect(move |group| {
        if let Ok((_, parts)) = group
            && let Some(part) = parts.first()
        {
            let range = stored(part.index);
            // About there: a tensor is compressed evenly.
            let share = part.start as f64 / file.header().tensor_bytes(part.index).max(1) as f64;
            reader.reached(range.start + ((range.end - range.start) as f64 * share) as u64);
        }
    })
}

/// Checks large tensors that are stored as repeats against the hash of the whole.
#[derive(Default)]
struct RepeatCheck {
    hasher: Option<Box<Xxh3>>,
}

impl RepeatCheck {
    /// Sees the parts in order.
    fn see(&mut self, file: &SafetensorsFile, part: &Part<'_>, bytes: &[u8]) -> Result<()> {
        let expected = part.content.as_ref().and_then(|it| it.repeated_hash());
        let Some(expected) = expected else {
            return Ok(());
        };
        let hasher = self.hasher.get_or_insert_default();
        hasher.update(bytes);
        if part.start + (bytes.len() as u64) < file.header().tensor_bytes(part.index) {
            return Ok(());
        }
        let hash = hasher.digest128();
        self.hasher = None;
        if hash == expected {
            return Ok(());
        }
        Err(file.named(part.index, other_content()))
    }
}

pub(super) fn other_content() -> Error {
    Error::BaseMismatch("it repeats another tensor whose content is not what it was".into())
}

/// Decodes all tensors of a file; `sink` gets their bytes in order, and where in the file the tensor
/// that they end with begins.
pub(super) fn decode_all(
    file: &SafetensorsFile,
    options: &DecompressOptions,
    sink: &mut dyn FnMut(&[u8], usize) -> Result<()>,
) -> Result<()> {
    let alone = on_this_thread(options);
    let mut check = RepeatCheck::default();
    in_order(
        options.threads,
        AHEAD,
        &mut Vec::new(),
        groups_ahead(file, 0..file.header().len(), options),
        |group, buffer: &mut Vec<u8>| {
            let total = group.iter().map(|part| part.bytes).sum();
            let mut rest = room(buffer, total)?;
            for part in &group {
                let (now, later) = rest.split_at_mut(part.bytes);
                part.decode(file, now, &alone)?;
                rest = later;
            }
            Ok(group)
        },
        |group, buffer| {
            let (mut total, mut last) = (0, 0);
            for part in &group {
                if options.verify {
                    check.see(file, part, &buffer[total..total + part.bytes])?;
                }
                total += part.bytes;
                last = part.index;
            }
            sink(&buffer[..total], last)?;
            trim(buffer);
            Ok(())
        },
    )
}

impl SafetensorsFile {
    /// Reads whole tensors, each into the buffer that comes with its index.
    ///
    /// `progress` is told the bytes that are done, now and then.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a buffer of another length than its tensor, otherwise as
    /// [`SafetensorsFile::read_into`].
    pub fn read_many(
        &self,
        requests: Vec<(usize, &mut [u8])>,
        options: &DecompressOptions,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        for (index, out) in &requests {
            let bytes = self.header().tensor_bytes(*index);
            if out.len() as u64 != bytes {
                return Err(Error::InvalidArgument(format!(
                    "tensor {:?} has {bytes} bytes, the buffer for it {}",
                    self.header().name(*index),
                    out.len()
                )));
            }
        }
        let (indices, outs): (Vec<usize>, Vec<&mut [u8]>) = requests.into_iter().unzip();
        let (mut outs, mut rest) = (outs.into_iter(), &mut [][..]);
        let groups = groups_ahead(self, indices.into_iter(), options).map(|group| {
            let (weight, group) = group?;
            let with_room = group.into_iter().map(|part| {
                if part.start == 0 {
                    rest = outs.next().unwrap_or_default();
                }
                let (now, later) = std::mem::take(&mut rest).split_at_mut(part.bytes);
                rest = later;
                (part, now)
            });
            Ok((weight, with_room.collect::<Vec<_>>()))
        });
        let alone = on_this_thread(options);
        let mut check = RepeatCheck::default();
        let mut done = 0;
        let read = in_order(
            options.threads,
            AHEAD,
            &mut Vec::new(),
            groups,
            |mut group, (): &mut ()| {
                for (part, out) in &mut group {
                    part.decode(self, out, &alone)?;
                }
                Ok(group)
            },
            |group, ()| {
                for (part, out) in &group {
                    if options.verify {
                        check.see(self, part, out)?;
                    }
                    done += part.bytes as u64;
                }
                progress(done)
            },
        );
        self.settle(read, options.verify)
    }
}
