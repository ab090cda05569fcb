//! What a GPU needs of the host: `device_plan` to decode, `assemble_prelude` after it has encoded.

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::buffers::Bytes;
use super::errors::to_py;
use crate::container::device::{
    EncodedChunk, EncodedModel, EncodedScale, Placement, assemble,
    assemble_constant as constant_stream, plan as device_plan_of,
};
use crate::container::stream::Stream;
use crate::dtype::Dtype;
use crate::options::CompressOptions;
use crate::plan;

/// A stream, and the addresses of its first byte, of the tensor and of the base on the device.
type Placed<'py> = (Bound<'py, PyAny>, u64, u64, Option<u64>);

/// The plan that the kernels take, and how many chunks the fast one and the other one have in it.
#[pyfunction]
#[pyo3(signature = (streams, *, verify = true))]
fn device_plan<'py>(
    py: Python<'py>,
    streams: Vec<Placed<'py>>,
    verify: bool,
) -> PyResult<(Bound<'py, PyBytes>, usize, usize)> {
    let mut placed = Vec::with_capacity(streams.len());
    for (stream, address, out, base) in &streams {
        let placement = Placement {
            stream: *address,
            out: *out,
            base: *base,
        };
        placed.push((Bytes::new(stream)?, placement));
    }
    let made = py.detach(|| {
        let mut streams = Vec::with_capacity(placed.len());
        for (bytes, placement) in &placed {
            streams.push((Stream::parse(bytes.as_slice())?, *placement));
        }
        device_plan_of(&streams, verify)
    });
    let made = made.map_err(to_py)?;
    let bytes = PyBytes::new(py, &made.bytes);
    Ok((bytes, made.cut_chunks, made.any_chunks))
}

/// What goes in front of payloads that the device has encoded.
#[pyfunction]
#[pyo3(signature = (dtype, shape, chunk_log2, model, scale, chunks))]
fn assemble_prelude<'py>(
    py: Python<'py>,
    dtype: &str,
    shape: Vec<u64>,
    chunk_log2: u32,
    model: Option<EncodedModel>,
    scale: Option<EncodedScale>,
    chunks: Vec<EncodedChunk>,
) -> PyResult<Bound<'py, PyBytes>> {
    let dtype = Dtype::from_name(dtype).map_err(to_py)?;
    let made = assemble(dtype, &shape, chunk_log2, model, scale, &chunks);
    Ok(PyBytes::new(py, &made.map_err(to_py)?))
}

/// The stream of a tensor that is one element.
#[pyfunction]
fn assemble_constant<'py>(
    py: Python<'py>,
    dtype: &str,
    shape: Vec<u64>,
    element: Vec<u8>,
) -> PyResult<Bound<'py, PyBytes>> {
    let dtype = Dtype::from_name(dtype).map_err(to_py)?;
    let made = constant_stream(dtype, &shape, &element);
    Ok(PyBytes::new(py, &made.map_err(to_py)?))
}

/// The hash that names the bytes of a whole tensor: 16 bytes, the lowest first.
#[pyfunction]
fn content_hash<'py>(data: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    let hash = crate::content_hash(Bytes::new(data)?.as_slice());
    Ok(PyBytes::new(data.py(), &hash.to_le_bytes()))
}

/// log2 of the length of the chunks that `compress` makes of a tensor.
#[pyfunction]
#[pyo3(signature = (dtype, nbytes, *, level = "default"))]
fn chunk_log2(dtype: &str, nbytes: usize, level: &str) -> PyResult<u32> {
    let dtype = Dtype::from_name(dtype).map_err(to_py)?;
    let options = CompressOptions {
        level: level.parse().map_err(to_py)?,
        ..CompressOptions::default()
    };
    plan::chunk_log2(&options, dtype, nbytes).map_err(to_py)
}

pub(super) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(assemble_constant, m)?)?;
    m.add_function(wrap_pyfunction!(assemble_prelude, m)?)?;
    m.add_function(wrap_pyfunction!(chunk_log2, m)?)?;
    m.add_function(wrap_pyfunction!(content_hash, m)?)?;
    m.add_function(wrap_pyfunction!(device_plan, m)?)
}
