//! Where the bits of a tensor go: for each field of its elements, what it takes and what it would have
//! to take. Behind `neuzip info` and `neuzip estimate`.
//!
//! An [`Explanation`] of a stream is read off its headers: nothing is decoded, and the sizes are exact.
//! [`estimate`] plans a tensor as [`crate::compress`] does, but encodes only some of its chunks.
//! Entropies are measured on the original bytes of some chunks, if those are at hand. Floats appear here
//! because nothing of it reaches a stream.

mod names;
mod tally;

use super::external::External;
use super::index::Storage;
use super::prelude::{Body, Chunked, TensorType, prelude_len};
use super::stream::Stream;
use super::writer::{ChunkSizer, StreamWriter, constant_element};
use crate::constants::ALIGNMENT;
use crate::dtype::Dtype;
use crate::error::{Error, Result, try_zeroed};
use crate::options::{CompressOptions, DecompressOptions, Level, Threads};
use crate::plan::Plan;
use crate::simd::Kernels;
use tally::Tally;

/// Chunks that are encoded for an estimate, and those that entropies are measured on.
const ENCODED_CHUNKS: usize = 64;
const MEASURED_CHUNKS: usize = 16;

/// Neighbouring bits of the elements that are stored in one way.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldUse {
    /// Which bits: `exponent + mantissa 1`, `mantissa + sign`, `byte 0`, `bits 7-14`.
    pub name: String,
    /// `coded`, `raw`, `raw without trailing zeros` or `constant`.
    pub mode: &'static str,
    /// Width in bits.
    pub bits: u32,
    /// Elements that have it.
    pub elements: u64,
    /// Bytes it takes, with states and escapes.
    pub bytes: u64,
    /// The part of them that is states and lengths, the same whatever the data.
    pub overhead: u64,
    /// Entropy of the first table that codes it, in bits per value.
    pub table_bits: Option<f64>,
    /// Measured order-0 entropy in bits per value; of fields of more than 16 bits that of their bytes.
    pub entropy_bits: Option<f64>,
}

/// Scale offsets of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScaleUse {
    /// Elements in a row.
    pub columns: usize,
    /// Number of row offsets, 0 if rows have none.
    pub rows: usize,
    /// Number of column offsets, 0 if columns have none.
    pub cols: usize,
    /// Bytes they take.
    pub bytes: u64,
}

/// What another choice would give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alternative {
    /// `raw`, `fast` or `no scale offsets`.
    pub name: &'static str,
    /// Estimated bytes of the stream.
    pub bytes: u64,
}

/// Where the bits of one tensor go.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// Bytes of the tensor.
    pub original_bytes: u64,
    /// Bytes of the stream.
    pub stored_bytes: u64,
    /// Whether every chunk was looked at: then the sizes are exact.
    pub exact: bool,
    /// `chunked`, `constant` or `reference`.
    pub body: &'static str,
    /// The tensor that a reference stands for.
    pub repeats: Option<String>,
    /// The fields; they and `other_bytes` sum to `stored_bytes`.
    pub fields: Vec<FieldUse>,
    /// Header, tables, offsets, index, bytes of no whole element, padding.
    pub other_bytes: u64,
    /// Scale offsets, if a model in use has them.
    pub scale: Option<ScaleUse>,
    /// What was not chosen; of estimates only.
    pub alternatives: Vec<Alternative>,
}

impl Explanation {
    /// Of a stream that is a header and nothing else.
    pub(crate) fn of_header_only(
        original_bytes: u64,
        stored_bytes: u64,
        body: &'static str,
        repeats: Option<String>,
    ) -> Self {
        Self {
            original_bytes,
            stored_bytes,
            exact: true,
            body,
            repeats,
            fields: Vec::new(),
            other_bytes: stored_bytes,
            scale: None,
            alternatives: Vec::new(),
        }
    }
}

/// A part of a tensor that is stored together with others.
#[derive(Clone, Copy)]
pub(crate) struct Share {
    /// Bytes of the tensors before it.
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    /// Bytes of all.
    pub(crate) total: u64,
}

impl Share {
    /// Its part of a number that is shared by bytes; the parts of all sum to the number.
    pub(crate) fn of(self, number: u64) -> u64 {
        let before =
            |bytes: u64| u128::from(number) * u128::from(bytes) / u128::from(self.total.max(1));
        (before(self.start + self.bytes) - before(self.start)) as u64
    }
}

impl Explanation {
    /// Of a part of the tensor: what all take, shared by bytes.
    pub(crate) fn shared(&self, share: Share) -> Self {
        let mut part = self.clone();
        part.original_bytes = share.bytes;
        part.stored_bytes = share.of(self.stored_bytes);
        part.other_bytes = part.stored_bytes;
        for field in &mut part.fields {
            field.elements = share.of(field.elements);
            // Rounding never makes parts larger than the whole.
            field.bytes = share.of(field.bytes).min(part.other_bytes);
            field.overhead = share.of(field.overhead).min(field.bytes);
            part.other_bytes -= field.bytes;
        }
        if let Some(scale) = &mut part.scale {
            scale.bytes = share.of(scale.bytes);
        }
        for alternative in &mut part.alternatives {
            alternative.bytes = share.of(alternative.bytes);
        }
        part
    }
}

impl Stream<'_> {
    /// Where the bits go. With `measure`, some chunks are decoded and their entropies measured, but not
    /// those of a delta, whose base is not at hand.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for damaged chunks.
    pub fn explain(&self, measure: Option<&DecompressOptions>) -> Result<Explanation> {
        let repeats = self.reference().map(|reference| reference.name.to_owned());
        let repeats = repeats.or_else(|| self.external().map(External::described));
        let mut explanation = Explanation::of_header_only(
            self.original_len(),
            self.len as u64,
            self.info().body,
            repeats,
        );
        let Body::Chunked(chunked) = &self.prelude.body else {
            return Ok(explanation);
        };
        let mut tally = Tally::new(self.dtype(), chunked);
        for chunk in 0..self.index.len() {
            let range = self.chunk_range(chunk);
            tally.add(self.index.storage(chunk), range, self.payload(chunk))?;
        }
        if let Some(options) = measure.filter(|_| self.base_hash().is_none()) {
            for chunk in spread(self.index.len(), MEASURED_CHUNKS) {
                let range = self.chunk_range(chunk);
                let mut bytes = try_zeroed(range.len())?;
                self.decode_into(range.start as u64, &mut bytes, options)?;
                tally.measure(self.index.storage(chunk), range.start, &bytes);
            }
        }
        explanation.scale = tally.scale();
        explanation.fields = tally.fields();
        let in_fields = explanation.fields.iter().map(|it| it.bytes).sum::<u64>();
        // Payloads are not decoded here, so that damage may claim more than there is.
        explanation.other_bytes = explanation
            .other_bytes
            .checked_sub(in_fields)
            .ok_or_else(|| Error::corrupt("the chunks are shorter than what is in them"))?;
        Ok(explanation)
    }

    fn chunk_range(&self, chunk: usize) -> std::ops::Range<usize> {
        let begin = chunk * self.chunk_bytes();
        begin..(self.original_len() as usize).min(begin + self.chunk_bytes())
    }
}

/// What [`crate::compress`] would make of a tensor, without making it: the plan is the same, but of a
/// large tensor only 64 chunks are encoded, spread evenly.
///
/// # Errors
/// Those of [`crate::compress`].
pub fn estimate(
    data: &[u8],
    dtype: Dtype,
    shape: &[u64],
    options: &CompressOptions,
) -> Result<Explanation> {
    let kernels = Kernels::select(options.simd)?;
    let tensor = TensorType::new(dtype, shape)?;
    if tensor.byte_len() != data.len() as u64 {
        return Err(Error::InvalidArgument(
            "the shape and the data do not fit together".to_owned(),
        ));
    }
    if let Some(element) = constant_element(data, dtype.itemsize()) {
        let bytes = prelude_len(&tensor, &Body::Constant(element.to_vec()), 0)? as u64;
        let original = data.len() as u64;
        return Ok(Explanation::of_header_only(
            original, bytes, "constant", None,
        ));
    }
    let plan = Plan::new(data, &tensor, options, kernels)?;
    let mut explanation = of_plan(data, &tensor, &plan, kernels, true)?;
    let mut alternative = |name, bytes| explanation.alternatives.push(Alternative { name, bytes });
    if !plan.chunked.models.is_empty() {
        let chunks = data.len().div_ceil(1 << plan.chunked.chunk_log2);
        let raw = Body::Chunked(Chunked {
            chunk_log2: plan.chunked.chunk_log2,
            models: Vec::new(),
            records: Vec::new(),
            scale: None,
            delta: None,
        });
        let head = prelude_len(&tensor, &raw, chunks)?;
        alternative("raw", (head + data.len()) as u64);
        let bytes_of = |plan: &Plan| {
            of_plan(data, &tensor, plan, kernels, false).map(|explained| explained.stored_bytes)
        };
        if options.level != Level::Fast {
            let fast = CompressOptions {
                level: Level::Fast,
                ..options.clone()
            };
            let fast = Plan::new(data, &tensor, &fast, kernels)?;
            alternative("fast", bytes_of(&fast)?);
        }
        if plan.chunked.scale.is_some() {
            // A tensor of one dimension has neither rows nor columns.
            let flat = TensorType::new(dtype, &[(data.len() / dtype.itemsize()) as u64])?;
            let flat = Plan::new(data, &flat, options, kernels)?;
            alternative("no scale offsets", bytes_of(&flat)?);
        }
    }
    Ok(explanation)
}

fn of_plan(
    data: &[u8],
    tensor: &TensorType,
    plan: &Plan,
    kernels: Kernels,
    measure: bool,
) -> Result<Explanation> {
    let chunked = &plan.chunked;
    let chunk_bytes = 1 << chunked.chunk_log2;
    let chunks = data.len().div_ceil(chunk_bytes);
    let mut sizer = ChunkSizer::new(StreamWriter {
        tensor,
        data,
        base: &[],
        plan,
        threads: Threads::new(1),
        kernels,
    });
    let mut tally = Tally::new(tensor.dtype, chunked);
    let encoded = spread(chunks, ENCODED_CHUNKS);
    let measured = spread(encoded.len(), MEASURED_CHUNKS);
    let (mut original, mut payloads) = (0, 0);
    for (number, &chunk) in encoded.iter().enumerate() {
        let bytes = &data[chunk * chunk_bytes..data.len().min((chunk + 1) * chunk_bytes)];
        let (storage, payload) = sizer.encode(chunk);
        let start = chunk * chunk_bytes;
        tally.add(storage, start..start + bytes.len(), payload)?;
        if measure && measured.contains(&number) {
            tally.measure(storage, chunk * chunk_bytes, bytes);
        }
        original += bytes.len() as u64;
        payloads += match storage {
            Storage::Raw if chunks == 1 => bytes.len(),
            Storage::Raw => bytes.len().next_multiple_of(ALIGNMENT),
            _ => payload.len(),
        } as u64;
    }
    let scaled = |bytes: u64| {
        let scaled = u128::from(bytes) * data.len() as u128 / u128::from(original.max(1));
        scaled as u64
    };
    let mut fields = tally.fields();
    for field in &mut fields {
        field.elements = scaled(field.elements);
        field.bytes = scaled(field.bytes);
        field.overhead = scaled(field.overhead);
    }
    let head = prelude_len(tensor, &Body::Chunked(chunked.clone()), chunks)?;
    let stored_bytes = head.next_multiple_of(ALIGNMENT) as u64 + scaled(payloads);
    let in_fields: u64 = fields.iter().map(|field| field.bytes).sum();
    Ok(Explanation {
        original_bytes: data.len() as u64,
        stored_bytes,
        exact: encoded.len() == chunks,
        body: "chunked",
        repeats: None,
        other_bytes: stored_bytes.saturating_sub(in_fields),
        scale: tally.scale(),
        fields,
        alternatives: Vec::new(),
    })
}

/// At most `limit` of the numbers below `count`, evenly spread.
fn spread(count: usize, limit: usize) -> Vec<usize> {
    let taken = count.min(limit);
    (0..taken)
        .map(|i| (2 * i + 1) * count / (2 * taken))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress;

    fn floats(count: usize) -> Vec<u8> {
        let float = |i: usize| {
            let x = (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
            (x as f32 / 8_388_608.0 - 1.0).powi(3) * (1 + i % 64) as f32
        };
        (0..count)
            .flat_map(|i| ((float(i).to_bits() >> 16) as u16).to_le_bytes())
            .collect()
    }

    #[test]
    fn the_parts_sum_to_the_stream_and_estimates_are_exact_for_small_tensors() {
        let data = floats(64 * 4096);
        for level in [Level::Fast, Level::Default, Level::Max] {
            let options = CompressOptions {
                level,
                ..CompressOptions::default()
            };
            let shape = [4096, 64];
            let stream = compress(&data, Dtype::Bfloat16, &shape, &options).unwrap();
            let parsed = Stream::parse(&stream).unwrap();
            let explained = parsed.explain(Some(&DecompressOptions::default())).unwrap();
            assert_eq!(explained.stored_bytes, stream.len() as u64);
            let parts: u64 = explained.fields.iter().map(|field| field.bytes).sum();
            assert_eq!(parts + explained.other_bytes, stream.len() as u64);
            assert!(explained.other_bytes < 2000);
            let bits: u32 = explained.fields.iter().map(|field| field.bits).sum();
            assert_eq!(bits, 16);
            let estimated = estimate(&data, Dtype::Bfloat16, &shape, &options).unwrap();
            assert!(estimated.exact);
            assert_eq!(estimated.stored_bytes, stream.len() as u64);
            assert_eq!(estimated.fields, explained.fields);
            assert_eq!(estimated.scale, explained.scale);
            let smaller = |it: &Alternative| it.bytes >= estimated.stored_bytes;
            assert!(estimated.alternatives.iter().all(smaller), "{level:?}");
        }
    }

    #[test]
    fn a_sampled_estimate_is_close() {
        let data = floats(3 << 20);
        let options = CompressOptions {
            chunk_bytes: Some(1 << 14),
            ..CompressOptions::default()
        };
        let shape = [3 << 14, 64];
        let stream = compress(&data, Dtype::Bfloat16, &shape, &options).unwrap();
        let estimated = estimate(&data, Dtype::Bfloat16, &shape, &options).unwrap();
        assert!(!estimated.exact);
        let off = estimated.stored_bytes.abs_diff(stream.len() as u64);
        assert!(
            off * 200 < stream.len() as u64,
            "off by {off} of {}",
            stream.len()
        );
    }

    #[test]
    fn constants_and_bytes_are_explained() {
        let options = CompressOptions::default();
        let constant = estimate(&[7; 5000], Dtype::Uint8, &[5000], &options).unwrap();
        let stream = compress(&[7; 5000], Dtype::Uint8, &[5000], &options).unwrap();
        assert_eq!(
            (constant.body, constant.stored_bytes),
            ("constant", stream.len() as u64)
        );
        let stream = compress(&[1, 2, 3], Dtype::Uint8, &[3], &options).unwrap();
        let explained = Stream::parse(&stream).unwrap().explain(None).unwrap();
        assert_eq!(explained.fields[0].name, "whole chunks");
        assert_eq!(explained.fields[0].bytes, 3);
    }
}
