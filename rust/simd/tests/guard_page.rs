//! Buffers between pages that may not be touched: a read or write outside ends the process.
//!
//! Shared by the tests of the kernels and those of the public functions.

#![allow(
    unsafe_code,
    reason = "memory whose neighbours are forbidden comes from the operating system"
)]

use std::ptr::NonNull;

/// A buffer that touches a forbidden page, at its end or at its beginning.
///
/// Invariants: 1. the mapping has `mapped` bytes, whose first and last page are forbidden; 2. the `len`
/// bytes from `start` on lie between those, initialised, and nobody else refers to them.
pub(crate) struct Guarded {
    mapping: NonNull<libc::c_void>,
    mapped: usize,
    start: NonNull<u8>,
    len: usize,
}

/// The end of a buffer that touches a forbidden page.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Edge {
    Start,
    End,
}

impl Guarded {
    /// A zeroed buffer.
    pub(crate) fn zeroed(len: usize, edge: Edge) -> Self {
        // SAFETY: asks for a number.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let page = usize::try_from(page).expect("pages have a size");
        let inner = len.next_multiple_of(page).max(page);
        let mapped = inner + 2 * page;
        // SAFETY: a new anonymous mapping; the inner pages of it are then made accessible.
        let (mapping, opened) = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let mapping = libc::mmap(std::ptr::null_mut(), mapped, libc::PROT_NONE, flags, -1, 0);
            assert_ne!(mapping, libc::MAP_FAILED, "mapping {mapped} bytes");
            let access = libc::PROT_READ | libc::PROT_WRITE;
            (
                mapping,
                libc::mprotect(mapping.byte_add(page), inner, access),
            )
        };
        assert_eq!(opened, 0, "opening {inner} bytes");
        let skipped = match edge {
            Edge::Start => page,
            Edge::End => page + inner - len,
        };
        let mapping = NonNull::new(mapping).expect("a mapping is not at 0");
        // SAFETY: `skipped` is below `mapped`.
        let start = unsafe { mapping.byte_add(skipped) }.cast();
        Self {
            mapping,
            mapped,
            start,
            len,
        }
    }

    /// A copy of `bytes`.
    pub(crate) fn copy_of(bytes: &[u8], edge: Edge) -> Self {
        let mut buffer = Self::zeroed(bytes.len(), edge);
        buffer.copy_from_slice(bytes);
        buffer
    }
}

impl std::ops::Deref for Guarded {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: invariant 2.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl std::ops::DerefMut for Guarded {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: invariant 2.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours (invariant 1), and no reference outlives the buffer.
        let closed = unsafe { libc::munmap(self.mapping.as_ptr(), self.mapped) };
        assert_eq!(closed, 0, "unmapping");
    }
}
