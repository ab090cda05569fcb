//! Single tensors: `CompressedTensor`, `compress`, `decompress_into`.

use std::ffi::{c_int, c_void};
use std::hash::{DefaultHasher, Hash, Hasher};

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use super::buffers::{Bytes, overlap};
use super::errors::to_py;
use super::explain::explanation_dict;
use super::fits_python;
use super::pieces::Pieces;
use super::report::run;
use super::team;
use crate::codec::compress_with;
use crate::container::stream::Stream;
use crate::dtype::Dtype;
use crate::huge_pages::advise;
use crate::options::{CompressOptions, DecompressOptions, Threads};

/// Below this size work is over before anybody could press Ctrl-C.
const BRIEF_BYTES: usize = 1 << 20;
/// Bytes decoded between two looks at signals: a multiple of every chunk length.
const STEP_BYTES: u64 = 1 << 27;

/// The bytes of a stream: made here, or a `bytes` object of the caller.
enum Storage {
    Owned(Vec<u8>),
    Python(Py<PyBytes>),
}

/// A tensor in compressed form. Immutable; its buffer is the tensor stream.
#[pyclass(module = "neuzip_rs", frozen)]
pub(super) struct CompressedTensor {
    storage: Storage,
    /// Where the tensor came from: never part of the bytes.
    #[pyo3(get)]
    framework: Option<String>,
    dtype: Dtype,
    shape: Vec<u64>,
    /// Bytes of the decoded tensor.
    #[pyo3(get)]
    original_nbytes: u64,
}

const _: () = assert!(fits_python::<CompressedTensor>());

impl CompressedTensor {
    fn new(storage: Storage, framework: Option<String>, py: Python<'_>) -> PyResult<Self> {
        let bytes = match &storage {
            Storage::Owned(bytes) => bytes,
            Storage::Python(bytes) => bytes.as_bytes(py),
        };
        let stream = Stream::parse(bytes).map_err(to_py)?;
        let (dtype, original_nbytes) = (stream.dtype(), stream.original_len());
        let shape = stream.shape().to_vec();
        Ok(Self {
            storage,
            framework,
            dtype,
            shape,
            original_nbytes,
        })
    }

    pub(super) fn as_slice<'a>(&'a self, py: Python<'a>) -> &'a [u8] {
        match &self.storage {
            Storage::Owned(bytes) => bytes,
            Storage::Python(bytes) => bytes.as_bytes(py),
        }
    }
}

#[pymethods]
impl CompressedTensor {
    /// Reads and checks the header of a tensor stream; `bytes` objects are kept, others copied.
    #[staticmethod]
    #[pyo3(signature = (data, /, *, framework = None))]
    fn from_bytes(data: &Bound<'_, PyAny>, framework: Option<String>) -> PyResult<Self> {
        let storage = match data.cast_exact::<PyBytes>() {
            Ok(bytes) => Storage::Python(bytes.clone().unbind()),
            Err(_) => Storage::Owned(Bytes::new(data)?.as_slice().to_vec()),
        };
        Self::new(storage, framework, data.py())
    }

    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.shape)
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        self.dtype.name()
    }

    /// The hash of the base that decoding needs, if it needs one: 16 bytes, the lowest first.
    #[getter]
    fn base_hash<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let stream = Stream::parse(self.as_slice(py)).map_err(to_py)?;
        Ok(stream
            .base_hash()
            .map(|hash| PyBytes::new(py, &hash.to_le_bytes())))
    }

    #[getter]
    fn nbytes(&self, py: Python<'_>) -> usize {
        self.as_slice(py).len()
    }

    /// Compressed over original bytes; 1.0 for an empty tensor.
    #[getter]
    fn ratio(&self, py: Python<'_>) -> f64 {
        match self.original_nbytes {
            0 => 1.0,
            original => self.as_slice(py).len() as f64 / original as f64,
        }
    }

    fn info<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        info_dict(py, &Stream::parse(self.as_slice(py)).map_err(to_py)?)
    }

    /// Where the bits go; with `measure`, some chunks are decoded.
    #[pyo3(signature = (*, measure = false))]
    fn explain<'py>(&self, py: Python<'py>, measure: bool) -> PyResult<Bound<'py, PyDict>> {
        let options = DecompressOptions::default();
        let stream = Stream::parse(self.as_slice(py)).map_err(to_py)?;
        let explanation = stream.explain(measure.then_some(&options)).map_err(to_py)?;
        explanation_dict(py, &explanation)
    }

    fn __bytes__<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        match &self.storage {
            Storage::Owned(bytes) => PyBytes::new(py, bytes),
            Storage::Python(bytes) => bytes.bind(py).clone(),
        }
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        let py = other.py();
        other
            .cast::<Self>()
            .is_ok_and(|other| self.as_slice(py) == other.get().as_slice(py))
    }

    fn __hash__(&self, py: Python<'_>) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.as_slice(py).hash(&mut hasher);
        hasher.finish()
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let shape: Vec<String> = self.shape.iter().map(u64::to_string).collect();
        let framework = self
            .framework
            .as_ref()
            .map(|name| format!(", {name}"))
            .unwrap_or_default();
        format!(
            "CompressedTensor({}[{}], {} of {} bytes{framework})",
            self.dtype.name(),
            shape.join(", "),
            self.as_slice(py).len(),
            self.original_nbytes
        )
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let this = slf.get();
        let framework = PyDict::new(py);
        framework.set_item("framework", &this.framework)?;
        // methodcaller("from_bytes", ...)(CompressedTensor): a keyword argument needs it.
        let rebuild = py
            .import("operator")?
            .getattr("methodcaller")?
            .call(("from_bytes", this.__bytes__(py)), Some(&framework))?;
        (rebuild, (slf.get_type(),)).into_bound_py_any(py)
    }

    fn __copy__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __deepcopy__(slf: Py<Self>, _memo: &Bound<'_, PyAny>) -> Py<Self> {
        slf
    }

    /// Decodes rows: an index, slice or tuple applied to the first dimension (and the rest).
    fn __getitem__<'py>(
        slf: &Bound<'py, Self>,
        rows: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        slf.py()
            .import("neuzip_rs._tensor")?
            .call_method1("decode_rows", (slf, rows))
    }

    #[allow(unsafe_code, reason = "the buffer protocol is a C interface")]
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("no view to fill"));
        }
        let bytes = slf.get().as_slice(slf.py());
        let (pointer, len) = (bytes.as_ptr(), bytes.len());
        // SAFETY: `view` is not null and the interpreter's to be filled. The bytes live as long as the
        // object (it is frozen: they are never replaced), and PyBuffer_FillInfo takes a reference to
        // the object into the view, which keeps it alive. The view is filled as read-only.
        let result = unsafe {
            ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                pointer.cast_mut().cast::<c_void>(),
                len as ffi::Py_ssize_t,
                1,
                flags,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(PyErr::fetch(slf.py()))
        }
    }
}

/// The facts of a stream as Python sees them.
pub(super) fn info_dict<'py>(py: Python<'py>, stream: &Stream<'_>) -> PyResult<Bound<'py, PyDict>> {
    let info = stream.info();
    let dict = PyDict::new(py);
    dict.set_item("body", info.body)?;
    dict.set_item("chunks", info.chunks)?;
    dict.set_item("chunk_bytes", info.chunk_bytes)?;
    dict.set_item("modes", info.modes)?;
    dict.set_item("entropy_bits", info.entropy_bits)?;
    dict.set_item("features", info.features)?;
    Ok(dict)
}

/// Compresses the bytes of a tensor.
#[pyfunction]
#[pyo3(signature = (data, dtype, shape, *, level = "default", chunk_bytes = None, threads = None,
                    framework = None, hint = None, base = None))]
fn compress(
    py: Python<'_>,
    data: &Bound<'_, PyAny>,
    dtype: &str,
    shape: Vec<u64>,
    level: &str,
    chunk_bytes: Option<usize>,
    threads: Option<usize>,
    framework: Option<String>,
    hint: Option<&str>,
    base: Option<&Bound<'_, PyAny>>,
) -> PyResult<CompressedTensor> {
    let bytes = Bytes::new(data)?;
    let base = base.map(Bytes::new).transpose()?;
    let base = base.as_ref().map(Bytes::as_slice);
    let dtype = Dtype::from_name(dtype).map_err(to_py)?;
    let options = CompressOptions {
        level: level.parse().map_err(to_py)?,
        chunk_bytes,
        threads: threads.map_or(Threads::auto(), Threads::new),
        hint: hint.map(Dtype::from_name).transpose().map_err(to_py)?,
        simd: None,
    };
    let stream = if bytes.as_slice().len() < BRIEF_BYTES {
        let done = &mut |_| Ok(());
        py.detach(|| compress_with(bytes.as_slice(), base, dtype, &shape, &options, done))
            .map_err(to_py)?
    } else {
        run(py, None, |progress| {
            let total = bytes.as_slice().len() as u64;
            let mut progress = |done| progress(done, total);
            compress_with(
                bytes.as_slice(),
                base,
                dtype,
                &shape,
                &options,
                &mut progress,
            )
        })?
    };
    let original_nbytes = bytes.as_slice().len() as u64;
    let storage = Storage::Owned(stream);
    Ok(CompressedTensor {
        storage,
        framework,
        dtype,
        shape,
        original_nbytes,
    })
}

/// Element type, shape and decoded bytes of the stream in a buffer, checked but not copied.
#[pyfunction]
fn stream_header<'py>(
    data: &Bound<'py, PyAny>,
) -> PyResult<(&'static str, Bound<'py, PyTuple>, u64)> {
    let bytes = Bytes::new(data)?;
    let stream = Stream::parse(bytes.as_slice()).map_err(to_py)?;
    let shape = PyTuple::new(data.py(), stream.shape())?;
    Ok((stream.dtype().name(), shape, stream.original_len()))
}

/// Decodes original bytes `start..start + len(out)` of a stream into a writable buffer, `fresh` if it
/// was just allocated.
#[pyfunction]
#[pyo3(signature = (source, out, *, start = 0, verify = true, threads = None, fresh = false,
                    base = None))]
fn decompress_into(
    py: Python<'_>,
    source: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    start: u64,
    verify: bool,
    threads: Option<usize>,
    fresh: bool,
    base: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let source = Bytes::new(source)?;
    let base = base.map(Bytes::new).transpose()?;
    let base = base.as_ref().map(Bytes::as_slice);
    let out = Bytes::writable(out)?;
    let options = DecompressOptions {
        verify,
        threads: threads.map_or(Threads::auto(), Threads::new),
        simd: None,
    };
    let (source, out) = (source.as_slice(), out.as_mut_slice());
    if overlap(source, out) || base.is_some_and(|base| overlap(base, out)) {
        return Err(PyValueError::new_err(
            "the output buffer shares memory with the compressed data or the base",
        ));
    }
    let parse = || match base {
        Some(base) => Stream::parse(source)?.with_base(base),
        None => Stream::parse(source),
    };
    if out.len() < BRIEF_BYTES {
        return py
            .detach(|| parse()?.decode_into(start, out, &options))
            .map_err(to_py);
    }
    if fresh {
        advise(out.as_ptr(), out.len());
    }
    run(py, None, |progress| {
        let stream = parse()?;
        let total = out.len() as u64;
        let mut done = 0;
        // Borders are ones of chunks. A range that is outside the tensor is refused there.
        for (position, piece) in Pieces::new(start, out, STEP_BYTES) {
            stream.decode_into(position, piece, &options)?;
            done += piece.len() as u64;
            progress(done, total)?;
        }
        Ok(())
    })
}

/// Decodes original bytes `start..start + nbytes` of the stream in one contiguous CPU tensor of torch to the
/// beginning of another, for a reader that comes at once: with ordinary stores, however much it is, and by
/// torch's threads unless `threads` is None.
#[pyfunction]
#[pyo3(signature = (source, out, start, nbytes, threads, /))]
fn decompress_to_use(
    py: Python<'_>,
    source: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    start: u64,
    nbytes: usize,
    threads: Option<usize>,
) -> PyResult<()> {
    let (source, out) = (Bytes::of_array(source)?, Bytes::of_array(out)?);
    let (source, out) = (source.as_slice(), out.as_mut_slice());
    let out = out
        .get_mut(..nbytes)
        .ok_or_else(|| PyValueError::new_err("the output tensor is too small"))?;
    if overlap(source, out) {
        return Err(PyValueError::new_err(
            "the output tensor shares memory with the compressed data",
        ));
    }
    py.detach(|| {
        let stream = Stream::parse(source)?;
        match threads {
            Some(threads) => team::decode(&stream, start, out, threads),
            None => stream.decode_to_use(start, out, &DecompressOptions::default()),
        }
    })
    .map_err(to_py)
}

pub(super) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<CompressedTensor>()?;
    m.add_function(wrap_pyfunction!(compress, m)?)?;
    m.add_function(wrap_pyfunction!(stream_header, m)?)?;
    m.add_function(wrap_pyfunction!(decompress_into, m)?)?;
    m.add_function(wrap_pyfunction!(decompress_to_use, m)?)
}
