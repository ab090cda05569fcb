//! Copies past the caches.

use std::arch::x86_64::*;

use super::load;

/// See [`crate::simd::Kernels::copy_past_cache`].
///
/// # Safety
/// The CPU has the features of this tier; `to` has room for as many bytes as `from` has.
#[target_feature(enable = "avx2")]
pub(in crate::simd) unsafe fn copy_past_cache(from: &[u8], to: *mut u8) {
    // Streaming stores need an aligned destination; the loads do not mind.
    let head = to.align_offset(32).min(from.len());
    let (first, rest) = from.split_at(head);
    let (blocks, last) = rest.as_chunks::<32>();
    // SAFETY: the three parts follow each other in `to`, which has room for them; the blocks begin
    // where `to` is aligned.
    unsafe {
        first.as_ptr().copy_to_nonoverlapping(to, head);
        let mut block_to = to.add(head);
        for block in blocks {
            _mm256_stream_si256(block_to.cast(), load(block));
            block_to = block_to.add(32);
        }
        last.as_ptr().copy_to_nonoverlapping(block_to, last.len());
    }
}

/// Makes the copies of this thread visible to others before what follows.
#[target_feature(enable = "sse2")]
pub(in crate::simd) fn fence() {
    _mm_sfence();
}
