//! One tensor, whole: the pipeline on one screen.
//!
//! ```text
//! compress:    bytes -> plan (model::select) -> per chunk: planes -> entropy -> payload -> stream
//! decompress:  stream -> prelude, index -> per chunk: payload -> entropy -> planes -> bytes
//! ```

use std::io::{Seek, Write};

use xxhash_rust::xxh3::xxh3_128;

use crate::container::external::External;
use crate::container::memory::Memory;
use crate::container::prelude::{Body, TensorType, write_prelude};
use crate::container::writer::{Spare, StreamWriter, constant_element};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::headroom::{self, WORKER_BYTES};
use crate::options::CompressOptions;
use crate::plan::Plan;
use crate::simd::Kernels;

/// A tensor of no more bytes is not stored as a copy of its base: the base's hash takes as many.
const SMALLEST_COPY: usize = 16;
/// Tensors from this size on have their working memory asked for.
const HEADROOM_FROM_BYTES: usize = 1 << 20;

/// Compresses one tensor into a self-contained stream.
///
/// `data` holds the elements in C order, little-endian; its length is `dtype.itemsize()` times the
/// product of `shape`. The result depends on the data, `dtype`, `shape`, the level, the chunk size and
/// the hint, and on nothing else.
///
/// # Errors
/// [`Error::InvalidArgument`] when `data`, `dtype` and `shape` do not fit together or the chunk size is
/// not a power of two from 4 KiB to 64 MiB, or when `NEUZIP_SIMD` names a tier that is not available.
pub fn compress(
    data: &[u8],
    dtype: Dtype,
    shape: &[u64],
    options: &CompressOptions,
) -> Result<Vec<u8>> {
    compress_with(data, None, dtype, shape, options, &mut |_| Ok(()))
}

/// Like [`compress`], next to a tensor of the same type and shape that `data` is close to.
///
/// The stream is a delta, and needs `base` to be decoded, where that makes it smaller; otherwise it is
/// what [`compress`] makes. [`crate::Stream::base_hash`] says which.
///
/// # Errors
/// Those of [`compress`], and [`Error::InvalidArgument`] for a base of another length.
pub fn compress_delta(
    data: &[u8],
    base: &[u8],
    dtype: Dtype,
    shape: &[u64],
    options: &CompressOptions,
) -> Result<Vec<u8>> {
    compress_with(data, Some(base), dtype, shape, options, &mut |_| Ok(()))
}

/// Like [`compress`] or, with a base, [`compress_delta`], telling `progress` how many original bytes are
/// done; its errors stop the work.
///
/// # Errors
/// Those of [`compress`] and of `progress`.
pub(crate) fn compress_with(
    data: &[u8],
    base: Option<&[u8]>,
    dtype: Dtype,
    shape: &[u64],
    options: &CompressOptions,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Vec<u8>> {
    // Not for small tensors, which take less than the question.
    if data.len() >= HEADROOM_FROM_BYTES {
        headroom::check(WORKER_BYTES)?;
    }
    let mut out = Memory::new(data.len(), Kernels::select(options.simd)?);
    let tensor = Tensor {
        data,
        base,
        dtype,
        shape,
    };
    tensor.compress_to(&mut Spare::default(), &mut out, options, progress)?;
    Ok(out.into_vec())
}

/// Like [`compress`], written at the current position of `out`, with bounded working memory.
///
/// The prelude is filled in at the end; the position is left behind the stream. `progress` is told how
/// many original bytes are done and may stop the work by an error. Returns the length of the stream.
///
/// # Errors
/// Those of [`compress`], of `out`, and of `progress`.
pub fn compress_to<W: Write + Seek>(
    out: &mut W,
    data: &[u8],
    dtype: Dtype,
    shape: &[u64],
    options: &CompressOptions,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<u64> {
    let tensor = Tensor {
        data,
        base: None,
        dtype,
        shape,
    };
    tensor.compress_to(&mut Spare::default(), out, options, progress)
}

/// A tensor to compress.
#[derive(Clone, Copy)]
pub(crate) struct Tensor<'a> {
    pub(crate) data: &'a [u8],
    /// A tensor of the same type and shape that it may be a delta of.
    pub(crate) base: Option<&'a [u8]>,
    pub(crate) dtype: Dtype,
    pub(crate) shape: &'a [u64],
}

impl Tensor<'_> {
    /// [`crate::compress_to`], with buffers that tensors leave to each other.
    pub(crate) fn compress_to<W: Write + Seek>(
        &self,
        spare: &mut Spare,
        out: &mut W,
        options: &CompressOptions,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<u64> {
        let Self {
            data, dtype, shape, ..
        } = *self;
        let kernels = Kernels::select(options.simd)?;
        let tensor = TensorType::new(dtype, shape)?;
        let is_long_enough = |bytes: &[u8]| tensor.byte_len() == bytes.len() as u64;
        if !is_long_enough(data) || !self.base.is_none_or(is_long_enough) {
            return Err(Error::InvalidArgument(format!(
                "shape {shape:?} of {} takes {} bytes, but the data has {}",
                dtype.name(),
                tensor.byte_len(),
                self.base
                    .filter(|base| !is_long_enough(base))
                    .unwrap_or(data)
                    .len()
            )));
        }
        let whole = if let Some(element) = constant_element(data, dtype.itemsize()) {
            Some(Body::Constant(element.to_vec()))
        } else {
            let is_base = |base: &&[u8]| *base == data && data.len() > SMALLEST_COPY;
            let content_hash = self.base.filter(is_base).map(content_hash);
            content_hash.map(|content_hash| Body::Base { content_hash })
        };
        if let Some(body) = whole {
            let prelude = write_prelude(&tensor, &body, &[]);
            out.write_all(&prelude)?;
            progress(data.len() as u64)?;
            return Ok(prelude.len() as u64);
        }
        let plan = Plan::new(data, &tensor, options, kernels)?;
        let delta = match self.base {
            Some(base) => plan.delta(data, base, &tensor, options, kernels)?,
            None => None,
        };
        let writer = StreamWriter {
            tensor: &tensor,
            data,
            base: self.base.unwrap_or_default(),
            plan: delta.as_ref().unwrap_or(&plan),
            threads: options.threads,
            kernels,
        };
        writer.write(out, spare, progress)
    }
}

/// A stream that stands for a tensor stored elsewhere in the same file.
///
/// # Errors
/// [`Error::InvalidArgument`] for a shape that is too large.
pub fn write_reference(
    dtype: Dtype,
    shape: &[u64],
    name: &str,
    content_hash: u128,
) -> Result<Vec<u8>> {
    let tensor = TensorType::new(dtype, shape)?;
    let body = Body::Reference {
        content_hash,
        name: name.to_owned(),
    };
    Ok(write_prelude(&tensor, &body, &[]))
}

/// A stream that stands for bytes of a tensor in another file.
///
/// # Errors
/// [`Error::InvalidArgument`] for a shape that is too large.
pub(crate) fn write_external(dtype: Dtype, shape: &[u64], external: External) -> Result<Vec<u8>> {
    let tensor = TensorType::new(dtype, shape)?;
    Ok(write_prelude(
        &tensor,
        &Body::External(Box::new(external)),
        &[],
    ))
}

/// The hash that identifies a tensor's bytes wherever one tensor refers to another: XXH3-128.
#[must_use]
pub fn content_hash(data: &[u8]) -> u128 {
    xxh3_128(data)
}
