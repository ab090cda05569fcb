//! The prelude of a tensor stream: everything that must be known before a chunk can be decoded.
//!
//! ```text
//! [32 bits] magic 89 4E 5A and the version
//! [varint]  length of the prelude, from the magic to the checksum
//! [varint]  required features
//! [8 bits]  dtype   [8 bits] dimensions   [varint] each dimension
//! [8 bits]  body: 0 chunked, 1 constant, 2 reference, 3 delta, 4 base, 5 external
//! ...       what the body needs
//! [32 bits] checksum: low half of XXH3-64 of everything before it
//! ```
//! Nothing but the magic, the version and the length is believed before the checksum has been
//! verified. Place in docs/format.md: "Prelude".

use xxhash_rust::xxh3::xxh3_64;

use super::external::External;
use super::index::{ChunkEntry, index_len, write_index};
use crate::constants::{
    CHECKSUM_BYTES, CHUNK_LOG2, FORMAT_VERSION, MAX_DIMS, MAX_MODELS, STREAM_MAGIC,
};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::model::delta::DeltaModel;
use crate::model::records::Records;
use crate::model::{Model, PlaneMode};
use crate::planes::scale::ScaleOffsets;
use crate::varint::{read_varint, varint_len, write_varint};

/// Features that a reader must have, as bits of the header.
pub(crate) mod feature {
    /// Scale offsets.
    pub(crate) const SCALE_OFFSETS: u64 = 1;
    /// Coded planes of more than 8 bits.
    pub(crate) const WIDE_SYMBOLS: u64 = 1 << 1;
    /// Trailing zeros per sub-block.
    pub(crate) const TRAILING_ZEROS: u64 = 1 << 2;
    /// The body refers to another tensor.
    pub(crate) const REFERENCE: u64 = 1 << 3;
    /// Decoding needs another tensor, the base.
    pub(crate) const BASE: u64 = 1 << 4;
    /// Coded planes with a table for every context.
    pub(crate) const CONTEXTS: u64 = 1 << 5;
    /// Rows or columns whose signs are turned.
    pub(crate) const SIGN_FLIPS: u64 = 1 << 6;
    /// The body refers to a tensor of another file.
    pub(crate) const EXTERNAL: u64 = 1 << 7;
    /// Chunks of records.
    pub(crate) const RECORDS: u64 = 1 << 8;
    /// Names, in the order of the bits.
    pub(crate) const NAMES: [&str; 9] = [
        "scale-offsets",
        "wide-symbols",
        "trailing-zeros",
        "reference",
        "base",
        "contexts",
        "sign-flips",
        "external",
        "records",
    ];
    /// Every feature this release has.
    pub(crate) const KNOWN: u64 = (1 << NAMES.len()) - 1;
}

/// Element type and shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TensorType {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<u64>,
}

impl TensorType {
    /// # Errors
    /// [`Error::InvalidArgument`] above 255 dimensions or 2^63 bytes.
    pub(crate) fn new(dtype: Dtype, shape: &[u64]) -> Result<Self> {
        let tensor = Self {
            dtype,
            shape: shape.to_vec(),
        };
        if shape.len() > MAX_DIMS || tensor.checked_len().is_none() {
            return Err(Error::InvalidArgument(format!(
                "a tensor of shape {shape:?} is too large"
            )));
        }
        Ok(tensor)
    }

    /// Bytes of the tensor. The constructors have checked that the number exists.
    pub(crate) fn byte_len(&self) -> u64 {
        self.checked_len().unwrap_or(u64::MAX)
    }

    fn checked_len(&self) -> Option<u64> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        let itemsize = self.dtype.itemsize() as u64;
        self.shape
            .iter()
            .try_fold(itemsize, |len, &dim| len.checked_mul(dim))
            .filter(|&len| len < 1 << 63)
    }
}

/// What follows the tensor's type.
#[allow(clippy::large_enum_variant, reason = "there is one to a stream")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// Independent chunks.
    Chunked(Chunked),
    /// Every element has these bytes.
    Constant(Vec<u8>),
    /// The tensor is the same as another one.
    Reference { content_hash: u128, name: String },
    /// The tensor is the same as its base.
    Base { content_hash: u128 },
    /// The bytes stand in a tensor of another file.
    External(Box<External>),
}

/// How a chunked body is cut and which models its chunks use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunked {
    pub(crate) chunk_log2: u32,
    pub(crate) models: Vec<Model>,
    /// Their numbers follow those of the models.
    pub(crate) records: Vec<Records>,
    pub(crate) scale: Option<ScaleOffsets>,
    /// Set in streams that are deltas, which have no other model.
    pub(crate) delta: Option<Delta>,
}

/// The base of a delta, and how elements are taken apart next to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delta {
    pub(crate) content_hash: u128,
    pub(crate) model: DeltaModel,
}

impl Chunked {
    /// Models and records: what a chunk may be stored with.
    pub(crate) fn storages(&self) -> usize {
        self.models.len() + self.records.len() + usize::from(self.delta.is_some())
    }

    /// The records with this number, if it is not one of a model.
    pub(crate) fn records(&self, number: usize) -> Option<&Records> {
        self.records.get(number.checked_sub(self.models.len())?)
    }

    /// Bytes of the elements that a model takes apart; records are counted in bytes.
    pub(crate) fn element_bytes(&self, model: usize) -> usize {
        match &self.delta {
            Some(delta) => delta.model.element_bytes,
            None => self
                .models
                .get(model)
                .map_or(1, |model| model.element_bytes),
        }
    }

    /// Chunks that `byte_len` original bytes are cut into.
    pub(crate) fn chunks(&self, byte_len: u64) -> u64 {
        byte_len.div_ceil(1 << self.chunk_log2)
    }
}

const CHUNKED: u8 = 0;
const CONSTANT: u8 = 1;
const REFERENCE: u8 = 2;
const DELTA: u8 = 3;
const BASE: u8 = 4;
const EXTERNAL: u8 = 5;
/// Bytes of a content hash.
const CONTENT_HASH_BYTES: usize = 16;

/// A verified prelude and what lies around it.
#[derive(Clone, Debug)]
pub(crate) struct Prelude<'a> {
    pub(crate) tensor: TensorType,
    pub(crate) body: Body,
    pub(crate) features: u64,
    /// The index of a chunked body, else empty.
    pub(crate) index: &'a [u8],
    /// Bytes of the prelude.
    pub(crate) len: usize,
    pub(crate) checksum: u32,
}

impl TensorType {
    fn read_from(bytes: &[u8], position: &mut usize) -> Result<Self> {
        let cut = || Error::corrupt("the header is cut off");
        let head = bytes.get(*position..*position + 2).ok_or_else(cut)?;
        *position += 2;
        let dtype = Dtype::from_code(head[0])
            .ok_or_else(|| Error::UnsupportedVersion(format!("dtype code {}", head[0])))?;
        let shape: Vec<u64> = (0..head[1])
            .map(|_| read_varint(bytes, position))
            .collect::<Result<_>>()?;
        Self::new(dtype, &shape).map_err(|error| Error::corrupt(error.to_string()))
    }

    fn write_to(&self, out: &mut Vec<u8>) {
        out.extend([self.dtype.code(), self.shape.len() as u8]);
        self.shape.iter().for_each(|&dim| write_varint(out, dim));
    }
}

impl Chunked {
    fn read_chunk_log2(bytes: &[u8], position: &mut usize) -> Result<u32> {
        let layout = *bytes
            .get(*position)
            .ok_or_else(|| Error::corrupt("the header is cut off"))?;
        *position += 1;
        let chunk_log2 = u32::from(layout);
        if !CHUNK_LOG2.contains(&chunk_log2) {
            return Err(Error::corrupt("the chunk size is out of range"));
        }
        Ok(chunk_log2)
    }

    fn read_delta(
        bytes: &[u8],
        position: &mut usize,
        tensor: &TensorType,
        content_hash: u128,
    ) -> Result<Self> {
        let chunk_log2 = Self::read_chunk_log2(bytes, position)?;
        let model = DeltaModel::read_from(bytes, position)?;
        if !tensor.dtype.itemsize().is_multiple_of(model.element_bytes) {
            return Err(Error::corrupt(
                "the elements of a delta are not the tensor's",
            ));
        }
        Ok(Self {
            chunk_log2,
            models: Vec::new(),
            records: Vec::new(),
            scale: None,
            delta: Some(Delta {
                content_hash,
                model,
            }),
        })
    }

    fn read_from(
        bytes: &[u8],
        position: &mut usize,
        tensor: &TensorType,
        features: u64,
    ) -> Result<Self> {
        let chunk_log2 = Self::read_chunk_log2(bytes, position)?;
        let models = read_varint(bytes, position)?;
        if models > MAX_MODELS as u64 {
            return Err(Error::corrupt("too many models"));
        }
        let models: Vec<Model> = (0..models)
            .map(|_| Model::read_from(bytes, position))
            .collect::<Result<_>>()?;
        let mut records = Vec::new();
        if features & feature::RECORDS != 0 {
            let count = read_varint(bytes, position)?;
            if !(1..=MAX_MODELS as u64).contains(&count) {
                return Err(Error::corrupt("too many records, or none"));
            }
            for _ in 0..count {
                records.push(Records::read_from(bytes, position, &models)?);
            }
        }
        let elements = |model: &Model| tensor.byte_len() / model.element_bytes as u64;
        let scaled = models.iter().find(|model| model.scaled);
        let scale = scaled
            .map(|model| ScaleOffsets::read_from(bytes, position, elements(model)))
            .transpose()?;
        if models
            .iter()
            .filter(|m| m.scaled)
            .any(|m| Some(m.element_bytes) != scaled.map(|s| s.element_bytes))
        {
            return Err(Error::corrupt(
                "scaled models have elements of different sizes",
            ));
        }
        let largest_class = scale.as_ref().map_or(0, ScaleOffsets::largest_class);
        if models
            .iter()
            .any(|model| largest_class >= model.line_contexts())
        {
            return Err(Error::corrupt("a class of rows or columns has no table"));
        }
        Ok(Self {
            chunk_log2,
            models,
            records,
            scale,
            delta: None,
        })
    }

    fn write_to(&self, out: &mut Vec<u8>) {
        out.push(self.chunk_log2 as u8);
        if let Some(delta) = &self.delta {
            delta.model.write_to(out);
            return;
        }
        write_varint(out, self.models.len() as u64);
        self.models.iter().for_each(|model| model.write_to(out));
        if !self.records.is_empty() {
            write_varint(out, self.records.len() as u64);
            self.records
                .iter()
                .for_each(|records| records.write_to(out));
        }
        if let Some(scale) = &self.scale {
            scale.write_to(out);
        }
    }
}

impl Body {
    fn features(&self) -> u64 {
        match self {
            Self::Constant(_) => 0,
            Self::Reference { .. } => feature::REFERENCE,
            Self::Base { .. } => feature::BASE,
            Self::External(_) => feature::EXTERNAL,
            Self::Chunked(chunked) if chunked.delta.is_some() => feature::BASE,
            Self::Chunked(chunked) => {
                let wide = |model: &Model| model.coded_planes().any(|plane| plane.bits > 8);
                let in_contexts = |model: &Model| {
                    let mut planes = model.planes.iter();
                    planes.any(|plane| matches!(plane.mode, PlaneMode::Contexts(_)))
                };
                let when = |condition: bool, bit: u64| if condition { bit } else { 0 };
                when(chunked.scale.is_some(), feature::SCALE_OFFSETS)
                    | when(
                        chunked.scale.as_ref().is_some_and(ScaleOffsets::has_flips),
                        feature::SIGN_FLIPS,
                    )
                    | when(!chunked.records.is_empty(), feature::RECORDS)
                    | when(chunked.models.iter().any(wide), feature::WIDE_SYMBOLS)
                    | when(chunked.models.iter().any(in_contexts), feature::CONTEXTS)
                    | when(
                        chunked.models.iter().any(|model| model.trailing_zeros),
                        feature::TRAILING_ZEROS,
                    )
            }
        }
    }
}

/// Bytes of the prelude that [`write_prelude`] makes, known before the chunks are encoded.
pub(crate) fn prelude_len(tensor: &TensorType, body: &Body, chunks: usize) -> Result<usize> {
    let mut head = Vec::new();
    write_head(tensor, body, &mut head);
    let models = if let Body::Chunked(chunked) = body {
        chunked.storages()
    } else {
        0
    };
    let index = index_len(chunks, models).ok_or(Error::AllocationFailed { bytes: u64::MAX })?;
    Ok(total_len(head.len() + index))
}

/// Adds magic, the length's own bytes and the checksum to the bytes between them.
fn total_len(inner: usize) -> usize {
    let fixed = STREAM_MAGIC.len() + 1 + inner + CHECKSUM_BYTES;
    let mut total = fixed + 1;
    while fixed + varint_len(total as u64) != total {
        total = fixed + varint_len(total as u64);
    }
    total
}

fn write_head(tensor: &TensorType, body: &Body, out: &mut Vec<u8>) {
    write_varint(out, body.features());
    tensor.write_to(out);
    match body {
        Body::Chunked(chunked) => {
            match &chunked.delta {
                None => out.push(CHUNKED),
                Some(delta) => {
                    out.push(DELTA);
                    out.extend_from_slice(&delta.content_hash.to_le_bytes());
                }
            }
            chunked.write_to(out);
        }
        Body::Base { content_hash } => {
            out.push(BASE);
            out.extend_from_slice(&content_hash.to_le_bytes());
        }
        Body::Constant(element) => {
            out.push(CONSTANT);
            out.extend_from_slice(element);
        }
        Body::Reference { content_hash, name } => {
            out.push(REFERENCE);
            out.extend_from_slice(&content_hash.to_le_bytes());
            write_varint(out, name.len() as u64);
            out.extend_from_slice(name.as_bytes());
        }
        Body::External(external) => {
            out.push(EXTERNAL);
            external.write_to(out);
        }
    }
}

/// The prelude of a stream; `entries` is empty unless the body is chunked.
pub(crate) fn write_prelude(tensor: &TensorType, body: &Body, entries: &[ChunkEntry]) -> Vec<u8> {
    let mut inner = Vec::new();
    write_head(tensor, body, &mut inner);
    if let Body::Chunked(chunked) = body {
        write_index(entries, chunked.storages(), &mut inner);
    }
    let total = total_len(inner.len());
    let mut out = Vec::with_capacity(total);
    out.extend_from_slice(&STREAM_MAGIC);
    out.push(FORMAT_VERSION);
    write_varint(&mut out, total as u64);
    out.append(&mut inner);
    let checksum = xxh3_64(&out) as u32;
    out.extend_from_slice(&checksum.to_le_bytes());
    debug_assert_eq!(out.len(), total);
    out
}

/// Finds the bytes between the length and the checksum, and verifies the checksum.
fn verify(stream: &[u8]) -> Result<(&[u8], usize, u32)> {
    let magic = STREAM_MAGIC.len();
    if stream.len() <= magic || stream[..magic] != STREAM_MAGIC {
        return Err(Error::corrupt("not a neuzip tensor stream"));
    }
    if stream[magic] != FORMAT_VERSION {
        return Err(Error::UnsupportedVersion(format!(
            "format version {}",
            stream[magic]
        )));
    }
    let mut position = magic + 1;
    let total = read_varint(stream, &mut position)?;
    let prelude = usize::try_from(total)
        .ok()
        .and_then(|total| stream.get(..total))
        .filter(|prelude| prelude.len() >= position + CHECKSUM_BYTES)
        .ok_or_else(|| Error::corrupt("the header is cut off"))?;
    let (covered, stored) = prelude.split_at(prelude.len() - CHECKSUM_BYTES);
    let checksum = xxh3_64(covered) as u32;
    if checksum.to_le_bytes() != stored {
        return Err(Error::corrupt("the checksum of the header does not match"));
    }
    Ok((&covered[position..], prelude.len(), checksum))
}

impl<'a> Prelude<'a> {
    /// Verifies and reads the prelude at the start of `stream`.
    ///
    /// # Errors
    /// [`Error::Corrupt`], or [`Error::UnsupportedVersion`] for what a later release may have written.
    pub(crate) fn read_from(stream: &'a [u8]) -> Result<Self> {
        let (inner, len, checksum) = verify(stream)?;
        let mut position = 0;
        let features = read_varint(inner, &mut position)?;
        if features & !feature::KNOWN != 0 {
            return Err(Error::UnsupportedVersion(format!(
                "the stream needs features {:#x} that this release does not have",
                features & !feature::KNOWN
            )));
        }
        let tensor = TensorType::read_from(inner, &mut position)?;
        let body = Self::read_body(inner, &mut position, &tensor, features)?;
        if features != body.features() {
            return Err(Error::corrupt(
                "the features named are not the features used",
            ));
        }
        let index = &inner[position..];
        let expected = match &body {
            Body::Chunked(chunked) => usize::try_from(chunked.chunks(tensor.byte_len()))
                .ok()
                .and_then(|chunks| index_len(chunks, chunked.storages())),
            _ => Some(0),
        };
        if expected != Some(index.len()) {
            return Err(Error::corrupt("the index does not fit the shape"));
        }
        Ok(Self {
            tensor,
            body,
            features,
            index,
            len,
            checksum,
        })
    }

    fn read_body(
        inner: &[u8],
        position: &mut usize,
        tensor: &TensorType,
        features: u64,
    ) -> Result<Body> {
        let cut = || Error::corrupt("the header is cut off");
        let take = |position: &mut usize, len: usize| {
            let bytes = position
                .checked_add(len)
                .and_then(|end| inner.get(*position..end));
            *position = position.saturating_add(len);
            bytes.ok_or_else(cut)
        };
        let content_hash = |position: &mut usize| {
            let hash = take(position, CONTENT_HASH_BYTES)?;
            let hash = hash.first_chunk().ok_or_else(cut)?;
            Ok::<_, Error>(u128::from_le_bytes(*hash))
        };
        match take(position, 1)?[0] {
            DELTA => {
                let hash = content_hash(position)?;
                Chunked::read_delta(inner, position, tensor, hash).map(Body::Chunked)
            }
            BASE => Ok(Body::Base {
                content_hash: content_hash(position)?,
            }),
            CHUNKED => Chunked::read_from(inner, position, tensor, features).map(Body::Chunked),
            CONSTANT => Ok(Body::Constant(
                take(position, tensor.dtype.itemsize())?.to_vec(),
            )),
            REFERENCE => {
                let content_hash = content_hash(position)?;
                let len = usize::try_from(read_varint(inner, position)?).map_err(|_| cut())?;
                let name = String::from_utf8(take(position, len)?.to_vec())
                    .map_err(|_| Error::corrupt("a name is not UTF-8"))?;
                Ok(Body::Reference { content_hash, name })
            }
            EXTERNAL => External::read_from(inner, position, tensor)
                .map(|external| Body::External(Box::new(external))),
            other => Err(Error::UnsupportedVersion(format!("body {other}"))),
        }
    }
}
