//! Reading plain and compressed `.safetensors` through a memory map.
//!
//! Opening a compressed file checks its outer header against the embedded original one: same names in
//! the same order, same metadata, every tensor U8. Streams are parsed when they are used, and a partial
//! read decodes only the chunks it touches. Invariants: whatever is flipped in a compressed file, each
//! call gives an error or what the original held; a reference leads to a stream that holds bytes itself,
//! so it is resolved in one step.
//!
//! Place in docs/format-files.md: "Compressed .safetensors" and "Repeated tensors".

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::base::{BASE_KEY, FileBase};
use super::bundles::{Bundles, Member};
use super::dtype::ElementType;
use super::embedded::{HEADER_KEY, is_compressed, read_embedded};
use super::header::{Header, LENGTH_BYTES};
use super::parse::json_of_file;
use super::parts::{Content, decode_all, other_content};
use super::siblings::Siblings;
use super::writer::stream_form;
use crate::container::explain::Share;
use crate::container::mapped::Mapped;
use crate::container::pieces::on_this_thread;
use crate::error::{Error, Result, try_zeroed};
use crate::{DecompressOptions, Dtype, Explanation, Stream, StreamInfo, content_hash};

/// What stands in a file for a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredForm {
    /// Its bytes.
    Plain,
    /// A stream that holds all that it takes to decode it.
    Stream,
    /// A reference to the stream of tensor `first`, whose decoded bytes have this hash.
    Repeat {
        /// Number of the other tensor.
        first: usize,
        /// [`crate::content_hash`] of the bytes.
        content_hash: u128,
    },
    /// A part of a stream that several tensors share.
    Bundled(BundledForm),
    /// A stream that needs another file.
    Elsewhere,
}

/// Where a tensor lies in a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BundledForm {
    /// Number of the tensor that has the stream of the bundle.
    pub owner: usize,
    /// Its first byte in the decoded bundle.
    pub start: u64,
    /// Decoded bytes of the bundle.
    pub total: u64,
    /// If the tensor is stored as a repeat of the bundled one: [`crate::content_hash`] of its bytes.
    pub content_hash: Option<u128>,
}

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
    pub(super) fn of_descendants(
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

    pub(super) fn settle_with<T>(&self, result: Result<T>, is_vouched_for: bool) -> Result<T> {
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

    /// Bytes that tensor `index` takes in this file: of a bundle its share.
    #[must_use]
    pub fn stored_bytes(&self, index: usize) -> u64 {
        let stored = self.stored_header();
        match self.member(index) {
            None => stored.tensor_bytes(index),
            Some(member) => self
                .share(index, member)
                .of(stored.tensor_bytes(member.owner)),
        }
    }

    /// The part of its bundle that tensor `index` is.
    fn share(&self, index: usize, member: Member) -> Share {
        Share {
            start: member.start,
            bytes: self.header.tensor_bytes(index),
            total: member.total,
        }
    }

    /// Where tensor `index` lies in a bundle.
    fn member(&self, index: usize) -> Option<Member> {
        self.compressed.as_ref()?.bundles.member(index)
    }

    /// The first tensor of the bundle that tensor `index` is in, if it is in one: that has the stream.
    #[must_use]
    pub fn bundle(&self, index: usize) -> Option<usize> {
        self.member(index).map(|member| member.owner)
    }

    /// Where in the file tensor `index` is stored: the first byte, and behind the last one.
    #[must_use]
    pub fn stored_range(&self, index: usize) -> std::ops::Range<u64> {
        let offsets = self.stored_header().offsets(index);
        let start = self.data_at as u64;
        start + offsets.start..start + offsets.end
    }

    /// How tensor `index` is stored, for readers that decode without this one.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the stream is damaged.
    pub fn stored_form(&self, index: usize) -> Result<StoredForm> {
        if !self.is_compressed() {
            return Ok(StoredForm::Plain);
        }
        let bundled = |member: Member, content_hash| {
            StoredForm::Bundled(BundledForm {
                owner: member.owner,
                start: member.start,
                total: member.total,
                content_hash,
            })
        };
        let stream = self.stream(index)?;
        if let Some(member) = self.member(index) {
            return Ok(bundled(member, None));
        }
        let Some(reference) = stream.reference() else {
            return Ok(if is_alone(&stream) {
                StoredForm::Stream
            } else {
                StoredForm::Elsewhere
            });
        };
        let Some(first) = self.header.find(reference.name) else {
            return Ok(StoredForm::Elsewhere);
        };
        let target = self.stream(first)?;
        let same_type = target.dtype() == stream.dtype();
        Ok(match self.member(first) {
            Some(member)
                if same_type && self.header.tensor_bytes(first) == stream.original_len() =>
            {
                bundled(member, Some(reference.content_hash))
            }
            None if same_type && target.shape() == stream.shape() && is_alone(&target) => {
                StoredForm::Repeat {
                    first,
                    content_hash: reference.content_hash,
                }
            }
            _ => StoredForm::Elsewhere,
        })
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
    pub(super) fn plain(&self, index: usize) -> Result<&[u8]> {
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
    pub(super) fn named(&self, index: usize, error: Error) -> Error {
        error.within(&format!("tensor {:?}", self.header.name(index)))
    }

    /// Where the bytes of tensor `index` come from.
    pub(super) fn content(&self, index: usize, options: &DecompressOptions) -> Result<Content<'_>> {
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
    pub(super) fn holds(&self, index: usize) -> Result<bool> {
        if !self.is_compressed() {
            return Ok(true);
        }
        Ok(is_alone(&self.stream(index)?))
    }

    /// Reads original bytes of a tensor that [`SafetensorsFile::holds`] is true of.
    pub(super) fn read_held(
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

    /// The other files that tensors refer to, in the order of their names; with `check` each tensor
    /// referred to is looked for.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a stream is damaged, [`Error::BaseMismatch`] if one refers to nothing.
    pub fn references(&self, check: bool) -> Result<BTreeSet<String>> {
        let mut files = BTreeSet::new();
        if self.is_compressed() {
            for index in 0..self.header.len() {
                let stream = self.stream(index)?;
                if let Some(external) = stream.external() {
                    if check {
                        self.content(index, &DecompressOptions::default())?;
                    }
                    files.insert(external.file.clone());
                }
            }
        }
        Ok(files)
    }

    /// What is known about the stream of tensor `index`; `None` for a plain file.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the stream is damaged.
    pub fn info(&self, index: usize) -> Result<Option<StreamInfo>> {
        if !self.is_compressed() {
            return Ok(None);
        }
        let info = self.stream(index).map(|stream| Some(stream.info()));
        self.settle(info, true)
    }

    /// Where the bits of tensor `index` of a compressed file go.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a plain file, [`Error::Corrupt`] if the stream is damaged.
    pub fn explain(
        &self,
        index: usize,
        measure: Option<&DecompressOptions>,
    ) -> Result<Explanation> {
        if !self.is_compressed() {
            return Err(Error::InvalidArgument("it is not compressed".to_owned()));
        }
        let explained = self.stream(index).and_then(|stream| {
            let explained = stream.explain(measure);
            explained.map_err(|error| self.named(index, error))
        });
        let explained = self.settle(explained, true)?;
        Ok(match self.member(index) {
            None => explained,
            Some(member) => explained.shared(self.share(index, member)),
        })
    }

    /// The name of the tensor that tensor `index` is stored as a repeat of.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the stream is damaged.
    pub fn repeats(&self, index: usize) -> Result<Option<String>> {
        if !self.is_compressed() {
            return Ok(None);
        }
        let stream = self.stream(index)?;
        Ok(stream
            .reference()
            .map(|reference| reference.name.to_owned()))
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

    /// What the file says of its base: its identity, then where it was, if that was recorded.
    #[must_use]
    pub fn base(&self) -> Option<&str> {
        let file = self.compressed.as_ref()?;
        base_entry(&file.outer, &self.header)
    }

    /// The files that the base was found in, and those that they need in turn.
    #[must_use]
    pub fn base_files(&self) -> Vec<PathBuf> {
        let compressed = self.compressed.as_ref();
        compressed.map_or_else(Vec::new, |compressed| compressed.base.files())
    }

    /// Checks that every base tensor that is needed is there and the right one.
    ///
    /// # Errors
    /// [`Error::BaseMismatch`] if not, [`Error::Corrupt`] for damage, whatever `progress` returns.
    pub fn check_base(
        &self,
        options: &DecompressOptions,
        progress: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        // Tensors of a plain file have no base.
        let compressed = if self.is_compressed() {
            self.header.len()
        } else {
            0
        };
        let checked = (0..compressed).try_for_each(|index| {
            match self.bundle(index) {
                None => drop(self.content(index, options)?),
                Some(owner) if owner == index => drop(self.stream(index)?),
                Some(_) => {}
            }
            progress()
        });
        self.settle(checked, true)
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
