//! Stores past the caches: copies, and outputs that are written register by register.

use std::arch::x86_64::*;

use super::load;

/// See [`crate::simd::Kernels::copy_past_cache`].
///
/// # Safety
/// The CPU has the features of this tier; `to` has room for as many bytes as `from` has.
#[target_feature(enable = "avx512f")]
pub(in crate::simd) unsafe fn copy_past_cache(from: &[u8], to: *mut u8) {
    // Streaming stores need an aligned destination; the loads do not mind.
    let head = to.align_offset(64).min(from.len());
    let (first, rest) = from.split_at(head);
    let (lines, last) = rest.as_chunks::<64>();
    // SAFETY: the three parts follow each other in `to`, which has room for them; the lines begin
    // where `to` is aligned.
    unsafe {
        first.as_ptr().copy_to_nonoverlapping(to, head);
        let mut line_to = to.add(head);
        for line in lines {
            _mm512_stream_si512(line_to.cast(), load(line));
            line_to = line_to.add(64);
        }
        last.as_ptr().copy_to_nonoverlapping(line_to, last.len());
    }
}

/// Makes the copies of this thread visible to others before what follows.
#[target_feature(enable = "sse2")]
pub(in crate::simd) fn fence() {
    _mm_sfence();
}

/// How an output is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Through the caches.
    Plain,
    /// Streaming stores to aligned lines.
    Aligned,
    /// Streaming stores to aligned lines, which begin in the middle of a register.
    Shifted,
}

impl Way {
    pub(super) fn of(to: *const u8, past_cache: bool) -> Self {
        match to.addr() % 64 {
            shift if !past_cache || !shift.is_multiple_of(4) => Self::Plain,
            0 => Self::Aligned,
            _ => Self::Shifted,
        }
    }
}

/// Joins the end of one register with the begin of the next, for [`Way::Shifted`].
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn joint(to: *const u8) -> __m512i {
    let first = _mm512_set1_epi32(16 - (to.addr() % 64 / 4) as i32);
    let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    _mm512_add_epi32(first, lanes)
}

/// An output that is written from front to back.
pub(super) struct Output {
    to: *mut u8,
    /// The last register pushed, of which the end is still to be stored.
    pending: __m512i,
    begin: *mut u8,
}

impl Output {
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn new(to: *mut u8) -> Self {
        Self {
            to,
            pending: _mm512_setzero_si512(),
            begin: to,
        }
    }

    /// Stores the next 64 bytes.
    ///
    /// # Safety
    /// The CPU has AVX-512 with BW, there is room for 64 more bytes, `way` and `joint` are those of
    /// this output or of one of the same alignment.
    #[inline(always)]
    pub(super) unsafe fn push(&mut self, register: __m512i, way: Way, joint: __m512i) {
        // SAFETY: plain stores go where there is room. A shifted output stores the first part of its
        // first register by mask, then whole lines of which every byte has been pushed.
        unsafe {
            match way {
                Way::Plain => _mm512_storeu_si512(self.to.cast(), register),
                Way::Aligned => _mm512_stream_si512(self.to.cast(), register),
                Way::Shifted => {
                    let shift = self.to.addr() % 64;
                    if self.to == self.begin {
                        _mm512_mask_storeu_epi8(self.to.cast(), u64::MAX >> shift, register);
                    } else {
                        let line = _mm512_permutex2var_epi32(self.pending, joint, register);
                        _mm512_stream_si512(self.to.sub(shift).cast(), line);
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
    /// As [`Output::push`].
    #[inline(always)]
    pub(super) unsafe fn finish(self, way: Way) {
        if way == Way::Shifted && self.to != self.begin {
            let shift = self.to.addr() % 64;
            // SAFETY: the masked bytes are the end of the last register pushed, for which there was room.
            unsafe {
                let end = self.to.sub(64).cast();
                _mm512_mask_storeu_epi8(end, !(u64::MAX >> shift), self.pending);
            }
        }
    }
}
