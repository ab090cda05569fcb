//! What zipnn has written: `zipnn_decompress` and its like.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::buffers::Bytes;
use super::report::{raise, run};
use crate::{Threads, zipnn};

fn threads_of(threads: Option<usize>) -> Threads {
    threads.map_or(Threads::auto(), Threads::new)
}

/// Restores a file; returns its compressed and its original length.
#[pyfunction]
#[pyo3(signature = (src, dst, *, threads = None, overwrite = false, max_output_size = None,
                    progress = None))]
fn zipnn_decompress_file(
    py: Python<'_>,
    src: PathBuf,
    dst: PathBuf,
    threads: Option<usize>,
    overwrite: bool,
    max_output_size: Option<u64>,
    progress: Option<Py<PyAny>>,
) -> PyResult<(u64, u64)> {
    let threads = threads_of(threads);
    run(py, progress, |progress| {
        zipnn::decompress_file(&src, &dst, threads, overwrite, max_output_size, progress)
    })
}

/// Restores the original bytes.
#[pyfunction]
#[pyo3(signature = (data, *, threads = None, max_output_size = None))]
fn zipnn_decompress<'py>(
    data: &Bound<'py, PyAny>,
    threads: Option<usize>,
    max_output_size: Option<u64>,
) -> PyResult<Bound<'py, PyBytes>> {
    let (py, bytes, threads) = (data.py(), Bytes::new(data)?, threads_of(threads));
    let out = run(py, None, |progress| {
        zipnn::decompress(bytes.as_slice(), threads, max_output_size, progress)
    })?;
    Ok(PyBytes::new(py, &out))
}

/// Type, shape (of a tensor) and length of what the first frame was made from.
#[pyfunction]
fn zipnn_header(data: &Bound<'_, PyAny>) -> PyResult<(&'static str, Option<Vec<u64>>, u64)> {
    let header = zipnn::header(Bytes::new(data)?.as_slice()).map_err(raise)?;
    Ok((header.dtype.name(), header.shape, header.original_bytes))
}

pub(super) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(zipnn_decompress_file, m)?)?;
    m.add_function(wrap_pyfunction!(zipnn_decompress, m)?)?;
    m.add_function(wrap_pyfunction!(zipnn_header, m)?)
}
