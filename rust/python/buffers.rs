//! Bytes of Python objects, borrowed without copying.
//!
//! This is the buffer boundary: one of the places where the crate is allowed to be unsafe.

#![allow(unsafe_code, reason = "the buffer protocol hands out pointers")]

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::prelude::*;

/// A contiguous buffer of bytes, held for as long as this value lives.
pub(super) struct Bytes {
    buffer: PyBuffer<u8>,
}

impl Bytes {
    /// # Errors
    /// `TypeError` or `BufferError` if the object has no buffer of single bytes, or not a contiguous one.
    pub(super) fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = PyBuffer::get(object)?;
        if !buffer.is_c_contiguous() {
            return Err(PyBufferError::new_err("the buffer is not contiguous"));
        }
        Ok(Self { buffer })
    }

    /// Like [`Bytes::new`] for a buffer that will be written.
    pub(super) fn writable(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let bytes = Self::new(object)?;
        if bytes.buffer.readonly() {
            return Err(PyValueError::new_err("the output buffer is read-only"));
        }
        Ok(bytes)
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        let (pointer, len) = (self.buffer.buf_ptr().cast::<u8>(), self.buffer.len_bytes());
        if len == 0 {
            return &[];
        }
        // SAFETY: the exporter keeps `len` contiguous, initialised bytes at `pointer` alive and in place
        // until the buffer is released, which is when `self` is dropped. Other Python threads can write to
        // a mutable exporter meanwhile, as with every library that releases the GIL (zlib, hashlib): the
        // documentation of the Python functions forbids it, and the code behind this slice stays in
        // bounds whatever values it reads.
        unsafe { std::slice::from_raw_parts(pointer, len) }
    }

    #[expect(
        clippy::mut_from_ref,
        reason = "the exclusive access is the Python caller's promise"
    )]
    pub(super) fn as_mut_slice(&self) -> &mut [u8] {
        let (pointer, len) = (self.buffer.buf_ptr().cast::<u8>(), self.buffer.len_bytes());
        if len == 0 {
            return &mut [];
        }
        // SAFETY: as above, and the buffer is writable (`Bytes::writable` is the only way callers come
        // here). The callers take one slice per call and never two of the same buffer.
        unsafe { std::slice::from_raw_parts_mut(pointer, len) }
    }
}

// SAFETY: a PyBuffer may be used from any thread; only its release needs the interpreter, which PyO3's
// drop attaches to by itself.
unsafe impl Sync for Bytes {}
// SAFETY: as above.
unsafe impl Send for Bytes {}

/// Whether two buffers share memory, which would let a decoder read what it writes.
pub(super) fn overlap(a: &[u8], b: &[u8]) -> bool {
    let (a, b) = (a.as_ptr_range(), b.as_ptr_range());
    a.start < b.end && b.start < a.end
}
