//! Whole files and `.safetensors`: `compress_file` and its like, the stream classes, `SafetensorsFile`.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyKeyError, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use super::buffers::Bytes;
use super::errors::to_py;
use super::tensor::info_dict;
use crate::container::mapped::{PathError, path_of};
use crate::files::{self, Progress};
use crate::safetensors::{self, ElementType, MemoryTensor};
use crate::{CompressOptions, DecompressOptions, Dtype, Error, Result, Threads};

/// Time between two visits to the interpreter: short enough for Ctrl-C and progress bars to feel
/// prompt, long enough to cost nothing.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// The exception for an error of a file operation.
fn raise(error: Error) -> PyErr {
    match &error {
        Error::Io(source) => path_of(source).map(os_error),
        _ => None,
    }
    .unwrap_or_else(|| to_py(error))
}

/// `OSError(errno, text, filename)`, from which Python makes the right subclass.
fn os_error(error: &PathError) -> PyErr {
    let PathError { path, source } = error;
    let errno = source.raw_os_error().or(match source.kind() {
        io::ErrorKind::NotFound => Some(2),
        io::ErrorKind::PermissionDenied => Some(13),
        io::ErrorKind::AlreadyExists => Some(17),
        io::ErrorKind::NotADirectory => Some(20),
        io::ErrorKind::IsADirectory => Some(21),
        io::ErrorKind::InvalidInput => Some(22),
        io::ErrorKind::StorageFull => Some(28),
        io::ErrorKind::ReadOnlyFilesystem => Some(30),
        _ => None,
    });
    match errno {
        Some(errno) => {
            // The interpreter's own words, without the number that Rust adds to them.
            let text = Python::attach(|py| {
                let text = py.import("os")?.call_method1("strerror", (errno,))?;
                text.extract::<String>()
            });
            let own_words = source.raw_os_error().is_none() && source.get_ref().is_some();
            let text = text
                .ok()
                .filter(|_| !own_words)
                .unwrap_or_else(|| source.to_string());
            PyOSError::new_err((errno, text, path.as_os_str().to_owned()))
        }
        None => PyOSError::new_err(error.to_string()),
    }
}

/// Visits the interpreter now and then during work without the GIL.
struct Reporter {
    callback: Option<Py<PyAny>>,
    last: Option<Instant>,
    raised: Option<PyErr>,
}

impl Reporter {
    fn report(&mut self, done: u64, total: u64) -> Result<()> {
        let recent = self
            .last
            .is_some_and(|last| last.elapsed() < REPORT_INTERVAL);
        if recent && done < total {
            return Ok(());
        }
        self.last = Some(Instant::now());
        let visited = Python::attach(|py| {
            py.check_signals()?;
            if let Some(callback) = &self.callback {
                callback.call1(py, (done, total))?;
            }
            Ok(())
        });
        visited.map_err(|raised| {
            self.raised = Some(raised);
            Error::Interrupted
        })
    }
}

/// Runs `work` without the GIL; an exception of the callback or a signal handler ends it.
fn run<T: Send>(
    py: Python<'_>,
    callback: Option<Py<PyAny>>,
    work: impl FnOnce(&mut Progress<'_>) -> Result<T> + Send,
) -> PyResult<T> {
    let mut reporter = Reporter {
        callback,
        last: None,
        raised: None,
    };
    let result = py.detach(|| work(&mut |done, total| reporter.report(done, total)));
    match reporter.raised {
        Some(raised) => Err(raised),
        None => result.map_err(raise),
    }
}

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
    }
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
#[pyo3(signature = (src, dst, *, level = "default", threads = None, overwrite = false, progress = None))]
fn compress_file(
    py: Python<'_>,
    src: PathBuf,
    dst: PathBuf,
    level: &str,
    threads: Option<usize>,
    overwrite: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<(u64, u64)> {
    let options = compress_options(level, threads)?;
    run(py, progress, |progress| {
        files::compress_file(&src, &dst, &options, overwrite, progress)
    })
}

/// Restores a compressed file; returns its compressed and its original length.
#[pyfunction]
#[pyo3(signature = (src, dst, *, threads = None, overwrite = false, verify = true,
                    max_output_size = None, progress = None))]
fn decompress_file(
    py: Python<'_>,
    src: PathBuf,
    dst: PathBuf,
    threads: Option<usize>,
    overwrite: bool,
    verify: bool,
    max_output_size: Option<u64>,
    progress: Option<Py<PyAny>>,
) -> PyResult<(u64, u64)> {
    let options = decompress_options(verify, threads);
    run(py, progress, |progress| {
        files::decompress_file(&src, &dst, &options, overwrite, max_output_size, progress)
    })
}

/// Decodes all of a compressed file; returns its compressed and its original length.
#[pyfunction]
#[pyo3(signature = (src, *, threads = None, progress = None))]
fn verify_file(
    py: Python<'_>,
    src: PathBuf,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<(u64, u64)> {
    let options = decompress_options(true, threads);
    run(py, progress, |progress| {
        files::verify_file(&src, &options, progress)
    })
}

/// Makes a `.nz` file of bytes that arrive piece by piece.
#[pyclass(module = "neuzip_rs._native")]
struct StreamCompressor(files::StreamCompressor);

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

#[pymethods]
impl StreamDecompressor {
    #[new]
    #[pyo3(signature = (*, threads = None, verify = true, max_output_size = None))]
    fn new(threads: Option<usize>, verify: bool, max_output_size: Option<u64>) -> Self {
        let options = decompress_options(verify, threads);
        Self(files::StreamDecompressor::new(options, max_output_size))
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

/// A memory-mapped `.safetensors` file, plain or compressed.
#[pyclass(module = "neuzip_rs._native", frozen)]
struct SafetensorsFile {
    // Shared with the calls under way, so that closing never pulls the map from under one.
    file: RwLock<Option<Arc<safetensors::SafetensorsFile>>>,
    path: PathBuf,
}

impl SafetensorsFile {
    fn file(&self) -> PyResult<Arc<safetensors::SafetensorsFile>> {
        let file = self.file.read().unwrap_or_else(PoisonError::into_inner);
        file.clone()
            .ok_or_else(|| PyValueError::new_err("the file is closed"))
    }

    fn tensor(&self, name: &str) -> PyResult<(Arc<safetensors::SafetensorsFile>, usize)> {
        let file = self.file()?;
        let index = file.header().find(name);
        let index = index.ok_or_else(|| PyKeyError::new_err(name.to_owned()))?;
        Ok((file, index))
    }
}

/// Says which file an error is about.
fn raise_in(path: &Path) -> impl FnOnce(Error) -> PyErr {
    |error| raise(error.within(&path.display().to_string()))
}

#[pymethods]
impl SafetensorsFile {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let file = py
            .detach(|| safetensors::SafetensorsFile::open(&path))
            .map_err(raise_in(&path))?;
        Ok(Self {
            file: RwLock::new(Some(Arc::new(file))),
            path,
        })
    }

    /// Whether the tensors are stored in compressed form.
    #[getter]
    fn compressed(&self) -> PyResult<bool> {
        Ok(self.file()?.is_compressed())
    }

    /// The metadata of the original file.
    #[getter]
    fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let file = self.file()?;
        if !file.header().has_metadata() {
            return Ok(None);
        }
        let dict = PyDict::new(py);
        file.header()
            .metadata()
            .try_for_each(|(key, value)| dict.set_item(key, value))?;
        Ok(Some(dict))
    }

    /// The names, in the order of the data.
    fn keys(&self) -> PyResult<Vec<String>> {
        let file = self.file()?;
        let header = file.header();
        Ok((0..header.len())
            .map(|index| header.name(index).to_owned())
            .collect())
    }

    /// The element type of a tensor as the safetensors format spells it.
    fn dtype(&self, name: &str) -> PyResult<&'static str> {
        let (file, index) = self.tensor(name)?;
        Ok(file.header().element(index).name())
    }

    fn shape<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyTuple>> {
        let (file, index) = self.tensor(name)?;
        PyTuple::new(py, file.header().shape(index))
    }

    /// Original bytes of a tensor.
    fn nbytes(&self, name: &str) -> PyResult<u64> {
        let (file, index) = self.tensor(name)?;
        Ok(file.header().tensor_bytes(index))
    }

    /// Bytes that a tensor takes in this file.
    fn stored_nbytes(&self, name: &str) -> PyResult<u64> {
        let (file, index) = self.tensor(name)?;
        Ok(file.stored_bytes(index))
    }

    /// Facts about a tensor's stream; `None` for a plain file.
    fn info<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Option<Bound<'py, PyDict>>> {
        let (file, index) = self.tensor(name)?;
        if !file.is_compressed() {
            return Ok(None);
        }
        let stream = file.stream(index).map_err(raise_in(&self.path))?;
        info_dict(py, &stream).map(Some)
    }

    /// Reads original bytes `start..start + len(out)` of a tensor into a writable buffer.
    #[pyo3(signature = (name, out, *, start = 0, verify = true, threads = None))]
    fn read_into(
        &self,
        py: Python<'_>,
        name: &str,
        out: &Bound<'_, PyAny>,
        start: u64,
        verify: bool,
        threads: Option<usize>,
    ) -> PyResult<()> {
        let (file, index) = self.tensor(name)?;
        let out = Bytes::writable(out)?;
        let options = decompress_options(verify, threads);
        let total = out.as_slice().len() as u64;
        run(py, None, |progress| {
            let progress = &mut |done| progress(done, total);
            file.read_into(index, start, out.as_mut_slice(), &options, progress)
                .map_err(|error| error.within(&self.path.display().to_string()))
        })
    }

    /// Closes the file; calls that are under way end as they would have.
    fn close(&self) {
        self.file
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
}

/// Name, element type, shape, bytes, and the element type of the stream.
type TensorArgument<'py> = (String, String, Vec<u64>, Bound<'py, PyAny>, String);

/// Writes tensors to a compressed `.safetensors` file, or to `bytes`.
#[pyfunction]
#[pyo3(signature = (dst, tensors, metadata, *, level = "default", threads = None, progress = None))]
fn write_safetensors<'py>(
    py: Python<'py>,
    dst: Option<PathBuf>,
    tensors: Vec<TensorArgument<'py>>,
    metadata: Option<HashMap<String, String>>,
    level: &str,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Option<Bound<'py, PyBytes>>> {
    let options = compress_options(level, threads)?;
    let buffers: Vec<Bytes> = tensors
        .iter()
        .map(|(_, _, _, data, _)| Bytes::new(data))
        .collect::<PyResult<_>>()?;
    let tensors: Vec<MemoryTensor<'_>> = tensors
        .into_iter()
        .zip(&buffers)
        .map(|((name, element, shape, _, dtype), data)| {
            let element = ElementType::from_name(&element).ok_or_else(|| {
                PyValueError::new_err(format!("unknown safetensors dtype {element:?}"))
            })?;
            let dtype = Dtype::from_name(&dtype).map_err(to_py)?;
            Ok(MemoryTensor {
                name,
                element,
                shape,
                data: data.as_slice(),
                dtype,
            })
        })
        .collect::<PyResult<_>>()?;
    // The order of the pairs is settled where the header is written.
    let metadata = metadata.map(|pairs| pairs.into_iter().collect());
    let Some(path) = dst else {
        let bytes = run(py, progress, |progress| {
            safetensors::write_bytes(tensors, metadata, &options, progress)
        })?;
        return Ok(Some(PyBytes::new(py, &bytes)));
    };
    run(py, progress, |progress| {
        safetensors::write_file(&path, tensors, metadata, &options, progress)
    })?;
    Ok(None)
}

pub(super) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<StreamCompressor>()?;
    m.add_class::<StreamDecompressor>()?;
    m.add_class::<SafetensorsFile>()?;
    m.add_function(wrap_pyfunction!(content_kind, m)?)?;
    m.add_function(wrap_pyfunction!(compress_file, m)?)?;
    m.add_function(wrap_pyfunction!(decompress_file, m)?)?;
    m.add_function(wrap_pyfunction!(verify_file, m)?)?;
    m.add_function(wrap_pyfunction!(write_safetensors, m)?)
}
