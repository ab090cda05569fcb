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
use crate::options::CompressOptions;
use crate::plan::Plan;
use crate::simd::Kernels;

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
    compress_with(data, dtype, shape, options, &mut |_| Ok(()))
}

/// Like [`compress`], telling `progress` how many original bytes are done; its errors stop the work.
///
/// # Errors
/// Those of [`compress`] and of `progress`.
pub(crate) fn compress_with(
    data: &[u8],
    dtype: Dtype,
    shape: &[u64],
    options: &CompressOptions,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Vec<u8>> {
    let mut out = Memory::new(data.len(), Kernels::select(options.simd)?);
    compress_to(&mut out, data, dtype, shape, options, progress)?;
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
    let mut spare = Spare::default();
    compress_reusing(&mut spare, out, data, dtype, shape, options, progress)
}

/// Like [`compress_to`], with buffers that tensors leave to each other.
///
/// # Errors
/// Those of [`compress_to`].
pub(crate) fn compress_reusing<W: Write + Seek>(
    spare: &mut Spare,
    out: &mut W,
    data: &[u8],
    dtype: Dtype,
    shape: &[u64],
    options: &CompressOptions,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<u64> {
    let kernels = Kernels::select(options.simd)?;
    let tensor = TensorType::new(dtype, shape)?;
    if tensor.byte_len() != data.len() as u64 {
        return Err(Error::InvalidArgument(format!(
            "shape {shape:?} of {} takes {} bytes, but the data has {}",
            dtype.name(),
            tensor.byte_len(),
            data.len()
        )));
    }
    if let Some(element) = constant_element(data, dtype.itemsize()) {
        let prelude = write_prelude(&tensor, &Body::Constant(element.to_vec()), &[]);
        out.write_all(&prelude)?;
        progress(data.len() as u64)?;
        return Ok(prelude.len() as u64);
    }
    let plan = Plan::new(data, &tensor, options, kernels)?;
    let writer = StreamWriter {
        tensor: &tensor,
        data,
        plan: &plan,
        threads: options.threads,
        kernels,
    };
    writer.write(out, spare, progress)
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
