//! Plans for decoding on a GPU: what the kernels in `cuda/` need to know of the streams whose payloads
//! they read.
//!
//! Preludes are parsed and verified here, on the host; a plan says for every chunk where its payload is, where
//! its bytes go and how it is stored, and holds the tables. The device computes no offsets that it does not
//! check against the payload. Place in docs/format.md: none; the wire structs are those of
//! `cuda/layout.cuh`.

mod parts;
mod tables;
mod wire;

use super::index::Storage;
use super::prelude::{Body, Chunked};
use super::stream::{Stream, external_alone, reference_alone};
use crate::chunk::fill_pattern;
use crate::constants::{ALIGNMENT, SUB_BLOCK};
use crate::error::{Error, Result};
pub use parts::{EncodedChunk, EncodedModel, EncodedScale, assemble, assemble_constant};
use tables::Sections;
use wire::{CHUNK_BYTES, Chunk, flag, kind};

/// Chunks that whole-tensor bodies are cut into.
const PIECE_BYTES: u64 = 1 << 17;
/// The fast kernel reads and writes so many bytes at a time.
const WIDE: u64 = 16;

/// Where the device has a stream and wants its bytes. Addresses may count from a place that only the launch knows,
/// if that is a multiple of 16.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    /// Address of the first byte of the stream.
    pub stream: u64,
    /// Address of the tensor.
    pub out: u64,
    /// Address of the bytes of the base, if the stream needs one.
    pub base: Option<u64>,
}

/// What a launch decodes: one block of memory, and how many chunks each kernel has in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DevicePlan {
    /// The plan, to be copied to the device.
    pub bytes: Vec<u8>,
    /// Chunks of the fast kernel, which come first.
    pub cut_chunks: usize,
    /// Chunks of the kernel for everything.
    pub any_chunks: usize,
}

/// Plans decoding many tensors at once.
///
/// # Errors
/// [`Error::BaseMismatch`] for a stream without data of its own, or without the base it needs;
/// [`Error::InvalidArgument`] for more chunks than can be numbered.
pub fn plan(streams: &[(Stream<'_>, Placement)], verify: bool) -> Result<DevicePlan> {
    let mut chunks = [Vec::new(), Vec::new()];
    let pieces = streams
        .iter()
        .map(|(stream, _)| pieces(stream))
        .sum::<u64>();
    if pieces * CHUNK_BYTES as u64 > u64::from(u32::MAX) {
        return Err(Error::InvalidArgument(
            "these are too many chunks for one launch".to_owned(),
        ));
    }
    let mut sections = Sections::after(pieces as usize * CHUNK_BYTES);
    for (tensor, (stream, placement)) in streams.iter().enumerate() {
        let planner = Planner {
            stream,
            placement: *placement,
            tensor: tensor as u32,
            verify,
        };
        planner.chunks(&mut sections, &mut chunks)?;
    }
    let [cut, any] = &chunks;
    let mut bytes = Vec::with_capacity(sections.end());
    cut.iter()
        .chain(any)
        .for_each(|chunk| chunk.write_to(&mut bytes));
    sections.append_to(&mut bytes);
    Ok(DevicePlan {
        bytes,
        cut_chunks: cut.len(),
        any_chunks: any.len(),
    })
}

/// Chunks that the device sees of a stream.
fn pieces(stream: &Stream<'_>) -> u64 {
    match &stream.prelude.body {
        Body::Chunked(chunked) => chunked.chunks(stream.original_len()),
        _ => stream.original_len().div_ceil(PIECE_BYTES),
    }
}

struct Planner<'a> {
    stream: &'a Stream<'a>,
    placement: Placement,
    tensor: u32,
    verify: bool,
}

impl Planner<'_> {
    fn base(&self) -> Result<u64> {
        self.placement.base.ok_or_else(|| {
            Error::BaseMismatch("the tensor cannot be decoded without its base".into())
        })
    }

    /// A chunk of a whole-tensor body, or the common part of any other.
    fn piece(&self, number: u64, piece_bytes: u64) -> Chunk {
        let start = number * piece_bytes;
        Chunk {
            out: self.placement.out + start,
            bytes: (self.stream.original_len() - start).min(piece_bytes) as u32,
            tensor: self.tensor,
            number: number as u32,
            ..Chunk::default()
        }
    }

    fn chunks(&self, sections: &mut Sections, chunks: &mut [Vec<Chunk>; 2]) -> Result<()> {
        let whole = (0..pieces(self.stream)).map(|number| self.piece(number, PIECE_BYTES));
        match &self.stream.prelude.body {
            Body::Reference { name, .. } => Err(reference_alone(name)),
            Body::External(external) => Err(external_alone(external)),
            Body::Constant(element) => {
                let mut pattern = [0; ALIGNMENT];
                let repeated: Vec<u8> = element.iter().copied().cycle().take(ALIGNMENT).collect();
                fill_pattern(&repeated.try_into().unwrap_or_default(), &mut pattern);
                let model = sections.push(&pattern);
                chunks[1].extend(whole.map(|chunk| Chunk {
                    kind: kind::FILL,
                    model,
                    ..chunk
                }));
                Ok(())
            }
            Body::Base { .. } => {
                let base = self.base()?;
                chunks[1].extend(whole.map(|chunk| Chunk {
                    kind: kind::COPY,
                    base: base + u64::from(chunk.number) * PIECE_BYTES,
                    ..chunk
                }));
                Ok(())
            }
            Body::Chunked(chunked) => self.chunked(chunked, sections, chunks),
        }
    }

    fn chunked(
        &self,
        chunked: &Chunked,
        sections: &mut Sections,
        chunks: &mut [Vec<Chunk>; 2],
    ) -> Result<()> {
        let (stream, index) = (self.stream, &self.stream.index);
        let scale = chunked.scale.as_ref().map(|scale| sections.scale(scale));
        let mut offsets = vec![[None; 2]; chunked.storages()];
        let base = if chunked.delta.is_some() {
            self.base()?
        } else {
            0
        };
        for number in 0..index.len() {
            let start = number as u64 * stream.chunk_bytes() as u64;
            let payload = stream.payload_range(number);
            let mut chunk = Chunk {
                payload: self.placement.stream + payload.start as u64,
                payload_bytes: u32::try_from(payload.len())
                    .map_err(|_| Error::corrupt(format!("chunk {number} is too long")))?,
                hash: index.hash(number),
                flags: if self.verify { flag::VERIFY } else { 0 }
                    | if index.len() > 1 { flag::ALIGNED } else { 0 },
                ..self.piece(number as u64, stream.chunk_bytes() as u64)
            };
            let mut fast = false;
            match index.storage(number) {
                Storage::Raw => chunk.kind = kind::RAW,
                Storage::Constant => chunk.kind = kind::CONSTANT,
                Storage::Model(model) => {
                    chunk.first = start / chunked.element_bytes(model) as u64;
                    fast = is_fast(chunked, model, &chunk);
                    let known = offsets[model][usize::from(fast)];
                    chunk.model = known.unwrap_or_else(|| {
                        if let Some(delta) = &chunked.delta {
                            sections.delta(&delta.model)
                        } else if let Some(records) = chunked.records(model) {
                            sections.records(records, &chunked.models)
                        } else {
                            sections.model(&chunked.models[model], scale, fast)
                        }
                    });
                    offsets[model][usize::from(fast)] = Some(chunk.model);
                    chunk.flags |= if fast { flag::CUT } else { 0 };
                    chunk.kind = if chunked.delta.is_some() {
                        chunk.base = base + start;
                        kind::DELTA
                    } else if chunked.records(model).is_some() {
                        kind::RECORDS
                    } else {
                        kind::MODEL
                    };
                }
            }
            chunks[usize::from(!fast)].push(chunk);
        }
        Ok(())
    }
}

/// Whether the fast kernel can decode a chunk: whole sub-blocks of a usual cut, aligned to wide loads.
fn is_fast(chunked: &Chunked, model: usize, chunk: &Chunk) -> bool {
    let Some(model) = chunked.models.get(model) else {
        return false;
    };
    let sub_block = (SUB_BLOCK * model.element_bytes) as u32;
    tables::is_cut(model, chunked.scale.as_ref())
        && chunk.bytes > 0
        && chunk.bytes.is_multiple_of(sub_block)
        && chunk.payload.is_multiple_of(WIDE)
        && chunk.out.is_multiple_of(WIDE)
        && chunk.payload_bytes.is_multiple_of(WIDE as u32)
}
