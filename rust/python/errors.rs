//! Errors of the crate as Python exceptions.
//!
//! The classes live in `neuzip_rs._errors`, so that some of them can have two bases.

use std::io::ErrorKind;

use pyo3::exceptions::{PyMemoryError, PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use crate::error::Error;

fn class(py: Python<'_>, name: &str, cell: &PyOnceLock<Py<PyType>>) -> PyResult<Py<PyType>> {
    cell.import(py, "neuzip_rs._errors", name)
        .map(|class| class.clone().unbind())
}

fn package_error(name: &str, cell: &'static PyOnceLock<Py<PyType>>, message: String) -> PyErr {
    Python::attach(|py| match class(py, name, cell) {
        Ok(class) => PyErr::from_type(class.into_bound(py), message),
        Err(error) => error,
    })
}

/// The exception for an error.
pub(super) fn to_py(error: Error) -> PyErr {
    static CORRUPT: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    static VERSION: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    static TOO_LARGE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    static BASE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let message = error.to_string();
    match error {
        Error::Corrupt(_) => package_error("CorruptDataError", &CORRUPT, message),
        Error::UnsupportedVersion(_) => package_error("UnsupportedVersionError", &VERSION, message),
        Error::OutputTooLarge { .. } => package_error("OutputTooLargeError", &TOO_LARGE, message),
        Error::BaseMismatch(_) => package_error("BaseMismatchError", &BASE, message),
        Error::InvalidArgument(_) => PyValueError::new_err(message),
        Error::Io(error) if error.kind() == ErrorKind::OutOfMemory => {
            PyMemoryError::new_err(message)
        }
        Error::Io(error) => match error.raw_os_error() {
            // With errno and text Python picks the subclass: FileNotFoundError and so on.
            Some(code) => PyOSError::new_err((code, message)),
            None => error.into(),
        },
        Error::Interrupted => PyRuntimeError::new_err(message),
        Error::AllocationFailed { .. } => PyMemoryError::new_err(message),
    }
}
