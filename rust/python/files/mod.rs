//! Whole files: `compress_file` and its like, and the stream classes.

mod catalog;
mod safetensors;

use std::path::{Path, PathBuf};

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use self::catalog::Catalog;
use self::safetensors::SafetensorsFile;
use super::buffers::Bytes;
use super::errors::to_py;
use super::fits_python;
use super::report::{raise, run};
use crate::files;
use crate::safetensors::{BaseChoice, BaseModel};
use crate::{CompressOptions, DecompressOptions, Threads};

fn threads_of(threads: Option<usize>) -> Threads {
    threads.map_or(Threads::auto(), Threads::new)
}

fn compress_options(level: &str, threads: Option<usize>) -> PyResult<CompressOptions> {
    let level = level.parse().map_err(to_py)?;
    Ok(CompressOptions {
        level,
        threads: threads_of(threads),
        ..CompressOptions::default()
    })
}

fn decompress_options(verify: bool, threads: Option<usize>) -> DecompressOptions {
    DecompressOptions {
        verify,
        threads: threads_of(threads),
        simd: None,
    }
}

/// The model to take differences from, if one was named.
fn open_base(path: Option<&Path>) -> crate::Result<Option<BaseModel>> {
    path.map(BaseModel::open).transpose()
}

fn choose<'a>(model: Option<&'a BaseModel>, path: Option<&'a str>) -> Option<BaseChoice<'a>> {
    model.map(|model| BaseChoice { model, path })
}

/// What a file is, by its content.
#[pyfunction]
fn content_kind(py: Python<'_>, path: PathBuf) -> PyResult<&'static str> {
    py.detach(|| files::content_kind(&path))
        .map(files::ContentKind::name)
        .map_err(raise)
}

/// Compresses a file; returns its original and its compressed length.
#[pyfunction]
#[pyo3(signature = (src, dst, *, level = "default", threads = None, overwrite = false, progress = None,
                    base = None, base_path = None))]
fn compress_file(
    py: Python<'_>,
    src: PathBuf,
    dst: PathBuf,
    level: &str,
    threads: Option<usize>,
    overwrite: bool,
    progress: Option<Py<PyAny>>,
    base: Option<PathBuf>,
    base_path: Option<String>,
) -> PyResult<(u64, u64)> {
    let options = compress_options(level, threads)?;
    run(py, progress, |progress| {
        let model = open_base(base.as_deref())?;
        let base = choose(model.as_ref(), base_path.as_deref());
        files::compress_file_with_base(&src, &dst, base, &options, overwrite, progress)
    })
}

/// Restores a compressed file; returns its compressed and its original length.
#[pyfunction]
#[pyo3(signature = (src, dst, *, threads = None, overwrite = false, verify = true,
                    max_output_size = None, progress = None, base = None))]
fn decompress_file(
    py: Python<'_>,
    src: PathBuf,
    dst: PathBuf,
    threads: Option<usize>,
    overwrite: bool,
    verify: bool,
    max_output_size: Option<u64>,
    progress: Option<Py<PyAny>>,
    base: Option<PathBuf>,
) -> PyResult<(u64, u64)> {
    let options = decompress_options(verify, threads);
    let base = base.as_deref();
    run(py, progress, |progress| {
        files::decompress_file_with_base(
            &src,
            &dst,
            base,
            &options,
            overwrite,
            max_output_size,
            progress,
        )
    })
}

/// Decodes all of a compressed file; returns its compressed and its original length.
#[pyfunction]
#[pyo3(signature = (src, *, threads = None, progress = None, base = None))]
fn verify_file(
    py: Python<'_>,
    src: PathBuf,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
    base: Option<PathBuf>,
) -> PyResult<(u64, u64)> {
    let options = decompress_options(true, threads);
    run(py, progress, |progress| {
        files::verify_file_with_base(&src, base.as_deref(), &options, progress)
    })
}

/// The files that a compressed file refers to; with `check` what it refers to is looked for.
#[pyfunction]
#[pyo3(signature = (src, *, check = false))]
fn references(py: Python<'_>, src: PathBuf, check: bool) -> PyResult<Vec<String>> {
    let files = py
        .detach(|| files::references(&src, check))
        .map_err(raise)?;
    Ok(files.into_iter().collect())
}

/// Makes a `.nz` file of bytes that arrive piece by piece.
#[pyclass(module = "neuzip_rs._native")]
struct StreamCompressor(files::StreamCompressor);

const _: () = assert!(fits_python::<StreamCompressor>());

#[pymethods]
impl StreamCompressor {
    #[new]
    #[pyo3(signature = (*, level = "default", threads = None))]
    fn new(level: &str, threads: Option<usize>) -> PyResult<Self> {
        Ok(Self(files::StreamCompressor::new(compress_options(
            level, threads,
        )?)))
    }

    /// Takes the next bytes of the original; returns the next bytes of the file, if any are ready.
    fn feed<'py>(&mut self, data: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        let (py, bytes) = (data.py(), Bytes::new(data)?);
        let out = py.detach(|| self.0.feed(bytes.as_slice())).map_err(raise)?;
        Ok(PyBytes::new(py, &out))
    }

    /// Ends the file: the last bytes of it.
    fn finish<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let out = py.detach(|| self.0.finish()).map_err(raise)?;
        Ok(PyBytes::new(py, &out))
    }
}

/// Restores the original from a `.nz` file that arrives piece by piece.
#[pyclass(module = "neuzip_rs._native")]
struct StreamDecompressor(files::StreamDecompressor);

const _: () = assert!(fits_python::<StreamDecompressor>());

#[pymethods]
impl StreamDecompressor {
    #[new]
    #[pyo3(signature = (*, threads = None, verify = true, max_output_size = None, beside = None))]
    fn new(
        threads: Option<usize>,
        verify: bool,
        max_output_size: Option<u64>,
        beside: Option<PathBuf>,
    ) -> Self {
        let options = decompress_options(verify, threads);
        let decompressor = files::StreamDecompressor::new(options, max_output_size);
        Self(match beside {
            Some(path) => decompressor.beside(&path),
            None => decompressor,
        })
    }

    /// Takes the next bytes of the file; returns the next bytes of the original, if any are ready.
    fn feed<'py>(&mut self, data: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        let (py, bytes) = (data.py(), Bytes::new(data)?);
        let out = py.detach(|| self.0.feed(bytes.as_slice())).map_err(raise)?;
        Ok(PyBytes::new(py, &out))
    }

    /// Says that the file ends here.
    fn finish(&mut self) -> PyResult<()> {
        self.0.finish().map_err(raise)
    }
}

pub(super) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<StreamCompressor>()?;
    m.add_class::<StreamDecompressor>()?;
    m.add_class::<SafetensorsFile>()?;
    m.add_class::<Catalog>()?;
    m.add_function(wrap_pyfunction!(references, m)?)?;
    m.add_function(wrap_pyfunction!(content_kind, m)?)?;
    m.add_function(wrap_pyfunction!(compress_file, m)?)?;
    m.add_function(wrap_pyfunction!(decompress_file, m)?)?;
    m.add_function(wrap_pyfunction!(verify_file, m)?)?;
    m.add_function(wrap_pyfunction!(safetensors::write_safetensors, m)?)
}
