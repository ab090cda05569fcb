//! Reading a tensor stream: in place, in parallel, whole or in part.
//!
//! ```text
//! [prelude] | zero padding to 16 | [payload of chunk 0] [payload of chunk 1] ...
//! ```
//! A stream of one raw or constant chunk has no padding. Place in docs/format.md: "Tensor stream".

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use super::external::External;
use super::index::{Index, Storage, is_packed};
use super::prelude::{Body, Chunked, Prelude};
use crate::chunk::{
    DecodeJob, DeltaCoder, ModelCoder, chunk_hash, decode_constant, decode_raw, decode_records,
    fill_pattern,
};
use crate::codec::content_hash;
use crate::constants::{ALIGNMENT, PAST_CACHE_BYTES};
use crate::dtype::Dtype;
use crate::error::{Error, Result, try_zeroed};
use crate::options::DecompressOptions;
use crate::parallel;
use crate::simd::Kernels;

/// Another tensor that a stream stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference<'a> {
    /// Name of the other tensor in the same file.
    pub name: &'a str,
    /// [`crate::content_hash`] of its bytes.
    pub content_hash: u128,
}

/// A verified view of a tensor stream.
///
/// The checksum of the header has been verified and every size checked against the input; payloads are
/// verified when they are decoded.
#[derive(Clone, Debug)]
pub struct Stream<'a> {
    pub(super) prelude: Prelude<'a>,
    pub(super) index: Index<'a>,
    payloads: &'a [u8],
    /// The bytes of the base tensor, where the stream needs one and has been given it.
    base: Option<Arc<Cow<'a, [u8]>>>,
    /// Bytes of the stream.
    pub(super) len: usize,
}

impl<'a> Stream<'a> {
    /// Reads the header of the stream that `bytes` is, from its first byte to its last.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for damaged, cut off or foreign bytes, or bytes left over;
    /// [`Error::UnsupportedVersion`] for what a later release may have written.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let prelude = Prelude::read_from(bytes)?;
        let rest = &bytes[prelude.len..];
        let (index, payloads) = match &prelude.body {
            Body::Chunked(chunked) => {
                let chunks = chunked.chunks(prelude.tensor.byte_len()) as usize;
                let models = chunked.storages();
                let packed = chunks == 0
                    || chunks == 1
                        && (chunked.delta.is_some()
                            || is_packed(1, Index::single_storage(prelude.index, models)?));
                let payloads = if packed {
                    rest
                } else {
                    skip_padding(rest, prelude.len)?
                };
                let index = Index::new(prelude.index, chunks, models, payloads.len() as u64)?;
                let original_len = prelude.tensor.byte_len();
                if packed && chunks == 1 && !index.fits_packed(payloads.len(), original_len) {
                    return Err(Error::corrupt(
                        "the stream is longer or shorter than its only chunk",
                    ));
                }
                (index, payloads)
            }
            _ => (Index::new(&[], 0, 0, rest.len() as u64)?, rest),
        };
        Ok(Self {
            prelude,
            index,
            payloads,
            base: None,
            len: bytes.len(),
        })
    }

    /// [`crate::content_hash`] of the base tensor that decoding needs, if it needs one. The base has the
    /// same dtype and shape.
    #[must_use]
    pub fn base_hash(&self) -> Option<u128> {
        match &self.prelude.body {
            Body::Base { content_hash } => Some(*content_hash),
            Body::Chunked(chunked) => chunked.delta.as_ref().map(|delta| delta.content_hash),
            _ => None,
        }
    }

    /// The stream with its base at hand; nothing changes for a stream that needs none.
    ///
    /// # Errors
    /// [`Error::BaseMismatch`] when `base` is not what the stream was made from.
    pub fn with_base(self, base: impl Into<Cow<'a, [u8]>>) -> Result<Self> {
        let base = base.into();
        match self.base_hash() {
            Some(hash) if content_hash(&base) != hash => Err(Error::BaseMismatch(
                "the base is not the one that the tensor was compressed against".to_owned(),
            )),
            Some(_) => self.with_checked_base(Arc::new(base)),
            None => Ok(self),
        }
    }

    /// As [`Stream::with_base`] for a base whose hash has been compared.
    pub(crate) fn with_checked_base(mut self, base: Arc<Cow<'a, [u8]>>) -> Result<Self> {
        if base.len() as u64 != self.original_len() {
            return Err(Error::BaseMismatch(
                "the base has another length".to_owned(),
            ));
        }
        self.base = Some(base);
        Ok(self)
    }

    /// The bytes of the base.
    fn base(&self) -> Result<&[u8]> {
        let base = self.base.as_deref().map(|base| &**base);
        base.ok_or_else(|| {
            Error::BaseMismatch("the tensor cannot be decoded without its base".into())
        })
    }

    /// Type of the elements.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.prelude.tensor.dtype
    }

    /// Length of every dimension.
    #[must_use]
    pub fn shape(&self) -> &[u64] {
        &self.prelude.tensor.shape
    }

    /// Bytes of the decoded tensor.
    #[must_use]
    pub fn original_len(&self) -> u64 {
        self.prelude.tensor.byte_len()
    }

    /// Original bytes per chunk; the whole tensor if it has no chunks.
    #[must_use]
    pub fn chunk_bytes(&self) -> usize {
        match &self.prelude.body {
            Body::Chunked(chunked) => 1 << chunked.chunk_log2,
            _ => self.original_len() as usize,
        }
    }

    /// The checksum of the header, which covers the hashes of all chunks.
    #[must_use]
    pub fn prelude_checksum(&self) -> u32 {
        self.prelude.checksum
    }

    /// The tensor this stream stands for, if it has no data of its own.
    #[must_use]
    pub fn reference(&self) -> Option<Reference<'_>> {
        match &self.prelude.body {
            Body::Reference { content_hash, name } => Some(Reference {
                name,
                content_hash: *content_hash,
            }),
            _ => None,
        }
    }

    /// The payload of a chunk.
    pub(super) fn payload(&self, chunk: usize) -> &'a [u8] {
        &self.payloads[self.index.payload(chunk)]
    }

    /// Where the payload of a chunk lies in the stream.
    pub(super) fn payload_range(&self, chunk: usize) -> std::ops::Range<usize> {
        let before = self.len - self.payloads.len();
        let range = self.index.payload(chunk);
        before + range.start..before + range.end
    }

    /// What the stream refers to in another file, if it does.
    #[must_use]
    pub fn external(&self) -> Option<&External> {
        match &self.prelude.body {
            Body::External(external) => Some(external),
            _ => None,
        }
    }

    /// Decodes the original bytes from `start` on until `out` is full.
    ///
    /// Only the chunks that the range touches are decoded.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for damaged chunks (unless `verify` is off, every change of the payloads is
    /// found by their hashes), [`Error::BaseMismatch`] for a reference, or without the base it needs,
    /// [`Error::InvalidArgument`] for a range outside the tensor or a `NEUZIP_SIMD` that is not available. `out` is then partly written.
    pub fn decode_into(
        &self,
        start: u64,
        out: &mut [u8],
        options: &DecompressOptions,
    ) -> Result<()> {
        self.decode_range(start, out, options, out.len() >= PAST_CACHE_BYTES)
    }

    /// As [`Stream::decode_into`], for a reader that comes at once: the bytes are left in the caches,
    /// however many they are.
    ///
    /// # Errors
    /// As for [`Stream::decode_into`].
    pub fn decode_to_use(
        &self,
        start: u64,
        out: &mut [u8],
        options: &DecompressOptions,
    ) -> Result<()> {
        self.decode_range(start, out, options, false)
    }

    fn decode_range(
        &self,
        start: u64,
        out: &mut [u8],
        options: &DecompressOptions,
        past_cache: bool,
    ) -> Result<()> {
        if start
            .checked_add(out.len() as u64)
            .is_none_or(|end| end > self.original_len())
        {
            return Err(Error::InvalidArgument(format!(
                "the range {start}..+{} is outside the {} bytes of the tensor",
                out.len(),
                self.original_len()
            )));
        }
        let kernels = Kernels::select(options.simd)?;
        match &self.prelude.body {
            Body::Reference { name, .. } => Err(reference_alone(name)),
            Body::External(external) => Err(external_alone(external)),
            Body::Constant(element) => {
                fill_element(element, (start % element.len() as u64) as usize, out);
                Ok(())
            }
            Body::Base { .. } => {
                out.copy_from_slice(&self.base()?[start as usize..][..out.len()]);
                Ok(())
            }
            Body::Chunked(chunked) => {
                self.decode_chunks(chunked, start, out, options, kernels, past_cache)
            }
        }
    }

    fn decode_chunks(
        &self,
        chunked: &Chunked,
        start: u64,
        out: &mut [u8],
        options: &DecompressOptions,
        kernels: Kernels,
        past_cache: bool,
    ) -> Result<()> {
        let delta = match &chunked.delta {
            Some(delta) => Some((
                DeltaCoder::new(kernels, &delta.model, self.index.len() > 1),
                self.base()?,
            )),
            None => None,
        };
        let decoder = ChunkDecoder {
            delta,
            stream: self,
            chunked,
            coders: chunked.models.iter().map(|_| OnceLock::new()).collect(),
            options: *options,
            kernels,
            past_cache,
        };
        let units = decoder.units(self.pieces(start, out));
        parallel::try_for_each(options.threads, units, |unit| decoder.decode_unit(unit))
    }

    /// Cuts an output range at the borders of chunks.
    fn pieces<'o>(&self, start: u64, mut out: &'o mut [u8]) -> Vec<Piece<'o>> {
        let chunk_bytes = self.chunk_bytes() as u64;
        let mut position = start;
        let mut pieces = Vec::new();
        while !out.is_empty() {
            let offset = (position % chunk_bytes) as usize;
            let len = out.len().min(chunk_bytes as usize - offset);
            let (now, later) = out.split_at_mut(len);
            pieces.push(Piece {
                number: (position / chunk_bytes) as usize,
                offset,
                out: now,
            });
            out = later;
            position += len as u64;
        }
        pieces
    }
}

struct Piece<'o> {
    number: usize,
    /// First byte wanted of the chunk.
    offset: usize,
    out: &'o mut [u8],
}

struct ChunkDecoder<'s> {
    stream: &'s Stream<'s>,
    chunked: &'s Chunked,
    /// The only model of a delta, and the bytes of the base.
    delta: Option<(DeltaCoder<'s>, &'s [u8])>,
    /// Built when the first chunk needs them.
    coders: Vec<OnceLock<ModelCoder<'s>>>,
    options: DecompressOptions,
    kernels: Kernels,
    past_cache: bool,
}

impl<'s> ChunkDecoder<'s> {
    fn chunk_len(&self, number: usize) -> usize {
        let chunk_bytes = self.stream.chunk_bytes() as u64;
        let begin = number as u64 * chunk_bytes;
        (self.stream.original_len() - begin).min(chunk_bytes) as usize
    }

    fn coder(&self, model: usize) -> &ModelCoder<'s> {
        self.coders[model].get_or_init(|| {
            let scale = self.chunked.scale.as_ref();
            ModelCoder::new(self.kernels, &self.chunked.models[model], scale)
        })
    }

    fn hash(&self, number: usize) -> Option<u64> {
        self.options.verify.then(|| self.stream.index.hash(number))
    }

    /// Joins neighbours of the same model and length into units that are decoded in one call.
    fn units<'o>(&self, pieces: Vec<Piece<'o>>) -> Vec<Vec<Piece<'o>>> {
        let index = &self.stream.index;
        let mut units: Vec<Vec<Piece<'o>>> = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let storage = index.storage(piece.number);
            let most = match storage {
                Storage::Model(model)
                    if self.delta.is_none() && self.chunked.records(model).is_none() =>
                {
                    self.coder(model).decode_interleave()
                }
                _ => 1,
            };
            let whole = |piece: &Piece<'o>| piece.out.len() == self.chunk_len(piece.number);
            let alike = |unit: &Vec<Piece<'o>>| {
                unit.last().is_some_and(|last| {
                    unit.len() < most
                        && index.storage(last.number) == storage
                        && last.out.len() == piece.out.len()
                        && whole(last)
                        && whole(&piece)
                })
            };
            match units.last_mut().filter(|unit| alike(unit)) {
                Some(unit) => unit.push(piece),
                None => units.push(vec![piece]),
            }
        }
        units
    }

    fn decode_unit(&self, mut unit: Vec<Piece<'_>>) -> Result<()> {
        if let [piece] = unit.as_mut_slice() {
            return self
                .decode_piece(piece)
                .map_err(|error| error.within(&format!("chunk {}", piece.number)));
        }
        let first = unit.first().map_or(0, |piece| piece.number);
        let Storage::Model(model) = self.stream.index.storage(first) else {
            return Ok(());
        };
        let jobs = unit
            .iter_mut()
            .map(|piece| self.job(model, piece.number, piece.out));
        self.coder(model)
            .decode(&mut jobs.collect::<Vec<_>>(), self.past_cache)
            .map_err(|(job, error)| error.within(&format!("chunk {}", first + job)))
    }

    fn decode_piece(&self, piece: &mut Piece<'_>) -> Result<()> {
        let len = self.chunk_len(piece.number);
        if piece.offset == 0 && piece.out.len() == len {
            return self.decode_chunk(piece.number, piece.out);
        }
        let mut chunk = try_zeroed(len)?;
        self.decode_chunk(piece.number, &mut chunk)?;
        piece
            .out
            .copy_from_slice(&chunk[piece.offset..piece.offset + piece.out.len()]);
        Ok(())
    }

    fn job<'o>(&self, model: usize, number: usize, out: &'o mut [u8]) -> DecodeJob<'o>
    where
        's: 'o,
    {
        let element_bytes = self.chunked.element_bytes(model);
        let range = self.stream.index.payload(number);
        let readable = &self.stream.payloads[range.start..];
        DecodeJob {
            payload: &readable[..range.len()],
            readable,
            first: number * self.stream.chunk_bytes() / element_bytes,
            out,
            hash: self.hash(number),
        }
    }

    fn decode_chunk(&self, number: usize, out: &mut [u8]) -> Result<()> {
        let index = &self.stream.index;
        let payload = &self.stream.payloads[index.payload(number)];
        match index.storage(number) {
            Storage::Raw => decode_raw(payload, out)?,
            Storage::Constant => decode_constant(payload, out)?,
            Storage::Model(model) => {
                let start = number * self.stream.chunk_bytes();
                if let Some(records) = self.chunked.records(model) {
                    decode_records(records, |it| self.coder(it), start, payload, out)?;
                    return self.check(number, out);
                }
                if let Some((delta, base)) = &self.delta {
                    delta.decode(payload, &base[start..start + out.len()], out)?;
                    return self.check(number, out);
                }
                let job = self.job(model, number, out);
                return self
                    .coder(model)
                    .decode(&mut [job], self.past_cache)
                    .map_err(|(_, error)| error);
            }
        }
        self.check(number, out)
    }

    fn check(&self, number: usize, out: &[u8]) -> Result<()> {
        match self.hash(number) {
            Some(hash) if chunk_hash(self.kernels, out) != hash => Err(Error::corrupt(
                "the hash of the decoded bytes does not match",
            )),
            _ => Ok(()),
        }
    }
}

/// Repeats an element, beginning with its byte `phase`.
fn fill_element(element: &[u8], phase: usize, out: &mut [u8]) {
    if ALIGNMENT.is_multiple_of(element.len()) {
        let pattern = std::array::from_fn(|i| element[(phase + i) % element.len()]);
        fill_pattern(&pattern, out);
    } else {
        let bytes = element.iter().cycle().skip(phase);
        out.iter_mut().zip(bytes).for_each(|(to, &from)| *to = from);
    }
}

/// The bytes after the zeros that fill a prelude up to the alignment.
fn skip_padding(rest: &[u8], prelude_len: usize) -> Result<&[u8]> {
    let padding = prelude_len.next_multiple_of(ALIGNMENT) - prelude_len;
    match rest.split_at_checked(padding) {
        Some((zeros, payloads)) if zeros.iter().all(|&byte| byte == 0) => Ok(payloads),
        _ => Err(Error::corrupt(
            "the padding after the header is missing or not zero",
        )),
    }
}

/// What a reference says that is decoded without its file.
pub(super) fn reference_alone(name: &str) -> Error {
    Error::BaseMismatch(format!(
        "this stream stands for the tensor {name:?} of its file and has no data of its own"
    ))
}

/// What a stream says that is decoded without the file that its data is in.
pub(super) fn external_alone(external: &External) -> Error {
    Error::BaseMismatch(format!(
        "this stream needs the tensor {:?} of the file {:?}, beside the one it came from",
        external.name, external.file
    ))
}
