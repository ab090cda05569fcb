//! Bytes of Python objects, borrowed without copying.
//!
//! This is the buffer boundary: one of the places where the crate is allowed to be unsafe.

#![allow(unsafe_code, reason = "the buffer protocol hands out pointers")]

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;

/// Bytes of a Python object, held for as long as this value lives.
pub(super) struct Bytes {
    owner: Owner,
    pointer: *mut u8,
    len: usize,
}

enum Owner {
    Buffer(PyBuffer<u8>),
    /// A torch tensor, which has no buffer.
    #[expect(dead_code, reason = "the reference keeps the memory alive")]
    Tensor(Py<PyAny>),
}

impl Bytes {
    /// # Errors
    /// `TypeError` or `BufferError` if the object has no buffer of single bytes, or not a contiguous one.
    pub(super) fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = PyBuffer::get(object)?;
        if !buffer.is_c_contiguous() {
            return Err(PyBufferError::new_err("the buffer is not contiguous"));
        }
        let (pointer, len) = (buffer.buf_ptr().cast::<u8>(), buffer.len_bytes());
        let owner = Owner::Buffer(buffer);
        Ok(Self {
            owner,
            pointer,
            len,
        })
    }

    /// Like [`Bytes::new`] for a buffer that will be written.
    pub(super) fn writable(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let bytes = Self::new(object)?;
        match &bytes.owner {
            Owner::Buffer(buffer) if buffer.readonly() => {
                Err(PyValueError::new_err("the output buffer is read-only"))
            }
            _ => Ok(bytes),
        }
    }

    /// The memory of a contiguous torch tensor on the CPU, which `neuzip_rs._torch` has made or
    /// checked; anything else as [`Bytes::new`]. A view that has a buffer takes torch three times as
    /// long to make as a small tensor takes to decode.
    pub(super) fn of_array(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let py = object.py();
        let Ok(data_ptr) = object.getattr(intern!(py, "data_ptr")) else {
            return Self::new(object);
        };
        let pointer = data_ptr.call0()?.extract::<usize>()? as *mut u8;
        let len = object.getattr(intern!(py, "nbytes"))?.extract()?;
        let owner = Owner::Tensor(object.clone().unbind());
        Ok(Self {
            owner,
            pointer,
            len,
        })
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        let (pointer, len) = (self.pointer, self.len);
        if len == 0 {
            return &[];
        }
        // SAFETY: the exporter keeps `len` contiguous, initialised bytes at `pointer` alive and in place
        // until the buffer is released, which is when `self` is dropped. So does a tensor, which the
        // Python wrapper hands over only if it is contiguous and on the CPU (memory that torch has not
        // initialised is some bytes or other, as a buffer of it would be). Other Python threads can write to
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
        let (pointer, len) = (self.pointer, self.len);
        if len == 0 {
            return &mut [];
        }
        // SAFETY: as above, and the memory is writable: callers come here by `Bytes::writable`, or by
        // `Bytes::of_array` with an array the wrapper has just made. The callers take one slice per call and never two of the same buffer.
        unsafe { std::slice::from_raw_parts_mut(pointer, len) }
    }
}

// SAFETY: the memory belongs to no thread. A PyBuffer may be used from any thread; only its release needs the interpreter, which PyO3's
// drop attaches to by itself, as that of a Py does.
unsafe impl Sync for Bytes {}
// SAFETY: as above.
unsafe impl Send for Bytes {}

/// Whether two buffers share memory, which would let a decoder read what it writes.
pub(super) fn overlap(a: &[u8], b: &[u8]) -> bool {
    let (a, b) = (a.as_ptr_range(), b.as_ptr_range());
    a.start < b.end && b.start < a.end
}
