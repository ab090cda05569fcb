//! Copies past the caches.

use std::arch::x86_64::*;

/// See [`crate::simd::Kernels::copy_past_cache`].
///
/// # Safety
/// The CPU has the features of this tier; both slices have the same length.
#[target_feature(enable = "avx512f")]
pub(in crate::simd) unsafe fn copy_past_cache(from: &[u8], to: &mut [u8]) {
    // Streaming stores need an aligned destination; the loads do not mind.
    let head = to.as_ptr().align_offset(64).min(to.len());
    to[..head].copy_from_slice(&from[..head]);
    let (lines, _) = to[head..].as_chunks_mut::<64>();
    let tail = head + 64 * lines.len();
    let mut source = from[head..].as_ptr();
    for line in lines {
        // SAFETY: `from` is as long as `to`; the line is 64-byte aligned, as `head` was chosen.
        unsafe {
            _mm512_stream_si512(
                std::ptr::from_mut(line).cast(),
                _mm512_loadu_si512(source.cast()),
            );
            source = source.add(64);
        }
    }
    to[tail..].copy_from_slice(&from[tail..]);
}

/// Makes the copies of this thread visible to others before what follows.
#[target_feature(enable = "sse2")]
pub(in crate::simd) fn fence() {
    _mm_sfence();
}
