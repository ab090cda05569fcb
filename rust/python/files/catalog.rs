//! `Catalog`: what the files of a directory have in common.

use std::path::PathBuf;

use pyo3::prelude::*;

use super::compress_options;
use crate::files;
use crate::python::fits_python;
use crate::python::report::run;
use crate::safetensors;
use crate::{Threads, python::files::threads_of};

/// The tensors of a directory of plain `.safetensors` files.
#[pyclass(module = "neuzip_rs._native", frozen)]
pub(super) struct Catalog(pub(super) safetensors::Catalog);

const _: () = assert!(fits_python::<Catalog>());

#[pymethods]
impl Catalog {
    /// Looks at the files `names` of the directory `root`, in the order they will be compressed in.
    #[new]
    #[pyo3(signature = (root, names, *, threads = None, progress = None))]
    fn new(
        py: Python<'_>,
        root: PathBuf,
        names: Vec<String>,
        threads: Option<usize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let threads: Threads = threads_of(threads);
        run(py, progress, |progress| {
            safetensors::Catalog::new(&root, names, threads, &mut || progress(0, u64::MAX))
        })
        .map(Self)
    }

    /// Compresses the file that the catalog calls `name`; returns its original and compressed length.
    #[pyo3(signature = (name, src, dst, *, level = "default", threads = None, progress = None))]
    fn compress_file(
        &self,
        py: Python<'_>,
        name: &str,
        src: PathBuf,
        dst: PathBuf,
        level: &str,
        threads: Option<usize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<(u64, u64)> {
        let options = compress_options(level, threads)?;
        run(py, progress, |progress| {
            files::compress_shard(&src, &dst, (&self.0, name), &options, true, progress)
        })
    }

    /// Compresses another file, called `name`, of which `ranges` (first byte, length) may be tensors;
    /// `None` if too little of it is.
    #[pyo3(signature = (name, src, dst, ranges, *, level = "default", threads = None, progress = None))]
    fn compress_ranges(
        &self,
        py: Python<'_>,
        name: &str,
        src: PathBuf,
        dst: PathBuf,
        ranges: Vec<(usize, usize)>,
        level: &str,
        threads: Option<usize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Option<(u64, u64)>> {
        let options = compress_options(level, threads)?;
        let ranges = ranges
            .into_iter()
            .map(|(start, length)| start..start.saturating_add(length));
        let ranges = ranges.collect();
        run(py, progress, |progress| {
            files::compress_ranges(&src, &dst, (&self.0, name), ranges, &options, progress)
        })
    }
}
