//! Asks whether memory can be had before work begins that would abort the process without it.
//!
//! Results and everything whose size an input claims are allocated fallibly, and their absence is an
//! error. Working memory is not: where the system grants no more (a limit on the address space), Rust ends
//! the process. So the working memory of a call is mapped and unmapped once, untouched, before it is
//! needed. Invariants: no page is written to, and nothing is kept; the allocator is not involved, whose
//! thresholds would move.
//!
//! Place in docs/format.md: none.

use memmap2::MmapMut;

use crate::error::{Error, Result};

/// What a thread needs for itself: its stack, and buffers for a chunk or a group of small tensors.
pub(crate) const WORKER_BYTES: usize = 6 << 20;

/// Makes sure that `bytes` could be allocated now.
///
/// # Errors
/// [`Error::AllocationFailed`] if not.
pub(crate) fn check(bytes: usize) -> Result<()> {
    let granted = MmapMut::map_anon(bytes.max(1));
    granted.map(drop).map_err(|_| Error::AllocationFailed {
        bytes: bytes as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_had_is_an_error() {
        for bytes in [0, 1, WORKER_BYTES] {
            check(bytes).unwrap();
        }
        // Of 32 bits a quarter may be had, and even a half.
        let too_much = usize::MAX >> if usize::BITS == 64 { 2 } else { 0 };
        let refused = check(too_much);
        assert!(matches!(refused, Err(Error::AllocationFailed { .. })));
    }
}
