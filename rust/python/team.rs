//! Decoding on the threads that torch's operators run on.
//!
//! Threads of OpenMP spin for some milliseconds after an operator, in case there is another one.
//! Threads of our own would share their cores with them meanwhile, and take longer than one thread
//! alone (measured: 1.33 instead of 1.27 times the plain time of a model). The same threads are there at
//! once. Where there is no OpenMP, or `NEUZIP_NUM_THREADS` decides, threads are those of
//! [`crate::parallel`].
//!
//! Place in docs/format.md: none.

#![allow(unsafe_code, reason = "OpenMP is a C library that others have loaded")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use super::pieces::Pieces;
use crate::container::stream::Stream;
use crate::error::{Error, Result};
use crate::options::{DecompressOptions, Threads};

/// Chunks that a decoder takes at once.
const CHUNKS_AT_ONCE: usize = 2;

/// As [`Stream::decode_to_use`] with so many threads.
pub(super) fn decode(
    stream: &Stream<'_>,
    start: u64,
    out: &mut [u8],
    threads: usize,
) -> Result<()> {
    let piece_bytes = stream.chunk_bytes().saturating_mul(CHUNKS_AT_ONCE).max(1) as u64;
    let options = |threads| DecompressOptions {
        threads: Threads::new(threads),
        ..DecompressOptions::default()
    };
    let team = (threads > 1 && out.len() as u64 > piece_bytes)
        .then(openmp::parallel)
        .flatten();
    let Some(team) = team else {
        return stream.decode_to_use(start, out, &options(threads));
    };
    let pieces = Mutex::new(Pieces::new(start, out, piece_bytes));
    let failed = Mutex::new(Ok(()));
    let work = || {
        let decode_next = || {
            // Not in the loop's head, which would keep the lock.
            let next = pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
            let (position, piece) = next?;
            Some(stream.decode_to_use(position, piece, &options(1)))
        };
        // A panic must not reach the C library.
        let guarded = || catch_unwind(AssertUnwindSafe(decode_next));
        while let Some(result) = guarded().unwrap_or(Some(Err(Error::Interrupted))) {
            if result.is_err() {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = result;
                return;
            }
        }
    };
    openmp::run(team, threads, &work);
    failed.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(target_os = "linux")]
mod openmp {
    use std::ffi::{c_uint, c_void};
    use std::sync::LazyLock;

    type Body = unsafe extern "C" fn(*mut c_void);
    /// `GOMP_parallel`, which GNU's, LLVM's and Intel's library all have.
    pub(super) type Parallel = unsafe extern "C" fn(Body, *mut c_void, c_uint, c_uint);

    /// The function of the library that is loaded, if one is.
    pub(super) fn parallel() -> Option<Parallel> {
        static FOUND: LazyLock<Option<Parallel>> = LazyLock::new(|| {
            // SAFETY: the name is a C string, and looking a symbol up runs no code of its library. A
            // function of this name has this type: it is part of the interface of compiled programs.
            unsafe {
                let found = libc::dlsym(libc::RTLD_DEFAULT, c"GOMP_parallel".as_ptr());
                (!found.is_null()).then(|| std::mem::transmute::<*mut c_void, Parallel>(found))
            }
        });
        *FOUND
    }

    /// Calls `work`, which must not panic, on each of so many threads; the calling thread is one.
    pub(super) fn run(parallel: Parallel, threads: usize, work: &(dyn Fn() + Sync)) {
        unsafe extern "C" fn body(work: *mut c_void) {
            // SAFETY: what `run` has passed, which lives until all threads are done.
            let work = unsafe { &*work.cast::<&(dyn Fn() + Sync)>() };
            work();
        }
        let mut work = work;
        let threads = c_uint::try_from(threads).unwrap_or(c_uint::MAX);
        // SAFETY: the function returns when all threads have returned from `body`, so that `work` and
        // what it borrows live long enough; it is Sync, so that they may all call it.
        unsafe { parallel(body, (&raw mut work).cast(), threads, 0) };
    }
}

/// Elsewhere it is not known where the library would be.
#[cfg(not(target_os = "linux"))]
mod openmp {
    pub(super) enum Parallel {}

    pub(super) fn parallel() -> Option<Parallel> {
        None
    }

    pub(super) fn run(parallel: Parallel, _threads: usize, _work: &(dyn Fn() + Sync)) {
        match parallel {}
    }
}
