//! Stores past the caches: copies, and outputs that are written register by register.

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

/// An output that is written from front to back.
pub(super) struct Output {
    to: *mut u8,
    way: Way,
    /// The last register pushed, of which the end is still to be stored.
    pending: __m512i,
    /// Joins the end of one register with the begin of the next.
    joint: __m512i,
    /// Bytes of a register that go to the line that is being filled.
    head: u64,
    pushed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Through the caches.
    Plain,
    /// Streaming stores to aligned lines.
    Aligned,
    /// Streaming stores to aligned lines, which begin in the middle of a register.
    Shifted,
}

impl Output {
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn new(to: *mut u8, past_cache: bool) -> Self {
        let shift = to.addr() % 64;
        let way = match shift {
            _ if !past_cache || !shift.is_multiple_of(4) => Way::Plain,
            0 => Way::Aligned,
            _ => Way::Shifted,
        };
        let first = _mm512_set1_epi32(16 - shift as i32 / 4);
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        Self {
            to,
            way,
            pending: _mm512_setzero_si512(),
            joint: _mm512_add_epi32(first, lanes),
            head: u64::MAX >> shift,
            pushed: false,
        }
    }

    /// Stores the next 64 bytes.
    ///
    /// # Safety
    /// The CPU has AVX-512 with BW, and there is room for 64 more bytes.
    #[inline(always)]
    pub(super) unsafe fn push(&mut self, register: __m512i) {
        // SAFETY: plain stores go where there is room. A shifted output stores the first part of its
        // first register by mask, then whole lines of which every byte has been pushed.
        unsafe {
            match self.way {
                Way::Plain => _mm512_storeu_si512(self.to.cast(), register),
                Way::Aligned => _mm512_stream_si512(self.to.cast(), register),
                Way::Shifted => {
                    if self.pushed {
                        let line = _mm512_permutex2var_epi32(self.pending, self.joint, register);
                        let shift = self.head.leading_zeros() as usize;
                        _mm512_stream_si512(self.to.sub(shift).cast(), line);
                    } else {
                        _mm512_mask_storeu_epi8(self.to.cast(), self.head, register);
                        self.pushed = true;
                    }
                    self.pending = register;
                }
            }
            self.to = self.to.add(64);
        }
    }

    /// Stores what a shifted output still holds.
    ///
    /// # Safety
    /// The CPU has AVX-512 with BW.
    #[inline(always)]
    pub(super) unsafe fn finish(&mut self) {
        if self.way == Way::Shifted && self.pushed {
            // SAFETY: the masked bytes are the end of the last register pushed, for which there was room.
            unsafe {
                let end = self.to.sub(64).cast();
                _mm512_mask_storeu_epi8(end, !self.head, self.pending);
            }
        }
    }
}
