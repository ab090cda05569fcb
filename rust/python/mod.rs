//! The extension module `neuzip_rs._native`: thin, typed in `python/neuzip_rs/_native.pyi`.
//!
//! Arguments arrive checked and coerced by the Python wrapper; here they are only converted. All work
//! on data runs without the GIL.

#![allow(
    clippy::needless_pass_by_value,
    clippy::too_many_arguments,
    reason = "signatures are those Python sees"
)]

mod buffers;
mod device;
mod errors;
mod explain;
mod files;
mod pieces;
mod report;
mod team;
mod tensor;
mod zipnn;

use pyo3::prelude::*;

use crate::headroom;

/// Whether a value may be part of a Python object, whose memory is aligned to two words and no more.
const fn fits_python<T>() -> bool {
    align_of::<T>() <= 2 * size_of::<usize>()
}

/// Name of the SIMD tier in use, or an error when `NEUZIP_SIMD` asks for one that is not there.
#[pyfunction]
fn simd_tier() -> PyResult<&'static str> {
    Ok(crate::simd_tier().map_err(errors::to_py)?.name())
}

/// Sizes up to this one are left to whoever allocates.
const UNCHECKED_BYTES: usize = 64 << 20;

/// Makes sure that a Python object of `nbytes` can be had: Python without a GIL takes memory that the
/// system has not promised, and runs out of it when it is filled.
#[pyfunction]
fn check_memory(nbytes: usize) -> PyResult<()> {
    if nbytes <= UNCHECKED_BYTES {
        return Ok(());
    }
    headroom::check(nbytes).map_err(errors::to_py)
}

#[pymodule(gil_used = false)]
fn _native(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    m.add_function(wrap_pyfunction!(simd_tier, m)?)?;
    m.add_function(wrap_pyfunction!(check_memory, m)?)?;
    tensor::register(m)?;
    device::register(m)?;
    explain::register(m)?;
    files::register(m)?;
    zipnn::register(m)
}
