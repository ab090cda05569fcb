//! Where the bits go, as Python sees it.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::buffers::Bytes;
use super::errors::to_py;
use super::report::run;
use crate::{CompressOptions, Dtype, Explanation, Threads};

/// An [`Explanation`] as the keyword arguments of `neuzip_rs._explain.Explanation`.
pub(super) fn explanation_dict<'py>(
    py: Python<'py>,
    explanation: &Explanation,
) -> PyResult<Bound<'py, PyDict>> {
    let fields = PyList::empty(py);
    for field in &explanation.fields {
        let dict = PyDict::new(py);
        dict.set_item("name", &field.name)?;
        dict.set_item("mode", field.mode)?;
        dict.set_item("bits", field.bits)?;
        dict.set_item("elements", field.elements)?;
        dict.set_item("stored_bytes", field.bytes)?;
        dict.set_item("overhead_bytes", field.overhead)?;
        dict.set_item("table_bits", field.table_bits)?;
        dict.set_item("entropy_bits", field.entropy_bits)?;
        fields.append(dict)?;
    }
    let alternatives = PyDict::new(py);
    for alternative in &explanation.alternatives {
        alternatives.set_item(alternative.name, alternative.bytes)?;
    }
    let scale = explanation.scale.map(|scale| {
        let dict = PyDict::new(py);
        dict.set_item("columns", scale.columns)?;
        dict.set_item("row_offsets", scale.rows)?;
        dict.set_item("column_offsets", scale.cols)?;
        dict.set_item("stored_bytes", scale.bytes)?;
        PyResult::Ok(dict)
    });
    let dict = PyDict::new(py);
    dict.set_item("original_bytes", explanation.original_bytes)?;
    dict.set_item("stored_bytes", explanation.stored_bytes)?;
    dict.set_item("exact", explanation.exact)?;
    dict.set_item("body", explanation.body)?;
    dict.set_item("repeats", &explanation.repeats)?;
    dict.set_item("fields", fields)?;
    dict.set_item("other_bytes", explanation.other_bytes)?;
    dict.set_item("scale_offsets", scale.transpose()?)?;
    dict.set_item("alternatives", alternatives)?;
    Ok(dict)
}

/// What `compress` would make of the bytes of a tensor.
#[pyfunction]
#[pyo3(signature = (data, dtype, shape, *, level = "default", threads = None, hint = None))]
fn estimate<'py>(
    py: Python<'py>,
    data: &Bound<'py, PyAny>,
    dtype: &str,
    shape: Vec<u64>,
    level: &str,
    threads: Option<usize>,
    hint: Option<&str>,
) -> PyResult<Bound<'py, PyDict>> {
    let bytes = Bytes::new(data)?;
    let dtype = Dtype::from_name(dtype).map_err(to_py)?;
    let options = CompressOptions {
        level: level.parse().map_err(to_py)?,
        threads: threads.map_or(Threads::auto(), Threads::new),
        hint: hint.map(Dtype::from_name).transpose().map_err(to_py)?,
        ..CompressOptions::default()
    };
    let explanation = run(py, None, |_| {
        crate::estimate(bytes.as_slice(), dtype, &shape, &options)
    })?;
    explanation_dict(py, &explanation)
}

pub(super) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(estimate, m)?)
}
