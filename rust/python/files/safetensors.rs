//! `SafetensorsFile` and `write_safetensors`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use pyo3::exceptions::{PyKeyError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString, PyTuple};

use super::catalog::Catalog;
use super::{choose, compress_options, decompress_options, open_base};
use crate::python::buffers::Bytes;
use crate::python::errors::to_py;
use crate::python::explain::explanation_dict;
use crate::python::fits_python;
use crate::python::report::{raise, run};
use crate::python::tensor::info_dict;
use crate::safetensors::{self, ElementType, MemoryTensor, StoredForm};
use crate::{Dtype, Error, huge_pages};

/// A memory-mapped `.safetensors` file, plain or compressed.
#[pyclass(module = "neuzip_rs._native", frozen)]
pub(super) struct SafetensorsFile {
    // Shared with the calls under way, so that closing never pulls the map from under one.
    file: RwLock<Option<Arc<safetensors::SafetensorsFile>>>,
    path: PathBuf,
}

const _: () = assert!(fits_python::<SafetensorsFile>());

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

/// Name, element type, shape and bytes.
type Layout<'py> = (String, Bound<'py, PyString>, Bound<'py, PyTuple>, u64);

/// Name, first byte in the file, bytes, form, number of the tensor that has the stream, hash of the bytes, then
/// the first byte in a bundle and the bytes of that.
type Place<'py> = (
    String,
    u64,
    u64,
    &'static str,
    usize,
    Bound<'py, PyBytes>,
    u64,
    u64,
);

/// Says which file an error is about.
fn raise_in(path: &Path) -> impl FnOnce(Error) -> PyErr {
    |error| raise(error.within(&path.display().to_string()))
}

#[pymethods]
impl SafetensorsFile {
    /// Opens the file; `filled_in` if the process writes its parts before they are read.
    #[new]
    #[pyo3(signature = (path, *, base = None, filled_in = false))]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        base: Option<PathBuf>,
        filled_in: bool,
    ) -> PyResult<Self> {
        let base = base.as_deref();
        let open = if filled_in {
            safetensors::SafetensorsFile::open_filled_in
        } else {
            safetensors::SafetensorsFile::open_with_base
        };
        let file = py.detach(|| open(&path, base)).map_err(raise_in(&path))?;
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

    /// What the file says of its base: identity, then where it was, if that was recorded.
    #[getter]
    fn base(&self) -> PyResult<Option<String>> {
        Ok(self.file()?.base().map(str::to_owned))
    }

    /// The files that the base was found in, and those that they need in turn.
    fn base_files(&self) -> PyResult<Vec<PathBuf>> {
        Ok(self.file()?.base_files())
    }

    /// Checks that the base is there and the right one, if one is needed.
    #[pyo3(signature = (*, threads = None))]
    fn check_base(&self, py: Python<'_>, threads: Option<usize>) -> PyResult<()> {
        let file = self.file()?;
        let options = decompress_options(true, threads);
        run(py, None, |progress| {
            file.check_base(&options, &mut || progress(0, u64::MAX))
                .map_err(|error| error.within(&self.path.display().to_string()))
        })
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

    /// The first tensor of the bundle that a tensor is in; `None` if its stream is its own.
    fn bundle(&self, name: &str) -> PyResult<Option<String>> {
        let (file, index) = self.tensor(name)?;
        let owner = file.bundle(index);
        Ok(owner.map(|owner| file.header().name(owner).to_owned()))
    }

    /// Where every tensor is stored, in the order of the data: name, first byte in the file, bytes, form; for
    /// the form "repeat" the number of the tensor it repeats and the hash of the decoded bytes; for the form
    /// "bundled" the number of the tensor that has the stream, where in its bytes this one begins, and how many
    /// it has. A repeat of a bundled tensor has all of these.
    fn places<'py>(&self, py: Python<'py>) -> PyResult<Vec<Place<'py>>> {
        let file = self.file()?;
        let place = |index| {
            let range = file.stored_range(index);
            let form = file.stored_form(index).map_err(raise_in(&self.path))?;
            let (form, first, hash, start, total) = match form {
                StoredForm::Plain => ("plain", index, 0, 0, 0),
                StoredForm::Stream => ("stream", index, 0, 0, 0),
                StoredForm::Elsewhere => ("elsewhere", index, 0, 0, 0),
                StoredForm::Repeat {
                    first,
                    content_hash,
                } => ("repeat", first, content_hash, 0, 0),
                StoredForm::Bundled(place) => (
                    place.content_hash.map_or("bundled", |_| "repeat"),
                    place.owner,
                    place.content_hash.unwrap_or_default(),
                    place.start,
                    place.total,
                ),
            };
            Ok((
                file.header().name(index).to_owned(),
                range.start,
                range.end - range.start,
                form,
                first,
                PyBytes::new(py, &hash.to_le_bytes()),
                start,
                total,
            ))
        };
        (0..file.header().len()).map(place).collect()
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

    /// Where the bits of a tensor of a compressed file go; with `measure`, some chunks are decoded.
    #[pyo3(signature = (name, *, measure = false))]
    fn explain<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        measure: bool,
    ) -> PyResult<Bound<'py, PyDict>> {
        let (file, index) = self.tensor(name)?;
        let options = decompress_options(true, None);
        let explanation = file
            .explain(index, measure.then_some(&options))
            .map_err(raise_in(&self.path))?;
        explanation_dict(py, &explanation)
    }

    /// What compressing each tensor of a plain file would give, in the order of the data.
    #[pyo3(signature = (*, catalog = None, level = "default", threads = None, progress = None))]
    fn estimate<'py>(
        &self,
        py: Python<'py>,
        catalog: Option<(Py<Catalog>, String)>,
        level: &str,
        threads: Option<usize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let file = self.file()?;
        let options = compress_options(level, threads)?;
        let explanations = run(py, progress, |progress| {
            let total = file.header().data_bytes();
            let progress = &mut |done| progress(done, total);
            let catalog = catalog.as_ref();
            let catalog = catalog.map(|(catalog, name)| (&catalog.get().0, name.as_str()));
            file.estimate(catalog, &options, progress)
                .map_err(|error| error.within(&self.path.display().to_string()))
        })?;
        explanations
            .iter()
            .map(|explanation| explanation_dict(py, explanation))
            .collect()
    }

    /// Name, element type, shape and original bytes of every tensor, in the order of the data.
    fn layouts<'py>(&self, py: Python<'py>) -> PyResult<Vec<Layout<'py>>> {
        let file = self.file()?;
        let header = file.header();
        let layout = |index| {
            let element = header.element(index).name();
            let shape = PyTuple::new(py, header.shape(index))?;
            Ok((
                header.name(index).to_owned(),
                PyString::intern(py, element),
                shape,
                header.tensor_bytes(index),
            ))
        };
        (0..header.len()).map(layout).collect()
    }

    /// Reads whole tensors, given by their numbers in the order of the data, each into fresh memory
    /// of its length: torch tensors or writable buffers.
    #[pyo3(signature = (numbers, outs, *, verify = true, threads = None))]
    fn read_many(
        &self,
        py: Python<'_>,
        numbers: Vec<usize>,
        outs: Vec<Bound<'_, PyAny>>,
        verify: bool,
        threads: Option<usize>,
    ) -> PyResult<()> {
        let file = self.file()?;
        let count = file.header().len();
        if outs.len() != numbers.len() || numbers.iter().any(|&number| number >= count) {
            return Err(PyValueError::new_err(
                "an output for each tensor, and tensors of the file",
            ));
        }
        let outs: Vec<Bytes> = outs.iter().map(Bytes::of_array).collect::<PyResult<_>>()?;
        let options = decompress_options(verify, threads);
        run(py, None, |progress| {
            let slices = outs.iter().map(Bytes::as_mut_slice);
            let requests: Vec<(usize, &mut [u8])> = numbers.into_iter().zip(slices).collect();
            for (_, out) in &requests {
                huge_pages::advise(out.as_ptr(), out.len());
            }
            let progress = &mut |done| progress(done, u64::MAX);
            file.read_many(requests, &options, progress)
                .map_err(|error| error.within(&self.path.display().to_string()))
        })
    }

    /// Reads original bytes `start..start + len(out)` of a tensor into a writable buffer, `fresh` if
    /// it was just allocated.
    #[pyo3(signature = (name, out, *, start = 0, verify = true, threads = None, fresh = false))]
    fn read_into(
        &self,
        py: Python<'_>,
        name: &str,
        out: &Bound<'_, PyAny>,
        start: u64,
        verify: bool,
        threads: Option<usize>,
        fresh: bool,
    ) -> PyResult<()> {
        let (file, index) = self.tensor(name)?;
        let out = Bytes::writable(out)?;
        if fresh {
            huge_pages::advise(out.as_slice().as_ptr(), out.as_slice().len());
        }
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
#[pyo3(signature = (dst, tensors, metadata, *, level = "default", threads = None, progress = None,
                    base = None, base_path = None))]
pub(super) fn write_safetensors<'py>(
    py: Python<'py>,
    dst: Option<PathBuf>,
    tensors: Vec<TensorArgument<'py>>,
    metadata: Option<HashMap<String, String>>,
    level: &str,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
    base: Option<PathBuf>,
    base_path: Option<String>,
) -> PyResult<Option<Bound<'py, PyBytes>>> {
    let options = compress_options(level, threads)?;
    let buffers: Vec<Bytes> = tensors
        .iter()
        .map(|(_, _, _, data, _)| Bytes::of_array(data))
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
        let model = open_base(base.as_deref())?;
        let base = choose(model.as_ref(), base_path.as_deref());
        safetensors::write_file_with_base(&path, tensors, metadata, base, &options, progress)
    })?;
    Ok(None)
}
