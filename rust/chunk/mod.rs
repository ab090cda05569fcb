//! One chunk: original bytes to payload and back. Chunks are independent of each other.
//!
//! A payload is the chunk itself (raw), a 16-byte pattern (constant), or the planes of a model; which
//! one it is stands in the index of the stream. Any model can be coded plane by plane (`planes.rs`,
//! the oracle); the usual cut of floats has a faster way that handles several chunks at a time
//! (`cut.rs`). Place in docs/format.md: "Chunk payload".

mod cut;
mod delta;
mod hash;
mod layout;
mod payload;
mod planes;
mod raw_blocks;
mod records;
#[cfg(test)]
mod tests;

pub(crate) use delta::DeltaCoder;
pub(crate) use hash::{ChunkHash, chunk_hash};
// What kernels hash with.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use hash::{HASH_KEYS, HASH_STEPS};
pub(crate) use layout::plane_bytes;
pub(crate) use payload::Payload;
pub(crate) use records::{decode_records, encode_records, records_layout};

use std::sync::OnceLock;

use crate::constants::ALIGNMENT;
use crate::error::{Error, Result};
use crate::model::{Model, Plane, PlaneMode};
use crate::planes::coded::{Placement, PlaneCoder};
use crate::planes::contexts::ContextCoder;
use crate::planes::scale::ScaleOffsets;
use crate::simd::{Kernels, SimdTier};
use cut::CutCoder;
use layout::ChunkShape;
use planes::PlanesEncoder;

/// A model with its tables built, and the scale offsets of the stream if it uses them.
#[derive(Debug)]
pub(crate) struct ModelCoder<'a> {
    kernels: Kernels,
    model: &'a Model,
    scale: Option<&'a ScaleOffsets>,
    /// The fast way, for the models that it covers.
    cut: Option<Box<CutCoder>>,
    /// The coders of the plain way, built when a chunk needs them.
    planes: OnceLock<Vec<AnyCoder>>,
}

/// The coder of a plane, with one table or several.
#[derive(Debug)]
enum AnyCoder {
    Table(Box<PlaneCoder>),
    Contexts(Box<ContextCoder>),
}

/// A chunk to decode.
#[derive(Debug)]
pub(crate) struct DecodeJob<'a> {
    pub(crate) payload: &'a [u8],
    /// The payload, and what follows it in memory: kernels may read on.
    pub(crate) readable: &'a [u8],
    /// Number of the chunk's first element in the tensor.
    pub(crate) first: usize,
    pub(crate) out: &'a mut [u8],
    /// The hash of the decoded bytes, if it is to be checked.
    pub(crate) hash: Option<u64>,
}

impl DecodeJob<'_> {
    fn check(&self, hash: u64) -> Result<()> {
        if self.hash.is_none_or(|expected| expected == hash) {
            Ok(())
        } else {
            Err(Error::corrupt(
                "the hash of the decoded bytes does not match",
            ))
        }
    }
}

impl<'a> ModelCoder<'a> {
    pub(crate) fn new(kernels: Kernels, model: &'a Model, scale: Option<&'a ScaleOffsets>) -> Self {
        let scale = scale.filter(|_| model.scaled);
        // The scalar tier is the oracle: it goes the plain way.
        let cut = match kernels.tier() {
            SimdTier::Scalar => None,
            _ => CutCoder::new(model, scale)
                .filter(|cut| cut.is_faster(kernels, model.element_bytes))
                .map(Box::new),
        };
        Self {
            kernels,
            model,
            scale,
            cut,
            planes: OnceLock::new(),
        }
    }

    fn shape(&self, chunk_len: usize) -> ChunkShape<'a> {
        ChunkShape {
            model: self.model,
            chunk_len,
        }
    }

    fn planes(&self) -> &[AnyCoder] {
        self.planes.get_or_init(|| {
            let planes = &self.model.planes;
            let coder = |(number, plane): (usize, &Plane)| match &plane.mode {
                PlaneMode::Coded(table) => {
                    let coder = PlaneCoder::new(table, Placement::default());
                    Some(AnyCoder::Table(Box::new(coder)))
                }
                PlaneMode::Contexts(tables) => {
                    let coder = ContextCoder::new(tables, planes, number);
                    Some(AnyCoder::Contexts(Box::new(coder)))
                }
                PlaneMode::Raw | PlaneMode::Constant(_) => None,
            };
            planes.iter().enumerate().filter_map(coder).collect()
        })
    }

    /// Chunks that are best decoded in one call.
    pub(crate) fn decode_interleave(&self) -> usize {
        let interleave = |cut: &CutCoder| cut.decode_interleave(self.kernels);
        self.cut.as_deref().map_or(1, interleave)
    }

    /// Decodes chunks of the same length.
    ///
    /// With `past_cache`, the output is written past the caches where the tier can do so.
    ///
    /// # Errors
    /// With the number of the job, [`Error::Corrupt`] when a payload is not one this model can have
    /// written, or a hash does not match.
    pub(crate) fn decode(
        &self,
        jobs: &mut [DecodeJob<'_>],
        past_cache: bool,
    ) -> std::result::Result<(), (usize, Error)> {
        if let Some(cut) = &self.cut
            && jobs.len() > 1
            && matches!(cut.decode(self, jobs, past_cache), Ok(true))
        {
            return Ok(());
        }
        // One at a time: the only one, or to see which one is damaged or not covered by the cut.
        for (number, job) in jobs.iter_mut().enumerate() {
            self.decode_one(job, past_cache)
                .map_err(|error| (number, error))?;
        }
        Ok(())
    }

    fn decode_one(&self, job: &mut DecodeJob<'_>, past_cache: bool) -> Result<()> {
        if let Some(cut) = &self.cut
            && cut.decode(self, std::slice::from_mut(job), past_cache)?
        {
            return Ok(());
        }
        self.decode_planes(job)?;
        job.hash
            .map_or(Ok(()), |_| job.check(chunk_hash(self.kernels, job.out)))
    }
}

/// A chunk to encode, and what comes of it.
#[derive(Debug, Default)]
pub(crate) struct EncodeJob<'a> {
    pub(crate) chunk: &'a [u8],
    /// The chunk that is probably encoded after this one, to be fetched meanwhile.
    pub(crate) next: &'a [u8],
    /// Number of the chunk's first element in the tensor.
    pub(crate) first: usize,
    /// The payload, empty if the model cannot represent the chunk or gains nothing.
    pub(crate) payload: Payload,
    /// [`chunk_hash`] of the chunk.
    pub(crate) hash: u64,
}

/// A [`ModelCoder`] with what only encoding needs.
#[derive(Debug)]
pub(crate) struct ModelEncoder<'a> {
    coder: ModelCoder<'a>,
    plain: OnceLock<PlanesEncoder>,
}

impl<'a> ModelEncoder<'a> {
    pub(crate) fn new(kernels: Kernels, model: &'a Model, scale: Option<&'a ScaleOffsets>) -> Self {
        Self {
            coder: ModelCoder::new(kernels, model, scale),
            plain: OnceLock::new(),
        }
    }

    /// Encodes chunks of the same length.
    pub(crate) fn encode(&self, jobs: &mut [EncodeJob<'_>]) {
        if let Some(cut) = &self.coder.cut
            && cut.encode(&self.coder, jobs)
        {
            return;
        }
        let plain = self.plain.get_or_init(|| PlanesEncoder::new(&self.coder));
        for job in jobs {
            job.hash = chunk_hash(self.coder.kernels, job.chunk);
            plain.encode(&self.coder, job);
        }
    }
}

/// Leaves the payload empty if it is no shorter than the chunk stored raw.
fn keep_if_shorter(chunk: &[u8], payload: &mut Payload) {
    if payload.len() >= chunk.len().next_multiple_of(ALIGNMENT) {
        payload.clear();
    }
}

/// The 16 bytes whose repetition is `chunk`, if there are such bytes.
pub(crate) fn constant_pattern(chunk: &[u8]) -> Option<[u8; ALIGNMENT]> {
    let pattern = *chunk.first_chunk::<ALIGNMENT>()?;
    let (groups, tail) = chunk.as_chunks::<ALIGNMENT>();
    let constant = groups.iter().all(|group| *group == pattern) && pattern.starts_with(tail);
    constant.then_some(pattern)
}

/// Fills `chunk` with repetitions of the pattern.
pub(crate) fn fill_pattern(pattern: &[u8; ALIGNMENT], chunk: &mut [u8]) {
    for group in chunk.chunks_mut(ALIGNMENT) {
        group.copy_from_slice(&pattern[..group.len()]);
    }
}

/// Copies a raw payload, whose padding must be zero.
pub(crate) fn decode_raw(payload: &[u8], chunk: &mut [u8]) -> Result<()> {
    let (bytes, padding) = payload
        .split_at_checked(chunk.len())
        .ok_or_else(|| Error::corrupt("a raw chunk is too short"))?;
    if padding.len() >= ALIGNMENT || padding.iter().any(|&byte| byte != 0) {
        return Err(Error::corrupt("a raw chunk has bytes left over"));
    }
    chunk.copy_from_slice(bytes);
    Ok(())
}

/// Reads a constant payload.
pub(crate) fn decode_constant(payload: &[u8], chunk: &mut [u8]) -> Result<()> {
    let pattern = payload
        .try_into()
        .map_err(|_| Error::corrupt("a constant chunk is not 16 bytes long"))?;
    fill_pattern(pattern, chunk);
    Ok(())
}
