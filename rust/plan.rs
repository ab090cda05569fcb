//! The plan of a tensor: chunk size, models, and which chunk uses which.

use crate::codec::content_hash;
use crate::constants::{
    ALIGNMENT, CHUNK_LOG2, DEFAULT_CHUNK_LOG2, LARGE_BYTES, LARGE_CHUNK_LOG2, MAX_LEVEL_CHUNK_LOG2,
    MAX_MODELS,
};
use crate::container::prelude::{Chunked, Delta, TensorType};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::delta_fit::select_delta;
use crate::model::records::Records;
use crate::model::select::{Input, select_float};
use crate::model::select_bytes::{Chosen, Known, select_generic, select_one};
use crate::model::select_records::RecordsPlan;
use crate::options::{CompressOptions, Level};
use crate::parallel;
use crate::simd::Kernels;

/// Below this size a tensor is stored raw: a table and 64 states cost more than they save.
const MIN_MODEL_BYTES: usize = 2048;
/// Below this size so are wide integers, whose upper bytes are constant as a rule.
const MIN_INTEGER_BYTES: usize = 256;
/// Original bytes that share a model where the data may change its nature on the way.
const SEGMENT_BYTES: usize = 1 << 17;
/// Segments whose models are searched for together.
const GROUP_SEGMENTS: usize = 8;

/// What the encoder does with a tensor.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) chunked: Chunked,
    /// Chunks that share an entry of `assignment`.
    segment_chunks: usize,
    /// How each segment is stored, `None` for raw.
    assignment: Vec<Option<Assigned>>,
    /// About what the stream takes, in bytes.
    pub(crate) bytes: u64,
}

/// Models and records, each counted from 0.
#[derive(Clone, Copy, Debug)]
enum Assigned {
    Model(usize),
    Records(usize),
}

impl Plan {
    /// # Errors
    /// [`Error::InvalidArgument`] for a chunk size that is not a power of two within the limits.
    pub(crate) fn new(
        data: &[u8],
        tensor: &TensorType,
        options: &CompressOptions,
        kernels: Kernels,
    ) -> Result<Self> {
        let chunk_log2 = chunk_log2(options, tensor.dtype, data.len())?;
        let chunk_bytes = 1 << chunk_log2;
        let input = Input {
            bytes: data,
            chunk_bytes,
            level: options.level,
            threads: options.threads,
            kernels,
        };
        let chunks = data.len().div_ceil(chunk_bytes);
        let whole = |models: Vec<Model>, scale| Self {
            assignment: vec![(!models.is_empty()).then_some(Assigned::Model(0))],
            segment_chunks: chunks.max(1),
            chunked: Chunked {
                chunk_log2,
                models,
                records: Vec::new(),
                scale,
                delta: None,
            },
            bytes: data.len() as u64,
        };
        if data.len() < MIN_MODEL_BYTES {
            let models = small_integers(&input, tensor);
            return Ok(whole(models.into_iter().collect(), None));
        }
        if let Some(fields) = tensor.dtype.float_fields() {
            // Complex tensors are floats side by side.
            let is_real = tensor.dtype.itemsize() * 8 == fields.element_bits as usize;
            let shape: &[u64] = if is_real { &tensor.shape } else { &[] };
            let Some((best, scale)) = select_float(&input, fields, shape)? else {
                return Ok(whole(Vec::new(), None));
            };
            let bytes = best.bytes + scale.as_ref().map_or(0, |scale| scale.wire_len() as u64);
            return Ok(Self {
                bytes,
                ..whole(vec![best.model], scale)
            });
        }

        let width = (tensor.dtype.itemsize() > 1).then_some(tensor.dtype.itemsize());
        let segment_chunks = (SEGMENT_BYTES / chunk_bytes)
            .max(chunks.div_ceil(MAX_MODELS / 2))
            .max(1);
        let mut plan = whole(Vec::new(), None);
        plan.segment_chunks = segment_chunks;
        plan.assignment.clear();
        let segment_bytes = segment_chunks * chunk_bytes;
        let groups: Vec<&[u8]> = data.chunks(GROUP_SEGMENTS * segment_bytes).collect();
        let known = Known {
            width,
            hint: options.hint,
        };
        let models = parallel::map(options.threads, groups.len(), |group| {
            let first = group * GROUP_SEGMENTS * segment_bytes;
            let segments = groups[group].chunks(segment_bytes).enumerate();
            let segments = segments
                .map(|(number, bytes)| (Input { bytes, ..input }, first + number * segment_bytes));
            select_generic(segments, known)
        })?;
        plan.bytes = 0;
        for (best, segment) in models.into_iter().flatten().zip(data.chunks(segment_bytes)) {
            let (chosen, bytes) = best.unzip();
            plan.bytes += bytes.unwrap_or(segment.len() as u64);
            let storage = match chosen {
                None => None,
                Some(Chosen::Model(model)) => Some(Assigned::Model(plan.number_of(model))),
                Some(Chosen::Records(records)) => plan.add_records(*records).map(Assigned::Records),
            };
            plan.assignment.push(storage);
        }
        Ok(plan)
    }

    /// The plan to store a tensor as a delta, if that is estimated to take less than `self`.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub(crate) fn delta(
        &self,
        data: &[u8],
        base: &[u8],
        tensor: &TensorType,
        options: &CompressOptions,
        kernels: Kernels,
    ) -> Result<Option<Self>> {
        if data.len() < MIN_MODEL_BYTES {
            return Ok(None);
        }
        let chunk_log2 = chunk_log2(options, tensor.dtype, data.len())?;
        let input = Input {
            bytes: data,
            chunk_bytes: 1 << chunk_log2,
            level: options.level,
            threads: options.threads,
            kernels,
        };
        let best = select_delta(&input, base, tensor.dtype);
        Ok(best
            .filter(|best| best.bytes < self.bytes)
            .map(|best| Self {
                chunked: Chunked {
                    chunk_log2,
                    models: Vec::new(),
                    records: Vec::new(),
                    scale: None,
                    delta: Some(Delta {
                        content_hash: content_hash(base),
                        model: best.model,
                    }),
                },
                segment_chunks: data.len().div_ceil(1 << chunk_log2),
                assignment: vec![Some(Assigned::Model(0))],
                bytes: best.bytes,
            }))
    }

    /// The number of a model, an earlier one if it is the same.
    fn number_of(&mut self, model: Model) -> usize {
        let models = &mut self.chunked.models;
        let known = models.iter().rposition(|known| *known == model);
        known.unwrap_or_else(|| {
            models.push(model);
            models.len() - 1
        })
    }

    /// The number of records; `None` if there are too many models already.
    fn add_records(&mut self, plan: RecordsPlan) -> Option<usize> {
        if self.chunked.models.len() + plan.models.len() > MAX_MODELS / 2 {
            return None;
        }
        let models = plan.models.into_iter();
        let models = models.map(|model| model.map(|model| self.number_of(model)));
        let records = Records {
            class_of: plan.class_of,
            models: models.collect(),
        };
        let all = &mut self.chunked.records;
        all.push(records);
        Some(all.len() - 1)
    }

    /// The model of a chunk, `None` for raw.
    pub(crate) fn model_of(&self, chunk: usize) -> Option<usize> {
        match self.assignment.get(chunk / self.segment_chunks)? {
            Some(Assigned::Model(number)) => Some(*number),
            Some(Assigned::Records(number)) => Some(self.chunked.models.len() + number),
            None => None,
        }
    }
}

/// A model for a small tensor of wide integers, most of whose bytes are constant as a rule.
fn small_integers(input: &Input<'_>, tensor: &TensorType) -> Option<Model> {
    let width = tensor.dtype.itemsize();
    if input.bytes.len() < MIN_INTEGER_BYTES || width == 1 || tensor.dtype.float_fields().is_some()
    {
        return None;
    }
    let known = Known {
        width: Some(width),
        hint: None,
    };
    let best = select_one(input, known)?;
    // What a larger tensor hardly notices: the model itself, and padding.
    let mut wire = Vec::new();
    best.model.write_to(&mut wire);
    (best.bytes as usize + wire.len() + 2 * ALIGNMENT < input.bytes.len()).then_some(best.model)
}

/// log2 of the chunk size for `len` bytes.
pub(crate) fn chunk_log2(options: &CompressOptions, dtype: Dtype, len: usize) -> Result<u32> {
    let Some(bytes) = options.chunk_bytes else {
        // States, head, hash and index of a chunk take 150 to 300 bytes, but threads want pieces, and
        // the symbols of the chunks that take turns should stay in the second cache: a byte for each
        // element. Plain bytes keep their model for a chunk at least, and may change their nature.
        let largest = match options.level {
            _ if dtype == Dtype::Uint8 => DEFAULT_CHUNK_LOG2,
            Level::Max => MAX_LEVEL_CHUNK_LOG2,
            Level::Fast | Level::Default if len < LARGE_BYTES => DEFAULT_CHUNK_LOG2,
            Level::Fast | Level::Default if dtype.itemsize() == 1 => DEFAULT_CHUNK_LOG2,
            Level::Fast | Level::Default => LARGE_CHUNK_LOG2,
        };
        let half = len.checked_ilog2().unwrap_or(0).saturating_sub(1);
        return Ok(half.clamp(DEFAULT_CHUNK_LOG2, largest));
    };
    if bytes.is_power_of_two() && CHUNK_LOG2.contains(&bytes.ilog2()) {
        Ok(bytes.ilog2())
    } else {
        Err(Error::InvalidArgument(format!(
            "chunk_bytes must be a power of two from {} to {}, not {bytes}",
            1_u64 << CHUNK_LOG2.start(),
            1_u64 << CHUNK_LOG2.end()
        )))
    }
}
