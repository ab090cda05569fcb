//! Reading plain and compressed `.safetensors` through a memory map.
//!
//! Opening a compressed file checks its outer header against the embedded original one: same names in
//! the same order, same metadata, every tensor U8. Streams are parsed when they are used, and a partial
//! read decodes only the chunks it touches. Invariants: whatever is flipped in a compressed file, each
//! call gives an error or what the original held; a reference leads to a stream that holds bytes itself,
//! so it is resolved in one step.
//!
//! Place in docs/format-files.md: "Compressed .safetensors" and "Repeated tensors".

mod forms;

pub use forms::{BundledForm, StoredForm};

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::container::mapped::Mapped;
use crate::container::pieces::on_this_thread;
use crate::error::{Error, Result, try_zeroed};
use crate::safetensors::base::{BASE_KEY, FileBase};
use crate::safetensors::bundles::{Bundles, Member};
use crate::safetensors::dtype::ElementType;
use crate::safetensors::embedded::{HEADER_KEY, is_compressed, read_embedded};
use crate::safetensors::header::{Header, LENGTH_BYTES};
use crate::safetensors::parse::json_of_file;
use crate::safetensors::parts::{Content, decode_all, other_content};
use crate::safetensors::siblings::Siblings;
use crate::safetensors::writer::stream_form;
use crate::{DecompressOptions, Dtype, Stream, content_hash};

/// Bytes decoded between two reports: a multiple of every chunk length, and a moment's work.
const STEP_BYTES: u64 = 1 << 27;

/// A memory-mapped `.safetensors` file, plain or compressed.
pub struct SafetensorsFile {
    map: Mapped,
    /// Where the data section begins in the map.
    data_at: usize,
    /// The original header.
    header: Header,
    /// What a compressed file has besides.
    compressed: Option<Compressed>,
    /// The files that streams may refer to.
    siblings: Siblings,
}

struct Compressed {
    /// Where the streams lie.
    outer: Header,
    bundles: Bundles,
    /// The original header's JSON with its padding.
    json: Vec<u8>,
    base: FileBase,
}

impl SafetensorsFile {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file, [`Error::Corrupt`] if it is no valid `.safetensors`.
    pub fn open(path: &Path) -> Result<Self> {
        Self::of_map(Mapped::open(path)?, None)
    }

    /// As [`SafetensorsFile::open`], with the base that the deltas in it were taken from.
    ///
    /// # Errors
    /// As [`SafetensorsFile::open`] for either of them.
    pub fn open_with_base(path: &Path, base: Option<&Path>) -> Result<Self> {
        Self::of_map(Mapped::open(path)?, base)
    }

    /// As [`SafetensorsFile::open_with_base`] for a file of which this process writes each part before
    /// it is read; so are those beside it that it refers to.
    pub(crate) fn open_filled_in(path: &Path, base: Option<&Path>) -> Result<Self> {
        Self::of_map(Mapped::open_filled_in(path)?, base)
    }

    pub(crate) fn of_map(map: Mapped, base: Option<&Path>) -> Result<Self> {
        Self::of_descendants(map, base, &[])
    }

    /// Opens a file that the files at `descendants` are deltas of.
    pub(in crate::safetensors) fn of_descendants(
        map: Mapped,
        base: Option<&Path>,
        descendants: &[PathBuf],
    ) -> Result<Self> {
        let read = read_headers(&map, base, descendants);
        let (data_at, header, compressed) = map.settle(read, true)?;
        Ok(Self {
            siblings: Siblings::of_map(&map),
            map,
            data_at,
            header,
            compressed,
        })
    }

    /// What a call that read the file came to, see [`Mapped::settle`]; the other files that it has read
    /// count too.
    pub(crate) fn settle<T>(&self, result: Result<T>, verify: bool) -> Result<T> {
        self.settle_with(result, verify && self.is_compressed())
    }

    pub(in crate::safetensors) fn settle_with<T>(
        &self,
        result: Result<T>,
        is_vouched_for: bool,
    ) -> Result<T> {
        let result = self.map.settle(result, is_vouched_for);
        match &self.compressed {
            None => result,
            Some(file) => {
                let result = file.base.settle(result, is_vouched_for);
                self.siblings.settle(result, is_vouched_for)
            }
        }
    }

    /// Whether the tensors are stored as streams.
    #[must_use]
    pub fn is_compressed(&self) -> bool {
        self.compressed.is_some()
    }

    /// The original header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Bytes of the original file.
    #[must_use]
    pub fn original_bytes(&self) -> u64 {
        let json = self.json().map_or(0, <[u8]>::len);
        (LENGTH_BYTES as u64 + json as u64).saturating_add(self.header.data_bytes())
    }

    /// Where tensor `index` lies in a bundle.
    fn member(&self, index: usize) -> Option<Member> {
        self.compressed.as_ref()?.bundles.member(index)
    }

    pub(crate) fn map(&self) -> &Mapped {
        &self.map
    }

    /// The header that says where things lie in this file.
    fn stored_header(&self) -> &Header {
        self.compressed
            .as_ref()
            .map_or(&self.header, |file| &file.outer)
    }

    fn json(&self) -> Result<&[u8]> {
        match &self.compressed {
            Some(file) => Ok(&file.json),
            None => json_of_file(self.map.bytes()),
        }
    }

    /// The bytes that stand in this file for tensor `index`.
    fn stored(&self, index: usize) -> Result<&[u8]> {
        let offsets = self.stored_header().offsets(index);
        // The header was checked against the file's length when it was opened.
        usize::try_from(offsets.start)
            .ok()
            .zip(usize::try_from(offsets.end).ok())
            .and_then(|(begin, end)| {
                self.map
                    .bytes()
                    .get(self.data_at + begin..self.data_at + end)
            })
            .ok_or_else(|| Error::corrupt("a tensor lies outside the file"))
    }

    /// The bytes of tensor `index` of a plain file.
    pub(in crate::safetensors) fn plain(&self, index: usize) -> Result<&[u8]> {
        self.stored(index)
    }

    /// The stream of tensor `index` of a compressed file, or of its bundle, checked against the original
    /// header.
    pub(crate) fn stream(&self, index: usize) -> Result<Stream<'_>> {
        let place = || format!("tensor {:?}", self.header.name(index));
        let member = self.member(index);
        let stored = self.stored(member.map_or(index, |member| member.owner))?;
        let stream = Stream::parse(stored).map_err(|error| error.within(&place()))?;
        let fits = match member {
            None => self.form_fits(index, &stream),
            Some(member) => self.bundle_fits(member, &stream),
        };
        if fits {
            return Ok(stream);
        }
        Err(
            Error::corrupt("the stream is not that of the header's dtype and shape")
                .within(&place()),
        )
    }

    fn form_fits(&self, index: usize, stream: &Stream<'_>) -> bool {
        let element = self.header.element(index);
        let bytes = self.header.tensor_bytes(index);
        if stream.original_len() != bytes {
            return false;
        }
        let (dtype, shape) = stream_form(element, &self.header.shape(index), bytes);
        // Bytes may hold elements of a type that safetensors lacks.
        let stands_for_bytes = || element == ElementType::U8 && stream.dtype() != Dtype::Uint8;
        (stream.dtype() == dtype && stream.shape() == shape) || stands_for_bytes()
    }

    fn bundle_fits(&self, member: Member, stream: &Stream<'_>) -> bool {
        let element = self.header.element(member.owner);
        let dtype_fits = match element.stream_dtype() {
            // Bytes may hold elements of a type that safetensors lacks.
            Some(Dtype::Uint8) => true,
            dtype => dtype == Some(stream.dtype()),
        };
        dtype_fits && is_alone(stream) && stream.original_len() == member.total
    }

    /// Says in an error which tensor it is about.
    pub(in crate::safetensors) fn named(&self, index: usize, error: Error) -> Error {
        error.within(&format!("tensor {:?}", self.header.name(index)))
    }

    /// Where the bytes of tensor `index` come from.
    pub(in crate::safetensors) fn content(
        &self,
        index: usize,
        options: &DecompressOptions,
    ) -> Result<Content<'_>> {
        let Some(compressed) = &self.compressed else {
            return self.stored(index).map(Content::Plain);
        };
        if let Some(member) = compressed.bundles.member(index) {
            return self.bundled(member, options, None);
        }
        let attach = |index, stream| compressed.base.attach(self, index, stream, options);
        let stream = self.stream(index)?;
        if let Some(external) = stream.external() {
            let found = self.siblings.find(&stream, external);
            let found = found.map_err(|error| self.named(index, error))?;
            return Ok(Content::Elsewhere(Box::new(found)));
        }
        let Some(reference) = stream.reference() else {
            return Ok(Content::Stream(Box::new(attach(index, stream)?), None));
        };
        let place = format!("tensor {:?}", self.header.name(index));
        let mismatch = |what: &str| {
            Error::BaseMismatch(format!("it repeats {:?}, {what}", reference.name)).within(&place)
        };
        let first = self
            .header
            .find(reference.name)
            .ok_or_else(|| mismatch("which is not in the file"))?;
        let target = self.stream(first)?;
        if target.reference().is_some() || target.external().is_some() {
            return Err(mismatch("which is a repeat itself"));
        }
        let member = compressed.bundles.member(first);
        let alike = match member {
            None => target.shape() == stream.shape(),
            Some(_) => self.header.tensor_bytes(first) == stream.original_len(),
        };
        if target.dtype() != stream.dtype() || !alike {
            return Err(mismatch("which has another dtype or shape"));
        }
        if let Some(member) = member {
            return self.bundled(member, options, Some(reference.content_hash));
        }
        Ok(Content::Stream(
            Box::new(attach(first, target)?),
            Some(reference.content_hash),
        ))
    }

    /// The bytes of a bundled tensor.
    fn bundled(
        &self,
        member: Member,
        options: &DecompressOptions,
        repeated_hash: Option<u128>,
    ) -> Result<Content<'_>> {
        let Some(compressed) = &self.compressed else {
            return Err(Error::corrupt("a plain file has no bundles"));
        };
        let decode = || {
            // Not more than the length that was checked when the file was opened.
            let mut bytes = try_zeroed(member.total as usize)?;
            self.stream(member.owner)?
                .decode_into(0, &mut bytes, &on_this_thread(options))
                .map_err(|error| self.named(member.owner, error))?;
            Ok(bytes)
        };
        Ok(Content::Bundled {
            bytes: compressed
                .bundles
                .bytes(member.owner, options.verify, decode)?,
            start: member.start as usize,
            repeated_hash,
        })
    }

    /// Whether tensor `index` has its bytes in this file and under its own name.
    pub(in crate::safetensors) fn holds(&self, index: usize) -> Result<bool> {
        if !self.is_compressed() {
            return Ok(true);
        }
        Ok(is_alone(&self.stream(index)?))
    }

    /// Reads original bytes of a tensor that [`SafetensorsFile::holds`] is true of.
    pub(in crate::safetensors) fn read_held(
        &self,
        index: usize,
        start: u64,
        out: &mut [u8],
        options: &DecompressOptions,
    ) -> Result<()> {
        let content = if let Some(member) = self.member(index) {
            self.bundled(member, options, None)?
        } else if self.is_compressed() {
            Content::Stream(Box::new(self.stream(index)?), None)
        } else {
            Content::Plain(self.stored(index)?)
        };
        let read = content.read(start, out, options);
        read.map_err(|error| self.named(index, error))
    }

    /// Reads the original bytes of tensor `index` from `start` on into `out`.
    ///
    /// `progress` is told the bytes that are done, now and then.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] outside the tensor, [`Error::Corrupt`] and [`Error::BaseMismatch`]
    /// for damage, whatever `progress` returns.
    pub fn read_into(
        &self,
        index: usize,
        start: u64,
        out: &mut [u8],
        options: &DecompressOptions,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let bytes = self.header.tensor_bytes(index);
        let end = start
            .checked_add(out.len() as u64)
            .filter(|&end| end <= bytes);
        let Some(end) = end else {
            return Err(Error::InvalidArgument(format!(
                "{} bytes from {start} on are not inside tensor {:?} of {bytes} bytes",
                out.len(),
                self.header.name(index)
            )));
        };
        let read = self.read_range(index, start..end, out, options, progress);
        self.settle(read, options.verify)
    }

    fn read_range(
        &self,
        index: usize,
        range: Range<u64>,
        out: &mut [u8],
        options: &DecompressOptions,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let Range { start, end } = range;
        let content = self.content(index, options)?;
        let mut position = start;
        while position < end {
            let stop = end.min(position / STEP_BYTES * STEP_BYTES + STEP_BYTES);
            let piece = &mut out[(position - start) as usize..(stop - start) as usize];
            content
                .read(position, piece, options)
                .map_err(|error| self.named(index, error))?;
            position = stop;
            progress(position - start)?;
        }
        // A part has no hash of its own: its chunks' hashes vouch for it.
        match content.repeated_hash() {
            Some(hash)
                if options.verify
                    && out.len() as u64 == self.header.tensor_bytes(index)
                    && content_hash(out) != hash =>
            {
                Err(self.named(index, other_content()))
            }
            _ => Ok(()),
        }
    }

    /// Gives the original file to `sink`, piece by piece.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and [`Error::BaseMismatch`] for damage, whatever `sink` returns.
    pub(crate) fn decode_file(
        &self,
        options: &DecompressOptions,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let json = self.json()?;
        sink(&[&(json.len() as u64).to_le_bytes(), json].concat())?;
        let (stored, mut sweep) = (self.stored_header(), self.map.sweep());
        decode_all(self, options, &mut |bytes, last| {
            sink(bytes)?;
            // The tensor that is being decoded may be needed still.
            sweep.passed(self.data_at + stored.offsets(last).start as usize);
            Ok(())
        })
    }
}

/// Where the data of a file begins, its original header, and what a compressed one has besides.
fn read_headers(
    map: &Mapped,
    base: Option<&Path>,
    descendants: &[PathBuf],
) -> Result<(usize, Header, Option<Compressed>)> {
    let (outer, data_at) = Header::of_file(map.bytes())?;
    if !is_compressed(&outer) {
        return Ok((data_at, outer, None));
    }
    let embedded = outer
        .metadata_value(HEADER_KEY)
        .ok_or_else(|| Error::corrupt(format!("the metadata key {HEADER_KEY:?} is damaged")))?;
    let json = read_embedded(embedded)?;
    let header = Header::parse(&json).map_err(|error| error.within("embedded header"))?;
    check_agreement(&outer, &header)?;
    let bundles = Bundles::of_headers(&outer, &header)?;
    let entry = base_entry(&outer, &header);
    let base = FileBase::find(entry, base, map.path(), descendants)?;
    let compressed = Compressed {
        outer,
        bundles,
        json,
        base,
    };
    Ok((data_at, header, Some(compressed)))
}

/// Whether a stream holds all that it takes to decode it.
fn is_alone(stream: &Stream<'_>) -> bool {
    let elsewhere = stream.reference().is_some() || stream.external().is_some();
    !elsewhere && stream.base_hash().is_none()
}

/// The metadata entry of the base, unless the original had it.
fn base_entry<'a>(outer: &'a Header, inner: &Header) -> Option<&'a str> {
    let entry = outer.metadata_value(BASE_KEY)?;
    inner.metadata_value(BASE_KEY).is_none().then_some(entry)
}

/// Checks that the outer header of a compressed file is the one that `inner` would have been given.
fn check_agreement(outer: &Header, inner: &Header) -> Result<()> {
    if outer.len() != inner.len() {
        return Err(Error::corrupt(format!(
            "the header lists {} tensors, the original had {}",
            outer.len(),
            inner.len()
        )));
    }
    for index in 0..outer.len() {
        let (name, original) = (outer.name(index), inner.name(index));
        if name != original {
            return Err(Error::corrupt(format!(
                "tensor {original:?} is listed as {name:?}"
            )));
        }
        if outer.element(index) != ElementType::U8 {
            return Err(Error::corrupt(format!(
                "tensor {name:?} is not stored as bytes"
            )));
        }
    }
    let base = base_entry(outer, inner).is_some();
    let ours = |key: &str| key == HEADER_KEY || base && key == BASE_KEY;
    let kept = outer.metadata().filter(|&(key, _)| !ours(key));
    // Keys are unique on both sides, so equal numbers and one inclusion make them equal.
    let same_number = outer.metadata().count() == inner.metadata().count() + 1 + usize::from(base);
    let mut differing = kept.filter(|&(key, value)| inner.metadata_value(key) != Some(value));
    match differing.next() {
        None if same_number => Ok(()),
        None => Err(Error::corrupt(
            "the metadata lacks entries that the original had",
        )),
        Some((key, _)) => Err(Error::corrupt(format!(
            "the metadata entry {key:?} is not the original one"
        ))),
    }
}
